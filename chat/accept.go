package chat

import (
	"context"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Committed is met by the Owner of an append that wants to know what became of
// it. It is called once, on the store's goroutine, in commit order, and must not
// block.
type Committed interface{ Committed(a *store.Append) }

// Sender is who publishes, and from where.
type Sender struct {
	User   im.UserID
	Device im.DeviceID
}

// Check decides whether s may append a to the conversation of t, and completes
// a: conversation, author, operation. a.Entry.Body, Type and ID are the caller's
// (the topic's message id, if there is one, wins). A refusal is returned and
// nothing is appended. The hot path: for a message between cached friends it
// takes no lock that a writer holds for long and allocates nothing.
func (c *Chat) Check(ctx context.Context, s Sender, t *im.Topic, a *store.Append) error {
	e := &a.Entry
	op, ok := t.Verb.Op()
	if !ok {
		return im.Refuse(im.TopicInvalid, "topic_invalid", "nothing can be appended there")
	}
	e.Conv, e.From, e.Device, e.Op, e.Ref = t.Conv, s.User, s.Device, op, t.Ref
	if t.Mid != "" {
		e.ID = t.Mid
	}
	if len(e.Body) > c.opt.MaxMessage {
		return im.Refuse(im.TooMany, "message_too_large", "the body has %d bytes, at most %d are taken", len(e.Body), c.opt.MaxMessage)
	}
	role, err := c.may(ctx, s.User, t)
	if err != nil {
		return err
	}
	a.Done = c.done
	if op != im.OpMessage {
		return c.checkOperation(ctx, s, role, a)
	}
	return nil
}

// may checks that user may write to the conversation of t; for a group it
// returns the role.
func (c *Chat) may(ctx context.Context, user im.UserID, t *im.Topic) (role string, err error) {
	if t.Group != "" {
		return c.roster.mayGroup(ctx, t.Group, user, c.now())
	}
	return "", c.roster.mayDM(ctx, user, t.Peer)
}

// checkOperation allows an edit by the author, a recall by the author or, in a
// group, its owner and admins, and a reaction by anybody who may write.
func (c *Chat) checkOperation(ctx context.Context, s Sender, role string, a *store.Append) error {
	e := &a.Entry
	ref, err := c.visible(ctx, s.User, e.Conv, e.Ref)
	if err != nil {
		return err
	}
	if ref.Op != im.OpMessage {
		return im.Refuse(im.Unsupported, "not_a_message", "entry %d is not a message", e.Ref)
	}
	if ref.Flags&im.FlagRecalled != 0 && e.Op != im.OpRecall {
		return im.Refuse(im.Unsupported, "recalled", "message %d was recalled", e.Ref)
	}
	switch e.Op {
	case im.OpEdit:
		if ref.From != s.User {
			return im.Refuse(im.Forbidden, "not_author", "only the author edits a message")
		}
	case im.OpRecall:
		if ref.From != s.User && role != "owner" && role != "admin" {
			return im.Refuse(im.Forbidden, "not_author", "only the author recalls a message, or an admin of the group")
		}
		e.Body, e.Type = nil, "" // a recall says nothing but what it recalls; the store empties that and its edits
	}
	return nil
}

// visible returns entry seq of conv if user may see it.
func (c *Chat) visible(ctx context.Context, user im.UserID, conv im.ConvID, seq im.Seq) (*im.Entry, error) {
	unknown := im.Refuse(im.Unsupported, "unknown_seq", "there is no message %d in this conversation", seq)
	if g := conv.Group(); g != "" {
		m, err := c.st.Member(ctx, g, user)
		if im.Is(err, im.NotFound) || (err == nil && seq <= m.Start) {
			return nil, unknown
		}
		if err != nil {
			return nil, err
		}
	}
	e, err := c.st.Entry(ctx, conv, seq)
	if im.Is(err, im.NotFound) {
		return nil, unknown
	}
	return e, err
}

// Submit hands checked appends to the log. Each comes back through the
// Committed of its Owner, after the courier got it.
func (c *Chat) Submit(as ...*store.Append) { c.st.Append(as...) }

// done runs on the store's goroutine, in commit order: the courier first, so
// that whoever is told of the commit can rely on delivery being under way.
func (c *Chat) done(a *store.Append) {
	switch {
	case a.Err != nil || a.NoEntry:
	case a.Dup: // the first try may have seemed to fail; its acknowledgement is ours
		c.opt.Courier.Wake(a.Entry.Conv, a.Entry.Seq)
	default:
		c.opt.Courier.Offer(&a.Entry)
	}
	if o, ok := a.Owner.(Committed); ok {
		o.Committed(a)
	}
}

// Queue completes an append to a plain-space queue or a retained message: no
// permission is asked here, the plain space's rules have decided.
func (c *Chat) Queue(a *store.Append) { a.Done = c.done }

// Whisper checks and passes on a typing or signal.
func (c *Chat) Whisper(ctx context.Context, s Sender, t *im.Topic, typ string, body []byte) error {
	if _, err := c.may(ctx, s.User, t); err != nil {
		return err
	}
	if len(body) > c.opt.MaxMessage {
		return im.Refuse(im.TooMany, "message_too_large", "the body has %d bytes, at most %d are taken", len(body), c.opt.MaxMessage)
	}
	c.opt.Courier.Ephemeral(im.Ephemeral{Conv: t.Conv, From: s.User, Device: s.Device, Verb: t.Verb, TS: c.now(), Type: typ, Body: body})
	return nil
}
