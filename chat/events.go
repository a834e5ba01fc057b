package chat

import (
	"encoding/json"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Account events: entries of u/{user}, delivered on me/{event}. Those marked
// "own" tell a user's devices what one of them did.
const (
	evFriendRequest  = "friend-request"        // user asks, with message
	evFriendAccepted = "friend-accepted"       // user is a friend now; also own
	evFriendRemoved  = "friend-removed"        // user is a friend no more; also own
	evFriendChanged  = "friend-changed"        // own: remark of user
	evRequestClosed  = "friend-request-closed" // user withdrew a request; own: refused or withdrawn
	evBlocked        = "blocked"               // own: user
	evUnblocked      = "unblocked"             // own: user
	evGroupAdded     = "group-added"           // in group (its name) now, by whom
	evGroupRemoved   = "group-removed"         // not in group any more, by whom
)

// Group events: entries of g/{group}, which count in seq. Every one says by whom.
const (
	evGroupCreated   = "group-created"   // name, members beside the owner
	evGroupDissolved = "group-dissolved" // the last entry
	evMemberAdded    = "member-added"    // user, role
	evMemberRemoved  = "member-removed"  // user
	evMemberLeft     = "member-left"     // user
	evMemberRole     = "member-role"     // user, role
	evMemberMuted    = "member-muted"    // user, muted_until; 0 lifts it
)

// evGroupChanged is both: in the group's log what changed, in a member's
// account log that something did (the group, or one's place in it).
const evGroupChanged = "group-changed"

// about is the body of an event. What says nothing is left out.
type about struct {
	User       im.UserID   `json:"user,omitempty"`
	Group      im.GroupID  `json:"group,omitempty"`
	By         im.UserID   `json:"by,omitempty"`
	Name       string      `json:"name,omitempty"`
	Message    string      `json:"message,omitempty"`
	Remark     *string     `json:"remark,omitempty"`
	Role       string      `json:"role,omitempty"`
	Owner      im.UserID   `json:"owner,omitempty"`
	Join       string      `json:"join,omitempty"`
	MaxMembers int         `json:"max_members,omitempty"`
	MuteAll    *bool       `json:"mute_all,omitempty"`
	MutedUntil *int64      `json:"muted_until,omitempty"`
	Members    []im.UserID `json:"members,omitempty"`
}

// event is an entry that says what happened: in a group's log, by an actor, or
// in a user's account log, by nobody. It is offered to the courier in its turn.
func (c *Chat) event(conv im.ConvID, actor im.UserID, name string, what about) *store.Append {
	body, err := json.Marshal(what)
	if err != nil {
		panic("chat: an event that is no JSON: " + err.Error()) // strings and numbers of ours
	}
	return &store.Append{
		Entry: im.Entry{Conv: conv, From: actor, Op: im.OpEvent, Event: name, Type: "application/json", Body: body},
		Done:  c.done,
	}
}

// tell is an account event.
func (c *Chat) tell(to im.UserID, name string, what about) *store.Append {
	return c.event(im.AccountConv(to), "", name, what)
}

// before makes fn run when a is committed, before the courier gets the entry: on
// the store's goroutine, in commit order, so fn must not block. The order
// matters where one change follows another: called after Commit returned, the
// two could overtake each other, and somebody who joined and left would stay in
// the room.
func before(a *store.Append, fn func(e *im.Entry)) *store.Append {
	next := a.Done
	a.Done = func(a *store.Append) {
		if a.Err == nil {
			fn(&a.Entry)
		}
		next(a)
	}
	return a
}
