package mongostore

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// appended appends all at once and waits for what becomes of them.
func appended(s *Store, as ...*store.Append) {
	var all sync.WaitGroup
	for _, a := range as {
		all.Add(1)
		a.Done = func(*store.Append) { all.Done() }
	}
	s.Append(as...)
	all.Wait()
}

// published is a QoS 2 publish under packet id 5.
func published(conv im.ConvID, id string) *store.Append {
	return &store.Append{Packet: 5, Entry: im.Entry{Conv: conv, From: "alice", Device: "phone", ID: id, Body: []byte("of " + id)}}
}

// A process dies between a receipt and its message. What comes under the packet
// id after that is written once, however often it comes, and under its own name.
func TestAReceiptWithoutItsMessage(t *testing.T) {
	none := func() *store.Append {
		return &store.Append{NoEntry: true, Packet: 5, Entry: im.Entry{From: "alice", Device: "phone"}}
	}
	for name, tt := range map[string]struct {
		left, next func() *store.Append
	}{
		"the same again":                     {func() *store.Append { return published("g/a", "") }, func() *store.Append { return published("g/a", "") }},
		"the same again, by its id":          {func() *store.Append { return published("g/a", "x") }, func() *store.Append { return published("g/a", "x") }},
		"to another conversation":            {func() *store.Append { return published("g/b", "") }, func() *store.Append { return published("g/a", "") }},
		"to another conversation, by its id": {func() *store.Append { return published("g/b", "x") }, func() *store.Append { return published("g/a", "x") }},
		"another id":                         {func() *store.Append { return published("g/a", "x") }, func() *store.Append { return published("g/a", "y") }},
		"an id after none":                   {func() *store.Append { return published("g/a", "") }, func() *store.Append { return published("g/a", "y") }},
		"none after an id":                   {func() *store.Append { return published("g/a", "x") }, func() *store.Append { return published("g/a", "") }},
		"without an entry":                   {func() *store.Append { return published("g/b", "") }, none},
	} {
		t.Run(name, func(t *testing.T) {
			uri := server.Database(t)
			dies := open(t, uri, Options{})
			inject(t, uri, func(c mongotest.Command) mongotest.Fault {
				if c.Name == "insert" && c.Collection == "messages" {
					go dies.shut()
					return mongotest.Fault{Do: mongotest.Drop}
				}
				return mongotest.Fault{}
			})
			lost := tt.left()
			appended(dies, lost)
			if lost.Err == nil {
				t.Fatal("it was acknowledged")
			}
			server.Proxy.Inject(nil)
			dies.abandon()

			s := open(t, uri, Options{})
			defer func() { _ = s.Close() }()
			fresh := 0
			var seq im.Seq
			for round := range 3 {
				as := []*store.Append{tt.next(), tt.next()} // a client that comes back while the first is on its way
				appended(s, as...)
				for _, a := range as {
					if a.Err != nil {
						t.Fatal(a.Err)
					}
					if !a.Dup {
						fresh++
						seq = a.Entry.Seq
					} else if a.Entry.Seq != seq {
						t.Errorf("round %d: a duplicate of %d, want %d", round, a.Entry.Seq, seq)
					}
				}
			}
			want := 1
			if tt.next().NoEntry {
				want = 0
			}
			es, err := s.Range(ctx, "g/a", 0, 10, 1<<20)
			if err != nil || fresh != 1 || len(es) != want {
				t.Fatalf("%d were fresh, %d entries (%v), want 1 and %d", fresh, len(es), err, want)
			}
			r, err := s.Receipt(ctx, im.DeviceKey{User: "alice", Device: "phone"}, 5)
			if err != nil || r.Seq != seq || (want == 1) != (r.Conv == "g/a") {
				t.Errorf("the receipt: %+v %v", r, err)
			}
			// What was never written is not taken for a duplicate of what was.
			if left := tt.left(); left.Entry.ID != "" && left.Entry.ID != tt.next().Entry.ID {
				left.Packet = 0
				appended(s, left)
				if left.Err != nil || left.Dup {
					t.Errorf("%s, sent again: dup %v, %v", left.Entry.ID, left.Dup, left.Err)
				}
			}
		})
	}
}

// Two processes meet over a receipt that a third has left.
func TestTwoTakeAReceiptOver(t *testing.T) {
	uri := server.Database(t)
	a, b := open(t, uri, Options{}), open(t, uri, Options{})
	defer func() { _, _ = a.Close(), b.Close() }()
	left := receipt{ID: receiptID(im.DeviceKey{User: "alice", Device: "phone"}, 5), User: "alice", Conv: "g/gone", Key: receiptKey("never")}
	if _, err := a.receipts.InsertOne(ctx, left); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, s := range []*Store{a, b} {
		all.Go(func() {
			for range 3 {
				p := published("g/a", "")
				appended(s, p)
				if p.Err != nil {
					t.Error(p.Err)
				}
			}
		})
	}
	all.Wait()
	if es, err := a.Range(ctx, "g/a", 0, 10, 1<<20); err != nil || len(es) != 1 {
		t.Errorf("%d entries (%v)", len(es), err)
	}
}

// The answer to a receipt is lost: what wrote it is not taken for a duplicate of
// itself, also where no message tells.
func TestAReceiptWhoseAnswerIsLost(t *testing.T) {
	for name, a := range map[string]*store.Append{
		"with an entry":    published("g/a", ""),
		"with an id":       published("g/a", "x"),
		"without an entry": {NoEntry: true, Packet: 5, Entry: im.Entry{From: "alice", Device: "phone"}},
	} {
		t.Run(name, func(t *testing.T) {
			uri := server.Database(t)
			s := open(t, uri, Options{})
			defer func() { _ = s.Close() }()
			var n atomic.Int32
			inject(t, uri, func(c mongotest.Command) mongotest.Fault {
				if c.Name == "insert" && c.Collection == "receipts" && n.Add(1) == 1 {
					return mongotest.Fault{Do: mongotest.LoseReply}
				}
				return mongotest.Fault{}
			})
			appended(s, a)
			if a.Err != nil || a.Dup || n.Load() < 2 {
				t.Errorf("%v, dup %v, %d inserts", a.Err, a.Dup, n.Load())
			}
		})
	}
}
