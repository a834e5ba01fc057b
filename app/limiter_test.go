package app

import (
	"testing"
	"time"
)

// A body that limits.message allows can be published, however small
// limits.bytes_per_second is; sustained, that holds.
func TestTheLargestMessageFitsIntoTheLimits(t *testing.T) {
	const largest = 8 << 20
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(100, 100, 1<<20, largest)
	l.now = func() time.Time { return now }
	if !l.Allow("alice", largest) {
		t.Error("it is never allowed")
	}
	if l.Allow("alice", 1<<20) {
		t.Error("more than a second's bytes at once after it")
	}
	now = now.Add(time.Second)
	if !l.Allow("alice", 1<<20) {
		t.Error("a second's bytes after a second are refused")
	}
	now = now.Add(8 * time.Second)
	if !l.Allow("alice", largest) {
		t.Error("it is not allowed again")
	}
	unlimited := newLimiter(100, 100, 0, largest)
	if !unlimited.Allow("bob", 1<<30) {
		t.Error("0 bytes per second is no limit")
	}
}

func TestTheLimitIsPerUserAndForgotten(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(1, 2, 0, 0)
	l.now = func() time.Time { return now }
	for i, want := range []bool{true, true, false} {
		if got := l.Allow("alice", 1); got != want {
			t.Errorf("message %d: %v", i+1, got)
		}
	}
	if !l.Allow("bob", 1) {
		t.Error("bob pays for alice")
	}
	now = now.Add(2*bucketIdle + time.Second)
	l.Allow("carol", 1)
	if len(l.buckets) != 1 {
		t.Errorf("%d buckets are kept", len(l.buckets))
	}
}
