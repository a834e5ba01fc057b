// Package storetest is the suite that every engine passes: the promises of
// package store, one test each. It names no engine.
package storetest

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Factory makes the stores of one engine.
type Factory struct {
	// Open returns an empty store, which the suite closes.
	Open func(t testing.TB) store.Store
	// Reopen ends s without Close, as a crash does, and opens it again. Nil: the
	// tests of crashes are skipped.
	Reopen func(t testing.TB, s store.Store) store.Store
}

// Run holds the engine against every promise.
func Run(t *testing.T, f Factory) {
	for _, tt := range []struct {
		promise string
		test    func(t *testing.T, s store.Store)
	}{
		{"seqs are dense from 1 and Done comes in order", testDense},
		{"appends of many goroutines are dense and keep each caller's order", testConcurrent},
		{"all fields of an entry come back", testFields},
		{"an id is appended once per sender and conversation", testDedupe},
		{"the same id at once makes one entry", testDedupeRace},
		{"a QoS 2 receipt stands with its entry until released", testReceipts},
		{"a QoS 2 packet id stands for one publish, whatever comes under it", testReceiptsReused},
		{"ranges stop at limit and bytes", testRange},
		{"pages backward", testBefore},
		{"heads are in the order asked", testHeads},
		{"trimmed entries are gone and their seqs are not used again", testTrim},
		{"a recall empties a message and its edits, those that come later too", testRecall},
		{"of edits that race with a recall none stays readable", testRecallRace},
		{"timestamps never go back", testTimestamps},
		{"a transaction is whole or nothing, by versions", testTx},
		{"of two transactions on one version one conflicts", testTxRace},
		{"AtHead is the head before the transaction's entries", testAtHead},
		{"conversations are listed for who takes part", testConversations},
		{"relations", testRelations},
		{"watermarks never go back", testReads},
		{"users are found by prefix, in pages", testUsers},
		{"a token is used once", testTokens},
		{"a secret is made once", testSecrets},
		{"devices, cursors and their removal", testDevices},
		{"retained messages", testRetained},
		{"absent things are NotFound", testAbsent},
		{"notes are kept by key", testNotes},
		{"of two who swap a note one does", testSwapNote},
		{"tasks are changed by version", testPutTasks},
		{"due tasks are taken, the earliest first, and held until their time", testTakeTasks},
		{"of many takers one gets a task", testTakeTasksRace},
		{"conversations are walked in order", testEachConversation},
		{"a partial store says so", testPartial},
		{"who has the seat writes", testSeat},
		{"after Close everything is Gone", testClosed},
		{"large bodies", testLarge},
	} {
		t.Run(tt.promise, func(t *testing.T) {
			t.Parallel()
			s := f.Open(t)
			defer func() {
				if err := s.Close(); err != nil && !im.Is(err, im.Gone) {
					t.Error(err)
				}
			}()
			tt.test(t, s)
		})
	}
	t.Run("everything moves to another store and back", func(t *testing.T) { testMove(t, f) })
	if f.Reopen == nil {
		t.Log("SKIPPED: this engine cannot be crashed here")
		return
	}
	t.Run("what was acknowledged survives a crash", func(t *testing.T) { testCrash(t, f) })
}

var ctx = context.Background()

// appendAll appends the entries and waits for all of them.
func appendAll(t testing.TB, s store.Log, as ...*store.Append) {
	t.Helper()
	var wg sync.WaitGroup
	for _, a := range as {
		wg.Add(1)
		a.Done = func(*store.Append) { wg.Done() }
	}
	s.Append(as...)
	wg.Wait()
	for _, a := range as {
		if a.Err != nil {
			t.Fatalf("append to %s: %v", a.Entry.Conv, a.Err)
		}
	}
}

func entry(conv im.ConvID, from im.UserID, body string) *store.Append {
	return &store.Append{Entry: im.Entry{Conv: conv, From: from, Device: "phone", Body: []byte(body)}}
}

func all(t testing.TB, s store.Log, conv im.ConvID) []*im.Entry {
	t.Helper()
	es, err := s.Range(ctx, conv, 0, 1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, k im.Kind, what string) {
	t.Helper()
	if !im.Is(err, k) {
		t.Errorf("%s: %v, want %s", what, err, k)
	}
}

var dm = im.DM("alice", "bob")

func testDense(t *testing.T, s store.Store) {
	const n = 500
	var got []im.Seq
	var wg sync.WaitGroup
	wg.Add(n)
	for i := range n {
		a := entry(dm, "alice", fmt.Sprint(i))
		a.Done = func(a *store.Append) { // one goroutine calls all of them
			got = append(got, a.Entry.Seq)
			wg.Done()
		}
		s.Append(a)
	}
	wg.Wait()
	for i, seq := range got {
		if seq != im.Seq(i+1) {
			t.Fatalf("Done %d has seq %d", i, seq)
		}
	}
	for i, e := range all(t, s, dm) {
		if e.Seq != im.Seq(i+1) || string(e.Body) != fmt.Sprint(i) {
			t.Fatalf("entry %d: seq %d body %s", i, e.Seq, e.Body)
		}
	}
}

func testConcurrent(t *testing.T, s store.Store) {
	const writers, each = 32, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			conv := im.GroupConv(im.GroupID(fmt.Sprint("g", w%3)))
			last := im.Seq(0)
			for i := range each {
				a := entry(conv, im.UserID(fmt.Sprint("u", w)), fmt.Sprint(i))
				appendAll(t, s, a)
				if a.Entry.Seq <= last {
					t.Errorf("seq %d after %d", a.Entry.Seq, last)
				}
				last = a.Entry.Seq
			}
		})
	}
	wg.Wait()
	total := 0
	for g := range 3 {
		next := map[im.UserID]int{}
		es := all(t, s, im.GroupConv(im.GroupID(fmt.Sprint("g", g))))
		for i, e := range es {
			if e.Seq != im.Seq(i+1) {
				t.Fatalf("seq %d at place %d", e.Seq, i+1)
			}
			if string(e.Body) != fmt.Sprint(next[e.From]) {
				t.Fatalf("%s: %s came where %d was due", e.From, e.Body, next[e.From])
			}
			next[e.From]++
		}
		total += len(es)
	}
	if total != writers*each {
		t.Errorf("%d entries, want %d", total, writers*each)
	}
}

func testFields(t *testing.T, s store.Store) {
	in := im.Entry{Conv: im.GroupConv("g"), From: "alice", Device: "Phone.1", Op: im.OpEvent, Ref: 7, ID: "id-\u00fc", Type: "text/plain; charset=utf-8",
		Event: "member-added", Topic: "a/b", Props: []byte{1, 0, 2}, Flags: im.FlagUTF8 | im.FlagRetained, Body: []byte("\x00body\xff")}
	a := &store.Append{Entry: in}
	appendAll(t, s, a)
	got, err := s.Entry(ctx, in.Conv, 1)
	must(t, err)
	in.Seq, in.TS = 1, a.Entry.TS
	if !reflect.DeepEqual(*got, in) {
		t.Errorf("got  %+v\nwant %+v", *got, in)
	}
	if in.TS == 0 {
		t.Error("no timestamp")
	}
	empty := &store.Append{Entry: im.Entry{Conv: in.Conv}}
	appendAll(t, s, empty)
	got, err = s.Entry(ctx, in.Conv, 2)
	must(t, err)
	if len(got.Body) != 0 || got.From != "" || got.ID != "" {
		t.Errorf("%+v", got)
	}
}

func testDedupe(t *testing.T, s store.Store) {
	mk := func(conv im.ConvID, from im.UserID, id string) *store.Append {
		a := entry(conv, from, "x")
		a.Entry.ID = id
		return a
	}
	first, again := mk(dm, "alice", "1"), mk(dm, "alice", "1")
	appendAll(t, s, first)
	appendAll(t, s, again)
	if first.Dup || !again.Dup || again.Entry.Seq != first.Entry.Seq || again.Entry.TS != first.Entry.TS {
		t.Errorf("%+v, then %+v", first, again)
	}
	for why, a := range map[string]*store.Append{"another sender": mk(dm, "bob", "1"), "another id": mk(dm, "alice", "2"), "another conversation": mk(im.DM("alice", "carol"), "alice", "1"), "no id": mk(dm, "alice", "")} {
		appendAll(t, s, a)
		if a.Dup {
			t.Errorf("%s is a duplicate", why)
		}
	}
	if n := len(all(t, s, dm)); n != 4 {
		t.Errorf("%d entries, want 4", n)
	}
}

func testDedupeRace(t *testing.T, s store.Store) {
	const n = 40
	as := make([]*store.Append, n)
	var wg sync.WaitGroup
	for i := range as {
		as[i] = entry(dm, "alice", "x")
		as[i].Entry.ID = "same"
		wg.Go(func() { appendAll(t, s, as[i]) })
	}
	wg.Wait()
	fresh := 0
	for _, a := range as {
		if !a.Dup {
			fresh++
		}
		if a.Entry.Seq != 1 {
			t.Errorf("seq %d", a.Entry.Seq)
		}
	}
	if fresh != 1 || len(all(t, s, dm)) != 1 {
		t.Errorf("%d fresh, %d entries", fresh, len(all(t, s, dm)))
	}
}

// testReceiptsReused: until it is released a packet id means the publish that
// came first, in another conversation, without an entry, and twice at once as well.
func testReceiptsReused(t *testing.T, s store.Store) {
	other := im.GroupConv("elsewhere")
	mk := func(conv im.ConvID, packet uint16) *store.Append {
		a := entry(conv, "alice", "x")
		a.Packet = packet
		return a
	}
	none := func(packet uint16) *store.Append {
		return &store.Append{NoEntry: true, Packet: packet, Entry: im.Entry{From: "alice", Device: "phone"}}
	}
	appendAll(t, s, mk(dm, 1))
	appendAll(t, s, none(2))
	for _, packet := range []uint16{1, 2} {
		seq := im.Seq(2 - packet) // there is none without an entry
		for round := range 2 {
			as := []*store.Append{mk(other, packet), mk(dm, packet), mk(dm, packet), none(packet)}
			appendAll(t, s, as...)
			for i, a := range as {
				if !a.Dup || a.Entry.Seq != seq {
					t.Errorf("packet %d, round %d, publish %d: dup %v, seq %d; want %d", packet, round, i, a.Dup, a.Entry.Seq, seq)
				}
			}
		}
	}
	if n, m := len(all(t, s, dm)), len(all(t, s, other)); n != 1 || m != 0 {
		t.Errorf("%d and %d entries", n, m)
	}
}

func testReceipts(t *testing.T, s store.Store) {
	k := im.DeviceKey{User: "alice", Device: "phone"}
	mk := func() *store.Append {
		a := entry(dm, "alice", "x")
		a.Packet = 5
		return a
	}
	first, again := mk(), mk()
	appendAll(t, s, first)
	appendAll(t, s, again)
	if !again.Dup || again.Entry.Seq != 1 {
		t.Errorf("%+v", again)
	}
	r, err := s.Receipt(ctx, k, 5)
	must(t, err)
	if r.Conv != dm || r.Seq != 1 || r.TS != first.Entry.TS {
		t.Errorf("%+v", r)
	}
	must(t, s.Release(ctx, k, 5))
	_, err = s.Receipt(ctx, k, 5)
	wantKind(t, err, im.NotFound, "a released receipt")
	next := mk()
	appendAll(t, s, next)
	if next.Dup || next.Entry.Seq != 2 {
		t.Errorf("%+v", next)
	}
	// Without an entry, and all at once.
	side := &store.Append{NoEntry: true, Packet: 6, Entry: im.Entry{From: "alice", Device: "phone"}}
	appendAll(t, s, side)
	_, err = s.Receipt(ctx, k, 6)
	must(t, err)
	must(t, s.Release(ctx, k, 0))
	for _, p := range []uint16{5, 6} {
		_, err = s.Receipt(ctx, k, p)
		wantKind(t, err, im.NotFound, "after Release of all")
	}
	if n := len(all(t, s, dm)); n != 2 {
		t.Errorf("%d entries", n)
	}
}

func testRange(t *testing.T, s store.Store) {
	for i := range 20 {
		appendAll(t, s, entry(dm, "alice", strings.Repeat("x", 100*(i+1))))
	}
	es, err := s.Range(ctx, dm, 5, 3, 1<<30)
	must(t, err)
	if len(es) != 3 || es[0].Seq != 6 || es[2].Seq != 8 {
		t.Errorf("limit: %d entries", len(es))
	}
	es, err = s.Range(ctx, dm, 0, 100, 1)
	must(t, err)
	if len(es) != 1 {
		t.Errorf("bytes: %d entries, want at least and at most 1", len(es))
	}
	es, err = s.Range(ctx, dm, 20, 100, 1<<30)
	must(t, err)
	if len(es) != 0 {
		t.Errorf("after the head: %d entries", len(es))
	}
	// Neighbours are not touched.
	appendAll(t, s, entry(im.DM("alice", "bo"), "alice", "n"), entry(im.DM("alice", "bobb"), "alice", "n"))
	if n := len(all(t, s, dm)); n != 20 {
		t.Errorf("%d entries", n)
	}
}

func testBefore(t *testing.T, s store.Store) {
	for i := range 10 {
		appendAll(t, s, entry(dm, "alice", fmt.Sprint(i+1)))
	}
	for _, tt := range []struct {
		before      im.Seq
		limit       int
		first, last im.Seq
	}{{0, 3, 8, 10}, {8, 3, 5, 7}, {3, 5, 1, 2}, {99, 2, 9, 10}} {
		es, err := s.Before(ctx, dm, tt.before, tt.limit)
		must(t, err)
		if len(es) == 0 || es[0].Seq != tt.first || es[len(es)-1].Seq != tt.last {
			t.Errorf("before %d: %d entries", tt.before, len(es))
		}
	}
	es, err := s.Before(ctx, dm, 1, 5)
	must(t, err)
	if len(es) != 0 {
		t.Errorf("before the first: %d", len(es))
	}
}

func testHeads(t *testing.T, s store.Store) {
	appendAll(t, s, entry(dm, "alice", "1"), entry(dm, "alice", "2"), entry(im.GroupConv("g"), "alice", "1"))
	hs, err := s.Heads(ctx, []im.ConvID{im.GroupConv("g"), im.DM("x", "y"), dm})
	must(t, err)
	if hs[0].Seq != 1 || hs[1].Seq != 0 || hs[2].Seq != 2 || hs[2].TS == 0 {
		t.Errorf("%+v", hs)
	}
}

func testTrim(t *testing.T, s store.Store) {
	q := im.QueueConv("alice", "phone")
	for i := range 10 {
		appendAll(t, s, entry(q, "", fmt.Sprint(i+1)))
	}
	must(t, s.Trim(ctx, q, 4))
	if es := all(t, s, q); len(es) != 6 || es[0].Seq != 5 {
		t.Errorf("%d entries", len(es))
	}
	must(t, s.Trim(ctx, q, 99)) // cut at the head
	if es := all(t, s, q); len(es) != 0 {
		t.Errorf("%d entries", len(es))
	}
	a := entry(q, "", "next")
	appendAll(t, s, a)
	if a.Entry.Seq != 11 {
		t.Errorf("seq %d is used again", a.Entry.Seq)
	}
}

// op is an operation on an entry of dm.
func op(o im.Op, ref im.Seq, body string) *store.Append {
	a := entry(dm, "alice", body)
	a.Entry.Op, a.Entry.Ref, a.Entry.Type = o, ref, "text/plain"
	if o == im.OpRecall {
		a.Entry.Body, a.Entry.Type = nil, ""
	}
	return a
}

// wantEmpty wants of all entries of dm exactly these to be recalled.
func wantEmpty(t testing.TB, s store.Log, what string, seqs ...im.Seq) {
	t.Helper()
	for _, e := range all(t, s, dm) {
		want := slices.Contains(seqs, e.Seq)
		if want != (e.Flags&im.FlagRecalled != 0) || want && (len(e.Body) > 0 || e.Type != "") || !want && e.Op != im.OpRecall && len(e.Body) == 0 {
			t.Errorf("%s: entry %d should be empty: %v; it is %+v", what, e.Seq, want, e)
		}
	}
}

func testRecall(t *testing.T, s store.Store) {
	for i := range 4 {
		appendAll(t, s, op(im.OpMessage, 0, fmt.Sprint("secret", i)))
	}
	appendAll(t, s, op(im.OpEdit, 1, "edit of 1"))             // 5
	appendAll(t, s, op(im.OpEdit, 2, "edit of 2"))             // 6
	appendAll(t, s, op(im.OpReact, 1, "+1"))                   // 7
	appendAll(t, s, op(im.OpEdit, 1, "another"))               // 8
	appendAll(t, s, op(im.OpEdit, 99, "of what is not there")) // 9
	appendAll(t, s, op(im.OpRecall, 1, ""))                    // 10
	wantEmpty(t, s, "a recall empties the message and its edits, and nothing else", 1, 5, 8)

	late := op(im.OpEdit, 1, "too late") // 11
	appendAll(t, s, late)
	if late.Entry.Flags&im.FlagRecalled == 0 || len(late.Entry.Body) > 0 || late.Entry.Type != "" {
		t.Errorf("an edit that comes after the recall is offered with %+v", late.Entry)
	}
	wantEmpty(t, s, "an edit that comes after the recall is empty", 1, 5, 8, 11)

	appendAll(t, s, op(im.OpEdit, 2, "with its recall"), op(im.OpRecall, 2, "")) // 12, 13
	wantEmpty(t, s, "and one that is appended together with it", 1, 5, 8, 11, 2, 6, 12)
	late = op(im.OpEdit, 3, "right after its recall")
	appendAll(t, s, op(im.OpRecall, 3, ""), late) // 14, 15
	if late.Entry.Flags&im.FlagRecalled == 0 || len(late.Entry.Body) > 0 {
		t.Errorf("an edit right after the recall is offered with %+v", late.Entry)
	}
	wantEmpty(t, s, "before it or after", 1, 5, 8, 11, 2, 6, 12, 3, 15)
	appendAll(t, s, op(im.OpRecall, 1, ""), op(im.OpRecall, 98, "")) // 16, 17
	wantEmpty(t, s, "a second recall, and one of what is not there, change nothing", 1, 5, 8, 11, 2, 6, 12, 3, 15)
	both := op(im.OpMessage, 0, "with its recall")
	appendAll(t, s, both, op(im.OpRecall, 18, "")) // 18, 19
	wantEmpty(t, s, "a message that is appended together with its recall", 1, 5, 8, 11, 2, 6, 12, 3, 15, 18)
	appendAll(t, s, op(im.OpEdit, 21, "of what comes later")) // 20
	appendAll(t, s, op(im.OpMessage, 0, "later"))             // 21
	appendAll(t, s, op(im.OpRecall, 21, ""))                  // 22
	wantEmpty(t, s, "what stands before the message is no edit of it", 1, 5, 8, 11, 2, 6, 12, 3, 15, 18, 21)
}

// testRecallRace: whatever the order in which edits and the recall arrive, no
// edit stays readable.
func testRecallRace(t *testing.T, s store.Store) {
	appendAll(t, s, op(im.OpMessage, 0, "secret"), op(im.OpMessage, 0, "other"))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 20 {
				appendAll(t, s, op(im.OpEdit, 1, fmt.Sprint("secret", i, n)))
			}
		})
	}
	wg.Go(func() { appendAll(t, s, op(im.OpRecall, 1, "")) })
	wg.Wait()
	empty := []im.Seq{1}
	for _, e := range all(t, s, dm) {
		if e.Op == im.OpEdit {
			empty = append(empty, e.Seq)
		}
	}
	wantEmpty(t, s, "edits that race with their recall", empty...)
}

func testTimestamps(t *testing.T, s store.Store) {
	last := int64(0)
	for range 200 {
		a := entry(dm, "alice", "x")
		appendAll(t, s, a)
		if a.Entry.TS < last {
			t.Fatalf("%d after %d", a.Entry.TS, last)
		}
		last = a.Entry.TS
	}
	if d := time.Since(time.UnixMilli(last)); d < -time.Minute || d > time.Minute {
		t.Errorf("the clock is %s off", d)
	}
}

func testTx(t *testing.T, s store.Store) {
	must(t, s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "alice", Name: "A"}}}))
	u, err := s.User(ctx, "alice")
	must(t, err)
	if u.Ver == 0 {
		t.Fatal("a stored row has version 0")
	}
	err = s.Commit(ctx, &store.Tx{
		Users:     []store.User{{ID: "alice", Name: "other"}}, // version 0: must not exist
		Relations: []store.Relation{{User: "alice", Peer: "bob", State: store.Friends}},
		Entries:   []*store.Append{entry(dm, "alice", "never")},
	})
	wantKind(t, err, im.Conflict, "a taken id")
	r, err := s.Relation(ctx, "alice", "bob")
	must(t, err)
	if r.Ver != 0 || len(all(t, s, dm)) != 0 {
		t.Error("a failed transaction was written in part")
	}
	u.Name = "B"
	var done atomic.Int32
	e := entry(dm, "alice", "hello")
	e.Done = func(a *store.Append) {
		if a.Err == nil && a.Entry.Seq == 1 {
			done.Add(1)
		}
	}
	must(t, s.Commit(ctx, &store.Tx{Users: []store.User{u}, Entries: []*store.Append{e}}))
	u2, err := s.User(ctx, "alice")
	must(t, err)
	if u2.Name != "B" || u2.Ver == u.Ver {
		t.Errorf("%+v", u2)
	}
	if len(all(t, s, dm)) != 1 {
		t.Error("the entry is missing")
	}
	appendAll(t, s, entry(dm, "alice", "later")) // its Done comes after that of the transaction
	if done.Load() != 1 {
		t.Error("Done of the transaction's entry was not called")
	}
}

func testTxRace(t *testing.T, s store.Store) {
	must(t, s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "alice"}}}))
	const n = 16
	for round := range 5 {
		u, err := s.User(ctx, "alice")
		must(t, err)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				mine := u
				mine.Name = fmt.Sprint(round, i)
				switch err := s.Commit(ctx, &store.Tx{Users: []store.User{mine}}); {
				case err == nil:
					won.Add(1)
				case !im.Is(err, im.Conflict):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d of %d won", won.Load(), n)
		}
	}
}

func testAtHead(t *testing.T, s store.Store) {
	g := im.GroupConv("g")
	appendAll(t, s, entry(g, "alice", "1"), entry(g, "alice", "2"))
	must(t, s.Commit(ctx, &store.Tx{
		Groups:  []store.Group{{ID: "g", Owner: "alice"}},
		Members: []store.Member{{Group: "g", User: "bob", Role: "member", Start: store.AtHead}},
		Entries: []*store.Append{{Entry: im.Entry{Conv: g, Op: im.OpEvent, Event: "member-added"}}},
	}))
	m, err := s.Member(ctx, "g", "bob")
	must(t, err)
	if m.Start != 2 {
		t.Errorf("starts at %d", m.Start)
	}
}

func testConversations(t *testing.T, s store.Store) {
	appendAll(t, s, entry(dm, "alice", "x"), entry(im.DM("bob", "bob"), "bob", "note"), entry(im.QueueConv("bob", "x"), "", "q"), entry(im.DM("alice", "carol"), "alice", "x"))
	must(t, s.Commit(ctx, &store.Tx{Groups: []store.Group{{ID: "g"}}, Members: []store.Member{{Group: "g", User: "bob", Role: "member", Start: 3}, {Group: "g", User: "al", Role: "owner"}}}))
	got, err := s.Conversations(ctx, "bob")
	must(t, err)
	want := []store.Participation{{Conv: dm}, {Conv: im.DM("bob", "bob")}, {Conv: "g/g", Start: 3}, {Conv: "u/bob"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	m, err := s.Member(ctx, "g", "bob")
	must(t, err)
	if in, err := s.MemberIn(ctx, "bob", []im.GroupID{"other", "g", "gone"}); err != nil || !reflect.DeepEqual(in, []store.Member{m}) {
		t.Errorf("a member of %+v (%v)", in, err)
	}
	m.Role = ""
	must(t, s.Commit(ctx, &store.Tx{Members: []store.Member{m}}))
	got, err = s.Conversations(ctx, "bob")
	must(t, err)
	if len(got) != 3 {
		t.Errorf("after leaving: %+v", got)
	}
	if in, err := s.MemberIn(ctx, "bob", []im.GroupID{"g"}); err != nil || len(in) > 0 {
		t.Errorf("after leaving a member of %+v (%v)", in, err)
	}
	if in, err := s.MemberIn(ctx, "bob", nil); err != nil || len(in) > 0 {
		t.Errorf("of no group a member of %+v (%v)", in, err)
	}
	ms, err := s.Members(ctx, "g")
	must(t, err)
	if len(ms) != 1 || ms[0].User != "al" {
		t.Errorf("%+v", ms)
	}
}

func testRelations(t *testing.T, s store.Store) {
	rows := []store.Relation{{User: "a", Peer: "b", State: store.Friends, Remark: "bee", Since: 5}, {User: "b", Peer: "a", State: store.Friends}, {User: "a", Peer: "c", Blocked: true}}
	must(t, s.Commit(ctx, &store.Tx{Relations: rows}))
	got, err := s.Relations(ctx, "a")
	must(t, err)
	if len(got) != 2 || got[0].Peer != "b" || got[0].Remark != "bee" || got[0].Since != 5 || !got[1].Blocked {
		t.Errorf("%+v", got)
	}
	gone := got[0]
	gone.State, gone.Remark = store.Stranger, ""
	must(t, s.Commit(ctx, &store.Tx{Relations: []store.Relation{gone}}))
	r, err := s.Relation(ctx, "a", "b")
	must(t, err)
	if r.Ver != 0 || r.User != "a" || r.Peer != "b" {
		t.Errorf("%+v", r)
	}
}

func testReads(t *testing.T, s store.Store) {
	appendAll(t, s, entry(dm, "alice", "1"), entry(dm, "alice", "2"))
	for _, tt := range []struct{ put, want im.Seq }{{1, 1}, {2, 2}, {1, 2}} {
		got, err := s.PutRead(ctx, dm, "bob", tt.put)
		must(t, err)
		if got != tt.want {
			t.Errorf("PutRead(%d) = %d", tt.put, got)
		}
	}
	rs, err := s.Reads(ctx, dm, 0)
	must(t, err)
	if len(rs) != 1 || rs[0].User != "bob" || rs[0].Seq != 2 {
		t.Errorf("%+v", rs)
	}
	rs, err = s.Reads(ctx, dm, time.Now().Add(time.Hour).UnixMilli())
	must(t, err)
	if len(rs) != 0 {
		t.Errorf("since later: %+v", rs)
	}
	seqs, err := s.ReadsOf(ctx, "bob", []im.ConvID{im.DM("bob", "x"), dm})
	must(t, err)
	if seqs[0] != 0 || seqs[1] != 2 {
		t.Errorf("%v", seqs)
	}
	hs, err := s.Heads(ctx, []im.ConvID{dm})
	must(t, err)
	if hs[0].ReadTS == 0 {
		t.Error("the head does not tell that a watermark moved")
	}
}

func testUsers(t *testing.T, s store.Store) {
	for i := range 25 {
		must(t, s.Commit(ctx, &store.Tx{Users: []store.User{{ID: im.UserID(fmt.Sprintf("user%02d", i)), Name: fmt.Sprintf("Name %02d", 99-i)}}}))
	}
	must(t, s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "zed", Name: "Users' friend"}}}))
	var ids []im.UserID
	after := im.UserID("")
	for {
		us, err := s.FindUsers(ctx, "user", after, 10)
		must(t, err)
		if len(us) == 0 {
			break
		}
		for _, u := range us {
			ids = append(ids, u.ID)
		}
		after = us[len(us)-1].ID
	}
	if len(ids) != 26 || ids[0] != "user00" || ids[24] != "user24" || ids[25] != "zed" {
		t.Errorf("%v", ids)
	}
}

func testTokens(t *testing.T, s store.Store) {
	for i, fam := range []string{"f1", "f1", "f2"} {
		must(t, s.PutToken(ctx, store.Token{Hash: fmt.Sprint("h", i), User: "alice", Device: "d", Family: fam, Issued: 1, Expires: 2}))
	}
	var first atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			tok, err := s.UseToken(ctx, "h0", 77)
			if err != nil {
				t.Error(err)
			}
			if tok.Used == 0 {
				first.Add(1)
			} else if tok.Used != 77 {
				t.Errorf("used at %d", tok.Used)
			}
		})
	}
	wg.Wait()
	if first.Load() != 1 {
		t.Errorf("%d were first", first.Load())
	}
	must(t, s.DropTokens(ctx, "alice", func(t store.Token) bool { return t.Family == "f2" }))
	_, err := s.Token(ctx, "h1")
	wantKind(t, err, im.NotFound, "a dropped token")
	tok, err := s.Token(ctx, "h2")
	must(t, err)
	if tok.Device != "d" || tok.Family != "f2" || tok.Expires != 2 {
		t.Errorf("%+v", tok)
	}
	_, err = s.UseToken(ctx, "nope", 1)
	wantKind(t, err, im.NotFound, "an unknown token")
}

func testSecrets(t *testing.T, s store.Store) {
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			v, err := s.Secret(ctx, "k", func() ([]byte, error) {
				made.Add(1)
				return []byte("secret"), nil
			})
			if err != nil || string(v) != "secret" {
				t.Errorf("%s %v", v, err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
	must(t, s.PutSecret(ctx, "k", []byte("new")))
	v, err := s.Secret(ctx, "k", func() ([]byte, error) { return nil, fmt.Errorf("not needed") })
	if err != nil || string(v) != "new" {
		t.Errorf("%s %v", v, err)
	}
}

func testDevices(t *testing.T, s store.Store) {
	k := im.DeviceKey{User: "alice", Device: "Phone"}
	d := store.Device{Key: k, Created: 1, LastSeen: 2, Version: 5, Session: store.Session{Present: true, Expiry: 9, Ended: 3,
		Subs: []store.Subscription{{Filter: "a/#", ID: 4, QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}}}}
	must(t, s.PutDevice(ctx, d, true))
	must(t, s.PutDevice(ctx, store.Device{Key: im.DeviceKey{User: "alice", Device: "Phone2"}}, false))
	must(t, s.PutDevice(ctx, store.Device{Key: im.DeviceKey{User: "alicex", Device: "Phone"}}, false))
	got, err := s.Device(ctx, k)
	must(t, err)
	if !reflect.DeepEqual(got, d) {
		t.Errorf("%+v", got)
	}
	ds, err := s.DevicesOf(ctx, "alice")
	must(t, err)
	if len(ds) != 2 {
		t.Errorf("%d devices", len(ds))
	}
	if n, err := s.CountDevices(ctx, "alice"); n != 2 || err != nil {
		t.Errorf("CountDevices: %d %v", n, err)
	}
	n := 0
	must(t, s.EachDevice(ctx, func(store.Device) bool { n++; return n < 2 }))
	if n != 2 {
		t.Errorf("EachDevice went on to %d", n)
	}
	c := store.Cursor{Conv: dm, Acked: 5, Sent: 9, Ahead: []im.Seq{7, 9}, Known: true}
	must(t, s.PutCursors(ctx, k, []store.Cursor{{Conv: "u/alice", Acked: 1, Sent: 1, Known: true}, c}))
	one, err := s.Cursor(ctx, k, dm)
	must(t, err)
	if !reflect.DeepEqual(one, c) {
		t.Errorf("%+v", one)
	}
	if none, err := s.Cursor(ctx, k, "g/x"); err != nil || none.Known || none.Conv != "g/x" {
		t.Errorf("%+v %v", none, err)
	}
	cs, err := s.CursorsOf(ctx, k, []im.ConvID{"u/alice", "g/x", dm})
	must(t, err)
	if want := []store.Cursor{{Conv: "u/alice", Acked: 1, Sent: 1, Known: true}, {Conv: "g/x"}, c}; !reflect.DeepEqual(cs, want) {
		t.Errorf("%+v, want %+v", cs, want)
	}
	if cs, err := s.CursorsOf(ctx, k, nil); err != nil || len(cs) > 0 {
		t.Errorf("of no conversation %+v %v", cs, err)
	}
	cs, err = s.Cursors(ctx, k)
	must(t, err)
	if len(cs) != 2 || cs[0].Conv != dm || cs[1].Conv != "u/alice" {
		t.Errorf("%+v", cs)
	}
	must(t, s.ResetCursors(ctx, k, []store.Cursor{{Conv: "g/y", Acked: 1, Known: true}}))
	cs, err = s.Cursors(ctx, k)
	must(t, err)
	if len(cs) != 1 || cs[0].Conv != "g/y" {
		t.Errorf("%+v", cs)
	}
	q := im.QueueConv(k.User, k.Device)
	a := entry(dm, "alice", "x")
	a.Packet, a.Entry.Device = 3, "Phone"
	appendAll(t, s, entry(q, "", "queued"), a)
	must(t, s.DropDevice(ctx, k))
	_, err = s.Device(ctx, k)
	wantKind(t, err, im.NotFound, "a dropped device")
	_, err = s.Receipt(ctx, k, 3)
	wantKind(t, err, im.NotFound, "its receipt")
	if cs, _ := s.Cursors(ctx, k); len(cs) != 0 {
		t.Errorf("cursors stay: %+v", cs)
	}
	if len(all(t, s, q)) != 0 {
		t.Error("the queue stays")
	}
	if ds, _ := s.DevicesOf(ctx, "alice"); len(ds) != 1 {
		t.Errorf("%d devices left", len(ds))
	}
}

func testRetained(t *testing.T, s store.Store) {
	put := func(topic, body string) {
		appendAll(t, s, &store.Append{NoEntry: true, Retain: &store.RetainedMessage{Topic: topic, Body: []byte(body), QoS: 1, Props: []byte{1}, Type: "t", TS: 5, Expires: 6}})
	}
	put("a/b", "1")
	put("a/c", "2")
	put("a/b", "3")
	put("a/c", "")
	n := 0
	must(t, s.EachRetained(ctx, func(m store.RetainedMessage) bool {
		n++
		if m.Topic != "a/b" || string(m.Body) != "3" || m.QoS != 1 || m.TS != 5 || m.Expires != 6 || !bytes.Equal(m.Props, []byte{1}) {
			t.Errorf("%+v", m)
		}
		return true
	}))
	if n != 1 {
		t.Errorf("%d retained messages", n)
	}
}

func testAbsent(t *testing.T, s store.Store) {
	k := im.DeviceKey{User: "no", Device: "no"}
	for what, err := range map[string]error{
		"user":    second(s.User(ctx, "no")),
		"group":   second(s.Group(ctx, "no")),
		"member":  second(s.Member(ctx, "no", "no")),
		"device":  second(s.Device(ctx, k)),
		"token":   second(s.Token(ctx, "no")),
		"receipt": second(s.Receipt(ctx, k, 1)),
		"entry":   second(s.Entry(ctx, dm, 1)),
	} {
		wantKind(t, err, im.NotFound, what)
	}
	must(t, s.DropDevice(ctx, k))
	must(t, s.Trim(ctx, dm, 5))
	must(t, s.Ping(ctx))
}

func second[T any](_ T, err error) error { return err }

func testClosed(t *testing.T, s store.Store) {
	appendAll(t, s, entry(dm, "alice", "x"))
	must(t, s.Close())
	for what, err := range map[string]error{
		"User":   second(s.User(ctx, "no")),
		"Range":  second(s.Range(ctx, dm, 0, 1, 1)),
		"Commit": s.Commit(ctx, &store.Tx{}),
		"Ping":   s.Ping(ctx),
	} {
		wantKind(t, err, im.Gone, what)
	}
	done := make(chan error, 1)
	a := entry(dm, "alice", "late")
	a.Done = func(a *store.Append) { done <- a.Err }
	s.Append(a)
	wantKind(t, <-done, im.Gone, "Append")
}

func testLarge(t *testing.T, s store.Store) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	a := &store.Append{Entry: im.Entry{Conv: dm, From: "alice", Body: body}}
	appendAll(t, s, a, entry(dm, "alice", "small"))
	e, err := s.Entry(ctx, dm, 1)
	must(t, err)
	if !bytes.Equal(e.Body, body) {
		t.Error("the body differs")
	}
}

// testCrash writes from many goroutines, crashes in the middle and wants every
// acknowledged entry back, dense, with its id remembered.
func testCrash(t *testing.T, f Factory) {
	s := f.Open(t)
	defer func() { _ = s.Close() }()
	for round := range 3 {
		old := s
		var mu sync.Mutex
		acked := map[string]im.Seq{}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for w := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					a := entry(im.GroupConv(im.GroupID(fmt.Sprint(w%2))), im.UserID(fmt.Sprint("u", w)), fmt.Sprint(round, "-", w, "-", i))
					a.Entry.ID = string(a.Entry.Body)
					done := make(chan struct{})
					a.Done = func(a *store.Append) {
						if a.Err == nil {
							mu.Lock()
							acked[string(a.Entry.Body)] = a.Entry.Seq
							mu.Unlock()
						}
						close(done)
					}
					old.Append(a)
					<-done
					if a.Err != nil {
						return
					}
				}
			})
		}
		for enough := false; !enough; {
			mu.Lock()
			enough = len(acked) > 300
			mu.Unlock()
			time.Sleep(time.Millisecond) // a poll of the condition
		}
		s = f.Reopen(t, old)
		close(stop)
		_ = old.Close()
		wg.Wait()
		found := map[string]im.Seq{}
		for g := range 2 {
			for i, e := range all(t, s, im.GroupConv(im.GroupID(fmt.Sprint(g)))) {
				if e.Seq != im.Seq(i+1) {
					t.Fatalf("a hole at %d", i+1)
				}
				if _, twice := found[string(e.Body)]; twice {
					t.Errorf("%s is there twice", e.Body)
				}
				found[string(e.Body)] = e.Seq
			}
		}
		n := 0
		for body, seq := range acked {
			// What the crashed store acknowledged after the crash was taken does not count.
			if got, ok := found[body]; ok && got != seq {
				t.Errorf("%s was acknowledged at %d and stands at %d", body, seq, got)
			} else if ok {
				n++
			}
		}
		if n < 300 {
			t.Errorf("of %d acknowledged entries %d survived", len(acked), n)
		}
	}
}

func testEachConversation(t *testing.T, s store.Store) {
	appendAll(t, s, entry("g/b", "x", "1"), entry("g/a", "x", "1"), entry(dm, "alice", "1"), entry("u/x", "", "1"))
	walk := func(after im.ConvID, stop int) (got []im.ConvID) {
		must(t, s.EachConversation(ctx, after, func(c im.ConvID) bool {
			got = append(got, c)
			return len(got) != stop
		}))
		return got
	}
	if got := walk("", 0); !reflect.DeepEqual(got, []im.ConvID{dm, "g/a", "g/b", "u/x"}) {
		t.Errorf("%v", got)
	}
	if got := walk("g/a", 1); !reflect.DeepEqual(got, []im.ConvID{"g/b"}) {
		t.Errorf("after g/a, one: %v", got)
	}
}

func dump(t *testing.T, s store.Store) (rs []store.Record) {
	must(t, s.Dump(ctx, func(r store.Record) error {
		rs = append(rs, r)
		return nil
	}))
	return rs
}

// testMove fills a store with one of everything, and wants the same of a second
// store, of what that does with it, and after loading twice.
func testMove(t *testing.T, f Factory) {
	from, to := f.Open(t), f.Open(t)
	defer func() { _, _ = from.Close(), to.Close() }()
	k := im.DeviceKey{User: "alice", Device: "phone"}
	must(t, from.Commit(ctx, &store.Tx{
		Users:     []store.User{{ID: "alice", Name: "Al", Password: "$argon2id$"}, {ID: "bob"}},
		Relations: []store.Relation{{User: "alice", Peer: "bob", State: store.Friends, Remark: "b"}, {User: "bob", Peer: "alice", State: store.Friends}},
		Groups:    []store.Group{{ID: "team", Owner: "alice", Name: "Team"}},
		Members:   []store.Member{{Group: "team", User: "alice", Role: "owner"}, {Group: "team", User: "bob", Role: "member", Start: 1}},
	}))
	for i := range 30 {
		a := entry(dm, "alice", fmt.Sprint(i))
		a.Entry.ID = fmt.Sprint("id", i)
		appendAll(t, from, a, entry("g/team", "bob", fmt.Sprint(i)))
	}
	q := im.QueueConv("alice", "phone")
	two := entry(dm, "alice", "exactly once")
	two.Packet = 9
	appendAll(t, from, two, entry(q, "", "1"), entry(q, "", "2"), entry(q, "", "3"),
		&store.Append{NoEntry: true, Packet: 10, Entry: im.Entry{From: "alice", Device: "phone"}},
		&store.Append{NoEntry: true, Retain: &store.RetainedMessage{Topic: "t", Body: []byte("r"), QoS: 1}})
	must(t, from.Trim(ctx, q, 3))
	must(t, from.Trim(ctx, "g/team", 10))
	_, err := from.PutRead(ctx, dm, "bob", 5)
	must(t, err)
	must(t, from.PutToken(ctx, store.Token{Hash: "h", User: "alice", Family: "f", Issued: 1, Expires: 2}))
	_, err = from.UseToken(ctx, "h", 7)
	must(t, err)
	must(t, from.PutSecret(ctx, "key", []byte{1, 2, 0}))
	must(t, from.PutDevice(ctx, store.Device{Key: k, Version: 5, Session: store.Session{Present: true, Subs: []store.Subscription{{Filter: "a/#", QoS: 1}}}}, true))
	must(t, from.PutCursors(ctx, k, []store.Cursor{{Conv: dm, Acked: 3, Sent: 7, Ahead: []im.Seq{5, 7}, Known: true}}))

	must(t, from.PutNotes(ctx, []store.Note{{Key: "room/a", Value: []byte{0, 1}}}, true))
	putTasks(t, from, store.Task{Key: "room/t", Queue: "q", At: 7, Owner: "me", Value: []byte{0, 2}}, store.Task{Key: "room/u", Queue: "q", At: store.Never, Value: []byte{}})
	if empty, err := to.Empty(ctx); !empty || err != nil {
		t.Fatalf("a new store is not empty: %v", err)
	}
	rs := dump(t, from)
	for range 2 {
		for i := 0; i < len(rs); i += 25 { // parts cut through conversations
			must(t, to.Load(ctx, rs[i:min(i+25, len(rs))]))
		}
	}
	if empty, err := to.Empty(ctx); empty || err != nil {
		t.Errorf("the loaded store is empty: %v", err)
	}
	got := dump(t, to)
	if len(got) != len(rs) {
		t.Fatalf("%d records, want %d", len(got), len(rs))
	}
	for i := range rs {
		if !reflect.DeepEqual(got[i], rs[i]) {
			t.Errorf("record %d, %s: %+v, want %+v", i, rs[i].Kind(), got[i], rs[i])
		}
	}
	// What was told to senders holds there too.
	again := entry(dm, "alice", "3")
	again.Entry.ID = "id3"
	appendAll(t, to, again)
	if !again.Dup || again.Entry.Seq != 4 {
		t.Errorf("an id is not remembered: %+v", again)
	}
	same := entry(dm, "alice", "exactly once")
	same.Packet = 9
	next := entry(q, "", "4")
	appendAll(t, to, same, next)
	if !same.Dup || same.Entry.Seq != two.Entry.Seq {
		t.Errorf("a receipt is not remembered: %+v", same)
	}
	if next.Entry.Seq != 4 {
		t.Errorf("a trimmed conversation goes on at %d", next.Entry.Seq)
	}
	u, err := to.User(ctx, "alice")
	must(t, err)
	must(t, to.Commit(ctx, &store.Tx{Users: []store.User{u}}))
	if ts, err := to.TakeTasks(ctx, "q", "you", 7, 9, 10); err != nil || len(ts) != 1 || ts[0].Key != "room/t" {
		t.Errorf("a task is not taken: %+v %v", ts, err)
	}
}

func testNotes(t *testing.T, s store.Store) {
	must(t, s.PutNotes(ctx, []store.Note{{Key: "room/b", Value: []byte("1")}, {Key: "room/a", Value: []byte("2")}, {Key: "rooms/c", Value: []byte("3")}, {Key: "room/b", Value: []byte("4")}}, true))
	must(t, s.PutNotes(ctx, []store.Note{{Key: "room/d", Value: []byte{}}, {Key: "room/a", Value: nil}}, false))
	v, err := s.Note(ctx, "room/b")
	if must(t, err); string(v) != "4" {
		t.Errorf("%q", v)
	}
	_, err = s.Note(ctx, "room/a")
	wantKind(t, err, im.NotFound, "a removed note")
	var got []string
	must(t, s.EachNote(ctx, "room/", func(n store.Note) bool {
		got = append(got, n.Key+"="+string(n.Value))
		return true
	}))
	if !reflect.DeepEqual(got, []string{"room/b=4", "room/d="}) {
		t.Errorf("%q", got)
	}
	must(t, s.PutNotes(ctx, nil, true))
}

func testPartial(t *testing.T, s store.Store) {
	note := func() string {
		t.Helper()
		why, err := s.Partial(ctx)
		must(t, err)
		return why
	}
	if why := note(); why != "" {
		t.Errorf("a new store is partial: %q", why)
	}
	must(t, s.SetPartial(ctx, "an import"))
	must(t, s.SetPartial(ctx, "another"))
	if why := note(); why != "another" {
		t.Errorf("%q", why)
	}
	if empty, err := s.Empty(ctx); !empty || err != nil {
		t.Errorf("the note makes the store look full: %v", err)
	}
	if rs := dump(t, s); len(rs) != 0 {
		t.Errorf("the note is dumped: %+v", rs)
	}
	must(t, s.SetPartial(ctx, ""))
	must(t, s.SetPartial(ctx, ""))
	if why := note(); why != "" {
		t.Errorf("%q", why)
	}
}

func testSeat(t *testing.T, s store.Store) {
	must(t, s.TakeSeat(ctx, "a test", nil))
	appendAll(t, s, entry(dm, "alice", "1"))
	must(t, s.Ping(ctx))
	must(t, s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "alice"}}}))
}
