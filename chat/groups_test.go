package chat

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// roles lists a group's members as user:role.
func (h *house) roles(g im.GroupID) []string {
	h.t.Helper()
	ms, err := h.st.Members(context.Background(), g)
	h.must(err)
	out := []string{}
	for _, m := range ms {
		out = append(out, string(m.User)+":"+m.Role)
	}
	return out
}

func TestCreateGroup(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob", "carol", "mallory")
	h.friends("alice", "bob", "carol")
	h.mail.me("alice")
	h.mail.me("bob")
	info, err := h.CreateGroup(ctx, "alice", "lunch", []im.UserID{"carol", "bob", "bob", "alice"})
	h.must(err)
	if !info.ID.Valid() || info.Name != "lunch" || info.Owner != "alice" || info.Join != "invite" || info.MaxMembers != 10_000 || info.MuteAll || info.Created != h.now() {
		t.Errorf("%+v", info)
	}
	equal(t, "members", info.Members, []MemberInfo{{"alice", roleOwner, 0}, {"bob", roleMember, 0}, {"carol", roleMember, 0}})
	created := `group-created {"by":"alice","name":"lunch","members":["bob","carol"]}`
	equal(t, "bob reads in the group", h.mail.reached("bob", im.GroupConv(info.ID)), []string{created})
	equal(t, "alice too", h.mail.reached("alice", im.GroupConv(info.ID)), []string{created})
	equal(t, "bob hears", h.mail.me("bob"), []string{fmt.Sprintf(`group-added {"group":%q,"by":"alice","name":"lunch"}`, info.ID)})
	equal(t, "the courier is told first", h.mail.takeCalls(), []string{"joined alice 0", "joined bob 0", "joined carol 0"})

	for _, row := range []struct {
		sentence string
		name     string
		members  []im.UserID
		want     string
	}{
		{"with a stranger nothing is made", "x", []im.UserID{"bob", "mallory"}, "not_friends"},
		{"with somebody unknown nothing is made", "x", []im.UserID{"nobody"}, "not_friends"},
		{"with what is no user nothing is made", "x", []im.UserID{"no/body"}, "not_friends"},
		{"a group has a name", "", nil, "name_invalid"},
		{"of at most 128 bytes", strings.Repeat("x", 129), nil, "name_invalid"},
		{"in one line, with something to see in it", "\u202e\n", nil, "name_invalid"},
		{"more than 1000 are added one by one", "x", many("u", 1001), "too_many_members"},
	} {
		if _, err := h.CreateGroup(ctx, "alice", row.name, row.members); code(err) != row.want {
			t.Errorf("%s: %v, want %q", row.sentence, err, row.want)
		}
	}
	groups, err := h.Groups(ctx, "alice")
	h.must(err)
	if len(groups) != 1 || groups[0].ID != info.ID || len(groups[0].Members) != 3 {
		t.Errorf("alice is in %+v", groups)
	}
	if groups, err := h.Groups(ctx, "mallory"); err != nil || groups == nil || len(groups) != 0 {
		t.Errorf("mallory is in %v, %v", groups, err)
	}
	if _, err := h.Group(ctx, "mallory", info.ID); code(err) != "group_not_found" || !im.Is(err, im.NotFound) {
		t.Errorf("mallory sees the group: %v", err)
	}
	if _, err := h.Group(ctx, "mallory", "no/group"); code(err) != "group_not_found" {
		t.Errorf("an unknown group: %v", err)
	}
}

func many(prefix string, n int) []im.UserID {
	out := make([]im.UserID, n)
	for i := range out {
		out[i] = im.UserID(fmt.Sprintf("%s%05d", prefix, i))
	}
	return out
}

// Who may do what to whom: the owner, an admin, a member and somebody outside,
// in a group with an owner, an admin, another admin and two members.
func TestRights(t *testing.T) {
	ctx := context.Background()
	kick := func(u im.UserID) func(*house, im.UserID, im.GroupID) error {
		return func(h *house, me im.UserID, g im.GroupID) error { return h.RemoveMember(ctx, me, g, u) }
	}
	put := func(u im.UserID, p MemberPatch) func(*house, im.UserID, im.GroupID) error {
		return func(h *house, me im.UserID, g im.GroupID) error { return h.PutMember(ctx, me, g, u, p) }
	}
	change := func(p GroupPatch) func(*house, im.UserID, im.GroupID) error {
		return func(h *house, me im.UserID, g im.GroupID) error { _, err := h.UpdateGroup(ctx, me, g, p); return err }
	}
	const low, gone, no = "role_too_low", "group_not_found", "not_friends"
	for _, row := range []struct {
		sentence                       string
		do                             func(*house, im.UserID, im.GroupID) error
		owner, admin, member, outsider string
	}{
		{"members are removed by those above them", kick("member2"), "", "", low, gone},
		{"admins are removed by the owner", kick("admin2"), "", low, low, gone},
		{"the owner is removed by nobody else", kick("owner"), "owner_stays", low, low, gone},
		{"who is no member cannot be removed", kick("friend"), "member_not_found", "member_not_found", "member_not_found", gone},
		{"nor what is no user", kick("no/body"), "member_not_found", "member_not_found", "member_not_found", gone},
		{"roles are changed by the owner", put("member2", MemberPatch{Role: ptr(roleAdmin)}), "", low, low, gone},
		{"also downwards", put("admin2", MemberPatch{Role: ptr(roleMember)}), "", low, low, gone},
		{"but not the owner's", put("owner", MemberPatch{Role: ptr(roleMember)}), low, low, low, gone},
		{"nobody is made an owner so", put("member2", MemberPatch{Role: ptr(roleOwner)}), "role_invalid", "role_invalid", "role_invalid", gone},
		{"and a role is one of these", put("member2", MemberPatch{Role: ptr("king")}), "role_invalid", "role_invalid", "role_invalid", "role_invalid"},
		{"the role one has can be given again by all", put("member2", MemberPatch{Role: ptr(roleMember)}), "", "", "", gone},
		{"adding a member again is nothing", put("member2", MemberPatch{}), "", "", "", gone},
		{"members are muted by those above them", put("member2", MemberPatch{MutedUntil: ptr(int64(1))}), "", "", low, gone},
		{"admins are muted by the owner", put("admin2", MemberPatch{MutedUntil: ptr(int64(1))}), "", low, low, gone},
		{"the owner is muted by nobody", put("owner", MemberPatch{MutedUntil: ptr(int64(1))}), low, low, low, gone},
		{"not even before 1970", put("member2", MemberPatch{MutedUntil: ptr(int64(-1))}), "muted_until_invalid", "muted_until_invalid", "muted_until_invalid", "muted_until_invalid"},
		{"a friend is brought in by every member", put("friend", MemberPatch{}), "", "", "", gone},
		{"as an admin, by the owner", put("friend", MemberPatch{Role: ptr(roleAdmin)}), "", low, low, gone},
		{"muted, by owner and admins", put("friend", MemberPatch{MutedUntil: ptr(int64(1))}), "", "", low, gone},
		{"a stranger is brought in by nobody", put("stranger", MemberPatch{}), no, no, no, gone},
		{"nor somebody unknown", put("nobody", MemberPatch{}), no, no, no, gone},
		{"nor what is no user", put("no/body", MemberPatch{}), no, no, no, gone},
		{"settings are changed by owner and admins", change(GroupPatch{Name: ptr("new")}), "", "", low, gone},
		{"also to what they are", change(GroupPatch{}), "", "", low, gone},
		{"a name is not empty", change(GroupPatch{Name: ptr("")}), "name_invalid", "name_invalid", "name_invalid", "name_invalid"},
		{"nor of two lines", change(GroupPatch{Name: ptr("a\nb")}), "name_invalid", "name_invalid", "name_invalid", "name_invalid"},
		{"join is one of two", change(GroupPatch{Join: ptr("open")}), "join_invalid", "join_invalid", "join_invalid", "join_invalid"},
		{"max_members is within the server's", change(GroupPatch{MaxMembers: ptr(10_001)}), "max_members_invalid", "max_members_invalid", "max_members_invalid", "max_members_invalid"},
		{"the owner hands over", change(GroupPatch{Owner: ptr(im.UserID("member2"))}), "", low, low, gone},
		{"to a member", change(GroupPatch{Owner: ptr(im.UserID("friend"))}), "not_member", low, low, gone},
		{"and not to what is no user", change(GroupPatch{Owner: ptr(im.UserID("no/body"))}), "not_member", low, low, gone},
		{"a group is dissolved by its owner", func(h *house, me im.UserID, g im.GroupID) error { return h.DissolveGroup(ctx, me, g) }, "", low, low, gone},
		{"everybody leaves but the owner", func(h *house, me im.UserID, g im.GroupID) error { return h.RemoveMember(ctx, me, g, me) }, "owner_stays", "", "", gone},
	} {
		for me, want := range map[im.UserID]string{"owner": row.owner, "admin": row.admin, "member": row.member, "outsider": row.outsider} {
			t.Run(row.sentence+"/"+string(me), func(t *testing.T) {
				t.Parallel()
				h := newHouse(t, Options{})
				g := h.court()
				if err := row.do(h, me, g); code(err) != want {
					t.Errorf("got %v, want %q", err, want)
				}
				if want != "" {
					equal(t, "nothing changed", h.roles(g), courtRoles)
				}
			})
		}
	}
}

var courtRoles = []string{"admin:admin", "admin2:admin", "member:member", "member2:member", "owner:owner"}

// court makes the group of TestRights, by its rows.
func (h *house) court() im.GroupID {
	h.t.Helper()
	tx := &store.Tx{Groups: []store.Group{{ID: "court", Name: "Court", Owner: "owner", Join: joinInvite, MaxMembers: 100}}}
	for _, r := range courtRoles {
		user, role, _ := strings.Cut(r, ":")
		tx.Members = append(tx.Members, store.Member{Group: "court", User: im.UserID(user), Role: role})
		tx.Relations = append(tx.Relations,
			store.Relation{User: im.UserID(user), Peer: "friend", State: store.Friends},
			store.Relation{User: "friend", Peer: im.UserID(user), State: store.Friends})
	}
	h.must(h.st.Commit(context.Background(), tx))
	for _, m := range tx.Members {
		h.mail.Joined("court", m.User, 0)
	}
	return "court"
}

// What everybody hears of a change.
func TestGroupEvents(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		sentence string
		do       func(h *house, g im.GroupID) error
		group    []string // what the owner reads in the group
		user     im.UserID
		me       []string // what user hears on the account log
		calls    []string
		roles    []string
	}{
		{"a friend is added", func(h *house, g im.GroupID) error { return h.PutMember(ctx, "member", g, "friend", MemberPatch{}) },
			[]string{`member-added {"user":"friend","by":"member","role":"member"}`}, "friend",
			[]string{`group-added {"group":"court","by":"member","name":"Court"}`}, []string{"joined friend 0"},
			slices.Insert(slices.Clone(courtRoles), 2, "friend:member")},
		{"a member is removed", func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "admin", g, "member") },
			[]string{`member-removed {"user":"member","by":"admin"}`}, "member",
			[]string{`group-removed {"group":"court","by":"admin","name":"Court"}`}, []string{"left member"},
			slices.Delete(slices.Clone(courtRoles), 2, 3)},
		{"a member leaves", func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "member", g, "member") },
			[]string{`member-left {"user":"member","by":"member"}`}, "member",
			[]string{`group-removed {"group":"court","by":"member","name":"Court"}`}, []string{"left member"},
			slices.Delete(slices.Clone(courtRoles), 2, 3)},
		{"a member becomes an admin, muted for a while", func(h *house, g im.GroupID) error {
			return h.PutMember(ctx, "owner", g, "member", MemberPatch{Role: ptr(roleAdmin), MutedUntil: ptr(int64(5))})
		}, []string{`member-role {"user":"member","by":"owner","role":"admin"}`, `member-muted {"user":"member","by":"owner","muted_until":5}`}, "member",
			[]string{`group-changed {"group":"court","by":"owner","name":"Court"}`}, nil,
			[]string{"admin:admin", "admin2:admin", "member:admin", "member2:member", "owner:owner"}},
		{"the settings change", func(h *house, g im.GroupID) error {
			_, err := h.UpdateGroup(ctx, "admin", g, GroupPatch{Name: ptr("Yard"), MuteAll: ptr(false), Join: ptr(joinAdmin), MaxMembers: ptr(7)})
			return err
		}, []string{`group-changed {"by":"admin","name":"Yard","join":"admin","max_members":7}`}, "member",
			[]string{`group-changed {"group":"court","by":"admin","name":"Yard"}`}, nil, courtRoles},
		{"muting everybody can be taken back", func(h *house, g im.GroupID) error {
			for _, v := range []bool{true, false} {
				if _, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{MuteAll: &v}); err != nil {
					return err
				}
			}
			return nil
		}, []string{`group-changed {"by":"owner","mute_all":true}`, `group-changed {"by":"owner","mute_all":false}`}, "stranger", nil, nil, courtRoles},
		{"the owner hands over", func(h *house, g im.GroupID) error {
			info, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{Owner: ptr(im.UserID("member"))})
			if err == nil && info.Owner != "member" {
				err = fmt.Errorf("the owner is %s", info.Owner)
			}
			return err
		}, []string{`group-changed {"by":"owner","owner":"member"}`}, "member2",
			[]string{`group-changed {"group":"court","by":"owner","name":"Court"}`}, nil,
			[]string{"admin:admin", "admin2:admin", "member2:member", "member:owner", "owner:admin"}},
		{"what changes nothing is not told", func(h *house, g im.GroupID) error {
			_, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{Name: ptr("Court"), Owner: ptr(im.UserID("owner"))})
			return err
		}, nil, "member", nil, nil, courtRoles},
		{"the group is dissolved", func(h *house, g im.GroupID) error { return h.DissolveGroup(ctx, "owner", g) },
			[]string{`group-dissolved {"by":"owner"}`}, "member2",
			[]string{`group-removed {"group":"court","by":"owner","name":"Court"}`},
			[]string{"left member", "left member2", "left admin", "left admin2", "left owner"}, nil},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			h := newHouse(t, Options{})
			g := h.court()
			h.mail.takeCalls()
			h.must(row.do(h, g))
			equal(t, "in the group", h.mail.reached("owner", im.GroupConv(g)), row.group)
			equal(t, string(row.user)+" hears", h.mail.me(row.user), row.me)
			equal(t, "the courier", h.mail.takeCalls(), row.calls)
			slices.Sort(row.roles)
			roles := h.roles(g)
			slices.Sort(roles)
			equal(t, "members", roles, row.roles)
			if g := h.mail.reached("stranger", ""); len(g) != 0 {
				t.Errorf("a stranger hears %v", g)
			}
		})
	}
}

func TestJoinPolicy(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	g := h.court()
	_, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{Join: ptr(joinAdmin)})
	h.must(err)
	h.wantCode(h.PutMember(ctx, "member", g, "friend", MemberPatch{}), "role_too_low")
	h.wantCode(h.PutMember(ctx, "admin", g, "friend", MemberPatch{}), "")
}

// A block counts as no friendship when somebody is brought in.
func TestWhoBlocksIsNotBroughtIn(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("owner", "friend")
	g := h.court()
	h.must(h.Block(ctx, "friend", "owner"))
	h.wantCode(h.PutMember(ctx, "owner", g, "friend", MemberPatch{}), "not_friends")
	_, err := h.CreateGroup(ctx, "owner", "x", []im.UserID{"friend"})
	h.wantCode(err, "not_friends")
}

// A new member sees the entry that brought them in and what follows.
func TestANewMemberStartsAtTheirJoining(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	g := h.group("alice") // 1
	topic := "g/" + string(g)
	h.say("alice", topic, "before") // 2
	h.mail.takeCalls()
	h.must(h.PutMember(ctx, "alice", g, "bob", MemberPatch{})) // 3
	h.say("alice", topic, "after")                             // 4
	equal(t, "the courier", h.mail.takeCalls(), []string{"joined bob 2"})
	equal(t, "live", h.mail.reached("bob", im.GroupConv(g)), []string{`member-added {"user":"bob","by":"alice","role":"member"}`, " after"})
	msgs, more, err := h.History(ctx, "bob", im.GroupConv(g), 0, 0, 50)
	h.must(err)
	equal(t, "history", seqs(t, msgs), []im.Seq{3, 4})
	if more {
		t.Error("there is more")
	}

	// Out and in again: what was said between is not theirs.
	h.must(h.RemoveMember(ctx, "bob", g, "bob")) // 5
	if _, _, err := h.History(ctx, "bob", im.GroupConv(g), 0, 0, 50); !im.Is(err, im.NotFound) {
		t.Errorf("bob reads after leaving: %v", err)
	}
	h.say("alice", topic, "alone")                             // 6
	h.must(h.PutMember(ctx, "alice", g, "bob", MemberPatch{})) // 7
	msgs, _, err = h.History(ctx, "bob", im.GroupConv(g), 0, 1, 50)
	h.must(err)
	equal(t, "history", seqs(t, msgs), []im.Seq{7})
}

func TestSizeOfAGroup(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{MaxGroupMembers: 4})
	friends := many("f", 12)
	h.people("alice")
	h.people(friends...)
	h.friends("alice", friends...)
	_, err := h.CreateGroup(ctx, "alice", "x", friends[:4])
	h.wantCode(err, "group_full")
	g := h.group("alice", friends[0])
	// All are added at once: the places that are left are filled, and no more.
	errs := make([]error, len(friends))
	var wg sync.WaitGroup
	for i, f := range friends[1:] {
		wg.Go(func() { errs[i+1] = h.PutMember(ctx, "alice", g, f, MemberPatch{}) })
	}
	wg.Wait()
	in := 0
	for _, err := range errs[1:] {
		if err == nil {
			in++
		} else if code(err) != "group_full" {
			t.Error(err)
		}
	}
	if n := len(h.roles(g)); in != 2 || n != 4 {
		t.Errorf("%d were added, %d are in", in, n)
	}
	_, err = h.UpdateGroup(ctx, "alice", g, GroupPatch{MaxMembers: ptr(2)})
	h.must(err) // who is in stays in
	h.must(h.RemoveMember(ctx, "alice", g, friends[0]))
	h.wantCode(h.PutMember(ctx, "alice", g, friends[0], MemberPatch{}), "group_full")
}

func TestLimitOfGroups(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{MaxGroups: 2})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	h.group("bob", "alice")
	h.group("bob", "alice")
	h.group("alice") // being in others' groups does not count
	g := h.group("alice")
	_, err := h.CreateGroup(ctx, "alice", "x", nil)
	h.wantCode(err, "too_many_groups")
	h.must(h.DissolveGroup(ctx, "alice", g))
	h.group("alice")

	tx := &store.Tx{}
	for i := range 2*joinedPerOwned - 1 {
		tx.Members = append(tx.Members, store.Member{Group: im.GroupID(fmt.Sprint("x", i)), User: "bob", Role: roleMember})
	}
	h.must(h.st.Commit(ctx, tx))
	g = h.groupOf("alice")
	h.wantCode(h.PutMember(ctx, "alice", g, "bob", MemberPatch{}), "in_too_many_groups")
}

// groupOf is a group that u owns.
func (h *house) groupOf(u im.UserID) im.GroupID {
	h.t.Helper()
	groups, err := h.Groups(context.Background(), u)
	h.must(err)
	for _, g := range groups {
		if g.Owner == u {
			return g.ID
		}
	}
	h.t.Fatalf("%s owns no group", u)
	return ""
}

func TestTheLastOneClosesTheDoor(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	g := h.group("alice", "bob")
	h.wantCode(h.RemoveMember(ctx, "alice", g, "alice"), "owner_stays")
	h.must(h.RemoveMember(ctx, "bob", g, "bob"))
	h.must(h.RemoveMember(ctx, "alice", g, "alice"))
	row, err := h.st.Group(ctx, g)
	if err != nil || !row.Dissolved {
		t.Errorf("%+v, %v", row, err)
	}
	if h.mail.inRoom(g, "alice") {
		t.Error("alice is still in the room")
	}
	h.wantCode(h.PutMember(ctx, "alice", g, "bob", MemberPatch{}), "group_not_found")
	if groups, err := h.Groups(ctx, "alice"); err != nil || len(groups) != 0 {
		t.Errorf("alice is in %v, %v", groups, err)
	}
}

// A dissolution that was interrupted shuts the group at once, and can be repeated.
func TestDissolvingALargeGroup(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	members := many("m", 2*clearChunk+1)
	tx := &store.Tx{
		Groups:  []store.Group{{ID: "big", Owner: "alice", MaxMembers: 10_000}},
		Members: []store.Member{{Group: "big", User: "alice", Role: roleOwner}},
	}
	h.mail.Joined("big", "alice", 0)
	for _, u := range members {
		tx.Members = append(tx.Members, store.Member{Group: "big", User: u, Role: roleMember})
		h.mail.Joined("big", u, 0)
	}
	h.must(h.st.Commit(ctx, tx))
	commits := 0
	h.st.onCommit = func(tx *store.Tx) error {
		if commits++; commits == 3 {
			return im.E(im.Unavailable, "test", nil)
		}
		if len(tx.Members) > clearChunk {
			t.Errorf("a commit of %d members", len(tx.Members))
		}
		return nil
	}
	h.wantCode(h.DissolveGroup(ctx, "alice", "big"), "unavailable")
	if n := len(h.roles("big")); n != len(members)+1-clearChunk {
		t.Errorf("%d members are left", n)
	}
	for _, u := range []im.UserID{"alice", members[0], members[len(members)-1]} {
		_, err := h.roster.mayGroup(ctx, "big", u, 0)
		h.wantCode(err, "not_member")
	}
	h.wantCode(h.DissolveGroup(ctx, members[len(members)-1], "big"), "group_not_found")
	h.must(h.DissolveGroup(ctx, "alice", "big"))
	h.wantCode(h.DissolveGroup(ctx, "alice", "big"), "group_not_found")
	equal(t, "members", h.roles("big"), nil)
	for _, u := range append(members, "alice") {
		if h.mail.inRoom("big", u) {
			t.Fatalf("%s is in the room", u)
		}
		if got := h.mail.me(u); len(got) != 1 || !strings.HasPrefix(got[0], evGroupRemoved) {
			t.Fatalf("%s hears %v", u, got)
		}
	}
}

// Members come, go and are muted while the group is dissolved: nobody stays.
func TestDissolvingWhileMembersChange(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	friends := many("f", 20)
	h.people("alice")
	h.people(friends...)
	h.friends("alice", friends...)
	for range 20 {
		g := h.group("alice", friends[:10]...)
		var wg sync.WaitGroup
		for i, f := range friends {
			wg.Go(func() {
				switch {
				case i >= 10:
					_ = h.PutMember(ctx, "alice", g, f, MemberPatch{})
				case i%2 == 0:
					_ = h.RemoveMember(ctx, f, g, f)
				default:
					_ = h.PutMember(ctx, "alice", g, f, MemberPatch{MutedUntil: ptr(int64(9))})
				}
			})
		}
		h.must(h.DissolveGroup(ctx, "alice", g))
		equal(t, "members", h.roles(g), nil)
		wg.Wait()
		equal(t, "members", h.roles(g), nil)
		for _, f := range append(friends, "alice") {
			if h.mail.inRoom(g, f) {
				t.Fatalf("%s is in the room", f)
			}
		}
	}
}

// Somebody is removed and brought back again and again while others write. What
// reaches them is what lies between a joining and the removal that follows it.
func TestWhoWasRemovedGetsNothingFromThenOn(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob", "carol")
	h.friends("alice", "bob", "carol")
	g := h.group("alice", "bob", "carol")
	topic, conv := "g/"+string(g), im.GroupConv(g)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, u := range []im.UserID{"alice", "carol"} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					h.say(u, topic, "x")
				}
			}
		})
	}
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		h.must(h.RemoveMember(ctx, "alice", g, "bob"))
		if _, err := h.try("bob", topic, "let me in"); err != errNotMember {
			t.Errorf("bob writes after the removal: %v", err)
		}
		h.must(h.PutMember(ctx, "alice", g, "bob", MemberPatch{}))
		h.say("bob", topic, "back")
	}
	close(stop)
	wg.Wait()

	h.mail.mu.Lock()
	defer h.mail.mu.Unlock()
	reached := map[im.Seq]bool{}
	for _, e := range h.mail.got {
		if e.user == "bob" && e.conv == conv {
			reached[e.seq] = true
		}
	}
	in, wrong := true, 0
	for _, e := range h.mail.got {
		if e.user != "alice" || e.conv != conv {
			continue
		}
		switch e.event {
		case evMemberRemoved:
			in = false
		case evMemberAdded:
			in = true
		}
		if reached[e.seq] != in {
			wrong++
		}
	}
	if wrong > 0 || !in {
		t.Errorf("%d entries reached bob, or did not, against the log", wrong)
	}
}

// An admin who is demoted while removing somebody no longer may.
func TestAuthorityOfTheMoment(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		sentence  string
		meanwhile func(h *house, g im.GroupID) error
		do        func(h *house, g im.GroupID) error
		want      string
	}{
		{"a demoted admin removes nobody",
			func(h *house, g im.GroupID) error {
				return h.PutMember(ctx, "owner", g, "admin", MemberPatch{Role: ptr(roleMember)})
			},
			func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "admin", g, "member") }, "role_too_low"},
		{"a removed member brings nobody in",
			func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "owner", g, "member") },
			func(h *house, g im.GroupID) error { return h.PutMember(ctx, "member", g, "friend", MemberPatch{}) }, "group_not_found"},
		{"an owner who has handed over dissolves nothing",
			func(h *house, g im.GroupID) error {
				_, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{Owner: ptr(im.UserID("admin"))})
				return err
			},
			func(h *house, g im.GroupID) error { return h.DissolveGroup(ctx, "owner", g) }, "role_too_low"},
		{"who is removed while becoming the owner does not become it",
			func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "member", g, "member") },
			func(h *house, g im.GroupID) error {
				_, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{Owner: ptr(im.UserID("member"))})
				return err
			}, "not_member"},
		{"a removed admin changes no name",
			func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "owner", g, "admin") },
			func(h *house, g im.GroupID) error {
				_, err := h.UpdateGroup(ctx, "admin", g, GroupPatch{Name: ptr("mine")})
				return err
			}, "group_not_found"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			h := newHouse(t, Options{})
			g := h.court()
			h.st.onCommit = func(*store.Tx) error {
				h.st.onCommit = nil
				h.must(row.meanwhile(h, g))
				return nil
			}
			h.wantCode(row.do(h, g), row.want)
			if row, err := h.st.Group(ctx, g); err != nil || row.Name != "Court" || row.Dissolved {
				t.Errorf("the group is %+v, %v", row, err)
			}
		})
	}
}

// Two members bring in one each, and there is one place.
func TestTheLastPlaceIsGivenOnce(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{MaxGroupMembers: len(courtRoles) + 1})
	h.people("stranger")
	g := h.court()
	h.must(h.st.Commit(ctx, &store.Tx{Relations: []store.Relation{
		{User: "member", Peer: "stranger", State: store.Friends}, {User: "stranger", Peer: "member", State: store.Friends}}}))
	h.st.onCommit = func(*store.Tx) error {
		h.st.onCommit = nil
		h.must(h.PutMember(ctx, "member", g, "stranger", MemberPatch{}))
		return nil
	}
	h.wantCode(h.PutMember(ctx, "member2", g, "friend", MemberPatch{}), "group_full")
}

// A member leaves, or is muted, in the middle of the dissolution.
func TestDissolvingIsNotStoppedByAConflict(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	g := h.court()
	commits := 0
	h.st.onCommit = func(*store.Tx) error {
		if commits++; commits == 2 { // the first one shuts the group
			m, err := h.st.Store.Member(ctx, g, "member")
			h.must(err)
			m.MutedUntil = 5
			h.must(h.st.Store.Commit(ctx, &store.Tx{Members: []store.Member{m}}))
		}
		return nil
	}
	h.must(h.DissolveGroup(ctx, "owner", g))
	equal(t, "members", h.roles(g), nil)
	if commits != 3 {
		t.Errorf("%d commits", commits)
	}
}
