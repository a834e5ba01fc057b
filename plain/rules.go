package plain

import (
	"strings"

	"github.com/parley-im/parley/im"
)

// Action is what a rule speaks of.
type Action uint8

// The actions; a rule may name both.
const (
	Publish Action = 1 << iota
	Subscribe
)

// Rule allows or denies actions on topics. The first rule that matches decides;
// without one the answer is no. {user} and {device} in Topic are the caller's.
type Rule struct {
	Deny    bool
	Actions Action
	Topic   string    // a filter
	Role    string    // "" everybody, "admin" admins
	User    im.UserID // "" everybody
}

// Caller is who asks.
type Caller struct {
	Key  im.DeviceKey
	Role string
}

// Rules is a list of rules, in order. The zero Rules denies everything.
type Rules []Rule

// MayPublish reports whether c may publish to topic.
func (rs Rules) MayPublish(c Caller, topic string) bool {
	for i := range rs {
		if f, ok := rs[i].applies(c, Publish); ok && f.Match(topic) {
			return !rs[i].Deny
		}
	}
	return false
}

// MaySubscribe reports whether c may subscribe to the whole of filter: a rule
// allows a filter only if it covers all of it, and denies one it touches.
func (rs Rules) MaySubscribe(c Caller, filter im.Filter) bool {
	for i := range rs {
		f, ok := rs[i].applies(c, Subscribe)
		switch {
		case !ok:
		case rs[i].Deny && intersects(f.Topic, filter.Topic):
			return false
		case !rs[i].Deny && f.Covers(filter):
			return true
		}
	}
	return false
}

func (r *Rule) applies(c Caller, a Action) (im.Filter, bool) {
	if r.Actions&a == 0 || (r.Role != "" && r.Role != c.Role) || (r.User != "" && r.User != c.Key.User) {
		return im.Filter{}, false
	}
	t := r.Topic
	if strings.Contains(t, "{") {
		t = strings.NewReplacer("{user}", string(c.Key.User), "{device}", string(c.Key.Device)).Replace(t)
	}
	return im.Filter{Topic: t}, true
}

// intersects reports whether some topic matches both filters.
func intersects(a, b string) bool {
	for {
		ah, ar, am := strings.Cut(a, "/")
		bh, br, bm := strings.Cut(b, "/")
		if ah == "#" || bh == "#" {
			return true
		}
		if ah != bh && ah != "+" && bh != "+" {
			return false
		}
		switch {
		case !am && !bm:
			return true
		case !am:
			return br == "#"
		case !bm:
			return ar == "#"
		}
		a, b = ar, br
	}
}
