package load

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
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

// conn is an MQTT 3.1.1 connection. One goroutine reads, one writes.
type conn struct {
	nc  net.Conn
	in  *bufio.Reader
	out []byte
	buf []byte // of the packet read last
}

// login is what a CONNECT says.
type login struct {
	client, user, password string
	clean                  bool
}

// dial connects and waits for the CONNACK.
func dial(addr string, l login) (*conn, bool, error) {
	nc, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		return nil, false, err
	}
	c := &conn{nc: nc, in: bufio.NewReaderSize(nc, 16<<10)}
	flags := byte(0)
	if l.clean {
		flags |= 2
	}
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 0} // keep-alive 0: the load decides how long it lasts
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
		return nil, false, errors.Join(err, nc.Close())
	}
	_ = nc.SetReadDeadline(time.Now().Add(60 * time.Second))
	typ, b, err := c.read()
	_ = nc.SetReadDeadline(time.Time{})
	if err == nil && (typ>>4 != connack || len(b) < 2 || b[1] != 0) {
		err = fmt.Errorf("CONNECT of %s/%s refused: %02x % x %v", l.user, l.client, typ, b, err)
	}
	if err != nil {
		return nil, false, errors.Join(err, nc.Close())
	}
	return c, b[0]&1 != 0, nil
}

func (c *conn) close() { _ = c.nc.Close() }

// leave says DISCONNECT and closes.
func (c *conn) leave() {
	c.frame(disconnect<<4, nil)
	_ = c.flush()
	c.close()
}

// subscribe asks for filter at QoS 1 and waits for the SUBACK.
func (c *conn) subscribe(filter string) error {
	body := appendStr([]byte{0, 1}, filter)
	c.frame(subscribe<<4|2, append(body, 1))
	if err := c.flush(); err != nil {
		return err
	}
	typ, b, err := c.read()
	if err != nil {
		return err
	}
	if typ>>4 != suback || len(b) < 3 || b[2] > 1 {
		return fmt.Errorf("SUBSCRIBE of %s refused: % x", filter, b)
	}
	return nil
}

// frame appends a packet to what the next flush writes.
func (c *conn) frame(first byte, body []byte) {
	c.out = appendVarint(append(c.out, first), len(body))
	c.out = append(c.out, body...)
}

// publish appends a PUBLISH at QoS 1.
func (c *conn) publish(topic string, id uint16, payload []byte) {
	c.out = append(c.out, publish<<4|2)
	c.out = appendVarint(c.out, 4+len(topic)+len(payload))
	c.out = appendStr(c.out, topic)
	c.out = binary.BigEndian.AppendUint16(c.out, id)
	c.out = append(c.out, payload...)
}

// ack appends a PUBACK.
func (c *conn) ack(id uint16) {
	c.out = append(c.out, puback<<4, 2, byte(id>>8), byte(id))
}

func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err
}

// idle reports whether the burst is over: nothing more can be read without
// waiting for the socket.
func (c *conn) idle() bool { return c.in.Buffered() == 0 }

// read returns the next packet; its body is valid until the next call.
func (c *conn) read() (first byte, body []byte, err error) {
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
	}
	if cap(c.buf) < n {
		c.buf = make([]byte, n+n/2)
	}
	body = c.buf[:n]
	_, err = io.ReadFull(c.in, body)
	return first, body, err
}

// parsePublish splits the body of a PUBLISH at QoS 0 or 1.
func parsePublish(first byte, body []byte) (topic []byte, id uint16, payload []byte, err error) {
	if len(body) < 2 {
		return nil, 0, nil, io.ErrUnexpectedEOF
	}
	n := int(binary.BigEndian.Uint16(body))
	at := 2 + n
	if first&6 != 0 {
		at += 2
	}
	if len(body) < at {
		return nil, 0, nil, io.ErrUnexpectedEOF
	}
	if first&6 != 0 {
		id = binary.BigEndian.Uint16(body[at-2:])
	}
	return body[2 : 2+n], id, body[at:], nil
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
