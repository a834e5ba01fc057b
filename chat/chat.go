package chat

import (
	"log/slog"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Courier carries what was decided to the devices. It is met by delivery. No
// method blocks, fails or calls back into chat.
type Courier interface {
	// Offer passes on a committed entry. Calls for one conversation come in seq
	// order, without holes.
	Offer(e *im.Entry)
	// Wake tells that conv has an entry seq which may never have been offered. It may
	// be told of any that was, too.
	Wake(conv im.ConvID, seq im.Seq)
	// Ephemeral passes on a typing or signal: to devices online now, never stored.
	Ephemeral(ev im.Ephemeral)
	// Read tells that user has read conv up to seq.
	Read(conv im.ConvID, user im.UserID, device im.DeviceID, seq im.Seq)
	// Joined and Left follow a committed membership change: from here on the
	// group's entries after start go, or do not go, to user's devices.
	Joined(g im.GroupID, user im.UserID, start im.Seq)
	Left(g im.GroupID, user im.UserID)
}

// Options configure a Chat. Store and Courier are needed, the rest has defaults.
type Options struct {
	Store   store.Store
	Courier Courier
	Now     func() time.Time // default time.Now
	Log     *slog.Logger     // default: discard

	MaxMessage      int // bytes of a body; default 256 KiB
	MaxGroupMembers int // default 10,000
	MaxGroups       int // groups one user may own; default 1,000
	MaxFriends      int // friends and open requests of one user; default 10,000
	CacheUsers      int // users whose relations are kept in memory; default 100,000
	CacheGroups     int // groups whose members are kept in memory; default 10,000
}

// Chat is the room. Make it with New.
type Chat struct {
	opt    Options
	st     store.Store
	log    *slog.Logger
	roster *roster
}

// New makes a Chat on o.Store. It starts nothing.
func New(o Options) *Chat {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&o.MaxMessage, 256<<10)
	def(&o.MaxGroupMembers, 10_000)
	def(&o.MaxGroups, 1_000)
	def(&o.MaxFriends, 10_000)
	def(&o.CacheUsers, 100_000)
	def(&o.CacheGroups, 10_000)
	return &Chat{opt: o, st: o.Store, log: o.Log, roster: newRoster(o)}
}

func (c *Chat) now() int64 { return c.opt.Now().UnixMilli() }
