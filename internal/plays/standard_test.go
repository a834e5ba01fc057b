package plays

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What the MQTT standard asks of a server, beyond what the other plays show.

func TestQoSZeroLowersAnswersAndReceiptsToo(t *testing.T) {
	_, alice, bob := stage(t)
	a := alice.Connect("phone")
	for _, filter := range []string{"#", "$share/x/#"} {
		low := bob.Connect("low", clean)
		if code := low.Subscribe(filter, 0); code != 0 {
			t.Errorf("SUBSCRIBE %s at QoS 0: %d", filter, code)
		}
		ack := a.Publish("dm/bob", "hi")
		a.Publish("dm/bob/read", fmt.Sprint(ack.Seq))
		low.Post(message{topic: "rpc/me.get/1", body: "{}", qos: 1})
		for _, topic := range []string{"dm/alice", "dm/alice/read", "re/1"} {
			if g := low.Await(topic); g.QoS != 0 { // [MQTT-3.8.4-8]
				t.Errorf("%s at QoS %d after SUBSCRIBE %s at QoS 0", topic, g.QoS, filter)
			}
		}
		// One of QoS 1 that overlaps raises its own topics again.
		low.Subscribe("dm/+", 1)
		a.Publish("dm/bob", "hi")
		if g := low.Await("dm/alice"); g.QoS != 1 {
			t.Errorf("QoS %d after SUBSCRIBE dm/+ at QoS 1", g.QoS)
		}
		low.Leave()
	}
}

func TestAFilterOfOneAccountEvent(t *testing.T) {
	h, alice, bob := stage(t)
	carol := h.Person("carol")
	b, low := bob.Connect("phone"), bob.Connect("low")
	b.Unsubscribe("me/+")
	b.Subscribe("me/friend-request", 1)
	low.Subscribe("me/friend-request", 0)
	carol.must(200, "PUT", "/v1/friends/bob", nil, nil)
	bob.must(200, "PUT", "/v1/friends/carol", nil, nil)
	alice.must(204, "DELETE", "/v1/friends/bob", nil, nil)
	if g := b.Next(); g.Topic != "me/friend-request" {
		t.Errorf("got %s, which was stopped", g.Topic)
	}
	b.Quiet()
	for _, want := range []Got{{Topic: "me/friend-request", QoS: 0}, {Topic: "me/friend-accepted", QoS: 1}, {Topic: "me/friend-removed", QoS: 1}} {
		if g := low.Next(); g.Topic != want.Topic || g.QoS != want.QoS { // [MQTT-3.8.4-8]
			t.Errorf("got %s at QoS %d, want %s at %d", g.Topic, g.QoS, want.Topic, want.QoS)
		}
	}
}

func TestAnAnswerThatIsTooLargeForTheClient(t *testing.T) {
	_, alice, bob := stage(t)
	alice.Group("a group with a name that makes the list long", bob)
	d := alice.Connect("small", func(o *connectOptions) { o.maxSize = 200 })
	d.Post(message{topic: "rpc/groups.list/1", body: "{}", qos: 1})
	if g := d.Await("re/1"); !strings.HasPrefix(g.Body, `{"ok":false,"error":{"code":"answer_too_large",`) {
		t.Errorf("%s", g.Body)
	}
}

func TestUnsubscribingErrorStopsIt(t *testing.T) {
	_, alice, _ := stage(t)
	a := alice.Connect("phone", v311)
	a.Unsubscribe("error")
	a.Publish("dm/stranger", "hi")
	a.Quiet()
	a.Subscribe("error", 1)
	a.Publish("dm/stranger", "hi")
	a.Await("error")
}

func TestSubscriptionIdentifiersComeBack(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	with := func(id int) func(*packets.Subscription) {
		return func(s *packets.Subscription) { s.Identifier = id }
	}
	b.Subscribe("dm/+", 1, with(7))
	b.Subscribe("+/alice", 1, with(300))
	b.Subscribe("re/+", 1, with(9))
	want := func(g Got, ids ...int) { // [MQTT-3.3.4-3, 3.3.4-4]
		t.Helper()
		if got := g.Raw.Properties.SubscriptionIdentifier; fmt.Sprint(got) != fmt.Sprint(ids) {
			t.Errorf("%s with Subscription Identifiers %v, want %v", g.Topic, got, ids)
		}
	}
	a.Publish("dm/bob", "hi")
	want(b.Expect("dm/alice", "hi"), 7, 300)
	b.Post(message{topic: "rpc/me.get/1", body: "{}", qos: 1})
	want(b.Await("re/1"), 9)
	a.Publish("dm/bob/read", "1")
	want(b.Await("dm/alice/read"))
	// Another device has no part in it.
	other := bob.Connect("tablet")
	a.Publish("dm/bob", "again")
	want(other.Expect("dm/alice", "again"))
	want(b.Expect("dm/alice", "again"), 7, 300)
	// They belong to the session, and go with the subscription.
	b.Leave()
	a.Publish("dm/bob", "away")
	b = bob.Connect("phone")
	want(b.Expect("dm/alice", "away"), 7, 300)
	b.Unsubscribe("+/alice")
	a.Publish("dm/bob", "last")
	want(b.Expect("dm/alice", "last"), 7)
}

func TestManyFiltersInOnePacket(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a, b := alice.Connect("lamp"), bob.Connect("phone")
	count := func(codes []byte, code byte) (n int) {
		for _, c := range codes {
			if c == code {
				n++
			}
		}
		return n
	}
	filters := func(form string, n int) (subs []packets.Subscription) {
		for i := range n {
			subs = append(subs, packets.Subscription{Filter: fmt.Sprintf(form, i), Qos: 1})
		}
		return subs
	}
	// One for each friend, as a client does that knows no other servers: all are accepted.
	friends := append(filters("dm/friend%d", 300), packets.Subscription{Filter: "dm/alice", Qos: 1})
	if codes := b.SubscribeAll(friends...); count(codes, 1) != 301 {
		t.Errorf("of 301 IM filters %d are granted", count(codes, 1))
	}
	a.Publish("dm/bob", "hi")
	b.Expect("dm/alice", "hi")
	// What would change something and has no room is refused, one by one.
	if code := b.Subscribe("dm/+", 0); code != 0x97 {
		t.Errorf("over the limit: 0x%02x", code)
	}
	c := bob.Connect("desk")
	if codes := c.SubscribeAll(filters("open/%d", 120)...); count(codes, 1) != 100 || count(codes, 0x97) != 20 {
		t.Errorf("of 120 plain filters %d are granted, %d refused for their number", count(codes, 1), count(codes, 0x97))
	}
	a.Publish("open/99", "the last that fits")
	c.Expect("open/99", "the last that fits")
}

func TestAWillWithADelayWaitsForTheDevice(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone")
	fell := withWill(will{topic: "dm/bob", body: "I fell", qos: 1, delay: 2})
	// The device comes back in time, over a connection that broke or one that stood.
	alice.Connect("lamp", fell).Drop()
	alice.Connect("lamp", fell)
	d := alice.Connect("lamp") // takes over
	alice.Connect("sensor", withWill(will{topic: "dm/bob", body: "waited", qos: 1, delay: 3})).Drop()
	b.Expect("dm/alice", "waited") // later than the first would have come [MQTT-3.1.3-9]
	d.Leave()

	// A clean start ends the session the will belongs to: it does not wait longer.
	late := withWill(will{topic: "dm/bob", body: "gone for good", qos: 1, delay: 3600})
	alice.Connect("lamp", late).Drop()
	d = alice.Connect("lamp", clean)
	b.Expect("dm/alice", "gone for good")
	d.Leave()
	alice.Connect("lamp", late)
	alice.Connect("lamp", clean) // takes over
	b.Expect("dm/alice", "gone for good")
	// So does a session that ends with its connection.
	alice.Connect("door", late, func(o *connectOptions) { o.expiry = 0 }).Drop()
	b.Expect("dm/alice", "gone for good")
}

func TestOnlyAProperGoodbyeDropsTheWill(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone")
	for _, tt := range []struct {
		why  string
		code byte
		sent bool
	}{
		{"normal", 0x00, false},
		{"with will message", 0x04, true},
		{"unspecified error", 0x80, true},
		{"payload format invalid", 0x99, true},
	} {
		d := alice.Connect("lamp", withWill(will{topic: "dm/bob", body: tt.why, qos: 1}))
		_ = d.Raw([]byte{packets.Disconnect << 4, 1, tt.code}) // [MQTT-3.14.4-3]
		d.Gone()
		if tt.sent {
			b.Expect("dm/alice", tt.why)
		} else {
			b.Quiet()
		}
	}
	// A session of no time cannot be given one at the end [MQTT-3.14.2-2].
	d := alice.Connect("lamp", func(o *connectOptions) { o.expiry = 0 }, withWill(will{topic: "dm/bob", body: "no goodbye", qos: 1}))
	_ = d.Raw([]byte{packets.Disconnect << 4, 7, 0, 5, packets.PropSessionExpiryInterval, 0, 0, 0, 9})
	if code := d.Gone(); code != 0x82 {
		t.Errorf("DISCONNECT 0x%02x, want 0x82", code)
	}
	b.Expect("dm/alice", "no goodbye")
}

func TestASmallClientGetsNoPropertiesItCannotTake(t *testing.T) {
	_, alice, _ := stage(t)
	a := alice.Connect("phone", func(o *connectOptions) { o.maxSize = 16 })
	if out := a.Publish("dm/bob", "hi"); out.Code != 0 || out.Props != 0 { // [MQTT-3.4.2-3]
		t.Errorf("%+v", out)
	}
	if out := a.Publish("dm/stranger/id/with-a-long-name", "hi"); out.Code != 0x87 || out.Props != 0 { // [MQTT-3.4.2-2]
		t.Errorf("%+v", out)
	}
	if out := a.Send(message{topic: "dm/bob", body: "hi", qos: 2}); out.Code != 0 || out.Props != 0 {
		t.Errorf("%+v", out)
	}
	a.Post(message{topic: "dm/bob", body: strings.Repeat("x", int(a.Connack.Properties.MaximumPacketSize)), qos: 1})
	if code := a.Gone(); code != 0x95 || a.bye.Properties.ReasonString != "" { // [MQTT-3.14.2-3]
		t.Errorf("DISCONNECT 0x%02x %q", code, a.bye.Properties.ReasonString)
	}
}

func TestPlainMessagesExpireInTheQueue(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	b := bob.Connect("phone")
	b.Subscribe("open/#", 1)
	b.Leave()
	a, watch := alice.Connect("lamp"), alice.Connect("watch")
	watch.Subscribe("open/#", 1)
	a.Send(message{topic: "open/x", body: "short", qos: 1, expiry: 1})
	a.Send(message{topic: "open/x", body: "long", qos: 1, expiry: 3600})
	watch.Expect("open/x", "short")
	watch.Expect("open/x", "long")
	// A will with a delay is the clock: when it comes, the short one has expired.
	alice.Connect("clock", withWill(will{topic: "open/tick", body: "tick", qos: 1, delay: 2})).Drop()
	watch.Expect("open/tick", "tick")
	b = bob.Connect("phone")
	if g := b.Expect("open/x", "long"); g.Raw.Properties.MessageExpiryInterval == 0 || g.Raw.Properties.MessageExpiryInterval > 3600 { // [MQTT-3.3.2-5, 3.3.2-6]
		t.Errorf("Message Expiry Interval %d", g.Raw.Properties.MessageExpiryInterval)
	}
	b.Expect("open/tick", "tick")
	b.Quiet()
}

func TestWatermarksOfAnySizeAreCutAtTheHead(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	a.Publish("dm/bob", "hi")
	b.Next()
	if out := b.Publish("dm/alice/read", "99999999999999999999"); out.Code != 0 {
		t.Errorf("%+v", out)
	}
	a.Expect("dm/bob/read", `{"user":"bob","seq":1}`)
}

func TestAnIDHasSixtyFourCharacters(t *testing.T) {
	_, alice, bob := stage(t)
	a, b := alice.Connect("phone"), bob.Connect("old", v311)
	id := strings.Repeat("é", 64)
	for i, id := range []string{id, strings.Repeat("🙂", 64)} {
		for range 2 {
			if out := a.Publish("dm/bob/id/"+id, "once"); out.Seq != uint64(i+1) {
				t.Errorf("%+v", out)
			}
		}
		if g := b.Next(); !strings.Contains(g.Body, `"id":"`+id+`"`) {
			t.Errorf("%s", g.Body)
		}
	}
	for _, long := range []string{id + "é", strings.Repeat("x", 65)} {
		if out := a.Publish("dm/bob/id/"+long, "x"); out.Code != 0x90 {
			t.Errorf("%+v", out)
		}
		if out := a.Send(message{topic: "dm/bob", body: "x", qos: 1, user: []packets.UserProperty{{Key: "id", Val: long}}}); out.Code != 0x99 {
			t.Errorf("%+v", out)
		}
	}
}

func TestAnErrorEventNamesTheMessage(t *testing.T) {
	_, alice, _ := stage(t)
	a, old := alice.Connect("phone"), alice.Connect("old", v311)
	a.Send(message{topic: "dm/bob", retain: true, user: []packets.UserProperty{{Key: "id", Val: "m1"}}})
	if e := a.Await("error"); !strings.HasPrefix(e.Body, `{"topic":"dm/bob","id":"m1","code":131,"reason":"`) {
		t.Errorf("%s", e.Body)
	}
	old.Send(message{topic: "dm/bob/id/m2", retain: true, qos: 1, id: 8})
	if e := old.Await("error"); !strings.HasPrefix(e.Body, `{"topic":"dm/bob/id/m2","id":"m2","packet":8,"code":131,"reason":"`) {
		t.Errorf("%s", e.Body)
	}
}

func TestAMalformedConnectOfMQTT5IsAnswered(t *testing.T) {
	h, _, _ := stage(t)
	for _, tt := range []struct {
		why, body string
		code      byte
	}{
		{"the reserved flag", "\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x01c", 0x81},
		{"a property twice", "\x00\x04MQTT\x05\x02\x00\x3c\x06\x21\x00\x01\x21\x00\x01\x00\x01c", 0x82},
	} {
		nc, err := net.Dial("tcp", h.MQTT)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write(append([]byte{packets.Connect << 4, byte(len(tt.body))}, tt.body...))
		_ = nc.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(nc)
		if want := []byte{packets.Connack << 4, 3, 0, tt.code, 0}; err != nil || !bytes.Equal(got, want) { // [MQTT-3.1.4-1]
			t.Errorf("%s: %x, %v, want %x", tt.why, got, err, want)
		}
		_ = nc.Close()
	}
}

func TestStoppingDoesNotWaitForStrangers(t *testing.T) {
	// The limits on a stranger are longer than Stop waits.
	h, alice, bob := stage(t, "--mqtt.connect-timeout", "1m")
	a, b := alice.Connect("phone"), bob.Connect("phone")
	for _, begun := range []string{"", "\x10", "\x10\x7f\x00\x04MQ"} {
		nc, err := net.Dial("tcp", h.MQTT)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		_, _ = nc.Write([]byte(begun))
	}
	_ = b.Raw([]byte{0x32, 0x80}) // the beginning of a packet
	const n = 200
	for i := range n {
		a.Post(message{topic: "dm/bob", body: "x", qos: 1, id: uint16(i + 1)})
	}
	h.Stop()
	for _, d := range []*Device{a, b} {
		if code := d.Gone(); code != 0x8B {
			t.Errorf("DISCONNECT 0x%02x, want 0x8B", code)
		}
	}
	acked := len(a.acks)
	h.Start()
	if kept := len(alice.History("dm/bob")); kept < acked { // what was acknowledged is there
		t.Errorf("%d acknowledged, %d in the history", acked, kept)
	}
}
