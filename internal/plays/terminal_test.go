package plays

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/parley-im/parley/client"
	"github.com/parley-im/parley/im"
)

// terminal is somebody at `parley chat --plain`.
type terminal struct {
	t   *testing.T
	in  io.WriteCloser
	out <-chan string
}

func (h *House) terminal(t *testing.T, user, password string, more ...string) *terminal {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"chat", "--plain", "-u", user, "--device", "term", "--mqtt", "mqtt://" + h.MQTT, "--http", "http://" + h.HTTP}, more...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+t.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	x := &terminal{t: t, in: in, out: scan(pipe)}
	x.say(password)
	return x
}

func (x *terminal) say(line string) {
	x.t.Helper()
	if _, err := io.WriteString(x.in, line+"\n"); err != nil {
		x.t.Fatal(err)
	}
}

// see waits for a line that has part in it.
func (x *terminal) see(part string) string {
	x.t.Helper()
	timeout := time.After(patience)
	var seen []string
	for {
		select {
		case l, ok := <-x.out:
			if !ok {
				x.t.Fatalf("the terminal ended; waiting for %q; it showed %q", part, seen)
			}
			if strings.Contains(l, part) {
				return l
			}
			seen = append(seen, l)
		case <-timeout:
			x.t.Fatalf("waiting for %q; it showed %q", part, seen)
		}
	}
}

func TestTwoPeopleAtTheTerminal(t *testing.T) {
	t.Parallel()
	h := Open(t)
	ann := h.terminal(t, "ann", "a-fine-password", "--register")
	ben := h.terminal(t, "ben", "another-password", "--register")
	for _, x := range []*terminal{ann, ben} { // an answer means that they are connected
		x.say("/nonsense")
		x.see("! there is no /nonsense")
	}
	ann.say("/friend ben")
	ann.see("ben: requested")
	ben.see("* friend-request ann")
	ben.say("/friend ann")
	ben.see("friends")
	ann.see("* friend-accepted ben")
	ann.say("dm/ben")
	ann.say("lunch?")
	ann.see("dm/ben ann: lunch?")
	ben.see("dm/ann ann: lunch?")
	ben.say("dm/ann")
	ben.say("yes \x1b[2J please")
	ann.see("ben: yes \u00b7[2J please") // control characters do not reach the terminal
	ben.say("/group team ann")
	ann.see("* group-added")
	ben.say("pizza")
	ann.see("ben: pizza")
	ben.say("/history")
	ben.see("group-created")
	ben.say("dm/nobody")
	ben.say("hello?")
	ben.see("! not friends")
}

func TestTheGoClient(t *testing.T) {
	h, alice, bob := stage(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	events := make(chan client.Event, 100)
	var refresh string
	dialBob := func() *client.Client {
		c, err := client.Dial(ctx, client.Options{MQTT: "mqtt://" + h.MQTT, HTTP: "http://" + h.HTTP, User: "bob", Password: bob.password(), Device: "go", RefreshToken: refresh,
			OnEvent: func(e client.Event) { events <- e }, OnLogin: func(s string) { refresh = s }})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	seen := im.Seq(0)
	next := func() client.Event { // what a kill made come again is passed over
		for {
			select {
			case e := <-events:
				m, ok := e.(client.Message)
				if ok && m.Seq > seen {
					seen = m.Seq
					return m
				}
			case <-ctx.Done():
				t.Fatal("no event")
				return nil
			}
		}
	}
	c := dialBob()
	a := alice.Connect("phone")
	a.Publish("dm/bob", "one")
	if m, ok := next().(client.Message); !ok || m.Conv != "dm/alice" || m.From != "alice" || string(m.Body) != "one" || m.Seq != 1 {
		t.Errorf("%+v", m)
	}
	first, err := c.Send(ctx, "dm/alice", "x1", "two")
	again, err2 := c.Send(ctx, "dm/alice", "x1", "two")
	if err := errors.Join(err, err2); err != nil || first.Seq != 2 || again != first {
		t.Errorf("%+v %+v %v", first, again, err)
	}
	a.Expect("dm/bob", "two")
	var refused *client.Error
	if _, err := c.Send(ctx, "dm/nobody", "", "x"); !errors.As(err, &refused) || refused.Reason != "not friends" {
		t.Errorf("%v", err)
	}
	if err := c.MarkRead(ctx, "dm/alice", 1); err != nil {
		t.Error(err)
	}
	a.Expect("dm/bob/read", `{"user":"bob","seq":1}`)
	var out []struct{ User string }
	if err := c.Call(ctx, "friends.list", nil, &out); err != nil || len(out) != 1 || out[0].User != "alice" {
		t.Errorf("%+v %v", out, err)
	}
	if err := c.Call(ctx, "friends.add", map[string]string{"user": "bob"}, nil); !errors.As(err, &refused) || refused.Code != "self" {
		t.Errorf("%v", err)
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	a.Publish("dm/bob", "missed")
	h.Kill() // and a break while it is connected
	h.Start()
	c = dialBob()
	if m, ok := next().(client.Message); !ok || string(m.Body) != "missed" {
		t.Errorf("%+v", m)
	}
	h.Kill()
	h.Start()
	a = alice.Connect("phone")
	a.Publish("dm/bob", "after the break")
	if m, ok := next().(client.Message); !ok || string(m.Body) != "after the break" {
		t.Errorf("%+v", m)
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestTheCommand(t *testing.T) {
	h, alice, bob := stage(t)
	alice.Connect("phone").Publish("dm/bob", "kept")
	if out := cli(t, h, "user", "list"); !strings.Contains(out, "alice") || !strings.Contains(out, "bob") {
		t.Errorf("list: %s", out)
	}
	online := h.dir + "-backup"
	t.Cleanup(func() { _ = os.RemoveAll(online) })
	if out := cli(t, h, "backup", online); !strings.Contains(out, "the store is sound") {
		t.Errorf("backup: %s", out)
	}
	second := exec.Command(binary, "serve", "--data-dir", h.dir, "--mqtt.addr", "off", "--http.addr", "off", "--metrics.addr", "off")
	if out, err := second.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("in use by another process")) {
		t.Errorf("a second server: %v %s", err, out)
	}
	h.Stop()
	cli(t, h, "user", "add", "carol", "--password-stdin")
	cli(t, h, "user", "passwd", "bob", "--password-stdin")
	if out := cli(t, h, "check", "--store"); !strings.Contains(out, "3 users") {
		t.Errorf("check: %s", out)
	}
	if out, err := exec.Command(binary, "restore", online, "--data-dir", h.dir).CombinedOutput(); err == nil {
		t.Errorf("a restore over a store: %s", out)
	}
	h.dir = t.TempDir()
	cli(t, h, "restore", online)
	h.Start()
	if msgs := alice.History("dm/bob"); len(msgs) != 1 || msgs[0].Text != "kept" {
		t.Errorf("%+v", msgs)
	}
	bob.Login() // the backup is from before the new password
	for _, args := range [][]string{{"serve", "--mqtt.addr", "nonsense"}, {"check", "--config", "/does/not/exist"}, {"user", "add"}, {"nonsense"}, {"serve", "--nonsense"}} {
		out, err := exec.Command(binary, args...).CombinedOutput()
		if err == nil || len(out) == 0 || bytes.Contains(out, []byte("goroutine")) {
			t.Errorf("parley %v: %v %s", args, err, out)
		}
	}
	if out, err := exec.Command(binary, "completion", "bash").Output(); err != nil || len(out) < 1000 {
		t.Errorf("completion: %v", err)
	}
}
