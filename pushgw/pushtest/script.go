package pushtest

import (
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Request is what a script knows about a push before it is looked at.
type Request struct {
	N           uint64 // counts requests for pushes from 1, over all providers
	Provider    string // pushgw.APNs, FCM or WebPush
	Environment string // APNs
	Token       string // APNs and Web Push; FCM has it in the body: ""
	ID          string // apns-id
}

// Reply tells a simulator what to do instead of behaving. The zero Reply is to
// behave.
type Reply struct {
	Delay      time.Duration // before anything else
	Reset      Reset
	Goaway     bool          // finish the streams of this connection and take no more
	Status     int           // 0: as it comes out
	Reason     string        // APNs: reason; FCM: errorCode; Apple's Web Push: reason
	Field      string        // FCM: a field violation names this field
	Device     bool          // FCM, 429: the quota is the device's
	RetryAfter time.Duration // sent when not 0
	Since      time.Time     // APNs: the timestamp of a 410
	Body       string        // sent as HTML, instead of what the provider would say
}

// Reset says when the connection is reset, with all that was under way on it.
type Reset uint8

// Resets.
const (
	NoReset     Reset = iota
	ResetBefore       // nothing happened
	ResetAfter        // the push was accepted, and nobody will ever say so
)

// script is the queue of replies for the next requests, per provider.
type script struct {
	mu    sync.Mutex
	n     uint64
	queue map[string][]Reply
	then  func(Request) Reply
}

// Next makes the next pushes to a provider end as told, one each, before
// Options.Script is asked again.
func (s *Simulator) Next(provider string, replies ...Reply) {
	s.script.mu.Lock()
	defer s.script.mu.Unlock()
	s.script.queue[provider] = append(s.script.queue[provider], replies...)
}

func (c *script) reply(r Request) Reply {
	c.mu.Lock()
	c.n++
	r.N = c.n
	if q := c.queue[r.Provider]; len(q) > 0 {
		c.queue[r.Provider] = q[1:]
		c.mu.Unlock()
		return q[0]
	}
	c.mu.Unlock()
	if c.then == nil {
		return Reply{}
	}
	return c.then(r)
}

// begin does what comes before the push is looked at. It reports whether the push
// is to be looked at.
func (s *Simulator) begin(w http.ResponseWriter, r *http.Request, rep Reply, refuse func(Reply)) bool {
	if rep.Delay > 0 {
		t := time.NewTimer(rep.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return false
		case <-s.closing:
			return false
		}
	}
	if rep.Goaway {
		w.Header().Set("Connection", "close") // net/http's way to say GOAWAY
	}
	if rep.Reset == ResetBefore {
		reset(r)
		return false
	}
	if rep.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(rep.RetryAfter/time.Second)))
	}
	if rep.Status == 0 {
		return true
	}
	if rep.Body != "" {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(rep.Status)
		_, _ = w.Write([]byte(rep.Body)) // the client went away
		return false
	}
	refuse(rep)
	return false
}

type connKey struct{}

// reset ends the connection of r with a TCP reset.
func reset(r *http.Request) {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn() // under TLS: no close_notify
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // it is closed next anyway
	}
	_ = c.Close()
}

// Weather is a script of random faults, for load and for operators. Shares are
// 0 to 1.
type Weather struct {
	Seed        uint64
	Latency     time.Duration // the least
	Jitter      time.Duration // up to this much more
	Unavailable float64       // share of 503
	TooMany     float64       // share of 429 with RetryAfter
	RetryAfter  time.Duration
	Lost        float64 // share accepted, but the connection is reset before the answer
	GoawayEvery uint64  // every so many requests; 0: never
}

// Script is the weather as Options.Script.
func (x Weather) Script() func(Request) Reply {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(x.Seed, 0))
	return func(r Request) Reply {
		mu.Lock()
		fault, jitter := rnd.Float64(), rnd.Float64()
		mu.Unlock()
		rep := Reply{Delay: x.Latency + time.Duration(jitter*float64(x.Jitter))}
		rep.Goaway = x.GoawayEvery > 0 && r.N%x.GoawayEvery == 0
		switch {
		case fault < x.Unavailable:
			rep.Status, rep.Reason = http.StatusServiceUnavailable, "ServiceUnavailable"
			if r.Provider == "fcm" {
				rep.Reason = "UNAVAILABLE"
			}
		case fault < x.Unavailable+x.TooMany:
			rep.Status, rep.Reason, rep.RetryAfter = http.StatusTooManyRequests, "TooManyRequests", x.RetryAfter
			if r.Provider == "fcm" {
				rep.Reason = "QUOTA_EXCEEDED"
			}
		case fault < x.Unavailable+x.TooMany+x.Lost:
			rep.Reset = ResetAfter
		}
		return rep
	}
}
