package hooks

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// will is the last word of a connection [MQTT-3.1.2-8]. mochi never sees it:
// it counts as a publish of its owner at the moment it is sent.
type will struct {
	pub   publication
	topic im.Topic
	delay uint32 // seconds
	id    string // the sender's message id
}

// will reads and checks the will of a CONNECT: what could never be sent refuses
// the connection; what depends on friends and members is decided when it is sent.
func (g *Gate) will(s *session, in *packets.Packet) (*will, error) {
	if !in.Connect.WillFlag {
		return nil, nil
	}
	t, err := im.ParseTopic(s.me.User, in.Connect.WillTopic)
	if err != nil {
		return nil, err
	}
	props := in.Connect.WillProperties
	w := &will{topic: t, delay: props.WillDelayInterval}
	w.pub = publication{topic: in.Connect.WillTopic, body: in.Connect.WillPayload, typ: props.ContentType, qos: in.Connect.WillQos, retain: in.Connect.WillRetain,
		utf8: props.PayloadFormat == 1, expiry: props.MessageExpiryInterval, props: willProps(props)}
	if i := slices.IndexFunc(props.User, func(u packets.UserProperty) bool { return u.Key == "id" }); i >= 0 {
		w.id = props.User[i].Val
	}
	switch {
	case len(w.pub.body) > g.opt.MaxBody:
		return nil, im.Refuse(im.TooMany, "message_too_large", "the will is too large")
	case t.Verb == im.VerbPlain:
		if !g.opt.Plain.MayPublish(s.caller(), w.pub.topic) {
			return nil, im.Refuse(im.Forbidden, "rule", "no rule allows you to publish the will there")
		}
	case t.Verb == im.VerbRPC || t.Verb == im.VerbState:
		return nil, im.Refuse(im.TopicInvalid, "will_topic", "a will cannot be a request")
	case w.pub.retain:
		return nil, im.Refuse(im.Unsupported, "retained", "IM topics keep no retained message")
	case t.Verb == im.VerbRead:
		if _, err := im.ParseWatermark(string(w.pub.body)); err != nil {
			return nil, err
		}
	case w.id != "" && im.CheckMessageID(w.id) != nil:
		return nil, im.Refuse(im.Payload, "id_invalid", "the id of the will is not 1-64 characters of text")
	}
	return w, checkText(props.PayloadFormat, w.pub.body)
}

func willProps(p packets.Properties) []byte {
	var b []byte
	if p.PayloadFormatFlag {
		b = append(b, packets.PropPayloadFormat, p.PayloadFormat)
	}
	if p.ContentType != "" {
		b = broker.AppendString(append(b, packets.PropContentType), p.ContentType)
	}
	if p.ResponseTopic != "" {
		b = broker.AppendString(append(b, packets.PropResponseTopic), p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		b = broker.AppendString(append(b, packets.PropCorrelationData), string(p.CorrelationData))
	}
	for _, u := range p.User {
		b = broker.AppendString(broker.AppendString(append(b, packets.PropUser), u.Key), u.Val)
	}
	return b
}

// wills waits with wills that have a delay: one timer each, and few have one.
type wills struct {
	g       *Gate
	mu      sync.Mutex
	waiting map[im.DeviceKey]*waitingWill
	stopped bool
}

type waitingWill struct {
	s     *session
	timer *time.Timer
}

func (w *wills) init(g *Gate) {
	w.g, w.waiting = g, make(map[im.DeviceKey]*waitingWill)
}

// leave sends the will of a session whose connection has ended: at once, or
// after its delay or at the session's end, whichever is first. It is not sent if
// the device is back by then and goes on with the session [MQTT-3.1.3-9].
func (w *wills) leave(s *session, current bool) {
	delay := min(s.will.delay, s.expiry)
	switch {
	case delay == 0, !current && s.line.Heir() != delivery.GoesOn: // the session has ended
		w.g.sendWill(s)
	case current:
		w.wait(s, time.Duration(delay)*time.Second)
		// It may have come back between Detach and here.
		if l := w.g.opt.Delivery.Line(s.key); l != nil {
			w.back(s.key, l.Clean())
		}
	}
}

func (w *wills) wait(s *session, delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	ww := &waitingWill{s: s}
	ww.timer = time.AfterFunc(delay, func() {
		if w.take(s.key, ww) {
			w.g.sendWill(s)
		}
	})
	w.waiting[s.key] = ww
}

// take takes ww out of those that wait and reports whether it was there.
func (w *wills) take(k im.DeviceKey, ww *waitingWill) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting[k] != ww {
		return false
	}
	ww.timer.Stop()
	delete(w.waiting, k)
	return true
}

// back tells that a device has connected again: its waiting will is forgotten,
// or sent now if the session it belonged to ended with that.
func (w *wills) back(k im.DeviceKey, clean bool) {
	w.mu.Lock()
	ww := w.waiting[k]
	w.mu.Unlock()
	if ww != nil && w.take(k, ww) && clean {
		w.g.sendWill(ww.s)
	}
}

func (w *wills) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	for k, ww := range w.waiting {
		ww.timer.Stop()
		delete(w.waiting, k)
	}
}

// sendWill publishes it as its owner would now.
func (g *Gate) sendWill(s *session) {
	if !g.opt.Auth.StillValid(s.identity()) {
		return // revoked: nothing is said in this name any more
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.opt.StoreTimeout)
	defer cancel()
	if err := g.lastWord(ctx, s); err != nil {
		g.log.Info("will refused", "device", s.key, "reason", im.CodeOf(err))
	}
}

func (g *Gate) lastWord(ctx context.Context, s *session) error {
	w := s.will
	switch t := &w.topic; t.Verb {
	case im.VerbPlain:
		if !g.opt.Plain.MayPublish(s.caller(), w.pub.topic) {
			return im.Refuse(im.Forbidden, "rule", "no rule allows it")
		}
		as := g.plan(w.pub, s.me.User, s.me.Device, 0)
		for _, a := range as {
			a.Owner = retainOnly{g}
			g.opt.Chat.Queue(a)
		}
		g.opt.Chat.Submit(as...)
		return nil
	case im.VerbTyping, im.VerbSignal:
		return g.opt.Chat.Whisper(ctx, s.me, t, w.pub.typ, w.pub.body)
	case im.VerbRead:
		seq, err := im.ParseWatermark(string(w.pub.body))
		if err != nil {
			return err
		}
		_, err = g.opt.Chat.MarkRead(ctx, s.me.User, s.me.Device, t.Conv, seq)
		return err
	default:
		a := &store.Append{Entry: im.Entry{Body: w.pub.body, Type: w.pub.typ, ID: w.id}}
		if w.pub.utf8 {
			a.Entry.Flags |= im.FlagUTF8
		}
		if err := g.opt.Chat.Check(ctx, s.me, t, a); err != nil {
			return err
		}
		g.opt.Chat.Submit(a)
		return nil
	}
}

// retainOnly puts a committed retained message into the index.
type retainOnly struct{ g *Gate }

func (r retainOnly) Committed(a *store.Append) {
	if a.Err == nil && a.Retain != nil {
		r.g.opt.Plain.Retain(*a.Retain)
	}
}
