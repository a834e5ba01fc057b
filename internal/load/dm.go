package load

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// DM is the closed loop of direct messages: pairs of users, each message
// released when an earlier one was acknowledged and delivered.
type DM struct {
	Pairs, Window, Payload int
	Duration               time.Duration
}

// pair is one sender and one receiver.
type pair struct {
	sender, receiver *conn
	topic            string
	acked, delivered atomic.Int64
	moved            chan struct{} // capacity 1: acked or delivered rose
	sentAt           [1024]atomic.Int64
	res              *counters
	stop             atomic.Bool
}

type counters struct {
	ack, deliver        histogram
	sent, dup, disorder atomic.Int64
	acked, delivered    atomic.Int64
	firstErr            atomic.Pointer[error]
}

func (c *counters) fail(err error) { c.firstErr.CompareAndSwap(nil, &err) }

func pairName(i int) (string, string) { return fmt.Sprintf("load-s%d", i), fmt.Sprintf("load-r%d", i) }

// Run runs it against t.
func (d DM) Run(t *Target) (Result, error) {
	var users []string
	var friends [][2]string
	for i := range d.Pairs {
		s, r := pairName(i)
		users = append(users, s, r)
		friends = append(friends, [2]string{s, r})
	}
	if err := t.ensure(users...); err != nil {
		return Result{}, err
	}
	if !t.plain() {
		if err := t.befriend(friends); err != nil {
			return Result{}, err
		}
	}
	c := &counters{}
	pairs := make([]*pair, d.Pairs)
	err := parallel(8, d.Pairs, func(i int) error {
		p, err := t.pair(i, c)
		pairs[i] = p
		return err
	})
	if err != nil {
		return Result{}, err
	}
	var wg sync.WaitGroup
	before, begin := t.usage(), time.Now()
	for _, p := range pairs {
		wg.Go(p.readAcks)
		wg.Go(p.readDeliveries)
		wg.Go(func() { p.send(d) })
	}
	time.Sleep(d.Duration)
	acked, after, took := c.acked.Load(), t.usage(), time.Since(begin)
	for _, p := range pairs {
		p.stop.Store(true)
		p.notify()
	}
	// What is under way arrives, or counts as lost.
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) && (c.delivered.Load() < c.sent.Load() || c.acked.Load() < c.sent.Load()) {
		time.Sleep(10 * time.Millisecond)
	}
	for _, p := range pairs {
		p.sender.leave()
		p.receiver.leave()
	}
	wg.Wait()
	if e := c.firstErr.Load(); e != nil {
		return Result{}, *e
	}
	return Result{
		Scenario: fmt.Sprintf("dm, %d pairs, window %d, %d bytes", d.Pairs, d.Window, d.Payload), Target: t.Name,
		Seconds: took.Seconds(), Messages: acked, Rate: float64(acked) / took.Seconds(), CPU: perMessage(after.cpu-before.cpu, acked),
		AckP50: c.ack.at(0.5), AckP99: c.ack.at(0.99), DeliverP50: c.deliver.at(0.5), DeliverP99: c.deliver.at(0.99),
		Lost: c.sent.Load() - c.delivered.Load(), Duplicate: c.dup.Load(), Disorder: c.disorder.Load(),
	}, nil
}

func perMessage(cpu time.Duration, n int64) float64 {
	if n == 0 {
		return 0
	}
	return float64(cpu.Microseconds()) / float64(n)
}

// pair connects the two.
func (t *Target) pair(i int, c *counters) (*pair, error) {
	s, r := pairName(i)
	p := &pair{res: c, moved: make(chan struct{}, 1), topic: "dm/" + r}
	if t.plain() {
		p.topic = "load/" + r
	}
	var err error
	if p.receiver, _, err = dial(t.MQTT, t.as(r, "phone", false)); err != nil {
		return nil, err
	}
	if t.plain() {
		if err := p.receiver.subscribe(p.topic); err != nil {
			return nil, err
		}
	}
	p.sender, _, err = dial(t.MQTT, t.as(s, "phone", true))
	return p, err
}

func (p *pair) notify() {
	select {
	case p.moved <- struct{}{}:
	default:
	}
}

// send keeps the window full. The payload begins with its number and the time.
func (p *pair) send(d DM) {
	payload := make([]byte, max(d.Payload, 16))
	for i := range payload {
		payload[i] = 'a' + byte(i%26)
	}
	sent := int64(0)
	for !p.stop.Load() {
		free := int64(d.Window) - (sent - min(p.acked.Load(), p.delivered.Load()))
		if free <= 0 {
			<-p.moved
			continue
		}
		now := time.Now().UnixNano()
		for range free {
			sent++
			putHeader(payload, sent, now)
			p.sentAt[sent%1024].Store(now)
			p.sender.publish(p.topic, uint16(sent%65535+1), payload)
		}
		p.res.sent.Add(free)
		if err := p.sender.flush(); err != nil {
			if !p.stop.Load() {
				p.res.fail(err)
			}
			return
		}
	}
}

// putHeader writes number and time as 16 hex-like bytes that survive an envelope.
func putHeader(b []byte, n, at int64) {
	const digits = "0123456789abcdefghijklmnopqrstuv"
	v := uint64(n)<<40 | uint64(at/1000)&(1<<40-1)
	for i := range 13 {
		b[12-i] = digits[v&31]
		v >>= 5
	}
	b[13], b[14], b[15] = '.', '.', '.'
}

// header finds the number and time of a payload, bare or in an envelope.
func header(payload []byte) (n, at int64, ok bool) {
	b := payload
	if len(b) > 0 && b[0] == '{' {
		i := lastText(b)
		if i < 0 {
			return 0, 0, false
		}
		b = b[i:]
	}
	if len(b) < 16 || b[13] != '.' {
		return 0, 0, false
	}
	v := uint64(0)
	for _, c := range b[:13] {
		switch {
		case c >= '0' && c <= '9':
			v = v<<5 | uint64(c-'0')
		case c >= 'a' && c <= 'v':
			v = v<<5 | uint64(c-'a'+10)
		default:
			return 0, 0, false
		}
	}
	return int64(v >> 40), int64(v & (1<<40 - 1)), true
}

// lastText finds the value of "text" in an envelope.
func lastText(b []byte) int {
	const key = `"text":"`
	for i := len(b) - len(key); i >= 0; i-- {
		if b[i] == '"' && string(b[i:i+len(key)]) == key {
			return i + len(key)
		}
	}
	return -1
}

// since is the age of a header's time.
func since(at int64) time.Duration {
	now := time.Now().UnixMicro() & (1<<40 - 1)
	return time.Duration(now-at) * time.Microsecond
}

func (p *pair) readAcks() {
	acked := int64(0)
	for {
		first, _, err := p.sender.read()
		if err != nil {
			if !p.stop.Load() {
				p.res.fail(fmt.Errorf("sender: %w", err))
				p.stop.Store(true)
				p.notify()
			}
			return
		}
		if first>>4 != puback {
			continue
		}
		acked++
		p.res.ack.add(time.Duration(time.Now().UnixNano() - p.sentAt[acked%1024].Load()))
		if p.sender.idle() {
			p.res.acked.Add(acked - p.acked.Load())
			p.acked.Store(acked)
			p.notify()
		}
	}
}

func (p *pair) readDeliveries() {
	last, count := int64(0), int64(0)
	for {
		first, body, err := p.receiver.read()
		if err != nil {
			if !p.stop.Load() {
				p.res.fail(fmt.Errorf("receiver: %w", err))
				p.stop.Store(true)
				p.notify()
			}
			return
		}
		if first>>4 != publish {
			continue
		}
		_, id, payload, err := parsePublish(first, body)
		if err != nil {
			p.res.fail(err)
			return
		}
		if id != 0 {
			p.receiver.ack(id)
		}
		if n, at, ok := header(payload); ok {
			switch {
			case n == last+1:
			case n <= last:
				p.res.dup.Add(1)
			default:
				p.res.disorder.Add(1)
			}
			last = max(last, n)
			count++
			p.res.deliver.add(since(at))
		}
		if p.receiver.idle() {
			if err := p.receiver.flush(); err != nil && !p.stop.Load() {
				p.res.fail(err)
				return
			}
			p.res.delivered.Add(count - p.delivered.Load())
			p.delivered.Store(count)
			p.notify()
		}
	}
}
