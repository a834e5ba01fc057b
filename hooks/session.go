package hooks

import (
	"bytes"
	"context"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/plain"
	"github.com/parley-im/parley/store"
)

// session is one connection's other side: it meets broker.Session.
type session struct {
	g    *Gate
	c    *broker.Conn
	me   chat.Sender
	key  im.DeviceKey
	at   *delivery.Attached
	line *delivery.Line

	// The read loop's alone.
	subs      []store.Subscription
	expiry    uint32
	will      *will
	lastTopic string   // the last topic published to …
	lastParse im.Topic // … and what it means
	burst     []*store.Append
	slab      []accept // made ahead for this burst
	made      int      // accepts made in this burst

	idMu sync.Mutex
	id   auth.Identity // replaced by re-authentication

	qos2 struct {
		sync.Mutex
		open map[uint16]*accept // received and not yet released
	}

	// Of expiries, under its lock.
	expires time.Time
	slot    int
}

// maxQoS2 bounds the QoS 2 packet ids that a client leaves unreleased.
const maxQoS2 = 4096

// accept is one PUBLISH on its way: its place among the acknowledgements and its
// entry in the log, in one allocation.
type accept struct {
	broker.Pending
	store.Append
	s        *session
	topic    string
	kind     string
	answered bool // QoS 2: its PUBREC is out; guarded by session.qos2
}

func (s *session) identity() auth.Identity {
	s.idMu.Lock()
	defer s.idMu.Unlock()
	return s.id
}

// Identity returns who is connected, for revocation.
func (s *session) Identity() auth.Identity { return s.identity() }

func (s *session) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), s.g.opt.StoreTimeout)
}

// Start lets the line deliver.
func (s *session) Start() {
	ctx, cancel := s.ctx()
	defer cancel()
	// A revocation between authentication and Attach found no line to close.
	if !s.g.opt.Auth.StillValid(s.identity()) {
		s.c.Close(delivery.Revoked)
		return
	}
	s.at.Start(ctx)
}

// Writable passes on that the wire has drained.
func (s *session) Writable() { s.line.Writable() }

// Puback takes the acknowledgement of a delivery.
func (s *session) Puback(id uint16) { s.line.Ack(id) }

// Publish takes one PUBLISH.
func (s *session) Publish(p *broker.Publish) error {
	if p.Props.HasAlias {
		// We announce Topic Alias Maximum 0 [MQTT-3.3.2-9].
		return &broker.FrameError{Code: packets.ErrTopicAliasInvalid.Code, Reason: "no topic aliases are offered"}
	}
	if p.QoS == 2 {
		if again, err := s.again(p); again || err != nil {
			return err
		}
	}
	a := s.accept()
	a.ID, a.QoS = p.PacketID, p.QoS
	if err := s.c.Begin(&a.Pending, len(p.Payload)); err != nil {
		return err
	}
	if p.QoS == 2 {
		s.qos2.Lock()
		s.qos2.open[p.PacketID] = a
		s.qos2.Unlock()
	}
	if err := s.take(p, a); err != nil {
		s.refuse(a, p, err)
	}
	return nil
}

// accept makes an accept, in slabs that double during a burst: a lone message
// makes one, and none is kept for the next burst.
func (s *session) accept() *accept {
	if len(s.slab) == 0 {
		s.slab = make([]accept, min(max(s.made, 1), maxSlab))
	}
	a := &s.slab[0]
	s.slab = s.slab[1:]
	s.made++
	a.s = s
	return a
}

const maxSlab = 8

// take does what the topic says. A nil return means that the accept is
// finished, or will be when its commit comes back.
func (s *session) take(p *broker.Publish, a *accept) error {
	if string(p.Topic) != s.lastTopic {
		topic := string(p.Topic)
		t, err := im.ParseTopic(s.me.User, topic)
		if err != nil {
			return err
		}
		s.lastTopic, s.lastParse = topic, t
	}
	t := &s.lastParse
	if l := s.g.opt.Limiter; l != nil && !l.Allow(s.me.User, len(p.Payload)) {
		return im.Refuse(im.TooMany, "rate_limited", "too many messages, slow down")
	}
	if err := checkText(p.Props.PayloadFormat, p.Payload); err != nil {
		return err
	}
	if t.Verb == im.VerbPlain {
		a.kind = "plain"
		return s.publishPlain(p, a)
	}
	if p.Retain {
		return im.Refuse(im.Unsupported, "retained", "IM topics keep no retained message")
	}
	switch t.Verb {
	case im.VerbMessage:
		return s.message(p, a, t)
	case im.VerbEdit, im.VerbRecall, im.VerbReact:
		s.settle() // what was sent before, on this connection, is in the log
		return s.message(p, a, t)
	case im.VerbRead:
		s.settle() // as above: a watermark is cut at the head
		return s.read(p, a, t)
	case im.VerbRPC:
		s.settle() // as above: it may ask for the history
		return s.rpc(p, a, t)
	}
	s.Flush() // these act at once, after what was sent before
	if t.Verb == im.VerbTyping || t.Verb == im.VerbSignal {
		return s.whisper(p, a, t)
	}
	return s.state(p, a)
}

// checkText refuses a payload that its Payload Format Indicator calls UTF-8 and
// that is not: no receiver is to find that out (section 3.3.2.3.2).
func checkText(indicator byte, payload []byte) error {
	if indicator == 1 && !utf8.Valid(payload) {
		return im.Refuse(im.Payload, "not_utf8", "the Payload Format Indicator says UTF-8, the payload is not")
	}
	return nil
}

// message appends to the conversation's log.
func (s *session) message(p *broker.Publish, a *accept, t *im.Topic) error {
	e := &a.Entry
	e.Body = bytes.Clone(p.Payload)
	e.Type = intern(p.Props.ContentType)
	if p.Props.PayloadFormat == 1 {
		e.Flags |= im.FlagUTF8
	}
	if len(p.Props.ID) > 0 && t.Mid == "" {
		e.ID = string(p.Props.ID)
		if err := im.CheckMessageID(e.ID); err != nil {
			return err
		}
	}
	ctx, cancel := context.Background(), func() {}
	if t.Verb != im.VerbMessage {
		ctx, cancel = s.ctx()
	}
	err := s.g.opt.Chat.Check(ctx, s.me, t, &a.Append)
	cancel()
	if err != nil {
		return err
	}
	if p.QoS == 2 {
		a.Packet = p.PacketID
	}
	a.kind = "dm"
	if t.Group != "" {
		a.kind = "group"
	}
	a.topic = s.lastTopic
	a.Owner = a
	s.burst = append(s.burst, &a.Append)
	return nil
}

// intern keeps the common content types from being allocated per message.
func intern(b []byte) string {
	switch string(b) {
	case "":
		return ""
	case "text/plain":
		return "text/plain"
	case "application/json":
		return "application/json"
	}
	return string(b)
}

// Flush hands the burst to the log.
func (s *session) Flush() {
	s.slab, s.made = nil, 0
	if len(s.burst) == 0 {
		return
	}
	s.g.opt.Chat.Submit(s.burst...)
	clear(s.burst)
	s.burst = s.burst[:0]
	if cap(s.burst) > 256 {
		s.burst = nil
	}
}

// settle waits until everything this connection has published is committed.
func (s *session) settle() {
	s.Flush()
	s.c.Settle(true)
}

// Committed is the way back from the log.
func (a *accept) Committed(ap *store.Append) {
	s := a.s
	if ap.Err != nil {
		// No acknowledgement without a commit: the client sends again.
		s.c.Close(delivery.StoreAway)
		return
	}
	e := &ap.Entry
	if s.line.WantsSent() && a.topic != "" {
		s.tellSent(a, e)
	}
	s.finish(a, 0, "", e.Seq, e.TS)
}

// finish acknowledges.
func (s *session) finish(a *accept, code byte, reason string, seq im.Seq, ts int64) {
	if a.QoS == 2 {
		s.qos2.Lock()
		a.answered = true // a repetition gets the PUBREC again
		if code >= packets.ErrUnspecifiedError.Code && s.c.Version() >= 5 {
			delete(s.qos2.open, a.ID) // refused: the id is free again [MQTT-4.3.3-4]
		}
		s.qos2.Unlock()
	}
	if s.c.Version() < 5 {
		code, reason = 0, "" // 3.1.1 has no way to say no
	}
	if ev := s.g.opt.Events.Accepted; ev != nil && code == 0 && a.kind != "" {
		ev(a.kind)
	}
	s.c.Finish(&a.Pending, code, reason, uint64(seq), ts)
}

// refuse answers a publish that is not taken: by its reason code, or for those
// who cannot get one by an "error" event.
func (s *session) refuse(a *accept, p *broker.Publish, err error) {
	code, ok := publishCode(err)
	if !ok {
		s.g.log.Error("publish failed", "device", s.key, "error", err)
		s.c.Close(delivery.StoreAway)
		return
	}
	reason := im.ReasonOf(err)
	if s.g.opt.Events.Refused != nil {
		s.g.opt.Events.Refused(im.CodeOf(err))
	}
	if s.c.Version() < 5 || a.QoS == 0 {
		if a.Entry.ID == "" { // refused before anybody looked at its id
			a.Entry.ID = s.messageID(p)
		}
		s.tellError(a, string(p.Topic), code, reason)
	}
	s.finish(a, code, reason, 0, 0)
}

// messageID is the sender's own id of a publish, for telling of which one there
// is talk.
func (s *session) messageID(p *broker.Publish) string {
	if string(p.Topic) == s.lastTopic && s.lastParse.Mid != "" {
		return s.lastParse.Mid
	}
	if im.CheckMessageID(string(p.Props.ID)) != nil {
		return ""
	}
	return string(p.Props.ID)
}

func (s *session) tellError(a *accept, topic string, code byte, reason string) {
	b := append([]byte(`{"topic":`), im.AppendJSONString(nil, topic)...)
	b = appendIDs(b, a)
	b = append(b, `,"code":`...)
	b = strconv.AppendUint(b, uint64(code), 10)
	b = append(b, `,"reason":`...)
	b = append(im.AppendJSONString(b, reason), '}')
	s.line.Note(&delivery.Note{Topic: "error", Body: b, Type: "application/json"}, 0)
}

func (s *session) tellSent(a *accept, e *im.Entry) {
	b := append([]byte(`{"topic":`), im.AppendJSONString(nil, a.topic)...)
	b = appendIDs(b, a)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, uint64(e.Seq), 10)
	b = append(b, `,"ts":`...)
	b = append(strconv.AppendInt(b, e.TS, 10), '}')
	s.line.Note(&delivery.Note{Topic: "sent", Body: b, Type: "application/json"}, 0)
}

// appendIDs adds by what the sender knows its publish: message id and packet id.
func appendIDs(b []byte, a *accept) []byte {
	if id := a.Entry.ID; id != "" {
		b = im.AppendJSONString(append(b, `,"id":`...), id)
	}
	if a.Pending.ID != 0 {
		b = append(b, `,"packet":`...)
		b = strconv.AppendUint(b, uint64(a.Pending.ID), 10)
	}
	return b
}

// again handles a QoS 2 PUBLISH whose packet id is in use: the same publish once
// more [MQTT-4.3.3-10..12]. Only its PUBREC is repeated.
func (s *session) again(p *broker.Publish) (bool, error) {
	s.qos2.Lock()
	defer s.qos2.Unlock()
	if s.qos2.open == nil {
		s.qos2.open = make(map[uint16]*accept)
	}
	old := s.qos2.open[p.PacketID]
	if old == nil {
		if len(s.qos2.open) >= maxQoS2 {
			return false, &broker.FrameError{Code: packets.ErrReceiveMaximum.Code, Reason: "too many QoS 2 packet ids without PUBREL"}
		}
		return false, nil
	}
	if old.answered {
		s.c.Pubrec(p.PacketID, uint64(old.Entry.Seq), old.Entry.TS)
	}
	return true, nil
}

// Pubrel releases a packet id, of this connection or an earlier one.
func (s *session) Pubrel(id uint16) {
	s.qos2.Lock()
	a, found := s.qos2.open[id]
	delete(s.qos2.open, id)
	s.qos2.Unlock()
	ctx, cancel := s.ctx()
	defer cancel()
	if !found {
		r, err := s.g.opt.Store.Receipt(ctx, s.key, id)
		if err != nil && !im.Is(err, im.NotFound) {
			s.c.Close(delivery.StoreAway)
			return
		}
		if err == nil {
			_ = s.g.opt.Store.Release(ctx, s.key, id)
			s.c.Pubcomp(id, false, true, uint64(r.Seq), r.TS)
			return
		}
		s.c.Pubcomp(id, false, false, 0, 0)
		return
	}
	if err := s.g.opt.Store.Release(ctx, s.key, id); err != nil {
		s.c.Close(delivery.StoreAway)
		return
	}
	s.c.Pubcomp(id, true, true, uint64(a.Entry.Seq), a.Entry.TS)
}

// read takes a watermark.
func (s *session) read(p *broker.Publish, a *accept, t *im.Topic) error {
	seq, err := im.ParseWatermark(string(p.Payload))
	if err != nil {
		return err
	}
	ctx, cancel := s.ctx()
	defer cancel()
	if _, err := s.g.opt.Chat.MarkRead(ctx, s.me.User, s.me.Device, t.Conv, seq); err != nil {
		return err
	}
	s.finish(a, 0, "", 0, 0)
	return nil
}

func (s *session) whisper(p *broker.Publish, a *accept, t *im.Topic) error {
	ctx, cancel := s.ctx()
	defer cancel()
	if err := s.g.opt.Chat.Whisper(ctx, s.me, t, intern(p.Props.ContentType), bytes.Clone(p.Payload)); err != nil {
		return err
	}
	s.finish(a, 0, "", 0, 0)
	return nil
}

func (s *session) state(p *broker.Publish, a *accept) error {
	switch string(p.Payload) {
	case "active":
		s.line.SetInactive(false)
	case "inactive":
		s.line.SetInactive(true)
	default:
		return im.Refuse(im.Payload, "state_invalid", "the payload of me/state is active or inactive")
	}
	s.finish(a, 0, "", 0, 0)
	return nil
}

// Auth renews the token of the connection [MQTT-4.12.1]. Another method, user or
// a bad token ends it.
func (s *session) Auth(pk *packets.Packet) error {
	method := pk.Properties.AuthenticationMethod
	if pk.ReasonCode != packets.CodeReAuthenticate.Code || s.method() != authMethod || method != authMethod {
		return &broker.FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "re-authentication needs a connection made with authentication method \"token\""}
	}
	ctx, cancel := s.ctx()
	defer cancel()
	id, err := s.g.opt.Auth.CheckToken(ctx, string(pk.Properties.AuthenticationData))
	if err != nil || id.User != s.me.User || (id.Device != "" && id.Device != s.me.Device) {
		return &broker.FrameError{Code: packets.ErrNotAuthorized.Code, Reason: "the new token is not valid for this connection"}
	}
	s.idMu.Lock()
	s.id = id
	s.idMu.Unlock()
	s.g.expiry.set(s)
	s.c.AuthSuccess(authMethod)
	return nil
}

func (s *session) method() string { return s.c.AuthMethod() }

// Close ends the session with its connection.
func (s *session) Close(bye *packets.Packet) {
	s.g.expiry.remove(s)
	s.Flush()
	ctx, cancel := s.ctx()
	defer cancel()
	var expiry *uint32
	if bye != nil && bye.Properties.SessionExpiryIntervalFlag && s.expiry > 0 { // 0 cannot be raised [MQTT-3.14.2-2]
		s.expiry = bye.Properties.SessionExpiryInterval
		expiry = &s.expiry
	}
	current := s.g.opt.Delivery.Detach(ctx, s.line, expiry, func() {
		if s.expiry > 0 {
			s.g.opt.Plain.Keep(s.key, sessionEnd(store.Session{Ended: s.g.opt.Now().UnixMilli(), Expiry: s.expiry}))
		} else {
			s.g.opt.Plain.Drop(s.key)
		}
	})
	if s.will != nil && (bye == nil || bye.ReasonCode != packets.CodeDisconnect.Code) { // [MQTT-3.14.4-3]
		s.g.wills.leave(s, current)
	}
}

func (s *session) caller() plain.Caller {
	return plain.Caller{Key: s.key, Role: s.identity().Role}
}
