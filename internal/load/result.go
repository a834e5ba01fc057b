package load

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Result is what one run of a scenario measured.
type Result struct {
	Scenario   string  `json:"scenario"`
	Target     string  `json:"target"`
	Seconds    float64 `json:"seconds"`
	Messages   int64   `json:"messages"` // published, or delivered where that is what counts
	Rate       float64 `json:"rate"`     // of Messages, per second
	CPU        float64 `json:"cpu_us"`   // of the server per message, microseconds
	AckP50     float64 `json:"ack_p50_ms,omitempty"`
	AckP99     float64 `json:"ack_p99_ms,omitempty"`
	DeliverP50 float64 `json:"deliver_p50_ms,omitempty"`
	DeliverP99 float64 `json:"deliver_p99_ms,omitempty"`
	Lost       int64   `json:"lost"`
	Duplicate  int64   `json:"duplicate"`
	Disorder   int64   `json:"out_of_order"`
	KB         float64 `json:"kb_per_connection,omitempty"`
}

// histogram counts durations in buckets of about 3 % width; any goroutine may add.
type histogram struct{ n [64 * 32]atomic.Int64 }

func (h *histogram) add(d time.Duration) {
	v := uint64(max(d, 1))
	e := bits.Len64(v)
	sub := uint64(0)
	if e > 6 {
		sub = v >> (e - 6) & 31
	}
	h.n[e*32+int(sub)].Add(1)
}

// at returns the quantile in milliseconds.
func (h *histogram) at(q float64) float64 {
	total := int64(0)
	for i := range h.n {
		total += h.n[i].Load()
	}
	left := int64(float64(total) * q)
	for i := range h.n {
		if left -= h.n[i].Load(); left < 0 {
			e, sub := i/32, uint64(i%32)
			v := uint64(1) << max(e-1, 0)
			if e > 6 {
				v += sub << (e - 6)
			}
			return float64(v) / 1e6
		}
	}
	return 0
}
