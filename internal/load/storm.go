package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Storm lets Devices with sessions return at once, each with one message waiting,
// as after the restart of a server or of a network.
type Storm struct {
	Devices int
	PerUser int // devices of one user, who all get the same message; 0: 1
	Payload int
}

func (s Storm) perUser() int { return max(s.PerUser, 1) }

func (s Storm) users() int { return (s.Devices + s.perUser() - 1) / s.perUser() }

// String names the scenario with its parameters.
func (s Storm) String() string {
	return fmt.Sprintf("storm of %d devices of %d users, one message waiting", s.Devices, s.users())
}

// Prepare makes the accounts, friendships and devices.
func (s Storm) Prepare(ctx context.Context, t *Target, p *Progress) error {
	users := t.users("d", s.users())
	from := t.user("storm", 0)
	var friends [][2]string
	for _, u := range users {
		friends = append(friends, [2]string{from, u})
	}
	if err := t.ensure(ctx, p, append(users, from)...); err != nil {
		return err
	}
	if err := t.befriend(ctx, p, friends); err != nil {
		return err
	}
	p.begin("devices", s.Devices)
	return parallel(ctx, 16, s.Devices, func(ctx context.Context, i int) error {
		defer p.step()
		l, user, err := s.login(ctx, t, i)
		if err != nil {
			return err
		}
		c, err := t.receive(ctx, l, t.dm(user))
		if err == nil {
			c.farewell()
		}
		return err
	})
}

// login is of a device and its user.
func (s Storm) login(ctx context.Context, t *Target, i int) (login, string, error) {
	user := t.user("d", i/s.perUser())
	l, err := t.asToken(ctx, user, fmt.Sprintf("storm%d", i%s.perUser()), false)
	l.small = true
	return l, user, err
}

// Run runs it against t; its messages are connections.
func (s Storm) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	run := newRun()
	if err := t.tokens(ctx, p, t.users("d", s.users())); err != nil {
		return r, err
	}
	if err := s.send(ctx, t, run, p); err != nil {
		return r, err
	}
	logins := make([]login, s.Devices)
	for i := range logins {
		if logins[i], _, err = s.login(ctx, t, i); err != nil {
			return r, err
		}
	}
	var connack, first latencies
	var mu sync.Mutex
	var connected atomic.Int64
	all, everybody := context.WithCancel(ctx) // ends when every device has what it waits for
	defer everybody()
	var waiting atomic.Int64
	waiting.Store(int64(s.Devices))
	p.begin("returning", s.Devices)
	p.show(&first)
	before, begin := t.usage(), now()
	var took time.Duration
	var cpu time.Duration
	err = parallel(ctx, s.Devices, s.Devices, func(ctx context.Context, i int) error {
		arrived := sync.OnceFunc(func() {
			if waiting.Add(-1) == 0 {
				took, cpu = now()-begin, t.usage().cpu-before.cpu
				everybody()
			}
		})
		defer arrived()
		c, err := t.dial(ctx, logins[i])
		if err != nil {
			return err
		}
		defer c.farewell()
		defer context.AfterFunc(ctx, c.close)()
		connack.add(i, now()-begin)
		connected.Add(1)
		p.step()
		check, err := s.listen(all, c, run, func() { first.add(i, now()-begin); arrived() })
		mu.Lock()
		defer mu.Unlock()
		r.Add(check.faults(1))
		return err
	})
	r.over(took.Seconds(), connected.Load(), connections)
	r.CPU = perMessage(cpu, connected.Load())
	r.Connack, r.First = connack.summary(), first.summary()
	if r.Interrupted = ctx.Err() != nil; r.Interrupted {
		r.Faults, err = Faults{}, nil // what was not waited for is not lost
	}
	return r, err
}

// listen reads until every device has its message, so that a second copy is
// noticed, or until nothing comes.
func (s Storm) listen(all context.Context, c *conn, run uint32, first func()) (check checker, err error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(dialTimeout))
	// From then on whatever is under way may still come in.
	defer context.AfterFunc(all, func() { _ = c.nc.SetReadDeadline(time.Now().Add(look)) })()
	for {
		d, err := c.delivery()
		if err == nil {
			err = c.flush()
		}
		if isTimeout(err) {
			return check, nil
		}
		if err != nil {
			return check, err
		}
		if h, ok := readHeader(d.payload); ok && h.run == run {
			if check.see(1); check.got == 1 {
				first()
			}
		}
	}
}

// send sends each user one message while all devices are away.
func (s Storm) send(ctx context.Context, t *Target, run uint32, p *Progress) error {
	l, err := t.asToken(ctx, t.user("storm", 0), "phone", true)
	if err != nil {
		return err
	}
	c, err := t.dial(ctx, l)
	if err != nil {
		return err
	}
	defer c.leave()
	defer context.AfterFunc(ctx, c.close)()
	p.begin("sending", s.users())
	payload := newPayload(s.Payload)
	for i := range s.users() {
		header{run: run, n: 1, at: now()}.put(payload)
		c.publish(t.dm(t.user("d", i)), uint16(i%65535+1), payload)
		if err := c.flush(); err != nil {
			return err
		}
		for ok := false; !ok; {
			if ok, err = c.acknowledged(); err != nil {
				return errors.Join(ctx.Err(), err)
			}
		}
		p.step()
	}
	return nil
}
