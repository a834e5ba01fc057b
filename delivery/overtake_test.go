package delivery

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// lone is a model with one device whose window is 1.
func lone(ctx context.Context) (*model, *modelDevice) {
	m := &model{ctx: ctx, mem: newMemory(), remember: [2]int{1000, 1000}, member: true, recalled: map[im.ConvID]map[im.Seq]bool{}}
	m.mem.setMember(modelGroup, modelUser, 0, true)
	m.convs = []im.ConvID{im.DM("alice", modelUser), im.DM("carol", modelUser), im.GroupConv(modelGroup), im.AccountConv(modelUser)}
	m.begin(1)
	set := func() map[im.ConvID]map[im.Seq]bool { return map[im.ConvID]map[im.Seq]bool{} }
	d := &modelDevice{m: m, key: im.DeviceKey{User: modelUser, Device: "phone"}, queue: im.QueueConv(modelUser, "phone"), window: 1,
		start: map[im.ConvID]im.Seq{}, settled: set(), stored: set(), own: set(), written: set()}
	d.setQoS(d.meaning(nil))
	m.devs = []*modelDevice{d}
	d.connect(0, false)
	synctest.Wait()
	return m, d
}

// TestALeaveOvertakesWhatThePumpHasRead: nothing of a group comes after it was left,
// even if it was being read then.
func TestALeaveOvertakesWhatThePumpHasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, d := lone(t.Context())
		defer func() { m.stop() }()
		group := m.convs[2]
		m.mem.read = func(c im.ConvID) {
			if c == group && m.member {
				m.move(false)
			}
		}
		m.mem.append(im.Entry{Conv: group, From: "alice", Body: []byte("x")})
		m.d.Offer(m.mem.append(im.Entry{Conv: group, From: "alice", Body: []byte("x")}))
		synctest.Wait()
		if d.complete(); m.member || m.found() != "" {
			t.Errorf("left %v: %s", !m.member, m.found())
		}
	})
}

// TestARecallOvertakesWhatThePumpHasRead: what was read before a recall, and waits
// for the window, is not sent with its body after it.
func TestARecallOvertakesWhatThePumpHasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, d := lone(t.Context())
		defer func() { m.stop() }()
		conv := m.convs[0]
		once := true
		m.mem.read = func(c im.ConvID) { // 1 and 2 are read; then 2 is recalled
			if c == conv && once && m.mem.head(conv) == 2 {
				once = false
				m.mem.recall(conv, 2)
				m.commit(im.Entry{Conv: conv, From: "alice", Op: im.OpRecall, Ref: 2})
				m.mu.Lock()
				add(m.recalled, conv, 2)
				m.mu.Unlock()
			}
		}
		m.mem.append(im.Entry{Conv: conv, From: "alice", Body: []byte("x")})
		m.d.Offer(m.mem.append(im.Entry{Conv: conv, From: "alice", Body: []byte("x")}))
		for range 10 {
			synctest.Wait()
			d.ack(0)
		}
		if d.complete(); once || m.found() != "" {
			t.Errorf("recalled %v: %s", !once, m.found())
		}
	})
}

// TestALeaveOvertakesAnAttach: a device that returns while its user leaves a group
// gets nothing of the group, whichever of the two is seen first.
func TestALeaveOvertakesAnAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, d := lone(t.Context())
		defer func() { m.stop() }()
		group := m.convs[2]
		d.w.Close(0)
		m.d.Detach(m.ctx, d.at.Line, nil, nil)
		m.commit(im.Entry{Conv: group, From: "alice", Body: []byte("x")})
		m.mem.looked = func() { m.move(false) }
		d.connect(0, false)
		synctest.Wait()
		if m.member || m.found() != "" {
			t.Errorf("left %v: %s", !m.member, m.found())
		}
	})
}

// TestAJoinOvertakesALeaveThatThePumpFound: what the pump forgets, because it found
// that the user is no member, is what it had in its hands, not what a join has made
// meanwhile.
func TestAJoinOvertakesALeaveThatThePumpFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, d := lone(t.Context())
		defer func() { m.stop() }()
		group := m.convs[2]
		m.mem.setMember(modelGroup, modelUser, 0, false) // committed, and Left is not called yet
		m.mem.asked = func() {
			m.d.Left(modelGroup, modelUser)
			m.mu.Lock()
			m.member = false
			m.mu.Unlock()
			m.move(true)
			m.commit(im.Entry{Conv: group, From: "alice", Body: []byte("x")})
		}
		m.commit(im.Entry{Conv: group, From: "alice", Body: []byte("x")})
		for range 10 {
			synctest.Wait()
			d.ack(0)
		}
		if d.complete(); !m.member || m.found() != "" {
			t.Errorf("back %v: %s", m.member, m.found())
		}
	})
}

// TestAViewChangesAtOnce: what one conversation gets because it is wanted again is
// not written by the old view of another, whose entries would count as unwanted.
func TestAViewChangesAtOnce(t *testing.T) {
	for range 20 { // of the orders that a map has
		synctest.Test(t, func(t *testing.T) {
			m, d := lone(t.Context())
			defer func() { m.stop() }()
			d.view([]store.Subscription{{Filter: "dm/+", QoS: Stop}})
			m.commit(im.Entry{Conv: m.convs[0], From: "alice"})
			for range 3 {
				m.mem.append(im.Entry{Conv: m.convs[3]})
			}
			m.commit(im.Entry{Conv: m.convs[3]}) // the pump reads four, and the window takes one
			synctest.Wait()
			d.view([]store.Subscription{{Filter: "me/+", QoS: Stop}})
			d.view(nil)
			d.takeAll()
			if d.complete(); m.found() != "" {
				t.Error(m.found())
			}
		})
	}
}
