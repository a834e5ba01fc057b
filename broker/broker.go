package broker

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
)

// Gate decides about connections. Met by hooks.
type Gate interface {
	// Connect answers a CONNECT that is well-formed. It runs in the connection's
	// goroutine and may wait for the store. On success Connack.Session is set and
	// belongs to c until its Close.
	Connect(ctx context.Context, c *Conn, in *packets.Packet) Connack
}

// Connack is the gate's answer.
type Connack struct {
	Code       byte   // MQTT 5 reason code; 3.1.1 gets its nearest return code
	Reason     string // for a person, with a refusal
	Present    bool   // Session Present
	AssignedID string // the client id, if the server chose it
	Expiry     *uint32
	User       im.UserID
	AuthMethod string // echoed if the client used enhanced authentication
	Session    Session
}

// Session is the other side of a connection, from CONNACK to its end. All calls
// but Close come from the connection's read loop, one at a time. What is passed
// in aliases the read buffer and is valid during the call only.
type Session interface {
	// Start is called once CONNACK is on its way.
	Start()
	// Publish takes a PUBLISH. An error is a protocol error and ends the
	// connection; a refusal goes through Conn.Finish.
	Publish(p *Publish) error
	// Flush marks the end of a burst: what Publish collected must go on its way now.
	Flush()
	// Puback takes the acknowledgement of a delivery.
	Puback(id uint16)
	// Pubrel releases a QoS 2 packet id; the answer is Conn.Pubcomp.
	Pubrel(id uint16)
	Subscribe(pk *packets.Packet) error
	Unsubscribe(pk *packets.Packet) error
	// Auth takes a re-authentication [MQTT-4.12.1].
	Auth(pk *packets.Packet) error
	// Writable tells that a wire that was Full has drained. Any goroutine.
	Writable()
	// Close is called once, after the last of the others. disconnect is the
	// client's DISCONNECT, or nil if the connection ended without.
	Close(disconnect *packets.Packet)
}

// Events announces what an operator wants to count. All fields may be nil.
type Events struct {
	Refused   func(reason string) // a connection was not accepted or its CONNECT refused
	Closed    func(reason string) // the server ended a connection
	Panic     func()              // a packet made a decoder or handler panic; its connection was closed
	BytesIn   func(n int)
	BytesOut  func(n int)
	PacketsIn func(n int)
}

// Options configure a Broker. Gate is needed.
type Options struct {
	Gate           Gate
	Log            *slog.Logger
	ConnectTimeout time.Duration // from accept to CONNECT; default 10 s
	WriteTimeout   time.Duration // a reader that takes nothing for so long is closed; default 30 s
	MaxPacket      int           // of a PUBLISH, bytes; announced; default 320 KiB
	ReceiveMaximum int           // publishes of one client not yet acknowledged; default 1024
	WriteMark      int           // buffered bytes above which deliveries wait in the log; default 64 KiB
	WriteLimit     int           // buffered bytes above which the connection is closed; default 4 MiB
	KeepAliveMax   time.Duration // a longer or absent keep-alive is replaced (MQTT 5: Server Keep Alive); 0: no limit
	Events         Events
}

// connectMax is the largest CONNECT read from a stranger.
const connectMax = 8 << 10

// Broker is the room. Make it with New; feed it with Handle.
type Broker struct {
	opt   Options
	log   *slog.Logger
	mochi *mqtt.Server
	ctx   context.Context // of the handlers; ends when Shutdown has drained
	stop  context.CancelFunc

	closing context.Context // ends when Shutdown begins: a stranger who has not said CONNECT yet is sent away
	shut    context.CancelFunc

	mu struct {
		sync.Mutex
		conns    map[*Conn]struct{}
		draining bool
	}
	batch      batch
	count      atomic.Int64
	handshakes atomic.Uint64
}

// New makes a Broker. It starts nothing.
func New(o Options) (*Broker, error) {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 10 * time.Second
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = 30 * time.Second
	}
	def(&o.MaxPacket, 320<<10)
	def(&o.ReceiveMaximum, 1024)
	def(&o.WriteMark, 64<<10)
	def(&o.WriteLimit, 4<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{opt: o, log: o.Log}
	b.mu.conns = make(map[*Conn]struct{})
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.closing, b.shut = context.WithCancel(context.Background())

	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClients = math.MaxInt64 // limits are the listeners'
	caps.MaximumClientWritesPending = 1
	caps.MaximumPacketSize = connectMax
	caps.ReceiveMaximum = uint16(min(o.ReceiveMaximum, math.MaxUint16))
	caps.TopicAliasMaximum = 0
	b.mochi = mqtt.New(&mqtt.Options{Capabilities: caps, Logger: slog.New(slog.DiscardHandler),
		ClientNetReadBufferSize: 512, ClientNetWriteBufferSize: 512})
	if err := b.mochi.AddHook(&doorman{b: b}, nil); err != nil {
		return nil, err
	}
	return b, nil
}

// Connections is how many clients are past their CONNACK.
func (b *Broker) Connections() int { return int(b.count.Load()) }

func (b *Broker) add(c *Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.draining {
		return false
	}
	b.mu.conns[c] = struct{}{}
	b.count.Add(1)
	return true
}

func (b *Broker) remove(c *Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.mu.conns[c]; ok {
		delete(b.mu.conns, c)
		b.count.Add(-1)
	}
}

// Shutdown drains: nobody new comes in, readers stop, what was accepted is
// committed and acknowledged, each client gets DISCONNECT 0x8B (server shutting
// down). It returns when all connections are closed or ctx is done.
func (b *Broker) Shutdown(ctx context.Context) {
	b.shut()
	b.mu.Lock()
	b.mu.draining = true
	conns := make([]*Conn, 0, len(b.mu.conns))
	for c := range b.mu.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()

	for _, c := range conns {
		c.drain()
	}
	for _, c := range conns {
		select {
		case <-c.drained:
		case <-c.done: // it ended by itself
		case <-ctx.Done():
		}
		c.Close(delivery.ShuttingDown)
	}
	for _, c := range conns {
		select {
		case <-c.done:
		case <-ctx.Done():
			_ = c.nc.Close()
		}
	}
	b.stop()
}

func (b *Broker) refused(reason string) {
	if b.opt.Events.Refused != nil {
		b.opt.Events.Refused(reason)
	}
}

func (b *Broker) closed(reason string) {
	if b.opt.Events.Closed != nil {
		b.opt.Events.Closed(reason)
	}
}
