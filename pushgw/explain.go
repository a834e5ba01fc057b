package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
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

func (s *Step) about(conv im.ConvID, seq im.Seq) bool {
	return s.Conv == conv && s.First <= seq && seq <= s.Last
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
// latest decisions since the start, those of workers included.
func (g *Gateway) Explain(ctx context.Context, conv im.ConvID, seq im.Seq) ([]Step, error) {
	out := []Step{}
	look := func(list []Step) {
		for _, s := range list {
			if s.about(conv, seq) {
				out = append(out, s)
			}
		}
	}
	h := &g.history
	h.mu.Lock()
	if h.full {
		look(h.ring[h.next:])
	}
	look(h.ring[:h.next])
	h.mu.Unlock()
	if !g.opt.Workers {
		return out, nil
	}
	err := g.opt.Store.EachNote(ctx, notePage, func(n store.Note) bool {
		var p page
		if json.Unmarshal(n.Value, &p) == nil {
			look(p.Steps)
		}
		return true
	})
	slices.SortStableFunc(out, func(a, b Step) int { return int(a.At - b.At) })
	return out, err
}

// A worker writes its decisions down in pages, the latest of which are kept.
const (
	pageSteps = 512
	pageCount = 128 // 65,536 decisions
)

// page is some decisions of one worker.
type page struct {
	At    int64 // of the last, Unix ms
	Steps []Step
}

// journal is what a worker decided and has not yet written down. Full pages that
// cannot be written are given up after pageCount of them.
type journal struct {
	mu    sync.Mutex
	pages []page // the last is not full
	first int    // number of pages[0]
	dirty bool
}

func (j *journal) add(s Step) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.pages); n == 0 || len(j.pages[n-1].Steps) == pageSteps {
		if n == pageCount {
			j.pages, j.first = j.pages[1:], j.first+1
		}
		j.pages = append(j.pages, page{})
	}
	p := &j.pages[len(j.pages)-1]
	p.Steps, p.At, j.dirty = append(p.Steps, s), s.At, true
}

// flush writes down what is new, under the worker's name.
func (j *journal) flush(ctx context.Context, st store.Notes, name string) error {
	j.mu.Lock()
	if !j.dirty {
		j.mu.Unlock()
		return nil
	}
	var notes []store.Note
	for i := range j.pages {
		notes = append(notes, note(fmt.Sprintf("%s%s/%03d", notePage, name, (j.first+i)%pageCount), &j.pages[i]))
	}
	first := j.first
	j.dirty = false
	j.mu.Unlock()
	if err := st.PutNotes(ctx, notes, false); err != nil {
		j.mu.Lock()
		j.dirty = true
		j.mu.Unlock()
		return err
	}
	j.mu.Lock()
	if written := first + len(notes) - 1 - j.first; written > 0 { // all but the one that is not full
		j.pages, j.first = j.pages[written:], j.first+written
	}
	j.mu.Unlock()
	return nil
}
