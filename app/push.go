package app

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/apns"
	"github.com/parley-im/parley/pushgw/fcm"
	"github.com/parley-im/parley/pushgw/webpush"
	"github.com/parley-im/parley/store"
)

// openPush makes the gateway. Without apps it rings nobody and does not run: it
// keeps where devices want to be rung, and how.
func (a *App) openPush(ctx context.Context) error {
	cfg := a.cfg.Push
	if cfg.Run == configs.PushOff {
		return nil
	}
	apps, keys, err := pushApps(cfg)
	if err != nil {
		return err
	}
	var events pushgw.Events
	if a.rings() {
		events = a.metrics.push()
	}
	g, err := pushgw.New(ctx, pushgw.Options{
		Store: a.store, House: house{a, names{a.store, a.unread}}, Log: a.log, Apps: apps, Workers: cfg.Run == configs.PushWorkers,
		Privacy: cfg.Privacy, Grace: pushgw.Grace{Online: cfg.GraceOnline, Active: cfg.GraceActive},
		LargeGroup: cfg.LargeGroup, TTL: cfg.TTL, SealedTypes: cfg.SealedTypes, Events: events,
	})
	if err != nil {
		return err
	}
	a.push, a.keys = g, keys
	if a.rings() {
		a.metrics.gauge("push_pending", "Devices that wait to be rung.", func() float64 { return float64(g.Pending()) })
	}
	return nil
}

// rings reports whether phones are rung.
func (a *App) rings() bool { return len(a.cfg.Push.Apps) > 0 && a.cfg.Push.Run != configs.PushOff }

// unread asks chat, which is made after the gateway.
func (a *App) unread(ctx context.Context, u im.UserID) (int, error) { return a.chat.Unread(ctx, u) }

// pushApps makes the senders of all apps, and what reads their keys again.
func pushApps(cfg configs.Push) (apps []pushgw.App, keys pushKeys, err error) {
	tokens := apns.NewTokens(nil)
	for _, c := range cfg.Apps {
		x, key, err := pushApp(c, tokens)
		if err != nil {
			return nil, nil, fmt.Errorf("push.apps: %s: %w", c.Name, err)
		}
		apps, keys = append(apps, x), append(keys, key)
	}
	return apps, keys, nil
}

// pushApp makes the sender of one app, and what reads its key again.
func pushApp(c configs.PushApp, tokens *apns.Tokens) (x pushgw.App, key *pushKey, err error) {
	x = pushgw.App{Name: c.Name, Provider: c.Provider}
	var roots *x509.CertPool
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return x, nil, err
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return x, nil, fmt.Errorf("%s holds no certificate", c.CA)
		}
	}
	switch c.Provider {
	case pushgw.APNs:
		x.Check, x.Workers = checkAPNs, 256 // streams of a few connections
		x.Sender, key, err = apnsSender(c, tokens, roots)
	case pushgw.FCM:
		x.Workers = 256
		x.Sender, key, err = fcmSender(c, roots)
	default:
		var hosts []string
		if c.Hosts != "" {
			hosts = strings.Split(strings.ReplaceAll(c.Hosts, " ", ""), ",")
		}
		x.Check = func(a pushgw.Address) error { return webpush.ValidateSubscription(a.Token, hosts) }
		x.Sender, key, err = webpushSender(c, hosts, roots)
	}
	return x, key, err
}

// line is a secret of one line, which files end with a newline.
func line(b []byte) string { return strings.TrimSpace(string(b)) }

func apnsSender(c configs.PushApp, tokens *apns.Tokens, roots *x509.CertPool) (pushgw.Sender, *pushKey, error) {
	cfg := apns.Config{Bundle: c.Bundle, Environment: c.Environment, ProductionURL: c.Endpoint, SandboxURL: c.Sandbox, RootCAs: roots}
	signing := func(b []byte) apns.Key { return apns.Key{Team: c.Team, ID: c.KeyID, P8: b} }
	key := newPushKey(c.Name, c.Key)
	if c.Certificate != "" {
		key = newPushKey(c.Name, c.Certificate, c.PasswordFile)
	}
	b, err := key.read()
	if err != nil {
		return nil, nil, err
	}
	if c.Certificate != "" {
		cfg.Certificate, cfg.Password = b[0], line(b[1])
	} else {
		cfg.Key, cfg.Tokens = signing(b[0]), tokens
	}
	s, err := apns.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	key.load = func(b [][]byte) error { return s.Reload(signing(b[0])) }
	if c.Certificate != "" {
		key.load = func(b [][]byte) error { return s.ReloadCertificate(b[0], line(b[1])) }
	}
	return s, key, nil
}

func fcmSender(c configs.PushApp, roots *x509.CertPool) (pushgw.Sender, *pushKey, error) {
	key := newPushKey(c.Name, c.ServiceAccount)
	b, err := key.read()
	if err != nil {
		return nil, nil, err
	}
	s, err := fcm.New(fcm.Config{ServiceAccount: b[0], Endpoint: c.Endpoint, RootCAs: roots})
	if err != nil {
		return nil, nil, err
	}
	key.load = func(b [][]byte) error { return s.Reload(b[0]) }
	return s, key, nil
}

func webpushSender(c configs.PushApp, hosts []string, roots *x509.CertPool) (pushgw.Sender, *pushKey, error) {
	key := newPushKey(c.Name, c.Key)
	b, err := key.read()
	if err != nil {
		return nil, nil, err
	}
	s, err := webpush.New(webpush.Config{PrivateKey: line(b[0]), Subject: c.Subject, AllowedHosts: hosts, RootCAs: roots, AllowPrivate: c.AllowPrivate})
	if err != nil {
		return nil, nil, err
	}
	key.load = func(b [][]byte) error { return s.Reload(line(b[0])) }
	return s, key, nil
}

// checkAPNs refuses what is no device token: it becomes part of a URL.
func checkAPNs(a pushgw.Address) error {
	if len(a.Token) < 64 || len(a.Token) > 200 || strings.Trim(a.Token, "0123456789abcdefABCDEF") != "" {
		return errors.New("an APNs token is 64 or more hexadecimal digits")
	}
	return nil
}

// names is what a push says beside the message.
type names struct {
	store  store.Store
	unread func(context.Context, im.UserID) (int, error)
}

func (n names) UserName(ctx context.Context, u im.UserID) string {
	if v, err := n.store.User(ctx, u); err == nil && v.Name != "" {
		return v.Name
	}
	return string(u)
}

func (n names) GroupName(ctx context.Context, g im.GroupID) string {
	if v, err := n.store.Group(ctx, g); err == nil && v.Name != "" {
		return v.Name
	}
	return string(g)
}

func (n names) Unread(ctx context.Context, u im.UserID) (int, error) { return n.unread(ctx, u) }

// house answers the gateway's questions.
type house struct {
	a *App
	names
}

func (h house) Members(ctx context.Context, g im.GroupID) ([]im.UserID, error) {
	ms, err := h.a.store.Members(ctx, g)
	out := make([]im.UserID, len(ms))
	for i, m := range ms {
		out[i] = m.User
	}
	return out, err
}

func (h house) Online(k im.DeviceKey) bool { return h.a.delivery.Line(k) != nil }
func (h house) AnyOnline(u im.UserID) bool { return h.a.delivery.AnyLine(u) }

// courier carries to devices that are connected, and tells the gateway.
type courier struct {
	carrier
	push *pushgw.Gateway
}

// carrier is what delivery does for chat.
type carrier interface {
	Offer(e *im.Entry)
	Wake(conv im.ConvID, seq im.Seq)
	Ephemeral(ev im.Ephemeral)
	Read(conv im.ConvID, user im.UserID, device im.DeviceID, seq im.Seq)
	Joined(g im.GroupID, user im.UserID, start im.Seq)
	Left(g im.GroupID, user im.UserID)
}

func (c courier) Offer(e *im.Entry) {
	c.carrier.Offer(e)
	c.push.Offer(e)
}

func (c courier) Ephemeral(ev im.Ephemeral) {
	c.carrier.Ephemeral(ev)
	c.push.Signal(ev)
}

func (c courier) Read(conv im.ConvID, user im.UserID, device im.DeviceID, seq im.Seq) {
	c.carrier.Read(conv, user, device, seq)
	c.push.Read(conv, user, device, seq)
}

// unpush forgets where devices are rung whose credentials are revoked.
func (a *App) unpush(r auth.Revocation, log *slog.Logger) {
	if a.push == nil {
		return
	}
	if err := a.push.Revoked(context.Background(), r.User, r.Family); err != nil {
		log.Error("push addresses of revoked credentials stay", "user", r.User, "error", err)
	}
}

var _ pushgw.Store = store.Store(nil)
