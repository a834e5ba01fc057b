package load

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Group is fan-out: one sender, Members receivers that are online.
type Group struct {
	Members, Window, Payload int
	Duration                 time.Duration
}

// Run runs it against t; Messages are deliveries.
func (g Group) Run(t *Target) (Result, error) {
	users := make([]string, g.Members)
	for i := range users {
		users[i] = fmt.Sprintf("load-m%d", i)
	}
	const owner = "load-owner"
	topic := fmt.Sprintf("load/g%d", g.Members)
	if !t.plain() {
		if err := t.ensure(append([]string{owner}, users...)...); err != nil {
			return Result{}, err
		}
		id, ok := t.groups[g.Members]
		if !ok {
			var err error
			if id, err = t.group(owner, users); err != nil {
				return Result{}, err
			}
			t.groups[g.Members] = id
		}
		topic = "g/" + id
	}
	c := &counters{}
	sender, _, err := dial(t.MQTT, t.as(owner, "phone", true))
	if err != nil {
		return Result{}, err
	}
	members := make([]*member, g.Members)
	err = parallel(8, g.Members, func(i int) error {
		m := &member{c: c}
		var err error
		if m.conn, _, err = dial(t.MQTT, t.as(users[i], "phone", true)); err == nil && t.plain() {
			err = m.conn.subscribe(topic)
		}
		members[i] = m
		return err
	})
	if err != nil {
		return Result{}, err
	}
	acked, moved := atomic.Int64{}, make(chan struct{}, 1)
	notify := func() {
		select {
		case moved <- struct{}{}:
		default:
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	before, begin := t.usage(), time.Now()
	for _, m := range members {
		wg.Go(func() { m.read(&stop, notify) })
	}
	wg.Go(func() { // acknowledgements of the sender
		for {
			first, _, err := sender.read()
			if err != nil {
				if !stop.Load() {
					c.fail(err)
				}
				return
			}
			if first>>4 == puback {
				acked.Add(1)
				notify()
			}
		}
	})
	wg.Go(func() {
		payload := make([]byte, max(g.Payload, 16))
		for i := range payload {
			payload[i] = 'a'
		}
		sent := int64(0)
		for !stop.Load() {
			done := min(acked.Load(), c.delivered.Load()/int64(g.Members))
			if sent-done >= int64(g.Window) {
				<-moved
				continue
			}
			sent++
			putHeader(payload, sent, time.Now().UnixNano())
			sender.publish(topic, uint16(sent%65535+1), payload)
			c.sent.Add(int64(g.Members))
			if err := sender.flush(); err != nil {
				if !stop.Load() {
					c.fail(err)
				}
				return
			}
		}
	})
	time.Sleep(g.Duration)
	delivered, after, took := c.delivered.Load(), t.usage(), time.Since(begin)
	stop.Store(true)
	notify()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) && c.delivered.Load() < c.sent.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	sender.leave()
	for _, m := range members {
		m.conn.leave()
	}
	wg.Wait()
	if e := c.firstErr.Load(); e != nil {
		return Result{}, *e
	}
	return Result{
		Scenario: fmt.Sprintf("group of %d, window %d, %d bytes", g.Members, g.Window, g.Payload), Target: t.Name,
		Seconds: took.Seconds(), Messages: delivered, Rate: float64(delivered) / took.Seconds(), CPU: perMessage(after.cpu-before.cpu, delivered),
		DeliverP50: c.deliver.at(0.5), DeliverP99: c.deliver.at(0.99), Lost: c.sent.Load() - c.delivered.Load(), Duplicate: c.dup.Load(), Disorder: c.disorder.Load(),
	}, nil
}

// member is one receiver of a group.
type member struct {
	conn *conn
	c    *counters
}

func (m *member) read(stop *atomic.Bool, notify func()) {
	last, fresh := int64(0), int64(0)
	for {
		first, body, err := m.conn.read()
		if err != nil {
			if !stop.Load() {
				m.c.fail(fmt.Errorf("member: %w", err))
			}
			return
		}
		if first>>4 != publish {
			continue
		}
		_, id, payload, err := parsePublish(first, body)
		if err != nil {
			m.c.fail(err)
			return
		}
		if id != 0 {
			m.conn.ack(id)
		}
		if n, at, ok := header(payload); ok {
			switch {
			case n == last+1 || last == 0:
			case n <= last:
				m.c.dup.Add(1)
			default:
				m.c.disorder.Add(1)
			}
			last = max(last, n)
			fresh++
			m.c.deliver.add(since(at))
		}
		if m.conn.idle() {
			if err := m.conn.flush(); err != nil && !stop.Load() {
				m.c.fail(err)
				return
			}
			m.c.delivered.Add(fresh)
			fresh = 0
			notify()
		}
	}
}
