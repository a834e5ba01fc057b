package load

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestTheCheckerNotices(t *testing.T) {
	for why, tt := range map[string]struct {
		sent int64
		seen []int64
		want Faults
	}{
		"all is well":                        {3, []int64{1, 2, 3}, Faults{}},
		"nothing came":                       {2, nil, Faults{Lost: 2}},
		"the last is missing":                {3, []int64{1, 2}, Faults{Lost: 1}},
		"the first is missing":               {3, []int64{2, 3}, Faults{Lost: 1}},
		"some in the middle are missing":     {6, []int64{1, 4, 6}, Faults{Lost: 3}},
		"one came twice":                     {2, []int64{1, 1, 2}, Faults{Duplicate: 1}},
		"one came again later":               {3, []int64{1, 2, 3, 1}, Faults{Duplicate: 1}},
		"two changed places":                 {3, []int64{1, 3, 2}, Faults{Disorder: 1}},
		"one came late and then once more":   {4, []int64{1, 3, 4, 2, 2}, Faults{Disorder: 1, Duplicate: 1}},
		"a hole is filled from the middle":   {6, []int64{1, 6, 3, 4, 2, 5}, Faults{Disorder: 4}},
		"one hole is filled, one stays":      {6, []int64{2, 6, 4, 5, 3}, Faults{Disorder: 3, Lost: 1}},
		"everything came in the wrong order": {4, []int64{4, 3, 2, 1}, Faults{Disorder: 3}},
	} {
		var c checker
		for _, n := range tt.seen {
			c.see(n)
		}
		if got := c.faults(tt.sent); got != tt.want {
			t.Errorf("%s: %v, want %v", why, got, tt.want)
		}
	}
}

// TestCheckerAgainstASet holds the checker against a simple one that remembers all.
func TestCheckerAgainstASet(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		sent := int64(1 + rng.IntN(30))
		var c checker
		seen, highest, want := map[int64]bool{}, int64(0), Faults{}
		for range rng.IntN(60) {
			n := 1 + rng.Int64N(sent)
			switch {
			case seen[n]:
				want.Duplicate++
			case n < highest:
				want.Disorder++
			}
			seen[n], highest = true, max(highest, n)
			c.see(n)
		}
		want.Lost = sent - int64(len(seen))
		if got := c.faults(sent); got != want {
			t.Fatalf("of %d: %v, want %v", sent, got, want)
		}
	}
}

func TestTheLedgerNotices(t *testing.T) {
	const run = 77
	text := func(run uint32, n int64) string {
		b := newPayload(40)
		header{run: run, n: n, at: 1}.put(b)
		return string(b)
	}
	base := func() (*ledger, []entry) {
		l := &ledger{run: run, sent: 4, seqs: []uint64{1, 2, 3}} // the fourth was not acknowledged
		return l, []entry{{1, text(run, 1)}, {2, text(run, 2)}, {3, text(run, 3)}}
	}
	for why, tt := range map[string]struct {
		spoil func(l *ledger, h []entry) []entry
		want  Faults
	}{
		"all is well":                            {func(_ *ledger, h []entry) []entry { return h }, Faults{}},
		"what was not acknowledged may be there": {func(_ *ledger, h []entry) []entry { return append(h, entry{4, text(run, 4)}) }, Faults{}},
		"a lost message":                         {func(_ *ledger, h []entry) []entry { return h[:2] }, Faults{Lost: 1}},
		"a hole":                                 {func(_ *ledger, h []entry) []entry { return append(h, entry{5, text(run, 4)}) }, Faults{Lost: 1}},
		"a seq twice":                            {func(_ *ledger, h []entry) []entry { return append(h, entry{3, text(run, 4)}) }, Faults{Disorder: 1}},
		"a duplicate":                            {func(_ *ledger, h []entry) []entry { return append(h, entry{4, text(run, 1)}) }, Faults{Duplicate: 1}},
		"a wrong seq":                            {func(l *ledger, h []entry) []entry { l.seqs[1] = 9; return h }, Faults{Disorder: 1}},
		"a message never sent":                   {func(_ *ledger, h []entry) []entry { return append(h, entry{4, text(run, 5)}) }, Faults{Disorder: 1}},
		"a message of others":                    {func(_ *ledger, h []entry) []entry { return append(h, entry{4, text(78, 4)}) }, Faults{Disorder: 1}},
		"something else":                         {func(_ *ledger, h []entry) []entry { return append(h, entry{4, "hello"}) }, Faults{Disorder: 1}},
		"two that changed places": {func(l *ledger, h []entry) []entry {
			h[1].Text, h[2].Text = h[2].Text, h[1].Text
			l.seqs = []uint64{1, 3, 2}
			return h
		}, Faults{Disorder: 1}},
	} {
		l, h := base()
		var f findings
		l.check("dm/x", tt.spoil(l, h), &f)
		if f.Faults != tt.want || (len(f.notes) > 0) != f.Any() {
			t.Errorf("%s: %v %q, want %v", why, f.Faults, f.notes, tt.want)
		}
	}
}

func TestTheFollowerNotices(t *testing.T) {
	const again = 0 // a reconnect
	for why, tt := range map[string]struct {
		seqs []uint64
		want Faults
	}{
		"all is well":                        {[]uint64{1, 2, 3}, Faults{}},
		"what comes again after a reconnect": {[]uint64{1, 2, 3, again, 2, 3, 4}, Faults{}},
		"one twice on a connection":          {[]uint64{1, 2, 2}, Faults{Duplicate: 1}},
		"a hole":                             {[]uint64{1, 3}, Faults{Lost: 1}},
		"a hole after a reconnect":           {[]uint64{1, again, 3}, Faults{Lost: 1}},
	} {
		var w follower
		var f findings
		for _, s := range tt.seqs {
			if s == again {
				w.reconnected()
				continue
			}
			w.see("dm/x", s, &f)
		}
		if f.Faults != tt.want {
			t.Errorf("%s: %v, want %v", why, f.Faults, tt.want)
		}
	}
}

func TestOnlyTheFirstFaultsArePutIntoWords(t *testing.T) {
	var f findings
	for i := range 3 * maxNotes {
		f.note(&f.Lost, "%d", i)
	}
	if f.Lost != 3*maxNotes || len(f.notes) != maxNotes || !slices.Contains(f.notes, fmt.Sprint(maxNotes-1)) {
		t.Fatalf("%v %q", f.Faults, f.notes)
	}
}
