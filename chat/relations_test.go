package chat

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// What a step of a story does, who does it, and what it answers.
type step struct {
	who  im.UserID
	do   string
	peer im.UserID
	want string // AddFriend: the state; else the code of the refusal, "" for none
}

func (h *house) take(s step) {
	h.t.Helper()
	ctx := context.Background()
	var got string
	var err error
	switch s.do {
	case "add":
		got, err = h.AddFriend(ctx, s.who, s.peer, "hello", nil)
	case "remove":
		err = h.RemoveFriend(ctx, s.who, s.peer)
	case "refuse":
		err = h.RefuseRequest(ctx, s.who, s.peer)
	case "block":
		err = h.Block(ctx, s.who, s.peer)
	case "unblock":
		err = h.Unblock(ctx, s.who, s.peer)
	default:
		h.t.Fatalf("no step %q", s.do)
	}
	if err != nil {
		got = code(err)
	}
	if got != s.want {
		h.t.Errorf("%s %s %s: got %q (%v), want %q", s.who, s.do, s.peer, got, err, s.want)
	}
}

func TestRelations(t *testing.T) {
	const (
		asks      = `friend-request {"user":"alice","message":"hello"}`
		aliceIn   = `friend-accepted {"user":"alice"}`
		bobIn     = `friend-accepted {"user":"bob"}`
		bobOut    = `friend-removed {"user":"bob"}`
		aliceOut  = `friend-removed {"user":"alice"}`
		aliceShut = `friend-request-closed {"user":"alice"}`
		bobShut   = `friend-request-closed {"user":"bob"}`
		blocked   = `blocked {"user":"alice"}`
		unblocked = `unblocked {"user":"alice"}`
	)
	for _, row := range []struct {
		sentence string
		steps    []step
		alice    []string // what her devices hear
		bob      []string
		rows     [2]store.RelationState // what alice is to bob, and bob to alice
	}{
		{"asking tells the one who is asked", []step{{"alice", "add", "bob", "requested"}},
			nil, []string{asks}, [2]store.RelationState{store.Asked, store.Asking}},
		{"asking twice is asking once", []step{{"alice", "add", "bob", "requested"}, {"alice", "add", "bob", "requested"}},
			nil, []string{asks}, [2]store.RelationState{store.Asked, store.Asking}},
		{"asking back accepts, and both are told", []step{{"alice", "add", "bob", "requested"}, {"bob", "add", "alice", "friends"}},
			[]string{bobIn}, []string{asks, aliceIn}, [2]store.RelationState{store.Friends, store.Friends}},
		{"adding a friend changes nothing", []step{{"alice", "add", "bob", "requested"}, {"bob", "add", "alice", "friends"}, {"alice", "add", "bob", "friends"}, {"bob", "add", "alice", "friends"}},
			[]string{bobIn}, []string{asks, aliceIn}, [2]store.RelationState{store.Friends, store.Friends}},
		{"nobody befriends oneself", []step{{"alice", "add", "alice", "self"}}, nil, nil, [2]store.RelationState{}},
		{"who is not there cannot be asked", []step{{"alice", "add", "nobody", "user_not_found"}, {"alice", "add", "no/body", "user_not_found"}}, nil, nil, [2]store.RelationState{}},
		{"a refusal is known to the one who refuses", []step{{"alice", "add", "bob", "requested"}, {"bob", "refuse", "alice", ""}},
			nil, []string{asks, aliceShut}, [2]store.RelationState{}},
		{"after a refusal one can ask again", []step{{"alice", "add", "bob", "requested"}, {"bob", "refuse", "alice", ""}, {"alice", "add", "bob", "requested"}},
			nil, []string{asks, aliceShut, asks}, [2]store.RelationState{store.Asked, store.Asking}},
		{"a request can be withdrawn, and both are told", []step{{"alice", "add", "bob", "requested"}, {"alice", "refuse", "bob", ""}},
			[]string{bobShut}, []string{asks, aliceShut}, [2]store.RelationState{}},
		{"there is nothing to refuse", []step{{"alice", "refuse", "bob", "request_not_found"}, {"alice", "refuse", "no/body", "request_not_found"}}, nil, nil, [2]store.RelationState{}},
		{"a friendship is no request", []step{{"alice", "add", "bob", "requested"}, {"bob", "add", "alice", "friends"}, {"alice", "refuse", "bob", "request_not_found"}},
			[]string{bobIn}, []string{asks, aliceIn}, [2]store.RelationState{store.Friends, store.Friends}},
		{"the end of a friendship is one for both", []step{{"alice", "add", "bob", "requested"}, {"bob", "add", "alice", "friends"}, {"alice", "remove", "bob", ""}, {"bob", "remove", "alice", "not_friends"}},
			[]string{bobIn, bobOut}, []string{asks, aliceIn, aliceOut}, [2]store.RelationState{}},
		{"who is no friend cannot be removed", []step{{"alice", "remove", "bob", "not_friends"}, {"alice", "remove", "no/body", "not_friends"}}, nil, nil, [2]store.RelationState{}},
		{"a block is known to the one who blocks only, once", []step{{"bob", "block", "alice", ""}, {"bob", "block", "alice", ""}},
			nil, []string{blocked}, [2]store.RelationState{}},
		{"asking somebody who blocks looks as always, and does not reach them", []step{{"bob", "block", "alice", ""}, {"alice", "add", "bob", "requested"}, {"alice", "add", "bob", "requested"}},
			nil, []string{blocked}, [2]store.RelationState{store.Asked, store.Stranger}},
		{"what did not reach them can be withdrawn", []step{{"bob", "block", "alice", ""}, {"alice", "add", "bob", "requested"}, {"alice", "refuse", "bob", ""}},
			[]string{bobShut}, []string{blocked}, [2]store.RelationState{}},
		{"asked again after the unblock, it does", []step{{"bob", "block", "alice", ""}, {"alice", "add", "bob", "requested"}, {"bob", "unblock", "alice", ""}, {"alice", "add", "bob", "requested"}},
			nil, []string{blocked, unblocked, asks}, [2]store.RelationState{store.Asked, store.Asking}},
		{"two who have asked are friends, whatever reached whom", []step{{"bob", "block", "alice", ""}, {"alice", "add", "bob", "requested"}, {"bob", "unblock", "alice", ""}, {"bob", "add", "alice", "friends"}},
			[]string{bobIn}, []string{blocked, unblocked, aliceIn}, [2]store.RelationState{store.Friends, store.Friends}},
		{"one unblocks before one asks", []step{{"bob", "block", "alice", ""}, {"bob", "add", "alice", "blocked_by_you"}},
			nil, []string{blocked}, [2]store.RelationState{}},
		{"accepting somebody who has blocked since does not reach them", []step{{"alice", "add", "bob", "requested"}, {"alice", "block", "bob", ""}, {"bob", "add", "alice", "friends"}},
			[]string{`blocked {"user":"bob"}`}, []string{asks, aliceIn}, [2]store.RelationState{store.Friends, store.Friends}},
		{"withdrawing from somebody who has blocked since does not reach them", []step{{"alice", "add", "bob", "requested"}, {"bob", "block", "alice", ""}, {"alice", "refuse", "bob", ""}},
			[]string{bobShut}, []string{asks, blocked}, [2]store.RelationState{}},
		{"a friendship outlives a block", []step{{"alice", "add", "bob", "requested"}, {"bob", "add", "alice", "friends"}, {"bob", "block", "alice", ""}, {"bob", "unblock", "alice", ""}},
			[]string{bobIn}, []string{asks, aliceIn, blocked, unblocked}, [2]store.RelationState{store.Friends, store.Friends}},
		{"nobody blocks oneself, or nobody", []step{{"alice", "block", "alice", "self"}, {"alice", "block", "nobody", "user_not_found"}}, nil, nil, [2]store.RelationState{}},
		{"unblocking who is not blocked is nothing", []step{{"alice", "unblock", "bob", ""}, {"alice", "unblock", "alice", ""}, {"alice", "unblock", "no/body", ""}}, nil, nil, [2]store.RelationState{}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			h := newHouse(t, Options{})
			h.people("alice", "bob")
			for _, s := range row.steps {
				h.take(s)
			}
			equal(t, "alice hears", h.mail.me("alice"), row.alice)
			equal(t, "bob hears", h.mail.me("bob"), row.bob)
			if got := h.states("alice", "bob"); got != row.rows {
				t.Errorf("they are %v, want %v", got, row.rows)
			}
		})
	}
}

func (h *house) states(a, b im.UserID) [2]store.RelationState {
	h.t.Helper()
	ab, err := h.st.Relation(context.Background(), a, b)
	h.must(err)
	ba, err := h.st.Relation(context.Background(), b, a)
	h.must(err)
	return [2]store.RelationState{ab.State, ba.State}
}

func TestListsOfRelations(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob", "carol", "dave", "erin")
	for what, list := range map[string]func() (int, error){
		"friends":  func() (int, error) { l, err := h.Friends(ctx, "alice"); return len(l), errNil(err, l) },
		"requests": func() (int, error) { l, err := h.FriendRequests(ctx, "alice"); return len(l), errNil(err, l) },
		"blocks":   func() (int, error) { l, err := h.Blocks(ctx, "alice"); return len(l), errNil(err, l) },
	} {
		if n, err := list(); n != 0 || err != nil {
			t.Errorf("%s of somebody new: %d, %v", what, n, err)
		}
	}
	_, err := h.AddFriend(ctx, "bob", "alice", "it is me", nil)
	h.must(err)
	_, err = h.AddFriend(ctx, "alice", "bob", "", ptr("Bobby"))
	h.must(err)
	_, err = h.AddFriend(ctx, "carol", "alice", "me too", nil)
	h.must(err)
	_, err = h.AddFriend(ctx, "alice", "dave", "and I", ptr("D."))
	h.must(err)
	_, err = h.AddFriend(ctx, "erin", "alice", "pest", nil)
	h.must(err)
	h.must(h.Block(ctx, "alice", "erin"))

	now := h.now()
	friends, err := h.Friends(ctx, "alice")
	h.must(err)
	equal(t, "friends", friends, []Friend{{"bob", "Name of bob", "Bobby", "friends", now}})
	requests, err := h.FriendRequests(ctx, "alice")
	h.must(err)
	equal(t, "requests without those of a blocked user", requests, []FriendRequest{
		{"carol", "Name of carol", "me too", "in", now}, {"dave", "Name of dave", "and I", "out", now}})
	blocks, err := h.Blocks(ctx, "alice")
	h.must(err)
	equal(t, "blocks", blocks, []Block{{"erin", "Name of erin"}})

	h.must(h.Unblock(ctx, "alice", "erin"))
	requests, err = h.FriendRequests(ctx, "alice")
	h.must(err)
	if len(requests) != 3 {
		t.Errorf("after the unblock there are %v", requests)
	}
}

// errNil asks for an empty list rather than none: in JSON it is [] and not null.
func errNil[T any](err error, l []T) error {
	if err == nil && l == nil {
		err = fmt.Errorf("the list is nil")
	}
	return err
}

func TestRemarks(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	remark := func() string {
		r, err := h.st.Relation(ctx, "alice", "bob")
		h.must(err)
		return r.Remark
	}
	h.friends("alice", "bob")
	h.mail.me("alice")
	_, err := h.AddFriend(ctx, "alice", "bob", "", ptr("Bobby"))
	h.must(err)
	_, err = h.AddFriend(ctx, "alice", "bob", "", ptr("Bobby")) // the same: nothing happens
	h.must(err)
	_, err = h.AddFriend(ctx, "alice", "bob", "", nil) // none given: it stays
	h.must(err)
	if remark() != "Bobby" {
		t.Errorf("remark %q", remark())
	}
	if _, err := h.AddFriend(ctx, "alice", "bob", "", ptr("a\nb")); code(err) != "remark_invalid" || remark() != "Bobby" {
		t.Errorf("a remark of two lines: %v, it is %q", err, remark())
	}
	_, err = h.AddFriend(ctx, "alice", "bob", "", ptr(""))
	h.must(err)
	if remark() != "" {
		t.Errorf("remark %q, want none", remark())
	}
	equal(t, "one's own devices hear of it", h.mail.me("alice"), []string{
		`friend-changed {"user":"bob","remark":"Bobby"}`, `friend-changed {"user":"bob","remark":""}`})

	_, err = h.AddFriend(ctx, "alice", "bob", "", ptr("Bobby"))
	h.must(err)
	h.must(h.RemoveFriend(ctx, "alice", "bob"))
	if r, err := h.st.Relation(ctx, "alice", "bob"); err != nil || r.Ver != 0 {
		t.Errorf("a row is left: %+v, %v", r, err)
	}
}

func TestLimitsOfRelations(t *testing.T) {
	ctx := context.Background()
	long := strings.Repeat("x", 257)
	h := newHouse(t, Options{MaxFriends: 2})
	h.people("alice", "bob", "carol", "dave", "erin", "frank")
	_, err := h.AddFriend(ctx, "alice", "bob", long, nil)
	h.wantCode(err, "message_too_long")
	_, err = h.AddFriend(ctx, "alice", "bob", "", ptr(long[:129]))
	h.wantCode(err, "remark_too_long")
	_, err = h.AddFriend(ctx, "alice", "bob", long[:256], ptr(long[:128]))
	h.wantCode(err, "")

	h.friends("alice", "carol")
	_, err = h.AddFriend(ctx, "alice", "dave", "", nil) // a friend and a request are two
	h.wantCode(err, "too_many_friends")
	h.add("alice", "bob", StateRequested) // what is there is no new one

	h.add("dave", "alice", StateRequested) // others' requests do not count as her own,
	_, err = h.AddFriend(ctx, "alice", "dave", "", nil)
	h.wantCode(err, "too_many_friends") // but what she accepts does
	h.must(h.RefuseRequest(ctx, "alice", "bob"))
	h.add("alice", "dave", StateFriends)

	h.add("erin", "alice", StateRequested)
	h.add("frank", "alice", StateRequested)
	_, err = h.AddFriend(ctx, "bob", "alice", "", nil)
	h.wantCode(err, "too_many_requests")
	h.must(h.Block(ctx, "alice", "bob"))
	_, err = h.AddFriend(ctx, "bob", "alice", "", nil)
	h.wantCode(err, "too_many_requests") // and a block does not show in the answer

	h.must(h.Block(ctx, "alice", "erin"))
	h.wantCode(h.Block(ctx, "alice", "frank"), "too_many_blocks")
	h.must(h.Block(ctx, "alice", "erin")) // what is there is no new one
}

// Two ask each other at the same moment: whoever comes second accepts. New pairs
// take over now and then: a row written thousands of times is slow to read in
// Pebble once it is deleted, until it is flushed.
func TestTwoAskAtOnce(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	const perPair = 50
	pairs := 20
	if testing.Short() {
		pairs = 2
	}
	for p := range pairs {
		alice, bob := im.UserID(fmt.Sprintf("alice%d", p)), im.UserID(fmt.Sprintf("bob%d", p))
		h.people(alice, bob)
		for i := range perPair {
			h.askAtOnce(alice, bob)
			if t.Failed() {
				t.Fatalf("pair %d, round %d", p, i)
			}
			h.must(h.RemoveFriend(ctx, alice, bob))
		}
		// Each round is one request and one acceptance, never two requests.
		requests := 0
		for _, u := range []im.UserID{alice, bob} {
			for _, ev := range h.mail.me(u) {
				if strings.HasPrefix(ev, evFriendRequest+" ") {
					requests++
				}
			}
		}
		if requests != perPair {
			t.Errorf("%d requests in %d rounds", requests, perPair)
		}
	}
}

func (h *house) askAtOnce(alice, bob im.UserID) {
	h.t.Helper()
	var wg sync.WaitGroup
	var states [2]string
	for side, pair := range [2][2]im.UserID{{alice, bob}, {bob, alice}} {
		wg.Go(func() {
			var err error
			if states[side], err = h.AddFriend(context.Background(), pair[0], pair[1], "", nil); err != nil {
				h.t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := h.states(alice, bob); got != [2]store.RelationState{store.Friends, store.Friends} {
		h.t.Errorf("they are %v", got)
	}
	if states[0] != StateFriends && states[1] != StateFriends {
		h.t.Errorf("they were told %v", states)
	}
	h.must(h.roster.mayDM(context.Background(), alice, bob))
}

// Nothing is half done: where the commit fails, neither rows nor events are there.
func TestAFailedCommitLeavesNothing(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.st.onCommit = func(*store.Tx) error { return im.E(im.Unavailable, "test", nil) }
	_, err := h.AddFriend(ctx, "alice", "bob", "", nil)
	h.wantCode(err, "unavailable")
	h.st.onCommit = nil
	if got := h.states("alice", "bob"); got != [2]store.RelationState{} {
		t.Errorf("they are %v", got)
	}
	equal(t, "bob hears", h.mail.me("bob"), nil)
}
