package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// token is an access token and when it was issued.
type token struct {
	value  string
	issued time.Time
}

// tokenAge is how old a token may be to be used: well below auth.token_ttl.
const tokenAge = 5 * time.Minute

// statusError is an answer of the API that is none.
type statusError struct {
	status int
	what   string
}

func (e *statusError) Error() string { return e.what }

// ensure makes accounts that are not there yet, a few at a time: hashing a
// password is meant to be slow.
func (t *Target) ensure(ctx context.Context, p *Progress, users ...string) error {
	if t.Plain {
		return nil
	}
	t.mu.Lock()
	var todo []string
	for _, u := range users {
		if !t.mu.users[u] {
			todo = append(todo, u)
		}
	}
	t.mu.Unlock()
	p.begin("accounts", len(todo))
	return parallel(ctx, 4, len(todo), func(ctx context.Context, i int) error {
		path, admin := "/v1/register", ""
		if t.AdminToken != "" {
			path, admin = "/v1/admin/users", t.AdminToken
		}
		err := t.call(ctx, http.MethodPost, path, admin, map[string]any{"user": todo[i], "password": t.password}, nil)
		var se *statusError
		if errors.As(err, &se) && se.status == http.StatusForbidden && admin == "" {
			return fmt.Errorf("%w: registration is closed there: give an admin's token, or start the server with --registration open", err)
		}
		if err != nil {
			return err
		}
		p.step()
		t.mu.Lock()
		t.mu.users[todo[i]] = true
		t.mu.Unlock()
		return nil
	})
}

// token logs a user in, or finds the token of a while ago.
func (t *Target) token(ctx context.Context, user string) (string, error) {
	t.mu.Lock()
	tok := t.mu.tokens[user]
	t.mu.Unlock()
	if tok.value != "" && time.Since(tok.issued) < tokenAge {
		return tok.value, nil
	}
	issued := time.Now()
	var out struct{ Token string }
	if err := t.call(ctx, http.MethodPost, "/v1/login", "", map[string]any{"user": user, "password": t.password}, &out); err != nil {
		return "", err
	}
	t.mu.Lock()
	t.mu.tokens[user] = token{out.Token, issued}
	t.mu.Unlock()
	return out.Token, nil
}

// tokens logs users in that have no fresh token.
func (t *Target) tokens(ctx context.Context, p *Progress, users []string) error {
	if t.Plain {
		return nil
	}
	p.begin("logins", len(users))
	return parallel(ctx, 4, len(users), func(ctx context.Context, i int) error {
		defer p.step()
		_, err := t.token(ctx, users[i])
		return err
	})
}

// asToken is as with the user's access token, which a server checks without
// having seen the password since it started.
func (t *Target) asToken(ctx context.Context, user, device string, clean bool) (login, error) {
	l := t.as(user, device, clean)
	if t.Plain {
		return l, nil
	}
	var err error
	l.password, err = t.token(ctx, user)
	return l, err
}

// befriend makes each pair friends.
func (t *Target) befriend(ctx context.Context, p *Progress, pairs [][2]string) error {
	if t.Plain {
		return nil
	}
	p.begin("friendships", len(pairs))
	return parallel(ctx, 4, len(pairs), func(ctx context.Context, i int) error {
		defer p.step()
		t.mu.Lock()
		done := t.mu.friends[pairs[i]]
		t.mu.Unlock()
		if done {
			return nil
		}
		for k := range 2 {
			tok, err := t.token(ctx, pairs[i][k])
			if err != nil {
				return err
			}
			if err := t.call(ctx, http.MethodPut, "/v1/friends/"+pairs[i][1-k], tok, nil, nil); err != nil {
				return err
			}
		}
		t.mu.Lock()
		t.mu.friends[pairs[i]] = true
		t.mu.Unlock()
		return nil
	})
}

// group makes a group of owner and members, who are befriended first, or finds the
// one that was made for the same.
func (t *Target) group(ctx context.Context, p *Progress, key, owner string, members []string) (string, error) {
	t.mu.Lock()
	id := t.mu.groups[key]
	t.mu.Unlock()
	if id != "" || t.Plain {
		return id, nil
	}
	var pairs [][2]string
	for _, m := range members {
		pairs = append(pairs, [2]string{owner, m})
	}
	if err := t.befriend(ctx, p, pairs); err != nil {
		return "", err
	}
	tok, err := t.token(ctx, owner)
	if err != nil {
		return "", err
	}
	var out struct{ Group string }
	err = t.call(ctx, http.MethodPost, "/v1/groups", tok, map[string]any{"name": "bench", "members": members}, &out)
	t.mu.Lock()
	t.mu.groups[key] = out.Group
	t.mu.Unlock()
	return out.Group, err
}

// disableAccounts locks the throwaway accounts, where an admin's token was given.
func (t *Target) disableAccounts(ctx context.Context) error {
	if t.AdminToken == "" {
		return nil
	}
	var users []string
	for u := range t.mu.users {
		users = append(users, u)
	}
	return parallel(ctx, 4, len(users), func(ctx context.Context, i int) error {
		return t.call(ctx, http.MethodDelete, "/v1/admin/users/"+users[i], t.AdminToken, nil, nil)
	})
}

// httpClient keeps as many connections as there are calls at once.
var httpClient = &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}}

// call makes a request of the API. Where it answers that there are too many, it
// waits as long as it was told and asks again, until ctx ends.
func (t *Target) call(ctx context.Context, method, path, token string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	for {
		wait, err := t.callOnce(ctx, method, path, token, body, out)
		if wait == 0 {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *Target) callOnce(ctx context.Context, method, path, token string, body []byte, out any) (wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, method, t.HTTP+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // keeps the connection
		_ = res.Body.Close()
	}()
	if res.StatusCode == http.StatusTooManyRequests {
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return time.Duration(max(seconds, 1)) * time.Second, nil
	}
	if res.StatusCode >= 300 {
		var problem struct{ Detail, Title string }
		_ = json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&problem) // best effort: the status says enough
		return 0, &statusError{res.StatusCode, fmt.Sprintf("%s %s: %s %s", method, path, res.Status, problem.Detail)}
	}
	if out == nil {
		return 0, nil
	}
	return 0, json.NewDecoder(res.Body).Decode(out)
}
