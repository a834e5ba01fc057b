package delivery

import "github.com/parley-im/parley/im"

// Ephemeral passes a typing or signal on to the devices that are online and
// active, at QoS 0. The sender's other devices get a signal, so that a call
// answered on one stops ringing on the rest, but not a typing.
func (d *Delivery) Ephemeral(ev im.Ephemeral) {
	sub := "/typing"
	if ev.Verb == im.VerbSignal {
		sub = "/signal"
	}
	d.eachParty(ev.Conv, func(l *Line) {
		mine := l.key.User == ev.From
		if mine && (ev.Verb == im.VerbTyping || l.key.Device == ev.Device) {
			return
		}
		topic := ev.Conv.Topic(l.key.User) + sub
		if ev.Verb == im.VerbTyping && !l.wants(topic) {
			return
		}
		if ev.Verb == im.VerbSignal && !l.wantsAlways(topic) {
			return
		}
		n := &Note{Topic: topic, Body: ev.Body, Type: ev.Type, From: ev.From, TS: ev.TS, Envelope: true}
		n.PeerNamed = !mine && ev.Conv.Kind() == im.KindDM
		l.Note(n, 0)
	})
}

// Read tells the parties of conv, but not the device that read, how far user
// has read.
func (d *Delivery) Read(conv im.ConvID, user im.UserID, device im.DeviceID, seq im.Seq) {
	d.eachParty(conv, func(l *Line) {
		if l.key.User != user || l.key.Device != device {
			l.read(conv, user, seq)
		}
	})
}

// eachParty calls fn for every connected line of the conversation's users.
func (d *Delivery) eachParty(conv im.ConvID, fn func(*Line)) {
	switch conv.Kind() {
	case im.KindDM:
		a, b := conv.Pair()
		for _, l := range d.linesOf(a) {
			fn(l)
		}
		if a != b {
			for _, l := range d.linesOf(b) {
				fn(l)
			}
		}
	case im.KindGroup:
		g := conv.Group()
		s := &d.rooms[shard(g)]
		s.RLock()
		lines := make([]*Line, 0, len(s.m[g]))
		for u := range s.m[g] {
			lines = append(lines, u.get()...)
		}
		s.RUnlock()
		for _, l := range lines {
			fn(l)
		}
	}
}
