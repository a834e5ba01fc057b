package pushtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Options of a simulator. The zero value listens on free ports of 127.0.0.1 and
// takes a push for every well-formed token.
type Options struct {
	// Addresses to listen on; "" is a free port of 127.0.0.1.
	APNs, Sandbox, FCM, WebPush string
	Hosts                       []string // names and addresses for the certificate, beside loopback

	KnownOnly  bool          // a token that was not set by SetDevice is refused
	Topics     []string      // APNs bundles of the team; empty: any
	Project    string        // FCM; "": "simulated"
	ProjectMin int           // FCM: pushes per minute for the project; 0: 600,000
	TokenTTL   time.Duration // of an OAuth access token; 0: an hour

	LedgerSize int // entries kept; 0: 100,000
	Script     func(Request) Reply
	Now        func() time.Time // nil: time.Now
}

func (o *Options) defaults() {
	for _, a := range []*string{&o.APNs, &o.Sandbox, &o.FCM, &o.WebPush} {
		if *a == "" {
			*a = "127.0.0.1:0"
		}
	}
	if o.Project == "" {
		o.Project = "simulated"
	}
	if o.ProjectMin == 0 {
		o.ProjectMin = 600_000
	}
	if o.TokenTTL == 0 {
		o.TokenTTL = time.Hour
	}
	if o.LedgerSize == 0 {
		o.LedgerSize = 100_000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// URLs are where a simulator is: origins without a path.
type URLs struct {
	APNs    string `json:"apns"`
	Sandbox string `json:"apns_sandbox"`
	FCM     string `json:"fcm"` // messages and OAuth tokens
	WebPush string `json:"webpush"`
}

// Simulator is all three providers. Safe for concurrent use.
type Simulator struct {
	URLs URLs

	opt     Options
	ca      *authority
	ledger  ledger
	script  script
	devices devices
	apns    apnsAuth
	fcm     *fcmState
	push    pushState

	servers []*http.Server
	serving sync.WaitGroup
	closing chan struct{}
	once    sync.Once
}

// Start starts a simulator; Close ends it. It fails when an address is taken.
func Start(o Options) (*Simulator, error) {
	o.defaults()
	s := &Simulator{opt: o, closing: make(chan struct{})}
	s.ledger.size = o.LedgerSize
	s.script.queue, s.script.then = map[string][]Reply{}, o.Script
	s.devices.known = map[string]*device{}
	s.push.subs = map[string]*subscription{}
	var err error
	if s.ca, err = newAuthority(); err != nil {
		return nil, err
	}
	if err = s.apns.init(); err != nil {
		return nil, err
	}
	cert, err := s.ca.server(o.Hosts)
	if err != nil {
		return nil, err
	}
	doors := []struct {
		addr  string
		url   *string
		http2 bool // and nothing else
		ln    net.Listener
		h     http.Handler
	}{
		{addr: o.APNs, url: &s.URLs.APNs, http2: true, h: s.apnsHandler("production")},
		{addr: o.Sandbox, url: &s.URLs.Sandbox, http2: true, h: s.apnsHandler("sandbox")},
		{addr: o.FCM, url: &s.URLs.FCM, h: http.HandlerFunc(s.serveFCM)},
		{addr: o.WebPush, url: &s.URLs.WebPush, h: http.HandlerFunc(s.servePush)},
	}
	for i := range doors {
		d := &doors[i]
		if d.ln, err = net.Listen("tcp", d.addr); err != nil {
			for _, open := range doors[:i] {
				_ = open.ln.Close() // nothing was served
			}
			return nil, err
		}
		*d.url = "https://" + d.ln.Addr().String()
	}
	s.fcm, err = newFCMState(s.opt, s.URLs.FCM)
	for _, d := range doors {
		s.serve(d.ln, cert, d.http2, d.h)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Simulator) serve(ln net.Listener, cert tls.Certificate, http2only bool, h http.Handler) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ledger", s.serveLedger)
	mux.Handle("/", h)
	srv := &http.Server{
		Handler: mux,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: s.ca.pool(),
		},
		// SETTINGS as APNs sends them. Go adds 320 bytes to the size of headers.
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReadFrameSize: 16 << 10, MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: 64<<10 - 1},
		MaxHeaderBytes:    8000 - 320,
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         new(http.Protocols),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:          log.New(io.Discard, "", 0), // resets are ordered
	}
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetHTTP1(!http2only)
	s.servers = append(s.servers, srv)
	s.serving.Go(func() { _ = srv.ServeTLS(ln, "", "") }) // ErrServerClosed
}

// Close ends the servers and all connections.
func (s *Simulator) Close() error {
	s.once.Do(func() { close(s.closing) })
	var errs []error
	for _, srv := range s.servers {
		errs = append(errs, srv.Close())
	}
	s.serving.Wait()
	return errors.Join(errs...)
}

// CA is the authority of the simulator's certificates.
func (s *Simulator) CA() *x509.CertPool { return s.ca.pool() }

// CAPEM is the same as PEM.
func (s *Simulator) CAPEM() []byte { return pemBlock("CERTIFICATE", s.ca.cert.Raw) }

// Save writes what a gateway needs to use the simulator into dir: ca.pem,
// AuthKey_<key id>.p8, service-account.json and simulator.json with the URLs and
// the ids of team and key.
func (s *Simulator) Save(dir string) error {
	team, id, p8 := s.APNsKey()
	about, err := json.MarshalIndent(struct {
		URLs
		Team  string `json:"apns_team"`
		KeyID string `json:"apns_key_id"`
	}{s.URLs, team, id}, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.pem": s.CAPEM(), "AuthKey_" + id + ".p8": p8, "service-account.json": s.ServiceAccount(), "simulator.json": about,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *Simulator) request(provider, environment, token, id string) Reply {
	return s.script.reply(Request{Provider: provider, Environment: environment, Token: token, ID: id})
}
