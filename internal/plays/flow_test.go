package plays

import (
	"bytes"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestTheReceiveMaximumIsGivenBack: with room for four, any number of publishes go
// through one connection, at QoS 1 and 2, also refused ones.
func TestTheReceiveMaximumIsGivenBack(t *testing.T) {
	_, alice, _ := stage(t, "--mqtt.receive-maximum", "4")
	d := alice.Connect("phone")
	for i := range 12 {
		for _, qos := range []byte{1, 2} {
			if out := d.Send(message{topic: "dm/bob", body: "x", qos: qos}); out.Code != 0 {
				t.Fatalf("QoS %d, number %d: %+v", qos, i, out)
			}
			if out := d.Send(message{topic: "dm/stranger", body: "x", qos: qos}); out.Code != 0x87 {
				t.Fatalf("QoS %d to a stranger, number %d: %+v", qos, i, out)
			}
		}
	}
}

// TestMoreThanTheReceiveMaximum: a client that has four QoS 2 publishes unreleased
// and sends another one has ignored our Receive Maximum [MQTT-3.3.4-9].
func TestMoreThanTheReceiveMaximum(t *testing.T) {
	_, alice, _ := stage(t, "--mqtt.receive-maximum", "4")
	d := alice.Connect("phone")
	for range 4 {
		d.wait(packets.Pubrec, d.Post(message{topic: "dm/bob", body: "x", qos: 2}))
	}
	d.Post(message{topic: "dm/bob", body: "x", qos: 2})
	if code := d.Gone(); code != 0x93 {
		t.Errorf("DISCONNECT 0x%02x, want 0x93", code)
	}
}

// TestAPacketIDIsFreeAgain: after a refusal, and after its release on a later
// connection, a QoS 2 packet id stands for another message.
func TestAPacketIDIsFreeAgain(t *testing.T) {
	_, alice, _ := stage(t)
	d := alice.Connect("phone")
	if out := d.Send(message{topic: "dm/stranger", body: "x", qos: 2, id: 7}); out.Code != 0x87 {
		t.Fatalf("%+v", out)
	}
	d.Post(message{topic: "dm/bob", body: "one", qos: 2, id: 7})
	d.wait(packets.Pubrec, 7)
	d.Drop()
	d = alice.Connect("phone")
	_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: 7})
	d.wait(packets.Pubcomp, 7)
	d.Leave()
	d = alice.Connect("phone") // nothing of it is remembered here
	if out := d.Send(message{topic: "dm/bob", body: "two", qos: 2, id: 7}); out.Seq != 2 {
		t.Errorf("%+v, want seq 2", out)
	}
}

// TestNothingIsTakenAfterALogoutInTheSameBurst: the very next packet is too late.
func TestNothingIsTakenAfterALogoutInTheSameBurst(t *testing.T) {
	_, alice, bob := stage(t)
	b := bob.Connect("phone")
	d := alice.Connect("phone", func(o *connectOptions) { o.password = alice.Login() })
	var burst bytes.Buffer
	for i, topic := range []string{"rpc/auth.logout/1", "dm/bob", "dm/bob"} {
		pk := packets.Packet{ProtocolVersion: V5, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: topic, PacketID: uint16(i + 1)}
		if err := pk.PublishEncode(&burst); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Raw(burst.Bytes()); err != nil {
		t.Fatal(err)
	}
	d.Await("re/1")
	if code := d.Gone(); code != 0x87 {
		t.Errorf("DISCONNECT 0x%02x, want 0x87", code)
	}
	b.Quiet()
	if n := len(bob.History("dm/alice")); n > 0 {
		t.Errorf("%d messages were taken after the logout", n)
	}
}

// TestWhatFollowsInTheSameBurst: a message, its recall and its watermark in one
// write: each finds what came before it in the log.
func TestWhatFollowsInTheSameBurst(t *testing.T) {
	_, alice, bob := stage(t)
	d := alice.Connect("phone")
	var burst bytes.Buffer
	for i, m := range []message{{topic: "dm/bob", body: "oops"}, {topic: "dm/bob/recall/1"}, {topic: "dm/bob", body: "sorry"}, {topic: "dm/bob/read", body: "3"}} {
		pk := packets.Packet{ProtocolVersion: V5, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: m.topic, Payload: []byte(m.body), PacketID: uint16(i + 1)}
		if err := pk.PublishEncode(&burst); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Raw(burst.Bytes()); err != nil {
		t.Fatal(err)
	}
	for i, seq := range []uint64{1, 2, 3, 0} {
		if out := d.Outcome(1, uint16(i+1)); out.Code != 0 || out.Seq != seq {
			t.Errorf("number %d: %+v, want seq %d", i+1, out, seq)
		}
	}
	h := bob.History("dm/alice")
	if len(h) != 3 || !h[0].Recalled || h[0].Text != "" || h[2].Text != "sorry" {
		t.Errorf("%+v", h)
	}
	var list []struct {
		Conv string
		Read uint64
	}
	if alice.must(200, "GET", "/v1/conversations", nil, &list); len(list) != 1 || list[0].Read != 3 {
		t.Errorf("%+v, want read 3", list)
	}
}
