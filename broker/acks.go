package broker

import (
	"context"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Pending is one PUBLISH between its arrival and its acknowledgement. The
// session embeds it in what it hands to the log.
type Pending struct {
	ID   uint16
	QoS  byte
	size int
	next *Pending

	done   bool
	code   byte
	reason string
	seq    uint64
	ts     int64
}

// acks keeps publishes in the order they came, so that they are acknowledged in
// that order [MQTT-4.6.0-2..3] whatever order they are committed in, and bounds
// them: that is the back-pressure on a fast publisher.
type acks struct {
	mu       sync.Mutex
	cond     *sync.Cond // n or bytes fell, or the connection stops
	head     *Pending
	tail     *Pending
	n, bytes int
	quota    int // QoS > 0 publishes not yet answered: the client's share of our Receive Maximum
	stopped  bool
	drain    bool // stopped to be drained: what is pending is waited for
	aborted  bool // stopped for good: nobody hears the answers
	closed   bool
}

// maxPendingBytes is how much of one client's bodies may wait for the commit.
const maxPendingBytes = 4 << 20

func (a *acks) init() { a.cond = sync.NewCond(&a.mu) }

// Begin gives p its place in the order of acknowledgements. It waits while too
// much is pending, after passing on what was collected. An error is a protocol
// error: the client ignored our Receive Maximum [MQTT-3.3.4-9].
func (c *Conn) Begin(p *Pending, size int) error {
	a := &c.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	limit := c.b.opt.ReceiveMaximum
	if p.QoS > 0 && c.version >= 5 && a.quota >= limit {
		return &FrameError{Code: packets.ErrReceiveMaximum.Code, Reason: "more publishes than the Receive Maximum"}
	}
	for !a.closed && !a.stopped && (a.n >= limit || a.bytes >= maxPendingBytes) {
		a.mu.Unlock()
		c.session.Flush()
		a.mu.Lock()
		if a.closed || a.stopped || (a.n < limit && a.bytes < maxPendingBytes) {
			break
		}
		a.cond.Wait()
	}
	p.size = size
	if a.tail == nil {
		a.head = p
	} else {
		a.tail.next = p
	}
	a.tail = p
	a.n++
	a.bytes += size
	if p.QoS > 0 {
		a.quota++
	}
	return nil
}

// Finish says what became of p and writes every acknowledgement whose turn has
// come. code is an MQTT 5 reason code; seq and ts go with a success. It never
// blocks and may be called from any goroutine, once for each Begin.
func (c *Conn) Finish(p *Pending, code byte, reason string, seq uint64, ts int64) {
	a := &c.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	p.done, p.code, p.reason, p.seq, p.ts = true, code, reason, seq, ts
	if a.head != p {
		return
	}
	c.out.mu.Lock()
	for a.head != nil && a.head.done {
		q := a.head
		a.head = q.next
		a.n--
		a.bytes -= q.size
		if q.QoS == 1 || (q.QoS == 2 && q.code >= packets.ErrUnspecifiedError.Code) {
			a.quota-- // a QoS 2 success counts until its PUBCOMP
		}
		c.out.appendAck(q)
	}
	if a.head == nil {
		a.tail = nil
	}
	c.out.answer()
	c.out.mu.Unlock()
	a.cond.Broadcast()
}

// Pubcomp answers a PUBREL. counted tells that the id was received on this
// connection and counts against our Receive Maximum; known is false for an id
// that is not in use at all. It repeats seq and ts of the PUBREC: some clients
// show their users only the last packet of the exchange.
func (c *Conn) Pubcomp(id uint16, counted, known bool, seq uint64, ts int64) {
	c.acks.mu.Lock()
	if counted && c.acks.quota > 0 {
		c.acks.quota--
	}
	c.acks.mu.Unlock()
	code := byte(0)
	if !known && c.version >= 5 {
		code = packets.ErrPacketIdentifierNotFound.Code
	}
	c.out.write(c.appendAck(nil, packets.Pubcomp, &Pending{ID: id, code: code, seq: seq, ts: ts}))
}

// Pubrec repeats the answer to a QoS 2 publish that came again.
func (c *Conn) Pubrec(id uint16, seq uint64, ts int64) {
	c.out.write(c.appendAck(nil, packets.Pubrec, &Pending{ID: id, seq: seq, ts: ts}))
}

// appendAck appends the acknowledgement of p, without properties where these
// would make it larger than the client takes [MQTT-3.4.2-2, 3.4.2-3].
func (c *Conn) appendAck(dst []byte, typ byte, p *Pending) []byte {
	out := AppendPuback(dst, c.version, typ, p.ID, p.code, p.seq, p.ts, p.reason, c.noProblem)
	if c.maxPacket > 0 && len(out)-len(dst) > c.maxPacket {
		return AppendPuback(dst, c.version, typ, p.ID, p.code, 0, 0, "", true)
	}
	return out
}

// Settle waits until everything that was begun is finished, or the connection ends.
// within tells that it is called for a publish, which is not waited for: the last
// that was begun.
func (c *Conn) Settle(within bool) {
	a := &c.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.head != nil && !(within && a.head == a.tail) && !a.closed && !a.stopped {
		a.cond.Wait()
	}
}

// wait returns when nothing is pending, the connection was aborted, or ctx is done.
func (a *acks) wait(ctx context.Context) {
	stop := context.AfterFunc(ctx, a.close)
	defer stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.n > 0 && !a.closed && !a.aborted {
		a.cond.Wait()
	}
}

// stop makes a waiting reader give up: the connection ends.
func (a *acks) stop() {
	a.mu.Lock()
	a.stopped, a.aborted = true, true
	a.mu.Unlock()
	a.cond.Broadcast()
}

func (a *acks) drainStop() {
	a.mu.Lock()
	a.stopped, a.drain = true, true
	a.mu.Unlock()
	a.cond.Broadcast()
}

func (a *acks) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cond.Broadcast()
}

func (a *acks) stopping() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopped
}

func (a *acks) draining() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.drain
}
