package load

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Connect opens and closes connections, in a closed loop of Workers.
type Connect struct {
	Workers     int
	For         time.Duration
	Connections int64 // ends it too; 0: For does
	Fresh       bool  // each is a device that was never seen, instead of one of few that return
}

// connectDevices is how many devices return in turns, where they are not fresh.
const connectDevices = 100

// connectUsers is how many accounts the devices belong to: no server allows one
// account any number of them.
const connectUsers = 10

// String names the scenario with its parameters.
func (c Connect) String() string {
	kind := "known"
	if c.Fresh {
		kind = "new"
	}
	return fmt.Sprintf("connect, %d at a time, %s devices, clean session", c.Workers, kind)
}

// Prepare makes the accounts.
func (c Connect) Prepare(ctx context.Context, t *Target, p *Progress) error {
	users := t.users("c", connectUsers)
	if err := t.ensure(ctx, p, users...); err != nil {
		return err
	}
	return t.tokens(ctx, p, users)
}

// users are the first n throwaway users of a kind.
func (t *Target) users(kind string, n int) (us []string) {
	for i := range n {
		us = append(us, t.user(kind, i))
	}
	return us
}

// Run runs it against t; its messages are connections.
func (c Connect) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	run := newRun()
	var l latencies
	var next, done atomic.Int64
	p.begin("connecting", int(c.Connections))
	p.show(&l)
	for i := range connectDevices { // known means known
		if c.Fresh {
			break
		}
		if err := c.one(ctx, t, int64(i), run, nil); err != nil {
			return r, err
		}
	}
	before, begin := t.usage(), now()
	end := ctx
	if c.For > 0 {
		var cancel context.CancelFunc
		end, cancel = context.WithTimeout(ctx, c.For)
		defer cancel()
	}
	err = parallel(ctx, c.Workers, c.Workers, func(ctx context.Context, _ int) error {
		for end.Err() == nil {
			n := next.Add(1)
			if c.Connections > 0 && n > c.Connections {
				return nil
			}
			if err := c.one(ctx, t, n, run, &l); err != nil {
				return err
			}
			done.Add(1)
			p.step()
		}
		return nil
	})
	took, after := now()-begin, t.usage()
	r.over(took.Seconds(), done.Load(), connections)
	r.CPU = perMessage(after.cpu-before.cpu, done.Load())
	r.Connack = l.summary()
	if r.Interrupted = ctx.Err() != nil; r.Interrupted {
		err = nil
	}
	return r, err
}

func (c Connect) one(ctx context.Context, t *Target, n int64, run uint32, l *latencies) error {
	device := fmt.Sprintf("c%d", n%connectDevices)
	if c.Fresh {
		device = fmt.Sprintf("c%x-%d", run, n)
	}
	login, err := t.asToken(ctx, t.user("c", int(n%connectUsers)), device, true)
	if err != nil {
		return err
	}
	login.small = true
	begin := now()
	cn, err := t.dial(ctx, login)
	if err != nil {
		return err
	}
	if l != nil {
		l.add(int(n), now()-begin)
	}
	cn.farewell()
	return nil
}
