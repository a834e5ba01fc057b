package load

import (
	"context"
	"fmt"
)

// Bench is one scenario done to several targets in turns, so that the moods of a
// machine meet all of them.
type Bench struct {
	Scenario Scenario
	Targets  []*Target
	Rounds   int  // of each target; 0: 1
	WarmUp   bool // one more round of each comes first and is not counted

	// Progress is told what is being done; nil: nobody is. Turn, if not nil, is
	// called before each run with its target and round; round 0 warms up.
	Progress *Progress
	Turn     func(t *Target, round int)
}

// Run runs it. When ctx ends or a target fails it returns what it has, with the
// error.
func (b Bench) Run(ctx context.Context) (rs []Result, err error) {
	first := 1
	if b.WarmUp {
		first = 0
	}
	for round := first; round <= max(b.Rounds, 1); round++ {
		for _, t := range b.Targets {
			if b.Turn != nil {
				b.Turn(t, round)
			}
			if err := b.Scenario.Prepare(ctx, t, b.Progress); err != nil {
				return rs, b.failed(ctx, t, err)
			}
			if err := t.grow(ctx, b.Progress); err != nil {
				return rs, b.failed(ctx, t, err)
			}
			r, err := b.Scenario.Run(ctx, t, b.Progress)
			if err != nil {
				return rs, b.failed(ctx, t, err)
			}
			r.Scenario, r.Target, r.Round = b.Scenario.String(), t.Name, round
			if round > 0 {
				rs = append(rs, r)
			}
			if ctx.Err() != nil {
				return rs, context.Cause(ctx)
			}
		}
	}
	return rs, nil
}

func (b Bench) failed(ctx context.Context, t *Target, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w", t.Name, err)
}
