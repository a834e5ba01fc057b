package pushtest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/parley-im/parley/pushgw"
)

// clock stands still but for add: buckets do not refill while a slow machine works.
type clock struct {
	begun time.Time
	ahead atomic.Int64
}

func newClock() *clock { return &clock{begun: time.Now()} }

func (c *clock) now() time.Time      { return c.begun.Add(time.Duration(c.ahead.Load())) }
func (c *clock) add(d time.Duration) { c.ahead.Add(int64(d)) }

func start(t *testing.T, o Options) (*Simulator, *http.Client) {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.CA()}, ForceAttemptHTTP2: true}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &http.Client{Transport: tr}
}

func do(t *testing.T, c *http.Client, r *http.Request) (int, string) {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// provider makes a token as a gateway would.
func provider(t *testing.T, s *Simulator, kid, team string, iat time.Time) string {
	t.Helper()
	x := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": team, "iat": iat.Unix()})
	x.Header["kid"] = kid
	signed, err := x.SignedString(s.apns.keys[apnsKeyA].private)
	if err != nil {
		t.Fatal(err)
	}
	return "bearer " + signed
}

func apnsRequest(t *testing.T, s *Simulator, token, bearer, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, s.URLs.APNs+"/3/device/"+token, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"authorization": bearer, "apns-topic": "im.app", "apns-push-type": "alert", "apns-priority": "10", "apns-expiration": fmt.Sprint(s.opt.Now().Add(time.Hour).Unix())} {
		r.Header.Set(k, v)
	}
	return r
}

func TestAPNsChecks(t *testing.T) {
	s, c := start(t, Options{Topics: []string{"im.app"}})
	token, good := strings.Repeat("ab", 32), provider(t, s, apnsKeyA, apnsTeam, time.Now())
	const body = `{"aps":{"alert":"x"}}`
	set := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	for _, x := range []struct {
		why    string
		change func(*http.Request)
		status int
		reason string
	}{
		{"all is well", func(*http.Request) {}, 200, ""},
		{"no token", func(r *http.Request) { r.Header.Del("authorization") }, 403, "MissingProviderToken"},
		{"another scheme", set("authorization", "Basic x"), 403, "InvalidProviderToken"},
		{"rubbish", set("authorization", "bearer x"), 403, "InvalidProviderToken"},
		{"an unknown key", set("authorization", provider(t, s, "other", apnsTeam, time.Now())), 403, "InvalidProviderToken"},
		{"another key's signature", set("authorization", provider(t, s, apnsKeyB, apnsTeam, time.Now())), 403, "InvalidProviderToken"},
		{"another team", set("authorization", provider(t, s, apnsKeyA, "other", time.Now())), 403, "InvalidProviderToken"},
		{"an hour old", set("authorization", provider(t, s, apnsKeyA, apnsTeam, time.Now().Add(-time.Hour))), 403, "ExpiredProviderToken"},
		{"from the future", set("authorization", provider(t, s, apnsKeyA, apnsTeam, time.Now().Add(time.Hour))), 403, "InvalidProviderToken"},
		{"a second token", set("authorization", provider(t, s, apnsKeyA, apnsTeam, time.Now().Add(30*time.Second))), 429, "TooManyProviderTokenUpdates"},
		{"no topic", func(r *http.Request) { r.Header.Del("apns-topic") }, 400, "MissingTopic"},
		{"another's topic", set("apns-topic", "im.other"), 400, "TopicDisallowed"},
		{"no push type", func(r *http.Request) { r.Header.Del("apns-push-type") }, 400, "InvalidPushType"},
		{"voip without its topic", set("apns-push-type", "voip"), 400, "InvalidPushType"},
		{"a silent one of high priority", set("apns-push-type", "background"), 400, "BadPriority"},
		{"a priority that is none", set("apns-priority", "7"), 400, "BadPriority"},
		{"an id that is no UUID", set("apns-id", "7"), 400, "BadMessageId"},
		{"an expiration that is no number", set("apns-expiration", "soon"), 400, "BadExpirationDate"},
		{"a long collapse id", set("apns-collapse-id", strings.Repeat("x", 65)), 400, "BadCollapseId"},
		{"a header twice", func(r *http.Request) { r.Header.Add("apns-id", newUUID()); r.Header.Add("apns-id", newUUID()) }, 400, "DuplicateHeaders"},
		{"not hexadecimal", func(r *http.Request) { r.URL.Path = "/3/device/xyz" }, 400, "BadDeviceToken"},
		{"no device", func(r *http.Request) { r.URL.Path = "/3/device/" }, 400, "MissingDeviceToken"},
		{"another path", func(r *http.Request) { r.URL.Path = "/4/device/" + token }, 404, "BadPath"},
		{"another method", func(r *http.Request) { r.Method = http.MethodPut }, 405, "MethodNotAllowed"},
		{"too large", func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 4097)))
			r.ContentLength = 4097
		}, 413, "PayloadTooLarge"},
		{"nothing in it", func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 }, 400, "PayloadEmpty"},
	} {
		r := apnsRequest(t, s, token, good, body)
		x.change(r)
		status, answer := do(t, c, r)
		var got struct{ Reason string }
		if answer != "" && json.Unmarshal([]byte(answer), &got) != nil || status != x.status || got.Reason != x.reason {
			t.Errorf("%s: %d %s, want %d %s", x.why, status, answer, x.status, x.reason)
		}
	}
	if n := s.Accepted(); n != 1 {
		t.Errorf("%d were accepted, not one", n)
	}
}

func TestAPNsStoresOne(t *testing.T) {
	s, c := start(t, Options{})
	token, bearer := strings.Repeat("ab", 32), provider(t, s, apnsKeyA, apnsTeam, time.Now())
	s.SetDevice(token, Device{Offline: true})
	for i := range 3 {
		if status, body := do(t, c, apnsRequest(t, s, token, bearer, fmt.Sprintf(`{"aps":{"alert":"%d"}}`, i))); status != 200 {
			t.Fatal(status, body)
		}
	}
	never := apnsRequest(t, s, token, bearer, `{"aps":{"alert":"now or never"}}`)
	never.Header.Set("apns-expiration", "0")
	if status, body := do(t, c, never); status != 200 {
		t.Fatal(status, body)
	}
	if l := s.Ledger(); len(l) != 4 || l[2].Fate != Stored || l[3].Fate != Dropped {
		t.Errorf("%+v", l)
	}
	if got, _ := s.Wake(token); len(got) != 1 || string(got[0].Payload) != `{"aps":{"alert":"2"}}` {
		t.Errorf("the device got %+v, not the last one", got)
	}
	if got, _ := s.Wake(token); len(got) != 0 {
		t.Errorf("and again %+v", got)
	}
}

// access gets an access token as an SDK would.
func access(t *testing.T, s *Simulator, c *http.Client) string {
	t.Helper()
	assertion, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": "x", "aud": s.URLs.FCM + "/token", "scope": fcmScope, "exp": s.opt.Now().Add(time.Hour).Unix(),
	}).SignedString(s.fcm.key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodPost, s.URLs.FCM+"/token", strings.NewReader(url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion},
	}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, body := do(t, c, r)
	var got struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal([]byte(body), &got) != nil || status != 200 {
		t.Fatal(status, body)
	}
	return got.AccessToken
}

func fcmSend(t *testing.T, s *Simulator, c *http.Client, bearer, token, collapse string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, s.URLs.FCM+"/v1/projects/simulated/messages:send",
		strings.NewReader(fmt.Sprintf(`{"message":{"token":%q,"data":{"a":"b"},"android":{"ttl":"3600s","collapse_key":%q}}}`, token, collapse)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+bearer)
	return do(t, c, r)
}

func TestFCMLimits(t *testing.T) {
	k := newClock()
	s, c := start(t, Options{Now: k.now})
	bearer := access(t, s, c)
	want := func(why string, token, collapse string, status int) {
		t.Helper()
		if got, body := fcmSend(t, s, c, bearer, token, collapse); got != status {
			t.Fatalf("%s: %d %s", why, got, body)
		}
	}
	for range 20 {
		want("20 collapsible at once", "a", "k", 200)
	}
	want("the 21st", "a", "k", 429)
	want("another device", "b", "k", 200)
	k.add(3*time.Minute + time.Second)
	want("one more after three minutes", "a", "k", 200)
	want("and no other", "a", "k", 429)

	for range 240 {
		want("240 in a minute", "c", "", 200)
	}
	want("the 241st", "c", "", 429)

	s.SetDevice("keys", Device{Offline: true})
	for i := range 6 {
		want("six collapse keys", "keys", fmt.Sprint("k", i), 200)
	}
	want("the same key again", "keys", "k5", 200)
	if got, deleted := s.Wake("keys"); len(got) != fcmKeys || got[0].Collapse != "k2" || deleted != 0 {
		t.Errorf("%d collapse keys waited, %d deleted", len(got), deleted)
	}

	s.SetDevice("many", Device{Offline: true})
	for range fcmStored + 1 {
		want("101 messages", "many", "", 200)
	}
	if got, deleted := s.Wake("many"); len(got) != 0 || deleted != fcmStored+1 {
		t.Errorf("%d of 101 waited, %d deleted", len(got), deleted)
	}

	s.SetDevice("late", Device{Offline: true})
	want("for an hour", "late", "", 200)
	k.add(time.Hour - 10*time.Second)
	want("the access token has ended", "x", "", 401) // it was made before the three minutes
	bearer = access(t, s, c)
	k.add(20 * time.Second)
	if got, _ := s.Wake("late"); len(got) != 0 {
		t.Errorf("an expired message came: %+v", got)
	}
}

func TestFCMProjectQuota(t *testing.T) {
	s, c := start(t, Options{ProjectMin: 3, Now: newClock().now})
	bearer := access(t, s, c)
	var got []int
	for i := range 4 {
		status, _ := fcmSend(t, s, c, bearer, fmt.Sprint("d", i), "")
		got = append(got, status)
	}
	if fmt.Sprint(got) != "[200 200 200 429]" {
		t.Error(got)
	}
}

func TestLedgerOverHTTP(t *testing.T) {
	s, c := start(t, Options{LedgerSize: 3})
	bearer := access(t, s, c)
	for i := range 5 {
		fcmSend(t, s, c, bearer, fmt.Sprint("d", i), "")
	}
	for query, want := range map[string]string{"": "[3 4 5]", "?after=4": "[5]", "?token=d3": "[4]", "?provider=apns": "[]"} {
		r, err := http.NewRequest(http.MethodGet, s.URLs.WebPush+"/ledger"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		status, body := do(t, c, r)
		var page ledgerPage
		if err := json.Unmarshal([]byte(body), &page); err != nil || status != 200 {
			t.Fatal(status, err)
		}
		n := []uint64{}
		for _, e := range page.Entries {
			n = append(n, e.N)
			if e.Provider != pushgw.FCM || !bytes.Contains(e.Payload, []byte(`"a":"b"`)) {
				t.Errorf("%+v", e)
			}
		}
		if fmt.Sprint(n) != want || page.Total != 5 || page.Dropped != 2 {
			t.Errorf("%q: %v of %d, %d dropped; want %s", query, n, page.Total, page.Dropped, want)
		}
	}
	r, err := http.NewRequest(http.MethodGet, s.URLs.APNs+"/ledger?after=x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := do(t, c, r); status != 400 {
		t.Errorf("after=x: %d", status)
	}
}

func TestWeather(t *testing.T) {
	script := Weather{Seed: 7, Unavailable: 0.1, TooMany: 0.2, Lost: 0.3, Latency: time.Second, Jitter: time.Second, GoawayEvery: 10}.Script()
	var unavailable, tooMany, lost, goaway int
	const n = 10_000
	for i := range uint64(n) {
		r := script(Request{N: i + 1, Provider: pushgw.APNs})
		if r.Delay < time.Second || r.Delay > 2*time.Second {
			t.Fatal(r.Delay)
		}
		switch {
		case r.Status == 503:
			unavailable++
		case r.Status == 429:
			tooMany++
		case r.Reset == ResetAfter:
			lost++
		}
		if r.Goaway {
			goaway++
		}
	}
	near := func(got int, share float64) bool { return float64(got) > n*share*0.9 && float64(got) < n*share*1.1 }
	if !near(unavailable, 0.1) || !near(tooMany, 0.2) || !near(lost, 0.3) || goaway != n/10 {
		t.Error(unavailable, tooMany, lost, goaway)
	}
}

func TestSave(t *testing.T) {
	s, _ := start(t, Options{})
	dir := t.TempDir()
	if err := s.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.pem", "AuthKey_" + apnsKeyA + ".p8", "service-account.json", "simulator.json"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

func TestAddressTaken(t *testing.T) {
	s, _ := start(t, Options{})
	if other, err := Start(Options{WebPush: strings.TrimPrefix(s.URLs.WebPush, "https://")}); err == nil {
		_ = other.Close()
		t.Error("two simulators on one address")
	}
}
