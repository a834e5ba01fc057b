package delivery

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
)

var seedFlag = flag.Uint64("seed", 0, "seed of TestTwoDaysOfChurn; 0: a new one, which is printed")

// TestTwoDaysOfChurn lives through two days in a few seconds: people write, join
// and leave; their devices come, go, take over from themselves, acknowledge what
// they like in any order, are forgotten, begin anew; the store fails now and then;
// the server restarts, in peace or by a crash. It holds every connection against
// the promises: in seq order, no hole, nothing again that is known to be
// acknowledged, nothing from before a membership or after it; and in the end every
// device has everything it has a right to.
func TestTwoDaysOfChurn(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; again with: go test ./delivery -run TwoDays -seed %d", seed, seed)
	synctest.Test(t, func(t *testing.T) {
		c := newChurn(t, rand.New(rand.NewPCG(seed, 1)))
		for end := time.Now().Add(48 * time.Hour); time.Now().Before(end) && !t.Failed(); {
			c.step()
		}
		c.finish()
	})
}

const (
	churnUsers   = 5
	churnDevices = 3 // of each user
	churnGroups  = 3
	churnForget  = 8 * time.Hour
)

// churn is the house and everybody in it.
type churn struct {
	t       *testing.T
	rng     *rand.Rand
	mem     *memory
	d       *Delivery
	stop    func()
	devices []*churner
	restart map[string]int
	returns map[bool]int // of devices that were remembered, and of others
}

// churner is a device as its owner knows it.
type churner struct {
	key   im.DeviceKey
	w     *plug // of the connection, or nil
	line  *Line
	start map[im.ConvID]im.Seq          // what it has no right to, or had before it began anew
	acked map[im.ConvID]map[im.Seq]bool // acknowledged or written by itself
	had   map[im.ConvID]map[im.Seq]bool // of acked, what the server knew when the connection began
	last  map[im.ConvID]im.Seq          // what the connection got last
	fresh []churnArrival                // what it acknowledged
}

// plug is a wire that remembers what was written.
type plug struct {
	mu     sync.Mutex
	got    []churnArrival
	unack  []churnArrival
	room   int // deliveries taken before Full; -1 no limit
	closed bool
}

type churnArrival struct {
	conv   im.ConvID
	seq    im.Seq
	packet uint16
}

func (w *plug) Deliver(p *Parcel, qos byte, packet uint16, _ bool) Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		return Closed
	case w.room == 0:
		return Full
	case w.room > 0:
		w.room--
	}
	a := churnArrival{p.Conv, p.Seq, packet}
	w.got = append(w.got, a)
	if qos > 0 {
		w.unack = append(w.unack, a)
	}
	return Written
}

func (w *plug) Send(*Note, byte, uint16) Outcome { return Written }

func (w *plug) Close(CloseReason) {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
}

func newChurn(t *testing.T, rng *rand.Rand) *churn {
	c := &churn{t: t, rng: rng, mem: newMemory(), restart: map[string]int{}, returns: map[bool]int{}}
	for g := range churnGroups {
		c.mem.members[churnGroup(g)] = map[im.UserID]im.Seq{}
	}
	for u := range churnUsers {
		for n := range churnDevices {
			k := im.DeviceKey{User: churnUser(u), Device: im.DeviceID(fmt.Sprint("d", n))}
			c.devices = append(c.devices, &churner{key: k})
		}
	}
	c.open()
	return c
}

func churnUser(i int) im.UserID   { return im.UserID(fmt.Sprint("u", i)) }
func churnGroup(i int) im.GroupID { return im.GroupID(fmt.Sprint("g", i)) }

func (c *churn) open() {
	ctx, cancel := context.WithCancel(c.t.Context())
	d := New(Options{Source: c.mem, Window: 1 + c.rng.IntN(6), Workers: 2, ForgetAfter: churnForget,
		Events: Events{Returned: func(remembered bool) { c.returns[remembered]++ }}})
	d.manyParts = 2
	if c.rng.IntN(4) > 0 { // in most lives there is room for few to be remembered, or for few conversations
		d.keeper.max, d.keeper.moved = 30+c.rng.IntN(200), 2+c.rng.IntN(8)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	c.d, c.stop = d, func() { cancel(); <-done }
}

// step is one thing that happens, and the time until the next.
func (c *churn) step() {
	x := c.devices[c.rng.IntN(len(c.devices))]
	switch p := c.rng.IntN(1000); {
	case p < 400:
		c.say(x)
	case p < 600:
		c.ackSome(x)
	case p < 720:
		if x.w == nil {
			c.connect(x, c.rng.IntN(12) == 0)
		} else {
			c.disconnect(x)
		}
	case p < 760:
		c.connect(x, c.rng.IntN(12) == 0) // a takeover, if it is connected
	case p < 850:
		c.joinOrLeave(x.key.User, churnGroup(c.rng.IntN(churnGroups)))
	case p < 900:
		if x.w != nil {
			x.w.mu.Lock()
			x.w.room = c.rng.IntN(4)
			x.w.mu.Unlock()
		}
	case p < 960:
		x.drain()
	case p < 985:
		c.mem.setFailing(true)
		time.Sleep(time.Duration(c.rng.IntN(5)) * time.Second)
		c.mem.setFailing(false)
	case p < 990:
		c.everything()
	case p < 996:
		c.restarted("in peace")
	default:
		c.restarted("by a crash")
	}
	if c.rng.IntN(3) > 0 {
		synctest.Wait()
	}
	if c.rng.IntN(4) == 0 {
		time.Sleep(time.Duration(c.rng.IntN(8*60)) * time.Second)
	}
}

// say appends an entry where the device's user may write.
func (c *churn) say(x *churner) {
	conv := im.DM(x.key.User, churnUser(c.rng.IntN(churnUsers)))
	if c.rng.IntN(2) == 0 {
		g := churnGroup(c.rng.IntN(churnGroups))
		if _, in := c.mem.members[g][x.key.User]; !in {
			return
		}
		conv = im.GroupConv(g)
	}
	for range 1 + c.rng.IntN(5) {
		e := c.mem.append(im.Entry{Conv: conv, From: x.key.User, Device: x.key.Device})
		if x.start != nil {
			x.mark(conv, e.Seq) // it knows what it wrote
		}
		c.d.Offer(e)
	}
}

func (c *churn) event(g im.GroupID) *im.Entry {
	return c.mem.append(im.Entry{Conv: im.GroupConv(g), Op: im.OpEvent, Event: "member-changed"})
}

func (c *churn) joinOrLeave(u im.UserID, g im.GroupID) {
	conv := im.GroupConv(g)
	if _, in := c.mem.members[g][u]; in {
		c.d.Offer(c.event(g))
		c.mem.mu.Lock()
		delete(c.mem.members[g], u)
		c.mem.mu.Unlock()
		c.d.Left(g, u)
		synctest.Wait()
		c.each(u, func(x *churner) {
			c.check(x)
			x.start[conv] = 1 << 40 // no right to anything, until the next join
		})
		return
	}
	c.mem.mu.Lock()
	start := im.Seq(len(c.mem.logs[conv]))
	c.mem.members[g][u] = start
	c.mem.mu.Unlock()
	c.each(u, func(x *churner) { x.start[conv] = start })
	e := c.event(g)
	if c.rng.IntN(2) == 0 {
		c.d.Offer(e)
		c.d.Joined(g, u, start)
	} else {
		c.d.Joined(g, u, start)
		c.d.Offer(e)
	}
}

// each calls fn for the devices of u that have been connected ever.
func (c *churn) each(u im.UserID, fn func(*churner)) {
	for _, x := range c.devices {
		if x.key.User == u && x.start != nil {
			fn(x)
		}
	}
}

// connect attaches the device. One that is not known, or says clean, begins now.
func (c *churn) connect(x *churner, clean bool) {
	synctest.Wait()
	c.check(x)
	old := x.w
	known := c.remembered(x)
	x.w = &plug{room: -1}
	at, err := c.d.Attach(c.t.Context(), Attachment{Key: x.key, Wire: x.w, Version: 5, Expiry: 1000, Clean: clean})
	if err != nil {
		c.t.Fatal(err)
	}
	if old != nil {
		old.mu.Lock()
		if !old.closed {
			c.t.Errorf("%s: the older connection was not closed", x.key)
		}
		old.mu.Unlock()
	}
	x.line = at.Line
	if !known || clean {
		x.start, x.acked = map[im.ConvID]im.Seq{}, nil
		for conv, log := range c.mem.logs {
			x.start[conv] = im.Seq(len(log))
		}
		for g, us := range c.mem.members {
			if _, in := us[x.key.User]; !in {
				x.start[im.GroupConv(g)] = 1 << 40
			}
		}
	}
	x.had, x.last, x.fresh = c.known(x), map[im.ConvID]im.Seq{}, nil
	if c.rng.IntN(4) == 0 { // something comes between CONNECT and CONNACK
		c.say(c.devices[c.rng.IntN(len(c.devices))])
	}
	at.Start(c.t.Context())
}

// remembered reports whether the server has not forgotten the device.
func (c *churn) remembered(x *churner) bool {
	c.mem.mu.Lock()
	defer c.mem.mu.Unlock()
	_, known := c.mem.devices[x.key]
	return known
}

// known is what the stored cursors say of the device.
func (c *churn) known(x *churner) map[im.ConvID]map[im.Seq]bool {
	c.mem.mu.Lock()
	defer c.mem.mu.Unlock()
	had := map[im.ConvID]map[im.Seq]bool{}
	for conv, cur := range c.mem.cursors[x.key] {
		had[conv] = map[im.Seq]bool{}
		for s := im.Seq(1); s <= cur.Acked; s++ {
			had[conv][s] = true
		}
		for _, s := range cur.Ahead {
			had[conv][s] = true
		}
	}
	return had
}

func (c *churn) disconnect(x *churner) {
	synctest.Wait()
	c.check(x)
	x.w.Close(0)
	c.d.Detach(c.t.Context(), x.line, nil, nil)
	x.w, x.line = nil, nil
	// A peaceful end stores every cursor: what was acknowledged is known.
	had := c.known(x)
	for _, a := range x.fresh {
		if a.seq > x.start[a.conv] && !had[a.conv][a.seq] {
			c.t.Errorf("%s: %s seq %d was acknowledged, and its cursor does not say so", x.key, a.conv, a.seq)
		}
	}
}

// restarted ends the server and starts another on what is stored.
func (c *churn) restarted(how string) {
	c.restart[how]++
	synctest.Wait()
	for _, x := range c.devices {
		if x.w == nil {
			continue
		}
		c.check(x)
		if how == "in peace" {
			c.disconnect(x)
		}
	}
	c.stop()
	for _, x := range c.devices {
		x.w, x.line = nil, nil
	}
	c.open()
}

// ackSome acknowledges some of what is outstanding, in any order; false if there
// was nothing.
func (c *churn) ackSome(x *churner) (some bool) {
	if x.w == nil {
		return false
	}
	for range 1 + c.rng.IntN(8) {
		x.w.mu.Lock()
		n := len(x.w.unack)
		if n == 0 {
			x.w.mu.Unlock()
			return some
		}
		some = true
		i := c.rng.IntN(n)
		a := x.w.unack[i]
		x.w.unack = slices.Delete(x.w.unack, i, i+1)
		x.w.mu.Unlock()
		x.mark(a.conv, a.seq)
		x.fresh = append(x.fresh, a)
		if !x.line.Ack(a.packet) {
			c.t.Errorf("%s: packet %d is outstanding and unknown", x.key, a.packet)
		}
	}
	return some
}

func (x *churner) mark(conv im.ConvID, seq im.Seq) {
	if x.acked == nil {
		x.acked = map[im.ConvID]map[im.Seq]bool{}
	}
	if x.acked[conv] == nil {
		x.acked[conv] = map[im.Seq]bool{}
	}
	x.acked[conv][seq] = true
}

func (x *churner) drain() {
	if x.w == nil {
		return
	}
	x.w.mu.Lock()
	x.w.room = -1
	x.w.mu.Unlock()
	x.line.Writable()
}

// check holds what the connection got since the last check against the promises.
func (c *churn) check(x *churner) {
	if x.w == nil {
		return
	}
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	for _, a := range x.w.got {
		after, start := x.start[a.conv], x.start[a.conv]
		if l, ok := x.last[a.conv]; ok {
			after = max(l, start)
			if a.seq <= l {
				c.t.Errorf("%s: %s seq %d came after %d", x.key, a.conv, a.seq, l)
			}
		} else if a.seq <= start {
			c.t.Errorf("%s: %s seq %d came, and it has a right to what is after %d", x.key, a.conv, a.seq, start)
		}
		if x.had[a.conv][a.seq] {
			c.t.Errorf("%s: %s seq %d came again after its acknowledgement", x.key, a.conv, a.seq)
		}
		for s := after + 1; s < a.seq; s++ {
			if !x.acked[a.conv][s] && !x.had[a.conv][s] {
				c.t.Errorf("%s: %s seq %d came, and %d had not", x.key, a.conv, a.seq, s)
			}
		}
		x.last[a.conv] = a.seq
	}
	x.w.got = nil
	unack := map[uint16]bool{}
	for _, a := range x.w.unack {
		if unack[a.packet] || a.packet == 0 {
			c.t.Errorf("%s: packet id %d is in use twice", x.key, a.packet)
		}
		unack[a.packet] = true
	}
}

// everything sees that each connected device gets all that it has a right to, and
// returns how many entries that are.
func (c *churn) everything() (total int) {
	time.Sleep(2 * storeRetry) // lines that could not read the store wait so long
	for _, x := range c.devices {
		x.drain()
	}
	for again := true; again; {
		synctest.Wait()
		again = false
		for _, x := range c.devices {
			for c.ackSome(x) {
				again = true
			}
		}
	}
	for _, x := range c.devices {
		if x.w == nil {
			continue
		}
		c.check(x)
		for conv, log := range c.mem.logs {
			if g := conv.Group(); g != "" {
				if _, in := c.mem.members[g][x.key.User]; !in {
					continue
				}
			} else if _, mine := conv.Peer(x.key.User); !mine {
				continue
			}
			for s := x.start[conv] + 1; s <= im.Seq(len(log)); s++ {
				total++
				if !x.acked[conv][s] && !x.had[conv][s] {
					c.t.Errorf("%s: %s seq %d never came", x.key, conv, s)
				}
			}
		}
	}
	return total
}

// finish brings every device that is known back, and sees that it gets all.
func (c *churn) finish() {
	for _, x := range c.devices {
		if c.remembered(x) {
			if x.w == nil {
				c.connect(x, false)
			}
		}
	}
	total := c.everything()
	for _, x := range c.devices {
		if x.w != nil {
			c.disconnect(x)
		}
	}
	c.stop()
	entries := 0
	for _, log := range c.mem.logs {
		entries += len(log)
	}
	c.d.keeper.max = -1
	if c.d.trim(); c.d.keeper.order.Len() > 0 || c.d.keeper.held.Load() != 0 {
		c.t.Errorf("%d journals of %d conversations are left when they were given up", c.d.keeper.order.Len(), c.d.keeper.held.Load())
	}
	for i := range c.d.rooms {
		if n := len(c.d.rooms[i].m) + len(c.d.users[i].m); n > 0 {
			c.t.Errorf("%d rooms or users are left when everybody has gone", n)
		}
	}
	c.t.Logf("%d entries, %d restarts in peace, %d by a crash; %d returns of devices that were remembered, %d of others; %d entries are at the devices that are known in the end",
		entries, c.restart["in peace"], c.restart["by a crash"], c.returns[true], c.returns[false], total)
	if entries == 0 || total == 0 || c.restart["by a crash"] == 0 || c.returns[true] == 0 || c.returns[false] == 0 {
		c.t.Error("nothing happened")
	}
}
