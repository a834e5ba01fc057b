package chat

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

var ctx = context.Background()

// courier notes what it is given.
type courier struct {
	mu      sync.Mutex
	entries []*im.Entry
	told    []string
}

func (c *courier) Offer(e *im.Entry) {
	c.mu.Lock()
	c.entries = append(c.entries, e)
	c.mu.Unlock()
}
func (c *courier) note(format string, args ...any) {
	c.mu.Lock()
	c.told = append(c.told, fmt.Sprintf(format, args...))
	c.mu.Unlock()
}
func (c *courier) Ephemeral(ev im.Ephemeral) { c.note("ephemeral %s %s", ev.Conv, ev.From) }
func (c *courier) Read(conv im.ConvID, u im.UserID, _ im.DeviceID, seq im.Seq) {
	c.note("read %s %s %d", conv, u, seq)
}
func (c *courier) Joined(g im.GroupID, u im.UserID, start im.Seq) { c.note("joined %s %d", u, start) }
func (c *courier) Left(g im.GroupID, u im.UserID)                 { c.note("left %s", u) }

func (c *courier) events(conv im.ConvID) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.Conv == conv && e.Event != "" {
			names = append(names, e.Event)
		}
	}
	return names
}

type town struct {
	*Chat
	t  testing.TB
	st *pebblestore.Store
	co *courier
}

// newTown makes a Chat on a real store with some people in it.
func newTown(t testing.TB, people ...im.UserID) *town {
	st, err := pebblestore.Open(t.TempDir(), pebblestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	for _, p := range people {
		if err := st.Commit(ctx, &store.Tx{Users: []store.User{{ID: p, Name: strings.ToUpper(string(p))}}}); err != nil {
			t.Fatal(err)
		}
	}
	co := &courier{}
	return &town{Chat: New(Options{Store: st, Courier: co, MaxGroupMembers: 5, MaxGroups: 20}), t: t, st: st, co: co}
}

func (w *town) befriend(a, b im.UserID) {
	w.t.Helper()
	if _, err := w.AddFriend(ctx, a, b, "", nil); err != nil {
		w.t.Fatal(err)
	}
	if s, err := w.AddFriend(ctx, b, a, "", nil); err != nil || s != StateFriends {
		w.t.Fatal(s, err)
	}
}

// say appends a message and returns its seq, or the refusal.
func (w *town) say(from im.UserID, topic, body string) (im.Seq, error) {
	t, err := im.ParseTopic(from, topic)
	if err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	a := &store.Append{Entry: im.Entry{Body: []byte(body)}, Owner: owner(func(a *store.Append) { done <- a.Err })}
	if err := w.Check(ctx, Sender{User: from, Device: "phone"}, &t, a); err != nil {
		return 0, err
	}
	w.Submit(a)
	err = <-done
	return a.Entry.Seq, err
}

type owner func(*store.Append)

func (o owner) Committed(a *store.Append) { o(a) }

func code(err error) string {
	if err == nil {
		return ""
	}
	return im.CodeOf(err)
}

func TestFriendship(t *testing.T) {
	w := newTown(t, "alice", "bob", "carol")
	step := func(what string, err error, want string) {
		t.Helper()
		if code(err) != want {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	add := func(a, b im.UserID) (string, error) { return w.AddFriend(ctx, a, b, "hi", nil) }
	_, err := add("alice", "alice")
	step("oneself", err, "self")
	_, err = add("alice", "nobody")
	step("an unknown user", err, "user_not_found")
	_, err = w.AddFriend(ctx, "alice", "bob", strings.Repeat("x", 300), nil)
	step("a long message", err, "message_too_long")

	for range 2 { // idempotent
		if s, err := add("alice", "bob"); s != StateRequested || err != nil {
			t.Errorf("%s %v", s, err)
		}
	}
	_, err = w.say("alice", "dm/bob", "early")
	step("before bob accepted", err, "not_friends")
	rs, _ := w.FriendRequests(ctx, "bob")
	if len(rs) != 1 || rs[0].User != "alice" || rs[0].Message != "hi" || rs[0].Direction != "in" || rs[0].Name != "ALICE" {
		t.Errorf("%+v", rs)
	}
	step("refuse", w.RefuseRequest(ctx, "bob", "alice"), "")
	step("refuse again", w.RefuseRequest(ctx, "bob", "alice"), "request_not_found")
	if rs, _ := w.FriendRequests(ctx, "alice"); len(rs) != 0 {
		t.Errorf("the refused request stays: %+v", rs)
	}
	w.befriend("alice", "bob")
	remark := "bobby"
	if s, err := w.AddFriend(ctx, "alice", "bob", "", &remark); s != StateFriends || err != nil {
		t.Errorf("%s %v", s, err)
	}
	fs, _ := w.Friends(ctx, "alice")
	if len(fs) != 1 || fs[0].Remark != "bobby" || fs[0].State != StateFriends || fs[0].Since == 0 {
		t.Errorf("%+v", fs)
	}
	seq, err := w.say("alice", "dm/bob", "hello")
	step("friends", err, "")
	if seq != 1 {
		t.Errorf("seq %d", seq)
	}
	if got := w.co.events("u/bob"); !slices.Equal(got, []string{"friend-request", "friend-request", "friend-accepted"}) && !slices.Contains(got, "friend-accepted") {
		t.Errorf("bob heard %v", got)
	}

	step("block", w.Block(ctx, "bob", "alice"), "")
	_, err = w.say("alice", "dm/bob", "x")
	step("the blocked one writes", err, "not_friends")
	_, err = w.say("bob", "dm/alice", "x")
	step("the blocker writes", err, "not_friends")
	if bs, _ := w.Blocks(ctx, "bob"); len(bs) != 1 || bs[0].User != "alice" {
		t.Errorf("%+v", bs)
	}
	if got := w.co.events("u/alice"); slices.Contains(got, "blocked") {
		t.Error("alice is told that she was blocked")
	}
	step("unblock", w.Unblock(ctx, "bob", "alice"), "")
	_, err = w.say("alice", "dm/bob", "x")
	step("the friendship stayed", err, "")

	step("unfriend", w.RemoveFriend(ctx, "bob", "alice"), "")
	step("unfriend again", w.RemoveFriend(ctx, "bob", "alice"), "not_friends")
	_, err = w.say("alice", "dm/bob", "x")
	step("no friends", err, "not_friends")

	// Who is blocked asks in vain, and does not notice.
	step("block", w.Block(ctx, "bob", "carol"), "")
	if s, err := add("carol", "bob"); s != StateRequested || err != nil {
		t.Errorf("%s %v", s, err)
	}
	if rs, _ := w.FriendRequests(ctx, "bob"); len(rs) != 0 {
		t.Errorf("the blocker sees the request: %+v", rs)
	}
	_, err = add("bob", "carol")
	step("befriending whom one blocks", err, "blocked_by_you")
}

// TestBothAskAtOnce: whatever the order, two who ask each other are friends.
func TestBothAskAtOnce(t *testing.T) {
	w := newTown(t)
	for i := range 100 {
		a, b := im.UserID(fmt.Sprint("a", i)), im.UserID(fmt.Sprint("b", i))
		if err := w.st.Commit(ctx, &store.Tx{Users: []store.User{{ID: a}, {ID: b}}}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = w.AddFriend(ctx, a, b, "", nil) })
		wg.Go(func() { _, _ = w.AddFriend(ctx, b, a, "", nil) })
		wg.Wait()
		for _, p := range [][2]im.UserID{{a, b}, {b, a}} {
			if err := w.roster.mayDM(ctx, p[0], p[1]); err != nil {
				t.Fatalf("round %d: %s may not write to %s: %v", i, p[0], p[1], err)
			}
		}
	}
}

// TestAChangeActsOnTheVeryNextPacket hammers the cache: right after Block has
// returned nobody may write, right after Unblock everybody, whatever loads are
// under way.
func TestAChangeActsOnTheVeryNextPacket(t *testing.T) {
	w := newTown(t, "alice", "bob")
	w.befriend("alice", "bob")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = w.roster.mayDM(ctx, "alice", "bob")
				w.roster.forget("alice") // as eviction does
			}
		})
	}
	for i := range 200 {
		if err := w.Block(ctx, "bob", "alice"); err != nil {
			t.Fatal(err)
		}
		if w.roster.mayDM(ctx, "alice", "bob") == nil {
			t.Fatalf("round %d: a packet slipped through after the block", i)
		}
		if err := w.Unblock(ctx, "bob", "alice"); err != nil {
			t.Fatal(err)
		}
		if err := w.roster.mayDM(ctx, "alice", "bob"); err != nil {
			t.Fatalf("round %d: still refused after the unblock: %v", i, err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestGroupRules(t *testing.T) {
	w := newTown(t, "owner", "admin", "member", "other", "stranger", "sixth", "seventh")
	for _, u := range []im.UserID{"admin", "member", "other", "sixth"} {
		w.befriend("owner", u)
	}
	w.befriend("member", "stranger")
	w.befriend("admin", "seventh")
	if _, err := w.CreateGroup(ctx, "owner", "g", []im.UserID{"member", "stranger"}); code(err) != "not_friends" {
		t.Errorf("a stranger is put in: %v", err)
	}
	if _, err := w.CreateGroup(ctx, "owner", "", nil); code(err) != "name_invalid" {
		t.Errorf("no name: %v", err)
	}
	if _, err := w.CreateGroup(ctx, "owner", "g", []im.UserID{"admin", "member", "other", "sixth", "x"}); code(err) != "group_full" {
		t.Errorf("too many: %v", err)
	}
	info, err := w.CreateGroup(ctx, "owner", "team", []im.UserID{"admin", "member", "member", "owner"})
	if err != nil || len(info.Members) != 3 || info.Owner != "owner" || !info.ID.Valid() {
		t.Fatalf("%+v %v", info, err)
	}
	g, topic := info.ID, "g/"+string(info.ID)
	role := func(s string) MemberPatch { return MemberPatch{Role: &s} }
	mute := func(ms int64) MemberPatch { return MemberPatch{MutedUntil: &ms} }
	later := time.Now().Add(time.Hour).UnixMilli()
	joinAdmins := joinAdmin
	heir := im.UserID("admin")
	yes, no := true, false
	say := func(u im.UserID) error { _, err := w.say(u, topic, "x"); return err }
	for _, tt := range []struct {
		why  string
		do   func() error
		want string
	}{
		{"a stranger writes", func() error { return say("stranger") }, "not_member"},
		{"a member writes", func() error { return say("member") }, ""},
		{"a member makes an admin", func() error { return w.PutMember(ctx, "member", g, "admin", role("admin")) }, "role_too_low"},
		{"the owner makes an admin", func() error { return w.PutMember(ctx, "owner", g, "admin", role("admin")) }, ""},
		{"nobody becomes owner this way", func() error { return w.PutMember(ctx, "owner", g, "admin", role("owner")) }, "role_invalid"},
		{"a stranger adds", func() error { return w.PutMember(ctx, "stranger", g, "other", MemberPatch{}) }, "group_not_found"},
		{"a member adds somebody who is no friend", func() error { return w.PutMember(ctx, "member", g, "other", MemberPatch{}) }, "not_friends"},
		{"a member adds a friend", func() error { return w.PutMember(ctx, "member", g, "stranger", MemberPatch{}) }, ""},
		{"again", func() error { return w.PutMember(ctx, "member", g, "stranger", MemberPatch{}) }, ""},
		{"the new one writes", func() error { return say("stranger") }, ""},
		{"a member mutes", func() error { return w.PutMember(ctx, "member", g, "stranger", mute(later)) }, "role_too_low"},
		{"an admin mutes a member", func() error { return w.PutMember(ctx, "admin", g, "stranger", mute(later)) }, ""},
		{"the muted one writes", func() error { return say("stranger") }, "muted"},
		{"an admin mutes the owner", func() error { return w.PutMember(ctx, "admin", g, "owner", mute(later)) }, "role_too_low"},
		{"the mute is lifted", func() error { return w.PutMember(ctx, "admin", g, "stranger", mute(0)) }, ""},
		{"and they write", func() error { return say("stranger") }, ""},
		{"an admin mutes all", func() error { _, err := w.UpdateGroup(ctx, "admin", g, GroupPatch{MuteAll: &yes}); return err }, ""},
		{"a member writes into silence", func() error { return say("member") }, "muted"},
		{"an admin writes into silence", func() error { return say("admin") }, ""},
		{"silence ends", func() error { _, err := w.UpdateGroup(ctx, "owner", g, GroupPatch{MuteAll: &no}); return err }, ""},
		{"a member changes the group", func() error { _, err := w.UpdateGroup(ctx, "member", g, GroupPatch{MuteAll: &yes}); return err }, "role_too_low"},
		{"only admins invite", func() error { _, err := w.UpdateGroup(ctx, "owner", g, GroupPatch{Join: &joinAdmins}); return err }, ""},
		{"a member invites", func() error { return w.PutMember(ctx, "member", g, "stranger", MemberPatch{}) }, ""}, // in already: nothing to do
		{"an admin invites", func() error { return w.PutMember(ctx, "admin", g, "seventh", MemberPatch{}) }, ""},
		{"the group is full", func() error { return w.PutMember(ctx, "owner", g, "other", MemberPatch{}) }, "group_full"},
		{"a member kicks", func() error { return w.RemoveMember(ctx, "member", g, "stranger") }, "role_too_low"},
		{"an admin kicks an owner", func() error { return w.RemoveMember(ctx, "admin", g, "owner") }, "role_too_low"},
		{"an admin kicks a member", func() error { return w.RemoveMember(ctx, "admin", g, "stranger") }, ""},
		{"the kicked one writes", func() error { return say("stranger") }, "not_member"},
		{"the kicked one reads", func() error { _, _, err := w.History(ctx, "stranger", im.GroupConv(g), 0, 0, 10); return err }, "conversation_not_found"},
		{"kicking nobody", func() error { return w.RemoveMember(ctx, "admin", g, "stranger") }, "member_not_found"},
		{"the owner leaves", func() error { return w.RemoveMember(ctx, "owner", g, "owner") }, "owner_stays"},
		{"an admin takes over", func() error { _, err := w.UpdateGroup(ctx, "admin", g, GroupPatch{Owner: &heir}); return err }, "role_too_low"},
		{"the owner hands over", func() error { _, err := w.UpdateGroup(ctx, "owner", g, GroupPatch{Owner: &heir}); return err }, ""},
		{"and leaves", func() error { return w.RemoveMember(ctx, "owner", g, "owner") }, ""},
		{"a member leaves", func() error { return w.RemoveMember(ctx, "member", g, "member") }, ""},
		{"who left sees no group", func() error { _, err := w.Group(ctx, "member", g); return err }, "group_not_found"},
		{"the last but one leaves", func() error { return w.RemoveMember(ctx, "seventh", g, "seventh") }, ""},
		{"the last one leaves, which dissolves it", func() error { return w.RemoveMember(ctx, "admin", g, "admin") }, ""},
		{"nobody writes to it any more", func() error { return say("admin") }, "not_member"},
	} {
		if err := tt.do(); code(err) != tt.want {
			t.Errorf("%s: %v, want %q", tt.why, err, tt.want)
		}
	}
	es, err := w.st.Range(ctx, im.GroupConv(g), 0, 1000, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range es {
		if e.Seq != im.Seq(i+1) {
			t.Errorf("seq %d at place %d: events count", e.Seq, i+1)
		}
	}
	for _, want := range []string{"group-created", "member-added", "member-role", "member-muted", "group-changed", "member-removed", "member-left", "group-dissolved"} {
		if !slices.Contains(w.co.events(im.GroupConv(g)), want) {
			t.Errorf("no %s in the group's log", want)
		}
	}
}

func TestHistoryAndConversations(t *testing.T) {
	w := newTown(t, "alice", "bob", "carol")
	w.befriend("alice", "bob")
	w.befriend("alice", "carol")
	conv := im.DM("alice", "bob")
	for i := range 10 {
		from, to := im.UserID("alice"), "dm/bob"
		if i >= 7 {
			from, to = "bob", "dm/alice"
		}
		if _, err := w.say(from, to, fmt.Sprint(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		before, after im.Seq
		limit         int
		first, last   im.Seq
		more          bool
	}{{0, 0, 50, 1, 10, false}, {0, 0, 3, 8, 10, true}, {8, 0, 3, 5, 7, true}, {4, 0, 3, 1, 3, false}, {0, 4, 3, 5, 7, true}, {0, 7, 3, 8, 10, false}, {9, 6, 50, 7, 8, false}} {
		msgs, more, err := w.History(ctx, "alice", conv, tt.before, tt.after, tt.limit)
		if err != nil || len(msgs) == 0 {
			t.Errorf("%+v: %d messages, %v", tt, len(msgs), err)
			continue
		}
		first, last := seqOf(msgs[0]), seqOf(msgs[len(msgs)-1])
		if first != tt.first || last != tt.last || more != tt.more {
			t.Errorf("before %d after %d limit %d: %d..%d more %v, want %d..%d %v", tt.before, tt.after, tt.limit, first, last, more, tt.first, tt.last, tt.more)
		}
	}
	if _, _, err := w.History(ctx, "carol", conv, 0, 0, 10); !im.Is(err, im.NotFound) {
		t.Errorf("carol reads their conversation: %v", err)
	}
	cs, err := w.Conversations(ctx, "bob")
	if err != nil || len(cs) != 1 || cs[0].Conv != "dm/alice" || cs[0].Head != 10 || cs[0].Unread != 7 {
		t.Errorf("%+v %v", cs, err)
	}
	if now, err := w.MarkRead(ctx, "bob", "phone", conv, 5); now != 5 || err != nil {
		t.Errorf("%d %v", now, err)
	}
	if now, err := w.MarkRead(ctx, "bob", "phone", conv, 3); now != 5 || err != nil {
		t.Errorf("it went back: %d %v", now, err)
	}
	if now, err := w.MarkRead(ctx, "bob", "phone", conv, 500); now != 10 || err != nil {
		t.Errorf("it is not cut at the head: %d %v", now, err)
	}
	if _, err := w.MarkRead(ctx, "carol", "phone", conv, 5); err == nil {
		t.Error("carol reads for them")
	}
	if cs, _ := w.Conversations(ctx, "bob"); cs[0].Unread != 0 || cs[0].Read != 10 {
		t.Errorf("%+v", cs)
	}
	// A new member of a group begins where they joined.
	info, err := w.CreateGroup(ctx, "alice", "g", []im.UserID{"bob"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.say("alice", "g/"+string(info.ID), "before carol"); err != nil {
		t.Fatal(err)
	}
	if err := w.PutMember(ctx, "alice", info.ID, "carol", MemberPatch{}); err != nil {
		t.Fatal(err)
	}
	msgs, more, err := w.History(ctx, "carol", im.GroupConv(info.ID), 0, 0, 50)
	if err != nil || more || len(msgs) != 1 || !strings.Contains(string(msgs[0]), "member-added") {
		t.Errorf("%s %v %v", msgs, more, err)
	}
	// What was said stays readable after the friendship.
	if err := w.RemoveFriend(ctx, "alice", "bob"); err != nil {
		t.Fatal(err)
	}
	if msgs, _, err := w.History(ctx, "bob", conv, 0, 0, 50); err != nil || len(msgs) != 10 {
		t.Errorf("%d %v", len(msgs), err)
	}
}

func seqOf(envelope []byte) (seq im.Seq) {
	_, _ = fmt.Sscanf(string(envelope), `{"seq":%d,`, &seq)
	return seq
}

// BenchmarkMayDM guards the check on the path of every direct message.
func BenchmarkMayDM(b *testing.B) {
	w := newTown(b, "alice", "bob")
	w.befriend("alice", "bob")
	b.ReportAllocs()
	for b.Loop() {
		if err := w.roster.mayDM(ctx, "alice", "bob"); err != nil {
			b.Fatal(err)
		}
	}
}
