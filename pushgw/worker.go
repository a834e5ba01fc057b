package pushgw

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	mathrand "math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// WorkerStore is what a Worker needs of the store.
type WorkerStore interface {
	store.Notes
	store.Tasks
	sights
}

// WorkerOptions configure a Worker. Store, Names and Apps are needed.
type WorkerOptions struct {
	Store WorkerStore
	Names Names
	Apps  []App
	Log   *slog.Logger
	Now   func() time.Time // default time.Now

	Privacy     string // default PrivacySender
	SealedTypes []string
	// Lease is for how long a bell is taken; it is taken again before that is over.
	// After so long others ring what a worker that died had. Default 30 s.
	Lease time.Duration
	// Poll is about how often due bells are looked for while there are none; each
	// time is random, so that workers do not keep step. Default 100 ms.
	Poll   time.Duration
	Events Events
}

// Worker rings what a Gateway with Options.Workers puts into the store, beside any
// number of others. Make it with NewWorker, then Run it.
type Worker struct {
	opt    WorkerOptions
	log    *slog.Logger
	name   string // of this run: leases are in it
	looker looker
	shared shared
	apps   map[string]*desk
	takes  atomic.Int64 // so that each lease has a name of its own
	buried atomic.Int64
	pages  journal

	mu   sync.Mutex
	held map[*holding]bool
}

// desk is where one app is served: what it suffers does not touch the others,
// whose bells are in other queues.
type desk struct {
	App
	circuit
	w     *Worker
	seats chan struct{} // one is taken for each bell under way
}

// holding is a slot that this worker has taken.
type holding struct {
	task  store.Task // as it was taken
	until atomic.Int64
}

// NewWorker makes a worker. It starts nothing.
func NewWorker(o WorkerOptions) *Worker {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Privacy == "" {
		o.Privacy = PrivacySender
	}
	if o.Lease == 0 {
		o.Lease = 30 * time.Second
	}
	if o.Poll == 0 {
		o.Poll = 100 * time.Millisecond
	}
	w := &Worker{
		opt: o, log: o.Log, name: rand.Text()[:12], looker: looker{o.Store, o.Names, o.Privacy, o.SealedTypes}, shared: shared{o.Store, o.Now},
		apps: map[string]*desk{}, held: map[*holding]bool{},
	}
	for _, a := range o.Apps {
		if a.Workers <= 0 {
			a.Workers = 64
		}
		w.apps[a.Name] = &desk{App: a, circuit: newCircuit(a, o.Now, o.Log, o.Events), w: w, seats: make(chan struct{}, a.Workers)}
	}
	return w
}

// Held is how many bells this worker has taken.
func (w *Worker) Held() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.held)
}

// Reloaded says that the app's credentials have changed: they are tried at once.
func (w *Worker) Reloaded(name string) {
	if a := w.apps[name]; a != nil {
		a.retry()
	}
}

// finishTime is how long attempts that are under way may go on when the worker
// ends; what is cut off is rung again by another, under the same id.
const finishTime = 5 * time.Second

// Run rings until ctx is done, ends what is under way and puts back the rest.
func (w *Worker) Run(ctx context.Context) {
	// What was taken is worked on for a while when nothing more is taken.
	working, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var desks, living sync.WaitGroup
	for _, a := range w.apps {
		desks.Go(func() { a.run(ctx, working) })
	}
	tending, stop := context.WithCancel(context.WithoutCancel(ctx))
	living.Go(func() { w.renewLoop(tending) })
	living.Go(func() { w.pageLoop(tending) })
	living.Go(func() {
		<-ctx.Done()
		select {
		case <-time.After(finishTime):
			cut()
		case <-tending.Done():
		}
	})
	desks.Wait()
	stop()
	living.Wait()
	for _, a := range w.apps {
		_ = a.Sender.Close()
	}
}

// most is how many bells are taken at once.
const most = 100

// run takes what is due for the app, as much as it has seats for.
func (a *desk) run(ctx, working context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	for ctx.Err() == nil {
		n, wait := a.sit(ctx)
		var ts []store.Task
		if n > 0 {
			var err error
			if ts, err = a.take(ctx, n); err != nil && ctx.Err() == nil {
				a.log.Warn("push tasks are not taken, will try again", "app", a.Name, "error", err)
				wait = time.Second
			}
			for range n - len(ts) {
				<-a.seats
			}
			for _, t := range ts {
				under.Go(func() {
					defer func() { <-a.seats }()
					a.ring(working, t)
				})
			}
			if len(ts) == 0 {
				a.unprobeIdle()
			}
		}
		if len(ts) > 0 {
			continue
		}
		if wait == 0 {
			wait = a.w.opt.Poll/2 + mathrand.N(a.w.opt.Poll)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// sit takes seats for as many bells as may be rung now, waiting for the first; if
// there may be none, it says how long that lasts at least.
func (a *desk) sit(ctx context.Context) (n int, wait time.Duration) {
	select {
	case a.seats <- struct{}{}:
	case <-ctx.Done():
		return 0, 0
	}
	a.mu.Lock()
	ok, probe, wait := a.admit()
	a.mu.Unlock()
	if !ok {
		<-a.seats
		return 0, min(wait, time.Second) // it may be reloaded
	}
	for n = 1; n < most && !probe; n++ {
		select {
		case a.seats <- struct{}{}:
		default:
			return n, 0
		}
	}
	return n, 0
}

func (a *desk) take(ctx context.Context, n int) ([]store.Task, error) {
	w := a.w
	now := w.opt.Now()
	owner := w.name + "/" + strconv.FormatInt(w.takes.Add(1), 36)
	return w.opt.Store.TakeTasks(ctx, queueOf(a.Name), owner, now.UnixMilli(), now.Add(w.opt.Lease).UnixMilli(), n)
}

func (w *Worker) hold(t store.Task) *holding {
	h := &holding{task: t}
	h.until.Store(t.At)
	w.mu.Lock()
	w.held[h] = true
	w.mu.Unlock()
	return h
}

func (w *Worker) letGo(h *holding) {
	w.mu.Lock()
	delete(w.held, h)
	w.mu.Unlock()
}

// renewLoop takes anew what is held for long: an attempt may last longer than a
// lease, and a worker that dies should not keep others waiting for as long.
func (w *Worker) renewLoop(ctx context.Context) {
	tick := time.NewTicker(w.opt.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := w.renew(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("what is being rung may be rung by another worker too", "error", err)
		}
	}
}

func (w *Worker) renew(ctx context.Context) error {
	soon := w.opt.Now().Add(w.opt.Lease * 2 / 3).UnixMilli()
	var keys []string
	var of []*holding
	w.mu.Lock()
	for h := range w.held {
		if h.until.Load() <= soon {
			keys, of = append(keys, h.task.Key), append(of, h)
		}
	}
	w.mu.Unlock()
	if len(keys) == 0 {
		return nil
	}
	ts, err := w.opt.Store.TasksOf(ctx, keys)
	if err != nil {
		return err
	}
	until := w.opt.Now().Add(w.opt.Lease).UnixMilli()
	var still []store.Task
	var whose []*holding
	for i, t := range ts {
		if t.Owner == of[i].task.Owner { // else it is done, or lost
			t.At = until
			still, whose = append(still, t), append(whose, of[i])
		}
	}
	done, err := w.opt.Store.PutTasks(ctx, still)
	for i, ok := range done {
		if ok && err == nil { // else it was just changed; there is time for another try
			whose[i].until.Store(until)
		}
	}
	return err
}

// pageLoop writes down decisions for explanations.
func (w *Worker) pageLoop(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		last := false
		select {
		case <-tick.C:
		case <-ctx.Done():
			last = true
		}
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		err := w.pages.flush(try, w.opt.Store, w.name)
		cancel()
		if last {
			return
		}
		if err != nil {
			w.log.Warn("push decisions are not written down, will try again", "error", err)
		}
	}
}

// record notes a decision for metrics and explanations.
func (w *Worker) record(b *bell, step string, d Decision, detail string) {
	w.pages.add(Step{At: w.opt.Now().UnixMilli(), Conv: b.key.conv, First: b.First, Last: b.Last, Device: b.key.dev, Step: step, Go: d.Go, Reason: d.Reason, Detail: detail})
	if fn := w.opt.Events.Decided; fn != nil {
		fn(step, d.Reason)
	}
}

// address is a registration as it is in the store.
type address struct {
	Registration
	raw []byte
}

// addressOf reads where a bell's device is rung now; nil: nowhere.
func (w *Worker) addressOf(ctx context.Context, b *bell) (*address, error) {
	kinds := []string{""}
	if b.Kind == Call {
		kinds = []string{KindVoIP, ""}
	}
	for _, kind := range kinds {
		r := Registration{Device: b.key.dev, Address: Address{Kind: kind}}
		a, err := w.read(ctx, r.key())
		if err != nil || a != nil {
			return a, err
		}
	}
	return nil, nil
}

func (w *Worker) read(ctx context.Context, key string) (*address, error) {
	v, err := w.opt.Store.Note(ctx, key)
	if im.Is(err, im.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a := &address{raw: v}
	return a, json.Unmarshal(v, &a.Registration)
}

// same reports whether b is still the registration that a was.
func (a *address) same(b *address) bool {
	return b != nil && a.mark() == b.mark()
}

// swap changes the registration, or with a nil fn removes it, unless the device
// has registered anew or is logged out meanwhile: then it reports false.
func (w *Worker) swap(ctx context.Context, a *address, fn func(r *Registration)) (bool, error) {
	for {
		var v []byte
		next := a.Registration
		if fn != nil {
			fn(&next)
			next.Nonce = rand.Text()[:10] // two who take a turn at one time want the same, but one turn each
			v = note("", &next).Value
		}
		ok, err := w.opt.Store.SwapNote(ctx, a.key(), a.raw, v)
		if err != nil {
			return false, err
		}
		if ok {
			a.Registration, a.raw = next, v
			return true, nil
		}
		now, err := w.read(ctx, a.key())
		if err != nil || !a.same(now) {
			return false, err
		}
		*a = *now // another worker took a turn
	}
}

// settings of a user; nil: none.
func (w *Worker) settings(ctx context.Context, u im.UserID) (*Settings, error) {
	v, err := w.opt.Store.Note(ctx, noteSet+string(u))
	if im.Is(err, im.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &Settings{}
	return s, json.Unmarshal(v, s)
}
