package fcm

import (
	"bytes"
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

func simulate(t testing.TB, o pushtest.Options) *pushtest.Simulator {
	t.Helper()
	sim, err := pushtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	return sim
}

func open(t testing.TB, sim *pushtest.Simulator, change func(*Config)) *Sender {
	t.Helper()
	cfg := Config{ServiceAccount: sim.ServiceAccount(), Endpoint: sim.URLs.FCM, RootCAs: sim.CA()}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// clock is a clock that tests turn, the client's and the simulator's.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time      { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) add(d time.Duration) { c.ahead.Add(int64(d)) }

func alert(token string) *pushgw.Push {
	return &pushgw.Push{
		ID: "11111111-2222-4333-8444-555555555555", To: pushgw.Address{Provider: pushgw.FCM, App: "android", Token: token},
		Collapse: "dm/bob", Title: "bob", Body: "lunch?", Sound: "default", Expires: time.Now().Add(time.Hour),
		Data: map[string]string{"conv": "dm/bob", "seq": "7", "from": "bob"},
	}
}

func TestReactions(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	for i, c := range []struct {
		why   string
		reply pushtest.Reply
		want  pushgw.Result
	}{
		{"accepted", pushtest.Reply{}, pushgw.Result{}},
		{"the app was removed", pushtest.Reply{Status: 404, Reason: "UNREGISTERED"}, pushgw.Result{Outcome: pushgw.Gone, Reason: "UNREGISTERED"}},
		{"there is no such project: keep the queue", pushtest.Reply{Status: 404}, pushgw.Result{Outcome: pushgw.Locked, Reason: "NOT_FOUND"}},
		{"another project's token", pushtest.Reply{Status: 403, Reason: "SENDER_ID_MISMATCH"}, pushgw.Result{Outcome: pushgw.Misplaced, Reason: "SENDER_ID_MISMATCH"}},
		{"the account may not send", pushtest.Reply{Status: 403}, pushgw.Result{Outcome: pushgw.Locked, Reason: "PERMISSION_DENIED"}},
		{"the token is none", pushtest.Reply{Status: 400, Reason: "INVALID_ARGUMENT", Field: "message.token"}, pushgw.Result{Outcome: pushgw.Gone, Reason: "INVALID_ARGUMENT"}},
		{"the installation id is none", pushtest.Reply{Status: 400, Reason: "INVALID_ARGUMENT", Field: "message.fid"}, pushgw.Result{Outcome: pushgw.Gone, Reason: "INVALID_ARGUMENT"}},
		{"our mistake", pushtest.Reply{Status: 400, Reason: "INVALID_ARGUMENT", Field: "message.android.ttl"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "INVALID_ARGUMENT"}},
		{"a mistake without details", pushtest.Reply{Status: 400, Reason: "INVALID_ARGUMENT"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "INVALID_ARGUMENT"}},
		{"the project's quota, without a time", pushtest.Reply{Status: 429, Reason: "QUOTA_EXCEEDED"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "QUOTA_EXCEEDED", After: time.Minute}},
		{"the project's quota, with a time", pushtest.Reply{Status: 429, Reason: "QUOTA_EXCEEDED", RetryAfter: 9 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "QUOTA_EXCEEDED", After: 9 * time.Second}},
		{"the quota of Google's front", pushtest.Reply{Status: 429}, pushgw.Result{Outcome: pushgw.Retry, Reason: "RESOURCE_EXHAUSTED", After: time.Minute}},
		{"the device's quota", pushtest.Reply{Status: 429, Reason: "QUOTA_EXCEEDED", Device: true}, pushgw.Result{Outcome: pushgw.Retry, Reason: "QUOTA_EXCEEDED", After: time.Minute, Device: true}},
		{"unavailable", pushtest.Reply{Status: 503, Reason: "UNAVAILABLE", RetryAfter: 5 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "UNAVAILABLE", After: 5 * time.Second}},
		{"broken", pushtest.Reply{Status: 500, Reason: "INTERNAL"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "INTERNAL"}},
		{"a proxy's page", pushtest.Reply{Status: 502, Body: "<html>"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "http 502"}},
		{"too large for a proxy", pushtest.Reply{Status: 413, Body: "<html>"}, pushgw.Result{Outcome: pushgw.TooLarge, Reason: "http 413"}},
		{"a reason that is not Google's does not reach the log", pushtest.Reply{Status: 500, Reason: "token abc"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "INTERNAL"}},
		{"a token for another service, made just now", pushtest.Reply{Status: 401, Reason: "THIRD_PARTY_AUTH_ERROR"}, pushgw.Result{Outcome: pushgw.Locked, Reason: "THIRD_PARTY_AUTH_ERROR"}},
	} {
		sim.Next(pushgw.FCM, c.reply)
		if got := s.Send(t.Context(), alert(fmt.Sprint("device", i))); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
	if n := sim.AccessTokens(); n != 1 {
		t.Errorf("%d access tokens, not one", n)
	}
	sim.Next(pushgw.FCM, pushtest.Reply{Reset: pushtest.ResetAfter})
	if r := s.Send(t.Context(), alert("secret-device")); r.Outcome != pushgw.Retry || r.Err == nil || strings.Contains(r.Err.Error(), "secret") {
		t.Errorf("a reset: %+v", r)
	}
}

func TestAccessTokens(t *testing.T) {
	c := &clock{}
	sim := simulate(t, pushtest.Options{Now: c.now})
	s := open(t, sim, func(cfg *Config) { cfg.Now = c.now })
	send := func(why string, want pushgw.Outcome, tokens int) {
		t.Helper()
		if r := s.Send(t.Context(), alert("device")); r.Outcome != want {
			t.Fatalf("%s: %+v", why, r)
		}
		if n := sim.AccessTokens(); n != tokens {
			t.Fatalf("%s: %d access tokens, want %d", why, n, tokens)
		}
	}
	send("first", pushgw.Sent, 1)
	send("second", pushgw.Sent, 1)
	sim.ExpireAccess()
	c.add(2 * time.Minute)
	send("refused: renewed once", pushgw.Sent, 2)
	c.add(2 * time.Minute)
	unauthorized := pushtest.Reply{Status: 401}
	sim.Next(pushgw.FCM, unauthorized, unauthorized)
	send("refused twice", pushgw.Locked, 3)
	c.add(2 * time.Minute)
	sim.Next(pushgw.FCM, pushtest.Reply{Status: 401, Reason: "THIRD_PARTY_AUTH_ERROR"})
	send("for another service's credentials: once more", pushgw.Sent, 4)
}

func TestAccessIsRenewedEarly(t *testing.T) {
	ahead := &clock{} // of the client only: Google's clock checks the assertion
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, func(cfg *Config) { cfg.Now = ahead.now })
	for _, step := range []struct {
		add  time.Duration
		want int
	}{{0, 1}, {54 * time.Minute, 1}, {2 * time.Minute, 2}} {
		ahead.add(step.add)
		if r := s.Send(t.Context(), alert("device")); r.Outcome != pushgw.Sent {
			t.Fatalf("%+v", r)
		}
		if n := sim.AccessTokens(); n != step.want {
			t.Errorf("%v later: %d access tokens, want %d", step.add, n, step.want)
		}
	}
}

func TestOneRequestForAccess(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if r := s.Send(t.Context(), alert(fmt.Sprint("device", i))); r.Outcome != pushgw.Sent {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	if n := sim.AccessTokens(); n != 1 || sim.Accepted() != 100 {
		t.Errorf("%d access tokens, %d pushes", n, sim.Accepted())
	}
}

func TestAccountRefused(t *testing.T) {
	sim, other := simulate(t, pushtest.Options{}), simulate(t, pushtest.Options{})
	// The account of another: its key signs, but this token service does not know it.
	account := bytes.Replace(other.ServiceAccount(), []byte(other.URLs.FCM), []byte(sim.URLs.FCM), 1)
	s := open(t, sim, func(c *Config) { c.ServiceAccount = account })
	if r := s.Send(t.Context(), alert("device")); r.Outcome != pushgw.Locked || r.Reason != "invalid_grant" {
		t.Fatalf("%+v", r)
	}
	if err := s.Reload([]byte("{}")); err == nil {
		t.Error("an empty account was taken")
	}
	if err := s.Reload(sim.ServiceAccount()); err != nil {
		t.Fatal(err)
	}
	if r := s.Send(t.Context(), alert("device")); r.Outcome != pushgw.Sent {
		t.Errorf("after Reload: %+v", r)
	}
	if err := sim.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(sim.ServiceAccount()); err != nil {
		t.Fatal(err)
	}
	if r := s.Send(t.Context(), alert("device")); r.Outcome != pushgw.Retry || r.Reason != "network" {
		t.Errorf("no token service: %+v", r)
	}
}

func TestConfigRefused(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	for why, change := range map[string]func(map[string]string){
		"another type":      func(m map[string]string) { m["type"] = "authorized_user" },
		"no project":        func(m map[string]string) { m["project_id"] = "" },
		"a project of path": func(m map[string]string) { m["project_id"] = "a/b" },
		"no key":            func(m map[string]string) { m["private_key"] = "SECRET" },
		"token over http":   func(m map[string]string) { m["token_uri"] = "http://localhost" },
	} {
		var m map[string]string
		if err := json.Unmarshal(sim.ServiceAccount(), &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{ServiceAccount: b}); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", why, err)
		}
	}
	if _, err := New(Config{ServiceAccount: sim.ServiceAccount(), Endpoint: "http://localhost"}); err == nil {
		t.Error("an endpoint without TLS was taken")
	}
}

func TestMessages(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		why    string
		change func(*pushgw.Push)
		want   string
	}{
		{"an alert", func(*pushgw.Push) {},
			`{"token":"device","data":{"conv":"dm/bob","push":"alert","sender":"bob","seq":"7"},"android":{"priority":"high","ttl":"3600s","collapse_key":"dm/bob","notification":{"title":"bob","body":"lunch?","tag":"dm/bob","sound":"default"}}}`},
		{"in the device's language", func(p *pushgw.Push) {
			p.TitleKey, p.TitleArgs, p.BodyKey, p.BodyArgs, p.SetBadge = "MSG", []string{"bob"}, "N", []string{"3"}, true
		},
			`{"token":"device","data":{"badge":"0","conv":"dm/bob","push":"alert","sender":"bob","seq":"7"},"android":{"priority":"high","ttl":"3600s","collapse_key":"dm/bob","notification":{"title_loc_key":"MSG","title_loc_args":["bob"],"body_loc_key":"N","body_loc_args":["3"],"tag":"dm/bob","sound":"default","notification_count":0}}}`},
		{"mutable: data only", func(p *pushgw.Push) { p.Mutable = true },
			`{"token":"device","data":{"body":"lunch?","conv":"dm/bob","push":"alert","sender":"bob","seq":"7","title":"bob"},"android":{"priority":"high","ttl":"3600s","collapse_key":"dm/bob"}}`},
		{"a clear", func(p *pushgw.Push) { p.Kind, p.SetBadge, p.Badge = pushgw.Clear, true, 2 },
			`{"token":"device","data":{"badge":"2","conv":"dm/bob","push":"clear","sender":"bob","seq":"7"},"android":{"priority":"normal","ttl":"3600s","collapse_key":"dm/bob"}}`},
		{"a call, now or never, by installation id", func(p *pushgw.Push) {
			p.Kind, p.To.Kind, p.Expires, p.Collapse = pushgw.Call, "fid", time.Time{}, ""
			p.TitleKey, p.TitleArgs = "CALL", []string{"bob"}
		},
			`{"fid":"device","data":{"body":"lunch?","conv":"dm/bob","push":"call","sender":"bob","seq":"7","title":"bob","title_loc_args":"[\"bob\"]","title_loc_key":"CALL"},"android":{"priority":"high","ttl":"0s"}}`},
		{"no longer than four weeks", func(p *pushgw.Push) { p.Kind, p.Expires = pushgw.Clear, now.AddDate(1, 0, 0) },
			`{"token":"device","data":{"conv":"dm/bob","push":"clear","sender":"bob","seq":"7"},"android":{"priority":"normal","ttl":"2419200s","collapse_key":"dm/bob"}}`},
	} {
		p := alert("device")
		p.Expires = now.Add(time.Hour)
		c.change(p)
		b, refused := encode(p, now)
		if refused != nil {
			t.Errorf("%s: %+v", c.why, refused)
			continue
		}
		var got, want any
		if json.Unmarshal(b, &got) != nil || json.Unmarshal([]byte(`{"message":`+c.want+`}`), &want) != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%s, want\n%s", c.why, b, c.want)
		}
	}
}

func TestRefusedWithoutARequest(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	for _, c := range []struct {
		why    string
		change func(*pushgw.Push)
		want   pushgw.Outcome
	}{
		{"over 4 KB", func(p *pushgw.Push) { p.Body = strings.Repeat("x", 4096) }, pushgw.TooLarge},
		{"data over 4 KB", func(p *pushgw.Push) { p.Data["sealed"] = strings.Repeat("x", 4096) }, pushgw.TooLarge},
		{"a name of Google's", func(p *pushgw.Push) { p.Data["google.x"] = "" }, pushgw.Rejected},
		{"no token", func(p *pushgw.Push) { p.To.Token = "" }, pushgw.Gone},
		{"an address that is neither", func(p *pushgw.Push) { p.To.Kind = "topic" }, pushgw.Rejected},
		{"a kind that is none", func(p *pushgw.Push) { p.Kind = 9 }, pushgw.Rejected},
	} {
		p := alert("device")
		c.change(p)
		if r := s.Send(t.Context(), p); r.Outcome != c.want {
			t.Errorf("%s: %+v", c.why, r)
		}
	}
	if sim.Accepted() != 0 {
		t.Error("something was sent")
	}
	p := alert("device")
	p.Mutable, p.Data = true, map[string]string{"sealed": strings.Repeat("x", 4000)}
	if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
		t.Errorf("just under 4 KB: %+v", r)
	}
}

func TestDevices(t *testing.T) {
	sim := simulate(t, pushtest.Options{KnownOnly: true})
	s := open(t, sim, nil)
	sim.SetDevice("here", pushtest.Device{})
	sim.SetDevice("removed", pushtest.Device{Unregistered: time.Now()})
	sim.SetDevice("theirs", pushtest.Device{Topic: "another"})
	for token, want := range map[string]pushgw.Outcome{"here": pushgw.Sent, "removed": pushgw.Gone, "theirs": pushgw.Misplaced, "unheard-of": pushgw.Gone} {
		if r := s.Send(t.Context(), alert(token)); r.Outcome != want {
			t.Errorf("%s: %+v", token, r)
		}
	}
	// 20 collapsible messages at a time, then one per three minutes.
	for i := 1; ; i++ {
		r := s.Send(t.Context(), alert("here"))
		if r.Outcome == pushgw.Sent && i < 20 {
			continue
		}
		if i != 20 || r.Outcome != pushgw.Retry || !r.Device || r.After != time.Minute {
			t.Errorf("message %d: %+v", i+1, r)
		}
		break
	}
}

func TestClosed(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	_ = s.Close()
	if r := s.Send(t.Context(), alert("device")); r.Outcome != pushgw.Retry {
		t.Errorf("after Close: %+v", r)
	}
}

func BenchmarkSend(b *testing.B) {
	sim := simulate(b, pushtest.Options{LedgerSize: 1, ProjectMin: 1 << 30})
	s := open(b, sim, nil)
	var n atomic.Int64
	b.ReportAllocs()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				if r := s.Send(context.Background(), alert(fmt.Sprint("device", i))); r.Outcome != pushgw.Sent {
					b.Errorf("%+v", r)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pushes/s")
}
