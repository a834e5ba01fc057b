package delivery

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// TestModel drives two devices of one user through random commits, acknowledgements
// in any order, full wires, store failures, disconnects, takeovers, crashes, joins
// and leaves, changes of view, entries too big for a client, and recalls. It holds
// what arrives against the promises: on each connection every conversation comes in
// seq order without a hole, beginning with the first entry that needs to come;
// nothing that was acknowledged and stored comes again; DUP is on what comes again
// and on nothing else; the window is kept and no packet id is in use twice; nothing
// comes from a group after it was left, of what was unsubscribed, or with a body
// that was recalled; the queue is trimmed below what was acknowledged only; and in
// the end everything has arrived. What is remembered of devices that are away is
// little, and lost often.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Everything is drawn before the bubble begins: rapid ends a draw by panicking.
		window := rapid.IntRange(1, 8).Draw(rt, "window")
		remember := [2]int{rapid.SampledFrom([]int{1000, 1000, 24, 12, -1}).Draw(rt, "remember"), rapid.SampledFrom([]int{1000, 3, 2}).Draw(rt, "moved")}
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 30, 150).Draw(rt, "steps")
		var failure string
		synctest.Test(t, func(t *testing.T) { failure = runModel(t.Context(), window, remember, steps) })
		if failure != "" {
			rt.Fatal(failure)
		}
	})
}

// step is one thing that happens to device dev; n and m say how much, or which.
type step struct {
	kind string
	dev  int
	n, m int
	wait bool
}

var stepKinds = []string{"commit", "commit", "commit", "ack", "ack", "ack", "full", "drain", "drop", "takeover", "clean", "crash", "flush",
	"fail", "heal", "own", "join", "leave", "view", "big", "recall", "note", "unheard", "repeated"}

func drawStep(rt *rapid.T) step {
	return step{
		kind: rapid.SampledFrom(stepKinds).Draw(rt, "kind"),
		dev:  rapid.IntRange(0, 1).Draw(rt, "dev"),
		n:    rapid.IntRange(0, 7).Draw(rt, "n"),
		m:    rapid.IntRange(0, 7).Draw(rt, "m"),
		wait: rapid.Bool().Draw(rt, "wait"),
	}
}

const (
	modelUser  = im.UserID("bob")
	modelGroup = im.GroupID("g")
)

type model struct {
	ctx      context.Context
	mem      *memory
	d        *Delivery
	remember [2]int // Options.Remember and keeper.moved
	stop     func()
	convs    []im.ConvID // alice, carol, the group, the account
	devs     []*modelDevice
	mu       sync.Mutex // guards what follows and every device's knowledge: wires write from pump workers
	member   bool
	recalled map[im.ConvID]map[im.Seq]bool
	fault    string
}

// modelDevice is what is known of a device from outside.
type modelDevice struct {
	m       *model
	key     im.DeviceKey
	queue   im.ConvID
	window  int
	w       *tap
	at      *Attached
	start   map[im.ConvID]im.Seq          // what it gets begins after
	settled map[im.ConvID]map[im.Seq]bool // acknowledged, passed over, or its own
	stored  map[im.ConvID]map[im.Seq]bool // settled when the cursors were stored last
	own     map[im.ConvID]map[im.Seq]bool
	written map[im.ConvID]map[im.Seq]bool // ever on a wire
	crashed bool                          // what was on a wire may be forgotten: DUP may be missing
	qos     map[im.ConvID][]byte          // at which it may come now; none: it may not
	notes   int                           // sent to the connection that stands
}

// tap is a wire that checks what is written, and remembers what is unacknowledged.
type tap struct {
	d      *modelDevice
	last   map[im.ConvID]im.Seq // what came last on this connection
	had    map[im.ConvID]map[im.Seq]bool
	unack  []arrival
	room   int // deliveries taken before Full; -1 no limit
	small  bool
	open   bool // its CONNACK is out
	closed bool
	notes  int
}

type arrival struct {
	conv   im.ConvID // "": a note
	seq    im.Seq
	packet uint16
}

func (m *model) faultf(format string, args ...any) {
	if m.fault == "" {
		m.fault = fmt.Sprintf(format, args...)
	}
}

func add(set map[im.ConvID]map[im.Seq]bool, c im.ConvID, s im.Seq) {
	if set[c] == nil {
		set[c] = map[im.Seq]bool{}
	}
	set[c][s] = true
}

func (w *tap) Deliver(p *Parcel, qos byte, packet uint16, dup bool) Outcome {
	d, m := w.d, w.d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case w.closed:
		return Closed
	case w.room == 0:
		return Full
	case w.small && p.Type == "big":
		w.expect(p.Entry)
		add(d.settled, p.Conv, p.Seq)
		return Passed
	case w.room > 0:
		w.room--
	}
	w.expect(p.Entry)
	name := fmt.Sprintf("%s: %s seq %d", d.key, p.Conv, p.Seq)
	if !slices.Contains(d.qos[p.Conv], qos) {
		m.faultf("%s came at QoS %d, %v is wanted", name, qos, d.qos[p.Conv])
	}
	if m.recalled[p.Conv][p.Seq] && len(p.Body) > 0 {
		m.faultf("%s came with a body that was recalled", name)
	}
	if again := d.written[p.Conv][p.Seq]; qos > 0 && (dup && !again || again && !dup && !d.crashed) {
		m.faultf("%s has DUP %v, written before: %v", name, dup, again)
	}
	add(d.written, p.Conv, p.Seq)
	if qos == 0 {
		if packet != 0 {
			m.faultf("%s has a packet id at QoS 0", name)
		}
		add(d.settled, p.Conv, p.Seq)
		return Written
	}
	w.flight(arrival{p.Conv, p.Seq, packet})
	return Written
}

// expect wants e to be the next entry that needs to come.
func (w *tap) expect(e *im.Entry) {
	d, m := w.d, w.d.m
	if !w.open {
		m.faultf("%s: %s seq %d came before the CONNACK", d.key, e.Conv, e.Seq)
	}
	last, ok := w.last[e.Conv]
	if !ok {
		last = d.start[e.Conv]
	}
	switch {
	case e.Conv == m.convs[2] && !m.member:
		m.faultf("%s: %s seq %d came after the group was left", d.key, e.Conv, e.Seq)
	case w.had[e.Conv][e.Seq]:
		m.faultf("%s: %s seq %d came again after its acknowledgement", d.key, e.Conv, e.Seq)
	case e.Seq <= last:
		m.faultf("%s: %s seq %d came after %d", d.key, e.Conv, e.Seq, last)
	}
	for s := last + 1; s < e.Seq; s++ {
		if !d.settled[e.Conv][s] {
			m.faultf("%s: %s seq %d came after %d, before %d", d.key, e.Conv, e.Seq, last, s)
		}
	}
	w.last[e.Conv] = e.Seq
}

func (w *tap) flight(a arrival) {
	if a.packet == 0 || slices.ContainsFunc(w.unack, func(b arrival) bool { return b.packet == a.packet }) {
		w.d.m.faultf("%s: packet id %d is in use twice", w.d.key, a.packet)
	}
	if w.unack = append(w.unack, a); len(w.unack) > w.d.window {
		w.d.m.faultf("%s: %d unacknowledged with a window of %d", w.d.key, len(w.unack), w.d.window)
	}
}

func (w *tap) Send(n *Note, qos byte, packet uint16) Outcome {
	m := w.d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case w.closed:
		return Closed
	case w.room == 0:
		return Full
	case w.room > 0:
		w.room--
	}
	if w.notes++; n.Topic != fmt.Sprint("note/", w.notes) {
		m.faultf("%s: note %d is %s", w.d.key, w.notes, n.Topic)
	}
	w.flight(arrival{packet: packet})
	return Written
}

func (w *tap) Close(CloseReason) {
	w.d.m.mu.Lock()
	defer w.d.m.mu.Unlock()
	w.closed = true
}

func runModel(ctx context.Context, window int, remember [2]int, steps []step) (failure string) {
	m := &model{ctx: ctx, mem: newMemory(), remember: remember, member: true, recalled: map[im.ConvID]map[im.Seq]bool{}}
	m.mem.setMember(modelGroup, modelUser, 0, true)
	m.convs = []im.ConvID{im.DM("alice", modelUser), im.DM("carol", modelUser), im.GroupConv(modelGroup), im.AccountConv(modelUser)}
	m.begin(window)
	defer func() { m.stop() }()
	for i, name := range []im.DeviceID{"phone", "tablet"} {
		d := &modelDevice{m: m, key: im.DeviceKey{User: modelUser, Device: name}, queue: im.QueueConv(modelUser, name), window: window,
			start: map[im.ConvID]im.Seq{}, settled: map[im.ConvID]map[im.Seq]bool{}, stored: map[im.ConvID]map[im.Seq]bool{}, own: map[im.ConvID]map[im.Seq]bool{}, written: map[im.ConvID]map[im.Seq]bool{}}
		d.setQoS(d.meaning(nil))
		m.devs = append(m.devs, d)
		d.connect(i, false)
	}
	for _, st := range steps {
		m.step(st, window)
		if st.wait {
			synctest.Wait()
		}
		if f := m.found(); f != "" {
			return fmt.Sprintf("after %+v: %s", st, f)
		}
	}
	// In the end everything arrives: what is there already to a device that comes
	// back, without anything that makes it look.
	m.mem.setFailing(false)
	time.Sleep(2 * storeRetry) // of the bubble's clock
	for i, d := range m.devs {
		d.view(nil)
		m.step(step{kind: "drop", dev: i, n: 1}, window)
		d.takeAll()
		d.complete()
	}
	for _, c := range append(slices.Clone(m.convs), m.devs[0].queue, m.devs[1].queue) {
		m.commit(im.Entry{Conv: c, From: "alice"})
	}
	for _, d := range m.devs {
		d.takeAll()
		d.complete()
		m.d.Detach(m.ctx, d.at.Line, nil, nil)
		for _, c := range append(slices.Clone(m.convs), d.queue) {
			cur, _ := m.mem.Cursor(m.ctx, d.key, c)
			if head := m.mem.head(c); (c != m.convs[2] || m.member) && (cur.Acked != head || len(cur.Ahead) > 0) {
				m.faultf("%s: the cursor of %s is %+v, everything up to %d was acknowledged", d.key, c, cur, head)
			}
		}
	}
	return m.found()
}

// begin starts a server on what is stored.
func (m *model) begin(window int) {
	m.d = New(Options{Source: m.mem, Window: window, Workers: 2, Remember: m.remember[0]})
	m.d.keeper.moved = m.remember[1]
	ctx, cancel := context.WithCancel(m.ctx)
	done := make(chan struct{})
	d := m.d
	go func() { defer close(done); _ = d.Run(ctx) }()
	m.stop = func() {
		cancel()
		<-done
	}
}

func (m *model) found() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fault
}

func (m *model) step(st step, window int) {
	d := m.devs[st.dev]
	convs := append(slices.Clone(m.convs), d.queue)
	conv := convs[st.n%len(convs)]
	switch st.kind {
	case "commit":
		for range 1 + st.m {
			m.commit(im.Entry{Conv: conv, From: "alice", Body: []byte("x")})
		}
	case "unheard": // a hint that never came: the next shows the gap
		m.mem.doubt()
		m.mem.append(im.Entry{Conv: conv, From: "alice", Body: []byte("x")})
	case "repeated": // it was not offered, and then its commit was repeated
		x := m.mem.append(im.Entry{Conv: conv, From: "alice", Body: []byte("x")})
		m.d.Wake(conv, x.Seq-im.Seq(st.m%2)) // one before may be what is repeated
		if st.m%2 == 1 {
			m.d.Wake(conv, x.Seq)
		}
		m.d.Wake(conv, x.Seq+im.Seq(st.m)) // of another conversation
	case "big":
		m.commit(im.Entry{Conv: conv, From: "alice", Body: []byte("x"), Type: "big"})
	case "own": // it needs no copy; the other device does
		m.commit(im.Entry{Conv: m.convs[st.n%3], From: modelUser, Device: d.key.Device, Body: []byte("x")})
	case "recall":
		if head := m.mem.head(conv); head > 0 && conv != d.queue {
			seq := head - min(im.Seq(st.m), head-1)
			m.mem.recall(conv, seq)
			m.commit(im.Entry{Conv: conv, From: "alice", Op: im.OpRecall, Ref: seq})
			m.mu.Lock()
			add(m.recalled, conv, seq)
			m.mu.Unlock()
		}
	case "ack":
		d.ack(st.n)
	case "full":
		m.mu.Lock()
		d.w.room = st.n % 4
		m.mu.Unlock()
	case "drain":
		d.drain()
	case "drop":
		d.w.Close(0)
		m.d.Detach(m.ctx, d.at.Line, nil, nil)
		if st.n%2 == 0 {
			m.commit(im.Entry{Conv: conv, From: "alice"})
		}
		d.connect(st.m, false)
	case "takeover", "clean":
		old := d.w
		d.connect(st.m, st.kind == "clean")
		if !old.closed {
			m.faultf("the older connection was not closed")
		}
	case "crash": // what was not stored is forgotten, and who was connected is not any more
		m.stop()
		m.begin(window)
		for i, d := range m.devs {
			m.mu.Lock()
			d.w.closed, d.crashed = true, true
			d.settled = clone(d.stored)
			for c, seqs := range d.own {
				for seq := range seqs {
					add(d.settled, c, seq)
				}
			}
			m.mu.Unlock()
			d.attach(st.m+i, false, d.stored)
		}
	case "flush":
		synctest.Wait()
		time.Sleep(2 * cursorFlush)
		synctest.Wait() // a tick is at this very moment
		for _, d := range m.devs {
			d.store()
		}
	case "fail", "heal":
		m.mem.setFailing(st.kind == "fail")
	case "join", "leave":
		m.move(st.kind == "join")
	case "view":
		d.view([][]store.Subscription{nil, {{Filter: "dm/+", QoS: 0}}, {{Filter: "dm/+", QoS: Stop}}, {{Filter: "g/+", QoS: 0}, {Filter: "me/+", QoS: Stop}},
			{{Filter: "g/+", QoS: Stop}}, {{Filter: "dm/+", QoS: Stop}, {Filter: "dm/alice", QoS: 1}}}[st.n%6])
	case "note":
		d.notes++
		d.at.Line.Note(&Note{Topic: fmt.Sprint("note/", d.notes)}, 1)
	}
}

// commit appends and offers; an entry is settled for the device that wrote it.
func (m *model) commit(e im.Entry) {
	x := m.mem.append(e)
	m.mu.Lock()
	for _, d := range m.devs {
		if x.From == modelUser && x.Device == d.key.Device {
			add(d.settled, x.Conv, x.Seq)
			add(d.own, x.Conv, x.Seq)
		}
	}
	m.mu.Unlock()
	m.d.Offer(x)
}

// move joins the group, from now on, or leaves it.
func (m *model) move(in bool) {
	if in == m.member {
		return
	}
	g := m.convs[2]
	head := m.mem.head(g)
	if in {
		m.mu.Lock()
		m.member = true
		for _, d := range m.devs {
			d.start[g] = head
			delete(d.w.last, g)
			d.w.had[g] = nil
		}
		m.mu.Unlock()
		m.mem.setMember(modelGroup, modelUser, head, true)
		m.d.Joined(modelGroup, modelUser, head)
		return
	}
	m.mem.setMember(modelGroup, modelUser, 0, false)
	m.d.Left(modelGroup, modelUser)
	m.mu.Lock()
	m.member = false
	m.mu.Unlock()
}

func clone(set map[im.ConvID]map[im.Seq]bool) map[im.ConvID]map[im.Seq]bool {
	out := map[im.ConvID]map[im.Seq]bool{}
	for c, s := range set {
		out[c] = maps.Clone(s)
	}
	return out
}

// store notes that the cursors are stored now.
func (d *modelDevice) store() {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.stored = clone(d.settled)
}

// connect attaches the device, after it was detached or to take over.
func (d *modelDevice) connect(n int, clean bool) {
	synctest.Wait() // what is being written now is written
	if clean {
		d.m.mu.Lock()
		for _, c := range append(slices.Clone(d.m.convs), d.queue) {
			d.start[c] = d.m.mem.head(c)
		}
		d.m.mu.Unlock()
		d.setQoS(d.meaning(nil))
	}
	if d.at != nil {
		d.store() // of the connection before
	}
	d.attach(n, clean, d.settled)
	if clean && d.m.mem.floor[d.queue] < d.start[d.queue] {
		d.m.faultf("%s: a clean start leaves the queue where it was", d.key)
	}
}

// attach connects; with odd n an entry is committed before Start, and with n&2
// the client takes no big packets.
func (d *modelDevice) attach(n int, clean bool, had map[im.ConvID]map[im.Seq]bool) {
	m := d.m
	known := d.at != nil
	m.mu.Lock()
	d.w, d.notes = &tap{d: d, room: -1, small: n&2 > 0, last: map[im.ConvID]im.Seq{}, had: clone(had)}, 0
	w := d.w
	m.mu.Unlock()
	if n&4 > 0 && !clean { // after the device's place was looked up, before it is known
		m.mem.looked = func() { m.commit(im.Entry{Conv: m.convs[0], From: "alice", Body: []byte("x")}) }
	}
	again := Attachment{Key: d.key, Wire: w, Version: 5, Expiry: 1000, Clean: clean}
	at, err := m.d.Attach(m.ctx, again)
	if err != nil { // the store failed on the way: the client tries again
		m.mem.setFailing(false)
		if at, err = m.d.Attach(m.ctx, again); err != nil {
			panic(err)
		}
	}
	if at.Present != (known && !clean) {
		m.faultf("%s: session present %v", d.key, at.Present)
	}
	d.at = at
	if n%2 == 1 {
		m.commit(im.Entry{Conv: m.convs[1], From: "carol", Body: []byte("x")})
	}
	m.mu.Lock()
	w.open = true
	m.mu.Unlock()
	at.Start(m.ctx)
}

// view subscribes to these, and nothing else.
func (d *modelDevice) view(subs []store.Subscription) {
	now := d.meaning(subs)
	both := maps.Clone(now) // meanwhile
	d.m.mu.Lock()
	for c, qos := range d.qos {
		both[c] = append(slices.Clone(both[c]), qos...)
	}
	d.qos = both
	d.m.mu.Unlock()
	if err := d.m.d.SaveSession(d.m.ctx, d.at.Line, subs); err != nil {
		panic(err)
	}
	d.setQoS(now)
}

func (d *modelDevice) setQoS(qos map[im.ConvID][]byte) {
	d.m.mu.Lock()
	d.qos = qos
	d.m.mu.Unlock()
}

// meaning is at which QoS conversations come with these subscriptions.
func (d *modelDevice) meaning(subs []store.Subscription) map[im.ConvID][]byte {
	qos := map[im.ConvID][]byte{d.queue: {1}}
	for i, c := range d.m.convs {
		topic := []string{"dm/alice", "dm/carol", "g/g", "me/x"}[i]
		at, matched := byte(1), false
		for _, s := range subs {
			if s.Filter == topic || s.Filter[:2] == topic[:2] && s.Filter[len(s.Filter)-1] == '+' {
				if !matched || at == Stop {
					at = s.QoS
				}
				matched = true
			}
		}
		if at != Stop {
			qos[c] = []byte{at}
		}
	}
	return qos
}

// ack acknowledges one packet, any of those outstanding.
func (d *modelDevice) ack(which int) bool {
	m := d.m
	m.mu.Lock()
	n := len(d.w.unack)
	if n == 0 {
		m.mu.Unlock()
		return false
	}
	i := which % n
	a := d.w.unack[i]
	d.w.unack = slices.Delete(d.w.unack, i, i+1)
	if a.conv != "" {
		add(d.settled, a.conv, a.seq)
	}
	m.mu.Unlock()
	if !d.at.Line.Ack(a.packet) {
		m.faultf("%s: an outstanding packet id is unknown", d.key)
	}
	if d.at.Line.Ack(a.packet) {
		m.faultf("%s: a packet id was acknowledged twice", d.key)
	}
	return true
}

// takeAll acknowledges until nothing comes any more.
func (d *modelDevice) takeAll() {
	for range 2000 {
		d.drain()
		synctest.Wait()
		if !d.ack(0) {
			return
		}
	}
}

func (d *modelDevice) drain() {
	d.m.mu.Lock()
	d.w.room = -1
	d.m.mu.Unlock()
	d.at.Line.Writable()
}

// complete wants everything to have come, and the queue trimmed below what was
// acknowledged only.
func (d *modelDevice) complete() {
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range append(slices.Clone(m.convs), d.queue) {
		if c == m.convs[2] && !m.member {
			continue
		}
		for s := d.start[c] + 1; s <= m.mem.head(c); s++ {
			if !d.settled[c][s] {
				m.faultf("%s: %s seq %d never came", d.key, c, s)
			}
		}
	}
	for s := d.start[d.queue] + 1; s <= m.mem.floor[d.queue]; s++ {
		if !d.settled[d.queue][s] {
			m.faultf("%s: seq %d of the queue was trimmed before it was acknowledged", d.key, s)
		}
	}
	if d.w.notes != d.notes {
		m.faultf("%s: %d of %d notes came", d.key, d.w.notes, d.notes)
	}
}
