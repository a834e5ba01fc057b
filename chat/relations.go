package chat

import (
	"context"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Friend is a friend as one sees them.
type Friend struct {
	User   im.UserID
	Name   string
	Remark string
	State  string // "friends"
	Since  int64
}

// FriendRequest is an open request.
type FriendRequest struct {
	User      im.UserID
	Name      string
	Message   string
	Direction string // "in": they asked; "out": one asked
	Since     int64
}

// Block is a user one has blocked.
type Block struct {
	User im.UserID
	Name string
}

// The states that AddFriend answers.
const (
	StateRequested = "requested"
	StateFriends   = "friends"
)

// Limits of the texts of a relation, in bytes.
const (
	maxRequestMessage = 256
	maxRemark         = 128
)

// AddFriend asks peer for a friendship, or accepts theirs. Doing it again
// changes nothing but the remark, if one is given. Somebody whom peer has
// blocked is told "requested" and peer hears nothing of it.
func (c *Chat) AddFriend(ctx context.Context, me, peer im.UserID, message string, remark *string) (state string, err error) {
	switch {
	case me == peer:
		return "", im.Refuse(im.Invalid, "self", "nobody befriends themselves: write to dm/%s for notes", me)
	case len(message) > maxRequestMessage:
		return "", im.Refuse(im.Invalid, "message_too_long", "the message of a request has at most %d bytes", maxRequestMessage)
	case remark != nil && len(*remark) > maxRemark:
		return "", im.Refuse(im.Invalid, "remark_too_long", "a remark has at most %d bytes", maxRemark)
	}
	if err := c.exists(ctx, peer); err != nil {
		return "", err
	}
	var full error
	if full, err = c.friendsFull(ctx, me); err != nil {
		return "", err
	}
	err = c.relate(ctx, me, peer, func(mine, theirs *store.Relation) ([]*store.Append, error) {
		if mine.Blocked {
			return nil, im.Refuse(im.Conflict, "blocked_by_you", "you have blocked %s: unblock first", peer)
		}
		if remark != nil {
			mine.Remark = *remark
		}
		now := c.now()
		switch mine.State {
		case store.Friends:
			state = StateFriends
			return nil, nil
		case store.Asked:
			state = StateRequested
			return nil, nil
		case store.Asking:
			state = StateFriends
			*mine = settled(*mine, store.Friends, now)
			*theirs = settled(*theirs, store.Friends, now)
			return []*store.Append{c.tell(peer, "friend-accepted", me), c.tell(me, "friend-accepted", peer)}, nil
		}
		if full != nil {
			return nil, full
		}
		state = StateRequested
		*mine = settled(*mine, store.Asked, now)
		mine.Message = message
		if theirs.Blocked {
			return nil, nil
		}
		*theirs = settled(*theirs, store.Asking, now)
		theirs.Message = message
		return []*store.Append{c.tell(peer, "friend-request", me, "message", message)}, nil
	})
	return state, err
}

func settled(r store.Relation, s store.RelationState, now int64) store.Relation {
	r.State, r.Since, r.Message = s, now, ""
	return r
}

func (c *Chat) exists(ctx context.Context, u im.UserID) error {
	_, err := c.st.User(ctx, u)
	if im.Is(err, im.NotFound) || !u.Valid() {
		return im.Refuse(im.NotFound, "user_not_found", "there is no such user")
	}
	return err
}

// friendsFull returns the refusal that a further request of u gets, if u has as
// many friends and requests as are allowed.
func (c *Chat) friendsFull(ctx context.Context, u im.UserID) (full, err error) {
	rows, err := c.st.Relations(ctx, u)
	if err != nil {
		return nil, err
	}
	if len(rows) >= c.opt.MaxFriends {
		full = im.Refuse(im.TooMany, "too_many_friends", "an account has at most %d friends and open requests", c.opt.MaxFriends)
	}
	return full, nil
}

// relate changes both sides of a relation in one commit, and tries again if
// somebody else changed them meanwhile. fn gets the rows as they are and returns
// the events that go with the change; with an error nothing is written.
func (c *Chat) relate(ctx context.Context, me, peer im.UserID, fn func(mine, theirs *store.Relation) ([]*store.Append, error)) error {
	for {
		mine, err := c.st.Relation(ctx, me, peer)
		if err != nil {
			return err
		}
		theirs, err := c.st.Relation(ctx, peer, me)
		if err != nil {
			return err
		}
		wasMine, wasTheirs := mine, theirs
		events, err := fn(&mine, &theirs)
		if err != nil {
			return err
		}
		tx := &store.Tx{Entries: events}
		if mine != wasMine {
			tx.Relations = append(tx.Relations, mine)
		}
		if theirs != wasTheirs {
			tx.Relations = append(tx.Relations, theirs)
		}
		if len(tx.Relations) == 0 && len(events) == 0 {
			return nil
		}
		switch err := c.st.Commit(ctx, tx); {
		case im.Is(err, im.Conflict):
			continue
		case err != nil:
			c.roster.forget(me) // it may have been written all the same
			c.roster.forget(peer)
			return err
		}
		// Forget rather than put in: of two changes that commit one after the other,
		// the later may get here first.
		c.roster.forget(me)
		c.roster.forget(peer)
		return nil
	}
}

// RemoveFriend ends a friendship, for both. NotFound if there is none.
func (c *Chat) RemoveFriend(ctx context.Context, me, peer im.UserID) error {
	return c.relate(ctx, me, peer, func(mine, theirs *store.Relation) ([]*store.Append, error) {
		if mine.State != store.Friends {
			return nil, im.Refuse(im.NotFound, "not_friends", "you are not friends")
		}
		now := c.now()
		*mine, *theirs = settled(*mine, store.Stranger, now), settled(*theirs, store.Stranger, now)
		mine.Remark = ""
		return []*store.Append{c.tell(peer, "friend-removed", me), c.tell(me, "friend-removed", peer)}, nil
	})
}

// RefuseRequest refuses peer's request or withdraws one's own. NotFound if there
// is neither. The one who asked is not told of a refusal.
func (c *Chat) RefuseRequest(ctx context.Context, me, peer im.UserID) error {
	return c.relate(ctx, me, peer, func(mine, theirs *store.Relation) ([]*store.Append, error) {
		now := c.now()
		switch mine.State {
		case store.Asking, store.Asked:
			withdrawn := mine.State == store.Asked && theirs.State == store.Asking
			*mine = settled(*mine, store.Stranger, now)
			if theirs.State == store.Asked || theirs.State == store.Asking {
				*theirs = settled(*theirs, store.Stranger, now)
			}
			events := []*store.Append{c.tell(me, "friend-request-closed", peer)}
			if withdrawn {
				events = append(events, c.tell(peer, "friend-request-closed", me))
			}
			return events, nil
		}
		return nil, im.Refuse(im.NotFound, "request_not_found", "there is no open request between you and %s", peer)
	})
}

// Block refuses messages of both directions from now on; a friendship stays for
// after the unblock. The blocked user is not told, one's own devices are.
func (c *Chat) Block(ctx context.Context, me, peer im.UserID) error {
	if me == peer {
		return im.Refuse(im.Invalid, "self", "nobody blocks themselves")
	}
	if err := c.exists(ctx, peer); err != nil {
		return err
	}
	return c.relate(ctx, me, peer, func(mine, _ *store.Relation) ([]*store.Append, error) {
		if mine.Blocked {
			return nil, nil
		}
		mine.Blocked = true
		return []*store.Append{c.tell(me, "blocked", peer)}, nil
	})
}

// Unblock takes a block back. It may be repeated.
func (c *Chat) Unblock(ctx context.Context, me, peer im.UserID) error {
	return c.relate(ctx, me, peer, func(mine, _ *store.Relation) ([]*store.Append, error) {
		if !mine.Blocked {
			return nil, nil
		}
		mine.Blocked = false
		return []*store.Append{c.tell(me, "unblocked", peer)}, nil
	})
}

// Friends lists one's friends, by id.
func (c *Chat) Friends(ctx context.Context, me im.UserID) ([]Friend, error) {
	out := []Friend{}
	err := c.eachRelation(ctx, me, func(r store.Relation, name string) {
		out = append(out, Friend{User: r.Peer, Name: name, Remark: r.Remark, State: StateFriends, Since: r.Since})
	}, func(r store.Relation) bool { return r.State == store.Friends })
	return out, err
}

// FriendRequests lists open requests of both directions, by id. Requests of
// users one has blocked are left out.
func (c *Chat) FriendRequests(ctx context.Context, me im.UserID) ([]FriendRequest, error) {
	out := []FriendRequest{}
	err := c.eachRelation(ctx, me, func(r store.Relation, name string) {
		dir := "out"
		if r.State == store.Asking {
			dir = "in"
		}
		out = append(out, FriendRequest{User: r.Peer, Name: name, Message: r.Message, Direction: dir, Since: r.Since})
	}, func(r store.Relation) bool {
		return r.State == store.Asked || (r.State == store.Asking && !r.Blocked)
	})
	return out, err
}

// Blocks lists whom one has blocked, by id.
func (c *Chat) Blocks(ctx context.Context, me im.UserID) ([]Block, error) {
	out := []Block{}
	err := c.eachRelation(ctx, me, func(r store.Relation, name string) {
		out = append(out, Block{User: r.Peer, Name: name})
	}, func(r store.Relation) bool { return r.Blocked })
	return out, err
}

func (c *Chat) eachRelation(ctx context.Context, me im.UserID, fn func(store.Relation, string), want func(store.Relation) bool) error {
	rows, err := c.st.Relations(ctx, me)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if !want(r) {
			continue
		}
		name := string(r.Peer)
		if u, err := c.st.User(ctx, r.Peer); err == nil {
			name = u.Name
		} else if !im.Is(err, im.NotFound) {
			return err
		}
		fn(r, name)
	}
	return nil
}
