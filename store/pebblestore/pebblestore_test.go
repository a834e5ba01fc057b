package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/storetest"
)

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	storetest.Run(t, storetest.Factory{
		Open: func(t testing.TB) store.Store { return open(t, t.TempDir(), Options{}) },
	})
}

// TestContractAfterPowerLoss runs on a file system that forgets what was not synced.
func TestContractAfterPowerLoss(t *testing.T) {
	var files sync.Map // store → its file system
	storetest.Run(t, storetest.Factory{
		Open: func(t testing.TB) store.Store {
			fs := vfs.NewCrashableMem()
			s := open(t, "db", Options{FS: fs})
			files.Store(store.Store(s), fs)
			return s
		},
		Reopen: func(t testing.TB, old store.Store) store.Store {
			fs, _ := files.Load(old)
			clone := fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
			s := open(t, "db", Options{FS: clone})
			files.Store(store.Store(s), clone)
			return s
		},
	})
}

func BenchmarkStore(b *testing.B) {
	storetest.Bench(b, 10_000, func(b testing.TB) store.Store { return open(b, b.TempDir(), Options{}) })
}

// TestPowerLoss pulls the plug at many moments. The control shows that the test
// can fail: without syncs, acknowledged entries are missing.
func TestPowerLoss(t *testing.T) {
	for _, sync := range []bool{true, false} {
		missing := 0
		for round := range 20 {
			missing += powerLoss(t, round, sync)
		}
		switch {
		case sync && missing > 0:
			t.Errorf("%d acknowledged entries are missing", missing)
		case !sync && missing == 0:
			t.Error("the control lost nothing: the test cannot fail")
		}
	}
}

// powerLoss appends, crashes somewhere in the middle and counts acknowledged
// entries that are gone. Without sync it writes past the store, unsynced.
func powerLoss(t *testing.T, round int, sync bool) (missing int) {
	fs := vfs.NewCrashableMem()
	s := open(t, "db", Options{FS: fs})
	defer func() { _ = s.Close() }()
	var acked atomic.Int64
	conv := im.DM("alice", "bob")
	var clone *vfs.MemFS
	var before int64
	crashed := make(chan struct{})
	const n = 400
	for i := range n {
		if i == 100+round*10 {
			before = acked.Load()
			clone = fs.CrashClone(vfs.CrashCloneCfg{})
			close(crashed)
		}
		if !sync {
			_ = s.view(context.Background(), func(db *pebble.DB) error { return db.Set(fmt.Appendf(nil, "\x70%d", i), nil, pebble.NoSync) })
			acked.Add(1)
			continue
		}
		done := make(chan struct{})
		a := &store.Append{Entry: im.Entry{Conv: conv, From: "alice", Body: []byte("x")}}
		a.Done = func(a *store.Append) {
			if a.Err == nil {
				acked.Add(1)
			}
			if i%7 == 0 {
				close(done)
			}
		}
		s.Append(a)
		if i%7 == 0 {
			<-done // now and then everything is waited for
		}
	}
	<-crashed
	again := open(t, "db", Options{FS: clone})
	defer func() { _ = again.Close() }()
	if !sync {
		_ = again.view(context.Background(), func(db *pebble.DB) error {
			for i := range before {
				if v, _ := get(db, fmt.Appendf(nil, "\x70%d", i)); v == nil {
					missing++
				}
			}
			return nil
		})
		return missing
	}
	es, err := again.Range(context.Background(), conv, 0, n, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range es {
		if e.Seq != im.Seq(i+1) {
			t.Fatalf("a hole at %d", i+1)
		}
	}
	return max(0, int(before)-len(es))
}

// TestDiskFaults makes writes and syncs fail for a while, each kind of call in
// turn. Nothing that failed is acknowledged, the process lives, and the store is
// back when the disk is, with everything it had acknowledged.
func TestDiskFaults(t *testing.T) {
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, kind := range []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate} {
			t.Run(fmt.Sprintf("%v on %v", fault, kind), func(t *testing.T) {
				t.Parallel()
				diskFault(t, fault, kind)
			})
		}
	}
}

func diskFault(t *testing.T, fault error, kind errorfs.OpKind) {
	var broken atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == kind {
			return fault
		}
		return nil
	})
	mem := vfs.NewCrashableMem()
	var failures atomic.Int32
	s := open(t, "db", Options{FS: errorfs.Wrap(mem, inject), Events: Events{CommitFailed: func(error) { failures.Add(1) }}})
	conv := im.DM("alice", "bob")
	put := func(body string) error {
		done := make(chan error, 1)
		s.Append(&store.Append{Entry: im.Entry{Conv: conv, From: "alice", Body: []byte(body), ID: body}, Done: func(a *store.Append) { done <- a.Err }})
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			panic("an append was never answered") // with all stacks
		}
	}
	acked := map[string]bool{}
	for i := range 20 {
		body := fmt.Sprint("before", i)
		if err := put(body); err != nil {
			t.Fatal(err)
		}
		acked[body] = true
	}
	if n := s.Doubts(); n != 0 {
		t.Errorf("%d doubts before anything failed", n)
	}
	broken.Store(true)
	for i := range 20 {
		body := fmt.Sprint("during", i)
		if err := put(body); err == nil {
			acked[body] = true // the call that fails may not be needed for this one
		} else if !im.Is(err, im.Unavailable) {
			t.Errorf("%v, want Unavailable", err)
		}
	}
	broken.Store(false)
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := put("after")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the store did not come back: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // a poll of the condition
	}
	if err := s.Ping(context.Background()); err != nil {
		t.Errorf("Ping: %v", err)
	}
	if n, want := s.Doubts(), 2*uint64(failures.Load()); n != want { // when it failed, and when it was opened again
		t.Errorf("%d doubts, want %d", n, want)
	}
	acked["after"] = true
	check := func(s *Store, when string) {
		es, err := s.Range(context.Background(), conv, 0, 1000, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for i, e := range es {
			if e.Seq != im.Seq(i+1) || found[string(e.Body)] {
				t.Errorf("%s: seq %d (%s) at place %d", when, e.Seq, e.Body, i+1)
			}
			found[string(e.Body)] = true
		}
		for body := range acked {
			if !found[body] {
				t.Errorf("%s: %s was acknowledged and is missing", when, body)
			}
		}
	}
	check(s, "afterwards")
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	_ = s.Close()
	s = open(t, "db", Options{FS: clone})
	check(s, "after a crash")
	_ = s.Close()
}

func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	defer func() { _ = s.Close() }()
	_, err := Open(dir, Options{})
	if im.CodeOf(err) != "store_locked" || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v: it should say that %s is in use", err, dir)
	}
}

func TestUnknownFormat(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if err := s.write(func(b *pebble.Batch) error { return b.Set(key(tMeta, "format"), []byte("99"), nil) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	if !im.Is(err, im.Unsupported) || !strings.Contains(err.Error(), "99") {
		t.Errorf("%v: it should name the version", err)
	}
	if _, err := Verify(dir); !im.Is(err, im.Unsupported) {
		t.Errorf("Verify: %v", err)
	}
}

func TestCheckpointIsAStore(t *testing.T) {
	s := open(t, t.TempDir(), tiny) // with files of values
	defer func() { _ = s.Close() }()
	const n = 500
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("%d:%0300d", i+1, i)
		appendBurst(t, s, nil, want[i][strings.Index(want[i], ":")+1:])
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if err := s.Checkpoint(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	if apart, err := filepath.Glob(filepath.Join(dir, "*.blob")); err != nil || len(apart) == 0 {
		t.Errorf("no file of values in the copy (%v)", err)
	}
	info, err := Verify(dir)
	if err != nil || info.Entries != n || info.Conversations != 1 {
		t.Errorf("%+v %v", info, err)
	}
	c := open(t, dir, Options{})
	defer func() { _ = c.Close() }()
	expect(t, "the copy", bodies(t, c, 0, n+1), strings.Join(want, " "))
}

// TestSpaceComesBack: what a trim leaves in files of values is given back while the
// store works on, though the same files hold what is still needed.
func TestSpaceComesBack(t *testing.T) {
	s := open(t, t.TempDir(), tiny)
	defer func() { _ = s.Close() }()
	ctx := context.Background()
	queue := im.QueueConv("a", "d")
	random := rand.NewChaCha8([32]byte{}) // does not compress
	body := func(n int) []byte {
		b := make([]byte, n)
		_, _ = random.Read(b)
		return b
	}
	var held uint64
	for seq := im.Seq(1); seq <= 3000; seq++ {
		done := make(chan error, 1)
		s.Append(&store.Append{Entry: im.Entry{Conv: queue, From: "a", Body: body(4 << 10)}, Done: func(a *store.Append) { done <- a.Err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		appendBurst(t, s, nil, string(body(300)))
		if seq%250 == 0 {
			if err := s.Trim(ctx, queue, seq); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.view(ctx, func(db *pebble.DB) error {
		held = db.Metrics().BlobFiles.LiveSize
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if t.Log(held>>10, "KB"); held == 0 || held > 6<<20 {
		t.Errorf("files of values hold %d bytes; 1 MB of 13 is needed", held)
	}
}

func TestIDsAreForgottenInTime(t *testing.T) {
	var now atomic.Int64
	now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	s := open(t, t.TempDir(), Options{DedupeWindow: time.Hour, Now: func() time.Time { return time.Unix(0, now.Load()) }})
	defer func() { _ = s.Close() }()
	put := func() bool {
		done := make(chan bool, 1)
		s.Append(&store.Append{Entry: im.Entry{Conv: "g/g", From: "alice", ID: "1"}, Done: func(a *store.Append) { done <- a.Dup }})
		return <-done
	}
	if put() || !put() {
		t.Fatal("the id is not remembered")
	}
	now.Add(int64(time.Hour))
	if !put() {
		t.Error("forgotten within the window")
	}
	now.Add(int64(3 * time.Hour))
	if put() {
		t.Error("still remembered after three windows")
	}
}

func TestHeadsAreEvictedSafely(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxHeads: 8})
	defer func() { _ = s.Close() }()
	var wg sync.WaitGroup
	var wrong atomic.Int32
	last := make([]im.Seq, 100)
	for round := range 20 {
		for c := range last {
			wg.Add(1)
			s.Append(&store.Append{Entry: im.Entry{Conv: im.GroupConv(im.GroupID(fmt.Sprint(c)))}, Done: func(a *store.Append) {
				if a.Entry.Seq != last[c]+1 {
					wrong.Add(1)
				}
				last[c] = a.Entry.Seq
				wg.Done()
			}})
		}
		if round%3 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	if wrong.Load() > 0 {
		t.Errorf("%d wrong seqs", wrong.Load())
	}
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(appendEntry(nil, &im.Entry{From: "a", Device: "d", Ref: 1, ID: "i", Type: "t", Event: "e", Topic: "x", Props: []byte{1}, Body: []byte("b"), TS: 5}))
	f.Add([]byte{entryVersion, 0xff, 0, 0, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry("d/a/b", 1, b)
		if err != nil {
			if !errors.Is(err, errCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeEntry("d/a/b", 1, appendEntry(nil, e))
		if err != nil || again.TS != e.TS || string(again.Body) != string(e.Body) || again.ID != e.ID || string(again.Props) != string(e.Props) {
			t.Fatalf("%+v, then %+v %v", e, again, err)
		}
	})
}
