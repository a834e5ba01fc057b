package apns

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Times of a connection.
const (
	dialTimeout = 20 * time.Second
	pingAfter   = 15 * time.Second // of silence; finds connections that a firewall forgot
	pingTimeout = 10 * time.Second
	firstPause  = 500 * time.Millisecond // after a connection that did not come to anything
	longPause   = 30 * time.Second
)

// conn is one HTTP/2 connection, dialled when it is needed and again when it has
// ended. Apple takes quick connecting for an attack: one that failed, or ended
// before it had answered anything, is followed by a pause.
type conn struct {
	transport *http.Transport
	address   string
	now       func() time.Time
	turn      chan struct{} // held by the one that dials

	mu struct {
		sync.Mutex
		link      *link
		retired   *link // ends when what is under way on it has ended
		failures  int
		notBefore time.Time
	}
}

// link is a connection that was made.
type link struct {
	*http.ClientConn
	answered atomic.Bool
}

// pauseError says that no connection is made for a while.
type pauseError struct{ wait time.Duration }

func (e pauseError) Error() string {
	return fmt.Sprintf("no connection to APNs; the next is tried in %v", e.wait.Round(time.Millisecond))
}

func newTransport(cfg *tls.Config) *http.Transport {
	t := &http.Transport{
		TLSClientConfig: cfg, TLSHandshakeTimeout: dialTimeout, Protocols: new(http.Protocols),
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: dialTimeout},
	}
	t.Protocols.SetHTTP2(true)
	return t
}

// RoundTrip sends a request on the connection. When all its streams are taken it
// waits for one, until the request's context ends.
func (c *conn) RoundTrip(r *http.Request) (*http.Response, error) {
	_ = c.endRetired(false)
	l, err := c.get(r.Context())
	if err != nil {
		return nil, err
	}
	resp, err := l.RoundTrip(r)
	if err == nil && !l.answered.Load() {
		l.answered.Store(true)
		c.mu.Lock()
		c.mu.failures = 0
		c.mu.Unlock()
	}
	return resp, err
}

// retire has the next request make a connection. What is under way on the one
// there is ends there.
func (c *conn) retire() {
	c.turn <- struct{}{} // a connection that is being made is an old one too
	defer func() { <-c.turn }()
	_ = c.endRetired(true) // of a change before this one
	c.mu.Lock()
	c.mu.link, c.mu.retired = nil, c.mu.link
	c.mu.Unlock()
}

// endRetired closes a connection that is not to be used any more, when nothing is
// under way on it or in any case.
func (c *conn) endRetired(inAnyCase bool) error {
	c.mu.Lock()
	l := c.mu.retired
	if l == nil || !inAnyCase && l.InFlight() > 0 {
		c.mu.Unlock()
		return nil
	}
	c.mu.retired = nil
	c.mu.Unlock()
	return l.Close()
}

// alive is the connection there is, nil when one has to be made.
func (c *conn) alive() (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.mu.link; l != nil {
		if l.Err() == nil {
			return l, nil
		}
		c.mu.link = nil
		if !l.answered.Load() {
			c.failedLocked()
		}
	}
	if wait := c.mu.notBefore.Sub(c.now()); wait > 0 {
		return nil, pauseError{wait}
	}
	return nil, nil
}

// failedLocked notes a connection that came to nothing: half to the whole of a
// pause that doubles.
func (c *conn) failedLocked() {
	pause := min(firstPause<<min(c.mu.failures, 10), longPause)
	c.mu.failures++
	c.mu.notBefore = c.now().Add(pause/2 + rand.N(pause/2))
}

func (c *conn) get(ctx context.Context) (*link, error) {
	if l, err := c.alive(); l != nil || err != nil {
		return l, err
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l, err := c.alive(); l != nil || err != nil {
		return l, err // somebody else made it, or failed to
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	cc, err := c.transport.NewClientConn(dial, "https", c.address)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if ctx.Err() != context.Canceled { // that one says nothing about the network
			c.failedLocked()
		}
		return nil, err
	}
	c.mu.link = &link{ClientConn: cc}
	return c.mu.link, nil
}

// close ends the connection; a later request would make a new one.
func (c *conn) close() error {
	_ = c.endRetired(true)
	c.mu.Lock()
	l := c.mu.link
	c.mu.link = nil
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.Close()
}
