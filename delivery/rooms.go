package delivery

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// userShard holds users with a device here, and users who stay for a while after
// their last device has left (journal.go): they have no lines.
type userShard struct {
	sync.RWMutex
	m map[im.UserID]*userLines
}

// roomShard holds who has to get what is said in a group: users, not their
// devices, so that a device more costs the same whether its user is in ten groups
// or in ten thousand. A user who has no lines is let out when something is said
// there, for then it is written down that they have to look.
type roomShard struct {
	sync.RWMutex
	m map[im.GroupID]map[*userLines]struct{}
}

// userLines is a user with at least one device here, or one who stays.
type userLines struct {
	lines   atomic.Pointer[[]*Line] // what it points to never changes
	journal atomic.Pointer[journal] // if a device is remembered that is away

	// Under the shard's lock.
	gen   uint64 // changes of the user's conversations seen; guards attach against one meanwhile
	parts []store.Participation
	// parts is the list of the user's conversations as of gen, read-only, where it
	// is long (Delivery.manyParts) and was read since they last changed; otherwise nil.

	rooms struct {
		sync.Mutex
		list   []im.GroupID // groups whose room holds this user, or has let them out
		out    map[im.GroupID]struct{}
		asOf   uint64 // Source.Doubts before an attach entered them all
		placed bool   // it did; since then they are kept up to date
		ended  bool   // the user has gone
	}
}

// get returns the lines; the slice is not the caller's. u may be nil.
func (u *userLines) get() []*Line {
	if u == nil {
		return nil
	}
	if ls := u.lines.Load(); ls != nil {
		return *ls
	}
	return nil
}

// online returns the user's entry, which may have no lines, or nil.
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
	u.each(im.GroupConv(g), func(l *Line) {
		// What was offered before the user was in the room is found by the pump.
		l.mu.Lock()
		defer l.mu.Unlock()
		if t := l.track(im.GroupConv(g)); !t.resolved {
			l.fallBehind(t)
		}
	})
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
// way and those to come, and returns the user's entry, or nil.
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
// has ended stays out: coming in after leaveAll took it out of its rooms, it
// would stay for ever.
func (d *Delivery) enter(g im.GroupID, u *userLines) bool {
	s := &d.rooms[shard(g)]
	s.Lock()
	defer s.Unlock()
	u.rooms.Lock()
	defer u.rooms.Unlock()
	if _, in := s.m[g][u]; in || u.rooms.ended {
		return false
	}
	s.put(g, u)
	if _, out := u.rooms.out[g]; out {
		delete(u.rooms.out, g)
	} else {
		u.rooms.list = append(u.rooms.list, g)
	}
	return true
}

// put adds u to a room. Caller holds the lock.
func (s *roomShard) put(g im.GroupID, u *userLines) {
	room := s.m[g]
	if room == nil {
		room = make(map[*userLines]struct{}, 1)
		s.m[g] = room
	}
	room[u] = struct{}{}
}

// letOut takes those users out of the room of g who have no lines. What was said
// there is in their journals.
func (d *Delivery) letOut(g im.GroupID, us []*userLines) {
	if len(us) == 0 {
		return
	}
	s := &d.rooms[shard(g)]
	s.Lock()
	defer s.Unlock()
	for _, u := range us {
		u.rooms.Lock()
		if _, in := s.m[g][u]; in && len(u.get()) == 0 { // register comes before letIn
			s.take(g, u)
			if u.rooms.out == nil {
				u.rooms.out = make(map[im.GroupID]struct{})
			}
			u.rooms.out[g] = struct{}{}
		}
		u.rooms.Unlock()
	}
}

// letIn brings u, who has a line again, back into the rooms that it was let out of.
func (d *Delivery) letIn(u *userLines) {
	u.rooms.Lock()
	out := slices.Collect(maps.Keys(u.rooms.out))
	u.rooms.Unlock()
	for _, g := range out {
		s := &d.rooms[shard(g)]
		s.Lock()
		u.rooms.Lock()
		if _, still := u.rooms.out[g]; still {
			delete(u.rooms.out, g)
			s.put(g, u)
		}
		if len(u.rooms.out) == 0 {
			u.rooms.out = nil
		}
		u.rooms.Unlock()
		s.Unlock()
	}
}

func (d *Delivery) leave(g im.GroupID, u *userLines) {
	u.rooms.Lock()
	u.rooms.list = slices.DeleteFunc(u.rooms.list, func(x im.GroupID) bool { return x == g })
	delete(u.rooms.out, g)
	u.rooms.Unlock()
	d.vacate(g, u)
}

func (d *Delivery) vacate(g im.GroupID, u *userLines) {
	s := &d.rooms[shard(g)]
	s.Lock()
	defer s.Unlock()
	s.take(g, u)
}

// take takes u out of a room. Caller holds the lock.
func (s *roomShard) take(g im.GroupID, u *userLines) {
	delete(s.m[g], u)
	if len(s.m[g]) == 0 {
		delete(s.m, g)
	}
}

// leaveAll takes u, whom nobody finds any more, out of every room.
func (d *Delivery) leaveAll(u *userLines) {
	if j := u.journal.Load(); j != nil {
		j.close()
	}
	u.rooms.Lock()
	u.rooms.ended = true
	list := u.rooms.list
	u.rooms.list, u.rooms.out = nil, nil
	u.rooms.Unlock()
	for _, g := range list {
		d.vacate(g, u)
	}
}

// placed reports whether u is in all its rooms already, and no doubt has come up
// since.
func (u *userLines) placed(doubts uint64) bool {
	u.rooms.Lock()
	defer u.rooms.Unlock()
	return u.rooms.placed && u.rooms.asOf == doubts
}

func (u *userLines) setPlaced(doubts uint64) {
	u.rooms.Lock()
	u.rooms.placed, u.rooms.asOf = true, doubts
	u.rooms.Unlock()
}

// stays reports whether u, whose last line has gone, stays in its rooms.
func (u *userLines) stays(doubts uint64) bool {
	j := u.journal.Load()
	if j == nil || !u.placed(doubts) {
		return false
	}
	u.rooms.Lock()
	n := len(u.rooms.list)
	u.rooms.Unlock()
	return j.stays(n)
}

// register adds the line to its user's.
func (d *Delivery) register(l *Line) {
	doubts := d.src.Doubts()
	s := &d.users[shard(l.key.User)]
	s.Lock()
	u := s.m[l.key.User]
	var past *userLines
	if u != nil && len(u.get()) == 0 && !u.placed(doubts) {
		u, past = nil, u // it may not be in all its rooms
	}
	if u == nil {
		u = &userLines{}
		s.m[l.key.User] = u
	}
	ls := append(u.get(), l) // beyond what readers of the old slice see
	first := len(ls) == 1
	u.lines.Store(&ls)
	l.user = u
	s.Unlock()
	if past != nil {
		d.leaveAll(past)
	}
	if !first {
		return
	}
	if j := u.journal.Load(); j != nil {
		j.stays(0)
	}
	d.presence.came(l.key.User)
}

// unregister takes the line out of its user's, and the user whose last line it
// was out of every room, unless a device is remembered and the user stays.
func (d *Delivery) unregister(l *Line) {
	doubts := d.src.Doubts()
	u, user := l.user, l.key.User
	s := &d.users[shard(user)]
	s.Lock()
	ls := slices.DeleteFunc(slices.Clone(u.get()), func(x *Line) bool { return x == l })
	u.lines.Store(&ls)
	last := len(ls) == 0 && s.m[user] == u
	goes := last && !u.stays(doubts)
	if last {
		u.parts = nil
	}
	if goes {
		delete(s.m, user)
	}
	s.Unlock()
	if last {
		d.presence.went(user)
	}
	if goes {
		d.leaveAll(u)
	}
}
