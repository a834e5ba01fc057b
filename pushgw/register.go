package pushgw

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// maxToken bounds an address: a Web Push subscription is the longest.
const maxToken = 4096

// maxRegistrations bounds the addresses of one user's devices.
const maxRegistrations = 1000

// Register sets where a device is rung. The address moves to it if another
// device, of this user or another, had it. family is that of the caller's token:
// when it is revoked the registration goes too. It is durable on return. A gateway
// without apps takes any: it rings nobody, and a later one finds them.
func (g *Gateway) Register(ctx context.Context, k im.DeviceKey, family string, a Address) error {
	app := g.apps[a.App]
	if len(g.apps) > 0 && (app == nil || app.Provider != a.Provider) {
		return im.Refuse(im.Invalid, "unknown_app", "there is no app %q of %q here", a.App, a.Provider)
	}
	if a.Token == "" || len(a.Token) > maxToken {
		return im.Refuse(im.Invalid, "token", "the token is 1 to %d bytes", maxToken)
	}
	if app != nil && app.Check != nil {
		if err := app.Check(a); err != nil {
			return im.Refuse(im.Invalid, "token", "%s", err)
		}
	}
	end, err := g.turnOf(ctx, k.User, a)
	if err != nil {
		return err
	}
	defer end()
	a.Registered = g.opt.Now().UnixMilli()
	r := &Registration{Device: k, Family: family, Address: a}
	var notes []store.Note
	g.mu.Lock()
	replaces := func(old *Registration) bool { return old.key() == r.key() || heldBy(old.Address) == heldBy(a) }
	if mine := g.regs[k.User]; len(mine) >= maxRegistrations && !slices.ContainsFunc(mine, replaces) {
		g.mu.Unlock()
		return im.Refuse(im.TooMany, "too_many_addresses", "an account has at most %d addresses: remove one first", maxRegistrations)
	}
	for _, old := range slices.Clone(g.regs[k.User]) {
		if old.key() == r.key() {
			r.Loud, r.Silent = old.Loud, old.Silent
			if old.Token == a.Token && old.App == a.App && r.Environment == "" {
				r.Environment = old.Environment
			}
			g.unkeep(old)
		}
	}
	var left []im.DeviceKey // what the address was of
	if old := g.held[heldBy(a)]; old != nil {
		g.unkeep(old)
		notes = append(notes, gone(old.key()))
		if old.Device != k { // its phone is in other hands: what waits for it is not for them
			left = append(left, old.Device)
			notes = append(notes, g.dropAll(old.Device, "address_moved")...)
		}
	}
	g.keep(r)
	notes = append(notes, note(r.key(), r))
	g.mu.Unlock()
	if err := g.opt.Store.PutNotes(ctx, notes, true); err != nil || !g.opt.Workers {
		return err
	}
	return g.dropShared(ctx, left, "address_moved")
}

// dropAll takes all bells of a device away. Caller holds mu.
func (g *Gateway) dropAll(k im.DeviceKey, reason string) (notes []store.Note) {
	for key, b := range g.slots {
		if key.dev == k {
			g.record(b, "send", no(reason), "")
			notes = append(notes, g.drop(b)...)
		}
	}
	return notes
}

// turnOf takes the turn of a user who registers a, and of the one who has it now.
func (g *Gateway) turnOf(ctx context.Context, u im.UserID, a Address) (end func(), err error) {
	holder := func() im.UserID {
		g.mu.Lock()
		defer g.mu.Unlock()
		if r := g.held[heldBy(a)]; r != nil {
			return r.Device.User
		}
		return u
	}
	for {
		from := holder()
		if end, err = g.turns.take(ctx, u, from); err != nil {
			return nil, err
		}
		// It may have gone to a third meanwhile; from now on it does not.
		if now := holder(); now == from || now == u {
			return end, nil
		}
		end()
	}
}

// Unregister forgets where a device is rung, and its bells. It is durable on return.
func (g *Gateway) Unregister(ctx context.Context, k im.DeviceKey) error {
	return g.unregister(ctx, k.User, func(r *Registration) bool { return r.Device == k })
}

// Revoked forgets what was registered with tokens of a family, or all of a user's
// registrations if that is "".
func (g *Gateway) Revoked(ctx context.Context, u im.UserID, family string) error {
	return g.unregister(ctx, u, func(r *Registration) bool { return family == "" || r.Family == family })
}

// Try sends one push to a device at once and returns what the provider said.
func (g *Gateway) Try(ctx context.Context, k im.DeviceKey, text string) (Result, error) {
	b := &bell{Kind: Alert, Expires: g.opt.Now().Add(time.Minute).UnixMilli(), key: slotKey{k, "try"}}
	g.mu.Lock()
	r := g.registration(b)
	g.mu.Unlock()
	if r == nil {
		return Result{}, im.Refuse(im.NotFound, "no_address", "this device has registered no address")
	}
	a := g.apps[r.App]
	if a == nil {
		return Result{}, im.Refuse(im.NotFound, "no_such_app", "there is no app %q in the configuration", r.App)
	}
	id := rand.Text()
	p := &Push{ID: pushID(&bell{key: slotKey{k, im.ConvID(id)}}, r.Address), To: r.Address, Kind: Alert, Collapse: collapse(im.ConvID(id)), Expires: time.UnixMilli(b.Expires),
		Title: "Parley", Body: text, Sound: alertSound, Data: map[string]string{"try": "1"}}
	if text == "" {
		p.BodyKey = LocNew
	}
	return a.Sender.Send(ctx, p), nil
}

func (g *Gateway) unregister(ctx context.Context, u im.UserID, out func(*Registration) bool) error {
	var notes []store.Note
	var devices []im.DeviceKey
	end, err := g.turns.take(ctx, u)
	if err != nil {
		return err
	}
	defer end()
	g.mu.Lock()
	for _, r := range slices.Clone(g.regs[u]) {
		if !out(r) {
			continue
		}
		g.unkeep(r)
		devices = append(devices, r.Device)
		notes = append(notes, gone(r.key()))
		notes = append(notes, g.dropAll(r.Device, "logged_out")...)
	}
	g.mu.Unlock()
	if len(notes) == 0 {
		return nil
	}
	if err := g.opt.Store.PutNotes(ctx, notes, true); err != nil || !g.opt.Workers {
		return err
	}
	return g.dropShared(ctx, devices, "logged_out")
}

// Registrations returns where a user's devices are rung.
func (g *Gateway) Registrations(u im.UserID) []Registration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Registration
	for _, r := range g.regs[u] {
		out = append(out, *r)
	}
	return out
}

// forget drops an address that the provider does not know any more. It reports
// false, and does nothing, if r is no longer what the device has registered.
func (g *Gateway) forget(r *Registration, reason string) bool {
	defer g.turns.always(r.Device.User)()
	g.mu.Lock()
	current := slices.Contains(g.regs[r.Device.User], r)
	g.unkeep(r)
	g.mu.Unlock()
	if !current {
		return false
	}
	g.log.Info("push address dropped", "device", r.Device, "provider", r.Provider, "app", r.App, "reason", reason)
	g.save([]store.Note{gone(r.key())})
	return true
}

// isFrom keeps where APNs knows an address, unless it was replaced or logged out
// meanwhile.
func (g *Gateway) isFrom(r *Registration, environment string) {
	if environment == "" || r.Environment == environment {
		return
	}
	defer g.turns.always(r.Device.User)()
	g.mu.Lock()
	current := slices.Contains(g.regs[r.Device.User], r)
	known := *r
	known.Environment = environment
	if current {
		g.unkeep(r)
		g.keep(&known)
	}
	g.mu.Unlock()
	if current {
		g.save([]store.Note{note(known.key(), &known)})
	}
}

func heldBy(a Address) string { return strings.Join([]string{a.Provider, a.App, a.Token}, "\x00") }

// keep and unkeep change what is in memory. Caller holds mu, or nobody else is there.
func (g *Gateway) keep(r *Registration) {
	g.regs[r.Device.User] = append(g.regs[r.Device.User], r)
	g.held[heldBy(r.Address)] = r
	g.any.Add(1)
}

func (g *Gateway) unkeep(r *Registration) {
	rs := g.regs[r.Device.User]
	i := slices.Index(rs, r)
	if i < 0 {
		return
	}
	rs = slices.Delete(slices.Clone(rs), i, i+1)
	if len(rs) == 0 {
		delete(g.regs, r.Device.User)
	} else {
		g.regs[r.Device.User] = rs
	}
	if g.held[heldBy(r.Address)] == r {
		delete(g.held, heldBy(r.Address))
	}
	g.any.Add(-1)
}

// Settings returns what a user wants.
func (g *Gateway) Settings(u im.UserID) Settings {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.settings[u]; s != nil {
		return *s
	}
	return Settings{}
}

// Muted reports whether a user wants no notice of a conversation now. It answers
// from memory.
func (g *Gateway) Muted(u im.UserID, conv im.ConvID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.settings[u]
	if s == nil {
		return false
	}
	l := s.Conv[conv]
	return l.Level == LevelNone || l.Muted > g.opt.Now().UnixMilli()
}

// maxConvSettings bounds how many conversations one user has wishes for.
const maxConvSettings = 10_000

// PutSettings changes what a user's pushes say ("": as the server is configured)
// and the user's quiet hours (nil: none). Wishes for conversations stay. It is
// durable on return.
func (g *Gateway) PutSettings(ctx context.Context, u im.UserID, privacy string, quiet *Quiet) error {
	return g.change(ctx, u, func(s *Settings) { s.Privacy, s.Quiet = privacy, quiet })
}

// PutLevel changes the wish for one conversation; the zero ConvLevel removes it.
// It is durable on return.
func (g *Gateway) PutLevel(ctx context.Context, u im.UserID, conv im.ConvID, l ConvLevel) error {
	return g.change(ctx, u, func(s *Settings) {
		s.Conv = maps.Clone(s.Conv) // others read the one there is
		if l == (ConvLevel{}) {
			delete(s.Conv, conv)
			return
		}
		if s.Conv == nil {
			s.Conv = map[im.ConvID]ConvLevel{}
		}
		s.Conv[conv] = l
	})
}

// change writes down what fn makes of a user's wishes.
func (g *Gateway) change(ctx context.Context, u im.UserID, fn func(*Settings)) error {
	end, err := g.turns.take(ctx, u)
	if err != nil {
		return err
	}
	defer end()
	s := g.Settings(u)
	fn(&s)
	if err := s.Check(); err != nil {
		return err
	}
	if len(s.Conv) > maxConvSettings {
		return im.Refuse(im.TooMany, "settings", "settings for at most %d conversations", maxConvSettings)
	}
	if err := g.opt.Store.PutNotes(ctx, []store.Note{note(noteSet+string(u), &s)}, true); err != nil {
		return err
	}
	g.mu.Lock()
	g.keepSettings(u, &s)
	g.mu.Unlock()
	return nil
}

// keepSettings changes what is in memory. Caller holds mu, or nobody else is there.
func (g *Gateway) keepSettings(u im.UserID, s *Settings) {
	if old := g.settings[u]; old != nil {
		for c := range old.Conv {
			delete(g.keen[c], u)
			if len(g.keen[c]) == 0 {
				delete(g.keen, c)
			}
		}
	}
	g.settings[u] = s
	for c, l := range s.Conv {
		if l.Level == LevelAll {
			if g.keen[c] == nil {
				g.keen[c] = map[im.UserID]bool{}
			}
			g.keen[c][u] = true
		}
	}
}
