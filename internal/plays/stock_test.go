package plays

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// broker is a server that the same script is played to: Parley with an open
// plain space, or stock mochi-mqtt.
type broker struct {
	h     *House
	login func(*connectOptions)
	other func(*connectOptions) // another user
	stock bool
	died  <-chan error
}

func (b *broker) connect(t *testing.T, client string, opts ...option) *Device {
	t.Helper()
	o := connectOptions{version: V5, expiry: 100}
	b.login(&o)
	for _, opt := range opts {
		opt(&o)
	}
	d, err := dial(b.h, client, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestWhatStockMochiLetsAClientDo plays each script to stock mochi-mqtt, where
// it must show the fault, and to Parley, where it must not. When a newer mochi
// mends one, its half fails here, and a work-around may go.
func TestWhatStockMochiLetsAClientDo(t *testing.T) {
	mochi := filepath.Join(t.TempDir(), "stockmochi")
	if out, err := exec.Command("go", "build", "-o", mochi, "github.com/parley-im/parley/internal/load/stockmochi").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, tt := range []struct {
		fault  string
		faulty func(t *testing.T, b *broker) bool
	}{
		{"a SUBSCRIBE without its options byte kills the process", killsProcess},
		{"a huge Remaining Length is trusted before authentication", trustsLength},
		{"a Remaining Length of more than four bytes is read on", endlessLength},
		{"a connection that says nothing stays for ever", staysSilent},
		{"a filter of thousands of levels enters the topic tree", deepFilter},
		{"a filter like a+ is granted", invalidFilter},
		{"a reader that stalls blocks those who publish to it", stalledReader},
		{"a client's SUBSCRIBE collides with the server's packet ids", sharedPacketIDs},
		{"with a Receive Maximum, delivery stops for ever", receiveMaximumStalls},
		{"what was not acknowledged is resent in random order", resendOrder},
		{"another user's client id takes the session over", sessionOfAnother},
		{"a publish with an unknown topic alias is accepted", unknownAlias},
		{"a will goes where its sender may not publish", uncheckedWill},
		{"PUBACK echoes the publisher's properties", echoedProperties},
		{"a keep-alive above 43,690 s overflows", keepAliveOverflow},
		{"a malformed packet gets no reason", bareClose},
		{"a QoS 2 publish that is repeated is refused", repeatedQoS2},
	} {
		t.Run(tt.fault, func(t *testing.T) {
			t.Parallel()
			if !tt.faulty(t, openStock(t, mochi)) {
				t.Error("stock mochi-mqtt does not show this fault any more")
			}
			if tt.faulty(t, openParley(t)) {
				t.Error("Parley shows this fault")
			}
		})
	}
}

func openStock(t *testing.T, bin string) *broker {
	cmd := exec.Command(bin)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	line, err := bufio.NewReader(pipe).ReadString('\n')
	go func() { died <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	_, addr, ok := strings.Cut(strings.TrimSpace(line), "mqtt=")
	if err != nil || !ok {
		t.Fatalf("stock mochi did not start: %q %v", line, err)
	}
	none := func(*connectOptions) {}
	return &broker{h: &House{t: t, MQTT: addr}, login: none, other: none, stock: true, died: died}
}

func openParley(t *testing.T) *broker {
	file := filepath.Join(t.TempDir(), "parley.yaml")
	conf := "limits: {off: true}\nmqtt: {connect_timeout: 1s}\nrules: [{deny: publish, topic: forbidden}, {allow: all, topic: '#'}]\n"
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	h := Open(t, "--config", file)
	as := func(name string) func(*connectOptions) {
		p := h.Person(name)
		return func(o *connectOptions) { o.username, o.password = p.Name, p.Token }
	}
	return &broker{h: h, login: as("alice"), other: as("mallory"), died: h.exit}
}

// open reports whether the server keeps a connection open that it should close:
// it is still there after a while.
func (b *broker) open(t *testing.T, nc net.Conn) bool {
	t.Helper()
	_ = nc.SetReadDeadline(time.Now().Add(4 * time.Second))
	one := make([]byte, 64)
	for {
		if _, err := nc.Read(one); err != nil {
			return errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

func (b *broker) stranger(t *testing.T, bytes ...byte) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", b.h.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_, _ = nc.Write(bytes)
	return nc
}

func killsProcess(t *testing.T, b *broker) bool {
	bystander := b.connect(t, "bystander")
	_ = b.connect(t, "attacker").Raw([]byte{0x82, 0x06, 0, 1, 0, 0, 1, 'a'})
	if !b.stock {
		return bystander.Send(message{topic: "x", body: "alive", qos: 1}).Code >= 0x80
	}
	select {
	case <-b.died:
		return true
	case <-time.After(patience):
		return false
	}
}

func trustsLength(t *testing.T, b *broker) bool {
	return b.open(t, b.stranger(t, 0x10, 0xff, 0xff, 0xff, 0x7f, 0))
}

func endlessLength(t *testing.T, b *broker) bool {
	return b.open(t, b.stranger(t, 0x10, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80))
}

func staysSilent(t *testing.T, b *broker) bool { return b.open(t, b.stranger(t)) }

func deepFilter(t *testing.T, b *broker) bool {
	return b.connect(t, "c").Subscribe(strings.Repeat("/", 2000), 1) < 0x80
}

func invalidFilter(t *testing.T, b *broker) bool { return b.connect(t, "c").Subscribe("a+", 1) < 0x80 }

// stalledReader: a subscriber stops reading; is its publisher still answered?
func stalledReader(t *testing.T, b *broker) bool {
	sub := b.connect(t, "sub")
	sub.Subscribe("x", 1)
	// A second connection that subscribes and never reads.
	o := connectOptions{version: V5, expiry: 100}
	b.login(&o)
	nc := b.stranger(t)
	if tc, ok := nc.(*net.TCPConn); ok {
		_ = tc.SetReadBuffer(4096)
	}
	d := &Device{t: t, nc: nc, v: V5, acks: map[string]packets.Packet{}, changed: make(chan struct{})}
	_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: "stalled", Clean: true,
		UsernameFlag: o.username != "", Username: []byte(o.username), PasswordFlag: o.password != "", Password: []byte(o.password)}})
	_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1, Filters: packets.Subscriptions{{Filter: "x", Qos: 1}}})
	pub := b.connect(t, "pub")
	body := strings.Repeat("x", 10_000)
	for i := range 1500 { // 15 MB: more than socket buffers take
		pub.Post(message{topic: "x", body: body, qos: 1, id: uint16(i + 1)})
		if _, ok := pub.quickAck(uint16(i + 1)); !ok {
			return true
		}
	}
	return false
}

// quickAck waits for a PUBACK, but less long than patience.
func (d *Device) quickAck(id uint16) (packets.Packet, bool) {
	key := ackKey(packets.Puback, id)
	deadline := time.After(5 * time.Second)
	for {
		d.mu.Lock()
		pk, ok := d.acks[key]
		changed := d.changed
		d.mu.Unlock()
		if ok {
			return pk, true
		}
		select {
		case <-changed:
		case <-deadline:
			return pk, false
		}
	}
}

func sharedPacketIDs(t *testing.T, b *broker) bool {
	sub, pub := b.connect(t, "sub", manual), b.connect(t, "pub")
	sub.Subscribe("x", 1)
	pub.Send(message{topic: "x", body: "1", qos: 1})
	outstanding := sub.Await("x").ID
	sub.nextID = outstanding - 1
	return sub.Subscribe("y", 1) == 0x91
}

func receiveMaximumStalls(t *testing.T, b *broker) bool {
	sub, pub := b.connect(t, "sub", withReceiveMaximum(10), manual), b.connect(t, "pub")
	sub.Subscribe("x", 1)
	for i := range 100 {
		pub.Send(message{topic: "x", body: fmt.Sprint(i), qos: 1})
	}
	for range 100 {
		g, ok := sub.quickNext()
		if !ok {
			return true
		}
		sub.Ack(g.ID)
	}
	return false
}

func (d *Device) quickNext() (Got, bool) {
	deadline := time.After(3 * time.Second)
	for {
		d.mu.Lock()
		if len(d.got) > 0 {
			pk := d.got[0]
			d.got = d.got[1:]
			d.mu.Unlock()
			return got(pk), true
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			return Got{}, false
		}
	}
}

func resendOrder(t *testing.T, b *broker) bool {
	sub, pub := b.connect(t, "sub", manual), b.connect(t, "pub")
	sub.Subscribe("x", 1)
	const n = 50
	for i := range n {
		pub.Send(message{topic: "x", body: fmt.Sprint(i), qos: 1})
	}
	for range n {
		sub.Await("x")
	}
	sub.Drop()
	sub = b.connect(t, "sub")
	for i := range n {
		if sub.Await("x").Body != fmt.Sprint(i) {
			return true
		}
	}
	return false
}

func sessionOfAnother(t *testing.T, b *broker) bool {
	victim := b.connect(t, "phone")
	thief := b.connect(t, "phone", b.other)
	if thief.Connack.SessionPresent {
		return true
	}
	victim.Subscribe("x", 1)
	thief.Send(message{topic: "x", body: "hi", qos: 1})
	_, ok := victim.quickNext()
	return !ok
}

func unknownAlias(t *testing.T, b *broker) bool {
	d := b.connect(t, "c")
	d.Post(message{topic: "", body: "x", qos: 1, id: 1, alias: 9})
	pk, ok := d.quickAck(1)
	return ok && pk.ReasonCode < 0x80
}

func uncheckedWill(t *testing.T, b *broker) bool {
	sub := b.connect(t, "sub")
	sub.Subscribe("forbidden", 1)
	o := connectOptions{version: V5, will: &will{topic: "forbidden", body: "boo", qos: 1}}
	b.login(&o)
	d, err := dial(b.h, "dying", o)
	if err != nil || d.Connack.ReasonCode >= 0x80 {
		return false
	}
	d.Drop()
	_, ok := sub.quickNext()
	return ok
}

func echoedProperties(t *testing.T, b *broker) bool {
	d := b.connect(t, "c")
	d.Post(message{topic: "x", body: "x", qos: 1, id: 3, user: []packets.UserProperty{{Key: "mine", Val: "1"}}})
	pk, ok := d.quickAck(3)
	return ok && len(pk.Properties.User) > 0 && pk.Properties.User[0].Key == "mine"
}

func keepAliveOverflow(t *testing.T, b *broker) bool {
	o := connectOptions{version: V5, keep: 43691}
	b.login(&o)
	d, err := dial(b.h, "c", o)
	if err != nil {
		return true // it does not even get its CONNACK
	}
	d.Post(message{topic: "x", body: "x", qos: 1, id: 1})
	if _, ok := d.quickAck(1); !ok {
		return true
	}
	gone := make(chan struct{})
	go func() {
		_ = d.await(func() bool { return d.ended })
		close(gone)
	}()
	select {
	case <-gone:
		return true
	case <-time.After(time.Second):
		return false
	}
}

func bareClose(t *testing.T, b *broker) bool {
	d := b.connect(t, "c")
	_ = d.Raw([]byte{0x30, 0x03, 0, 5, 'a'}) // a topic longer than the packet
	return d.Gone() == 0
}

func repeatedQoS2(t *testing.T, b *broker) bool {
	d := b.connect(t, "c")
	d.Post(message{topic: "x", body: "x", qos: 2, id: 1})
	d.wait(packets.Pubrec, 1)
	d.Post(message{topic: "x", body: "x", qos: 2, id: 1, dup: true})
	return d.wait(packets.Pubrec, 1).ReasonCode >= 0x80
}
