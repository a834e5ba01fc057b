package apns

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/pushtest"
)

const bundle = "im.parley.app"

// clock is a clock that tests turn.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Now().Truncate(renewEvery).UnixNano()) // when a token is just issued
	return c
}

func (c *clock) now() time.Time      { return time.Unix(0, c.ns.Load()) }
func (c *clock) add(d time.Duration) { c.ns.Add(int64(d)) }

// device makes the hex token of the n-th device.
func device(n int) string { return fmt.Sprintf("%064x", n) }

func id(n int) string { return fmt.Sprintf("11111111-2222-4333-8444-%012x", n) }

func simulate(t testing.TB, o pushtest.Options) *pushtest.Simulator {
	t.Helper()
	sim, err := pushtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	return sim
}

func open(t testing.TB, sim *pushtest.Simulator, tokens *Tokens, change func(*Config)) *Sender {
	t.Helper()
	team, kid, p8 := sim.APNsKey()
	cfg := Config{
		Bundle: bundle, Key: Key{Team: team, ID: kid, P8: p8}, Tokens: tokens,
		ProductionURL: sim.URLs.APNs, SandboxURL: sim.URLs.Sandbox, RootCAs: sim.CA(),
	}
	if tokens == nil {
		cfg.Tokens = NewTokens(nil)
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func alert(n int) *pushgw.Push {
	return &pushgw.Push{
		ID: id(n), To: pushgw.Address{Provider: pushgw.APNs, App: "ios", Token: device(n), Environment: Production},
		Collapse: "dm/bob", Thread: "dm/bob", Title: "bob", Body: "lunch?", Sound: "default", Expires: time.Now().Add(time.Hour),
		Data: map[string]string{"conv": "dm/bob", "seq": "7"},
	}
}

func TestReactions(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	since := time.UnixMilli(time.Now().Add(-time.Hour).UnixMilli())
	for i, c := range []struct {
		why   string
		reply pushtest.Reply
		want  pushgw.Result
	}{
		{"accepted", pushtest.Reply{}, pushgw.Result{Outcome: pushgw.Sent}},
		{"the app was removed: since when, to the millisecond", pushtest.Reply{Status: 410, Reason: "Unregistered", Since: since}, pushgw.Result{Outcome: pushgw.Gone, Reason: "Unregistered", Since: since}},
		{"the token is used up", pushtest.Reply{Status: 410, Reason: "ExpiredToken", Since: since}, pushgw.Result{Outcome: pushgw.Gone, Reason: "ExpiredToken", Since: since}},
		{"another app's token", pushtest.Reply{Status: 400, Reason: "DeviceTokenNotForTopic"}, pushgw.Result{Outcome: pushgw.Misplaced, Reason: "DeviceTokenNotForTopic"}},
		{"a topic that is not ours", pushtest.Reply{Status: 400, Reason: "TopicDisallowed"}, pushgw.Result{Outcome: pushgw.Misplaced, Reason: "TopicDisallowed"}},
		{"our mistake", pushtest.Reply{Status: 400, Reason: "BadPriority"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "BadPriority"}},
		{"the connection was idle", pushtest.Reply{Status: 400, Reason: "IdleTimeout"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "IdleTimeout"}},
		{"our mistake in the path", pushtest.Reply{Status: 404, Reason: "BadPath"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "BadPath"}},
		{"our mistake in the method", pushtest.Reply{Status: 405, Reason: "MethodNotAllowed"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "MethodNotAllowed"}},
		{"the key is not known", pushtest.Reply{Status: 403, Reason: "InvalidProviderToken"}, pushgw.Result{Outcome: pushgw.Locked, Reason: "InvalidProviderToken"}},
		{"no token", pushtest.Reply{Status: 403, Reason: "MissingProviderToken"}, pushgw.Result{Outcome: pushgw.Locked, Reason: "MissingProviderToken"}},
		{"a bad certificate", pushtest.Reply{Status: 403, Reason: "BadCertificate"}, pushgw.Result{Outcome: pushgw.Locked, Reason: "BadCertificate"}},
		{"a certificate for the other environment", pushtest.Reply{Status: 403, Reason: "BadCertificateEnvironment"}, pushgw.Result{Outcome: pushgw.Locked, Reason: "BadCertificateEnvironment"}},
		{"forbidden", pushtest.Reply{Status: 403, Reason: "Forbidden"}, pushgw.Result{Outcome: pushgw.Locked, Reason: "Forbidden"}},
		{"too large for them", pushtest.Reply{Status: 413, Reason: "PayloadTooLarge"}, pushgw.Result{Outcome: pushgw.TooLarge, Reason: "PayloadTooLarge"}},
		{"too many for this device", pushtest.Reply{Status: 429, Reason: "TooManyRequests", RetryAfter: 40 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "TooManyRequests", After: 40 * time.Second, Device: true}},
		{"tokens made too often", pushtest.Reply{Status: 429, Reason: "TooManyProviderTokenUpdates"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "TooManyProviderTokenUpdates"}},
		{"broken", pushtest.Reply{Status: 500, Reason: "InternalServerError"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "InternalServerError"}},
		{"unavailable, and for how long", pushtest.Reply{Status: 503, Reason: "ServiceUnavailable", RetryAfter: 7 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "ServiceUnavailable", After: 7 * time.Second}},
		{"shutting down", pushtest.Reply{Status: 503, Reason: "Shutdown", Goaway: true}, pushgw.Result{Outcome: pushgw.Retry, Reason: "Shutdown"}},
		{"a proxy's page keeps its status", pushtest.Reply{Status: 502, Body: "<html>Bad Gateway</html>", RetryAfter: 3 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "http 502", After: 3 * time.Second}},
		{"a reason that is not Apple's does not reach the log", pushtest.Reply{Status: 400, Reason: "token 00ff is wrong"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "http 400"}},
		{"accepted with a GOAWAY", pushtest.Reply{Goaway: true}, pushgw.Result{Outcome: pushgw.Sent}},
	} {
		sim.Next(pushgw.APNs, c.reply)
		if got := s.Send(t.Context(), alert(i)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
}

func TestNoAnswer(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	c := newClock()
	s := open(t, sim, nil, func(cfg *Config) { cfg.Connections, cfg.Now = 1, c.now })
	p := alert(1)

	sim.Next(pushgw.APNs, pushtest.Reply{Reset: pushtest.ResetAfter})
	r := s.Send(t.Context(), p)
	if r.Outcome != pushgw.Retry || r.Reason != "network" || r.Err == nil {
		t.Fatalf("after a reset: %+v", r)
	}
	if strings.Contains(r.Err.Error(), p.To.Token) {
		t.Errorf("the error holds the token: %v", r.Err)
	}
	// The connection had answered nothing: a pause.
	if r = s.Send(t.Context(), p); r.Outcome != pushgw.Retry || r.After <= 0 || r.After > firstPause {
		t.Fatalf("at once after it: %+v", r)
	}
	c.add(r.After)
	if r = s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Fatalf("the retry: %+v", r)
	}
	got := sim.Ledger()
	if len(got) != 2 || got[0].ID != p.ID || got[1].ID != p.ID || got[0].Collapse != got[1].Collapse {
		t.Errorf("the ledger must hold the push twice under one apns-id: %+v", got)
	}
	// A connection that had answered is followed by another at once.
	sim.Next(pushgw.APNs, pushtest.Reply{Reset: pushtest.ResetBefore})
	if r = s.Send(t.Context(), p); r.Outcome != pushgw.Retry {
		t.Fatalf("second reset: %+v", r)
	}
	if r = s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Errorf("after the second reset: %+v", r)
	}
	sim.Next(pushgw.APNs, pushtest.Reply{Delay: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan pushgw.Result)
	go func() { done <- s.Send(ctx, p) }()
	cancel()
	if r = <-done; r.Outcome != pushgw.Retry {
		t.Errorf("cancelled: %+v", r)
	}
}

func TestTimeout(t *testing.T) {
	sim := simulate(t, pushtest.Options{Script: func(pushtest.Request) pushtest.Reply { return pushtest.Reply{Delay: time.Hour} }})
	s := open(t, sim, nil, func(cfg *Config) { cfg.Timeout = 50 * time.Millisecond })
	if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Retry || r.Reason != "timeout" {
		t.Errorf("%+v", r)
	}
}

func TestUnreachableIsPaused(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	c := newClock()
	s := open(t, sim, nil, func(cfg *Config) { cfg.Now, cfg.Connections = c.now, 1 })
	if err := sim.Close(); err != nil {
		t.Fatal(err)
	}
	last := time.Duration(0)
	for i := range 8 {
		if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Retry || r.After != 0 {
			t.Fatalf("dial %d: %+v", i, r)
		}
		r := s.Send(t.Context(), alert(1))
		if r.Outcome != pushgw.Retry || r.After <= 0 || r.After > longPause {
			t.Fatalf("pause %d: %+v", i, r)
		}
		last = r.After
		c.add(r.After)
	}
	if last < longPause/2 {
		t.Errorf("the pause grew to %v only", last)
	}
}

func TestEnvironments(t *testing.T) {
	sim := simulate(t, pushtest.Options{KnownOnly: true})
	s := open(t, sim, nil, nil)
	sim.SetDevice(device(1), pushtest.Device{Environment: Production})
	sim.SetDevice(device(2), pushtest.Device{Environment: Sandbox})
	gone := time.UnixMilli(1_790_000_000_123)
	sim.SetDevice(device(4), pushtest.Device{Environment: Sandbox, Unregistered: gone})
	for _, c := range []struct {
		why  string
		n    int
		env  string
		want pushgw.Result
	}{
		{"known", 1, Production, pushgw.Result{}},
		{"found at once", 1, "", pushgw.Result{Environment: Production}},
		{"found in the other one", 2, "", pushgw.Result{Environment: Sandbox}},
		{"the app named the wrong one", 2, Production, pushgw.Result{Environment: Sandbox}},
		{"the app named the wrong one, the other way", 1, Sandbox, pushgw.Result{Environment: Production}},
		{"in neither, though one was named", 3, Sandbox, pushgw.Result{Outcome: pushgw.Gone, Reason: "BadDeviceToken"}},
		{"in neither", 3, "", pushgw.Result{Outcome: pushgw.Gone, Reason: "BadDeviceToken"}},
		{"gone from the other one", 4, "", pushgw.Result{Outcome: pushgw.Gone, Reason: "Unregistered", Since: gone}},
		{"a word that is none", 1, "staging", pushgw.Result{Outcome: pushgw.Rejected, Reason: "unknown environment"}},
	} {
		p := alert(c.n)
		p.To.Environment = c.env
		if got := s.Send(t.Context(), p); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
	p := alert(3)
	p.To.Environment = ""
	sim.Next(pushgw.APNs, pushtest.Reply{Status: 400, Reason: "BadDeviceToken"}, pushtest.Reply{Status: 403, Reason: "BadEnvironmentKeyInToken"})
	if got := s.Send(t.Context(), p); got.Outcome != pushgw.Gone {
		t.Errorf("a key for one environment only must not lock the app: %+v", got)
	}
}

func TestKinds(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	c := newClock()
	s := open(t, sim, nil, func(cfg *Config) { cfg.Now = c.now })
	soon := c.now().Add(callExpires).Truncate(time.Second)
	for i, x := range []struct {
		why                   string
		kind                  pushgw.Kind
		to                    string
		expires               time.Time
		topic, typ, prio, aps string
		stored                time.Time
	}{
		{"an alert", pushgw.Alert, "", soon.Add(time.Hour), bundle, "alert", "10", `{"alert":{"body":"lunch?","title":"bob"},"badge":3,"sound":"default","thread-id":"dm/bob"}`, soon.Add(time.Hour)},
		{"an alert, now or never", pushgw.Alert, "", time.Time{}, bundle, "alert", "10", `{"alert":{"body":"lunch?","title":"bob"},"badge":3,"sound":"default","thread-id":"dm/bob"}`, time.Time{}},
		{"a clear", pushgw.Clear, "", soon.Add(time.Hour), bundle, "background", "5", `{"badge":3,"content-available":1}`, soon.Add(time.Hour)},
		{"a call, which is short", pushgw.Call, "voip", soon.Add(time.Hour), bundle + ".voip", "voip", "10", `{"alert":{"body":"lunch?","title":"bob"},"badge":3,"sound":"default","thread-id":"dm/bob"}`, soon},
		{"a call where there is no VoIP token", pushgw.Call, "", soon, bundle, "alert", "10", `{"alert":{"body":"lunch?","title":"bob"},"badge":3,"interruption-level":"time-sensitive","sound":"default","thread-id":"dm/bob"}`, soon},
	} {
		p := alert(i)
		p.Kind, p.To.Kind, p.Expires, p.Badge, p.SetBadge = x.kind, x.to, x.expires, 3, true
		if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
			t.Errorf("%s: %+v", x.why, r)
			continue
		}
		l := sim.Ledger()
		e := l[len(l)-1]
		if e.Topic != x.topic || e.Type != x.typ || e.Priority != x.prio || !e.Expires.Equal(x.stored) || e.Collapse != p.Collapse || e.ID != p.ID {
			t.Errorf("%s: arrived as %+v", x.why, e)
		}
		var body map[string]json.RawMessage
		if err := json.Unmarshal(e.Payload, &body); err != nil {
			t.Fatal(err)
		}
		var got, want any
		if json.Unmarshal(body["aps"], &got) != nil || json.Unmarshal([]byte(x.aps), &want) != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: aps %s, want %s", x.why, body["aps"], x.aps)
		}
		if string(body["conv"]) != `"dm/bob"` || string(body["push"]) != `"`+x.kind.String()+`"` {
			t.Errorf("%s: data %s", x.why, e.Payload)
		}
	}
}

func TestLocalised(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	p := alert(1)
	p.TitleKey, p.TitleArgs, p.BodyKey, p.BodyArgs = "MSG_FROM", []string{"bob"}, "MSG_COUNT", []string{"3"}
	p.Mutable, p.Category, p.SetBadge = true, "message", true
	if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Fatalf("%+v", r)
	}
	const want = `{"alert":{"loc-args":["3"],"loc-key":"MSG_COUNT","title-loc-args":["bob"],"title-loc-key":"MSG_FROM"},"badge":0,"category":"message","mutable-content":1,"sound":"default","thread-id":"dm/bob"}`
	var body struct{ APS json.RawMessage }
	if err := json.Unmarshal(sim.Ledger()[0].Payload, &body); err != nil || string(body.APS) != want {
		t.Errorf("aps %s (%v), want %s", body.APS, err, want)
	}
}

func TestRefusedWithoutARequest(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	for _, c := range []struct {
		why    string
		change func(*pushgw.Push)
		want   pushgw.Outcome
	}{
		{"a token that would change the URL", func(p *pushgw.Push) { p.To.Token = "00/../../x" }, pushgw.Gone},
		{"an empty token", func(p *pushgw.Push) { p.To.Token = "" }, pushgw.Gone},
		{"a token without end", func(p *pushgw.Push) { p.To.Token = strings.Repeat("0f", 4000) }, pushgw.Gone},
		{"over 4 KB", func(p *pushgw.Push) { p.Body = strings.Repeat("x", 4096) }, pushgw.TooLarge},
		{"over 4 KB once it is JSON", func(p *pushgw.Push) { p.Body = strings.Repeat("\x01", 700) }, pushgw.TooLarge},
		{"a call over 5 KB", func(p *pushgw.Push) { p.Kind, p.To.Kind, p.Body = pushgw.Call, voip, strings.Repeat("x", 5120) }, pushgw.TooLarge},
		{"data that would replace aps", func(p *pushgw.Push) { p.Data = map[string]string{"aps": "{}"} }, pushgw.Rejected},
		{"an alert to a VoIP token", func(p *pushgw.Push) { p.To.Kind = voip }, pushgw.Rejected},
		{"a kind that is none", func(p *pushgw.Push) { p.Kind = 9 }, pushgw.Rejected},
	} {
		p := alert(1)
		c.change(p)
		if r := s.Send(t.Context(), p); r.Outcome != c.want {
			t.Errorf("%s: %+v", c.why, r)
		}
	}
	p := alert(1)
	p.Kind, p.To.Kind, p.Body = pushgw.Call, voip, strings.Repeat("x", 4800)
	if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Errorf("a call under 5 KB: %+v", r)
	}
	// To the byte: the largest that we let through is one that APNs takes.
	size := func(n int) int {
		p := alert(1)
		p.Body = strings.Repeat("x", n)
		out, refused := notification(p, bundle, time.Now())
		if refused != nil {
			return -1
		}
		return len(out.Payload.([]byte))
	}
	fits := maxPayload - size(1) + 1
	if size(fits) != maxPayload || size(fits+1) != -1 {
		t.Errorf("a body of %d bytes makes %d", fits, size(fits))
	}
	p = alert(1)
	p.Body = strings.Repeat("x", fits)
	if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Errorf("exactly 4 KB: %+v", r)
	}
	if n := sim.Accepted(); n != 2 {
		t.Errorf("%d pushes arrived, not the two good ones", n)
	}
}

func TestCertificate(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	pem, err := sim.APNsCertificate(bundle)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, sim, nil, func(c *Config) { c.Key, c.Tokens, c.Certificate = Key{}, nil, pem })
	if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Sent {
		t.Errorf("%+v", r)
	}
	if sim.Tokens() != 0 {
		t.Error("a provider token was sent with a certificate")
	}
	if s.Reload(Key{}) == nil {
		t.Error("a key replaces a certificate")
	}
	other, err := sim.APNsCertificate("im.other")
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, sim, nil, func(c *Config) { c.Key, c.Tokens, c.Certificate = Key{}, nil, other })
	if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Misplaced {
		t.Errorf("another app's certificate: %+v", r)
	}
}

// TestCertificateIsReplaced: a push that is under way when the certificate changes
// ends where it is, later ones go under the new one, and the old connection is
// closed then.
func TestCertificateIsReplaced(t *testing.T) {
	begun, answer := make(chan struct{}), make(chan struct{})
	slow := atomic.Bool{}
	sim := simulate(t, pushtest.Options{Script: func(pushtest.Request) pushtest.Reply {
		if slow.Swap(false) {
			close(begun)
			<-answer
		}
		return pushtest.Reply{}
	}})
	certificate := func(app string) []byte {
		pem, err := sim.APNsCertificate(app)
		if err != nil {
			t.Fatal(err)
		}
		return pem
	}
	s := open(t, sim, nil, func(c *Config) {
		c.Key, c.Tokens, c.Certificate, c.Connections = Key{}, nil, certificate(bundle), 1
	})
	if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Sent {
		t.Fatalf("%+v", r)
	}
	slow.Store(true)
	done := make(chan pushgw.Result, 1)
	go func() { done <- s.Send(t.Context(), alert(2)) }()
	<-begun
	if err := s.ReloadCertificate([]byte("x"), ""); err == nil {
		t.Error("rubbish is taken")
	}
	if err := s.ReloadCertificate(certificate("im.other"), ""); err != nil {
		t.Fatal(err)
	}
	old := s.environments[Production].conns[0].mu.retired
	if r := s.Send(t.Context(), alert(3)); r.Outcome != pushgw.Misplaced {
		t.Errorf("under the new certificate, which is another app's: %+v", r)
	}
	if err := old.Err(); err != nil {
		t.Errorf("the old connection has ended with a push on it: %v", err)
	}
	close(answer)
	if r := <-done; r.Outcome != pushgw.Sent {
		t.Errorf("under way meanwhile: %+v", r)
	}
	if err := s.ReloadCertificate(certificate(bundle), ""); err != nil {
		t.Fatal(err)
	}
	if r := s.Send(t.Context(), alert(4)); r.Outcome != pushgw.Sent {
		t.Errorf("the first one again: %+v", r)
	}
	if old.Err() == nil {
		t.Error("the old connection is still there")
	}
	if open(t, sim, nil, nil).ReloadCertificate(certificate(bundle), "") == nil {
		t.Error("a certificate replaces a key")
	}
}

func TestConfigRefused(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	team, kid, p8 := sim.APNsKey()
	good := Config{Bundle: bundle, Key: Key{team, kid, p8}, Tokens: NewTokens(nil)}
	for why, change := range map[string]func(*Config){
		"no bundle":                func(c *Config) { c.Bundle = "" },
		"no tokens":                func(c *Config) { c.Tokens = nil },
		"no team":                  func(c *Config) { c.Key.Team = "" },
		"not a key":                func(c *Config) { c.Key.P8 = []byte("x") },
		"not an environment":       func(c *Config) { c.Environment = "staging" },
		"not a certificate":        func(c *Config) { c.Certificate = []byte("x") },
		"an address without https": func(c *Config) { c.ProductionURL = "http://localhost" },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", why)
		} else if strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error holds the key", why)
		}
	}
}

func TestConcurrent(t *testing.T) {
	const pushes = 2000
	sim := simulate(t, pushtest.Options{Script: pushtest.Weather{Seed: 1, Jitter: time.Millisecond, GoawayEvery: 97, Unavailable: 0.05, TooMany: 0.05}.Script()})
	s := open(t, sim, nil, nil)
	var wg sync.WaitGroup
	work := make(chan int)
	for range 64 {
		wg.Go(func() {
			for n := range work {
				// As the gateway does: again until it is sent, with the same id.
				for {
					r := s.Send(t.Context(), alert(n))
					if r.Outcome == pushgw.Sent {
						break
					}
					if r.Outcome != pushgw.Retry {
						t.Errorf("push %d: %+v", n, r)
						break
					}
				}
			}
		})
	}
	for n := range pushes {
		work <- n
	}
	close(work)
	wg.Wait()
	seen := map[string]int{}
	for _, e := range sim.Ledger() {
		seen[e.ID]++
	}
	if len(seen) != pushes {
		t.Errorf("%d of %d pushes arrived", len(seen), pushes)
	}
	if n := sim.Tokens(); n != 1 {
		t.Errorf("%d provider tokens were made, not one", n)
	}
}

func TestClosed(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil, nil)
	if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Sent {
		t.Fatalf("%+v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r := s.Send(t.Context(), alert(1)); r.Outcome != pushgw.Retry {
		t.Errorf("after Close: %+v", r)
	}
}

// BenchmarkSend is pushes per second against the simulator, which takes about half
// of the CPU time.
func BenchmarkSend(b *testing.B) {
	for _, c := range []struct {
		name    string
		latency time.Duration
		workers int
	}{{"0ms", 0, 100}, {"50ms", 50 * time.Millisecond, 1000}} {
		b.Run(c.name, func(b *testing.B) {
			sim := simulate(b, pushtest.Options{LedgerSize: 1, Script: func(pushtest.Request) pushtest.Reply { return pushtest.Reply{Delay: c.latency} }})
			s := open(b, sim, nil, nil)
			p := alert(1)
			p.Body = strings.Repeat("x", 700)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range c.workers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if r := s.Send(context.Background(), p); r.Outcome != pushgw.Sent {
							b.Errorf("%+v", r)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pushes/s")
		})
	}
}
