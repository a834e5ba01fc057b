package pushgw

import (
	"container/heap"
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Store is what the gateway needs of the store.
type Store interface {
	store.Notes
	store.Tasks
	Range(ctx context.Context, conv im.ConvID, after im.Seq, limit, maxBytes int) ([]*im.Entry, error)
	Before(ctx context.Context, conv im.ConvID, before im.Seq, limit int) ([]*im.Entry, error)
	Heads(ctx context.Context, convs []im.ConvID) ([]store.Head, error)
	EachConversation(ctx context.Context, after im.ConvID, fn func(im.ConvID) bool) error
	Cursor(ctx context.Context, k im.DeviceKey, conv im.ConvID) (store.Cursor, error)
	ReadsOf(ctx context.Context, u im.UserID, convs []im.ConvID) ([]im.Seq, error)
}

// House is what the gateway asks the other rooms.
type House interface {
	Names
	// Members of a group, by user id.
	Members(ctx context.Context, g im.GroupID) ([]im.UserID, error)
	// Online reports whether a device is connected.
	Online(k im.DeviceKey) bool
	// AnyOnline reports whether one of the user's devices is.
	AnyOnline(u im.UserID) bool
}

// App is one app of one provider.
type App struct {
	Name     string
	Provider string
	Sender   Sender
	// Check refuses an address that the provider could never take; may be nil.
	Check func(Address) error
	// Workers is how many pushes are under way at once; default 64.
	Workers int
}

// Events announces what an operator wants to count. All fields may be nil.
type Events struct {
	Decided func(step, reason string)                              // a step of the pipeline
	Sent    func(provider, app, result string, took time.Duration) // an attempt
	Rung    func(provider, app string, sinceCommit time.Duration)  // the provider has it
	Circuit func(provider, app string, open bool)                  // an app's credentials are refused, or work again
}

// Options configure a Gateway.
type Options struct {
	Store Store
	House House
	Apps  []App
	Log   *slog.Logger
	Now   func() time.Time // default time.Now

	Privacy     string // default PrivacySender
	Grace       Grace
	LargeGroup  int           // members above which only mentions ring by default; default 100
	TTL         time.Duration // how long a bell is of use; default 24 h
	CallTTL     time.Duration // default 30 s
	SealedTypes []string      // content types of bodies that are encrypted end to end
	Explain     int           // decisions kept for explanations; default 65,536
	Events      Events

	// Workers has bells put into the store's tasks, for Workers to ring; else the
	// gateway rings itself.
	Workers bool
}

// Gateway rings phones. Make it with New, then Run it. Its methods may be called
// from many goroutines; Offer, Read and Signal never block.
type Gateway struct {
	opt    Options
	log    *slog.Logger
	apps   map[string]*app // by name
	looker looker
	turns  *turns // of who changes a user's rows; taken before mu

	mu       sync.Mutex
	regs     map[im.UserID][]*Registration
	held     map[string]*Registration // by provider, app, token
	settings map[im.UserID]*Settings
	keen     map[im.ConvID]map[im.UserID]bool // who wants all of a large group
	slots    map[slotKey]*bell
	due      bells
	shown    map[slotKey]im.Seq
	dead     int
	active   map[im.UserID]time.Time
	dirty    [expanders][]im.ConvID // a conversation is always with the same expander
	isDirty  map[im.ConvID]int64    // since when its entries wait, Unix ms
	working  [expanders]int64       // the same of the conversation an expander has; MaxInt64: none
	caughtUp bool                   // every conversation of the last run's time was looked up
	marks    map[im.ConvID]im.Seq
	since    int64 // entries before it were seen to by an earlier run, Unix ms
	wakeDue  chan struct{}
	wakeWork [expanders]chan struct{}

	shared   shared
	chores   chan chore
	requeued bool         // upkeep's: bells of apps that are gone were looked for
	waiting  atomic.Int64 // where workers ring: bells that wait, when last counted
	any      atomic.Int64 // registrations: with none, Offer does nothing
	history  history
}

// New makes a gateway and reads what it was about to do when it last ended.
func New(ctx context.Context, o Options) (*Gateway, error) {
	setDefaults(&o)
	g := &Gateway{
		opt: o, log: o.Log, turns: newTurns(), apps: map[string]*app{}, regs: map[im.UserID][]*Registration{}, held: map[string]*Registration{}, settings: map[im.UserID]*Settings{},
		keen: map[im.ConvID]map[im.UserID]bool{}, slots: map[slotKey]*bell{}, shown: map[slotKey]im.Seq{}, active: map[im.UserID]time.Time{},
		isDirty: map[im.ConvID]int64{}, marks: map[im.ConvID]im.Seq{},
		wakeDue: make(chan struct{}, 1), shared: shared{o.Store, o.Now}, chores: make(chan chore, chores),
	}
	for i := range g.wakeWork {
		g.wakeWork[i] = make(chan struct{}, 1)
		g.working[i] = math.MaxInt64
	}
	g.looker = looker{o.Store, o.House, o.Privacy, o.SealedTypes}
	g.history.init(o.Explain)
	for _, a := range o.Apps {
		g.apps[a.Name] = newApp(g, a)
	}
	if err := g.load(ctx); err != nil {
		return nil, err
	}
	return g, g.loadAlive(ctx)
}

func setDefaults(o *Options) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Privacy == "" {
		o.Privacy = PrivacySender
	}
	if o.Grace.Online == 0 {
		o.Grace.Online = 4 * time.Second
	}
	if o.Grace.Active == 0 {
		o.Grace.Active = 20 * time.Second
	}
	if o.LargeGroup == 0 {
		o.LargeGroup = 100
	}
	if o.TTL == 0 {
		o.TTL = 24 * time.Hour
	}
	if o.CallTTL == 0 {
		o.CallTTL = 30 * time.Second
	}
	if o.Explain == 0 {
		o.Explain = 1 << 16
	}
}

// bells is a heap by Due.
type bells []*bell

func (h bells) Len() int           { return len(h) }
func (h bells) Less(i, j int) bool { return h[i].Due < h[j].Due }
func (h bells) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *bells) Push(x any) {
	b := x.(*bell)
	b.place = len(*h)
	*h = append(*h, b)
}
func (h *bells) Pop() any {
	old := *h
	b := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	b.place = -1
	return b
}

func (h *bells) push(b *bell) { heap.Push(h, b) }
func (h *bells) remove(b *bell) {
	if b.place >= 0 {
		heap.Remove(h, b.place)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Offer tells of a committed entry.
func (g *Gateway) Offer(e *im.Entry) {
	if g.any.Load() == 0 || !ringing(e).Go {
		return
	}
	g.mu.Lock()
	g.touch(e.From)
	g.mu.Unlock()
	g.look(e.Conv, e.TS)
}

// touch notes that a user did something. Caller holds mu.
func (g *Gateway) touch(u im.UserID) {
	if len(g.active) > 100_000 {
		old := g.opt.Now().Add(-activeFor)
		for u, t := range g.active {
			if t.Before(old) {
				delete(g.active, u)
			}
		}
	}
	g.active[u] = g.opt.Now()
}

// activeFor is how long a user counts as active after a message or a reading.
const activeFor = time.Minute

// Read tells that a user has read up to seq, on device. Bells for it are
// cancelled, and taken off the screens of the user's other devices where they
// were really shown.
func (g *Gateway) Read(conv im.ConvID, u im.UserID, device im.DeviceID, seq im.Seq) {
	if g.any.Load() == 0 {
		return
	}
	if g.opt.Workers {
		g.readShared(conv, u, device, seq)
		return
	}
	var notes []store.Note
	g.mu.Lock()
	g.touch(u)
	now := g.opt.Now()
	for _, r := range g.regs[u] {
		if r.Kind == KindVoIP {
			continue
		}
		k := slotKey{r.Device, conv}
		if b := g.slots[k]; b != nil && b.Kind == Alert && b.Last <= seq {
			g.record(b, "grace", no("read"), "")
			notes = append(notes, g.drop(b)...)
		}
		shown, was := g.shown[k]
		if !was || shown > seq || g.slots[k] != nil {
			continue
		}
		if r.Device.Device == device { // who reads it sees it
			delete(g.shown, k)
			notes = append(notes, gone(noteShown+k.name()))
			continue
		}
		notes = append(notes, g.put(newClear(k, seq, now)))
	}
	g.mu.Unlock()
	g.save(notes)
	wake(g.wakeDue)
}

// A clear waits a little for more of them, and is of little use the next day.
const (
	clearDelay = 2 * time.Second
	clearTTL   = 6 * time.Hour
)

// put adds or moves a bell; the note writes it down. Caller holds mu.
func (g *Gateway) put(b *bell) store.Note {
	g.slots[b.key] = b
	g.due.remove(b)
	if !b.busy {
		g.due.push(b)
	}
	return note(noteBell+b.key.name(), b)
}

// drop takes a bell away. Caller holds mu.
func (g *Gateway) drop(b *bell) []store.Note {
	g.due.remove(b)
	b.off = true
	if g.slots[b.key] == b {
		delete(g.slots, b.key)
	}
	if b.call != nil {
		return nil
	}
	return []store.Note{gone(noteBell + b.key.name())}
}

// save writes notes that need not be durable at once. If they cannot be written
// the store is away, and what they say is found out again.
func (g *Gateway) save(notes []store.Note) {
	if len(notes) == 0 {
		return
	}
	if err := g.opt.Store.PutNotes(context.Background(), notes, false); err != nil {
		g.log.Warn("bells not written down", "error", err)
	}
}

// record notes a decision for metrics and explanations.
func (g *Gateway) record(b *bell, step string, d Decision, detail string) {
	g.history.add(Step{At: g.opt.Now().UnixMilli(), Conv: b.key.conv, First: b.First, Last: b.Last, Device: b.key.dev, Step: step, Go: d.Go, Reason: d.Reason, Detail: detail})
	if fn := g.opt.Events.Decided; fn != nil {
		fn(step, d.Reason)
	}
}

// Pending is how many devices wait to be rung.
func (g *Gateway) Pending() int {
	if g.opt.Workers {
		return int(g.waiting.Load())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.slots)
}

// Run rings until ctx is done. What is under way is ended; what waits is taken up
// by the next run.
func (g *Gateway) Run(ctx context.Context) {
	var living sync.WaitGroup
	for i := range expanders {
		living.Go(func() { g.expandLoop(ctx, i) })
	}
	living.Go(func() { g.catchUp(ctx) })
	living.Go(func() { g.upkeep(ctx) })
	if g.opt.Workers {
		for range choreHands {
			living.Go(func() { g.choresLoop(ctx) })
		}
	} else {
		g.ringAll(ctx, &living)
	}
	living.Wait()
	for _, a := range g.apps {
		_ = a.Sender.Close()
	}
}

// ringAll rings what is due until ctx is done.
func (g *Gateway) ringAll(ctx context.Context, living *sync.WaitGroup) {
	for _, a := range g.apps {
		for range a.Workers {
			living.Go(func() { a.work(ctx) })
		}
		living.Go(func() { // workers wait on a condition, which knows no context
			<-ctx.Done()
			a.mu.Lock()
			a.closed = true
			a.mu.Unlock()
			a.cond.Broadcast()
		})
	}
	g.schedule(ctx)
}

// schedule hands bells to their apps when they are due.
func (g *Gateway) schedule(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		now := g.opt.Now().UnixMilli()
		var ready []*bell
		g.mu.Lock()
		for len(g.due) > 0 && len(ready) < 1000 {
			b := g.due[0]
			if b.Due > now {
				wait = time.Duration(b.Due-now) * time.Millisecond
				break
			}
			g.due.remove(b)
			b.busy = true
			ready = append(ready, b)
		}
		if len(ready) == 1000 {
			wait = 0
		}
		g.mu.Unlock()
		for _, b := range ready {
			g.dispatch(b)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-g.wakeDue:
		case <-ctx.Done():
			return
		}
	}
}

// dispatch gives a bell to the app of its device.
func (g *Gateway) dispatch(b *bell) {
	g.mu.Lock()
	r := g.registration(b)
	g.mu.Unlock()
	if r == nil {
		g.refuse(b, b, "send", no("no_address"), "")
		return
	}
	a := g.apps[r.App]
	if a == nil {
		g.bury(b, b, r, "no_such_app")
		return
	}
	a.push(b)
}

// registration is where b's device is rung now. Caller holds mu.
func (g *Gateway) registration(b *bell) *Registration {
	var main *Registration
	for _, r := range g.regs[b.key.dev.User] {
		if r.Device != b.key.dev {
			continue
		}
		if r.Kind == KindVoIP {
			if b.Kind == Call {
				return r
			}
			continue
		}
		main = r
	}
	return main
}

// refuse ends a bell that does not ring, as it was when that was decided: what has
// joined it since goes on.
func (g *Gateway) refuse(b, was *bell, step string, d Decision, detail string) {
	g.mu.Lock()
	g.record(was, step, d, detail)
	notes := g.over(b, was)
	g.mu.Unlock()
	g.save(notes)
}

// over takes a bell away as it was when it rang or was refused, and leaves what
// came since, due now. Caller holds mu.
func (g *Gateway) over(b, was *bell) []store.Note {
	if b.off || b.Last <= was.Last {
		return g.drop(b)
	}
	b.rest(was)
	b.busy = false
	b.Due = g.opt.Now().UnixMilli()
	wake(g.wakeDue)
	return []store.Note{g.put(b)}
}

// later puts a bell back. Newer messages may have come meanwhile.
func (g *Gateway) later(b *bell, at time.Time) {
	g.mu.Lock()
	b.busy = false
	var notes []store.Note
	if !b.off {
		b.Due = at.UnixMilli()
		n := g.put(b)
		if b.call == nil {
			notes = append(notes, n)
		}
	}
	g.mu.Unlock()
	g.save(notes)
	wake(g.wakeDue)
}

// upkeep says that the gateway lives, and forgets what is not used.
func (g *Gateway) upkeep(ctx context.Context) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		alive := g.seenTo()
		g.mu.Unlock()
		g.save([]store.Note{note(noteAlive, alive)})
		if g.opt.Workers {
			g.heed(ctx)
		}
		if n%720 == 0 { // an hour
			g.forgetUnused()
			if err := g.forgetShown(ctx); err != nil && ctx.Err() == nil {
				g.log.Warn("what was shown on phones that are gone is remembered longer", "error", err)
			}
			if err := g.forgetPages(ctx); err != nil && ctx.Err() == nil {
				g.log.Warn("old push decisions are kept longer", "error", err)
			}
		}
	}
}

const (
	aliveEvery = 5 * time.Second
	// aliveSlack is by how much the mark of life may be older than what was written
	// down after it: a note not yet durable at a crash, an entry on its way here.
	aliveSlack = time.Minute
	// unusedFor is after what time an address that no app has registered again is
	// dropped: FCM calls tokens stale after 270 days.
	unusedFor = 270 * 24 * time.Hour
)

// forgetShown forgets what is on screens of devices that are rung no more: nobody
// is there to take it away.
func (g *Gateway) forgetShown(ctx context.Context) error {
	rung := func(k im.DeviceKey) bool { // caller holds mu
		return slices.ContainsFunc(g.regs[k.User], func(r *Registration) bool { return r.Device == k })
	}
	if !g.opt.Workers {
		var notes []store.Note
		g.mu.Lock()
		for k := range g.shown {
			if !rung(k.dev) {
				delete(g.shown, k)
				notes = append(notes, gone(noteShown+k.name()))
			}
		}
		g.mu.Unlock()
		g.save(notes)
		return nil
	}
	lost := func(k slotKey) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return !rung(k.dev)
	}
	keys, err := g.slotsOf(ctx, taskRoom)
	if err != nil {
		return err
	}
	keys = slices.DeleteFunc(keys, func(k slotKey) bool { return !lost(k) })
	for some := range slices.Chunk(keys, 1000) {
		err := g.shared.alter(ctx, some, func(s *slot, _ bool) bool {
			if s.Shown == 0 || s.Bell != nil || !lost(s.key) { // a bell ends by itself
				return false
			}
			s.Shown = 0
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Gateway) forgetUnused() {
	limit := g.opt.Now().Add(-unusedFor).UnixMilli()
	var unused []*Registration
	g.mu.Lock()
	for _, rs := range g.regs {
		for _, r := range rs {
			if r.Registered < limit {
				unused = append(unused, r)
			}
		}
	}
	if len(g.marks) > 100_000 {
		clear(g.marks) // they are written down
	}
	g.mu.Unlock()
	for _, r := range unused {
		g.forget(r, "unused")
	}
}
