package load

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Replay stores Messages for each of Receivers that are away, lets all return at
// once and times until everything has arrived.
type Replay struct {
	Receivers, Messages, Payload int
}

// Run runs it against t; Messages of the result are deliveries after the return.
func (r Replay) Run(t *Target) (Result, error) {
	var users []string
	var friends [][2]string
	for i := range r.Receivers {
		s, to := pairName(i)
		users = append(users, s, to)
		friends = append(friends, [2]string{s, to})
	}
	if err := t.ensure(users...); err != nil {
		return Result{}, err
	}
	if !t.plain() {
		if err := t.befriend(friends); err != nil {
			return Result{}, err
		}
	}
	// A device of its own for each run, so that only this run's messages wait.
	device := fmt.Sprintf("replay%d", time.Now().UnixNano())
	topic := func(i int) string {
		_, to := pairName(i)
		if t.plain() {
			return "replay/" + to
		}
		return "dm/" + to
	}
	err := parallel(8, r.Receivers, func(i int) error {
		_, to := pairName(i)
		c, _, err := dial(t.MQTT, t.as(to, device, false))
		if err != nil {
			return err
		}
		if t.plain() {
			if err := c.subscribe(topic(i)); err != nil {
				return err
			}
		}
		c.leave()
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	if err := parallel(8, r.Receivers, func(i int) error { return r.fill(t, i, topic(i)) }); err != nil {
		return Result{}, err
	}
	var disorder, dup, got atomic.Int64
	before, begin := t.usage(), time.Now()
	err = parallel(r.Receivers, r.Receivers, func(i int) error {
		_, to := pairName(i)
		c, _, err := dial(t.MQTT, t.as(to, device, false))
		if err != nil {
			return err
		}
		defer c.leave()
		_ = c.nc.SetReadDeadline(time.Now().Add(30 * time.Second))
		seen, last := map[int64]bool{}, int64(0)
		for len(seen) < r.Messages {
			first, body, err := c.read()
			if err != nil {
				return fmt.Errorf("receiver %d after %d messages: %w", i, len(seen), err)
			}
			if first>>4 != publish {
				continue
			}
			_, id, payload, err := parsePublish(first, body)
			if err != nil {
				return err
			}
			c.ack(id)
			if n, _, ok := header(payload); ok {
				if seen[n] {
					dup.Add(1)
				} else {
					got.Add(1)
				}
				if n < last {
					disorder.Add(1)
				}
				seen[n], last = true, n
			}
			if c.idle() {
				if err := c.flush(); err != nil {
					return err
				}
			}
		}
		return c.flush()
	})
	took, after := time.Since(begin), t.usage()
	if err != nil {
		return Result{}, err
	}
	n := got.Load()
	return Result{
		Scenario: fmt.Sprintf("replay, %d devices, %d messages each", r.Receivers, r.Messages), Target: t.Name, Seconds: took.Seconds(), Messages: n,
		Rate: float64(n) / took.Seconds(), CPU: perMessage(after.cpu-before.cpu, n), Lost: int64(r.Receivers*r.Messages) - n, Duplicate: dup.Load(), Disorder: disorder.Load(),
	}, nil
}

// fill publishes the messages of one receiver.
func (r Replay) fill(t *Target, i int, topic string) error {
	s, _ := pairName(i)
	c, _, err := dial(t.MQTT, t.as(s, "filler", true))
	if err != nil {
		return err
	}
	defer c.leave()
	payload := make([]byte, max(r.Payload, 16))
	for k := range payload {
		payload[k] = 'a'
	}
	acked := 0
	for n := 1; n <= r.Messages; n++ {
		putHeader(payload, int64(n), time.Now().UnixNano())
		c.publish(topic, uint16(n), payload)
		if n%20 != 0 && n != r.Messages {
			continue
		}
		if err := c.flush(); err != nil {
			return err
		}
		for acked < n {
			first, _, err := c.read()
			if err != nil {
				return err
			}
			if first>>4 == puback {
				acked++
			}
		}
	}
	return nil
}

// Idle holds connections open that do nothing, and weighs the server.
type Idle struct{ Connections int }

const idlePerUser = 500

func (d Idle) users() (users []string) {
	for i := range (d.Connections + idlePerUser - 1) / idlePerUser {
		users = append(users, fmt.Sprintf("load-idle%d", i))
	}
	return users
}

// Prepare makes the accounts and logs them in, on a server that is restarted
// before Run: what hashing passwords needs of memory must not be weighed.
func (d Idle) Prepare(t *Target) error {
	if err := t.ensure(d.users()...); err != nil || t.plain() {
		return err
	}
	for _, u := range d.users() {
		if _, err := t.token(u); err != nil {
			return err
		}
	}
	return nil
}

// Run runs it against t.
func (d Idle) Run(t *Target) (Result, error) {
	const perUser = idlePerUser
	users := d.users()
	conns := make([]*conn, d.Connections)
	dialOne := func(i int) (err error) {
		l := t.as(users[i/perUser], fmt.Sprintf("idle%d", i%perUser), true)
		if !t.plain() {
			if l.password, err = t.token(l.user); err != nil {
				return err
			}
		}
		conns[i], _, err = dial(t.MQTT, l)
		if err == nil && t.plain() {
			err = conns[i].subscribe(fmt.Sprintf("idle/%d", i))
		}
		return err
	}
	if err := parallel(2, len(users), func(i int) error { return dialOne(i * perUser) }); err != nil {
		return Result{}, err
	}
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.close()
			}
		}
	}()
	before, begin := t.usage(), time.Now()
	n := 0
	err := parallel(16, d.Connections, func(i int) error {
		if i%perUser == 0 {
			return nil
		}
		return dialOne(i)
	})
	if err != nil {
		return Result{}, err
	}
	n = d.Connections - len(users)
	took, after := time.Since(begin), t.usage()
	return Result{
		Scenario: fmt.Sprintf("%d idle connections", d.Connections), Target: t.Name, Seconds: took.Seconds(), Messages: int64(n), Rate: float64(n) / took.Seconds(),
		CPU: perMessage(after.cpu-before.cpu, int64(n)), KB: float64(after.rss-before.rss) / 1024 / float64(n),
	}, nil
}
