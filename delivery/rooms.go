package delivery

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// userShard holds users with a device here.
type userShard struct {
	sync.RWMutex
	m map[im.UserID]*userLines
}

// roomShard holds who has to get what is said in a group: users with a device
// here, not their devices, so that a device more costs the same whether its user
// is in ten groups or in ten thousand.
type roomShard struct {
	sync.RWMutex
	m map[im.GroupID]map[*userLines]struct{}
}

// userLines is a user with at least one device here.
type userLines struct {
	lines atomic.Pointer[[]*Line] // what it points to never changes

	// Under the shard's lock.
	gen   uint64 // changes of the user's conversations seen; guards attach against one meanwhile
	parts []store.Participation
	// parts is the list of the user's conversations as of gen, read-only, where it
	// is long (Delivery.manyParts) and was read since they last changed; otherwise nil.

	rooms struct {
		sync.Mutex
		list   []im.GroupID // groups whose room holds this user
		placed bool         // an attach has entered them all; since then they are kept up to date
		ended  bool         // the last line has gone
	}
}

// get returns the lines; the slice is not the caller's. u may be nil.
func (u *userLines) get() []*Line {
	if u == nil {
		return nil
	}
	return *u.lines.Load()
}

// online returns the user's entry, or nil if no device is here.
func (d *Delivery) online(user im.UserID) *userLines {
	s := &d.users[shard(user)]
	s.RLock()
	defer s.RUnlock()
	return s.m[user]
}

// Joined puts the user into the group's room.
func (d *Delivery) Joined(g im.GroupID, user im.UserID, _ im.Seq) {
	u := d.moved(user)
	if u == nil {
		return
	}
	d.enter(g, u)
	for _, l := range u.get() {
		// What was offered before the user was in the room is found by the pump.
		l.mu.Lock()
		if t := l.track(im.GroupConv(g)); !t.resolved {
			l.fallBehind(t)
		}
		l.mu.Unlock()
	}
}

// Left takes the user out of the group's room; the lines forget what they had
// still to get from it.
func (d *Delivery) Left(g im.GroupID, user im.UserID) {
	u := d.moved(user)
	if u == nil {
		return
	}
	d.leave(g, u)
	for _, l := range u.get() {
		l.forget(im.GroupConv(g))
	}
}

// moved notes that the user's conversations changed, for an attach that is under
// way and those to come, and returns the user if a device is here.
func (d *Delivery) moved(user im.UserID) *userLines {
	s := &d.users[shard(user)]
	s.Lock()
	defer s.Unlock()
	u := s.m[user]
	if u != nil {
		u.gen++
		u.parts = nil
	}
	return u
}

// remembered returns the generation and, if it is kept, the list of
// conversations that goes with it.
func (d *Delivery) remembered(user im.UserID, u *userLines) (gen uint64, parts []store.Participation) {
	s := &d.users[shard(user)]
	s.RLock()
	defer s.RUnlock()
	return u.gen, u.parts
}

// remember keeps a list that was read at gen, if it is long and still true.
func (d *Delivery) remember(user im.UserID, u *userLines, gen uint64, parts []store.Participation) {
	if len(parts) < d.manyParts {
		return
	}
	s := &d.users[shard(user)]
	s.Lock()
	defer s.Unlock()
	if u.gen == gen {
		u.parts = parts
	}
}

// enter puts u into the room of g and reports true if it was not in it. One that
// has ended stays out: coming in after unregister took it out of its rooms, it
// would stay for ever.
func (d *Delivery) enter(g im.GroupID, u *userLines) bool {
	u.rooms.Lock()
	defer u.rooms.Unlock()
	if u.rooms.ended {
		return false
	}
	s := &d.rooms[shard(g)]
	s.Lock()
	defer s.Unlock()
	room := s.m[g]
	if _, in := room[u]; in {
		return false
	}
	if room == nil {
		room = make(map[*userLines]struct{}, 1)
		s.m[g] = room
	}
	room[u] = struct{}{}
	u.rooms.list = append(u.rooms.list, g)
	return true
}

func (d *Delivery) leave(g im.GroupID, u *userLines) {
	u.rooms.Lock()
	u.rooms.list = slices.DeleteFunc(u.rooms.list, func(x im.GroupID) bool { return x == g })
	u.rooms.Unlock()
	d.vacate(g, u)
}

func (d *Delivery) vacate(g im.GroupID, u *userLines) {
	s := &d.rooms[shard(g)]
	s.Lock()
	defer s.Unlock()
	delete(s.m[g], u)
	if len(s.m[g]) == 0 {
		delete(s.m, g)
	}
}

// placed reports whether u is in all its rooms already.
func (u *userLines) placed() bool {
	u.rooms.Lock()
	defer u.rooms.Unlock()
	return u.rooms.placed
}

func (u *userLines) setPlaced() {
	u.rooms.Lock()
	u.rooms.placed = true
	u.rooms.Unlock()
}

// register adds the line to its user's.
func (d *Delivery) register(l *Line) {
	s := &d.users[shard(l.key.User)]
	s.Lock()
	u := s.m[l.key.User]
	first := u == nil
	if first {
		u = &userLines{}
		s.m[l.key.User] = u
	}
	var ls []*Line
	if old := u.lines.Load(); old != nil {
		ls = *old
	}
	ls = append(ls, l) // beyond what readers of the old slice see
	u.lines.Store(&ls)
	l.user = u
	s.Unlock()
	if first {
		d.presence.came(l.key.User)
	}
}

// unregister takes the line out of its user's, and the user whose last line it
// was out of every room.
func (d *Delivery) unregister(l *Line) {
	u, user := l.user, l.key.User
	s := &d.users[shard(user)]
	s.Lock()
	ls := slices.DeleteFunc(slices.Clone(u.get()), func(x *Line) bool { return x == l })
	u.lines.Store(&ls)
	last := len(ls) == 0 && s.m[user] == u
	if last {
		delete(s.m, user)
	}
	s.Unlock()
	if !last {
		return
	}
	d.presence.went(user)
	u.rooms.Lock()
	u.rooms.ended = true
	list := u.rooms.list
	u.rooms.list = nil
	u.rooms.Unlock()
	for _, g := range list {
		d.vacate(g, u)
	}
}
