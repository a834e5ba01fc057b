package pushgw

import (
	"context"
	"errors"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// errLost says that the lease is over and somebody else has the slot, or that the
// slot is gone.
var errLost = errors.New("somebody else has it")

// ring takes a slot that was taken through the rest of the pipeline. However it
// ends, the slot is changed once at the end; if it cannot be, the lease runs out
// and another worker does all of it again, under the same id.
func (a *desk) ring(ctx context.Context, t store.Task) {
	w := a.w
	h := w.hold(t)
	defer w.letGo(h)
	s, err := openSlot(t)
	if err == nil && s.Bell != nil {
		err = a.serve(ctx, h, s)
	} else if err == nil {
		err = w.settle(ctx, h, func(*slot) {}) // it waits for nothing
	}
	a.unprobe() // unless the attempt has told
	switch {
	case errors.Is(err, errLost):
		w.log.Debug("a push slot is another worker's meanwhile", "app", a.Name)
		if fn := w.opt.Events.Decided; fn != nil {
			fn("record", "lease_lost")
		}
	case err != nil:
		w.log.Warn("a bell stays with this worker until its lease is over", "app", a.Name, "error", err)
	}
}

// serve decides and rings. An error is the store's.
func (a *desk) serve(ctx context.Context, h *holding, s *slot) error {
	w, now := a.w, a.w.opt.Now()
	b := *s.Bell // as it was taken
	to, err := w.addressOf(ctx, &b)
	switch {
	case err != nil:
		return a.pass(ctx, h, &b, err)
	case to == nil:
		return w.end(ctx, h, &b, "send", no("no_address"), "")
	case w.apps[to.App] == nil:
		return w.bury(ctx, h, &b, to, "no_such_app")
	case to.App != a.Name: // it was registered for another app since
		return w.settle(ctx, h, func(s *slot) { s.task.Queue = queueOf(to.App) })
	case now.UnixMilli() > b.Expires && b.Kind == Alert: // it waited behind a circuit or a pause: an operator can replay it
		return w.bury(ctx, h, &b, to, "expired")
	case now.UnixMilli() > b.Expires:
		return w.end(ctx, h, &b, "send", no("expired"), "")
	}
	set, err := w.settings(ctx, b.key.dev.User)
	if err != nil {
		return a.pass(ctx, h, &b, err)
	}
	snap := b
	sc, d, err := w.looker.scene(ctx, &snap, to.Address, set)
	switch {
	case err != nil:
		return a.pass(ctx, h, &b, err)
	case !d.Go:
		return w.unneeded(ctx, h, &b, d)
	}
	if d := quietFor(&b, set, now); !d.Go {
		return w.end(ctx, h, &b, "quiet", d, "")
	}
	wait, turn, err := w.takeTurn(ctx, &b, to)
	switch {
	case errors.Is(err, errLost): // registered anew, or logged out: it is looked at again
		return w.settle(ctx, h, func(*slot) {})
	case err != nil:
		return a.pass(ctx, h, &b, err)
	case !turn: // a clear: the badge will be right with the next push
		return w.end(ctx, h, &b, "send", no("silent_budget"), "")
	case wait > 0:
		return w.later(ctx, h, &b, now.Add(wait), func(b *bell) { b.Turn = true })
	}
	// The last look before it rings: all that went before took its time.
	if d, _, err = w.looker.seen(ctx, &snap); err != nil {
		return a.pass(ctx, h, &b, err)
	}
	if !d.Go {
		return w.unneeded(ctx, h, &b, d)
	}
	if w.opt.Now().UnixMilli() >= h.until.Load() { // it may be another's by now
		return errLost
	}
	return a.send(ctx, h, &b, to, sc)
}

// takeTurn takes the device's next turn in its registration, which shows at the
// same time that this is still the device's address; else errLost.
func (w *Worker) takeTurn(ctx context.Context, b *bell, to *address) (wait time.Duration, ok bool, err error) {
	if b.Kind == Call || b.Turn { // it needs none, or has it
		now, err := w.addressOf(ctx, b)
		if err == nil && !to.same(now) {
			err = errLost
		}
		return 0, true, err
	}
	swapped, err := w.swap(ctx, to, func(r *Registration) { wait, ok = r.pace(b.Kind, w.opt.Now()) })
	if err == nil && !swapped {
		err = errLost
	}
	return wait, ok, err
}

// pass puts a bell back because of the store, which may be away for that too.
func (a *desk) pass(ctx context.Context, h *holding, b *bell, why error) error {
	a.log.Warn("a bell waits for the store", "app", a.Name, "error", why)
	return a.w.later(ctx, h, b, a.w.opt.Now().Add(time.Second), nil)
}

// send makes one attempt and acts on the answer.
func (a *desk) send(ctx context.Context, h *holding, b *bell, to *address, sc scene) error {
	w := a.w
	res := a.attempt(ctx, render(sc), w.opt.Events)
	a.heard(res)
	ctx = context.WithoutCancel(ctx) // what came of it is written down, at the end too
	now := w.opt.Now()
	v := judge(sc.bell, to.Registered, res, now)
	if v.fate == forgotten {
		a.warnOf(res)
		gone, err := w.forget(ctx, to, res.Reason)
		if err != nil {
			return a.pass(ctx, h, b, err)
		}
		if !gone { // the device has registered another one meanwhile: that is rung
			return w.settle(ctx, h, func(*slot) {})
		}
	}
	switch v.fate {
	case rung:
		return w.rung(ctx, h, b, to, sc, res)
	case again:
		w.record(b, "send", no(v.reason), v.because)
		return w.later(ctx, h, b, v.at, func(b *bell) { b.Tries, b.Small, b.Turn = v.tries, v.small, false })
	case buried:
		return w.bury(ctx, h, b, to, v.because)
	default:
		return w.end(ctx, h, b, "send", no(v.reason), v.because)
	}
}

// forget drops a dead address. It reports false, and does nothing, if it is no
// longer what the device has registered.
func (w *Worker) forget(ctx context.Context, to *address, reason string) (bool, error) {
	if err := w.tell(ctx, to, ""); err != nil {
		return false, err
	}
	gone, err := w.swap(ctx, to, nil)
	if gone {
		w.log.Info("push address dropped", "device", to.Device, "provider", to.Provider, "app", to.App, "reason", reason)
	}
	return gone, err
}

// tell has the gateway learn something about a registration: before it is so, as
// what it hears twice does no harm.
func (w *Worker) tell(ctx context.Context, to *address, environment string) error {
	name := noteLearned + to.key()[len(noteAt):]
	return w.opt.Store.PutNotes(ctx, []store.Note{note(name, learned{Of: to.mark(), Environment: environment})}, true)
}

// rung ends a bell, or lets it go on for what came meanwhile. What was read while
// it rang is taken away again: who reads either finds it shown, or is seen here.
func (w *Worker) rung(ctx context.Context, h *holding, b *bell, to *address, sc scene, res Result) error {
	if fn := w.opt.Events.Rung; fn != nil && sc.entry != nil {
		fn(to.Provider, to.App, w.opt.Now().Sub(time.UnixMilli(sc.entry.TS)))
	}
	w.record(b, "record", yes("rung"), res.Reason)
	if res.Environment != "" && res.Environment != to.Environment {
		err := w.tell(ctx, to, res.Environment)
		if err == nil {
			_, err = w.swap(ctx, to, func(r *Registration) { r.Environment = res.Environment })
		}
		if err != nil { // it is found out again
			w.log.Warn("where an address is from is not remembered", "app", to.App, "error", err)
		}
	}
	err := w.settle(ctx, h, func(s *slot) {
		switch b.Kind {
		case Alert:
			s.Shown = max(s.Shown, b.Last)
		case Clear:
			s.Shown = 0
		}
		s.end(b, w.opt.Now())
	})
	if err != nil || b.Kind != Alert {
		return err
	}
	if d, read, err := w.looker.seen(ctx, b); err != nil {
		w.notCleared(err)
	} else if d.Reason == "read" {
		w.clear(ctx, b.key, read)
	}
	return nil
}

// unneeded ends a bell that has been seen without it. If an older one is on the
// screen, it was not taken away by the reading, because the slot was taken.
func (w *Worker) unneeded(ctx context.Context, h *holding, b *bell, d Decision) error {
	if err := w.end(ctx, h, b, "grace", d, ""); err != nil || d.Reason != "read" {
		return err
	}
	w.clear(ctx, b.key, b.Last)
	return nil
}

// clear takes off the screen what was read.
func (w *Worker) clear(ctx context.Context, k slotKey, read im.Seq) {
	err := w.shared.alter(ctx, []slotKey{k}, func(s *slot, held bool) bool {
		changed, _ := s.read(read, false, held, w.opt.Now())
		return changed
	})
	if err != nil {
		w.notCleared(err)
	}
}

func (w *Worker) notCleared(err error) {
	w.log.Warn("what was read may stay on a screen until the next push", "error", err)
}

// later puts a bell back; mark changes what waits now, if it is still that.
func (w *Worker) later(ctx context.Context, h *holding, b *bell, at time.Time, mark func(*bell)) error {
	return w.settle(ctx, h, func(s *slot) {
		if s.Bell == nil || s.Bell.Kind != b.Kind {
			return
		}
		s.Bell.Due = at.UnixMilli()
		if mark != nil {
			mark(s.Bell)
		}
	})
}

// end ends a bell that does not ring.
func (w *Worker) end(ctx context.Context, h *holding, b *bell, step string, d Decision, detail string) error {
	w.record(b, step, d, detail)
	return w.settle(ctx, h, func(s *slot) { s.end(b, w.opt.Now()) })
}

// buryTrim is after how many letters a worker looks whether they are too many.
const buryTrim = 1000

// bury puts a bell into the list of those that could not be rung.
func (w *Worker) bury(ctx context.Context, h *holding, b *bell, to *address, reason string) error {
	l := b.letter(&to.Registration, reason, w.opt.Now())
	if err := w.opt.Store.PutNotes(ctx, []store.Note{note(noteDead+l.ID, &l)}, true); err != nil {
		return err
	}
	w.log.Warn("a push could not be delivered", "provider", to.Provider, "app", to.App, "reason", reason)
	err := w.end(ctx, h, b, "record", no("dead_letter"), reason)
	if w.buried.Add(1)%buryTrim == 0 {
		_, trim := trimDead(ctx, w.opt.Store)
		err = errors.Join(err, trim)
	}
	return err
}

// settle changes the slot and gives it back. fn sees the slot as it is then: the
// gateway may have added to it. If the store is away it is tried again for as
// long as the slot is ours.
func (w *Worker) settle(ctx context.Context, h *holding, fn func(s *slot)) error {
	ended := ctx.Done()
	ctx = context.WithoutCancel(ctx) // a worker that ends leaves nothing to its leases
	t := h.task
	for {
		s, err := openSlot(t)
		if err != nil {
			return err
		}
		fn(s)
		done, err := w.opt.Store.PutTasks(ctx, []store.Task{s.put()})
		if err == nil && done[0] {
			return nil
		}
		if err == nil {
			var now []store.Task
			if now, err = w.opt.Store.TasksOf(ctx, []string{t.Key}); err == nil {
				if now[0].Owner != h.task.Owner {
					return errLost
				}
				t = now[0]
				continue
			}
		}
		if w.opt.Now().UnixMilli() >= h.until.Load() || !im.Is(err, im.Unavailable) {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ended:
			return err
		}
	}
}
