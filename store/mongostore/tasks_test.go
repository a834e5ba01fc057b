package mongostore

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parley-im/parley/store"
)

// TestTasksUnderFaults has two processes take, put back and finish tasks while
// commands fail in every way: each is finished once, and none is lost. Who puts
// one back may hear that somebody changed it: his answer was lost, and another
// has taken it.
func TestTasksUnderFaults(t *testing.T) {
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", n)
	uri := server.Database(t)
	open := func() *Store {
		s, err := Open(ctx, uri, Options{Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	stores := []*Store{open(), open()}
	const tasks = 40
	var ts []store.Task
	for i := range tasks {
		ts = append(ts, store.Task{Key: fmt.Sprint("room/", i), Queue: "q", At: 1, Value: []byte("0")})
	}
	if _, err := stores[0].PutTasks(ctx, ts); err != nil {
		t.Fatal(err)
	}
	inject(t, uri, randomFaults(rand.New(rand.NewPCG(n, 4)), 4))
	finished := make([]atomic.Int32, tasks)
	var left atomic.Int32
	left.Store(tasks)
	var wg sync.WaitGroup
	for g, s := range []*Store{stores[0], stores[1], stores[0], stores[1]} {
		wg.Go(func() {
			for round := 0; left.Load() > 0; round++ {
				ts, err := s.TakeTasks(ctx, "q", fmt.Sprint(g), 1, 1000, 5)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range ts {
					if (round+i)%3 == 0 {
						ts[i].At, ts[i].Owner = 1, ""
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
					if ts[i].Value != nil {
						continue
					}
					if !ok {
						t.Errorf("%s was changed while it was held", ts[i].Key)
						continue
					}
					finished[n].Add(1)
					left.Add(-1)
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
