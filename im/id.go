package im

import (
	"fmt"
	"strings"
)

// UserID names an account: 1–64 characters of a-z 0-9 . _ -, not only dots.
type UserID string

// GroupID names a group; same alphabet as UserID.
type GroupID string

// DeviceID is an MQTT client identifier: 1–64 characters of A-Za-z0-9._-,
// unique per user.
type DeviceID string

// Seq is a position in a conversation's log. The first entry has 1; 0 means
// "before the first".
type Seq uint64

// MaxID is the longest user, group, device or message id, in characters.
const MaxID = 64

// Valid reports whether u may name an account.
func (u UserID) Valid() bool { return validName(string(u)) }

// Valid reports whether g may name a group.
func (g GroupID) Valid() bool { return validName(string(g)) }

// Valid reports whether d may name a device.
func (d DeviceID) Valid() bool {
	if len(d) == 0 || len(d) > MaxID {
		return false
	}
	for i := 0; i < len(d); i++ {
		if !nameByte[d[i]] && (d[i] < 'A' || d[i] > 'Z') {
			return false
		}
	}
	return true
}

func validName(s string) bool {
	if len(s) == 0 || len(s) > MaxID {
		return false
	}
	dots := true
	for i := 0; i < len(s); i++ {
		if !nameByte[s[i]] {
			return false
		}
		dots = dots && s[i] == '.'
	}
	return !dots
}

var nameByte = func() (t [256]bool) {
	for c := 'a'; c <= 'z'; c++ {
		t[c] = true
	}
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	t['.'], t['_'], t['-'] = true, true, true
	return t
}()

// ConvID names one append-only log. Its text form is stable, because stores
// keep it, and safe as a map key:
//
//	d/alice/bob   the conversation of two users, the lesser id first
//	g/team        a group
//	u/alice       alice's account events (topic me/…)
//	q/alice/phone what the plain space queues for one persistent session
type ConvID string

// ConvKind tells the four sorts of log apart.
type ConvKind byte

// The kinds of ConvID, by the first byte of its text.
const (
	KindDM      ConvKind = 'd'
	KindGroup   ConvKind = 'g'
	KindAccount ConvKind = 'u'
	KindQueue   ConvKind = 'q'
)

// DM is the conversation between a and b, in either order; DM(a, a) is a's notes.
func DM(a, b UserID) ConvID {
	if b < a {
		a, b = b, a
	}
	return ConvID("d/" + string(a) + "/" + string(b))
}

// GroupConv is the conversation of group g.
func GroupConv(g GroupID) ConvID { return ConvID("g/" + string(g)) }

// AccountConv is the log of u's account events.
func AccountConv(u UserID) ConvID { return ConvID("u/" + string(u)) }

// QueueConv is the private log of one device's persistent plain session.
func QueueConv(u UserID, d DeviceID) ConvID { return ConvID("q/" + string(u) + "/" + string(d)) }

// Kind returns the sort of log c names, or 0 for the empty ConvID.
func (c ConvID) Kind() ConvKind {
	if len(c) < 2 {
		return 0
	}
	return ConvKind(c[0])
}

// Pair returns the two users of a DM; both are the same for notes.
// It returns empty ids for any other kind.
func (c ConvID) Pair() (a, b UserID) {
	if c.Kind() != KindDM {
		return "", ""
	}
	x, y, _ := strings.Cut(string(c[2:]), "/")
	return UserID(x), UserID(y)
}

// Peer returns the other user of a DM as me sees it (me, for notes), and
// whether c is a DM that me takes part in.
func (c ConvID) Peer(me UserID) (UserID, bool) {
	a, b := c.Pair()
	switch {
	case a == "" || (me != a && me != b):
		return "", false
	case a == me:
		return b, true
	default:
		return a, true
	}
}

// Group returns the group of a group conversation, or "".
func (c ConvID) Group() GroupID {
	if c.Kind() != KindGroup {
		return ""
	}
	return GroupID(c[2:])
}

// Owner returns the user of an account or queue log, or "".
func (c ConvID) Owner() UserID {
	switch c.Kind() {
	case KindAccount:
		return UserID(c[2:])
	case KindQueue:
		u, _, _ := strings.Cut(string(c[2:]), "/")
		return UserID(u)
	}
	return ""
}

// QueueDevice returns the device of a queue log, or "".
func (c ConvID) QueueDevice() DeviceID {
	if c.Kind() != KindQueue {
		return ""
	}
	_, d, _ := strings.Cut(string(c[2:]), "/")
	return DeviceID(d)
}

// Topic returns the conversation's topic as viewer sees it: dm/{peer}, g/{group}
// or me. It is "" for a DM viewer has no part in, and for queues.
func (c ConvID) Topic(viewer UserID) string { return string(c.AppendTopic(nil, viewer)) }

// AppendTopic appends what Topic returns.
func (c ConvID) AppendTopic(b []byte, viewer UserID) []byte {
	switch c.Kind() {
	case KindDM:
		if p, ok := c.Peer(viewer); ok {
			return append(append(b, "dm/"...), p...)
		}
	case KindGroup:
		return append(b, c...)
	case KindAccount:
		return append(b, "me"...)
	}
	return b
}

// ParseConv reads a conversation as me writes it: dm/{user} or g/{group}.
func ParseConv(me UserID, s string) (ConvID, error) {
	kind, id, ok := strings.Cut(s, "/")
	switch {
	case ok && kind == "dm" && UserID(id).Valid():
		return DM(me, UserID(id)), nil
	case ok && kind == "g" && GroupID(id).Valid():
		return GroupConv(GroupID(id)), nil
	}
	return "", &Error{Kind: Invalid, Code: "conversation_invalid",
		Reason: fmt.Sprintf("%.80q is not a conversation: write dm/{user} or g/{group}", s)}
}

// DeviceKey names a device of a user; two users may use the same DeviceID.
type DeviceKey struct {
	User   UserID
	Device DeviceID
}

// String writes the key as user/device, for logs.
func (k DeviceKey) String() string { return string(k.User) + "/" + string(k.Device) }
