package pushgw

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// memory is a store under a clock that the test moves: what the gateway asks of
// the engines is shown by their own suite.
type memory struct {
	mu      sync.Mutex
	notes   map[string][]byte
	tasks   map[string]store.Task
	log     map[im.ConvID][]*im.Entry
	cursors map[slotKey]im.Seq
	reads   map[string]im.Seq
	writes  int
	ver     uint64
	failAt  int // the write after which nothing is written any more; 0: never

	unreadable bool   // the log cannot be read
	writing    func() // before each write of notes; nil: nothing
	looking    func() // after a cursor was read; nil: nothing
}

func newMemory() *memory {
	return &memory{notes: map[string][]byte{}, tasks: map[string]store.Task{}, log: map[im.ConvID][]*im.Entry{}, cursors: map[slotKey]im.Seq{}, reads: map[string]im.Seq{}}
}

func (m *memory) Note(_ context.Context, k string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.notes[k]; ok {
		return v, nil
	}
	return nil, im.Refuse(im.NotFound, "", "note not found")
}

func (m *memory) EachNote(_ context.Context, prefix string, fn func(store.Note) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for k := range m.notes {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !fn(store.Note{Key: k, Value: m.notes[k]}) {
			return nil
		}
	}
	return nil
}

func (m *memory) PutNotes(_ context.Context, ns []store.Note, _ bool) error {
	if m.writing != nil {
		m.writing()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.failAt > 0 && m.writes >= m.failAt {
		return errors.New("crashed")
	}
	for _, n := range ns {
		if n.Value == nil {
			delete(m.notes, n.Key)
		} else {
			m.notes[n.Key] = n.Value
		}
	}
	return nil
}

func (m *memory) TasksOf(_ context.Context, keys []string) ([]store.Task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]store.Task, len(keys))
	for i, k := range keys {
		if out[i] = m.tasks[k]; out[i].Ver == 0 {
			out[i].Key = k
		}
	}
	return out, nil
}

func (m *memory) EachTask(_ context.Context, prefix string, fn func(store.Task) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(m.tasks)) {
		if strings.HasPrefix(k, prefix) && !fn(m.tasks[k]) {
			return nil
		}
	}
	return nil
}

func (m *memory) CountTasks(_ context.Context, queue string, before int64) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tasks {
		if t.Queue == queue && t.At < before {
			n++
		}
	}
	return n, nil
}

func (m *memory) PutTasks(_ context.Context, ts []store.Task) ([]bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	done := make([]bool, len(ts))
	if len(ts) == 0 {
		return done, nil
	}
	if m.writes++; m.failAt > 0 && m.writes >= m.failAt {
		return done, im.Refuse(im.Unavailable, "", "crashed")
	}
	for i := range ts {
		t := &ts[i]
		old, found := m.tasks[t.Key]
		if done[i] = old.Ver == t.Ver || (t.Value == nil && !found); !done[i] {
			continue
		}
		m.ver++
		t.Ver = m.ver
		if t.Value == nil {
			delete(m.tasks, t.Key)
		} else {
			m.tasks[t.Key] = *t
		}
	}
	return done, nil
}

func (m *memory) TakeTasks(ctx context.Context, queue, owner string, now, until int64, limit int) ([]store.Task, error) {
	m.mu.Lock()
	var ts []store.Task
	for _, t := range m.tasks {
		if t.Queue == queue && t.At <= now {
			t.Owner = owner
			ts = append(ts, t)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(ts, func(a, b store.Task) int { return cmp.Compare(a.At, b.At) })
	ts = ts[:min(limit, len(ts))]
	for i := range ts {
		ts[i].At = until
	}
	done, err := m.PutTasks(ctx, ts)
	if err != nil {
		return nil, err
	}
	taken := ts[:0]
	for i := range ts {
		if done[i] {
			taken = append(taken, ts[i])
		}
	}
	return taken, nil
}

func (m *memory) SwapNote(_ context.Context, key string, old, value []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.notes[key]
	if (now == nil) != (old == nil) || !bytes.Equal(now, old) {
		return (now == nil) == (value == nil) && bytes.Equal(now, value), nil
	}
	if m.writes++; m.failAt > 0 && m.writes >= m.failAt {
		return false, errors.New("crashed")
	}
	if value == nil {
		delete(m.notes, key)
	} else {
		m.notes[key] = value
	}
	return true, nil
}

func (m *memory) Range(_ context.Context, conv im.ConvID, after im.Seq, limit, _ int) ([]*im.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unreadable {
		return nil, errors.New("unreadable")
	}
	es := m.log[conv]
	es = es[min(int(after), len(es)):]
	return es[:min(limit, len(es))], nil
}

func (m *memory) Before(_ context.Context, conv im.ConvID, before im.Seq, limit int) ([]*im.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	es := m.log[conv]
	if before > 0 {
		es = es[:min(int(before)-1, len(es))]
	}
	return es[max(0, len(es)-limit):], nil
}

func (m *memory) Heads(_ context.Context, convs []im.ConvID) ([]store.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unreadable {
		return nil, errors.New("unreadable")
	}
	out := make([]store.Head, len(convs))
	for i, c := range convs {
		if es := m.log[c]; len(es) > 0 {
			out[i] = store.Head{Seq: es[len(es)-1].Seq, TS: es[len(es)-1].TS}
		}
	}
	return out, nil
}

func (m *memory) EachConversation(_ context.Context, after im.ConvID, fn func(im.ConvID) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []im.ConvID
	for k := range m.log {
		if k > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !fn(k) {
			return nil
		}
	}
	return nil
}

func (m *memory) Cursor(_ context.Context, k im.DeviceKey, conv im.ConvID) (store.Cursor, error) {
	m.mu.Lock()
	c, looking := store.Cursor{Conv: conv, Acked: m.cursors[slotKey{k, conv}], Known: true}, m.looking
	m.mu.Unlock()
	if looking != nil {
		looking()
	}
	return c, nil
}

func (m *memory) ReadsOf(_ context.Context, u im.UserID, convs []im.ConvID) ([]im.Seq, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]im.Seq, len(convs))
	for i, c := range convs {
		out[i] = m.reads[string(u)+" "+string(c)]
	}
	return out, nil
}

// family is the House.
type family struct {
	mu     sync.Mutex
	online map[im.DeviceKey]bool
	groups map[im.GroupID][]im.UserID
	slow   time.Duration // how long it takes to count what is unread
}

func (f *family) Members(_ context.Context, g im.GroupID) ([]im.UserID, error) {
	return f.groups[g], nil
}
func (f *family) UserName(_ context.Context, u im.UserID) string   { return string(u) }
func (f *family) GroupName(_ context.Context, g im.GroupID) string { return string(g) }
func (f *family) Unread(context.Context, im.UserID) (int, error) {
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	time.Sleep(slow)
	return 1, nil
}
func (f *family) Online(k im.DeviceKey) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.online[k]
}
func (f *family) AnyOnline(u im.UserID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, on := range f.online {
		if on && k.User == u {
			return true
		}
	}
	return false
}

// rang is a push that a provider was given.
type rang struct {
	*Push
	at time.Time
}

// provider answers as the test says.
type provider struct {
	mu     sync.Mutex
	got    []rang
	answer func(p *Push, n int) Result
	slow   time.Duration // how long an attempt takes
}

func (s *provider) Send(_ context.Context, p *Push) Result {
	s.mu.Lock()
	s.got = append(s.got, rang{p, time.Now()})
	n, answer := len(s.got), s.answer
	s.mu.Unlock()
	time.Sleep(s.slow)
	if answer == nil {
		return Result{}
	}
	return answer(p, n)
}

// then changes the answer.
func (s *provider) then(answer func(*Push, int) Result) {
	s.mu.Lock()
	s.answer = answer
	s.mu.Unlock()
}

func (s *provider) Close() error { return nil }

func (s *provider) pushes() []rang {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

var phone = im.DeviceKey{User: "alice", Device: "phone"}

// rig is a gateway in a bubble of testing/synctest, with workers or by itself.
type rig struct {
	t       *testing.T
	mem     *memory
	fam     *family
	apns    *provider
	fcm     *provider
	g       *Gateway
	shop    int // how many workers ring; 0: the gateway does
	workers []*hand
	lease   time.Duration
	poll    time.Duration
	stop    func()
}

func newRig(t *testing.T) *rig { return newShop(t, 0) }

func newShop(t *testing.T, workers int) *rig {
	r := &rig{t: t, shop: workers, mem: newMemory(), fam: &family{online: map[im.DeviceKey]bool{}, groups: map[im.GroupID][]im.UserID{}}, apns: &provider{}, fcm: &provider{}}
	r.start()
	r.register(phone, Address{Provider: APNs, App: "ios", Token: "aa"})
	return r
}

func (r *rig) apps() []App {
	return []App{{Name: "ios", Provider: APNs, Sender: r.apns, Workers: 4}, {Name: "android", Provider: FCM, Sender: r.fcm, Workers: 4}}
}

func (r *rig) start() {
	g, err := New(context.Background(), Options{Store: r.mem, House: r.fam, Privacy: PrivacyFull, LargeGroup: 5, Apps: r.apps(), Workers: r.shop > 0})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		g.Run(ctx)
		close(done)
	}()
	r.workers = nil
	for range r.shop {
		r.hire()
	}
	r.g, r.stop = g, func() {
		cancel()
		<-done
		for _, w := range r.workers {
			w.stop()
		}
	}
}

func (r *rig) register(k im.DeviceKey, a Address) {
	r.t.Helper()
	if err := r.g.Register(context.Background(), k, "", a); err != nil {
		r.t.Fatal(err)
	}
}

// say commits a message and tells the gateway.
func (r *rig) say(conv im.ConvID, from im.UserID, body string) im.Seq {
	r.mem.mu.Lock()
	e := &im.Entry{Conv: conv, Seq: im.Seq(len(r.mem.log[conv]) + 1), TS: time.Now().UnixMilli(), From: from, Body: []byte(body)}
	r.mem.log[conv] = append(r.mem.log[conv], e)
	r.mem.mu.Unlock()
	r.g.Offer(e)
	return e.Seq
}

// read is alice reading the conversation with bob.
func (r *rig) read(device im.DeviceID, seq im.Seq) {
	r.mem.mu.Lock()
	r.mem.reads["alice "+string(dmAB)] = seq
	r.mem.mu.Unlock()
	r.g.Read(dmAB, "alice", device, seq)
}

func (r *rig) explain(seq im.Seq) []Step {
	r.t.Helper()
	steps, err := r.g.Explain(context.Background(), dmAB, seq)
	if err != nil {
		r.t.Error(err)
	}
	return steps
}

func (r *rig) want(p *provider, n int, what string) []rang {
	r.t.Helper()
	synctest.Wait()
	got := p.pushes()
	if len(got) != n {
		r.t.Fatalf("%s: %d pushes, want %d: %+v", what, len(got), n, r.explain(1))
	}
	return got
}

const dmAB = im.ConvID("d/alice/bob")

func TestNobodyOnlineRingsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.say(dmAB, "bob", "hello")
		p := r.want(r.apns, 1, "a message")[0]
		if p.Body != "hello" || p.To.Token != "aa" || p.Badge != 1 {
			t.Errorf("%+v", p.Push)
		}
		if r.g.Pending() != 0 {
			t.Errorf("%d bells stay", r.g.Pending())
		}
		r.say(dmAB, "alice", "my own")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "one's own message")
		steps := ""
		for _, s := range r.explain(1) {
			steps += s.Step + ":" + s.Reason + " "
		}
		if steps != "eligible:message grace:nobody_online record:rung " {
			t.Errorf("explained as %s", steps)
		}
	})
}

func TestGraceCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.fam.online[im.DeviceKey{User: "alice", Device: "desk"}] = true
		r.say(dmAB, "bob", "1")
		time.Sleep(3 * time.Second)
		r.want(r.apns, 0, "within the grace")
		r.mem.mu.Lock()
		r.mem.cursors[slotKey{phone, dmAB}] = 1
		r.mem.mu.Unlock()
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "after the acknowledgement")

		seq := r.say(dmAB, "bob", "2")
		r.read("desk", seq)
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "after the reading")
		if r.g.Pending() != 0 {
			t.Error("a bell stays")
		}
		time.Sleep(2 * time.Minute) // alice is not active any more
		begun := time.Now()
		r.say(dmAB, "bob", "3")
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 1, "not seen"); p[0].at.Sub(begun) != 4*time.Second {
			t.Errorf("rang after %s", p[0].at.Sub(begun))
		}
		r.say(dmAB, "alice", "from the desk")
		synctest.Wait()
		begun = time.Now()
		r.say(dmAB, "bob", "4")
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 2, "active elsewhere"); p[1].at.Sub(begun) != 20*time.Second {
			t.Errorf("rang after %s", p[1].at.Sub(begun))
		}
	})
}

func TestNewerReplacesOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.fam.online[im.DeviceKey{User: "alice", Device: "desk"}] = true
		for i := range 5 {
			r.say(dmAB, "bob", fmt.Sprint(i))
			time.Sleep(100 * time.Millisecond)
		}
		r.say("d/alice/carol", "carol", "another")
		time.Sleep(time.Minute)
		ps := r.want(r.apns, 2, "five of bob and one of carol")
		if ps[0].Body != "4" || ps[0].Data["seq"] != "5" || ps[0].Collapse == ps[1].Collapse || ps[0].Thread == ps[1].Thread {
			t.Errorf("%+v", ps[0].Push)
		}
	})
}

// TestAMessageDuringTheLastLookRings: a bell is found to be needless, for its
// message was acknowledged, or it cannot be pushed; one that came meanwhile rings all
// the same.
func TestAMessageDuringTheLastLookRings(t *testing.T) {
	for workers := range 2 {
		synctest.Test(t, func(t *testing.T) {
			r := newShop(t, workers)
			defer func() { r.stop() }()
			r.mem.mu.Lock()
			r.mem.cursors[slotKey{phone, dmAB}] = 1
			r.mem.looking = sync.OnceFunc(func() {
				r.say(dmAB, "bob", "2")
				time.Sleep(50 * time.Millisecond) // of the bubble: it has joined
			})
			r.mem.mu.Unlock()
			r.say(dmAB, "bob", "1")
			time.Sleep(time.Minute)
			if p := r.want(r.apns, 1, fmt.Sprint(workers, " workers")); p[0].Body != "2" {
				t.Errorf("%+v", p[0].Push)
			}
			r.apns.then(func(p *Push, n int) Result { // likewise one whose push is not to be repeated
				if n > 2 {
					return Result{}
				}
				r.say(dmAB, "bob", "4")
				time.Sleep(50 * time.Millisecond)
				return Result{Outcome: Rejected, Reason: "BadTopic"}
			})
			r.say(dmAB, "bob", "3")
			time.Sleep(time.Minute)
			if p := r.want(r.apns, 3, fmt.Sprint(workers, " workers")); p[1].Body != "3" || p[2].Body != "4" {
				t.Errorf("%+v, %+v", p[1].Push, p[2].Push)
			}
		})
	}
}

func TestRetriesKeepTheirIDUntilItIsTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.apns.answer = func(_ *Push, n int) Result {
			if n <= 5 {
				return Result{Outcome: Retry, Reason: "http 503"}
			}
			return Result{}
		}
		r.say(dmAB, "bob", "1")
		time.Sleep(5 * time.Minute)
		ps := r.want(r.apns, 6, "retries")
		for _, p := range ps {
			if p.ID != ps[0].ID || p.Collapse != ps[0].Collapse {
				t.Errorf("%s and %s", p.ID, ps[0].ID)
			}
		}
		r.apns.then(func(*Push, int) Result { return Result{Outcome: Retry, Reason: "http 503"} })
		r.say(dmAB, "bob", "2")
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		dead, err := r.g.Dead(context.Background())
		if err != nil || len(dead) != 1 || dead[0].Reason != "expired after http 503" || dead[0].Last != 2 || r.g.Pending() != 0 {
			t.Fatalf("%+v %v", dead, err)
		}
		r.apns.then(nil)
		n := len(r.apns.pushes())
		if k, err := r.g.Replay(context.Background(), nil); k != 1 || err != nil {
			t.Error(k, err)
		}
		r.want(r.apns, n+1, "a replayed letter")
		if dead, _ := r.g.Dead(context.Background()); len(dead) != 0 {
			t.Error("the letter stays")
		}
	})
}

// TestAReplayedMentionIsStillOne: it rings in quiet hours, as it would have.
func TestAReplayedMentionIsStillOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.fam.groups["team"] = []im.UserID{"alice", "bob"}
		if err := r.g.PutSettings(context.Background(), "alice", "", &Quiet{From: "00:00", To: "23:59", Zone: "UTC"}); err != nil {
			t.Fatal(err)
		}
		r.apns.answer = func(*Push, int) Result { return Result{Outcome: Rejected, Reason: "BadTopic"} }
		r.say("g/team", "bob", "@alice look")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "a mention")
		r.apns.then(nil)
		if k, err := r.g.Replay(context.Background(), nil); k != 1 || err != nil {
			t.Fatal(k, err)
		}
		time.Sleep(time.Minute)
		r.want(r.apns, 2, "the same, replayed")
	})
}

// TestACallIsNotReplayed: hours later nobody is on the line.
func TestACallIsNotReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.register(phone, Address{Provider: APNs, App: "ios", Token: "cc", Kind: KindVoIP})
		r.apns.answer = func(*Push, int) Result { return Result{Outcome: Rejected, Reason: "BadTopic"} }
		r.g.Signal(im.Ephemeral{Conv: dmAB, From: "bob", Verb: im.VerbSignal, Type: CallType})
		r.want(r.apns, 1, "a call")
		r.apns.then(nil)
		time.Sleep(time.Hour)
		if k, err := r.g.Replay(context.Background(), nil); k != 0 || err != nil {
			t.Error(k, err)
		}
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "what is replayed")
	})
}

func TestABellThatExpiresBehindACircuitIsADeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.apns.answer = func(*Push, int) Result { return Result{Outcome: Locked, Reason: "InvalidProviderToken"} }
		r.say(dmAB, "bob", "1")
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		dead, err := r.g.Dead(context.Background())
		if err != nil || len(dead) != 1 || dead[0].Reason != "expired" || dead[0].Last != 1 || r.g.Pending() != 0 {
			t.Fatalf("%+v %v, %d pending", dead, err, r.g.Pending())
		}
	})
}

func TestAnswers(t *testing.T) {
	now := func() time.Time { return time.Now() }
	for why, tt := range map[string]struct {
		answer func(n int) Result
		tries  int
		stays  bool // the address
		dead   int
	}{
		"gone":                      {func(int) Result { return Result{Outcome: Gone} }, 1, false, 0},
		"gone before it registered": {func(n int) Result { return []Result{{Outcome: Gone, Since: now().Add(-time.Hour)}, {}}[min(n, 2)-1] }, 2, true, 0},
		"gone since a moment ago":   {func(int) Result { return Result{Outcome: Gone, Since: now().Add(time.Second)} }, 1, false, 0},
		"of another app":            {func(int) Result { return Result{Outcome: Misplaced} }, 1, false, 0},
		"wrong":                     {func(int) Result { return Result{Outcome: Rejected, Reason: "BadTopic"} }, 1, true, 1},
		"too large, then not":       {func(n int) Result { return []Result{{Outcome: TooLarge}, {}}[min(n, 2)-1] }, 2, true, 0},
		"too large always":          {func(int) Result { return Result{Outcome: TooLarge} }, 3, true, 1},
		"the device's limit, then not": {func(n int) Result {
			return []Result{{Outcome: Retry, Device: true, After: time.Minute}, {}}[min(n, 2)-1]
		}, 2, true, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer func() { r.stop() }()
			r.apns.answer = func(_ *Push, n int) Result { return tt.answer(n) }
			r.say(dmAB, "bob", "x")
			time.Sleep(10 * time.Minute)
			r.want(r.apns, tt.tries, why)
			dead, _ := r.g.Dead(context.Background())
			if (len(r.g.Registrations("alice")) == 1) != tt.stays || len(dead) != tt.dead || r.g.Pending() != 0 {
				t.Errorf("%s: %d addresses, %d dead, %d pending", why, len(r.g.Registrations("alice")), len(dead), r.g.Pending())
			}
		})
	}
}

func TestOneAppsCircuitDoesNotStopAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
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
			conv := im.DM("alice", im.UserID(fmt.Sprint("u", i)))
			r.say(conv, im.UserID(fmt.Sprint("u", i)), "x")
		}
		time.Sleep(10 * time.Second)
		r.want(r.fcm, 10, "the other app")
		n := len(r.apns.pushes())
		if n > 10 {
			t.Errorf("%d attempts with refused credentials", n)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if probes := len(r.apns.pushes()) - n; probes < 10 || probes > 21 {
			t.Errorf("%d probes in ten minutes, want one each 30 s", probes)
		}
		if r.g.Pending() != 10 {
			t.Errorf("%d wait", r.g.Pending())
		}
		broken.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.g.Pending() != 0 {
			t.Errorf("%d still wait though it works again", r.g.Pending())
		}
	})
}

func TestClearAfterReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.read("desk", 0)
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "a reading before anything rang")
		seq := r.say(dmAB, "bob", "1")
		r.want(r.apns, 1, "a message")
		r.read("desk", seq)
		time.Sleep(time.Minute)
		if p := r.want(r.apns, 2, "read elsewhere")[1]; p.Kind != Clear || !p.SetBadge || p.Body != "" {
			t.Errorf("%+v", p.Push)
		}
		r.read("desk", seq)
		time.Sleep(time.Minute)
		r.want(r.apns, 2, "it is clear already")
		time.Sleep(5 * time.Minute)
		seq = r.say(dmAB, "bob", "2")
		time.Sleep(time.Minute)
		r.want(r.apns, 3, "another")
		r.read("phone", seq)
		time.Sleep(time.Minute)
		r.want(r.apns, 3, "read on the phone itself")
	})
}

func TestLargeGroupsAndLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.fam.groups["big"] = []im.UserID{"alice", "b", "c", "d", "e", "f", "g"}
		r.say("g/big", "b", "to nobody in particular")
		r.say("g/big", "b", "for @zoe") // who is no member
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "a large group")
		r.say("g/big", "b", "@alice look")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "a mention")
		if err := r.g.PutLevel(context.Background(), "alice", "g/big", ConvLevel{Level: LevelAll}); err != nil {
			t.Fatal(err)
		}
		r.say("g/big", "b", "anything")
		time.Sleep(time.Minute)
		r.want(r.apns, 2, "all is wanted")
		_ = r.g.PutLevel(context.Background(), "alice", "g/big", ConvLevel{})
		r.say("g/big", "b", "anything")
		time.Sleep(time.Minute)
		r.want(r.apns, 2, "no longer")
		r.say("g/big", "b", "@all now")
		time.Sleep(time.Minute)
		r.want(r.apns, 3, "everybody")
	})
}

func TestCallsRingAtOnceOrNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		call := im.Ephemeral{Conv: dmAB, From: "bob", Verb: im.VerbSignal, Type: CallType}
		r.g.Signal(call)
		r.g.Signal(im.Ephemeral{Conv: dmAB, From: "bob", Verb: im.VerbSignal})
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "without a VoIP token")
		r.register(phone, Address{Provider: APNs, App: "ios", Token: "cc", Kind: KindVoIP})
		_ = r.g.PutSettings(context.Background(), "alice", "", &Quiet{From: "00:00", To: "23:59", Zone: "UTC"})
		r.g.Signal(call)
		p := r.want(r.apns, 1, "a call, in quiet hours")[0]
		if p.Kind != Call || p.To.Token != "cc" || p.Expires.Sub(p.at) != 30*time.Second {
			t.Errorf("%+v", p.Push)
		}
		r.say(dmAB, "bob", "a message")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "a message, in quiet hours")
		r.apns.then(func(*Push, int) Result { return Result{Outcome: Retry, Reason: "network", After: time.Minute} })
		r.g.Signal(call)
		time.Sleep(time.Hour)
		r.want(r.apns, 2, "a call that comes too late")
		if r.g.Pending() != 0 {
			t.Error("it waits still")
		}
	})
}

func TestATokenMovesWithItsDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		bobs := im.DeviceKey{User: "bob", Device: "phone"}
		r.register(bobs, Address{Provider: APNs, App: "ios", Token: "aa"}) // alice logged out on it, and was not heard
		r.say(dmAB, "bob", "to alice")
		time.Sleep(time.Minute)
		r.want(r.apns, 0, "alice has no phone any more")
		r.say(dmAB, "alice", "to bob")
		r.want(r.apns, 1, "bob has it")
		if err := r.g.Revoked(context.Background(), "bob", ""); err != nil {
			t.Fatal(err)
		}
		r.stop()
		r.start()
		if len(r.g.Registrations("alice"))+len(r.g.Registrations("bob")) != 0 {
			t.Error("a registration came back")
		}
		for _, a := range []Address{{Provider: APNs, App: "android", Token: "x"}, {Provider: APNs, App: "nope", Token: "x"}, {Provider: APNs, App: "ios"}} {
			if err := r.g.Register(context.Background(), bobs, "", a); !im.Is(err, im.Invalid) {
				t.Errorf("%+v: %v", a, err)
			}
		}
	})
}

// TestACrashLosesNoBell ends the gateway after each of its writes in turn, and
// wants every device rung by the next run, and never with another id for the
// same message.
func TestACrashLosesNoBell(t *testing.T) {
	for failAt := 2; failAt < 40; failAt++ {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.talkUntil(failAt)
			time.Sleep(10 * time.Second)
			r.start()
			defer func() { r.stop() }()
			time.Sleep(time.Minute)
			r.wantAllRung(failAt)
		})
	}
}

// talkUntil has six messages said to alice and in a group, while all writes from
// the one given on fail, and stops everything.
func (r *rig) talkUntil(failAt int) {
	r.fam.groups["team"] = []im.UserID{"alice", "bob", "carol"}
	r.register(im.DeviceKey{User: "carol", Device: "phone"}, Address{Provider: APNs, App: "ios", Token: "dd"})
	r.mem.mu.Lock()
	r.mem.writes, r.mem.failAt = 0, failAt
	r.mem.mu.Unlock()
	for i := range 6 {
		r.say(dmAB, "bob", fmt.Sprint(i))
		r.say("g/team", "bob", fmt.Sprint(i))
		time.Sleep(time.Second)
	}
	r.stop()
	r.mem.mu.Lock()
	r.mem.failAt = 0
	r.mem.mu.Unlock()
}

// wantAllRung wants every device rung for the last of talkUntil's messages, one id
// for each message, and nothing left to do.
func (r *rig) wantAllRung(failAt int) {
	r.t.Helper()
	synctest.Wait()
	ids := map[string]string{} // by token, conversation and message
	last := map[string]string{}
	for _, p := range r.apns.pushes() {
		k := p.To.Token + " " + p.Data["conv"]
		if old := ids[k+p.Data["seq"]]; old != "" && old != p.ID {
			r.t.Errorf("write %d: %s %s has two ids", failAt, k, p.Data["seq"])
		}
		ids[k+p.Data["seq"]], last[k] = p.ID, p.Data["seq"]
	}
	for _, k := range []string{"aa dm/bob", "aa g/team", "dd g/team"} {
		if last[k] != "6" {
			r.t.Errorf("write %d: %s was last rung for %q", failAt, k, last[k])
		}
	}
	if r.g.Pending() != 0 {
		r.t.Errorf("write %d: %d bells stay", failAt, r.g.Pending())
	}
}

func TestManyPushesToOneDeviceAreSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		for i := range 30 {
			u := im.UserID(fmt.Sprint("u", i))
			r.say(im.DM("alice", u), u, "x")
		}
		r.want(r.apns, loudBurst, "a burst")
		time.Sleep(5 * time.Second)
		r.want(r.apns, loudBurst+5, "then one a second")
		time.Sleep(time.Minute)
		r.want(r.apns, 30, "all in the end")
	})
}

// TestAnAnswerAboutAnOldAddressLeavesTheNewOne: the app registers a new token, or
// logs out, while a push to the old one is under way.
func TestAnAnswerAboutAnOldAddressLeavesTheNewOne(t *testing.T) {
	for _, o := range []Outcome{Gone, Misplaced} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer func() { r.stop() }()
			r.apns.then(func(p *Push, n int) Result {
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
			r.stop()
			r.start()
			if got := r.g.Registrations("alice"); len(got) != 1 || got[0].Token != "bb" {
				t.Errorf("after a restart: %+v", got)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.apns.then(func(*Push, int) Result {
			if err := r.g.Unregister(context.Background(), phone); err != nil {
				t.Error(err)
			}
			return Result{Environment: "sandbox"}
		})
		r.say(dmAB, "bob", "1")
		time.Sleep(time.Minute)
		r.want(r.apns, 1, "a message")
		if got := r.g.Registrations("alice"); len(got) != 0 {
			t.Errorf("logged out, and registered again by the answer: %+v", got)
		}
		r.stop()
		r.start()
		if got := r.g.Registrations("alice"); len(got) != 0 {
			t.Errorf("after a restart: %+v", got)
		}
	})
}

// TestABacklogOutlivesTheGateway: entries that could not be looked at for longer
// than the mark of life reaches back ring after a restart, be it that they came
// while the group could not be read, or that the first look round was not over.
func TestABacklogOutlivesTheGateway(t *testing.T) {
	for _, when := range []string{"live", "catching up"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			defer func() { r.stop() }()
			broken := func(on bool) {
				r.mem.mu.Lock()
				r.mem.unreadable = on
				r.mem.mu.Unlock()
			}
			r.say(dmAB, "bob", "1")
			r.want(r.apns, 1, when)
			time.Sleep(10 * time.Minute)
			if when == "live" {
				broken(true)
				r.say(dmAB, "bob", "2")
			} else {
				r.stop()
				r.say(dmAB, "bob", "2") // committed as it ended
				broken(true)
				r.start()
			}
			time.Sleep(10 * time.Minute)
			r.stop()
			broken(false)
			r.start()
			time.Sleep(time.Minute)
			p := r.want(r.apns, 2, when)
			if p[1].Data["seq"] != "2" {
				t.Errorf("%s: rung for %s", when, p[1].Data["seq"])
			}
		})
	}
}
