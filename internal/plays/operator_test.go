package plays

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// TestStopsInTimeWhileMongoDBIsAway: SIGTERM ends it within ten seconds, with what
// its clients had sent not acknowledged.
func TestStopsInTimeWhileMongoDBIsAway(t *testing.T) {
	srv, err := mongotest.Start() // its own: it goes down
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	h := Open(t, "--limits.off=true", "--store.timeout=30s", "--store.uri="+srv.Database(t))
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	a := alice.Connect("phone")
	a.Publish("dm/bob", "before")
	srv.Proxy.Inject(func(c mongotest.Command) mongotest.Fault { // it takes everything and answers nothing
		return mongotest.Fault{Do: mongotest.Slow, Delay: 15 * time.Second}
	})
	a.Post(message{topic: "dm/bob", body: "during", qos: 1})
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	if body := h.waitReady(t, 503); !strings.Contains(body, "stopping") {
		t.Errorf("/readyz while it stops: %s", body)
	}
	h.stopped()
	a.Gone()
}

// TestCommandsFindTheServer however its HTTP listener is set up.
func TestCommandsFindTheServer(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir, 1)
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, flags := range map[string][]string{
		"HTTPS":            {"--http.cert=" + cert, "--http.key=" + key},
		"no HTTP":          {"--http.addr=off"},
		"another loopback": {"--http.addr=127.0.0.3:0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := Open(t, flags...)
			cli(t, h, "user", "add", "alice", "--password-stdin")
			if out := cli(t, h, "user", "list"); !strings.Contains(out, "alice") {
				t.Errorf("%s", out)
			}
			cli(t, h, "user", "add", "root", "--role", "admin", "--password-stdin")
			cli(t, h, "user", "add", "bob", "--role", "user", "--password-stdin")
			cli(t, h, "backup", filepath.Join(t.TempDir(), "copy"))
			p := &Person{h: h, Name: "alice"}
			if name == "another loopback" {
				b, err := os.ReadFile(filepath.Join(h.dir, "run", "admin.json"))
				if err != nil {
					t.Fatal(err)
				}
				_, token, _ := strings.Cut(string(b), `"token":"`)
				p.Token, _, _ = strings.Cut(token, `"`)
				if status, body, err := p.call("GET", "/v1/admin/users", nil); err != nil || status != 401 {
					t.Errorf("its bearer is good for the public listener: %d %s %v", status, body, err)
				}
			}
			h.Stop()
			cli(t, h, "user", "add", "carol", "--role", "user", "--password-stdin")
			cli(t, h, "user", "add", "root2", "--role", "admin", "--password-stdin")
			if out := cli(t, h, "user", "list"); !strings.Contains(out, "alice") || strings.Count(out, "admin ") != 2 { // on the store itself
				t.Errorf("%s", out)
			}
		})
	}
}

// TestAServerOutlivesWhoReadsItsLog: a pipe that nobody reads any more does not end it.
func TestAServerOutlivesWhoReadsItsLog(t *testing.T) {
	t.Parallel()
	h := &House{t: t, dir: t.TempDir(), people: map[string]*Person{}, log: &logBook{}}
	cmd := exec.Command(binary, "serve", "--data-dir", h.dir, "--mqtt.addr=127.0.0.1:0", "--http.addr=127.0.0.1:0", "--metrics.addr=off", "--log.level=debug")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.cmd, h.exit = cmd, make(chan error, 1)
	go func() { h.exit <- cmd.Wait() }()
	defer h.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(line, "http=")
	h.HTTP = strings.Fields(rest)[0]
	_, _ = w.Close(), r.Close()
	h.Person("alice") // each request is logged
	h.Person("bob")
}

// TestUsageErrors end with code 2 and say what to write.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"sevre":              "there is no parley sevre: did you mean serve?",
		"serve extra":        "parley serve takes no arguments, not extra",
		"user foo":           "there is no parley user foo",
		"user ad":            "did you mean add?",
		"push foo":           "there is no parley push foo",
		"bench foo":          "there is no parley bench foo",
		"user list x":        "takes no arguments",
		"version x":          "takes no arguments",
		"check --stroe":      "unknown flag",
		"user add":           "name the user",
		"import":             "name the file",
		"push explain a b c": "no seq",
	} {
		out, err := exec.Command(binary, strings.Fields(args)...).CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), want) {
			t.Errorf("parley %s: %v, %s, want code 2 and %q", args, err, out, want)
		}
	}
	for _, args := range []string{"", "user", "bench", "--help", "--version"} {
		if out, err := exec.Command(binary, strings.Fields(args)...).CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("parley %s: %v %s", args, err, out)
		}
	}
}
