package plays

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/parley-im/parley/pushgw/pushtest"
)

// call is a row of the table: an operation as its owner calls it, and what
// somebody hears who has no business there.
type call struct {
	who      string // default alice
	path     string // with everything filled in
	body     string
	want     int
	stranger int    // eve; 0: it is about eve herself, nothing to see
	rpc      string // parameters of the same call over MQTT, where that is to be compared
}

// calls has every operation of the document, in an order in which they work.
var calls = []struct {
	op string
	call
}{
	{"auth.register", call{path: "/v1/register", body: `{"user":"dave","password":"correct-horse-dave"}`, want: 201}},
	{"auth.login", call{path: "/v1/login", body: `{"user":"dave","password":"correct-horse-dave"}`, want: 200}},
	{"auth.refresh", call{path: "/v1/refresh", body: `{"refresh_token":"none"}`, want: 401}},
	{"me.get", call{path: "/v1/me", want: 200, rpc: `{}`}},
	{"me.update", call{path: "/v1/me", body: `{"name":"Alice A."}`, want: 200}},
	{"users.find", call{path: "/v1/users?q=b", want: 200, rpc: `{"q":"b"}`}},
	{"users.get", call{path: "/v1/users/bob", want: 200, rpc: `{"user":"bob"}`}},
	{"friends.add", call{path: "/v1/friends/carol", body: `{"message":"hi"}`, want: 200, rpc: `{"user":"carol","message":"hi"}`}},
	{"friend-requests.list", call{who: "carol", path: "/v1/friend-requests", want: 200, rpc: `{}`}},
	{"friend-requests.remove", call{who: "carol", path: "/v1/friend-requests/alice", want: 204}},
	{"friends.list", call{path: "/v1/friends", want: 200, rpc: `{}`}},
	{"groups.create", call{path: "/v1/groups", body: `{"name":"New","members":["bob"]}`, want: 201}},
	{"groups.list", call{path: "/v1/groups", want: 200, rpc: `{}`}},
	{"groups.get", call{path: "/v1/groups/TEAM", want: 200, stranger: 404, rpc: `{"group":"TEAM"}`}},
	{"groups.update", call{path: "/v1/groups/TEAM", body: `{"name":"Team 2"}`, want: 200, stranger: 404}},
	{"groups.members.put", call{path: "/v1/groups/TEAM/members/bob", body: `{"role":"admin"}`, want: 200, stranger: 404}},
	{"conversations.list", call{path: "/v1/conversations", want: 200, rpc: `{}`}},
	{"conversations.history", call{path: "/v1/conversations/g/TEAM/messages", want: 200, stranger: 404, rpc: `{"conv":"g/TEAM"}`}},
	{"conversations.read", call{path: "/v1/conversations/g/TEAM/read", body: `{"seq":1}`, want: 200, stranger: 403}},
	{"push.level.set", call{path: "/v1/conversations/g/TEAM/push", body: `{"level":"mentions"}`, want: 204}},
	{"push.settings.set", call{path: "/v1/push", body: `{"privacy":"none"}`, want: 204}},
	{"push.settings.get", call{path: "/v1/push", want: 200, rpc: `{}`}},
	{"devices.list", call{path: "/v1/devices", want: 200, rpc: `{}`}},
	{"devices.push.set", call{path: "/v1/devices/tablet/push", body: `{"provider":"apns","app":"ios","token":"` + strings.Repeat("ab", 32) + `"}`, want: 204}},
	{"devices.push.remove", call{path: "/v1/devices/tablet/push", want: 204}},
	{"devices.remove", call{path: "/v1/devices/tablet", want: 204, stranger: 404}},
	{"groups.members.remove", call{path: "/v1/groups/TEAM/members/bob", want: 204, stranger: 404}},
	{"groups.delete", call{path: "/v1/groups/TEAM", want: 204, stranger: 404}},
	{"blocks.add", call{path: "/v1/blocks/bob", want: 204}},
	{"blocks.list", call{path: "/v1/blocks", want: 200, rpc: `{}`}},
	{"blocks.remove", call{path: "/v1/blocks/bob", want: 204}},
	{"friends.remove", call{path: "/v1/friends/bob", want: 204}},
	{"admin.users.create", call{who: "root", path: "/v1/admin/users", body: `{"user":"zoe","password":"correct-horse-zoe"}`, want: 201, stranger: 403}},
	{"admin.users.list", call{who: "root", path: "/v1/admin/users", want: 200, stranger: 403}},
	{"admin.users.get", call{who: "root", path: "/v1/admin/users/zoe", want: 200, stranger: 403, rpc: `{"user":"zoe"}`}},
	{"admin.users.update", call{who: "root", path: "/v1/admin/users/zoe", body: `{"name":"Z"}`, want: 200, stranger: 403}},
	{"admin.users.password", call{who: "root", path: "/v1/admin/users/zoe/password", body: `{"password":"another-horse-zoe"}`, want: 204, stranger: 403}},
	{"admin.users.revoke", call{who: "root", path: "/v1/admin/users/zoe/revoke", want: 204, stranger: 403}},
	{"admin.users.disable", call{who: "root", path: "/v1/admin/users/zoe", want: 204, stranger: 403}},
	{"admin.push.explain", call{who: "root", path: "/v1/admin/push/explain?user=alice&conv=dm/bob&seq=1", want: 200, stranger: 403}},
	{"admin.push.dead", call{who: "root", path: "/v1/admin/push/dead", want: 200, stranger: 403}},
	{"admin.push.replay", call{who: "root", path: "/v1/admin/push/replay", body: `{}`, want: 200, stranger: 403}},
	{"admin.push.send", call{who: "root", path: "/v1/admin/push/send", body: `{"user":"alice","device":"phone"}`, want: 404, stranger: 403}},
	{"admin.backup", call{who: "root", path: "/v1/admin/backup", body: `{"dir":"/nowhere"}`, want: 403, stranger: 403}},
	{"me.password", call{path: "/v1/me/password", body: `{"old":"correct-horse-alice","new":"other-horse-alice"}`, want: 204}},
	{"auth.logout", call{who: "bob", path: "/v1/logout", want: 204}},
}

// document is the part of the OpenAPI document that the test reads.
type document struct {
	Paths map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Security    []any
		RequestBody any `json:"requestBody"`
		Responses   map[string]any
	}
}

// TestEveryOperation calls all of the HTTP API as its owner, as a stranger, as
// nobody, with every kind of bad body, and where it changes nothing over MQTT too.
func TestEveryOperation(t *testing.T) {
	t.Parallel()
	h, _ := ringing(t, pushtest.Options{})
	alice, bob, carol, eve := h.Person("alice"), h.Person("bob"), h.Person("carol"), h.Person("eve")
	h.Friends(alice, bob)
	alice.Connect("tablet").Leave()
	team := alice.Group("team", bob)
	cli(t, h, "user", "add", "root", "--role", "admin", "--password-stdin")
	root := &Person{h: h, Name: "root"}
	var in struct{ Token string }
	root.must(200, "POST", "/v1/login", map[string]string{"user": "root", "password": "a-new-password"}, &in)
	root.Token = in.Token
	people := map[string]*Person{"alice": alice, "bob": bob, "carol": carol, "root": root}
	nobody := &Person{h: h, Name: "nobody"}
	wires := map[string]*Device{}
	wire := func(p *Person) *Device {
		if wires[p.Name] == nil {
			wires[p.Name] = p.Connect("desk")
		}
		return wires[p.Name]
	}
	wire(alice)
	wire(carol)

	var doc document
	nobody.must(200, "GET", "/openapi.json", nil, &doc)
	type route struct {
		method, path string
		public, body bool
		answers      map[string]any // by status
	}
	routes := map[string]route{}
	for path, methods := range doc.Paths {
		for method, o := range methods {
			routes[o.OperationID] = route{strings.ToUpper(method), path, len(o.Security) == 0, o.RequestBody != nil, o.Responses}
		}
	}
	seen := map[string]bool{}
	for _, c := range calls {
		seen[c.op] = true
		r, ok := routes[c.op]
		if !ok {
			t.Errorf("%s is not in the document", c.op)
			continue
		}
		fill := strings.NewReplacer("TEAM", team)
		path, rpc := fill.Replace(c.path), fill.Replace(c.rpc)
		send := func(p *Person, body string) (int, []byte) {
			t.Helper()
			var in any
			if body != "" {
				in = []byte(body)
			}
			status, out, err := p.call(r.method, path, in)
			if err != nil {
				t.Fatal(err)
			}
			if r.answers[strconv.Itoa(status)] == nil {
				t.Errorf("%s answers %d, which the document does not say: %s", c.op, status, out)
			}
			if status >= 400 {
				var problem struct {
					Status       int
					Title, Code  string
					Detail, Type string
				}
				if err := json.Unmarshal(out, &problem); err != nil || problem.Status != status || problem.Title == "" {
					t.Errorf("%s: %d is no problem: %s", c.op, status, out)
				}
			}
			return status, out
		}
		if !r.public {
			if status, _ := send(nobody, c.body); status != http.StatusUnauthorized {
				t.Errorf("%s without a token: %d", c.op, status)
			}
		}
		if c.stranger != 0 {
			status, out := send(eve, c.body)
			if status != c.stranger {
				t.Errorf("%s by a stranger: %d, want %d: %s", c.op, status, c.stranger, out)
			}
			// What is not hers looks like what is not there.
			there := path
			path = strings.Replace(path, team, "0123456789abcdef", 1)
			if s2, out2 := send(eve, c.body); s2 != status || string(out2) != string(out) {
				t.Errorf("%s by a stranger: %d %s for what is there, %d %s for what is not", c.op, status, out, s2, out2)
			}
			path = there
		}
		who := people[c.who]
		if who == nil {
			who = alice
		}
		if r.public {
			who = nobody
		}
		if r.body {
			for why, bad := range map[string]string{"an unknown field": `{"no_such_field":1}`, "a list": `[]`, "a number": `7`, "no JSON": c.body + "}", "half of it": c.body[:len(c.body)-1], "two of it": c.body + c.body, "bytes that are no text": "{\"name\":\"\xff\"}"} {
				if status, out := send(who, bad); status < 400 || status > 499 {
					t.Errorf("%s with %s: %d %s", c.op, why, status, out)
				}
			}
			if status, _ := send(who, `{"x":"`+strings.Repeat("y", 100<<10)+`"}`); status != http.StatusRequestEntityTooLarge && c.want != 403 {
				t.Errorf("%s with a huge body: %d", c.op, status)
			}
		}
		status, out := send(who, c.body)
		if status != c.want {
			t.Errorf("%s by %s: %d, want %d: %s", c.op, who.Name, status, c.want, out)
			continue
		}
		if status == http.StatusNoContent && len(out) != 0 {
			t.Errorf("%s: 204 with a body: %s", c.op, out)
		}
		if rpc == "" {
			continue
		}
		var http, mqtt any
		_ = json.Unmarshal(out, &http)
		code := wire(who).Call(c.op, rpc, &mqtt)
		if code != "" || !reflect.DeepEqual(http, mqtt) {
			t.Errorf("%s over MQTT answers %s %v, over HTTP %s", c.op, code, mqtt, out)
		}
		// Refused alike.
		if c.stranger != 0 {
			_, out := send(eve, c.body)
			var problem struct{ Code string }
			_ = json.Unmarshal(out, &problem)
			if code := wire(eve).Call(c.op, rpc, nil); code != problem.Code {
				t.Errorf("%s by a stranger: code %q over MQTT, %q over HTTP", c.op, code, problem.Code)
			}
		}
	}
	for op, r := range routes {
		if !seen[op] {
			t.Errorf("%s (%s %s) has no row in this table", op, r.method, r.path)
		}
	}
}

// The limits of requests are settings, and limits.off lifts them.
func TestLimitsOfRequests(t *testing.T) {
	t.Parallel()
	for _, limit := range []struct {
		flag, what string
		person     bool // it is one of a user
	}{{"registrations", "/v1/register", false}, {"address", "/v1/users", false}, {"requests", "/v1/users", true}} {
		for _, off := range []bool{false, true} {
			h := Open(t, "--limits."+limit.flag+"_per_second=0.001", "--limits."+limit.flag+"_burst=4", "--limits.off="+strconv.FormatBool(off))
			p := &Person{h: h, Name: "nobody"}
			if limit.person {
				p = h.Person("alice")
			}
			refused := 0
			for i := range 8 {
				method, in := "GET", any(nil)
				if limit.what == "/v1/register" {
					method, in = "POST", map[string]string{"user": "u" + strconv.Itoa(i), "password": "correct-horse-u"}
				}
				status, _, err := p.call(method, limit.what, in)
				if err != nil {
					t.Fatal(err)
				}
				if status == http.StatusTooManyRequests {
					refused++
				}
			}
			if want := map[bool]int{false: 4, true: 0}[off]; refused != want {
				t.Errorf("of eight requests %d are refused by limits.%s_burst=4 with limits.off=%v, want %d", refused, limit.flag, off, want)
			}
		}
	}
}

// A number beyond the head is one beyond the head, however large.
func TestSeqsOfAnySize(t *testing.T) {
	_, alice, _ := stage(t)
	phone := alice.Connect("phone")
	phone.Publish("dm/bob", "one")
	phone.Publish("dm/bob", "two")
	for _, n := range []string{"3", "9007199254740993", "9223372036854775807", "18446744073709551615"} {
		var page struct{ Messages []entry }
		alice.must(http.StatusOK, "GET", "/v1/conversations/dm/bob/messages?before="+n, nil, &page)
		if len(page.Messages) != 2 {
			t.Errorf("before %s are %d messages", n, len(page.Messages))
		}
		var mark struct{ Seq uint64 }
		alice.must(http.StatusOK, "PUT", "/v1/conversations/dm/bob/read", []byte(`{"seq":`+n+`}`), &mark)
		if mark.Seq != 2 {
			t.Errorf("read up to %s: %d, want the head", n, mark.Seq)
		}
		if n != "18446744073709551615" { // -1 means without it, so this one is signed
			alice.must(http.StatusOK, "GET", "/v1/conversations/dm/bob/messages?after="+n, nil, &page)
			if len(page.Messages) != 0 {
				t.Errorf("after %s are %d messages", n, len(page.Messages))
			}
		}
	}
	for _, path := range []string{"before=18446744073709551616", "before=-1", "after=-2", "after=9223372036854775808", "limit=0", "limit=201", "limit=99999999999999999999", "limit=1.5"} {
		if status, body, err := alice.call("GET", "/v1/conversations/dm/bob/messages?"+path, nil); status != http.StatusUnprocessableEntity || err != nil {
			t.Errorf("%s: %d %s %v", path, status, body, err)
		}
	}
}

// What is no operation is a problem too, on the real server, whose mux serves
// WebSocket beside the API: no redirect, no page of somebody else's.
func TestPathsOfNothing(t *testing.T) {
	t.Parallel()
	h := Open(t)
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, path := range []string{"/", "/v1", "/v1/media/x", "/v1//me", "/v1/users/../me", "/v1/./me", "/v1/users/%2e%2e/me", "/v1/users/..%2fme", "/V1/me", "/v1/me/", "//mqtt", "/mqtt/", "/metrics", "/debug/pprof/"} {
		res, err := client.Get("http://" + h.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		var problem struct{ Code string }
		_ = json.NewDecoder(res.Body).Decode(&problem)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusNotFound || problem.Code != "path_not_found" || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s %+v", path, res.StatusCode, res.Header.Get("Content-Type"), problem)
		}
	}
}

func byPassword(p *Person) option {
	return func(o *connectOptions) { o.password = p.password() }
}

// What ends the connection that a request came on is answered before it does.
func TestGoodbyesOverMQTT(t *testing.T) {
	t.Parallel()
	h := Open(t)
	alice := h.Person("alice")
	refused := func(token string) bool {
		status, _, err := (&Person{h: h, Token: token}).call("GET", "/v1/me", nil)
		return err == nil && status == http.StatusUnauthorized
	}
	login := alice.Token
	web, tab, phone := alice.Connect("web"), alice.Connect("tab"), alice.Connect("phone", byPassword(alice))
	if code := web.Call("auth.logout", "{}", nil); code != "" {
		t.Errorf("logout of a token: %s", code)
	}
	if web.Gone() != 0x87 || tab.Gone() != 0x87 || !refused(login) {
		t.Error("a logout ends what was connected with its token, and the token")
	}
	alice.Login()
	lost := alice.Connect("lost")
	if code := lost.Call("devices.remove", `{"device":"lost"}`, nil); code != "" {
		t.Errorf("removal of the device: %s", code)
	}
	if lost.Gone() != 0x98 || alice.Connect("lost").Connack.SessionPresent {
		t.Error("a device that removes itself is disconnected and forgotten")
	}
	other := alice.Connect("other")
	if code := phone.Call("auth.logout", "{}", nil); code != "" {
		t.Errorf("logout of a password: %s", code)
	}
	if phone.Gone() != 0x87 || refused(alice.Token) {
		t.Error("the logout of a connection made with a password ends that connection")
	}
	if code := other.Call("me.password", `{"old":"correct-horse-alice","new":"other-horse-alice"}`, nil); code != "" {
		t.Errorf("password: %s", code)
	}
	if other.Gone() != 0x87 || !refused(alice.Token) {
		t.Error("a new password ends everything")
	}
}

// Every operation is a request over MQTT as well, those that make a login too.
func TestLoginOverMQTT(t *testing.T) {
	t.Parallel()
	h := Open(t)
	d := h.Person("alice").Connect("phone")
	var made struct{ User, Name string }
	if code := d.Call("auth.register", `{"user":"zoe","password":"correct-horse-zoe"}`, &made); code != "" || made.User != "zoe" {
		t.Errorf("register: %q %+v", code, made)
	}
	type grant struct {
		Token     string
		Refresh   string `json:"refresh_token"`
		ExpiresIn int    `json:"expires_in"`
		User      string
	}
	var g grant
	for _, call := range [][2]string{{"auth.login", `{"user":"zoe","password":"correct-horse-zoe"}`}, {"auth.refresh", ""}} {
		if call[1] == "" {
			call[1] = `{"refresh_token":"` + g.Refresh + `"}`
		}
		g = grant{}
		if code := d.Call(call[0], call[1], &g); code != "" || g.Token == "" || g.Refresh == "" || g.ExpiresIn != 900 || g.User != "zoe" {
			t.Errorf("%s: %q %+v", call[0], code, g)
		}
	}
	if code := d.Call("auth.login", `{"user":"zoe","password":"wrong-horse-zoe"}`, nil); code != "unauthorized" {
		t.Errorf("a wrong password: %q", code)
	}
	(&Person{h: h, Name: "zoe", Token: g.Token}).must(http.StatusOK, "GET", "/v1/me", nil, nil)
}
