package load

import (
	"fmt"
)

// ledger is what one writer knows of its messages: they are numbered from 1, sent
// under ids, and seqs[n-1] is where the server said that message n stands.
type ledger struct {
	run  uint32
	sent int64
	seqs []uint64
}

// entry is a message of the history.
type entry struct {
	Seq  uint64 `json:"seq"`
	Text string `json:"text"`
}

// findings collects faults, and the first of them in words.
type findings struct {
	Faults
	notes []string
}

// maxNotes is how many faults are put into words.
const maxNotes = 10

func (f *findings) note(count *int64, format string, args ...any) {
	*count++
	if len(f.notes) < maxNotes {
		f.notes = append(f.notes, fmt.Sprintf(format, args...))
	}
}

// check holds a conversation's history, from its first entry to its last, against
// the ledger of its only writer: dense from 1, every acknowledged message there
// once, at its seq, in the order in which it was sent, and nothing that was never
// sent.
func (l *ledger) check(conv string, history []entry, f *findings) {
	at := map[int64]uint64{}
	next, last := uint64(1), int64(0)
	for _, e := range history {
		if e.Seq > next {
			f.note(&f.Lost, "%s: the history has a hole before seq %d", conv, e.Seq)
		} else if e.Seq < next {
			f.note(&f.Disorder, "%s: the history has seq %d where %d belongs", conv, e.Seq, next)
		}
		next = e.Seq + 1
		h, ok := readHeader([]byte(e.Text))
		switch {
		case !ok || h.run != l.run || h.n < 1 || h.n > l.sent:
			f.note(&f.Disorder, "%s: seq %d was never sent", conv, e.Seq)
		case at[h.n] != 0:
			f.note(&f.Duplicate, "%s: message %d is there twice, at seq %d and %d", conv, h.n, at[h.n], e.Seq)
		default:
			if h.n < last {
				f.note(&f.Disorder, "%s: message %d stands after %d, at seq %d", conv, h.n, last, e.Seq)
			}
			at[h.n], last = e.Seq, h.n
		}
	}
	for i, seq := range l.seqs {
		switch got := at[int64(i+1)]; {
		case got == 0:
			f.note(&f.Lost, "%s: message %d was acknowledged at seq %d and is not there", conv, i+1, seq)
		case got != seq:
			f.note(&f.Disorder, "%s: message %d was acknowledged at seq %d and stands at %d", conv, i+1, seq, got)
		}
	}
}

// follower is what a device has applied of a conversation, through reconnects.
type follower struct {
	applied uint64 // the highest seq, everything below included
	onThis  uint64 // the seq that came last on this connection
}

// reconnected says that what was not acknowledged may come again.
func (w *follower) reconnected() { w.onThis = 0 }

// see notes a delivery: on one connection each seq comes once and in order, and
// across connections there is no hole.
func (w *follower) see(conv string, seq uint64, f *findings) {
	switch {
	case w.onThis != 0 && seq <= w.onThis:
		f.note(&f.Duplicate, "%s: seq %d came after %d on one connection", conv, seq, w.onThis)
	case seq > w.applied+1:
		f.note(&f.Lost, "%s: seq %d came after %d", conv, seq, w.applied)
	}
	w.onThis = max(w.onThis, seq)
	w.applied = max(w.applied, seq)
}
