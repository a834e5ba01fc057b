package apns

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/certificate"
	"github.com/sideshow/apns2/token"

	"github.com/parley-im/parley/pushgw"
)

// Environments of APNs. A device token is valid in one of them.
const (
	Production = "production"
	Sandbox    = "sandbox"
)

// Key is a signing key of a developer team, as the developer account gives it.
type Key struct {
	Team string // 10 characters
	ID   string // 10 characters
	P8   []byte // the file AuthKey_<id>.p8
}

// Config is one app at APNs. It needs a Key with Tokens, or a Certificate.
type Config struct {
	Bundle string // the app's bundle id, which is the topic
	Key    Key
	Tokens *Tokens // the process's; with a Key

	Certificate []byte // PEM with certificate and key, or PKCS #12
	Password    string // of the certificate; may be ""

	Environment string        // where to look for tokens of unknown environment first; "": Production
	Connections int           // per environment; 0: 4
	Timeout     time.Duration // of one attempt; 0: 15 s

	// For tests and simulators: other origins than Apple's, and who signs their
	// certificates. nil: the system's authorities.
	ProductionURL, SandboxURL string
	RootCAs                   *x509.CertPool
	Now                       func() time.Time // nil: time.Now
}

// Sender sends the pushes of one app. It is a pushgw.Sender.
type Sender struct {
	cfg          Config
	key          atomic.Pointer[keyName]         // nil with a certificate
	certificate  atomic.Pointer[tls.Certificate] // nil with a key
	environments map[string]*environment

	closing sync.RWMutex // held for reading while an attempt is under way
	closed  bool
}

// environment is the connections to one of them, used in turn.
type environment struct {
	url   string
	next  atomic.Uint32
	conns []*conn
}

var _ pushgw.Sender = (*Sender)(nil)

// New checks the configuration. It connects to nothing: the first push does.
func New(cfg Config) (*Sender, error) {
	defaults(&cfg)
	if cfg.Bundle == "" {
		return nil, errors.New("apns: no bundle id")
	}
	if cfg.Environment != Production && cfg.Environment != Sandbox {
		return nil, fmt.Errorf("apns: environment is %q or %q", Production, Sandbox)
	}
	s := &Sender{cfg: cfg, environments: map[string]*environment{}}
	security := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs}
	switch {
	case len(cfg.Certificate) > 0:
		if err := s.ReloadCertificate(cfg.Certificate, cfg.Password); err != nil {
			return nil, err
		}
		security.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate.Load(), nil }
	case cfg.Tokens == nil:
		// With a set per sender two apps of a team would replace each other's token,
		// which Apple answers with 429.
		return nil, errors.New("apns: a key needs the process's set of tokens")
	default:
		if err := s.Reload(cfg.Key); err != nil {
			return nil, err
		}
	}
	for name, origin := range map[string]string{Production: cfg.ProductionURL, Sandbox: cfg.SandboxURL} {
		e, err := newEnvironment(origin, security, &cfg)
		if err != nil {
			return nil, err
		}
		s.environments[name] = e
	}
	return s, nil
}

func defaults(cfg *Config) {
	if cfg.Environment == "" {
		cfg.Environment = Production
	}
	if cfg.Connections <= 0 {
		cfg.Connections = 4
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.ProductionURL == "" {
		cfg.ProductionURL = apns2.HostProduction
	}
	if cfg.SandboxURL == "" {
		cfg.SandboxURL = apns2.HostDevelopment
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
}

func newEnvironment(origin string, security *tls.Config, cfg *Config) (*environment, error) {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" {
		return nil, errors.New("apns: an address is https://host[:port]")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	e := &environment{url: origin}
	for range cfg.Connections {
		e.conns = append(e.conns, &conn{
			transport: newTransport(security.Clone()), address: net.JoinHostPort(u.Hostname(), port),
			now: cfg.Now, turn: make(chan struct{}, 1),
		})
	}
	return e, nil
}

func parseCertificate(b []byte, password string) (tls.Certificate, error) {
	parse := certificate.FromP12Bytes
	if bytes.Contains(b, []byte("-----BEGIN ")) {
		parse = certificate.FromPemBytes
	}
	c, err := parse(b, password)
	if err != nil {
		return c, fmt.Errorf("apns: certificate: %w", err)
	}
	return c, nil
}

// Reload changes the signing key; connections stay. Pushes under way end with the
// old one. A sender with a certificate refuses.
func (s *Sender) Reload(k Key) error {
	if len(s.cfg.Certificate) > 0 {
		return errors.New("apns: this app uses a certificate, not a key")
	}
	if k.Team == "" || k.ID == "" {
		return errors.New("apns: a key needs its id and its team's")
	}
	key, err := token.AuthKeyFromBytes(k.P8)
	if err != nil {
		return fmt.Errorf("apns: key %s: %w", k.ID, err)
	}
	if key.Curve.Params().BitSize != 256 {
		return fmt.Errorf("apns: key %s is not of the curve P-256", k.ID)
	}
	name := keyName{team: k.Team, id: k.ID}
	s.cfg.Tokens.use(name, key)
	s.key.Store(&name)
	return nil
}

// ReloadCertificate changes the certificate. Pushes under way end on connections
// with the old one, later ones go over new connections. A sender with a key
// refuses.
func (s *Sender) ReloadCertificate(certificate []byte, password string) error {
	if len(s.cfg.Certificate) == 0 {
		return errors.New("apns: this app uses a key, not a certificate")
	}
	c, err := parseCertificate(certificate, password)
	if err != nil {
		return err
	}
	s.certificate.Store(&c)
	for _, e := range s.environments {
		for _, x := range e.conns {
			x.retire()
		}
	}
	return nil
}

// Send makes one attempt: one request, a second one where a token has to be
// renewed, and one more to the other environment where the device is not in the one
// it is said to be in: apps name the wrong one when a build changes its signature.
func (s *Sender) Send(ctx context.Context, p *pushgw.Push) pushgw.Result {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return pushgw.Result{Outcome: pushgw.Retry, Reason: "closed"}
	}
	n, refused := notification(p, s.cfg.Bundle, s.cfg.Now())
	if refused != nil {
		return *refused
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	first := cmp.Or(p.To.Environment, s.cfg.Environment)
	if s.environments[first] == nil {
		return *rejected("unknown environment")
	}
	r := s.search(ctx, first, n)
	if r.Environment == p.To.Environment {
		r.Environment = "" // nothing new
	}
	return r
}

// search tries both environments.
func (s *Sender) search(ctx context.Context, first string, n *apns2.Notification) pushgw.Result {
	second := Sandbox
	if first == Sandbox {
		second = Production
	}
	r := s.attempt(ctx, first, n)
	if r.Outcome == pushgw.Sent {
		r.Environment = first
	}
	if r.Reason != apns2.ReasonBadDeviceToken {
		return r
	}
	other := s.attempt(ctx, second, n)
	switch other.Outcome {
	case pushgw.Sent:
		other.Environment = second
		return other
	case pushgw.Locked:
		// A key or certificate may be for one environment only. That the token is
		// not in the other one must not stop the app.
		return r
	}
	return other
}

func (s *Sender) attempt(ctx context.Context, env string, n *apns2.Notification) pushgw.Result {
	e, key := s.environments[env], s.key.Load()
	if key == nil {
		return s.request(ctx, e, n, "")
	}
	bearer, err := s.cfg.Tokens.bearer(*key)
	if err != nil {
		return pushgw.Result{Outcome: pushgw.Locked, Reason: "signing failed", Err: err}
	}
	r := s.request(ctx, e, n, bearer)
	switch r.Reason {
	case apns2.ReasonTooManyProviderTokenUpdates:
		s.cfg.Tokens.hold(*key)
	case apns2.ReasonExpiredProviderToken:
		fresh, wait, err := s.cfg.Tokens.renew(*key, bearer)
		if err != nil {
			return pushgw.Result{Outcome: pushgw.Locked, Reason: "signing failed", Err: err}
		}
		if wait > 0 {
			return pushgw.Result{Outcome: pushgw.Retry, Reason: r.Reason, After: wait, Err: errYoung}
		}
		return s.request(ctx, e, n, fresh)
	}
	return r
}

var errYoung = errors.New("APNs calls a provider token expired that is under 20 minutes old: is this machine's clock right?")

func (s *Sender) request(ctx context.Context, e *environment, n *apns2.Notification, bearer string) pushgw.Result {
	x := &exchange{over: e.conns[int(e.next.Add(1))%len(e.conns)], bearer: bearer, now: s.cfg.Now()}
	client := apns2.Client{Host: e.url, HTTPClient: &http.Client{Transport: x, CheckRedirect: noRedirect}}
	_, err := client.PushWithContext(ctx, n)
	return x.judge(err)
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close waits for attempts under way, which end within their timeout, and closes
// the connections. Later pushes are not sent.
func (s *Sender) Close() error {
	s.closing.Lock()
	defer s.closing.Unlock()
	s.closed = true
	var errs []error
	for _, e := range s.environments {
		for _, c := range e.conns {
			errs = append(errs, c.close())
		}
	}
	return errors.Join(errs...)
}
