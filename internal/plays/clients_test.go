package plays

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	mqtt311 "github.com/eclipse/paho.mqtt.golang"
)

// lines starts a program and sends what it prints, line by line.
func lines(t *testing.T, name string, args ...string) <-chan string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return scan(out)
}

// scan sends what a program prints, line by line.
func scan(out io.Reader) <-chan string {
	ch := make(chan string, 1000) // full: the play reads too little, and the program waits
	go func() {
		defer close(ch)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			ch <- sc.Text()
		}
	}()
	return ch
}

func nextLine(t *testing.T, ch <-chan string) string {
	t.Helper()
	select {
	case s, ok := <-ch:
		if !ok {
			t.Fatal("the program ended")
		}
		return s
	case <-time.After(patience):
		t.Fatal("the program printed nothing")
	}
	return ""
}

// online waits until the person has a device connected.
func (p *Person) online(device string) {
	p.h.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		var devices []struct {
			Device string
			Online bool
		}
		p.must(200, "GET", "/v1/devices", nil, &devices)
		for _, d := range devices {
			if d.Device == device && d.Online {
				return
			}
		}
		time.Sleep(20 * time.Millisecond) // a poll of the condition
	}
	p.h.t.Fatalf("%s/%s never came online", p.Name, device)
}

func TestMosquittoAsInTheReadme(t *testing.T) {
	pub, sub := need(t, "mosquitto_pub"), need(t, "mosquitto_sub")
	h, alice, bob := stage(t)
	_, port, _ := strings.Cut(h.MQTT, ":")
	login := func(p *Person, device string) []string {
		return []string{"-p", port, "-u", p.Name, "-P", p.password(), "-i", device, "-q", "1"}
	}
	old := lines(t, sub, append(login(bob, "phone"), "-c", "-t", "dm/+", "-v")...)
	five := lines(t, sub, append(login(bob, "tablet"), "-V", "5", "-c", "-t", "dm/+", "-v")...)
	bob.online("phone")
	bob.online("tablet")
	if out, err := exec.Command(pub, append(login(alice, "phone"), "-t", "dm/bob", "-m", "lunch?")...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s := nextLine(t, five); s != "dm/alice lunch?" {
		t.Errorf("MQTT 5: %q", s)
	}
	s := nextLine(t, old)
	topic, body, _ := strings.Cut(s, " ")
	var e entry
	if err := json.Unmarshal([]byte(body), &e); err != nil || topic != "dm/alice" || e.Text != "lunch?" || e.From != "alice" || e.Seq != 1 {
		t.Errorf("MQTT 3.1.1: %q", s)
	}
}

func TestPahoGolang(t *testing.T) {
	h, alice, bob := stage(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got := make(chan *paho.Publish, 10)
	server, _ := url.Parse("mqtt://" + h.MQTT)
	cm, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{server}, ConnectUsername: bob.Name, ConnectPassword: []byte(bob.Token), KeepAlive: 20, SessionExpiryInterval: 3600,
		ConnectPacketBuilder: func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			c.Properties.RequestProblemInfo = true // else it asks for acknowledgements without properties
			return c, nil
		},
		ClientConfig: paho.ClientConfig{ClientID: "paho", OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			if !strings.HasPrefix(p.Packet.Topic, "presence/") {
				got <- p.Packet
			}
			return true, nil
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cm.Disconnect(context.Background()) }()
	if err := cm.AwaitConnection(ctx); err != nil {
		t.Fatal(err)
	}
	ack, err := cm.Publish(ctx, &paho.Publish{Topic: "dm/alice", QoS: 2, Payload: []byte("hi")})
	if err != nil || ack.Properties.User.Get("seq") != "1" {
		t.Fatalf("%+v %v", ack, err)
	}
	alice.Connect("phone").Publish("dm/bob", "hello")
	select {
	case p := <-got:
		if p.Topic != "dm/alice" || string(p.Payload) != "hello" || p.Properties.User.Get("seq") != "2" {
			t.Errorf("%+v", p)
		}
	case <-ctx.Done():
		t.Fatal("nothing came")
	}
}

func TestPahoMQTTGolang(t *testing.T) {
	h, alice, bob := stage(t)
	got := make(chan mqtt311.Message, 10)
	c := mqtt311.NewClient(mqtt311.NewClientOptions().AddBroker("tcp://" + h.MQTT).SetClientID("paho311").SetUsername(bob.Name).SetPassword(bob.password()).
		SetCleanSession(false).SetDefaultPublishHandler(func(_ mqtt311.Client, m mqtt311.Message) {
		if !strings.HasPrefix(m.Topic(), "presence/") {
			got <- m
		}
	}))
	if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	defer c.Disconnect(100)
	for _, qos := range []byte{0, 1, 2} {
		if tok := c.Publish("dm/alice", qos, false, "x"); !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatal(qos, tok.Error())
		}
	}
	alice.Connect("phone").Publish("dm/bob", "hello")
	select {
	case m := <-got:
		if m.Topic() != "dm/alice" || !strings.Contains(string(m.Payload()), `"text":"hello"`) {
			t.Errorf("%s %s", m.Topic(), m.Payload())
		}
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	if n := len(alice.History("dm/bob")); n != 4 {
		t.Errorf("%d messages: a message is stored whatever its QoS", n)
	}
}

func TestMQTTJS(t *testing.T) {
	node := need(t, "node")
	if _, err := os.Stat(filepath.Join("js", "node_modules", "mqtt")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("mqtt.js is not installed")
		}
		t.Skip("SKIPPED: mqtt.js is not installed; make setup installs it")
	}
	h, alice, bob := stage(t)
	a := alice.Connect("phone")
	for _, at := range []string{"mqtt://" + h.MQTT, "ws://" + h.HTTP + "/mqtt"} {
		for _, version := range []string{"4", "5"} {
			device := "js" + version + at[:2]
			out := lines(t, node, filepath.Join("js", "echo.js"), at, version, bob.Name, bob.Token, device)
			if s := nextLine(t, out); s != "connected" {
				t.Fatalf("%s v%s: %s", at, version, s)
			}
			a.Publish("dm/bob", "ping "+device)
			// The script answers what it got; the answer comes back to alice.
			g := a.Await("dm/bob")
			if !strings.Contains(g.Body, "ping "+device) {
				t.Errorf("%s v%s answered %q", at, version, g.Body)
			}
			if s := nextLine(t, out); s != "acknowledged" {
				t.Errorf("%s v%s: %s", at, version, s)
			}
		}
	}
}
