package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Packet types.
const (
	connect    = 1
	connack    = 2
	publish    = 3
	puback     = 4
	subscribe  = 8
	suback     = 9
	disconnect = 14
)

// dialTimeout bounds everything from SYN to CONNACK; the storm of thousands of
// devices on a small machine needs some of it.
const dialTimeout = 60 * time.Second

// conn is an MQTT connection, 3.1.1 or 5.0. One goroutine reads, one writes;
// answer may be called by the reader meanwhile.
type conn struct {
	nc      net.Conn
	in      *bufio.Reader
	out     []byte
	buf     []byte // of the packet read last
	v5      bool
	present bool // the server had a session

	arrived       time.Duration // when what is in the buffer was read, on the clock of now
	read, written atomic.Int64  // bytes
}

// login is what a CONNECT says.
type login struct {
	client, user, password string
	clean                  bool
	v5                     bool
	small                  bool // one of thousands: it gets a small buffer
}

// sessionExpiry is what an MQTT 5 session asks for, in seconds.
const sessionExpiry = 3600

// countingReader counts what a connection reads, and notes when: what comes in one
// read has arrived together, and looking at the clock for each packet costs more
// than parsing it.
type countingReader struct{ c *conn }

func (r countingReader) Read(b []byte) (int, error) {
	n, err := r.c.nc.Read(b)
	r.c.read.Add(int64(n))
	r.c.arrived = now()
	return n, err
}

// dial connects to a target and waits for the CONNACK.
func (t *Target) dial(ctx context.Context, l login) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var nc net.Conn
	var err error
	if t.TLS {
		nc, err = (&tls.Dialer{}).DialContext(ctx, "tcp", t.MQTT)
	} else {
		nc, err = (&net.Dialer{}).DialContext(ctx, "tcp", t.MQTT)
	}
	if err != nil {
		return nil, err
	}
	l.v5 = l.v5 || t.V5
	c := &conn{nc: nc, v5: l.v5}
	size := 16 << 10
	if l.small {
		size = 1 << 10
	}
	c.in = bufio.NewReaderSize(countingReader{c}, size)
	// The caller's end must not wait for a server that does not answer.
	defer context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })()
	if err := c.handshake(l); err != nil {
		return nil, errors.Join(fmt.Errorf("CONNECT of %s/%s: %w", l.user, l.client, err), nc.Close())
	}
	return c, nil
}

func (c *conn) handshake(l login) error {
	flags, level := byte(0), byte(4)
	if l.clean {
		flags |= 2
	}
	if l.v5 {
		level = 5
	}
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', level, 0, 0, 0} // keep-alive 0: the load decides how long it lasts
	switch {
	case l.v5 && !l.clean:
		body = binary.BigEndian.AppendUint32(append(body, 5, 0x11), sessionExpiry)
	case l.v5:
		body = append(body, 0)
	}
	body = appendStr(body, l.client)
	if l.user != "" {
		flags |= 0x80
		body = appendStr(body, l.user)
	}
	if l.password != "" {
		flags |= 0x40
		body = appendStr(body, l.password)
	}
	body[7] = flags
	c.frame(connect<<4, body)
	if err := c.flush(); err != nil {
		return err
	}
	first, b, err := c.next()
	if err != nil {
		return err
	}
	if first>>4 != connack || len(b) < 2 || b[1] != 0 {
		return refusal(first, b)
	}
	c.present = b[0]&1 != 0
	return nil
}

func refusal(first byte, b []byte) error {
	if first>>4 != connack || len(b) < 2 {
		return fmt.Errorf("answered by a packet of type %d", first>>4)
	}
	return fmt.Errorf("refused with code 0x%02x", b[1])
}

func (c *conn) close() { _ = c.nc.Close() }

// leave says DISCONNECT and closes. It does not wait for a server that reads no
// more, even if another goroutine does.
func (c *conn) leave() {
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.nc.Write([]byte{disconnect << 4, 0})
	c.close()
}

// farewell says DISCONNECT and waits for the server to close, so that it is known
// that the device is offline, and that the wait of a closed port is the server's.
func (c *conn) farewell() {
	_ = c.nc.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.nc.Write([]byte{disconnect << 4, 0})
	_, _ = io.Copy(io.Discard, c.nc)
	c.close()
}

// subscribe asks for filter at QoS 1 and waits for the SUBACK.
func (c *conn) subscribe(filter string) error {
	body := []byte{0, 1}
	if c.v5 {
		body = append(body, 0)
	}
	c.frame(subscribe<<4|2, append(appendStr(body, filter), 1))
	if err := c.flush(); err != nil {
		return err
	}
	for {
		first, b, err := c.next()
		if err != nil {
			return err
		}
		if first>>4 == publish { // retained, or of a session
			if m, err := parsePublish(first, b, c.v5); err == nil && m.id != 0 {
				c.answer(m.id)
			}
			continue
		}
		if first>>4 != suback || len(b) < 3 || b[len(b)-1] > 1 {
			return fmt.Errorf("SUBSCRIBE of %s refused: % x", filter, b)
		}
		return nil
	}
}

// frame appends a packet to what the next flush writes.
func (c *conn) frame(first byte, body []byte) {
	c.out = appendVarint(append(c.out, first), len(body))
	c.out = append(c.out, body...)
}

// publish appends a PUBLISH at QoS 1.
func (c *conn) publish(topic string, id uint16, payload []byte) {
	n := 4 + len(topic) + len(payload)
	if c.v5 {
		n++
	}
	c.out = append(c.out, publish<<4|2)
	c.out = appendVarint(c.out, n)
	c.out = appendStr(c.out, topic)
	c.out = binary.BigEndian.AppendUint16(c.out, id)
	if c.v5 {
		c.out = append(c.out, 0)
	}
	c.out = append(c.out, payload...)
}

// ack appends a PUBACK.
func (c *conn) ack(id uint16) {
	c.out = append(c.out, puback<<4, 2, byte(id>>8), byte(id))
}

// answer writes a PUBACK at once, whatever the writer has collected.
func (c *conn) answer(id uint16) {
	n, _ := c.nc.Write([]byte{puback << 4, 2, byte(id >> 8), byte(id)})
	c.written.Add(int64(n))
}

func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	n, err := c.nc.Write(c.out)
	c.written.Add(int64(n))
	c.out = c.out[:0]
	return err
}

// idle reports whether the burst is over: nothing more can be read without
// waiting for the socket.
func (c *conn) idle() bool { return c.in.Buffered() == 0 }

// next returns the next packet; its body is valid until the next call. A
// DISCONNECT of the server is an error.
func (c *conn) next() (first byte, body []byte, err error) {
	if first, err = c.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, shift := 0, 0
	for {
		b, err := c.in.ReadByte()
		if err != nil {
			return 0, nil, err
		}
		n |= int(b&0x7f) << shift
		if shift += 7; b&0x80 == 0 {
			break
		}
		if shift > 21 {
			return 0, nil, errors.New("a remaining length of more than four bytes")
		}
	}
	if cap(c.buf) < n {
		c.buf = make([]byte, n+n/2)
	}
	body = c.buf[:n]
	if _, err = io.ReadFull(c.in, body); err != nil {
		return first, nil, err
	}
	if first>>4 == disconnect {
		code := byte(0)
		if len(body) > 0 {
			code = body[0]
		}
		return first, nil, fmt.Errorf("disconnected by the server with code 0x%02x", code)
	}
	return first, body, nil
}

func appendStr(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func appendVarint(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}
