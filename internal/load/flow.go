package load

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Flow says how messages are sent: in a closed loop, where Window messages of a
// sender are under way until they were acknowledged and delivered, or, with a
// Rate, in an open loop that waits for nobody.
type Flow struct {
	Window   int           // of each sender; for a closed loop
	Rate     float64       // messages per second of all senders together; 0: closed loop
	Payload  int           // bytes, at least 23
	For      time.Duration // ends the sending; 0: Messages does
	Messages int64         // ends the sending; 0: For does
	Patience time.Duration // nothing came in for so long: what is missing is lost; 0: 10 s
}

func (f Flow) String() string {
	how := fmt.Sprintf("window %d", f.Window)
	if f.Rate > 0 {
		how = fmt.Sprintf("open loop of %g/s", f.Rate)
	}
	return fmt.Sprintf("%s, %d bytes", how, max(f.Payload, minPayload))
}

func (f Flow) patience() time.Duration {
	if f.Patience > 0 {
		return f.Patience
	}
	return settle
}

const (
	// inFlight is how many messages of one sender may wait for their PUBACK in an
	// open loop; the next waits, and its latency counts.
	inFlight = 4096
	// settle is how long nothing may come in before what is missing is lost, unless
	// it is said.
	settle = 10 * time.Second
	// settleInterrupted is the same for somebody who pressed Ctrl-C.
	settleInterrupted = time.Second
)

// stream is one sender and those who get what it sends.
type stream struct {
	topic     string
	sender    *conn
	receivers []*receiver
	who       int
	run       uint32
	payload   []byte
	due       []atomic.Int64 // by packet id - 1: when the message was due; 0: the id is free
	sent      atomic.Int64   // written by its driver only
	acked     atomic.Int64
	delivered atomic.Int64  // by all receivers
	moved     chan struct{} // capacity 1: acked or delivered rose
}

func newStream(who int, topic string, sender *conn, f Flow, run uint32) *stream {
	ids := inFlight
	if f.Rate == 0 {
		ids = min(max(f.Window, 1), 65535)
	}
	return &stream{topic: topic, sender: sender, who: who, run: run, payload: newPayload(f.Payload), due: make([]atomic.Int64, ids), moved: make(chan struct{}, 1)}
}

// receiver is one who gets what a stream sends.
type receiver struct {
	conn  *conn
	check checker
	who   int
	hold  <-chan struct{} // nil, or it reads nothing until this is closed
}

func (s *stream) close() {
	if s.sender != nil {
		s.sender.leave()
	}
	for _, r := range s.receivers {
		if r.conn != nil {
			r.conn.leave()
		}
	}
}

// free is how many messages fit into a window.
func (s *stream) free(window int) int64 {
	done := s.acked.Load()
	if n := int64(len(s.receivers)); n > 0 {
		done = min(done, s.delivered.Load()/n)
	}
	return int64(window) - (s.sent.Load() - done)
}

// settled reports whether everything sent was acknowledged and delivered.
func (s *stream) settled() bool {
	n := s.sent.Load()
	return s.acked.Load() >= n && s.delivered.Load() >= n*int64(len(s.receivers))
}

func (s *stream) notify() {
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// flowRun is a Flow that runs.
type flowRun struct {
	Flow
	streams            []*stream
	ack, deliver, late latencies
	left               atomic.Int64 // of Messages
	p                  *Progress
	done               chan struct{} // closed when nothing more is sent
	closing            atomic.Bool   // connections are being closed
	fault              struct {
		sync.Mutex
		err error
	}
}

// measured is what a flow came to.
type measured struct {
	took             time.Duration
	cpu              time.Duration
	acked, delivered int64
	interrupted      bool
}

// drive runs the flow over streams, which it closes, and returns what it measured;
// r gets latencies and faults.
func (f Flow) drive(ctx context.Context, t *Target, p *Progress, streams []*stream, r *Result) (measured, error) {
	x := &flowRun{Flow: f, streams: streams, p: p, done: make(chan struct{})}
	x.left.Store(f.Messages)
	p.begin("running", int(f.Messages))
	p.show(&x.deliver)
	var senders, readers sync.WaitGroup
	for _, s := range streams {
		readers.Go(func() { x.readAcks(s) })
		for _, rc := range s.receivers {
			readers.Go(func() { x.readDeliveries(s, rc) })
		}
	}
	before, begin := t.usage(), now()
	if f.Rate > 0 {
		x.open(&senders, begin)
	} else {
		for _, s := range streams {
			senders.Go(func() { x.closed(s) })
		}
	}
	m := measured{interrupted: x.wait(ctx)}
	m.took, m.cpu = now()-begin, t.usage().cpu-before.cpu
	for _, s := range streams {
		m.acked += s.acked.Load()
		m.delivered += s.delivered.Load()
	}
	close(x.done)
	limit := x.patience()
	if m.interrupted {
		limit = settleInterrupted
	}
	x.settle(limit)
	x.closing.Store(true)
	for _, s := range streams {
		s.close() // ends the readers, and a sender that is stuck
	}
	senders.Wait()
	readers.Wait()
	r.Ack, r.Deliver, r.Late, r.Interrupted = x.ack.summary(), x.deliver.summary(), x.late.summary(), m.interrupted
	for _, s := range streams {
		for _, rc := range s.receivers {
			r.Add(rc.check.faults(s.sent.Load()))
		}
	}
	return m, x.fault.err
}

func (x *flowRun) fail(err error) {
	if x.closing.Load() {
		return
	}
	x.fault.Lock()
	defer x.fault.Unlock()
	if x.fault.err == nil {
		x.fault.err = err
	}
}

func (x *flowRun) failed() bool {
	x.fault.Lock()
	defer x.fault.Unlock()
	return x.fault.err != nil
}

func (x *flowRun) settled() bool {
	for _, s := range x.streams {
		if !s.settled() {
			return false
		}
	}
	return true
}

// arrived counts everything that came in, to see whether something still does.
func (x *flowRun) arrived() (n int64) {
	for _, s := range x.streams {
		n += s.acked.Load() + s.delivered.Load()
	}
	return n
}

// look is how often a run is looked at.
const look = 5 * time.Millisecond

// wait returns when the time is up, all messages are through, nothing moves, a
// connection has failed, or ctx ends, which it reports.
func (x *flowRun) wait(ctx context.Context) (interrupted bool) {
	var end <-chan time.Time
	if x.For > 0 {
		end = time.After(x.For)
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	seen, at := int64(-1), now()
	for {
		select {
		case <-ctx.Done():
			return true
		case <-end:
			return false
		case <-tick.C:
		}
		if n := x.arrived(); n != seen {
			seen, at = n, now()
		}
		allSent := x.Messages > 0 && x.left.Load() <= 0
		stuck := (x.For == 0 || allSent) && now()-at > x.patience()
		if x.failed() || stuck || allSent && x.settled() {
			return false
		}
	}
}

// settle waits for what is under way, until nothing has come in for limit.
func (x *flowRun) settle(limit time.Duration) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	seen, at := int64(-1), now()
	for !x.settled() && !x.failed() {
		<-tick.C
		if n := x.arrived(); n != seen {
			seen, at = n, now()
		} else if now()-at > limit {
			return
		}
	}
}

// take takes up to n from what may still be sent.
func (x *flowRun) take(n int64) int64 {
	if x.Messages == 0 {
		return n
	}
	for {
		left := x.left.Load()
		n = min(n, left)
		if n <= 0 {
			return 0
		}
		if x.left.CompareAndSwap(left, left-n) {
			return n
		}
	}
}

// pause waits until the stream moved; false if the run is over.
func (x *flowRun) pause(s *stream) bool {
	select {
	case <-s.moved:
		return true
	case <-x.done:
		return false
	}
}

func (x *flowRun) over() bool { return isClosed(x.done) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// closed keeps the window of s full.
func (x *flowRun) closed(s *stream) {
	for !x.over() {
		free := s.free(x.Window)
		if free <= 0 {
			if !x.pause(s) {
				return
			}
			continue
		}
		n := x.take(free)
		if n == 0 {
			return
		}
		due := now()
		for range n {
			if !x.put(s, due) {
				return
			}
		}
		if !x.flush(s) {
			return
		}
	}
}

// batch is how many late messages an open loop writes together.
const batch = 64

// open starts the schedulers, each with some of the streams and its part of the
// rate, evenly offset.
func (x *flowRun) open(wg *sync.WaitGroup, begin time.Duration) {
	n := min(max(runtime.NumCPU()/2, 1), len(x.streams))
	each := float64(time.Second) / x.Rate
	for i := range n {
		var mine []*stream
		for k := i; k < len(x.streams); k += n {
			mine = append(mine, x.streams[k])
		}
		sc := schedule{start: begin + time.Duration(float64(i)*each), interval: each * float64(len(x.streams)) / float64(len(mine))}
		wg.Go(func() { x.paced(sc, mine) })
	}
}

func (x *flowRun) paced(sc schedule, mine []*stream) {
	k := 0
	var dirty []*stream
	flush := func() bool {
		for _, s := range dirty {
			if !x.flush(s) {
				return false
			}
		}
		dirty = dirty[:0]
		return true
	}
	sc.pace(now, waiter(x.done), func(due time.Duration, more bool) bool {
		if x.over() || x.take(1) == 0 {
			flush() // the last ones were put when more was due, which is not sent any more
			return false
		}
		s := mine[k%len(mine)]
		k++
		if !x.put(s, due) {
			return false
		}
		dirty = append(dirty, s)
		if more && len(dirty) < batch {
			return true
		}
		if !flush() {
			return false
		}
		x.late.add(s.who, now()-due)
		return true
	})
}

// put appends the next message of s, once its packet id is free.
func (x *flowRun) put(s *stream, due time.Duration) bool {
	n := s.sent.Load() + 1
	slot := &s.due[(n-1)%int64(len(s.due))]
	for slot.Load() != 0 {
		if !x.flush(s) || !x.pause(s) {
			return false
		}
	}
	slot.Store(int64(due))
	s.sent.Store(n)
	header{run: s.run, n: n, at: due}.put(s.payload)
	s.sender.publish(s.topic, uint16((n-1)%int64(len(s.due))+1), s.payload)
	return true
}

func (x *flowRun) flush(s *stream) bool {
	if err := s.sender.flush(); err != nil {
		x.fail(fmt.Errorf("sender: %w", err))
		return false
	}
	return true
}

// readAcks reads what the sender gets. Its own acknowledgements of events are
// written apart from what the driver collects.
func (x *flowRun) readAcks(s *stream) {
	var took []time.Duration // of this burst
	for {
		first, body, err := s.sender.next()
		if err != nil {
			x.fail(fmt.Errorf("sender: %w", err))
			return
		}
		switch first >> 4 {
		case puback:
			id, code, _, err := ackOf(body, s.sender.v5)
			if err == nil && code >= 0x80 {
				err = refused(fmt.Sprintf("PUBACK with code 0x%02x", code))
			}
			if err == nil && (id == 0 || int(id) > len(s.due)) {
				err = fmt.Errorf("PUBACK of packet %d, which was not sent", id)
			}
			if err != nil {
				x.fail(err)
				return
			}
			if due := s.due[id-1].Swap(0); due != 0 {
				took = append(took, s.sender.arrived-time.Duration(due))
			}
		case publish:
			d, err := parsePublish(first, body, s.sender.v5)
			if err == nil && string(d.topic) == "error" {
				err = refused(string(d.payload))
			}
			if err != nil {
				x.fail(err)
				return
			}
			if d.id != 0 {
				s.sender.answer(d.id)
			}
		}
		if s.sender.idle() {
			s.acked.Add(int64(len(took)))
			s.notify()
			x.p.add(int64(len(took)))
			x.ack.add(s.who, took...)
			took = took[:0]
		}
	}
}

// refusedError is a publish that the target did not want.
type refusedError struct{ what string }

func (e *refusedError) Error() string {
	return "a message was refused: " + e.what + "; the server's limits must allow what is measured: limits.off, or limits.messages_per_second and limits.burst"
}

func refused(what string) error { return &refusedError{what} }

func (x *flowRun) readDeliveries(s *stream, r *receiver) {
	if r.hold != nil {
		<-r.hold
	}
	fresh := int64(0)
	var took []time.Duration // of this burst
	for {
		first, body, err := r.conn.next()
		if err != nil {
			x.fail(fmt.Errorf("receiver: %w", err))
			return
		}
		if first>>4 != publish {
			continue
		}
		d, err := parsePublish(first, body, r.conn.v5)
		if err != nil {
			x.fail(fmt.Errorf("receiver: %w", err))
			return
		}
		if d.id != 0 {
			r.conn.ack(d.id)
		}
		if h, ok := readHeader(d.payload); ok && h.run == s.run {
			before := r.check.got
			r.check.see(h.n)
			fresh += r.check.got - before
			took = append(took, r.conn.arrived-h.at)
		}
		if r.conn.idle() {
			if err := r.conn.flush(); err != nil {
				x.fail(fmt.Errorf("receiver: %w", err))
				return
			}
			s.delivered.Add(fresh)
			fresh = 0
			s.notify()
			x.deliver.add(r.who, took...)
			took = took[:0]
		}
	}
}
