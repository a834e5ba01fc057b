package chat

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

func TestMayDM(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		sentence string
		before   func(h *house)
		to       im.UserID
		want     string
	}{
		{"friends write to each other", func(h *house) { h.friends("alice", "bob") }, "bob", ""},
		{"everybody writes notes to oneself", func(*house) {}, "alice", ""},
		{"a stranger is refused", func(*house) {}, "bob", "not_friends"},
		{"an unknown user answers as a stranger", func(*house) {}, "nobody", "not_friends"},
		{"what is no user id answers as a stranger", func(*house) {}, "bob/../x", "not_friends"},
		{"asking is not enough", func(h *house) { h.add("alice", "bob", StateRequested) }, "bob", "not_friends"},
		{"being asked is not enough", func(h *house) { h.add("bob", "alice", StateRequested) }, "bob", "not_friends"},
		{"a block by the other refuses", func(h *house) {
			h.friends("alice", "bob")
			h.must(h.Block(ctx, "bob", "alice"))
		}, "bob", "not_friends"},
		{"a block by oneself refuses too", func(h *house) {
			h.friends("alice", "bob")
			h.must(h.Block(ctx, "alice", "bob"))
		}, "bob", "not_friends"},
		{"the friendship is there after the unblock", func(h *house) {
			h.friends("alice", "bob")
			h.must(h.Block(ctx, "bob", "alice"))
			h.must(h.Unblock(ctx, "bob", "alice"))
		}, "bob", ""},
		{"the end of a friendship refuses", func(h *house) {
			h.friends("alice", "bob")
			h.must(h.RemoveFriend(ctx, "bob", "alice"))
		}, "bob", "not_friends"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			h := newHouse(t, Options{})
			h.people("alice", "bob")
			row.before(h)
			for _, how := range []string{"asked of the store", "asked again"} {
				err := h.roster.mayDM(ctx, "alice", row.to)
				if code(err) != row.want {
					t.Errorf("%s: got %v, want %q", how, err, row.want)
				}
				if err != nil && err != errNotFriends {
					t.Errorf("%s: %v is not the one refusal that tells nothing", how, err)
				}
			}
		})
	}
}

func TestMayGroup(t *testing.T) {
	ctx := context.Background()
	mute := func(h *house, g im.GroupID, by, u im.UserID, until int64) {
		h.must(h.PutMember(ctx, by, g, u, MemberPatch{MutedUntil: &until}))
	}
	for _, row := range []struct {
		sentence string
		before   func(h *house, g im.GroupID)
		user     im.UserID
		role     string
		want     string
	}{
		{"the owner writes", nil, "owner", roleOwner, ""},
		{"an admin writes", nil, "admin", roleAdmin, ""},
		{"a member writes", nil, "member", roleMember, ""},
		{"somebody outside does not", nil, "outsider", "", "not_member"},
		{"a muted member does not", func(h *house, g im.GroupID) { mute(h, g, "admin", "member", h.now()+1) }, "member", "", "muted"},
		{"a muted admin does not", func(h *house, g im.GroupID) { mute(h, g, "owner", "admin", h.now()+1) }, "admin", "", "muted"},
		{"a mute is over when its time is", func(h *house, g im.GroupID) {
			mute(h, g, "admin", "member", h.now()+1)
			_, _ = h.roster.mayGroup(ctx, g, "member", h.now()) // into the cache
			h.clock.Add(1)
		}, "member", roleMember, ""},
		{"a mute can be lifted", func(h *house, g im.GroupID) {
			mute(h, g, "admin", "member", h.now()+1)
			mute(h, g, "admin", "member", 0)
		}, "member", roleMember, ""},
		{"muting all mutes members", muteAll, "member", "", "muted"},
		{"muting all leaves out admins", muteAll, "admin", roleAdmin, ""},
		{"muting all leaves out the owner", muteAll, "owner", roleOwner, ""},
		{"who was removed does not", func(h *house, g im.GroupID) { h.must(h.RemoveMember(ctx, "owner", g, "member")) }, "member", "", "not_member"},
		{"nobody writes to a dissolved group", func(h *house, g im.GroupID) { h.must(h.DissolveGroup(ctx, "owner", g)) }, "owner", "", "not_member"},
		{"who was made an admin is one", func(h *house, g im.GroupID) {
			h.must(h.PutMember(ctx, "owner", g, "member", MemberPatch{Role: ptr(roleAdmin)}))
		}, "member", roleAdmin, ""},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			h := newHouse(t, Options{})
			g := h.staffed()
			if row.before != nil {
				// What is cached before the change must not outlive it.
				for _, u := range []im.UserID{"owner", "admin", "member"} {
					_, err := h.roster.mayGroup(ctx, g, u, h.now())
					h.must(err)
				}
				row.before(h, g)
			}
			for _, how := range []string{"asked of the store", "asked again"} {
				role, err := h.roster.mayGroup(ctx, g, row.user, h.now())
				if role != row.role || code(err) != row.want {
					t.Errorf("%s: got %q, %v; want %q, %q", how, role, err, row.role, row.want)
				}
			}
		})
	}
	t.Run("an unknown group answers as one of others", func(t *testing.T) {
		h := newHouse(t, Options{})
		if _, err := h.roster.mayGroup(ctx, "none", "alice", 0); err != errNotMember {
			t.Error(err)
		}
	})
}

func muteAll(h *house, g im.GroupID) {
	_, err := h.UpdateGroup(context.Background(), "owner", g, GroupPatch{MuteAll: ptr(true)})
	h.must(err)
}

// staffed makes a group with one of each role, and an outsider who is a friend of all.
func (h *house) staffed() im.GroupID {
	h.t.Helper()
	h.people("owner", "admin", "member", "outsider")
	h.friends("owner", "admin", "member", "outsider")
	h.friends("admin", "outsider")
	h.friends("member", "outsider")
	g := h.group("owner", "admin", "member")
	h.must(h.PutMember(context.Background(), "owner", g, "admin", MemberPatch{Role: ptr(roleAdmin)}))
	return g
}

func TestACachedAnswerIsFree(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	g := h.staffed()
	ask := func() {
		if h.roster.mayDM(ctx, "owner", "member") != nil || h.roster.mayDM(ctx, "member", "owner") != nil {
			t.Fatal("refused")
		}
		if _, err := h.roster.mayGroup(ctx, g, "member", h.now()); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	reads := h.st.roleReads.Load()
	if n := testing.AllocsPerRun(100, ask); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := h.st.roleReads.Load() - reads; n != 0 {
		t.Errorf("%d store reads", n)
	}
}

func TestTheRosterIsBounded(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{CacheUsers: rosterShards, CacheGroups: 2 * rosterShards})
	tx := &store.Tx{}
	for i := range 1000 {
		u, g := im.UserID(fmt.Sprint("u", i)), im.GroupID(fmt.Sprint("g", i))
		tx.Relations = append(tx.Relations, store.Relation{User: "a", Peer: u, State: store.Friends}, store.Relation{User: u, Peer: "a", State: store.Friends})
		tx.Groups = append(tx.Groups, store.Group{ID: g, Owner: "a"})
		tx.Members = append(tx.Members, store.Member{Group: g, User: "a", Role: roleOwner})
	}
	h.must(h.st.Commit(ctx, tx))
	for i := range 1000 {
		h.must(h.roster.mayDM(ctx, "a", im.UserID(fmt.Sprint("u", i))))
		_, err := h.roster.mayGroup(ctx, im.GroupID(fmt.Sprint("g", i)), "a", 0)
		h.must(err)
		h.wantCode(h.roster.mayDM(ctx, "a", im.UserID(fmt.Sprint("stranger", i))), "not_friends")
	}
	pairs, groups := 0, 0
	for i := range rosterShards {
		pairs += len(h.roster.pairs[i].may)
		groups += len(h.roster.groups[i].m)
	}
	if pairs == 0 || pairs > rosterShards*pairsPerUser {
		t.Errorf("%d pairs are kept", pairs)
	}
	if groups == 0 || groups > 2*rosterShards {
		t.Errorf("%d groups are kept", groups)
	}
}

// A load that read the rows before a change returns after it: what it read must
// not be kept.
func TestALoadThatWasOvertakenKeepsNothing(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		sentence string
		hold     string // the read that is held up: the one of what changes
		nth      int64  // among those of its kind
		ask      func(h *house, g im.GroupID) error
		change   func(h *house, g im.GroupID) error
		want     string
	}{
		{"a block overtakes mayDM", "relation", 2,
			func(h *house, _ im.GroupID) error { return h.roster.mayDM(ctx, "owner", "member") },
			func(h *house, _ im.GroupID) error { return h.Block(ctx, "member", "owner") }, "not_friends"},
		{"an unfriend overtakes mayDM", "relation", 2,
			func(h *house, _ im.GroupID) error { return h.roster.mayDM(ctx, "owner", "member") },
			func(h *house, _ im.GroupID) error { return h.RemoveFriend(ctx, "member", "owner") }, "not_friends"},
		{"a kick overtakes mayGroup", "member", 1, askMember, func(h *house, g im.GroupID) error { return h.RemoveMember(ctx, "owner", g, "member") }, "not_member"},
		{"a mute overtakes mayGroup", "member", 1, askMember, func(h *house, g im.GroupID) error {
			return h.PutMember(ctx, "owner", g, "member", MemberPatch{MutedUntil: ptr(h.now() + 1)})
		}, "muted"},
		{"muting all overtakes mayGroup", "group", 1, askMember, func(h *house, g im.GroupID) error {
			_, err := h.UpdateGroup(ctx, "owner", g, GroupPatch{MuteAll: ptr(true)})
			return err
		}, "muted"},
		{"the end of the group overtakes mayGroup", "member", 1, askMember, func(h *house, g im.GroupID) error { return h.DissolveGroup(ctx, "owner", g) }, "not_member"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			h := newHouse(t, Options{})
			g := h.staffed()
			h.InvalidateRelation("owner", "member") // cached when the group was made
			read, goOn, asked := make(chan struct{}), make(chan struct{}), make(chan error)
			var reads atomic.Int64
			h.st.onRead = func(what string) {
				if what == row.hold && reads.Add(1) == row.nth {
					close(read)
					<-goOn
				}
			}
			go func() { asked <- row.ask(h, g) }()
			<-read
			h.must(row.change(h, g))
			close(goOn)
			<-asked // it overlapped with the change: either answer is right
			h.wantCode(row.ask(h, g), row.want)
		})
	}
}

func askMember(h *house, g im.GroupID) error {
	_, err := h.roster.mayGroup(context.Background(), g, "member", h.now())
	return err
}

// Checks run all the time while permission comes and goes; each change holds
// for every question asked after it returned.
func TestAChangeActsOnTheNextPacket(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{CacheUsers: 1, CacheGroups: 1})
	g := h.staffed()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				runtime.Gosched() // else a commit, which several goroutines make, waits for a time slice at each
				if err := h.roster.mayDM(ctx, "owner", "member"); err != nil && err != errNotFriends {
					t.Error(err)
				}
				if err := askMember(h, g); err != nil && err != errNotMember {
					t.Error(err)
				}
			}
		})
	}
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	for range rounds {
		h.must(h.Block(ctx, "member", "owner"))
		h.wantCode(h.roster.mayDM(ctx, "owner", "member"), "not_friends")
		h.must(h.Unblock(ctx, "member", "owner"))
		h.wantCode(h.roster.mayDM(ctx, "owner", "member"), "")
		h.must(h.RemoveMember(ctx, "owner", g, "member"))
		h.wantCode(askMember(h, g), "not_member")
		h.must(h.PutMember(ctx, "owner", g, "member", MemberPatch{}))
		h.wantCode(askMember(h, g), "")
	}
	close(stop)
	wg.Wait()
}

// A client that acts on the event of a change finds the change done.
func TestAnEventIsOfferedAfterItActs(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	g := h.staffed()
	h.must(askMember(h, g))
	h.must(h.roster.mayDM(ctx, "owner", "member"))
	seen := make(chan struct{}, 2)
	h.opt.Courier = courierFunc{h.mail, func(e *im.Entry) {
		var err error
		switch e.Event {
		case evMemberRemoved:
			err = askMember(h, g)
		case evFriendRemoved:
			err = h.roster.mayDM(ctx, "owner", "member")
		default:
			return
		}
		if err == nil {
			t.Errorf("%s is offered while the old answer is kept", e.Event)
		}
		seen <- struct{}{}
	}}
	h.must(h.RemoveMember(ctx, "owner", g, "member"))
	<-seen
	h.must(h.RemoveFriend(ctx, "owner", "member"))
	<-seen
}

// A store may call Done later than Commit returns: the change holds from then on
// all the same.
func TestAChangeHoldsBeforeItsEventIsOffered(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	g := h.staffed()
	h.must(askMember(h, g))
	h.must(h.roster.mayDM(ctx, "owner", "member"))
	h.st.late = make(chan func(), 8)
	h.must(h.RemoveMember(ctx, "owner", g, "member"))
	h.wantCode(askMember(h, g), "not_member")
	h.must(h.Block(ctx, "member", "owner"))
	h.wantCode(h.roster.mayDM(ctx, "owner", "member"), "not_friends")
	if !h.mail.inRoom(g, "member") {
		t.Fatal("the test does not hold the events up")
	}
	close(h.st.late)
	for done := range h.st.late {
		done()
	}
	if h.mail.inRoom(g, "member") {
		t.Error("still in the room")
	}
}

type courierFunc struct {
	Courier
	offer func(*im.Entry)
}

func (c courierFunc) Offer(e *im.Entry) {
	c.offer(e)
	c.Courier.Offer(e)
}

func TestInvalidate(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	g := h.staffed()
	h.must(h.roster.mayDM(ctx, "owner", "member"))
	h.must(askMember(h, g))
	// Another node changes the rows behind this one's back.
	rel, err := h.st.Relation(ctx, "member", "owner")
	h.must(err)
	rel.Blocked = true
	m, err := h.st.Member(ctx, g, "member")
	h.must(err)
	m.Role = ""
	h.must(h.st.Commit(ctx, &store.Tx{Relations: []store.Relation{rel}, Members: []store.Member{m}}))
	h.wantCode(h.roster.mayDM(ctx, "owner", "member"), "")
	h.wantCode(askMember(h, g), "")
	h.InvalidateRelation("owner", "member")
	h.InvalidateGroup(g)
	h.wantCode(h.roster.mayDM(ctx, "owner", "member"), "not_friends")
	h.wantCode(askMember(h, g), "not_member")
}

func BenchmarkMayDM(b *testing.B) {
	r := newRoster(Options{CacheUsers: 100_000, CacheGroups: 1})
	for i := range 100_000 {
		p := pairOf("alice", im.UserID(fmt.Sprint("user", i)))
		r.pairShard(p).may[p] = struct{}{}
	}
	ctx, peers := context.Background(), make([]im.UserID, 1024)
	for i := range peers {
		peers[i] = im.UserID(fmt.Sprint("user", i*97))
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if r.mayDM(ctx, "alice", peers[i%len(peers)]) != nil {
				b.Fatal("refused")
			}
		}
	})
}

func BenchmarkMayGroup(b *testing.B) {
	r := newRoster(Options{CacheUsers: 1, CacheGroups: 10_000})
	s := r.groupShard("team")
	r.keep(s, 0, "team", "alice", place{role: roleMember}, false)
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.mayGroup(ctx, "team", "alice", 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestARepeatedMessageWakes: of one that is in the log already nothing is offered,
// but it may be the first that is told of it.
func TestARepeatedMessageWakes(t *testing.T) {
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	seq := h.say("alice", "dm/bob/id/1", "x")
	h.mail.mu.Lock()
	h.mail.calls = nil
	h.mail.mu.Unlock()
	again := h.say("alice", "dm/bob/id/1", "x")
	h.mail.mu.Lock()
	defer h.mail.mu.Unlock()
	if want := fmt.Sprintf("wake %s %d", im.DM("alice", "bob"), seq); again != seq || len(h.mail.calls) != 1 || h.mail.calls[0] != want {
		t.Errorf("seq %d and %d, calls %q, want %q", seq, again, h.mail.calls, want)
	}
}
