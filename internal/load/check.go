package load

import (
	"slices"

	"github.com/parley-im/parley/internal/ledger"
)

// checker holds what one receiver got from one sender, numbered from 1, against
// what it should have got. It belongs to one goroutine. A hole that is filled
// later counts as out of order, one that never is as lost, and a number that was
// there already as a duplicate.
type checker struct {
	last                int64      // the highest number seen
	holes               [][2]int64 // first and last number of each hole, ascending
	got                 int64      // different numbers
	duplicate, disorder int64
}

// see notes that n arrived.
func (c *checker) see(n int64) {
	switch {
	case n == c.last+1:
		c.last = n
		c.got++
	case n > c.last:
		c.holes = append(c.holes, [2]int64{c.last + 1, n - 1})
		c.last = n
		c.got++
	case c.fill(n):
		c.disorder++
		c.got++
	default:
		c.duplicate++
	}
}

// fill takes n out of its hole; false if it is in none.
func (c *checker) fill(n int64) bool {
	i, _ := slices.BinarySearchFunc(c.holes, n, func(h [2]int64, n int64) int {
		if h[1] < n {
			return -1
		}
		return 1
	})
	if i == len(c.holes) || n < c.holes[i][0] {
		return false
	}
	h := c.holes[i]
	var rest [][2]int64
	if h[0] < n {
		rest = append(rest, [2]int64{h[0], n - 1})
	}
	if n < h[1] {
		rest = append(rest, [2]int64{n + 1, h[1]})
	}
	c.holes = slices.Replace(c.holes, i, i+1, rest...)
	return true
}

// Faults is what went wrong with messages.
type Faults = ledger.Faults

// faults are those of a receiver that should have got 1 to sent.
func (c *checker) faults(sent int64) Faults {
	return Faults{Lost: sent - c.got, Duplicate: c.duplicate, Disorder: c.disorder}
}
