package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
)

// request is what a test sends; answer what came back.
type send struct {
	method, path, token, body string
	header                    http.Header
}

type got struct {
	status int
	header http.Header
	body   []byte
}

// code returns the code of a problem, "" for anything else.
func (g got) code() string {
	var p problem
	if g.header.Get("Content-Type") != problemType || json.Unmarshal(g.body, &p) != nil {
		return ""
	}
	return p.Code
}

// exchangeWith sends s to the server at base, never following a redirect.
func exchangeWith(t *testing.T, base string, s send) got {
	t.Helper()
	var body io.Reader
	if s.body != "" {
		body = strings.NewReader(s.body)
	}
	r, err := http.NewRequest(s.method, base+s.path, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range s.header {
		r.Header[name] = values
	}
	if s.body != "" && r.Header["Content-Type"] == nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", s.method, s.path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got{res.StatusCode, res.Header, text}
}

// serve starts a server for a over a real listener.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config = NewServer("", h, slog.New(slog.DiscardHandler))
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

// Every refusal is a problem with a code, also those of the router.
func TestRefusalsBeforeAnOperation(t *testing.T) {
	base := serve(t, New(Options{Registration: func() bool { return true }}).Handler())
	for _, c := range []struct {
		why    string
		send   send
		status int
		code   string
	}{
		{"no such path", send{method: "GET", path: "/v1/nope"}, 404, codeNoSuchPath},
		{"nothing at the root", send{method: "GET", path: "/"}, 404, codeNoSuchPath},
		{"a slash too many is no redirect", send{method: "GET", path: "/v1/friends/"}, 404, codeNoSuchPath},
		{"two slashes are none either", send{method: "GET", path: "/v1//friends"}, 404, codeNoSuchPath},
		{"dots are not walked", send{method: "GET", path: "/v1/users/../friends"}, 404, codeNoSuchPath},
		{"a method the path does not take", send{method: "POST", path: "/v1/friends"}, 405, codeMethod},
		{"a method nobody takes", send{method: "BREW", path: "/v1/friends"}, 405, codeMethod},
		{"no token", send{method: "GET", path: "/v1/friends"}, 401, codeBadAuth},
		{"no bearer token", send{method: "GET", path: "/v1/friends", header: http.Header{"Authorization": {"Basic YTpi"}}}, 401, codeBadAuth},
		{"two tokens are none", send{method: "GET", path: "/v1/friends", header: http.Header{"Authorization": {"Bearer a", "Bearer b"}}}, 401, codeBadAuth},
		{"an empty token", send{method: "GET", path: "/v1/friends", header: http.Header{"Authorization": {"Bearer "}}}, 401, codeBadAuth},
		{"a form", send{method: "POST", path: "/v1/login", body: "user=a", header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}}, 415, codeContentType},
		{"JSON that says it is text, as a page of another origin could send", send{method: "POST", path: "/v1/login", body: "{}", header: http.Header{"Content-Type": {"text/plain"}}}, 415, codeContentType},
		{"JSON in another charset", send{method: "POST", path: "/v1/login", body: "{}", header: http.Header{"Content-Type": {"application/json; charset=utf-16"}}}, 415, codeContentType},
		{"another kind of JSON", send{method: "POST", path: "/v1/login", body: "{}", header: http.Header{"Content-Type": {"application/merge-patch+json"}}}, 415, codeContentType},
		{"no JSON", send{method: "POST", path: "/v1/login", body: "{"}, 400, codeBadJSON},
		{"a field twice", send{method: "POST", path: "/v1/login", body: `{"user":"a","user":"b","password":"c"}`}, 400, codeBadJSON},
		{"no body", send{method: "POST", path: "/v1/login"}, 422, codeInvalid},
		{"a list", send{method: "POST", path: "/v1/login", body: "[]"}, 422, codeInvalid},
		{"a missing field", send{method: "POST", path: "/v1/login", body: `{"user":"a"}`}, 422, codeInvalid},
		{"an unknown field", send{method: "POST", path: "/v1/login", body: `{"user":"a","password":"b","admin":true}`}, 422, codeInvalid},
		{"a field in other letters", send{method: "POST", path: "/v1/login", body: `{"User":"a","password":"b"}`}, 422, codeInvalid},
		{"a field in letters that fold to the right ones", send{method: "POST", path: "/v1/login", body: `{"u\u017fer":"a","password":"b"}`}, 422, codeInvalid},
		{"an operator where a string belongs", send{method: "POST", path: "/v1/login", body: `{"user":{"$ne":null},"password":{"$regex":"."}}`}, 422, codeInvalid},
		{"an unknown query parameter", send{method: "POST", path: "/v1/login?debug=1", body: `{"user":"a","password":"b"}`}, 422, codeInvalid},
		{"a query parameter twice", send{method: "POST", path: "/v1/login?a=1&a=2", body: `{"user":"a","password":"b"}`}, 422, codeInvalid},
		{"a query that cannot be read", send{method: "POST", path: "/v1/login?a=%zz", body: `{"user":"a","password":"b"}`}, 422, codeInvalid},
		{"a body over the limit", send{method: "POST", path: "/v1/login", body: `{"user":"` + strings.Repeat("a", 64<<10) + `"}`}, 413, codeTooLarge},
	} {
		t.Run(c.why, func(t *testing.T) {
			g := exchangeWith(t, base, c.send)
			if g.status != c.status || g.code() != c.code {
				t.Fatalf("got %d %s, want %d %s: %s", g.status, g.code(), c.status, c.code, g.body)
			}
			if c.status == 401 && !strings.HasPrefix(g.header.Get("WWW-Authenticate"), "Bearer") {
				t.Error("401 without a challenge [RFC 9110 §15.5.2]")
			}
			if c.status == 405 && g.header.Get("Allow") == "" {
				t.Error("405 without Allow [RFC 9110 §15.5.6]")
			}
			if g.header.Get("X-Content-Type-Options") != "nosniff" || g.header.Get("Cache-Control") != "no-store" {
				t.Error("the headers of every answer are missing")
			}
		})
	}
}

// A validation error must not repeat what it complains about.
func TestRefusalsRepeatNoValue(t *testing.T) {
	base := serve(t, New(Options{Registration: func() bool { return true }}).Handler())
	for _, body := range []string{
		`{"user":"alice","password":"s3cr3t!"}`,
		`{"user":"alice","password":["s3cr3t!"]}`,
		`{"user":"s3cr3t! ","password":"long enough"}`,
		`{"user":"alice","password":"long enough","x":"s3cr3t!"}`,
		`{"user":"alice","password":"s3cr3t!`,
		`{"user":"alice","password":"long enough","x":[31337e999]}`,
	} {
		g := exchangeWith(t, base, send{method: "POST", path: "/v1/register", body: body})
		if g.status < 400 || bytes.Contains(g.body, []byte("s3cr3t!")) || bytes.Contains(g.body, []byte("31337")) || bytes.Contains(g.body, []byte("Go ")) {
			t.Errorf("%s: %d %s", body, g.status, g.body)
		}
	}
}

func TestCrossOrigin(t *testing.T) {
	const mine, other = "https://chat.example.org", "https://evil.example"
	closed := serve(t, New(Options{}).Handler())
	open := serve(t, New(Options{Origins: []string{mine}}).Handler())
	preflight := func(origin string) send {
		return send{method: "OPTIONS", path: "/v1/friends", header: http.Header{
			"Origin": {origin}, "Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"authorization"}}}
	}
	// A page can send this without a preflight: fetch with a body that has no type.
	blob := func(origin string) send {
		return send{method: "POST", path: "/v1/register", body: `{"user":"eve","password":"correct-horse"}`, header: http.Header{"Origin": {origin}, "Content-Type": {""}}}
	}
	for _, c := range []struct {
		why    string
		base   string
		send   send
		status int
		allow  string
	}{
		{"by default no page of another origin may ask", closed, preflight(mine), 403, ""},
		{"nor read", closed, send{method: "GET", path: "/v1/friends", header: http.Header{"Origin": {mine}}}, 401, ""},
		{"an allowed one may ask", open, preflight(mine), 204, mine},
		{"and read, refusals too", open, send{method: "GET", path: "/v1/friends", header: http.Header{"Origin": {mine}}}, 401, mine},
		{"no other", open, preflight(other), 403, ""},
		{"not one that only begins like it", open, preflight(mine + ".evil.example"), 403, ""},
		{"null is an origin like any other", open, preflight("null"), 403, ""},
		{"who need not ask, for want of a content type, is refused", closed, blob(other), 403, ""},
		{"where others may, too", open, blob(other), 403, ""},
		{"an allowed one is not", open, blob(mine), 403, mine},
		{"nor our own pages", closed, blob(closed), 403, ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			g := exchangeWith(t, c.base, c.send)
			if g.status != c.status || g.header.Get("Access-Control-Allow-Origin") != c.allow {
				t.Fatalf("got %d, allowed %q; want %d, %q", g.status, g.header.Get("Access-Control-Allow-Origin"), c.status, c.allow)
			}
			if foreign := c.send.header.Get("Origin") == other; c.send.method == "POST" && (g.code() == codeOrigin) != foreign {
				t.Errorf("refused for %q", g.code()) // else for registration being closed
			}
			if g.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Error("credentials are allowed")
			}
			if g.header.Get("Vary") != "Origin" {
				t.Error("no Vary: a cache would hand one origin's answer to another")
			}
		})
	}
}

func TestLimitPerAddress(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	a := New(Options{Limits: Limits{AddressRate: 0.5, AddressBurst: 2}, Now: func() time.Time { return now }})
	base := serve(t, a.Handler())
	get := send{method: "GET", path: "/openapi.json"}
	for range 2 {
		if g := exchangeWith(t, base, get); g.status != 200 {
			t.Fatalf("within the burst: %d", g.status)
		}
	}
	g := exchangeWith(t, base, get)
	if g.status != 429 || g.code() != codeTooMany || g.header.Get("Retry-After") != "2" {
		t.Fatalf("over it: %d %s, Retry-After %q; want 429 for 2 s", g.status, g.code(), g.header.Get("Retry-After"))
	}
	now = now.Add(2 * time.Second)
	if g := exchangeWith(t, base, get); g.status != 200 {
		t.Fatalf("after the time Retry-After named: %d", g.status)
	}
	off := serve(t, New(Options{Limits: Limits{Off: true, AddressRate: 0.5, AddressBurst: 1}}).Handler())
	for range 5 {
		if g := exchangeWith(t, off, get); g.status != 200 {
			t.Fatalf("with limits off: %d", g.status)
		}
	}
}

// What is logged about a request holds neither its query nor its token.
func TestAccessLog(t *testing.T) {
	var out lockedBuffer
	a := New(Options{Log: slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	s := httptest.NewServer(a.Handler())
	exchangeWith(t, s.URL, send{method: "POST", path: "/v1/login?token=s3cr3t", body: `{"user":"a","password":"s3cr3t"}`,
		header: http.Header{"Authorization": {"Bearer s3cr3t"}}})
	exchangeWith(t, s.URL, send{method: "GET", path: "/v1/s3cr3t"})
	s.Close() // returns when both have been logged
	text := out.String()
	if !strings.Contains(text, `"op":"auth.login","status":422`) || strings.Count(text, `"msg":"http"`) != 2 {
		t.Errorf("requests are missing from the log: %s", text)
	}
	if strings.Contains(text, "s3cr3t") {
		t.Errorf("a secret is in the log: %s", text)
	}
}

func TestPanicIsAnswered(t *testing.T) {
	a := New(Options{Registration: func() bool { panic("boom") }})
	base := serve(t, a.Handler())
	g := exchangeWith(t, base, send{method: "POST", path: "/v1/register", body: `{"user":"alice","password":"long enough"}`})
	if g.status != 500 || g.code() != "internal" || bytes.Contains(g.body, []byte("boom")) {
		t.Fatalf("got %d %s", g.status, g.body)
	}
	// Over RPC the same handlers run under the same protection: Chat is nil here.
	if _, err := a.Call(context.Background(), Caller{User: "alice"}, "friends.list", nil); !im.Is(err, im.Internal) {
		t.Fatalf("got %v, want an Internal error", err)
	}
}

// A client that announces a body and never sends it is not waited for.
func TestSlowBody(t *testing.T) {
	base := serve(t, New(Options{BodyTimeout: 50 * time.Millisecond}).Handler())
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(text, []byte(codeSlowBody)) {
		t.Fatalf("got %q, %v; want a refusal and the end", text, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
