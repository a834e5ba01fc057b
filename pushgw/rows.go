package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// The gateway's notes:
//
//	push/at/USER/DEVICE/KIND    Registration
//	push/set/USER               Settings
//	push/mark/CONV              seq up to which bells are written down
//	push/bell/USER/DEVICE CONV  bell: a device that is to be rung
//	push/shown/USER/DEVICE CONV seq of the last message that was really shown
//	push/dead/TIME-ID           DeadLetter
//	push/learned/USER/DEVICE/KIND  learned: what a worker found out about an address
//	push/page/WORKER/N          page: decisions of a worker
//	push/alive                  up to when all entries were looked at, Unix ms: now, unless some wait
const (
	noteAt    = "push/at/"
	noteSet   = "push/set/"
	noteMark  = "push/mark/"
	noteBell  = "push/bell/"
	noteShown = "push/shown/"
	noteDead  = "push/dead/"
	noteAlive = "push/alive"

	noteLearned = "push/learned/"
	notePage    = "push/page/"
)

// Registration is where one device is rung.
type Registration struct {
	Device im.DeviceKey
	Family string `json:",omitempty"` // of the token it was registered with
	Address

	Loud, Silent int64  `json:",omitempty"` // when the device's next turns are, see pace
	Nonce        string `json:",omitempty"` // unlike in any other version of the row that a worker wrote
}

func (r *Registration) key() string {
	return noteAt + string(r.Device.User) + "/" + string(r.Device.Device) + "/" + kindName(r.Kind)
}

// kindName keeps the address for calls beside the one for everything else.
func kindName(kind string) string {
	if kind == KindVoIP {
		return KindVoIP
	}
	return "main"
}

// KindVoIP is the kind of an APNs token that takes calls alone (PushKit).
const KindVoIP = "voip"

// Settings are what a user wants to be rung for.
type Settings struct {
	Privacy string                  `json:"privacy,omitempty"` // PrivacyFull …; "": the server's
	Quiet   *Quiet                  `json:"quiet,omitempty"`   // do not disturb
	Conv    map[im.ConvID]ConvLevel `json:"conv,omitempty"`
}

// ConvLevel is a user's wish for one conversation.
type ConvLevel struct {
	Level string `json:"level,omitempty"` // LevelAll …; "": by the size of the group
	Muted int64  `json:"muted,omitempty"` // nothing before this, Unix ms
}

// Levels of a conversation.
const (
	LevelAll      = "all"
	LevelMentions = "mentions"
	LevelNone     = "none"
)

// Privacy: what a push says. Each says less than the one before.
const (
	PrivacyFull   = "full"    // who and what
	PrivacySender = "sender"  // who
	PrivacyNone   = "none"    // that there is a message
	PrivacyIDOnly = "id-only" // nothing to show: the app asks the server
)

var privacyOrder = map[string]int{PrivacyFull: 0, PrivacySender: 1, PrivacyNone: 2, PrivacyIDOnly: 3}

// Quiet are the hours in which only mentions and calls ring.
type Quiet struct {
	From string `json:"from"` // "22:00"
	To   string `json:"to"`   // "07:00"; before From: on the next day
	Zone string `json:"zone"` // IANA name: "Europe/Berlin"
}

// Check reports what is wrong with the settings, for the person who sent them.
func (s *Settings) Check() error {
	if _, ok := privacyOrder[s.Privacy]; s.Privacy != "" && !ok {
		return im.Refuse(im.Invalid, "privacy", "privacy is full, sender, none or id-only")
	}
	for conv, c := range s.Conv {
		if c.Level != "" && c.Level != LevelAll && c.Level != LevelMentions && c.Level != LevelNone {
			return im.Refuse(im.Invalid, "level", "the level of %s is all, mentions or none", conv)
		}
	}
	if q := s.Quiet; q != nil {
		for _, at := range []string{q.From, q.To} {
			if _, err := time.Parse("15:04", at); err != nil {
				return im.Refuse(im.Invalid, "quiet", "quiet hours are written 22:00, not %q", at)
			}
		}
		if _, err := time.LoadLocation(q.Zone); err != nil || q.Zone == "" || q.Zone == "Local" {
			return im.Refuse(im.Invalid, "quiet", "%q is no time zone: write Europe/Berlin", q.Zone)
		}
	}
	return nil
}

// at reports whether t is in the quiet hours.
func (q *Quiet) at(t time.Time) bool {
	if q == nil || q.From == q.To {
		return false
	}
	zone, err := time.LoadLocation(q.Zone)
	if err != nil {
		return false
	}
	// Compared as times: as text "9:00", which Check takes, is after "17:00".
	from, err1 := time.Parse("15:04", q.From)
	to, err2 := time.Parse("15:04", q.To)
	if err1 != nil || err2 != nil || from.Equal(to) {
		return false
	}
	now, _ := time.Parse("15:04", t.In(zone).Format("15:04"))
	if from.Before(to) {
		return !now.Before(from) && now.Before(to)
	}
	return !now.Before(from) || now.Before(to)
}

// slotKey is a device and a conversation: each has one bell at most.
type slotKey struct {
	dev  im.DeviceKey
	conv im.ConvID
}

func (k slotKey) name() string {
	return string(k.dev.User) + "/" + string(k.dev.Device) + " " + string(k.conv)
}

func parseSlotKey(name string) (k slotKey, ok bool) {
	dev, conv, ok := strings.Cut(name, " ")
	u, d, ok2 := strings.Cut(dev, "/")
	return slotKey{im.DeviceKey{User: im.UserID(u), Device: im.DeviceID(d)}, im.ConvID(conv)}, ok && ok2
}

// bell is one device that is to be rung for one conversation. Newer messages
// replace older ones and are counted.
type bell struct {
	Kind    Kind
	First   im.Seq `json:",omitempty"` // of the messages that it stands for
	Last    im.Seq
	Count   int
	From    im.UserID // author of Last
	Mention bool      `json:",omitempty"` // one of them names the user
	Due     int64     // not before, Unix ms
	Expires int64     // of no use after, Unix ms
	Tries   int       `json:",omitempty"`
	Small   int       `json:",omitempty"` // how often it was too large
	Turn    bool      `json:",omitempty"` // it has taken its device's turn at Due

	key   slotKey
	place int  // in the heap; -1: not in it
	busy  bool // a worker has it
	off   bool // cancelled while busy
	call  *im.Ephemeral
}

// DeadLetter is a bell that could not be rung.
type DeadLetter struct {
	ID       string       `json:"id"`
	At       int64        `json:"at"` // Unix ms
	Device   im.DeviceKey `json:"device"`
	Conv     im.ConvID    `json:"conv"`
	First    im.Seq       `json:"first"`
	Last     im.Seq       `json:"last"`
	From     im.UserID    `json:"from,omitempty"`
	Kind     Kind         `json:"kind,omitempty"`
	Mention  bool         `json:"mention,omitempty"`
	Provider string       `json:"provider"`
	App      string       `json:"app"`
	Reason   string       `json:"reason"`
}

func note(key string, v any) store.Note {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("pushgw: a row cannot be encoded: %v", err)) // our own types
	}
	return store.Note{Key: key, Value: b}
}

func gone(key string) store.Note { return store.Note{Key: key} }

// load reads everything the gateway keeps in memory.
func (g *Gateway) load(ctx context.Context) error {
	var bad error
	each := func(prefix string, fn func(name string, v []byte) error) error {
		err := g.opt.Store.EachNote(ctx, prefix, func(n store.Note) bool {
			bad = fn(strings.TrimPrefix(n.Key, prefix), n.Value)
			return bad == nil
		})
		if err == nil && bad != nil {
			err = fmt.Errorf("note %s…: %w", prefix, bad)
		}
		return err
	}
	if err := each(noteAt, func(_ string, v []byte) error {
		var r Registration
		if err := json.Unmarshal(v, &r); err != nil {
			return err
		}
		g.keep(&r)
		return nil
	}); err != nil {
		return err
	}
	if err := each(noteSet, func(name string, v []byte) error {
		var s Settings
		if err := json.Unmarshal(v, &s); err != nil {
			return err
		}
		g.keepSettings(im.UserID(name), &s)
		return nil
	}); err != nil {
		return err
	}
	if err := each(noteBell, func(name string, v []byte) error {
		b := &bell{place: -1}
		k, ok := parseSlotKey(name)
		if err := json.Unmarshal(v, b); err != nil || !ok {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.key = k
		g.slots[k] = b
		g.due.push(b)
		return nil
	}); err != nil {
		return err
	}
	if err := each(noteShown, func(name string, v []byte) error {
		k, _ := parseSlotKey(name)
		var seq im.Seq
		g.shown[k] = seq
		err := json.Unmarshal(v, &seq)
		g.shown[k] = seq
		return err
	}); err != nil {
		return err
	}
	if err := each(noteDead, func(string, []byte) error { g.dead++; return nil }); err != nil {
		return err
	}
	return g.handover(ctx)
}
