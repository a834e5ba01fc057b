package delivery

import (
	"context"
	"sync"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// One turn of the pump reads at most this much of one conversation.
const (
	chunkEntries = 64
	chunkBytes   = 64 << 10
)

// storeRetry is how long a line waits after the store could not be read.
const storeRetry = 200 * time.Millisecond

// workList holds the lines that wait for a pump worker. It is bounded by the
// number of lines: each is in it at most once (Line.queued).
type workList struct {
	sync.Mutex
	cond   *sync.Cond
	lines  []*Line
	closed bool
}

func (w *workList) init() { w.cond = sync.NewCond(&w.Mutex) }

func (w *workList) push(l *Line) {
	w.Lock()
	w.lines = append(w.lines, l)
	w.Unlock()
	w.cond.Signal()
}

// pop waits for a line; nil when the list is closed.
func (w *workList) pop() *Line {
	w.Lock()
	defer w.Unlock()
	for len(w.lines) == 0 && !w.closed {
		w.cond.Wait()
	}
	if w.closed {
		return nil
	}
	l := w.lines[0]
	w.lines[0] = nil
	w.lines = w.lines[1:]
	return l
}

func (w *workList) close() {
	w.Lock()
	w.closed = true
	w.Unlock()
	w.cond.Broadcast()
}

func (d *Delivery) pump(l *Line) {
	if d.opt.Events.Behind != nil {
		d.opt.Events.Behind(1)
	}
	d.work.push(l)
}

func (d *Delivery) pumpWorker(ctx context.Context) {
	for {
		l := d.work.pop()
		if l == nil {
			return
		}
		if d.turn(ctx, l) {
			d.work.push(l) // behind the others: lines share fairly
		} else if d.opt.Events.Behind != nil {
			d.opt.Events.Behind(-1)
		}
	}
}

// turn serves one chunk of one conversation of l and reports whether there is
// more that can be sent now.
func (d *Delivery) turn(ctx context.Context, l *Line) (again bool) {
	t := l.nextBehind()
	if t == nil {
		return false
	}
	if !t.resolved { // only the pump resolves, and a line is with one worker at a time
		if member, err := d.resolve(ctx, l, t); err != nil {
			d.retryLater(l, t, err)
			return false
		} else if !member {
			l.mu.Lock()
			l.drop(t)
			l.mu.Unlock()
			return l.moreBehind()
		}
	}
	sent, upTo, recalls := t.now(l)
	entries, err := d.src.Range(ctx, t.conv, sent, chunkEntries, chunkBytes)
	if err != nil {
		d.retryLater(l, t, err)
		return false
	}
	l.take(t, entries, upTo, recalls)
	return l.moreBehind()
}

// nextBehind takes the next track that has to be read off the line; nil when
// nothing can be done now.
func (l *Line) nextBehind() *track {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeReady()
	if l.closed || l.full || !l.started || len(l.behind) == 0 || !(l.room() || l.behind[0].qos == 0) {
		l.queued = false
		return nil
	}
	t := l.behind[0]
	l.behind[0] = nil
	l.behind = l.behind[1:]
	return t
}

// moreBehind decides whether the line goes to the end of the queue again. It
// clears queued under the same lock, so that a resume is never lost.
func (l *Line) moreBehind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	more := !l.closed && !l.full && l.started && len(l.behind) > 0 && (l.room() || l.behind[0].qos == 0)
	l.queued = more
	return more
}

// now is where the track stands, what it knows to exist, and how many recalls it
// has seen.
func (t *track) now(l *Line) (sent, upTo im.Seq, recalls uint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return t.sent, t.upTo, t.recalls
}

// resolve reads where the device stands in the conversation. It reports false
// if the user has no part in it any more.
func (d *Delivery) resolve(ctx context.Context, l *Line, t *track) (member bool, err error) {
	c, err := d.src.Cursor(ctx, l.key, t.conv)
	if err != nil {
		return false, err
	}
	start := im.Seq(0)
	if g := t.conv.Group(); g != "" {
		m, err := d.src.Member(ctx, g, l.key.User)
		if im.Is(err, im.NotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		start = m.Start
	}
	l.mu.Lock()
	t.resolve(c, start)
	l.mu.Unlock()
	return true, nil
}

// take writes what was read as far as the window is open and keeps the rest for
// when it opens again. If there was a recall meanwhile, it is read once more.
func (l *Line) take(t *track, entries []*im.Entry, upTo im.Seq, recalls uint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || t.stopped {
		t.behind = false
		return
	}
	if t.recalls != recalls {
		l.behind = append(l.behind, t)
		return
	}
	if len(entries) == 0 {
		l.skipTo(t, upTo) // trimmed away: there is nothing to wait for
		t.look = false
		if t.behind = t.sent < t.upTo; t.behind { // offered since it was read
			l.behind = append(l.behind, t)
		}
		return
	}
	t.ready = entries
	switch used := l.writeChunk(t); {
	case !used:
		l.behind = append([]*track{t}, l.behind...) // first in turn when the window opens
	case t.behind:
		l.behind = append(l.behind, t)
	}
}

// skipTo passes over a stretch that was trimmed from the log: the log has no
// holes, so all up to seq is gone. What of it is under way cannot be sent again,
// and counts as acknowledged.
func (l *Line) skipTo(t *track, seq im.Seq) {
	if seq <= t.sent {
		return
	}
	t.sent, t.acked, t.ahead = seq, seq, nil
	l.moved(t)
}

// retryLater puts the track back and gives the store a moment.
func (d *Delivery) retryLater(l *Line, t *track, err error) {
	d.log.Warn("log not read, will try again", "device", l.key, "error", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behind = append(l.behind, t)
	time.AfterFunc(storeRetry, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.queued = false
		l.resume()
	})
}

func (d *Delivery) markDirty(l *Line) {
	d.dirty.Lock()
	d.dirty.lines = append(d.dirty.lines, l)
	d.dirty.Unlock()
}

// cursorFlush is how long an acknowledgement may wait before its cursor is
// stored. While few devices wait it is stored at every tick: it costs next to
// nothing, and a crash then replays less.
const (
	cursorFlush = time.Second
	cursorTick  = cursorFlush / 4
	fewLines    = 2000
)

func (d *Delivery) flushCursors(ctx context.Context) {
	tick := time.NewTicker(cursorTick)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-tick.C:
			if n%int(cursorFlush/cursorTick) == 0 || d.dirtyLines() <= fewLines {
				d.flushOnce(ctx)
			}
			d.trim() // journals grow while nobody leaves, too
		case <-ctx.Done():
			return
		}
	}
}

func (d *Delivery) dirtyLines() int {
	d.dirty.Lock()
	defer d.dirty.Unlock()
	return len(d.dirty.lines)
}

func (d *Delivery) flushOnce(ctx context.Context) {
	d.dirty.Lock()
	lines := d.dirty.lines
	d.dirty.lines = nil
	d.dirty.Unlock()
	for _, l := range lines {
		l.storing.Lock()
		l.mu.Lock()
		var cs []store.Cursor
		if !l.closed { // else retire stored them, or will
			cs = l.takeCursors()
		}
		l.mu.Unlock()
		d.storeCursors(ctx, l.key, cs)
		l.storing.Unlock()
	}
}

// forgetUnused drops devices that have not been connected for ForgetAfter.
func (d *Delivery) forgetUnused(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		d.ForgetUnused(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ForgetUnused drops the devices whose time is up now.
func (d *Delivery) ForgetUnused(ctx context.Context) {
	limit := d.opt.Now().Add(-d.opt.ForgetAfter).UnixMilli()
	var old []im.DeviceKey
	err := d.src.EachDevice(ctx, func(dev store.Device) bool {
		if dev.LastSeen < limit {
			old = append(old, dev.Key)
		}
		return ctx.Err() == nil
	})
	for _, k := range old {
		if d.Line(k) != nil {
			continue // connected all that time
		}
		if err = d.Forget(ctx, k); err != nil {
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("unused devices not forgotten, will try again in an hour", "error", err)
	}
}
