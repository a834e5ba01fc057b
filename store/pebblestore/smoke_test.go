package pebblestore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const n = 2000
	wg.Add(n)
	for i := range n {
		s.Append(&store.Append{Entry: im.Entry{Conv: im.DM("a", im.UserID(fmt.Sprint("b", i%10))), From: "a", Body: []byte("x")}, Done: func(a *store.Append) {
			if a.Err != nil {
				t.Error(a.Err)
			}
			wg.Done()
		}})
	}
	wg.Wait()
	es, err := s.Range(context.Background(), im.DM("a", "b3"), 0, 1000, 1<<30)
	if err != nil || len(es) != 200 || es[199].Seq != 200 {
		t.Fatal(len(es), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	hs, _ := s.Heads(context.Background(), []im.ConvID{im.DM("a", "b3"), "d/x/y"})
	if hs[0].Seq != 200 || hs[1].Seq != 0 {
		t.Fatal(hs)
	}
	_ = s.Close()
	fmt.Println(Verify(dir))
}

func BenchmarkAppend64(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	body := make([]byte, 100)
	sem := make(chan struct{}, 800)
	done := func(a *store.Append) { <-sem }
	convs := make([]im.ConvID, 50)
	for i := range convs {
		convs[i] = im.DM("alice", im.UserID(fmt.Sprint("bob", i)))
	}
	b.ReportAllocs()
	t0 := time.Now()
	for i := range b.N {
		sem <- struct{}{}
		s.Append(&store.Append{Entry: im.Entry{Conv: convs[i%50], From: "alice", Device: "phone", Body: body}, Done: done})
	}
	for range cap(sem) {
		sem <- struct{}{}
	}
	b.ReportMetric(float64(b.N)/time.Since(t0).Seconds(), "msg/s")
}

func BenchmarkLone(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ch := make(chan struct{})
	for range b.N {
		s.Append(&store.Append{Entry: im.Entry{Conv: "g/x", From: "alice", Body: make([]byte, 100)}, Done: func(*store.Append) { ch <- struct{}{} }})
		<-ch
	}
}
