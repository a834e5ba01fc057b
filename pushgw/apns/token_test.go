package apns

import (
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/pushtest"
)

// house is a simulator and senders under one clock.
func house(t *testing.T) (*clock, *pushtest.Simulator, *Tokens) {
	c := newClock()
	return c, simulate(t, pushtest.Options{Now: c.now}), NewTokens(c.now)
}

func send(t *testing.T, s *Sender, want pushgw.Outcome) pushgw.Result {
	t.Helper()
	p := alert(1)
	p.Expires = time.Time{}
	r := s.Send(t.Context(), p)
	if r.Outcome != want {
		t.Fatalf("%+v", r)
	}
	return r
}

func TestOneTokenForAllApps(t *testing.T) {
	c, sim, tokens := house(t)
	var wg sync.WaitGroup
	for range 10 {
		s := open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now })
		for range 10 {
			wg.Go(func() {
				if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Sent {
					t.Errorf("%+v", r)
				}
			})
		}
	}
	wg.Wait()
	if n := sim.Tokens(); n != 1 {
		t.Errorf("%d tokens, not one", n)
	}
}

func TestTokenAges(t *testing.T) {
	c, sim, tokens := house(t)
	s := open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now })
	for _, step := range []struct {
		after  time.Duration
		tokens int
	}{{0, 1}, {20 * time.Minute, 1}, {19 * time.Minute, 1}, {time.Minute, 2}, {39 * time.Minute, 2}, {time.Minute, 3}, {3 * time.Hour, 4}} {
		c.add(step.after)
		send(t, s, pushgw.Sent)
		if n := sim.Tokens(); n != step.tokens {
			t.Fatalf("%v later: %d tokens, want %d", step.after, n, step.tokens)
		}
	}
}

func TestExpiredProviderToken(t *testing.T) {
	expired := pushtest.Reply{Status: 403, Reason: "ExpiredProviderToken"}
	c, sim, tokens := house(t)
	s := open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now })
	send(t, s, pushgw.Sent)

	c.add(19 * time.Minute)
	sim.Next(pushgw.APNs, expired)
	if r := send(t, s, pushgw.Retry); r.After != time.Minute || r.Err == nil {
		t.Errorf("a young token: %+v", r)
	}
	if n := sim.Tokens(); n != 1 {
		t.Fatalf("a token was replaced after 19 minutes")
	}

	c.add(time.Minute)
	sim.Next(pushgw.APNs, expired)
	send(t, s, pushgw.Sent)
	if n := sim.Tokens(); n != 2 {
		t.Fatalf("%d tokens, want the second", n)
	}

	c.add(25 * time.Minute)
	sim.Next(pushgw.APNs, expired, expired)
	send(t, s, pushgw.Locked)
	if n := sim.Accepted(); n != 2 {
		t.Errorf("%d pushes were accepted, want 2", n)
	}
}

func TestManyExpiredMakeOneToken(t *testing.T) {
	c, sim, tokens := house(t)
	s := open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now })
	send(t, s, pushgw.Sent)
	c.add(30 * time.Minute)
	old, err := tokens.bearer(*s.key.Load())
	if err != nil {
		t.Fatal(err)
	}
	got := make([]string, 50)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var wait time.Duration
			var err error
			if got[i], wait, err = tokens.renew(*s.key.Load(), old); wait != 0 || err != nil {
				t.Error(wait, err)
			}
		})
	}
	wg.Wait()
	for _, b := range got {
		if b != got[0] || b == old {
			t.Fatal("they got different tokens")
		}
	}
}

func TestTooManyUpdatesStopsMaking(t *testing.T) {
	c, sim, tokens := house(t)
	s := open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now })
	send(t, s, pushgw.Sent)
	c.add(39 * time.Minute)
	sim.Next(pushgw.APNs, pushtest.Reply{Status: 429, Reason: "TooManyProviderTokenUpdates"})
	send(t, s, pushgw.Retry)
	c.add(6 * time.Minute) // 45: it would be renewed
	send(t, s, pushgw.Sent)
	if n := sim.Tokens(); n != 1 {
		t.Fatalf("%d tokens while held", n)
	}
	c.add(14*time.Minute + 30*time.Second) // 59:30: it would expire
	send(t, s, pushgw.Sent)
	if n := sim.Tokens(); n != 2 {
		t.Errorf("%d tokens: held until the old one is of no use", n)
	}
}

// TestRestart: a process that starts again, or another one of the fleet, makes the
// same token; a new one would be refused for 20 minutes.
func TestRestart(t *testing.T) {
	c, sim, tokens := house(t)
	send(t, open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now }), pushgw.Sent)
	for range 10 {
		c.add(3 * time.Minute)
		send(t, open(t, sim, NewTokens(c.now), func(cfg *Config) { cfg.Now = c.now }), pushgw.Sent)
	}
	if n := sim.Tokens(); n != 1 {
		t.Errorf("%d tokens, want one", n)
	}
}

func TestReload(t *testing.T) {
	c, sim, tokens := house(t)
	s := open(t, sim, tokens, func(cfg *Config) { cfg.Now = c.now })
	send(t, s, pushgw.Sent)
	team, kid, p8 := sim.SecondAPNsKey()
	if err := s.Reload(Key{Team: team, ID: kid, P8: []byte("broken")}); err == nil {
		t.Error("a broken key was taken")
	}
	send(t, s, pushgw.Sent)
	if err := s.Reload(Key{Team: team, ID: kid, P8: p8}); err != nil {
		t.Fatal(err)
	}
	send(t, s, pushgw.Sent)
	if n := sim.Tokens(); n != 2 {
		t.Errorf("%d tokens: the new key made none", n)
	}
	// The key of another id: APNs does not know the signature.
	if err := s.Reload(Key{Team: team, ID: "SIMKEYAAAA", P8: p8}); err != nil {
		t.Fatal(err)
	}
	if r := send(t, s, pushgw.Locked); r.Reason != "InvalidProviderToken" {
		t.Errorf("%+v", r)
	}
}
