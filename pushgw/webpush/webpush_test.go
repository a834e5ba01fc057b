package webpush

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
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
	private, _, err := GenerateVAPIDKeys()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		PrivateKey: private, Subject: "mailto:ops@example.org", RootCAs: sim.CA(),
		AllowPrivate: true, AllowedHosts: []string{strings.TrimPrefix(sim.URLs.WebPush, "https://")},
	}
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

// browser subscribes at the simulator.
func browser(t testing.TB, sim *pushtest.Simulator, site string) string {
	t.Helper()
	sub, err := sim.Subscribe(site)
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func endpoint(t testing.TB, sub string) string {
	t.Helper()
	var s struct{ Endpoint string }
	if err := json.Unmarshal([]byte(sub), &s); err != nil {
		t.Fatal(err)
	}
	return s.Endpoint
}

func alert(sub string) *pushgw.Push {
	return &pushgw.Push{
		ID: "11111111-2222-4333-8444-555555555555", To: pushgw.Address{Provider: pushgw.WebPush, App: "web", Token: sub},
		Collapse: "dm/bob", Thread: "dm/bob", Title: "bob", Body: "lunch?", Expires: time.Now().Add(time.Hour),
		Data: map[string]string{"conv": "dm/bob", "seq": "7"},
	}
}

func TestDelivered(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	for _, c := range []struct {
		why     string
		change  func(*pushgw.Push)
		body    string
		urgency string
		stored  bool
	}{
		{"an alert", func(*pushgw.Push) {}, `{"push":"alert","title":"bob","body":"lunch?","tag":"dm/bob","thread":"dm/bob","data":{"conv":"dm/bob","seq":"7"}}`, "high", true},
		{"a clear shows nothing", func(p *pushgw.Push) { p.Kind, p.SetBadge = pushgw.Clear, true }, `{"push":"clear","tag":"dm/bob","thread":"dm/bob","badge":0,"data":{"conv":"dm/bob","seq":"7"}}`, "normal", true},
		{"a call, now or never", func(p *pushgw.Push) {
			p.Kind, p.Expires, p.TitleKey, p.TitleArgs = pushgw.Call, time.Time{}, "CALL", []string{"bob"}
		},
			`{"push":"call","title":"bob","body":"lunch?","title_loc_key":"CALL","title_loc_args":["bob"],"tag":"dm/bob","thread":"dm/bob","data":{"conv":"dm/bob","seq":"7"}}`, "high", false},
	} {
		p := alert(browser(t, sim, s.PublicKey()))
		c.change(p)
		if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
			t.Errorf("%s: %+v", c.why, r)
			continue
		}
		l := sim.Ledger()
		e := l[len(l)-1]
		if string(e.Payload) != c.body || e.Priority != c.urgency || e.Expires.IsZero() == c.stored || len(e.Collapse) != 32 {
			t.Errorf("%s: arrived as %+v %s", c.why, e, e.Payload)
		}
	}
}

func TestSizes(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	sub := browser(t, sim, "")
	p := alert(sub)
	p.Body = ""
	b, err := encode(p)
	if err != nil {
		t.Fatal(err)
	}
	fits := maxBody - overhead - len(b) - len(`,"body":""`)
	for _, n := range []int{0, 1, padTo - overhead - len(b), padTo, 2000, fits} {
		p.Body = strings.Repeat("x", n)
		if r := s.Send(t.Context(), p); r.Outcome != pushgw.Sent {
			t.Fatalf("a body of %d bytes: %+v", n, r)
		}
		l := sim.Ledger()
		want, err := encode(p)
		if err != nil || string(l[len(l)-1].Payload) != string(want) {
			t.Errorf("a body of %d bytes arrived as %q", n, l[len(l)-1].Payload)
		}
	}
	p.Body += "x"
	if r := s.Send(t.Context(), p); r.Outcome != pushgw.TooLarge {
		t.Errorf("a byte more than 4 KB: %+v", r)
	}
}

func TestReactions(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	for _, c := range []struct {
		why   string
		reply pushtest.Reply
		want  pushgw.Result
	}{
		{"accepted", pushtest.Reply{}, pushgw.Result{}},
		{"gone", pushtest.Reply{Status: 410}, pushgw.Result{Outcome: pushgw.Gone, Reason: "http 410"}},
		{"never heard of", pushtest.Reply{Status: 404}, pushgw.Result{Outcome: pushgw.Gone, Reason: "http 404"}},
		{"too large for them", pushtest.Reply{Status: 413}, pushgw.Result{Outcome: pushgw.TooLarge, Reason: "http 413"}},
		{"too many", pushtest.Reply{Status: 429, RetryAfter: 30 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "http 429", After: 30 * time.Second, Device: true}},
		{"unavailable", pushtest.Reply{Status: 503, RetryAfter: 5 * time.Second}, pushgw.Result{Outcome: pushgw.Retry, Reason: "http 503", After: 5 * time.Second}},
		{"broken", pushtest.Reply{Status: 500, Body: "<html>"}, pushgw.Result{Outcome: pushgw.Retry, Reason: "http 500"}},
		{"our mistake", pushtest.Reply{Status: 400, Reason: "BadTtl"}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "http 400"}},
		{"a redirection is not followed", pushtest.Reply{Status: 307}, pushgw.Result{Outcome: pushgw.Rejected, Reason: "http 307"}},
		{"another site's subscription", pushtest.Reply{Status: 403}, pushgw.Result{Outcome: pushgw.Misplaced, Reason: "http 403"}},
		{"another site's subscription, in Mozilla's words", pushtest.Reply{Status: 401}, pushgw.Result{Outcome: pushgw.Misplaced, Reason: "http 401"}},
	} {
		sim.Next(pushgw.WebPush, c.reply)
		if got := s.Send(t.Context(), alert(browser(t, sim, s.PublicKey()))); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
	sub := browser(t, sim, "")
	sim.Next(pushgw.WebPush, pushtest.Reply{Reset: pushtest.ResetAfter})
	r := s.Send(t.Context(), alert(sub))
	if r.Outcome != pushgw.Retry || r.Err == nil {
		t.Fatalf("a reset: %+v", r)
	}
	u, err := url.Parse(endpoint(t, sub))
	if err != nil || strings.Contains(r.Err.Error(), u.Path) {
		t.Errorf("the error holds the address: %v", r.Err)
	}
}

func TestRefusedSignature(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	_, other, err := GenerateVAPIDKeys()
	if err != nil {
		t.Fatal(err)
	}
	theirs := alert(browser(t, sim, other))
	if r := s.Send(t.Context(), theirs); r.Outcome != pushgw.Retry || !r.Device || r.After == 0 || r.Err == nil {
		t.Errorf("before any was accepted nobody knows who is at fault: %+v", r)
	}
	if r := s.Send(t.Context(), alert(browser(t, sim, s.PublicKey()))); r.Outcome != pushgw.Sent {
		t.Fatalf("%+v", r)
	}
	if r := s.Send(t.Context(), theirs); r.Outcome != pushgw.Misplaced {
		t.Errorf("afterwards it is the subscription: %+v", r)
	}
}

func TestSignatures(t *testing.T) {
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	private, public, err := GenerateVAPIDKeys()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSigner(private, "ops@example.org", now)
	if err != nil {
		t.Fatal(err)
	}
	if s.public != public {
		t.Errorf("public key %s, want %s", s.public, public)
	}
	sign := func(origin string) string {
		x, err := s.sign(origin)
		if err != nil {
			t.Fatal(err)
		}
		return x.header
	}
	first := sign("https://a")
	if sign("https://a") != first || sign("https://b") == first {
		t.Error("a signature is for one origin, and kept")
	}
	ahead.Store(int64(10 * time.Hour))
	if sign("https://a") != first {
		t.Error("made again after 10 hours")
	}
	ahead.Store(int64(11 * time.Hour))
	if sign("https://a") == first {
		t.Error("kept with an hour to go")
	}
	for i := range 2 * maxOrigins {
		sign(fmt.Sprintf("https://%d.push.apple.com", i))
	}
	if n := len(s.mu.by); n > maxOrigins {
		t.Errorf("%d signatures are kept", n)
	}
}

func TestSubject(t *testing.T) {
	for in, want := range map[string]string{
		"ops@example.org": "mailto:ops@example.org", "mailto:ops@example.org": "mailto:ops@example.org", "mailto:mailto:ops@example.org": "mailto:ops@example.org",
		"https://example.org/contact": "https://example.org/contact",
		"":                            "", "ops": "", "ops@localhost": "", "https://localhost": "", "http://example.org": "", "Ops <ops@example.org>": "",
	} {
		if got, err := contact(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for _, key := range []string{"", "SECRET", base64.RawURLEncoding.EncodeToString(make([]byte, 32)), "!"} {
		if _, err := New(Config{PrivateKey: key, Subject: "ops@example.org"}); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

func TestValidateSubscription(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	good := browser(t, sim, "")
	at := func(endpoint string) string {
		var m map[string]any
		if err := json.Unmarshal([]byte(good), &m); err != nil {
			t.Fatal(err)
		}
		m["endpoint"] = endpoint
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	keys := func(p256dh, auth string) string {
		b, err := json.Marshal(map[string]any{"endpoint": "https://fcm.googleapis.com/x", "keys": map[string]string{"p256dh": p256dh, "auth": auth}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	point := func(first byte, n int) string {
		return base64.RawURLEncoding.EncodeToString(append([]byte{first}, make([]byte, n)...))
	}
	auth := base64.RawURLEncoding.EncodeToString(make([]byte, 16))
	for _, c := range []struct {
		why, sub string
		want     error
	}{
		{"Chrome", at("https://fcm.googleapis.com/fcm/send/abc"), nil},
		{"Firefox", at("https://updates.push.services.mozilla.com/wpush/v2/abc"), nil},
		{"Safari", at("https://web.push.apple.com/abc"), nil},
		{"Edge, with the port", at("https://wns2-par02p.notify.windows.com:443/w/?token=abc"), nil},
		{"capitals", at("https://FCM.googleapis.com/abc"), nil},
		{"another host", at("https://example.org/abc"), ErrHostRefused},
		{"a host that ends alike", at("https://evilpush.apple.com/abc"), ErrHostRefused},
		{"the name itself is not under it", at("https://push.apple.com/abc"), ErrHostRefused},
		{"nothing before the dot", at("https://.push.apple.com/abc"), ErrHostRefused},
		{"a host that begins alike", at("https://fcm.googleapis.com.example.org/abc"), ErrHostRefused},
		{"another port", at("https://fcm.googleapis.com:8443/abc"), ErrHostRefused},
		{"an address", at("https://127.0.0.1/abc"), ErrHostRefused},
		{"an address as one number", at("https://2130706433/abc"), ErrHostRefused},
		{"a mapped address", at("https://[::ffff:127.0.0.1]/abc"), ErrHostRefused},
		{"no TLS", at("http://fcm.googleapis.com/abc"), ErrMalformed},
		{"a user in front of the host", at("https://fcm.googleapis.com@example.org/abc"), ErrMalformed},
		{"a backslash", at(`https://fcm.googleapis.com\@example.org/abc`), ErrMalformed},
		{"a fragment", at("https://fcm.googleapis.com/#abc"), ErrMalformed},
		{"no host", at("https:///abc"), ErrMalformed},
		{"a file", at("file:///etc/passwd"), ErrMalformed},
		{"not JSON", "https://fcm.googleapis.com/", ErrMalformed},
		{"nothing", "", ErrMalformed},
		{"longer than any", at("https://fcm.googleapis.com/" + strings.Repeat("x", maxSubscription)), ErrMalformed},
		{"no keys", keys("", ""), ErrMalformed},
		{"a point that is not on the curve", keys(point(4, 64), auth), ErrMalformed},
		{"a short point", keys(point(4, 10), auth), ErrMalformed},
		{"the point at infinity", keys(point(0, 0), auth), ErrMalformed},
	} {
		if got := ValidateSubscription(c.sub, nil); !errors.Is(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.why, got, c.want)
		}
	}
	if err := ValidateSubscription(good, nil); !errors.Is(err, ErrHostRefused) {
		t.Errorf("the simulator is not among the defaults: %v", err)
	}
	if err := ValidateSubscription(good, []string{strings.TrimPrefix(sim.URLs.WebPush, "https://")}); err != nil {
		t.Errorf("the simulator, when allowed: %v", err)
	}
}

func FuzzValidateSubscription(f *testing.F) {
	f.Add("https://fcm.googleapis.com/x", "BA", "AA")
	f.Add(`https://fcm.googleapis.com\@example.org/`, "", "")
	hosts := []string{"fcm.googleapis.com", "*.push.apple.com"}
	f.Fuzz(func(t *testing.T, endpoint, p256dh, auth string) {
		b, err := json.Marshal(map[string]any{"endpoint": endpoint, "keys": map[string]string{"p256dh": p256dh, "auth": auth}})
		if err != nil || ValidateSubscription(string(b), hosts) != nil {
			return
		}
		r, err := http.NewRequest(http.MethodPost, endpoint, nil)
		if err != nil {
			t.Fatalf("allowed, but not an address: %q", endpoint)
		}
		if h := strings.ToLower(r.URL.Hostname()); r.URL.Scheme != "https" || h != "fcm.googleapis.com" && !strings.HasSuffix(h, ".push.apple.com") {
			t.Fatalf("allowed: %q", endpoint)
		}
	})
}

func TestPublicAddresses(t *testing.T) {
	for a, want := range map[string]bool{
		"142.250.74.106": true, "17.57.144.10": true, "2a00:1450:4001:82a::200a": true, "::ffff:142.250.74.106": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false,
		"0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false, "198.18.0.1": false,
		"::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd12::1": false, "ff02::1": false, "fec0::1": false,
		"::127.0.0.1": false, "::169.254.169.254": false, "::ffff:0:127.0.0.1": false, "5f00::1": false, "4000::1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2001:0:1::": false,
	} {
		if got := public(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: public %v", a, got)
		}
	}
}

func TestPrivateNetworkIsNotDialled(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, func(c *Config) { c.AllowPrivate = false })
	if r := s.Send(t.Context(), alert(browser(t, sim, ""))); r.Outcome != pushgw.Misplaced || r.Reason != "private network" {
		t.Errorf("%+v", r)
	}
	// By a name that is on the list but leads to this machine.
	_, port, err := net.SplitHostPort(strings.TrimPrefix(sim.URLs.WebPush, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	sub := browser(t, sim, "")
	sub = strings.Replace(sub, sim.URLs.WebPush, "https://localhost:"+port, 1)
	s = open(t, sim, func(c *Config) { c.AllowPrivate, c.AllowedHosts = false, []string{"localhost:" + port} })
	if r := s.Send(t.Context(), alert(sub)); r.Outcome != pushgw.Misplaced || r.Reason != "private network" {
		t.Errorf("by name: %+v", r)
	}
	if sim.Accepted() != 0 {
		t.Error("a push arrived")
	}
}

// TestRedirectIsNotFollowed: an allowed push service that sends us to a host that
// is not on the list.
func TestRedirectIsNotFollowed(t *testing.T) {
	var hits atomic.Int32
	target := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer target.Close()
	service := httptest.NewTLSServer(http.RedirectHandler(target.URL, http.StatusTemporaryRedirect))
	defer service.Close()
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, func(c *Config) {
		c.AllowedHosts = []string{strings.TrimPrefix(service.URL, "https://")}
		c.RootCAs = service.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	})
	sub := strings.Replace(browser(t, sim, ""), sim.URLs.WebPush, service.URL, 1)
	if r := s.Send(t.Context(), alert(sub)); r.Outcome != pushgw.Rejected || hits.Load() != 0 {
		t.Errorf("%+v, %d hits", r, hits.Load())
	}
}

func TestAddressesOfTheStore(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, func(c *Config) { c.AllowedHosts = nil })
	if r := s.Send(t.Context(), alert(browser(t, sim, ""))); r.Outcome != pushgw.Misplaced {
		t.Errorf("a host that is allowed no more: %+v", r)
	}
	if r := s.Send(t.Context(), alert("{}")); r.Outcome != pushgw.Gone {
		t.Errorf("not a subscription: %+v", r)
	}
	p := alert(browser(t, sim, ""))
	p.Kind = 9
	if r := s.Send(t.Context(), p); r.Outcome != pushgw.Rejected {
		t.Errorf("a kind that is none: %+v", r)
	}
	_ = s.Close()
	if r := s.Send(t.Context(), alert("{}")); r.Outcome != pushgw.Retry {
		t.Errorf("after Close: %+v", r)
	}
}

func TestConcurrent(t *testing.T) {
	sim := simulate(t, pushtest.Options{})
	s := open(t, sim, nil)
	var wg sync.WaitGroup
	for range 200 {
		sub := browser(t, sim, s.PublicKey())
		wg.Go(func() {
			if r := s.Send(t.Context(), alert(sub)); r.Outcome != pushgw.Sent {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	if n := sim.Accepted(); n != 200 {
		t.Errorf("%d of 200 arrived", n)
	}
}

func BenchmarkSend(b *testing.B) {
	sim := simulate(b, pushtest.Options{LedgerSize: 1})
	s := open(b, sim, nil)
	sub := browser(b, sim, s.PublicKey())
	var n atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for n.Add(1) <= int64(b.N) {
				if r := s.Send(context.Background(), alert(sub)); r.Outcome != pushgw.Sent {
					b.Errorf("%+v", r)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pushes/s")
}
