package plays

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/pushgw/pushtest"
)

// TestMoving takes an installation that has seen everything from the embedded
// store to MongoDB and back: the same records each time, and life goes on.
func TestMoving(t *testing.T) {
	_, flag := onMongo(t)
	h, sim := ringing(t, pushtest.Options{})
	alice, bob, carol := h.Person("alice"), h.Person("bob"), h.Person("carol")
	h.Friends(alice, bob)
	bob.must(200, "PUT", "/v1/friends/alice", map[string]any{"remark": "<Al & co>"}, nil)
	carol.must(200, "PUT", "/v1/friends/alice", map[string]any{"message": "it's me \u2028"}, nil)
	bob.must(204, "PUT", "/v1/blocks/carol", nil, nil)
	team := alice.Group("team", bob)
	alice.must(200, "PATCH", "/v1/me", map[string]any{"name": "Älice 🙂"}, nil)

	phone, lamp := bob.Connect("phone"), bob.Connect("lamp")
	bob.must(204, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "ios", "token": token(1)}, nil)
	lamp.Subscribe("open/+", 1)
	phone.Leave()
	lamp.Leave()
	_ = sim.Close() // nobody can be rung: bells wait

	a := alice.Connect("phone")
	for range 20 {
		a.Publish("dm/bob", "to be moved")
	}
	a.Send(message{topic: "dm/bob", body: "\x00\xff{", qos: 1, typ: "application/x-<&>"})
	a.Send(message{topic: "dm/bob/edit/1", body: "edited", qos: 1})
	a.Send(message{topic: "dm/bob/recall/2", qos: 1})
	a.Send(message{topic: "dm/bob/react/3", body: "👍", qos: 1})
	a.Send(message{topic: "dm/bob/id/mine-1", body: "with an id", qos: 1})
	a.Publish("g/"+team, "to all")
	a.Publish("dm/alice", "a note")
	twice := a.Post(message{topic: "dm/bob", body: "exactly once", qos: 2, id: 77}) // and no PUBREL
	a.wait(packets.Pubrec, twice)
	a.Send(message{topic: "open/state", body: "kept", qos: 1, retain: true})
	a.Send(message{topic: "open/x", body: "queued", qos: 1})
	alice.must(200, "PUT", "/v1/conversations/dm/bob/read", map[string]any{"seq": 3}, nil)
	var login struct {
		Refresh string `json:"refresh_token"`
	}
	alice.must(200, "POST", "/v1/login", map[string]any{"user": "alice", "password": alice.password()}, &login)

	refused, err := exec.Command(binary, "export", "-", "--data-dir", h.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(refused), "stop it first") {
		t.Errorf("export beside a running server: %v %s", err, refused)
	}
	a.Drop()
	h.Stop()

	dir := t.TempDir()
	one, two, three := filepath.Join(dir, "1.jsonl"), filepath.Join(dir, "2.jsonl"), filepath.Join(dir, "3.jsonl")
	back := &House{t: t, dir: t.TempDir()}
	first := cli(t, h, "export", one)
	cli(t, h, "import", one, flag)
	again, err := exec.Command(binary, "import", one, flag, "--data-dir", h.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(again), "not empty") {
		t.Errorf("into a full store: %v %s", err, again)
	}
	cli(t, h, "export", two, flag)
	out := cli(t, back, "import", two)
	cli(t, back, "export", three)
	if !strings.Contains(first, "exported: 3 users") || !strings.Contains(out, "imported and compared: 3 users") {
		t.Errorf("%s%s", first, out)
	}
	want := recordsOf(t, one)
	for _, kind := range []string{"user", "token", "relation", "group", "member", "device", "retained", "conversation", "entry", "read", "cursor", "receipt", "note"} {
		if !slices.ContainsFunc(want, func(l string) bool { return strings.HasPrefix(l, `{"`+kind+`"`) }) {
			t.Errorf("nothing of the kind %s was moved", kind)
		}
	}
	for _, file := range []string{two, three} {
		got := recordsOf(t, file)
		if !slices.Equal(got, want) {
			for i := range min(len(got), len(want)) {
				if got[i] != want[i] {
					t.Errorf("%s: %d records, want %d; the first that differs: %.300s, want %.300s", file, len(got), len(want), got[i], want[i])
					break
				}
			}
		}
	}

	h.args = append(h.args, flag)
	h.Start()
	var fresh struct{ Token string }
	(&Person{h: h, Name: "alice"}).must(200, "POST", "/v1/refresh", map[string]any{"refresh_token": login.Refresh}, &fresh)
	a = alice.Connect("phone")
	if out := a.Send(message{topic: "dm/bob", body: "exactly once", qos: 2, dup: true, id: 77}); out.Seq != 26 {
		t.Errorf("a QoS 2 publish that was under way: %+v", out)
	}
	if out := a.Send(message{topic: "dm/bob/id/mine-1", body: "with an id", qos: 1}); out.Seq != 25 {
		t.Errorf("an id that was used: %+v", out)
	}
	if out := a.Publish("dm/bob", "moved"); out.Seq != 27 {
		t.Errorf("%+v", out)
	}
	phone = bob.Connect("phone")
	for i := range 20 {
		want := "to be moved"
		if i == 1 {
			want = "" // recalled
		}
		if got := phone.Await("dm/alice"); got.Body != want {
			t.Errorf("message %d: %q, want %q", i+1, got.Body, want)
		}
	}
	lamp = bob.Connect("lamp")
	if !lamp.Connack.SessionPresent {
		t.Error("the session is lost")
	}
	if state, x := lamp.Await("open/state"), lamp.Await("open/x"); state.Body != "kept" || x.Body != "queued" {
		t.Errorf("the queue has %+v %+v", state, x)
	}
	late := bob.Connect("late")
	late.Subscribe("open/state", 1)
	late.Expect("open/state", "kept")
	if code := carol.Connect("phone").Publish("dm/bob", "blocked").Code; code != 0x87 {
		t.Errorf("0x%02x", code)
	}
}

// recordsOf reads the records of an export, in an order of their own.
func recordsOf(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	lines = lines[1 : len(lines)-1]
	slices.Sort(lines)
	return lines
}
