package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// app is the queue and the circuit of one app: what it does and suffers does not
// touch the others.
type app struct {
	App
	g *Gateway

	mu      sync.Mutex
	cond    *sync.Cond
	queue   []*bell
	until   time.Time // nothing is sent before, but for one probe when it is over
	locked  string    // why the circuit is open
	probing bool
	closed  bool
}

// probeEvery is how often an app whose credentials are refused is tried.
const probeEvery = 30 * time.Second

// attemptTime bounds one attempt.
const attemptTime = 30 * time.Second

func newApp(g *Gateway, a App) *app {
	if a.Workers <= 0 {
		a.Workers = 64
	}
	x := &app{App: a, g: g}
	x.cond = sync.NewCond(&x.mu)
	return x
}

func (a *app) push(b *bell) {
	a.mu.Lock()
	a.queue = append(a.queue, b)
	a.mu.Unlock()
	a.cond.Signal()
}

// next waits for a bell that may be sent now; nil when the gateway ends.
func (a *app) next() *bell {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.closed {
		wait := a.until.Sub(a.g.opt.Now())
		if len(a.queue) > 0 && wait <= 0 && (a.locked == "" || !a.probing) {
			if a.locked != "" {
				a.probing = true
			}
			b := a.queue[0]
			a.queue[0] = nil
			a.queue = a.queue[1:]
			return b
		}
		if len(a.queue) > 0 && wait > 0 {
			time.AfterFunc(wait, a.cond.Signal)
		}
		a.cond.Wait()
	}
	return nil
}

func (a *app) work(ctx context.Context) {
	for {
		b := a.next()
		if b == nil {
			return
		}
		a.serve(ctx, b)
	}
}

// pause stops the app for a while; why opens the circuit.
func (a *app) pause(d time.Duration, why string) {
	a.mu.Lock()
	until := a.g.opt.Now().Add(d)
	if until.After(a.until) {
		a.until = until
	}
	opened := why != "" && a.locked == ""
	if why != "" {
		a.locked, a.probing = why, false
	}
	a.mu.Unlock()
	if opened {
		a.g.log.Error("push credentials refused: this app's devices are not rung until they work", "provider", a.Provider, "app", a.Name, "reason", why)
		if fn := a.g.opt.Events.Circuit; fn != nil {
			fn(a.Provider, a.Name, true)
		}
	}
}

// works closes the circuit.
func (a *app) works() {
	a.mu.Lock()
	was := a.locked != ""
	if was {
		a.locked, a.probing, a.until = "", false, time.Time{}
	}
	a.mu.Unlock()
	if was {
		a.g.log.Info("push credentials work again", "provider", a.Provider, "app", a.Name)
		if fn := a.g.opt.Events.Circuit; fn != nil {
			fn(a.Provider, a.Name, false)
		}
		a.cond.Broadcast()
	}
}

// unprobe gives up the probe without an answer about the credentials.
func (a *app) unprobe() {
	a.mu.Lock()
	if a.locked != "" && a.probing {
		a.probing = false
		a.until = a.g.opt.Now().Add(probeEvery)
	}
	a.mu.Unlock()
}

// Reloaded says that the app's credentials have changed: they are tried at once.
func (g *Gateway) Reloaded(name string) {
	if a := g.apps[name]; a != nil {
		a.mu.Lock()
		a.until = time.Time{}
		a.mu.Unlock()
		a.cond.Broadcast()
	}
}

// serve takes a bell through the rest of the pipeline.
func (a *app) serve(ctx context.Context, b *bell) {
	g := a.g
	now := g.opt.Now()
	g.mu.Lock()
	r := g.registration(b)
	off, expires, mention := b.off, b.Expires, b.Mention // newer messages may change the bell meanwhile
	var wait time.Duration
	if r != nil && !off {
		wait = g.wait(b, now)
	}
	g.mu.Unlock()
	switch {
	case off:
		a.unprobe()
		return
	case r == nil:
		a.unprobe()
		g.finish(b, "send", no("no_address"), "")
		return
	case now.UnixMilli() > expires:
		a.unprobe()
		if b.Kind == Alert { // it waited behind a circuit or a pause: an operator can replay it
			g.bury(b, *r, "expired")
			return
		}
		g.finish(b, "send", no("expired"), "")
		return
	case wait < 0: // a clear: the badge will be right with the next push
		a.unprobe()
		g.finish(b, "send", no("silent_budget"), "")
		return
	case wait > 0:
		a.unprobe()
		g.later(b, now.Add(wait))
		return
	}
	s, d, err := g.scene(ctx, b, r)
	switch {
	case err != nil:
		a.unprobe()
		if ctx.Err() == nil {
			g.log.Warn("a bell waits for the store", "error", err)
		}
		g.later(b, now.Add(time.Second))
		return
	case !d.Go:
		a.unprobe()
		g.finish(b, "grace", d, "")
		return
	}
	if b.Kind == Alert {
		if d := quiet(g.quietOf(b.key.dev.User), mention, now); !d.Go {
			a.unprobe()
			g.finish(b, "quiet", d, "")
			return
		}
	}
	a.send(ctx, b, r, s)
}

// wait takes a token of the device's bucket: 0, or how long to wait; negative for
// a clear that has none. Caller holds mu.
func (g *Gateway) wait(b *bell, now time.Time) time.Duration {
	x := g.bucket(b.key.dev)
	switch b.Kind {
	case Call:
		return 0
	case Clear:
		if !x.silent.AllowN(now, 1) {
			return -1
		}
		return 0
	}
	res := x.loud.ReserveN(now, 1)
	if d := res.DelayFrom(now); d > 0 {
		res.CancelAt(now)
		return d
	}
	return 0
}

func (g *Gateway) quietOf(u im.UserID) *Quiet {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.settings[u]; s != nil {
		return s.Quiet
	}
	return nil
}

// scene looks up what is needed to render, and whether it is still needed. It is
// a snapshot: newer messages may come while it is sent.
func (g *Gateway) scene(ctx context.Context, b *bell, r *Registration) (s scene, d Decision, err error) {
	g.mu.Lock()
	snap := *b
	s.privacy = g.opt.Privacy
	if set := g.settings[b.key.dev.User]; set != nil && privacyOrder[set.Privacy] > privacyOrder[s.privacy] {
		s.privacy = set.Privacy // a user may ask for less, not for more
	}
	g.mu.Unlock()
	s.bell, s.to = &snap, r.Address
	conv := im.ConvID(strings.TrimSuffix(string(b.key.conv), "#call"))
	snap.key.conv = conv
	u := b.key.dev.User
	if b.Kind == Alert {
		reads, err := g.opt.Store.ReadsOf(ctx, u, []im.ConvID{conv})
		if err != nil {
			return s, d, err
		}
		c, err := g.opt.Store.Cursor(ctx, b.key.dev, conv)
		if err != nil {
			return s, d, err
		}
		if d = (seen{last: snap.Last, acked: c.Acked, read: reads[0]}).due(); !d.Go {
			return s, d, nil
		}
		es, err := g.opt.Store.Range(ctx, conv, snap.Last-1, 1, 1<<20)
		if err != nil {
			return s, d, err
		}
		if len(es) == 1 && es[0].Seq == snap.Last {
			s.entry = es[0]
			if es[0].Flags&im.FlagRecalled != 0 {
				return s, no("recalled"), nil
			}
			s.sealed = slices.ContainsFunc(g.opt.SealedTypes, func(t string) bool { return strings.HasPrefix(es[0].Type, t) })
		}
	}
	if b.Kind != Call {
		if n, err := g.opt.House.Unread(ctx, u); err != nil {
			return s, d, err
		} else {
			s.badge, s.known = n, true
		}
	}
	if b.Kind != Clear && s.privacy != PrivacyNone && s.privacy != PrivacyIDOnly {
		s.sender = g.opt.House.UserName(ctx, snap.From)
		if id := conv.Group(); id != "" {
			s.group = g.opt.House.GroupName(ctx, id)
		}
	}
	return s, yes("unseen"), nil
}

// send makes one attempt and acts on the answer.
func (a *app) send(ctx context.Context, b *bell, r *Registration, s scene) {
	g := a.g
	p := render(s)
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTime) // one that is under way is ended
	begun := time.Now()
	res := a.Sender.Send(try, p)
	cancel()
	if fn := g.opt.Events.Sent; fn != nil {
		fn(a.Provider, a.Name, outcomeName(res.Outcome, res.Reason), time.Since(begun))
	}
	now := g.opt.Now()
	if res.Outcome != Locked && (res.Outcome != Retry || res.Reason != "network") {
		a.works()
	} else if res.Outcome == Retry {
		a.unprobe()
	}
	switch res.Outcome {
	case Sent:
		g.sent(b, r, s, res, now)
	case Retry:
		if res.After > 0 && !res.Device {
			a.pause(min(res.After, 5*time.Minute), "")
		}
		g.again(b, r, res, now)
	case TooLarge:
		g.mu.Lock()
		b.Small = s.bell.Small + 1
		small := b.Small
		g.mu.Unlock()
		if small > 2 {
			g.bury(b, *r, "too_large")
			return
		}
		g.later(b, now)
	case Gone:
		if res.Since.IsZero() || r.Registered < res.Since.UnixMilli() {
			g.lost(b, r, "address_gone", res.Reason, now)
			return
		}
		g.again(b, r, res, now) // it was registered after that: the provider is behind
	case Misplaced:
		g.log.Warn("a push address belongs to another app: it is dropped; many of these mean a wrong configuration", "provider", a.Provider, "app", a.Name, "reason", res.Reason)
		g.lost(b, r, "address_misplaced", res.Reason, now)
	case Rejected:
		g.bury(b, *r, res.Reason)
	case Locked:
		a.pause(probeEvery, res.Reason)
		g.mu.Lock()
		g.record(b, "send", no("circuit_open"), res.Reason)
		g.mu.Unlock()
		g.later(b, now) // it waits in the app's queue
	}
}

// lost forgets a dead address and ends the bell; if the device has registered
// another one meanwhile, that is rung.
func (g *Gateway) lost(b *bell, r *Registration, why, reason string, now time.Time) {
	if g.forget(r, reason) {
		g.finish(b, "send", no(why), reason)
		return
	}
	g.later(b, now)
}

func outcomeName(o Outcome, reason string) string {
	if o == Sent {
		return "ok"
	}
	if reason == "" {
		return "unknown"
	}
	return reason
}

// sent ends a bell, or lets it go on for what came meanwhile.
func (g *Gateway) sent(b *bell, r *Registration, s scene, res Result, now time.Time) {
	if fn := g.opt.Events.Rung; fn != nil && s.entry != nil {
		fn(r.Provider, r.App, now.Sub(time.UnixMilli(s.entry.TS)))
	}
	var notes []store.Note
	g.mu.Lock()
	g.record(s.bell, "record", yes("rung"), res.Reason)
	if res.Environment != "" && r.Environment != res.Environment && slices.Contains(g.regs[r.Device.User], r) { // not replaced or logged out meanwhile
		known := *r
		known.Environment = res.Environment
		g.unkeep(r)
		g.keep(&known)
		notes = append(notes, note(known.key(), &known))
	}
	switch b.Kind {
	case Alert:
		g.shown[b.key] = s.bell.Last
		notes = append(notes, note(noteShown+b.key.name(), s.bell.Last))
	case Clear:
		delete(g.shown, b.key)
		notes = append(notes, gone(noteShown+b.key.name()))
	}
	if !b.off && b.Last > s.bell.Last { // newer ones came while it was sent
		b.First, b.Count, b.Tries, b.Small = s.bell.Last+1, int(b.Last-s.bell.Last), 0, 0
		b.busy = false
		b.Due = now.UnixMilli()
		notes = append(notes, g.put(b))
		wake(g.wakeDue)
	} else {
		notes = append(notes, g.drop(b)...)
	}
	g.mu.Unlock()
	g.save(notes)
}

// Retries: full jitter between 0 and a bound that doubles.
const (
	retryFirst = time.Second
	retryMax   = 15 * time.Minute
)

// again puts a bell back for another attempt, unless it would be too late.
func (g *Gateway) again(b *bell, r *Registration, res Result, now time.Time) {
	g.mu.Lock()
	bound := min(retryFirst<<min(b.Tries, 20), retryMax)
	b.Tries++
	delay := res.After + time.Duration(rand.Int64N(int64(bound)))
	late := now.Add(delay).UnixMilli() > b.Expires
	g.record(b, "send", no("retry"), res.Reason)
	g.mu.Unlock()
	if late {
		if b.Kind == Call {
			g.finish(b, "send", no("expired"), res.Reason)
			return
		}
		g.bury(b, *r, "expired after "+res.Reason)
		return
	}
	g.later(b, now.Add(delay))
}

// maxDead is how many dead letters are kept; the oldest go first.
const maxDead = 10_000

// bury puts a bell into the list of those that could not be rung.
func (g *Gateway) bury(b *bell, r Registration, reason string) {
	now := g.opt.Now()
	g.mu.Lock()
	l := DeadLetter{ID: fmt.Sprintf("%013d-%08x", now.UnixMilli(), rand.Uint32()), At: now.UnixMilli(), Device: b.key.dev, Conv: b.key.conv,
		First: b.First, Last: b.Last, From: b.From, Kind: b.Kind, Mention: b.Mention, Provider: r.Provider, App: r.App, Reason: reason}
	g.record(b, "record", no("dead_letter"), reason)
	notes := append(g.drop(b), note(noteDead+l.ID, &l))
	g.dead++
	over := g.dead > maxDead
	g.mu.Unlock()
	g.save(notes)
	g.log.Warn("a push could not be delivered", "provider", r.Provider, "app", r.App, "reason", reason)
	if over {
		g.dropOldestDead()
	}
}

func (g *Gateway) dropOldestDead() {
	var oldest []store.Note
	_ = g.opt.Store.EachNote(context.Background(), noteDead, func(n store.Note) bool {
		oldest = append(oldest, gone(n.Key))
		return len(oldest) < maxDead/10
	})
	g.save(oldest)
	g.mu.Lock()
	g.dead -= len(oldest)
	g.mu.Unlock()
}

// Dead lists the dead letters, oldest first.
func (g *Gateway) Dead(ctx context.Context) ([]DeadLetter, error) {
	out := []DeadLetter{}
	var bad error
	err := g.opt.Store.EachNote(ctx, noteDead, func(n store.Note) bool {
		var l DeadLetter
		bad = json.Unmarshal(n.Value, &l)
		out = append(out, l)
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	return out, err
}

// Replay rings dead letters again, those with the ids or all; their time starts
// anew. It returns how many. Calls and what takes an alert away are left where
// they are: their time is over.
func (g *Gateway) Replay(ctx context.Context, ids []string) (int, error) {
	dead, err := g.Dead(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	var notes []store.Note
	g.mu.Lock()
	for _, l := range dead {
		if len(ids) > 0 && !slices.Contains(ids, l.ID) {
			continue
		}
		if l.Kind != Alert {
			continue // of no use any more: the call is over, the badge was set since
		}
		n++
		notes = append(notes, gone(noteDead+l.ID))
		k := slotKey{l.Device, l.Conv}
		if g.slots[k] != nil {
			continue // it is about to be rung anyway
		}
		now := g.opt.Now()
		notes = append(notes, g.put(&bell{Kind: Alert, First: l.First, Last: l.Last, Count: int(l.Last - l.First + 1), From: l.From, Mention: l.Mention, Due: now.UnixMilli(), Expires: now.Add(g.opt.TTL).UnixMilli(), key: k, place: -1}))
	}
	g.dead -= n
	g.mu.Unlock()
	err = g.opt.Store.PutNotes(ctx, notes, true)
	wake(g.wakeDue)
	return n, err
}
