package load

import (
	"bufio"
	"encoding/binary"
	"net"
	"sync"
	"testing"
)

// fakeBroker is a broker of one level of topics whose deliveries a test spoils:
// spoil gets each message with its number, from 1, and returns what subscribers
// get instead.
type fakeBroker struct {
	addr  string
	spoil func(n int, payload []byte) [][]byte
	first chan struct{} // closed at the first publish

	mu    sync.Mutex
	n     int
	subs  map[string][]*conn
	conns []net.Conn
}

func newFakeBroker(t *testing.T, spoil func(int, []byte) [][]byte) *fakeBroker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBroker{addr: l.Addr().String(), spoil: spoil, subs: map[string][]*conn{}, first: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns = append(b.conns, nc)
			b.mu.Unlock()
			wg.Go(func() { b.serve(nc) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		b.mu.Lock()
		for _, nc := range b.conns {
			_ = nc.Close()
		}
		b.mu.Unlock()
		wg.Wait()
	})
	return b
}

func (b *fakeBroker) serve(nc net.Conn) {
	defer func() { _ = nc.Close() }()
	c := &conn{nc: nc}
	c.in = bufio.NewReader(countingReader{c})
	for {
		first, body, err := c.next()
		if err != nil {
			return
		}
		b.mu.Lock()
		switch first >> 4 {
		case connect:
			c.frame(connack<<4, []byte{0, 0})
		case subscribe:
			n := binary.BigEndian.Uint16(body[2:])
			topic := string(body[4 : 4+n])
			b.subs[topic] = append(b.subs[topic], c)
			c.frame(suback<<4, []byte{body[0], body[1], 1})
		case publish:
			d, err := parsePublish(first, body, false)
			if err != nil {
				b.mu.Unlock()
				return
			}
			c.ack(d.id)
			b.deliver(string(d.topic), d.payload)
		}
		_ = c.flush()
		b.mu.Unlock()
	}
}

func (b *fakeBroker) deliver(topic string, payload []byte) {
	if b.n++; b.n == 1 {
		close(b.first)
	}
	for _, p := range b.spoil(b.n, payload) {
		for _, s := range b.subs[topic] {
			s.publish(topic, 1, p)
			_ = s.flush()
		}
	}
}

func faithful(_ int, p []byte) [][]byte { return [][]byte{p} }

func (b *fakeBroker) open(t *testing.T) *Target {
	t.Helper()
	target, err := Open(t.Context(), Spec{Name: "fake", Address: b.addr, Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	return target
}
