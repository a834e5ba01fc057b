package httpapi

import (
	"testing"
	"time"
)

func TestBucketsFillAgain(t *testing.T) {
	b := newBuckets[string](2, 3, 10)
	now := time.Unix(1000, 0)
	for i := range 3 {
		if _, ok := b.take("a", now); !ok {
			t.Fatalf("take %d of a burst of 3 was refused", i+1)
		}
	}
	wait, ok := b.take("a", now)
	if ok || wait <= 0 || wait > 500*time.Millisecond {
		t.Fatalf("the fourth: ok %v, wait %v; want a refusal for at most 500ms", ok, wait)
	}
	if _, ok := b.take("b", now); !ok {
		t.Error("another key pays for the first")
	}
	if _, ok := b.take("a", now.Add(wait)); !ok {
		t.Error("refused after the wait that was promised")
	}
}

func TestBucketsAreBounded(t *testing.T) {
	b := newBuckets[int](1, 1, 100)
	now := time.Unix(1000, 0)
	for i := range 10_000 {
		if _, ok := b.take(i, now); !ok {
			t.Fatalf("a new key was refused")
		}
		if n := len(b.mu.byKey); n > 100 {
			t.Fatalf("%d keys are remembered, want at most 100", n)
		}
	}
}
