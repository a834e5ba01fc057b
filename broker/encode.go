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
	topic := e.ViewTopic(viewer)
	var props []byte
	body := e.Body
	switch {
	case e.Op == im.OpPublish:
		if v5 {
			props = appendPlainProps(nil, e.Props, e.TS)
		}
	case e.Conv.Kind() == im.KindAccount:
		body = im.AppendEventBody(nil, e)
		if v5 {
			props = appendContentType(props, "application/json")
			props = appendNumbers(props, e)
		}
	default:
		if wrap {
			body = im.AppendEnvelope(make([]byte, 0, len(e.Body)+160), e)
		}
		if v5 {
			props = entryProps(e, wrap, e.Conv.Kind() == im.KindGroup || viewer == e.From)
		}
	}
	if v5 {
		props = appendSubIDs(props, p.SubIDs)
	}
	return encodePublish(topic, body, props, v5, !qos0, e.Op == im.OpPublish && e.Flags&im.FlagRetained != 0)
}

// entryProps are the MQTT 5 properties of a message. from is left out where the
// topic names the author.
func entryProps(e *im.Entry, wrapped, from bool) []byte {
	b := make([]byte, 0, 96)
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
	b = appendNumbers(b, e)
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

func appendNumbers(b []byte, e *im.Entry) []byte {
	b = appendUserProp(b, "seq", strconv.FormatUint(uint64(e.Seq), 10))
	return appendUserProp(b, "ts", strconv.FormatInt(e.TS, 10))
}

func appendContentType(b []byte, typ string) []byte {
	return AppendString(append(b, packets.PropContentType), typ)
}

func appendUserProp(b []byte, key, value string) []byte {
	return AppendString(AppendString(append(b, packets.PropUser), key), value)
}

// encodePublish builds the packet, with packet id 0 where there is one.
func encodePublish(topic string, body, props []byte, v5, id, retain bool) *delivery.Form {
	n := 2 + len(topic) + len(body)
	if id {
		n += 2
	}
	if v5 {
		n += len(AppendVarint(nil, len(props))) + len(props)
	}
	first := byte(packets.Publish << 4)
	if id {
		first |= 1 << 1
	}
	if retain {
		first |= 1
	}
	b := make([]byte, 0, n+5)
	b = append(b, first)
	b = AppendVarint(b, n)
	b = AppendString(b, topic)
	f := &delivery.Form{}
	if id {
		f.ID = len(b)
		b = append(b, 0, 0)
	}
	if v5 {
		b = AppendVarint(b, len(props))
		b = append(b, props...)
	}
	f.Frame = append(b, body...)
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
			props = append(props, packets.PropCorrelationData)
			props = binary.BigEndian.AppendUint16(props, uint16(len(n.Correlation)))
			props = append(props, n.Correlation...)
		}
		if n.From != "" && !n.PeerNamed {
			props = appendUserProp(props, "from", string(n.From))
		}
		props = appendPlainProps(props, n.Props, n.TS)
		props = appendSubIDs(props, n.SubIDs)
	}
	f := encodePublish(n.Topic, body, props, c.version >= 5, qos > 0, n.Retain)
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
