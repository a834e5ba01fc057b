package plain

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Space is the room. Make it with New.
type Space struct {
	rules Rules
	now   func() time.Time

	mu struct {
		sync.RWMutex
		root     node
		subs     map[im.DeviceKey]*subscriber
		retained rnode
		kept     int
	}
	turn uint64 // round robin of shared subscriptions; guarded by mu for writing
}

// subscriber is one device with plain subscriptions.
type subscriber struct {
	key        im.DeviceKey
	persistent bool
	gone       int64 // Unix ms when an offline session expires; 0 connected or never
	filters    map[string]store.Subscription
}

// node is one level of the index of filters.
type node struct {
	kids   map[string]*node
	subs   map[*subscriber]store.Subscription
	shares map[string]map[*subscriber]store.Subscription
}

// Target is one device that a publication concerns.
type Target struct {
	Key        im.DeviceKey
	QoS        byte // granted; the highest of the filters that matched
	Persistent bool // has a session that outlives its connection: QoS 1 goes to its queue
	Retain     bool // keep the RETAIN flag (Retain As Published)
	SubIDs     []int
}

// New makes a Space governed by rules. now may be nil.
func New(rules Rules, now func() time.Time) *Space {
	if now == nil {
		now = time.Now
	}
	s := &Space{rules: rules, now: now}
	s.mu.subs = make(map[im.DeviceKey]*subscriber)
	return s
}

// MayPublish reports whether c may publish to topic.
func (s *Space) MayPublish(c Caller, topic string) bool { return s.rules.MayPublish(c, topic) }

// MaySubscribe reports whether c may subscribe to filter.
func (s *Space) MaySubscribe(c Caller, f im.Filter) bool { return s.rules.MaySubscribe(c, f) }

// Open tells that a device is connected, with the subscriptions its session
// has. What it had here before is replaced.
func (s *Space) Open(k im.DeviceKey, persistent bool, subs []store.Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(k)
	for _, sub := range subs {
		s.add(k, persistent, sub)
	}
}

// Keep tells that a device has disconnected and its session stays until the
// given time (Unix ms; 0: for ever).
func (s *Space) Keep(k im.DeviceKey, until int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.mu.subs[k]; sub != nil {
		sub.gone = until
	}
}

// Allowed returns those of a session's subscriptions that the rules still allow
// c: a session may be older than its owner's role, or than the rules.
func (s *Space) Allowed(c Caller, subs []store.Subscription) []store.Subscription {
	var out []store.Subscription
	for _, sub := range subs {
		if f, err := im.ParseFilter(sub.Filter); err == nil && s.rules.MaySubscribe(c, f) {
			out = append(out, sub)
		}
	}
	return out
}

// Restrict takes out what the rules do not allow u any more, who has role now, on
// devices that are away too.
func (s *Space) Restrict(u im.UserID, role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, d := range s.mu.subs {
		if k.User != u {
			continue
		}
		for filter := range d.filters {
			f, err := im.ParseFilter(filter)
			if err != nil || !s.rules.MaySubscribe(Caller{Key: k, Role: role}, f) {
				s.remove(d, filter)
			}
		}
	}
}

// Drop forgets a device's subscriptions.
func (s *Space) Drop(k im.DeviceKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(k)
}

// Subscribe adds or replaces a subscription and reports whether it is new.
func (s *Space) Subscribe(k im.DeviceKey, persistent bool, sub store.Subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(k, persistent, sub)
}

// Unsubscribe removes a subscription and reports whether there was one.
func (s *Space) Unsubscribe(k im.DeviceKey, filter string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(s.mu.subs[k], filter)
}

func (s *Space) add(k im.DeviceKey, persistent bool, sub store.Subscription) bool {
	f, err := im.ParseFilter(sub.Filter)
	if err != nil {
		return false
	}
	if _, plain := f.Overlaps(); !plain {
		return false
	}
	d := s.mu.subs[k]
	if d == nil {
		d = &subscriber{key: k, filters: make(map[string]store.Subscription, 1)}
		s.mu.subs[k] = d
	}
	d.persistent, d.gone = persistent, 0
	_, had := d.filters[sub.Filter]
	d.filters[sub.Filter] = sub

	n := &s.mu.root
	for level := range strings.SplitSeq(f.Topic, "/") {
		if n.kids == nil {
			n.kids = make(map[string]*node, 1)
		}
		next := n.kids[level]
		if next == nil {
			next = &node{}
			n.kids[level] = next
		}
		n = next
	}
	to := &n.subs
	if f.Share != "" {
		if n.shares == nil {
			n.shares = make(map[string]map[*subscriber]store.Subscription, 1)
		}
		m := n.shares[f.Share]
		if m == nil {
			m = make(map[*subscriber]store.Subscription, 1)
			n.shares[f.Share] = m
		}
		to = &m
	}
	if *to == nil {
		*to = make(map[*subscriber]store.Subscription, 1)
	}
	(*to)[d] = sub
	return !had
}

func (s *Space) drop(k im.DeviceKey) {
	d := s.mu.subs[k]
	if d == nil {
		return
	}
	for f := range d.filters {
		s.remove(d, f)
	}
	delete(s.mu.subs, k)
}

func (s *Space) remove(d *subscriber, filter string) bool {
	if d == nil {
		return false
	}
	if _, ok := d.filters[filter]; !ok {
		return false
	}
	delete(d.filters, filter)
	if len(d.filters) == 0 {
		delete(s.mu.subs, d.key)
	}
	f, _ := im.ParseFilter(filter)
	s.mu.root.remove(strings.Split(f.Topic, "/"), f.Share, d)
	return true
}

// remove takes the subscription out and reports whether n is empty now.
func (n *node) remove(levels []string, share string, d *subscriber) bool {
	if len(levels) > 0 {
		if kid := n.kids[levels[0]]; kid != nil && kid.remove(levels[1:], share, d) {
			delete(n.kids, levels[0])
		}
	} else if share != "" {
		delete(n.shares[share], d)
		if len(n.shares[share]) == 0 {
			delete(n.shares, share)
		}
	} else {
		delete(n.subs, d)
	}
	return len(n.kids) == 0 && len(n.subs) == 0 && len(n.shares) == 0
}

// Match returns the devices that a publication to topic by from concerns, each
// once for all its own subscriptions. Of a shared subscription it picks one member,
// a connected one if online finds any [MQTT-4.8.2-*], which gets a copy for that.
func (s *Space) Match(topic string, from im.DeviceKey, online func(im.DeviceKey) bool) []Target {
	s.mu.Lock() // turn
	defer s.mu.Unlock()
	if len(s.mu.subs) == 0 {
		return nil
	}
	m := matcher{now: s.now().UnixMilli(), from: from, online: online, turn: s.turn}
	m.walk(&s.mu.root, strings.Split(topic, "/"), true)
	s.turn++
	return m.out
}

type matcher struct {
	now    int64
	from   im.DeviceKey
	online func(im.DeviceKey) bool
	turn   uint64
	out    []Target
	at     map[im.DeviceKey]int // index into out of what a device gets by itself
}

func (m *matcher) walk(n *node, levels []string, first bool) {
	if kid := n.kids["#"]; kid != nil && !(first && strings.HasPrefix(levels[0], "$")) {
		m.collect(kid)
	}
	if len(levels) == 0 {
		m.collect(n)
		return
	}
	if kid := n.kids[levels[0]]; kid != nil {
		m.walk(kid, levels[1:], false)
	}
	if kid := n.kids["+"]; kid != nil && !(first && strings.HasPrefix(levels[0], "$")) {
		m.walk(kid, levels[1:], false)
	}
}

func (m *matcher) collect(n *node) {
	for d, sub := range n.subs {
		if d.expired(m.now) || (sub.NoLocal && d.key == m.from) {
			continue
		}
		m.add(d, sub)
	}
	for _, group := range n.shares {
		m.pick(group)
	}
}

// pick chooses one member of a shared subscription in turn.
func (m *matcher) pick(group map[*subscriber]store.Subscription) {
	var here, away []*subscriber
	for d := range group {
		switch {
		case d.expired(m.now):
		case m.online(d.key):
			here = append(here, d)
		case d.persistent:
			away = append(away, d)
		}
	}
	if len(here) == 0 {
		here = away
	}
	if len(here) == 0 {
		return
	}
	slices.SortFunc(here, func(a, b *subscriber) int { return strings.Compare(a.key.String(), b.key.String()) })
	d := here[m.turn%uint64(len(here))]
	m.out = append(m.out, Target{Key: d.key, Persistent: d.persistent})
	m.out[len(m.out)-1].grant(group[d])
}

func (m *matcher) add(d *subscriber, sub store.Subscription) {
	i, ok := m.at[d.key]
	if !ok {
		if m.at == nil {
			m.at = make(map[im.DeviceKey]int, 4)
		}
		i = len(m.out)
		m.at[d.key] = i
		m.out = append(m.out, Target{Key: d.key, Persistent: d.persistent})
	}
	m.out[i].grant(sub)
}

// grant adds what a subscription asks for.
func (t *Target) grant(sub store.Subscription) {
	t.QoS = max(t.QoS, min(sub.QoS, 1))
	t.Retain = t.Retain || sub.RetainAsPublished
	if sub.ID > 0 {
		t.SubIDs = append(t.SubIDs, sub.ID)
	}
}

func (d *subscriber) expired(now int64) bool { return d.gone > 0 && d.gone <= now }

// Expire drops the sessions whose time is up and returns whose they were.
func (s *Space) Expire() []im.DeviceKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now().UnixMilli()
	var gone []im.DeviceKey
	for k, d := range s.mu.subs {
		if d.expired(now) {
			gone = append(gone, k)
		}
	}
	for _, k := range gone {
		s.drop(k)
	}
	return gone
}

// Subscriptions is the number of devices with plain subscriptions.
func (s *Space) Subscriptions() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.mu.subs)
}
