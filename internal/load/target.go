package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Target is a broker under load.
type Target struct {
	Name string
	MQTT string // address
	HTTP string // of Parley's API; "" for a broker with plain topics
	PID  int    // of the server, for its CPU and memory; 0 unknown

	mu     sync.Mutex
	users  map[string]bool
	groups map[int]string
	tokens map[string]string
}

// Adopt takes over what another target knows of accounts: the same data, served
// by a new process.
func (t *Target) Adopt(old *Target) { t.users, t.tokens, t.groups = old.users, old.tokens, old.groups }

// plain reports whether the target has topics instead of users.
func (t *Target) plain() bool { return t.HTTP == "" }

const password = "load-generator-1"

// ensure makes accounts that are not there yet, a few at a time: hashing a
// password is meant to be slow.
func (t *Target) ensure(users ...string) error {
	if t.plain() {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users == nil {
		t.users, t.tokens, t.groups = map[string]bool{}, map[string]string{}, map[int]string{}
	}
	var todo []string
	for _, u := range users {
		if !t.users[u] {
			todo = append(todo, u)
			t.users[u] = true
		}
	}
	return parallel(4, len(todo), func(i int) error {
		err := t.call(http.MethodPost, "/v1/register", "", map[string]any{"user": todo[i], "password": password}, nil)
		if err != nil && strings.Contains(err.Error(), "409") {
			return nil
		}
		return err
	})
}

// token logs a user in once.
func (t *Target) token(user string) (string, error) {
	t.mu.Lock()
	tok := t.tokens[user]
	t.mu.Unlock()
	if tok != "" {
		return tok, nil
	}
	var out struct{ Token string }
	if err := t.call(http.MethodPost, "/v1/login", "", map[string]any{"user": user, "password": password}, &out); err != nil {
		return "", err
	}
	t.mu.Lock()
	t.tokens[user] = out.Token
	t.mu.Unlock()
	return out.Token, nil
}

// befriend makes each pair friends.
func (t *Target) befriend(pairs [][2]string) error {
	return parallel(4, len(pairs), func(i int) error {
		for k := range 2 {
			tok, err := t.token(pairs[i][k])
			if err != nil {
				return err
			}
			if err := t.call(http.MethodPut, "/v1/friends/"+pairs[i][1-k], tok, nil, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// group makes a group of owner and members, who are befriended first.
func (t *Target) group(owner string, members []string) (string, error) {
	var pairs [][2]string
	for _, m := range members {
		pairs = append(pairs, [2]string{owner, m})
	}
	if err := t.befriend(pairs); err != nil {
		return "", err
	}
	tok, err := t.token(owner)
	if err != nil {
		return "", err
	}
	var out struct{ Group string }
	err = t.call(http.MethodPost, "/v1/groups", tok, map[string]any{"name": "load", "members": members}, &out)
	return out.Group, err
}

func (t *Target) call(method, path, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://"+t.HTTP+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 512))
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// as is the login of a user's device; a plain broker gets the client id alone.
func (t *Target) as(user, device string, clean bool) login {
	if t.plain() {
		return login{client: user + "-" + device, clean: clean}
	}
	return login{client: device, user: user, password: password, clean: clean}
}

// usage is what the server has used.
type usage struct {
	cpu time.Duration // user and system
	rss int64         // bytes
}

// clockTick is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

func (t *Target) usage() usage {
	var u usage
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.PID))
	if err != nil {
		return u
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	if len(f) < 22 {
		return u
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	sys, _ := strconv.ParseInt(f[12], 10, 64)
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	u.cpu = time.Duration(user+sys) * clockTick
	u.rss = pages * int64(os.Getpagesize())
	return u
}

// parallel runs fn for 0..n-1, width at a time, and returns the first error.
func parallel(width, n int, fn func(int) error) error {
	sem := make(chan struct{}, width)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for i := range n {
		sem <- struct{}{}
		wg.Go(func() {
			defer func() { <-sem }()
			if err := fn(i); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return first
}
