package pebblestore

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// TestTheSameTwiceInABatch: an id or a QoS 2 packet that comes again before the
// first was committed is known nevertheless.
func TestTheSameTwiceInABatch(t *testing.T) {
	s := open(t, "db", Options{FS: vfs.NewMem()})
	defer func() { _ = s.Close() }()
	for i, entry := range []store.Append{
		{Entry: im.Entry{Conv: "d/a/b", From: "a", Device: "d", ID: "1"}},
		{Entry: im.Entry{Conv: "d/a/b", From: "a", Device: "d"}, Packet: 7},
	} {
		first, second := entry, entry
		done := make(chan struct{}, 2)
		first.Done, second.Done = func(*store.Append) { done <- struct{}{} }, func(*store.Append) { done <- struct{}{} }
		s.Append(&first, &second)
		<-done
		<-done
		if want := im.Seq(i + 1); first.Dup || first.Entry.Seq != want || !second.Dup || second.Entry.Seq != want {
			t.Errorf("%+v: seq %d dup %v, then seq %d dup %v", entry, first.Entry.Seq, first.Dup, second.Entry.Seq, second.Dup)
		}
	}
}
