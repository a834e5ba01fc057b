package plain

import (
	"strings"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// rnode is one level of the tree of retained messages.
type rnode struct {
	kids map[string]*rnode
	msg  *store.RetainedMessage
}

// Retain keeps m as its topic's retained message, or removes that of its topic
// if the body is empty [MQTT-3.3.1-6].
func (s *Space) Retain(m store.RetainedMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	levels := strings.Split(m.Topic, "/")
	if len(m.Body) == 0 {
		s.mu.retained.remove(levels, &s.mu.kept)
		return
	}
	n := &s.mu.retained
	for _, l := range levels {
		if n.kids == nil {
			n.kids = make(map[string]*rnode, 1)
		}
		next := n.kids[l]
		if next == nil {
			next = &rnode{}
			n.kids[l] = next
		}
		n = next
	}
	if n.msg == nil {
		s.mu.kept++
	}
	n.msg = &m
}

func (n *rnode) remove(levels []string, kept *int) (empty bool) {
	if len(levels) == 0 {
		if n.msg != nil {
			*kept--
		}
		n.msg = nil
	} else if kid := n.kids[levels[0]]; kid != nil && kid.remove(levels[1:], kept) {
		delete(n.kids, levels[0])
	}
	return n.msg == nil && len(n.kids) == 0
}

// Retained returns the retained messages that match the filter and have not
// expired [MQTT-3.3.2-5]. They are shared: nobody may write to them.
func (s *Space) Retained(f im.Filter) []*store.RetainedMessage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*store.RetainedMessage
	now := s.now().UnixMilli()
	s.mu.retained.match(strings.Split(f.Topic, "/"), func(m *store.RetainedMessage) {
		if m.Expires == 0 || m.Expires > now {
			out = append(out, m)
		}
	})
	return out
}

// Current reports whether m, which Retained returned, was not replaced or removed
// since.
func (s *Space) Current(m *store.RetainedMessage) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := &s.mu.retained
	for l := range strings.SplitSeq(m.Topic, "/") {
		if n = n.kids[l]; n == nil {
			return false
		}
	}
	return n.msg == m
}

func (n *rnode) match(levels []string, fn func(*store.RetainedMessage)) {
	if len(levels) == 0 {
		if n.msg != nil {
			fn(n.msg)
		}
		return
	}
	switch l := levels[0]; l {
	case "#":
		n.all(fn)
	case "+":
		for _, kid := range n.kids {
			kid.match(levels[1:], fn)
		}
	default:
		if kid := n.kids[l]; kid != nil {
			kid.match(levels[1:], fn)
		}
	}
}

func (n *rnode) all(fn func(*store.RetainedMessage)) {
	if n.msg != nil {
		fn(n.msg)
	}
	for _, kid := range n.kids {
		kid.all(fn)
	}
}

// RetainedCount is the number of retained messages.
func (s *Space) RetainedCount() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mu.kept
}
