package app

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

func openTest(t *testing.T, now func() time.Time) *pebblestore.Store {
	t.Helper()
	st, err := pebblestore.Open(t.TempDir(), pebblestore.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func put(t *testing.T, st store.Store, conv im.ConvID, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		st.Append(&store.Append{Entry: im.Entry{Conv: conv, From: "alice", Body: fmt.Append(nil, i)}, Done: func(a *store.Append) {
			if a.Err != nil {
				t.Error(a.Err)
			}
			wg.Done()
		}})
	}
	wg.Wait()
}

func TestRetention(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	st := openTest(t, func() time.Time { return now })
	dm, group, account := im.DM("alice", "bob"), im.GroupConv("team"), im.AccountConv("alice")
	for day := range 10 {
		put(t, st, dm, 3)
		put(t, st, group, 2)
		put(t, st, account, 1)
		if day == 0 {
			put(t, st, im.DM("alice", "carol"), 5) // all of it is old
		}
		now = now.Add(24 * time.Hour)
	}
	r := &retain{st: st, log: slog.New(slog.DiscardHandler), now: func() time.Time { return now }, keep: map[im.ConvKind]time.Duration{im.KindDM: 4 * 24 * time.Hour}}
	n, err := r.once(t.Context())
	if err != nil || n != 2 {
		t.Fatalf("%d conversations trimmed, %v", n, err)
	}
	for conv, want := range map[im.ConvID][2]im.Seq{dm: {19, 30}, group: {1, 20}, account: {1, 10}, im.DM("alice", "carol"): {0, 5}} {
		es, err := st.Range(t.Context(), conv, 0, 1000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		first := im.Seq(0)
		if len(es) > 0 {
			first = es[0].Seq
		}
		heads, _ := st.Heads(t.Context(), []im.ConvID{conv})
		if first != want[0] || heads[0].Seq != want[1] {
			t.Errorf("%s is %d to %d, want %d to %d", conv, first, heads[0].Seq, want[0], want[1])
		}
	}
	if n, err := r.once(t.Context()); n != 0 || err != nil {
		t.Errorf("again: %d %v", n, err)
	}
}

func TestDamagedExports(t *testing.T) {
	from := openTest(t, time.Now)
	put(t, from, im.DM("alice", "bob"), 20)
	var file bytes.Buffer
	if _, err := Export(t.Context(), from, &file, nil); err != nil {
		t.Fatal(err)
	}
	text := file.String()
	lines := strings.SplitAfter(text, "\n")
	for why, tt := range map[string]struct{ file, want string }{
		"nothing":         {"", "line 1: the file ends too early"},
		"something else":  {"{\"a\":1}\n", "line 1: this is not an export"},
		"another format":  {strings.Replace(text, `{"parley_export":1}`, `{"parley_export":9}`, 1), "format 9"},
		"cut":             {strings.Join(lines[:10], ""), "line 11: the file ends too early"},
		"a line lost":     {strings.Join(append(append([]string{}, lines[:5]...), lines[6:]...), ""), "the file is damaged"},
		"a body changed":  {strings.Replace(text, `"Body":"NQ=="`, `"Body":"Ng=="`, 1), "the file is damaged"},
		"no JSON":         {lines[0] + "{\n", "line 2: "},
		"an unknown kind": {lines[0] + "{\"future\":{}}\n", "line 2: a record that this version does not know"},
	} {
		_, err := Import(context.Background(), openTest(t, time.Now), strings.NewReader(tt.file), nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", why, err, tt.want)
		}
	}
	to := openTest(t, time.Now)
	if _, err := Import(context.Background(), to, strings.NewReader(strings.Join(lines[:10], "")), nil); err == nil {
		t.Error("half a file was imported")
	}
	if err := whole(t.Context(), to); im.CodeOf(err) != "store_partial" {
		t.Errorf("half an import is whole: %v", err)
	}
	if _, err := Import(context.Background(), to, strings.NewReader(text), nil); err != nil {
		t.Error(err)
	}
	if err := whole(t.Context(), to); err != nil {
		t.Error(err)
	}
	if sums, err := Survey(t.Context(), to, false); err != nil || sums.Counts["entry"] != 20 {
		t.Errorf("%+v %v", sums, err)
	}
}

// openMemory opens a store that no disk slows down.
func openMemory(t *testing.T) store.Store {
	t.Helper()
	st, err := pebblestore.Open("store", pebblestore.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// TestEveryByteOfAnExportCounts changes one bit, anywhere between the header and
// the end of the sums.
func TestEveryByteOfAnExportCounts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	from := openMemory(t)
	(&filler{t: t, st: from, rng: rng}).fill()
	_, file := export(t, from)
	first, last := bytes.IndexByte(file, '\n')+1, bytes.LastIndex(file, []byte("\n{\"end\""))
	hash := bytes.LastIndex(file, []byte(`"hash":"`)) + len(`"hash":"`)
	for i := range 200 {
		at, bit := first+rng.IntN(last-first), byte(1)<<rng.IntN(8)
		if i < 20 {
			at = hash + rng.IntN(64)
		}
		damaged := bytes.Clone(file)
		damaged[at] ^= bit
		st := openMemory(t)
		if _, err := Import(t.Context(), st, bytes.NewReader(damaged), nil); err == nil {
			t.Errorf("bit %#x of byte %d was changed, unseen: %.80q", bit, at, file[max(0, at-40):])
		} else if why, _ := st.Partial(t.Context()); why == "" {
			t.Errorf("after %v the store is whole", err)
		}
		_ = st.Close()
	}
}

// bad is a store that changes one byte of one record on its way in.
type bad struct {
	store.Store
	spoil func(*store.Record) bool
}

func (b *bad) Load(ctx context.Context, rs []store.Record) error {
	for i := range rs {
		if b.spoil(&rs[i]) {
			b.spoil = func(*store.Record) bool { return false }
		}
	}
	return b.Store.Load(ctx, rs)
}

// TestTheStoreIsComparedToo: the file is sound, and the store does not keep it so.
func TestTheStoreIsComparedToo(t *testing.T) {
	from := openMemory(t)
	(&filler{t: t, st: from, rng: rand.New(rand.NewPCG(1, 1))}).fill()
	_, file := export(t, from)
	for what, spoil := range map[string]func(*store.Record) bool{
		"a byte of a body": func(r *store.Record) bool {
			if r.Entry == nil || len(r.Entry.Body) == 0 {
				return false
			}
			r.Entry.Body[0] ^= 1
			return true
		},
		"a flag":   func(r *store.Record) bool { return r.User != nil && flip(&r.User.Disabled) },
		"a cursor": func(r *store.Record) bool { return r.Cursor != nil && add(&r.Cursor.Acked) },
		"a key": func(r *store.Record) bool {
			if r.Secret == nil || len(r.Secret.Value) == 0 {
				return false
			}
			r.Secret.Value[0] ^= 128
			return true
		},
		"a time": func(r *store.Record) bool { return r.Read != nil && add(&r.Read.TS) },
	} {
		st := &bad{openMemory(t), spoil}
		if _, err := Import(t.Context(), st, bytes.NewReader(file), nil); err == nil || !strings.Contains(err.Error(), "does not hold what the file says") {
			t.Errorf("%s: %v", what, err)
		}
		if why, _ := st.Partial(t.Context()); why == "" {
			t.Errorf("%s: the store is whole", what)
		}
	}
}

func flip(b *bool) bool { *b = !*b; return true }

func add[T ~int64 | ~uint64](n *T) bool { *n++; return true }
