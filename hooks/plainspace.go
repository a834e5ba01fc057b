package hooks

import (
	"bytes"

	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// publication is one plain PUBLISH, from a client or a will.
type publication struct {
	topic  string
	body   []byte
	typ    string
	qos    byte
	retain bool
	utf8   bool
	expiry uint32 // Message Expiry Interval, seconds; 0 none
	props  []byte // the other properties to hand on, raw
}

// publishPlain takes a PUBLISH outside the IM topics.
func (s *session) publishPlain(p *broker.Publish, a *accept) error {
	topic := string(p.Topic)
	if !s.g.opt.Plain.MayPublish(s.caller(), topic) {
		return im.Refuse(im.Forbidden, "rule", "no rule allows you to publish here")
	}
	if len(p.Payload) > s.g.opt.MaxBody {
		return im.Refuse(im.TooMany, "message_too_large", "the body has %d bytes, at most %d are taken", len(p.Payload), s.g.opt.MaxBody)
	}
	pub := publication{topic: topic, body: bytes.Clone(p.Payload), typ: string(p.Props.ContentType), qos: p.QoS, retain: p.Retain,
		expiry: p.Props.MessageExpiry, props: p.Props.Forward()}
	packet := uint16(0)
	if p.QoS == 2 {
		packet = p.PacketID
		if p.Dup { // of an earlier connection? The receipt stands for all that one publish does
			ctx, cancel := s.ctx()
			_, err := s.g.opt.Store.Receipt(ctx, s.key, packet)
			cancel()
			if err == nil {
				s.finish(a, 0, "", 0, 0)
				return nil
			}
			if !im.Is(err, im.NotFound) {
				return err
			}
		}
	}
	as := s.g.plan(pub, s.me.User, s.me.Device, packet)
	if len(as) == 0 {
		s.finish(a, 0, "", 0, 0)
		return nil
	}
	// The publish is acknowledged when all of it is back: the last Done finishes it.
	group := &planned{a: a, left: len(as)}
	for _, ap := range as {
		ap.Owner = group
		s.g.opt.Chat.Queue(ap)
		s.burst = append(s.burst, ap)
	}
	return nil
}

// planned collects the appends of one plain publish. All its calls come from
// the store's goroutine, one at a time.
type planned struct {
	a      *accept
	left   int
	failed bool
}

// Committed counts an append back.
func (p *planned) Committed(ap *store.Append) {
	p.left--
	p.failed = p.failed || ap.Err != nil
	if ap.Err == nil && ap.Retain != nil && !ap.Dup {
		p.a.s.g.opt.Plain.Retain(*ap.Retain)
	}
	if p.left > 0 {
		return
	}
	if p.failed {
		p.a.s.c.Close(delivery.StoreAway)
		return
	}
	p.a.s.finish(p.a, 0, "", 0, 0)
}

// plan delivers a publication to those who have no session, at once, and
// returns what has to be committed before it is acknowledged: a queue entry per
// persistent session, the retained message, a QoS 2 receipt.
func (g *Gate) plan(pub publication, from im.UserID, device im.DeviceID, packet uint16) []*store.Append {
	now := g.opt.Now().UnixMilli()
	key := im.DeviceKey{User: from, Device: device}
	online := func(k im.DeviceKey) bool { return g.opt.Delivery.Line(k) != nil }
	var as []*store.Append
	for _, t := range g.opt.Plain.Match(pub.topic, key, online) {
		qos := min(pub.qos, t.QoS)
		props := broker.PlainProps(pub.expiry, pub.props)
		if qos > 0 && t.Persistent {
			e := im.Entry{Conv: im.QueueConv(t.Key.User, t.Key.Device), Op: im.OpPublish, Topic: pub.topic, Body: pub.body,
				Props: broker.AddSubIDs(props, t.SubIDs)}
			if pub.retain && t.Retain {
				e.Flags |= im.FlagRetained
			}
			as = append(as, &store.Append{Entry: e})
			continue
		}
		if l := g.opt.Delivery.Line(t.Key); l != nil {
			l.Note(&delivery.Note{Topic: pub.topic, Body: pub.body, Props: props, TS: now, Retain: pub.retain && t.Retain, SubIDs: t.SubIDs}, qos)
		}
	}
	if pub.retain {
		m := &store.RetainedMessage{Topic: pub.topic, Body: pub.body, QoS: min(pub.qos, 1), Props: broker.PlainProps(pub.expiry, pub.props), TS: now}
		if pub.expiry > 0 {
			m.Expires = now + int64(pub.expiry)*1000
		}
		as = append(as, &store.Append{NoEntry: true, Retain: m})
	}
	if packet > 0 {
		if len(as) == 0 {
			as = append(as, &store.Append{NoEntry: true})
		}
		// The receipt rides on the last: it stands when all of them do. Entry names whose it is.
		last := as[len(as)-1]
		last.Packet, last.Entry.From, last.Entry.Device = packet, from, device
	}
	return as
}

// sendRetained writes the retained messages of a new subscription, but for those
// that are replaced before their turn: who replaced them was told to subscribers.
func (s *session) sendRetained(f im.Filter, sub store.Subscription) {
	var ids []int
	if sub.ID > 0 {
		ids = []int{sub.ID}
	}
	space := s.g.opt.Plain
	ms := space.Retained(f)
	s.line.Stream(sub.Filter, func() (*delivery.Note, byte) {
		for len(ms) > 0 {
			m := ms[0]
			if ms = ms[1:]; space.Current(m) {
				return &delivery.Note{Topic: m.Topic, Body: m.Body, Props: m.Props, TS: m.TS, Retain: true, SubIDs: ids}, min(m.QoS, sub.QoS)
			}
		}
		return nil, 0
	})
}
