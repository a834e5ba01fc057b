package fcm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/pushgw"
)

// Config is one Firebase project.
type Config struct {
	ServiceAccount []byte        // the JSON file of a service account that may send
	Timeout        time.Duration // of one attempt; 0: 15 s

	// For tests and simulators: another origin than Google's, and who signs its
	// certificate. nil: the system's authorities.
	Endpoint string
	RootCAs  *x509.CertPool
	Now      func() time.Time // nil: time.Now
}

const (
	googleEndpoint = "https://fcm.googleapis.com"
	maxAnswer      = 64 << 10 // bytes of an answer that are read
)

// Sender sends the pushes of one project. It is a pushgw.Sender.
type Sender struct {
	cfg    Config
	http   *http.Client
	access atomic.Pointer[access]

	closing sync.RWMutex // held for reading while an attempt is under way
	closed  bool
}

var _ pushgw.Sender = (*Sender)(nil)

// New checks the configuration. It connects to nothing: the first push does.
func New(cfg Config) (*Sender, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.Endpoint == "" {
		cfg.Endpoint = googleEndpoint
	}
	if cfg.Endpoint = strings.TrimSuffix(cfg.Endpoint, "/"); !strings.HasPrefix(cfg.Endpoint, "https://") {
		return nil, errors.New("fcm: the endpoint is not an https address")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Sender{cfg: cfg, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs},
			HTTP2:           &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
			IdleConnTimeout: 10 * time.Minute, MaxIdleConnsPerHost: 8,
		},
	}}
	if err := s.Reload(cfg.ServiceAccount); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload changes the service account, and with it perhaps the project;
// connections stay. Pushes under way end with the old one.
func (s *Sender) Reload(serviceAccount []byte) error {
	a, err := parseAccount(serviceAccount)
	if err != nil {
		return err
	}
	s.access.Store(newAccess(a, s.http, s.cfg.Now))
	return nil
}

// Send makes one attempt: one request, and a second one with a new access token
// where the first was refused for its token.
func (s *Sender) Send(ctx context.Context, p *pushgw.Push) pushgw.Result {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return pushgw.Result{Outcome: pushgw.Retry, Reason: "closed"}
	}
	body, refused := encode(p, s.cfg.Now())
	if refused != nil {
		return *refused
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	access := s.access.Load()
	token, r := s.token(ctx, access, "")
	if token == "" {
		return r
	}
	status, r := s.post(ctx, access.project, token, body)
	if status != http.StatusUnauthorized && r.Reason != "THIRD_PARTY_AUTH_ERROR" {
		return r
	}
	fresh, no := s.token(ctx, access, token)
	switch fresh {
	case "":
		return no
	case token:
		return r // it was made just now: the token is not the fault
	}
	_, r = s.post(ctx, access.project, fresh, body)
	return r
}

// token gets an access token other than the refused one; without one the result
// says why.
func (s *Sender) token(ctx context.Context, a *access, refused string) (string, pushgw.Result) {
	token, err := a.get(ctx, refused)
	if err == nil {
		return token, pushgw.Result{}
	}
	reason, header, locked := refusal(err)
	switch {
	case locked:
		return "", pushgw.Result{Outcome: pushgw.Locked, Reason: reason}
	case reason != "":
		return "", pushgw.Result{Outcome: pushgw.Retry, Reason: reason, After: pushgw.RetryAfter(header, s.cfg.Now())}
	}
	return "", unanswered(err)
}

func (s *Sender) post(ctx context.Context, project, token string, body []byte) (int, pushgw.Result) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cfg.Endpoint+"/v1/projects/"+project+"/messages:send", bytes.NewReader(body))
	if err != nil {
		return 0, *rejected("unusable endpoint")
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, unanswered(err)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close() // it was read, or the status has to do
	if err != nil {
		answer = nil
	}
	return resp.StatusCode, judge(resp.StatusCode, resp.Header, answer, s.cfg.Now())
}

// Close waits for attempts under way, which end within their timeout, and closes
// the connections. Later pushes are not sent.
func (s *Sender) Close() error {
	s.closing.Lock()
	defer s.closing.Unlock()
	s.closed = true
	s.http.CloseIdleConnections()
	return nil
}
