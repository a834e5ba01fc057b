package hooks

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/parley-im/parley/delivery"
)

// expiries disconnects sessions when their token expires. One timer serves all.
type expiries struct {
	mu   sync.Mutex
	heap sessionHeap
	wake chan struct{} // the earliest changed
}

func (e *expiries) init() { e.wake = make(chan struct{}, 1) }

// set puts the session in, or moves it, by the expiry of its identity; a
// session without one is taken out.
func (e *expiries) set(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := s.identity().Expires
	switch {
	case at.IsZero() && s.slot > 0:
		heap.Remove(&e.heap, s.slot-1)
	case at.IsZero():
		return
	case s.slot > 0:
		s.expires = at
		heap.Fix(&e.heap, s.slot-1)
	default:
		s.expires = at
		heap.Push(&e.heap, s)
	}
	if len(e.heap) > 0 && e.heap[0] == s {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
}

func (e *expiries) remove(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.slot > 0 {
		heap.Remove(&e.heap, s.slot-1)
	}
}

func (e *expiries) run(ctx context.Context, now func() time.Time) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		e.mu.Lock()
		wait := time.Hour
		for len(e.heap) > 0 {
			if wait = e.heap[0].expires.Sub(now()); wait > 0 {
				break
			}
			s := heap.Pop(&e.heap).(*session)
			e.mu.Unlock()
			s.c.Close(delivery.Revoked)
			e.mu.Lock()
			wait = time.Hour
		}
		e.mu.Unlock()
		timer.Reset(min(wait, time.Hour))
		select {
		case <-timer.C:
		case <-e.wake:
		case <-ctx.Done():
			return
		}
	}
}

// sessionHeap is ordered by expiry; session.slot is the index plus one.
type sessionHeap []*session

func (h sessionHeap) Len() int           { return len(h) }
func (h sessionHeap) Less(i, j int) bool { return h[i].expires.Before(h[j].expires) }
func (h sessionHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i+1, j+1
}
func (h *sessionHeap) Push(x any) {
	s := x.(*session)
	*h = append(*h, s)
	s.slot = len(*h)
}
func (h *sessionHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.slot = 0
	return s
}
