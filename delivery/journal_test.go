package delivery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
)

// TestNothingSlipsPastAReturn lets devices come and go as fast as they can while
// entries are offered and their user joins and leaves, with goroutines of their own
// for each: what is offered between a line's end and the next one's beginning has
// to be in the journal. Then each returns once more, and has everything.
func TestNothingSlipsPastAReturn(t *testing.T) {
	for _, room := range []int{1000, 40} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			remembered, all := 0, 0
			for range 10 {
				r := newRush(t, room)
				r.run()
				remembered, all = remembered+r.returns[true], all+r.returns[false]
			}
			t.Logf("%d returns of devices that were remembered, %d of others", remembered, all)
			if remembered == 0 {
				t.Error("nobody was remembered")
			}
		})
	}
}

// rush is one user, some conversations, and devices in a hurry.
type rush struct {
	t       *testing.T
	mem     *memory
	d       *Delivery
	devices []*churner
	mu      sync.Mutex
	returns map[bool]int
}

const rushUser = im.UserID("bob")

func newRush(t *testing.T, room int) *rush {
	r := &rush{t: t, mem: newMemory(), returns: map[bool]int{}}
	r.d = New(Options{Source: r.mem, Window: 4, Workers: 2, Remember: room, Events: Events{Returned: func(remembered bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.returns[remembered]++
	}}})
	for i := range 3 {
		r.devices = append(r.devices, &churner{key: im.DeviceKey{User: rushUser, Device: im.DeviceID(fmt.Sprint("d", i))}})
	}
	for i := range 4 {
		r.mem.setMember(im.GroupID(fmt.Sprint("g", i)), rushUser, 0, true)
	}
	return r
}

func (r *rush) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	var rooms, all sync.WaitGroup
	rooms.Go(func() { _ = r.d.Run(ctx) })
	defer rooms.Wait()
	defer cancel()
	for _, x := range r.devices { // each is known, and begins with nothing
		r.visit(ctx, x)
	}
	done := make(chan struct{})
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() { r.write(im.DM(rushUser, im.UserID(fmt.Sprint("peer", i)))) })
		writers.Go(func() { r.write(im.GroupConv(im.GroupID(fmt.Sprint("g", i)))) })
	}
	for _, x := range r.devices {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					r.visit(ctx, x)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	all.Wait()
	for _, x := range r.devices {
		r.hasAll(ctx, x)
	}
}

// write appends and offers; of a group the user is out now and then.
func (r *rush) write(conv im.ConvID) {
	for i := range 200 {
		if g := conv.Group(); g != "" && i%20 == 10 {
			r.mem.setMember(g, rushUser, 0, false)
			r.d.Left(g, rushUser)
			start := r.mem.head(conv)
			r.mem.setMember(g, rushUser, start, true)
			r.d.Joined(g, rushUser, start)
		}
		r.d.Offer(r.mem.append(im.Entry{Conv: conv, From: "peer"}))
		if rand.IntN(4) == 0 {
			runtime.Gosched()
		}
	}
}

// visit connects the device, which takes some of what is there, and goes again.
func (r *rush) visit(ctx context.Context, x *churner) {
	r.enter(ctx, x)
	for range rand.IntN(4) {
		runtime.Gosched()
		r.take(x)
	}
	x.w.Close(0)
	r.d.Detach(ctx, x.line, nil, nil)
}

func (r *rush) enter(ctx context.Context, x *churner) {
	x.w = &plug{room: -1}
	at, err := r.d.Attach(ctx, Attachment{Key: x.key, Wire: x.w, Expiry: 1000})
	if err != nil {
		r.t.Error(err)
		return
	}
	x.line = at.Line
	at.Start(ctx)
}

func (r *rush) take(x *churner) {
	x.w.mu.Lock()
	unack := slices.Clone(x.w.unack)
	x.w.unack = nil
	x.w.mu.Unlock()
	for _, a := range unack {
		x.mark(a.conv, a.seq)
		x.line.Ack(a.packet)
	}
}

// hasAll sees that the device, which comes back once more, gets all that is left.
func (r *rush) hasAll(ctx context.Context, x *churner) {
	r.enter(ctx, x)
	var missing string
	for end := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		if r.take(x); r.missing(x) == "" {
			break
		}
		if missing = r.missing(x); time.Now().After(end) {
			r.t.Fatalf("%s: %s never came", x.key, missing)
		}
	}
	r.d.Detach(ctx, x.line, nil, nil)
}

func (r *rush) missing(x *churner) string {
	r.mem.mu.Lock()
	defer r.mem.mu.Unlock()
	for conv, log := range r.mem.logs {
		for s := r.mem.members[conv.Group()][rushUser] + 1; s <= im.Seq(len(log)); s++ {
			if !x.acked[conv][s] {
				return fmt.Sprintf("%s seq %d", conv, s)
			}
		}
	}
	return ""
}

// away is a house with one device that has been there, and left.
type awayHouse struct {
	t   *testing.T
	mem *memory
	d   *Delivery
	k   im.DeviceKey
	how []bool // of each return: remembered
}

func newAwayHouse(t *testing.T, o Options) *awayHouse {
	h := &awayHouse{t: t, mem: newMemory(), k: im.DeviceKey{User: "bob", Device: "phone"}}
	o.Source, o.Events.Returned = h.mem, func(remembered bool) { h.how = append(h.how, remembered) }
	h.d = New(o)
	h.mem.setMember("g", "bob", 0, true)
	return h
}

// visit connects a device, acknowledges what comes, disconnects it and returns what came.
func (h *awayHouse) visit(k im.DeviceKey, clean bool) (topics []string) {
	h.t.Helper()
	w := &counter{}
	at, err := h.d.Attach(h.t.Context(), Attachment{Key: k, Wire: w, Expiry: 3600, Clean: clean})
	if err != nil {
		h.t.Fatal(err)
	}
	at.Start(h.t.Context())
	for at.Line.ended() || h.d.turn(h.t.Context(), at.Line) || len(w.ids) > 0 {
		topics = append(topics, w.topics...)
		for _, id := range w.ids {
			at.Line.Ack(id)
		}
		w.topics, w.ids = nil, nil
	}
	h.d.Detach(h.t.Context(), at.Line, nil, nil)
	return topics
}

func (h *awayHouse) say(conv im.ConvID) {
	h.d.Offer(h.mem.append(im.Entry{Conv: conv, From: "alice"}))
}

// came wants the last return to have been so, and to have brought this.
func (h *awayHouse) came(topics []string, remembered bool, want ...im.ConvID) {
	h.t.Helper()
	var got []im.ConvID
	for _, c := range topics {
		got = append(got, im.ConvID(c))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		h.t.Errorf("%v came, want %v", got, want)
	}
	if last := h.how[len(h.how)-1]; last != remembered {
		h.t.Errorf("remembered: %v, want %v", last, remembered)
	}
}

// TestADeviceIsRemembered: what happened while it was away is found without a look
// at everything, and only by the device that was away.
func TestADeviceIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newAwayHouse(t, Options{})
		dm, g := im.DM("alice", "bob"), im.GroupConv("g")
		tablet := im.DeviceKey{User: "bob", Device: "tablet"}
		h.visit(h.k, false)
		h.say(dm)
		h.came(h.visit(h.k, false), true, dm)
		h.came(h.visit(h.k, false), true)
		h.visit(tablet, false)
		h.say(g)
		h.say(g)
		h.came(h.visit(h.k, false), true, g, g)
		h.came(h.visit(tablet, false), true, g, g)
		h.d.Left("g", "bob")
		h.mem.setMember("g", "bob", 0, false)
		h.say(g)
		h.came(h.visit(h.k, false), true)
		h.mem.setMember("g", "bob", 3, true)
		h.say(g) // overtakes the join
		h.d.Joined("g", "bob", 3)
		h.came(h.visit(h.k, false), true, g)
		h.came(h.visit(tablet, false), true, g)

		if u := h.d.online("bob"); u == nil || h.d.AnyLine("bob") || len(h.d.Lines("bob")) > 0 || h.d.Line(h.k) != nil || h.d.presence.online("bob") {
			t.Errorf("somebody who is away counts as online, or did not stay: %v", u)
		}
		h.d.Each(func(l *Line) { t.Errorf("%s is listed", l.Key()) })
	})
}

// hook is a wire that does something while an entry is written to it.
type hook struct {
	counter
	fn func()
}

func (w *hook) Deliver(p *Parcel, qos byte, packet uint16, dup bool) Outcome {
	if fn := w.fn; fn != nil {
		w.fn = nil
		fn()
	}
	return w.counter.Deliver(p, qos, packet, dup)
}

// TestAnOfferIsOvertaken by a device that returns, or goes, while it is given to
// another one: the device gets the entry, now or when it is back.
func TestAnOfferIsOvertaken(t *testing.T) {
	for _, by := range []string{"a return", "a departure"} {
		t.Run(by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newAwayHouse(t, Options{})
				dm := im.DM("alice", "bob")
				w := &hook{}
				at, err := h.d.Attach(t.Context(), Attachment{Key: im.DeviceKey{User: "bob", Device: "tablet"}, Wire: w, Expiry: 3600})
				if err != nil {
					t.Fatal(err)
				}
				at.Start(t.Context())
				h.say(dm)
				for h.d.turn(t.Context(), at.Line) { // so that the next one is written at once
				}
				var phone *Attached
				come := func() {
					if phone, err = h.d.Attach(t.Context(), Attachment{Key: h.k, Wire: &counter{}, Expiry: 3600}); err != nil {
						t.Error(err)
					}
					phone.Start(t.Context())
				}
				leave := func() { h.d.Detach(t.Context(), phone.Line, nil, nil) }
				if come(); by == "a return" {
					leave()
					w.fn = come
				} else {
					w.fn = leave
				}
				if h.say(dm); w.fn != nil {
					t.Fatal("the entry was not written at once")
				}
				if by == "a return" {
					leave()
				}
				h.came(h.visit(h.k, false), true, dm)
			})
		})
	}
}

// TestAUserWhoIsAwayIsToldOnce: the first entry in a group lets who is away out of
// its room, where the next ones find nobody.
func TestAUserWhoIsAwayIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newAwayHouse(t, Options{})
		g := im.GroupConv("g")
		room := func() int { return len(h.d.rooms[shard(im.GroupID("g"))].m["g"]) }
		h.visit(h.k, false)
		if room() != 1 {
			t.Errorf("%d are in the room", room())
		}
		h.say(g)
		if room() != 0 {
			t.Errorf("%d are in the room of a group that has been told", room())
		}
		h.say(g)
		h.d.Read(g, "alice", "phone", 2)
		h.came(h.visit(h.k, false), true, g, g)
		if room() != 1 {
			t.Errorf("%d are in the room again", room())
		}
		h.d.Read(g, "alice", "phone", 2)
		if room() != 0 {
			t.Errorf("%d are in the room after a watermark", room())
		}
	})
}

// TestWhatIsNotRemembered is looked for everywhere: after a doubt of the store,
// after a device was forgotten, where its cursors were not stored, where too much
// happened or too many are away, and by a device that nobody has seen go.
func TestWhatIsNotRemembered(t *testing.T) {
	dm, g := im.DM("alice", "bob"), im.GroupConv("g")
	for name, why := range map[string]func(h *awayHouse){
		"doubt": func(h *awayHouse) { h.mem.doubt() },
		"too many conversations": func(h *awayHouse) {
			for i := range 4 {
				h.d.Read(im.DM("bob", im.UserID(fmt.Sprint("u", i))), "bob", "tablet", 1)
			}
		},
		"too much for all": func(h *awayHouse) {
			h.d.keeper.max = 5
			h.d.trim()
			if h.d.online("bob") != nil || len(h.d.rooms[shard(im.GroupID("g"))].m) > 0 {
				h.t.Error("bob is still there")
			}
			h.d.keeper.max = 1000
		},
		"another server": func(h *awayHouse) {
			h.d = New(Options{Source: h.mem, Events: h.d.opt.Events})
		},
		"too many away": func(h *awayHouse) {
			for i := range maxAway {
				h.visit(im.DeviceKey{User: "bob", Device: im.DeviceID(fmt.Sprint("d", i))}, false)
			}
		},
		"cursors not stored": func(h *awayHouse) {
			h.say(dm)
			h.mem.unput = true
			h.visit(h.k, false)
			h.mem.unput = false
			h.mem.append(im.Entry{Conv: dm}) // nobody hears of it
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newAwayHouse(t, Options{})
				h.d.keeper.moved = 3
				h.visit(h.k, false)
				h.mem.append(im.Entry{Conv: g}) // nobody hears of it
				why(h)
				want := []im.ConvID{g}
				if name == "cursors not stored" {
					want = []im.ConvID{dm, dm, g}
				}
				h.came(h.visit(h.k, false), false, want...)
				h.say(dm)
				h.came(h.visit(h.k, false), true, dm)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		h := newAwayHouse(t, Options{})
		h.visit(h.k, false)
		h.say(dm)
		if err := h.d.Forget(t.Context(), h.k); err != nil {
			t.Fatal(err)
		}
		if h.d.online("bob") != nil || h.d.keeper.order.Len() > 0 {
			t.Error("a user stays although the only device is forgotten")
		}
		if got := h.visit(h.k, false); len(got) > 0 || len(h.how) > 0 {
			t.Errorf("a device that was forgotten got %v, remembered %v", got, h.how)
		}
	})
}

// TestADoubtAboutRooms: a membership of which nobody was told is found by the first
// device that looks at everything, for the room as well: what is said there later
// reaches the devices that were away then.
func TestADoubtAboutRooms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newAwayHouse(t, Options{})
		g := im.GroupConv("other")
		h.visit(h.k, false)
		tablet, err := h.d.Attach(t.Context(), Attachment{Key: im.DeviceKey{User: "bob", Device: "tablet"}, Wire: &counter{}, Expiry: 3600})
		if err != nil {
			t.Fatal(err)
		}
		h.mem.setMember("other", "bob", 0, true) // the commit failed, as it seemed
		h.mem.doubt()
		h.came(h.visit(h.k, false), false)
		h.say(g)
		h.came(h.visit(h.k, false), true, g)
		h.d.Detach(t.Context(), tablet.Line, nil, nil)
	})
}

// TestACleanStartOfADeviceThatIsRemembered sets what moved to now, and leaves the
// rest where it stands, which is there: also for a server that remembers nothing.
func TestACleanStartOfADeviceThatIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newAwayHouse(t, Options{})
		dm, g := im.DM("alice", "bob"), im.GroupConv("g")
		h.say(g)
		h.visit(h.k, false)
		h.say(g)
		h.visit(h.k, false)
		h.mem.resets = 0
		h.say(dm)
		h.came(h.visit(h.k, true), true)
		if h.mem.resets != 0 {
			t.Error("it wrote all its cursors anew")
		}
		h.d = New(Options{Source: h.mem, Events: h.d.opt.Events})
		h.came(h.visit(h.k, false), false)
		h.say(g)
		h.came(h.visit(h.k, false), true, g)
	})
}

// TestAJournalIsBounded: what nobody asks for any more goes first, then who has
// been away for longest.
func TestAJournalIsBounded(t *testing.T) {
	k := &keeper{max: 1000, moved: 3}
	j := &journal{keeper: k}
	conv := func(i int) im.ConvID { return im.ConvID(fmt.Sprint("g/", i)) }
	u := &userLines{}
	u.journal.Store(j)
	recalled := func(device im.DeviceID) string {
		convs, ok := u.recall(device, 0)
		return fmt.Sprint(convs, ok)
	}
	j.add(absence{device: "a"})
	j.note(conv(1))
	j.add(absence{device: "b"})
	j.note(conv(2))
	j.note(conv(3))
	j.owe("b", []im.ConvID{conv(9)}, true)
	if got := recalled("a"); got != "[g/1 g/2 g/3] true" {
		t.Errorf("a: %s", got)
	}
	if got := recalled("b"); got != "[g/2 g/3 g/9] true" {
		t.Errorf("b: %s", got)
	}
	if held := k.held.Load(); held != weighJournal+3+2+1 {
		t.Errorf("%d conversations are held", held)
	}
	j.note(conv(4)) // a goes, and with it the first
	if got := recalled("a") + recalled("b"); got != "[] false"+"[g/2 g/3 g/4 g/9] true" {
		t.Errorf("a and b: %s", got)
	}
	j.note(conv(5))
	if got := recalled("b"); got != "[] false" || len(j.moved) > 0 {
		t.Errorf("b: %s, %v", got, j.moved)
	}
	j.add(absence{device: "c"})
	j.owe("c", []im.ConvID{conv(1), conv(2), conv(3), conv(4)}, true)
	if got := recalled("c"); got != "[] false" {
		t.Errorf("c, which owes too much: %s", got)
	}
	if j.close(); k.held.Load() != 0 {
		t.Errorf("%d conversations are held in the end", k.held.Load())
	}
}
