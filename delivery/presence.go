package delivery

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/im"
)

// presenceGrace is how long somebody whose last device has gone still counts as
// online: a phone that changes networks does not blink.
const presenceGrace = time.Second

// presences tells devices whose friends come and go. One
// goroutine does it all, in the order things happened; while nobody watches
// there is nothing to do.
type presences struct {
	d        *Delivery
	watchers atomic.Int64 // lines that want to hear of somebody

	mu struct {
		sync.Mutex
		jobs    []presenceJob       // one for each user that came and each line that asked
		leaving []departure         // oldest first; those that came back are not in left any more
		left    map[im.UserID]int64 // whose last device went when, Unix ms, and who may be back yet
	}
	wake chan struct{}
}

// presenceJob is one thing to tell: how user is, or, to line, how its user's friends are.
type presenceJob struct {
	line   *Line
	user   im.UserID
	online bool
	seen   int64 // Unix ms
}

type departure struct {
	user im.UserID
	at   int64
}

func (p *presences) init(d *Delivery) {
	p.d, p.wake = d, make(chan struct{}, 1)
	p.mu.left = make(map[im.UserID]int64)
}

// came notes that the first device of u has connected.
func (p *presences) came(u im.UserID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, blink := p.mu.left[u]; blink {
		delete(p.mu.left, u)
		return
	}
	if p.watchers.Load() > 0 {
		p.addLocked(presenceJob{user: u, online: true, seen: p.d.opt.Now().UnixMilli()})
	}
}

// went notes that the last device of u has gone.
func (p *presences) went(u im.UserID) {
	if p.watchers.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.d.opt.Now().UnixMilli()
	p.mu.left[u] = now
	p.mu.leaving = append(p.mu.leaving, departure{u, now})
	p.wakeUp()
}

// ask has the line told how its user's friends are.
func (p *presences) ask(l *Line) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addLocked(presenceJob{line: l})
}

func (p *presences) addLocked(j presenceJob) {
	p.mu.jobs = append(p.mu.jobs, j)
	p.wakeUp()
}

func (p *presences) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// next takes what is to be told now, or says how long until there may be something.
func (p *presences) next() (j presenceJob, ok bool, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mu.jobs) > 0 {
		j = p.mu.jobs[0]
		p.mu.jobs = p.mu.jobs[1:]
		return j, true, 0
	}
	now := p.d.opt.Now().UnixMilli()
	for len(p.mu.leaving) > 0 {
		g := p.mu.leaving[0]
		if wait := time.Duration(g.at-now)*time.Millisecond + presenceGrace; wait > 0 {
			return j, false, wait
		}
		p.mu.leaving = p.mu.leaving[1:]
		if p.mu.left[g.user] == g.at {
			delete(p.mu.left, g.user)
			return presenceJob{user: g.user, seen: g.at}, true, 0
		}
	}
	return j, false, time.Hour
}

func (p *presences) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		j, ok, wait := p.next()
		if ok {
			p.tell(ctx, j)
			continue
		}
		timer.Reset(wait)
		select {
		case <-p.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

func (p *presences) tell(ctx context.Context, j presenceJob) {
	d := p.d
	if j.line != nil {
		p.show(ctx, j.line)
		return
	}
	watching := func(u im.UserID) bool {
		for _, l := range d.linesOf(u) {
			if l.watches(j.user) {
				return true
			}
		}
		return false
	}
	friends, err := d.opt.Friends(ctx, j.user, watching)
	if err != nil {
		d.log.Warn("presence not told", "user", j.user, "error", err)
		return
	}
	for _, f := range friends {
		for _, l := range d.linesOf(f) {
			l.presence(j.user, j.online, j.seen)
		}
	}
}

// show tells a line how each of the friends is that it watches.
func (p *presences) show(ctx context.Context, l *Line) {
	friends, err := p.d.opt.Friends(ctx, l.key.User, l.watches)
	if err != nil {
		p.d.log.Warn("presence not told", "device", l.key, "error", err)
		return
	}
	for _, f := range friends {
		online := p.online(f)
		seen := p.d.opt.Now().UnixMilli()
		if !online {
			if seen, err = p.lastSeen(ctx, f); err != nil {
				return // a hint, like all presence
			}
		}
		l.presence(f, online, seen)
	}
}

// online reports whether u is there, or gone so shortly that nobody was told.
func (p *presences) online(u im.UserID) bool {
	p.mu.Lock()
	_, blink := p.mu.left[u]
	p.mu.Unlock()
	return blink || p.d.AnyLine(u)
}

func (p *presences) lastSeen(ctx context.Context, u im.UserID) (seen int64, err error) {
	devices, err := p.d.src.DevicesOf(ctx, u)
	for _, dev := range devices {
		seen = max(seen, dev.LastSeen)
	}
	return seen, err
}

// watches reports whether the device wants to hear of u now.
func (l *Line) watches(u im.UserID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watching && l.started && !l.closed && !l.inactive && l.view.hears("presence/"+string(u))
}

// presence tells the device how u is, if it wants to know.
func (l *Line) presence(u im.UserID, online bool, seen int64) {
	if l.watches(u) {
		l.Note(&Note{Topic: "presence/" + string(u), Body: presenceBody(u, online, seen), Type: "application/json"}, 1)
	}
}

func presenceBody(u im.UserID, online bool, seen int64) []byte {
	b := append([]byte(`{"user":"`), u...)
	b = append(b, `","online":`...)
	b = strconv.AppendBool(b, online)
	b = append(b, `,"seen":`...)
	return append(strconv.AppendInt(b, seen, 10), '}')
}

// watch counts the line among those that watch, or not any more. Caller holds mu.
func (l *Line) watch() {
	on := !l.closed && l.d.opt.Friends != nil && l.view.watches()
	if on != l.watching {
		l.watching = on
		if on {
			l.d.presence.watchers.Add(1)
		} else {
			l.d.presence.watchers.Add(-1)
		}
	}
}
