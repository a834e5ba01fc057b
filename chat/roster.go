package chat

import (
	"context"
	"sync"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// roster answers on the hot path, from memory, who may write where. A user's
// relations and a group's members are loaded on first use and kept, bounded.
// A mutation drops what it changed before it returns, so it acts on the very next
// packet; a load that began before a mutation cannot put back what it read
// (gen).
type roster struct {
	st        store.Store
	maxUsers  int
	maxGroups int

	users  [rosterShards]userPart
	groups [rosterShards]groupPart
}

const rosterShards = 32

type userPart struct {
	sync.RWMutex
	m   map[im.UserID]map[im.UserID]bond
	gen uint64
}

// bond is what one user has to do with another, from both sides: what mayDM asks.
type bond struct {
	friends bool
	blocks  bool // this user blocks the other
}

type groupPart struct {
	sync.RWMutex
	m   map[im.GroupID]*roomList
	gen uint64
}

// roomList is a group in memory; it is replaced, not changed.
type roomList struct {
	muteAll   bool
	dissolved bool
	members   map[im.UserID]place
}

type place struct {
	role       string
	mutedUntil int64
}

func newRoster(o Options) *roster {
	r := &roster{st: o.Store, maxUsers: max(1, o.CacheUsers/rosterShards), maxGroups: max(1, o.CacheGroups/rosterShards)}
	for i := range rosterShards {
		r.users[i].m = make(map[im.UserID]map[im.UserID]bond)
		r.groups[i].m = make(map[im.GroupID]*roomList)
	}
	return r
}

// part spreads ids over the shards (FNV-1a).
func part(id string) uint32 {
	h := uint32(2166136261)
	for i := 0; i < len(id); i++ {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return h % rosterShards
}

var (
	errNotFriends = im.Refuse(im.Forbidden, "not_friends", "not friends")
	errNotMember  = im.Refuse(im.Forbidden, "not_member", "not a member")
	errMuted      = im.Refuse(im.Forbidden, "muted", "muted")
)

// mayDM returns nil if from may write to to now: they are friends and neither
// blocks the other, or they are the same. A stranger, an unknown user and a block
// give the same answer.
func (r *roster) mayDM(ctx context.Context, from, to im.UserID) error {
	if from == to {
		return nil
	}
	mine, err := r.bond(ctx, from, to)
	if err != nil {
		return err
	}
	if !mine.friends || mine.blocks {
		return errNotFriends
	}
	theirs, err := r.bond(ctx, to, from)
	if err != nil {
		return err
	}
	if !theirs.friends || theirs.blocks {
		return errNotFriends
	}
	return nil
}

func (r *roster) bond(ctx context.Context, u, peer im.UserID) (bond, error) {
	p := &r.users[part(string(u))]
	for {
		p.RLock()
		bonds, ok := p.m[u]
		b, gen := bonds[peer], p.gen
		p.RUnlock()
		if ok {
			return b, nil
		}
		rows, err := r.st.Relations(ctx, u)
		if err != nil {
			return bond{}, err
		}
		loaded := make(map[im.UserID]bond, len(rows))
		for _, row := range rows {
			if b := bondOf(row); b != (bond{}) {
				loaded[row.Peer] = b
			}
		}
		p.Lock()
		if p.gen == gen {
			if len(p.m) >= r.maxUsers {
				for k := range p.m { // any: a map's order is random enough
					delete(p.m, k)
					break
				}
			}
			p.m[u] = loaded
		}
		p.Unlock()
	}
}

func bondOf(row store.Relation) bond {
	return bond{friends: row.State == store.Friends, blocks: row.Blocked}
}

// forget drops what is cached of a user; the next question reads the store.
func (r *roster) forget(u im.UserID) {
	p := &r.users[part(string(u))]
	p.Lock()
	p.gen++
	delete(p.m, u)
	p.Unlock()
}

// mayGroup returns the role of from in g if from may write there now: a member
// who is not muted. An unknown group answers as one that from is not in.
func (r *roster) mayGroup(ctx context.Context, g im.GroupID, from im.UserID, now int64) (role string, err error) {
	list, err := r.group(ctx, g)
	if err != nil {
		return "", err
	}
	pl, ok := list.members[from]
	switch {
	case !ok || list.dissolved:
		return "", errNotMember
	case pl.role == roleMember && (list.muteAll || pl.mutedUntil > now):
		return "", errMuted
	case pl.role == roleAdmin && pl.mutedUntil > now:
		return "", errMuted
	}
	return pl.role, nil
}

// group returns the group in memory. It must not be changed.
func (r *roster) group(ctx context.Context, g im.GroupID) (*roomList, error) {
	p := &r.groups[part(string(g))]
	for {
		p.RLock()
		list, gen := p.m[g], p.gen
		p.RUnlock()
		if list != nil {
			return list, nil
		}
		list, err := r.load(ctx, g)
		if err != nil {
			return nil, err
		}
		p.Lock()
		if p.gen == gen {
			if len(p.m) >= r.maxGroups {
				for k := range p.m {
					delete(p.m, k)
					break
				}
			}
			p.m[g] = list
			p.Unlock()
			return list, nil
		}
		p.Unlock()
	}
}

func (r *roster) load(ctx context.Context, g im.GroupID) (*roomList, error) {
	row, err := r.st.Group(ctx, g)
	if im.Is(err, im.NotFound) {
		return &roomList{dissolved: true}, nil
	}
	if err != nil {
		return nil, err
	}
	ms, err := r.st.Members(ctx, g)
	if err != nil {
		return nil, err
	}
	list := &roomList{muteAll: row.MuteAll, dissolved: row.Dissolved, members: make(map[im.UserID]place, len(ms))}
	for _, m := range ms {
		list.members[m.User] = place{m.Role, m.MutedUntil}
	}
	return list, nil
}

// forgetGroup drops what is cached of a group.
func (r *roster) forgetGroup(g im.GroupID) {
	p := &r.groups[part(string(g))]
	p.Lock()
	p.gen++
	delete(p.m, g)
	p.Unlock()
}

// InvalidateUser forgets what is cached of a user's relations, after a change
// elsewhere.
func (c *Chat) InvalidateUser(u im.UserID) { c.roster.forget(u) }

// InvalidateGroup forgets what is cached of a group, after a change elsewhere.
func (c *Chat) InvalidateGroup(g im.GroupID) { c.roster.forgetGroup(g) }
