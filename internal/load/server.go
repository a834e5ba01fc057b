package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// server is a process that the tool started.
type server struct {
	command []string
	dir     string
	addrs   map[string]string // where it listens: mqtt, http, metrics
	cmd     *exec.Cmd
	ended   chan struct{} // closed when it has ended and its output was read
}

// serverWait bounds how long a server may take to be ready, or to end.
const serverWait = 60 * time.Second

var listening = regexp.MustCompile(`\b(mqtt|http|metrics)=(\S+)`)

// start starts it and waits for its line.
func (s *server) start(ctx context.Context) error {
	args := make([]string, len(s.command))
	for i, a := range s.command {
		a = strings.ReplaceAll(a, "{dir}", s.dir)
		for _, listener := range []string{"mqtt", "http", "metrics"} {
			addr := s.addrs[listener]
			if addr == "" {
				addr = "127.0.0.1:0"
			}
			a = strings.ReplaceAll(a, "{"+listener+"}", addr)
		}
		args[i] = a
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	// A group of its own: the terminal's Ctrl-C is for the tool, which stops the
	// server when it has what it needs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = cmd, make(chan struct{})
	ready := make(chan string, 1)
	go func() {
		defer close(s.ended)
		out := bufio.NewReader(pipe)
		line, _ := out.ReadString('\n')
		ready <- line
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}()
	line := ""
	select {
	case line = <-ready:
	case <-ctx.Done():
	case <-time.After(serverWait):
	}
	for _, m := range listening.FindAllStringSubmatch(line, -1) {
		s.addrs[m[1]] = m[2]
	}
	if !strings.Contains(line, "mqtt=") {
		s.kill()
		if err := ctx.Err(); err != nil {
			return err
		}
		return fmt.Errorf("%s did not say mqtt=HOST:PORT but %q", args[0], line)
	}
	return nil
}

// stop is SIGTERM, and SIGKILL if that does not help.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(serverWait):
		s.kill()
	}
}

// kill is SIGKILL; it returns when the process is gone.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}
