package chat

import (
	"context"
	"encoding/json"

	"github.com/parley-im/parley/im"
)

// Conversation is one line of the list of conversations.
type Conversation struct {
	Conv   string // as its topic: dm/bob, g/team
	Head   im.Seq
	Read   im.Seq
	Unread int
	Last   json.RawMessage // the envelope of the last entry; nil if there is none to see
}

// unreadScan is how many entries behind the head are looked at to tell one's own
// messages and operations from unread ones. A conversation with more counts
// what lies before as unread.
const unreadScan = 200

// Conversations lists the DMs and groups of me, by conversation.
func (c *Chat) Conversations(ctx context.Context, me im.UserID) ([]Conversation, error) {
	parts, err := c.st.Conversations(ctx, me)
	if err != nil {
		return nil, err
	}
	var convs []im.ConvID
	var starts []im.Seq
	for _, p := range parts {
		if k := p.Conv.Kind(); k == im.KindDM || k == im.KindGroup {
			convs, starts = append(convs, p.Conv), append(starts, p.Start)
		}
	}
	heads, err := c.st.Heads(ctx, convs)
	if err != nil {
		return nil, err
	}
	reads, err := c.st.ReadsOf(ctx, me, convs)
	if err != nil {
		return nil, err
	}
	out := make([]Conversation, 0, len(convs))
	for i, conv := range convs {
		line := Conversation{Conv: conv.Topic(me), Head: heads[i].Seq, Read: max(reads[i], 0)}
		if err := c.summary(ctx, me, conv, starts[i], &line); err != nil {
			return nil, err
		}
		out = append(out, line)
	}
	return out, nil
}

// summary fills in the last entry and how many are unread.
func (c *Chat) summary(ctx context.Context, me im.UserID, conv im.ConvID, start im.Seq, line *Conversation) error {
	from := max(line.Read, start)
	if line.Head <= start {
		return nil
	}
	n := 1
	if line.Head > from {
		n = int(min(line.Head-from, unreadScan))
	}
	es, err := c.st.Before(ctx, conv, line.Head+1, n)
	if err != nil || len(es) == 0 {
		return err
	}
	line.Last = im.AppendEnvelope(nil, es[len(es)-1])
	for _, e := range es {
		if e.Seq > from && e.Op == im.OpMessage && e.From != me {
			line.Unread++
		}
	}
	if first := es[0].Seq; first > from+1 {
		line.Unread += int(first - from - 1)
	}
	return nil
}

// History returns a page of a conversation as envelopes, ascending by seq:
// those after a seq, those before one, or the latest. more says whether there
// are further ones in that direction. Somebody with no part in it gets NotFound,
// whether it exists or not.
func (c *Chat) History(ctx context.Context, me im.UserID, conv im.ConvID, before, after im.Seq, limit int) (msgs []json.RawMessage, more bool, err error) {
	if limit < 1 || limit > 200 {
		return nil, false, im.Refuse(im.Invalid, "limit_invalid", "limit is 1 to 200")
	}
	start, err := c.start(ctx, me, conv)
	if err != nil {
		return nil, false, err
	}
	var es []*im.Entry
	if after > 0 || (before > 0 && after == start && start > 0) {
		es, err = c.st.Range(ctx, conv, max(after, start), limit+1, 16<<20)
		for len(es) > 0 && before > 0 && es[len(es)-1].Seq >= before {
			es = es[:len(es)-1]
		}
		if more = len(es) > limit; more {
			es = es[:limit]
		}
	} else {
		es, err = c.st.Before(ctx, conv, before, limit+1)
		for len(es) > 0 && es[0].Seq <= start {
			es = es[1:]
		}
		if more = len(es) > limit; more {
			es = es[1:]
		}
	}
	if err != nil {
		return nil, false, err
	}
	msgs = make([]json.RawMessage, 0, len(es))
	for _, e := range es {
		msgs = append(msgs, im.AppendEnvelope(nil, e))
	}
	return msgs, more, nil
}

// start is the seq after which me may see conv; NotFound if me has no part in it.
func (c *Chat) start(ctx context.Context, me im.UserID, conv im.ConvID) (im.Seq, error) {
	hidden := im.Refuse(im.NotFound, "conversation_not_found", "there is no such conversation")
	if g := conv.Group(); g != "" {
		m, err := c.st.Member(ctx, g, me)
		if im.Is(err, im.NotFound) {
			err = hidden
		}
		return m.Start, err
	}
	peer, ok := conv.Peer(me)
	if !ok {
		return 0, hidden
	}
	if peer == me {
		return 0, nil
	}
	heads, err := c.st.Heads(ctx, []im.ConvID{conv})
	if err != nil || heads[0].Seq > 0 {
		return 0, err
	}
	// Nothing was ever said: a friend's conversation is empty, a stranger's is not there.
	if err := c.roster.mayDM(ctx, me, peer); err != nil {
		if im.Is(err, im.Forbidden) {
			err = hidden
		}
		return 0, err
	}
	return 0, nil
}

// MarkRead raises one's watermark and returns where it is now: it never goes
// back and is cut at the head. The other parties, and one's other devices, are
// told if it moved.
func (c *Chat) MarkRead(ctx context.Context, me im.UserID, device im.DeviceID, conv im.ConvID, seq im.Seq) (im.Seq, error) {
	if _, err := c.start(ctx, me, conv); err != nil {
		if im.Is(err, im.NotFound) && conv.Kind() == im.KindDM {
			return 0, errNotFriends
		}
		if im.Is(err, im.NotFound) {
			return 0, errNotMember
		}
		return 0, err
	}
	heads, err := c.st.Heads(ctx, []im.ConvID{conv})
	if err != nil {
		return 0, err
	}
	seq = min(seq, heads[0].Seq)
	old, err := c.st.ReadsOf(ctx, me, []im.ConvID{conv})
	if err != nil || seq <= old[0] {
		return first(old), err
	}
	now, err := c.st.PutRead(ctx, conv, me, seq)
	if err == nil && now == seq {
		c.opt.Courier.Read(conv, me, device, seq)
	}
	return now, err
}

func first(s []im.Seq) im.Seq {
	if len(s) == 0 {
		return 0
	}
	return s[0]
}
