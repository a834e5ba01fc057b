package httpapi

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bounds how fast requests are taken. A zero field has its default; Off
// lifts all of them.
type Limits struct {
	Off bool

	AddressRate   float64 // requests a second from one address (IPv6: one /64); default 200
	AddressBurst  int     // default 1,000
	UserRate      float64 // operations a second by one user, over HTTP and RPC together; default 50
	UserBurst     int     // default 1,000
	RegisterRate  float64 // new accounts a second from one address; default 5
	RegisterBurst int     // default 1,000
	Keys          int     // addresses and users remembered, each; default 100,000
}

func (l *Limits) fill() {
	def(&l.AddressRate, 200)
	def(&l.AddressBurst, 1000)
	def(&l.UserRate, 50)
	def(&l.UserBurst, 1000)
	def(&l.RegisterRate, 5)
	def(&l.RegisterBurst, 1000)
	def(&l.Keys, 100_000)
}

func def[T int | float64 | time.Duration](p *T, v T) {
	if *p <= 0 {
		*p = v
	}
}

// buckets is a bounded set of token buckets. A key that is forgotten starts with
// a full bucket again, so the bound only ever errs in the caller's favour.
type buckets[K comparable] struct {
	rate  rate.Limit
	burst int
	size  int // full: idle buckets go first, then any
	mu    struct {
		sync.Mutex
		byKey map[K]*rate.Limiter
	}
}

func newBuckets[K comparable](perSecond float64, burst, size int) *buckets[K] {
	b := &buckets[K]{rate: rate.Limit(perSecond), burst: burst, size: size}
	b.mu.byKey = map[K]*rate.Limiter{}
	return b
}

// take takes one token from key's bucket at now. When there is none it returns
// how long until there is.
func (b *buckets[K]) take(key K, now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	l := b.mu.byKey[key]
	if l == nil {
		if len(b.mu.byKey) >= b.size {
			b.makeRoomLocked(now)
		}
		l = rate.NewLimiter(b.rate, b.burst)
		b.mu.byKey[key] = l
	}
	b.mu.Unlock()
	if l.AllowN(now, 1) {
		return 0, true
	}
	return time.Duration(float64(time.Second) * (1 - l.TokensAt(now)) / float64(b.rate)), false
}

// makeRoomLocked looks at a few buckets only: map order is random, and a scan of
// all of them would make the limit itself a way to slow us down.
func (b *buckets[K]) makeRoomLocked(now time.Time) {
	looked := 0
	for k, l := range b.mu.byKey {
		if looked++; looked > 16 {
			break
		}
		if l.TokensAt(now) >= float64(b.burst) {
			delete(b.mu.byKey, k)
		}
	}
	for k := range b.mu.byKey {
		if len(b.mu.byKey) < b.size {
			return
		}
		delete(b.mu.byKey, k)
	}
}

// limits is the set of buckets of one API; nil when they are off.
type limits struct {
	address  *buckets[netip.Addr]
	user     *buckets[string]
	register *buckets[netip.Addr]
}

func newLimits(l Limits) *limits {
	if l.Off {
		return nil
	}
	l.fill()
	return &limits{
		address:  newBuckets[netip.Addr](l.AddressRate, l.AddressBurst, l.Keys),
		user:     newBuckets[string](l.UserRate, l.UserBurst, l.Keys),
		register: newBuckets[netip.Addr](l.RegisterRate, l.RegisterBurst, l.Keys),
	}
}

// tooMany is the refusal of a bucket that will have a token again after wait.
func tooMany(wait time.Duration) *problem {
	return newProblem(429, codeTooMany, "too many requests: wait as long as Retry-After says").retryAfter(wait)
}
