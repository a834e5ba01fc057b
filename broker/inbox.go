package broker

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// inbox is what was read from a connection and not yet handled. It belongs to
// the read loop.
//
// What costs here is the system call, so a burst of any number of packets is one
// read. The usual second read of a burst, which finds nothing and makes the
// goroutine wait, is left out while a connection is busy: see readRaw.
type inbox struct {
	c      *Conn
	bye    **packets.Packet
	small  [readSmall]byte
	buf    []byte  // small, pooled, or one frame's own
	pooled *[]byte // of readPool, or nil
	r, w   int     // buf[r:w] is to be handled
	quiet  int     // small reads in a row
	last   time.Time
	doubt  bool // the socket was taken for empty without looking; the read deadline is near
}

// Read buffer sizes: an idle connection holds the small one.
const (
	readSmall = 512
	readLarge = 16 << 10
)

var readPool = sync.Pool{New: func() any { b := make([]byte, readLarge); return &b }}

// A connection is busy if its bursts are less than busyGap apart. After doubtFor
// a socket that was taken for empty is looked at.
const (
	busyGap  = 50 * time.Millisecond
	doubtFor = time.Second
)

// read is the loop: take what the socket has, handle every whole frame in it,
// flush the burst. The keep-alive deadline is armed only when it fires, from
// the time of the last packet [MQTT-3.1.2-22].
func (c *Conn) read(bye **packets.Packet) error {
	in := &inbox{c: c, bye: bye, last: time.Now()}
	in.buf = in.small[:]
	defer in.release()
	_, eager := c.nc.(*wsConn) // a deadline that fired cannot be moved there
	c.arm(in.last)
	for {
		var err error
		if c.out.raw != nil {
			err = in.readRaw()
		} else {
			err = in.readOnce(eager)
		}
		switch {
		case err == nil:
		case eager || !errors.Is(err, os.ErrDeadlineExceeded) || c.acks.stopping():
			return err
		case in.doubt:
			in.doubt = false
			if !c.arm(in.last) {
				return err
			}
		case c.keepAlive == 0 || !c.arm(in.last):
			return err
		}
	}
}

// readOnce reads what there is from a connection of any kind.
func (in *inbox) readOnce(eager bool) error {
	n, err := in.c.nc.Read(in.buf[in.w:])
	if err != nil {
		return err
	}
	before := in.last
	err = in.took(n)
	if eager && in.last != before {
		in.c.arm(in.last)
	}
	return err
}

// readRaw reads from a plain TCP socket until there is an error. It stays inside
// one RawConn.Read, whose function is called again when the poller has seen
// something new: the poller is edge-triggered, so after a read that did not fill
// its buffer nothing is missed by waiting at once. One thing may be: an end of
// the stream that came together with the bytes has no edge of its own. A busy
// connection therefore looks again after doubtFor, by its read deadline; a calm
// one looks at once.
func (in *inbox) readRaw() error {
	var failed error
	err := in.c.out.raw.Read(func(fd uintptr) bool {
		for {
			room := in.buf[in.w:]
			n, err := syscall.Read(int(fd), room)
			switch {
			case n > 0:
				before := in.last
				if failed = in.took(n); failed != nil {
					return true
				}
				if n < len(room) && in.last.Sub(before) < busyGap {
					in.suspect()
					return false
				}
			case err == nil:
				failed = io.EOF
				return true
			case err == syscall.EAGAIN:
				return false
			case err != syscall.EINTR:
				failed = os.NewSyscallError("read", err)
				return true
			}
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

// suspect sees to it that the socket is looked at in a while.
func (in *inbox) suspect() {
	if in.doubt {
		return
	}
	in.doubt = true
	_ = in.c.nc.SetReadDeadline(in.last.Add(doubtFor))
	in.c.rearmStopping()
}

// took handles n bytes more: every whole frame, then the end of the burst.
func (in *inbox) took(n int) error {
	c := in.c
	if c.b.opt.Events.BytesIn != nil {
		c.b.opt.Events.BytesIn(n)
	}
	in.w += n
	filled := in.w == len(in.buf)
	handled, err := in.handle()
	if handled > 0 || err != nil {
		c.session.Flush()
	}
	if handled > 0 {
		in.last = time.Now() // only a whole frame is a sign of life
		if c.b.opt.Events.PacketsIn != nil {
			c.b.opt.Events.PacketsIn(handled)
		}
	}
	if err != nil {
		return err
	}
	in.makeRoom()
	switch {
	case filled && len(in.buf) == readSmall: // there is more than fits
		in.pooled = readPool.Get().(*[]byte)
		in.w = copy(*in.pooled, in.buf[in.r:in.w])
		in.buf, in.r, in.quiet = *in.pooled, 0, 0
	case n < readSmall/2:
		in.quiet++
	default:
		in.quiet = 0
	}
	return nil
}

// handle takes the whole frames of buf[r:w] and returns how many they were.
func (in *inbox) handle() (handled int, err error) {
	for in.w-in.r >= 2 {
		head, total, err := HeaderLen(in.buf[in.r:in.w])
		if errors.Is(err, ErrNeedMore) {
			break
		}
		if err != nil {
			return handled, err
		}
		if total > in.c.b.opt.MaxPacket {
			return handled, &FrameError{Code: packets.ErrPacketTooLarge.Code, Reason: "packet over the Maximum Packet Size"}
		}
		if in.w-in.r < total {
			if total > len(in.buf) { // does not fit: a buffer of its own
				big := make([]byte, total)
				in.w = copy(big, in.buf[in.r:in.w])
				in.r = 0
				in.release()
				in.buf = big
			}
			break
		}
		if in.c.sentAway.Load() {
			return handled, errSentAway
		}
		if err := in.c.handle(in.buf[in.r], in.buf[in.r+head:in.r+total], in.bye); err != nil {
			return handled, err
		}
		in.r += total
		handled++
	}
	return handled, nil
}

// makeRoom moves the rest to the front; a calm connection gives its buffer back.
func (in *inbox) makeRoom() {
	switch {
	case in.r == in.w:
		in.r, in.w = 0, 0
		if in.quiet >= 4 && len(in.buf) != readSmall {
			in.release()
			in.buf = in.small[:]
		}
	case in.r > 0 && (in.w == len(in.buf) || len(in.buf)-in.r < readSmall/2):
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
}

// release gives a pooled buffer back.
func (in *inbox) release() {
	if in.pooled != nil {
		readPool.Put(in.pooled)
		in.pooled = nil
	}
}
