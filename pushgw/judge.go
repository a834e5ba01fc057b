package pushgw

import (
	"math/rand/v2"
	"time"
)

// fate is what becomes of a bell after an attempt.
type fate uint8

const (
	rung      fate = iota // the provider has it
	again                 // later, at verdict.at
	forgotten             // its address is dead: it goes too
	dropped               // it is of no use any more
	buried                // it cannot be rung: a dead letter
)

// verdict is what follows from an answer.
type verdict struct {
	fate    fate
	at      time.Time // again
	tries   int       // again: the bell's, from now on
	small   int
	reason  string // named, for metrics and explanations
	because string // the provider's word
}

// Retries: full jitter between 0 and a bound that doubles.
const (
	retryFirst = time.Second
	retryMax   = 15 * time.Minute
)

// judge says what becomes of b, as it was sent, after an answer about an address
// that was registered at the time given.
func judge(b *bell, registered int64, res Result, now time.Time) verdict {
	v := verdict{at: now, tries: b.Tries, small: b.Small, because: res.Reason}
	switch res.Outcome {
	case Sent:
		v.fate, v.reason = rung, "rung"
	case TooLarge:
		if v.small++; v.small > 2 {
			v.fate, v.reason, v.because = buried, "dead_letter", "too_large"
			return v
		}
		v.fate, v.reason = again, "too_large"
	case Misplaced:
		v.fate, v.reason = forgotten, "address_misplaced"
	case Rejected:
		v.fate, v.reason = buried, "dead_letter"
	case Locked:
		v.fate, v.reason = again, "circuit_open" // it waits for the app
	case Gone:
		if res.Since.IsZero() || registered < res.Since.UnixMilli() {
			v.fate, v.reason = forgotten, "address_gone"
			return v
		}
		return v.later(b, res, now) // it was registered after that: the provider is behind
	default:
		return v.later(b, res, now)
	}
	return v
}

// later has the bell tried again, unless it would be too late.
func (v verdict) later(b *bell, res Result, now time.Time) verdict {
	bound := min(retryFirst<<min(b.Tries, 20), retryMax)
	v.tries++
	v.at = now.Add(res.After + time.Duration(rand.Int64N(int64(bound))))
	v.fate, v.reason = again, "retry"
	if v.at.UnixMilli() <= b.Expires {
		return v
	}
	if b.Kind == Call {
		v.fate, v.reason = dropped, "expired"
		return v
	}
	v.fate, v.reason, v.because = buried, "dead_letter", "expired after "+res.Reason
	return v
}

// Paces of one device, as providers throttle what is faster.
const (
	loudEvery   = time.Second // APNs: no number is published; apps that send more are throttled
	loudBurst   = 10
	silentEvery = 30 * time.Minute // APNs: two or three background pushes an hour
	silentBurst = 3
)

// pace takes the next turn of the device for a push and returns how long it is
// until then. A clear has no turn later: ok is false if it has none now. Calls
// take none.
func (r *Registration) pace(k Kind, now time.Time) (wait time.Duration, ok bool) {
	turn := func(next int64, every time.Duration, burst int64) (int64, time.Duration) {
		next = max(next, now.UnixMilli()) + every.Milliseconds()
		return next, time.Duration(next-burst*every.Milliseconds()-now.UnixMilli()) * time.Millisecond
	}
	switch k {
	case Alert:
		r.Loud, wait = turn(r.Loud, loudEvery, loudBurst)
	case Clear:
		next, wait := turn(r.Silent, silentEvery, silentBurst)
		if wait > 0 {
			return 0, false
		}
		r.Silent = next
	}
	return max(wait, 0), true
}
