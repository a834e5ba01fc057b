package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
)

// Conn is one client's connection. Its read loop runs in Handle's goroutine;
// everything else may be called from any.
type Conn struct {
	b       *Broker
	nc      net.Conn
	session Session
	current atomic.Pointer[Session] // session, for other goroutines

	// Set by the handshake, constant afterwards.
	version   byte // 4 or 5
	keepAlive time.Duration
	maxPacket int  // the client's Maximum Packet Size; 0 none
	noSession bool // Session Expiry Interval 0: a DISCONNECT cannot raise it
	noProblem bool // Request Problem Information 0: acknowledgements carry no properties
	envelope  bool // deliveries carry the JSON envelope
	user      im.UserID
	method    string // of enhanced authentication, or ""

	acks   acks
	out    outbox
	closed struct {
		sync.Once
		reason string
	}
	sentAway atomic.Bool   // by disconnect: no packet is taken any more, of the same burst neither
	drained  chan struct{} // closed when the reader has stopped and all it took is acknowledged
	ended    func()        // the listener's
	done     chan struct{} // closed when the connection has ended
}

// Version returns the MQTT protocol version: 4 (3.1.1) or 5.
func (c *Conn) Version() byte { return c.version }

// RemoteAddr is the client's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// LocalAddr is ours.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// NetConn is the connection below, for TLS state.
func (c *Conn) NetConn() net.Conn { return c.nc }

// SetEnvelope makes deliveries carry the JSON envelope (MQTT 5; 3.1.1 always
// does). For the gate, before Start.
func (c *Conn) SetEnvelope() { c.envelope = true }

// Session is what the gate gave for this connection; nil during the handshake.
func (c *Conn) Session() Session {
	if s := c.current.Load(); s != nil {
		return *s
	}
	return nil
}

// AuthMethod is the authentication method of the CONNECT, or "".
func (c *Conn) AuthMethod() string { return c.method }

// AuthSuccess answers a re-authentication [MQTT-4.12.0-5].
func (c *Conn) AuthSuccess(method string) {
	props := AppendString([]byte{packets.PropAuthenticationMethod}, method)
	b := AppendVarint([]byte{packets.Auth << 4}, 2+len(props))
	b = append(b, packets.CodeSuccess.Code, byte(len(props)))
	c.out.write(append(b, props...))
}

// Suback answers a SUBSCRIBE.
func (c *Conn) Suback(id uint16, codes []byte) {
	c.out.write(AppendSuback(nil, c.version, id, codes))
}

// Unsuback answers an UNSUBSCRIBE.
func (c *Conn) Unsuback(id uint16, codes []byte) {
	c.out.write(AppendUnsuback(nil, c.version, id, codes))
}

// Handle takes over a connection: handshake, session, reading, clean-up. It
// returns after the handshake; ended is called once, when all is over.
func (b *Broker) Handle(nc net.Conn, ended func()) {
	c := &Conn{b: b, nc: nc, ended: ended, drained: make(chan struct{}), done: make(chan struct{})}
	c.acks.init()
	c.out.init(c)
	if c.begin() {
		// The handshake has made this goroutine's stack large; an idle connection
		// waits on a small one.
		go c.live()
	}
}

// begin reports whether the connection has a session, which is started.
func (c *Conn) begin() (ok bool) {
	defer func() {
		if !ok {
			c.over(recover())
		}
	}()
	if !c.connect() {
		c.out.finish(closePatience)
		return false
	}
	started := false
	defer func() {
		if !started { // a panic: the session must not outlive its connection
			c.acks.close()
			c.session.Close(nil)
		}
	}()
	c.session.Start()
	started = true
	return true
}

// live reads until the connection ends.
func (c *Conn) live() {
	defer func() { c.over(recover()) }()
	var bye *packets.Packet
	defer func() { // also after a panic
		c.acks.close()
		c.session.Close(bye)
	}()
	err := c.read(&bye)
	c.end(err)
}

// over is the last of a connection; r is what it panicked with, if it did.
func (c *Conn) over(r any) {
	if r != nil {
		c.b.log.Error("panic in a connection, which was closed", "remote", c.nc.RemoteAddr().String(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		if c.b.opt.Events.Panic != nil {
			c.b.opt.Events.Panic()
		}
	}
	c.out.shut()
	_ = c.nc.Close()
	c.b.remove(c)
	close(c.done)
	c.ended()
}

// connect reads and answers the CONNECT.
func (c *Conn) connect() bool {
	_ = c.nc.SetReadDeadline(time.Now().Add(c.b.opt.ConnectTimeout))
	stop := context.AfterFunc(c.b.closing, func() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) })
	frame, err := readFirst(c.nc)
	stop()
	if err != nil {
		c.b.refused("handshake")
		var fe *FrameError
		switch {
		case !errors.As(err, &fe):
		case fe.Code == packets.ErrUnsupportedProtocolVersion.Code:
			// [MQTT-3.1.2-2]: 3.1.1 clients know return code 1, and so do those of older versions.
			c.out.write([]byte{packets.Connack << 4, 2, 0, 1})
		case isMQTT5(frame):
			c.out.write([]byte{packets.Connack << 4, 3, 0, fe.Code, 0}) // [MQTT-3.1.4-1]
		}
		return false
	}
	c.version = protocolVersion(frame)
	connack, ack, ok := c.b.handshake(c, frame)
	if len(connack) > 0 {
		c.out.write(connack)
	}
	if !ok {
		if ack.Session != nil {
			ack.Session.Close(nil)
		}
		c.b.refused("connect")
		return false
	}
	c.session, c.user, c.method = ack.Session, ack.User, ack.AuthMethod
	c.current.Store(&c.session)
	if !c.b.add(c) {
		c.Close(delivery.ShuttingDown)
		ack.Session.Close(nil)
		return false
	}
	return true
}

// readFirst reads one frame byte-exactly: what follows stays in the socket.
// Anything but a sound CONNECT of at most connectMax bytes is an error, which
// comes with as much of the frame as was read.
func readFirst(nc net.Conn) ([]byte, error) {
	buf := make([]byte, 0, 256)
	need := 2
	for {
		n := len(buf)
		buf = append(buf, make([]byte, need-n)...)
		if _, err := io.ReadFull(nc, buf[n:]); err != nil {
			return nil, err
		}
		if buf[0]>>4 != packets.Connect {
			return buf, &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "the first packet is not CONNECT"} // [MQTT-3.1.0-1]
		}
		head, total, err := HeaderLen(buf)
		switch {
		case errors.Is(err, ErrNeedMore):
			need = len(buf) + 1
		case err != nil:
			return buf, err
		case total > connectMax:
			return buf, &FrameError{Code: packets.ErrPacketTooLarge.Code, Reason: "CONNECT is over 8 KiB"}
		case len(buf) == total:
			return buf, CheckConnect(buf[head:])
		default:
			need = total
		}
	}
}

// isMQTT5 reports whether a frame that is no sound CONNECT begins like one of
// MQTT 5: its sender understands a CONNACK with a reason.
func isMQTT5(frame []byte) bool {
	const name = "\x00\x04MQTT\x05"
	head, _, err := HeaderLen(frame)
	return err == nil && frame[0] == packets.Connect<<4 && bytes.HasPrefix(frame[head:], []byte(name))
}

// protocolVersion reads the level out of a checked CONNECT.
func protocolVersion(frame []byte) byte {
	head, _, _ := HeaderLen(frame)
	return frame[head+2+int(frame[head])<<8+int(frame[head+1])]
}

// errEnd is a proper end: DISCONNECT came.
var errEnd = errors.New("client disconnected")

// errSentAway is the end that disconnect makes.
var errSentAway = errors.New("disconnected by the server")

// arm sets the read deadline 1.5 keep-alives after last. It reports false if
// that has passed.
func (c *Conn) arm(last time.Time) bool {
	if c.keepAlive == 0 {
		_ = c.nc.SetReadDeadline(time.Time{})
		c.rearmStopping()
		return true
	}
	at := last.Add(c.keepAlive + c.keepAlive/2)
	if !time.Now().Before(at) {
		return false
	}
	_ = c.nc.SetReadDeadline(at)
	c.rearmStopping()
	return true
}

// rearmStopping keeps a stop that came while arm set its deadline.
func (c *Conn) rearmStopping() {
	if c.acks.stopping() {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// publishes are parsed PUBLISH packets to use again: the session keeps nothing of
// one, whose slices are those of the read buffer.
var publishes = sync.Pool{New: func() any { return new(Publish) }}

// handle takes one frame.
func (c *Conn) handle(first byte, body []byte, bye **packets.Packet) error {
	switch typ := first >> 4; typ {
	case packets.Publish:
		p := publishes.Get().(*Publish)
		err := ParsePublish(c.version, first, body, p)
		if err == nil {
			err = c.session.Publish(p)
		}
		*p = Publish{}
		publishes.Put(p)
		return err
	case packets.Puback:
		id, _, err := ParseAck(c.version, body)
		if err != nil {
			return err
		}
		c.session.Puback(id)
		return nil
	case packets.Pubrel:
		id, _, err := ParseAck(c.version, body)
		if err != nil {
			return err
		}
		c.session.Pubrel(id)
		return nil
	case packets.Pubrec, packets.Pubcomp:
		// We never send at QoS 2: there is nothing to answer.
		_, _, err := ParseAck(c.version, body)
		return err
	case packets.Pingreq:
		if len(body) != 0 {
			return malformed("PINGREQ has a body")
		}
		c.out.write([]byte{packets.Pingresp << 4, 0}) // [MQTT-3.12.4-1]
		return nil
	case packets.Subscribe, packets.Unsubscribe, packets.Disconnect, packets.Auth:
		return c.control(first, body, bye)
	}
	return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a packet that a client does not send"}
}

func malformed(reason string) error {
	return &FrameError{Code: packets.ErrMalformedPacket.Code, Reason: reason}
}

// control takes the rarer packets: checked by us, decoded by mochi.
func (c *Conn) control(first byte, body []byte, bye **packets.Packet) error {
	typ := first >> 4
	var err error
	switch typ {
	case packets.Subscribe:
		err = CheckSubscribe(c.version, body)
	case packets.Unsubscribe:
		err = CheckUnsubscribe(c.version, body)
	case packets.Disconnect:
		err = CheckDisconnect(c.version, body)
	case packets.Auth:
		if c.version < 5 {
			return malformed("AUTH before MQTT 5")
		}
		err = CheckAuth(body)
	}
	if err != nil {
		return err
	}
	pk := &packets.Packet{ProtocolVersion: c.version, FixedHeader: packets.FixedHeader{Type: typ, Remaining: len(body)}}
	own := append([]byte(nil), body...) // the decoder's strings alias it
	switch typ {
	case packets.Subscribe:
		err = pk.SubscribeDecode(own)
	case packets.Unsubscribe:
		err = pk.UnsubscribeDecode(own)
	case packets.Disconnect:
		if len(own) == 1 { // mochi ignores a reason code without properties
			pk.ReasonCode, own = own[0], nil
		} else {
			err = pk.DisconnectDecode(own)
		}
	case packets.Auth:
		if len(own) > 0 {
			err = pk.AuthDecode(own)
		}
	}
	if err != nil {
		return malformed("undecodable packet")
	}
	switch typ {
	case packets.Subscribe:
		return c.session.Subscribe(pk)
	case packets.Unsubscribe:
		return c.session.Unsubscribe(pk)
	case packets.Auth:
		return c.session.Auth(pk)
	}
	if c.noSession && pk.Properties.SessionExpiryInterval > 0 { // [MQTT-3.14.2-2]
		return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a Session Expiry Interval in DISCONNECT where CONNECT had none"}
	}
	*bye = pk
	return errEnd
}

// end tells the client why the read loop stopped, and lets the buffer run out.
func (c *Conn) end(err error) {
	var fe *FrameError
	switch {
	case c.acks.stopping(): // drained or closed by us: the DISCONNECT is or comes from Close
		if c.draining() {
			c.acks.wait(c.b.ctx)
			close(c.drained)
			<-c.out.closing // Shutdown closes
		}
	case errors.Is(err, errEnd):
		c.acks.wait(c.b.ctx) // what it published before goes its way; nobody reads the answer
	case errors.As(err, &fe):
		c.log("protocol error", "reason", fe.Reason, "code", fe.Code)
		c.disconnect(fe.Code, fe.Reason)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.disconnect(packets.ErrKeepAliveTimeout.Code, "keep alive timeout")
	}
	c.out.finish(closePatience)
}

func (c *Conn) log(msg string, args ...any) {
	c.b.log.Debug(msg, append(args, "remote", c.nc.RemoteAddr().String())...)
}

// disconnect queues a DISCONNECT (MQTT 5 only) and closes once it is written.
func (c *Conn) disconnect(code byte, reason string) {
	c.closed.Do(func() {
		c.closed.reason = reason
		c.sentAway.Store(true)
		c.b.closed(reason)
		var bye []byte
		if c.version >= 5 && c.Session() != nil {
			if c.noProblem {
				reason = ""
			}
			bye = AppendDisconnect(nil, c.version, code, reason)
			if c.maxPacket > 0 && len(bye) > c.maxPacket { // [MQTT-3.14.2-3]
				bye = AppendDisconnect(nil, c.version, code, "")
			}
		}
		c.out.close(bye)
		c.acks.stop()
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wake the reader
	})
}

// Disconnect ends the connection with an MQTT 5 reason code.
func (c *Conn) Disconnect(code byte, reason string) { c.disconnect(code, reason) }

// Close ends the connection for one of delivery's reasons.
func (c *Conn) Close(r delivery.CloseReason) {
	switch r {
	case delivery.TakenOver:
		c.disconnect(packets.ErrSessionTakenOver.Code, "session taken over")
	case delivery.Revoked:
		c.disconnect(packets.ErrNotAuthorized.Code, "credentials revoked or expired")
	case delivery.ShuttingDown:
		c.disconnect(packets.ErrServerShuttingDown.Code, "server shutting down")
	case delivery.StoreAway:
		c.disconnect(packets.ErrServerBusy.Code, "the store cannot commit now: connect again and resend")
	case delivery.Removed:
		c.disconnect(packets.ErrAdministrativeAction.Code, "device removed")
	}
}

// drain stops the reader; see Broker.Shutdown.
func (c *Conn) drain() {
	c.acks.drainStop()
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

func (c *Conn) draining() bool { return c.acks.draining() }
