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

	"github.com/parley-im/parley/pushgw/pushtest"
)

// TestPushCommands: what the commands about push print, and how they end.
func TestPushCommands(t *testing.T) {
	t.Parallel()
	h, sim := ringing(t, pushtest.Options{})
	alice, bob := h.Person("alice"), h.Person("bob")
	h.Friends(alice, bob)
	alice.must(204, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "ios", "token": token(7)}, nil)

	// says runs a command and wants its exit code and words in what it prints.
	says := func(code int, words []string, args ...string) string {
		t.Helper()
		if len(args) > 1 && args[1] != "keys" && args[1] != "simulate" {
			args = append(args, "--data-dir", h.dir)
		}
		out, err := exec.Command(binary, args...).CombinedOutput()
		got := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			got = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != code {
			t.Errorf("parley %v ends with %d, want %d: %s", args, got, code, out)
		}
		for _, w := range words {
			if !strings.Contains(string(out), w) {
				t.Errorf("parley %v does not say %q: %s", args, w, out)
			}
		}
		return string(out)
	}

	says(2, []string{"name the user and the device"}, "push", "send", "alice")
	says(2, []string{"name a user"}, "push", "explain", "alice", "dm/bob")
	says(2, []string{`"x" is no seq`}, "push", "explain", "alice", "dm/bob", "x")
	says(1, []string{"registered no address"}, "push", "send", "alice", "tablet")
	says(1, nil, "push", "explain", "alice", "nonsense", "1")
	says(0, []string{"nothing was decided"}, "push", "explain", "alice", "dm/bob", "99")
	if out := says(0, nil, "push", "dead"); strings.TrimSpace(out) != "" {
		t.Errorf("dead letters before anything rang: %s", out)
	}
	says(0, []string{"replayed: 0"}, "push", "replay")

	sim.Next("apns", pushtest.Reply{Status: 400, Reason: "BadTopic"})
	says(1, []string{"not sent: BadTopic"}, "push", "send", "alice", "phone")

	sim.Next("apns", pushtest.Reply{Status: 400, Reason: "BadTopic"})
	bob.Connect("laptop").Publish("dm/alice", "a letter")
	var dead []string
	for deadline := time.Now().Add(patience); len(dead) == 0; { // until it is given up
		if time.Now().After(deadline) {
			t.Fatal("no dead letter")
		}
		dead = strings.Fields(says(0, nil, "push", "dead"))
	}
	if got := strings.Join(dead[1:], " "); got != "alice/phone dm/bob 1 apns ios BadTopic" {
		t.Errorf("the letter is %q", got)
	}
	says(0, []string{"alice/phone", "dead_letter BadTopic"}, "push", "explain", "alice", "dm/bob", "1")
	says(0, []string{"replayed: 0"}, "push", "replay", "no-such-letter")
	says(0, []string{"replayed: 1"}, "push", "replay", dead[0])
	if p := parsePayload(t, rings(t, sim, 1)[0]); p.APS.Alert.Body != "a letter" {
		t.Errorf("%+v", p)
	}
	if out := says(0, nil, "push", "dead"); strings.TrimSpace(out) != "" {
		t.Errorf("still dead: %s", out)
	}

	key := filepath.Join(t.TempDir(), "vapid.key")
	if out := says(0, nil, "push", "keys", key); len(strings.TrimSpace(out)) != 87 { // 65 bytes, base64url
		t.Errorf("the public key is %q", out)
	}
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	says(1, []string{"exists"}, "push", "keys", key)
	says(2, []string{"name the file"}, "push", "keys")
	says(2, []string{"name a directory"}, "push", "simulate")

	elsewhere := t.TempDir()
	out, err := exec.Command(binary, "push", "dead", "--data-dir", elsewhere).CombinedOutput()
	if err == nil || !strings.Contains(string(out), elsewhere) {
		t.Errorf("without a server: %v %s", err, out)
	}
}

// TestPushSimulate: its configuration is one that a server takes, and it ends when
// it is told to.
func TestPushSimulate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "sim")
	cmd := exec.Command(binary, "push", "simulate", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test failed
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "simulating: apns=https://") {
		t.Errorf("it says %q", lines.Text())
	}
	h := Open(t, "--config", filepath.Join(dir, "push.yaml"))
	alice := h.Person("alice")
	alice.must(204, "PUT", "/v1/devices/phone/push", map[string]string{"provider": "apns", "app": "com.example.chat", "token": token(8)}, nil)
	if got := cli(t, h, "push", "send", "alice", "phone", "--text", "hello"); !strings.Contains(got, "the provider has it") {
		t.Error(got)
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), "apns") || !strings.Contains(lines.Text(), "hello") || strings.Contains(lines.Text(), token(8)) {
		t.Errorf("it shows %q", lines.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}
