package mongostore

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/storetest"
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
	storetest.FinishTasks(t, []store.Store{stores[0], stores[1], stores[0], stores[1]}, tasks, true)
}
