package hooks_test

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/eclipse/paho.golang/packets"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/hooks"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/plain"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

// door lets everybody in, and may withdraw what it gave before the session starts.
type door struct{ withdrawn atomic.Bool }

func (d *door) CheckConnect(_ context.Context, user string, _ []byte, _ im.DeviceID, _ string) (auth.Identity, error) {
	return auth.Identity{User: im.UserID(user)}, nil
}
func (d *door) CheckToken(context.Context, string) (auth.Identity, error) {
	return auth.Identity{}, im.Refuse(im.Unauthorized, "", "no tokens here")
}
func (d *door) StillValid(auth.Identity) bool { return !d.withdrawn.Load() }

// TestRevokedBeforeTheSessionStarts: credentials are withdrawn after they were
// checked, and before there was a line whose connection could have been closed. The
// session ends with its first word, and gets nothing of what waits for it.
func TestRevokedBeforeTheSessionStarts(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	st, err := pebblestore.Open("db", pebblestore.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	var d door
	lines := delivery.New(delivery.Options{Source: st})
	rooms := hooks.New(hooks.Options{
		Auth: &d, Delivery: lines, Store: st, Plain: plain.New(nil, nil),
		Chat: chat.New(chat.Options{Store: st, Courier: lines}),
	})
	b, err := broker.New(broker.Options{Gate: rooms})
	if err != nil {
		t.Fatal(err)
	}
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	running := make(chan error, 1)
	go func() { running <- lines.Run(ctx) }()
	go func() {
		for {
			nc, err := nl.Accept()
			if err != nil {
				return
			}
			go b.Handle(nc, func() {})
		}
	}()
	t.Cleanup(func() {
		_ = nl.Close()
		b.Shutdown(context.Background())
		stop()
		<-running
		_ = st.Close()
	})

	bob := im.DeviceKey{User: "bob", Device: "phone"}
	c := connect(t, nl, bob)
	_ = c.Close()
	waitGone(t, lines, bob)
	told := make(chan error, 1)
	st.Append(&store.Append{Entry: im.Entry{Conv: im.DM("alice", "bob"), From: "alice", Device: "d", Body: []byte("not for you any more")},
		Done: func(a *store.Append) {
			if a.Err == nil {
				lines.Offer(&a.Entry)
			}
			told <- a.Err
		}})
	if err := <-told; err != nil {
		t.Fatal(err)
	}

	d.withdrawn.Store(true)
	c = connect(t, nl, bob)
	pk := read(t, c)
	if bye, ok := pk.Content.(*packets.Disconnect); !ok || bye.ReasonCode != packets.DisconnectNotAuthorized {
		t.Errorf("after the CONNACK came %v, want a DISCONNECT with 0x87", pk)
	}
	waitGone(t, lines, bob)

	d.withdrawn.Store(false) // the control: with credentials it comes
	pk = read(t, connect(t, nl, bob))
	if p, ok := pk.Content.(*packets.Publish); !ok || string(p.Payload) != "not for you any more" {
		t.Errorf("after the CONNACK came %v, want the message", pk)
	}
}

func connect(t *testing.T, nl net.Listener, k im.DeviceKey) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", nl.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	hour := uint32(3600)
	hello := &packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: string(k.Device), UsernameFlag: true, Username: string(k.User),
		Properties: &packets.Properties{SessionExpiryInterval: &hour}}
	if _, err := hello.WriteTo(c); err != nil {
		t.Fatal(err)
	}
	if ack, ok := read(t, c).Content.(*packets.Connack); !ok || ack.ReasonCode != 0 {
		t.Fatalf("CONNACK: %+v", ack)
	}
	return c
}

func read(t *testing.T, c net.Conn) *packets.ControlPacket {
	t.Helper()
	pk, err := packets.ReadPacket(c)
	if err != nil {
		t.Fatal(err)
	}
	return pk
}

func waitGone(t *testing.T, d *delivery.Delivery, k im.DeviceKey) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); d.Line(k) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(fmt.Sprint(k, " is still connected"))
		}
	}
}
