package delivery

import (
	"slices"
	"strings"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// View is what a device wants to see of its IM topics. The zero View is what a
// device gets that subscribed to nothing: everything but "sent", at QoS 1.
type View struct {
	subs  []filterQoS
	stops []im.Filter
	Sent  bool // wants "sent": only a subscription by that name turns it on
	ids   bool // a filter of subs has a Subscription Identifier

	// Presence comes unasked, like all the rest. But who names what to see of dm/, g/,
	// me/ or presence/ reads that and nothing else: then a filter has to match.
	chosen   bool // a filter of subs is below one of these
	presence bool // a filter of subs matches presences, some or all
	friends  bool // … and is below presence/: it asks how the friends are
}

type filterQoS struct {
	im.Filter
	qos byte
	id  int // Subscription Identifier; 0: none
}

// Stop is the QoS under which a session keeps an UNSUBSCRIBE that stops IM topics.
const Stop = 0x80

// NewView makes the view of a session's subscriptions. Filters that cannot
// match an IM topic are left out.
func NewView(subs []store.Subscription) View {
	var v View
	for _, s := range subs {
		f, err := im.ParseFilter(s.Filter)
		if err != nil || (f.Share != "" && s.QoS > 0) {
			continue // a shared subscription can only lower: it neither names "sent" nor takes back a stop
		}
		if inIM, _ := f.Overlaps(); !inIM {
			continue
		}
		switch {
		case s.QoS == Stop:
			v.stops = append(v.stops, f)
		default:
			v.subs = append(v.subs, filterQoS{f, min(s.QoS, 1), s.ID})
			v.Sent = v.Sent || (f.Topic == "sent" && f.Share == "")
			v.ids = v.ids || s.ID > 0
			if f.Share != "" {
				continue
			}
			switch head, _, _ := strings.Cut(f.Topic, "/"); head {
			case "dm", "g", "me":
				v.chosen = true
			case "presence":
				v.chosen, v.presence, v.friends = true, true, true
			case "#", "+":
				v.presence = true
			}
		}
	}
	return v
}

// Stoppable reports whether an UNSUBSCRIBE of filter stops IM topics: it is one
// of the whole families, named exactly.
func Stoppable(filter string) bool { return slices.Contains(families, filter) }

var families = []string{"dm/+", "g/+", "me/+", "dm/#", "g/#", "me/#", "presence/+", "presence/#", "error",
	"dm/+/read", "g/+/read", "dm/+/typing", "g/+/typing", "dm/+/signal", "g/+/signal"}

// Conv returns the QoS at which a log is served and whether it is stopped.
func (v *View) Conv(conv im.ConvID, user im.UserID) (qos byte, stopped bool) {
	switch conv.Kind() {
	case im.KindQueue:
		return 1, false
	case im.KindAccount:
		qos, stopped = v.topic("me/-") // any event; see event
		return qos, stopped && !slices.ContainsFunc(v.subs, func(s filterQoS) bool { return s.Share == "" && strings.HasPrefix(s.Topic, "me/") })
	}
	return v.topic(conv.Topic(user))
}

// event is Conv for one entry of the account's log, which has a topic of its own.
func (v *View) event(e *im.Entry, user im.UserID) (qos byte, stopped bool) {
	if len(v.subs) == 0 && len(v.stops) == 0 {
		return 1, false
	}
	return v.topic(e.ViewTopic(user))
}

// Stops reports whether an ephemeral topic is not wanted.
func (v *View) Stops(topic string) bool {
	_, stopped := v.topic(topic)
	return stopped
}

func (v *View) topic(topic string) (qos byte, stopped bool) {
	if len(v.subs) == 0 && len(v.stops) == 0 {
		return 1, false
	}
	matched, wanted := false, false
	for _, s := range v.subs {
		if s.Match(topic) {
			matched, wanted = true, wanted || s.Share == ""
			qos = max(qos, s.qos)
		}
	}
	if !matched {
		qos = 1
	}
	if wanted {
		return qos, false
	}
	for _, s := range v.stops {
		if s.Match(topic) {
			return qos, true
		}
	}
	return qos, false
}

// watches reports whether presence of anybody is wanted.
func (v *View) watches() bool { return v.presence || (!v.chosen && !v.Stops("presence/-")) }

// hears reports whether topic, a presence/{user}, is wanted.
func (v *View) hears(topic string) bool {
	if v.presence && slices.ContainsFunc(v.subs, func(s filterQoS) bool { return s.Share == "" && s.Match(topic) }) {
		return true
	}
	return !v.chosen && !v.Stops(topic)
}

// subIDs are the Subscription Identifiers a PUBLISH to topic carries [MQTT-3.3.4-3..5].
func (v *View) subIDs(topic string) (ids []int) {
	if !v.ids {
		return nil
	}
	for _, s := range v.subs {
		if s.id > 0 && s.Share == "" && s.Match(topic) {
			ids = append(ids, s.id)
		}
	}
	return ids
}
