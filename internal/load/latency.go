package load

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are recorded in nanoseconds from 1 µs to 10 min, to three digits.
const (
	shortest = int64(time.Microsecond)
	longest  = int64(10 * time.Minute)
	digits   = 3
)

// Latency is a distribution of durations, in milliseconds.
type Latency struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99.9_ms"`
	Max   float64 `json:"max_ms"`
}

// latencies is a histogram that any goroutine may add to. It is split, so that
// those who add seldom meet; a histogram per goroutine would need 150 KB each.
type latencies [16]struct {
	sync.Mutex
	h *hdrhistogram.Histogram
	_ [40]byte // a cache line each
}

// add records durations; who spreads the callers.
func (l *latencies) add(who int, ds ...time.Duration) {
	s := &l[who%len(l)]
	s.Lock()
	defer s.Unlock()
	if s.h == nil {
		s.h = hdrhistogram.New(shortest, longest, digits)
	}
	for _, d := range ds {
		_ = s.h.RecordValue(min(max(int64(d), shortest), longest)) // it is within the range
	}
}

// summary is what was recorded so far; nil if nothing was.
func (l *latencies) summary() *Latency {
	all := hdrhistogram.New(shortest, longest, digits)
	for i := range l {
		s := &l[i]
		s.Lock()
		if s.h != nil {
			all.Merge(s.h)
		}
		s.Unlock()
	}
	if all.TotalCount() == 0 {
		return nil
	}
	ms := func(v int64) float64 { return float64(v) / 1e6 }
	return &Latency{
		Count: all.TotalCount(), P50: ms(all.ValueAtQuantile(50)), P90: ms(all.ValueAtQuantile(90)), P99: ms(all.ValueAtQuantile(99)),
		P999: ms(all.ValueAtQuantile(99.9)), Max: ms(all.Max()),
	}
}
