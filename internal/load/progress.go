package load

import (
	"sync"
	"sync/atomic"
)

// Progress is what a run is doing right now. A nil one is told nothing; any
// goroutine may read and write.
type Progress struct {
	done atomic.Int64
	mu   struct {
		sync.Mutex
		phase string
		total int
		lat   *latencies
	}
}

// Snapshot is a look at a Progress.
type Snapshot struct {
	Phase string   // "accounts", "running", …
	Done  int64    // steps or messages
	Total int      // of them, 0 if unknown
	So    *Latency // far, nil if nothing was measured
}

// begin names what comes now, which has total steps or, if 0, an unknown number.
func (p *Progress) begin(phase string, total int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done.Store(0)
	p.mu.phase, p.mu.total, p.mu.lat = phase, total, nil
}

// show says which latencies are of interest.
func (p *Progress) show(l *latencies) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.lat = l
}

func (p *Progress) step() { p.add(1) }

func (p *Progress) add(n int64) {
	if p != nil {
		p.done.Add(n)
	}
}

// Look returns where the run is.
func (p *Progress) Look() Snapshot {
	p.mu.Lock()
	s := Snapshot{Phase: p.mu.phase, Done: p.done.Load(), Total: p.mu.total}
	lat := p.mu.lat
	p.mu.Unlock()
	if lat != nil {
		s.So = lat.summary()
	}
	return s
}
