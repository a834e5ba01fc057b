package chat

import (
	"context"
	"hash/maphash"
	"strings"
	"sync"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// roster answers on the hot path, from memory, who may write where.
//
// It keeps what was asked, not what there is: pairs of users who may write to
// each other, and members who did write to a group. So a miss costs two point
// reads, however many friends or members there are, and a change of one
// member does not make a group of 10,000 be read again.
//
// Only permissions are kept, never refusals: who was just allowed in is let in
// by the next packet even before forget is called, and knocking at random doors
// pushes nobody's permission out.
//
// A change is followed by forget, before its event is offered and before the
// method that made it returns. A load that began before it keeps nothing (gen),
// so an old answer never outlives a change; the load itself may return it: the
// question overlapped with the change.
type roster struct {
	st        store.Store
	seed      maphash.Seed
	maxPairs  int // of one shard
	maxGroups int // of one shard
	pairs     [rosterShards]pairShard
	groups    [rosterShards]groupShard
}

const (
	rosterShards = 32
	// pairsPerUser is how many conversations Options.CacheUsers allows for each user.
	pairsPerUser = 4
)

type pairShard struct {
	sync.RWMutex
	may map[pair]struct{}
	gen uint64 // changes seen
}

// pair is two users, the lesser id first: what mayDM asks is the same from both sides.
type pair struct{ a, b im.UserID }

func pairOf(a, b im.UserID) pair {
	if b < a {
		a, b = b, a
	}
	return pair{a, b}
}

type groupShard struct {
	sync.RWMutex
	m   map[im.GroupID]*room
	gen uint64 // changes seen
}

// room is a group in memory; the shard's lock guards it.
type room struct {
	muteAll bool
	members map[im.UserID]place // those who wrote since the last change
}

type place struct {
	role       string
	mutedUntil int64
}

func newRoster(o Options) *roster {
	r := &roster{
		st: o.Store, seed: maphash.MakeSeed(),
		maxPairs:  max(1, o.CacheUsers*pairsPerUser/rosterShards),
		maxGroups: max(1, o.CacheGroups/rosterShards),
	}
	for i := range rosterShards {
		r.pairs[i].may = make(map[pair]struct{})
		r.groups[i].m = make(map[im.GroupID]*room)
	}
	return r
}

func (r *roster) pairShard(p pair) *pairShard {
	h := maphash.String(r.seed, string(p.a)) + 3*maphash.String(r.seed, string(p.b))
	return &r.pairs[h%rosterShards]
}

func (r *roster) groupShard(g im.GroupID) *groupShard {
	return &r.groups[maphash.String(r.seed, string(g))%rosterShards]
}

// Refusals of the hot path, made once. errNotFriends is the one answer for a
// stranger, an unknown user and a block: nobody learns which.
var (
	errNotFriends = im.Refuse(im.Forbidden, "not_friends", "not friends")
	errNotMember  = im.Refuse(im.Forbidden, "not_member", "not a member")
	errMuted      = im.Refuse(im.Forbidden, "muted", "muted")
)

// mayDM returns nil if from may write to to now: they are friends and neither
// blocks the other, or they are the same. Cached, it allocates nothing.
func (r *roster) mayDM(ctx context.Context, from, to im.UserID) error {
	if from == to {
		return nil
	}
	p := pairOf(from, to)
	s := r.pairShard(p)
	s.RLock()
	_, ok := s.may[p]
	gen := s.gen
	s.RUnlock()
	if ok {
		return nil
	}
	if err := r.readPair(ctx, from, to); err != nil {
		return err
	}
	s.Lock()
	defer s.Unlock()
	if s.gen == gen {
		dropAny(s.may, r.maxPairs)
		// The ids are part of a topic's text, which need not live as long.
		s.may[pair{im.UserID(strings.Clone(string(p.a))), im.UserID(strings.Clone(string(p.b)))}] = struct{}{}
	}
	return nil
}

// readPair is mayDM by the rows.
func (r *roster) readPair(ctx context.Context, from, to im.UserID) error {
	if !to.Valid() {
		return errNotFriends
	}
	for _, side := range [2]pair{{from, to}, {to, from}} {
		row, err := r.st.Relation(ctx, side.a, side.b)
		if err != nil {
			return err
		}
		if row.State != store.Friends || row.Blocked {
			return errNotFriends
		}
	}
	return nil
}

// forgetPair drops what is cached of two users.
func (r *roster) forgetPair(a, b im.UserID) {
	p := pairOf(a, b)
	s := r.pairShard(p)
	s.Lock()
	s.gen++
	delete(s.may, p)
	s.Unlock()
}

// mayGroup returns the role of from in g if from may write there now: a member
// who is not muted; muting everybody leaves out the owner and admins. An unknown
// or dissolved group answers as one that from is not in. Cached, it allocates nothing.
func (r *roster) mayGroup(ctx context.Context, g im.GroupID, from im.UserID, now int64) (role string, err error) {
	s := r.groupShard(g)
	s.RLock()
	var pl place
	known, muteAll := false, false
	if rm := s.m[g]; rm != nil {
		pl, known = rm.members[from]
		muteAll = rm.muteAll
	}
	gen := s.gen
	s.RUnlock()
	if !known {
		if pl, muteAll, err = r.readPlace(ctx, g, from); err != nil {
			return "", err
		}
		r.keep(s, gen, g, from, pl, muteAll)
	}
	if pl.mutedUntil > now || (muteAll && rank(pl.role) < rank(roleAdmin)) {
		return "", errMuted
	}
	return pl.role, nil
}

// readPlace reads a member's place; errNotMember if there is none.
func (r *roster) readPlace(ctx context.Context, g im.GroupID, u im.UserID) (pl place, muteAll bool, err error) {
	row, err := r.st.Group(ctx, g)
	if im.Is(err, im.NotFound) || (err == nil && row.Dissolved) {
		return place{}, false, errNotMember
	}
	if err != nil {
		return place{}, false, err
	}
	m, err := r.st.Member(ctx, g, u)
	if im.Is(err, im.NotFound) {
		return place{}, false, errNotMember
	}
	return place{m.Role, m.MutedUntil}, row.MuteAll, err
}

func (r *roster) keep(s *groupShard, gen uint64, g im.GroupID, u im.UserID, pl place, muteAll bool) {
	s.Lock()
	defer s.Unlock()
	if s.gen != gen {
		return
	}
	rm := s.m[g]
	if rm == nil {
		dropAny(s.m, r.maxGroups)
		rm = &room{muteAll: muteAll, members: make(map[im.UserID]place)}
		s.m[im.GroupID(strings.Clone(string(g)))] = rm
	}
	rm.members[im.UserID(strings.Clone(string(u)))] = pl
}

// forgetGroup drops what is cached of a group.
func (r *roster) forgetGroup(g im.GroupID) {
	s := r.groupShard(g)
	s.Lock()
	s.gen++
	delete(s.m, g)
	s.Unlock()
}

// dropAny makes room for one more in a map of at most size: any goes, which
// costs its owner one load, and a map's order is random enough.
func dropAny[K comparable, V any](m map[K]V, size int) {
	if len(m) < size {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}

// InvalidateRelation forgets what is cached of two users, after a change
// elsewhere: the next packet between them asks the store.
func (c *Chat) InvalidateRelation(u, peer im.UserID) { c.roster.forgetPair(u, peer) }

// InvalidateGroup forgets what is cached of a group, after a change elsewhere.
func (c *Chat) InvalidateGroup(g im.GroupID) { c.roster.forgetGroup(g) }
