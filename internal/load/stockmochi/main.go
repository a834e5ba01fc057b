// Command stockmochi runs mochi-mqtt as it comes, allowing everybody and storing
// nothing, on a loopback port: what Parley is measured against.
package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// allow lets everybody do everything.
type allow struct{ mqtt.HookBase }

func (*allow) ID() string                                              { return "allow" }
func (*allow) Provides(h byte) bool                                    { return h == mqtt.OnConnectAuthenticate || h == mqtt.OnACLCheck }
func (*allow) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*allow) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

func main() {
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := s.AddHook(new(allow), nil); err != nil {
		fail(err)
	}
	l := listeners.NewTCP(listeners.Config{ID: "tcp", Address: "127.0.0.1:0"})
	if err := s.AddListener(l); err != nil {
		fail(err)
	}
	if err := s.Serve(); err != nil {
		fail(err)
	}
	fmt.Println("ready: mqtt=" + l.Address())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	_ = s.Close()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
