package chat

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"slices"
	"strings"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Roles of a member, as stored and shown.
const (
	roleOwner  = "owner"
	roleAdmin  = "admin"
	roleMember = "member"
)

// Join policies: who brings in members.
const (
	joinInvite = "invite" // any member, their friends
	joinAdmin  = "admin"  // owner and admins, their friends
)

const maxGroupName = 128

// GroupInfo is a group as its members see it.
type GroupInfo struct {
	ID         im.GroupID
	Name       string
	Owner      im.UserID
	Join       string
	MaxMembers int
	MuteAll    bool
	Created    int64
	Members    []MemberInfo // by user id
}

// MemberInfo is one member.
type MemberInfo struct {
	User       im.UserID
	Role       string
	MutedUntil int64 // Unix ms; 0 not muted
}

// GroupPatch says what to change; nil fields stay.
type GroupPatch struct {
	Name       *string
	Owner      *im.UserID
	Join       *string
	MaxMembers *int
	MuteAll    *bool
}

// MemberPatch says what to change about a member; nil fields stay.
type MemberPatch struct {
	Role       *string // "admin" or "member"
	MutedUntil *int64  // Unix ms
}

var errNoGroup = im.Refuse(im.NotFound, "group_not_found", "there is no such group, or you are not a member")

// CreateGroup makes a group that me owns. Every member must be a friend of me;
// with one that is not, nothing is made.
func (c *Chat) CreateGroup(ctx context.Context, me im.UserID, name string, members []im.UserID) (GroupInfo, error) {
	members = slices.Compact(slices.Sorted(slices.Values(members)))
	members = slices.DeleteFunc(members, func(u im.UserID) bool { return u == me })
	switch {
	case name == "" || len(name) > maxGroupName:
		return GroupInfo{}, im.Refuse(im.Invalid, "name_invalid", "a group's name has 1 to %d bytes", maxGroupName)
	case len(members)+1 > c.opt.MaxGroupMembers:
		return GroupInfo{}, im.Refuse(im.TooMany, "group_full", "a group has at most %d members", c.opt.MaxGroupMembers)
	}
	for _, u := range members {
		if err := c.roster.mayDM(ctx, me, u); err != nil {
			return GroupInfo{}, friendOnly(err, u)
		}
	}
	if err := c.groupsFull(ctx, me); err != nil {
		return GroupInfo{}, err
	}
	now := c.now()
	g := store.Group{ID: newGroupID(), Name: name, Owner: me, Join: joinInvite, MaxMembers: c.opt.MaxGroupMembers, Created: now}
	conv := im.GroupConv(g.ID)
	tx := &store.Tx{Groups: []store.Group{g}}
	tx.Members = append(tx.Members, store.Member{Group: g.ID, User: me, Role: roleOwner, Since: now})
	tx.Entries = append(tx.Entries, c.event(conv, me, "group-created", map[string]any{"user": me, "name": name, "members": members}))
	for _, u := range members {
		tx.Members = append(tx.Members, store.Member{Group: g.ID, User: u, Role: roleMember, Since: now})
	}
	for _, m := range tx.Members {
		tx.Entries = append(tx.Entries, c.tellGroup(m.User, "group-added", g.ID, me, name))
	}
	if err := c.st.Commit(ctx, tx); err != nil {
		return GroupInfo{}, err
	}
	c.roster.forgetGroup(g.ID)
	for _, m := range tx.Members {
		c.opt.Courier.Joined(g.ID, m.User, 0)
	}
	return c.info(ctx, g)
}

func friendOnly(err error, u im.UserID) error {
	if im.Is(err, im.Forbidden) {
		return im.Refuse(im.Forbidden, "not_friends", "only a friend can be added: %s is not one of yours", u)
	}
	return err
}

func newGroupID() im.GroupID {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return im.GroupID(strings.ToLower(base32.StdEncoding.EncodeToString(b[:])))
}

func (c *Chat) groupsFull(ctx context.Context, me im.UserID) error {
	parts, err := c.st.Conversations(ctx, me)
	if err != nil {
		return err
	}
	n := 0
	for _, p := range parts {
		if p.Conv.Kind() == im.KindGroup {
			n++
		}
	}
	if n >= c.opt.MaxGroups {
		return im.Refuse(im.TooMany, "too_many_groups", "an account is in at most %d groups", c.opt.MaxGroups)
	}
	return nil
}

// tellGroup is an account event about a group.
func (c *Chat) tellGroup(to im.UserID, name string, g im.GroupID, by im.UserID, groupName string) *store.Append {
	return c.event(im.AccountConv(to), "", name, map[string]any{"group": g, "by": by, "name": groupName})
}

// Groups lists the groups one is in, by id, without their members beyond what
// Group shows.
func (c *Chat) Groups(ctx context.Context, me im.UserID) ([]GroupInfo, error) {
	parts, err := c.st.Conversations(ctx, me)
	if err != nil {
		return nil, err
	}
	out := []GroupInfo{}
	for _, p := range parts {
		id := p.Conv.Group()
		if id == "" {
			continue
		}
		g, err := c.st.Group(ctx, id)
		if im.Is(err, im.NotFound) || (err == nil && g.Dissolved) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := c.info(ctx, g)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}

// Group shows a group to one of its members; to others there is none.
func (c *Chat) Group(ctx context.Context, me im.UserID, id im.GroupID) (GroupInfo, error) {
	g, _, err := c.membership(ctx, me, id)
	if err != nil {
		return GroupInfo{}, err
	}
	return c.info(ctx, g)
}

func (c *Chat) info(ctx context.Context, g store.Group) (GroupInfo, error) {
	ms, err := c.st.Members(ctx, g.ID)
	if err != nil {
		return GroupInfo{}, err
	}
	info := GroupInfo{ID: g.ID, Name: g.Name, Owner: g.Owner, Join: g.Join, MaxMembers: g.MaxMembers, MuteAll: g.MuteAll, Created: g.Created,
		Members: make([]MemberInfo, 0, len(ms))}
	for _, m := range ms {
		info.Members = append(info.Members, MemberInfo{User: m.User, Role: m.Role, MutedUntil: m.MutedUntil})
	}
	return info, nil
}

// membership returns the group and one's own row in it.
func (c *Chat) membership(ctx context.Context, me im.UserID, id im.GroupID) (store.Group, store.Member, error) {
	g, err := c.st.Group(ctx, id)
	if err == nil && g.Dissolved {
		return g, store.Member{}, errNoGroup
	}
	var m store.Member
	if err == nil {
		m, err = c.st.Member(ctx, id, me)
	}
	if im.Is(err, im.NotFound) {
		err = errNoGroup
	}
	return g, m, err
}

// rank orders roles: who is higher may act on who is lower.
func rank(role string) int {
	switch role {
	case roleOwner:
		return 3
	case roleAdmin:
		return 2
	case roleMember:
		return 1
	}
	return 0
}

func notAllowed(format string, args ...any) error {
	return im.Refuse(im.Forbidden, "role_too_low", format, args...)
}

// regroup changes a group in one commit and tries again if somebody else did
// meanwhile. fn gets the group and one's own row.
func (c *Chat) regroup(ctx context.Context, me im.UserID, id im.GroupID, fn func(g store.Group, m store.Member) (*store.Tx, error)) error {
	for {
		g, m, err := c.membership(ctx, me, id)
		if err != nil {
			return err
		}
		tx, err := fn(g, m)
		if err != nil || tx == nil {
			return err
		}
		err = c.st.Commit(ctx, tx)
		c.roster.forgetGroup(id)
		if !im.Is(err, im.Conflict) {
			return err
		}
	}
}

// UpdateGroup changes a group's settings: owner and admins; ownership: the owner.
func (c *Chat) UpdateGroup(ctx context.Context, me im.UserID, id im.GroupID, p GroupPatch) (GroupInfo, error) {
	switch {
	case p.Name != nil && (*p.Name == "" || len(*p.Name) > maxGroupName):
		return GroupInfo{}, im.Refuse(im.Invalid, "name_invalid", "a group's name has 1 to %d bytes", maxGroupName)
	case p.Join != nil && *p.Join != joinInvite && *p.Join != joinAdmin:
		return GroupInfo{}, im.Refuse(im.Invalid, "join_invalid", "join is invite or admin")
	case p.MaxMembers != nil && (*p.MaxMembers < 1 || *p.MaxMembers > c.opt.MaxGroupMembers):
		return GroupInfo{}, im.Refuse(im.Invalid, "max_members_invalid", "max_members is 1 to %d", c.opt.MaxGroupMembers)
	}
	err := c.regroup(ctx, me, id, func(g store.Group, m store.Member) (*store.Tx, error) {
		if rank(m.Role) < rank(roleAdmin) {
			return nil, notAllowed("only the owner and admins change a group")
		}
		tx := &store.Tx{}
		about := map[string]any{"by": me}
		if p.Owner != nil && *p.Owner != g.Owner {
			if m.Role != roleOwner {
				return nil, notAllowed("only the owner hands a group over")
			}
			heir, err := c.st.Member(ctx, id, *p.Owner)
			if im.Is(err, im.NotFound) {
				return nil, im.Refuse(im.Invalid, "not_member", "%s is not a member", *p.Owner)
			}
			if err != nil {
				return nil, err
			}
			heir.Role, heir.MutedUntil, m.Role = roleOwner, 0, roleAdmin
			tx.Members = append(tx.Members, heir, m)
			g.Owner = *p.Owner
			about["owner"] = g.Owner
		}
		set(&g.Name, p.Name, about, "name")
		set(&g.Join, p.Join, about, "join")
		set(&g.MaxMembers, p.MaxMembers, about, "max_members")
		set(&g.MuteAll, p.MuteAll, about, "mute_all")
		if len(about) == 1 {
			return nil, nil
		}
		tx.Groups = []store.Group{g}
		tx.Entries = []*store.Append{c.event(im.GroupConv(id), me, "group-changed", about)}
		return tx, c.tellMembers(ctx, tx, g, "group-changed", me)
	})
	if err != nil {
		return GroupInfo{}, err
	}
	return c.Group(ctx, me, id)
}

func set[T comparable](to, from *T, about map[string]any, name string) {
	if from != nil && *from != *to {
		*to = *from
		about[name] = *from
	}
}

// manyMembers is up to how many members each gets an account event of a change
// that the group's log tells anyway.
const manyMembers = 1000

func (c *Chat) tellMembers(ctx context.Context, tx *store.Tx, g store.Group, event string, by im.UserID) error {
	ms, err := c.st.Members(ctx, g.ID)
	if err != nil || len(ms) > manyMembers {
		return err
	}
	for _, m := range ms {
		tx.Entries = append(tx.Entries, c.tellGroup(m.User, event, g.ID, by, g.Name))
	}
	return nil
}

// DissolveGroup ends a group for ever. Its owner may.
func (c *Chat) DissolveGroup(ctx context.Context, me im.UserID, id im.GroupID) error {
	var ended store.Group
	err := c.regroup(ctx, me, id, func(g store.Group, m store.Member) (*store.Tx, error) {
		if m.Role != roleOwner {
			return nil, notAllowed("only the owner dissolves a group")
		}
		g.Dissolved, ended = true, g
		return &store.Tx{Groups: []store.Group{g}, Entries: []*store.Append{c.event(im.GroupConv(id), me, "group-dissolved", map[string]any{"by": me})}}, nil
	})
	if err != nil {
		return err
	}
	return c.clear(ctx, ended, me)
}

// clear takes the members out of a dissolved group, some at a time: nobody can
// write there any more, so it need not be one commit.
func (c *Chat) clear(ctx context.Context, g store.Group, by im.UserID) error {
	ms, err := c.st.Members(ctx, g.ID)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(ms, 500) {
		tx := &store.Tx{}
		for _, m := range part {
			m.Role = ""
			tx.Members = append(tx.Members, m)
			tx.Entries = append(tx.Entries, c.tellGroup(m.User, "group-removed", g.ID, by, g.Name))
		}
		if err := c.st.Commit(ctx, tx); err != nil {
			return err
		}
		for _, m := range part {
			c.opt.Courier.Left(g.ID, m.User)
		}
	}
	c.roster.forgetGroup(g.ID)
	return nil
}

// PutMember adds a friend to a group, or changes a member's role or mute. It may
// be repeated.
func (c *Chat) PutMember(ctx context.Context, me im.UserID, id im.GroupID, user im.UserID, p MemberPatch) error {
	if p.Role != nil && *p.Role != roleAdmin && *p.Role != roleMember {
		return im.Refuse(im.Invalid, "role_invalid", "a role is admin or member; ownership is handed over by changing the group")
	}
	joined := false
	err := c.regroup(ctx, me, id, func(g store.Group, mine store.Member) (*store.Tx, error) {
		joined = false
		m, err := c.st.Member(ctx, id, user)
		switch {
		case im.Is(err, im.NotFound):
			joined = true
			return c.addMember(ctx, g, mine, user, p)
		case err != nil:
			return nil, err
		}
		return c.changeMember(g, mine, m, p)
	})
	if err == nil && joined {
		m, err := c.st.Member(ctx, id, user)
		if err == nil {
			c.opt.Courier.Joined(id, user, m.Start)
		}
	}
	return err
}

func (c *Chat) addMember(ctx context.Context, g store.Group, mine store.Member, user im.UserID, p MemberPatch) (*store.Tx, error) {
	me := mine.User
	switch {
	case g.Join == joinAdmin && rank(mine.Role) < rank(roleAdmin):
		return nil, notAllowed("only the owner and admins bring in members here")
	case p.Role != nil && *p.Role == roleAdmin && mine.Role != roleOwner:
		return nil, notAllowed("only the owner makes admins")
	case p.MutedUntil != nil && rank(mine.Role) < rank(roleAdmin):
		return nil, notAllowed("only the owner and admins mute")
	}
	if err := c.roster.mayDM(ctx, me, user); err != nil || user == me {
		return nil, friendOnly(errNotFriends, user)
	}
	ms, err := c.st.Members(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	if len(ms) >= min(g.MaxMembers, c.opt.MaxGroupMembers) {
		return nil, im.Refuse(im.TooMany, "group_full", "the group has %d members already", len(ms))
	}
	if err := c.groupsFull(ctx, user); err != nil {
		return nil, err
	}
	m := store.Member{Group: g.ID, User: user, Role: roleMember, Start: store.AtHead, Since: c.now()}
	if p.Role != nil {
		m.Role = *p.Role
	}
	if p.MutedUntil != nil {
		m.MutedUntil = *p.MutedUntil
	}
	return &store.Tx{
		Groups:  []store.Group{g}, // its version: two who join at once count each other
		Members: []store.Member{m},
		Entries: []*store.Append{
			c.event(im.GroupConv(g.ID), me, "member-added", map[string]any{"user": user, "by": me, "role": m.Role}),
			c.tellGroup(user, "group-added", g.ID, me, g.Name),
		},
	}, nil
}

func (c *Chat) changeMember(g store.Group, mine, m store.Member, p MemberPatch) (*store.Tx, error) {
	was := m
	var entries []*store.Append
	conv := im.GroupConv(g.ID)
	if p.Role != nil && *p.Role != m.Role {
		switch {
		case mine.Role != roleOwner:
			return nil, notAllowed("only the owner changes roles")
		case m.Role == roleOwner:
			return nil, notAllowed("the owner keeps that role until handing the group over")
		}
		m.Role = *p.Role
		entries = append(entries, c.event(conv, mine.User, "member-role", map[string]any{"user": m.User, "by": mine.User, "role": m.Role}))
	}
	if p.MutedUntil != nil && *p.MutedUntil != m.MutedUntil {
		if rank(mine.Role) <= rank(was.Role) {
			return nil, notAllowed("only somebody of a higher role mutes a member")
		}
		m.MutedUntil = *p.MutedUntil
		entries = append(entries, c.event(conv, mine.User, "member-muted", map[string]any{"user": m.User, "by": mine.User, "until": m.MutedUntil}))
	}
	if m == was {
		return nil, nil
	}
	entries = append(entries, c.tellGroup(m.User, "group-changed", g.ID, mine.User, g.Name))
	return &store.Tx{Members: []store.Member{m}, Entries: entries}, nil
}

// RemoveMember takes a member out: oneself, or somebody of a lower role. The
// owner leaves only when alone, which dissolves the group.
func (c *Chat) RemoveMember(ctx context.Context, me im.UserID, id im.GroupID, user im.UserID) error {
	alone := false
	err := c.regroup(ctx, me, id, func(g store.Group, mine store.Member) (*store.Tx, error) {
		m := mine
		event := "member-left"
		if user != me {
			var err error
			m, err = c.st.Member(ctx, id, user)
			if im.Is(err, im.NotFound) {
				return nil, im.Refuse(im.NotFound, "member_not_found", "%s is not a member", user)
			}
			if err != nil {
				return nil, err
			}
			if rank(mine.Role) <= rank(m.Role) || rank(mine.Role) < rank(roleAdmin) {
				return nil, notAllowed("only somebody of a higher role removes a member")
			}
			event = "member-removed"
		} else if mine.Role == roleOwner {
			ms, err := c.st.Members(ctx, id)
			if err != nil {
				return nil, err
			}
			if alone = len(ms) == 1; alone {
				return nil, nil
			}
			return nil, im.Refuse(im.Forbidden, "owner_stays", "hand the group over before you leave it, or dissolve it")
		}
		m.Role = ""
		return &store.Tx{
			Members: []store.Member{m},
			Entries: []*store.Append{
				c.event(im.GroupConv(id), me, event, map[string]any{"user": user, "by": me}),
				c.tellGroup(user, "group-removed", id, me, g.Name),
			},
		}, nil
	})
	if err != nil {
		return err
	}
	if alone {
		return c.DissolveGroup(ctx, me, id)
	}
	c.opt.Courier.Left(id, user)
	return nil
}
