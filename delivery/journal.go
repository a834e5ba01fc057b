package delivery

import (
	"container/list"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/parley-im/parley/im"
)

// A journal is kept for a user who has a device that left: in which
// conversations something happened since. A device that comes back looks at
// those, and at what it had still to get, instead of at everything its user
// takes part in. It is a hint that can be lost at any time: a device of which
// nothing is known looks at everything, once.
//
// Nothing may be missed:
//
//   - A device is in the journal before its line is closed, so what the line does
//     not take any more is written down (retire).
//   - What happens is given to the lines first, then written down, and given to
//     lines that were registered meanwhile; a device that returns is registered
//     first and then reads what was written (userLines.each, place).
//   - An entry is offered after it is committed: what was offered before a device
//     reads the journal, it finds in the log.
//   - If the store holds what was never offered (store.Log.Doubts), nothing that
//     was written before is believed.
type journal struct {
	name   im.UserID
	user   *userLines
	keeper *keeper
	elem   *list.Element // guarded by keeper.mu

	mu     sync.Mutex
	epoch  uint32               // departures so far
	moved  map[im.ConvID]uint32 // the epoch in which something happened last; at most maxMoved
	away   []absence            // who left first is first; at most maxAway
	rooms  int                  // the user is in so many although no device is here
	weight int                  // what of keeper.held is this journal's
	closed bool                 // nothing is written any more
}

// absence is a device that left.
type absence struct {
	device im.DeviceID
	since  uint32      // what moved in this epoch or later, it has to look at
	owes   []im.ConvID // what it had still to get when it left; at most maxMoved
	asOf   uint64      // Source.Doubts before it looked at everything
}

const (
	maxMoved = 1024 // looking at more of them is not much less than looking at all
	maxAway  = 16
)

// keeper bounds what journals hold, and what users hold in rooms of whom no
// device is here. The journal whose user has been left alone for longest goes.
type keeper struct {
	max   int          // conversations: in a journal, or a room that a user stays in
	held  atomic.Int64 // the same
	moved int          // maxMoved, but in tests
	mu    sync.Mutex
	order *list.List // of *journal, by the last departure
}

// weighJournal is what a journal weighs, in conversations, beside them.
const weighJournal = 8

// each calls fn for each of the user's lines, and writes down for devices that are
// away that something happened in conv. If lines have come or gone meanwhile it
// begins again: fn must bear that. It reports whether there are lines.
func (u *userLines) each(conv im.ConvID, fn func(*Line)) (here bool) {
	for {
		ls := u.lines.Load()
		for _, l := range *ls {
			fn(l)
		}
		if j := u.journal.Load(); j != nil {
			j.note(conv)
		}
		if u.lines.Load() == ls { // also without a journal: who returned may have ended it
			return len(*ls) > 0
		}
	}
}

// note writes down that something happened in conv.
func (j *journal) note(conv im.ConvID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if at, known := j.moved[conv]; known && at == j.epoch {
		return
	} else if !known {
		j.makeRoom()
	}
	if len(j.away) == 0 {
		return
	}
	if j.moved == nil {
		j.moved = make(map[im.ConvID]uint32)
	}
	j.moved[conv] = j.epoch
	j.weigh()
}

// makeRoom sees that a conversation more can be written down: what nobody asks
// for any more goes first, then who has been away for longest. Caller holds mu.
func (j *journal) makeRoom() {
	for len(j.moved) >= j.keeper.moved && len(j.away) > 0 {
		n := len(j.moved)
		if j.tidy(); len(j.moved) == n {
			j.away = slices.Delete(j.away, 0, 1)
		}
	}
	if len(j.away) == 0 {
		j.moved = nil
	}
}

// tidy takes out what moved before anybody left who is away. Caller holds mu.
func (j *journal) tidy() {
	if len(j.away) == 0 {
		j.moved = nil
		return
	}
	first := j.away[0].since
	maps.DeleteFunc(j.moved, func(_ im.ConvID, at uint32) bool { return at < first })
}

// weigh counts what the journal holds. Caller holds mu.
func (j *journal) weigh() {
	w := 0
	if !j.closed {
		w = weighJournal + len(j.moved) + j.rooms
		for i := range j.away {
			w += 1 + len(j.away[i].owes)
		}
	}
	j.keeper.held.Add(int64(w - j.weight))
	j.weight = w
}

// find returns where device is in away, or -1. Caller holds mu.
func (j *journal) find(device im.DeviceID) int {
	return slices.IndexFunc(j.away, func(a absence) bool { return a.device == device })
}

// depart writes down, before the line is closed, that its device leaves. It
// returns nil where nothing is remembered.
func (d *Delivery) depart(l *Line) *journal {
	k := &d.keeper
	if k.max <= 0 {
		return nil
	}
	u := l.user
	for {
		j := u.journal.Load()
		if j == nil {
			j = &journal{name: l.key.User, user: u, keeper: k}
			if !u.journal.CompareAndSwap(nil, j) {
				continue
			}
		}
		if j.add(absence{device: l.key.Device, asOf: l.asOf}) {
			k.last(j)
			return j
		}
		u.journal.CompareAndSwap(j, nil)
	}
}

func (j *journal) add(a absence) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return false
	}
	if i := j.find(a.device); i >= 0 {
		j.away = slices.Delete(j.away, i, i+1)
	}
	if len(j.away) >= maxAway {
		j.away = slices.Delete(j.away, 0, 1)
	}
	j.epoch++
	a.since = j.epoch
	j.away = append(j.away, a)
	j.weigh()
	return true
}

// owe completes the absence of a device whose line is closed: what it had still to
// get. ok false: it is not to be relied on.
func (j *journal) owe(device im.DeviceID, convs []im.ConvID, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := j.find(device)
	if i < 0 {
		return
	}
	if j.away[i].owes = convs; !ok || len(convs) > j.keeper.moved {
		j.away = slices.Delete(j.away, i, i+1)
	}
	j.weigh()
}

// recall returns, in their order, the conversations in which there may be
// something for the device that is back; ok is false if that is not known.
func (u *userLines) recall(device im.DeviceID, doubts uint64) (convs []im.ConvID, ok bool) {
	j := u.journal.Load()
	if j == nil {
		return nil, false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	i := j.find(device)
	if i < 0 || j.away[i].asOf != doubts {
		return nil, false
	}
	convs = slices.Clone(j.away[i].owes)
	for c, at := range j.moved {
		if at >= j.away[i].since {
			convs = append(convs, c)
		}
	}
	slices.Sort(convs)
	return slices.Compact(convs), true
}

// back takes a device out of the journal: it is here, or is forgotten. A journal
// that is about nobody ends.
func (d *Delivery) back(u *userLines, device im.DeviceID) {
	if u == nil {
		return
	}
	j := u.journal.Load()
	if j == nil {
		return
	}
	j.mu.Lock()
	if i := j.find(device); i >= 0 {
		j.away = slices.Delete(j.away, i, i+1)
		j.weigh()
	}
	over := len(j.away) == 0
	j.mu.Unlock()
	if over {
		d.end(j)
	}
}

// end closes a journal. A user who stayed for its sake goes.
func (d *Delivery) end(j *journal) {
	s := &d.users[shard(j.name)]
	s.Lock()
	u := j.user
	u.journal.CompareAndSwap(j, nil)
	alone := len(u.get()) == 0 && s.m[j.name] == u
	if alone {
		delete(s.m, j.name)
	}
	s.Unlock()
	j.close()
	if alone {
		d.leaveAll(u)
	}
}

func (j *journal) close() {
	j.mu.Lock()
	j.closed, j.moved, j.away = true, nil, nil
	j.weigh()
	j.mu.Unlock()
	j.keeper.drop(j)
}

func (j *journal) ended() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.closed
}

// stays notes in how many rooms the user is although no device is here; 0: one is.
// It reports whether anybody is away who is remembered.
func (j *journal) stays(rooms int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || len(j.away) == 0 {
		return false
	}
	j.rooms = rooms
	j.weigh()
	return true
}

// last makes j the one whose user was left last.
func (k *keeper) last(j *journal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case j.ended():
	case j.elem == nil:
		j.elem = k.order.PushBack(j)
	default:
		k.order.MoveToBack(j.elem)
	}
}

func (k *keeper) drop(j *journal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if j.elem != nil {
		k.order.Remove(j.elem)
		j.elem = nil
	}
}

// trim ends journals until what is held is within bounds.
func (d *Delivery) trim() {
	k := &d.keeper
	for k.held.Load() > int64(max(k.max, 0)) {
		k.mu.Lock()
		first := k.order.Front()
		k.mu.Unlock()
		if first == nil {
			return
		}
		d.end(first.Value.(*journal))
	}
}
