package plays

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/pushgw/pushtest"
)

// ringing is a house that rings phones at a simulator.
func ringing(t *testing.T, o pushtest.Options, more ...string) (*House, *pushtest.Simulator) {
	t.Helper()
	sim, err := pushtest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	dir := t.TempDir()
	if err := sim.Save(dir); err != nil {
		t.Fatal(err)
	}
	team, id, _ := sim.APNsKey()
	conf := fmt.Sprintf(`
limits: {off: true}
rules: [{allow: all, topic: "open/#"}]
push:
  privacy: full
  grace_online: 1s
  apps:
    - {name: ios, provider: apns, bundle: com.example.chat, team: %s, key_id: %s, key: %s/AuthKey_%s.p8, endpoint: %q, sandbox: %q, ca: %s/ca.pem}
    - {name: android, provider: fcm, service_account: %s/service-account.json, endpoint: %q, ca: %s/ca.pem}
`, team, id, dir, id, sim.URLs.APNs, sim.URLs.Sandbox, dir, dir, sim.URLs.FCM, dir)
	file := filepath.Join(dir, "parley.yaml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return Open(t, append([]string{"--config", file}, more...)...), sim
}

// token is an APNs token that nobody else has.
func token(n int) string { return fmt.Sprintf("%064x", 0xabc000+n) }

// rings waits until the simulator has accepted n pushes.
func rings(t *testing.T, sim *pushtest.Simulator, n int) []pushtest.Entry {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		l := sim.Ledger()
		if len(l) >= n {
			if len(l) > n {
				t.Fatalf("%d pushes, want %d: %s", len(l), n, l[len(l)-1].Payload)
			}
			return l
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pushes, want %d", len(l), n)
		}
		time.Sleep(5 * time.Millisecond) // a poll of the condition
	}
}

// payload is what an iPhone gets.
type payload struct {
	APS struct {
		Alert struct{ Title, Body string }
		Badge *int
	}
	Conv, Seq, ID, From string
}

func parsePayload(t testing.TB, e pushtest.Entry) (p payload) {
	t.Helper()
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		t.Fatalf("%s: %v", e.Payload, err)
	}
	return p
}

// TestPhonesRegisterBeforeThereAreApps: a server without apps keeps where phones
// are rung, for the day when it has some.
func TestPhonesRegisterBeforeThereAreApps(t *testing.T) {
	t.Parallel()
	h, sim := ringing(t, pushtest.Options{})
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	configured := h.args
	restart := func(args ...string) {
		h.Stop()
		h.args = args
		h.Start()
	}
	restart()
	here := map[string]string{"provider": "apns", "app": "ios", "token": token(1), "environment": "production"}
	for range 2 {
		alice.must(204, "PUT", "/v1/devices/phone/push", here, nil)
		alice.must(204, "PUT", "/v1/devices/other/push", map[string]string{"provider": "fcm", "app": "some.app", "token": "some-token"}, nil)
	}
	for range 2 {
		alice.must(204, "DELETE", "/v1/devices/other/push", nil, nil)
	}
	alice.must(422, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "pigeon", "app": "ios", "token": token(1)}, nil)
	restart("--push.run=off")
	alice.must(422, "PUT", "/v1/devices/phone/push", here, nil)
	restart(configured...)
	bob.Connect("laptop").Publish("dm/alice", "dinner?")
	if p := parsePayload(t, rings(t, sim, 1)[0]); p.Conv != "dm/bob" || p.Seq != "1" {
		t.Errorf("it rings for %+v", p)
	}
}

// TestThePhoneRingsOnce: away, it rings once; it comes back and gets the message;
// it is read elsewhere, and the badge clears.
func TestThePhoneRingsOnce(t *testing.T) {
	t.Parallel()
	h, sim := ringing(t, pushtest.Options{})
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	phone := alice.Connect("phone")
	alice.must(204, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "ios", "token": token(1)}, nil)
	b := bob.Connect("laptop")

	b.Publish("dm/alice", "are you there?")
	phone.Expect("dm/bob", "are you there?")
	phone.Leave() // what it has acknowledged does not ring

	if ack := b.Publish("dm/alice", "dinner at 8?"); ack.Seq != 2 {
		t.Fatalf("%+v", ack)
	}
	p := parsePayload(t, rings(t, sim, 1)[0])
	if p.APS.Alert.Title != "bob" || p.APS.Alert.Body != "dinner at 8?" || p.APS.Badge == nil || *p.APS.Badge != 2 || p.Conv != "dm/bob" || p.Seq != "2" {
		t.Errorf("it shows %+v", p)
	}
	phone = alice.Connect("phone")
	phone.Expect("dm/bob", "dinner at 8?")
	phone.Leave()

	alice.must(200, "PUT", "/v1/conversations/dm/bob/read", map[string]any{"seq": 2}, nil)
	clear := rings(t, sim, 2)[1]
	if p := parsePayload(t, clear); clear.Type != "background" || p.APS.Badge == nil || *p.APS.Badge != 0 || p.APS.Alert.Body != "" {
		t.Errorf("the clear is %s %s", clear.Type, clear.Payload)
	}

	out := cli(t, h, "push", "explain", "alice", "dm/bob", "2")
	for _, want := range []string{"alice/phone", "eligible", "nobody_online", "rung"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}
	if out := cli(t, h, "push", "send", "alice", "phone", "--text", "a try"); !strings.Contains(out, "the provider has it") {
		t.Error(out)
	}
	rings(t, sim, 3)
	alice.must(204, "PUT", "/v1/push", map[string]any{"quiet": map[string]string{"from": "00:00", "to": "23:59", "zone": "UTC"}}, nil)
	alice.must(422, "PUT", "/v1/push", map[string]any{"quiet": map[string]string{"from": "0", "to": "23:59", "zone": "UTC"}}, nil)
	alice.must(204, "PUT", "/v1/conversations/dm/bob/push", map[string]any{"level": "none"}, nil)
	alice.must(422, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "ios", "token": "no/../token"}, nil)
	alice.must(204, "POST", "/v1/logout", nil, nil)
	if out, err := exec.Command(binary, "push", "send", "alice", "phone", "--data-dir", h.dir).CombinedOutput(); err == nil {
		t.Errorf("a phone that was logged out can be rung: %s", out)
	}
}

// TestKill9LosesNoBell kills the server while messages go to phones that are away
// and the provider fails now and then. In the end every phone was rung for the
// last message of every conversation, and a message that was pushed twice has
// the same id both times.
// TestMutedConversationsDoNotWakeAnInactiveDevice: what was said there comes when it is
// active again, and nothing is missing.
func TestMutedConversationsDoNotWakeAnInactiveDevice(t *testing.T) {
	t.Parallel()
	h, _ := ringing(t, pushtest.Options{})
	alice, bob, carol := h.Person("alice"), h.Person("bob"), h.Person("carol")
	h.Friends(alice, bob, carol)
	a, c := alice.Connect("phone"), carol.Connect("phone")
	phone, tablet := bob.Connect("phone"), bob.Connect("tablet")
	mute := func(conv, how string) {
		bob.must(204, "PUT", "/v1/conversations/"+conv+"/push", []byte(how), nil)
	}
	mute("dm/alice", `{"muted_until":4000000000000}`)
	a.Publish("dm/bob", "active")
	phone.Expect("dm/alice", "active")
	tablet.Expect("dm/alice", "active")
	phone.Publish("me/state", "inactive")
	for i := range 3 {
		a.Publish("dm/bob", fmt.Sprint(i))
		tablet.Expect("dm/alice", fmt.Sprint(i))
	}
	c.Publish("dm/bob", "not muted")
	phone.Expect("dm/carol", "not muted")
	phone.Quiet()
	phone.Publish("me/state", "active")
	for i := range 3 {
		phone.Expect("dm/alice", fmt.Sprint(i))
	}
	a.Publish("dm/bob", "live")
	phone.Expect("dm/alice", "live")

	// Away in between: it is served like any other device.
	phone.Publish("me/state", "inactive")
	a.Publish("dm/bob", "missed")
	phone.Quiet()
	phone.Leave()
	phone = bob.Connect("phone")
	phone.Expect("dm/alice", "missed")
	// Heard again, everything comes with the next message.
	phone.Publish("me/state", "inactive")
	a.Publish("dm/bob", "one")
	phone.Quiet()
	mute("dm/alice", `{}`)
	a.Publish("dm/bob", "two")
	phone.Expect("dm/alice", "one")
	phone.Expect("dm/alice", "two")
}

func TestKill9LosesNoBell(t *testing.T) {
	rng, flaky := flakyProvider(t)
	h, sim := ringing(t, pushtest.Options{Script: flaky})
	away := phonesAway(h, 6)
	for k := range *kills + 1 {
		away.write(20 + rng.IntN(60))
		if k < *kills {
			h.Kill()
			h.Start()
		}
	}
	away.allRung(sim, *kills)
}

// flakyProvider is a provider that refuses and resets now and then, and a source
// of further chance.
func flakyProvider(t *testing.T) (*rand.Rand, func(pushtest.Request) pushtest.Reply) {
	n := seeded(t)
	var mu sync.Mutex // the simulator asks from many goroutines
	dice := rand.New(rand.NewPCG(n, 3))
	return rand.New(rand.NewPCG(n, 2)), func(pushtest.Request) pushtest.Reply {
		mu.Lock()
		defer mu.Unlock()
		switch dice.IntN(12) {
		case 0:
			return pushtest.Reply{Status: 503, Reason: "ServiceUnavailable"}
		case 1:
			return pushtest.Reply{Reset: pushtest.ResetBefore}
		case 2:
			return pushtest.Reply{Reset: pushtest.ResetAfter}
		}
		return pushtest.Reply{}
	}
}

// absent are people whose phones are away, and what bob has written to them.
type absent struct {
	h      *House
	bob    *Person
	phones int
	n      int
	last   map[string]uint64 // by phone's owner: the last seq acknowledged
}

func phonesAway(h *House, phones int) *absent {
	x := &absent{h: h, bob: h.Person("bob"), phones: phones, last: map[string]uint64{}}
	for i := range phones {
		p := h.Person(fmt.Sprint("p", i))
		h.Friends(p, x.bob)
		p.Connect("phone").Leave()
		p.must(204, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "ios", "token": token(i)}, nil)
	}
	return x
}

// write has bob write n messages, one to each in turn, each until it is
// acknowledged: a store that is slow refuses now and then.
func (x *absent) write(n int) {
	x.h.t.Helper()
	d := x.laptop()
	for deadline := time.Now().Add(4 * patience); n > 0; {
		to := fmt.Sprint("p", x.n%x.phones)
		out, ok := d.try(message{topic: fmt.Sprintf("dm/%s/id/%d", to, x.n), body: fmt.Sprint(x.n), qos: 1, id: uint16(x.n%60000 + 1)})
		if !ok {
			if time.Now().After(deadline) {
				x.h.t.Fatal("not acknowledged")
			}
			d.Drop()
			d = x.laptop()
			continue
		}
		x.last[to] = max(x.last[to], out.Seq)
		x.n, n = x.n+1, n-1
	}
	d.Drop()
}

func (x *absent) laptop() *Device {
	d := x.bob.Connect("laptop", anyCode)
	for begin := time.Now(); d.Connack.ReasonCode == packets.ErrServerUnavailable.Code && time.Since(begin) < 4*patience; {
		d = x.bob.Connect("laptop", anyCode)
	}
	if d.Connack.ReasonCode != 0 {
		x.h.t.Fatalf("CONNACK 0x%02x", d.Connack.ReasonCode)
	}
	return d
}

// allRung waits until every phone was rung for its last message, and wants what
// was pushed again to have its id.
func (x *absent) allRung(sim *pushtest.Simulator, kills int) {
	t := x.h.t
	t.Helper()
	deadline := time.Now().Add(4 * patience)
	for {
		rung, ids, doubles := map[string]uint64{}, map[string]string{}, 0
		for _, e := range sim.Ledger() {
			p := parsePayload(t, e)
			if e.Type != "alert" {
				continue
			}
			var seq uint64
			_, _ = fmt.Sscan(p.Seq, &seq)
			rung[e.Token] = max(rung[e.Token], seq)
			k := e.Token + " " + p.Seq
			if old, twice := ids[k]; twice {
				doubles++
				if old != e.ID {
					t.Fatalf("seq %s was pushed with two ids", p.Seq)
				}
			}
			ids[k] = e.ID
		}
		missing := 0
		for i := range x.phones {
			if rung[token(i)] < x.last[fmt.Sprint("p", i)] {
				missing++
			}
		}
		if missing == 0 {
			t.Logf("%d kills, %d messages, %d pushes, %d of them again with their id", kills, x.n, len(sim.Ledger()), doubles)
			return
		}
		if time.Now().After(deadline) {
			t.Log(cli(t, x.h, "push", "explain", "p0", "dm/bob", fmt.Sprint(x.last["p0"])))
			t.Fatalf("%d phones were not rung for their last message: %v, want %v", missing, rung, x.last)
		}
		time.Sleep(20 * time.Millisecond) // a poll of the condition
	}
}
