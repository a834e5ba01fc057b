package ledger

import (
	"fmt"
	"strings"
	"testing"
)

// TestTheLedgerNotices is the control: each promise is broken once, and nothing
// is found where none is.
func TestTheLedgerNotices(t *testing.T) {
	base := func() (*Ledger, []Entry) {
		l := New()
		var h []Entry
		for i := range 3 {
			text := fmt.Sprint("m", i+1)
			l.Sending("c", text, true)
			l.Acked("c", text, uint64(i+1))
			h = append(h, Entry{Seq: uint64(i + 1), Text: text})
		}
		l.Sending("c", "m4", true) // not acknowledged
		l.Sending("c", "again", false)
		return l, h
	}
	for why, tt := range map[string]struct {
		spoil func(l *Ledger, h []Entry) []Entry
		want  Faults
	}{
		"all is well":                            {func(_ *Ledger, h []Entry) []Entry { return h }, Faults{}},
		"what was not acknowledged may be there": {func(_ *Ledger, h []Entry) []Entry { return append(h, Entry{Seq: 4, Text: "m4"}) }, Faults{}},
		"what has no id may be there twice": {func(_ *Ledger, h []Entry) []Entry {
			return append(h, Entry{Seq: 4, Text: "again"}, Entry{Seq: 5, Text: "again"})
		}, Faults{}},
		"two sent at once may stand either way": {func(l *Ledger, h []Entry) []Entry {
			l.Sending("c", "x", true)
			l.Sending("c", "y", true)
			l.Acked("c", "x", 5)
			l.Acked("c", "y", 4)
			return append(h, Entry{Seq: 4, Text: "y"}, Entry{Seq: 5, Text: "x"})
		}, Faults{}},
		"an event":             {func(_ *Ledger, h []Entry) []Entry { return append(h, Entry{Seq: 4, Other: true}) }, Faults{}},
		"a lost message":       {func(_ *Ledger, h []Entry) []Entry { return h[:2] }, Faults{Lost: 1}},
		"a hole":               {func(_ *Ledger, h []Entry) []Entry { return append(h, Entry{Seq: 5, Text: "m4"}) }, Faults{Lost: 1}},
		"a seq twice":          {func(_ *Ledger, h []Entry) []Entry { return append(h, Entry{Seq: 3, Text: "m4"}) }, Faults{Disorder: 1}},
		"a duplicate":          {func(_ *Ledger, h []Entry) []Entry { return append(h, Entry{Seq: 4, Text: "m1"}) }, Faults{Duplicate: 1}},
		"a message never sent": {func(_ *Ledger, h []Entry) []Entry { return append(h, Entry{Seq: 4, Text: "m9"}) }, Faults{Disorder: 1}},
		"no answer":            {func(l *Ledger, h []Entry) []Entry { l.Unanswered("c", "m4"); return h }, Faults{Lost: 1}},
		"a wrong seq": {func(l *Ledger, h []Entry) []Entry {
			l.Sending("c", "x", true)
			l.Acked("c", "x", 9)
			return append(h, Entry{Seq: 4, Text: "x"})
		}, Faults{Disorder: 1}},
		"a break of real time, told by seq": {func(l *Ledger, h []Entry) []Entry {
			for i, seq := range []uint64{5, 4} {
				l.Sending("c", fmt.Sprint("x", i), true)
				l.Acked("c", fmt.Sprint("x", i), seq)
			}
			return append(h, Entry{Seq: 4, Text: "x1"}, Entry{Seq: 5, Text: "x0"})
		}, Faults{Disorder: 1}},
		"a break of real time where no seq is told, with others between": {func(l *Ledger, h []Entry) []Entry {
			for i := range 3 {
				l.Sending("c", fmt.Sprint("x", i), true)
				if i != 1 {
					l.Acked("c", fmt.Sprint("x", i), 0)
				}
			}
			return append(h, Entry{Seq: 4, Text: "x2"}, Entry{Seq: 5, Text: "x1"}, Entry{Seq: 6, Text: "x0"})
		}, Faults{Disorder: 1}},
	} {
		l, h := base()
		var f Findings
		l.Check("c", tt.spoil(l, h), &f)
		if f.Faults != tt.want || (len(f.Notes) > 0) != f.Any() || (f.Err() != nil) != f.Any() {
			t.Errorf("%s: %v %q, want %v", why, f.Faults, f.Notes, tt.want)
		}
	}
}

func TestWritersOutOfOrderAreNoticed(t *testing.T) {
	number := func(text string) (w string, n int64) {
		_, _ = fmt.Sscanf(text, "%1s%d", &w, &n)
		return w, n
	}
	for text, want := range map[string]int64{"a1 b1 a2 b2": 0, "a1 a3 a2 b1": 1, "b2 a1 b1 a2": 1} {
		var h []Entry
		for i, s := range strings.Fields(text) {
			h = append(h, Entry{Seq: uint64(i + 1), Text: s})
		}
		var f Findings
		if CheckWriters("c", h, number, &f); f.Faults != (Faults{Disorder: want}) {
			t.Errorf("%s: %v", text, f.Faults)
		}
	}
}

func TestWhatWasPromisedBefore(t *testing.T) {
	l := New()
	l.Sending("c", "m1", true)
	l.Acked("c", "m1", 1)
	now := l.Now()
	l.Sending("c", "m2", true)
	l.Acked("c", "m2", 2)
	then := l.Before(now)
	one, two := Entry{Seq: 1, Text: "m1"}, Entry{Seq: 2, Text: "m2"}
	for _, tt := range []struct {
		l       *Ledger
		history []Entry
		lost    int64
	}{{l, []Entry{one, two}, 0}, {l, []Entry{one}, 1}, {then, []Entry{one}, 0}, {then, []Entry{one, two}, 0}, {then, nil, 1}} {
		var f Findings
		if tt.l.Check("c", tt.history, &f); f.Faults != (Faults{Lost: tt.lost}) {
			t.Errorf("%v: %v", tt.history, f)
		}
	}
	if text, seq := then.Any("c"); text != "m1" || seq != 1 || then.Count() != 1 || l.Count() != 2 {
		t.Errorf("%q %d, %d, %d", text, seq, then.Count(), l.Count())
	}
}

func TestTheDeviceNotices(t *testing.T) {
	type got struct {
		seq  uint64
		text string
	}
	broken, peace := got{text: "broken"}, got{text: "peace"} // reconnects
	history := []Entry{{Seq: 1, Text: "1"}, {Seq: 2, Text: "2"}, {Seq: 3, Text: "3"}, {Seq: 4, Other: true}}
	for why, tt := range map[string]struct {
		seqs []got
		want Faults
	}{
		"all is well":                         {[]got{{1, "1"}, {2, "2"}, {3, "3"}, {4, "joined"}}, Faults{}},
		"again after a reconnect":             {[]got{{1, "1"}, {2, "2"}, broken, {2, "2"}, {3, "3"}, {4, ""}}, Faults{}},
		"going on after a reconnect":          {[]got{{1, "1"}, {2, "2"}, peace, {3, "3"}, {4, ""}}, Faults{}},
		"again after it left in peace":        {[]got{{1, "1"}, {2, "2"}, peace, {2, "2"}, {3, "3"}, {4, ""}}, Faults{Duplicate: 1}},
		"one twice on a connection":           {[]got{{1, "1"}, {2, "2"}, {2, "2"}, {3, "3"}, {4, ""}}, Faults{Duplicate: 1}},
		"a hole":                              {[]got{{1, "1"}, {3, "3"}, {4, ""}}, Faults{Lost: 1}},
		"a hole after a reconnect":            {[]got{{1, "1"}, broken, {3, "3"}, {4, ""}}, Faults{Lost: 1}},
		"a hole in what comes again":          {[]got{{1, "1"}, {2, "2"}, {3, "3"}, broken, {1, "1"}, {3, "3"}, {4, ""}}, Faults{Lost: 1}},
		"another message at a seq":            {[]got{{1, "1"}, {2, "x"}, {3, "3"}, {4, ""}}, Faults{Disorder: 1}},
		"another message when it comes again": {[]got{{1, "1"}, {2, "2"}, broken, {2, "x"}, {3, "3"}, {4, ""}}, Faults{Disorder: 1}},
		"the end missing":                     {[]got{{1, "1"}, {2, "2"}, {3, "3"}}, Faults{Lost: 1}},
		"the beginning missing":               {[]got{{2, "2"}, {3, "3"}, {4, ""}}, Faults{Lost: 1}},
		"nothing at all":                      {nil, Faults{Lost: 1}},
	} {
		d := NewDevice("phone")
		d.Known("c", 0)
		var f Findings
		for _, g := range tt.seqs {
			switch g {
			case broken, peace:
				d.Connected(g == peace)
			default:
				d.Got("c", g.seq, g.text, &f)
			}
		}
		if d.Check("c", history, &f); f.Faults != tt.want {
			t.Errorf("%s: %v %q, want %v", why, f.Faults, f.Notes, tt.want)
		}
	}
	d, f := NewDevice("late"), Findings{}
	d.Known("c", 2)
	if d.Got("c", 2, "2", &f); f.Duplicate != 1 {
		t.Errorf("an entry from before its time: %v", f)
	}
}

func TestOnlyTheFirstFaultsArePutIntoWords(t *testing.T) {
	var f Findings
	for i := range 3 * MaxNotes {
		f.note(&f.Lost, "%d", i)
	}
	if f.Lost != 3*MaxNotes || len(f.Notes) != MaxNotes {
		t.Fatalf("%v %q", f.Faults, f.Notes)
	}
}
