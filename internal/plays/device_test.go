package plays

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// patience is how long a play waits for what must come.
const patience = 15 * time.Second

// Versions of MQTT.
const (
	V311 = 4
	V5   = 5
)

// Device is one MQTT connection under full control of the play: every packet it
// gets is kept until somebody asks for it.
type Device struct {
	t  testing.TB
	nc net.Conn
	v  byte

	Connack packets.Packet
	manual  bool // PUBLISHes are not acknowledged by themselves

	writeMu sync.Mutex
	mu      sync.Mutex
	got     []packets.Packet // PUBLISHes not yet asked for
	acks    map[string]packets.Packet
	bye     *packets.Packet // DISCONNECT
	ended   bool
	changed chan struct{} // closed and replaced whenever something came
	nextID  uint16
}

// connectOptions say how to connect.
type connectOptions struct {
	version  byte
	clean    bool
	expiry   uint32
	receive  uint16
	maxSize  uint32
	username string
	password string
	manual   bool
	envelope bool
	noReason bool
	method   string
	data     string
	keep     uint16
	will     *will
	raw      bool // return whatever CONNACK says
}

type will struct {
	topic, body string
	qos         byte
	retain      bool
	delay       uint32
	text        bool // Payload Format Indicator 1
	user        []packets.UserProperty
}

type option func(*connectOptions)

func v311(o *connectOptions)    { o.version = V311 }
func clean(o *connectOptions)   { o.clean = true }
func manual(o *connectOptions)  { o.manual = true }
func anyCode(o *connectOptions) { o.raw = true }
func withWill(w will) option    { return func(o *connectOptions) { o.will = &w } }
func withReceiveMaximum(n uint16) option {
	return func(o *connectOptions) { o.receive = n }
}

// Connect connects one of p's devices: MQTT 5 with a session, unless told otherwise.
func (p *Person) Connect(device string, opts ...option) *Device {
	p.h.t.Helper()
	o := connectOptions{version: V5, expiry: 3600, username: p.Name, password: p.Token}
	for _, opt := range opts {
		opt(&o)
	}
	d, err := dial(p.h, device, o)
	if err != nil {
		p.h.t.Fatalf("%s connects %s: %v", p.Name, device, err)
	}
	if d.Connack.ReasonCode != 0 && !o.raw {
		p.h.t.Fatalf("%s connects %s: CONNACK 0x%02x %s", p.Name, device, d.Connack.ReasonCode, d.Connack.Properties.ReasonString)
	}
	return d
}

func dial(h *House, device string, o connectOptions) (*Device, error) {
	nc, err := net.Dial("tcp", h.MQTT)
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() { _ = nc.Close() })
	d := &Device{t: h.t, nc: nc, v: o.version, manual: o.manual, acks: map[string]packets.Packet{}, changed: make(chan struct{})}
	pk := packets.Packet{ProtocolVersion: o.version, FixedHeader: packets.FixedHeader{Type: packets.Connect}}
	pk.Connect = packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: o.clean, ClientIdentifier: device, Keepalive: o.keep,
		UsernameFlag: o.username != "", Username: []byte(o.username), PasswordFlag: o.password != "", Password: []byte(o.password)}
	if o.will != nil {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos, pk.Connect.WillRetain = true, o.will.topic, []byte(o.will.body), o.will.qos, o.will.retain
		pk.Connect.WillProperties.WillDelayInterval = o.will.delay
		if o.will.text {
			pk.Connect.WillProperties.PayloadFormat, pk.Connect.WillProperties.PayloadFormatFlag = 1, true
		}
		pk.Connect.WillProperties.User = o.will.user
	}
	pk.Properties = packets.Properties{SessionExpiryInterval: o.expiry, SessionExpiryIntervalFlag: o.expiry > 0, ReceiveMaximum: o.receive, MaximumPacketSize: o.maxSize,
		AuthenticationMethod: o.method, AuthenticationData: []byte(o.data)}
	if o.envelope {
		pk.Properties.User = []packets.UserProperty{{Key: "envelope", Val: "json"}}
	}
	if o.noReason {
		pk.Properties.RequestProblemInfo, pk.Properties.RequestProblemInfoFlag = 0, true
	}
	if err := d.write(pk); err != nil {
		return nil, err
	}
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	ack, err := d.read()
	if err != nil {
		return nil, fmt.Errorf("no CONNACK: %w", err)
	}
	if ack.FixedHeader.Type != packets.Connack {
		return nil, fmt.Errorf("the first packet is %d, not CONNACK", ack.FixedHeader.Type)
	}
	_ = nc.SetReadDeadline(time.Time{})
	d.Connack = ack
	go d.listen()
	return d, nil
}

func (d *Device) write(pk packets.Packet) error {
	pk.ProtocolVersion = d.v
	pk.Mods.AllowResponseInfo = true
	var buf bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Puback:
		err = pk.PubackEncode(&buf)
	case packets.Pubrel:
		err = pk.PubrelEncode(&buf)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&buf)
	case packets.Unsubscribe:
		err = pk.UnsubscribeEncode(&buf)
	case packets.Pingreq:
		err = pk.PingreqEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	case packets.Auth:
		err = pk.AuthEncode(&buf)
	}
	if err != nil {
		return err
	}
	return d.Raw(buf.Bytes())
}

// Raw writes bytes as they are.
func (d *Device) Raw(b []byte) error {
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	_, err := d.nc.Write(b)
	return err
}

func (d *Device) read() (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: d.v}
	one := []byte{0}
	if _, err := readFull(d.nc, one); err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(one[0]); err != nil {
		return pk, err
	}
	n, shift := 0, 0
	for {
		if _, err := readFull(d.nc, one); err != nil {
			return pk, err
		}
		n |= int(one[0]&0x7f) << shift
		if shift += 7; one[0]&0x80 == 0 {
			break
		}
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := readFull(d.nc, body); err != nil {
		return pk, err
	}
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		if n == 1 {
			pk.ReasonCode = body[0]
		} else {
			err = pk.DisconnectDecode(body)
		}
	case packets.Auth:
		err = pk.AuthDecode(body)
	}
	return pk, err
}

func readFull(nc net.Conn, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := nc.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (d *Device) listen() {
	for {
		pk, err := d.read()
		if err == nil && pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 1 && !d.manual {
			d.Ack(pk.PacketID) // before the play sees it: Leave must not overtake the acknowledgement
		}
		d.mu.Lock()
		switch {
		case err != nil:
			d.ended = true
		case pk.FixedHeader.Type == packets.Publish:
			d.got = append(d.got, pk)
		case pk.FixedHeader.Type == packets.Disconnect:
			d.bye = &pk
		default:
			d.acks[ackKey(pk.FixedHeader.Type, pk.PacketID)] = pk
		}
		close(d.changed)
		d.changed = make(chan struct{})
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func ackKey(typ byte, id uint16) string { return strconv.Itoa(int(typ)) + "/" + strconv.Itoa(int(id)) }

// await waits until fn is true, under the device's lock.
func (d *Device) await(fn func() bool) error {
	timeout := time.After(patience)
	for {
		d.mu.Lock()
		ok, ended, changed := fn(), d.ended, d.changed
		d.mu.Unlock()
		if ok {
			return nil
		}
		if ended {
			return net.ErrClosed
		}
		select {
		case <-changed:
		case <-timeout:
			return errTimeout
		}
	}
}

// Ack acknowledges a delivery.
func (d *Device) Ack(id uint16) {
	_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: id})
}

// message says what to publish.
type message struct {
	topic       string
	body        string
	qos         byte
	retain, dup bool
	id          uint16 // packet id; 0: the next
	typ         string
	user        []packets.UserProperty
	response    string
	correlation string
	expiry      uint32
	alias       uint16
	text        bool // Payload Format Indicator 1
}

// Outcome is how a publish was answered.
type Outcome struct {
	Code   byte
	Reason string
	Seq    uint64
	TS     int64
	Props  int // number of properties on the acknowledgement
	ID     uint16
}

// Publish publishes at QoS 1 and waits for the PUBACK.
func (d *Device) Publish(topic, body string) Outcome {
	d.t.Helper()
	return d.Send(message{topic: topic, body: body, qos: 1})
}

// Post puts a PUBLISH on the wire and returns its packet id.
func (d *Device) Post(m message) uint16 {
	d.t.Helper()
	if m.qos > 0 && m.id == 0 {
		d.nextID++
		m.id = d.nextID
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.qos, Retain: m.retain, Dup: m.dup}, TopicName: m.topic, Payload: []byte(m.body), PacketID: m.id,
		Properties: packets.Properties{ContentType: m.typ, User: m.user, ResponseTopic: m.response, CorrelationData: []byte(m.correlation), MessageExpiryInterval: m.expiry, TopicAlias: m.alias, TopicAliasFlag: m.alias > 0}}
	if m.text {
		pk.Properties.PayloadFormat, pk.Properties.PayloadFormatFlag = 1, true
	}
	if err := d.write(pk); err != nil {
		d.t.Fatalf("publish to %s: %v", m.topic, err)
	}
	return m.id
}

// Send publishes and waits for the outcome.
func (d *Device) Send(m message) Outcome {
	d.t.Helper()
	id := d.Post(m)
	if m.qos == 0 {
		return Outcome{}
	}
	return d.Outcome(m.qos, id)
}

// Outcome waits for the answer to a publish; at QoS 2 it completes the exchange.
func (d *Device) Outcome(qos byte, id uint16) Outcome {
	d.t.Helper()
	typ := packets.Puback
	if qos == 2 {
		typ = packets.Pubrec
	}
	pk := d.wait(typ, id)
	out := Outcome{Code: pk.ReasonCode, Reason: pk.Properties.ReasonString, ID: id, Props: len(pk.Properties.User)}
	if pk.Properties.ReasonString != "" {
		out.Props++
	}
	for _, u := range pk.Properties.User {
		switch u.Key {
		case "seq":
			out.Seq, _ = strconv.ParseUint(u.Val, 10, 64)
		case "ts":
			out.TS, _ = strconv.ParseInt(u.Val, 10, 64)
		}
	}
	if qos == 2 && pk.ReasonCode < 0x80 {
		_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: id})
		d.wait(packets.Pubcomp, id)
	}
	return out
}

// wait waits for an acknowledgement.
func (d *Device) wait(typ byte, id uint16) (pk packets.Packet) {
	d.t.Helper()
	key := ackKey(typ, id)
	err := d.await(func() bool {
		var ok bool
		if pk, ok = d.acks[key]; ok {
			delete(d.acks, key)
		}
		return ok
	})
	if err != nil {
		d.t.Fatalf("packet type %d for id %d: %v%s", typ, id, err, d.why())
	}
	return pk
}

func (d *Device) why() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bye == nil {
		return ""
	}
	return fmt.Sprintf(" (DISCONNECT 0x%02x %s)", d.bye.ReasonCode, d.bye.Properties.ReasonString)
}

// Got is a received PUBLISH.
type Got struct {
	Topic, Body string
	QoS         byte
	Dup, Retain bool
	ID          uint16
	Type        string
	Props       map[string]string
	Correlation string
	Raw         packets.Packet
}

func got(pk packets.Packet) Got {
	g := Got{Topic: pk.TopicName, Body: string(pk.Payload), QoS: pk.FixedHeader.Qos, Dup: pk.FixedHeader.Dup, Retain: pk.FixedHeader.Retain, ID: pk.PacketID,
		Type: pk.Properties.ContentType, Props: map[string]string{}, Correlation: string(pk.Properties.CorrelationData), Raw: pk}
	for _, u := range pk.Properties.User {
		g.Props[u.Key] = u.Val
	}
	return g
}

// Seq is the message's seq, from the property or the envelope.
func (g Got) Seq() uint64 {
	if s := g.Props["seq"]; s != "" {
		n, _ := strconv.ParseUint(s, 10, 64)
		return n
	}
	var e struct{ Seq uint64 }
	_ = json.Unmarshal([]byte(g.Body), &e)
	return e.Seq
}

// Next waits for the next PUBLISH of any topic but presence/, which comes whenever a
// friend does: a play that is about it awaits it by name.
func (d *Device) Next() Got {
	d.t.Helper()
	return d.NextOf(func(pk packets.Packet) bool { return !strings.HasPrefix(pk.TopicName, "presence/") })
}

// Await waits for the next PUBLISH on topic; those on others stay.
func (d *Device) Await(topic string) Got {
	d.t.Helper()
	g, err := d.next(func(pk packets.Packet) bool { return pk.TopicName == topic })
	if err != nil {
		d.mu.Lock()
		var have []string
		for _, pk := range d.got {
			have = append(have, pk.TopicName)
		}
		d.mu.Unlock()
		d.t.Fatalf("waiting for %s: %v%s; here is %q", topic, err, d.why(), have)
	}
	return g
}

// NextOf waits for the next PUBLISH that fn wants.
func (d *Device) NextOf(fn func(packets.Packet) bool) Got {
	d.t.Helper()
	g, err := d.next(fn)
	if err != nil {
		d.t.Fatalf("waiting for a message: %v%s", err, d.why())
	}
	return g
}

func (d *Device) next(fn func(packets.Packet) bool) (g Got, err error) {
	err = d.await(func() bool {
		for i, pk := range d.got {
			if fn(pk) {
				g = got(pk)
				if i == 0 {
					d.got = d.got[1:] // what comes in turn costs nothing, however much waits
				} else {
					d.got = slices.Delete(d.got, i, i+1)
				}
				return true
			}
		}
		return false
	})
	return g, err
}

// Expect waits for the next message and wants it on topic with body.
func (d *Device) Expect(topic, body string) Got {
	d.t.Helper()
	g := d.Next()
	if g.Topic != topic || g.Body != body {
		d.t.Fatalf("got %s %q, want %s %q", g.Topic, g.Body, topic, body)
	}
	return g
}

// Quiet wants that nothing was sent to the device up to now: what is asked for
// next is answered next.
func (d *Device) Quiet() {
	d.t.Helper()
	d.nextID++
	rid := fmt.Sprintf("quiet%d", d.nextID)
	d.Post(message{topic: "rpc/me.get/" + rid, body: "{}", qos: 1})
	g := d.Next()
	if g.Topic != "re/"+rid {
		d.t.Fatalf("an unexpected message: %s %q", g.Topic, g.Body)
	}
}

// Call makes a request and returns its data.
func (d *Device) Call(op, params string, out any) (code string) {
	d.t.Helper()
	d.nextID++
	rid := fmt.Sprintf("call%d", d.nextID)
	d.Post(message{topic: "rpc/" + op + "/" + rid, body: params, qos: 1})
	g := d.Await("re/" + rid)
	var answer struct {
		OK    bool
		Data  json.RawMessage
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(g.Body), &answer); err != nil {
		d.t.Fatalf("%s: %v: %s", op, err, g.Body)
	}
	if answer.OK && out != nil {
		if err := json.Unmarshal(answer.Data, out); err != nil {
			d.t.Fatalf("%s: %v: %s", op, err, g.Body)
		}
	}
	return answer.Error.Code
}

// Subscribe subscribes and returns the code of the SUBACK.
func (d *Device) Subscribe(filter string, qos byte, more ...func(*packets.Subscription)) byte {
	d.t.Helper()
	sub := packets.Subscription{Filter: filter, Qos: qos}
	for _, m := range more {
		m(&sub)
	}
	return d.SubscribeAll(sub)[0]
}

// SubscribeAll subscribes with one packet and returns the codes of the SUBACK.
func (d *Device) SubscribeAll(subs ...packets.Subscription) []byte {
	d.t.Helper()
	d.nextID++
	id := d.nextID
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id, Filters: subs}
	if n := subs[0].Identifier; n > 0 {
		pk.Properties.SubscriptionIdentifier = []int{n}
	}
	if err := d.write(pk); err != nil {
		d.t.Fatal(err)
	}
	return d.wait(packets.Suback, id).ReasonCodes
}

// Unsubscribe unsubscribes.
func (d *Device) Unsubscribe(filter string) {
	d.t.Helper()
	d.nextID++
	id := d.nextID
	err := d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: id, Filters: packets.Subscriptions{{Filter: filter}}})
	if err != nil {
		d.t.Fatal(err)
	}
	d.wait(packets.Unsuback, id)
}

// Reauthenticate renews the token of the connection.
func (d *Device) Reauthenticate(token string) {
	_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Auth}, ReasonCode: 0x19,
		Properties: packets.Properties{AuthenticationMethod: "token", AuthenticationData: []byte(token)}})
}

// Leave says DISCONNECT and waits for the server to close.
func (d *Device) Leave() {
	d.t.Helper()
	_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	d.Gone()
}

// Drop breaks the connection without a word.
func (d *Device) Drop() { _ = d.nc.Close() }

// Gone waits until the server has closed the connection and returns the reason
// code of its DISCONNECT, 0 if there was none.
func (d *Device) Gone() byte {
	d.t.Helper()
	err := d.await(func() bool { return d.ended })
	if err != nil {
		d.t.Fatalf("the connection is still open: %v", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bye == nil {
		return 0
	}
	return d.bye.ReasonCode
}
