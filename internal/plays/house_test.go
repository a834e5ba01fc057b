package plays

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var binary string // the server under test

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "parley-plays")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary = filepath.Join(dir, "parley")
		args := []string{"build", "-o", binary}
		if raceEnabled {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "github.com/parley-im/parley/cmd/parley")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the server: %v\n%s", err, out)
			return 1
		}
		code := m.Run()
		if mongo.srv != nil {
			mongo.srv.Close()
			code = max(code, mongo.srv.Verdict())
		}
		return code
	}())
}

// lookAtSources makes the server's sources count for go test, which else says
// "(cached)" although the server, a program of its own, has changed: it remembers
// the files that a test has looked at.
var lookAtSources = sync.OnceFunc(func() {
	_ = filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			_, _ = os.Stat(path)
		}
		return err
	})
})

// House is a running server.
type House struct {
	t    testing.TB
	dir  string
	args []string
	cmd  *exec.Cmd
	log  *logBook
	exit chan error

	MQTT, HTTP, Metrics string
	people              map[string]*Person
}

// Open starts a server on an empty data directory; more are further flags.
func Open(t testing.TB, more ...string) *House {
	lookAtSources()
	h := &House{t: t, dir: t.TempDir(), args: more, people: map[string]*Person{}}
	h.Start()
	t.Cleanup(func() {
		if h.cmd != nil {
			h.Kill()
		}
		if t.Failed() {
			t.Logf("server log:\n%s", h.log)
		}
		if strings.Contains(h.log.String(), "DATA RACE") {
			t.Errorf("the server has a data race:\n%s", h.log)
		}
	})
	return h
}

// logBook is what the server has logged; it may be read while it grows.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

var listening = regexp.MustCompile(`(mqtt|http|metrics)=(\S+)`)

// Start starts the server on the house's data directory. After the first time it
// listens where it did before.
func (h *House) Start() {
	h.t.Helper()
	if h.log == nil {
		h.log = &logBook{}
	}
	addr := func(known string) string {
		if known == "" {
			return "127.0.0.1:0"
		}
		return known
	}
	var line string
	h.cmd, h.exit, line = h.launch(h.log, append([]string{"serve", "--data-dir", h.dir, "--mqtt.addr", addr(h.MQTT), "--http.addr", addr(h.HTTP), "--metrics.addr", addr(h.Metrics), "--log.level", "debug", "--log.format", "json"}, h.args...))
	for _, m := range listening.FindAllStringSubmatch(line, -1) {
		if to := map[string]*string{"mqtt": &h.MQTT, "http": &h.HTTP, "metrics": &h.Metrics}[m[1]]; *to == "" {
			*to = m[2] // after a restart it is the same
		}
	}
}

// launch starts parley with args and waits for the line that says it is ready. exit
// gets what the process ends with.
func (h *House) launch(log *logBook, args []string) (cmd *exec.Cmd, exit chan error, ready string) {
	h.t.Helper()
	cmd = exec.Command(binary, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(log, stderr)
	}()
	ready, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		<-drained
		h.t.Fatalf("parley %s did not start: %v\n%s", args[0], err, log)
	}
	exit = make(chan error, 1)
	go func() {
		<-drained
		exit <- cmd.Wait()
	}()
	return cmd, exit, ready
}

// Kill is kill -9.
func (h *House) Kill() {
	_ = h.cmd.Process.Kill()
	<-h.exit
	h.cmd = nil
}

// Stop is SIGTERM; it must end the server with code 0 within 10 seconds.
func (h *House) Stop() {
	h.t.Helper()
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	h.stopped()
}

// stopped waits for the end that SIGTERM makes.
func (h *House) stopped() {
	h.t.Helper()
	select {
	case err := <-h.exit:
		h.cmd = nil
		if err != nil {
			h.t.Fatalf("SIGTERM: %v\n%s", err, h.log)
		}
	case <-time.After(10 * time.Second):
		h.t.Fatalf("the server did not stop within 10 s\n%s", h.log)
	}
}

// Person is somebody with an account.
type Person struct {
	h     *House
	Name  string
	Token string
}

func (p *Person) password() string { return "correct-horse-" + p.Name }

// Person registers somebody and logs them in.
func (h *House) Person(name string) *Person {
	h.t.Helper()
	if p := h.people[name]; p != nil {
		return p
	}
	p := &Person{h: h, Name: name}
	p.must(http.StatusCreated, "POST", "/v1/register", map[string]any{"user": name, "password": p.password()}, nil)
	p.Login()
	h.people[name] = p
	return p
}

// Login gets a fresh token.
func (p *Person) Login() string {
	p.h.t.Helper()
	var out struct {
		Token string
		User  string
	}
	p.Token = ""
	p.must(http.StatusOK, "POST", "/v1/login", map[string]any{"user": p.Name, "password": p.password()}, &out)
	p.Token = out.Token
	return out.Token
}

// Friends makes people friends of each other.
func (h *House) Friends(ps ...*Person) {
	h.t.Helper()
	for i, a := range ps {
		for _, b := range ps[i+1:] {
			a.must(http.StatusOK, "PUT", "/v1/friends/"+b.Name, nil, nil)
			b.must(http.StatusOK, "PUT", "/v1/friends/"+a.Name, nil, nil)
		}
	}
}

// Group makes a group of the owner and friends, who are befriended first.
func (p *Person) Group(name string, members ...*Person) string {
	p.h.t.Helper()
	ids := []string{}
	for _, m := range members {
		p.h.Friends(p, m)
		ids = append(ids, m.Name)
	}
	var out struct{ Group string }
	p.must(http.StatusCreated, "POST", "/v1/groups", map[string]any{"name": name, "members": ids}, &out)
	return out.Group
}

// must calls the API and wants a status.
func (p *Person) must(status int, method, path string, in, out any) {
	p.h.t.Helper()
	got, body, err := p.call(method, path, in)
	if err != nil {
		p.h.t.Fatalf("%s %s: %v", method, path, err)
	}
	if got != status {
		p.h.t.Fatalf("%s %s by %s: %d, want %d: %s", method, path, p.Name, got, status, body)
	}
	if out != nil {
		if err := json.Unmarshal(body, out); err != nil {
			p.h.t.Fatalf("%s %s: %v: %s", method, path, err, body)
		}
	}
}

func (p *Person) call(method, path string, in any) (int, []byte, error) {
	var body io.Reader
	if raw, ok := in.([]byte); ok {
		body = bytes.NewReader(raw)
	} else if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://"+p.h.HTTP+path, body)
	if err != nil {
		return 0, nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if p.Token != "" {
		req.Header.Set("Authorization", "Bearer "+p.Token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, b, err
}

// entry is a message of the history.
type entry struct {
	Seq   uint64
	From  string
	ID    string
	Op    string
	Ref   uint64
	Event string
	Text  string
	JSON  json.RawMessage
	Type  string

	Recalled bool
}

// History reads a whole conversation, dm/bob or g/team, and wants it dense.
func (p *Person) History(conv string) []entry {
	p.h.t.Helper()
	var all []entry
	before := uint64(0)
	for {
		var page struct {
			Messages []entry
			More     bool
		}
		path := "/v1/conversations/" + conv + "/messages?limit=200"
		if before > 0 {
			path += fmt.Sprintf("&before=%d", before)
		}
		p.must(http.StatusOK, "GET", path, nil, &page)
		all = append(page.Messages, all...)
		if !page.More || len(page.Messages) == 0 {
			break
		}
		before = page.Messages[0].Seq
	}
	for i := 1; i < len(all); i++ {
		if all[i].Seq != all[i-1].Seq+1 {
			p.h.t.Fatalf("history of %s: after seq %d comes %d", conv, all[i-1].Seq, all[i].Seq)
		}
	}
	return all
}

// need skips a play whose tool is missing, loudly; in CI it fails.
func need(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed", tool)
	}
	t.Skipf("SKIPPED: %s is not installed; make setup installs it", tool)
	return ""
}

var errTimeout = errors.New("nothing came in time")
