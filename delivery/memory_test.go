package delivery

import (
	"context"
	"maps"
	"slices"
	"sync"

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
	doubts  uint64
	unput   bool            // cursors are not stored
	resets  int             // of all cursors of a device
	read    func(im.ConvID) // called after each Range, before its result is used
	looked  func()          // called once after the next Heads, before its result is used
	asked   func()          // called once after the next Member, before its result is used
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

// recall empties an entry, as a store does: who read it before keeps the body.
func (m *memory) recall(c im.ConvID, seq im.Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := *m.logs[c][seq-1]
	e.Body = nil
	m.logs[c][seq-1] = &e
}

func (m *memory) head(c im.ConvID) im.Seq {
	m.mu.Lock()
	defer m.mu.Unlock()
	return im.Seq(len(m.logs[c]))
}

// setMember makes u a member who begins at start, or none.
func (m *memory) setMember(g im.GroupID, u im.UserID, start im.Seq, in bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.members[g] == nil {
		m.members[g] = map[im.UserID]im.Seq{}
	}
	if delete(m.members[g], u); in {
		m.members[g][u] = start
	}
}

func (m *memory) Range(_ context.Context, c im.ConvID, after im.Seq, limit, _ int) ([]*im.Entry, error) {
	if m.read != nil {
		defer m.read(c)
	}
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
	if fn := m.looked; fn != nil {
		m.looked = nil
		defer m.unlocked(fn)
	}
	hs := make([]store.Head, len(cs))
	for i, c := range cs {
		hs[i].Seq = im.Seq(len(m.logs[c]))
	}
	return hs, nil
}

// unlocked calls fn, not under the lock that the caller holds.
func (m *memory) unlocked(fn func()) {
	m.mu.Unlock()
	defer m.mu.Lock()
	fn()
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
	if m.failing {
		return store.Member{}, im.E(im.Unavailable, "memory", nil)
	}
	start, ok := m.members[g][u]
	if fn := m.asked; fn != nil {
		m.asked = nil
		defer m.unlocked(fn)
	}
	if !ok {
		return store.Member{}, im.E(im.NotFound, "memory", nil)
	}
	return store.Member{Group: g, User: u, Start: start}, nil
}

func (m *memory) MemberIn(_ context.Context, u im.UserID, gs []im.GroupID) (ms []store.Member, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range gs {
		if start, ok := m.members[g][u]; ok {
			ms = append(ms, store.Member{Group: g, User: u, Start: start})
		}
	}
	return ms, nil
}

// doubt says that there may be what was not offered.
func (m *memory) doubt() {
	m.mu.Lock()
	m.doubts++
	m.mu.Unlock()
}

func (m *memory) Doubts() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.doubts
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
	if m.failing {
		return store.Cursor{}, im.E(im.Unavailable, "memory", nil)
	}
	cur, ok := m.cursors[k][c]
	if !ok {
		cur.Conv = c
	}
	cur.Ahead = slices.Clone(cur.Ahead)
	return cur, nil
}
func (m *memory) CursorsOf(ctx context.Context, k im.DeviceKey, convs []im.ConvID) ([]store.Cursor, error) {
	cs := make([]store.Cursor, len(convs))
	for i, c := range convs {
		var err error
		if cs[i], err = m.Cursor(ctx, k, c); err != nil {
			return nil, err
		}
	}
	return cs, nil
}
func (m *memory) PutCursors(_ context.Context, k im.DeviceKey, cs []store.Cursor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unput {
		return im.E(im.Unavailable, "memory", nil)
	}
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
	m.resets++
	m.mu.Unlock()
	return m.PutCursors(ctx, k, cs)
}
func (m *memory) Receipt(context.Context, im.DeviceKey, uint16) (store.Receipt, error) {
	return store.Receipt{}, im.E(im.NotFound, "memory", nil)
}
func (m *memory) Release(context.Context, im.DeviceKey, uint16) error { return nil }
