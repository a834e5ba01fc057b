package chat

import (
	"context"
	"encoding/json"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Conversation is one line of the list of conversations.
type Conversation struct {
	Conv   string // as its topic: dm/bob, g/team
	Head   im.Seq
	Read   im.Seq
	Unread int             // messages of others after Read, among the last unreadScan entries
	Last   json.RawMessage // the envelope of the last entry; nil if there is none to see
}

// unreadScan is how many entries behind the head are looked through for unread
// messages. With more, Unread says how many of these are: it may be too low,
// and never counts what is not unread.
const unreadScan = 1000

// One read of a scan: of a list of many conversations only this much is in
// memory at a time.
const (
	scanEntries = 250
	scanBytes   = 1 << 20
)

// Conversations lists the DMs that were used and the groups of me, by conversation.
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
		line := Conversation{Conv: conv.Topic(me), Head: heads[i].Seq, Read: reads[i]}
		if line.Head > starts[i] {
			if line.Last, err = c.last(ctx, conv, line.Head); err != nil {
				return nil, err
			}
			if line.Unread, err = c.unread(ctx, me, conv, max(line.Read, starts[i]), line.Head); err != nil {
				return nil, err
			}
		}
		out = append(out, line)
	}
	return out, nil
}

// Unread is how many messages of others me has not read, in all conversations
// together; of each, those among its last unreadScan entries are counted.
func (c *Chat) Unread(ctx context.Context, me im.UserID) (total int, err error) {
	parts, err := c.st.Conversations(ctx, me)
	if err != nil {
		return 0, err
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
		return 0, err
	}
	reads, err := c.st.ReadsOf(ctx, me, convs)
	if err != nil {
		return 0, err
	}
	for i, conv := range convs {
		n, err := c.unread(ctx, me, conv, max(reads[i], starts[i]), heads[i].Seq)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// last is the envelope of the entry at the head.
func (c *Chat) last(ctx context.Context, conv im.ConvID, head im.Seq) (json.RawMessage, error) {
	es, err := c.st.Before(ctx, conv, head+1, 1)
	if err != nil || len(es) == 0 {
		return nil, err
	}
	return im.AppendEnvelope(nil, es[0]), nil
}

// unread counts the messages of others after a watermark and up to the head.
// Operations and events are no messages.
func (c *Chat) unread(ctx context.Context, me im.UserID, conv im.ConvID, after, head im.Seq) (n int, err error) {
	if head > unreadScan {
		after = max(after, head-unreadScan)
	}
	for after < head {
		es, err := c.st.Range(ctx, conv, after, scanEntries, scanBytes)
		if err != nil || len(es) == 0 {
			return n, err
		}
		for _, e := range es {
			if e.Seq <= head && e.Op == im.OpMessage && e.From != me {
				n++
			}
		}
		after = es[len(es)-1].Seq
	}
	return n, nil
}

// A page of history: how many entries, and after how many bytes of them it ends.
const (
	maxPage     = 200
	defaultPage = 50
	pageBytes   = 4 << 20
)

// History returns a page of a conversation as envelopes, ascending by seq: with
// after (not 0) the first ones after it, else the last ones before before, or
// the latest if that is 0. limit is 1 to 200, 0 stands for 50; a page of large
// bodies may be shorter. more says whether there are further ones in that
// direction. Somebody with no part in the conversation gets NotFound, whether it
// exists or not; a DM stays readable after an unfriend or a block.
func (c *Chat) History(ctx context.Context, me im.UserID, conv im.ConvID, before, after im.Seq, limit int) (msgs []json.RawMessage, more bool, err error) {
	if after > 0 {
		return c.HistoryAfter(ctx, me, conv, after, before, limit)
	}
	limit, start, err := c.page(ctx, me, conv, limit)
	if err != nil {
		return nil, false, err
	}
	es, err := c.st.Before(ctx, conv, before, limit)
	if err != nil {
		return nil, false, err
	}
	from, size := len(es), 0 // the page is es[from:]
	for from > 0 && es[from-1].Seq > start && (size == 0 || size+es[from-1].Size() <= pageBytes) {
		from--
		size += es[from].Size()
	}
	es = es[from:]
	return envelopes(es), len(es) > 0 && es[0].Seq > start+1, nil
}

// HistoryAfter is History forward from after, which may be 0: from the first
// entry on. A before that is not 0 ends it.
func (c *Chat) HistoryAfter(ctx context.Context, me im.UserID, conv im.ConvID, after, before im.Seq, limit int) (msgs []json.RawMessage, more bool, err error) {
	limit, start, err := c.page(ctx, me, conv, limit)
	if err != nil {
		return nil, false, err
	}
	heads, err := c.st.Heads(ctx, []im.ConvID{conv})
	if err != nil {
		return nil, false, err
	}
	end := heads[0].Seq // the last seq that is asked for
	if before > 0 {
		end = min(end, before-1)
	}
	after = max(after, start)
	if after >= end {
		return envelopes(nil), false, nil
	}
	es, err := c.st.Range(ctx, conv, after, int(min(im.Seq(limit), end-after)), pageBytes)
	if err != nil {
		return nil, false, err
	}
	return envelopes(es), len(es) > 0 && es[len(es)-1].Seq < end, nil
}

// page checks what every page of history needs.
func (c *Chat) page(ctx context.Context, me im.UserID, conv im.ConvID, limit int) (n int, start im.Seq, err error) {
	switch {
	case limit < 0 || limit > maxPage:
		return 0, 0, im.Refuse(im.Invalid, "limit_invalid", "limit is 1 to %d", maxPage)
	case limit == 0:
		limit = defaultPage
	}
	start, err = c.start(ctx, me, conv)
	return limit, start, err
}

func envelopes(es []*im.Entry) []json.RawMessage {
	msgs := make([]json.RawMessage, 0, len(es))
	for _, e := range es {
		msgs = append(msgs, im.AppendEnvelope(nil, e))
	}
	return msgs
}

// start is the seq after which me may see conv; NotFound if me has no part in
// it, in the same words for a conversation of others, one that never was, and a
// stranger's.
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
	row, err := c.st.Relation(ctx, me, peer)
	if err == nil && row.State != store.Friends {
		err = hidden
	}
	return 0, err
}

// MarkRead raises one's watermark and returns where it is now: it never goes
// back and is cut at the head. If it moved, the other parties and one's other
// devices are told; where one may not write to the other any more nobody is, so
// that nothing of one reaches them. Somebody with no part in the conversation is
// Forbidden, in the words of a refused message.
func (c *Chat) MarkRead(ctx context.Context, me im.UserID, device im.DeviceID, conv im.ConvID, seq im.Seq) (im.Seq, error) {
	start, err := c.start(ctx, me, conv)
	if im.Is(err, im.NotFound) {
		if conv.Kind() == im.KindGroup {
			return 0, errNotMember
		}
		return 0, errNotFriends
	}
	if err != nil {
		return 0, err
	}
	heads, err := c.st.Heads(ctx, []im.ConvID{conv})
	if err != nil {
		return 0, err
	}
	reads, err := c.st.ReadsOf(ctx, me, []im.ConvID{conv})
	if err != nil {
		return 0, err
	}
	if seq = min(seq, heads[0].Seq); seq <= max(reads[0], start) {
		return reads[0], nil
	}
	now, err := c.st.PutRead(ctx, conv, me, seq)
	if err != nil || now != seq {
		return now, err
	}
	tell, err := c.mayTell(ctx, me, conv)
	if tell {
		c.opt.Courier.Read(conv, me, device, seq)
	}
	return now, err
}

// mayTell reports whether the other parties may hear of me.
func (c *Chat) mayTell(ctx context.Context, me im.UserID, conv im.ConvID) (bool, error) {
	peer, ok := conv.Peer(me)
	if !ok {
		return true, nil // a group, and me is a member
	}
	err := c.roster.mayDM(ctx, me, peer)
	if im.Is(err, im.Forbidden) {
		return false, nil
	}
	return err == nil, err
}
