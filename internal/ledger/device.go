package ledger

import "hash/maphash"

// Device is what one device got, through all its connections. It belongs to one
// goroutine.
type Device struct {
	Name  string
	convs map[string]*seen
}

// seen is what a device has of a conversation.
type seen struct {
	before uint64   // the seq before the first one it got
	hashes []uint64 // of what it got, from before+1 on, without a hole
	onThis uint64   // the seq that came last on this connection; 0: none
	floor  uint64   // everything up to here was acknowledged to a server that has not died since
}

var seed = maphash.MakeSeed()

// NewDevice makes a device that has nothing yet.
func NewDevice(name string) *Device { return &Device{Name: name, convs: map[string]*seen{}} }

// Known says that the device is to get what comes after seq. Without it what
// comes first is taken for the beginning.
func (d *Device) Known(conv string, seq uint64) { d.convs[conv] = &seen{before: seq} }

// Connected begins a connection. inPeace tells that the one before ended with a
// DISCONNECT after everything it got was acknowledged, and that the server has
// not died since: nothing may come again.
func (d *Device) Connected(inPeace bool) {
	for _, s := range d.convs {
		if inPeace {
			s.floor = max(s.floor, s.onThis)
		} else {
			s.floor = 0 // a server that died may have forgotten what was acknowledged
		}
		s.onThis = 0
	}
}

func (s *seen) last() uint64 { return s.before + uint64(len(s.hashes)) }

// Got notes a delivery.
func (d *Device) Got(conv string, seq uint64, text string, f *Findings) {
	s := d.convs[conv]
	if s == nil {
		s = &seen{before: seq - 1}
		d.convs[conv] = s
	}
	h := maphash.String(seed, text)
	switch {
	case s.onThis != 0 && seq <= s.onThis:
		f.note(&f.Duplicate, "%s: %s seq %d came after %d on one connection", d.Name, conv, seq, s.onThis)
	case s.onThis != 0 && seq != s.onThis+1:
		f.note(&f.Lost, "%s: %s seq %d came after %d on one connection", d.Name, conv, seq, s.onThis)
	case seq <= s.before:
		f.note(&f.Duplicate, "%s: %s seq %d is from before its time, which began after %d", d.Name, conv, seq, s.before)
	case seq <= s.floor:
		f.note(&f.Duplicate, "%s: %s seq %d came again after its acknowledgement", d.Name, conv, seq)
	case seq > s.last()+1:
		f.note(&f.Lost, "%s: %s seq %d came after %d", d.Name, conv, seq, s.last())
	}
	s.onThis = max(s.onThis, seq)
	switch {
	case seq > s.before && seq <= s.last():
		if s.hashes[seq-s.before-1] != h {
			f.note(&f.Disorder, "%s: %s seq %d came again as something else, %.60q", d.Name, conv, seq, text)
		}
	case seq > s.last():
		for s.last()+1 < seq { // noted above
			s.hashes = append(s.hashes, 0)
		}
		s.hashes = append(s.hashes, h)
	}
}

// Last is the seq up to which the device has everything; 0: it has nothing.
func (d *Device) Last(conv string) uint64 {
	if s := d.convs[conv]; s != nil {
		return s.last()
	}
	return 0
}

// Check holds what the device has of a conversation against its history: it must
// have everything to the end, and each seq must be the same at both.
func (d *Device) Check(conv string, history []Entry, f *Findings) {
	s := d.convs[conv]
	if len(history) == 0 {
		return
	}
	head := history[len(history)-1].Seq
	if s == nil || s.last() < head {
		f.note(&f.Lost, "%s: it has %s up to seq %d, of %d", d.Name, conv, d.Last(conv), head)
	}
	if s == nil {
		return
	}
	for _, e := range history {
		if e.Seq > s.before && e.Seq <= s.last() {
			if h := s.hashes[e.Seq-s.before-1]; h != 0 && !e.Other && h != maphash.String(seed, e.Text) {
				f.note(&f.Disorder, "%s: %s seq %d is %.60q in the history and something else at the device", d.Name, conv, e.Seq, e.Text)
			}
		}
	}
}
