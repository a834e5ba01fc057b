package load

import (
	"context"
	"fmt"
	"time"
)

// Wire sends messages one by one and counts the bytes of each direction above TCP.
type Wire struct {
	Messages, Payload int
}

// String names the scenario with its parameters.
func (w Wire) String() string {
	return fmt.Sprintf("bytes on the wire, %d messages of %d bytes", w.Messages, max(w.Payload, minPayload))
}

// Prepare makes the accounts and friendships.
func (w Wire) Prepare(ctx context.Context, t *Target, p *Progress) error {
	return t.preparePairs(ctx, p, 1)
}

// Run runs it against t.
func (w Wire) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	from, to := t.pairUsers(0)
	rc, err := t.receive(ctx, t.as(to, "phone", false), t.dm(to))
	if err != nil {
		return r, err
	}
	defer rc.leave()
	s, err := t.dial(ctx, t.as(from, "phone", true))
	if err != nil {
		return r, err
	}
	defer s.leave()
	defer context.AfterFunc(ctx, func() { s.close(); rc.close() })()
	r.Bytes = &Bytes{Connect: float64(s.written.Load()), Connack: float64(s.read.Load())}
	run, payload := newRun(), newPayload(w.Payload)
	var check checker
	// One message before the count: events of the account come in with it.
	var zero Bytes
	p.begin("running", w.Messages)
	begin := now()
	for n := range w.Messages + 1 {
		header{run: run, n: int64(n + 1), at: now()}.put(payload)
		s.publish(t.dm(to), uint16(n%65535+1), payload)
		if err := s.flush(); err != nil {
			return r, err
		}
		for ok := false; !ok; {
			if ok, err = s.acknowledged(); err != nil {
				return r, err
			}
		}
		if err := w.await(rc, run, &check, int64(n+1)); err != nil {
			return r, err
		}
		at := Bytes{Publish: float64(s.written.Load()), Ack: float64(s.read.Load()), Deliver: float64(rc.read.Load()), Answer: float64(rc.written.Load())}
		if n == 0 {
			zero, begin = at, now()
			continue
		}
		p.step()
		k := float64(n)
		r.Bytes.Publish, r.Bytes.Ack = (at.Publish-zero.Publish)/k, (at.Ack-zero.Ack)/k
		r.Bytes.Deliver, r.Bytes.Answer = (at.Deliver-zero.Deliver)/k, (at.Answer-zero.Answer)/k
	}
	r.Seconds, r.Messages, r.Of = (now() - begin).Seconds(), int64(w.Messages), messages // one by one: a rate would say little
	r.Faults = check.faults(int64(w.Messages + 1))
	return r, nil
}

// await reads until message n is there and answered, or is lost.
func (w Wire) await(c *conn, run uint32, check *checker, n int64) error {
	_ = c.nc.SetReadDeadline(time.Now().Add(settle))
	for {
		d, err := c.delivery()
		if isTimeout(err) {
			return nil
		}
		if err == nil {
			err = c.flush()
		}
		if err != nil {
			return err
		}
		if h, ok := readHeader(d.payload); ok && h.run == run {
			check.see(h.n)
			if h.n == n {
				return nil
			}
		}
	}
}
