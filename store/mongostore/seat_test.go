package mongostore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// short is a seat that is over soon.
var short = Options{Seat: 2 * time.Second}

// say appends one entry and returns what its sender is told.
func say(s *Store, body string) error {
	done := make(chan error, 1)
	s.Append(&store.Append{Entry: im.Entry{Conv: "g/team", From: "alice", ID: body, Body: []byte(body)}, Done: func(a *store.Append) { done <- a.Err }})
	return <-done
}

// heard waits until s acknowledges: its seat may have lapsed on a slow machine.
func heard(t *testing.T, s *Store, body string) {
	t.Helper()
	until(t, "it acknowledges", func() bool { return say(s, body) == nil })
}

// until waits for cond.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// silence loses every renewal of the seat that s has, until on is false.
func silence(t *testing.T, uri string, s *Store) (on *atomic.Bool) {
	on = &atomic.Bool{}
	on.Store(true)
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		if on.Load() && c.Name == "update" && len(c.Docs["updates"]) == 1 {
			if u := c.Docs["updates"][0].String(); strings.Contains(u, s.seat.mine.Holder) && strings.Contains(u, "$set") { // not who takes it away
				return mongotest.Fault{Do: mongotest.Drop}
			}
		}
		return mongotest.Fault{}
	})
	return on
}

func TestASecondIsRefusedWhileTheFirstLives(t *testing.T) {
	uri := server.Database(t)
	a, b := open(t, uri, Options{}), open(t, uri, short)
	defer func() { _, _ = a.Close(), b.Close() }()
	if err := a.TakeSeat(ctx, "parley serve", nil); err != nil {
		t.Fatal(err)
	}
	host, _ := os.Hostname()
	err := b.TakeSeat(ctx, "parley import", nil)
	for _, want := range []string{"parley serve", host, fmt.Sprint("pid ", os.Getpid()), "since 20", "stop that one", "given up after 10s"} {
		if im.CodeOf(err) != "seat_taken" || !strings.Contains(im.ReasonOf(err), want) {
			t.Errorf("%q is missing: %v", want, err)
		}
	}
	if err := say(b, "1"); err != nil { // whoever asks for no seat is not refused
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.TakeSeat(ctx, "parley import", nil); err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
}

func TestOfManyOneGetsTheSeat(t *testing.T) {
	uri := server.Database(t)
	open(t, uri, Options{}) // makes the schema
	var won, refused atomic.Int32
	var all sync.WaitGroup
	for range 6 {
		s := open(t, uri, Options{})
		t.Cleanup(func() { _ = s.Close() })
		all.Go(func() {
			switch err := s.TakeSeat(ctx, "parley serve", nil); {
			case err == nil:
				won.Add(1)
			case im.CodeOf(err) == "seat_taken":
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 || refused.Load() != 5 {
		t.Errorf("%d have it, %d were refused", won.Load(), refused.Load())
	}
}

func TestTheSeatOfTheDeadIsTaken(t *testing.T) {
	for name, tt := range map[string]struct {
		forge func(*seatDoc)
		waits bool
	}{
		"elsewhere: once it has been silent": {func(d *seatDoc) { d.Machine = "another" }, true},
		"here, another process has its number": {func(d *seatDoc) {
			d.Began += "1"
		}, false},
		"here, and it is gone": {func(d *seatDoc) {
			c := exec.Command("true")
			if err := c.Run(); err != nil {
				t.Fatal(err)
			}
			d.PID = c.Process.Pid
		}, false},
		"here, and nothing tells when it began": {func(d *seatDoc) { d.Began = "" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			if machine() == "" && !tt.waits {
				t.Skip("this system does not tell")
			}
			uri := server.Database(t)
			o := short
			if !tt.waits {
				o.Seat = time.Hour
			}
			a := open(t, uri, o)
			if err := a.TakeSeat(ctx, "parley serve", nil); err != nil {
				t.Fatal(err)
			}
			a.abandon()
			b := open(t, uri, short)
			defer func() { _ = b.Close() }()
			doc := a.seat.mine
			tt.forge(&doc)
			if _, err := b.meta.ReplaceOne(ctx, byID("seat"), doc); err != nil {
				t.Fatal(err)
			}
			if tt.waits {
				limit, cancel := context.WithTimeout(ctx, 100*time.Millisecond) // less than the silence
				defer cancel()
				if err := b.TakeSeat(limit, "parley serve", nil); err == nil || im.CodeOf(err) == "seat_taken" {
					t.Errorf("before it was silent for long: %v", err)
				}
			}
			if err := b.TakeSeat(ctx, "parley serve", nil); err != nil {
				t.Fatal(err)
			}
			heard(t, b, "1")
		})
	}
}

func TestAHolderThatCannotRenewDoesNotAcknowledge(t *testing.T) {
	uri := server.Database(t)
	s := open(t, uri, short)
	defer func() { _ = s.Close() }()
	if err := s.TakeSeat(ctx, "parley serve", func(err error) { t.Error("lost, and nobody took it:", err) }); err != nil {
		t.Fatal(err)
	}
	heard(t, s, "1")
	on := silence(t, uri, s)
	until(t, "the seat lapses", func() bool { return im.CodeOf(s.Ping(ctx)) == "seat_lapsed" })
	if err := say(s, "2"); im.CodeOf(err) != "seat_lapsed" {
		t.Errorf("an append: %v", err)
	}
	if err := s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "alice"}}}); im.CodeOf(err) != "seat_lapsed" {
		t.Errorf("a transaction: %v", err)
	}
	if err := s.PutNotes(ctx, []store.Note{{Key: "a/b", Value: []byte("1")}}, true); im.CodeOf(err) != "seat_lapsed" {
		t.Errorf("a note: %v", err)
	}
	if es, err := s.Range(ctx, "g/team", 0, 10, 1<<20); err != nil || len(es) != 1 {
		t.Errorf("reading goes on: %d %v", len(es), err)
	}
	on.Store(false)
	until(t, "it comes back", func() bool { return s.Ping(ctx) == nil })
	heard(t, s, "2")
}

// The entry is in, but its answer comes after the seat was taken.
func TestWhatIsAnsweredTooLateIsNotAcknowledged(t *testing.T) {
	uri := server.Database(t)
	s := open(t, uri, Options{Seat: 4 * time.Second, Timeout: time.Minute})
	defer func() { _ = s.Close() }()
	if err := s.TakeSeat(ctx, "parley serve", nil); err != nil {
		t.Fatal(err)
	}
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		switch {
		case c.Name == "update" && c.Collection == "meta":
			return mongotest.Fault{Do: mongotest.Drop}
		case c.Name == "insert" && c.Collection == "messages":
			return mongotest.Fault{Do: mongotest.Slow, Delay: 5 * time.Second}
		}
		return mongotest.Fault{}
	})
	if err := say(s, "1"); im.CodeOf(err) != "seat_lapsed" {
		t.Errorf("%v", err)
	}
	if es, err := s.Range(ctx, "g/team", 0, 10, 1<<20); err != nil || len(es) != 1 {
		t.Errorf("%d entries (%v)", len(es), err)
	}
}

func TestAHolderHearsThatItsSeatWasTaken(t *testing.T) {
	uri := server.Database(t)
	a, b := open(t, uri, short), open(t, uri, short)
	defer func() { _, _ = a.Close(), b.Close() }()
	lost := make(chan error, 2)
	if err := a.TakeSeat(ctx, "parley serve", func(err error) { lost <- err }); err != nil {
		t.Fatal(err)
	}
	on := silence(t, uri, a)
	if err := b.TakeSeat(ctx, "parley import", nil); err != nil {
		t.Fatal(err)
	}
	if err := say(a, "1"); im.CodeOf(err) != "seat_lapsed" {
		t.Errorf("before it can know: %v", err)
	}
	on.Store(false)
	if err := <-lost; im.CodeOf(err) != "seat_lost" || !strings.Contains(err.Error(), "parley import on host") {
		t.Errorf("%v", err)
	}
	if err := say(a, "1"); im.CodeOf(err) != "seat_lost" {
		t.Errorf("%v", err)
	}
	if err := a.Ping(ctx); im.CodeOf(err) != "seat_lost" {
		t.Errorf("%v", err)
	}
	if err := a.Close(); err != nil { // it is not a's to give up
		t.Error(err)
	}
	until(t, "b renews", func() bool {
		doc, _, err := one[seatDoc](ctx, b, "test", b.meta, byID("seat"))
		return err == nil && doc.Holder == b.seat.mine.Holder && doc.Count > 2
	})
	heard(t, b, "1")
}

// Answers about the seat itself are lost.
func TestTheSeatIsTakenOnceWhateverIsLost(t *testing.T) {
	uri := server.Database(t)
	s := open(t, uri, Options{})
	defer func() { _ = s.Close() }()
	var n atomic.Int32
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		if c.Collection == "meta" && c.Name == "insert" && n.Add(1) == 1 {
			return mongotest.Fault{Do: mongotest.LoseReply}
		}
		return mongotest.Fault{}
	})
	if err := s.TakeSeat(ctx, "parley serve", nil); err != nil {
		t.Fatal(err)
	}
	if n.Load() == 0 {
		t.Error("nothing was lost")
	}
	if err := say(s, "1"); err != nil {
		t.Error(err)
	}
	server.Proxy.Inject(nil)
	if _, err := s.meta.DeleteOne(ctx, bson.D{{Key: "_id", Value: "seat"}}); err != nil {
		t.Fatal(err)
	}
	until(t, "a seat that was removed is lost", func() bool { return im.CodeOf(s.Ping(ctx)) == "seat_lost" })
}
