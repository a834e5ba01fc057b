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

// memory is a Source kept in maps: the model's log. Engines have their own
// suite; here the subject is what delivery makes of any log.
type memory struct {
	mu      sync.Mutex
	logs    map[im.ConvID][]*im.Entry
	floor   map[im.ConvID]im.Seq
	members map[im.GroupID]map[im.UserID]im.Seq
	devices map[im.DeviceKey]store.Device
	cursors map[im.DeviceKey]map[im.ConvID]store.Cursor
	failing bool
}

func newMemory() *memory {
	return &memory{logs: map[im.ConvID][]*im.Entry{}, floor: map[im.ConvID]im.Seq{}, members: map[im.GroupID]map[im.UserID]im.Seq{},
		devices: map[im.DeviceKey]store.Device{}, cursors: map[im.DeviceKey]map[im.ConvID]store.Cursor{}}
}

func (m *memory) setFailing(v bool) {
	m.mu.Lock()
	m.failing = v
	m.mu.Unlock()
}

func (m *memory) append(e im.Entry) *im.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.Seq = im.Seq(len(m.logs[e.Conv]) + 1)
	m.logs[e.Conv] = append(m.logs[e.Conv], &e)
	return &e
}

func (m *memory) Range(_ context.Context, c im.ConvID, after im.Seq, limit, _ int) ([]*im.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing {
		return nil, im.E(im.Unavailable, "memory", nil)
	}
	after = max(after, m.floor[c])
	if int(after) >= len(m.logs[c]) {
		return nil, nil
	}
	es := m.logs[c][after:]
	return slices.Clone(es[:min(limit, len(es))]), nil
}

func (m *memory) Heads(_ context.Context, cs []im.ConvID) ([]store.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	hs := make([]store.Head, len(cs))
	for i, c := range cs {
		hs[i].Seq = im.Seq(len(m.logs[c]))
	}
	return hs, nil
}

func (m *memory) Trim(_ context.Context, c im.ConvID, upTo im.Seq) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.floor[c] = max(m.floor[c], upTo)
	return nil
}

func (m *memory) Conversations(_ context.Context, u im.UserID) ([]store.Participation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ps := []store.Participation{{Conv: im.AccountConv(u)}}
	for c := range m.logs {
		if _, ok := c.Peer(u); ok {
			ps = append(ps, store.Participation{Conv: c})
		}
	}
	for g, us := range m.members {
		if start, ok := us[u]; ok {
			ps = append(ps, store.Participation{Conv: im.GroupConv(g), Start: start})
		}
	}
	return ps, nil
}

func (m *memory) Member(_ context.Context, g im.GroupID, u im.UserID) (store.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	start, ok := m.members[g][u]
	if !ok {
		return store.Member{}, im.E(im.NotFound, "memory", nil)
	}
	return store.Member{Group: g, User: u, Start: start}, nil
}

func (m *memory) Reads(context.Context, im.ConvID, int64) ([]store.Read, error) { return nil, nil }

func (m *memory) Device(_ context.Context, k im.DeviceKey) (store.Device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.devices[k]
	if !ok {
		return d, im.E(im.NotFound, "memory", nil)
	}
	return d, nil
}
func (m *memory) DevicesOf(context.Context, im.UserID) ([]store.Device, error) { return nil, nil }
func (m *memory) CountDevices(context.Context, im.UserID) (int, error)         { return 0, nil }
func (m *memory) EachDevice(_ context.Context, fn func(store.Device) bool) error {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.devices))
	m.mu.Unlock()
	for _, d := range all {
		if !fn(d) {
			break
		}
	}
	return nil
}
func (m *memory) PutDevice(_ context.Context, d store.Device, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.devices[d.Key] = d
	return nil
}
func (m *memory) DropDevice(_ context.Context, k im.DeviceKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.devices, k)
	delete(m.cursors, k)
	return nil
}
func (m *memory) Cursors(_ context.Context, k im.DeviceKey) ([]store.Cursor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var cs []store.Cursor
	for _, c := range m.cursors[k] {
		c.Ahead = slices.Clone(c.Ahead)
		cs = append(cs, c)
	}
	slices.SortFunc(cs, func(a, b store.Cursor) int {
		if a.Conv < b.Conv {
			return -1
		}
		return 1
	})
	return cs, nil
}
func (m *memory) Cursor(_ context.Context, k im.DeviceKey, c im.ConvID) (store.Cursor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cur, ok := m.cursors[k][c]
	if !ok {
		cur.Conv = c
	}
	cur.Ahead = slices.Clone(cur.Ahead)
	return cur, nil
}
func (m *memory) PutCursors(_ context.Context, k im.DeviceKey, cs []store.Cursor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cursors[k] == nil {
		m.cursors[k] = map[im.ConvID]store.Cursor{}
	}
	for _, c := range cs {
		m.cursors[k][c.Conv] = c
	}
	return nil
}
func (m *memory) ResetCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor) error {
	m.mu.Lock()
	m.cursors[k] = nil
	m.mu.Unlock()
	return m.PutCursors(ctx, k, cs)
}
func (m *memory) Receipt(context.Context, im.DeviceKey, uint16) (store.Receipt, error) {
	return store.Receipt{}, im.E(im.NotFound, "memory", nil)
}
func (m *memory) Release(context.Context, im.DeviceKey, uint16) error { return nil }

// tap is a wire that remembers what was written and acknowledges when told.
type tap struct {
	mu     sync.Mutex
	got    []arrival
	unack  []arrival
	room   int // deliveries taken before Full; -1 no limit
	closed bool
	line   *Line
}

type arrival struct {
	conv   im.ConvID
	seq    im.Seq
	packet uint16
	dup    bool
}

func (w *tap) Deliver(p *Parcel, qos byte, packet uint16, dup bool) Outcome {
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
	a := arrival{p.Conv, p.Seq, packet, dup}
	w.got = append(w.got, a)
	if qos > 0 {
		w.unack = append(w.unack, a)
	}
	return Written
}
func (w *tap) Send(*Note, byte, uint16) Outcome { return Written }
func (w *tap) Close(CloseReason) {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
}

// TestModel drives one device through random commits, acknowledgements in any
// order, full wires, store failures, disconnects and takeovers, and holds what
// arrives against the promise: on each connection every conversation comes in
// seq order without a hole, beginning at or before the first entry that was not
// acknowledged; nothing acknowledged comes again; in the end everything arrives.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Everything is drawn before the bubble begins: rapid ends a draw by panicking.
		window := rapid.IntRange(1, 8).Draw(rt, "window")
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 5, 60).Draw(rt, "steps")
		var failure string
		synctest.Test(t, func(t *testing.T) { failure = runModel(t.Context(), window, steps) })
		if failure != "" {
			rt.Fatal(failure)
		}
	})
}

// step is one thing that happens; n and m say how much, or which.
type step struct {
	kind string
	n, m int
	wait bool
}

func drawStep(rt *rapid.T) step {
	return step{
		kind: rapid.SampledFrom([]string{"commit", "commit", "ack", "ack", "full", "drain", "drop", "takeover", "fail", "heal", "own"}).Draw(rt, "kind"),
		n:    rapid.IntRange(0, 7).Draw(rt, "n"),
		m:    rapid.IntRange(0, 7).Draw(rt, "m"),
		wait: rapid.Bool().Draw(rt, "wait"),
	}
}

type model struct {
	mem   *memory
	d     *Delivery
	convs []im.ConvID
	w     *tap
	at    *Attached
	acked map[im.ConvID]map[im.Seq]bool
	start map[im.ConvID]im.Seq          // where the device began
	had   map[im.ConvID]map[im.Seq]bool // acknowledged before this connection
}

func runModel(ctx context.Context, window int, steps []step) (failure string) {
	ctx, cancel := context.WithCancel(ctx)
	m := &model{mem: newMemory(), acked: map[im.ConvID]map[im.Seq]bool{}, start: map[im.ConvID]im.Seq{}}
	m.mem.members["g"] = map[im.UserID]im.Seq{"bob": 0}
	m.convs = []im.ConvID{im.DM("alice", "bob"), im.DM("carol", "bob"), im.GroupConv("g"), im.AccountConv("bob")}
	m.d = New(Options{Source: m.mem, Window: window, Workers: 2})
	done := make(chan struct{})
	go func() { defer close(done); _ = m.d.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	m.connect(ctx, 0)
	for _, st := range steps {
		if failure := m.step(ctx, st); failure != "" {
			return failure
		}
		if st.wait {
			synctest.Wait()
		}
	}
	// In the end everything arrives.
	m.mem.setFailing(false)
	time.Sleep(2 * storeRetry) // of the bubble's clock
	for range 1000 {
		m.drain()
		synctest.Wait()
		if !m.ackAll() {
			break
		}
	}
	if f := m.checkConnection(); f != "" {
		return f
	}
	for _, conv := range m.convs {
		for s := m.start[conv] + 1; s <= im.Seq(len(m.mem.logs[conv])); s++ {
			if !m.acked[conv][s] {
				return fmt.Sprintf("%s seq %d never arrived", conv, s)
			}
		}
	}
	return ""
}

func (m *model) step(ctx context.Context, st step) string {
	switch st.kind {
	case "commit":
		for range 1 + st.m {
			m.d.Offer(m.mem.append(im.Entry{Conv: m.convs[st.n%len(m.convs)], From: "alice"}))
		}
	case "own": // the device itself writes: it needs no copy
		conv := m.convs[st.n%3]
		e := m.mem.append(im.Entry{Conv: conv, From: "bob", Device: "phone"})
		m.mark(conv, e.Seq)
		m.d.Offer(e)
	case "ack":
		m.ack(st.n)
	case "full":
		m.w.mu.Lock()
		m.w.room = st.n % 4
		m.w.mu.Unlock()
	case "drain":
		m.drain()
	case "drop":
		if f := m.checkConnection(); f != "" {
			return f
		}
		m.w.Close(0)
		m.d.Detach(ctx, m.at.Line, nil, nil)
		if st.n%2 == 0 {
			m.d.Offer(m.mem.append(im.Entry{Conv: m.convs[0], From: "alice"}))
		}
		m.connect(ctx, st.m)
	case "takeover":
		old := m.w
		if f := m.checkConnection(); f != "" {
			return f
		}
		m.connect(ctx, st.m)
		if !old.closed {
			return "the older connection was not closed"
		}
	case "fail":
		m.mem.setFailing(true)
	case "heal":
		m.mem.setFailing(false)
	}
	return ""
}

// connect attaches the device; with odd n an entry is committed before Start.
func (m *model) connect(ctx context.Context, n int) {
	m.w = &tap{room: -1}
	m.had = map[im.ConvID]map[im.Seq]bool{}
	for c, seqs := range m.acked {
		m.had[c] = maps.Clone(seqs)
	}
	first := m.at == nil
	at, err := m.d.Attach(ctx, Attachment{Key: im.DeviceKey{User: "bob", Device: "phone"}, Wire: m.w, Version: 5, Expiry: 1000})
	if err != nil {
		panic(err)
	}
	if first != !at.Present {
		panic("session present")
	}
	m.at, m.w.line = at, at.Line
	if n%2 == 1 {
		m.d.Offer(m.mem.append(im.Entry{Conv: m.convs[1], From: "carol"}))
	}
	at.Start(ctx)
}

func (m *model) mark(conv im.ConvID, seq im.Seq) {
	if m.acked[conv] == nil {
		m.acked[conv] = map[im.Seq]bool{}
	}
	m.acked[conv][seq] = true
}

// ack acknowledges one packet, any of those outstanding.
func (m *model) ack(which int) {
	m.w.mu.Lock()
	n := len(m.w.unack)
	if n == 0 {
		m.w.mu.Unlock()
		return
	}
	i := which % n
	a := m.w.unack[i]
	m.w.unack = slices.Delete(m.w.unack, i, i+1)
	m.w.mu.Unlock()
	m.mark(a.conv, a.seq)
	if !m.at.Line.Ack(a.packet) {
		panic("an outstanding packet id is unknown")
	}
}

func (m *model) ackAll() bool {
	m.w.mu.Lock()
	all := m.w.unack
	m.w.unack = nil
	m.w.mu.Unlock()
	for _, a := range all {
		m.mark(a.conv, a.seq)
		m.at.Line.Ack(a.packet)
	}
	return len(all) > 0
}

func (m *model) drain() {
	m.w.mu.Lock()
	m.w.room = -1
	m.w.mu.Unlock()
	m.at.Line.Writable()
}

// checkConnection holds what this connection got against the promises.
func (m *model) checkConnection() string {
	synctest.Wait()
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	last := map[im.ConvID]im.Seq{}
	for _, a := range m.w.got {
		if m.had[a.conv][a.seq] {
			return fmt.Sprintf("%s seq %d came again after its acknowledgement", a.conv, a.seq)
		}
		if prev, ok := last[a.conv]; ok {
			for s := prev + 1; s < a.seq; s++ {
				if !m.acked[a.conv][s] {
					return fmt.Sprintf("%s: after seq %d came %d", a.conv, prev, a.seq)
				}
			}
			if a.seq <= prev {
				return fmt.Sprintf("%s: after seq %d came %d on one connection", a.conv, prev, a.seq)
			}
		} else {
			for s := m.start[a.conv] + 1; s < a.seq; s++ {
				if !m.acked[a.conv][s] {
					return fmt.Sprintf("%s: the connection began at %d, but %d was never acknowledged", a.conv, a.seq, s)
				}
			}
		}
		last[a.conv] = a.seq
	}
	ids := map[uint16]bool{}
	for _, a := range m.w.unack {
		if a.packet == 0 || ids[a.packet] {
			return fmt.Sprintf("packet id %d is in use twice", a.packet)
		}
		ids[a.packet] = true
	}
	return ""
}
