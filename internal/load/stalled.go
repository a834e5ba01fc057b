package load

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// Stalled measures what devices that stop reading cost the others. Stalled of
// Devices are members of a group that gets large messages; the others get direct
// messages. That is done twice: while all read, and while the members read
// nothing. Then they read on, and must find everything.
type Stalled struct {
	Devices, Stalled int
	PerUser          int     // devices of one user; 0: 10
	GroupRate        float64 // messages per second to the group, in an open loop
	GroupPayload     int     // bytes of each
	Flow                     // of the direct messages, to users in turn; Rate and For are needed
}

func (s Stalled) perUser() int {
	if s.PerUser == 0 {
		return 10
	}
	return s.PerUser
}

// String names the scenario with its parameters.
func (s Stalled) String() string {
	return fmt.Sprintf("%d of %d devices stalled, %g/s of %d bytes to them; to the others %s", s.Stalled, s.Devices, s.GroupRate, s.GroupPayload, s.Flow)
}

func (s Stalled) users(n int) int { return (n + s.perUser() - 1) / s.perUser() }

func (s Stalled) members(t *Target) (owner string, members []string) {
	return t.user("stalledowner", 0), t.users("stalled", s.users(s.Stalled))
}

func (s Stalled) key() string { return fmt.Sprint("stalled ", s.Stalled, " ", s.perUser()) }

func (s Stalled) topic(t *Target) string {
	if t.Plain {
		return fmt.Sprintf("bench/%s-stalled", t.prefix)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return "g/" + t.mu.groups[s.key()]
}

// Prepare makes the accounts, friendships and the group.
func (s Stalled) Prepare(ctx context.Context, t *Target, p *Progress) error {
	if err := t.preparePairs(ctx, p, s.users(s.Devices-s.Stalled)); err != nil {
		return err
	}
	owner, members := s.members(t)
	if err := t.ensure(ctx, p, append([]string{owner}, members...)...); err != nil {
		return err
	}
	if _, err := t.group(ctx, p, s.key(), owner, members); err != nil {
		return err
	}
	_, users := t.pairNames(s.users(s.Devices - s.Stalled))
	return t.tokens(ctx, p, append(users, members...))
}

// Run runs it against t; its messages are deliveries to the others while the
// members stall.
func (s Stalled) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	var reading Result
	if _, err := s.phase(ctx, t, p, false, &reading); err != nil {
		return r, err
	}
	m, err := s.phase(ctx, t, p, true, &r)
	r.over(m.took.Seconds(), m.delivered, deliveries)
	r.AllRead = reading.Deliver
	r.Add(reading.Faults)
	r.Interrupted = r.Interrupted || reading.Interrupted
	return r, err
}

// phase connects everybody, sends for a while, and closes.
func (s Stalled) phase(ctx context.Context, t *Target, p *Progress, stall bool, r *Result) (m measured, err error) {
	run := newRun()
	read := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(read) })
	defer goOn()
	group := s.group(t, run)
	others, err := s.connect(ctx, t, p, group, run)
	if err != nil {
		closeAll(append(others, group))
		return m, err
	}
	var before int64
	if stall {
		for _, rc := range group.receivers {
			rc.hold = read
		}
		if before, err = t.memory(ctx); err != nil {
			before = 0 // it is not known, and the rest is worth having
		}
	}
	var flood Result
	var floodErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		f := Flow{Rate: s.GroupRate, For: s.For, Patience: s.Patience, Payload: s.GroupPayload}
		_, floodErr = f.drive(ctx, t, nil, []*stream{group}, &flood)
	})
	if stall && before > 0 {
		wg.Go(func() { // what they cost, when they have cost it for a while
			select {
			case <-time.After(s.For * 9 / 10):
			case <-ctx.Done():
				return
			}
			if after, err := t.memory(ctx); err == nil {
				r.KB = float64(after-before) / 1024 / float64(s.Stalled)
			}
		})
	}
	var res Result
	m, err = s.drive(ctx, t, p, others, &res)
	goOn()
	wg.Wait()
	kb := r.KB
	*r = res
	r.KB = kb
	r.Add(flood.Faults)
	if err == nil {
		err = floodErr
	}
	return m, err
}

func (s Stalled) group(t *Target, run uint32) *stream {
	g := newStream(0, s.topic(t), nil, Flow{Rate: s.GroupRate, Payload: s.GroupPayload}, run)
	g.receivers = make([]*receiver, s.Stalled)
	for i := range g.receivers {
		g.receivers[i] = &receiver{who: i}
	}
	return g
}

// smallWindow is the receive buffer of the members: what they do not read is soon
// the server's.
const smallWindow = 16 << 10

// connect connects all devices and senders; it returns the streams of the others.
func (s Stalled) connect(ctx context.Context, t *Target, p *Progress, group *stream, run uint32) (others []*stream, err error) {
	n := s.Devices - s.Stalled
	senders, users := t.pairNames(s.users(n))
	others = make([]*stream, len(users))
	for i, u := range users {
		others[i] = newStream(i, t.dm(u), nil, s.Flow, run)
		others[i].receivers = make([]*receiver, min(s.perUser(), n-i*s.perUser()))
		for k := range others[i].receivers {
			others[i].receivers[k] = &receiver{who: i*s.perUser() + k}
		}
	}
	owner, members := s.members(t)
	device := func(ctx context.Context, user string, k int, topic string) (*conn, error) {
		l, err := t.asToken(ctx, user, fmt.Sprint("phone", k), true)
		if err != nil {
			return nil, err
		}
		l.small = true
		return t.receive(ctx, l, topic)
	}
	p.begin("connecting", s.Devices)
	err = parallel(ctx, 16, s.Devices, func(ctx context.Context, i int) (err error) {
		defer p.step()
		if i < n {
			st := others[i/s.perUser()]
			st.receivers[i%s.perUser()].conn, err = device(ctx, users[i/s.perUser()], i%s.perUser(), st.topic)
			return err
		}
		k := i - n
		c, err := device(ctx, members[k/s.perUser()], k%s.perUser(), group.topic)
		group.receivers[k].conn = c
		if err == nil {
			if tcp, ok := c.nc.(*net.TCPConn); ok {
				err = tcp.SetReadBuffer(smallWindow)
			}
		}
		return err
	})
	if err != nil {
		return others, err
	}
	if group.sender, err = t.dial(ctx, t.as(owner, "phone", true)); err != nil {
		return others, err
	}
	p.begin("connecting senders", len(senders))
	return others, parallel(ctx, 8, len(senders), func(ctx context.Context, i int) (err error) {
		defer p.step()
		others[i].sender, err = t.dial(ctx, t.as(senders[i], "phone", true))
		return err
	})
}
