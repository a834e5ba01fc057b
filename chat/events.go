package chat

import (
	"encoding/json"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// event is an entry that says what happened: in a group's log, by an actor, or
// in a user's account log. about is a JSON object.
func (c *Chat) event(conv im.ConvID, actor im.UserID, name string, about map[string]any) *store.Append {
	body, err := json.Marshal(about)
	if err != nil {
		panic("chat: an event that is no JSON: " + err.Error()) // strings and numbers of ours
	}
	return &store.Append{
		Entry: im.Entry{Conv: conv, From: actor, Op: im.OpEvent, Event: name, Type: "application/json", Body: body},
		Done:  c.done,
	}
}

// tell is an account event about another user.
func (c *Chat) tell(to im.UserID, name string, about im.UserID, more ...any) *store.Append {
	m := map[string]any{"user": about}
	for i := 0; i+1 < len(more); i += 2 {
		if s, ok := more[i+1].(string); ok && s == "" {
			continue
		}
		m[more[i].(string)] = more[i+1]
	}
	return c.event(im.AccountConv(to), "", name, m)
}
