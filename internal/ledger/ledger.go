package ledger

import (
	"fmt"
	"strings"
	"sync"
)

// Ledger is what writers know of their messages. A message is known by its
// conversation and a text that is unlike all others there. Its methods may be
// called from any goroutine.
type Ledger struct {
	mu    sync.Mutex
	tick  int64 // of the ledger's own clock: one per event
	acked int
	convs map[string]map[string]message
}

type message struct {
	sent  int64 // tick at which it was sent first
	acked int64 // tick of its acknowledgement; 0: none came
	seq   uint64
	once  bool
	stuck bool
}

// New makes an empty Ledger.
func New() *Ledger { return &Ledger{convs: map[string]map[string]message{}} }

func (l *Ledger) change(conv, text string, fn func(m *message, tick int64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.convs[conv]
	if c == nil {
		c = map[string]message{}
		l.convs[conv] = c
	}
	l.tick++
	m := c[text]
	fn(&m, l.tick)
	c[text] = m
}

// Sending notes, before it goes out, that a message is sent, for the first time
// or again. once: it may be in the history at most once, since it has an id or is
// sent at QoS 2; another one may be there again for each time it was sent again.
func (l *Ledger) Sending(conv, text string, once bool) {
	l.change(conv, text, func(m *message, tick int64) {
		if m.sent == 0 {
			m.sent = tick
		}
		m.once = m.once || once
	})
}

// Acked notes an acknowledgement. seq is 0 where the protocol does not tell it.
func (l *Ledger) Acked(conv, text string, seq uint64) {
	l.change(conv, text, func(m *message, tick int64) {
		if m.acked == 0 {
			l.acked++
			m.acked, m.seq = tick, seq
		}
	})
}

// Unanswered notes that a server that lives gives no answer for a message.
func (l *Ledger) Unanswered(conv, text string) {
	l.change(conv, text, func(m *message, _ int64) { m.stuck = true })
}

// Count is how many messages were acknowledged.
func (l *Ledger) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// Now is a moment on the ledger's clock, for Before.
func (l *Ledger) Now() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tick
}

// Before is a copy that knows no acknowledgement after a moment: what a server
// that died then had promised. What was sent since may be there nevertheless.
func (l *Ledger) Before(now int64) *Ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := New()
	c.tick = l.tick
	for conv, ms := range l.convs {
		copied := make(map[string]message, len(ms))
		for text, m := range ms {
			if m.acked > now {
				m.acked, m.seq = 0, 0
			}
			if m.acked != 0 {
				c.acked++
			}
			copied[text] = m
		}
		c.convs[conv] = copied
	}
	return c
}

// Any returns one message of conv that was acknowledged, and its seq.
func (l *Ledger) Any(conv string) (text string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for text, m := range l.convs[conv] {
		if m.acked != 0 {
			return text, m.seq
		}
	}
	return "", 0
}

// Entry is one place of a history.
type Entry struct {
	Seq  uint64
	Text string
	// Other is an entry that is no message, such as an event: it has a seq, and
	// no writer answers for it.
	Other bool
}

// Check holds the whole history of a conversation against the ledger. What is
// acknowledged must be in it; what was only sent may be.
func (l *Ledger) Check(conv string, history []Entry, f *Findings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent := l.convs[conv]
	at := make(map[string]uint64, len(history))
	next := uint64(1)
	latest, latestText := int64(0), "" // of those before, the one sent last
	for _, e := range history {
		switch {
		case e.Seq > next:
			f.note(&f.Lost, "%s: the history has a hole before seq %d", conv, e.Seq)
		case e.Seq < next:
			f.note(&f.Disorder, "%s: the history has seq %d where %d belongs", conv, e.Seq, next)
		}
		next = e.Seq + 1
		if e.Other {
			continue
		}
		m, ok := sent[e.Text]
		if !ok || m.sent == 0 {
			f.note(&f.Disorder, "%s: seq %d, %.60q, was never sent", conv, e.Seq, e.Text)
			continue
		}
		if first, twice := at[e.Text]; twice {
			if m.once {
				f.note(&f.Duplicate, "%s: %.60q is there twice, at seq %d and %d", conv, e.Text, first, e.Seq)
			}
			continue
		}
		at[e.Text] = e.Seq
		if m.acked != 0 && m.acked < latest {
			f.note(&f.Disorder, "%s: %.60q was acknowledged before %.60q was sent, and stands after it, at seq %d", conv, e.Text, latestText, e.Seq)
		}
		if m.sent > latest {
			latest, latestText = m.sent, e.Text
		}
	}
	for text, m := range sent {
		got, ok := at[text]
		switch {
		case m.stuck:
			f.note(&f.Lost, "%s: the server never answered for %.60q", conv, text)
		case m.acked == 0:
		case !ok:
			f.note(&f.Lost, "%s: %.60q was acknowledged at seq %d and is not there", conv, text, m.seq)
		case m.seq != 0 && m.once && m.seq != got:
			f.note(&f.Disorder, "%s: %.60q was acknowledged at seq %d and stands at %d", conv, text, m.seq, got)
		}
	}
}

// CheckWriters holds the order in a history against the order in which each writer
// sent: number tells whose message a text is and its place among the writer's.
// It is for writers who send again in order what was not acknowledged.
func CheckWriters(conv string, history []Entry, number func(text string) (writer string, n int64), f *Findings) {
	last := map[string]int64{}
	for _, e := range history {
		if e.Other {
			continue
		}
		w, n := number(e.Text)
		if n < last[w] {
			f.note(&f.Disorder, "%s: message %d of %s stands after %d, at seq %d", conv, n, w, last[w], e.Seq)
		}
		last[w] = max(last[w], n)
	}
}

// Faults is what went wrong with messages.
type Faults struct {
	Lost      int64 `json:"lost"`
	Duplicate int64 `json:"duplicate"`
	Disorder  int64 `json:"out_of_order"`
}

// Any reports whether there is one.
func (f Faults) Any() bool { return f != Faults{} }

// String says the faults in words.
func (f Faults) String() string {
	return fmt.Sprintf("lost %d, duplicated %d, out of order %d", f.Lost, f.Duplicate, f.Disorder)
}

// Add adds those of g.
func (f *Faults) Add(g Faults) {
	f.Lost += g.Lost
	f.Duplicate += g.Duplicate
	f.Disorder += g.Disorder
}

// MaxNotes is how many faults are put into words.
const MaxNotes = 10

// Findings collects faults, and the first of them in words. It belongs to one
// goroutine.
type Findings struct {
	Faults
	Notes []string
}

func (f *Findings) note(count *int64, format string, args ...any) {
	*count++
	if len(f.Notes) < MaxNotes {
		f.Notes = append(f.Notes, fmt.Sprintf(format, args...))
	}
}

// Err is nil if nothing was found.
func (f *Findings) Err() error {
	if !f.Any() {
		return nil
	}
	return fmt.Errorf("%s:\n  %s", f.Faults, strings.Join(f.Notes, "\n  "))
}
