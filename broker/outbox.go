package broker

import (
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
)

// outbox is what waits to be written to one connection. Writers append under
// mu and go on; the flusher, a goroutine that exists only while there is data,
// writes it out in large pieces, acknowledgements and deliveries together.
// Bounded: above WriteMark deliveries are told Full and wait in the log; above
// WriteLimit the connection is closed.
type outbox struct {
	c   *Conn
	raw syscall.RawConn // of a plain TCP connection

	mu       sync.Mutex
	buf      []byte
	flushing bool
	marked   bool // somebody was told Full and waits for Writable
	urgent   bool // buf has more than deliveries: somebody waits for an answer
	ended    bool // nothing is appended any more; the flusher closes the socket
	dead     bool // the socket is gone
	closing  chan struct{}
	idle     *sync.Cond // flushing became false
}

var writePool = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// maxPooled keeps buffers that grew in a burst out of the pool.
const maxPooled = 64 << 10

func (o *outbox) init(c *Conn) {
	o.c = c
	o.closing = make(chan struct{})
	o.idle = sync.NewCond(&o.mu)
	if tc, ok := c.nc.(*net.TCPConn); ok {
		o.raw, _ = tc.SyscallConn()
	}
}

// closePatience is how long the last bytes may take: a stalled reader does not
// hold up a close.
const closePatience = 2 * time.Second

// write appends a packet and sees to it that it is written.
func (o *outbox) write(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.grow()
	o.buf = append(o.buf, b...)
	o.answer()
}

// grow takes a buffer from the pool for the first bytes of a burst.
func (o *outbox) grow() {
	if o.buf == nil {
		o.buf = *writePool.Get().(*[]byte)
	}
}

// answer sees to it that what was appended, which somebody waits for, is written
// before deliveries are. Caller holds mu.
func (o *outbox) answer() {
	o.urgent = true
	o.kick()
}

// kick starts the flusher if there is something to write. Caller holds mu.
func (o *outbox) kick() {
	if len(o.buf) > o.c.b.opt.WriteLimit && !o.ended {
		o.end(nil)
		go o.c.disconnect(packets.ErrQuotaExceeded.Code, "reader too slow")
		return
	}
	if !o.flushing && (len(o.buf) > 0 || o.ended) && !o.dead {
		o.flushing = true
		if o.ended || !o.c.b.batch.add(o) {
			go o.flush()
		}
	}
}

// maxTurns is how often flushNow writes what came while it wrote: then it is the
// turn of the others in its herd.
const maxTurns = 4

// flushNow writes what the socket takes at once; the rest is the flusher's. The
// caller has the right to write: flushing is set.
func (o *outbox) flushNow() {
	for range maxTurns {
		o.mu.Lock()
		if o.raw == nil || o.marked || o.ended {
			o.mu.Unlock()
			break
		}
		buf := o.buf
		o.buf, o.urgent = nil, false
		if len(buf) == 0 {
			o.flushing = false
			o.idle.Broadcast()
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		n := o.try(buf)
		if n < len(buf) { // an error shows again in flush
			o.mu.Lock()
			o.buf = append(buf[n:len(buf):len(buf)], o.buf...)
			o.mu.Unlock()
			break
		}
		recycle(buf)
	}
	go o.flush()
}

// try writes what the socket takes without waiting, and returns how much that
// was: 0 after an error, too, which a proper write tells.
func (o *outbox) try(buf []byte) (n int) {
	if o.raw == nil {
		return 0
	}
	_ = o.raw.Write(func(fd uintptr) bool {
		n, _ = syscall.Write(int(fd), buf)
		return true // never wait
	})
	n = max(n, 0)
	if o.c.b.opt.Events.BytesOut != nil {
		o.c.b.opt.Events.BytesOut(n)
	}
	return n
}

// recycle gives a buffer back that was written.
func recycle(buf []byte) {
	if cap(buf) <= maxPooled {
		buf = buf[:0]
		writePool.Put(&buf)
	}
}

func (o *outbox) appendAck(p *Pending) {
	if p.QoS == 0 || o.ended {
		return
	}
	typ := packets.Puback
	if p.QoS == 2 {
		typ = packets.Pubrec
	}
	o.grow()
	o.buf = o.c.appendAck(o.buf, typ, p)
}

// flush writes until there is nothing left.
func (o *outbox) flush() {
	for {
		o.mu.Lock()
		buf := o.buf
		o.buf, o.urgent = nil, false
		if len(buf) == 0 {
			if o.marked && !o.ended { // flushNow wrote it all
				o.marked = false
				o.mu.Unlock()
				o.c.Session().Writable()
				continue
			}
			o.rest()
			return
		}
		patience := o.c.b.opt.WriteTimeout
		if o.ended {
			patience = closePatience
		}
		o.mu.Unlock()
		if err := o.send(buf, patience); err != nil {
			o.mu.Lock()
			o.dead, o.ended, o.buf = true, true, nil
			o.rest()
			return
		}
		o.mu.Lock()
		writable := o.marked && len(o.buf) <= o.c.b.opt.WriteMark/2
		if writable {
			o.marked = false
		}
		o.mu.Unlock()
		if writable {
			o.c.Session().Writable()
		}
	}
}

// send writes buf whole, within patience. Most often the socket takes it at once,
// and no deadline is needed. buf is the pool's afterwards.
func (o *outbox) send(buf []byte, patience time.Duration) error {
	defer recycle(buf)
	n := o.try(buf)
	if n == len(buf) {
		return nil
	}
	_ = o.c.nc.SetWriteDeadline(time.Now().Add(patience))
	m, err := o.c.nc.Write(buf[n:])
	if o.c.b.opt.Events.BytesOut != nil {
		o.c.b.opt.Events.BytesOut(m)
	}
	return err
}

// rest ends the flusher. Caller holds mu, which is released.
func (o *outbox) rest() {
	o.flushing = false
	dead := o.dead || o.ended
	o.idle.Broadcast()
	o.mu.Unlock()
	if dead {
		_ = o.c.nc.Close() // wakes the reader too
	}
}

// end makes bye the last bytes. Caller holds mu.
func (o *outbox) end(bye []byte) {
	if o.ended {
		return
	}
	o.grow()
	o.buf = append(o.buf, bye...)
	o.ended = true
	close(o.closing)
}

// close lets bye be the last bytes; then the flusher closes the socket.
func (o *outbox) close(bye []byte) {
	o.mu.Lock()
	o.end(bye)
	_ = o.c.nc.SetWriteDeadline(time.Now().Add(closePatience))
	o.kick()
	o.mu.Unlock()
}

// finish waits until everything is written, at most for patience.
func (o *outbox) finish(patience time.Duration) {
	o.mu.Lock()
	if o.flushing {
		_ = o.c.nc.SetWriteDeadline(time.Now().Add(patience))
	}
	for o.flushing {
		o.idle.Wait()
	}
	o.mu.Unlock()
}

// shut refuses everything from now on.
func (o *outbox) shut() {
	o.mu.Lock()
	if !o.ended {
		o.ended = true
		close(o.closing)
	}
	o.dead, o.buf = true, nil
	o.mu.Unlock()
}

// Deliver writes an entry: a method of delivery.Wire.
func (c *Conn) Deliver(p *delivery.Parcel, qos byte, packet uint16, dup bool) delivery.Outcome {
	if p.Op == im.OpPublish && !dup && expired(p.Props, p.TS) {
		return delivery.Passed
	}
	f := c.form(p, qos)
	if c.maxPacket > 0 && len(f.Frame) > c.maxPacket {
		return delivery.Passed
	}
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.admit(len(f.Frame)); out != delivery.Written {
		return out
	}
	at := len(o.buf)
	o.buf = append(o.buf, f.Frame...)
	if f.ID > 0 {
		o.buf[at+f.ID], o.buf[at+f.ID+1] = byte(packet>>8), byte(packet)
	}
	if dup {
		o.buf[at] |= 1 << 3
	}
	o.kick()
	return delivery.Written
}

// Takes reports whether the client takes packets as large as n makes one.
func (c *Conn) Takes(n *delivery.Note) bool {
	return c.maxPacket == 0 || len(c.encodeNote(n, 1, 0)) <= c.maxPacket
}

// Send writes a note: a method of delivery.Wire.
func (c *Conn) Send(n *delivery.Note, qos byte, packet uint16) delivery.Outcome {
	if expired(n.Props, n.TS) {
		return delivery.Passed
	}
	frame := c.encodeNote(n, qos, packet)
	if c.maxPacket > 0 && len(frame) > c.maxPacket {
		return delivery.Passed
	}
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.admit(len(frame)); out != delivery.Written {
		return out
	}
	o.buf = append(o.buf, frame...)
	o.kick()
	return delivery.Written
}

// admit decides whether a delivery of n bytes may be appended. Caller holds mu.
func (o *outbox) admit(n int) delivery.Outcome {
	switch {
	case o.ended:
		return delivery.Closed
	case len(o.buf) > 0 && len(o.buf)+n > o.c.b.opt.WriteMark:
		o.marked = true
		return delivery.Full
	}
	o.grow()
	return delivery.Written
}
