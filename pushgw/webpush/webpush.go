package webpush

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	webpush "github.com/SherClockHolmes/webpush-go"

	"github.com/parley-im/parley/pushgw"
)

// Config is one site.
type Config struct {
	PrivateKey   string        // VAPID, base64url: see GenerateVAPIDKeys
	Subject      string        // the operator's mail address or https page, for push services that want to complain
	AllowedHosts []string      // of push services; nil: DefaultHosts
	Timeout      time.Duration // of one attempt; 0: 15 s

	// For tests and simulators: who signs certificates (nil: the system's
	// authorities), and that private networks may be dialled.
	RootCAs      *x509.CertPool
	AllowPrivate bool
	Now          func() time.Time // nil: time.Now
}

// Limits of push services.
const (
	maxBody   = 4096 // bytes of a request [RFC 8030, 7.2]
	overhead  = 86 + 16 + 1
	padTo     = 1024 // bodies are padded to a multiple of this, to hide their size
	maxTTL    = 28 * 24 * time.Hour
	maxAnswer = 4096 // bytes that are read
)

// unprovenWait is when a push is tried again that was refused under a signature
// nobody has accepted yet.
const unprovenWait = 10 * time.Minute

// Sender sends the pushes of one site. It is a pushgw.Sender.
type Sender struct {
	cfg    Config
	signer atomic.Pointer[signer]
	http   *http.Client

	closing sync.RWMutex // held for reading while an attempt is under way
	closed  bool
}

var _ pushgw.Sender = (*Sender)(nil)

// New checks the configuration. It connects to nothing: the first push does.
func New(cfg Config) (*Sender, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Sender{cfg: cfg, http: &http.Client{
		// The list of hosts is of no use if they may send us elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer(cfg.AllowPrivate).DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs},
			HTTP2:                 &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second},
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       5 * time.Minute,
			ResponseHeaderTimeout: cfg.Timeout,
		},
	}}
	return s, s.Reload(cfg.PrivateKey)
}

// Reload changes the VAPID key; pushes under way end with the old one. Browsers
// take pushes under the key they subscribed with alone: with another all have to
// subscribe again.
func (s *Sender) Reload(privateKey string) error {
	x, err := newSigner(privateKey, s.cfg.Subject, s.cfg.Now)
	if err == nil {
		s.signer.Store(x)
	}
	return err
}

// PublicKey is the site's VAPID public key, base64url: a browser's
// applicationServerKey.
func (s *Sender) PublicKey() string { return s.signer.Load().public }

// note is what the site's service worker gets.
type note struct {
	Kind      string            `json:"push"`
	Title     string            `json:"title,omitempty"`
	Body      string            `json:"body,omitempty"`
	TitleKey  string            `json:"title_loc_key,omitempty"`
	TitleArgs []string          `json:"title_loc_args,omitempty"`
	BodyKey   string            `json:"body_loc_key,omitempty"`
	BodyArgs  []string          `json:"body_loc_args,omitempty"`
	Tag       string            `json:"tag,omitempty"` // of showNotification: replaces what has the same
	Thread    string            `json:"thread,omitempty"`
	Badge     *int              `json:"badge,omitempty"`
	Data      map[string]string `json:"data,omitempty"`
}

func encode(p *pushgw.Push) ([]byte, error) {
	n := note{
		Kind: p.Kind.String(), Title: p.Title, Body: p.Body, TitleKey: p.TitleKey, TitleArgs: p.TitleArgs,
		BodyKey: p.BodyKey, BodyArgs: p.BodyArgs, Tag: p.Collapse, Thread: p.Thread, Data: p.Data,
	}
	if p.Kind == pushgw.Clear {
		n = note{Kind: n.Kind, Tag: n.Tag, Thread: n.Thread, Data: n.Data}
	}
	if p.SetBadge {
		n.Badge = &p.Badge
	}
	return json.Marshal(n)
}

// Send makes one attempt: one request.
func (s *Sender) Send(ctx context.Context, p *pushgw.Push) pushgw.Result {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return pushgw.Result{Outcome: pushgw.Retry, Reason: "closed"}
	}
	if p.Kind > pushgw.Call {
		return pushgw.Result{Outcome: pushgw.Rejected, Reason: "unknown kind of push"}
	}
	sub, origin, err := parseSubscription(p.To.Token, s.cfg.AllowedHosts)
	switch {
	case errors.Is(err, ErrHostRefused): // the list was longer once
		return pushgw.Result{Outcome: pushgw.Misplaced, Reason: "host not allowed", Err: err}
	case err != nil:
		return pushgw.Result{Outcome: pushgw.Gone, Reason: "malformed subscription", Err: err}
	}
	body, err := encode(p)
	if err != nil {
		return pushgw.Result{Outcome: pushgw.Rejected, Reason: "unreadable push"}
	}
	if len(body)+overhead > maxBody {
		return pushgw.Result{Outcome: pushgw.TooLarge, Reason: "payload over 4096 bytes"}
	}
	signer := s.signer.Load()
	sig, err := signer.sign(origin)
	if err != nil {
		return pushgw.Result{Outcome: pushgw.Locked, Reason: "signing failed", Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.post(ctx, p, sub, signer, sig, body)
}

func (s *Sender) post(ctx context.Context, p *pushgw.Push, sub *webpush.Subscription, by *signer, sig *signature, body []byte) pushgw.Result {
	resp, err := webpush.SendNotificationWithContext(ctx, body[:len(body):len(body)], sub, &webpush.Options{
		HTTPClient: signed{s.http, sig.header},
		// The library counts its header into the record, which is allowed.
		RecordSize: uint32(min((len(body)+overhead+padTo-1)/padTo*padTo, maxBody)),
		TTL:        ttl(p.Expires, s.cfg.Now()), Urgency: urgency(p.Kind), Topic: topic(p.Collapse),
		// It signs each message and its header is replaced; it wants a good key.
		VAPIDPrivateKey: by.private, VAPIDPublicKey: by.public,
	})
	if err != nil {
		r := pushgw.Result{Outcome: pushgw.Retry, Reason: "network", Err: pushgw.Cause(err)}
		switch {
		case errors.Is(err, errPrivate):
			r.Outcome, r.Reason = pushgw.Misplaced, "private network"
		case errors.Is(err, context.DeadlineExceeded):
			r.Reason = "timeout"
		}
		return r
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // the status says it all
	_ = resp.Body.Close()
	return s.judge(resp, sig)
}

// signed replaces the library's signature.
type signed struct {
	http   *http.Client
	header string
}

func (x signed) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", x.header)
	return x.http.Do(r)
}

// judge turns an answer into an outcome.
func (s *Sender) judge(resp *http.Response, sig *signature) pushgw.Result {
	r := pushgw.Result{Reason: fmt.Sprintf("http %d", resp.StatusCode)}
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		sig.proven.Store(true)
		return pushgw.Result{Outcome: pushgw.Sent}
	case code == http.StatusNotFound, code == http.StatusGone:
		r.Outcome = pushgw.Gone
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return s.refused(r, sig)
	case code == http.StatusRequestEntityTooLarge:
		r.Outcome = pushgw.TooLarge
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		r.Outcome, r.After = pushgw.Retry, pushgw.RetryAfter(resp.Header, s.cfg.Now())
		// Push services count per subscription; what else they count they answer with 503.
		r.Device = code == http.StatusTooManyRequests
	default:
		r.Outcome = pushgw.Rejected
	}
	return r
}

var errUnproven = errors.New("the push service refuses our signature and has accepted none like it: are key, subject and clock right?")

// refused decides who is at fault. A client can register a subscription that was
// made for another site's key, and it must not be able to stop the whole app; a
// wrong key or clock of ours must not make us forget every subscription.
func (s *Sender) refused(r pushgw.Result, sig *signature) pushgw.Result {
	if sig.proven.Load() {
		r.Outcome = pushgw.Misplaced
		return r
	}
	r.Outcome, r.After, r.Device, r.Err = pushgw.Retry, unprovenWait, true, errUnproven
	return r
}

// ttl is how long the service keeps the push, in seconds; 0 is now or never.
func ttl(expires, now time.Time) int {
	if expires.IsZero() {
		return 0
	}
	return int(min(max(expires.Sub(now), 0), maxTTL) / time.Second)
}

func urgency(k pushgw.Kind) webpush.Urgency {
	if k == pushgw.Clear {
		return webpush.UrgencyNormal
	}
	return webpush.UrgencyHigh
}

// topic makes a collapse id a Topic: 32 characters of base64url [RFC 8030, 5.4].
// It is hashed also because it is not encrypted, and names the conversation.
func topic(collapse string) string {
	if collapse == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(collapse))
	return base64.RawURLEncoding.EncodeToString(sum[:24])
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
