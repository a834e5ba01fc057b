package pushgw

import (
	"sync"

	"github.com/parley-im/parley/im"
)

// Step is one decision about one device.
type Step struct {
	At     int64        `json:"at"` // Unix ms
	Conv   im.ConvID    `json:"conv"`
	First  im.Seq       `json:"first"`
	Last   im.Seq       `json:"last"`
	Device im.DeviceKey `json:"device"`
	Step   string       `json:"step"`
	Go     bool         `json:"go"`
	Reason string       `json:"reason"`
	Detail string       `json:"detail,omitempty"`
}

// history keeps the latest decisions, in a ring.
type history struct {
	mu   sync.Mutex
	ring []Step
	next int
	full bool
}

func (h *history) init(n int) { h.ring = make([]Step, n) }

func (h *history) add(s Step) {
	h.mu.Lock()
	h.ring[h.next] = s
	h.next++
	if h.next == len(h.ring) {
		h.next, h.full = 0, true
	}
	h.mu.Unlock()
}

// Explain returns what was decided about a message, oldest first, among the
// latest decisions since the start.
func (g *Gateway) Explain(conv im.ConvID, seq im.Seq) []Step {
	h := &g.history
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []Step{}
	look := func(list []Step) {
		for _, s := range list {
			if s.Conv == conv && s.First <= seq && seq <= s.Last {
				out = append(out, s)
			}
		}
	}
	if h.full {
		look(h.ring[h.next:])
	}
	look(h.ring[:h.next])
	return out
}
