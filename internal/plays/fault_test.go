package plays

import (
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestWhenTheDiskIsFull: nothing is acknowledged, everybody is told, what was
// there can be read, and all is well again when there is room.
func TestWhenTheDiskIsFull(t *testing.T) {
	h, alice, bob := stage(t)
	alice.Connect("phone").Publish("dm/bob", "before")
	bob.Connect("phone").Leave()
	h.Stop()
	usual := h.args
	h.args = append(usual, "--store.min-free", "1000000GB") // more than any disk has
	h.Start()

	a := alice.Connect("phone") // known: it may come in and read
	a.Post(message{topic: "dm/bob", body: "during", qos: 1, id: 1})
	if code := a.Gone(); code != 0x89 {
		t.Errorf("DISCONNECT 0x%02x, want 0x89", code)
	}
	a.mu.Lock()
	if _, acked := a.acks[ackKey(packets.Puback, 1)]; acked {
		t.Error("acknowledged without a commit")
	}
	a.mu.Unlock()
	for v, want := range map[byte]byte{V5: 0x88, V311: 3} {
		if d := alice.Connect("new", anyCode, func(o *connectOptions) { o.version = v }); d.Connack.ReasonCode != want {
			t.Errorf("a new device (v%d): CONNACK 0x%02x, want 0x%02x", v, d.Connack.ReasonCode, want)
		}
	}
	if msgs := bob.History("dm/alice"); len(msgs) != 1 {
		t.Errorf("%d messages can be read", len(msgs))
	}
	status, body, err := (&Person{h: &House{t: t, HTTP: h.Metrics}}).call("GET", "/readyz", nil)
	if err != nil || status != 503 || !strings.Contains(string(body), "make room") {
		t.Errorf("/readyz: %d %s %v", status, body, err)
	}
	if status, body, _ := (&Person{h: h}).call("POST", "/v1/register", map[string]any{"user": "carol", "password": "correct-horse"}); status != 503 {
		t.Errorf("register: %d %s", status, body)
	}
	h.Stop()
	h.args = usual
	h.Start()
	a = alice.Connect("phone")
	if out := a.Send(message{topic: "dm/bob", body: "during", qos: 1, id: 1, dup: true}); out.Seq != 2 {
		t.Errorf("%+v", out)
	}
	b := bob.Connect("phone")
	b.Expect("dm/alice", "during")
}

// TestNothingIsLeftBehind: connections of every kind come and go, and goroutines
// and devices go with them.
func TestNothingIsLeftBehind(t *testing.T) {
	h, alice, _ := stage(t)
	goroutines := func() int {
		_, body, err := (&Person{h: &House{t: t, HTTP: h.Metrics}}).call("GET", "/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(body)) {
			if rest, ok := strings.CutPrefix(l, "go_goroutines "); ok {
				n := 0
				for _, c := range strings.TrimSpace(rest) {
					n = n*10 + int(c-'0')
				}
				return n
			}
		}
		t.Fatal("no go_goroutines")
		return 0
	}
	alice.Connect("warm").Leave()
	before := goroutines()
	for i := range 60 {
		switch i % 6 {
		case 0:
			alice.Connect("phone").Leave()
		case 1:
			alice.Connect("", clean, func(o *connectOptions) { o.expiry = 0 }).Drop() // forgotten when it leaves
		case 2:
			alice.Connect("x", anyCode, func(o *connectOptions) { o.password = "wrong-horse-" + alice.Token[:20] })
		case 3:
			d := alice.Connect("y")
			_ = d.Raw([]byte{0xf0, 0xff, 0xff, 0xff, 0xff})
			d.Gone()
		case 4:
			a, b := alice.Connect("z"), alice.Connect("z")
			a.Gone()
			b.Drop()
		case 5:
			d := alice.Connect("w", withWill(will{topic: "dm/alice", body: "x", delay: 1}))
			d.Drop()
		}
	}
	deadline := time.Now().Add(patience)
	for {
		after := goroutines()
		if after <= before+5 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d after", before, after)
		}
		time.Sleep(50 * time.Millisecond) // a poll of the condition
	}
	var devices []struct{ Device string }
	alice.must(200, "GET", "/v1/devices", nil, &devices)
	for _, d := range devices {
		if strings.HasPrefix(d.Device, "auto-") {
			t.Errorf("%s is remembered", d.Device)
		}
	}
}
