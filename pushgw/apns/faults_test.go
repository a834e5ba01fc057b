package apns

import (
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/pushtest"
)

// What apns2 gets wrong, and how we do not (docs/push.md, "Sending with apns2"):
// one test for each.

func TestAnExpirationOfZeroIsSent(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	p := alert(1)
	p.Expires = time.Time{} // now or never; without the header APNs keeps it for 30 days
	if r := open(t, sim, nil, nil).Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Fatalf("%+v", r)
	}
	if e := sim.Ledger()[0]; !e.Expires.IsZero() {
		t.Errorf("APNs keeps it until %v", e.Expires)
	}
}

func TestAnAnswerThatIsNoJSONKeepsItsStatus(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	for status, want := range map[int]pushgw.Result{
		502: {Outcome: pushgw.Retry, Reason: "http 502"},
		504: {Outcome: pushgw.Retry, Reason: "http 504"},
		413: {Outcome: pushgw.TooLarge, Reason: "http 413"},
		404: {Outcome: pushgw.Rejected, Reason: "http 404"},
	} {
		for _, body := range []string{"<html>a proxy speaks</html>", "{", `"text"`, `{"reason":7}`} {
			sim.Next(pushgw.APNs, pushtest.Reply{Status: status, Body: body})
			if r := s.Send(t.Context(), alert(1)); r.Outcome != want.Outcome || r.Reason != want.Reason {
				t.Errorf("%d %s: %+v", status, body, r)
			}
		}
	}
}

func TestRetryAfterIsKept(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	for _, rep := range []pushtest.Reply{{Status: 429, Reason: "TooManyRequests"}, {Status: 503, Reason: "ServiceUnavailable"}, {Status: 502, Body: "a proxy"}} {
		rep.RetryAfter = 90 * time.Second
		sim.Next(pushgw.APNs, rep)
		if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Retry || r.After != rep.RetryAfter {
			t.Errorf("%d: %+v", rep.Status, r)
		}
	}
}

func TestATokenCannotChangeTheURL(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	asked := 0
	for _, token := range []string{"00/../../x", "..", "00?x=1", "00#x", "00%2f00", "00 00", "00\r\nx: y", "//example.com/00", "é0"} {
		p := alert(1)
		p.To.Token = token
		if r := s.Send(t.Context(), p); r.Outcome != pushgw.Gone {
			t.Errorf("%q: %+v", token, r)
		}
		asked++
	}
	for _, e := range s.environments {
		for _, c := range e.conns {
			if c.mu.link != nil {
				t.Errorf("one of %d tokens made a request", asked)
			}
		}
	}
}

func TestEnvironmentsDoNotTouchEachOther(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	const each = 200
	var all sync.WaitGroup
	for n, env := range []string{Production, Sandbox} {
		all.Go(func() {
			for i := range each {
				p := alert(n*each + i)
				p.To.Environment = env
				if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
					t.Errorf("%s: %+v", env, r)
				}
			}
		})
	}
	all.Wait()
	want := map[string]string{}
	for i := range 2 * each {
		want[id(i)] = []string{Production, Sandbox}[i/each]
	}
	for _, e := range sim.Ledger() {
		if e.Environment != want[e.ID] {
			t.Errorf("%s went to %s, not %s", e.ID, e.Environment, want[e.ID])
		}
		delete(want, e.ID)
	}
	if len(want) != 0 {
		t.Errorf("%d did not arrive", len(want))
	}
}

// TestSeveralConnectionsAreUsed: pushes under way share the connections evenly, so
// that a round trip of 100 ms does not bound an app to the streams of one.
func TestSeveralConnectionsAreUsed(t *testing.T) {
	const conns, each = 3, 4
	begun, answer := make(chan struct{}, conns*each), make(chan struct{})
	sim := simulate(t, pushtest.Options{Script: func(pushtest.Request) pushtest.Reply {
		begun <- struct{}{}
		<-answer
		return pushtest.Reply{}
	}})
	s := open(t, sim, nil, func(c *Config) { c.Connections = conns })
	var all sync.WaitGroup
	for i := range conns * each {
		all.Go(func() {
			if r := s.Send(t.Context(), alert(i)); r.Outcome != pushgw.Sent {
				t.Errorf("%+v", r)
			}
		})
	}
	for range conns * each {
		<-begun
	}
	for i, c := range s.environments[Production].conns {
		if n := c.mu.link.InFlight(); n != each {
			t.Errorf("connection %d has %d pushes under way, not %d", i, n, each)
		}
	}
	close(answer)
	all.Wait()
}
