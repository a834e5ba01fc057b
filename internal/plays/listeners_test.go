package plays

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// certificate writes a new self-signed pair and returns its serial number.
func certificate(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "parley"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestTLSAndANewCertificate(t *testing.T) {
	t.Parallel()
	dir, addr := t.TempDir(), freePort(t)
	certificate(t, dir, 1)
	h := Open(t, "--mqtt.tls.addr", addr, "--mqtt.tls.cert", filepath.Join(dir, "cert.pem"), "--mqtt.tls.key", filepath.Join(dir, "key.pem"))
	alice := h.Person("alice")
	serial := func() int64 {
		nc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		return nc.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Fatalf("serial %d", n)
	}
	nc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	d := over(t, nc, alice)
	if out := d.Publish("dm/alice", "over TLS"); out.Seq != 1 {
		t.Errorf("%+v", out)
	}
	certificate(t, dir, 2)
	deadline := time.Now().Add(patience)
	for serial() != 2 {
		if time.Now().After(deadline) {
			t.Fatal("the new certificate was never served")
		}
		time.Sleep(50 * time.Millisecond) // a poll of the condition
	}
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // longer than the server waits before it looks at the files again
	if n := serial(); n != 2 {
		t.Errorf("after a bad file: serial %d, want the old one", n)
	}
	if out := d.Publish("dm/alice", "still there"); out.Seq != 2 {
		t.Errorf("%+v", out)
	}
}

// over connects p's device on a connection that stands.
func over(t *testing.T, nc net.Conn, p *Person) *Device {
	t.Helper()
	t.Cleanup(func() { _ = nc.Close() })
	d := &Device{t: t, nc: nc, v: V5, acks: map[string]packets.Packet{}, changed: make(chan struct{})}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: "over",
		UsernameFlag: true, Username: []byte(p.Name), PasswordFlag: true, Password: []byte(p.Token)}}
	if err := d.write(pk); err != nil {
		t.Fatal(err)
	}
	ack, err := d.read()
	if err != nil || ack.ReasonCode != 0 {
		t.Fatalf("CONNACK %+v %v", ack, err)
	}
	d.Connack = ack
	go d.listen()
	return d
}

func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	h := Open(t, "--mqtt.proxy-protocol", "127.0.0.1/32", "--mqtt.max-per-ip", "2")
	alice := h.Person("alice")
	// v2, PROXY, TCP over IPv4, 192.0.2.N:4660 to 127.0.0.1:1883.
	header := func(n byte) []byte {
		return []byte{0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12, 192, 0, 2, n, 127, 0, 0, 1, 0x12, 0x34, 0x07, 0x5b}
	}
	dialAs := func(n byte) net.Conn {
		nc, err := net.Dial("tcp", h.MQTT)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write(header(n))
		return nc
	}
	over(t, dialAs(1), alice)
	over(t, dialAs(1), alice)
	// Two are held by 192.0.2.1 (the first was taken over, and may be closing): fill up and be refused.
	a, b := dialAs(2), dialAs(2)
	defer func() { _ = a.Close(); _ = b.Close() }()
	refused := dialAs(2)
	_ = refused.SetReadDeadline(time.Now().Add(patience))
	if _, err := refused.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a third connection of one address: %v", err)
	}
	over(t, dialAs(3), alice) // another address is not concerned
	// A proxy that sends no header is not believed to be the client.
	bare, err := net.Dial("tcp", h.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = bare.Write([]byte{0x10, 0x0d, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 1, 'x'})
	_ = bare.SetReadDeadline(time.Now().Add(patience))
	if _, err := bare.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("without a PROXY header: %v", err)
	}
}

func TestWebSocketHandshake(t *testing.T) {
	h, _, _ := stage(t, "--http.origins", "https://chat.example.org")
	for _, tt := range []struct {
		why, origin, protocol string
		status                int
	}{
		{"no browser", "", "mqtt", 101},
		{"our own page", "http://" + h.HTTP, "mqtt", 101},
		{"an allowed origin", "https://chat.example.org", "mqtt", 101},
		{"another origin", "https://evil.example", "mqtt", 403},
		{"a look-alike", "https://chat.example.org.evil.example", "mqtt", 403},
		{"a null origin", "null", "mqtt", 403},
		{"no subprotocol", "", "", 400},
		{"another subprotocol", "", "chat", 400},
	} {
		req, _ := http.NewRequest("GET", "http://"+h.HTTP+"/mqtt", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		req.Header.Set("Sec-WebSocket-Version", "13")
		req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		if tt.origin != "" {
			req.Header.Set("Origin", tt.origin)
		}
		if tt.protocol != "" {
			req.Header.Set("Sec-WebSocket-Protocol", tt.protocol)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != tt.status {
			t.Errorf("%s: %s, want %d", tt.why, res.Status, tt.status)
		}
	}
}

// TestHTTPConnectionsAreBounded: idle ones, too, and those of WebSocket are MQTT's.
func TestHTTPConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	h := Open(t, "--http.max-connections=3")
	alice := h.Person("alice")
	http.DefaultClient.CloseIdleConnections()
	open := func() net.Conn {
		nc, err := net.Dial("tcp", h.HTTP)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(patience))
		return nc
	}
	answers := func(nc net.Conn) bool {
		if _, err := nc.Write([]byte("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			return false
		}
		n, _ := nc.Read(make([]byte, 12))
		return n > 0
	}
	var held []net.Conn
	for range 3 {
		nc := open()
		for !answers(nc) { // until the server has noticed that those before are gone
			nc = open()
		}
		held = append(held, nc)
	}
	if answers(open()) {
		t.Error("a fourth connection is served")
	}
	alice.Connect("phone").Publish("dm/alice", "MQTT is not HTTP")
	_ = held[0].Close()
	for !answers(open()) {
	}
}

func TestOperatorsListener(t *testing.T) {
	h, alice, _ := stage(t)
	alice.Connect("phone").Publish("dm/bob", "counted")
	get := func(path string) (int, string) {
		status, body, err := (&Person{h: &House{t: t, HTTP: h.Metrics}}).call("GET", path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return status, string(body)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := get(path); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	_, text := get("/metrics")
	for _, want := range []string{`parley_messages_accepted_total{kind="dm"} 1`, "parley_connections 1", "parley_commit_duration_seconds_count", "parley_build_info"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if status, _ := get("/debug/pprof/"); status != 200 {
		t.Errorf("pprof: %d", status)
	}
	for _, secret := range []string{"correct-horse", "counted"} {
		if strings.Contains(h.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

func TestPlainQoS2IsOnceAcrossConnections(t *testing.T) {
	h := plainHouse(t)
	alice, bob := h.Person("alice"), h.Person("bob")
	b := bob.Connect("phone")
	b.Subscribe("open/#", 1)
	a := alice.Connect("lamp")
	id := a.Post(message{topic: "open/x", body: "once", qos: 2, id: 9})
	a.wait(packets.Pubrec, id)
	a.Drop()
	a = alice.Connect("lamp")
	a.Post(message{topic: "open/x", body: "once", qos: 2, id: 9, dup: true})
	a.wait(packets.Pubrec, id)
	b.Expect("open/x", "once")
	b.Quiet()
}
