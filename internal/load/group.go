package load

import (
	"context"
	"fmt"
)

// Group is fan-out: one sender, and Members of whom Online are connected.
type Group struct {
	Members int
	Online  int // 0: all
	Flow
}

func (g Group) online() int {
	if g.Online == 0 {
		return g.Members
	}
	return min(g.Online, g.Members)
}

// String names the scenario with its parameters.
func (g Group) String() string {
	return fmt.Sprintf("group of %d, %d online, %s", g.Members, g.online(), g.Flow)
}

func (g Group) users(t *Target) (owner string, members []string) {
	for i := range g.Members {
		members = append(members, t.user("m", i))
	}
	return t.user("owner", 0), members
}

func (g Group) key() string { return fmt.Sprint(g.Members) }

// Prepare makes the accounts, friendships and the group.
func (g Group) Prepare(ctx context.Context, t *Target, p *Progress) error {
	owner, members := g.users(t)
	if err := t.ensure(ctx, p, append([]string{owner}, members...)...); err != nil {
		return err
	}
	if _, err := t.group(ctx, p, g.key(), owner, members); err != nil {
		return err
	}
	return t.away(ctx, p, g)
}

// away makes devices of the members who are not online, once: it is they for whom
// a broker with queues has to store something.
func (t *Target) away(ctx context.Context, p *Progress, g Group) error {
	_, members := g.users(t)
	members = members[g.online():]
	done := g.key() + " away"
	t.mu.Lock()
	known := t.mu.groups[done]
	t.mu.groups[done] = done
	t.mu.Unlock()
	if known != "" {
		return nil
	}
	p.begin("devices", len(members))
	return parallel(ctx, 8, len(members), func(ctx context.Context, i int) error {
		defer p.step()
		c, err := t.receive(ctx, t.as(members[i], "away", false), g.topic(t))
		if err == nil {
			c.leave()
		}
		return err
	})
}

func (g Group) topic(t *Target) string {
	if t.Plain {
		return fmt.Sprintf("bench/%s-g%d", t.prefix, g.Members)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return "g/" + t.mu.groups[g.key()]
}

// Run runs it against t; its messages are deliveries.
func (g Group) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	owner, members := g.users(t)
	s := newStream(0, g.topic(t), nil, g.Flow, newRun())
	s.receivers = make([]*receiver, g.online())
	for i := range s.receivers {
		s.receivers[i] = &receiver{who: i}
	}
	p.begin("connecting", len(s.receivers))
	err = parallel(ctx, 8, len(s.receivers), func(ctx context.Context, i int) error {
		defer p.step()
		c, err := t.receive(ctx, t.as(members[i], "phone", true), s.topic)
		s.receivers[i].conn = c
		return err
	})
	if err == nil {
		s.sender, err = t.dial(ctx, t.as(owner, "phone", true))
	}
	if err != nil {
		s.close()
		return r, err
	}
	m, err := g.drive(ctx, t, p, []*stream{s}, &r)
	r.over(m.took.Seconds(), m.delivered, deliveries)
	r.CPU = perMessage(m.cpu, m.delivered)
	return r, err
}
