package plays

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// beside is a house on the same store with a data directory of its own, as on
// another machine; it is not started.
func (h *House) beside(t *testing.T) *House {
	o := &House{t: t, dir: t.TempDir(), args: h.args, people: map[string]*Person{}}
	t.Cleanup(func() {
		if o.cmd != nil {
			o.Kill()
		}
		if t.Failed() {
			t.Logf("the other server's log:\n%s", o.log)
		}
	})
	return o
}

// as is somebody who comes to this house.
func (h *House) as(p *Person) *Person {
	q := &Person{h: h, Name: p.Name}
	q.Login()
	return q
}

// refused runs a command that must fail and returns what it says.
func (h *House) refused(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, append(append(args, "--data-dir", h.dir), h.args...)...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("parley %v: %v, want exit code 1\n%s", args, err, out)
	}
	return string(out)
}

// ready asks /readyz.
func (h *House) ready(t *testing.T) (status int, body string) {
	t.Helper()
	status, b, err := (&Person{h: &House{t: t, HTTP: h.Metrics}}).call("GET", "/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(b)
}

// waitReady waits for an answer of /readyz.
func (h *House) waitReady(t *testing.T, want int) (body string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		status, body := h.ready(t)
		if status == want {
			return body
		}
		if time.Now().After(deadline) {
			t.Fatalf("/readyz stays %d %s, want %d", status, body, want)
		}
	}
}

func TestASecondServerIsRefused(t *testing.T) {
	_, flag := onMongo(t)
	h := Open(t, "--limits.off=true", flag)
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a := alice.Connect("phone")
	other := h.beside(t)
	pid := fmt.Sprintf("pid %d", h.cmd.Process.Pid)
	for _, args := range [][]string{
		{"serve", "--mqtt.addr=127.0.0.1:0", "--http.addr=off", "--metrics.addr=off"},
		{"user", "passwd", "alice"}, {"user", "add", "carol"}, {"user", "disable", "alice"}, {"user", "revoke", "alice"},
		{"export", "-"}, {"import", "/dev/null"},
	} {
		out := other.refused(t, args...)
		if !strings.Contains(out, "parley serve on host") || !strings.Contains(out, pid) || !strings.Contains(out, "stop that one") {
			t.Errorf("parley %v: %s", args, out)
		}
	}
	if out := cli(t, other, "user", "list", flag); !strings.Contains(out, "alice") { // it only reads
		t.Errorf("%s", out)
	}
	if out := cli(t, other, "check", "--store", flag); !strings.Contains(out, "in use: parley serve on host") || !strings.Contains(out, "the store is sound: 2 users") {
		t.Errorf("%s", out)
	}
	if out := a.Publish("dm/bob", "undisturbed"); out.Code != 0 || out.Seq != 1 {
		t.Errorf("%+v", out)
	}
	h.Stop()
	other.Start() // it was given up
	if out := other.as(alice).Connect("phone").Publish("dm/bob", "next"); out.Seq != 2 {
		t.Errorf("%+v", out)
	}
}

func TestTheSeatOfAKilledServer(t *testing.T) {
	_, flag := onMongo(t)
	h := Open(t, "--limits.off=true", "--store.seat=6s", flag)
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	alice.Connect("phone").Publish("dm/bob", "1")
	h.Kill()

	// Here it is seen at once that the process is no more.
	cmd := exec.Command(binary, "user", "add", "carol", "--store.seat=1h", flag, "--data-dir", h.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	h.Start()
	h.Kill()

	// From another machine nobody can tell but by its silence.
	db := database(t, flag)
	if _, err := db.Collection("meta").UpdateOne(t.Context(), bson.D{{Key: "_id", Value: "seat"}}, bson.D{{Key: "$set", Value: bson.D{{Key: "m", Value: "another machine"}}}}); err != nil {
		t.Fatal(err)
	}
	h.Start()
	if !strings.Contains(h.log.String(), "waiting to see whether the holder of its seat is alive") {
		t.Error("it did not wait")
	}
	if out := h.as(alice).Connect("phone").Publish("dm/bob", "2"); out.Seq != 2 {
		t.Errorf("%+v", out)
	}
}

// database opens the database of a flag of onMongo.
func database(t *testing.T, flag string) *driver.Database {
	t.Helper()
	uri := strings.TrimPrefix(flag, "--store.uri=")
	c, err := driver.Connect(options.Client().ApplyURI(uri))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	name := uri[strings.LastIndexByte(uri, '/')+1:]
	name, _, _ = strings.Cut(name, "?")
	return c.Database(name)
}

// TestAPausedServerDoesNotAcknowledge: its seat is taken while it stands still;
// what its clients have sent meanwhile is not acknowledged when it goes on, and it
// ends and says who has the seat.
func TestAPausedServerDoesNotAcknowledge(t *testing.T) {
	_, flag := onMongo(t)
	h := Open(t, "--limits.off=true", "--store.seat=6s", flag)
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a := alice.Connect("phone")
	acked := map[uint64]string{}
	first := a.Publish("dm/bob", "before")
	acked[first.Seq] = "before"
	var ids []uint16
	for i := range 100 {
		ids = append(ids, a.Post(message{topic: "dm/bob", body: fmt.Sprint("in flight ", i), qos: 1}))
	}
	if err := h.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	other := h.beside(t)
	other.Start()
	late := a.Post(message{topic: "dm/bob", body: "while it stands still", qos: 1})
	bobThere := other.as(bob)
	b := bobThere.Connect("phone")
	if err := h.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-h.exit:
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("it ended with %v, want exit code 1", err)
		}
		h.exit <- err
	case <-time.After(patience):
		t.Fatal("it goes on without a seat")
	}
	if log := h.log.String(); !strings.Contains(log, fmt.Sprintf("pid %d", other.cmd.Process.Pid)) {
		t.Errorf("it does not say who has the seat:\n%s", log)
	}
	a.Gone()
	if pk, ok := a.tryWait(packets.Puback, late); ok {
		t.Errorf("acknowledged without a seat: %+v", pk)
	}
	for i, id := range ids {
		if pk, ok := a.tryWait(packets.Puback, id); ok {
			acked[seqIn(pk)] = fmt.Sprint("in flight ", i)
		}
	}
	history := map[uint64]string{}
	for _, e := range bobThere.History("dm/alice") {
		history[e.Seq] = e.Text
	}
	for seq, body := range acked {
		if history[seq] != body {
			t.Errorf("seq %d: %q was acknowledged, %q is there", seq, body, history[seq])
		}
	}
	again := other.as(alice).Connect("phone")
	if out := again.Publish("dm/bob", "to the other"); out.Code != 0 || out.Seq != uint64(len(history)+1) {
		t.Errorf("%+v after %d", out, len(history))
	}
	b.NextOf(func(pk packets.Packet) bool { return string(pk.Payload) == "to the other" })
}

func seqIn(pk packets.Packet) (seq uint64) {
	for _, u := range pk.Properties.User {
		if u.Key == "seq" {
			_, _ = fmt.Sscan(u.Val, &seq)
		}
	}
	return seq
}

// TestAServerThatCannotRenewComesBack: it is cut off from its seat only; it
// acknowledges nothing, says why, and goes on by itself.
func TestAServerThatCannotRenewComesBack(t *testing.T) {
	srv := mongotest.StartFor(t) // its own: faults are made
	h := Open(t, "--limits.off=true", "--store.seat=6s", "--store.uri="+srv.Database(t))
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	var cut atomic.Bool
	cut.Store(true)
	srv.Proxy.Inject(func(c mongotest.Command) mongotest.Fault {
		if us := c.Docs["updates"]; cut.Load() && len(us) == 1 && strings.Contains(us[0].String(), `"seat"`) {
			return mongotest.Fault{Do: mongotest.Refuse, Code: 50} // MaxTimeMSExpired: the connection stays, and all else goes on
		}
		return mongotest.Fault{}
	})
	h.wantMetrics(t, "mongodb_seat")
	if body := h.waitReady(t, 503); !strings.Contains(body, "seat") {
		t.Errorf("/readyz: %s", body)
	}
	acked := uint64(0) // an answer that was under way may have renewed it once more
	for {
		out, ok := a.try(message{topic: "dm/bob", body: "on the way", qos: 1, id: uint16(acked + 1)})
		if !ok {
			break
		}
		if acked++; out.Code != 0 || out.Seq != acked {
			t.Fatalf("%+v, want seq %d", out, acked)
		}
	}
	if code := a.Gone(); code != 0x88 && code != 0x89 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	if n := uint64(len(bob.History("dm/alice"))); n < acked { // readers go on
		t.Errorf("%d messages, %d were acknowledged", n, acked)
	}
	cut.Store(false)
	h.waitReady(t, 200)
	if out := alice.Connect("phone").Publish("dm/bob", "back"); out.Code != 0 || out.Seq <= acked || out.Seq > acked+2 { // what was not acknowledged may be there
		t.Errorf("%+v after %d", out, acked)
	}
	b.NextOf(func(pk packets.Packet) bool { return string(pk.Payload) == "back" })
}
