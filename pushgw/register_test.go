package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// crowd is a gateway over a store that gives way before each write, so that who
// decided first is not always who writes first.
func crowd(t *testing.T) *rig {
	r := &rig{t: t, mem: newMemory(), fam: &family{online: map[im.DeviceKey]bool{}}, apns: &provider{}, fcm: &provider{}}
	r.mem.writing = func() {
		for range 20 {
			runtime.Gosched()
		}
	}
	g, err := New(t.Context(), Options{Store: r.mem, House: r.fam, Apps: r.apps()})
	if err != nil {
		t.Fatal(err)
	}
	r.g = g
	return r
}

// atOnce runs n of fn together.
func atOnce(n int, fn func(i int)) {
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-begin
			fn(i)
		})
	}
	close(begin)
	all.Wait()
}

func TestWishesAtOnceAreAllKept(t *testing.T) {
	r := crowd(t)
	const n = 64
	atOnce(n, func(i int) {
		var err error
		if i%8 == 0 {
			err = r.g.PutSettings(context.Background(), "alice", PrivacyNone, &Quiet{From: "22:00", To: "07:00", Zone: "UTC"})
		} else {
			err = r.g.PutLevel(context.Background(), "alice", im.ConvID(fmt.Sprintf("g/%d", i)), ConvLevel{Level: LevelAll})
		}
		if err != nil {
			t.Error(err)
		}
	})
	var kept Settings
	if err := json.Unmarshal(r.mem.notes[noteSet+"alice"], &kept); err != nil {
		t.Fatal(err)
	}
	for where, s := range map[string]Settings{"memory": r.g.Settings("alice"), "store": kept} {
		if len(s.Conv) != n-n/8 || s.Privacy != PrivacyNone || s.Quiet == nil {
			t.Errorf("%s: %d levels, privacy %q, quiet %v", where, len(s.Conv), s.Privacy, s.Quiet)
		}
	}
}

// stored compares what is registered in memory with what the next run would read.
func (r *rig) stored(when string) {
	r.t.Helper()
	next, err := New(context.Background(), Options{Store: r.mem, House: r.fam, Apps: r.apps()})
	if err != nil {
		r.t.Fatal(err)
	}
	for u := range 4 {
		user := im.UserID(fmt.Sprintf("user%d", u))
		now, then := r.g.Registrations(user), next.Registrations(user)
		if !slices.Equal(now, then) {
			r.t.Fatalf("%s: %s is rung at %+v, after a restart at %+v", when, user, now, then)
		}
	}
}

func TestRegistrationsAtOnceAreWrittenInTheirOrder(t *testing.T) {
	r := crowd(t)
	put := func(i, token int) {
		k := im.DeviceKey{User: im.UserID(fmt.Sprintf("user%d", i%4)), Device: "phone"}
		if err := r.g.Register(context.Background(), k, "", Address{Provider: APNs, App: "ios", Token: fmt.Sprint(token)}); err != nil {
			t.Error(err)
		}
	}
	for range 30 {
		atOnce(16, func(i int) { put(i, i) })
		r.stored("each its own")
		atOnce(16, func(i int) { put(i, 0) })
		r.stored("one address for all")
		atOnce(16, func(i int) {
			if i%2 == 0 {
				put(i, i)
			} else if err := r.g.Revoked(context.Background(), im.UserID(fmt.Sprintf("user%d", i/2%4)), ""); err != nil {
				t.Error(err)
			}
		})
		r.stored("beside logging out")
	}
}

// TestWhatAProviderSaysComesBesideARegistration: that an address is dead, or where
// it is from, is written down while the device registers another.
func TestWhatAProviderSaysComesBesideARegistration(t *testing.T) {
	r := crowd(t)
	k := im.DeviceKey{User: "user0", Device: "phone"}
	for i := range 200 {
		if err := r.g.Register(context.Background(), k, "", Address{Provider: APNs, App: "ios", Token: fmt.Sprint("old", i)}); err != nil {
			t.Fatal(err)
		}
		old := r.g.regs[k.User][0]
		atOnce(2, func(n int) {
			switch {
			case n == 0:
				if err := r.g.Register(context.Background(), k, "", Address{Provider: APNs, App: "ios", Token: fmt.Sprint("new", i)}); err != nil {
					t.Error(err)
				}
			case i%2 == 0:
				r.g.forget(old, "BadDeviceToken")
			default:
				b := &bell{key: slotKey{k, "d/user0/user1"}, Kind: Call, place: -1, call: &im.Ephemeral{}}
				r.g.sent(b, old, scene{bell: b}, Result{Environment: "sandbox"}, time.Now())
			}
		})
		r.stored(fmt.Sprint("round ", i))
	}
}

// TestWhatWaitsDoesNotRingInOtherHands: the address of a phone moves to another
// account while bells wait for it, or are just being looked at.
func TestWhatWaitsDoesNotRingInOtherHands(t *testing.T) {
	bobs := im.DeviceKey{User: "bob", Device: "phone"}
	desk := im.DeviceKey{User: "alice", Device: "desk"}
	for name, moved := range map[string]func(r *rig){
		"in its grace": func(r *rig) {
			r.fam.mu.Lock()
			r.fam.online[desk] = true
			r.fam.mu.Unlock()
			r.say(dmAB, "bob", "to alice")
			synctest.Wait()
			r.register(bobs, Address{Provider: APNs, App: "ios", Token: "aa"})
			if n := r.waiting(); n != 0 {
				r.t.Errorf("%d bells wait for a phone that alice has no more", n)
			}
			if steps := r.explain(1); steps[len(steps)-1].Reason != "address_moved" {
				r.t.Errorf("%+v", steps)
			}
			r.register(phone, Address{Provider: APNs, App: "ios", Token: "bb"}) // alice has a new one
		},
		"while it is looked at": func(r *rig) {
			r.fam.takes(time.Second)
			r.say(dmAB, "bob", "to alice")
			time.Sleep(500 * time.Millisecond)
			r.register(bobs, Address{Provider: APNs, App: "ios", Token: "aa"})
		},
		"while it waits for its turn": func(r *rig) {
			for i := range loudBurst + 5 {
				r.say(im.ConvID(fmt.Sprintf("d/alice/u%02d", i)), im.UserID(fmt.Sprintf("u%02d", i)), "x")
			}
			time.Sleep(time.Second)
			r.say(dmAB, "bob", "to alice") // its turn is five seconds later
			time.Sleep(4500 * time.Millisecond)
			r.want(r.apns, loudBurst+5, "the others")
			r.fam.takes(3 * time.Second)
			time.Sleep(2 * time.Second)
			r.register(bobs, Address{Provider: APNs, App: "ios", Token: "aa"})
		},
	} {
		both(t, name, func(r *rig) {
			moved(r)
			before := len(r.apns.pushes())
			time.Sleep(10 * time.Minute)
			r.want(r.apns, before, name)
			for _, p := range r.apns.pushes() {
				if p.Body == "to alice" {
					r.t.Errorf("%s: %+v", name, p.Push)
				}
			}
		})
	}
}

// both plays it with a gateway that rings by itself, and with workers.
func both(t *testing.T, name string, play func(r *rig)) {
	for _, workers := range []int{0, 2} {
		t.Run(fmt.Sprintf("%s, %d workers", name, workers), func(t *testing.T) { inShop(t, workers, play) })
	}
}

// waiting is how many bells wait, wherever.
func (r *rig) waiting() (n int) {
	if r.shop == 0 {
		return r.g.Pending()
	}
	ts := map[string]store.Task{}
	r.mem.mu.Lock()
	maps.Copy(ts, r.mem.tasks)
	r.mem.mu.Unlock()
	for _, t := range ts {
		if s, err := openSlot(t); err != nil {
			r.t.Error(err)
		} else if s.Bell != nil {
			n++
		}
	}
	return n
}

// takes has what is looked up before a push take d.
func (f *family) takes(d time.Duration) {
	f.mu.Lock()
	f.slow = d
	f.mu.Unlock()
}

// A device need not have connected to be registered, so their number is bounded
// here; a device that is registered already may move.
func TestRegistrationsAreBounded(t *testing.T) {
	r := crowd(t)
	register := func(i int, token string) error {
		return r.g.Register(t.Context(), im.DeviceKey{User: "alice", Device: im.DeviceID(fmt.Sprint("d", i))}, "", Address{Provider: APNs, App: "ios", Token: token})
	}
	for i := range maxRegistrations {
		if err := register(i, fmt.Sprint("token", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := register(maxRegistrations, "one more"); !im.Is(err, im.TooMany) || len(r.g.Registrations("alice")) != maxRegistrations {
		t.Errorf("one more: %v, %d are registered", err, len(r.g.Registrations("alice")))
	}
	if err := register(7, "another"); err != nil {
		t.Errorf("a new token for a device: %v", err)
	}
	if err := register(maxRegistrations, "another"); err != nil || len(r.g.Registrations("alice")) != maxRegistrations {
		t.Errorf("an address that moves to another device of the same user: %v, %d are registered", err, len(r.g.Registrations("alice")))
	}
}
