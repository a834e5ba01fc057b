package load

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
)

// Target is a broker under load. Its accounts live as long as it does.
type Target struct {
	Spec
	MQTT string // address
	V5   bool   // MQTT 5.0 instead of 3.1.1

	prefix, password string
	server           *server // ours, or nil
	grown            bool
	mu               struct {
		sync.Mutex
		users   map[string]bool
		friends map[[2]string]bool
		tokens  map[string]token
		groups  map[string]string // id, by what it is for
	}
}

// Open gets a target ready. One with a Command is started, in a temporary
// directory that Close removes; it must print a line with mqtt=HOST:PORT, and, if
// it is a Parley, http= and metrics=, when it is ready. In its arguments {dir},
// {mqtt}, {http} and {metrics} stand for that directory and for addresses to
// listen on: port 0 of loopback, and after a restart what it had. Errors are those
// of starting it.
func Open(ctx context.Context, s Spec) (*Target, error) {
	if err := s.fill(); err != nil {
		return nil, err
	}
	t := &Target{Spec: s, MQTT: s.Address, prefix: "bench-" + strings.ToLower(rand.Text()[:8]), password: rand.Text()}
	t.mu.users, t.mu.friends = map[string]bool{}, map[[2]string]bool{}
	t.mu.tokens, t.mu.groups = map[string]token{}, map[string]string{}
	if len(s.Command) == 0 {
		return t, nil
	}
	dir, err := os.MkdirTemp("", "parley-bench-")
	if err != nil {
		return nil, err
	}
	t.server = &server{command: s.Command, dir: dir, addrs: map[string]string{}}
	if err := t.start(ctx); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start %s: %w", t.Name, err)
	}
	return t, nil
}

// Close disables the accounts that were made, if it may, and stops and forgets a
// server of ours.
func (t *Target) Close(ctx context.Context) error {
	if t.server == nil {
		return t.disableAccounts(ctx)
	}
	t.server.stop()
	return os.RemoveAll(t.server.dir)
}

// Ours reports whether the target was started by Open and may be restarted.
func (t *Target) Ours() bool { return t.server != nil }

// Restart stops a server of ours gracefully and starts it again on its data.
func (t *Target) Restart(ctx context.Context) error {
	t.server.stop()
	return t.start(ctx)
}

// grow puts into the store what Grow says, once.
func (t *Target) grow(ctx context.Context, p *Progress) error {
	if t.grown || !t.Grow.any() {
		return nil
	}
	t.grown = true
	p.begin("growing", 0)
	t.server.stop()
	if err := t.Grow.Put(ctx, t.server.dir, t.Grow); err != nil {
		return fmt.Errorf("grow its store: %w", err)
	}
	return t.start(ctx)
}

func (t *Target) start(ctx context.Context) error {
	if err := t.server.start(ctx); err != nil {
		return err
	}
	t.PID = t.server.cmd.Process.Pid
	t.MQTT = t.server.addrs["mqtt"]
	if !t.Plain {
		t.HTTP, t.Metrics = "http://"+t.server.addrs["http"], "http://"+t.server.addrs["metrics"]
	}
	return nil
}

// user names a throwaway user.
func (t *Target) user(kind string, i int) string { return fmt.Sprintf("%s-%s%d", t.prefix, kind, i) }

// as is the login of a user's device; a plain broker gets a client id of its own.
func (t *Target) as(user, device string, clean bool) login {
	if t.Plain {
		return login{client: user + "-" + device, user: t.User, password: t.Password, clean: clean}
	}
	return login{client: device, user: user, password: t.password, clean: clean}
}

// dm is the topic on which somebody writes to user, and, on a plain broker, the
// one to which user subscribes.
func (t *Target) dm(user string) string {
	if t.Plain {
		return "bench/" + user
	}
	return "dm/" + user
}

// receive connects a device and, on a plain broker, subscribes it to topic.
func (t *Target) receive(ctx context.Context, l login, topic string) (*conn, error) {
	c, err := t.dial(ctx, l)
	if err != nil || !t.Plain || c.present {
		return c, err
	}
	if err := c.subscribe(topic); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// parallel runs fn for 0..n-1, width at a time, until ctx ends or one fails, and
// returns the first error.
func parallel(ctx context.Context, width, n int, fn func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sem := make(chan struct{}, width)
	var wg sync.WaitGroup
	for i := range n {
		select {
		case sem <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-sem }()
			if err := fn(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
