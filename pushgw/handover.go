package pushgw

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// What the gateway does for workers beside placing bells: at a start it takes
// over what waits in the other way of ringing, and now and then it hears what
// they found out.

// handover moves bells to where they are rung from now on: from notes to tasks,
// or back.
func (g *Gateway) handover(ctx context.Context) error {
	if !g.opt.Workers {
		return g.fromTasks(ctx)
	}
	return g.toTasks(ctx)
}

// toTasks puts what was loaded from notes into tasks. A crash in between does it
// again, to no effect.
func (g *Gateway) toTasks(ctx context.Context) error {
	var keys []slotKey
	var notes []store.Note
	for k := range g.slots {
		keys = append(keys, k)
		notes = append(notes, gone(noteBell+k.name()))
	}
	for k := range g.shown {
		if g.slots[k] == nil {
			keys = append(keys, k)
		}
		notes = append(notes, gone(noteShown+k.name()))
	}
	for from := 0; from < len(keys); from += 1000 {
		err := g.shared.alter(ctx, keys[from:min(from+1000, len(keys))], func(s *slot, _ bool) bool {
			s.Shown = max(s.Shown, g.shown[s.key])
			if s.Bell == nil {
				s.Bell, s.task.Queue = g.slots[s.key], g.queueFor(s.key, Alert)
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	clear(g.slots)
	clear(g.shown)
	g.due = nil
	if len(notes) == 0 {
		return nil
	}
	return g.opt.Store.PutNotes(ctx, notes, true)
}

// queueFor is where a bell waits: with the app of its device, else with any: a
// worker finds out that there is no address. Caller holds mu, or nobody else is
// there.
func (g *Gateway) queueFor(k slotKey, kind Kind) string {
	if r := g.registration(&bell{Kind: kind, key: k}); r != nil && g.apps[r.App] != nil {
		return queueOf(r.App)
	}
	for name := range g.apps {
		return queueOf(name)
	}
	return taskRoom
}

// requeue moves bells of apps that are no more in the configuration, which nobody
// would take.
func (g *Gateway) requeue(ctx context.Context) error {
	var lost []slotKey
	err := g.opt.Store.EachTask(ctx, taskRoom, func(t store.Task) bool {
		k, ok := parseSlotKey(strings.TrimPrefix(t.Key, taskRoom))
		if ok && g.apps[strings.TrimPrefix(t.Queue, taskRoom)] == nil {
			lost = append(lost, k)
		}
		return true
	})
	if err != nil {
		return err
	}
	return g.shared.alter(ctx, lost, func(s *slot, _ bool) bool {
		if s.task.Ver == 0 || g.apps[strings.TrimPrefix(s.task.Queue, taskRoom)] != nil {
			return false
		}
		s.task.Queue = g.queueFor(s.key, kindOf(s.Bell))
		return true
	})
}

func kindOf(b *bell) Kind {
	if b == nil {
		return Alert
	}
	return b.Kind
}

// fromTasks takes what workers would have rung into memory and notes. What a
// worker still has may be rung by both, under one id.
func (g *Gateway) fromTasks(ctx context.Context) error {
	var ts []store.Task
	var notes []store.Note
	var bad error
	err := g.opt.Store.EachTask(ctx, taskRoom, func(t store.Task) bool {
		var s *slot
		if s, bad = openSlot(t); bad != nil {
			return false
		}
		if s.Shown > g.shown[s.key] {
			g.shown[s.key] = s.Shown
			notes = append(notes, note(noteShown+s.key.name(), s.Shown))
		}
		if s.Bell != nil && g.slots[s.key] == nil && s.Bell.Kind != Call {
			notes = append(notes, g.put(s.Bell))
		}
		t.Value = nil
		ts = append(ts, t)
		return true
	})
	if err == nil {
		err = bad
	}
	if err != nil || len(ts) == 0 {
		return err
	}
	if err := g.opt.Store.PutNotes(ctx, notes, true); err != nil {
		return err
	}
	_, err = g.opt.Store.PutTasks(ctx, ts)
	return err
}

// learned is what a worker found out about an address: that it is dead, or where
// APNs knows it. The gateway, which has addresses in memory, hears of it here.
type learned struct {
	Of          string // mark of the registration that it is about
	Environment string `json:",omitempty"` // "": it is dead
}

// mark tells registrations of one device apart, without the token.
func (r *Registration) mark() string {
	h := sha256.Sum256(fmt.Appendf(nil, "registration\x00%d\x00%s", r.Registered, heldBy(r.Address)))
	return base64.RawURLEncoding.EncodeToString(h[:12])
}

// learn takes over what workers have found out.
func (g *Gateway) learn(ctx context.Context) error {
	var heard []store.Note
	err := g.opt.Store.EachNote(ctx, noteLearned, func(n store.Note) bool {
		heard = append(heard, n)
		return true
	})
	for _, n := range heard {
		var l learned
		if json.Unmarshal(n.Value, &l) == nil {
			g.apply(strings.TrimPrefix(n.Key, noteLearned), l)
		}
		if _, err := g.opt.Store.SwapNote(ctx, n.Key, n.Value, nil); err != nil { // not what was learned since
			return err
		}
	}
	return err
}

func (g *Gateway) apply(name string, l learned) {
	user, _, _ := strings.Cut(name, "/")
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.regs[im.UserID(user)] {
		if r.key() != noteAt+name || r.mark() != l.Of {
			continue // another one was registered since
		}
		g.unkeep(r)
		if l.Environment != "" {
			known := *r
			known.Environment = l.Environment
			g.keep(&known)
		}
		return
	}
}

// count counts what waits for workers.
func (g *Gateway) count(ctx context.Context) error {
	total := 0
	for name := range g.apps {
		n, err := g.opt.Store.CountTasks(ctx, queueOf(name), store.Never)
		if err != nil {
			return err
		}
		total += n
	}
	g.waiting.Store(int64(total))
	return nil
}

// heed is what upkeep does where workers ring.
func (g *Gateway) heed(ctx context.Context) {
	err := g.learn(ctx)
	if err == nil {
		err = g.count(ctx)
	}
	if err == nil && !g.requeued { // all that there are: once
		err = g.requeue(ctx)
		g.requeued = err == nil
	}
	if err != nil && ctx.Err() == nil {
		g.log.Warn("what push workers found out is not heard, will try again", "error", err)
	}
}

// forgetPages drops what workers that are no more wrote down for explanations.
func (g *Gateway) forgetPages(ctx context.Context) error {
	old := g.opt.Now().Add(-24 * time.Hour).UnixMilli()
	var notes []store.Note
	err := g.opt.Store.EachNote(ctx, notePage, func(n store.Note) bool {
		var p page
		if json.Unmarshal(n.Value, &p) != nil || p.At < old {
			notes = append(notes, gone(n.Key))
		}
		return true
	})
	if err != nil || len(notes) == 0 {
		return err
	}
	return g.opt.Store.PutNotes(ctx, notes, false)
}
