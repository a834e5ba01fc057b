package hooks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/plain"
	"github.com/parley-im/parley/store"
)

// Auth is who may come in. Met by *auth.Auth.
type Auth interface {
	CheckConnect(ctx context.Context, username string, password []byte, device im.DeviceID, addr string) (auth.Identity, error)
	CheckToken(ctx context.Context, token string) (auth.Identity, error)
	StillValid(id auth.Identity) bool
}

// RPC runs an operation for a caller at an address. Met by the HTTP face.
type RPC interface {
	Call(ctx context.Context, id auth.Identity, device im.DeviceID, addr, op string, params []byte) ([]byte, error)
}

// Limiter decides whether a user may publish now. Met by the app.
type Limiter interface {
	Allow(user im.UserID, bytes int) bool
}

// Receipts is what the gate needs of the store for QoS 2.
type Receipts interface {
	Receipt(ctx context.Context, k im.DeviceKey, packet uint16) (store.Receipt, error)
	Release(ctx context.Context, k im.DeviceKey, packet uint16) error
	Trim(ctx context.Context, conv im.ConvID, upTo im.Seq) error
	Heads(ctx context.Context, convs []im.ConvID) ([]store.Head, error)
}

// Events announces what an operator wants to count. All fields may be nil.
type Events struct {
	Accepted func(kind string)   // a publish was acknowledged: dm, group, plain, …
	Refused  func(reason string) // a publish was refused
	Login    func(reason string) // a CONNECT was refused
}

// Options configure a Gate. Auth, Chat, Delivery, Plain and Store are needed.
type Options struct {
	Auth     Auth
	Chat     *chat.Chat
	Delivery *delivery.Delivery
	Plain    *plain.Space
	Store    Receipts
	RPC      RPC
	Limiter  Limiter // nil: no limit
	Now      func() time.Time
	Log      *slog.Logger
	Events   Events

	MaxBody          int           // bytes of a plain body; default 256 KiB
	MaxSubscriptions int           // per session; default 100
	StoreTimeout     time.Duration // for one request to the store; default 10 s
}

// Gate lets clients in. It meets broker.Gate.
type Gate struct {
	opt    Options
	log    *slog.Logger
	expiry expiries
	wills  wills
}

// New makes a Gate. It starts nothing.
func New(o Options) *Gate {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 256 << 10
	}
	if o.MaxSubscriptions <= 0 {
		o.MaxSubscriptions = 100
	}
	if o.StoreTimeout <= 0 {
		o.StoreTimeout = 10 * time.Second
	}
	g := &Gate{opt: o, log: o.Log}
	g.expiry.init()
	g.wills.init(g)
	return g
}

// Run disconnects clients whose token expires, sends delayed wills and expires
// plain sessions, until ctx is done.
func (g *Gate) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { g.expiry.run(ctx, g.opt.Now) })
	wg.Go(func() { g.expireSessions(ctx) })
	<-ctx.Done()
	g.wills.stop()
	wg.Wait()
	return nil
}

// Identity is who is connected as the device; the zero Identity if nobody is.
func (g *Gate) Identity(k im.DeviceKey) auth.Identity {
	l := g.opt.Delivery.Line(k)
	if l == nil {
		return auth.Identity{}
	}
	if c, ok := l.Wire().(*broker.Conn); ok {
		if s, ok := c.Session().(*session); ok {
			return s.identity()
		}
	}
	return auth.Identity{}
}

// Restore puts the plain subscriptions of persistent sessions back into the
// index, as far as the rules still allow them, before anybody connects.
func (g *Gate) Restore(ctx context.Context, st interface {
	EachDevice(ctx context.Context, fn func(store.Device) bool) error
	User(ctx context.Context, u im.UserID) (store.User, error)
}) error {
	now := g.opt.Now().UnixMilli()
	var owner store.User // of the last device: they come by user
	var failed error
	err := st.EachDevice(ctx, func(d store.Device) bool {
		s := d.Session
		if !s.Present || len(s.Subs) == 0 {
			return true
		}
		if s.Ended == 0 { // the server stopped without a word: it ended when last seen
			s.Ended = max(d.LastSeen, now)
		}
		until := sessionEnd(s)
		if until > 0 && until <= now {
			return true
		}
		if owner.ID != d.Key.User {
			var err error
			if owner, err = st.User(ctx, d.Key.User); im.Is(err, im.NotFound) {
				return true
			} else if err != nil {
				failed = err
				return false
			}
		}
		g.opt.Plain.Open(d.Key, true, g.opt.Plain.Allowed(plain.Caller{Key: d.Key, Role: owner.Role}, plainSubs(s.Subs)))
		g.opt.Plain.Keep(d.Key, until)
		return true
	})
	return errors.Join(err, failed)
}

// sessionEnd is when a disconnected session expires, Unix ms; 0 never.
func sessionEnd(s store.Session) int64 {
	if s.Expiry == 0xFFFFFFFF {
		return 0
	}
	return s.Ended + int64(s.Expiry)*1000
}

func plainSubs(subs []store.Subscription) []store.Subscription {
	var out []store.Subscription
	for _, s := range subs {
		if s.QoS != delivery.Stop {
			out = append(out, s)
		}
	}
	return out
}

// expireSessions drops the queues of plain sessions whose time is up.
func (g *Gate) expireSessions(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, k := range g.opt.Plain.Expire() {
			if g.opt.Delivery.Line(k) != nil {
				continue
			}
			q := im.QueueConv(k.User, k.Device)
			heads, err := g.opt.Store.Heads(ctx, []im.ConvID{q})
			if err == nil && heads[0].Seq > 0 {
				err = g.opt.Store.Trim(ctx, q, heads[0].Seq)
			}
			if err != nil {
				g.log.Warn("queue of an expired session not trimmed", "device", k, "error", err)
			}
		}
	}
}

// Connect answers a CONNECT: a method of broker.Gate.
func (g *Gate) Connect(ctx context.Context, c *broker.Conn, in *packets.Packet) broker.Connack {
	ctx, cancel := context.WithTimeout(ctx, g.opt.StoreTimeout)
	defer cancel()
	s, ack, err := g.connect(ctx, c, in)
	if err == nil {
		ack.Session, ack.User = s, s.me.User
		return ack
	}
	code := connectCode(err)
	if in.Properties.AuthenticationMethod != "" && in.Properties.AuthenticationMethod != authMethod {
		code = packets.ErrBadAuthenticationMethod.Code
	}
	if g.opt.Events.Login != nil {
		g.opt.Events.Login(im.CodeOf(err))
	}
	if k := im.KindOf(err); k == im.Internal || k == im.Unavailable {
		g.log.Error("connect refused", "remote", host(c), "error", err)
	} else {
		g.log.Info("connect refused", "remote", host(c), "reason", im.CodeOf(err))
	}
	return broker.Connack{Code: code, Reason: im.ReasonOf(err)}
}

// authMethod is the enhanced authentication this server knows [MQTT-4.12].
const authMethod = "token"

func (g *Gate) connect(ctx context.Context, c *broker.Conn, in *packets.Packet) (*session, broker.Connack, error) {
	var ack broker.Connack
	device := im.DeviceID(in.Connect.ClientIdentifier)
	assigned := device == ""
	if assigned {
		device = newDevice()
		ack.AssignedID = string(device)
	}
	if !device.Valid() {
		return nil, ack, im.Refuse(im.Invalid, "client_id_invalid", "a client id is 1-64 characters of A-Z a-z 0-9 . _ -")
	}
	id, err := g.authenticate(ctx, c, in, device)
	if err != nil {
		return nil, ack, err
	}
	if id.Device != "" && id.Device != device {
		return nil, ack, im.Refuse(im.Forbidden, "token_of_other_device", "this token belongs to another device")
	}
	ack.AuthMethod = in.Properties.AuthenticationMethod

	s := &session{g: g, c: c, id: id, me: chat.Sender{User: id.User, Device: device}, key: im.DeviceKey{User: id.User, Device: device}}
	if s.will, err = g.will(s, in); err != nil {
		return nil, ack, err
	}
	if c.Version() >= 5 {
		for _, p := range in.Properties.User {
			if p.Key == "envelope" && p.Val == "json" {
				c.SetEnvelope()
			}
		}
	}
	s.expiry = sessionExpiry(in)
	at, err := g.opt.Delivery.Attach(ctx, delivery.Attachment{
		Key: s.key, Wire: c, Clean: in.Connect.Clean, Expiry: s.expiry, Version: in.ProtocolVersion,
		ReceiveMaximum: int(in.Properties.ReceiveMaximum), Transient: assigned && s.expiry == 0,
	})
	if err != nil {
		return nil, ack, err
	}
	s.at, s.line, s.subs = at, at.Line, at.Session.Subs
	g.wills.back(s.key, in.Connect.Clean)
	g.opt.Plain.Open(s.key, s.expiry > 0, g.opt.Plain.Allowed(s.caller(), plainSubs(s.subs)))
	g.expiry.set(s)
	ack.Present = at.Present
	return s, ack, nil
}

func (g *Gate) authenticate(ctx context.Context, c *broker.Conn, in *packets.Packet, device im.DeviceID) (auth.Identity, error) {
	username := string(in.Connect.Username)
	switch method := in.Properties.AuthenticationMethod; method {
	case "":
		return g.opt.Auth.CheckConnect(ctx, username, in.Connect.Password, device, host(c))
	case authMethod:
		id, err := g.opt.Auth.CheckToken(ctx, string(in.Properties.AuthenticationData))
		if err == nil && username != "" && username != string(id.User) {
			err = im.Refuse(im.Unauthorized, "bad_credentials", "the token belongs to another user")
		}
		return id, err
	default:
		return auth.Identity{}, im.Refuse(im.Unauthorized, "auth_method_unknown", "the only authentication method is %q", authMethod)
	}
}

// sessionExpiry is the Session Expiry Interval; Clean Session 0 of MQTT 3.1.1
// means for ever.
func sessionExpiry(in *packets.Packet) uint32 {
	switch {
	case in.ProtocolVersion >= 5:
		return in.Properties.SessionExpiryInterval
	case in.Connect.Clean:
		return 0
	}
	return 0xFFFFFFFF
}

func newDevice() im.DeviceID {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return im.DeviceID("auto-" + hex.EncodeToString(b[:]))
}

func host(c *broker.Conn) string {
	h, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return h
}
