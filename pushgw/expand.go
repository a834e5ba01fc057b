package pushgw

import (
	"context"
	"encoding/json"
	"hash/maphash"
	"math"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Bells are derived from the log: for each conversation there is a mark, the seq
// up to which bells are written down. Bells and mark are written together, in
// this order, so that a crash makes the next run look at entries again but never
// pass over one. A bell that is written twice is the same bell.

// expanders is how many conversations are looked at at once.
const expanders = 4

// expandChunk is how many entries of a conversation are read at once.
const expandChunk = 256

// look has a conversation looked at for new entries, the oldest of them from the
// time from, Unix ms.
func (g *Gateway) look(conv im.ConvID, from int64) {
	i := maphash.String(expandSeed, string(conv)) % expanders
	g.mu.Lock()
	old, dirty := g.isDirty[conv]
	first := !dirty
	if first {
		g.dirty[i] = append(g.dirty[i], conv)
	} else {
		from = min(from, old)
	}
	g.isDirty[conv] = from
	g.mu.Unlock()
	if first {
		wake(g.wakeWork[i])
	}
}

var expandSeed = maphash.MakeSeed()

func (g *Gateway) expandLoop(ctx context.Context, i int) {
	for {
		g.mu.Lock()
		var conv im.ConvID
		from := int64(math.MaxInt64)
		if len(g.dirty[i]) > 0 {
			conv = g.dirty[i][0]
			from = g.isDirty[conv]
			g.dirty[i] = g.dirty[i][1:]
			delete(g.isDirty, conv) // an entry that comes from now on makes it dirty again
		}
		g.working[i] = from
		g.mu.Unlock()
		if conv == "" {
			select {
			case <-g.wakeWork[i]:
				continue
			case <-ctx.Done():
				return
			}
		}
		if err := g.expand(ctx, conv); err != nil {
			if ctx.Err() != nil {
				return // it stays in working: it waits for the next run
			}
			g.log.Warn("bells not looked up, will try again", "conversation", conv, "error", err)
			g.look(conv, from)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// expand makes bells of the entries after the conversation's mark. Only the
// conversation's expander calls it.
func (g *Gateway) expand(ctx context.Context, conv im.ConvID) error {
	mark, err := g.markOf(ctx, conv)
	if err != nil {
		return err
	}
	for {
		es, err := g.opt.Store.Range(ctx, conv, mark, expandChunk, 1<<20)
		if err != nil || len(es) == 0 {
			return err
		}
		if err := g.bells(ctx, conv, es); err != nil {
			return err
		}
		mark = es[len(es)-1].Seq
	}
}

// markOf is the mark of a conversation; where there is none, the last entry
// before this run's time.
func (g *Gateway) markOf(ctx context.Context, conv im.ConvID) (im.Seq, error) {
	g.mu.Lock()
	mark, known := g.marks[conv]
	since := g.since
	g.mu.Unlock()
	if known {
		return mark, nil
	}
	v, err := g.opt.Store.Note(ctx, noteMark+string(conv))
	if err == nil {
		err = json.Unmarshal(v, &mark)
	} else if im.Is(err, im.NotFound) {
		err = nil
	}
	if err != nil {
		return 0, err
	}
	for before := im.Seq(0); ; {
		es, err := g.opt.Store.Before(ctx, conv, before, 64)
		if err != nil {
			return 0, err
		}
		if len(es) == 0 || es[0].Seq <= mark {
			return mark, nil
		}
		for i := len(es) - 1; i >= 0; i-- {
			if es[i].TS < since {
				return max(mark, es[i].Seq), nil
			}
		}
		before = es[0].Seq
	}
}

// loadAlive reads when the last run ended.
func (g *Gateway) loadAlive(ctx context.Context) error {
	g.since = g.opt.Now().Add(-aliveSlack).UnixMilli()
	v, err := g.opt.Store.Note(ctx, noteAlive)
	if im.Is(err, im.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var alive int64
	if err := json.Unmarshal(v, &alive); err != nil {
		return err
	}
	g.since = alive - aliveSlack.Milliseconds()
	return nil
}

// seenTo is up to what time all entries were looked at, Unix ms: now, or when the
// oldest came that waits to be, so that the next run looks at it if this one does
// not get to it. Caller holds mu.
func (g *Gateway) seenTo() int64 {
	t := g.opt.Now().UnixMilli()
	if !g.caughtUp {
		t = min(t, g.since+aliveSlack.Milliseconds())
	}
	for _, from := range g.working {
		t = min(t, from)
	}
	for _, from := range g.isDirty {
		t = min(t, from)
	}
	return t
}

// catchUp looks at every conversation that had entries since the last run was
// known to be alive.
func (g *Gateway) catchUp(ctx context.Context) {
	for err := error(nil); ; {
		if err = g.catchUpOnce(ctx); err == nil {
			g.mu.Lock()
			g.caughtUp = true
			g.mu.Unlock()
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		g.log.Warn("not all conversations looked at for bells, will try again", "error", err)
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return
		}
	}
}

func (g *Gateway) catchUpOnce(ctx context.Context) error {
	if g.any.Load() == 0 {
		return nil
	}
	after := im.ConvID("")
	for {
		var page []im.ConvID
		err := g.opt.Store.EachConversation(ctx, after, func(c im.ConvID) bool {
			after = c
			if k := c.Kind(); k == im.KindDM || k == im.KindGroup {
				page = append(page, c)
			}
			return len(page) < 1000
		})
		if err != nil || len(page) == 0 {
			return err
		}
		heads, err := g.opt.Store.Heads(ctx, page)
		if err != nil {
			return err
		}
		for i, c := range page {
			if heads[i].TS >= g.since {
				g.look(c, g.since+aliveSlack.Milliseconds())
			}
		}
	}
}

// bells makes the bells of some entries of one conversation and writes them down
// with the mark.
func (g *Gateway) bells(ctx context.Context, conv im.ConvID, es []*im.Entry) error {
	var members []im.UserID
	if id := conv.Group(); id != "" {
		var err error
		if members, err = g.opt.House.Members(ctx, id); err != nil && !im.Is(err, im.NotFound) {
			return err
		}
	} else {
		a, b := conv.Pair()
		members = []im.UserID{a, b}
	}
	large := len(members) > g.opt.LargeGroup
	in := make(map[im.UserID]bool, 8)
	if large {
		for _, u := range members {
			in[u] = true
		}
	}
	var notes []store.Note
	var wishes []*wish
	g.mu.Lock()
	for _, e := range es {
		if !ringing(e).Go {
			continue
		}
		named, all := mentions(e)
		if conv.Group() == "" {
			named, all = nil, false // in a DM everything is for the other
		}
		who := members
		if large && !all { // only who is named or wants all: not a walk over everybody
			who = nil
			g.record(&bell{First: e.Seq, Last: e.Seq, key: slotKey{conv: conv}}, "eligible", no("large_group"), "all others")
			for u := range named {
				if in[u] {
					who = append(who, u)
				}
			}
			for u := range g.keen[conv] {
				if in[u] && !named[u] {
					who = append(who, u)
				}
			}
		}
		for _, u := range who {
			for _, r := range g.regs[u] {
				w := g.wish(e, r, large, all || named[u])
				switch {
				case w == nil:
				case g.opt.Workers:
					wishes = append(wishes, w)
				default:
					if n, ok := g.ring(w); ok {
						notes = append(notes, n)
					}
				}
			}
		}
	}
	last := es[len(es)-1].Seq
	if g.marks[conv] < last {
		g.marks[conv] = last
	}
	g.mu.Unlock()
	if len(notes)+len(wishes) == 0 {
		return nil // looked at again after a crash, to no effect
	}
	err := g.place(ctx, wishes)
	if err == nil {
		err = g.opt.Store.PutNotes(ctx, append(notes, note(noteMark+string(conv), last)), false)
	}
	if err != nil { // it is tried again: the mark in memory is taken back
		g.mu.Lock()
		delete(g.marks, conv)
		g.mu.Unlock()
		return err
	}
	wake(g.wakeDue)
	return nil
}

// wish is that a device be rung for an entry, after the grace.
type wish struct {
	key     slotKey
	entry   *im.Entry
	app     string
	mention bool
	due     int64 // Unix ms
	expires int64
	why     string // of the grace
	wait    time.Duration
}

// wish decides whether a device is to be rung for an entry; nil if not. Caller
// holds mu.
func (g *Gateway) wish(e *im.Entry, r *Registration, large, mentioned bool) *wish {
	if r.Kind == KindVoIP {
		return nil
	}
	now := g.opt.Now()
	set := g.settings[r.Device.User]
	f := facts{entry: e, user: r.Device.User, registered: r.Registered, now: now, maxAge: g.opt.TTL, large: large, mentioned: mentioned}
	if set != nil {
		f.level = set.Conv[e.Conv]
	}
	w := &wish{key: slotKey{r.Device, e.Conv}, entry: e, app: r.App, mention: mentioned, expires: e.TS + g.opt.TTL.Milliseconds()}
	d := eligible(f)
	g.record(w.probe(), "eligible", d, "")
	if !d.Go {
		return nil
	}
	online := g.opt.House.AnyOnline(r.Device.User)
	w.wait, w.why = g.opt.Grace.of(presence{online: online, active: online && now.Sub(g.active[r.Device.User]) < activeFor})
	w.due = now.Add(w.wait).UnixMilli()
	return w
}

// probe stands for the entry in explanations.
func (w *wish) probe() *bell { return &bell{First: w.entry.Seq, Last: w.entry.Seq, key: w.key} }

func (w *wish) bell() *bell {
	return &bell{Kind: Alert, First: w.entry.Seq, Last: w.entry.Seq, Count: 1, From: w.entry.From, Mention: w.mention, Due: w.due, Expires: w.expires, key: w.key, place: -1}
}

// join adds an entry to a bell that waits; false: it was looked at before.
func (b *bell) join(w *wish) bool {
	if b.Last >= w.entry.Seq {
		return false
	}
	b.Last, b.From, b.Mention = w.entry.Seq, w.entry.From, b.Mention || w.mention
	b.Count++
	b.Expires = w.expires
	if b.Tries == 0 && w.due < b.Due { // who was online when it began has left
		b.Due = w.due
	}
	return true
}

// recordWish notes what became of a wish: it replaces another, or waits.
func (g *Gateway) recordWish(w *wish, step string) {
	if step == "collapse" {
		g.record(w.probe(), step, yes("replaces"), w.why)
		return
	}
	g.record(w.probe(), step, yes(w.why), w.wait.String())
}

// ring makes or changes the bell of one device. Caller holds mu.
func (g *Gateway) ring(w *wish) (n store.Note, ok bool) {
	if b := g.slots[w.key]; b != nil && b.Kind == Alert {
		if !b.join(w) {
			return n, false
		}
		g.recordWish(w, "collapse")
		return g.put(b), true
	} else if b != nil { // a clear gives way: the push that follows sets the badge too
		g.drop(b)
	}
	g.recordWish(w, "grace")
	return g.put(w.bell()), true
}

// CallType is the content type of a signal that rings phones: somebody calls.
const CallType = "application/vnd.parley.call+json"

// callSlot makes the slot of calls another than that of the conversation.
const callSlot = "#call"

// Signal tells of a signal. If it is a call, the devices of the other side that
// are not connected ring at once, or never.
func (g *Gateway) Signal(ev im.Ephemeral) {
	if ev.Verb != im.VerbSignal || ev.Type != CallType || g.any.Load() == 0 {
		return
	}
	var who []im.UserID
	if peer, ok := ev.Conv.Peer(ev.From); ok && peer != ev.From {
		who = []im.UserID{peer}
	} else if id := ev.Conv.Group(); id != "" {
		members, err := g.opt.House.Members(context.Background(), id)
		if err != nil {
			g.log.Warn("a call rings nobody", "error", err)
			return
		}
		if len(members) > g.opt.LargeGroup {
			g.record(&bell{Kind: Call, key: slotKey{conv: ev.Conv + callSlot}}, "eligible", no("large_group"), "")
			return
		}
		who = members
	}
	now := g.opt.Now()
	calls, apps := map[slotKey]*bell{}, map[slotKey]string{}
	g.mu.Lock()
	for _, u := range who {
		if u == ev.From {
			continue
		}
		level := ""
		if set := g.settings[u]; set != nil {
			level = set.Conv[ev.Conv].Level
		}
		for _, r := range g.regs[u] {
			b := &bell{Kind: Call, Count: 1, From: ev.From, Due: now.UnixMilli(), Expires: now.Add(g.opt.CallTTL).UnixMilli(), place: -1, call: &ev,
				key: slotKey{r.Device, ev.Conv + callSlot}}
			d := callee{level: level, connected: g.opt.House.Online(r.Device), deaf: r.Provider == APNs && r.Kind != KindVoIP}.rings()
			g.record(b, "eligible", d, "")
			if !d.Go {
				continue
			}
			if g.opt.Workers {
				calls[b.key], apps[b.key] = b, r.App
				continue
			}
			g.put(b)
		}
	}
	g.mu.Unlock()
	if g.opt.Workers {
		g.callShared(calls, apps)
		return
	}
	wake(g.wakeDue)
}
