package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/parley-im/parley/store"
)

// app is the queue and the circuit of one app: what it does and suffers does not
// touch the others.
type app struct {
	App
	circuit // whose mu guards the queue too
	g       *Gateway

	cond   *sync.Cond
	queue  []*bell
	closed bool
}

// attemptTime bounds one attempt.
const attemptTime = 30 * time.Second

func newApp(g *Gateway, a App) *app {
	if a.Workers <= 0 {
		a.Workers = 64
	}
	x := &app{App: a, circuit: newCircuit(a, g.opt.Now, g.log, g.opt.Events), g: g}
	x.cond = sync.NewCond(&x.circuit.mu)
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
		if len(a.queue) > 0 {
			ok, _, wait := a.admit()
			if ok {
				b := a.queue[0]
				a.queue[0] = nil
				a.queue = a.queue[1:]
				return b
			}
			if wait > 0 {
				time.AfterFunc(wait, a.cond.Signal)
			}
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

// Reloaded says that the app's credentials have changed: they are tried at once.
func (g *Gateway) Reloaded(name string) {
	if a := g.apps[name]; a != nil {
		a.retry()
		a.cond.Broadcast()
	}
}

// serve takes a bell through the rest of the pipeline.
func (a *app) serve(ctx context.Context, b *bell) {
	if r, s, ok := a.prepare(ctx, b); ok {
		a.send(ctx, b, r, s)
	} else {
		a.unprobe() // nothing is found out about the credentials
	}
}

// prepare decides whether the bell rings now, and what is shown where. If not, it
// has ended the bell or put it back.
func (a *app) prepare(ctx context.Context, b *bell) (r *Registration, s scene, ok bool) {
	g := a.g
	now := g.opt.Now()
	g.mu.Lock()
	r = g.registration(b)
	snap := *b // newer messages may change the bell meanwhile
	var wait time.Duration
	turn := true
	if r != nil && !b.off {
		wait, turn = b.turn(r, now)
	}
	set := g.settings[b.key.dev.User]
	g.mu.Unlock()
	switch {
	case snap.off:
		return r, s, false
	case r == nil:
		g.refuse(b, b, "send", no("no_address"), "")
		return r, s, false
	case now.UnixMilli() > snap.Expires:
		if b.Kind == Alert { // it waited behind a circuit or a pause: an operator can replay it
			g.bury(b, &snap, r, "expired")
			return r, s, false
		}
		g.refuse(b, &snap, "send", no("expired"), "")
		return r, s, false
	case !turn: // a clear: the badge will be right with the next push
		g.refuse(b, &snap, "send", no("silent_budget"), "")
		return r, s, false
	case wait > 0:
		g.later(b, now.Add(wait))
		return r, s, false
	}
	s, d, err := g.looker.scene(ctx, &snap, r.Address, set)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			g.log.Warn("a bell waits for the store", "error", err)
		}
		g.later(b, now.Add(time.Second))
		return r, s, false
	case !d.Go:
		g.refuse(b, &snap, "grace", d, "")
		return r, s, false
	}
	if d := quietFor(&snap, set, now); !d.Go {
		g.refuse(b, &snap, "quiet", d, "")
		return r, s, false
	}
	// The last look before it rings: all that went before took its time.
	g.mu.Lock()
	off, to := b.off, g.registration(b)
	g.mu.Unlock()
	switch {
	case off:
		return r, s, false
	case to == nil || heldBy(to.Address) != heldBy(r.Address): // its phone may be in other hands
		g.later(b, g.opt.Now())
		return r, s, false
	}
	return r, s, true
}

// turn is how long the bell has to wait for its device's pace; ok is false if it
// is not rung for that. A turn that was taken is not taken again.
func (b *bell) turn(r *Registration, now time.Time) (wait time.Duration, ok bool) {
	if b.Turn {
		b.Turn = false
		return 0, true
	}
	wait, ok = r.pace(b.Kind, now)
	b.Turn = wait > 0
	return wait, ok
}

// quietFor says whether the hour lets a bell ring.
func quietFor(b *bell, set *Settings, now time.Time) Decision {
	if b.Kind != Alert || set == nil {
		return yes("no_quiet_hours")
	}
	return quiet(set.Quiet, b.Mention, now)
}

// send makes one attempt and acts on the answer.
func (a *app) send(ctx context.Context, b *bell, r *Registration, s scene) {
	g := a.g
	res := a.attempt(context.WithoutCancel(ctx), render(s), g.opt.Events) // one that is under way is ended
	if a.heard(res) {
		a.cond.Broadcast()
	}
	now := g.opt.Now()
	switch v := judge(s.bell, r.Registered, res, now); v.fate {
	case rung:
		g.sent(b, r, s, res, now)
	case again:
		g.mu.Lock()
		b.Tries, b.Small = v.tries, v.small
		g.record(b, "send", no(v.reason), v.because)
		g.mu.Unlock()
		g.later(b, v.at)
	case forgotten:
		a.warnOf(res)
		if g.forget(r, res.Reason) {
			g.refuse(b, b, "send", no(v.reason), v.because)
		} else { // the device has registered another one meanwhile: that is rung
			g.later(b, now)
		}
	case dropped:
		g.refuse(b, s.bell, "send", no(v.reason), v.because)
	case buried:
		g.bury(b, s.bell, r, v.because)
	}
}

// attempt sends once.
func (a *App) attempt(ctx context.Context, p *Push, ev Events) Result {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	begun := time.Now()
	res := a.Sender.Send(ctx, p)
	if fn := ev.Sent; fn != nil {
		fn(a.Provider, a.Name, outcomeName(res.Outcome, res.Reason), time.Since(begun))
	}
	return res
}

func (c *circuit) warnOf(res Result) {
	if res.Outcome == Misplaced {
		c.log.Warn("a push address belongs to another app: it is dropped; many of these mean a wrong configuration", "provider", c.of, "app", c.app, "reason", res.Reason)
	}
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
	g.isFrom(r, res.Environment)
	var notes []store.Note
	g.mu.Lock()
	g.record(s.bell, "record", yes("rung"), res.Reason)
	switch b.Kind {
	case Alert:
		g.shown[b.key] = s.bell.Last
		notes = append(notes, note(noteShown+b.key.name(), s.bell.Last))
	case Clear:
		delete(g.shown, b.key)
		notes = append(notes, gone(noteShown+b.key.name()))
	}
	notes = append(notes, g.over(b, s.bell)...)
	g.mu.Unlock()
	g.save(notes)
}

// rest is what of a bell is left when it has rung as it was.
func (b *bell) rest(was *bell) {
	b.First, b.Count, b.Tries, b.Small = was.Last+1, int(b.Last-was.Last), 0, 0
}

// letter is the bell as one that could not be rung.
func (b *bell) letter(r *Registration, reason string, now time.Time) DeadLetter {
	return DeadLetter{ID: fmt.Sprintf("%013d-%08x", now.UnixMilli(), rand.Uint32()), At: now.UnixMilli(), Device: b.key.dev, Conv: b.key.conv,
		First: b.First, Last: b.Last, From: b.From, Kind: b.Kind, Mention: b.Mention, Provider: r.Provider, App: r.App, Reason: reason}
}

// maxDead is how many dead letters are kept; the oldest go first.
const maxDead = 10_000

// bury puts a bell as it was into the list of those that could not be rung.
func (g *Gateway) bury(b, was *bell, r *Registration, reason string) {
	now := g.opt.Now()
	g.mu.Lock()
	l := was.letter(r, reason, now)
	g.record(was, "record", no("dead_letter"), reason)
	notes := append(g.over(b, was), note(noteDead+l.ID, &l))
	g.dead++
	over := g.dead > maxDead
	g.mu.Unlock()
	g.save(notes)
	g.log.Warn("a push could not be delivered", "provider", r.Provider, "app", r.App, "reason", reason)
	if over {
		left, err := trimDead(context.Background(), g.opt.Store)
		if err != nil {
			g.log.Warn("there are more dead letters than are to be kept", "error", err)
			return
		}
		g.mu.Lock()
		g.dead = left
		g.mu.Unlock()
	}
}

// trimDead drops the oldest letters if there are too many, and some more so that
// it need not be done at once again. It returns how many are left.
func trimDead(ctx context.Context, st store.Notes) (left int, err error) {
	var all []store.Note
	if err := st.EachNote(ctx, noteDead, func(n store.Note) bool {
		all = append(all, gone(n.Key))
		return true
	}); err != nil || len(all) <= maxDead {
		return len(all), err
	}
	drop := len(all) - maxDead*9/10
	return len(all) - drop, st.PutNotes(ctx, all[:drop], false)
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
	var again []DeadLetter
	var notes []store.Note
	for _, l := range dead {
		// Other kinds are of no use any more: the call is over, the badge was set since.
		if l.Kind == Alert && (len(ids) == 0 || slices.Contains(ids, l.ID)) {
			again = append(again, l)
			notes = append(notes, gone(noteDead+l.ID))
		}
	}
	if g.opt.Workers {
		if err := g.replayShared(ctx, again); err != nil {
			return 0, err
		}
		return len(again), g.opt.Store.PutNotes(ctx, notes, true)
	}
	g.mu.Lock()
	for _, l := range again {
		if b := l.bell(g.opt.Now(), g.opt.TTL); g.slots[b.key] == nil { // else it is about to be rung anyway
			notes = append(notes, g.put(b))
		}
	}
	g.dead -= len(again)
	g.mu.Unlock()
	err = g.opt.Store.PutNotes(ctx, notes, true)
	wake(g.wakeDue)
	return len(again), err
}

// bell is what the letter was, with its time begun anew.
func (l *DeadLetter) bell(now time.Time, ttl time.Duration) *bell {
	return &bell{Kind: Alert, First: l.First, Last: l.Last, Count: int(l.Last - l.First + 1), From: l.From, Mention: l.Mention,
		Due: now.UnixMilli(), Expires: now.Add(ttl).UnixMilli(), key: slotKey{l.Device, l.Conv}, place: -1}
}
