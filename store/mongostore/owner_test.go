package mongostore

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// movable is a clock that tests move.
func movable() (o Options, move func(time.Duration)) {
	var ahead atomic.Int64
	return Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}, func(d time.Duration) { ahead.Add(int64(d)) }
}

// Of two stores the one that took the last lease retires with an older head than
// the other has written.
func TestHeadsAreTrueAfterTwoOwners(t *testing.T) {
	uri := server.Database(t)
	o, move := movable()
	a, b := open(t, uri, o), open(t, uri, o)
	l := newLedger()
	l.write(a, "g/x", "alice", "1", true, 0, 1)
	move(time.Second)
	l.write(b, "g/x", "bob", "2", true, 0, 1)
	l.write(a, "g/x", "alice", "3", true, 0, 1) // under the lease it has
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	move(time.Hour)
	c := open(t, uri, o)
	defer func() { _ = c.Close() }()
	for range 2 { // the first notes it
		l.check(t, c, "g/x", true)
	}
	doc, _, err := one[conversation](ctx, c, "test", c.convs, byID("g/x"))
	if err != nil || !settled(&doc) || doc.Head != 3 {
		t.Errorf("not noted: %+v %v", doc, err)
	}
}

// A store that still has a lease knows an old head; what another wrote after it
// is trimmed. The seqs are not used again.
func TestAStaleOwnerNeverUsesTrimmedSeqsAgain(t *testing.T) {
	uri := server.Database(t)
	o, move := movable()
	a, b := open(t, uri, o), open(t, uri, o)
	defer func() { _, _ = a.Close(), b.Close() }()
	q := im.QueueConv("alice", "phone")
	l := newLedger()
	l.write(a, q, "bob", "1", true, 0, 1)
	l.write(b, q, "bob", "2", true, 0, 1)
	l.write(b, q, "bob", "3", true, 0, 1)
	if err := b.Trim(ctx, q, 3); err != nil {
		t.Fatal(err)
	}
	l.write(a, q, "bob", "4", true, 0, 1)
	if got := l.acked["4"]; got != 4 {
		t.Fatalf("seq %d, want 4", got)
	}
	move(time.Hour)
	if err := b.Trim(ctx, q, 4); err != nil {
		t.Fatal(err)
	}
	if es, err := b.Range(ctx, q, 0, 10, 1<<20); err != nil || len(es) != 0 {
		t.Errorf("%d entries stay after the leases are over (%v)", len(es), err)
	}
	l.write(a, q, "bob", "5", true, 0, 1)
	if got := l.acked["5"]; got != 5 {
		t.Errorf("seq %d, want 5", got)
	}
}

// The first message of a DM: a lease, both lists, the message. The next ones one
// command each.
func TestAFirstMessageIsThreeCommands(t *testing.T) {
	uri := server.Database(t)
	s := open(t, uri, Options{})
	defer func() { _ = s.Close() }()
	var n atomic.Int64
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		if c.Name != "find" || c.Collection != "txs" { // the housekeeping
			n.Add(1)
		}
		return mongotest.Fault{}
	})
	l := newLedger()
	for i, want := range []int64{3, 4, 5} {
		l.write(s, im.DM("alice", "bob"), "alice", string(rune('1'+i)), true, 0, 1)
		if got := n.Load(); got != want {
			t.Errorf("%d commands after message %d, want %d", got, i+1, want)
		}
	}
}

// The clocks of all jump a day ahead and back while two write: no time goes back,
// nothing is doubled, and what came before a jump is known after it.
func TestClocksJump(t *testing.T) {
	uri := server.Database(t)
	o, move := movable()
	a, b := open(t, uri, o), open(t, uri, o)
	defer func() { _, _ = a.Close(), b.Close() }()
	l := newLedger()
	const day = 24 * time.Hour
	for i, jump := range []time.Duration{0, day, -day, -day, day, 0, 5 * day, -5 * day} {
		move(jump)
		for k, s := range []*Store{a, b} {
			id := fmt.Sprint(i, "-", k)
			if !l.write(s, "g/a", "alice", id, true, 0, 1) || !l.write(s, "g/q", "alice", id, false, uint16(2*i+k+1), 1) {
				t.Fatalf("%s is not acknowledged", id)
			}
		}
		for body, seq := range l.acked {
			for conv, packet := range map[im.ConvID]uint16{"g/a": 0, "g/q": packetOfBody(body)} {
				again := &store.Append{Packet: packet, Entry: im.Entry{Conv: conv, From: "alice", Device: "phone", Body: []byte(body)}}
				if packet == 0 {
					again.Entry.ID = body
				}
				appended(b, again)
				if again.Err != nil || !again.Dup || again.Entry.Seq != seq {
					t.Fatalf("%s in %s after jump %d: %v, dup %v, seq %d, want %d", body, conv, i, again.Err, again.Dup, again.Entry.Seq, seq)
				}
			}
		}
	}
	l.check(t, a, "g/a", true)
	l.check(t, b, "g/q", true)
}

func packetOfBody(body string) uint16 {
	var i, k int
	_, _ = fmt.Sscanf(body, "%d-%d", &i, &k)
	return uint16(2*i + k + 1)
}
