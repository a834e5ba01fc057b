package auth

import (
	"net/netip"
	"sync"
	"time"

	"github.com/parley-im/parley/im"
)

// throttle counts failed attempts in a sliding window. It is bounded: when it
// is full the oldest half is forgotten, which an attacker pays for with as many
// failures.
type throttle struct {
	limit  int
	window time.Duration
	max    int

	mu sync.Mutex
	m  map[string]*strikes
}

type strikes struct {
	at []time.Time // the last ones, oldest first, at most limit
}

// Network is the address under which a caller is counted: one host of IPv4, one
// /64 of IPv6, which is what a single customer is given.
func Network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// counted is the name under which the failures from addr are counted. What is no
// address of IP, as that of a unix socket, stands for itself.
func counted(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	return Network(a).String()
}

func newThrottle(limit int, window time.Duration) *throttle {
	return &throttle{limit: limit, window: window, max: 100_000, m: make(map[string]*strikes)}
}

// check returns how long key has to wait; 0: not at all.
func (t *throttle) check(key string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.m[key]
	if s == nil {
		return 0
	}
	s.trim(now.Add(-t.window))
	if len(s.at) == 0 {
		delete(t.m, key)
	}
	if len(s.at) < t.limit {
		return 0
	}
	return s.at[0].Add(t.window).Sub(now)
}

// strike counts a failure.
func (t *throttle) strike(key string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.m[key]
	if s == nil {
		if len(t.m) >= t.max {
			t.forget(now)
		}
		s = &strikes{}
		t.m[key] = s
	}
	s.trim(now.Add(-t.window))
	if len(s.at) == t.limit {
		s.at = append(s.at[:0], s.at[1:]...)
	}
	s.at = append(s.at, now)
}

func (t *throttle) forget(now time.Time) {
	half := now.Add(-t.window / 2)
	for k, s := range t.m {
		if s.trim(half); len(s.at) == 0 {
			delete(t.m, k)
		}
	}
	for k := range t.m {
		if len(t.m) < t.max {
			return
		}
		delete(t.m, k)
	}
}

func (s *strikes) trim(before time.Time) {
	n := 0
	for n < len(s.at) && !s.at[n].After(before) {
		n++
	}
	s.at = append(s.at[:0], s.at[n:]...)
}

type tooMany struct{ wait time.Duration }

func (t *tooMany) Error() string { return "retry after " + t.wait.String() }

// RetryAfter is how long to wait: what the edge tells who has to.
func (t *tooMany) RetryAfter() time.Duration { return t.wait }

func tooManyErr(wait time.Duration) error {
	wait = (wait + time.Second - 1).Truncate(time.Second)
	return &im.Error{Kind: im.TooMany, Code: "too_many_attempts", Reason: "too many failed attempts: wait " + wait.String(), Err: &tooMany{wait}}
}
