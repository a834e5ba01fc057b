package plays

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// stage is a house with two friends.
func stage(t *testing.T, more ...string) (h *House, alice, bob *Person) {
	t.Parallel()
	h = Open(t, append([]string{"--limits.off=true"}, more...)...)
	alice, bob = h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	return h, alice, bob
}

func TestAMessageIsAConversationSeenFromWhereYouStand(t *testing.T) {
	_, alice, bob := stage(t)
	phone, tablet := alice.Connect("phone"), alice.Connect("tablet")
	bobs, old := bob.Connect("phone"), bob.Connect("old", v311)

	ack := phone.Publish("dm/bob", "lunch?")
	if ack.Code != 0 || ack.Seq != 1 || ack.TS == 0 {
		t.Fatalf("PUBACK %+v", ack)
	}
	g := bobs.Expect("dm/alice", "lunch?")
	if g.QoS != 1 || g.Props["seq"] != "1" || g.Props["ts"] != fmt.Sprint(ack.TS) {
		t.Errorf("bob got %+v", g)
	}
	if from, ok := g.Props["from"]; ok {
		t.Errorf("from is %q, but the topic names the author", from)
	}
	want := fmt.Sprintf(`{"seq":1,"from":"alice","ts":%d,"type":"text/plain","text":"lunch?"}`, ack.TS)
	old.Expect("dm/alice", want)
	if g := tablet.Expect("dm/bob", "lunch?"); g.Props["from"] != "alice" {
		t.Errorf("alice's other device is not told who wrote: %+v", g.Props)
	}
	phone.Quiet()
}

func TestNotesToOneself(t *testing.T) {
	_, alice, _ := stage(t)
	phone, tablet := alice.Connect("phone"), alice.Connect("tablet")
	if ack := phone.Publish("dm/alice", "milk"); ack.Seq != 1 {
		t.Fatalf("%+v", ack)
	}
	tablet.Expect("dm/alice", "milk")
	phone.Quiet()
}

func TestGroups(t *testing.T) {
	h, alice, bob := stage(t)
	carol := h.Person("carol")
	a, b, c := alice.Connect("phone"), bob.Connect("phone"), carol.Connect("phone", v311)
	g := alice.Group("lunch", bob, carol)
	b.Await("me/group-added")
	c.Await("me/group-added")
	b.Await("g/" + g) // group-created
	c.Await("g/" + g)
	ack := a.Publish("g/"+g, "pizza")
	if ack.Code != 0 {
		t.Fatalf("%+v", ack)
	}
	got := b.Await("g/" + g)
	if got.Body != "pizza" || got.Props["from"] != "alice" || got.Seq() != ack.Seq {
		t.Errorf("bob got %+v", got)
	}
	if got := c.Await("g/" + g); !strings.Contains(got.Body, `"from":"alice"`) || !strings.Contains(got.Body, `"text":"pizza"`) {
		t.Errorf("carol got %s", got.Body)
	}

	// Carol is taken out: she hears nothing of what is said from then on.
	alice.must(http.StatusNoContent, "DELETE", "/v1/groups/"+g+"/members/carol", nil, nil)
	c.Await("me/group-removed")
	a.Publish("g/"+g, "just us")
	if ev := b.Await("g/" + g); ev.Props["event"] != "member-removed" {
		t.Errorf("bob got %+v", ev)
	}
	if g := b.Await("g/" + g); g.Body != "just us" {
		t.Errorf("bob got %+v", g)
	}
	c.Publish("g/"+g, "let me in")
	if e := c.Await("error"); !strings.Contains(e.Body, `"code":135`) {
		t.Errorf("carol's refusal: %s", e.Body)
	}
	status, _, _ := carol.call("GET", "/v1/conversations/g/"+g+"/messages", nil)
	if status != 404 && status != 403 {
		t.Errorf("carol reads the group: %d", status)
	}
}

func TestTheSameIDMakesOneMessage(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	first := a.Publish("dm/bob/id/m-1", "once")
	again := a.Publish("dm/bob/id/m-1", "once")
	byProperty := a.Send(message{topic: "dm/bob", body: "once", qos: 2, user: []packets.UserProperty{{Key: "id", Val: "m-1"}}})
	if first.Seq != 1 || again.Seq != 1 || byProperty.Seq != 1 || again.TS != first.TS {
		t.Errorf("%+v %+v %+v", first, again, byProperty)
	}
	if g := b.Expect("dm/alice", "once"); g.Props["id"] != "m-1" {
		t.Errorf("%+v", g.Props)
	}
	b.Quiet()
	if n := len(alice.History("dm/bob")); n != 1 {
		t.Errorf("%d messages", n)
	}
	// The same id of another sender, or in another conversation, is another message.
	if ack := bob.Connect("tablet").Publish("dm/alice/id/m-1", "mine"); ack.Seq != 2 {
		t.Errorf("%+v", ack)
	}
}

func TestWatermarksTypingAndSignals(t *testing.T) {
	_, alice, bob := stage(t)
	a, tablet, b := alice.Connect("phone"), alice.Connect("tablet"), bob.Connect("phone")
	for i := range 3 {
		a.Publish("dm/bob", fmt.Sprint(i))
		b.Next()
		tablet.Next()
	}
	if ack := b.Publish("dm/alice/read", "2"); ack.Code != 0 {
		t.Fatalf("%+v", ack)
	}
	a.Expect("dm/bob/read", `{"user":"bob","seq":2}`)
	tablet.Expect("dm/bob/read", `{"user":"bob","seq":2}`)
	b.Publish("dm/alice/read", "1") // never goes back
	a.Quiet()
	b.Publish("dm/alice/read", "99") // cut at the head
	a.Expect("dm/bob/read", `{"user":"bob","seq":3}`)
	tablet.Expect("dm/bob/read", `{"user":"bob","seq":3}`)

	a.Send(message{topic: "dm/bob/typing"})
	if g := b.Await("dm/alice/typing"); g.QoS != 0 {
		t.Errorf("typing at QoS %d", g.QoS)
	}
	a.Publish("dm/bob/signal", "offer")
	if g := b.Await("dm/alice/signal"); g.Body != "offer" || g.QoS != 0 {
		t.Errorf("%+v", g)
	}
	if g := tablet.Await("dm/bob/signal"); g.Props["from"] != "alice" {
		t.Errorf("%+v", g)
	}
	if n := len(alice.History("dm/bob")); n != 3 {
		t.Errorf("%d entries: typing and signals are in no log", n)
	}

	b.Publish("me/state", "inactive")
	a.Send(message{topic: "dm/bob/typing"})
	a.Publish("dm/bob", "wake")
	b.Expect("dm/alice", "wake")
	b.Quiet()
}

func TestEditRecallReact(t *testing.T) {
	h, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	a.Publish("dm/bob", "helo")
	b.Next()
	if ack := a.Publish("dm/bob/edit/1", "hello"); ack.Seq != 2 {
		t.Fatalf("%+v", ack)
	}
	b.Expect("dm/alice/edit/1", "hello")
	if ack := b.Publish("dm/alice/react/1", "+1"); ack.Seq != 3 {
		t.Fatalf("%+v", ack)
	}
	a.Expect("dm/bob/react/1", "+1")
	if ack := b.Publish("dm/alice/edit/1", "mine now"); ack.Code != 0x87 {
		t.Errorf("bob edits alice's message: %+v", ack)
	}
	if ack := b.Publish("dm/alice/recall/1", ""); ack.Code != 0x87 {
		t.Errorf("bob recalls alice's message: %+v", ack)
	}
	if ack := a.Publish("dm/bob/edit/77", "x"); ack.Code != 0x83 {
		t.Errorf("an unknown seq: %+v", ack)
	}
	if ack := a.Publish("dm/bob/recall/1", ""); ack.Seq != 4 {
		t.Fatalf("%+v", ack)
	}
	b.Await("dm/alice/recall/1")
	msgs := bob.History("dm/alice")
	if len(msgs) != 4 || !msgs[0].Recalled || msgs[0].Text != "" || msgs[1].Text != "" || msgs[3].Op != "recall" || msgs[3].Ref != 1 {
		t.Errorf("%+v", msgs)
	}
	// Also in a replay.
	late := bob.Connect("late")
	late.Leave()
	a.Publish("dm/bob", "secret")
	a.Publish("dm/bob/recall/5", "")
	late = bob.Connect("late")
	if g := late.Next(); g.Seq() != 5 || g.Body != "" {
		t.Errorf("the recalled body is replayed: %+v", g)
	}
	// In a group an admin may recall.
	g := alice.Group("team", bob)
	b.Await("g/" + g)
	ack := b.Publish("g/"+g, "oops")
	if ack := a.Publish(fmt.Sprintf("g/%s/recall/%d", g, ack.Seq), ""); ack.Code != 0 {
		t.Errorf("the owner recalls: %+v", ack)
	}
	_ = h
}

func TestRequests(t *testing.T) {
	h, alice, _ := stage(t)
	h.Person("carol")
	a := alice.Connect("phone")
	a.Post(message{topic: "rpc/friends.add/17", body: `{"user":"carol"}`, qos: 1})
	if g := a.Await("re/17"); g.Body != `{"ok":true,"data":{"state":"requested"}}` {
		t.Errorf("%s", g.Body)
	}
	a.Post(message{topic: "rpc/me.get", body: "{}", qos: 1, response: "re/x/y", correlation: "c1"})
	if g := a.Await("re/x/y"); g.Correlation != "c1" || !strings.Contains(g.Body, `"ok":true`) {
		t.Errorf("%+v", g)
	}
	if ack := a.Send(message{topic: "rpc/me.get", body: "{}", qos: 1, response: "dm/bob"}); ack.Code != 0x90 {
		t.Errorf("a Response Topic outside re/: %+v", ack)
	}
	if code := a.Call("no.such", "{}", nil); code == "" {
		t.Error("an unknown operation was answered")
	}
	if code := a.Call("friends.add", `{"user":"carol","nonsense":1}`, nil); code == "" {
		t.Error("an unknown parameter was accepted")
	}
	// A request sees what was published before it on the same connection.
	for i := range 20 {
		a.Post(message{topic: "dm/bob", body: fmt.Sprint("note ", i), qos: 1, id: uint16(100 + i)})
		var history struct{ Messages []struct{ Text string } }
		if code := a.Call("conversations.history", `{"kind":"dm","id":"bob"}`, &history); code != "" {
			t.Fatal(code)
		}
		if n := len(history.Messages); n != i+1 || history.Messages[n-1].Text != fmt.Sprint("note ", i) {
			t.Fatalf("after %d messages the history is %v", i+1, history.Messages)
		}
	}
	old := alice.Connect("old", v311)
	old.Post(message{topic: "rpc/friends.list/1", body: "", qos: 0})
	if g := old.Await("re/1"); !strings.Contains(g.Body, `"user":"bob"`) {
		t.Errorf("%s", g.Body)
	}
}

func TestSubscriptions(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	for _, f := range []string{"#", "dm/+", "dm/alice", "+/alice", "$share/x/#"} {
		if code := b.Subscribe(f, 2); code != 1 {
			t.Errorf("SUBSCRIBE %s at QoS 2: %d", f, code)
		}
	}
	a.Publish("dm/bob", "one")
	b.Expect("dm/alice", "one")
	b.Quiet()

	low := bob.Connect("low")
	if code := low.Subscribe("dm/+", 0); code != 0 {
		t.Errorf("%d", code)
	}
	a.Publish("dm/bob", "two")
	if g := low.Expect("dm/alice", "two"); g.QoS != 0 {
		t.Errorf("QoS %d", g.QoS)
	}
	low.Unsubscribe("dm/+")
	a.Publish("dm/bob", "three")
	low.Quiet()
	low.Subscribe("dm/+", 1)
	low.Expect("dm/alice", "three")
	if code := b.Subscribe("devices/#", 1); code != 0x87 {
		t.Errorf("the plain space is open: 0x%02x", code)
	}
	if code := bob.Connect("old", v311).Subscribe("devices/#", 1); code != 0x80 {
		t.Errorf("3.1.1: 0x%02x", code)
	}
	if code := b.Subscribe("a+", 1); code != 0x8F {
		t.Errorf("an invalid filter: 0x%02x", code)
	}
}

func TestNobodySeesAnothersView(t *testing.T) {
	h, alice, bob := stage(t)
	mallory := h.Person("mallory")
	m := mallory.Connect("phone") // bob's client id, too
	for _, f := range []string{"#", "+/#", "dm/+", "dm/bob", "dm/alice", "$share/g/#", "$share/g/dm/+", "me/#", "re/+", "+/+", "presence/+"} {
		m.Subscribe(f, 1)
	}
	b := bob.Connect("phone")
	alice.Connect("phone").Publish("dm/bob", "secret")
	b.Expect("dm/alice", "secret")
	m.Quiet()
	if code := m.Subscribe("$SYS/#", 1); code < 0x80 {
		t.Errorf("$SYS: 0x%02x", code)
	}
}

func TestSent(t *testing.T) {
	_, alice, _ := stage(t)
	a := alice.Connect("phone", v311)
	a.Subscribe("#", 1)
	a.Publish("dm/bob", "no news")
	a.Quiet()
	a.Subscribe("sent", 0)
	a.Send(message{topic: "dm/bob/id/x", body: "hi", qos: 1, id: 77})
	g := a.Await("sent")
	for _, part := range []string{`"topic":"dm/bob/id/x"`, `"id":"x"`, `"packet":77`, `"seq":2`, `"ts":`} {
		if !strings.Contains(g.Body, part) {
			t.Errorf("%s is missing in %s", part, g.Body)
		}
	}
	if g.QoS != 0 {
		t.Errorf("QoS %d", g.QoS)
	}
}

func TestEnvelopeForMQTT5(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone", func(o *connectOptions) { o.envelope = true })
	a := alice.Connect("phone")
	a.Send(message{topic: "dm/bob", body: "\x00\x01", qos: 1, typ: "image/png"})
	if g := b.Next(); !strings.Contains(g.Body, `"type":"image/png","data":"AAE="`) {
		t.Errorf("%s", g.Body)
	}
	plain := bob.Connect("raw")
	a.Send(message{topic: "dm/bob", body: "\x00\x02", qos: 1, typ: "image/png"})
	if g := plain.Next(); g.Body != "\x00\x02" || g.Type != "image/png" {
		t.Errorf("%+v", g)
	}
}

func TestRefusals(t *testing.T) {
	h, alice, bob := stage(t, "--limits.message", "2KB")
	h.Person("stranger")
	a := alice.Connect("phone")
	g := alice.Group("team", bob)
	big := strings.Repeat("x", 3000)
	for _, tt := range []struct {
		why  string
		m    message
		code byte
	}{
		{"a stranger", message{topic: "dm/stranger", body: "hi"}, 0x87},
		{"an unknown user", message{topic: "dm/nobody", body: "hi"}, 0x87},
		{"an unknown group", message{topic: "g/nowhere", body: "hi"}, 0x87},
		{"outside the grammar", message{topic: "dm/bob/shout"}, 0x90},
		{"what the server writes", message{topic: "presence/bob"}, 0x90},
		{"an upper-case user", message{topic: "dm/Bob"}, 0x90},
		{"too large", message{topic: "dm/bob", body: big}, 0x97},
		{"a watermark that is no number", message{topic: "dm/bob/read", body: "seven"}, 0x99},
		{"a negative watermark", message{topic: "dm/bob/read", body: "-1"}, 0x99},
		{"a state that is none", message{topic: "me/state", body: "asleep"}, 0x99},
		{"text that is none", message{topic: "dm/bob", body: "\xff", text: true}, 0x99},
		{"retained", message{topic: "dm/bob", body: "x", retain: true}, 0x83},
		{"an unknown seq", message{topic: "g/" + g + "/edit/999", body: "x"}, 0x83},
		{"a plain topic without a rule", message{topic: "devices/x", body: "1"}, 0x87},
	} {
		for _, qos := range []byte{1, 2} {
			tt.m.qos = qos
			if out := a.Send(tt.m); out.Code != tt.code || out.Reason == "" {
				t.Errorf("%s at QoS %d: 0x%02x %q, want 0x%02x", tt.why, qos, out.Code, out.Reason, tt.code)
			}
		}
	}
	if out := a.Publish("dm/bob", "still here"); out.Code != 0 {
		t.Errorf("after all that: %+v", out)
	}

	// MQTT 3.1.1 and QoS 0 get an event, never a disconnect.
	old := alice.Connect("old", v311)
	if out := old.Send(message{topic: "dm/stranger/id/q", body: "hi", qos: 1, id: 9}); out.Code != 0 {
		t.Errorf("%+v", out)
	}
	if e := old.Await("error"); !strings.Contains(e.Body, `{"topic":"dm/stranger/id/q","id":"q","packet":9,"code":135,"reason":"`) {
		t.Errorf("%s", e.Body)
	}
	a.Send(message{topic: "dm/stranger", body: "hi"})
	if e := a.Await("error"); !strings.Contains(e.Body, `"code":135`) {
		t.Errorf("%s", e.Body)
	}

	// Request Problem Information 0: no properties at all.
	terse := alice.Connect("terse", func(o *connectOptions) { o.noReason = true })
	if out := terse.Publish("dm/stranger", "x"); out.Code != 0x87 || out.Props != 0 {
		t.Errorf("%+v", out)
	}
	if out := terse.Publish("dm/bob", "x"); out.Code != 0 || out.Props != 0 {
		t.Errorf("%+v", out)
	}

	// A packet over the Maximum Packet Size ends the connection.
	size := int(a.Connack.Properties.MaximumPacketSize)
	if size == 0 {
		t.Fatal("no Maximum Packet Size in CONNACK")
	}
	a.Post(message{topic: "dm/bob", body: strings.Repeat("x", size), qos: 1})
	if code := a.Gone(); code != 0x95 {
		t.Errorf("DISCONNECT 0x%02x, want 0x95", code)
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	h := Open(t, "--limits.messages-per-second", "1", "--limits.burst", "3")
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a := alice.Connect("phone")
	refused := 0
	for range 10 {
		if out := a.Publish("dm/bob", "x"); out.Code == 0x97 {
			refused++
		}
	}
	if refused < 5 {
		t.Errorf("%d of 10 refused", refused)
	}
}

func TestRevocationActsOnTheNextPacket(t *testing.T) {
	h, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	try := func(d *Device, topic string, want byte) {
		t.Helper()
		if out := d.Publish(topic, "x"); out.Code != want {
			t.Errorf("%s: 0x%02x, want 0x%02x", topic, out.Code, want)
		}
	}
	try(a, "dm/bob", 0)
	bob.must(http.StatusNoContent, "PUT", "/v1/blocks/alice", nil, nil)
	try(a, "dm/bob", 0x87)
	try(b, "dm/alice", 0x87)
	bob.must(http.StatusNoContent, "DELETE", "/v1/blocks/alice", nil, nil)
	try(a, "dm/bob", 0)
	alice.must(http.StatusNoContent, "DELETE", "/v1/friends/bob", nil, nil)
	try(a, "dm/bob", 0x87)
	try(b, "dm/alice", 0x87)

	g := alice.Group("team", bob)
	try(b, "g/"+g, 0)
	alice.must(http.StatusOK, "PUT", "/v1/groups/"+g+"/members/bob", map[string]any{"muted_until": 4000000000000}, nil)
	try(b, "g/"+g, 0x87)
	alice.must(http.StatusOK, "PUT", "/v1/groups/"+g+"/members/bob", map[string]any{"muted_until": 0}, nil)
	try(b, "g/"+g, 0)
	bob.must(http.StatusNoContent, "DELETE", "/v1/groups/"+g+"/members/bob", nil, nil)
	try(b, "g/"+g, 0x87)

	// A changed password disconnects what came in before.
	bob.must(http.StatusNoContent, "POST", "/v1/me/password", map[string]any{"old": bob.password(), "new": "another-horse-bob"}, nil)
	if code := b.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	if d := bob.Connect("phone", anyCode); d.Connack.ReasonCode != 0x86 {
		t.Errorf("the old token still works: 0x%02x", d.Connack.ReasonCode)
	}
	// So does a logout.
	alice.must(http.StatusNoContent, "POST", "/v1/logout", nil, nil)
	if code := a.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	_ = h
}
