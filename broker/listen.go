package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// Limits bounds connections, in all and per address. Listeners share one.
type Limits struct {
	max, perIP int

	mu   sync.Mutex
	all  int
	byIP map[netip.Addr]int
}

// NewLimits makes Limits; 0 is no limit.
func NewLimits(max, perIP int) *Limits {
	return &Limits{max: max, perIP: perIP, byIP: make(map[netip.Addr]int)}
}

// Acquire takes a place for a connection from addr, to be given back with
// release, or says which limit is reached.
func (l *Limits) Acquire(addr net.Addr) (release func(), full string) {
	ip := addrOf(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.max > 0 && l.all >= l.max:
		return nil, "max_connections"
	case l.perIP > 0 && l.byIP[ip] >= l.perIP:
		return nil, "max_per_ip"
	}
	l.all++
	l.byIP[ip]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all--
		if l.byIP[ip]--; l.byIP[ip] == 0 {
			delete(l.byIP, ip)
		}
	}, ""
}

// addrOf is the IP of an address; IPv6 counts by its /64, which one host has whole.
func addrOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64)
		return p.Addr()
	}
	return ip
}

// ListenOptions configure a Listener. Addr is needed.
type ListenOptions struct {
	Addr             string
	TLS              *tls.Config    // nil: plain TCP
	Proxies          []netip.Prefix // connections from there begin with a PROXY protocol v2 header
	Limits           *Limits        // nil: none
	HandshakeTimeout time.Duration  // for TLS and PROXY; default 10 s
	Log              *slog.Logger
	Refused          func(reason string)
}

// Listener accepts connections for MQTT over TCP or TLS.
type Listener struct {
	opt ListenOptions
	nl  net.Listener
}

// Listen opens the address.
func Listen(o ListenOptions) (*Listener, error) {
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Refused == nil {
		o.Refused = func(string) {}
	}
	nl, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.Addr, err)
	}
	return &Listener{opt: o, nl: nl}, nil
}

// Addr is the address it listens on.
func (l *Listener) Addr() net.Addr { return l.nl.Addr() }

// Serve accepts until ctx is done, each connection in a goroutine of its own,
// and returns when all have ended. One failed accept, such as for want of file
// descriptors, never ends it. The caller ends the connections. handle takes a
// connection over and calls ended once, when it is done with it.
func (l *Listener) Serve(ctx context.Context, handle func(nc net.Conn, ended func())) error {
	stop := context.AfterFunc(ctx, func() { _ = l.nl.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	delay := time.Duration(0)
	for {
		nc, err := l.nl.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = nc.Close()
			}
			return nil
		}
		if err != nil {
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			l.opt.Refused("accept")
			l.opt.Log.Warn("accept failed, will try again", "addr", l.opt.Addr, "error", err, "in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		wg.Add(1)
		go l.serve(ctx, nc, handle, wg.Done)
	}
}

func (l *Listener) serve(ctx context.Context, nc net.Conn, handle func(net.Conn, func()), ended func()) {
	handed := false
	defer func() {
		if r := recover(); r != nil {
			_ = nc.Close()
			l.opt.Log.Error("panic while a connection was set up", "remote", nc.RemoteAddr().String(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
		if !handed {
			ended()
		}
	}()
	// A server that stops does not wait for a stranger's handshake.
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	ready, err := l.ready(nc)
	if err != nil {
		_ = nc.Close()
		l.opt.Refused("handshake")
		l.opt.Log.Debug("connection refused", "remote", nc.RemoteAddr().String(), "error", err)
		return
	}
	if l.opt.Limits != nil {
		release, full := l.opt.Limits.Acquire(ready.RemoteAddr())
		if full != "" {
			_ = nc.Close()
			l.opt.Refused(full)
			return
		}
		done := ended
		ended = func() {
			release()
			done()
		}
	}
	if tc, ok := ready.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(ctx, l.opt.HandshakeTimeout)
		err := tc.HandshakeContext(ctx)
		cancel()
		if err != nil {
			_ = nc.Close()
			l.opt.Refused("tls")
			return
		}
	}
	stop() // from here on the caller ends it
	handed = true
	handle(ready, ended)
}

// ready reads the PROXY header of a trusted proxy and wraps for TLS.
func (l *Listener) ready(nc net.Conn) (net.Conn, error) {
	if trusted(l.opt.Proxies, nc.RemoteAddr()) {
		pc := proxyproto.NewConn(nc, proxyproto.WithPolicy(proxyproto.REQUIRE))
		_ = nc.SetReadDeadline(time.Now().Add(l.opt.HandshakeTimeout))
		h := pc.ProxyHeader() // reads it
		if h == nil || h.Version != 2 {
			return nil, errors.New("a proxy sent no PROXY protocol v2 header")
		}
		_ = nc.SetReadDeadline(time.Time{})
		nc = pc
	}
	if l.opt.TLS != nil {
		return tls.Server(nc, l.opt.TLS), nil
	}
	return nc, nil
}

func trusted(ps []netip.Prefix, a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return false
	}
	for _, p := range ps {
		if p.Contains(ap.Addr().Unmap()) {
			return true
		}
	}
	return false
}

// Certificate serves a certificate from files and reads them again when they
// change. A pair that does not load is logged and the old one stays.
type Certificate struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time
	looked  time.Time
}

// certificateLook is how often a handshake looks whether the files changed.
const certificateLook = 2 * time.Second

// LoadCertificate reads the pair once; an error says which file is at fault.
func LoadCertificate(cert, key string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key, log: log}
	c.stamp = c.stamps()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
	}
	c.current = &pair
	return c, nil
}

func (c *Certificate) stamps() (s [2]time.Time) {
	for i, f := range []string{c.cert, c.key} {
		if st, err := os.Stat(f); err == nil {
			s[i] = st.ModTime()
		}
	}
	return s
}

// Config is a TLS configuration that serves the certificate: TLS 1.2 and up,
// with session tickets.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}

func (c *Certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= certificateLook {
		c.looked = now
		if s := c.stamps(); s != c.stamp {
			pair, err := tls.LoadX509KeyPair(c.cert, c.key)
			if err != nil {
				c.log.Error("the new certificate does not load, the old one stays", "cert", c.cert, "error", err)
			} else {
				c.current, c.stamp = &pair, s
				c.log.Info("certificate read again", "cert", c.cert)
			}
		}
	}
	return c.current, nil
}

// Close closes the listener without waiting; for one that never served.
func (l *Listener) Close() error { return l.nl.Close() }
