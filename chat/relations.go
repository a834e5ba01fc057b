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

// maxRequestMessage is the longest text that goes with a request, in bytes.
const maxRequestMessage = 256

// AddFriend asks peer for a friendship, or accepts theirs. Doing it again
// changes nothing but the remark, where one is given. Somebody whom peer has
// blocked is answered as if nothing were, and peer hears nothing of it; asking
// again after the unblock reaches them. Whoever has blocked peer gets Conflict.
func (c *Chat) AddFriend(ctx context.Context, me, peer im.UserID, message string, remark *string) (state string, err error) {
	switch {
	case me == peer:
		return "", im.Refuse(im.Invalid, "self", "nobody befriends themselves: write to dm/%s for notes", me)
	case len(message) > maxRequestMessage:
		return "", im.Refuse(im.Invalid, "message_too_long", "the message of a request has at most %d bytes", maxRequestMessage)
	case remark != nil && len(*remark) > im.MaxName:
		return "", im.Refuse(im.Invalid, "remark_too_long", "a remark has at most %d bytes", im.MaxName)
	case remark != nil && *remark != "" && !im.ShownName(*remark):
		return "", im.Refuse(im.Invalid, "remark_invalid", "a remark is one line of text, or empty for none")
	}
	if err := c.exists(ctx, peer); err != nil {
		return "", err
	}
	err = c.relate(ctx, me, peer, func(mine, theirs *store.Relation) (events []*store.Append, err error) {
		if mine.Blocked {
			return nil, im.Refuse(im.Conflict, "blocked_by_you", "you have blocked %s: unblock first", peer)
		}
		if remark != nil && mine.Remark != *remark {
			mine.Remark = *remark
			if mine.State == store.Friends {
				events = append(events, c.tell(me, evFriendChanged, about{User: peer, Remark: remark}))
			}
		}
		switch {
		case mine.State == store.Friends:
			state = StateFriends
			return events, nil
		case theirs.State == store.Asked:
			state = StateFriends
			return c.accept(ctx, mine, theirs)
		}
		state = StateRequested
		return c.ask(ctx, mine, theirs, message)
	})
	return state, err
}

// accept makes friends of two of whom the other one has asked.
func (c *Chat) accept(ctx context.Context, mine, theirs *store.Relation) ([]*store.Append, error) {
	me, peer := mine.User, mine.Peer
	if mine.State != store.Asked { // else it is counted already
		if err := c.roomForFriend(ctx, me); err != nil {
			return nil, err
		}
	}
	now := c.now()
	become(mine, store.Friends, now)
	become(theirs, store.Friends, now)
	events := []*store.Append{c.tell(me, evFriendAccepted, about{User: peer})}
	if !theirs.Blocked { // they asked, then blocked: nothing of me reaches them
		events = append(events, c.tell(peer, evFriendAccepted, about{User: me}))
	}
	return events, nil
}

// ask puts a request, unless there is one.
func (c *Chat) ask(ctx context.Context, mine, theirs *store.Relation, message string) ([]*store.Append, error) {
	me, peer := mine.User, mine.Peer
	if mine.State == store.Asked && (theirs.Blocked || theirs.State == store.Asking) {
		return nil, nil
	}
	if mine.State != store.Asked {
		if err := c.roomForFriend(ctx, me); err != nil {
			return nil, err
		}
	}
	// Counted whether peer blocks me or not: the answer must not tell.
	if err := c.roomForRequest(ctx, peer); err != nil {
		return nil, err
	}
	now := c.now()
	become(mine, store.Asked, now)
	mine.Message = message
	if theirs.Blocked {
		return nil, nil
	}
	become(theirs, store.Asking, now)
	theirs.Message = message
	return []*store.Append{c.tell(peer, evFriendRequest, about{User: me, Message: message})}, nil
}

func become(r *store.Relation, s store.RelationState, now int64) {
	r.State, r.Since, r.Message = s, now, ""
}

// exists returns nil if u is an account, NotFound if not.
func (c *Chat) exists(ctx context.Context, u im.UserID) error {
	unknown := im.Refuse(im.NotFound, "user_not_found", "there is no such user")
	if !u.Valid() {
		return unknown
	}
	_, err := c.st.User(ctx, u)
	if im.Is(err, im.NotFound) {
		return unknown
	}
	return err
}

// roomForFriend refuses once u has as many friends and own requests as are allowed.
func (c *Chat) roomForFriend(ctx context.Context, u im.UserID) error {
	return c.limit(ctx, u, "too_many_friends", "an account has at most %d friends and open requests",
		func(r store.Relation) bool { return r.State == store.Friends || r.State == store.Asked })
}

// roomForRequest refuses once as many wait for u's answer as are allowed. They
// do not count as u's own, or strangers could use up what u may have.
func (c *Chat) roomForRequest(ctx context.Context, u im.UserID) error {
	return c.limit(ctx, u, "too_many_requests", "an account has at most %d open requests to answer",
		func(r store.Relation) bool { return r.State == store.Asking })
}

func (c *Chat) limit(ctx context.Context, u im.UserID, code, sentence string, counts func(store.Relation) bool) error {
	rows, err := c.st.Relations(ctx, u)
	if err != nil {
		return err
	}
	n := 0
	for _, r := range rows {
		if counts(r) {
			n++
		}
	}
	if n >= c.opt.MaxFriends {
		return im.Refuse(im.TooMany, code, sentence, c.opt.MaxFriends)
	}
	return nil
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
		if len(tx.Relations) == 0 {
			return nil
		}
		for _, e := range events {
			before(e, func(*im.Entry) { c.roster.forgetPair(me, peer) })
		}
		err = c.st.Commit(ctx, tx)
		// Here too: Done may come later than Commit returns, and after an error it
		// may have been written all the same.
		c.roster.forgetPair(me, peer)
		if !im.Is(err, im.Conflict) {
			return err
		}
	}
}

// RemoveFriend ends a friendship, for both. NotFound if there is none. The other
// one keeps their remark, for the case that they become friends again.
func (c *Chat) RemoveFriend(ctx context.Context, me, peer im.UserID) error {
	none := im.Refuse(im.NotFound, "not_friends", "you are not friends")
	if !peer.Valid() {
		return none
	}
	return c.relate(ctx, me, peer, func(mine, theirs *store.Relation) ([]*store.Append, error) {
		if mine.State != store.Friends {
			return nil, none
		}
		now := c.now()
		become(mine, store.Stranger, now)
		become(theirs, store.Stranger, now)
		mine.Remark = ""
		return []*store.Append{c.tell(me, evFriendRemoved, about{User: peer}), c.tell(peer, evFriendRemoved, about{User: me})}, nil
	})
}

// RefuseRequest refuses peer's request or withdraws one's own. NotFound if there
// is neither. Whoever asked is not told of a refusal.
func (c *Chat) RefuseRequest(ctx context.Context, me, peer im.UserID) error {
	none := im.Refuse(im.NotFound, "request_not_found", "there is no open request between you and that user")
	if !peer.Valid() {
		return none
	}
	return c.relate(ctx, me, peer, func(mine, theirs *store.Relation) ([]*store.Append, error) {
		now := c.now()
		events := []*store.Append{c.tell(me, evRequestClosed, about{User: peer})}
		switch {
		case mine.State == store.Asking:
			become(theirs, store.Stranger, now)
		case mine.State == store.Asked && theirs.State == store.Asking:
			become(theirs, store.Stranger, now)
			if !theirs.Blocked {
				events = append(events, c.tell(peer, evRequestClosed, about{User: me}))
			}
		case mine.State == store.Asked: // it never reached them
		default:
			return nil, none
		}
		become(mine, store.Stranger, now)
		mine.Remark = ""
		return events, nil
	})
}

// Block refuses messages of both directions from now on; a friendship stays for
// after the unblock. It may be repeated. The blocked user is not told, one's own
// devices are.
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
		err := c.limit(ctx, me, "too_many_blocks", "an account blocks at most %d users", func(r store.Relation) bool { return r.Blocked })
		mine.Blocked = true
		return []*store.Append{c.tell(me, evBlocked, about{User: peer})}, err
	})
}

// Unblock takes a block back. It may be repeated, and for somebody who was never
// blocked it does nothing.
func (c *Chat) Unblock(ctx context.Context, me, peer im.UserID) error {
	if !peer.Valid() {
		return nil
	}
	return c.relate(ctx, me, peer, func(mine, _ *store.Relation) ([]*store.Append, error) {
		if !mine.Blocked {
			return nil, nil
		}
		mine.Blocked = false
		return []*store.Append{c.tell(me, evUnblocked, about{User: peer})}, nil
	})
}

// Friends lists one's friends, by id.
func (c *Chat) Friends(ctx context.Context, me im.UserID) ([]Friend, error) {
	out := []Friend{}
	err := c.eachRelation(ctx, me, func(r store.Relation) bool { return r.State == store.Friends }, func(r store.Relation, name string) {
		out = append(out, Friend{User: r.Peer, Name: name, Remark: r.Remark, State: StateFriends, Since: r.Since})
	})
	return out, err
}

// FriendRequests lists open requests of both directions, by id. Requests of
// users one has blocked are left out until the unblock.
func (c *Chat) FriendRequests(ctx context.Context, me im.UserID) ([]FriendRequest, error) {
	open := func(r store.Relation) bool {
		return r.State == store.Asked || (r.State == store.Asking && !r.Blocked)
	}
	out := []FriendRequest{}
	err := c.eachRelation(ctx, me, open, func(r store.Relation, name string) {
		dir := "out"
		if r.State == store.Asking {
			dir = "in"
		}
		out = append(out, FriendRequest{User: r.Peer, Name: name, Message: r.Message, Direction: dir, Since: r.Since})
	})
	return out, err
}

// Blocks lists whom one has blocked, by id.
func (c *Chat) Blocks(ctx context.Context, me im.UserID) ([]Block, error) {
	out := []Block{}
	err := c.eachRelation(ctx, me, func(r store.Relation) bool { return r.Blocked }, func(r store.Relation, name string) {
		out = append(out, Block{User: r.Peer, Name: name})
	})
	return out, err
}

// eachRelation calls fn for the rows that are wanted, with the peer's name; the
// id stands in for an account that is gone.
func (c *Chat) eachRelation(ctx context.Context, me im.UserID, want func(store.Relation) bool, fn func(r store.Relation, name string)) error {
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

// Acquainted lists those friends of u for which among is true, as far as neither
// side blocks the other: who may hear of u's comings and goings, and u of theirs.
func (c *Chat) Acquainted(ctx context.Context, u im.UserID, among func(im.UserID) bool) ([]im.UserID, error) {
	rows, err := c.st.Relations(ctx, u)
	if err != nil {
		return nil, err
	}
	var out []im.UserID
	for _, r := range rows {
		if r.State != store.Friends || !among(r.Peer) {
			continue
		}
		switch err := c.roster.mayDM(ctx, u, r.Peer); {
		case err == nil:
			out = append(out, r.Peer)
		case !im.Is(err, im.Forbidden):
			return nil, err
		}
	}
	return out, nil
}
