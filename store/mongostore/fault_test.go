package mongostore

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

var seed = flag.Uint64("seed", 0, "seed of the faults; 0: a new one, which is printed")

// inject makes fn decide about the commands of the database of uri; other tests
// share the proxy and are left alone.
func inject(t testing.TB, uri string, fn func(mongotest.Command) mongotest.Fault) {
	t.Helper()
	db := uri[strings.LastIndexByte(uri, '/')+1:]
	db, _, _ = strings.Cut(db, "?")
	server.Proxy.Inject(func(c mongotest.Command) mongotest.Fault {
		if c.DB != db {
			return mongotest.Fault{}
		}
		return fn(c)
	})
	t.Cleanup(func() { server.Proxy.Inject(nil) })
}

// ledger is what a writer was told.
type ledger struct {
	mu    sync.Mutex
	acked map[string]im.Seq // body → seq
	sent  map[string]bool
}

func newLedger() *ledger { return &ledger{acked: map[string]im.Seq{}, sent: map[string]bool{}} }

// write appends one entry until it is acknowledged, as a client does that sends
// again: with an id it may be there once only.
func (l *ledger) write(s *Store, conv im.ConvID, from im.UserID, body string, id bool, packet uint16, tries int) bool {
	l.mu.Lock()
	l.sent[body] = true
	l.mu.Unlock()
	for range tries {
		a := &store.Append{Entry: im.Entry{Conv: conv, From: from, Device: "phone", Body: []byte(body)}, Packet: packet}
		if id {
			a.Entry.ID = body
		}
		done := make(chan struct{})
		a.Done = func(*store.Append) { close(done) }
		s.Append(a)
		<-done
		if a.Err == nil {
			l.mu.Lock()
			l.acked[body] = a.Entry.Seq
			l.mu.Unlock()
			return true
		}
		if im.Is(a.Err, im.Gone) {
			return false
		}
	}
	return false
}

// check holds the log against what writers were told: dense, every acknowledged
// entry at its seq, and once if once.
func (l *ledger) check(t *testing.T, s *Store, conv im.ConvID, once bool) {
	t.Helper()
	es, err := s.Range(ctx, conv, 0, 1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]im.Seq{}
	last := int64(0)
	for i, e := range es {
		if e.Seq != im.Seq(i+1) {
			t.Fatalf("%s: seq %d at place %d", conv, e.Seq, i+1)
		}
		if e.TS < last {
			t.Errorf("%s: time goes back at %d", conv, e.Seq)
		}
		last = e.TS
		if !l.sent[string(e.Body)] {
			t.Errorf("%s: %q was never sent", conv, e.Body)
		}
		if first, twice := at[string(e.Body)]; twice {
			if once {
				t.Errorf("%s: %q is there at %d and %d", conv, e.Body, first, e.Seq)
			}
			if l.acked[string(e.Body)] == e.Seq {
				at[string(e.Body)] = e.Seq
			}
			continue
		}
		at[string(e.Body)] = e.Seq
	}
	for body, seq := range l.acked {
		if got, ok := at[body]; !ok {
			t.Errorf("%s: %q was acknowledged and is lost", conv, body)
		} else if got != seq {
			t.Errorf("%s: %q was acknowledged at %d and stands at %d", conv, body, seq, got)
		}
	}
	hs, err := s.Heads(ctx, []im.ConvID{conv})
	if err != nil || hs[0].Seq != im.Seq(len(es)) {
		t.Errorf("%s: head %d, entries %d (%v)", conv, hs[0].Seq, len(es), err)
	}
}

// randomFaults makes about one in n commands fail, in every way there is.
func randomFaults(rng *rand.Rand, n int) func(mongotest.Command) mongotest.Fault {
	var mu sync.Mutex
	return func(c mongotest.Command) mongotest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(n) != 0 {
			return mongotest.Fault{}
		}
		switch rng.IntN(8) {
		case 0:
			return mongotest.Fault{Do: mongotest.LoseReply}
		case 1:
			return mongotest.Fault{Do: mongotest.CutBatch}
		case 2:
			return mongotest.Fault{Do: mongotest.Drop}
		case 3:
			return mongotest.Fault{Do: mongotest.Refuse, Code: []int{11600, 91, 189, 10107}[rng.IntN(4)]}
		case 5:
			return mongotest.Fault{Do: mongotest.Unsure, Code: []int{64, 91, 189, 100}[rng.IntN(4)]}
		case 6:
			return mongotest.Fault{Do: mongotest.Refuse, Code: []int{112, 43, 202, 262, 11602}[rng.IntN(5)]}
		case 4:
			return mongotest.Fault{Do: mongotest.Late, Delay: time.Duration(rng.IntN(60)) * time.Millisecond}
		}
		return mongotest.Fault{Do: mongotest.Slow, Delay: time.Duration(rng.IntN(30)) * time.Millisecond}
	}
}

// TestFaults writes from two stores to the same conversations while commands are
// lost, cut, refused, late and slow.
func TestFaults(t *testing.T) {
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", n)
	underFaults(t, 16, 12, randomFaults(rand.New(rand.NewPCG(n, 1)), 8))
}

// TestEachFault does the same with one way to fail at a time.
func TestEachFault(t *testing.T) {
	for name, f := range map[string]mongotest.Fault{
		"the reply is lost":               {Do: mongotest.LoseReply},
		"cut in the middle of a batch":    {Do: mongotest.CutBatch},
		"the connection is reset before":  {Do: mongotest.Drop},
		"stepped down":                    {Do: mongotest.Refuse, Code: 189},
		"a write conflict":                {Do: mongotest.RefuseWrite, Code: 112},
		"late, and the connection is off": {Do: mongotest.Late, Delay: 20 * time.Millisecond},
		"slow":                            {Do: mongotest.Slow, Delay: 20 * time.Millisecond},
		"no majority in time":             {Do: mongotest.Unsure, Code: 64},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			underFaults(t, 6, 3, func(c mongotest.Command) mongotest.Fault {
				if writes := c.Name == "insert" || c.Name == "update" || c.Name == "delete"; f.Do == mongotest.RefuseWrite && !writes {
					return mongotest.Fault{} // only they have such an answer
				}
				if n.Add(1)%5 != 0 {
					return mongotest.Fault{}
				}
				return f
			})
		})
	}
}

// underFaults writes from two stores at once, by ids and by QoS 2 packet ids,
// while fn makes commands fail, and holds what is there against what was said.
func underFaults(t *testing.T, people, each int, fn func(mongotest.Command) mongotest.Fault) {
	t.Helper()
	uri := server.Database(t)
	a, b := open(t, uri, Options{}), open(t, uri, Options{})
	defer func() { _, _ = a.Close(), b.Close() }()
	inject(t, uri, fn)
	convs := []im.ConvID{"g/ids", "g/packets"}
	ledgers := []*ledger{newLedger(), newLedger()}
	var wg sync.WaitGroup
	for w := range people {
		wg.Go(func() {
			s := []*Store{a, b}[w%2]
			from := im.UserID(fmt.Sprint("u", w))
			for i := range each {
				c := w / 2 % 2
				body := fmt.Sprint(from, "-", i)
				packet := uint16(0)
				if c == 1 {
					packet = uint16(i + 1)
				}
				if !ledgers[c].write(s, convs[c], from, body, c == 0, packet, 50) {
					t.Errorf("%s was never acknowledged", body)
				}
				if c == 1 {
					if err := s.Release(ctx, im.DeviceKey{User: from, Device: "phone"}, packet); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	server.Proxy.Inject(nil)
	for i, c := range convs {
		ledgers[i].check(t, a, c, true)
	}
	t.Logf("%d faults", server.Proxy.Faults.Load())
}

// TestTwoWriters has hundreds of writers in two stores append to one
// conversation at once.
func TestTwoWriters(t *testing.T) {
	uri := server.Database(t)
	var conflicts atomic.Int64
	o := Options{Events: Events{Conflict: func(im.ConvID) { conflicts.Add(1) }}}
	a, b := open(t, uri, o), open(t, uri, o)
	defer func() { _, _ = a.Close(), b.Close() }()
	l := newLedger()
	var wg sync.WaitGroup
	for w := range 300 {
		wg.Go(func() {
			for i := range 3 {
				if !l.write([]*Store{a, b}[w%2], "g/hot", im.UserID(fmt.Sprint("u", w)), fmt.Sprint(w, "-", i), w%3 == 0, 0, 5) {
					t.Errorf("%d-%d was not acknowledged", w, i)
				}
			}
		})
	}
	wg.Wait()
	l.check(t, a, "g/hot", true)
	t.Logf("%d conflicts", conflicts.Load())
}

// TestOvertakenWithALot has one store be overtaken by another, and then append
// more than one insert takes: nothing of it may stand behind the seq that was taken.
func TestOvertakenWithALot(t *testing.T) {
	uri := server.Database(t)
	a, b := open(t, uri, Options{}), open(t, uri, Options{})
	defer func() { _, _ = a.Close(), b.Close() }()
	l := newLedger()
	l.write(a, "g/hot", "alice", "first", true, 0, 1)
	l.write(b, "g/hot", "bob", "second", true, 0, 1)
	var wg sync.WaitGroup
	as := make([]*store.Append, 250)
	for i := range as {
		body := fmt.Sprint(i)
		l.sent[body] = true
		wg.Add(1)
		as[i] = &store.Append{Entry: im.Entry{Conv: "g/hot", From: "alice", ID: body, Body: []byte(body)}, Done: func(a *store.Append) {
			defer wg.Done()
			if a.Err != nil {
				t.Error(a.Err)
			}
			l.acked[body] = a.Entry.Seq // one batch after the other: nobody else is here
		}}
	}
	a.Append(as...)
	wg.Wait()
	l.check(t, b, "g/hot", true)
}

// TestDiesAnywhere ends a store after each of its commands in turn: every append
// and every transaction is there whole or not at all, and what was acknowledged is.
func TestDiesAnywhere(t *testing.T) {
	tx := func(n int) *store.Tx {
		return &store.Tx{
			Groups:  []store.Group{{ID: "team", Owner: "alice"}},
			Members: []store.Member{{Group: "team", User: "alice", Role: "owner", Start: store.AtHead}, {Group: "team", User: "bob", Role: "member", Start: store.AtHead}},
			Entries: []*store.Append{
				{Entry: im.Entry{Conv: "g/team", Op: im.OpEvent, Event: "group-created", Body: []byte(fmt.Sprint("tx", n))}},
				{Entry: im.Entry{Conv: "u/bob", Op: im.OpEvent, Event: "group-joined", Body: []byte(fmt.Sprint("tx", n))}},
			},
		}
	}
	for _, how := range []mongotest.Action{mongotest.Drop, mongotest.LoseReply} {
		finished := 0
		for at := int64(1); ; at++ {
			uri := server.Database(t)
			s := open(t, uri, Options{})
			l := newLedger()
			l.write(s, "g/team", "alice", "before", true, 0, 1)
			var n atomic.Int64
			inject(t, uri, func(mongotest.Command) mongotest.Fault {
				switch k := n.Add(1); {
				case k == at:
					go s.shut() // it is gone: nothing is tried again
					return mongotest.Fault{Do: how}
				case k > at:
					return mongotest.Fault{Do: mongotest.Drop}
				}
				return mongotest.Fault{}
			})
			err := s.Commit(ctx, tx(1))
			l.write(s, "g/team", "alice", "after", true, 7, 1)
			through := n.Load() < at
			server.Proxy.Inject(nil)
			s.abandon()

			later := time.Now().Add(time.Hour) // what it left is old enough to be finished or given up
			r := open(t, uri, Options{Now: func() time.Time { return later }})
			g, errG := r.Group(ctx, "team")
			ms, errM := r.Members(ctx, "team")
			es, errE := r.Range(ctx, "u/bob", 0, 10, 1<<20)
			if e := errors.Join(errM, errE); e != nil {
				t.Fatal(e)
			}
			whole := errG == nil
			if err != nil && whole && r.Doubts() > 0 {
				finished++
			}
			if whole && (g.Owner != "alice" || len(ms) != 2 || len(es) != 1) || !whole && (len(ms) != 0 || len(es) != 0) {
				t.Fatalf("%d, command %d: group %v, %d members, %d entries", how, at, errG, len(ms), len(es))
			}
			if err == nil && !whole {
				t.Fatalf("%d, command %d: acknowledged and lost", how, at)
			}
			for _, m := range ms {
				if m.Start != 1 {
					t.Fatalf("%d, command %d: %s starts at %d, want 1", how, at, m.User, m.Start)
				}
			}
			if err := r.Commit(ctx, &store.Tx{Users: []store.User{{ID: "carol"}}, Members: []store.Member{{Group: "team", User: "carol", Role: "member"}}}); err != nil {
				t.Fatalf("%d, command %d: the next transaction: %v", how, at, err)
			}
			l.sent["tx1"] = true
			l.write(r, "g/team", "alice", "after", true, 7, 3)
			l.check(t, r, "g/team", true)
			// Housekeeping finishes what it left, beside everything above.
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // a poll of the condition
				left, err := read[txDoc](ctx, r, "test", r.txs, byAge(later))
				if err == nil && len(left) == 0 {
					break
				}
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("%d, command %d: %d transactions stay (%v)", how, at, len(left), err)
				}
			}
			_ = r.Close()
			if through {
				t.Logf("%d commands", at-1)
				break
			}
		}
		if finished == 0 {
			t.Errorf("%d: no transaction that nobody was told of was finished with a doubt", how)
		}
	}
}

// TestAway shows what happens while MongoDB cannot be reached, and after.
func comesBack(t *testing.T, s *Store) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for s.Ping(ctx) != nil {
		if time.Now().After(deadline) {
			t.Fatal("it does not come back")
		}
		time.Sleep(5 * time.Millisecond) // a poll of the condition
	}
}

// TestAwayWithoutTraffic: nobody writes, and Ping knows nevertheless.
func TestAwayWithoutTraffic(t *testing.T) {
	s := open(t, server.Database(t), Options{Timeout: time.Second})
	defer func() { _ = s.Close() }()
	if err := s.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	server.Proxy.Down()
	defer server.Proxy.Up()
	if err := s.Ping(ctx); !im.Is(err, im.Unavailable) {
		t.Errorf("Ping: %v", err)
	}
	server.Proxy.Up()
	comesBack(t, s)
}

func TestAway(t *testing.T) {
	uri := server.Database(t)
	var ahead atomic.Int64
	s := open(t, uri, Options{Timeout: time.Second, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	defer func() { _ = s.Close() }()
	l := newLedger()
	l.write(s, "g/a", "alice", "1", true, 0, 1)
	if n := s.Doubts(); n != 0 {
		t.Errorf("%d doubts before anything failed", n)
	}
	server.Proxy.Down()
	defer server.Proxy.Up()
	if l.write(s, "g/a", "alice", "2", true, 0, 1) {
		t.Fatal("acknowledged without a database")
	}
	if err := s.Ping(ctx); !im.Is(err, im.Unavailable) {
		t.Errorf("Ping: %v", err)
	}
	if err := s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "x"}}}); !im.Is(err, im.Unavailable) {
		t.Errorf("Commit: %v", err)
	}
	if _, err := s.User(ctx, "x"); !im.Is(err, im.Unavailable) {
		t.Errorf("User: %v", err)
	}
	server.Proxy.Up()
	comesBack(t, s)
	for i := range 3 {
		if !l.write(s, "g/a", "alice", fmt.Sprint(i+2), true, 0, 3) {
			t.Errorf("%d is not acknowledged after the outage", i+2)
		}
	}
	l.check(t, s, "g/a", true)
	// What was sent may still arrive for a while, and then no more.
	n := s.Doubts()
	if n == 0 || s.Doubts() != n {
		t.Errorf("%d doubts after an outage, then %d", n, s.Doubts())
	}
	ahead.Store(int64(time.Hour))
	if later := s.Doubts(); later == n || s.Doubts() != later {
		t.Errorf("%d doubts as long as something may arrive, %d after that", n, later)
	}
}
