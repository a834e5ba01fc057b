package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Where workers ring, the slot of a device and a conversation is a task of the
// store, due when its bell is. The gateway and the workers change it by comparing
// its version, and read it again when somebody was faster:
//
//	gateway   an entry joins the bell that waits, or makes one; while a worker has
//	          the slot, its lease stays as it is
//	          a reading takes the bell away, unless a worker has it, and makes a clear
//	          where something was shown
//	worker    takes what is due, for the time of its lease
//	          puts it back for later, moves it on, or ends the bell: what came in the
//	          meantime stays

// taskRoom begins the keys and queues of tasks.
const taskRoom = "push/"

func queueOf(app string) string      { return taskRoom + app }
func (k slotKey) task() string       { return taskRoom + k.name() }
func ofDevice(k im.DeviceKey) string { return taskRoom + slotKey{dev: k}.name() }

// slot is a task's value, and the task as it was read.
type slot struct {
	Bell  *bell  `json:",omitempty"` // nil: nothing waits
	Shown im.Seq `json:",omitempty"` // the last message that was really shown and not taken away again

	key  slotKey
	task store.Task
}

func openSlot(t store.Task) (*slot, error) {
	s := &slot{task: t}
	var ok bool
	if s.key, ok = parseSlotKey(strings.TrimPrefix(t.Key, taskRoom)); !ok {
		return nil, fmt.Errorf("task %s: not a device and a conversation", t.Key)
	}
	if t.Ver != 0 {
		if err := json.Unmarshal(t.Value, s); err != nil {
			return nil, fmt.Errorf("task %s: %w", t.Key, err)
		}
	}
	if s.Bell != nil {
		s.Bell.key, s.Bell.place = s.key, -1
	}
	return s, nil
}

// held reports whether a worker has it.
func (s *slot) held(now int64) bool { return s.task.Owner != "" && s.task.At > now }

// put is the task that makes the row what s is now, for nobody: due with its bell.
func (s *slot) put() store.Task {
	t := s.task
	t.Owner, t.At = "", store.Never
	if s.Bell != nil {
		t.At = s.Bell.Due
	}
	return s.value(t)
}

// hold is put, but whoever has the slot keeps it.
func (s *slot) hold() store.Task { return s.value(s.task) }

func (s *slot) value(t store.Task) store.Task {
	if t.Value = nil; s.Bell != nil || s.Shown != 0 {
		t.Value = note("", s).Value
	}
	return t
}

// join adds an entry to the slot and reports whether that changed it: it may have
// been looked at before.
func (s *slot) join(w *wish) (changed, replaces bool) {
	if w.entry.Seq <= s.Shown {
		return false, false
	}
	if b := s.Bell; b != nil && b.Kind == Alert {
		return b.join(w), true
	}
	s.Bell = w.bell() // a clear gives way: the push that follows sets the badge too
	s.task.Queue = queueOf(w.app)
	return true, false
}

// read takes away what a reading up to seq made needless, and returns the
// decision about a bell that is cancelled. here says that it was read on the
// device itself.
func (s *slot) read(seq im.Seq, here, held bool, now time.Time) (changed bool, cancelled *bell) {
	if b := s.Bell; b != nil && b.Kind == Alert && b.Last <= seq && !held { // who has it looks before ringing, and after
		s.Bell, cancelled, changed = nil, b, true
	}
	if s.Shown == 0 || s.Shown > seq || s.Bell != nil {
		return changed, cancelled
	}
	if here { // who reads it sees it
		s.Shown = 0
	} else {
		s.Bell = newClear(s.key, seq, now)
	}
	return true, cancelled
}

func newClear(k slotKey, seq im.Seq, now time.Time) *bell {
	return &bell{Kind: Clear, Last: seq, Due: now.Add(clearDelay).UnixMilli(), Expires: now.Add(clearTTL).UnixMilli(), key: k, place: -1}
}

// over reports whether the bell is done when was has rung: nothing came meanwhile.
func (s *slot) over(was *bell) bool {
	switch b := s.Bell; {
	case b == nil:
		return true
	case b.Kind != was.Kind:
		return false
	case b.Kind == Call:
		return b.Expires <= was.Expires
	default:
		return b.Last <= was.Last
	}
}

// end takes the bell away as it was when it ended, and leaves what came since, due
// now.
func (s *slot) end(was *bell, now time.Time) {
	if s.over(was) {
		s.Bell = nil
	} else if s.Bell.Kind == was.Kind {
		if s.Bell.Kind == Alert {
			s.Bell.rest(was)
		}
		s.Bell.Due, s.Bell.Turn = now.UnixMilli(), false
	}
}

// shared changes slots that workers change too.
type shared struct {
	tasks store.Tasks
	now   func() time.Time
}

// alter changes the slots of keys, which differ. fn gets each as it is and says
// whether it has changed it, again if somebody else was faster. What a worker has
// it keeps.
func (x shared) alter(ctx context.Context, keys []slotKey, fn func(s *slot, held bool) bool) error {
	for wait := time.Millisecond; len(keys) > 0; wait = min(2*wait, 100*time.Millisecond) {
		names := make([]string, len(keys))
		for i, k := range keys {
			names[i] = k.task()
		}
		ts, err := x.tasks.TasksOf(ctx, names)
		if err != nil {
			return err
		}
		var change []store.Task
		var of []slotKey
		now := x.now().UnixMilli()
		for i := range ts {
			s, err := openSlot(ts[i])
			if err != nil {
				return err
			}
			held := s.held(now)
			if !fn(s, held) {
				continue
			}
			t := s.put()
			if held {
				t = s.hold()
			}
			if t.Ver != 0 || t.Value != nil {
				change, of = append(change, t), append(of, keys[i])
			}
		}
		if len(change) == 0 {
			return nil
		}
		done, err := x.tasks.PutTasks(ctx, change)
		if err != nil {
			return err
		}
		keys = keys[:0:0]
		for i, ok := range done {
			if !ok {
				keys = append(keys, of[i])
			}
		}
		if len(keys) > 0 {
			select {
			case <-time.After(rand.N(wait)):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// place has devices rung: wishes of one slot in the order of their entries.
func (g *Gateway) place(ctx context.Context, ws []*wish) error {
	of := map[slotKey][]*wish{}
	var keys []slotKey
	for _, w := range ws {
		if of[w.key] == nil {
			keys = append(keys, w.key)
		}
		of[w.key] = append(of[w.key], w)
	}
	was := map[*wish]string{} // what it did, in the try that counted
	err := g.shared.alter(ctx, keys, func(s *slot, _ bool) (changed bool) {
		for _, w := range of[s.key] {
			delete(was, w)
			switch c, replaces := s.join(w); {
			case c && replaces:
				was[w], changed = "collapse", true
			case c:
				was[w], changed = "grace", true
			}
		}
		return changed
	})
	if err != nil {
		return err
	}
	g.mu.Lock()
	for _, w := range ws {
		if step := was[w]; step != "" {
			g.recordWish(w, step)
		}
	}
	g.mu.Unlock()
	return nil
}

// chores is what the gateway does for a reading or a call where that takes a look
// into the store. Full: it is dropped and counted; what was read does not ring
// all the same, as workers look, but stays on the screen until the next push.
const (
	chores     = 4096
	choreHands = 4
	choreTime  = 5 * time.Second
	choreEnd   = time.Second // for all that are left when the gateway ends
)

func (g *Gateway) do(what string, fn func(ctx context.Context) error) {
	select {
	case g.chores <- chore{what, fn}:
	default:
		if fn := g.opt.Events.Decided; fn != nil {
			fn(what, "overrun")
		}
	}
}

type chore struct {
	what string
	fn   func(ctx context.Context) error
}

func (g *Gateway) choresLoop(ctx context.Context) {
	work := func(ctx context.Context, c chore) {
		ctx, cancel := context.WithTimeout(ctx, choreTime)
		defer cancel()
		if err := c.fn(ctx); err != nil {
			g.log.Warn("the push slots do not hear of it", "what", c.what, "error", err)
		}
	}
	for ctx.Err() == nil {
		select {
		case c := <-g.chores:
			work(context.WithoutCancel(ctx), c)
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), choreEnd)
	defer cancel()
	for last.Err() == nil { // what was handed over before the end
		select {
		case c := <-g.chores:
			work(last, c)
		default:
			return
		}
	}
}

// readShared is Read where workers ring.
func (g *Gateway) readShared(conv im.ConvID, u im.UserID, device im.DeviceID, seq im.Seq) {
	g.mu.Lock()
	g.touch(u)
	var keys []slotKey
	for _, r := range g.regs[u] {
		if r.Kind != KindVoIP {
			keys = append(keys, slotKey{r.Device, conv})
		}
	}
	g.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	g.do("read", func(ctx context.Context) error {
		off := map[slotKey]*bell{}
		err := g.shared.alter(ctx, keys, func(s *slot, held bool) (changed bool) {
			changed, off[s.key] = s.read(seq, s.key.dev.Device == device, held, g.opt.Now())
			return changed
		})
		for _, b := range off {
			if b != nil && err == nil {
				g.record(b, "grace", no("read"), "")
			}
		}
		return err
	})
}

// callShared puts calls where workers ring.
func (g *Gateway) callShared(bs map[slotKey]*bell, apps map[slotKey]string) {
	if len(bs) == 0 {
		return
	}
	g.do("call", func(ctx context.Context) error {
		keys := make([]slotKey, 0, len(bs))
		for k := range bs {
			keys = append(keys, k)
		}
		return g.shared.alter(ctx, keys, func(s *slot, _ bool) bool {
			b := *bs[s.key]
			s.Bell, s.task.Queue = &b, queueOf(apps[s.key])
			return true
		})
	})
}

// replayShared puts letters where workers ring.
func (g *Gateway) replayShared(ctx context.Context, ls []DeadLetter) error {
	bells := map[slotKey]*bell{}
	var keys []slotKey
	g.mu.Lock()
	for _, l := range ls {
		b := l.bell(g.opt.Now(), g.opt.TTL)
		if bells[b.key] == nil {
			keys = append(keys, b.key)
		}
		bells[b.key] = b // the latest of several
	}
	queues := map[slotKey]string{}
	for k, b := range bells {
		queues[k] = g.queueFor(k, b.Kind)
	}
	g.mu.Unlock()
	return g.shared.alter(ctx, keys, func(s *slot, _ bool) bool {
		if s.Bell != nil && s.Bell.Kind == Alert {
			return false // it is about to be rung anyway
		}
		b := *bells[s.key]
		s.Bell, s.task.Queue = &b, queues[s.key]
		return true
	})
}

// dropShared takes away all slots of devices.
func (g *Gateway) dropShared(ctx context.Context, ks []im.DeviceKey, reason string) error {
	for _, k := range ks {
		keys, err := g.slotsOf(ctx, ofDevice(k))
		if err != nil {
			return err
		}
		off := map[slotKey]*bell{}
		err = g.shared.alter(ctx, keys, func(s *slot, _ bool) bool {
			off[s.key], s.Bell, s.Shown = s.Bell, nil, 0
			return s.task.Ver != 0
		})
		if err != nil {
			return err
		}
		for _, b := range off {
			if b != nil {
				g.record(b, "send", no(reason), "")
			}
		}
	}
	return nil
}

func (g *Gateway) slotsOf(ctx context.Context, prefix string) (keys []slotKey, err error) {
	err = g.opt.Store.EachTask(ctx, prefix, func(t store.Task) bool {
		if k, ok := parseSlotKey(strings.TrimPrefix(t.Key, taskRoom)); ok {
			keys = append(keys, k)
		}
		return true
	})
	return keys, err
}
