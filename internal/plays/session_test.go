package plays

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestADeviceGetsExactlyWhatItMissed(t *testing.T) {
	_, alice, bob := stage(t)
	a := alice.Connect("phone")
	a.Publish("dm/bob", "before bob had a phone")

	b := bob.Connect("phone") // never seen before: starts at now
	if b.Connack.SessionPresent {
		t.Error("a new device has a session")
	}
	b.Quiet()
	a.Publish("dm/bob", "1")
	b.Expect("dm/alice", "1")
	b.Leave()
	const n = 1000
	for i := 2; i <= n; i++ {
		a.Post(message{topic: "dm/bob", body: fmt.Sprint(i), qos: 1})
	}
	a.Publish("dm/bob", "end")
	b = bob.Connect("phone")
	if !b.Connack.SessionPresent {
		t.Error("no session present")
	}
	for i := 2; i <= n; i++ {
		b.Expect("dm/alice", fmt.Sprint(i))
	}
	b.Expect("dm/alice", "end")
	b.Quiet()
	b.Leave()

	// Clean Start: from now on only.
	a.Publish("dm/bob", "missed")
	b = bob.Connect("phone", clean)
	if b.Connack.SessionPresent {
		t.Error("session present after a clean start")
	}
	b.Quiet()
	a.Publish("dm/bob", "now")
	b.Expect("dm/alice", "now")
}

func TestTheSameFor311(t *testing.T) {
	_, alice, bob := stage(t)
	a := alice.Connect("phone", v311)
	b := bob.Connect("phone", v311)
	b.Leave()
	for i := range 300 {
		a.Post(message{topic: "dm/bob", body: fmt.Sprint(i), qos: 1})
	}
	a.Publish("dm/bob", "end")
	b = bob.Connect("phone", v311)
	if !b.Connack.SessionPresent {
		t.Error("no session present")
	}
	for i := range 300 {
		if g := b.Next(); !strings.Contains(g.Body, fmt.Sprintf(`"text":"%d"`, i)) {
			t.Fatalf("message %d: %s", i, g.Body)
		}
	}
}

// TestADeviceIsKnownByItsCursor: over versions of MQTT, without a session, after a clean
// start, with what it stopped and lowered.
func TestADeviceIsKnownByItsCursor(t *testing.T) {
	_, alice, bob := stage(t)
	a := alice.Connect("phone")
	none := func(o *connectOptions) { o.expiry = 0 }
	b := bob.Connect("phone", v311, clean)
	for i, how := range []option{v311, func(*connectOptions) {}, v311, none, none, v311} {
		b.Leave()
		a.Publish("dm/bob", fmt.Sprint("missed ", i))
		b = bob.Connect("phone", how)
		if !b.Connack.SessionPresent {
			t.Errorf("return %d: no session present", i)
		}
		if g := b.Next(); g.Topic != "dm/alice" || !strings.Contains(g.Body, fmt.Sprint("missed ", i)) || g.Dup {
			t.Errorf("return %d: %+v", i, g)
		}
		b.Quiet()
	}
	b.Subscribe("g/+", 0)
	b.Unsubscribe("dm/+")
	a.Publish("dm/bob", "stopped")
	b.Quiet()
	b.Leave()
	b = bob.Connect("phone") // it goes on so
	a.Publish("g/"+alice.Group("team", bob), "hi")
	for range 2 { // its first entry, and this
		if g := b.NextOf(func(pk packets.Packet) bool { return strings.HasPrefix(pk.TopicName, "g/") }); g.QoS != 0 {
			t.Errorf("%s at QoS %d", g.Topic, g.QoS)
		}
	}
	b.Await("me/group-added")
	b.Quiet()
	b.Subscribe("dm/+", 0)
	b.Expect("dm/alice", "stopped")
	// At QoS 0 what was written is acknowledged, and does not come again.
	b.Drop()
	b = bob.Connect("phone")
	a.Publish("dm/bob", "last")
	b.Expect("dm/alice", "last")
}

// TestWhoWasPutOutWhileAway: the session it comes back with has nothing of the group
// any more, and later nothing of the time it was not there.
func TestWhoWasPutOutWhileAway(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	g := alice.Group("team", bob)
	b.Await("g/" + g)
	b.Await("me/group-added")
	b.Leave()
	a.Publish("g/"+g, "not read in time")
	alice.must(http.StatusNoContent, "DELETE", "/v1/groups/"+g+"/members/bob", nil, nil)
	a.Publish("g/"+g, "among us")
	b = bob.Connect("phone")
	b.Await("me/group-removed")
	a.Publish("g/"+g, "live")
	b.Quiet()
	b.Leave()
	alice.must(http.StatusOK, "PUT", "/v1/groups/"+g+"/members/bob", map[string]any{}, nil)
	a.Publish("g/"+g, "welcome back")
	b = bob.Connect("phone")
	if ev := b.Await("g/" + g); ev.Props["event"] != "member-added" {
		t.Errorf("%+v", ev)
	}
	if m := b.Await("g/" + g); m.Body != "welcome back" {
		t.Errorf("%+v", m)
	}
}

// TestAccountEventsWaitForTheDevice: they are a log with seq, in one order.
func TestAccountEventsWaitForTheDevice(t *testing.T) {
	h, alice, bob := stage(t)
	carol := h.Person("carol")
	phone, old := bob.Connect("phone"), bob.Connect("old", v311)
	phone.Leave()
	old.Leave()
	carol.must(http.StatusOK, "PUT", "/v1/friends/bob", map[string]any{"message": "it's me"}, nil)
	bob.must(http.StatusOK, "PUT", "/v1/friends/carol", nil, nil)
	alice.must(http.StatusNoContent, "DELETE", "/v1/friends/bob", nil, nil)
	for _, d := range []*Device{bob.Connect("phone"), bob.Connect("old", v311)} {
		last := uint64(0)
		for _, want := range []string{`me/friend-request "user":"carol","message":"it's me"}`, `me/friend-accepted "user":"carol"}`, `me/friend-removed "user":"alice"}`} {
			g := d.Next()
			topic, body, _ := strings.Cut(want, " ")
			if g.Topic != topic || !strings.HasPrefix(g.Body, fmt.Sprintf(`{"seq":%d,"ts":`, g.Seq())) || !strings.HasSuffix(g.Body, ","+body) || g.QoS != 1 {
				t.Errorf("got %s %s, want %s", g.Topic, g.Body, want)
			}
			if last > 0 && g.Seq() != last+1 {
				t.Errorf("after seq %d comes %d", last, g.Seq())
			}
			last = g.Seq()
		}
		d.Quiet()
	}
}

func TestWhatWasNotAcknowledgedComesAgain(t *testing.T) {
	_, alice, bob := stage(t)
	a := alice.Connect("phone")
	b := bob.Connect("phone", manual)
	for i := range 4 {
		a.Publish("dm/bob", fmt.Sprint(i))
	}
	var ids []uint16
	for range 4 {
		ids = append(ids, b.Next().ID)
	}
	b.Ack(ids[0])
	b.Ack(ids[2]) // out of order: 2 does not come again, 1 and 3 do
	b.Leave()
	b = bob.Connect("phone")
	for _, want := range []string{"1", "3"} {
		if g := b.Expect("dm/alice", want); !g.Dup {
			t.Errorf("%s comes again without DUP", want)
		}
	}
	b.Quiet()
}

func TestReceiveMaximumIsAWindow(t *testing.T) {
	_, alice, bob := stage(t)
	a := alice.Connect("phone")
	b := bob.Connect("phone", manual, withReceiveMaximum(3))
	for i := range 10 {
		a.Publish("dm/bob", fmt.Sprint(i))
	}
	var pending []Got
	for i := range 3 {
		pending = append(pending, b.Expect("dm/alice", fmt.Sprint(i)))
	}
	// A ping that is answered with nothing before it: the window is closed.
	b.nextID++
	b.Post(message{topic: "me/state", body: "active", qos: 1})
	b.wait(packets.Puback, b.nextID)
	d := len(b.got)
	if d != 0 {
		t.Fatalf("%d messages beyond the Receive Maximum", d)
	}
	for i := 3; i < 10; i++ {
		b.Ack(pending[0].ID)
		pending = append(pending[1:], b.Expect("dm/alice", fmt.Sprint(i)))
	}
}

func TestTakeover(t *testing.T) {
	h, alice, bob := stage(t)
	a := alice.Connect("phone")
	first := bob.Connect("phone", manual)
	a.Publish("dm/bob", "one")
	first.Expect("dm/alice", "one") // not acknowledged
	second := bob.Connect("phone")
	if code := first.Gone(); code != 0x8E {
		t.Errorf("DISCONNECT 0x%02x, want 0x8E", code)
	}
	if g := second.Expect("dm/alice", "one"); !g.Dup {
		t.Error("no DUP")
	}
	a.Publish("dm/bob", "two")
	second.Expect("dm/alice", "two")

	// Another user with the same client id touches nothing.
	mallory := h.Person("mallory")
	m := mallory.Connect("phone")
	if m.Connack.SessionPresent {
		t.Error("mallory got a session")
	}
	a.Publish("dm/bob", "three")
	second.Expect("dm/alice", "three")
	m.Quiet()
}

func TestConnecting(t *testing.T) {
	h, alice, bob := stage(t)
	type attempt struct {
		why            string
		user, password string
		v5, v3         byte
	}
	for _, tt := range []attempt{
		{"the password", "alice", alice.password(), 0, 0},
		{"a token in its place", "alice", alice.Token, 0, 0},
		{"a token without a user name", "", alice.Token, 0, 0},
		{"a wrong password", "alice", "wrong-horse", 0x86, 4},
		{"an unknown user", "nobody", "wrong-horse", 0x86, 4},
		{"somebody else's token", "bob", alice.Token, 0x86, 4},
		{"nothing", "", "", 0x86, 4},
	} {
		for _, v := range []byte{V5, V311} {
			if v == V311 && tt.user == "" && tt.password != "" {
				continue // 3.1.1 has no password without a user name
			}
			d, err := dial(h, "c", connectOptions{version: v, clean: true, username: tt.user, password: tt.password})
			if err != nil {
				t.Fatalf("%s (v%d): %v", tt.why, v, err)
			}
			want := tt.v5
			if v == V311 {
				want = tt.v3
			}
			if d.Connack.ReasonCode != want {
				t.Errorf("%s (v%d): CONNACK 0x%02x, want 0x%02x", tt.why, v, d.Connack.ReasonCode, want)
			}
		}
	}
	for _, bad := range []string{"bad id!", strings.Repeat("x", 65)} {
		if d := alice.Connect(bad, anyCode); d.Connack.ReasonCode != 0x85 {
			t.Errorf("a bad client id: 0x%02x", d.Connack.ReasonCode)
		}
		if d := alice.Connect(bad, anyCode, v311); d.Connack.ReasonCode != 2 {
			t.Errorf("a bad client id, 3.1.1: %d", d.Connack.ReasonCode)
		}
	}
	assigned := alice.Connect("").Connack.Properties.AssignedClientID
	if assigned == "" {
		t.Error("no Assigned Client Identifier")
	} else if d := alice.Connect(assigned); !d.Connack.SessionPresent {
		t.Error("a device whose id was assigned does not return")
	}
	if d := alice.Connect("", clean, v311); d.Publish("dm/bob", "from nowhere").Code != 0 {
		t.Error("3.1.1: an empty client id with Clean Session 1")
	}
	if d := alice.Connect("", v311, anyCode); d.Connack.ReasonCode != 2 { // [MQTT-3.1.3-8]
		t.Errorf("3.1.1: an empty client id with Clean Session 0: %d", d.Connack.ReasonCode)
	}
	if d := alice.Connect("x", anyCode, func(o *connectOptions) { o.method = "SCRAM" }); d.Connack.ReasonCode != 0x8C {
		t.Errorf("an unknown authentication method: 0x%02x", d.Connack.ReasonCode)
	}

	// Enhanced authentication, and its renewal.
	d := alice.Connect("auth", func(o *connectOptions) { o.username, o.password, o.method, o.data = "", "", "token", alice.Token })
	if d.Connack.Properties.AuthenticationMethod != "token" {
		t.Errorf("CONNACK without the method")
	}
	d.Reauthenticate(alice.Login())
	if pk := d.wait(packets.Auth, 0); pk.ReasonCode != 0 {
		t.Errorf("AUTH 0x%02x", pk.ReasonCode)
	}
	d.Reauthenticate(bob.Token)
	if code := d.Gone(); code != 0x87 {
		t.Errorf("re-authentication as somebody else: 0x%02x", code)
	}
}

func TestDisabledAndTooManyTries(t *testing.T) {
	h, alice, bob := stage(t)
	bob.Connect("x", func(o *connectOptions) { o.password = bob.password() })
	for i := range 10 {
		if d := bob.Connect("x", anyCode, func(o *connectOptions) { o.password = "wrong-horse" }); d.Connack.ReasonCode != 0x86 {
			t.Fatalf("try %d: 0x%02x", i, d.Connack.ReasonCode)
		}
	}
	if d := bob.Connect("x", anyCode, func(o *connectOptions) { o.password = bob.password() }); d.Connack.ReasonCode != 0x97 {
		t.Errorf("after ten failures: 0x%02x", d.Connack.ReasonCode)
	}
	if d := bob.Connect("x", anyCode, v311, func(o *connectOptions) { o.password = bob.password() }); d.Connack.ReasonCode != 3 {
		t.Errorf("3.1.1: %d", d.Connack.ReasonCode)
	}
	if status, _, _ := (&Person{h: h}).call("POST", "/v1/login", map[string]any{"user": "bob", "password": bob.password()}); status != http.StatusTooManyRequests {
		t.Errorf("login: %d", status)
	}
	a := alice.Connect("phone")
	cli(t, h, "user", "disable", "alice")
	if code := a.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	if d := alice.Connect("phone", anyCode); d.Connack.ReasonCode != 0x87 {
		t.Errorf("disabled: 0x%02x", d.Connack.ReasonCode)
	}
	if d := alice.Connect("phone", anyCode, v311, func(o *connectOptions) { o.password = alice.password() }); d.Connack.ReasonCode != 5 {
		t.Errorf("disabled, 3.1.1: %d", d.Connack.ReasonCode)
	}
}

func TestTokensExpire(t *testing.T) {
	t.Parallel()
	h := Open(t, "--auth.token-ttl", "2s", "--limits.off=true")
	alice := h.Person("alice")
	old := alice.Token
	token := func(o *connectOptions) { o.username, o.password, o.method, o.data = "", "", "token", old }
	phone, renewed := alice.Connect("phone"), alice.Connect("renewed", token)
	gone := func() bool {
		phone.mu.Lock()
		defer phone.mu.Unlock()
		return phone.ended
	}
	for !gone() {
		renewed.Reauthenticate(alice.Login())
		if pk := renewed.wait(packets.Auth, 0); pk.ReasonCode != 0 {
			t.Fatalf("AUTH 0x%02x", pk.ReasonCode)
		}
	}
	if code := phone.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	// It lives as long as the token it has now, whatever it came with.
	if out := renewed.Publish("dm/alice", "still here"); out.Code != 0 {
		t.Errorf("%+v", out)
	}
	for _, how := range []option{token, func(o *connectOptions) { o.password = old }} {
		if d := alice.Connect("late", how, anyCode); d.Connack.ReasonCode != 0x86 {
			t.Errorf("with an expired token: 0x%02x", d.Connack.ReasonCode)
		}
	}
	other := alice.Connect("other")
	other.Reauthenticate(alice.Token)
	if code := other.Gone(); code != 0x82 {
		t.Errorf("AUTH on a connection made without it: 0x%02x", code)
	}
	if code := renewed.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
}

func TestWills(t *testing.T) {
	h, alice, bob := stage(t)
	mallory := h.Person("mallory")
	b := bob.Connect("phone")
	alice.Connect("lamp", withWill(will{topic: "dm/bob", body: "I fell", qos: 1})).Drop()
	b.Expect("dm/alice", "I fell")
	alice.Connect("lamp", withWill(will{topic: "dm/bob", body: "never", qos: 1})).Leave()
	mallory.Connect("x", withWill(will{topic: "dm/bob", body: "boo", qos: 1})).Drop()
	// Unfriended between CONNECT and the end.
	d := alice.Connect("lamp", withWill(will{topic: "dm/bob", body: "after the end", qos: 1}))
	alice.must(http.StatusNoContent, "DELETE", "/v1/friends/bob", nil, nil)
	b.Await("me/friend-removed")
	d.Drop()
	b.Quiet()
	for _, topic := range []string{"rpc/friends.add/1", "presence/bob", "dm/Bob", "$SYS/x"} {
		if d := mallory.Connect("x", anyCode, withWill(will{topic: topic})); d.Connack.ReasonCode < 0x80 {
			t.Errorf("a will to %s: 0x%02x", topic, d.Connack.ReasonCode)
		}
	}
	if d := mallory.Connect("x", anyCode, withWill(will{topic: "dm/bob", retain: true})); d.Connack.ReasonCode < 0x80 {
		t.Errorf("a retained will: 0x%02x", d.Connack.ReasonCode)
	}
	if d := mallory.Connect("x", anyCode, withWill(will{topic: "devices/x"})); d.Connack.ReasonCode != 0x87 {
		t.Errorf("a plain will without a rule: 0x%02x", d.Connack.ReasonCode)
	}
	if d := mallory.Connect("x", anyCode, v311, withWill(will{topic: "dm/bob", retain: true})); d.Connack.ReasonCode != 5 { // not 3, which says: try again later
		t.Errorf("a retained will of 3.1.1: %d", d.Connack.ReasonCode)
	}
}

func TestAWillIsAMessageLikeAnyOther(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone")
	id := func(v string) []packets.UserProperty { return []packets.UserProperty{{Key: "id", Val: v}} }
	for range 2 { // the same id, the same message
		alice.Connect("lamp", withWill(will{topic: "dm/bob", body: "I fell", qos: 1, text: true, user: id("fall-1")})).Drop()
		alice.Connect("lamp").Leave() // the first connection has ended
	}
	g := b.Expect("dm/alice", "I fell")
	if g.Props["id"] != "fall-1" || g.Raw.Properties.PayloadFormat != 1 {
		t.Errorf("%v, Payload Format Indicator %d", g.Props, g.Raw.Properties.PayloadFormat)
	}
	b.Quiet()
	for why, w := range map[string]will{
		"text that is none":        {topic: "dm/bob", body: "\xff", text: true},
		"an id of 65 characters":   {topic: "dm/bob", body: "x", user: id(strings.Repeat("x", 65))},
		"a watermark that is none": {topic: "dm/bob/read", body: "seven"},
	} {
		if d := alice.Connect("lamp", anyCode, withWill(w)); d.Connack.ReasonCode != 0x99 {
			t.Errorf("a will with %s: 0x%02x, want 0x99", why, d.Connack.ReasonCode)
		}
		if d := alice.Connect("lamp", anyCode, v311, withWill(will{topic: "dm/bob/read", body: "seven"})); d.Connack.ReasonCode != 5 {
			t.Errorf("3.1.1: %d, want 5", d.Connack.ReasonCode)
		}
	}
}

func TestQoS2IsOnce(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone")
	a := alice.Connect("phone")
	id := a.Post(message{topic: "dm/bob", body: "once", qos: 2, id: 5})
	first := a.wait(packets.Pubrec, id)
	a.Post(message{topic: "dm/bob", body: "once", qos: 2, id: 5, dup: true})
	a.wait(packets.Pubrec, id)
	a.Drop() // without PUBREL
	a = alice.Connect("phone")
	a.Post(message{topic: "dm/bob", body: "once", qos: 2, id: 5, dup: true})
	again := a.wait(packets.Pubrec, id)
	if len(first.Properties.User) == 0 || first.Properties.User[0] != again.Properties.User[0] {
		t.Errorf("%v, then %v", first.Properties.User, again.Properties.User)
	}
	_ = a.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: id})
	a.wait(packets.Pubcomp, id)
	b.Expect("dm/alice", "once")
	a.Send(message{topic: "dm/bob", body: "another", qos: 2, id: 5}) // the id is free again
	b.Expect("dm/alice", "another")
	b.Quiet()
}

func TestARequestAtQoS2RunsOnce(t *testing.T) {
	h, alice, _ := stage(t)
	ask := func(d *Device, dup bool) string {
		t.Helper()
		d.Post(message{topic: "rpc/groups.create/1", body: `{"name":"once"}`, qos: 2, id: 5, dup: dup})
		d.wait(packets.Pubrec, 5)
		return d.Await("re/1").Body
	}
	a := alice.Connect("phone")
	if got := ask(a, false); !strings.HasPrefix(got, `{"ok":true`) {
		t.Fatal(got)
	}
	a.Drop() // before its PUBREL
	a = alice.Connect("phone")
	if got := ask(a, true); !strings.HasPrefix(got, `{"ok":false,"error":{"code":"repeated",`) {
		t.Errorf("over a new connection: %s", got)
	}
	h.Kill()
	h.Start()
	a = alice.Connect("phone")
	if got := ask(a, true); !strings.HasPrefix(got, `{"ok":false,"error":{"code":"repeated",`) {
		t.Errorf("after a crash: %s", got)
	}
	var groups []struct{ Group string }
	alice.must(http.StatusOK, "GET", "/v1/groups", nil, &groups)
	if len(groups) != 1 {
		t.Errorf("%d groups were made", len(groups))
	}
	_ = a.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: 5})
	a.wait(packets.Pubcomp, 5)
	if got := ask(a, false); !strings.HasPrefix(got, `{"ok":true`) { // the id is free again
		t.Error(got)
	}
}

func TestARestartKeepsEverything(t *testing.T) {
	h, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	a.Publish("dm/bob", "1")
	b.Expect("dm/alice", "1")
	b.Leave()
	a.Publish("dm/bob", "2")
	h.Stop()
	if code := a.Gone(); code != 0x8B {
		t.Errorf("DISCONNECT 0x%02x, want 0x8B", code)
	}
	h.Start()
	b = bob.Connect("phone") // the token survives, too
	if !b.Connack.SessionPresent {
		t.Error("no session present")
	}
	b.Expect("dm/alice", "2")
	a = alice.Connect("phone")
	a.Publish("dm/bob", "3")
	b.Expect("dm/alice", "3")
	b.Leave()
	a.Publish("dm/bob", "4")
	h.Kill()
	h.Start()
	b = bob.Connect("phone")
	b.Expect("dm/alice", "4")
	b.Quiet()
}

func TestAcknowledgementsComeInOrder(t *testing.T) {
	_, alice, _ := stage(t)
	for _, v := range []option{func(*connectOptions) {}, v311} {
		a := alice.Connect("phone", v)
		const n = 500
		for i := range n {
			topic := "dm/bob"
			if i%7 == 0 {
				topic = "dm/stranger" // refused at once, answered in its turn
			}
			a.Post(message{topic: topic, body: "x", qos: 1, id: uint16(i + 1)})
		}
		last := a.wait(packets.Puback, n)
		_ = last
		a.mu.Lock()
		if len(a.acks) != n-1 {
			t.Errorf("when the last was acknowledged, %d of %d were", len(a.acks)+1, n)
		}
		a.mu.Unlock()
		a.Leave()
	}
}

func TestKeepAlive(t *testing.T) {
	_, alice, _ := stage(t)
	d := alice.Connect("phone", func(o *connectOptions) { o.keep = 1 })
	begin := time.Now()
	if code := d.Gone(); code != 0x8D {
		t.Errorf("DISCONNECT 0x%02x, want 0x8D", code)
	}
	if took := time.Since(begin); took < 1400*time.Millisecond {
		t.Errorf("closed after %s, before 1.5 keep-alives", took)
	}
}

func TestDevicesAreForgotten(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	var devices []struct {
		Device string
		Online bool
	}
	bob.must(http.StatusOK, "GET", "/v1/devices", nil, &devices)
	if len(devices) != 1 || devices[0].Device != "phone" || !devices[0].Online {
		t.Errorf("%+v", devices)
	}
	bob.must(http.StatusNoContent, "DELETE", "/v1/devices/phone", nil, nil)
	b.Gone()
	a.Publish("dm/bob", "missed")
	b = bob.Connect("phone")
	if b.Connack.SessionPresent {
		t.Error("the device is still known")
	}
	b.Quiet()
}

func TestMaximumPacketSizeOfTheClient(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone", func(o *connectOptions) { o.maxSize = 200 })
	a := alice.Connect("phone")
	a.Publish("dm/bob", strings.Repeat("x", 500))
	a.Publish("dm/bob", "small")
	b.Expect("dm/alice", "small")
	if n := len(bob.History("dm/alice")); n != 2 {
		t.Errorf("%d in the history", n)
	}
}
