package broker

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// doorman is our one hook in mochi: it takes every decision of a handshake to
// the Gate. mochi asks nobody else, so nothing is OR-ed.
type doorman struct {
	mqtt.HookBase
	b *Broker
}

func (*doorman) ID() string { return "parley" }

func (*doorman) Provides(h byte) bool {
	switch h {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnPacketEncode, mqtt.OnSessionEstablished:
		return true
	}
	return false
}

var errRefused = errors.New("refused")

// OnConnect asks the gate. A refusal writes its own CONNACK: mochi sends none
// when this fails, and knows only one code when authentication does.
func (d *doorman) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	hs := cl.Net.Conn.(*pipe)
	c := hs.c
	if hs.emptyWill {
		pk.Connect.WillPayload = nil
	}
	cl.Properties.Will = mqtt.Will{}          // ours to keep, check and send
	cl.Properties.Clean = true                // sessions are ours
	cl.Properties.Props.AssignedClientID = "" // so are client ids, which mochi takes for unique
	cl.ID = strconv.FormatUint(d.b.handshakes.Add(1), 36)
	c.maxPacket = int(pk.Properties.MaximumPacketSize)
	c.noSession = pk.Properties.SessionExpiryInterval == 0
	c.noProblem = pk.Properties.RequestProblemInfoFlag && pk.Properties.RequestProblemInfo == 0
	hs.ack = d.b.opt.Gate.Connect(d.b.ctx, c, &pk)
	if hs.ack.Code == 0 {
		if k := d.b.opt.KeepAliveMax; k > 0 && (pk.Connect.Keepalive == 0 || time.Duration(pk.Connect.Keepalive)*time.Second > k) && c.version == 5 {
			cl.State.Keepalive, cl.State.ServerKeepalive = uint16(k/time.Second), true
		}
		c.keepAlive = time.Duration(cl.State.Keepalive) * time.Second
		return nil
	}
	if c.version < 5 {
		hs.out.Write([]byte{packets.Connack << 4, 2, 0, connackV3(hs.ack.Code)})
		return errRefused
	}
	_ = d.b.mochi.SendConnack(cl, packets.Code{Code: hs.ack.Code, Reason: hs.ack.Reason}, false, nil)
	return errRefused
}

// connackV3 maps an MQTT 5 reason code to the return code of MQTT 3.1.1, table 3.1.
func connackV3(code byte) byte {
	switch code {
	case packets.ErrUnsupportedProtocolVersion.Code:
		return 1
	case packets.ErrClientIdentifierNotValid.Code:
		return 2
	case packets.ErrBadUsernameOrPassword.Code, packets.ErrBadAuthenticationMethod.Code:
		return 4
	case packets.ErrNotAuthorized.Code,
		// A will that is never taken: 3 would have the client try again and again.
		packets.ErrTopicNameInvalid.Code, packets.ErrPayloadFormatInvalid.Code, packets.ErrImplementationSpecificError.Code:
		return 5
	}
	return 3
}

// OnConnectAuthenticate is true: OnConnect has decided.
func (*doorman) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnSessionEstablished notes that the CONNACK of a success was written.
func (*doorman) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	cl.Net.Conn.(*pipe).established = true
}

// OnPacketEncode completes the CONNACK with what this server offers.
func (d *doorman) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	hs, ok := cl.Net.Conn.(*pipe)
	if !ok || pk.FixedHeader.Type != packets.Connack {
		return pk
	}
	p := &pk.Properties
	p.AuthenticationMethod = hs.ack.AuthMethod
	if pk.ReasonCode != 0 {
		p.ReceiveMaximum = 0
		if hs.c.version < 5 { // mochi's own refusals: an empty client id with a session
			pk.ReasonCode = connackV3(packets.ErrClientIdentifierNotValid.Code) // [MQTT-3.1.3-8]
		}
		return pk
	}
	pk.SessionPresent = hs.ack.Present
	p.AssignedClientID = hs.ack.AssignedID
	p.MaximumPacketSize = uint32(d.b.opt.MaxPacket)
	if hs.ack.Expiry != nil {
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = *hs.ack.Expiry, true
	} else {
		p.SessionExpiryIntervalFlag = false
	}
	return pk
}

// pipe is the connection mochi sees during a handshake: it reads the CONNECT we
// read, then the end of the stream; what it writes stays here.
type pipe struct {
	c           *Conn
	in          bytes.Reader
	out         bytes.Buffer
	ack         Connack
	established bool
	emptyWill   bool // the will's payload is ours: there was none
}

func (p *pipe) Read(b []byte) (int, error) {
	if p.in.Len() == 0 {
		return 0, io.EOF
	}
	return p.in.Read(b)
}

func (p *pipe) Write(b []byte) (int, error)      { return p.out.Write(b) }
func (p *pipe) Close() error                     { return nil }
func (p *pipe) LocalAddr() net.Addr              { return p.c.nc.LocalAddr() }
func (p *pipe) RemoteAddr() net.Addr             { return p.c.nc.RemoteAddr() }
func (p *pipe) SetDeadline(time.Time) error      { return nil }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

// handshake hands a checked CONNECT to mochi and returns its CONNACK (which may
// be empty) and the gate's answer; established is false after a refusal.
func (b *Broker) handshake(c *Conn, frame []byte) (connack []byte, ack Connack, established bool) {
	hs := &pipe{c: c}
	if at := emptyWill(frame); at > 0 {
		frame, hs.emptyWill = fillWill(frame, at), true
	}
	hs.in.Reset(frame)
	_ = b.mochi.EstablishConnection("parley", hs) // always ends with the end of the pipe
	return hs.out.Bytes(), hs.ack, hs.established
}
