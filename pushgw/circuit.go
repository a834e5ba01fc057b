package pushgw

import (
	"log/slog"
	"sync"
	"time"
)

// circuit says when an app may send: not before the provider wants it, and while
// its credentials are refused only a probe now and then.
type circuit struct {
	app    string
	of     string // the provider
	now    func() time.Time
	log    *slog.Logger
	events Events

	mu      sync.Mutex
	until   time.Time // nothing is sent before
	locked  string    // why the credentials are refused; "" they are not
	probing bool      // somebody finds out whether they still are
}

// probeEvery is how often an app whose credentials are refused is tried.
const probeEvery = 30 * time.Second

// longestPause is how long a provider may stop an app.
const longestPause = 5 * time.Minute

func newCircuit(a App, now func() time.Time, log *slog.Logger, ev Events) circuit {
	return circuit{app: a.Name, of: a.Provider, now: now, log: log, events: ev}
}

// admit reports whether an attempt may be made now; probe says that it is the
// one that finds out. If not, wait is how long to wait, 0: until somebody's
// probe is over. Caller holds mu.
func (c *circuit) admit() (ok, probe bool, wait time.Duration) {
	if wait = c.until.Sub(c.now()); wait > 0 {
		return false, false, wait
	}
	if c.locked != "" {
		if c.probing {
			return false, false, 0
		}
		c.probing = true
		return true, true, 0
	}
	return true, false, 0
}

// pause stops the app for a while; why opens the circuit.
func (c *circuit) pause(d time.Duration, why string) {
	c.mu.Lock()
	if until := c.now().Add(d); until.After(c.until) {
		c.until = until
	}
	opened := why != "" && c.locked == ""
	if why != "" {
		c.locked, c.probing = why, false
	}
	c.mu.Unlock()
	if opened {
		c.log.Error("push credentials refused: this app's devices are not rung until they work", "provider", c.of, "app", c.app, "reason", why)
		if fn := c.events.Circuit; fn != nil {
			fn(c.of, c.app, true)
		}
	}
}

// works closes the circuit and reports whether it was open.
func (c *circuit) works() bool {
	c.mu.Lock()
	was := c.locked != ""
	if was {
		c.locked, c.probing, c.until = "", false, time.Time{}
	}
	c.mu.Unlock()
	if was {
		c.log.Info("push credentials work again", "provider", c.of, "app", c.app)
		if fn := c.events.Circuit; fn != nil {
			fn(c.of, c.app, false)
		}
	}
	return was
}

// unprobe gives up the probe without an answer about the credentials.
func (c *circuit) unprobe() {
	c.mu.Lock()
	if c.locked != "" && c.probing {
		c.probing = false
		c.until = c.now().Add(probeEvery)
	}
	c.mu.Unlock()
}

// unprobeIdle gives back a probe for which there was nothing to send.
func (c *circuit) unprobeIdle() {
	c.mu.Lock()
	c.probing = false
	c.mu.Unlock()
}

// retry has the app tried at once.
func (c *circuit) retry() {
	c.mu.Lock()
	c.until = time.Time{}
	c.mu.Unlock()
}

// heard draws conclusions about the app from an answer, and reports whether it
// works again.
func (c *circuit) heard(res Result) (again bool) {
	switch {
	case res.Outcome == Locked:
		c.pause(probeEvery, res.Reason)
		return false
	case res.Outcome == Retry && res.Reason == "network":
		c.unprobe()
	default:
		again = c.works()
	}
	if res.Outcome == Retry && res.After > 0 && !res.Device {
		c.pause(min(res.After, longestPause), "")
	}
	return again
}
