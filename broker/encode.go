package broker

import (
	"encoding/binary"
	"strconv"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
)

// A parcel is encoded at most once in each form: what differs is the protocol
// and envelope, the QoS, and in a DM which of the two sees it. Only the packet id
// and DUP are put in per device.
const (
	formRaw      = 0 // MQTT 5, payload as published
	formWrapped5 = 1 // MQTT 5 with envelope
	formWrapped4 = 2 // MQTT 3.1.1
	formQoS0     = 3 // + this at QoS 0
	formAuthor   = 6 // + this for the author's own devices in a DM
)

// form returns p's encoding for this connection.
func (c *Conn) form(p *delivery.Parcel, qos byte) *delivery.Form {
	i := formRaw
	switch {
	case c.version < 5:
		i = formWrapped4
	case c.envelope:
		i = formWrapped5
	}
	if qos == 0 {
		i += formQoS0
	}
	if c.user == p.From && p.Conv.Kind() == im.KindDM {
		i += formAuthor
	}
	return p.Form(i, encodeForm)
}

func encodeForm(p *delivery.Parcel, i int) *delivery.Form {
	e := p.Entry
	author := i >= formAuthor
	i %= formAuthor
	qos0 := i >= formQoS0
	i %= formQoS0
	v5, wrap := i != formWrapped4, i != formRaw

	viewer := e.From
	if e.Conv.Kind() == im.KindDM && !author {
		viewer, _ = e.Conv.Peer(e.From)
	}
	var scratch [192]byte
	props := scratch[:0]
	if v5 {
		switch {
		case e.Op == im.OpPublish:
			props = appendPlainProps(props, e.Props, e.TS)
		case e.Conv.Kind() == im.KindAccount:
			props = appendContentType(props, "application/json")
			props = appendNumbers(props, uint64(e.Seq), e.TS)
		default:
			props = entryProps(props, e, wrap, e.Conv.Kind() == im.KindGroup || viewer == e.From)
		}
		props = appendSubIDs(props, p.SubIDs)
	}
	size := len(e.Conv) + len(e.Topic) + len(props) + len(e.Body) + 16 // Conv is longer than its topic
	if wrap {
		size += envelopeRoom + len(e.From) + len(e.ID) + len(e.Type)
	}
	out := beginPublish(size)
	out.b = e.AppendTopic(out.b, viewer)
	out.topicDone(!qos0)
	if v5 {
		out.props(props)
	}
	switch {
	case e.Op == im.OpPublish:
		out.b = append(out.b, e.Body...)
	case e.Conv.Kind() == im.KindAccount:
		out.b = im.AppendEventBody(out.b, e)
	case wrap:
		out.b = im.AppendEnvelope(out.b, e)
	default:
		out.b = append(out.b, e.Body...)
	}
	return out.end(e.Op == im.OpPublish && e.Flags&im.FlagRetained != 0)
}

// envelopeRoom is what an envelope has beside its variable parts, about.
const envelopeRoom = 80

// entryProps appends the MQTT 5 properties of a message. from is left out where
// the topic names the author.
func entryProps(b []byte, e *im.Entry, wrapped, from bool) []byte {
	switch {
	case wrapped:
		b = appendContentType(b, "application/json")
	default:
		if e.Flags&im.FlagUTF8 != 0 && e.Flags&im.FlagRecalled == 0 {
			b = append(b, packets.PropPayloadFormat, 1)
		}
		if e.Type != "" {
			b = appendContentType(b, e.Type)
		}
	}
	b = appendNumbers(b, uint64(e.Seq), e.TS)
	if peer, dm := e.Conv.Peer(e.From); dm && peer == e.From {
		from = false // notes: the topic names oneself
	}
	if from && e.From != "" {
		b = appendUserProp(b, "from", string(e.From))
	}
	if e.ID != "" {
		b = appendUserProp(b, "id", e.ID)
	}
	if e.Event != "" {
		b = appendUserProp(b, "event", e.Event)
	}
	if e.Flags&im.FlagRecalled != 0 {
		b = appendUserProp(b, "recalled", "true")
	}
	return b
}

// appendNumbers appends the user properties seq and ts.
func appendNumbers(b []byte, seq uint64, ts int64) []byte {
	var num [20]byte
	b = append(b, packets.PropUser, 0, 3, 's', 'e', 'q')
	b = appendBytes(b, strconv.AppendUint(num[:0], seq, 10))
	b = append(b, packets.PropUser, 0, 2, 't', 's')
	return appendBytes(b, strconv.AppendInt(num[:0], ts, 10))
}

// appendBytes appends binary data with its length.
func appendBytes(b, v []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
}

func appendContentType(b []byte, typ string) []byte {
	return AppendString(append(b, packets.PropContentType), typ)
}

func appendUserProp(b []byte, key, value string) []byte {
	return AppendString(AppendString(append(b, packets.PropUser), key), value)
}

// publishing is a PUBLISH being built in one buffer: room for the header first,
// then topic, packet id, properties and body as they are appended to b.
type publishing struct {
	b  []byte
	id int // offset of the packet id, or 0
}

// headerRoom is the longest fixed header, and the length of the topic after it.
const (
	headerRoom = 5
	topicAt    = headerRoom + 2
)

func beginPublish(size int) publishing {
	return publishing{b: make([]byte, topicAt, topicAt+size)}
}

// topicDone is called once the topic was appended. With id there will be a packet
// id, 0 for now.
func (p *publishing) topicDone(id bool) {
	binary.BigEndian.PutUint16(p.b[headerRoom:], uint16(len(p.b)-topicAt))
	if id {
		p.id = len(p.b)
		p.b = append(p.b, 0, 0)
	}
}

// props appends the MQTT 5 properties.
func (p *publishing) props(v []byte) {
	p.b = append(AppendVarint(p.b, len(v)), v...)
}

// end writes the header in front of what is there.
func (p *publishing) end(retain bool) *delivery.Form {
	first := byte(packets.Publish << 4)
	if p.id > 0 {
		first |= 1 << 1
	}
	if retain {
		first |= 1
	}
	rest := len(p.b) - headerRoom
	start := headerRoom - 1 - varintLen(rest)
	p.b[start] = first
	AppendVarint(p.b[start+1:start+1], rest)
	f := &delivery.Form{Frame: p.b[start:]}
	if p.id > 0 {
		f.ID = p.id - start
	}
	return f
}

// encodeNote builds the PUBLISH of something that is in no log.
func (c *Conn) encodeNote(n *delivery.Note, qos byte, packet uint16) []byte {
	body, typ := n.Body, n.Type
	if n.Envelope && (c.version < 5 || c.envelope) {
		body = noteEnvelope(n)
		typ = "application/json"
	}
	var props []byte
	if c.version >= 5 {
		if typ != "" {
			props = appendContentType(props, typ)
		}
		if len(n.Correlation) > 0 {
			props = appendBytes(append(props, packets.PropCorrelationData), n.Correlation)
		}
		if n.From != "" && !n.PeerNamed {
			props = appendUserProp(props, "from", string(n.From))
		}
		props = appendPlainProps(props, n.Props, n.TS)
		props = appendSubIDs(props, n.SubIDs)
	}
	p := beginPublish(len(n.Topic) + len(props) + len(body) + 8)
	p.b = append(p.b, n.Topic...)
	p.topicDone(qos > 0)
	if c.version >= 5 {
		p.props(props)
	}
	p.b = append(p.b, body...)
	f := p.end(n.Retain)
	if f.ID > 0 {
		f.Frame[f.ID], f.Frame[f.ID+1] = byte(packet>>8), byte(packet)
	}
	return f.Frame
}

// noteEnvelope is the envelope of a typing or signal: there is no seq.
func noteEnvelope(n *delivery.Note) []byte {
	b := im.AppendEnvelope(nil, &im.Entry{From: n.From, TS: n.TS, Type: n.Type, Body: n.Body})
	const head = `{"seq":0,`
	return append([]byte{'{'}, b[len(head):]...)
}

// PlainProps packs the properties of a plain-space PUBLISH that are handed on
// [MQTT-3.3.2-*]: the Message Expiry Interval in seconds (0: none) apart,
// because it counts down, and the others as they stood.
func PlainProps(expiry uint32, raw []byte) []byte {
	if expiry == 0 && len(raw) == 0 {
		return nil
	}
	return append(binary.BigEndian.AppendUint32(nil, expiry), raw...)
}

// PlainExpiry returns the Message Expiry Interval packed in props, 0 for none.
func PlainExpiry(props []byte) uint32 {
	if len(props) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(props)
}

// AddSubIDs appends Subscription Identifiers to packed properties.
func AddSubIDs(props []byte, ids []int) []byte {
	if len(ids) == 0 {
		return props
	}
	if len(props) < 4 {
		props = make([]byte, 4)
	} else {
		props = append([]byte(nil), props...)
	}
	return appendSubIDs(props, ids)
}

func appendSubIDs(props []byte, ids []int) []byte {
	for _, id := range ids {
		props = AppendVarint(append(props, packets.PropSubscriptionIdentifier), id)
	}
	return props
}

// expired reports whether the Message Expiry Interval packed in props has passed
// since ts [MQTT-3.3.2-5].
func expired(props []byte, ts int64) bool {
	expiry := PlainExpiry(props)
	return expiry > 0 && time.Now().UnixMilli()-ts >= int64(expiry)*1000
}

// appendPlainProps writes packed properties, the expiry less the time the
// message has waited since ts [MQTT-3.3.2-6].
func appendPlainProps(dst, props []byte, ts int64) []byte {
	if len(props) < 4 {
		return dst
	}
	if expiry := binary.BigEndian.Uint32(props); expiry > 0 {
		left := int64(expiry) - max(0, (time.Now().UnixMilli()-ts)/1000)
		dst = append(dst, packets.PropMessageExpiryInterval)
		dst = binary.BigEndian.AppendUint32(dst, uint32(max(left, 1)))
	}
	return append(dst, props[4:]...)
}
