package load

import (
	"context"
	"errors"
	"fmt"
)

// Idle holds connections open that do nothing, and weighs the server.
type Idle struct {
	Connections int
	PerUser     int // devices of one user; 0: 500
}

func (d Idle) perUser() int {
	if d.PerUser == 0 {
		return 500
	}
	return d.PerUser
}

func (d Idle) users(t *Target) []string {
	return t.users("i", (d.Connections+d.perUser()-1)/d.perUser())
}

// String names the scenario with its parameters.
func (d Idle) String() string { return fmt.Sprintf("%d idle connections", d.Connections) }

// Prepare makes the accounts and logs them in. A server of ours is restarted then:
// what hashing passwords needs of memory is not to be weighed.
func (d Idle) Prepare(ctx context.Context, t *Target, p *Progress) error {
	if err := t.ensure(ctx, p, d.users(t)...); err != nil {
		return err
	}
	if err := t.tokens(ctx, p, d.users(t)); err != nil || !t.Ours() {
		return err
	}
	p.begin("restarting", 0)
	return t.Restart(ctx)
}

// Run runs it against t; its messages are connections.
func (d Idle) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	users := d.users(t)
	conns := make([]*conn, d.Connections)
	one := func(ctx context.Context, i int) error {
		user := users[i/d.perUser()]
		l, err := t.asToken(ctx, user, fmt.Sprintf("idle%d", i%d.perUser()), true)
		l.small = true
		if err == nil {
			conns[i], err = t.receive(ctx, l, fmt.Sprintf("bench/%s/%d", user, i))
		}
		p.step()
		return err
	}
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.close()
			}
		}
	}()
	p.begin("connecting", d.Connections)
	// The first of each user makes the server read what it keeps of that user.
	if err := parallel(ctx, 2, len(users), func(ctx context.Context, i int) error { return one(ctx, i*d.perUser()) }); err != nil {
		return r, err
	}
	weight, err := t.memory(ctx)
	if err != nil {
		return r, err
	}
	before, begin := t.usage(), now()
	err = parallel(ctx, 16, d.Connections, func(ctx context.Context, i int) error {
		if i%d.perUser() == 0 {
			return nil
		}
		return one(ctx, i)
	})
	if err != nil {
		return r, err
	}
	n := int64(d.Connections - len(users))
	if n == 0 {
		return r, errors.New("all connections are the first of their user: nothing to weigh; ask for more of them")
	}
	took, after := now()-begin, t.usage()
	heavier, err := t.memory(ctx)
	r.over(took.Seconds(), n, connections)
	r.CPU = perMessage(after.cpu-before.cpu, n)
	r.KB = float64(heavier-weight) / 1024 / float64(n)
	return r, err
}
