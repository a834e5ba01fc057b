package delivery

import (
	"container/list"
	"context"
	"hash/maphash"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Source is what delivery needs of the store.
type Source interface {
	Range(ctx context.Context, conv im.ConvID, after im.Seq, limit, maxBytes int) ([]*im.Entry, error)
	Heads(ctx context.Context, convs []im.ConvID) ([]store.Head, error)
	Doubts() uint64
	Trim(ctx context.Context, conv im.ConvID, upTo im.Seq) error
	Conversations(ctx context.Context, u im.UserID) ([]store.Participation, error)
	Member(ctx context.Context, g im.GroupID, u im.UserID) (store.Member, error)
	MemberIn(ctx context.Context, u im.UserID, groups []im.GroupID) ([]store.Member, error)
	Reads(ctx context.Context, conv im.ConvID, since int64) ([]store.Read, error)
	store.Devices
}

// Events announces what an operator wants to count. All fields may be nil.
type Events struct {
	Dropped func(queue string)  // a bounded volatile queue was full
	Behind  func(delta int)     // lines that wait for a pump, as a gauge
	Lines   func(connected int) // lines attached now
	// Returned is a known device that is back: whether it was remembered what
	// happened meanwhile, or it had to look at all conversations of its user.
	Returned func(remembered bool)
}

// Options configure a Delivery. Source is needed.
type Options struct {
	Source  Source
	Window  int // most QoS 1 packets unacknowledged per line; default 256
	Workers int // pump goroutines; default 2 × GOMAXPROCS
	// MaxDevices is how many devices a user may have; default 1,000.
	MaxDevices int
	// Remember is how many conversations are remembered, of all users together, for
	// devices that are away: those in which something happened, and the groups of
	// users of whom no device is here. Each takes 60 to 260 bytes. Default 500,000;
	// negative: none.
	Remember int
	// ForgetAfter is how long an unused device is known; default 90 days.
	ForgetAfter time.Duration
	// Friends lists those friends of u, among those for which among is true, who
	// may hear of u and u of them; nil: nobody is told of presence.
	Friends func(ctx context.Context, u im.UserID, among func(im.UserID) bool) ([]im.UserID, error)
	// Muted reports whether u wants no notice of conv: a device that is inactive is not
	// woken for it. It answers from memory and never calls back; nil: nothing is muted.
	Muted  func(u im.UserID, conv im.ConvID) bool
	Now    func() time.Time
	Log    *slog.Logger
	Events Events
}

// Delivery is the room. Make it with New, then Run it.
type Delivery struct {
	opt Options
	src Source
	log *slog.Logger

	users  [numShards]userShard
	rooms  [numShards]roomShard
	device [numLocks]sync.Mutex // serialises attach and detach of one device

	// manyParts is from how many conversations on their list is kept for the user's
	// next device: reading it takes longer than all else of an attach then.
	manyParts int

	keeper   keeper
	work     workList
	presence presences
	dirty    struct {
		sync.Mutex
		lines []*Line
	}
	lines     atomic.Int64
	delivered atomic.Uint64
}

const (
	numShards = 64
	numLocks  = 512
)

var seed = maphash.MakeSeed()

func shard[T ~string](id T) uint64 { return maphash.String(seed, string(id)) % numShards }

// New makes a Delivery. It starts nothing.
func New(o Options) *Delivery {
	if o.Window <= 0 {
		o.Window = 256
	}
	if o.Workers <= 0 {
		o.Workers = 2 * runtime.GOMAXPROCS(0)
	}
	if o.MaxDevices <= 0 {
		o.MaxDevices = 1000
	}
	if o.Remember == 0 {
		o.Remember = 500_000
	}
	if o.ForgetAfter <= 0 {
		o.ForgetAfter = 90 * 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &Delivery{opt: o, src: o.Source, log: o.Log, manyParts: 256}
	d.keeper.max, d.keeper.moved, d.keeper.order = o.Remember, maxMoved, list.New()
	for i := range d.users {
		d.users[i].m = make(map[im.UserID]*userLines)
		d.rooms[i].m = make(map[im.GroupID]map[*userLines]struct{})
	}
	d.work.init()
	d.presence.init(d)
	return d
}

// Run serves lines that are behind and flushes cursors until ctx is done.
// Lines still attached then must be detached by their owners.
func (d *Delivery) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range d.opt.Workers {
		wg.Go(func() { d.pumpWorker(ctx) })
	}
	wg.Go(func() { d.flushCursors(ctx) })
	wg.Go(func() { d.presence.run(ctx) })
	wg.Go(func() { d.forgetUnused(ctx) })
	<-ctx.Done()
	d.work.close()
	wg.Wait()
	return nil
}

// Offer takes a committed entry: the door chat declares. It is called in seq
// order per conversation.
func (d *Delivery) Offer(e *im.Entry) {
	p := &Parcel{Entry: e}
	switch e.Conv.Kind() {
	case im.KindDM:
		a, b := e.Conv.Pair()
		if e.Seq == 1 {
			d.moved(a)
			d.moved(b)
		}
		d.offerUser(a, p)
		if a != b {
			d.offerUser(b, p)
		}
	case im.KindGroup:
		g := e.Conv.Group()
		s := &d.rooms[shard(g)]
		var away []*userLines
		s.RLock()
		for u := range s.m[g] {
			if !u.offer(p) {
				away = append(away, u)
			}
		}
		s.RUnlock()
		d.letOut(g, away)
	case im.KindAccount:
		d.offerUser(e.Conv.Owner(), p)
	case im.KindQueue:
		if l := d.Line(im.DeviceKey{User: e.Conv.Owner(), Device: e.Conv.QueueDevice()}); l != nil {
			l.offer(p)
		}
	}
}

// Wake tells that conv has an entry seq which may never have been offered: a commit
// that seemed to fail had it, and was repeated. Whoever is to get it looks. That
// there is one at seq is not relied on.
func (d *Delivery) Wake(conv im.ConvID, seq im.Seq) {
	for _, u := range d.parties(conv) {
		u.each(conv, func(l *Line) {
			if q := conv.QueueDevice(); q == "" || q == l.key.Device {
				l.wake(conv, seq)
			}
		})
	}
}

func (d *Delivery) offerUser(user im.UserID, p *Parcel) {
	if u := d.online(user); u != nil {
		u.offer(p)
	}
}

// offer gives the entry to the user's devices and reports whether there are any.
func (u *userLines) offer(p *Parcel) bool {
	return u.each(p.Conv, func(l *Line) { l.offer(p) })
}

// linesOf returns u's lines now; the slice is not the caller's.
func (d *Delivery) linesOf(u im.UserID) []*Line { return d.online(u).get() }

// Lines returns the connected lines of u.
func (d *Delivery) Lines(u im.UserID) []*Line { return slices.Clone(d.linesOf(u)) }

// Line returns the connected line of a device, or nil.
func (d *Delivery) Line(k im.DeviceKey) *Line {
	for _, l := range d.linesOf(k.User) {
		if l.key == k {
			return l
		}
	}
	return nil
}

// AnyLine reports whether a device of u is connected.
func (d *Delivery) AnyLine(u im.UserID) bool { return len(d.linesOf(u)) > 0 }

// Each calls fn for every connected line.
func (d *Delivery) Each(fn func(*Line)) {
	for i := range d.users {
		s := &d.users[i]
		s.RLock()
		var all []*Line
		for _, u := range s.m {
			all = append(all, u.get()...)
		}
		s.RUnlock()
		for _, l := range all {
			fn(l)
		}
	}
}

// Delivered is how many entries were written to devices, first time or again.
func (d *Delivery) Delivered() uint64 { return d.delivered.Load() }

// Connected is the number of lines.
func (d *Delivery) Connected() int { return int(d.lines.Load()) }

// Kick closes the connections of u for which match is true (nil: all), and
// returns how many. The one that asks for it (Line.Asking) is closed once it is
// Answered.
func (d *Delivery) Kick(ctx context.Context, u im.UserID, reason CloseReason, match func(*Line) bool) int {
	n := 0
	for _, l := range d.linesOf(u) {
		if match != nil && !match(l) {
			continue
		}
		n++
		if ctx.Value(asking{}) == l {
			l.leaving.Store(int32(reason))
			continue
		}
		l.wire.Close(reason)
	}
	return n
}

type asking struct{}

// Asking returns a context for a request that came over the line: what it does
// that would close the line waits for Answered, so that the answer goes out first.
func (l *Line) Asking(ctx context.Context) context.Context {
	return context.WithValue(ctx, asking{}, l)
}

// Answered closes the line if its request has ended it.
func (l *Line) Answered() {
	if r := l.leaving.Load(); r != 0 {
		l.wire.Close(CloseReason(r))
	}
}

func (d *Delivery) lock(k im.DeviceKey) *sync.Mutex {
	return &d.device[maphash.Comparable(seed, k)%numLocks]
}

func (d *Delivery) dropped(queue string) {
	if d.opt.Events.Dropped != nil {
		d.opt.Events.Dropped(queue)
	}
}
