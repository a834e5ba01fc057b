package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/im"
)

// server is a running one, reached with the bearer in its data directory.
type server struct {
	app.AdminFile
	limit time.Duration // of one call
}

// findServer looks whether a server runs on the data directory and answers.
func findServer(ctx context.Context, dataDir string) (*server, bool) {
	b, err := os.ReadFile(app.AdminFilePath(dataDir))
	if err != nil {
		return nil, false
	}
	s := server{limit: 2 * time.Second}
	if err := json.Unmarshal(b, &s.AdminFile); err != nil || s.URL == "" {
		return nil, false
	}
	if err := s.call(ctx, http.MethodGet, "/v1/admin/users?limit=1", nil, nil); err != nil {
		return nil, false // left behind by a server that was killed
	}
	s.limit = time.Minute
	return &s, true
}

// call makes a request; a problem comes back as its detail.
func (s *server) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		var p struct{ Detail, Title string }
		if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p) == nil && p.Detail+p.Title != "" {
			if p.Detail == "" {
				p.Detail = p.Title
			}
			return errors.New(p.Detail)
		}
		return fmt.Errorf("the server answered %s", res.Status)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}

func (s *server) add(ctx context.Context, user im.UserID, password, name, role string) error {
	in := map[string]any{"user": user, "password": password}
	if name != "" {
		in["name"] = name
	}
	if role != "" {
		in["role"] = role
	}
	return s.call(ctx, http.MethodPost, "/v1/admin/users", in, nil)
}

func (s *server) list(ctx context.Context, each func(im.UserID, string, string, bool)) error {
	after := ""
	for {
		var us []struct {
			User     im.UserID
			Name     string
			Role     string
			Disabled bool
		}
		if err := s.call(ctx, http.MethodGet, "/v1/admin/users?limit=200&after="+after, nil, &us); err != nil || len(us) == 0 {
			return err
		}
		for _, u := range us {
			each(u.User, u.Name, strings.TrimPrefix(u.Role, "user"), u.Disabled)
		}
		after = string(us[len(us)-1].User)
	}
}

func (s *server) setPassword(ctx context.Context, user im.UserID, password string) error {
	return s.call(ctx, http.MethodPost, "/v1/admin/users/"+url.PathEscape(string(user))+"/password", map[string]string{"password": password}, nil)
}

func (s *server) setDisabled(ctx context.Context, user im.UserID, disabled bool) error {
	return s.call(ctx, http.MethodPatch, "/v1/admin/users/"+url.PathEscape(string(user)), map[string]bool{"disabled": disabled}, nil)
}

func (s *server) revoke(ctx context.Context, user im.UserID) error {
	return s.call(ctx, http.MethodPost, "/v1/admin/users/"+url.PathEscape(string(user))+"/revoke", nil, nil)
}
