package mongotest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Env names the variable with the URI of a real MongoDB to test on.
const Env = "PARLEY_TEST_MONGODB_URI"

// Server is what the tests of a package run on, behind a proxy.
type Server struct {
	Proxy *Proxy
	Real  bool // a MongoDB, not FerretDB
	uri   *url.URL
	stop  func()
	mu    sync.Mutex
	n     int
}

// ferret is the program, as long as a server runs.
var ferret struct {
	sync.Mutex
	path  string
	users int
}

// build builds FerretDB for the first server; release removes it with the last.
func build() (path string, err error) {
	ferret.Lock()
	defer ferret.Unlock()
	if ferret.users > 0 {
		ferret.users++
		return ferret.path, nil
	}
	_, here, _, _ := runtime.Caller(0)
	dir, err := os.MkdirTemp("", "parley-ferret")
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "ferret")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join(filepath.Dir(here), "..", "..", "..", "tools", "ferret")
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("build FerretDB: %w\n%s", err, out)
	}
	ferret.path, ferret.users = path, 1
	return path, nil
}

func release() {
	ferret.Lock()
	defer ferret.Unlock()
	if ferret.users--; ferret.users == 0 {
		_ = os.RemoveAll(filepath.Dir(ferret.path))
	}
}

// Main runs the tests of a package on a server of its own; for TestMain.
func Main(m *testing.M, s **Server) int {
	srv, err := Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mongotest:", err)
		return 1
	}
	defer srv.Close()
	*s = srv
	on := "FerretDB v1 on SQLite, write commands one at a time: what MongoDB alone does (elections, sharding, real concurrency) is not shown; " + Env + " names a MongoDB to run on"
	if srv.Real {
		on = "the MongoDB of " + Env
	}
	fmt.Println("mongotest: on", on)
	code := m.Run()
	return max(code, srv.Verdict())
}

// Verdict prints the proxy's Breaches and returns an exit code: 1 if there are any.
func (s *Server) Verdict() (code int) {
	for _, what := range s.Proxy.Breaches() {
		fmt.Println("mongotest: against the MongoDB manual:", what)
		code = 1
	}
	return code
}

// StartFor starts a server for one test, which fails if there are Breaches.
func StartFor(t testing.TB) *Server {
	t.Helper()
	s, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if s.Verdict() != 0 {
			t.Error("commands that MongoDB would refuse")
		}
	})
	return s
}

// Start starts the server, or connects to the real one.
func Start() (*Server, error) {
	if raw := os.Getenv(Env); raw != "" {
		return startReal(raw)
	}
	path, err := build()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "parley-ferret-data")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, dir)
	var log strings.Builder
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe() // it ends with us
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		return nil, fmt.Errorf("FerretDB did not start: %w\n%s", err, log.String())
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	u, err := url.Parse(strings.TrimSpace(line))
	if err != nil {
		return nil, err
	}
	p, err := NewProxy(u.Host, true)
	if err != nil {
		return nil, err
	}
	return &Server{Proxy: p, uri: &url.URL{Scheme: "mongodb", Host: p.Addr(), Path: "/"}, stop: func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
		release()
	}}, nil
}

// startReal puts the proxy in front of one node of a real MongoDB: its primary,
// or a mongos.
func startReal(raw string) (*Server, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Port() == "" {
		return nil, fmt.Errorf("%s must be mongodb://[user:password@]host:port/[?options] with the one node to test on", Env)
	}
	p, err := NewProxy(u.Host, false)
	if err != nil {
		return nil, err
	}
	u.Host = p.Addr()
	q := u.Query()
	q.Set("directConnection", "true")
	u.RawQuery = q.Encode()
	return &Server{Proxy: p, Real: true, uri: u, stop: func() {}}, nil
}

// Close ends it all.
func (s *Server) Close() {
	s.Proxy.Close()
	s.stop()
}

// Database returns the URI of an empty database. On a real MongoDB it is dropped
// after the test; FerretDB's go with its directory.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	s.mu.Lock()
	s.n++
	name := fmt.Sprintf("parley_test_%d_%d", os.Getpid(), s.n)
	s.mu.Unlock()
	u := *s.uri
	u.Path = "/" + name
	if !s.Real {
		return u.String()
	}
	t.Cleanup(func() {
		c, err := mongo.Connect(options.Client().ApplyURI(u.String()))
		if err != nil {
			return
		}
		_ = c.Database(name).Drop(context.Background())
		_ = c.Disconnect(context.Background())
	})
	return u.String()
}
