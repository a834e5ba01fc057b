package storetest

import (
	"bytes"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

func testSwapNote(t *testing.T, s store.Store) {
	swap := func(old, value string, want bool, what string) {
		t.Helper()
		nilOr := func(v string) []byte {
			if v == "" {
				return nil
			}
			return []byte(v)
		}
		got, err := s.SwapNote(ctx, "room/a", nilOr(old), nilOr(value))
		if must(t, err); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		v, err := s.Note(ctx, "room/a")
		if err != nil {
			wantKind(t, err, im.NotFound, what)
		}
		if want && !bytes.Equal(v, nilOr(value)) {
			t.Errorf("%s: it is %q, want %q", what, v, value)
		}
	}
	swap("", "1", true, "made where there is none")
	swap("", "2", false, "made where there is one")
	swap("0", "2", false, "another than it is")
	swap("1", "2", true, "the one it is")
	swap("1", "", false, "removed another than it is")
	swap("2", "", true, "removed the one it is")
	swap("2", "", true, "not there is what was wanted")
	swap("2", "3", false, "another than none")
	swap("2", "", true, "still not there")

	var won atomic.Int32
	var wg sync.WaitGroup
	must(t, s.PutNotes(ctx, []store.Note{{Key: "room/b", Value: []byte("0")}}, true))
	for i := range 16 {
		wg.Go(func() {
			ok, err := s.SwapNote(ctx, "room/b", []byte("0"), fmt.Append(nil, "by ", i))
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 16 swapped it", won.Load())
	}
}

// putTasks writes tasks that nobody else changes.
func putTasks(t testing.TB, s store.Tasks, ts ...store.Task) []store.Task {
	t.Helper()
	done, err := s.PutTasks(ctx, ts)
	must(t, err)
	for i, ok := range done {
		if !ok {
			t.Fatalf("task %s was not written", ts[i].Key)
		}
	}
	return ts
}

func testPutTasks(t *testing.T, s store.Store) {
	must(t, func() error { _, err := s.PutTasks(ctx, nil); return err }())
	ts := putTasks(t, s, store.Task{Key: "room/b", Queue: "q", At: 5, Owner: "me", Value: []byte("1")}, store.Task{Key: "room/a", Queue: "q", At: store.Never, Value: []byte{}}, store.Task{Key: "rooms/c", Queue: "q", Value: []byte("3")})
	got, err := s.TasksOf(ctx, []string{"room/a", "room/x", "room/b", "room/a"})
	must(t, err)
	if want := []store.Task{ts[1], {Key: "room/x"}, ts[0], ts[1]}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var keys []string
	must(t, s.EachTask(ctx, "room/", func(x store.Task) bool {
		keys = append(keys, x.Key)
		return true
	}))
	if !reflect.DeepEqual(keys, []string{"room/a", "room/b"}) {
		t.Errorf("%q", keys)
	}
	for _, c := range []struct {
		queue  string
		before int64
		want   int
	}{{"q", 5, 1}, {"q", 6, 2}, {"q", store.Never, 2}, {"r", store.Never, 0}} {
		if n, err := s.CountTasks(ctx, c.queue, c.before); err != nil || n != c.want {
			t.Errorf("%d tasks of %s before %d, want %d: %v", n, c.queue, c.before, c.want, err)
		}
	}

	old := ts[0]
	moved := putTasks(t, s, store.Task{Key: "room/b", Queue: "r", At: 6, Value: []byte("2"), Ver: old.Ver})[0]
	stale := []store.Task{old, {Key: "room/a", Value: nil, Ver: 1}, {Key: "rooms/c", Queue: "q", Value: []byte("new")}, {Key: "room/n", Queue: "q", Value: []byte("n")}}
	done, err := s.PutTasks(ctx, stale)
	must(t, err)
	if !reflect.DeepEqual(done, []bool{false, false, false, true}) {
		t.Errorf("of old versions: %v", done)
	}
	got, err = s.TasksOf(ctx, []string{"room/b", "room/a"})
	must(t, err)
	if !reflect.DeepEqual(got, []store.Task{moved, ts[1]}) {
		t.Errorf("%+v", got)
	}
	if n, _ := s.CountTasks(ctx, "r", 7); n != 1 {
		t.Error("it is not in its new queue")
	}

	// Removed and made again it is another.
	putTasks(t, s, store.Task{Key: "room/b", Ver: moved.Ver})
	again := putTasks(t, s, store.Task{Key: "room/b", Queue: "r", At: 6, Value: []byte("2")})[0]
	if again.Ver == moved.Ver || again.Ver == old.Ver {
		t.Error("a version comes again")
	}
	done, err = s.PutTasks(ctx, []store.Task{{Key: "room/b", Ver: moved.Ver}, {Key: "room/gone", Ver: 3}})
	if must(t, err); !reflect.DeepEqual(done, []bool{false, true}) {
		t.Errorf("removals: %v", done)
	}
}

func testTakeTasks(t *testing.T, s store.Store) {
	for i := range 10 {
		putTasks(t, s, store.Task{Key: fmt.Sprint("room/", i), Queue: "q", At: int64(10 + i), Value: []byte{byte(i)}})
	}
	putTasks(t, s, store.Task{Key: "room/other", Queue: "qq", At: 1, Value: []byte{}}, store.Task{Key: "room/never", Queue: "q", At: store.Never, Value: []byte{}})
	take := func(now, until int64, limit, want int, what string) []store.Task {
		t.Helper()
		ts, err := s.TakeTasks(ctx, "q", "me", now, until, limit)
		must(t, err)
		if len(ts) != want {
			t.Fatalf("%s: %d tasks, want %d", what, len(ts), want)
		}
		return ts
	}
	take(9, 50, 10, 0, "before any is due")
	first := take(12, 50, 10, 3, "what is due")
	for i, x := range first {
		if x.Key != fmt.Sprint("room/", i) || x.Owner != "me" || x.At != 50 || string(x.Value) != string([]byte{byte(i)}) {
			t.Errorf("taken: %+v", x)
		}
	}
	if now, err := s.TasksOf(ctx, []string{"room/0"}); err != nil || !reflect.DeepEqual(now[0], first[0]) {
		t.Errorf("it is %+v, taken was %+v: %v", now, first[0], err)
	}
	take(12, 50, 10, 0, "what another holds")
	if ts := take(19, 60, 2, 2, "a few"); ts[0].At != 60 {
		t.Errorf("%+v", ts)
	}
	putTasks(t, s, store.Task{Key: "room/0", Ver: first[0].Ver}, store.Task{Key: "room/1", Queue: "q", At: 12, Value: []byte("back"), Ver: first[1].Ver})
	if ts := take(12, 50, 10, 1, "what was put back"); string(ts[0].Value) != "back" {
		t.Errorf("%+v", ts)
	}
	take(60, 90, 100, 9, "all, as nobody holds them any more")
	take(1<<60, 1<<61, 100, 9, "all but what never comes")
}

// testTakeTasksRace has many take, finish and put back tasks at once: each is
// finished once.
func testTakeTasksRace(t *testing.T, s store.Store) {
	const tasks = 60
	for i := range tasks {
		putTasks(t, s, store.Task{Key: fmt.Sprint("room/", i), Queue: "q", At: 1, Value: []byte("0")})
	}
	FinishTasks(t, []store.Store{s, s, s, s, s, s}, tasks, false)
}

// FinishTasks has takers take, put back and finish the tasks "room/0" to "room/"
// tasks-1 of the queue "q", due at 1, until none is left: each is finished once. If
// answers get lost, who puts one back may hear that somebody changed it, because
// another has taken it since.
func FinishTasks(t *testing.T, takers []store.Store, tasks int, answersGetLost bool) {
	finished := make([]atomic.Int32, tasks)
	var left atomic.Int32
	left.Store(int32(tasks))
	var wg sync.WaitGroup
	for g, s := range takers {
		wg.Go(func() {
			for round := 0; left.Load() > 0; round++ {
				ts, err := s.TakeTasks(ctx, "q", fmt.Sprint(g), 1, 1000, 5)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range ts {
					if ts[i].Owner != fmt.Sprint(g) {
						t.Errorf("%d got a task of %s", g, ts[i].Owner)
					}
					if (round+i)%3 == 0 {
						ts[i].At, ts[i].Owner = 1, "" // not now
					} else {
						ts[i].Value = nil
					}
				}
				done, err := s.PutTasks(ctx, ts)
				if err != nil {
					t.Error(err)
					return
				}
				for i, ok := range done {
					var n int
					_, _ = fmt.Sscanf(ts[i].Key, "room/%d", &n)
					switch putBack := ts[i].Value != nil; {
					case !ok && !(putBack && answersGetLost):
						t.Errorf("%s was changed while it was held", ts[i].Key)
					case ok && !putBack:
						finished[n].Add(1)
						left.Add(-1)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range finished {
		if n := finished[i].Load(); n != 1 {
			t.Errorf("task %d was finished %d times", i, n)
		}
	}
}
