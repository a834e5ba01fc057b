package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

const dm = im.ConvID("d/a/b")

// appendBurst appends messages of the given bodies in one commit.
func appendBurst(t *testing.T, s *Store, more *store.Append, bodies ...string) {
	t.Helper()
	done := make(chan error, len(bodies)+1)
	var as []*store.Append
	for _, b := range bodies {
		as = append(as, &store.Append{Entry: im.Entry{Conv: dm, From: "a", Device: "d", Type: "text/plain", Body: []byte(b)}})
	}
	if more != nil {
		as = append(as, more)
	}
	for _, a := range as {
		a.Done = func(a *store.Append) { done <- a.Err }
	}
	s.Append(as...)
	for range as {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func rows(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.view(context.Background(), func(db *pebble.DB) error {
		return scan(db, []byte{tMsg}, func(_, _ []byte) bool { n++; return true })
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// bodies returns seq:body of what Range gives; recalled ones have none.
func bodies(t *testing.T, s *Store, after im.Seq, limit int) (out []string) {
	t.Helper()
	es, err := s.Range(context.Background(), dm, after, limit, math.MaxInt)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		out = append(out, fmt.Sprintf("%d:%s", e.Seq, e.Body))
	}
	return out
}

func expect(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if strings.Join(got, " ") != want {
		t.Errorf("%s: %v, want %s", what, got, want)
	}
}

func TestABurstIsOneRow(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "db", Options{FS: fs})
	appendBurst(t, s, nil, "one", "two", "", "four")
	appendBurst(t, s, nil, "five")
	appendBurst(t, s, nil, "six", "seven")
	if n := rows(t, s); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
	look := func() {
		t.Helper()
		expect(t, "all", bodies(t, s, 0, 100), "1:one 2:two 3: 4:four 5:five 6:six 7:seven")
		expect(t, "from the middle of a row to the middle of another", bodies(t, s, 2, 4), "3: 4:four 5:five 6:six")
		for seq, want := range map[im.Seq]string{0: "6 7", 7: "5 6", 4: "2 3", 2: "1", 1: ""} {
			es, err := s.Before(context.Background(), dm, seq, 2)
			var got []string
			for _, e := range es {
				got = append(got, fmt.Sprint(e.Seq))
			}
			if err != nil {
				t.Fatal(err)
			}
			expect(t, fmt.Sprintf("before %d", seq), got, want)
		}
		e, err := s.Entry(context.Background(), dm, 2)
		if err != nil || string(e.Body) != "two" || e.Conv != dm || e.From != "a" {
			t.Errorf("entry 2: %+v %v", e, err)
		}
		if _, err := s.Entry(context.Background(), dm, 8); !im.Is(err, im.NotFound) {
			t.Errorf("entry 8: %v", err)
		}
	}
	look()
	_ = s.Close()
	s = open(t, "db", Options{FS: fs})
	defer func() { _ = s.Close() }()
	look()
	appendBurst(t, s, nil, "eight", "nine")
	expect(t, "after the store was opened again", bodies(t, s, 6, 100), "7:seven 8:eight 9:nine")
}

// TestRowsAreBounded: by number and by size, and one entry may be of any size.
func TestRowsAreBounded(t *testing.T) {
	s := open(t, "db", Options{FS: vfs.NewMem()})
	defer func() { _ = s.Close() }()
	many := slices.Repeat([]string{"x"}, rowEntries+1)
	appendBurst(t, s, nil, many...)
	if n := rows(t, s); n != 2 {
		t.Errorf("%d entries are in %d rows, want 2", len(many), n)
	}
	big := strings.Repeat("y", rowBytes/2)
	appendBurst(t, s, nil, big, big, strings.Repeat("z", 70_000), "last")
	if n := rows(t, s) - 2; n != 4 {
		t.Errorf("large entries are in %d rows, want each in its own", n)
	}
	if got := bodies(t, s, rowEntries+1, 10); len(got) != 4 || len(got[2]) < 70_000 || got[3] != fmt.Sprint(rowEntries+5, ":last") {
		t.Errorf("%d large entries came back wrong", len(got))
	}
}

// TestRecallInABurst: others in the row stay as they are, also when several of
// them are recalled by one commit.
func TestRecallInABurst(t *testing.T) {
	s := open(t, "db", Options{FS: vfs.NewMem()})
	defer func() { _ = s.Close() }()
	appendBurst(t, s, nil, "one", "two", "three", "four")
	recall := func(seq im.Seq) *store.Append {
		return &store.Append{Entry: im.Entry{Conv: dm, From: "a", Device: "d", Op: im.OpRecall, Ref: seq}}
	}
	second := recall(3)
	second.Done = func(*store.Append) {}
	s.Append(second)
	first := recall(1)
	first.Done = func(*store.Append) {}
	s.Append(first)
	appendBurst(t, s, recall(4), "five")
	expect(t, "after recalls", bodies(t, s, 0, 10), "1: 2:two 3: 4: 5: 6: 7:five 8:")
	e, err := s.Entry(context.Background(), dm, 4)
	if err != nil || e.Flags&im.FlagRecalled == 0 || e.Type != "" {
		t.Errorf("%+v %v: should be recalled", e, err)
	}
}

// TestTrimWithinARow: what is below the floor is gone for readers and copies, the
// rest of its row is not.
func TestTrimWithinARow(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "db", Options{FS: fs})
	appendBurst(t, s, nil, "one", "two", "three")
	appendBurst(t, s, nil, "four", "five")
	if err := s.Trim(context.Background(), dm, 2); err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		expect(t, "range", bodies(t, s, 0, 10), "3:three 4:four 5:five")
		if es, err := s.Before(context.Background(), dm, 0, 10); err != nil || len(es) != 3 {
			t.Errorf("before: %d entries, %v", len(es), err)
		}
		if _, err := s.Entry(context.Background(), dm, 2); !im.Is(err, im.NotFound) {
			t.Errorf("entry 2: %v", err)
		}
		var dumped []string
		if err := s.Dump(context.Background(), func(r store.Record) error {
			if r.Entry != nil {
				dumped = append(dumped, fmt.Sprintf("%d:%s", r.Entry.Seq, r.Entry.Body))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		expect(t, "dump", dumped, "3:three 4:four 5:five")
	}
	look()
	_ = s.Close()
	s = open(t, "db", Options{FS: fs})
	defer func() { _ = s.Close() }()
	look()
	if err := s.Trim(context.Background(), dm, 3); err != nil {
		t.Fatal(err)
	}
	if n := rows(t, s); n != 1 {
		t.Errorf("%d rows, want 1: nothing of the first is needed", n)
	}
	expect(t, "range", bodies(t, s, 0, 10), "4:four 5:five")
}

// TestARecallWritesEachRowOnce: somebody may have edited a message ever so often.
func TestARecallWritesEachRowOnce(t *testing.T) {
	var last int
	s := open(t, "db", Options{FS: vfs.NewMem(), Events: Events{Committed: func(_, bytes int, _ time.Duration) { last = bytes }}})
	defer func() { _ = s.Close() }()
	appendBurst(t, s, nil, "message")
	edits := 0
	for range 10 {
		var as []*store.Append
		done := make(chan error, rowEntries)
		for range rowEntries {
			as = append(as, &store.Append{Entry: im.Entry{Conv: dm, From: "a", Device: "d", Op: im.OpEdit, Ref: 1, Body: []byte("an edit of some length")}, Done: func(a *store.Append) { done <- a.Err }})
		}
		s.Append(as...)
		for range as {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		edits += last
	}
	appendBurst(t, s, &store.Append{Entry: im.Entry{Conv: dm, From: "a", Device: "d", Op: im.OpRecall, Ref: 1}})
	if last > edits {
		t.Errorf("%d edits were written with %d bytes, their recall with %d", 10*rowEntries, edits, last)
	}
	for _, b := range bodies(t, s, 0, 10_000) {
		if !strings.HasSuffix(b, ":") {
			t.Errorf("%s is readable", b)
		}
	}
}

// TestFirstFormat: a store with one row for each entry is taken over, and an older
// version would refuse it from then on.
func TestFirstFormat(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for _, b := range []string{"one", "two"} {
		appendBurst(t, s, nil, b) // a row of one is as it was
	}
	if err := s.write(func(b *pebble.Batch) error { return b.Set(key(tMeta, "format"), []byte("1"), nil) }); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if info, err := Verify(dir); err != nil || info.Entries != 2 {
		t.Errorf("%+v %v", info, err)
	}
	s = open(t, dir, Options{})
	appendBurst(t, s, nil, "three", "four")
	expect(t, "old and new rows", bodies(t, s, 0, 10), "1:one 2:two 3:three 4:four")
	if v, err := get(s.db.DB, key(tMeta, "format")); err != nil || string(v) != "3" {
		t.Errorf("format %s %v", v, err)
	}
	_ = s.Close()
	if info, err := Verify(dir); err != nil || info.Entries != 4 {
		t.Errorf("%+v %v", info, err)
	}
}

// TestEditsOfAnEarlierFormat: a store that was written without an index of edits
// gets it, so that a recall finds the edits made before.
func TestEditsOfAnEarlierFormat(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "db", Options{FS: fs})
	edit := func(ref im.Seq) *store.Append {
		return &store.Append{Entry: im.Entry{Conv: dm, From: "a", Device: "d", Op: im.OpEdit, Ref: ref, Body: []byte("edit")}}
	}
	appendBurst(t, s, edit(1), "one", "two") // 3
	appendBurst(t, s, edit(2))               // 4
	appendBurst(t, s, edit(1), "five")       // 6
	if err := s.write(func(b *pebble.Batch) error {
		return errors.Join(b.DeleteRange([]byte{tEdit}, []byte{tEdit + 1}, nil), b.Set(key(tMeta, "format"), []byte("2"), nil))
	}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = open(t, "db", Options{FS: fs})
	defer func() { _ = s.Close() }()
	appendBurst(t, s, &store.Append{Entry: im.Entry{Conv: dm, From: "a", Device: "d", Op: im.OpRecall, Ref: 1}})
	expect(t, "after the recall", bodies(t, s, 0, 10), "1: 2:two 3: 4:edit 5:five 6: 7:")
	if err := s.Trim(context.Background(), dm, 1); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := scan(s.db.DB, []byte{tEdit}, func(_, _ []byte) bool { n++; return true }); err != nil || n != 1 {
		t.Errorf("%d edits are known after a trim, want that of the entry that is left: %v", n, err)
	}
}

func FuzzLogRow(f *testing.F) {
	k := msgKey(1, 9)
	e := &im.Entry{From: "a", Device: "d", Body: []byte("b"), TS: 5}
	f.Add(appendRow(nil, []*im.Entry{e}), uint64(0))
	f.Add(appendRow(nil, []*im.Entry{e, e, e}), uint64(7))
	f.Add([]byte{burstVersion, 2, 0, 0, 0, 0}, uint64(8))
	f.Fuzz(func(t *testing.T, v []byte, skip uint64) {
		es, err := readRow(dm, k, v, im.Seq(skip))
		if err != nil {
			if !errors.Is(err, errCorrupt) {
				t.Fatal(err)
			}
			return
		}
		for i, e := range es {
			if want := 9 - im.Seq(len(es)-1-i); e.Seq != want || e.Seq <= im.Seq(skip) {
				t.Fatalf("entry %d of %d has seq %d, after skipping %d", i, len(es), e.Seq, skip)
			}
		}
	})
}
