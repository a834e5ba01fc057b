package storetest

import (
	"fmt"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Bench measures an engine: appends to one hot conversation and to many cold
// ones, with and without ids, lone appends, ranges and the heads of a tenth of
// the conversations. conversations is 10,000 unless the server behind the engine
// is only a stand-in.
func Bench(b *testing.B, conversations int, open func(b testing.TB) store.Store) {
	hot := func(int) im.ConvID { return dm }
	cold := func(i int) im.ConvID { return im.DM("alice", im.UserID(fmt.Sprint("u", i%conversations))) }
	b.Run("append/hot", func(b *testing.B) { benchAppend(b, open(b), hot, 1000, false) })
	b.Run("append/cold", func(b *testing.B) { benchAppend(b, open(b), cold, 1000, false) })
	b.Run("append/cold-with-ids", func(b *testing.B) { benchAppend(b, open(b), cold, 1000, true) })
	b.Run("append/lone", func(b *testing.B) { benchAppend(b, open(b), hot, 1, false) })
	b.Run("range/50", func(b *testing.B) {
		s := open(b)
		defer func() { _ = s.Close() }()
		fill(b, s, 1000)
		b.ReportAllocs()
		for b.Loop() {
			if es, err := s.Range(ctx, dm, 900, 50, 1<<20); err != nil || len(es) != 50 {
				b.Fatal(len(es), err)
			}
		}
	})
	b.Run(fmt.Sprint("heads/", conversations/10), func(b *testing.B) {
		s := open(b)
		defer func() { _ = s.Close() }()
		var convs []im.ConvID
		for i := range conversations / 10 {
			convs = append(convs, cold(i))
			appendAll(b, s, entry(cold(i), "alice", "x"))
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Heads(ctx, convs); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func fill(b testing.TB, s store.Store, n int) {
	as := make([]*store.Append, n)
	for i := range as {
		as[i] = entry(dm, "alice", "0123456789")
	}
	appendAll(b, s, as...)
}

// benchAppend keeps window appends in flight.
func benchAppend(b *testing.B, s store.Store, conv func(int) im.ConvID, window int, ids bool) {
	defer func() { _ = s.Close() }()
	body := make([]byte, 100)
	slots := make(chan struct{}, window)
	done := func(a *store.Append) {
		if a.Err != nil {
			b.Error(a.Err)
		}
		<-slots
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		slots <- struct{}{}
		a := &store.Append{Entry: im.Entry{Conv: conv(i), From: "alice", Device: "phone", Body: body}, Done: done}
		if ids {
			a.Entry.ID = fmt.Sprint(i)
		}
		s.Append(a)
	}
	for range window {
		slots <- struct{}{}
	}
}
