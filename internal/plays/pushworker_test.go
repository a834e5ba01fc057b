package plays

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parley-im/parley/pushgw/pushtest"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// bellringer is a running parley push.
type bellringer struct {
	h       *House
	cmd     *exec.Cmd
	log     *logBook
	exit    chan error
	Metrics string
}

// Bellringer starts a push worker with the house's configuration.
func (h *House) Bellringer() *bellringer {
	h.t.Helper()
	b := &bellringer{h: h, log: &logBook{}}
	var line string
	b.cmd, b.exit, line = h.launch(b.log, append([]string{"push", "--data-dir", h.dir, "--push.worker-addr", "127.0.0.1:0", "--log.level", "debug", "--log.format", "json"}, h.args...))
	if m := listening.FindStringSubmatch(line); m != nil {
		b.Metrics = m[2]
	}
	h.t.Cleanup(func() {
		if b.cmd != nil {
			b.Kill()
		}
	})
	return b
}

// Kill is kill -9.
func (b *bellringer) Kill() {
	_ = b.cmd.Process.Kill()
	<-b.exit
	b.cmd = nil
}

// Stop is SIGTERM; it must end with code 0 within 10 seconds.
func (b *bellringer) Stop() {
	b.h.t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-b.exit:
		if err != nil {
			b.h.t.Fatalf("SIGTERM: %v\n%s", err, b.log)
		}
	case <-time.After(10 * time.Second):
		b.h.t.Fatalf("parley push did not stop within 10 s\n%s", b.log)
	}
	b.cmd = nil
}

func (b *bellringer) get(path string) (int, string) {
	b.h.t.Helper()
	res, err := http.Get("http://" + b.Metrics + path)
	if err != nil {
		b.h.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.h.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// sharing is ringing on MongoDB with workers.
func sharing(t *testing.T, o pushtest.Options, more ...string) (*House, *pushtest.Simulator) {
	t.Helper()
	_, flag := onMongo(t)
	return ringing(t, o, append([]string{flag, "--push.run=workers", "--push.lease=3s"}, more...)...)
}

// TestPhonesRingFromAnotherProcess: the server writes bells down, a worker rings
// them, and operators see both together.
func TestPhonesRingFromAnotherProcess(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	refuse := false
	h, sim := sharing(t, pushtest.Options{Script: func(pushtest.Request) pushtest.Reply {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			return pushtest.Reply{Status: 400, Reason: "BadTopic"}
		}
		return pushtest.Reply{}
	}})
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	alice.Connect("phone").Leave()
	alice.must(204, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "ios", "token": token(1)}, nil)
	b := bob.Connect("laptop")
	b.Publish("dm/alice", "nobody rings yet")
	if n := len(sim.Ledger()); n != 0 {
		t.Fatalf("%d pushes without a worker", n)
	}
	w := h.Bellringer()
	p := parsePayload(t, rings(t, sim, 1)[0])
	if p.APS.Alert.Title != "bob" || p.APS.Alert.Body != "nobody rings yet" || p.APS.Badge == nil || *p.APS.Badge != 1 || p.Conv != "dm/bob" {
		t.Errorf("it shows %+v", p)
	}
	alice.must(200, "PUT", "/v1/conversations/dm/bob/read", map[string]any{"seq": 1}, nil)
	if clear := rings(t, sim, 2)[1]; clear.Type != "background" {
		t.Errorf("the clear is %s %s", clear.Type, clear.Payload)
	}
	if status, body := w.get("/readyz"); status != 200 {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if status, _ := w.get("/healthz"); status != 200 {
		t.Errorf("/healthz: %d", status)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) { // a poll of the condition
			if time.Now().After(deadline) {
				t.Fatalf("%s\n%s", what, w.log)
			}
		}
	}
	for _, want := range []string{`parley_push_decisions_total{reason="rung",step="record"} 2`, "parley_push_held 0", "parley_push_delay_seconds_count", "parley_mongodb_command_duration_seconds"} {
		until("/metrics has no "+want, func() bool { // the worker writes down what it did after it rang
			_, metrics := w.get("/metrics")
			return strings.Contains(metrics, want)
		})
	}

	mu.Lock()
	refuse = true
	mu.Unlock()
	b.Publish("dm/alice", "refused")
	until("no dead letter", func() bool { return strings.Contains(cli(t, h, "push", "dead"), "BadTopic") })
	mu.Lock()
	refuse = false
	mu.Unlock()
	if out := cli(t, h, "push", "replay"); !strings.Contains(out, "replayed: 1") {
		t.Error(out)
	}
	rings(t, sim, 3)
	out := ""
	until("explain does not know what the worker did", func() bool {
		out = cli(t, h, "push", "explain", "alice", "dm/bob", "2")
		return strings.Contains(out, "rung")
	})
	for _, want := range []string{"eligible", "nobody_online", "dead_letter"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}
	w.Stop()
	alice.must(204, "POST", "/v1/logout", nil, nil)
	b.Publish("dm/alice", "to nobody")
	h.Bellringer().Stop()
	if n := len(sim.Ledger()); n != 3 {
		t.Errorf("%d pushes, want 3: a phone that was logged out rings", n)
	}
}

func TestWhereThereIsNothingForAPushWorker(t *testing.T) {
	t.Parallel()
	for why, tt := range map[string]struct {
		args []string
		want string
	}{
		"the embedded store": {nil, "set store.uri"},
		"workers on it":      {[]string{"--push.run=workers"}, "workers share a MongoDB"},
		"the server rings":   {[]string{"--store.uri=mongodb://127.0.0.1:1/"}, "Set push.run: workers"},
		"no app":             {[]string{"--store.uri=mongodb://127.0.0.1:1/", "--push.run=workers"}, "push.apps names no app"},
	} {
		var out bytes.Buffer
		cmd := exec.Command(binary, append([]string{"push", "--data-dir", t.TempDir()}, tt.args...)...)
		cmd.Stderr = &out
		if err := cmd.Run(); err == nil || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: %v\n%s", why, err, out.String())
		}
	}
}

// TestPushWorkersWithoutMongoDB: a worker is not ready while MongoDB is away, and
// rings by itself when it is back; with answers lost and commands that never
// arrive or arrive late, every phone is rung, under one id for each message.
func TestPushWorkersWithoutMongoDB(t *testing.T) {
	t.Parallel()
	srv, err := mongotest.Start() // its own: it goes down
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	h, sim := ringing(t, pushtest.Options{}, "--store.uri="+srv.Database(t), "--push.run=workers", "--push.lease=3s", "--store.timeout=6s")
	away := phonesAway(h, 4)
	ws := []*bellringer{h.Bellringer(), h.Bellringer()}
	away.write(4)
	away.allRung(sim, 0)
	srv.Proxy.Down()
	if status, body := ws[0].get("/readyz"); status != 503 || !strings.Contains(body, "database") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	srv.Proxy.Up()
	away.write(4)
	away.allRung(sim, 0)
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // a poll of the condition
		if status, body := ws[0].get("/readyz"); status == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("not ready again: %s", body)
		}
	}

	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(seeded(t), 5))
	srv.Proxy.Inject(func(c mongotest.Command) mongotest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if (c.Collection != "tasks" && c.Collection != "notes") || dice.IntN(12) != 0 {
			return mongotest.Fault{}
		}
		switch dice.IntN(3) {
		case 0:
			return mongotest.Fault{Do: mongotest.LoseReply}
		case 1:
			return mongotest.Fault{Do: mongotest.Drop}
		}
		return mongotest.Fault{Do: mongotest.Late, Delay: time.Duration(dice.IntN(60)) * time.Millisecond}
	})
	for range 4 {
		away.write(6)
	}
	away.allRung(sim, 0)
	if srv.Proxy.Faults.Load() == 0 {
		t.Error("no fault was made")
	}
	t.Logf("%d faults", srv.Proxy.Faults.Load())
	srv.Proxy.Inject(nil)
	for _, w := range ws {
		w.Stop()
	}
}

// TestKill9OfPushWorkersLosesNoBell kills the server and two workers, one of the
// three each time, while messages go to phones that are away and the provider
// fails now and then.
func TestKill9OfPushWorkersLosesNoBell(t *testing.T) {
	rng, flaky := flakyProvider(t)
	h, sim := sharing(t, pushtest.Options{Script: flaky})
	away := phonesAway(h, 6)
	workers := []*bellringer{h.Bellringer(), h.Bellringer()}
	killed := [3]int{}
	for k := range *kills + 1 {
		away.write(1 + rng.IntN(6)) // few: FerretDB reads whole collections
		if k == *kills {
			break
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // the moment is random on purpose
		i := rng.IntN(3)
		killed[i]++
		if i < 2 {
			workers[i].Kill()
			workers[i] = h.Bellringer()
			continue
		}
		h.Kill()
		h.Start()
	}
	away.allRung(sim, *kills)
	t.Logf("killed: workers %d and %d times, the server %d times", killed[0], killed[1], killed[2])
	for _, w := range workers {
		w.Stop()
	}
	if out := cli(t, h, "push", "dead"); strings.TrimSpace(out) != "" {
		t.Errorf("dead letters: %s", out)
	}
}
