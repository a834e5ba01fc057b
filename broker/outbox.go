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
	o.kick()
}

// grow takes a buffer from the pool for the first bytes of a burst.
func (o *outbox) grow() {
	if o.buf == nil {
		o.buf = *writePool.Get().(*[]byte)
	}
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

// batch collects the outboxes that got something while a commit is announced,
// so that each is written once, in the announcing goroutine, without starting
// another: waking a second processor costs more than the write.
type batch struct {
	mu   sync.Mutex
	open bool
	list []*outbox
}

// add reports false if no commit is being announced.
func (b *batch) add(o *outbox) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		b.list = append(b.list, o)
	}
	return b.open
}

// Hold makes what is written from now on wait for Release. The store's announcer
// calls both, around the outcomes of one commit.
func (b *Broker) Hold() {
	b.batch.mu.Lock()
	b.batch.open = true
	b.batch.mu.Unlock()
}

// fewOutboxes is up to how many the announcing goroutine writes itself; more
// are worth a second processor.
const fewOutboxes = 8

// Release writes what Hold kept. It never waits for a socket.
func (b *Broker) Release() {
	b.batch.mu.Lock()
	b.batch.open = false
	list := b.batch.list
	b.batch.list = nil
	b.batch.mu.Unlock()
	here := len(list) <= fewOutboxes
	for i, o := range list {
		if here {
			o.flushNow()
		} else {
			go o.flush()
		}
		list[i] = nil
	}
	b.batch.mu.Lock()
	if b.batch.list == nil && cap(list) <= 4096 {
		b.batch.list = list[:0]
	}
	b.batch.mu.Unlock()
}

// flushNow writes what the socket takes at once; the rest is the flusher's. The
// caller has the right to write: flushing is set.
func (o *outbox) flushNow() {
	if o.raw == nil {
		go o.flush()
		return
	}
	o.mu.Lock()
	buf := o.buf
	o.buf = nil
	o.mu.Unlock()
	n := 0
	err := o.raw.Write(func(fd uintptr) bool {
		n, _ = syscall.Write(int(fd), buf)
		return true // never wait: what did not fit goes the slow way
	})
	n = max(n, 0)
	if o.c.b.opt.Events.BytesOut != nil {
		o.c.b.opt.Events.BytesOut(n)
	}
	o.mu.Lock()
	if err != nil || n < len(buf) {
		o.buf = append(buf[n:len(buf):len(buf)], o.buf...)
		o.mu.Unlock()
		go o.flush() // an error shows again there
		return
	}
	if cap(buf) <= maxPooled {
		buf = buf[:0]
		writePool.Put(&buf)
	}
	if len(o.buf) > 0 || o.marked || o.ended {
		o.mu.Unlock()
		go o.flush()
		return
	}
	o.flushing = false
	o.idle.Broadcast()
	o.mu.Unlock()
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
		o.buf = nil
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
		_ = o.c.nc.SetWriteDeadline(time.Now().Add(patience))
		n, err := o.c.nc.Write(buf)
		if o.c.b.opt.Events.BytesOut != nil {
			o.c.b.opt.Events.BytesOut(n)
		}
		if cap(buf) <= maxPooled {
			buf = buf[:0]
			writePool.Put(&buf)
		}
		if err != nil {
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
