package app

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/parley-im/parley/im"
)

// limiter bounds how fast each user publishes: messages and bytes. It keeps a
// bucket per user who published lately, and forgets full ones.
type limiter struct {
	perSecond float64
	burst     int
	bytes     float64 // per second; 0: no limit
	largest   int     // message: it passes at once, whatever bytes is
	now       func() time.Time

	mu      sync.Mutex
	buckets map[im.UserID]*bucket
	swept   time.Time
}

type bucket struct {
	messages, bytes *rate.Limiter
	used            time.Time
}

func newLimiter(perSecond float64, burst int, bytesPerSecond float64, largest int) *limiter {
	return &limiter{perSecond: perSecond, burst: burst, bytes: bytesPerSecond, largest: largest, now: time.Now, buckets: make(map[im.UserID]*bucket)}
}

// Allow reports whether the user may publish n bytes now: a method of hooks.Limiter.
func (l *limiter) Allow(u im.UserID, n int) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	b := l.buckets[u]
	if b == nil {
		b = &bucket{messages: rate.NewLimiter(rate.Limit(l.perSecond), l.burst)}
		if l.bytes > 0 {
			b.bytes = rate.NewLimiter(rate.Limit(l.bytes), max(int(l.bytes), l.largest, 1<<20))
		}
		l.buckets[u] = b
	}
	b.used = now
	if b.bytes != nil && !b.bytes.AllowN(now, n) {
		return false
	}
	return b.messages.AllowN(now, 1)
}

// bucketIdle is after how long a bucket is full again and can be forgotten.
const bucketIdle = time.Minute

func (l *limiter) sweep(now time.Time) {
	if now.Sub(l.swept) < bucketIdle {
		return
	}
	l.swept = now
	for u, b := range l.buckets {
		if now.Sub(b.used) > bucketIdle {
			delete(l.buckets, u)
		}
	}
}
