package pushgw

import (
	"context"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
)

// screens is how many rows there are of what is on screens.
func (r *rig) screens() (n int) {
	r.mem.mu.Lock()
	defer r.mem.mu.Unlock()
	for k := range r.mem.notes {
		if len(k) > len(noteShown) && k[:len(noteShown)] == noteShown {
			n++
		}
	}
	return n + len(r.mem.tasks)
}

// TestWhatIsOnScreensIsForgottenWithTheDevice: however it goes.
func TestWhatIsOnScreensIsForgottenWithTheDevice(t *testing.T) {
	for name, leave := range map[string]func(r *rig) error{
		"logged out": func(r *rig) error { return r.g.Revoked(context.Background(), "alice", "") },
		"unregister": func(r *rig) error { return r.g.Unregister(context.Background(), phone) },
		"moved": func(r *rig) error {
			return r.g.Register(context.Background(), im.DeviceKey{User: "bob", Device: "phone"}, "", Address{Provider: APNs, App: "ios", Token: "aa"})
		},
		"dead": func(r *rig) error {
			r.apns.then(func(*Push, int) Result { return Result{Outcome: Gone, Reason: "Unregistered"} })
			r.say("d/alice/carol", "carol", "is it there?")
			return nil
		},
	} {
		both(t, name, func(r *rig) {
			r.say(dmAB, "bob", "1")
			time.Sleep(time.Minute)
			if r.shop == 0 { // workers that look for bells all the while take long
				time.Sleep(time.Hour)
			}
			r.want(r.apns, 1, "a message")
			if n := r.screens(); n != 1 {
				r.t.Fatalf("%d rows while the phone is rung", n)
			}
			if err := leave(r); err != nil {
				r.t.Fatal(err)
			}
			time.Sleep(61 * time.Minute)
			if n := r.screens(); n != 0 {
				r.t.Errorf("%d rows of a phone that is gone", n)
			}
			r.g.mu.Lock()
			n := len(r.g.shown)
			r.g.mu.Unlock()
			if n != 0 {
				r.t.Errorf("%d of a phone that is gone in memory", n)
			}
		})
	}
}
