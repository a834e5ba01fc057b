package pebblestore

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// TestHeadsComeAndGo: there are more conversations than heads in memory, and
// readers load and evict them all the time, also between the moment the
// sequencer looks a head up and the moment what it appended is durable.
func TestHeadsComeAndGo(t *testing.T) {
	s := open(t, "db", Options{FS: vfs.NewMem(), MaxHeads: 4})
	defer func() { _ = s.Close() }()
	const convs, rounds = 24, 60
	conv := func(i int) im.ConvID { return im.GroupConv(im.GroupID(fmt.Sprint("g", i))) }

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			for i := r; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Heads(context.Background(), []im.ConvID{conv(i % convs), conv((i * 7) % convs)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	seqs := make([]map[im.Seq]bool, convs)
	for i := range seqs {
		seqs[i] = map[im.Seq]bool{}
	}
	for round := range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range convs {
			wg.Add(1)
			s.Append(&store.Append{Entry: im.Entry{Conv: conv(i), From: "a", Device: "d", ID: fmt.Sprint(round)}, Done: func(a *store.Append) {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				if a.Err != nil || seqs[i][a.Entry.Seq] {
					t.Errorf("conversation %d: seq %d given twice, or %v", i, a.Entry.Seq, a.Err)
				}
				seqs[i][a.Entry.Seq] = true
			}})
		}
		wg.Wait()
	}
	close(stop)
	readers.Wait()
	for i := range convs {
		heads, err := s.Heads(context.Background(), []im.ConvID{conv(i)})
		if err != nil || heads[0].Seq != rounds {
			t.Errorf("conversation %d ends at %d after %d messages (%v)", i, heads[0].Seq, rounds, err)
		}
	}
}
