package app

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/apns"
	"github.com/parley-im/parley/pushgw/fcm"
	"github.com/parley-im/parley/pushgw/webpush"
	"github.com/parley-im/parley/store"
)

// openPush makes the gateway; without apps there is none.
func (a *App) openPush(ctx context.Context) error {
	cfg := a.cfg.Push
	if len(cfg.Apps) == 0 || cfg.Run == configs.PushOff {
		return nil
	}
	apps, keys, err := pushApps(cfg)
	if err != nil {
		return err
	}
	g, err := pushgw.New(ctx, pushgw.Options{
		Store: a.store, House: house{a, names{a.store, a.unread}}, Log: a.log, Apps: apps, Workers: cfg.Run == configs.PushWorkers,
		Privacy: cfg.Privacy, Grace: pushgw.Grace{Online: cfg.GraceOnline, Active: cfg.GraceActive},
		LargeGroup: cfg.LargeGroup, TTL: cfg.TTL, SealedTypes: cfg.SealedTypes, Events: a.metrics.push(),
	})
	if err != nil {
		return err
	}
	a.push, a.keys = g, keys
	a.metrics.gauge("push_pending", "Devices that wait to be rung.", func() float64 { return float64(g.Pending()) })
	return nil
}

// unread asks chat, which is made after the gateway.
func (a *App) unread(ctx context.Context, u im.UserID) (int, error) { return a.chat.Unread(ctx, u) }

// pushApps makes the senders of all apps, and what reads their keys again.
func pushApps(cfg configs.Push) (apps []pushgw.App, keys keyFiles, err error) {
	tokens := apns.NewTokens(nil)
	for _, c := range cfg.Apps {
		key := newKeyFile(c.Name, keyPath(c))
		x, reload, err := pushApp(c, tokens)
		if err != nil {
			return nil, nil, fmt.Errorf("push.apps: %s: %w", c.Name, err)
		}
		apps = append(apps, x)
		if reload != nil {
			key.load = reload
			keys = append(keys, key)
		}
	}
	return apps, keys, nil
}

func keyPath(c configs.PushApp) string {
	if c.Provider == pushgw.FCM {
		return c.ServiceAccount
	}
	return c.Key
}

// pushApp makes the sender of one app, and what reads its key again.
func pushApp(c configs.PushApp, tokens *apns.Tokens) (x pushgw.App, reload func([]byte) error, err error) {
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
	read := func(path string) ([]byte, error) {
		if path == "" {
			return nil, nil
		}
		return os.ReadFile(path)
	}
	switch c.Provider {
	case pushgw.APNs:
		key, err1 := read(c.Key)
		cert, err2 := read(c.Certificate)
		password, err3 := read(c.PasswordFile)
		if err := errors.Join(err1, err2, err3); err != nil {
			return x, nil, err
		}
		s, err := apns.New(apns.Config{
			Bundle: c.Bundle, Key: apns.Key{Team: c.Team, ID: c.KeyID, P8: key}, Tokens: tokens, Certificate: cert, Password: strings.TrimSpace(string(password)),
			Environment: c.Environment, ProductionURL: c.Endpoint, SandboxURL: c.Sandbox, RootCAs: roots,
		})
		if err != nil {
			return x, nil, err
		}
		x.Sender, x.Check, x.Workers = s, checkAPNs, 256 // streams of a few connections
		if c.Certificate == "" {
			reload = func(b []byte) error { return s.Reload(apns.Key{Team: c.Team, ID: c.KeyID, P8: b}) }
		}
		return x, reload, nil
	case pushgw.FCM:
		account, err := read(c.ServiceAccount)
		if err != nil {
			return x, nil, err
		}
		s, err := fcm.New(fcm.Config{ServiceAccount: account, Endpoint: c.Endpoint, RootCAs: roots})
		if err != nil {
			return x, nil, err
		}
		x.Sender, x.Workers = s, 256
		return x, s.Reload, nil
	default:
		key, err := read(c.Key)
		if err != nil {
			return x, nil, err
		}
		var hosts []string
		if c.Hosts != "" {
			hosts = strings.Split(strings.ReplaceAll(c.Hosts, " ", ""), ",")
		}
		s, err := webpush.New(webpush.Config{PrivateKey: strings.TrimSpace(string(key)), Subject: c.Subject, AllowedHosts: hosts, RootCAs: roots, AllowPrivate: c.AllowPrivate})
		if err != nil {
			return x, nil, err
		}
		x.Sender = s
		x.Check = func(a pushgw.Address) error { return webpush.ValidateSubscription(a.Token, hosts) }
		return x, nil, nil
	}
}

// checkAPNs refuses what is no device token: it becomes part of a URL.
func checkAPNs(a pushgw.Address) error {
	if len(a.Token) < 64 || len(a.Token) > 200 || strings.Trim(a.Token, "0123456789abcdefABCDEF") != "" {
		return errors.New("an APNs token is 64 or more hexadecimal digits")
	}
	return nil
}

// keyFile is a key that is read again when its file changes.
type keyFile struct {
	app, path string
	load      func([]byte) error
	seen      time.Time
}

// reloadEvery is how often key files are looked at.
const reloadEvery = 10 * time.Second

type keyFiles []*keyFile

// newKeyFile notes how old the file is before it is read for the first time: what
// is written from then on is a change.
func newKeyFile(app, path string) *keyFile {
	k := &keyFile{app: app, path: path}
	if st, err := os.Stat(path); err == nil {
		k.seen = st.ModTime()
	}
	return k
}

// reload reads keys again when they change, until ctx is done, and tells whose.
func (ks keyFiles) reload(ctx context.Context, log *slog.Logger, changed func(app string)) {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, k := range ks {
			st, err := os.Stat(k.path)
			if err != nil || st.ModTime().Equal(k.seen) {
				continue
			}
			k.seen = st.ModTime()
			b, err := os.ReadFile(k.path)
			if err == nil {
				err = k.load(b)
			}
			if err != nil {
				log.Error("the new push key does not load; the old one stays in use", "app", k.app, "error", err)
				continue
			}
			changed(k.app)
			log.Info("push key read again", "app", k.app)
		}
	}
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
