package app

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/hooks"
	"github.com/parley-im/parley/httpapi"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/plain"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/store"
)

// Options configure an App. Config is needed.
type Options struct {
	Config  *configs.Config
	Log     *slog.Logger
	Version string
}

// App is a running Parley. Make it with New, then Run it once.
type App struct {
	cfg     *configs.Config
	log     *slog.Logger
	version string
	metrics *metrics

	store      store.Store
	closeStore func() error // once
	auth       *auth.Auth
	chat       *chat.Chat
	delivery   *delivery.Delivery
	push       *pushgw.Gateway // nil: push.run is off
	keys       pushKeys
	plain      *plain.Space
	gate       *hooks.Gate
	broker     *broker.Broker
	api        *httpapi.API
	admin      *adminAccess

	limits    *broker.Limits
	live      atomic.Pointer[broker.Broker] // broker, for the store's goroutine
	listeners []*broker.Listener
	servers   []*http.Server
	addrs     Addrs

	ready   chan struct{}
	ending  atomic.Bool    // it drains
	lost    chan error     // the store is another's now; holds one
	pending []func() error // HTTP servers to run
	undo    []func() error // clean-up, last first
}

// Addrs are the addresses that are listened on; "" where a listener is off.
type Addrs struct {
	MQTT, MQTTS, HTTP, Metrics string
}

// New opens the store, takes its seat, opens the listeners and wires the rooms. It
// starts nothing: connections wait until Run. What it opened is closed by Run, or
// by itself if it fails. It waits, until ctx is done, for the seat of a server
// that is silent.
func New(ctx context.Context, o Options) (_ *App, err error) {
	a := &App{cfg: o.Config, log: o.Log, version: o.Version, metrics: newMetrics(o.Version), ready: make(chan struct{}), lost: make(chan error, 1)}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			_ = a.cleanup()
		}
	}()
	for _, step := range []func(context.Context) error{a.openStore, a.makeRooms, a.makeFaces, a.listen} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *App) onCleanup(fn func() error) { a.undo = append(a.undo, fn) }

func (a *App) cleanup() error {
	var errs []error
	for i := len(a.undo) - 1; i >= 0; i-- {
		errs = append(errs, a.undo[i]())
	}
	a.undo = nil
	return errors.Join(errs...)
}

func (a *App) openStore(ctx context.Context) error {
	st, err := openStore(ctx, a.cfg, a.log, storeEvents{
		committed: a.metrics.committed, failed: func(error) { a.metrics.commitFail.Inc() }, announce: a.announce, mongo: a.metrics.mongo(a.cfg.Store.Embedded()),
	})
	if err != nil {
		return err
	}
	a.store, a.closeStore = st, sync.OnceValue(st.Close)
	a.onCleanup(a.closeStore)
	warnings := a.cfg.Warnings()
	if w, ok := st.(interface {
		Warnings(context.Context) ([]string, error)
	}); ok {
		more, err := w.Warnings(ctx)
		if err != nil {
			return err
		}
		warnings = append(warnings, more...)
	}
	for _, w := range warnings {
		a.log.Warn(w)
	}
	if err := st.TakeSeat(ctx, "parley serve", func(err error) { a.lost <- err }); err != nil {
		return err
	}
	return whole(ctx, st)
}

// makeRooms makes what decides and carries.
func (a *App) makeRooms(ctx context.Context) error {
	cfg, m := a.cfg, a.metrics
	var err error
	a.auth, err = auth.New(ctx, auth.Options{Store: a.store, Log: a.log, TokenTTL: cfg.Auth.TokenTTL, RefreshTTL: cfg.Auth.RefreshTTL, Revoked: a.revoked})
	if err != nil {
		return err
	}
	a.delivery = delivery.New(delivery.Options{
		Friends: func(ctx context.Context, u im.UserID, among func(im.UserID) bool) ([]im.UserID, error) {
			return a.chat.Acquainted(ctx, u, among)
		},
		Muted:  func(u im.UserID, conv im.ConvID) bool { return a.push != nil && a.push.Muted(u, conv) },
		Source: a.store, Window: cfg.MQTT.Window, MaxDevices: cfg.Sessions.MaxPerUser, ForgetAfter: cfg.Sessions.ForgetAfter, Log: a.log,
		Remember: cmp.Or(cfg.Sessions.Remember, -1),
		Events: delivery.Events{
			Dropped:  func(q string) { m.dropped.WithLabelValues(q).Inc() },
			Behind:   func(d int) { m.behind.Add(float64(d)) },
			Returned: func(remembered bool) { m.returned.WithLabelValues(strconv.FormatBool(remembered)).Inc() },
		},
	})
	if err := a.openPush(ctx); err != nil {
		return err
	}
	var carry chat.Courier = a.delivery
	if a.rings() {
		carry = courier{a.delivery, a.push}
	}
	a.chat = chat.New(chat.Options{
		Store: a.store, Courier: carry, Log: a.log,
		MaxMessage: int(cfg.Limits.Message), MaxGroupMembers: cfg.Limits.GroupMembers, MaxGroups: cfg.Limits.Groups, MaxFriends: cfg.Limits.Friends,
	})
	a.plain = plain.New(rules(cfg.Rules), nil)
	return a.store.EachRetained(ctx, func(r store.RetainedMessage) bool {
		a.plain.Retain(r)
		return true
	})
}

func (a *App) retention() *retain {
	keep := map[im.ConvKind]time.Duration{}
	for kind, d := range map[im.ConvKind]time.Duration{im.KindDM: a.cfg.Store.Retention.DM, im.KindGroup: a.cfg.Store.Retention.Group} {
		if d > 0 {
			keep[kind] = d
		}
	}
	return &retain{st: a.store, log: a.log, now: time.Now, keep: keep}
}

// pushDoor is the gateway for the API; a nil interface where there is none.
func (a *App) pushDoor() httpapi.Push {
	if a.push == nil {
		return nil
	}
	return a.push
}

// announce brackets the outcomes of one commit: each connection is written once.
func (a *App) announce() func() {
	b := a.live.Load()
	if b == nil { // nobody is connected while the rooms are made
		return func() {}
	}
	b.Hold()
	return b.Release
}

// rules translates the configuration's rules.
func rules(list []configs.Rule) plain.Rules {
	actions := map[string]plain.Action{"publish": plain.Publish, "subscribe": plain.Subscribe, "all": plain.Publish | plain.Subscribe}
	var out plain.Rules
	for _, r := range list {
		out = append(out, plain.Rule{Deny: r.Deny != "", Actions: actions[r.Allow+r.Deny], Topic: r.Topic, Role: r.Role, User: im.UserID(r.User)})
	}
	return out
}

// makeFaces makes what the outside sees.
func (a *App) makeFaces(ctx context.Context) error {
	cfg, m := a.cfg, a.metrics
	proxies, err := configs.Prefixes(cfg.HTTP.TrustedProxies)
	if err != nil {
		return err
	}
	a.admin = newAdminAccess(cfg.DataDir)
	limits := httpapi.Limits{Off: cfg.Limits.Off, UserRate: cfg.Limits.RequestsPerSecond, UserBurst: cfg.Limits.RequestsBurst, AddressRate: cfg.Limits.AddressPerSecond,
		AddressBurst: cfg.Limits.AddressBurst, RegisterRate: cfg.Limits.RegistrationsPerSecond, RegisterBurst: cfg.Limits.RegistrationsBurst}
	a.api = httpapi.New(httpapi.Options{
		Chat: a.chat, Auth: a.auth, Accounts: a.store, Devices: a.store, Sessions: sessions{a},
		Registration: cfg.RegistrationOpen, Operator: a.admin.allows, Version: a.version, Limits: limits,
		Origins: cfg.HTTP.Origins, TrustedProxies: proxies, Log: a.log, Push: a.pushDoor(), Backup: a.backup,
	})
	var limiter hooks.Limiter
	if !cfg.Limits.Off {
		limiter = newLimiter(cfg.Limits.MessagesPerSecond, cfg.Limits.Burst, float64(cfg.Limits.BytesPerSecond), int(cfg.Limits.Message))
	}
	a.gate = hooks.New(hooks.Options{
		Auth: a.auth, Chat: a.chat, Delivery: a.delivery, Plain: a.plain, Store: a.store, RPC: rpc{a.api}, Limiter: limiter, Log: a.log,
		MaxBody: int(cfg.Limits.Message), MaxSubscriptions: cfg.Limits.Subscriptions,
		Events: hooks.Events{
			Accepted: counters(m.accepted, "dm", "group", "plain"),
			Refused:  func(r string) { m.refused.WithLabelValues(r).Inc() },
			Login:    func(r string) { m.logins.WithLabelValues(r).Inc() },
		},
	})
	a.broker, err = broker.New(broker.Options{
		Gate: a.gate, Log: a.log, ConnectTimeout: cfg.MQTT.ConnectTimeout, WriteTimeout: cfg.MQTT.WriteTimeout, KeepAliveMax: cfg.MQTT.KeepAliveMax,
		MaxPacket: int(cfg.Limits.Message) + 64<<10, ReceiveMaximum: cfg.MQTT.ReceiveMaximum,
		Events: broker.Events{
			Refused:   func(r string) { m.rejected.WithLabelValues(r).Inc() },
			Closed:    func(r string) { m.closed.WithLabelValues(r).Inc() },
			Panic:     m.panics.Inc,
			BytesIn:   func(n int) { m.bytesIn.Add(float64(n)) },
			BytesOut:  func(n int) { m.bytesOut.Add(float64(n)) },
			PacketsIn: func(n int) { m.packetsIn.Add(float64(n)) },
		},
	})
	if err != nil {
		return err
	}
	a.live.Store(a.broker)
	m.gauge("connections", "MQTT connections with a session.", func() float64 { return float64(a.broker.Connections()) })
	m.gauge("plain_subscribers", "Devices with subscriptions in the plain space.", func() float64 { return float64(a.plain.Subscriptions()) })
	m.gauge("retained_messages", "Retained messages of the plain space.", func() float64 { return float64(a.plain.RetainedCount()) })
	m.counter("messages_delivered_total", "Entries written to devices, first time or again.", func() float64 { return float64(a.delivery.Delivered()) })
	return a.gate.Restore(ctx, a.store)
}

// revoked disconnects what is connected with revoked credentials.
func (a *App) revoked(by context.Context, r auth.Revocation) {
	a.unpush(r, a.log)
	// Whoever asks may go away; what was decided is done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(by), 10*time.Second)
	defer cancel()
	if u, err := a.store.User(ctx, r.User); err == nil {
		a.plain.Restrict(r.User, u.Role)
	} else {
		a.log.Warn("subscriptions not looked through after a revocation", "user", r.User, "error", err)
		a.plain.Restrict(r.User, "")
	}
	n := a.delivery.Kick(ctx, r.User, delivery.Revoked, func(l *delivery.Line) bool {
		return !a.auth.StillValid(a.gate.Identity(l.Key()))
	})
	a.log.Info("credentials revoked", "user", r.User, "reason", r.Reason, "disconnected", n)
}

// sessions shows httpapi who is connected.
type sessions struct{ a *App }

func (s sessions) Online(k im.DeviceKey) bool { return s.a.delivery.Line(k) != nil }

func (s sessions) Leave(ctx context.Context, k im.DeviceKey) {
	s.a.delivery.Kick(ctx, k.User, delivery.Revoked, func(l *delivery.Line) bool { return l.Key() == k })
}

func (s sessions) Forget(ctx context.Context, k im.DeviceKey) error {
	s.a.plain.Drop(k)
	if s.a.push != nil {
		if err := s.a.push.Unregister(ctx, k); err != nil {
			return err
		}
	}
	return s.a.delivery.Forget(ctx, k)
}

// rpc lets MQTT clients call operations.
type rpc struct{ api *httpapi.API }

func (r rpc) Call(ctx context.Context, id auth.Identity, device im.DeviceID, addr, op string, params []byte) ([]byte, error) {
	ip, _ := netip.ParseAddr(addr) // a unix socket has none
	return r.api.Call(ctx, httpapi.Caller{User: id.User, Role: id.Role, Device: device, Identity: id, Addr: ip.Unmap()}, op, params)
}
