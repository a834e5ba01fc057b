package pushgw

import (
	"context"
	"hash/maphash"
	"slices"

	"github.com/parley-im/parley/im"
)

// turns has the rows of one user changed by one at a time: what is decided in
// memory first is also written first, so that the next run reads what this one
// knows. Users who share a slot wait for each other, to no harm.
type turns [64]chan struct{}

func newTurns() *turns {
	var t turns
	for i := range t {
		t[i] = make(chan struct{}, 1)
	}
	return &t
}

// take waits for the turn of all users and returns what gives it back. It fails
// with ctx alone.
func (t *turns) take(ctx context.Context, users ...im.UserID) (end func(), err error) {
	var of []uint64
	for _, u := range users {
		of = append(of, maphash.String(expandSeed, string(u))%uint64(len(t)))
	}
	slices.Sort(of) // two who want the same two do not hold one each
	of = slices.Compact(of)
	end = func() {
		for _, i := range of {
			<-t[i]
		}
	}
	for n, i := range of {
		select {
		case t[i] <- struct{}{}:
		case <-ctx.Done():
			of = of[:n]
			end()
			return nil, ctx.Err()
		}
	}
	return end, nil
}

// always takes the turn of one user for what nobody waits for.
func (t *turns) always(u im.UserID) (end func()) {
	end, _ = t.take(context.Background(), u)
	return end
}
