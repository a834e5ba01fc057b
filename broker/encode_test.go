package broker

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
)

// TestEveryFormOfAnEntryDecodes holds each encoding against mochi's decoder: the
// header's length, topic, packet id, properties and payload are where they belong.
func TestEveryFormOfAnEntryDecodes(t *testing.T) {
	dm := im.DM("alice", "bob")
	long := strings.Repeat("x", 70_000)
	for _, tt := range []struct {
		why           string
		e             im.Entry
		peer, author  string // topics as the peer and the author's own devices see them
		raw, envelope string // payloads
		props         string // of MQTT 5 as the peer sees them
	}{
		{"a message", im.Entry{Conv: dm, Seq: 7, TS: 1790000000000, From: "alice", Body: []byte("lunch?")},
			"dm/alice", "dm/bob", "lunch?", `{"seq":7,"from":"alice","ts":1790000000000,"type":"text/plain","text":"lunch?"}`, "seq=7 ts=1790000000000"},
		{"one with an id", im.Entry{Conv: dm, Seq: 120, TS: 5, From: "bob", ID: "m-1", Type: "text/markdown", Flags: im.FlagUTF8, Body: []byte("*hi*")},
			"dm/bob", "dm/alice", "*hi*", `{"seq":120,"from":"bob","ts":5,"id":"m-1","type":"text/markdown","text":"*hi*"}`, "seq=120 ts=5 id=m-1"},
		{"one whose length takes three bytes", im.Entry{Conv: dm, Seq: 1, TS: 5, From: "alice", Body: []byte(long)},
			"dm/alice", "dm/bob", long, `{"seq":1,"from":"alice","ts":5,"type":"text/plain","text":"` + long + `"}`, "seq=1 ts=5"},
		{"an empty one", im.Entry{Conv: dm, Seq: 1, TS: 5, From: "alice"},
			"dm/alice", "dm/bob", "", `{"seq":1,"from":"alice","ts":5,"type":"text/plain","text":""}`, "seq=1 ts=5"},
		{"a note to oneself", im.Entry{Conv: im.DM("bob", "bob"), Seq: 1, TS: 5, From: "bob", Body: []byte("milk")},
			"dm/bob", "dm/bob", "milk", `{"seq":1,"from":"bob","ts":5,"type":"text/plain","text":"milk"}`, "seq=1 ts=5"},
		{"a reaction in a group", im.Entry{Conv: im.GroupConv("team"), Seq: 9, TS: 5, From: "bob", Op: im.OpReact, Ref: 8, Body: []byte("+1")},
			"g/team/react/8", "g/team/react/8", "+1", `{"seq":9,"from":"bob","ts":5,"op":"react","ref":8,"type":"text/plain","text":"+1"}`, "seq=9 ts=5 from=bob"},
		{"a recalled one", im.Entry{Conv: dm, Seq: 2, TS: 5, From: "alice", Flags: im.FlagRecalled},
			"dm/alice", "dm/bob", "", `{"seq":2,"from":"alice","ts":5,"recalled":true}`, "seq=2 ts=5 recalled=true"},
		{"a publish of the plain space", im.Entry{Conv: im.QueueConv("bob", "phone"), Op: im.OpPublish, Topic: "lamp/1", Flags: im.FlagRetained, Body: []byte("on")},
			"lamp/1", "lamp/1", "on", "on", ""},
	} {
		for i := range 2 * formAuthor {
			f := encodeForm(&delivery.Parcel{Entry: &tt.e}, i)
			version, qos := byte(5), byte(1)
			if i%formQoS0 == formWrapped4 {
				version = 4
			}
			if i%formAuthor >= formQoS0 {
				qos = 0
			}
			frame := bytes.Clone(f.Frame)
			if (f.ID > 0) != (qos > 0) {
				t.Fatalf("%s, form %d: packet id at %d", tt.why, i, f.ID)
			}
			if f.ID > 0 {
				binary.BigEndian.PutUint16(frame[f.ID:], 4711)
			}
			head, total, err := HeaderLen(frame)
			if err != nil || total != len(frame) {
				t.Fatalf("%s, form %d: %d bytes, header says %d: %v", tt.why, i, len(frame), total, err)
			}
			pk := packets.Packet{ProtocolVersion: version}
			if err := pk.FixedHeader.Decode(frame[0]); err != nil {
				t.Fatalf("%s, form %d: %v", tt.why, i, err)
			}
			pk.FixedHeader.Remaining = total - head
			if err := pk.PublishDecode(frame[head:]); err != nil {
				t.Fatalf("%s, form %d: %v", tt.why, i, err)
			}
			topic, payload := tt.peer, tt.raw
			if i >= formAuthor && tt.e.Conv.Kind() == im.KindDM {
				topic = tt.author
			}
			if i%formQoS0 != formRaw {
				payload = tt.envelope
			}
			if pk.TopicName != topic || string(pk.Payload) != payload {
				t.Errorf("%s, form %d: %s %.100q, want %s %.100q", tt.why, i, pk.TopicName, pk.Payload, topic, payload)
			}
			if pk.FixedHeader.Qos != qos || (qos > 0 && pk.PacketID != 4711) || pk.FixedHeader.Retain != (tt.e.Flags&im.FlagRetained != 0) {
				t.Errorf("%s, form %d: %+v, packet id %d", tt.why, i, pk.FixedHeader, pk.PacketID)
			}
			var props []string
			for _, u := range pk.Properties.User {
				props = append(props, u.Key+"="+u.Val)
			}
			if i < formAuthor && version == 5 && !slices.Equal(props, strings.Fields(tt.props)) {
				t.Errorf("%s, form %d: properties %q, want %q", tt.why, i, props, tt.props)
			}
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	p := &delivery.Parcel{Entry: &im.Entry{Conv: im.DM("alice", "bob"), Seq: 123456, TS: 1790000000000, From: "alice", Body: bytes.Repeat([]byte("x"), 100)}}
	for name, form := range map[string]int{"3.1.1": formWrapped4, "5": formRaw} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				encodeForm(p, form)
			}
		})
	}
}
