package plays

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/parley-im/parley/store/mongostore/mongotest"
)

var mongo struct {
	sync.Once
	srv *mongotest.Server
	err error
}

// onMongo is the flag for a store on an empty MongoDB database.
func onMongo(t *testing.T) (srv *mongotest.Server, flag string) {
	t.Helper()
	mongo.Do(func() { mongo.srv, mongo.err = mongotest.Start() })
	if mongo.err != nil {
		t.Fatal(mongo.err)
	}
	if !mongo.srv.Real {
		t.Log("on FerretDB, not on MongoDB")
	}
	return mongo.srv, "--store.uri=" + mongo.srv.Database(t)
}

func TestOnMongoDB(t *testing.T) {
	_, flag := onMongo(t)
	h := Open(t, "--limits.off=true", "--store.retention.group=1h", flag)
	if log := h.log.String(); !strings.Contains(log, "store.retention.group: 1h is shorter than store.dedupe") || (!mongo.srv.Real && !strings.Contains(log, "neither a replica set")) {
		t.Errorf("the log does not warn:\n%s", log)
	}
	alice, bob, carol := h.Person("alice"), h.Person("bob"), h.Person("carol")
	h.Friends(alice, bob)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	away := bob.Connect("away")
	away.Leave()

	if ack := a.Publish("dm/bob", "hello"); ack.Code != 0 || ack.Seq != 1 {
		t.Fatalf("PUBACK %+v", ack)
	}
	b.Expect("dm/alice", "hello")
	if out := a.Send(message{topic: "dm/bob/id/1", body: "once", qos: 1}); out.Seq != 2 {
		t.Errorf("%+v", out)
	}
	if out := a.Send(message{topic: "dm/bob/id/1", body: "once", qos: 1}); out.Seq != 2 {
		t.Errorf("the same id again: %+v", out)
	}
	if out := a.Send(message{topic: "dm/bob", body: "twice asked", qos: 2}); out.Seq != 3 {
		t.Errorf("QoS 2: %+v", out)
	}
	g := alice.Group("team", bob, carol)
	if out := a.Publish("g/"+g, "all"); out.Code != 0 {
		t.Errorf("to the group: %+v", out)
	}
	b.Await("g/" + g)
	alice.must(200, "PUT", "/v1/conversations/dm/bob/read", map[string]any{"seq": 3}, nil)
	h.wantMetrics(t, `mongodb_command_duration_seconds_count{command="insert"}`, `mongodb_command_duration_seconds_count{command="find"}`, `commit_batch_entries_count`, `commit_duration_seconds_count`,
		`mongodb_connections{state="open"}`, `mongodb_seat`)

	h.Kill()
	h.Start()
	away = bob.Connect("away")
	for _, body := range []string{"hello", "once", "twice asked"} {
		if got := away.NextOf(func(pk packets.Packet) bool { return pk.TopicName == "dm/alice" }); got.Body != body {
			t.Errorf("got %q, want %q", got.Body, body)
		}
	}
	if n := len(bob.History("dm/alice")); n != 3 {
		t.Errorf("%d messages in the history", n)
	}
	if n := len(bob.History("g/" + g)); n < 2 {
		t.Errorf("%d entries in the group", n)
	}
	h.Stop()
	h.checkDatabase(t, flag, "sound: 3 users")
}

// wantMetrics wants each series of parley_ to be more than 0.
func (h *House) wantMetrics(t *testing.T, series ...string) {
	t.Helper()
	_, body, err := (&Person{h: &House{t: t, HTTP: h.Metrics}}).call("GET", "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range series {
		m := regexp.MustCompile(`(?m)^parley_` + regexp.QuoteMeta(s) + ` (\S+)$`).FindSubmatch(body)
		if m == nil || string(m[1]) == "0" {
			t.Errorf("parley_%s is %q", s, m)
		}
	}
}

// checkDatabase runs parley check --store. FerretDB is one server, of which it warns.
func (h *House) checkDatabase(t *testing.T, flag, want string) {
	t.Helper()
	out, err := exec.Command(binary, "check", "--store", flag, "--data-dir", h.dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("check --store: %v\n%s", err, out)
	}
	if !mongo.srv.Real && (strings.Count(string(out), "warning:") != 1 || !strings.Contains(string(out), "neither a replica set")) {
		t.Errorf("check --store does not warn:\n%s", out)
	}
}

// TestAnInterruptedImport: kill -9 in the middle; nothing starts on what it leaves,
// and the same import ends it.
func TestAnInterruptedImport(t *testing.T) {
	from := Open(t, "--limits.off=true")
	alice, bob := from.Person("alice"), from.Person("bob")
	from.Friends(alice, bob)
	a := alice.Connect("phone")
	for range 5 {
		a.Publish("dm/bob", "to be moved")
	}
	a.Leave()
	from.Stop()
	file := filepath.Join(t.TempDir(), "all.jsonl")
	cli(t, from, "export", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, flag := onMongo(t)
	for name, flags := range map[string][]string{"embedded": nil, "MongoDB": {flag}} {
		t.Run(name, func(t *testing.T) {
			to := &House{t: t, dir: t.TempDir(), args: append(flags, "--limits.off=true"), people: from.people}
			if name == "embedded" {
				// Nobody can look in meanwhile: the file ends in the middle.
				cut := filepath.Join(t.TempDir(), "cut.jsonl")
				if err := os.WriteFile(cut, whole[:len(whole)/2], 0o600); err != nil {
					t.Fatal(err)
				}
				if out := to.refused(t, "import", cut); !strings.Contains(out, "the file is cut") {
					t.Errorf("%s", out)
				}
			} else {
				cmd := exec.Command(binary, "import", "-", flag, "--data-dir", to.dir)
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if _, err := in.Write(whole[:len(whole)/2]); err != nil {
					t.Fatal(err)
				}
				db := database(t, flag)
				for deadline := time.Now().Add(patience); db.Collection("meta").FindOne(t.Context(), bson.D{{Key: "_id", Value: "partial"}}).Err() != nil; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("it leaves no mark")
					}
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
			for _, args := range [][]string{{"serve", "--mqtt.addr=127.0.0.1:0", "--http.addr=off", "--metrics.addr=off"}, {"check", "--store"}, {"user", "list"}, {"user", "add", "eve"}, {"export", "-"}} {
				if out := to.refused(t, args...); !strings.Contains(out, "a part of an installation only: the import that began on") || !strings.Contains(out, "import with the same file again") {
					t.Errorf("parley %v: %s", args, out)
				}
			}
			if out := cli(t, to, append([]string{"import", file}, flags...)...); !strings.Contains(out, "imported and compared: 2 users") {
				t.Errorf("%s", out)
			}
			to.Start()
			defer to.Stop()
			if n := len(to.as(bob).History("dm/alice")); n != 5 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// TestMongoDBGoesAway: publishes are not acknowledged, readiness says why, and all
// comes back by itself.
func TestMongoDBGoesAway(t *testing.T) {
	srv := mongotest.StartFor(t) // its own: it goes down
	h := Open(t, "--limits.off=true", "--store.timeout=2s", "--store.uri="+srv.Database(t))
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a, b := alice.Connect("phone"), bob.Connect("phone")
	a.Publish("dm/bob", "before")
	b.Expect("dm/alice", "before")
	srv.Proxy.Down()
	a.Post(message{topic: "dm/bob/id/x", body: "during", qos: 1, id: 7})
	if code := a.Gone(); code != 0x88 && code != 0x89 {
		t.Errorf("DISCONNECT 0x%02x", code)
	}
	h.wantMetrics(t, `mongodb_retries_total`, `commit_failures_total`)
	if status, body := h.ready(t); status != 503 || !strings.Contains(body, "database") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	srv.Proxy.Up()
	h.waitReady(t, 200)
	a = alice.Connect("phone")
	if out := a.Send(message{topic: "dm/bob/id/x", body: "during", qos: 1}); out.Code != 0 || out.Seq != 2 {
		t.Errorf("%+v", out)
	}
	b.Expect("dm/alice", "during")
}

// TestKill9OnMongoDB is TestKill9 with the messages in MongoDB.
func TestKill9OnMongoDB(t *testing.T) {
	_, flag := onMongo(t)
	h := killAgainAndAgain(t, 2, 2*time.Second, flag)
	h.checkDatabase(t, flag, "the store is sound")
}
