package delivery

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Attachment asks for a line.
type Attachment struct {
	Key    im.DeviceKey
	Wire   Wire
	Clean  bool   // Clean Start / Clean Session: from now on only, and without subscriptions
	Expiry uint32 // Session Expiry Interval in seconds; 0xFFFFFFFF never
	// ReceiveMaximum is how many QoS 1 packets the client takes at once; 0: no limit of its own.
	ReceiveMaximum int
	Version        byte
	// Transient: the server chose the client id and no session was asked for, so
	// nobody can return as this device. It is forgotten when it detaches.
	Transient bool
}

// Attached is what Attach found.
type Attached struct {
	Line    *Line
	Present bool // Session Present: state from an earlier connection goes on
	Session store.Session

	reads []readable
}

type readable struct {
	conv  im.ConvID
	since int64
}

// Attach makes a line for a device that connected. An older connection of the
// same device is closed first and its cursors are stored. Entries committed from
// now on wait in the log until Start, which the caller calls once its CONNACK is
// on the wire. It fails with Unavailable when the store cannot be read.
func (d *Delivery) Attach(ctx context.Context, a Attachment) (*Attached, error) {
	mu := d.lock(a.Key)
	mu.Lock()
	defer mu.Unlock()

	if old := d.Line(a.Key); old != nil {
		old.wire.Close(TakenOver)
		if d.retire(ctx, old, true) {
			old.heir = GoesOn
			if a.Clean {
				old.heir = StartsAnew
			}
		}
	}
	now := d.opt.Now().UnixMilli()
	dev, err := d.src.Device(ctx, a.Key)
	known := err == nil
	if err != nil && !im.Is(err, im.NotFound) {
		return nil, err
	}
	l := &Line{asOf: d.src.Doubts(), d: d, key: a.Key, wire: a.Wire, window: d.opt.Window, clean: a.Clean, transient: a.Transient}
	if a.ReceiveMaximum > 0 {
		l.window = min(l.window, a.ReceiveMaximum)
	}
	if !known {
		if err := d.roomForDevice(ctx, a.Key.User); err != nil {
			return nil, err
		}
	}
	out := &Attached{Line: l}
	if known && !a.Clean && !(expired(dev.Session, now) && hasPlain(dev.Session.Subs)) {
		out.Present, out.Session = true, dev.Session
	}
	l.view = NewView(out.Session.Subs)
	l.sent.Store(l.view.Sent)

	if known && (a.Clean || expired(dev.Session, now)) {
		if err := d.endSession(ctx, a.Key); err != nil {
			return nil, err
		}
	}
	d.register(l)
	if err := d.place(ctx, l, known, known && !a.Clean, dev.LastSeen, out); err != nil {
		d.discard(l)
		return nil, err
	}
	if !known {
		dev = store.Device{Key: a.Key, Created: now}
	}
	out.Session.Present, out.Session.Expiry, out.Session.Ended = a.Expiry > 0, a.Expiry, 0
	dev.LastSeen, dev.Version, dev.Session = now, a.Version, out.Session
	if err := d.src.PutDevice(ctx, dev, !known && !a.Transient); err != nil {
		d.discard(l)
		return nil, err
	}
	l.device = dev
	d.back(l.user, a.Key.Device)
	d.count(1)
	return out, nil
}

// endSession forgets what an MQTT session had beside its cursors: QoS 2 receipts
// and what the plain space queued.
func (d *Delivery) endSession(ctx context.Context, k im.DeviceKey) error {
	if err := d.src.Release(ctx, k, 0); err != nil {
		return err
	}
	q := im.QueueConv(k.User, k.Device)
	heads, err := d.src.Heads(ctx, []im.ConvID{q})
	if err != nil || heads[0].Seq == 0 {
		return err
	}
	if err := d.src.Trim(ctx, q, heads[0].Seq); err != nil {
		return err
	}
	return d.src.PutCursors(ctx, k, []store.Cursor{{Conv: q, Acked: heads[0].Seq, Sent: heads[0].Seq, Known: true}})
}

func (d *Delivery) roomForDevice(ctx context.Context, u im.UserID) error {
	n, err := d.src.CountDevices(ctx, u)
	if err != nil {
		return err
	}
	if n >= d.opt.MaxDevices {
		return im.Refuse(im.TooMany, "too_many_devices", "this account has %d devices already: remove one", n)
	}
	return nil
}

// place finds what the device has still to get (resume) or sets its cursors to
// now. It looks at all conversations of the user, or, where it is remembered since
// when the device was away (known: it has been here), at those in which something
// happened. It is repeated if the user joined or left a group meanwhile.
func (d *Delivery) place(ctx context.Context, l *Line, known, resume bool, lastSeen int64, out *Attached) error {
	user, u := l.key.User, l.user
	d.letIn(u)
	var entered []im.GroupID // by us
	var found []*track       // likewise
	for {
		gen, parts := d.remembered(user, u)
		placed := u.placed(l.asOf)
		moved, some := u.recall(l.key.Device, l.asOf)
		some = some && known && placed
		var err error
		switch {
		case some:
			parts, err = d.partsIn(ctx, user, moved)
		case parts == nil:
			if parts, err = d.src.Conversations(ctx, user); err == nil {
				d.remember(user, u, gen, parts)
			}
		}
		if err != nil {
			return err
		}
		if !placed {
			entered = d.enterAll(u, parts, entered)
		}
		parts = append(slices.Clip(parts), store.Participation{Conv: im.QueueConv(user, l.key.Device)})
		convs := make([]im.ConvID, len(parts))
		for i, p := range parts {
			convs[i] = p.Conv
		}
		heads, err := d.src.Heads(ctx, convs)
		if err != nil {
			return err
		}
		if resume {
			var cursors []store.Cursor
			if cursors, err = d.cursors(ctx, l.key, convs, some); err == nil {
				found = l.findBehind(parts, heads, cursors, lastSeen, out, found)
			}
		} else {
			err = d.startNow(ctx, l, parts, heads, some)
		}
		if err != nil {
			return err
		}
		if now, _ := d.remembered(user, u); now == gen {
			if !placed {
				u.setPlaced(l.asOf)
			}
			if known && d.opt.Events.Returned != nil {
				d.opt.Events.Returned(some)
			}
			return nil
		}
	}
}

// enterAll puts u into the rooms of its groups, and takes it out of those that it
// was put into before by the same attach, from a list that has changed since.
func (d *Delivery) enterAll(u *userLines, parts []store.Participation, before []im.GroupID) (entered []im.GroupID) {
	now := make(map[im.GroupID]bool, len(before))
	for _, p := range parts {
		g := p.Conv.Group()
		if g == "" {
			continue
		}
		if len(before) > 0 {
			now[g] = true
		}
		if d.enter(g, u) {
			entered = append(entered, g)
		}
	}
	for _, g := range before {
		if now[g] {
			entered = append(entered, g)
		} else {
			d.leave(g, u)
		}
	}
	return entered
}

// partsIn is which of convs the user takes part in, and from where on.
func (d *Delivery) partsIn(ctx context.Context, user im.UserID, convs []im.ConvID) (parts []store.Participation, err error) {
	var groups []im.GroupID
	for _, c := range convs {
		if g := c.Group(); g != "" {
			groups = append(groups, g)
		} else if c.Kind() != im.KindQueue { // that of the device is looked at always
			parts = append(parts, store.Participation{Conv: c})
		}
	}
	if len(groups) == 0 {
		return parts, nil
	}
	members, err := d.src.MemberIn(ctx, user, groups)
	for _, m := range members {
		parts = append(parts, store.Participation{Conv: im.GroupConv(m.Group), Start: m.Start})
	}
	return parts, err
}

// startNow sets the cursors of these conversations, some or all of the user's, to
// now. Where it is some, the others stand there already.
func (d *Delivery) startNow(ctx context.Context, l *Line, parts []store.Participation, heads []store.Head, some bool) error {
	var cs []store.Cursor
	for i, p := range parts {
		if heads[i].Seq > p.Start {
			cs = append(cs, store.Cursor{Conv: p.Conv, Acked: heads[i].Seq, Sent: heads[i].Seq, Known: true})
		}
	}
	if some {
		return d.src.PutCursors(ctx, l.key, cs)
	}
	return d.src.ResetCursors(ctx, l.key, cs)
}

// cursors returns the cursors of the device in convs, in their order: some of the
// user's conversations, or all.
func (d *Delivery) cursors(ctx context.Context, k im.DeviceKey, convs []im.ConvID, some bool) ([]store.Cursor, error) {
	if some {
		return d.src.CursorsOf(ctx, k, convs)
	}
	all, err := d.src.Cursors(ctx, k)
	if err != nil {
		return nil, err
	}
	out := make([]store.Cursor, len(convs))
	for i, conv := range convs {
		out[i].Conv = conv
		if j, ok := slices.BinarySearchFunc(all, conv, func(c store.Cursor, conv im.ConvID) int { return cmp.Compare(c.Conv, conv) }); ok {
			out[i] = all[j]
		}
	}
	return out, nil
}

// findBehind lines up, oldest activity first, the tracks the pump starts with,
// in place of those that it found before, from a list that has changed since.
func (l *Line) findBehind(parts []store.Participation, heads []store.Head, cursors []store.Cursor, lastSeen int64, out *Attached, before []*track) (tracks []*track) {
	type missed struct {
		t  *track
		ts int64
	}
	var found []missed
	out.reads = out.reads[:0]
	for i, p := range parts {
		if heads[i].ReadTS > 0 && heads[i].ReadTS >= lastSeen {
			out.reads = append(out.reads, readable{p.Conv, lastSeen})
		}
		c := cursors[i]
		if heads[i].Seq > max(c.Acked, p.Start) {
			t := &track{conv: p.Conv, upTo: heads[i].Seq, behind: true}
			t.resolve(c, p.Start)
			found = append(found, missed{t, heads[i].TS})
		}
	}
	slices.SortStableFunc(found, func(a, b missed) int { return cmp.Compare(a.ts, b.ts) })

	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range before {
		if l.tracks[t.conv] == t {
			l.drop(t) // where it begins, and whether at all, may be another matter now: the pump looks
			again := l.track(t.conv)
			again.upTo = t.upTo
			l.fallBehind(again)
		}
	}
	for _, m := range found {
		t := m.t
		tracks = append(tracks, t)
		if old := l.tracks[t.conv]; old != nil { // offered since the line was registered
			t.upTo = max(t.upTo, old.upTo)
			l.behind = slices.DeleteFunc(l.behind, func(x *track) bool { return x == old })
		}
		t.qos, t.stopped = l.view.Conv(t.conv, l.key.User)
		if l.tracks == nil {
			l.tracks = make(map[im.ConvID]*track, len(found))
		}
		l.tracks[t.conv] = t
		if t.stopped {
			t.behind = false
			continue
		}
		l.behind = append(l.behind, t)
	}
	return tracks
}

// resolve sets where the track stands from its stored cursor.
func (t *track) resolve(c store.Cursor, start im.Seq) {
	t.acked = max(c.Acked, start)
	t.sent = t.acked
	t.dupTo = c.Sent
	t.ahead = slices.DeleteFunc(c.Ahead, func(s im.Seq) bool { return s <= t.acked })
	t.resolved = true
}

// Start lets the line deliver: its CONNACK is out. Then it tells the device
// which read watermarks moved while it was away.
func (a *Attached) Start(ctx context.Context) {
	l := a.Line
	l.mu.Lock()
	l.started = true
	l.watch()
	l.resume()
	l.mu.Unlock()
	l.ShowPresence()
	for _, r := range a.reads {
		reads, err := l.d.src.Reads(ctx, r.conv, r.since)
		if err != nil {
			return // a watermark is a hint: the conversation list has it too
		}
		for _, rd := range reads {
			l.read(r.conv, rd.User, rd.Seq)
		}
	}
}

// Detach ends a line when its connection has closed: cursors and session are
// stored. expiry replaces the Session Expiry Interval if the client's
// DISCONNECT had one. It reports false, and does nothing, for a line that was
// taken over or whose device was removed. ended, if not nil, is called otherwise,
// before the device can attach again.
func (d *Delivery) Detach(ctx context.Context, l *Line, expiry *uint32, ended func()) bool {
	mu := d.lock(l.key)
	mu.Lock()
	defer mu.Unlock()
	if !d.retire(ctx, l, !l.transient) {
		return false
	}
	if ended != nil {
		ended()
	}
	if l.transient {
		if err := d.src.DropDevice(ctx, l.key); err != nil {
			d.log.Warn("device not forgotten", "device", l.key, "error", err)
		}
		return true
	}
	now := d.opt.Now().UnixMilli()
	dev := l.device // only who holds the lock of a connected device writes its row
	dev.LastSeen, dev.Session.Ended = now, now
	if expiry != nil {
		dev.Session.Expiry = *expiry
		dev.Session.Present = *expiry > 0
	}
	if err := d.src.PutDevice(ctx, dev, false); err != nil {
		d.log.Warn("device row not updated", "device", l.key, "error", err)
	}
	return true
}

// Forget removes a device: it is disconnected, and returns as a new one.
func (d *Delivery) Forget(ctx context.Context, k im.DeviceKey) error {
	mu := d.lock(k)
	mu.Lock()
	defer mu.Unlock()
	if l := d.Line(k); l != nil && ctx.Value(asking{}) == l {
		l.transient = true // dropped once more when it has been Answered and is gone
		l.leaving.Store(int32(Removed))
	} else if l != nil {
		l.wire.Close(Removed)
		d.retire(ctx, l, false)
	}
	d.back(d.online(k.User), k.Device)
	return d.src.DropDevice(ctx, k)
}

// SaveSession stores the subscriptions of a connected device, durably: a SUBACK
// follows. It sets the line's view.
func (d *Delivery) SaveSession(ctx context.Context, l *Line, subs []store.Subscription) error {
	mu := d.lock(l.key)
	mu.Lock()
	defer mu.Unlock()
	if l.ended() {
		return nil
	}
	dev := l.device
	dev.Session.Subs = subs
	if err := d.src.PutDevice(ctx, dev, dev.Session.Present); err != nil {
		return err
	}
	l.device = dev
	l.SetView(NewView(subs))
	return nil
}

// retire closes the line, takes it out of the house and stores its cursors.
// remember: the device may be back. It reports false if that was done before.
func (d *Delivery) retire(ctx context.Context, l *Line, remember bool) bool {
	if l.ended() { // only who holds the lock of a device closes its line
		return false
	}
	l.storing.Lock()
	defer l.storing.Unlock()
	var j *journal
	if remember {
		j = d.depart(l)
	}
	l.mu.Lock()
	l.closed = true
	l.watch()
	for _, t := range l.tracks {
		t.dirty = t.dirty || (t.resolved && t.sent > t.acked) // so that a resend has DUP
	}
	cs, owes := l.takeCursors(), l.owes()
	l.flights, l.behind, l.waiting = ring{}, nil, nil
	l.mu.Unlock()

	d.unregister(l)
	stored := d.storeCursors(ctx, l.key, cs)
	if j != nil {
		j.owe(l.key.Device, owes, stored)
		d.trim()
	}
	d.count(-1)
	return true
}

// owes lists the conversations in which the device has something to get yet, or
// may have. Caller holds mu.
func (l *Line) owes() (convs []im.ConvID) {
	for _, t := range l.tracks {
		if !t.resolved || t.behind || t.look || t.acked < max(t.sent, t.upTo) {
			convs = append(convs, t.conv)
		}
	}
	return convs
}

func (d *Delivery) storeCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor) (stored bool) {
	if len(cs) == 0 {
		return true
	}
	if err := d.src.PutCursors(ctx, k, cs); err != nil {
		// The device gets again what it acknowledged since: repeated, not lost.
		d.log.Warn("cursors not stored", "device", k, "cursors", len(cs), "error", err)
		return false
	}
	for _, c := range cs {
		if c.Conv.Kind() != im.KindQueue {
			continue
		}
		if err := d.src.Trim(ctx, c.Conv, c.Acked); err != nil {
			d.log.Warn("queue not trimmed", "device", k, "error", err)
		}
	}
	return true
}

// discard takes out a line whose Attach failed: it never delivered anything.
func (d *Delivery) discard(l *Line) {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	d.unregister(l)
}

func (d *Delivery) count(delta int64) {
	n := d.lines.Add(delta)
	if d.opt.Events.Lines != nil {
		d.opt.Events.Lines(int(n))
	}
}

// expired reports whether a session's time was up before now.
func expired(s store.Session, now int64) bool {
	return s.Ended > 0 && s.Expiry != 0xFFFFFFFF && s.Ended+int64(s.Expiry)*1000 <= now
}

// hasPlain reports whether a subscription is of the plain space, too.
func hasPlain(subs []store.Subscription) bool {
	return slices.ContainsFunc(subs, func(s store.Subscription) bool {
		f, err := im.ParseFilter(s.Filter)
		_, plain := f.Overlaps()
		return err != nil || plain
	})
}

func readBody(user im.UserID, seq im.Seq) []byte {
	b := append([]byte(`{"user":"`), user...)
	b = append(b, `","seq":`...)
	return append(strconv.AppendUint(b, uint64(seq), 10), '}')
}
