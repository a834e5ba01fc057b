package pushgw

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// hand is a worker and what it is killed with.
type hand struct {
	*Worker
	*leash
	stop func()
}

// leash is the store as one process sees it: until it is killed.
type leash struct {
	*memory
	dead  atomic.Bool
	stuck atomic.Bool // it cannot renew what it has
}

func (l *leash) err() error {
	if l.dead.Load() {
		return im.Refuse(im.Gone, "", "killed")
	}
	return nil
}

func (l *leash) PutTasks(ctx context.Context, ts []store.Task) ([]bool, error) {
	if err := l.err(); err != nil {
		return make([]bool, len(ts)), err
	}
	if l.stuck.Load() {
		return nil, im.Refuse(im.Internal, "", "stuck")
	}
	return l.memory.PutTasks(ctx, ts)
}

func (l *leash) TakeTasks(ctx context.Context, queue, owner string, now, until int64, limit int) ([]store.Task, error) {
	if err := l.err(); err != nil {
		return nil, err
	}
	return l.memory.TakeTasks(ctx, queue, owner, now, until, limit)
}

func (l *leash) SwapNote(ctx context.Context, key string, old, value []byte) (bool, error) {
	if err := l.err(); err != nil {
		return false, err
	}
	return l.memory.SwapNote(ctx, key, old, value)
}

func (l *leash) PutNotes(ctx context.Context, ns []store.Note, sync bool) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.memory.PutNotes(ctx, ns, sync)
}

// hire starts another worker.
func (r *rig) hire() *hand {
	l := &leash{memory: r.mem}
	w := NewWorker(WorkerOptions{Store: l, Names: r.fam, Apps: r.apps(), Privacy: PrivacyFull, Lease: r.lease, Poll: r.poll})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		w.Run(ctx)
		close(done)
	}()
	h := &hand{w, l, func() {
		cancel()
		<-done
	}}
	r.workers = append(r.workers, h)
	return h
}

// kill ends the workers that ring now, as kill -9 does: nothing is written any more.
func (r *rig) kill() (n int) {
	for _, w := range slices.Clone(r.workers) {
		if w.Held() > 0 {
			w.dead.Store(true)
			n++
		}
	}
	return n
}

// soon lets workers find what is due.
func soon() {
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

func (r *rig) slot(conv im.ConvID) *slot {
	r.t.Helper()
	ts, _ := r.mem.TasksOf(context.Background(), []string{slotKey{phone, conv}.task()})
	s, err := openSlot(ts[0])
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func inShop(t *testing.T, workers int, play func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newShop(t, workers)
		defer func() { r.stop() }()
		play(r)
	})
}

func TestOneOfManyWorkersRings(t *testing.T) {
	inShop(t, 3, func(r *rig) {
		begun := time.Now()
		r.say(dmAB, "bob", "hello")
		soon()
		p := r.want(r.apns, 1, "a message")[0]
		if p.Body != "hello" || p.To.Token != "aa" || p.Badge != 1 || p.at.Sub(begun) > 150*time.Millisecond {
			t.Errorf("after %s: %+v", p.at.Sub(begun), p.Push)
		}
		if s := r.slot(dmAB); s.Bell != nil || s.Shown != 1 || s.task.Owner != "" || s.task.At != store.Never {
			t.Errorf("the slot: %+v", s)
		}
		steps := ""
		for _, s := range r.explain(1) {
			steps += s.Step + ":" + s.Reason + " "
		}
		if steps != "eligible:message grace:nobody_online record:rung " {
			t.Errorf("explained as %s", steps)
		}
		time.Sleep(2 * aliveEvery)
		if r.g.Pending() != 0 {
			t.Errorf("%d bells stay", r.g.Pending())
		}
	})
}

func TestWorkersLookBeforeTheyRing(t *testing.T) {
	desk := im.DeviceKey{User: "alice", Device: "desk"}
	inShop(t, 2, func(r *rig) {
		r.fam.online[desk] = true
		r.say(dmAB, "bob", "1")
		time.Sleep(3 * time.Second)
		if s := r.slot(dmAB); s.Bell == nil || s.task.Owner != "" {
			t.Errorf("within the grace: %+v", s)
		}
		r.mem.mu.Lock()
		r.mem.cursors[slotKey{phone, dmAB}] = 1
		r.mem.mu.Unlock()
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "after the acknowledgement")

		seq := r.say(dmAB, "bob", "2")
		synctest.Wait()
		r.read("desk", seq)
		synctest.Wait()
		if s := r.slot(dmAB); s.task.Ver != 0 {
			t.Errorf("the gateway takes the bell away at the reading: %+v", s)
		}
		time.Sleep(3 * time.Minute)
		r.want(r.apns, 0, "after the reading")

		begun := time.Now()
		r.say(dmAB, "bob", "3")
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 1, "not seen"); p[0].at.Sub(begun) < 4*time.Second || p[0].at.Sub(begun) > 4150*time.Millisecond {
			t.Errorf("rang after %s", p[0].at.Sub(begun))
		}
	})
	inShop(t, 2, func(r *rig) { // read while the worker looks up what to show
		r.fam.slow = time.Second
		seq := r.say(dmAB, "bob", "1")
		time.Sleep(500 * time.Millisecond)
		if !r.slot(dmAB).held(time.Now().UnixMilli()) {
			t.Error("no worker has it yet")
		}
		r.read("desk", seq)
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "read as late as that")
		if s := r.slot(dmAB); s.task.Ver != 0 {
			t.Errorf("the slot stays: %+v", s)
		}
	})
}

// TestReadWhileItRings: the reading finds the slot taken and the alert not yet
// shown; the worker takes it off the screen.
func TestReadWhileItRings(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.apns.slow = 3 * time.Second
		seq := r.say(dmAB, "bob", "1")
		time.Sleep(time.Second)
		r.read("desk", seq)
		time.Sleep(time.Minute)
		p := r.want(r.apns, 2, "an alert and a clear")
		if p[1].Kind != Clear {
			t.Errorf("%+v", p[1].Push)
		}
		if s := r.slot(dmAB); s.task.Ver != 0 {
			t.Errorf("the slot stays: %+v", s)
		}
	})
}

func TestNewerWhileItRings(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.apns.slow = 3 * time.Second
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Second)
		r.say(dmAB, "bob", "2")
		r.say(dmAB, "bob", "3")
		synctest.Wait()
		if s := r.slot(dmAB); !s.held(time.Now().UnixMilli()) || s.Bell.Last != 3 || s.Bell.Count != 3 {
			t.Errorf("while it rings: %+v %+v", s, s.Bell)
		}
		time.Sleep(time.Minute)
		p := r.want(r.apns, 2, "one for the first, one for the rest")
		if p[0].Data["seq"] != "1" || p[1].Data["seq"] != "3" || p[0].Collapse != p[1].Collapse || p[0].ID == p[1].ID {
			t.Errorf("%+v %+v", p[0].Push, p[1].Push)
		}
		if s := r.slot(dmAB); s.Bell != nil || s.Shown != 3 {
			t.Errorf("the slot: %+v", s)
		}
	})
}

// TestAnotherTakesOver: a worker is killed while it rings; when its lease is over
// another rings, under the same id.
func TestAnotherTakesOver(t *testing.T) {
	inShop(t, 3, func(r *rig) {
		r.apns.slow = 5 * time.Second
		begun := time.Now()
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Second)
		if n := r.kill(); n != 1 {
			t.Fatalf("%d workers ring", n)
		}
		time.Sleep(time.Minute)
		p := r.want(r.apns, 2, "rung again")
		if p[0].ID != p[1].ID || p[0].Collapse != p[1].Collapse {
			t.Errorf("under another id: %+v %+v", p[0].Push, p[1].Push)
		}
		if d := p[1].at.Sub(begun); d < 29*time.Second || d > 31*time.Second {
			t.Errorf("taken over after %s", d)
		}
		if s := r.slot(dmAB); s.Bell != nil || s.Shown != 1 {
			t.Errorf("the slot: %+v", s)
		}
	})
}

// TestALongAttemptKeepsItsLease: longer than the lease, which is renewed; a
// worker that cannot renew it any more leaves what others did alone.
func TestALongAttemptKeepsItsLease(t *testing.T) {
	inShop(t, 3, func(r *rig) {
		r.apns.slow = 29 * time.Second
		r.lease = 9 * time.Second
		r.stop()
		r.start()
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "a slow provider")
	})
}

// TestAfterALostLease: what a worker would write about a slot that another has
// meanwhile is not written.
func TestAfterALostLease(t *testing.T) {
	inShop(t, 1, func(r *rig) {
		w := r.workers[0]
		r.apns.slow = 2 * time.Second
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Second)
		ts, _ := r.mem.TasksOf(context.Background(), []string{slotKey{phone, dmAB}.task()})
		ts[0].Owner, ts[0].At = "somebody else", time.Now().Add(time.Hour).UnixMilli()
		if done, err := r.mem.PutTasks(context.Background(), ts); err != nil || !done[0] {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if s := r.slot(dmAB); s.task.Owner != "somebody else" || s.task.Ver != ts[0].Ver || s.Bell == nil || w.Held() != 0 {
			t.Errorf("the slot: %+v, %d held", s, w.Held())
		}
	})
	inShop(t, 1, func(r *rig) { // and nothing is sent when the lease ran out before
		r.fam.slow = 20 * time.Second
		r.lease = 9 * time.Second
		r.stop()
		r.start()
		r.workers[0].stuck.Store(true)
		r.say(dmAB, "bob", "1")
		time.Sleep(25 * time.Second)
		r.want(r.apns, 0, "a lease that ran out")
	})
}

func TestWorkersAnswers(t *testing.T) {
	for why, tt := range map[string]struct {
		answer func(n int) Result
		tries  int
		stays  bool // the address
		dead   int
	}{
		"gone": {func(int) Result { return Result{Outcome: Gone} }, 1, false, 0},
		"gone, but not this": {func(n int) Result {
			return []Result{{Outcome: Gone, Since: time.Now().Add(-time.Hour)}, {}}[min(n, 2)-1]
		}, 2, true, 0},
		"of another app":        {func(int) Result { return Result{Outcome: Misplaced} }, 1, false, 0},
		"wrong":                 {func(int) Result { return Result{Outcome: Rejected, Reason: "BadTopic"} }, 1, true, 1},
		"too large, then not":   {func(n int) Result { return []Result{{Outcome: TooLarge}, {}}[min(n, 2)-1] }, 2, true, 0},
		"too large always":      {func(int) Result { return Result{Outcome: TooLarge} }, 3, true, 1},
		"a failure that passes": {func(n int) Result { return []Result{{Outcome: Retry, Reason: "http 503"}, {}}[min(n, 2)-1] }, 2, true, 0},
	} {
		inShop(t, 3, func(r *rig) {
			r.apns.answer = func(_ *Push, n int) Result { return tt.answer(n) }
			r.say(dmAB, "bob", "x")
			time.Sleep(10 * time.Minute)
			ps := r.want(r.apns, tt.tries, why)
			for _, p := range ps {
				if p.ID != ps[0].ID || p.Collapse != ps[0].Collapse {
					t.Errorf("%s: another id at a retry", why)
				}
			}
			dead, _ := r.g.Dead(context.Background())
			_, noteErr := r.mem.Note(context.Background(), (&Registration{Device: phone}).key())
			if (len(r.g.Registrations("alice")) == 1) != tt.stays || (noteErr == nil) != tt.stays || len(dead) != tt.dead || r.g.Pending() != 0 {
				t.Errorf("%s: %d addresses (%v), %d dead, %d pending", why, len(r.g.Registrations("alice")), noteErr, len(dead), r.g.Pending())
			}
			if left, _ := r.notes(noteLearned); len(left) != 0 {
				t.Errorf("%s: the gateway leaves %v", why, left)
			}
		})
	}
}

// notes are the keys below a prefix.
func (r *rig) notes(prefix string) (keys []string, err error) {
	err = r.mem.EachNote(context.Background(), prefix, func(n store.Note) bool {
		keys = append(keys, n.Key)
		return true
	})
	return keys, err
}

// TestWorkersLeaveANewAddress: the app registers a new token, or logs out, while a
// worker sends to the old one, which is gone.
func TestWorkersLeaveANewAddress(t *testing.T) {
	for _, o := range []Outcome{Gone, Misplaced} {
		inShop(t, 2, func(r *rig) {
			r.apns.then(func(_ *Push, n int) Result {
				if n > 1 {
					return Result{}
				}
				r.register(phone, Address{Provider: APNs, App: "ios", Token: "bb"})
				return Result{Outcome: o, Reason: "said of the old one"}
			})
			r.say(dmAB, "bob", "1")
			time.Sleep(time.Minute)
			if p := r.want(r.apns, 2, "the new address rings"); p[1].To.Token != "bb" {
				t.Errorf("rung at %s", p[1].To.Token)
			}
			for range 2 {
				if got := r.g.Registrations("alice"); len(got) != 1 || got[0].Token != "bb" {
					t.Errorf("%+v", got)
				}
				r.stop()
				r.start()
			}
		})
	}
	inShop(t, 2, func(r *rig) {
		r.apns.then(func(*Push, int) Result {
			if err := r.g.Unregister(context.Background(), phone); err != nil {
				t.Error(err)
			}
			return Result{Environment: "sandbox"}
		})
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "a message")
		if left, _ := r.notes(noteAt); len(left)+len(r.g.Registrations("alice")) != 0 {
			t.Errorf("logged out, and registered again by the answer: %v", left)
		}
		if s := r.slot(dmAB); s.task.Ver != 0 {
			t.Errorf("the slot stays: %+v", s)
		}
	})
	inShop(t, 2, func(r *rig) { // registered anew between the look and the push
		r.fam.slow = time.Second
		r.say(dmAB, "bob", "1")
		time.Sleep(500 * time.Millisecond)
		r.register(phone, Address{Provider: FCM, App: "android", Token: "cc"})
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "the old address")
		r.want(r.fcm, 1, "the new one, of another app")
	})
}

func TestWorkersRememberWhereATokenIsFrom(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.apns.answer = func(*Push, int) Result { return Result{Environment: "sandbox"} }
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Minute)
		r.say(dmAB, "bob", "2")
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 2, "two messages"); p[1].To.Environment != "sandbox" {
			t.Errorf("%+v", p[1].To)
		}
		if got := r.g.Registrations("alice"); len(got) != 1 || got[0].Environment != "sandbox" {
			t.Errorf("the gateway has %+v", got)
		}
	})
}

func TestWorkersRetryUntilItIsTooLate(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.poll = 5 * time.Second // a day of them
		r.stop()
		r.start()
		r.apns.then(func(*Push, int) Result { return Result{Outcome: Retry, Reason: "http 503"} })
		r.say(dmAB, "bob", "1")
		time.Sleep(25 * time.Hour)
		ps := r.apns.pushes()
		for _, p := range ps {
			if p.ID != ps[0].ID || p.Collapse != ps[0].Collapse {
				t.Fatalf("%s and %s", p.ID, ps[0].ID)
			}
		}
		dead, err := r.g.Dead(context.Background())
		if err != nil || len(dead) != 1 || dead[0].Reason != "expired after http 503" || len(ps) < 90 || r.g.Pending() != 0 {
			t.Fatalf("%+v %v after %d tries", dead, err, len(ps))
		}
		r.apns.then(nil)
		if k, err := r.g.Replay(context.Background(), nil); k != 1 || err != nil {
			t.Error(k, err)
		}
		time.Sleep(20 * time.Second)
		r.want(r.apns, len(ps)+1, "a replayed letter")
		if dead, _ := r.g.Dead(context.Background()); len(dead) != 0 {
			t.Error("the letter stays")
		}
	})
}

func TestWorkersCircuits(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.register(im.DeviceKey{User: "alice", Device: "tablet"}, Address{Provider: FCM, App: "android", Token: "bb"})
		var broken atomic.Bool
		broken.Store(true)
		r.apns.answer = func(*Push, int) Result {
			if broken.Load() {
				return Result{Outcome: Locked, Reason: "InvalidProviderToken"}
			}
			return Result{}
		}
		for i := range 10 {
			u := im.UserID(fmt.Sprint("u", i))
			r.say(im.DM("alice", u), u, "x")
		}
		time.Sleep(10 * time.Second)
		r.want(r.fcm, 10, "the other app")
		n := len(r.apns.pushes())
		if n > 10 {
			t.Errorf("%d attempts with refused credentials", n)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if probes := len(r.apns.pushes()) - n; probes < 20 || probes > 42 {
			t.Errorf("%d probes of two workers in ten minutes, want one each 30 s", probes)
		}
		if r.g.Pending() != 10 {
			t.Errorf("%d wait", r.g.Pending())
		}
		broken.Store(false)
		for _, w := range r.workers {
			w.Reloaded("ios")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r.g.Pending() != 0 {
			t.Errorf("%d still wait though it works again", r.g.Pending())
		}
	})
}

func TestWorkersKeepADevicesPaceTogether(t *testing.T) {
	inShop(t, 3, func(r *rig) {
		for i := range 30 {
			u := im.UserID(fmt.Sprint("u", i))
			r.say(im.DM("alice", u), u, "x")
		}
		time.Sleep(900 * time.Millisecond)
		r.want(r.apns, loudBurst, "a burst")
		time.Sleep(5 * time.Second)
		if n := len(r.apns.pushes()); n < loudBurst+4 || n > loudBurst+6 {
			t.Errorf("%d, want one a second", n)
		}
		time.Sleep(time.Minute)
		r.want(r.apns, 30, "all in the end")
	})
}

func TestWorkersClearAfterReading(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		seq := r.say(dmAB, "bob", "1")
		soon()
		r.want(r.apns, 1, "a message")
		r.read("desk", seq)
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 2, "read elsewhere")[1]; p.Kind != Clear || !p.SetBadge || p.Body != "" {
			t.Errorf("%+v", p.Push)
		}
		r.read("desk", seq)
		time.Sleep(time.Minute)
		r.want(r.apns, 2, "it is clear already")
		seq = r.say(dmAB, "bob", "2")
		time.Sleep(time.Minute)
		r.want(r.apns, 3, "another")
		r.read("phone", seq)
		time.Sleep(time.Minute)
		r.want(r.apns, 3, "read on the phone itself")
		for range 2 * silentBurst {
			seq = r.say(dmAB, "bob", "x")
			time.Sleep(2 * time.Second)
			r.read("desk", seq)
			time.Sleep(30 * time.Second)
		}
		clears := 0
		for _, p := range r.apns.pushes() {
			if p.Kind == Clear {
				clears++
			}
		}
		if clears != silentBurst {
			t.Errorf("%d silent pushes in a few minutes, want %d", clears, silentBurst)
		}
	})
}

func TestWorkersCalls(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		call := im.Ephemeral{Conv: dmAB, From: "bob", Verb: im.VerbSignal, Type: CallType}
		r.register(phone, Address{Provider: APNs, App: "ios", Token: "cc", Kind: KindVoIP})
		r.g.Signal(call)
		soon()
		p := r.want(r.apns, 1, "a call")[0]
		if p.Kind != Call || p.To.Token != "cc" {
			t.Errorf("%+v", p.Push)
		}
		r.apns.then(func(*Push, int) Result { return Result{Outcome: Retry, Reason: "network", After: time.Minute} })
		r.g.Signal(call)
		time.Sleep(time.Hour)
		p2 := r.want(r.apns, 2, "a call that comes too late")[1]
		if p2.ID == p.ID {
			t.Error("another call under the same id")
		}
		if ts, _ := r.mem.CountTasks(context.Background(), queueOf("ios"), store.Never); ts != 0 {
			t.Error("it waits still")
		}
	})
}

// TestFromOneWayToTheOther: bells that wait, and what is on screens, outlive a
// change of who rings.
func TestFromOneWayToTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShop(t, 0)
		defer func() { r.stop() }()
		r.say(dmAB, "bob", "shown")
		r.want(r.apns, 1, "a message")
		r.fam.online[im.DeviceKey{User: "alice", Device: "desk"}] = true
		r.say("d/alice/carol", "carol", "waits")
		synctest.Wait()
		for i, shop := range []int{2, 0, 1} {
			r.stop()
			r.shop = shop
			r.start()
			synctest.Wait()
			bells, _ := r.notes(noteBell)
			shown, _ := r.notes(noteShown)
			r.mem.mu.Lock() // workers look what is due
			tasks := len(r.mem.tasks)
			r.mem.mu.Unlock()
			if want := map[bool][3]int{true: {0, 0, 2}, false: {1, 1, 0}}[shop > 0]; [3]int{len(bells), len(shown), tasks} != want {
				t.Errorf("change %d: %v %v, %d tasks", i, bells, shown, tasks)
			}
		}
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 2, "what waited"); p[1].Data["conv"] != "dm/carol" {
			t.Errorf("%+v", p[1].Push)
		}
		r.read("desk", 1)
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 3, "what was shown, read elsewhere"); p[2].Kind != Clear {
			t.Errorf("%+v", p[2].Push)
		}
	})
}

// TestAnAppThatIsGone: its bells wait in a queue that nobody serves; they go to
// where their device is now, or are dead letters.
func TestAnAppThatIsGone(t *testing.T) {
	inShop(t, 1, func(r *rig) {
		r.stop()
		r.say(dmAB, "bob", "1")
		b := &bell{Kind: Alert, First: 1, Last: 1, Count: 1, Expires: time.Now().Add(time.Hour).UnixMilli()}
		if err := r.g.shared.alter(context.Background(), []slotKey{{phone, dmAB}}, func(s *slot, _ bool) bool {
			s.Bell, s.task.Queue = b, queueOf("old")
			return true
		}); err != nil {
			t.Fatal(err)
		}
		r.start()
		time.Sleep(2 * aliveEvery)
		r.want(r.apns, 1, "its device has another app now")
	})
}

// TestACrashOfEveryWriteLosesNoBell ends all that writes after each write in
// turn, workers and gateway, and wants every device rung by those that come
// after, and never with another id for the same message.
func TestACrashOfEveryWriteLosesNoBell(t *testing.T) {
	for failAt := 2; failAt < 90; failAt++ {
		inShop(t, 2, func(r *rig) {
			r.talkUntil(failAt)
			r.start()
			time.Sleep(2 * time.Minute)
			r.wantAllRung(failAt)
		})
	}
}

// TestTwoTurnsAtOnce: two workers that take a turn in the same millisecond want to
// write the same; that is two turns all the same.
func TestTwoTurnsAtOnce(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		synctest.Wait()
		b := &bell{Kind: Alert, key: slotKey{phone, dmAB}}
		var read []*address
		for _, w := range r.workers {
			a, err := w.addressOf(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			read = append(read, a)
		}
		for i, w := range r.workers {
			if wait, ok, err := w.takeTurn(context.Background(), b, read[i]); wait != 0 || !ok || err != nil {
				t.Error(wait, ok, err)
			}
		}
		a, err := r.workers[0].addressOf(context.Background(), b)
		if want := time.Now().Add(2 * loudEvery).UnixMilli(); err != nil || a.Loud != want {
			t.Errorf("the next turn is at %d, want %d: %v", a.Loud, want, err)
		}
	})
}

// TestAnOlderAlertIsTakenAway: a second message is read while a worker looks
// whether to ring for it; it does not, and takes away the first.
func TestAnOlderAlertIsTakenAway(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.say(dmAB, "bob", "1")
		soon()
		r.want(r.apns, 1, "the first")
		r.fam.slow = time.Second
		seq := r.say(dmAB, "bob", "2")
		time.Sleep(500 * time.Millisecond)
		r.read("desk", seq)
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 2, "read meanwhile"); p[1].Kind != Clear {
			t.Errorf("%+v", p[1].Push)
		}
	})
}

// TestLookedAtAgain: the gateway dies between writing bells and the mark, and the
// next one looks at the entry again when it has rung.
func TestLookedAtAgain(t *testing.T) {
	inShop(t, 2, func(r *rig) {
		r.say(dmAB, "bob", "1")
		soon()
		r.want(r.apns, 1, "a message")
		r.stop()
		r.mem.mu.Lock()
		delete(r.mem.notes, noteMark+string(dmAB))
		r.mem.mu.Unlock()
		r.start()
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "looked at again")
		if _, err := r.mem.Note(context.Background(), noteMark+string(dmAB)); err != nil {
			t.Error("it was not looked at again")
		}
	})
}

// TestAProbeThatFindsNothingOut: the bell with which refused credentials were to
// be tried is not needed any more, or gone; the next is tried.
func TestAProbeThatFindsNothingOut(t *testing.T) {
	for _, told := range []bool{true, false} {
		inShop(t, 1, func(r *rig) {
			r.apns.then(func(*Push, int) Result { return Result{Outcome: Locked, Reason: "InvalidProviderToken"} })
			seq := r.say(dmAB, "bob", "1")
			soon()
			r.want(r.apns, 1, "credentials refused")
			r.apns.then(nil)
			if told {
				r.read("desk", seq)
			} else { // the gateway does not hear of it
				r.mem.mu.Lock()
				r.mem.reads["alice "+string(dmAB)] = seq
				r.mem.mu.Unlock()
			}
			time.Sleep(5 * time.Minute)
			r.want(r.apns, 1, "a probe without a bell")
			r.say("d/alice/carol", "carol", "x")
			time.Sleep(time.Minute)
			r.want(r.apns, 2, "the next bell")
		})
	}
}
