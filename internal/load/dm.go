package load

import (
	"context"
	"fmt"
)

// Scenario is something that can be done to a target. Prepare makes the accounts
// and is not measured; it may be called before each Run. Run returns what it
// measured also when ctx ended it early, marked as interrupted; its errors are
// those that leave nothing to report.
type Scenario interface {
	String() string
	Prepare(ctx context.Context, t *Target, p *Progress) error
	Run(ctx context.Context, t *Target, p *Progress) (Result, error)
}

// DM is direct messages between pairs of users.
type DM struct {
	Pairs int
	Flow
}

// String names the scenario with its parameters.
func (d DM) String() string { return fmt.Sprintf("dm, %d pairs, %s", d.Pairs, d.Flow) }

// pairUsers names the sender and the receiver of a pair.
func (t *Target) pairUsers(i int) (string, string) { return t.user("s", i), t.user("r", i) }

// pairNames names n senders and receivers.
func (t *Target) pairNames(n int) (senders, receivers []string) {
	for i := range n {
		s, r := t.pairUsers(i)
		senders, receivers = append(senders, s), append(receivers, r)
	}
	return senders, receivers
}

// preparePairs makes n senders and receivers who are friends.
func (t *Target) preparePairs(ctx context.Context, p *Progress, n int) error {
	var users []string
	var friends [][2]string
	for i := range n {
		s, r := t.pairUsers(i)
		users = append(users, s, r)
		friends = append(friends, [2]string{s, r})
	}
	if err := t.ensure(ctx, p, users...); err != nil {
		return err
	}
	return t.befriend(ctx, p, friends)
}

// Prepare makes the accounts and friendships.
func (d DM) Prepare(ctx context.Context, t *Target, p *Progress) error {
	return t.preparePairs(ctx, p, d.Pairs)
}

// Run runs it against t; its messages are those acknowledged.
func (d DM) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	run := newRun()
	streams := make([]*stream, d.Pairs)
	p.begin("connecting", d.Pairs)
	err = parallel(ctx, 8, d.Pairs, func(ctx context.Context, i int) error {
		defer p.step()
		from, to := t.pairUsers(i)
		s := newStream(i, t.dm(to), nil, d.Flow, run)
		streams[i] = s
		c, err := t.receive(ctx, t.as(to, "phone", false), s.topic)
		if err != nil {
			return err
		}
		s.receivers = []*receiver{{conn: c, who: i}}
		s.sender, err = t.dial(ctx, t.as(from, "phone", true))
		return err
	})
	if err != nil {
		closeAll(streams)
		return r, err
	}
	m, err := d.drive(ctx, t, p, streams, &r)
	r.over(m.took.Seconds(), m.acked, messages)
	r.CPU = perMessage(m.cpu, m.acked)
	return r, err
}

func closeAll(streams []*stream) {
	for _, s := range streams {
		if s != nil {
			s.close()
		}
	}
}
