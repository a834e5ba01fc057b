package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Programs under test, built once: the tool with the race detector if the tests
// have it, the servers without, for their races are looked for elsewhere and
// hashing passwords under it takes seconds.
var tool, parleyBin, mochi string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "parley-load")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		parleyBin, mochi = filepath.Join(dir, "parley"), filepath.Join(dir, "stockmochi")
		tool = parleyBin
		builds := [][]string{{"-o", dir + "/", "github.com/parley-im/parley/cmd/parley", "github.com/parley-im/parley/internal/load/stockmochi"}}
		if raceEnabled {
			tool = filepath.Join(dir, "parley-race")
			builds = append(builds, []string{"-race", "-o", tool, "github.com/parley-im/parley/cmd/parley"})
		}
		for _, args := range builds {
			if out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// lookAtSources makes the sources of the programs count for go test, which else
// says "(cached)" although they have changed: it remembers the files that a test
// has looked at.
var lookAtSources = sync.OnceFunc(func() {
	_ = filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			_, _ = os.Stat(path)
		}
		return err
	})
})

// bench runs parley bench and returns its exit code, results and what it said.
func bench(t *testing.T, args ...string) (code int, rs []Result, said string) {
	t.Helper()
	lookAtSources()
	file := filepath.Join(t.TempDir(), "bench.json")
	var out bytes.Buffer
	cmd := exec.Command(tool, append(append([]string{"bench"}, args...), "--json", file)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // it sleeps for a second otherwise
	err := cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		code = ended.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(b, &rs); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(out.String(), "DATA RACE") {
		t.Fatalf("a data race:\n%s", out.String())
	}
	return code, rs, out.String()
}

// TestScenarios runs each scenario against a Parley and against a plain broker,
// each a process of its own.
func TestScenarios(t *testing.T) {
	measured := func(ls ...*Latency) bool {
		for _, l := range ls {
			if l == nil || l.Count == 0 || l.Max <= 0 || l.P50 > l.P99 || l.P99 > l.Max {
				return false
			}
		}
		return true
	}
	for _, tt := range []struct {
		args    string
		targets string // "parley", "both", "lenient" where mochi may do it wrong, or "self": nothing is said
		want    func(r Result) bool
	}{
		{"dm --pairs 3 --window 4 --messages 300 --for 0", "both", func(r Result) bool { return r.Messages == 300 && measured(r.Ack, r.Deliver) && r.Late == nil }},
		{"dm --pairs 3 --rate 500 --messages 200 --protocol 5", "both", func(r Result) bool { return r.Messages == 200 && measured(r.Ack, r.Deliver, r.Late) }},
		{"dm --pairs 2 --window 4 --for 200ms --rounds 2", "both", func(r Result) bool { return r.Messages > 0 && r.Rate > 0 && r.Round > 0 }},
		{"group --members 5 --messages 40 --for 0", "both", func(r Result) bool { return r.Messages == 200 && measured(r.Ack, r.Deliver) }},
		{"group --members 6 --online 2 --rate 200 --messages 40", "both", func(r Result) bool { return r.Messages == 80 && measured(r.Deliver, r.Late) }},
		{"replay --devices 3 --missed 30", "lenient", func(r Result) bool { return r.Messages == 90 && measured(r.Caught) }},
		{"connect --workers 4 --connections 60 --for 0", "both", func(r Result) bool { return r.Messages == 60 && measured(r.Connack) }},
		{"connect --workers 4 --connections 60 --fresh", "both", func(r Result) bool { return r.Messages == 60 && measured(r.Connack) }},
		{"storm --devices 30 --per-user 5 --rounds 2", "both", func(r Result) bool {
			return r.Messages == 30 && measured(r.Connack, r.First) && r.First.Count == 30
		}},
		{"idle --connections 60 --per-user 20", "both", func(r Result) bool { return r.Messages == 57 }},
		{"stalled --devices 30 --stalled 10 --per-user 5 --rate 100 --group-rate 30 --for 400ms", "lenient", func(r Result) bool {
			return r.Messages > 0 && measured(r.Deliver, r.AllRead)
		}},
		{"wire --messages 20 --payload 100", "both", func(r Result) bool {
			// A PUBLISH is a header of 2 or 3, a topic with its length, an id and the payload.
			return r.Messages == 20 && r.Bytes.Publish > 110 && r.Bytes.Deliver > 110 && r.Bytes.Ack == 4 && r.Bytes.Answer == 4 && r.Bytes.Connack == 4
		}},
		{"crash --kills 2 --writers 3 --seed 11", "parley", func(r Result) bool {
			return r.Messages > 0 && r.Kills == 2 && r.Seed == 11 && measured(r.Restart)
		}},
		{"suite --only lone --for 200ms", "self", func(r Result) bool { return r.Messages > 0 && measured(r.Ack, r.Deliver) }},
	} {
		t.Run(strings.ReplaceAll(tt.args, " ", "_"), func(t *testing.T) {
			args, targets := strings.Fields(tt.args), 1
			if tt.targets != "self" {
				args = append(args, "-t", "parley=exec:"+parleyBin)
			}
			switch tt.targets {
			case "both":
				args, targets = append(args, "-t", "mochi=exec:"+mochi+",plain"), 2
			case "lenient":
				args, targets = append(args, "-t", "mochi=exec:"+mochi+",plain,lenient"), 2
			}
			code, rs, said := bench(t, args...)
			t.Log(said)
			seen := map[string]bool{}
			for _, r := range rs {
				seen[r.Target] = true
				if !tt.want(r) {
					t.Errorf("%+v", r)
				}
				if r.Any() && (r.Target == "parley" || tt.targets != "lenient") {
					t.Errorf("%s: %v %q", r.Target, r.Faults, r.Notes)
				}
			}
			if code != 0 || len(seen) != targets || !strings.Contains(said, "parley: lost 0, duplicated 0, out of order 0") {
				t.Errorf("exit code %d, targets %v", code, seen)
			}
		})
	}
}

// TestGrown measures a server whose store has more than the scenario made.
func TestGrown(t *testing.T) {
	code, rs, said := bench(t, "group", "--members", "4", "--messages", "20", "--for", "0", "--rounds", "2",
		"-t", "small=exec:"+parleyBin, "-t", "large=exec:"+parleyBin+",stored=2000,conversations=30,members=50")
	if code != 0 || len(rs) != 4 {
		t.Errorf("%d\n%s", code, said)
	}
	for _, r := range rs {
		if r.Messages != 80 || r.Any() {
			t.Errorf("%+v", r)
		}
	}
	if code, _, said := bench(t, "connect", "-t", "mqtt://127.0.0.1:1,stored=1"); code != 2 {
		t.Errorf("to grow a foreign server: %d %s", code, said)
	}
}

// TestARunningServer measures one that the tool has not started and where
// registration is closed.
func TestARunningServer(t *testing.T) {
	house, err := Open(t.Context(), Spec{Name: "house", Command: append([]string{parleyBin}, "serve", "--data-dir", "{dir}", "--mqtt.addr", "{mqtt}", "--http.addr", "{http}",
		"--metrics.addr", "{metrics}", "--registration", "closed", "--log.level", "error")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := house.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	where := []string{"--target", "mqtt://" + house.MQTT, "--http", house.HTTP, "--metrics", house.Metrics, "--pid", fmt.Sprint(house.PID)}
	if code, _, said := bench(t, append(where, "wire", "--messages", "5")...); code != 1 || !strings.Contains(said, "registration is closed") {
		t.Errorf("a closed registration: %d %s", code, said)
	}
	// The server has an administrator, who lets the tool in.
	add := exec.Command(parleyBin, "user", "add", "root", "--role", "admin", "--password-stdin", "--data-dir", house.server.dir)
	add.Stdin = strings.NewReader("correct-horse-battery")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var login struct{ Token string }
	if err := house.call(t.Context(), http.MethodPost, "/v1/login", "", map[string]string{"user": "root", "password": "correct-horse-battery"}, &login); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PARLEY_BENCH_ADMIN_TOKEN", login.Token)
	code, rs, said := bench(t, append(where, "wire", "--messages", "5")...)
	if code != 0 || len(rs) != 1 || rs[0].Any() {
		t.Errorf("with a token: %d %s", code, said)
	}
	where = where[:len(where)-2] // its memory is also in its metrics
	if code, rs, said := bench(t, append(where, "idle", "--connections", "30", "--per-user", "10")...); code != 0 || len(rs) != 1 || rs[0].Messages != 27 || rs[0].CPU != 0 {
		t.Errorf("idle without its process: %d %s", code, said)
	}
	// Its limits do not allow this, and that is what it says.
	if code, _, said := bench(t, append(where, "dm", "--pairs", "1", "--window", "100", "--messages", "5000")...); code != 1 || !strings.Contains(said, "limits") {
		t.Errorf("over the limits: %d %s", code, said)
	}
	var users []struct {
		User     string
		Disabled bool
	}
	if err := house.call(t.Context(), http.MethodGet, "/v1/admin/users?limit=200", login.Token, nil, &users); err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		if u.Disabled != strings.HasPrefix(u.User, "bench-") {
			t.Errorf("afterwards %+v", u)
		}
	}
	if len(users) < 3 {
		t.Errorf("%d users", len(users))
	}
}

// TestFaultsFailTheCommand: what a broker loses is said and is exit code 1.
func TestFaultsFailTheCommand(t *testing.T) {
	b := newFakeBroker(t, func(n int, p []byte) [][]byte {
		if n%20 == 3 {
			return nil
		}
		return [][]byte{p}
	})
	args := []string{"dm", "--pairs", "1", "--window", "50", "--messages", "20", "--patience", "200ms", "-t", "bad=mqtt://" + b.addr + ",plain"}
	code, rs, said := bench(t, args...)
	if code != 1 || len(rs) != 1 || rs[0].Faults != (Faults{Lost: 1}) || !strings.Contains(said, "bad: lost 1,") || !strings.Contains(said, "messages were lost, duplicated or out of order: bad") {
		t.Errorf("%d %+v\n%s", code, rs, said)
	}
	args[len(args)-1] += ",lenient"
	if code, _, said := bench(t, args...); code != 0 || !strings.Contains(said, "bad: lost 1,") {
		t.Errorf("lenient: %d\n%s", code, said)
	}
}

func TestCtrlCShowsWhatThereIs(t *testing.T) {
	b := newFakeBroker(t, faithful)
	var out bytes.Buffer
	cmd := exec.Command(tool, "bench", "dm", "--pairs", "2", "--for", "1h", "-t", "fake=mqtt://"+b.addr+",plain")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-b.first
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if s := out.String(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(s, "ack p99") || !strings.Contains(s, "out of order 0; interrupted") || !strings.Contains(s, "parley: interrupted") {
		t.Errorf("%d\n%s", cmd.ProcessState.ExitCode(), s)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range []string{
		"dm --for 0", "dm --window 0", "dm --pairs 0", "dm -t nowhere", "dm -t self -t self", "dm --rounds 0", "dm --protocol 4", "dm --baseline x",
		"crash --rounds 2", "crash -t self -t a=self", "crash --kills 0", "suite --only (", "suite --for 0", "connect --for 0", "stalled --devices 10 --stalled 10",
	} {
		if code, _, said := bench(t, strings.Fields(args)...); code != 2 {
			t.Errorf("%s: %d %s", args, code, said)
		}
	}
	if code, _, said := bench(t, "crash", "--kills", "1", "-t", "mqtt://127.0.0.1:1"); code != 1 || !strings.Contains(said, "started itself") {
		t.Errorf("crash of a foreign server: %d %s", code, said)
	}
}
