package plays

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// cli runs the command on the house's data directory.
func cli(t testing.TB, h *House, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, append(args, "--data-dir", h.dir)...)
	cmd.Stdin = bytes.NewReader([]byte("a-new-password\n"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("parley %v: %v\n%s", args, err, out)
	}
	return string(out)
}

const rules = `
limits: {off: true}
rules:
  - {deny: all, topic: "devices/secret/#"}
  - {allow: publish, topic: "devices/{device}/#"}
  - {allow: all, topic: "open/#"}
  - {allow: subscribe, topic: "devices/#", role: admin}
`

func plainHouse(t *testing.T) *House {
	t.Parallel()
	return Open(t, "--config", writeRules(t, rules))
}

func TestThePlainSpaceFollowsItsRules(t *testing.T) {
	h := plainHouse(t)
	alice := h.Person("alice")
	d := alice.Connect("lamp")
	if out := d.Publish("devices/lamp/temp", "21"); out.Code != 0 {
		t.Errorf("own topic: %+v", out)
	}
	if out := d.Publish("devices/door/temp", "21"); out.Code != 0x87 {
		t.Errorf("another's: %+v", out)
	}
	for _, tt := range []struct {
		filter string
		code   byte
	}{{"open/#", 1}, {"open/+/x", 1}, {"#", 1}, {"devices/#", 0x87}, {"$share/g/open/x", 1}, {"$share/g/devices/x", 0x87}, {"+/x", 1}, {"other", 0x87}} {
		if code := d.Subscribe(tt.filter, 1); code != tt.code {
			t.Errorf("SUBSCRIBE %s: 0x%02x, want 0x%02x", tt.filter, code, tt.code)
		}
	}
	// "#" was accepted for the IM topics only: nothing of devices/ comes.
	other := alice.Connect("door")
	other.Publish("devices/door/temp", "19")
	d.Quiet()
	r := rootOf(t, h).Connect("desk")
	if code := r.Subscribe("devices/lamp/+", 1); code != 1 {
		t.Errorf("the admin: 0x%02x", code)
	}
	d.Publish("devices/lamp/temp", "22")
	r.Expect("devices/lamp/temp", "22")
	if code := r.Subscribe("devices/#", 1); code != 0x87 {
		t.Errorf("a filter that a deny touches: 0x%02x", code)
	}
}

func TestPlainIsOrdinaryMQTT(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	a, b := alice.Connect("lamp"), bob.Connect("phone")
	old := bob.Connect("old", v311)
	b.Subscribe("open/#", 1, func(s *packets.Subscription) { s.Identifier = 7 })
	old.Subscribe("open/+", 1)
	for _, qos := range []byte{0, 1, 2} {
		a.Send(message{topic: "open/x", body: fmt.Sprint(qos), qos: qos, typ: "text/plain", user: []packets.UserProperty{{Key: "k", Val: "v"}}})
		g := b.Expect("open/x", fmt.Sprint(qos))
		if g.QoS != min(qos, 1) || g.Type != "text/plain" || g.Props["k"] != "v" || len(g.Raw.Properties.SubscriptionIdentifier) != 1 || g.Raw.Properties.SubscriptionIdentifier[0] != 7 {
			t.Errorf("QoS %d: %+v %v", qos, g, g.Raw.Properties.SubscriptionIdentifier)
		}
		old.Expect("open/x", fmt.Sprint(qos)) // as it is: no envelope outside the IM topics
	}
	// Retained.
	a.Send(message{topic: "open/state", body: "on", qos: 1, retain: true})
	if g := b.Expect("open/state", "on"); g.Retain {
		t.Error("RETAIN on a live message")
	}
	late := bob.Connect("late")
	late.Subscribe("open/state", 1)
	if g := late.Expect("open/state", "on"); !g.Retain {
		t.Error("a retained message without RETAIN")
	}
	h.Stop()
	h.Start()
	late = bob.Connect("later")
	late.Subscribe("open/#", 1)
	late.Expect("open/state", "on")
	a = alice.Connect("lamp")
	a.Send(message{topic: "open/state", body: "", qos: 1, retain: true})
	late.Expect("open/state", "")
	last := bob.Connect("last")
	last.Subscribe("open/#", 1)
	last.Quiet()
}

// TestASubscriptionSeesWhatWasPublishedBeforeIt: on the same connection, in the same
// burst, whatever the QoS.
func TestASubscriptionSeesWhatWasPublishedBeforeIt(t *testing.T) {
	h := plainHouse(t)
	d := h.Person("alice").Connect("lamp", func(o *connectOptions) { o.expiry = 0 })
	for i, qos := range []byte{0, 1, 0, 1} {
		topic := fmt.Sprintf("open/%d", i)
		var burst bytes.Buffer
		pk := packets.Packet{ProtocolVersion: V5, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: true}, TopicName: topic, Payload: []byte("on"), PacketID: uint16(100+i) * uint16(qos)}
		if err := pk.PublishEncode(&burst); err != nil {
			t.Fatal(err)
		}
		pk = packets.Packet{ProtocolVersion: V5, FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: uint16(200 + i), Filters: packets.Subscriptions{{Filter: topic, Qos: 1}}}
		if err := pk.SubscribeEncode(&burst); err != nil {
			t.Fatal(err)
		}
		if err := d.Raw(burst.Bytes()); err != nil {
			t.Fatal(err)
		}
		if g := d.Expect(topic, "on"); !g.Retain {
			t.Errorf("%+v", g)
		}
	}
}

// TestEveryRetainedMessageComes: as many as there are, to readers fast and slow, and
// none that was replaced while it waited.
func TestEveryRetainedMessageComes(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	a := alice.Connect("lamp")
	const n = 2500
	topic := func(i int) string { return fmt.Sprintf("open/%d", i) }
	for i := range n {
		a.Post(message{topic: topic(i), body: "old " + strings.Repeat("x", 100), qos: byte(i % 2), retain: true})
	}
	a.Publish("open", "all are there")
	for _, qos := range []byte{0, 1} {
		b := bob.Connect("phone", clean)
		b.Subscribe("open/+", qos)
		seen := map[string]bool{}
		for range n {
			g := b.Next()
			if !g.Retain || seen[g.Topic] {
				t.Fatalf("%+v", g)
			}
			seen[g.Topic] = true
		}
		b.Quiet()
		b.Leave()
	}
	// A reader that takes its time: what was replaced while it waited does not come
	// after what replaced it.
	slow := bob.Connect("slow", clean, manual, withReceiveMaximum(10))
	slow.Subscribe("open/+", 1)
	g := slow.Next()
	const fresh = 500
	for i := range fresh {
		a.Send(message{topic: topic(i), body: "new", qos: 1, retain: true})
	}
	last := map[string]string{g.Topic: g.Body}
	for news := 0; len(last) < n || news < fresh; {
		if g.QoS > 0 {
			slow.Ack(g.ID)
		}
		g = slow.Next()
		if last[g.Topic] == "new" {
			t.Fatalf("after the new one on %s: %q", g.Topic, g.Body)
		}
		if last[g.Topic] = g.Body; g.Body == "new" {
			news++
		}
	}
}

func TestPlainSessionsQueueAcrossARestart(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	b := bob.Connect("phone")
	b.Subscribe("open/#", 1)
	old := bob.Connect("old", v311)
	old.Subscribe("open/#", 1)
	b.Leave()
	old.Leave()
	a := alice.Connect("lamp")
	for i := range 100 {
		if out := a.Publish("open/x", fmt.Sprint(i)); out.Code != 0 {
			t.Fatal(out)
		}
	}
	a.Send(message{topic: "open/x", body: "not queued", qos: 0})
	h.Kill()
	h.Start()
	a = alice.Connect("lamp")
	a.Publish("open/x", "after")
	for _, d := range []*Device{bob.Connect("phone"), bob.Connect("old", v311)} {
		if !d.Connack.SessionPresent {
			t.Error("no session present")
		}
		for i := range 100 {
			d.Expect("open/x", fmt.Sprint(i))
		}
		d.Expect("open/x", "after")
		d.Quiet()
		d.Leave()
	}
	// A clean start forgets subscriptions and queue.
	a.Publish("open/x", "dropped")
	b = bob.Connect("phone", clean)
	a.Publish("open/x", "unsubscribed")
	b.Quiet()
}

// TestASessionThatIsOver: with its plain subscriptions go the others, as Session
// Present says; the cursors stay.
func TestASessionThatIsOver(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a, b := alice.Connect("lamp"), bob.Connect("phone")
	b.Subscribe("open/#", 1)
	b.Subscribe("dm/+", 0)
	_ = b.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, Properties: packets.Properties{SessionExpiryIntervalFlag: true}})
	b.Gone()
	a.Publish("open/x", "away")
	a.Publish("dm/bob", "missed")
	b = bob.Connect("phone")
	if b.Connack.SessionPresent {
		t.Error("session present")
	}
	a.Publish("open/x", "unsubscribed")
	if g := b.Expect("dm/alice", "missed"); g.QoS != 1 {
		t.Errorf("QoS %d, by a subscription that is gone", g.QoS)
	}
	b.Quiet()
}

func TestSharedSubscriptions(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	a := alice.Connect("lamp")
	one, two := bob.Connect("one"), bob.Connect("two")
	one.Subscribe("$share/w/open/x", 1)
	two.Subscribe("$share/w/open/x", 1)
	const n = 20
	for i := range n {
		a.Publish("open/x", fmt.Sprint(i))
	}
	got := map[string]int{}
	for _, d := range []*Device{one, two} { // in turn
		for range n / 2 {
			got[d.Next().Body]++
		}
		d.Quiet()
	}
	if len(got) != n {
		t.Errorf("%d of %d came: %v", len(got), n, got)
	}
	// Each group gets its copy, and so does a subscription of one's own, also where
	// they are one device's.
	two.Unsubscribe("$share/w/open/x")
	one.Subscribe("$share/v/open/+", 1, func(s *packets.Subscription) { s.Identifier = 7 })
	one.Subscribe("open/x", 0)
	one.Subscribe("open/#", 0)
	a.Publish("open/x", "to all")
	copies := map[string]int{}
	for range 3 {
		g := one.Expect("open/x", "to all")
		copies[fmt.Sprint(g.QoS, g.Raw.Properties.SubscriptionIdentifier)]++
	}
	one.Quiet()
	if copies["0 []"] != 1 || copies["1 []"] != 1 || copies["1 [7]"] != 1 {
		t.Errorf("%v", copies)
	}
}

func TestAReturningSessionHearsOnlyWhatTheRulesAllowNow(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	door := alice.Connect("door")

	// "#" was accepted for the IM topics; coming back opens nothing.
	b := bob.Connect("phone")
	if code := b.Subscribe("#", 1); code != 1 {
		t.Fatalf("SUBSCRIBE #: 0x%02x", code)
	}
	b.Leave()
	door.Publish("devices/door/temp", "18")
	b = bob.Connect("phone")
	door.Publish("devices/door/temp", "19")
	b.Quiet()
	b.Leave()
	h.Stop()
	h.Start()
	door = alice.Connect("door")
	door.Publish("devices/door/temp", "20")
	b = bob.Connect("phone")
	b.Quiet()

	// An admin who is one no longer hears nothing of what is sent since, away or not.
	root := rootOf(t, h)
	root.must(200, "PATCH", "/v1/admin/users/bob", map[string]any{"role": "admin"}, nil)
	bob.Login()
	desk, away := bob.Connect("desk"), bob.Connect("away")
	for _, d := range []*Device{desk, away} {
		if code := d.Subscribe("devices/door/+", 1); code != 1 {
			t.Fatalf("the admin: 0x%02x", code)
		}
	}
	away.Leave()
	door.Publish("devices/door/temp", "21")
	desk.Expect("devices/door/temp", "21")
	root.must(200, "PATCH", "/v1/admin/users/bob", map[string]any{"role": "user"}, nil)
	if code := desk.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	door.Publish("devices/door/temp", "22")
	bob.Login()
	bob.Connect("desk").Quiet()
	away = bob.Connect("away")
	away.Expect("devices/door/temp", "21") // from when it was allowed
	away.Quiet()

	// So with rules that have changed.
	b = bob.Connect("phone")
	b.Subscribe("open/#", 1)
	b.Leave()
	h.Stop()
	h.args = append(h.args, "--config", writeRules(t, `
limits: {off: true}
rules:
  - {allow: publish, topic: "#"}
`))
	h.Start()
	door = alice.Connect("door")
	door.Publish("open/x", "closed")
	b = bob.Connect("phone")
	door.Publish("open/x", "closed")
	b.Quiet()
}

// rootOf makes an admin.
func rootOf(t *testing.T, h *House) *Person {
	t.Helper()
	cli(t, h, "user", "add", "root", "--role", "admin", "--password-stdin")
	root := &Person{h: h, Name: "root"}
	var out struct{ Token string }
	root.must(200, "POST", "/v1/login", map[string]any{"user": "root", "password": "a-new-password"}, &out)
	root.Token = out.Token
	return root
}

func writeRules(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "parley.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
