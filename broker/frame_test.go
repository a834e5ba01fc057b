package broker

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

func raw(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHeaderLen(t *testing.T) {
	for _, tt := range []struct {
		why, in     string
		head, total int
		code        byte // of the error; 1: more is needed
	}{
		{"nothing yet", "", 0, 0, 1},
		{"the type alone", "30", 0, 0, 1},
		{"half a length", "30 80", 0, 0, 1},
		{"PINGREQ", "c0 00", 2, 2, 0},
		{"a length of two bytes", "30 80 01", 3, 131, 0},
		{"the largest", "30 ff ff ff 7f", 5, 5 + 268435455, 0},
		{"a fifth byte", "30 ff ff ff ff", 0, 0, 0x81},
		{"not the shortest form", "30 80 00", 0, 0, 0x81},
		{"type 0", "00 00", 0, 0, 0x81},
		{"QoS 3", "36 00", 0, 0, 0x81},
		{"SUBSCRIBE without its flags", "80 00", 0, 0, 0x81},
		{"PUBREL without its flags", "60 02", 0, 0, 0x81},
		{"CONNECT with flags", "11 00", 0, 0, 0x81},
		{"CONNACK from a client", "20 00", 0, 0, 0x82},
		{"SUBACK from a client", "90 00", 0, 0, 0x82},
		{"PINGRESP from a client", "d0 00", 0, 0, 0x82},
	} {
		head, total, err := HeaderLen(raw(t, tt.in))
		var fe *FrameError
		switch {
		case tt.code == 1 && !errors.Is(err, ErrNeedMore),
			tt.code == 0 && err != nil,
			tt.code > 1 && (!errors.As(err, &fe) || fe.Code != tt.code),
			head != tt.head || total != tt.total:
			t.Errorf("%s: %d %d %v", tt.why, head, total, err)
		}
	}
}

func TestChecksRefuse(t *testing.T) {
	connect := func(b []byte) error { return CheckConnect(b) }
	sub := func(v byte) func([]byte) error { return func(b []byte) error { return CheckSubscribe(v, b) } }
	unsub := func(v byte) func([]byte) error { return func(b []byte) error { return CheckUnsubscribe(v, b) } }
	disc := func(v byte) func([]byte) error { return func(b []byte) error { return CheckDisconnect(v, b) } }
	pub := func(v, first byte) func([]byte) error {
		return func(b []byte) error { return ParsePublish(v, first, b, &Publish{}) }
	}
	ack := func(v byte) func([]byte) error {
		return func(b []byte) error { _, _, err := ParseAck(v, b); return err }
	}
	for _, tt := range []struct {
		why, in string
		check   func([]byte) error
		code    byte
	}{
		{"CONNECT cut short", "0004 4d515454 04", connect, 0x81},
		{"another protocol name", "0006 4d5149736470 03 02 0000 0001 61", connect, 0x84},
		{"another level", "0004 4d515454 06 02 0000 0001 61", connect, 0x84},
		{"the reserved flag", "0004 4d515454 04 03 0000 0001 61", connect, 0x81},
		{"will QoS without a will", "0004 4d515454 04 0a 0000 0001 61", connect, 0x81},
		{"will QoS 3", "0004 4d515454 04 1e 0000 0001 61 0001 61 0000", connect, 0x81},
		{"a password without a user name in 3.1.1", "0004 4d515454 04 42 0000 0001 61 0001 61", connect, 0x81},
		{"a client id with NUL", "0004 4d515454 04 02 0000 0001 00", connect, 0x81},
		{"a client id with a surrogate", "0004 4d515454 04 02 0000 0003 eda080", connect, 0x81},
		{"bytes after the payload", "0004 4d515454 04 02 0000 0001 61 00", connect, 0x81},
		{"a property twice", "0004 4d515454 05 02 0000 0a 11 00000001 11 00000001 0001 61", connect, 0x82},
		{"a property of another packet", "0004 4d515454 05 02 0000 03 23 0001 0001 61", connect, 0x82},
		{"Authentication Data without a method", "0004 4d515454 05 02 0000 04 160001 78 0001 61", connect, 0x82},
		{"an unknown property", "0004 4d515454 05 02 0000 02 7f 00 0001 61", connect, 0x81},
		{"Receive Maximum 0", "0004 4d515454 05 02 0000 03 21 0000 0001 61", connect, 0x82},
		{"Maximum Packet Size 0", "0004 4d515454 05 02 0000 05 27 00000000 0001 61", connect, 0x82},
		{"properties past the end", "0004 4d515454 05 02 0000 7f 11", connect, 0x81},

		{"SUBSCRIBE without its options byte", "0001 00 0001 61", sub(5), 0x81},
		{"without a filter", "0001 00", sub(5), 0x82},
		{"with packet id 0", "0000 00 0001 61 01", sub(5), 0x81},
		{"QoS 3", "0001 00 0001 61 03", sub(5), 0x81},
		{"reserved option bits", "0001 00 0001 61 41", sub(5), 0x81},
		{"retain handling 3", "0001 00 0001 61 31", sub(5), 0x81},
		{"options of MQTT 5 in 3.1.1", "0001 0001 61 05", sub(4), 0x81},
		{"Subscription Identifier 0", "0001 02 0b 00 0001 61 01", sub(5), 0x82},
		{"1,025 filters", "0001" + strings.Repeat("0001 61 01", 1025), sub(4), 0x95},
		{"UNSUBSCRIBE without a filter", "0001", unsub(4), 0x82},
		{"UNSUBSCRIBE cut short", "0001 0005 61", unsub(4), 0x81},

		{"PUBLISH with a topic past the end", "0005 61", pub(4, 0x30), 0x81},
		{"DUP at QoS 0", "0001 61", pub(4, 0x38), 0x81},
		{"packet id 0", "0001 61 0000", pub(4, 0x32), 0x81},
		{"no topic", "0000", pub(4, 0x30), 0x82},
		{"a topic with NUL", "0001 00", pub(4, 0x30), 0x81},
		{"a topic that is not UTF-8", "0001 ff", pub(4, 0x30), 0x81},
		{"a Subscription Identifier from a client", "0001 61 02 0b 01", pub(5, 0x30), 0x82},
		{"a payload format of 2", "0001 61 02 01 02", pub(5, 0x30), 0x81},
		{"33 user properties", "0001 61 e701" + strings.Repeat("26 0001 61 0001 61", 33), pub(5, 0x30), 0x95},

		{"PUBACK cut short", "00", ack(5), 0x81},
		{"PUBACK of id 0", "0000", ack(5), 0x81},
		{"a reason in 3.1.1", "0001 00", ack(4), 0x81},
		{"DISCONNECT with a body in 3.1.1", "00", disc(4), 0x81},
		{"DISCONNECT with a server's reason", "8b", disc(5), 0x82},
	} {
		err := tt.check(raw(t, tt.in))
		var fe *FrameError
		if !errors.As(err, &fe) || fe.Code != tt.code {
			t.Errorf("%s: %v, want 0x%02x", tt.why, err, tt.code)
		}
	}
}

// seeds are the packets of mochi's own tests.
func seeds(f *testing.F, typ byte) {
	for _, c := range packets.TPacketData[typ] {
		if len(c.RawBytes) < 2 {
			continue
		}
		if head, total, err := HeaderLen(c.RawBytes); err == nil && total <= len(c.RawBytes) {
			f.Add(byte(5), c.RawBytes[0], c.RawBytes[head:total])
			f.Add(byte(4), c.RawBytes[0], c.RawBytes[head:total])
		}
	}
}

// FuzzPublish holds our parser against mochi's decoder: what we accept it
// decodes to the same.
func FuzzPublish(f *testing.F) {
	seeds(f, packets.Publish)
	f.Fuzz(func(t *testing.T, version, first byte, body []byte) {
		version = 4 + version%2
		first = packets.Publish<<4 | first&0x0f
		if checkFirst(first) != nil {
			return
		}
		var p Publish
		if ParsePublish(version, first, body, &p) != nil {
			return
		}
		pk := packets.Packet{ProtocolVersion: version}
		if err := pk.FixedHeader.Decode(first); err != nil {
			t.Fatalf("mochi refuses the fixed header: %v", err)
		}
		pk.FixedHeader.Remaining = len(body)
		if err := pk.PublishDecode(bytes.Clone(body)); err != nil {
			t.Fatalf("mochi refuses what we accept: %v", err)
		}
		if pk.TopicName != string(p.Topic) || !bytes.Equal(pk.Payload, p.Payload) || pk.PacketID != p.PacketID || pk.FixedHeader.Qos != p.QoS ||
			pk.Properties.ContentType != string(p.Props.ContentType) || pk.Properties.MessageExpiryInterval != p.Props.MessageExpiry || pk.Properties.TopicAlias != p.Props.Alias {
			t.Fatalf("we: %+v\nmochi: %+v", p, pk)
		}
		_ = p.Props.Forward()
	})
}

// FuzzControl: whatever passes our checks, mochi's decoders take without panic
// or error.
func FuzzControl(f *testing.F) {
	for _, typ := range []byte{packets.Connect, packets.Subscribe, packets.Unsubscribe, packets.Disconnect, packets.Auth} {
		seeds(f, typ)
	}
	f.Add(byte(5), byte(0x82), raw(f, "0001 00 0001 61"))
	f.Fuzz(func(t *testing.T, version, first byte, body []byte) {
		version = 4 + version%2
		pk := packets.Packet{ProtocolVersion: version}
		pk.FixedHeader.Type, pk.FixedHeader.Remaining = first>>4, len(body)
		own := bytes.Clone(body)
		var err error
		switch first >> 4 {
		case packets.Connect:
			if CheckConnect(body) != nil {
				return
			}
			err = pk.ConnectDecode(own)
			frame := append(AppendVarint([]byte{0x10}, len(body)), body...)
			if at := emptyWill(frame); at > 0 {
				filled := fillWill(frame, at)
				head, total, e := HeaderLen(filled)
				if e != nil || total != len(filled) || CheckConnect(filled[head:]) != nil || emptyWill(filled) != 0 {
					t.Fatalf("a filled will is broken: % x", filled)
				}
			}
		case packets.Subscribe:
			if CheckSubscribe(version, body) != nil {
				return
			}
			err = pk.SubscribeDecode(own)
		case packets.Unsubscribe:
			if CheckUnsubscribe(version, body) != nil {
				return
			}
			err = pk.UnsubscribeDecode(own)
		case packets.Disconnect:
			if CheckDisconnect(version, body) != nil || len(body) < 2 {
				return
			}
			err = pk.DisconnectDecode(own)
		case packets.Auth:
			if CheckAuth(body) != nil || len(body) == 0 {
				return
			}
			err = pk.AuthDecode(own)
		}
		if err != nil {
			t.Fatalf("mochi refuses what we accept: type %d: %v: % x", first>>4, err, body)
		}
	})
}

func FuzzHeaderLen(f *testing.F) {
	f.Add([]byte{0x30, 0x80, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		head, total, err := HeaderLen(b)
		if err == nil && (head < 2 || head > 5 || total < head || head > len(b)) {
			t.Fatalf("% x: %d %d", b, head, total)
		}
	})
}

func TestEncodersAgreeWithMochi(t *testing.T) {
	for _, v := range []byte{4, 5} {
		for _, code := range []byte{0, 0x87} {
			for _, bare := range []bool{false, true} {
				b := AppendPuback(nil, v, packets.Puback, 513, code, 77, 1790000000000, "no", bare)
				head, total, err := HeaderLen(b)
				if err != nil || total != len(b) {
					t.Fatalf("% x", b)
				}
				pk := packets.Packet{ProtocolVersion: v}
				pk.FixedHeader.Type, pk.FixedHeader.Remaining = packets.Puback, total-head
				if err := pk.PubackDecode(b[head:]); err != nil || pk.PacketID != 513 {
					t.Errorf("v%d code %x bare %v: %v", v, code, bare, err)
				}
				if v == 5 && (pk.ReasonCode != code || (!bare && len(pk.Properties.User) != 2) || (bare && len(pk.Properties.User) != 0)) {
					t.Errorf("v%d code %x bare %v: %+v", v, code, bare, pk)
				}
			}
		}
	}
	if b := AppendDisconnect(nil, 4, 0x8b, "x"); len(b) != 0 {
		t.Error("a DISCONNECT for MQTT 3.1.1")
	}
}

func BenchmarkParsePublish(b *testing.B) {
	body := raw(b, "0006 646d2f626f62 0001 0d 03 000a 746578742f706c61696e")
	body = append(body, bytes.Repeat([]byte{'x'}, 100)...)
	b.ReportAllocs()
	for b.Loop() {
		var p Publish
		if err := ParsePublish(5, 0x32, body, &p); err != nil {
			b.Fatal(err)
		}
	}
}
