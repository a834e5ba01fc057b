package load

import (
	"math/rand/v2"
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
