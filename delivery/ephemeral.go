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
	send := func(l *Line) {
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
	}
	for _, u := range d.parties(ev.Conv) {
		for _, l := range u.get() {
			send(l)
		}
	}
}

// Read tells the parties of conv, but not the device that read, how far user
// has read.
func (d *Delivery) Read(conv im.ConvID, user im.UserID, device im.DeviceID, seq im.Seq) {
	var away []*userLines
	for _, u := range d.parties(conv) {
		here := u.each(conv, func(l *Line) {
			if l.key.User != user || l.key.Device != device {
				l.read(conv, user, seq)
			}
		})
		if !here {
			away = append(away, u)
		}
	}
	if g := conv.Group(); g != "" {
		d.letOut(g, away)
	}
}

// parties returns the conversation's users who have lines or stay.
func (d *Delivery) parties(conv im.ConvID) (us []*userLines) {
	switch conv.Kind() {
	case im.KindAccount, im.KindQueue:
		if u := d.online(conv.Owner()); u != nil {
			us = append(us, u)
		}
	case im.KindDM:
		a, b := conv.Pair()
		if u := d.online(a); u != nil {
			us = append(us, u)
		}
		if u := d.online(b); u != nil && a != b {
			us = append(us, u)
		}
	case im.KindGroup:
		g := conv.Group()
		s := &d.rooms[shard(g)]
		s.RLock()
		defer s.RUnlock()
		us = make([]*userLines, 0, len(s.m[g]))
		for u := range s.m[g] {
			us = append(us, u)
		}
	}
	return us
}
