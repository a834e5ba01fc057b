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

var errName = im.Refuse(im.Invalid, "name_invalid", "a group's name is one line of 1 to %d bytes, with something to see in it", im.MaxName)

var errNoGroup = im.Refuse(im.NotFound, "group_not_found", "there is no such group, or you are not a member")

// maxFirstMembers is how many members a group can be made with; more are added
// one by one. They share one commit and stand in its event.
const maxFirstMembers = 1000

// CreateGroup makes a group that me owns. Every member must be a friend of me;
// with one that is not, nothing is made.
func (c *Chat) CreateGroup(ctx context.Context, me im.UserID, name string, members []im.UserID) (GroupInfo, error) {
	members = slices.Compact(slices.Sorted(slices.Values(members)))
	members = slices.DeleteFunc(members, func(u im.UserID) bool { return u == me })
	switch {
	case !im.ShownName(name):
		return GroupInfo{}, errName
	case len(members) > maxFirstMembers:
		return GroupInfo{}, im.Refuse(im.Invalid, "too_many_members", "a group is made with at most %d members: add the others afterwards", maxFirstMembers)
	case len(members)+1 > c.opt.MaxGroupMembers:
		return GroupInfo{}, im.Refuse(im.TooMany, "group_full", "a group has at most %d members", c.opt.MaxGroupMembers)
	}
	if err := c.roomToOwn(ctx, me); err != nil {
		return GroupInfo{}, err
	}
	for _, u := range members {
		if err := c.mayAdd(ctx, me, u); err != nil {
			return GroupInfo{}, err
		}
	}
	g := store.Group{ID: newGroupID(), Name: name, Owner: me, Join: joinInvite, MaxMembers: c.opt.MaxGroupMembers, Created: c.now()}
	if err := c.st.Commit(ctx, c.creation(g, members)); err != nil {
		return GroupInfo{}, err
	}
	return c.info(ctx, g)
}

// creation is the commit that makes a group.
func (c *Chat) creation(g store.Group, members []im.UserID) *store.Tx {
	tx := &store.Tx{Groups: []store.Group{g}}
	tx.Members = append(tx.Members, store.Member{Group: g.ID, User: g.Owner, Role: roleOwner, Since: g.Created})
	for _, u := range members {
		tx.Members = append(tx.Members, store.Member{Group: g.ID, User: u, Role: roleMember, Since: g.Created})
	}
	created := c.event(im.GroupConv(g.ID), g.Owner, evGroupCreated, about{By: g.Owner, Name: g.Name, Members: members})
	tx.Entries = append(tx.Entries, before(created, func(*im.Entry) {
		for _, m := range tx.Members {
			c.opt.Courier.Joined(g.ID, m.User, 0)
		}
	}))
	for _, m := range tx.Members {
		tx.Entries = append(tx.Entries, c.tellGroup(m.User, evGroupAdded, g, g.Owner))
	}
	return tx
}

// mayAdd returns nil if me may bring user into a group: they are friends and
// neither blocks the other, and user is not in too many already.
func (c *Chat) mayAdd(ctx context.Context, me, user im.UserID) error {
	err := c.roster.mayDM(ctx, me, user)
	if im.Is(err, im.Forbidden) {
		return im.Refuse(im.Forbidden, "not_friends", "only a friend can be added: %.64s is not one of yours", user)
	}
	if err != nil {
		return err
	}
	return c.roomToJoin(ctx, user)
}

func newGroupID() im.GroupID {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return im.GroupID(strings.ToLower(base32.StdEncoding.EncodeToString(b[:])))
}

// roomToOwn refuses once u owns as many groups as are allowed. Their rows are
// read only by somebody who is in as many.
func (c *Chat) roomToOwn(ctx context.Context, u im.UserID) error {
	ids, err := c.groupsOf(ctx, u)
	if err != nil || len(ids) < c.opt.MaxGroups {
		return err
	}
	owned := 0
	for _, id := range ids {
		g, err := c.st.Group(ctx, id)
		if err != nil && !im.Is(err, im.NotFound) {
			return err
		}
		if err == nil && g.Owner == u && !g.Dissolved {
			owned++
		}
	}
	if owned >= c.opt.MaxGroups {
		return im.Refuse(im.TooMany, "too_many_groups", "an account owns at most %d groups", c.opt.MaxGroups)
	}
	return nil
}

// joinedPerOwned is how many times more groups one may be in than own: others
// put one there, and what they use up must not be one's own.
const joinedPerOwned = 10

func (c *Chat) roomToJoin(ctx context.Context, u im.UserID) error {
	ids, err := c.groupsOf(ctx, u)
	if err == nil && len(ids) >= c.opt.MaxGroups*joinedPerOwned {
		err = im.Refuse(im.TooMany, "in_too_many_groups", "%s is in too many groups already", u)
	}
	return err
}

// groupsOf lists the groups u is a member of.
func (c *Chat) groupsOf(ctx context.Context, u im.UserID) (ids []im.GroupID, err error) {
	parts, err := c.st.Conversations(ctx, u)
	for _, p := range parts {
		if g := p.Conv.Group(); g != "" {
			ids = append(ids, g)
		}
	}
	return ids, err
}

// tellGroup is an account event about a group.
func (c *Chat) tellGroup(to im.UserID, name string, g store.Group, by im.UserID) *store.Append {
	return c.tell(to, name, about{Group: g.ID, By: by, Name: g.Name})
}

// Groups lists the groups one is in, by id, each as Group shows it.
func (c *Chat) Groups(ctx context.Context, me im.UserID) ([]GroupInfo, error) {
	ids, err := c.groupsOf(ctx, me)
	if err != nil {
		return nil, err
	}
	out := []GroupInfo{}
	for _, id := range ids {
		info, err := c.Group(ctx, me, id)
		if im.Is(err, im.NotFound) {
			continue // left, or dissolved, since the list was read
		}
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
	if !id.Valid() {
		return store.Group{}, store.Member{}, errNoGroup
	}
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

// member returns another member's row; ok is false if there is none.
func (c *Chat) member(ctx context.Context, id im.GroupID, u im.UserID) (m store.Member, ok bool, err error) {
	if !u.Valid() {
		return m, false, nil
	}
	m, err = c.st.Member(ctx, id, u)
	if im.Is(err, im.NotFound) {
		return m, false, nil
	}
	return m, err == nil, err
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

func notAllowed(sentence string) error {
	return im.Refuse(im.Forbidden, "role_too_low", "%s", sentence)
}

// regroup changes a group in one commit and tries again if somebody else did
// meanwhile. fn gets the group and one's own row, and returns the change, or nil
// if there is nothing to do. Whoever acts on others puts their own row into
// the change too: it does not pass if they were demoted or removed meanwhile.
func (c *Chat) regroup(ctx context.Context, me im.UserID, id im.GroupID, fn func(g store.Group, mine store.Member) (*store.Tx, error)) error {
	for {
		g, mine, err := c.membership(ctx, me, id)
		if err != nil {
			return err
		}
		tx, err := fn(g, mine)
		if err != nil || tx == nil {
			return err
		}
		for _, e := range tx.Entries {
			before(e, func(*im.Entry) { c.roster.forgetGroup(id) })
		}
		err = c.st.Commit(ctx, tx)
		// Here too: Done may come later than Commit returns, and after an error it
		// may have been written all the same.
		c.roster.forgetGroup(id)
		if !im.Is(err, im.Conflict) {
			return err
		}
	}
}

// UpdateGroup changes a group's settings: its owner and admins may. The owner
// may hand it over to another member, and stays as an admin.
func (c *Chat) UpdateGroup(ctx context.Context, me im.UserID, id im.GroupID, p GroupPatch) (GroupInfo, error) {
	switch {
	case p.Name != nil && !im.ShownName(*p.Name):
		return GroupInfo{}, errName
	case p.Join != nil && *p.Join != joinInvite && *p.Join != joinAdmin:
		return GroupInfo{}, im.Refuse(im.Invalid, "join_invalid", "join is invite or admin")
	case p.MaxMembers != nil && (*p.MaxMembers < 1 || *p.MaxMembers > c.opt.MaxGroupMembers):
		return GroupInfo{}, im.Refuse(im.Invalid, "max_members_invalid", "max_members is 1 to %d", c.opt.MaxGroupMembers)
	}
	err := c.regroup(ctx, me, id, func(g store.Group, mine store.Member) (*store.Tx, error) {
		if rank(mine.Role) < rank(roleAdmin) {
			return nil, notAllowed("only the owner and admins change a group")
		}
		tx := &store.Tx{}
		was, what := g, about{By: me}
		if p.Owner != nil && *p.Owner != g.Owner {
			heir, err := c.heir(ctx, mine, *p.Owner)
			if err != nil {
				return nil, err
			}
			mine.Role = roleAdmin
			tx.Members = append(tx.Members, heir)
			g.Owner, what.Owner = heir.User, heir.User
		}
		set(&g.Name, p.Name, func() { what.Name = g.Name })
		set(&g.Join, p.Join, func() { what.Join = g.Join })
		set(&g.MaxMembers, p.MaxMembers, func() { what.MaxMembers = g.MaxMembers })
		set(&g.MuteAll, p.MuteAll, func() { what.MuteAll = &g.MuteAll })
		if g == was {
			return nil, nil
		}
		tx.Groups, tx.Members = []store.Group{g}, append(tx.Members, mine)
		tx.Entries = []*store.Append{c.event(im.GroupConv(id), me, evGroupChanged, what)}
		return tx, c.tellMembers(ctx, tx, g, me)
	})
	if err != nil {
		return GroupInfo{}, err
	}
	return c.Group(ctx, me, id)
}

// heir is the row of whom the group is handed over to.
func (c *Chat) heir(ctx context.Context, mine store.Member, to im.UserID) (store.Member, error) {
	if mine.Role != roleOwner {
		return store.Member{}, notAllowed("only the owner hands a group over")
	}
	m, ok, err := c.member(ctx, mine.Group, to)
	if err == nil && !ok {
		err = im.Refuse(im.Invalid, "not_member", "a group is handed over to one of its members")
	}
	m.Role, m.MutedUntil = roleOwner, 0
	return m, err
}

func set[T comparable](to, from *T, changed func()) {
	if from != nil && *from != *to {
		*to = *from
		changed()
	}
}

// manyMembers is up to how many members each gets an account event of a change
// that the group's log tells anyway.
const manyMembers = 1000

func (c *Chat) tellMembers(ctx context.Context, tx *store.Tx, g store.Group, by im.UserID) error {
	ms, err := c.st.Members(ctx, g.ID)
	if err != nil || len(ms) > manyMembers {
		return err
	}
	for _, m := range ms {
		tx.Entries = append(tx.Entries, c.tellGroup(m.User, evGroupChanged, g, by))
	}
	return nil
}

// DissolveGroup ends a group for ever: its owner may. From its return on nobody
// is a member. If it fails halfway nobody can write any more, and the owner can
// repeat it.
func (c *Chat) DissolveGroup(ctx context.Context, me im.UserID, id im.GroupID) error {
	if g, ok, err := c.halfDissolved(ctx, me, id); err != nil || ok {
		if ok {
			err = c.clear(ctx, g, me)
		}
		return err
	}
	return c.dissolve(ctx, me, id, func([]store.Member) error { return nil })
}

// halfDissolved finds a group whose dissolution was interrupted: its owner is
// taken out last.
func (c *Chat) halfDissolved(ctx context.Context, me im.UserID, id im.GroupID) (store.Group, bool, error) {
	mine, ok, err := c.member(ctx, id, me)
	if err != nil || !ok || mine.Role != roleOwner {
		return store.Group{}, false, err
	}
	g, err := c.st.Group(ctx, id)
	return g, err == nil && g.Dissolved, err
}

// dissolve ends a group if its members are such that may allows it.
func (c *Chat) dissolve(ctx context.Context, me im.UserID, id im.GroupID, may func([]store.Member) error) error {
	var ended store.Group
	err := c.regroup(ctx, me, id, func(g store.Group, mine store.Member) (*store.Tx, error) {
		if mine.Role != roleOwner {
			return nil, notAllowed("only the owner dissolves a group")
		}
		ms, err := c.st.Members(ctx, id)
		if err == nil {
			err = may(ms)
		}
		if err != nil {
			return nil, err
		}
		g.Dissolved, ended = true, g
		return &store.Tx{
			Groups:  []store.Group{g}, // its version: nobody joins meanwhile
			Members: []store.Member{mine},
			Entries: []*store.Append{c.event(im.GroupConv(id), me, evGroupDissolved, about{By: me})},
		}, nil
	})
	if err != nil {
		return err
	}
	return c.clear(ctx, ended, me)
}

// clearChunk is how many members one commit takes out of a dissolved group, so
// that a large group does not hold up everybody's messages.
const clearChunk = 500

// clear takes the members out of a dissolved group: nobody can write there any
// more, so it need not be one commit. The owner goes last.
func (c *Chat) clear(ctx context.Context, g store.Group, by im.UserID) error {
	for {
		ms, err := c.st.Members(ctx, g.ID)
		if err != nil || len(ms) == 0 {
			return err
		}
		slices.SortStableFunc(ms, func(a, b store.Member) int { return rank(a.Role) - rank(b.Role) })
		for part := range slices.Chunk(ms, clearChunk) {
			tx := &store.Tx{}
			for _, m := range part {
				m.Role = ""
				tx.Members = append(tx.Members, m)
				tx.Entries = append(tx.Entries, before(c.tellGroup(m.User, evGroupRemoved, g, by), func(*im.Entry) {
					c.opt.Courier.Left(g.ID, m.User)
				}))
			}
			err := c.st.Commit(ctx, tx)
			if im.Is(err, im.Conflict) {
				break // somebody left, or was muted, just then: look again
			}
			if err != nil {
				return err
			}
		}
	}
}

// PutMember adds a friend to a group, or changes a member's role or mute. It may
// be repeated.
func (c *Chat) PutMember(ctx context.Context, me im.UserID, id im.GroupID, user im.UserID, p MemberPatch) error {
	switch {
	case p.Role != nil && *p.Role != roleAdmin && *p.Role != roleMember && *p.Role != roleOwner:
		return im.Refuse(im.Invalid, "role_invalid", "a role is admin or member")
	case p.MutedUntil != nil && *p.MutedUntil < 0:
		return im.Refuse(im.Invalid, "muted_until_invalid", "muted_until is a time in Unix milliseconds, or 0")
	}
	return c.regroup(ctx, me, id, func(g store.Group, mine store.Member) (*store.Tx, error) {
		m, ok, err := c.member(ctx, id, user)
		switch {
		case err != nil:
			return nil, err
		case p.Role != nil && *p.Role == roleOwner && m.Role != roleOwner:
			return nil, im.Refuse(im.Invalid, "role_invalid", "a role is admin or member; a group is handed over by changing its owner")
		case !ok:
			return c.addMember(ctx, g, mine, user, p)
		}
		return c.changeMember(g, mine, m, p)
	})
}

func (c *Chat) addMember(ctx context.Context, g store.Group, mine store.Member, user im.UserID, p MemberPatch) (*store.Tx, error) {
	me := mine.User
	switch {
	case g.Join == joinAdmin && rank(mine.Role) < rank(roleAdmin):
		return nil, notAllowed("only the owner and admins bring in members here")
	case p.Role != nil && *p.Role == roleAdmin && mine.Role != roleOwner:
		return nil, notAllowed("only the owner makes admins")
	case p.MutedUntil != nil && *p.MutedUntil != 0 && rank(mine.Role) < rank(roleAdmin):
		return nil, notAllowed("only the owner and admins mute")
	}
	if err := c.mayAdd(ctx, me, user); err != nil {
		return nil, err
	}
	ms, err := c.st.Members(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	if len(ms) >= min(g.MaxMembers, c.opt.MaxGroupMembers) {
		return nil, im.Refuse(im.TooMany, "group_full", "the group has %d members already", len(ms))
	}
	m := store.Member{Group: g.ID, User: user, Role: roleMember, Start: store.AtHead, Since: c.now()}
	set(&m.Role, p.Role, func() {})
	set(&m.MutedUntil, p.MutedUntil, func() {})
	added := c.event(im.GroupConv(g.ID), me, evMemberAdded, about{User: user, By: me, Role: m.Role})
	return &store.Tx{
		Groups:  []store.Group{g}, // its version: two who join at once count each other
		Members: []store.Member{m, mine},
		Entries: []*store.Append{
			before(added, func(e *im.Entry) { c.opt.Courier.Joined(g.ID, user, e.Seq-1) }),
			c.tellGroup(user, evGroupAdded, g, me),
		},
	}, nil
}

func (c *Chat) changeMember(g store.Group, mine, m store.Member, p MemberPatch) (*store.Tx, error) {
	was := m
	conv, what := im.GroupConv(g.ID), about{User: m.User, By: mine.User}
	tx := &store.Tx{}
	if p.Role != nil && *p.Role != m.Role {
		switch {
		case mine.Role != roleOwner:
			return nil, notAllowed("only the owner changes roles")
		case was.Role == roleOwner:
			return nil, notAllowed("the owner keeps that role until handing the group over")
		}
		m.Role, what.Role = *p.Role, *p.Role
		tx.Entries = append(tx.Entries, c.event(conv, mine.User, evMemberRole, what))
	}
	if p.MutedUntil != nil && *p.MutedUntil != m.MutedUntil {
		if rank(mine.Role) < rank(roleAdmin) || rank(mine.Role) <= rank(was.Role) {
			return nil, notAllowed("only the owner and admins mute, and only members of a lower role")
		}
		m.MutedUntil, what.MutedUntil, what.Role = *p.MutedUntil, p.MutedUntil, ""
		tx.Entries = append(tx.Entries, c.event(conv, mine.User, evMemberMuted, what))
	}
	if m == was {
		return nil, nil
	}
	tx.Members = []store.Member{m, mine}
	tx.Entries = append(tx.Entries, c.tellGroup(m.User, evGroupChanged, g, mine.User))
	return tx, nil
}

// RemoveMember takes a member out: oneself, or, for the owner and admins,
// somebody of a lower role. Who was removed gets nothing that is committed from
// the removal on. The owner leaves only when alone, which dissolves the group.
func (c *Chat) RemoveMember(ctx context.Context, me im.UserID, id im.GroupID, user im.UserID) error {
	ownerLeaves := false
	err := c.regroup(ctx, me, id, func(g store.Group, mine store.Member) (*store.Tx, error) {
		if user != me {
			return c.kick(ctx, g, mine, user)
		}
		if ownerLeaves = mine.Role == roleOwner; ownerLeaves {
			return nil, nil
		}
		return c.removal(g, mine, me, evMemberLeft), nil
	})
	if err != nil || !ownerLeaves {
		return err
	}
	return c.dissolve(ctx, me, id, func(ms []store.Member) error {
		if len(ms) > 1 {
			return im.Refuse(im.Forbidden, "owner_stays", "hand the group over before you leave it, or dissolve it")
		}
		return nil
	})
}

func (c *Chat) kick(ctx context.Context, g store.Group, mine store.Member, user im.UserID) (*store.Tx, error) {
	m, ok, err := c.member(ctx, g.ID, user)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, im.Refuse(im.NotFound, "member_not_found", "%.64s is not a member", user)
	case rank(mine.Role) < rank(roleAdmin) || rank(mine.Role) <= rank(m.Role):
		return nil, notAllowed("only the owner and admins remove members, and only those of a lower role")
	}
	tx := c.removal(g, m, mine.User, evMemberRemoved)
	tx.Members = append(tx.Members, mine)
	return tx, nil
}

// removal takes m out of the group, and out of the room before the courier gets
// the entry that says so.
func (c *Chat) removal(g store.Group, m store.Member, by im.UserID, event string) *store.Tx {
	m.Role = ""
	removed := c.event(im.GroupConv(g.ID), by, event, about{User: m.User, By: by})
	return &store.Tx{
		Members: []store.Member{m},
		Entries: []*store.Append{
			before(removed, func(*im.Entry) { c.opt.Courier.Left(g.ID, m.User) }),
			c.tellGroup(m.User, evGroupRemoved, g, by),
		},
	}
}
