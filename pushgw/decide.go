package pushgw

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/parley-im/parley/im"
)

// The pipeline, in this order. Each step is a pure decision with a reason that
// metrics and explanations show: eligible, collapse, grace, quiet, render, send,
// record.

// Decision is what a step says.
type Decision struct {
	Go     bool
	Reason string
}

func yes(reason string) Decision { return Decision{true, reason} }
func no(reason string) Decision  { return Decision{false, reason} }

// facts is what eligible looks at.
type facts struct {
	entry      *im.Entry
	user       im.UserID
	registered int64 // Unix ms
	now        time.Time
	maxAge     time.Duration
	level      ConvLevel
	large      bool // a group where only mentions ring unless the user wants all
	mentioned  bool
}

// ringing says whether an entry rings anybody at all.
func ringing(e *im.Entry) Decision {
	switch {
	case e.Op != im.OpMessage:
		return no("not_a_message")
	case e.Flags&im.FlagRecalled != 0:
		return no("recalled")
	case e.Conv.Kind() != im.KindDM && e.Conv.Kind() != im.KindGroup:
		return no("not_a_conversation")
	}
	return yes("message")
}

// eligible says whether a device is to be rung for an entry.
func eligible(f facts) Decision {
	switch {
	case f.entry.From == f.user:
		return no("own_message")
	case f.registered > f.entry.TS:
		return no("registered_later")
	case f.now.UnixMilli()-f.entry.TS > f.maxAge.Milliseconds():
		return no("too_old")
	case f.level.Level == LevelNone:
		return no("level_none")
	case f.mentioned:
		return yes("mentioned") // overrides what follows
	case f.level.Muted > f.now.UnixMilli():
		return no("muted")
	case f.level.Level == LevelMentions:
		return no("level_mentions")
	case f.large && f.level.Level != LevelAll:
		return no("large_group")
	}
	return yes("message")
}

// callee is what is looked at when somebody calls.
type callee struct {
	level     string // of the conversation; muting and quiet hours do not stop calls
	connected bool   // the device, which then has the signal itself
	deaf      bool   // an address that takes no calls: APNs has a kind of its own for them
}

// rings says whether a device is rung for a call.
func (c callee) rings() Decision {
	switch {
	case c.level == LevelNone:
		return no("level_none")
	case c.connected:
		return no("connected")
	case c.deaf:
		return no("not_for_calls")
	}
	return yes("call")
}

// Grace is how long a bell waits, in case the message is seen without it.
type Grace struct {
	Online time.Duration // a device of the user is connected; default 4 s
	Active time.Duration // another device was used in the last minute; default 20 s
}

// presence is what grace looks at.
type presence struct {
	online bool // one of the user's devices is connected
	active bool // the user wrote or read in the last minute
}

func (c Grace) of(p presence) (time.Duration, string) {
	switch {
	case p.active:
		return c.Active, "active_elsewhere"
	case p.online:
		return c.Online, "online"
	}
	return 0, "nobody_online"
}

// seen is what is known when a bell is due.
type seen struct {
	last, acked, read im.Seq
}

// due says whether a bell whose time has come still rings.
func (s seen) due() Decision {
	switch {
	case s.read >= s.last:
		return no("read")
	case s.acked >= s.last:
		return no("acknowledged")
	}
	return yes("unseen")
}

// quiet says whether the hour lets it ring.
func quiet(q *Quiet, mention bool, now time.Time) Decision {
	if !q.at(now) {
		return yes("no_quiet_hours")
	}
	if mention {
		return yes("mentioned")
	}
	return no("quiet_hours")
}

// maxMentionScan is how much of a body is looked through for mentions.
const maxMentionScan = 16 << 10

// mentions returns the user ids that a text names with an @, and whether it
// names everybody (@all).
func mentions(e *im.Entry) (users map[im.UserID]bool, all bool) {
	if e.Type != "" && !strings.HasPrefix(e.Type, "text/") && !strings.HasPrefix(e.Type, "application/json") {
		return nil, false
	}
	text := e.Body[:min(len(e.Body), maxMentionScan)]
	if !utf8.Valid(text) && len(text) == len(e.Body) {
		return nil, false
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '@' || (i > 0 && idByte(text[i-1])) {
			continue
		}
		k := i + 1
		for k < len(text) && idByte(text[k]) {
			k++
		}
		name := strings.ToLower(strings.TrimRight(string(text[i+1:k]), ".-"))
		switch {
		case name == "":
		case name == "all":
			all = true
		default:
			if users == nil {
				users = map[im.UserID]bool{}
			}
			users[im.UserID(name)] = true
		}
		i = k - 1
	}
	return users, all
}

// idByte reports whether a user id may contain b.
func idByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '-' || b == '.'
}
