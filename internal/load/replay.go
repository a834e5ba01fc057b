package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Replay stores Missed messages for each of Devices that are away, lets all return
// at once and times until everything has arrived.
type Replay struct {
	Devices, Missed, Payload int
}

// String names the scenario with its parameters.
func (r Replay) String() string {
	return fmt.Sprintf("replay, %d devices, %d messages missed by each, %d bytes", r.Devices, r.Missed, max(r.Payload, minPayload))
}

// Prepare makes the accounts and friendships.
func (r Replay) Prepare(ctx context.Context, t *Target, p *Progress) error {
	return t.preparePairs(ctx, p, r.Devices)
}

// Run runs it against t; its messages are deliveries after the return.
func (r Replay) Run(ctx context.Context, t *Target, p *Progress) (res Result, err error) {
	run := newRun()
	// The devices of each run are its own, so that only its messages wait.
	device := fmt.Sprintf("replay-%x", run)
	p.begin("leaving", r.Devices)
	err = parallel(ctx, 8, r.Devices, func(ctx context.Context, i int) error {
		defer p.step()
		_, to := t.pairUsers(i)
		c, err := t.receive(ctx, t.as(to, device, false), t.dm(to))
		if err == nil {
			c.farewell()
		}
		return err
	})
	if err != nil {
		return res, err
	}
	p.begin("storing", r.Devices)
	err = parallel(ctx, 8, r.Devices, func(ctx context.Context, i int) error {
		defer p.step()
		from, to := t.pairUsers(i)
		return t.fill(ctx, from, t.dm(to), run, r.Missed, r.Payload)
	})
	if err != nil {
		return res, err
	}
	var caught latencies
	var mu sync.Mutex
	var got atomic.Int64
	p.begin("replaying", r.Devices*r.Missed)
	before, begin := t.usage(), now()
	err = parallel(ctx, r.Devices, r.Devices, func(ctx context.Context, i int) error {
		_, to := t.pairUsers(i)
		check, err := t.catchUp(ctx, t.as(to, device, false), t.dm(to), run, int64(r.Missed), p)
		if err != nil {
			return err
		}
		if check.got == int64(r.Missed) {
			caught.add(i, now()-begin)
		}
		got.Add(check.got)
		mu.Lock()
		defer mu.Unlock()
		res.Add(check.faults(int64(r.Missed)))
		return nil
	})
	took, after := now()-begin, t.usage()
	res.over(took.Seconds(), got.Load(), deliveries)
	res.CPU = perMessage(after.cpu-before.cpu, got.Load())
	res.Caught = caught.summary()
	return res, err
}

// fill publishes n messages of from to topic and returns when all are acknowledged.
func (t *Target) fill(ctx context.Context, from, topic string, run uint32, n, size int) error {
	c, err := t.dial(ctx, t.as(from, "filler", true))
	if err != nil {
		return err
	}
	defer c.leave()
	defer context.AfterFunc(ctx, c.close)()
	payload := newPayload(size)
	const window = 20
	for acked, sent := 0, 0; acked < n; {
		for sent < min(acked+window, n) {
			sent++
			header{run: run, n: int64(sent), at: now()}.put(payload)
			c.publish(topic, uint16(sent%65535+1), payload)
		}
		if err := c.flush(); err != nil {
			return err
		}
		for first := true; first || !c.idle(); first = false {
			ok, err := c.acknowledged()
			if err != nil {
				return err
			}
			if ok {
				acked++
			}
		}
	}
	return nil
}

// acknowledged reads one packet and reports whether it was a PUBACK. A refusal is
// an error; other publishes are answered.
func (c *conn) acknowledged() (bool, error) {
	first, body, err := c.next()
	if err != nil {
		return false, err
	}
	switch first >> 4 {
	case puback:
		_, code, _, err := ackOf(body, c.v5)
		if err == nil && code >= 0x80 {
			err = refused(fmt.Sprintf("PUBACK with code 0x%02x", code))
		}
		return true, err
	case publish:
		d, err := parsePublish(first, body, c.v5)
		if err == nil && string(d.topic) == "error" {
			err = refused(string(d.payload))
		}
		if err == nil && d.id != 0 {
			c.answer(d.id)
		}
		return false, err
	}
	return false, nil
}

// catchUp connects a device and reads until it has n messages of the run, or until
// nothing comes any more.
func (t *Target) catchUp(ctx context.Context, l login, topic string, run uint32, n int64, p *Progress) (check checker, err error) {
	c, err := t.receive(ctx, l, topic)
	if err != nil {
		return check, err
	}
	defer c.leave()
	defer context.AfterFunc(ctx, c.close)()
	told := int64(0)
	for check.got < n {
		if c.idle() {
			if err := c.flush(); err != nil {
				return check, err
			}
			p.add(check.got - told)
			told = check.got
			_ = c.nc.SetReadDeadline(time.Now().Add(settle))
		}
		d, err := c.delivery()
		if isTimeout(err) {
			break // the rest is lost
		}
		if err != nil {
			return check, fmt.Errorf("after %d messages: %w", check.got, err)
		}
		if h, ok := readHeader(d.payload); ok && h.run == run {
			check.see(h.n)
		}
	}
	p.add(check.got - told)
	return check, c.flush()
}

// delivery reads up to the next PUBLISH and collects the answer to it.
func (c *conn) delivery() (delivery, error) {
	for {
		first, body, err := c.next()
		if err != nil {
			return delivery{}, err
		}
		if first>>4 != publish {
			continue
		}
		d, err := parsePublish(first, body, c.v5)
		if err == nil && d.id != 0 {
			c.ack(d.id)
		}
		return d, err
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
