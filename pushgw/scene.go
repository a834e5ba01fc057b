package pushgw

import (
	"context"
	"slices"
	"strings"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Names is what a push says beside the message.
type Names interface {
	// UserName and GroupName are what people call them.
	UserName(ctx context.Context, u im.UserID) string
	GroupName(ctx context.Context, g im.GroupID) string
	// Unread is how many messages of others a user has not read.
	Unread(ctx context.Context, u im.UserID) (int, error)
}

// sights is what is looked at before a push.
type sights interface {
	Range(ctx context.Context, conv im.ConvID, after im.Seq, limit, maxBytes int) ([]*im.Entry, error)
	Cursor(ctx context.Context, k im.DeviceKey, conv im.ConvID) (store.Cursor, error)
	ReadsOf(ctx context.Context, u im.UserID, convs []im.ConvID) ([]im.Seq, error)
}

// looker looks up what a push is made of.
type looker struct {
	store   sights
	names   Names
	privacy string
	sealed  []string // types of encrypted bodies
}

// seen says whether a bell is still needed, and up to where its user has read.
func (l *looker) seen(ctx context.Context, b *bell) (d Decision, read im.Seq, err error) {
	if b.Kind != Alert {
		return yes("unseen"), 0, nil
	}
	reads, err := l.store.ReadsOf(ctx, b.key.dev.User, []im.ConvID{b.key.conv})
	if err != nil {
		return d, 0, err
	}
	c, err := l.store.Cursor(ctx, b.key.dev, b.key.conv)
	return seen{last: b.Last, acked: c.Acked, read: reads[0]}.due(), reads[0], err
}

// scene looks up what is needed to render b, which is the caller's own copy, and
// whether it is still needed.
func (l *looker) scene(ctx context.Context, b *bell, to Address, set *Settings) (s scene, d Decision, err error) {
	s = scene{bell: b, to: to, privacy: l.privacy}
	if set != nil && privacyOrder[set.Privacy] > privacyOrder[s.privacy] {
		s.privacy = set.Privacy // a user may ask for less, not for more
	}
	b.key.conv = im.ConvID(strings.TrimSuffix(string(b.key.conv), callSlot))
	conv, u := b.key.conv, b.key.dev.User
	if d, _, err = l.seen(ctx, b); err != nil || !d.Go {
		return s, d, err
	}
	if b.Kind == Alert {
		es, err := l.store.Range(ctx, conv, b.Last-1, 1, 1<<20)
		if err != nil {
			return s, d, err
		}
		if len(es) == 1 && es[0].Seq == b.Last {
			s.entry = es[0]
			if es[0].Flags&im.FlagRecalled != 0 {
				return s, no("recalled"), nil
			}
			s.sealed = slices.ContainsFunc(l.sealed, func(t string) bool { return strings.HasPrefix(es[0].Type, t) })
		}
	}
	if b.Kind != Call {
		if s.badge, err = l.names.Unread(ctx, u); err != nil {
			return s, d, err
		}
		s.known = true
	}
	if b.Kind != Clear && s.privacy != PrivacyNone && s.privacy != PrivacyIDOnly {
		s.sender = l.names.UserName(ctx, b.From)
		if id := conv.Group(); id != "" {
			s.group = l.names.GroupName(ctx, id)
		}
	}
	return s, d, nil
}
