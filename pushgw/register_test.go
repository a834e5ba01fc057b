package pushgw

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
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
