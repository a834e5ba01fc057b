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

func (h *house) line(me im.UserID, conv string) Conversation {
	h.t.Helper()
	list, err := h.Conversations(context.Background(), me)
	h.must(err)
	for _, c := range list {
		if c.Conv == conv {
			return c
		}
	}
	h.t.Fatalf("%s has no conversation %s, but %v", me, conv, list)
	return Conversation{}
}

func TestUnread(t *testing.T) {
	ctx := context.Background()
	dm := im.DM("alice", "bob")
	for _, row := range []struct {
		sentence   string
		before     func(h *house)
		head, read im.Seq
		unread     int // for alice
		last       string
	}{
		{"what the other wrote is unread", func(h *house) { h.says("bob", 3) }, 3, 0, 3, "bob 3"},
		{"one's own messages are never unread", func(h *house) { h.says("alice", 3) }, 3, 0, 0, "alice 3"},
		{"in a mixture only the other's count", func(h *house) { h.says("bob", 2); h.says("alice", 2); h.says("bob", 1) }, 5, 0, 3, "bob 1"},
		{"what was read is not unread", func(h *house) { h.says("bob", 3); h.read("alice", 2) }, 3, 2, 1, "bob 3"},
		{"with everything read nothing is", func(h *house) { h.says("bob", 3); h.read("alice", 3) }, 3, 3, 0, "bob 3"},
		{"edits, reactions and recalls are no messages", func(h *house) {
			h.says("bob", 1)
			h.say("bob", "dm/alice/edit/1", "better")
			h.say("bob", "dm/alice/react/1", "+1")
			h.say("bob", "dm/alice/recall/1", "")
		}, 4, 0, 1, ""},
		{"a long monologue of one's own is not unread", func(h *house) { h.says("alice", 2*unreadScan) }, 2 * unreadScan, 0, 0, "alice 2000"},
		{"of a long absence the last 1000 entries are looked at", func(h *house) { h.says("bob", unreadScan+500) }, unreadScan + 500, 0, unreadScan, "bob 1500"},
		{"bodies of any size are counted", func(h *house) {
			for range 20 {
				h.say("bob", "dm/alice", strings.Repeat("x", 200<<10))
			}
			h.says("bob", 1)
		}, 21, 0, 21, "bob 1"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, Options{})
			h.people("alice", "bob")
			h.friends("alice", "bob")
			row.before(h)
			got := h.line("alice", "dm/bob")
			if got.Head != row.head || got.Read != row.read || got.Unread != row.unread {
				t.Errorf("head %d, read %d, unread %d; want %d, %d, %d", got.Head, got.Read, got.Unread, row.head, row.read, row.unread)
			}
			if last := open(t, []jsonText{got.Last})[0]; last.Seq != row.head || last.Text != row.last {
				t.Errorf("last is %s", got.Last)
			}
			n, err := h.st.Heads(ctx, []im.ConvID{dm})
			h.must(err)
			if n[0].Seq != row.head {
				t.Fatalf("the test wrote %d entries", n[0].Seq)
			}
		})
	}
}

// says writes n messages to the other of alice and bob, all on the way at once.
func (h *house) says(from im.UserID, n int) {
	h.t.Helper()
	to := im.UserID("bob")
	if from == to {
		to = "alice"
	}
	tp, err := im.ParseTopic(from, "dm/"+string(to))
	h.must(err)
	done := make(told, n)
	for i := range n {
		a := &store.Append{Entry: im.Entry{Body: fmt.Appendf(nil, "%s %d", from, i+1)}, Owner: done}
		h.must(h.Check(context.Background(), Sender{User: from, Device: "phone"}, &tp, a))
		h.Submit(a)
	}
	for range n {
		h.must((<-done).Err)
	}
}

func (h *house) read(me im.UserID, seq im.Seq) {
	h.t.Helper()
	_, err := h.MarkRead(context.Background(), me, "phone", im.DM("alice", "bob"), seq)
	h.must(err)
}

func TestListOfConversations(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob", "carol", "dave")
	h.friends("alice", "bob", "carol", "dave")
	if list, err := h.Conversations(ctx, "alice"); err != nil || list == nil || len(list) != 0 {
		t.Errorf("somebody new has %v, %v", list, err) // and no account log
	}
	h.say("alice", "dm/alice", "milk")
	h.say("bob", "dm/alice", "hi")
	g := h.group("carol", "alice")
	empty := h.group("dave")
	h.must(h.PutMember(ctx, "dave", empty, "alice", MemberPatch{}))
	list, err := h.Conversations(ctx, "alice")
	h.must(err)
	got := map[string]string{}
	for _, c := range list {
		e := open(t, []jsonText{c.Last})[0]
		got[c.Conv] = fmt.Sprint(c.Head, c.Read, c.Unread, " ", e.Text, e.Event)
	}
	for conv, want := range map[string]string{
		"dm/alice": "1 0 0 milk", "dm/bob": "1 0 1 hi", "g/" + string(g): "1 0 0 group-created", "g/" + string(empty): "2 0 0 member-added",
	} {
		if got[conv] != want {
			t.Errorf("%s: %q, want %q", conv, got[conv], want)
		}
	}
	if len(got) != 4 {
		t.Errorf("%v", got)
	}
}

// Who is brought into a group has nothing unread of what was before.
func TestUnreadOfANewMember(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	g := h.group("alice")
	for range 5 {
		h.say("alice", "g/"+string(g), "old")
	}
	h.must(h.PutMember(ctx, "alice", g, "bob", MemberPatch{}))
	if got := h.line("bob", "g/"+string(g)); got.Unread != 0 || got.Head != 7 {
		t.Errorf("%+v", got)
	}
	h.say("alice", "g/"+string(g), "new")
	if got := h.line("bob", "g/"+string(g)); got.Unread != 1 {
		t.Errorf("%+v", got)
	}
}

func TestHistory(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	h.says("bob", 10)
	conv := im.DM("alice", "bob")
	for _, row := range []struct {
		sentence      string
		before, after im.Seq
		limit         int
		first, last   im.Seq // 0: nothing
		more          bool
	}{
		{"without either, the latest", 0, 0, 3, 8, 10, true},
		{"without a limit up to 50", 0, 0, 0, 1, 10, false},
		{"exactly all there is", 0, 0, 10, 1, 10, false},
		{"before is exclusive", 8, 0, 3, 5, 7, true},
		{"the first page has nothing before it", 4, 0, 3, 1, 3, false},
		{"before the first there is nothing", 1, 0, 3, 0, 0, false},
		{"before the future is the latest", 99, 0, 3, 8, 10, true},
		{"after is exclusive", 0, 3, 3, 4, 6, true},
		{"up to the head", 0, 7, 3, 8, 10, false},
		{"after the head there is nothing", 0, 10, 3, 0, 0, false},
		{"nor in the future", 0, 99, 3, 0, 0, false},
		{"with both, what lies between", 7, 3, 50, 4, 6, false},
		{"and its first part, if that is longer", 9, 3, 3, 4, 6, true},
		{"between neighbours there is nothing", 4, 3, 50, 0, 0, false},
		{"nor between what is crossed", 3, 7, 50, 0, 0, false},
	} {
		msgs, more, err := h.History(ctx, "alice", conv, row.before, row.after, row.limit)
		h.must(err)
		got := seqs(t, msgs)
		want := []im.Seq{}
		for s := row.first; row.first > 0 && s <= row.last; s++ {
			want = append(want, s)
		}
		equal(t, row.sentence, got, want)
		if more != row.more {
			t.Errorf("%s: more is %v", row.sentence, more)
		}
		if msgs == nil {
			t.Errorf("%s: the list is nil", row.sentence)
		}
	}
	msgs, more, err := h.HistoryAfter(ctx, "alice", conv, 0, 0, 3)
	h.must(err)
	equal(t, "forward from the start", seqs(t, msgs), []im.Seq{1, 2, 3})
	if !more {
		t.Error("there is more")
	}
	for _, limit := range []int{-1, 201} {
		_, _, err := h.History(ctx, "alice", conv, 0, 0, limit)
		h.wantCode(err, "limit_invalid")
	}
}

// Walking a conversation of large bodies page by page misses nothing.
func TestHistoryOfLargeBodies(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	const n = 50
	for range n {
		h.say("bob", "dm/alice", strings.Repeat("x", 256<<10))
	}
	conv := im.DM("alice", "bob")
	walk := func(step func(at im.Seq) ([]jsonText, bool, error), at func(page []im.Seq) im.Seq) (all []im.Seq) {
		for next := im.Seq(0); ; {
			msgs, more, err := step(next)
			h.must(err)
			size := 0
			for _, m := range msgs {
				size += len(m)
			}
			if len(msgs) == 0 || size > 2*pageBytes {
				t.Fatalf("a page of %d messages, %d bytes", len(msgs), size)
			}
			page := seqs(t, msgs)
			all = append(all, page...)
			if !more {
				return all
			}
			next = at(page)
		}
	}
	forward := walk(func(at im.Seq) ([]jsonText, bool, error) { return h.HistoryAfter(ctx, "alice", conv, at, 0, 200) },
		func(page []im.Seq) im.Seq { return page[len(page)-1] })
	for i, s := range forward {
		if s != im.Seq(i+1) {
			t.Fatalf("forward: %v", forward)
		}
	}
	backward := walk(func(at im.Seq) ([]jsonText, bool, error) { return h.History(ctx, "alice", conv, at, 0, 200) },
		func(page []im.Seq) im.Seq { return page[0] })
	seen := map[im.Seq]bool{}
	for _, s := range backward {
		seen[s] = true
	}
	if len(forward) != n || len(backward) != n || len(seen) != n {
		t.Errorf("forward %d, backward %d with %d different ones", len(forward), len(backward), len(seen))
	}
}

func TestWhoReadsTheHistory(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob", "carol", "mallory")
	h.friends("alice", "bob", "carol")
	h.say("alice", "dm/bob", "hi")
	g := h.group("alice", "bob")
	h.say("alice", "dm/alice", "milk")
	for _, row := range []struct {
		sentence string
		before   func()
		me       im.UserID
		conv     im.ConvID
		n        int
		want     string
	}{
		{"the two of a DM do", nil, "bob", im.DM("alice", "bob"), 1, ""},
		{"somebody else does not", nil, "mallory", im.DM("alice", "bob"), 0, "conversation_not_found"},
		{"with a friend one has not written to it is empty", nil, "alice", im.DM("alice", "carol"), 0, ""},
		{"with a stranger there is none", nil, "alice", im.DM("alice", "mallory"), 0, "conversation_not_found"},
		{"with somebody unknown there is none", nil, "alice", im.DM("alice", "nobody"), 0, "conversation_not_found"},
		{"one's notes are one's own", nil, "alice", im.DM("alice", "alice"), 1, ""},
		{"and are there before the first", nil, "bob", im.DM("bob", "bob"), 0, ""},
		{"a member reads the group", nil, "bob", im.GroupConv(g), 1, ""},
		{"others do not", nil, "mallory", im.GroupConv(g), 0, "conversation_not_found"},
		{"nor is there an unknown group", nil, "mallory", "g/none", 0, "conversation_not_found"},
		{"nobody reads an account log so", nil, "alice", im.AccountConv("alice"), 0, "conversation_not_found"},
		{"after an unfriend it stays", func() { h.must(h.RemoveFriend(ctx, "alice", "bob")) }, "bob", im.DM("alice", "bob"), 1, ""},
		{"after a block too", func() { h.must(h.Block(ctx, "alice", "bob")) }, "bob", im.DM("alice", "bob"), 1, ""},
		{"who has left does not read the group", func() { h.must(h.RemoveMember(ctx, "bob", g, "bob")) }, "bob", im.GroupConv(g), 0, "conversation_not_found"},
	} {
		if row.before != nil {
			row.before()
		}
		msgs, _, err := h.History(ctx, row.me, row.conv, 0, 0, 50)
		if code(err) != row.want || len(msgs) != row.n {
			t.Errorf("%s: %d messages, %v; want %d, %q", row.sentence, len(msgs), err, row.n, row.want)
		}
		if err != nil && !im.Is(err, im.NotFound) {
			t.Errorf("%s: the kind is %v", row.sentence, im.KindOf(err))
		}
	}
}

func TestARecallEmptiesTheHistory(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	h.say("alice", "dm/bob", "secret")
	h.say("alice", "dm/bob/edit/1", "secret too")
	h.say("alice", "dm/bob/recall/1", "")
	msgs, _, err := h.History(ctx, "bob", im.DM("alice", "bob"), 0, 0, 50)
	h.must(err)
	equal(t, "the entries stay", seqs(t, msgs), []im.Seq{1, 2, 3})
	for _, m := range msgs {
		if strings.Contains(string(m), "secret") {
			t.Errorf("%s", m)
		}
	}
}

func TestMarkRead(t *testing.T) {
	ctx := context.Background()
	dm := im.DM("alice", "bob")
	h := newHouse(t, Options{})
	h.people("alice", "bob", "mallory")
	h.friends("alice", "bob")
	h.says("bob", 5)
	for _, row := range []struct {
		sentence string
		before   func()
		me       im.UserID
		conv     im.ConvID
		seq, now im.Seq
		calls    []string
		want     string
	}{
		{"it moves forward, and is told", nil, "alice", dm, 2, 2, []string{"read d/alice/bob alice/phone 2"}, ""},
		{"the same again moves nothing", nil, "alice", dm, 2, 2, nil, ""},
		{"it never goes back", nil, "alice", dm, 1, 2, nil, ""},
		{"nor to nothing", nil, "alice", dm, 0, 2, nil, ""},
		{"it is cut at the head", nil, "alice", dm, 99, 5, []string{"read d/alice/bob alice/phone 5"}, ""},
		{"each has their own", nil, "bob", dm, 1, 1, []string{"read d/alice/bob bob/phone 1"}, ""},
		{"others have none", nil, "mallory", dm, 1, 0, nil, "not_friends"},
		{"with a stranger there is nothing to read", nil, "alice", im.DM("alice", "mallory"), 1, 0, nil, "not_friends"},
		{"nor in a group of others", nil, "mallory", "g/none", 1, 0, nil, "not_member"},
		{"after a block it moves, and the other hears nothing", func() { h.must(h.Block(ctx, "alice", "bob")) }, "bob", dm, 3, 3, nil, ""},
	} {
		if row.before != nil {
			row.before()
		}
		now, err := h.MarkRead(ctx, row.me, "phone", row.conv, row.seq)
		if now != row.now || code(err) != row.want {
			t.Errorf("%s: %d, %v; want %d, %q", row.sentence, now, err, row.now, row.want)
		}
		equal(t, row.sentence, h.mail.takeCalls(), row.calls)
	}
}

func TestMarkReadInAGroup(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	g := h.group("alice")
	conv := im.GroupConv(g)
	h.say("alice", "g/"+string(g), "before")
	h.must(h.PutMember(ctx, "alice", g, "bob", MemberPatch{})) // 3
	h.must(h.PutMember(ctx, "alice", g, "bob", MemberPatch{MutedUntil: ptr(h.now() + 1)}))
	h.mail.takeCalls()
	for _, row := range []struct {
		sentence string
		seq, now im.Seq
		calls    []string
	}{
		{"what is before one's joining is not read", 2, 0, nil},
		{"who is muted reads all the same", 3, 3, []string{fmt.Sprintf("read %s bob/phone 3", conv)}},
	} {
		now, err := h.MarkRead(ctx, "bob", "phone", conv, row.seq)
		if err != nil || now != row.now {
			t.Errorf("%s: %d, %v; want %d", row.sentence, now, err, row.now)
		}
		equal(t, row.sentence, h.mail.takeCalls(), row.calls)
	}
	h.must(h.RemoveMember(ctx, "alice", g, "bob"))
	_, err := h.MarkRead(ctx, "bob", "phone", conv, 4)
	h.wantCode(err, "not_member")
}

// Devices of one user read at the same time: the watermark is the highest.
func TestMarkReadAtOnce(t *testing.T) {
	ctx := context.Background()
	h := newHouse(t, Options{})
	h.people("alice", "bob")
	h.friends("alice", "bob")
	h.says("bob", 50)
	var wg sync.WaitGroup
	for s := range im.Seq(50) {
		wg.Go(func() {
			now, err := h.MarkRead(ctx, "alice", im.DeviceID(fmt.Sprint("d", s)), im.DM("alice", "bob"), s+1)
			if err != nil || now < s+1 {
				t.Errorf("%d, %v after reading %d", now, err, s+1)
			}
		})
	}
	wg.Wait()
	if got := h.line("alice", "dm/bob"); got.Read != 50 || got.Unread != 0 {
		t.Errorf("%+v", got)
	}
}

// A list of 1,000 conversations with ten unread messages each.
func BenchmarkConversations(b *testing.B) {
	ctx := context.Background()
	h := newHouse(b, Options{})
	const convs, unread = 1000, 10
	done := make(told, convs*unread)
	for i := range convs * unread {
		peer := im.UserID(fmt.Sprint("u", i%convs))
		h.Submit(&store.Append{Entry: im.Entry{Conv: im.DM("alice", peer), From: peer, Body: []byte("hello")}, Done: h.done, Owner: done})
	}
	for range convs * unread {
		h.must((<-done).Err)
	}
	for b.Loop() {
		list, err := h.Conversations(ctx, "alice")
		if err != nil || len(list) != convs || list[0].Unread != unread {
			b.Fatal(len(list), err)
		}
	}
}
