package pushtest

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/parley-im/parley/pushgw"
)

// Device is what a simulator knows of a token.
type Device struct {
	Environment  string    // APNs: where it is valid; "": in both
	Topic        string    // APNs: the bundle; FCM: the project; "": any
	Unregistered time.Time // not zero: the app was removed then
	Offline      bool      // pushes are stored or dropped
}

// devices is the state of every token that was set or pushed to.
type devices struct {
	mu    sync.Mutex
	known map[string]*device
}

type device struct {
	Device
	stored  []Entry
	deleted int // FCM: stored messages that were thrown away
	minute  *rate.Limiter
	hour    *rate.Limiter
	collaps *rate.Limiter
}

// SetDevice sets the state of a token: an APNs or FCM token, or the id of a Web
// Push subscription (the last part of its endpoint). What is stored stays.
func (s *Simulator) SetDevice(token string, d Device) {
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	s.devices.of(token).Device = d
}

// of finds or makes a device; the caller holds mu.
func (d *devices) of(token string) *device {
	x := d.known[token]
	if x == nil {
		x = &device{
			minute: rate.NewLimiter(240.0/60, 240), hour: rate.NewLimiter(5000.0/3600, 5000), // per device
			collaps: rate.NewLimiter(1.0/180, 20), // collapsible: 20, then one per 3 minutes
		}
		d.known[token] = x
	}
	return x
}

// find is a token's state, and whether it may be pushed to at all.
func (s *Simulator) find(token string) (Device, bool) {
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	if d := s.devices.known[token]; d != nil {
		return d.Device, true
	}
	return Device{}, !s.opt.KnownOnly
}

// Wake turns a device online. It gets what was stored and has not expired;
// deleted is how many FCM threw away before, which the app would hear of by
// onDeletedMessages.
func (s *Simulator) Wake(token string) (got []Entry, deleted int) {
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	d := s.devices.of(token)
	now := s.opt.Now()
	got = slices.DeleteFunc(d.stored, func(e Entry) bool { return !e.Expires.After(now) })
	deleted = d.deleted
	d.Offline, d.stored, d.deleted = false, nil, 0
	return got, deleted
}

// accept gives a push to its device and writes it into the ledger.
func (s *Simulator) accept(e Entry) {
	s.devices.mu.Lock()
	d := s.devices.known[e.Token]
	switch {
	case d == nil || !d.Offline:
		e.Fate = Delivered
	case !e.Expires.After(e.At):
		e.Fate = Dropped
	default:
		e.Fate = Stored
	}
	e = s.ledger.add(e)
	if e.Fate == Stored {
		d.store(e)
	}
	s.devices.mu.Unlock()
}

const (
	fcmKeys   = 4   // collapse keys a device may have waiting
	fcmStored = 100 // messages without one; with one more, all of them go
)

func (d *device) store(e Entry) {
	if e.Provider == pushgw.APNs {
		d.stored = []Entry{e} // one per token
		return
	}
	if e.Collapse != "" {
		d.stored = slices.DeleteFunc(d.stored, func(x Entry) bool { return x.Collapse == e.Collapse })
	}
	d.stored = append(d.stored, e)
	if e.Provider != pushgw.FCM {
		return
	}
	var keys, plain int
	for _, x := range d.stored {
		if x.Collapse != "" {
			keys++
		} else {
			plain++
		}
	}
	if keys > fcmKeys {
		// FCM does not say which it keeps; here the oldest goes.
		i := slices.IndexFunc(d.stored, func(x Entry) bool { return x.Collapse != "" })
		d.stored = slices.Delete(d.stored, i, i+1)
	}
	if plain > fcmStored {
		d.deleted += plain
		d.stored = slices.DeleteFunc(d.stored, func(x Entry) bool { return x.Collapse == "" })
	}
}
