package pebblestore

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/internal/ledger"
	"github.com/parley-im/parley/store"
)

var (
	points = flag.Int("points", 60, "at how many calls to the file system the plug is pulled, or a fault made")
	seed   = flag.Uint64("seed", 0, "seed of the tests with faults; 0: a new one, which is printed")
)

func seeded(t *testing.T) *rand.Rand {
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; again with: go test ./store/pebblestore -run '^%s$' -points %d -seed %d", n, t.Name(), *points, n)
	return rand.New(rand.NewPCG(n, 1))
}

// workload writes from several goroutines to several conversations, with and
// without ids, with receipts, transactions and trims, in a store that is so small
// that it flushes and compacts all the time.
type workload struct {
	*ledger.Ledger
	cursors [workers]atomic.Int64 // the highest that was put
	print   bool                  // say what is sent and acknowledged on the standard output
}

func newWorkload() *workload { return &workload{Ledger: ledger.New()} }

const (
	workers   = 4
	workConvs = 3
)

func workConv(i int) im.ConvID { return im.GroupConv(im.GroupID(fmt.Sprint("g", i%workConvs))) }

// worker is the device of worker g, whose cursor in the first conversation moves
// up all the time.
func worker(g int) im.DeviceKey {
	return im.DeviceKey{User: im.UserID(fmt.Sprint("u", g)), Device: "d"}
}

// run works until stop says so; again, if an append fails.
func (w *workload) run(s *Store, stop func() bool) {
	var wg sync.WaitGroup
	for g := range workers {
		wg.Go(func() {
			for i := 0; !stop(); i++ {
				conv := workConv(g + i)
				body := fmt.Sprintf("%d-%d-%0200d", g, i, i)
				for !stop() {
					done := make(chan struct{})
					a := &store.Append{Entry: im.Entry{Conv: conv, From: worker(g).User, Device: "d", ID: body, Body: []byte(body)}, Done: func(*store.Append) { close(done) }}
					if g == 3 {
						a.Packet = uint16(i%60000 + 1)
					}
					w.Sending(string(conv), body, true)
					if w.print {
						fmt.Printf("send %s %s\n", conv, body)
					}
					s.Append(a)
					<-done
					if a.Err == nil {
						w.Acked(string(conv), body, uint64(a.Entry.Seq))
						if w.print {
							fmt.Printf("ack %s %s %d\n", conv, body, a.Entry.Seq)
						}
						break
					}
				}
				if i%10 == 9 {
					_ = s.Commit(context.Background(), &store.Tx{Users: []store.User{{ID: im.UserID(fmt.Sprint("x", g, "-", i))}}, Entries: []*store.Append{{Entry: im.Entry{Conv: conv, Op: im.OpEvent, Event: "e"}}}})
				}
				w.cursors[g].Store(int64(i + 1))
				_ = s.PutCursors(context.Background(), worker(g), []store.Cursor{{Conv: workConv(0), Acked: im.Seq(i + 1), Known: true}})
			}
		})
	}
	wg.Wait()
}

// promised is what a store owes at a moment.
type promised struct {
	*ledger.Ledger
	cursors [workers]int64
}

// now is what the store owes now.
func (w *workload) now() (tick int64, cursors [workers]int64) {
	tick = w.Now()
	for g := range cursors {
		cursors[g] = w.cursors[g].Load() + 1 // the next may be on its way before it is noted
	}
	return tick, cursors
}

// check holds a store against what it had acknowledged: see package ledger. Ids
// are remembered, and no cursor is beyond what was acknowledged.
func check(t *testing.T, s *Store, acked promised, when string) {
	t.Helper()
	ctx := context.Background()
	var f ledger.Findings
	for c := range workConvs {
		conv := workConv(c)
		es, err := s.Range(ctx, conv, 0, 1<<20, 1<<30)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		history := make([]ledger.Entry, len(es))
		for i, e := range es {
			history[i] = ledger.Entry{Seq: uint64(e.Seq), Text: string(e.Body), Other: e.Op != im.OpMessage}
		}
		acked.Check(string(conv), history, &f)
	}
	if err := f.Err(); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	for g, most := range acked.cursors {
		if c, err := s.Cursor(ctx, worker(g), workConv(0)); most > 0 && (err != nil || int64(c.Acked) > most) {
			t.Fatalf("%s: cursor %+v is beyond %d (%v)", when, c, most, err)
		}
	}
	for c := range workConvs { // one of each is sent again
		conv := workConv(c)
		body, seq := acked.Any(string(conv))
		if body == "" {
			continue
		}
		done := make(chan struct{})
		a := &store.Append{Entry: im.Entry{Conv: conv, From: im.UserID("u" + body[:1]), ID: body, Body: []byte(body)}, Done: func(*store.Append) { close(done) }}
		s.Append(a)
		<-done
		if a.Err != nil || !a.Dup || uint64(a.Entry.Seq) != seq {
			t.Fatalf("%s: sent again: %v dup=%v seq=%d, want %d", when, a.Err, a.Dup, a.Entry.Seq, seq)
		}
	}
}

var tiny = Options{MemTableBytes: 64 << 10, CacheBytes: 1 << 20, rewriteAge: time.Millisecond}

// reuseOnce keeps MemFS.ReuseForWrite from a deadlock: it takes the lock that a
// clone needs for reading, and once more inside (Pebble 2.1.7).
type reuseOnce struct{ *vfs.MemFS }

func (fs reuseOnce) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return fs.OpenReadWrite(newname, category)
}

// TestPowerLossEverywhere pulls the plug before many of the calls that the store
// makes to its file system, whatever they are for: the log, tables, the manifest.
// A part of what was not synced survives, at random.
func TestPowerLossEverywhere(t *testing.T) {
	rng := seeded(t)
	mem := vfs.NewCrashableMem()
	type plug struct {
		op      string
		disk    *vfs.MemFS
		tick    int64
		cursors [workers]int64
	}
	w := newWorkload()
	var (
		mu    sync.Mutex
		plugs []plug
		calls int
		kinds = map[errorfs.OpKind]int{}
		armed atomic.Bool
	)
	every := 7
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !armed.Load() {
			return nil
		}
		switch op.Kind {
		case errorfs.OpFileRead, errorfs.OpFileReadAt, errorfs.OpOpen, errorfs.OpStat, errorfs.OpFileStat, errorfs.OpList, errorfs.OpGetDiskUsage, errorfs.OpOpenDir, errorfs.OpFilePreallocate, errorfs.OpFileFlush, errorfs.OpFileClose:
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		// Rare kinds always, the writes and syncs of the log now and then.
		if calls++; kinds[op.Kind] > *points/10 && calls%every != 0 || len(plugs) >= *points {
			return nil
		}
		kinds[op.Kind]++
		tick, cursors := w.now() // before the clone: it must hold at least what is acknowledged now
		plugs = append(plugs, plug{fmt.Sprintf("%v %s", op.Kind, op.Path), mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng}), tick, cursors})
		return nil
	})
	o := tiny
	o.FS = errorfs.Wrap(reuseOnce{mem}, inject)
	s := open(t, "db", o)
	armed.Store(true)
	w.run(s, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(plugs) >= *points
	})
	armed.Store(false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range plugs {
		o := tiny
		o.FS = p.disk
		s := open(t, "db", o)
		check(t, s, promised{w.Before(p.tick), p.cursors}, "plug pulled before "+p.op)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d points of %d calls, by kind %v; %d acknowledged in the end", len(plugs), calls, kinds, w.Count())
}

// TestAFaultEverywhere makes one call to the file system fail, each time another
// one, while a store works, in a process of its own: Pebble ends the process
// where it cannot write its manifest or begin another log, and that is not to be
// survived. Nothing that was acknowledged is lost, nothing is there twice, and a
// store that lives works on.
func TestAFaultEverywhere(t *testing.T) {
	rng := seeded(t)
	var ended, lived atomic.Int32
	t.Cleanup(func() { t.Logf("%d faults were survived, %d ended the process", lived.Load(), ended.Load()) })
	for n := range *points / 3 {
		k := n + 1 // one after the other in the beginning, then at random
		if n > *points/6 {
			k = rng.IntN(1500) + 1
		}
		fault, reads := syscall.EIO, 0
		switch n % 3 {
		case 1:
			fault = syscall.ENOSPC
		case 2:
			reads = 1 // among all calls, not only those that write
		}
		t.Run(fmt.Sprintf("call %d: %v, reads %d", k, fault, reads), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestFaultChild$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("PARLEY_FAULT=%s %d %d %d", dir, k, int(fault), reads))
			out, err := cmd.Output()
			led, alive := ledger.New(), false
			for line := range strings.Lines(string(out)) {
				var conv, body string
				var seq uint64
				if n, _ := fmt.Sscanf(line, "send %s %s", &conv, &body); n == 2 {
					led.Sending(conv, body, true)
				} else if n, _ := fmt.Sscanf(line, "ack %s %s %d", &conv, &body, &seq); n == 3 {
					led.Acked(conv, body, seq)
				}
				alive = alive || line == "alive\n"
			}
			if alive != (err == nil) {
				t.Fatalf("alive %v, %d acknowledged, %v\n%s", alive, led.Count(), err, out)
			}
			if alive {
				lived.Add(1)
			} else {
				ended.Add(1)
			}
			s := open(t, dir, tiny)
			defer func() { _ = s.Close() }()
			check(t, s, promised{Ledger: led}, fmt.Sprintf("after call %d failed (alive %v)", k, alive))
		})
	}
}

// TestFaultChild is the process that TestAFaultEverywhere starts.
func TestFaultChild(t *testing.T) {
	var dir string
	var k int64
	var errno, reads int
	if n, _ := fmt.Sscan(os.Getenv("PARLEY_FAULT"), &dir, &k, &errno, &reads); n != 4 {
		t.Skip("started by TestAFaultEverywhere")
	}
	var calls atomic.Int64
	var armed, hit atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !armed.Load() || (reads == 0 && op.Kind.ReadOrWrite() != errorfs.OpIsWrite) || calls.Add(1) != k {
			return nil
		}
		hit.Store(true)
		return syscall.Errno(errno)
	})
	o := tiny
	o.FS = errorfs.Wrap(vfs.Default, inject)
	s := open(t, dir, o)
	armed.Store(true)
	end := time.Now().Add(30 * time.Second)
	var extra atomic.Int32
	w := newWorkload()
	w.print = true
	w.run(s, func() bool {
		if hit.Load() {
			extra.Add(1)
		}
		return extra.Load() > 400 || time.Now().After(end)
	})
	if !hit.Load() {
		t.Fatalf("only %d calls were made", calls.Load())
	}
	for s.Ping(context.Background()) != nil {
		if time.Now().After(end) {
			t.Fatal("the store did not come back")
		}
		time.Sleep(5 * time.Millisecond) // a poll of the condition
	}
	check(t, s, promised{Ledger: w.Ledger}, "in the process itself")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("alive")
}

// TestTheClockJumps: at every fourth hour of two windows of ids, a day forward and back,
// also over a restart: times never decrease within a conversation, seqs go on, and
// ids stay known.
func TestTheClockJumps(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for hour := 0; hour < 2*4*24; hour += 4 {
			clockJumps(t, hour, restart)
		}
	}
}

func clockJumps(t *testing.T, hour int, restart bool) {
	fs := vfs.NewMem()
	now := time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(hour) * time.Hour)
	o := Options{FS: fs, Now: func() time.Time { return now }, MemTableBytes: 64 << 10, CacheBytes: 1 << 20}
	s := open(t, "db", o)
	defer func() { _ = s.Close() }()
	put := func(id string) *store.Append {
		done := make(chan struct{})
		a := &store.Append{Entry: im.Entry{Conv: "d/a/b", From: "a", ID: id}, Done: func(*store.Append) { close(done) }}
		s.Append(a)
		<-done
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		return a
	}
	last := int64(0)
	for i, jump := range []time.Duration{0, 24 * time.Hour, -24 * time.Hour, -24 * time.Hour, time.Second, 24 * time.Hour, 24 * time.Hour} {
		now = now.Add(jump)
		if restart {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, "db", o)
		}
		a := put(fmt.Sprint(i))
		if a.Dup || a.Entry.TS < last || a.Entry.Seq != im.Seq(i+1) {
			t.Errorf("hour %d, restart %v, jump %d: %+v after %d", hour, restart, i, a.Entry, last)
		}
		last = a.Entry.TS
		for k := range i {
			if again := put(fmt.Sprint(k)); !again.Dup || again.Entry.Seq != im.Seq(k+1) {
				t.Fatalf("hour %d, restart %v, jump %d: id %d is not known: it stands at %d again", hour, restart, i, k, again.Entry.Seq)
			}
		}
	}
}
