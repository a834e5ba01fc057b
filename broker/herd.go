package broker

import (
	"runtime"
	"sync"
)

// batch collects the outboxes that got something while a commit is announced,
// so that each is written once, by few goroutines: starting one, and waking a
// second processor, costs more than a write.
type batch struct {
	mu     sync.Mutex
	open   bool
	urgent herds // with an acknowledgement or an answer: they go first, and who has it goes on
	rest   herds
}

// herd is outboxes that one goroutine writes, one after the other.
type herd struct {
	n    int
	list [16]*outbox
}

var herdPool = sync.Pool{New: func() any { return new(herd) }}

// herds is a list of outboxes in herds, all full but the last.
type herds struct {
	full []*herd
	last *herd // being filled, or nil
}

func (hs *herds) add(o *outbox) {
	if hs.last == nil {
		hs.last = herdPool.Get().(*herd)
	}
	h := hs.last
	h.list[h.n] = o
	if h.n++; h.n == len(h.list) {
		hs.full, hs.last = append(hs.full, h), nil
	}
}

// take empties the list.
func (hs *herds) take() (taken herds) {
	taken, *hs = *hs, herds{}
	return taken
}

// fewOutboxes is up to how many the caller of flush writes itself; more are
// worth a second processor.
const fewOutboxes = 8

// flush writes what the outboxes hold, never waiting for a socket.
func (hs herds) flush() {
	for _, h := range hs.full {
		go h.flush()
	}
	switch {
	case hs.last == nil:
	case len(hs.full) == 0 && hs.last.n <= fewOutboxes:
		hs.last.flush()
	default:
		go hs.last.flush()
	}
}

// flush writes the outboxes after whoever else wants to run: under load they
// have more for the same write, and where nobody does it takes no time.
func (h *herd) flush() {
	runtime.Gosched()
	for i, o := range h.list[:h.n] {
		o.flushNow()
		h.list[i] = nil
	}
	h.n = 0
	herdPool.Put(h)
}

// add reports false if no commit is being announced. Caller holds o.mu.
func (b *batch) add(o *outbox) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !b.open:
	case o.urgent:
		b.urgent.add(o)
	default:
		b.rest.add(o)
	}
	return b.open
}

// Hold makes what is written from now on wait for Release. The store's announcer
// calls both, around the outcomes of one commit.
func (b *Broker) Hold() {
	b.batch.mu.Lock()
	b.batch.open = true
	b.batch.mu.Unlock()
}

// Release writes what Hold kept. It never waits for a socket.
func (b *Broker) Release() {
	b.batch.mu.Lock()
	b.batch.open = false
	urgent, rest := b.batch.urgent.take(), b.batch.rest.take()
	b.batch.mu.Unlock()
	urgent.flush()
	rest.flush()
}
