package pushgw

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
)

// TestADaysWakeUps is a working day of somebody with a phone in the pocket: eight
// hours at a desk, where a device is connected and mostly looked at, and eight
// beside it. Its figure is in docs/push.md: how many of the messages rang.
//
// What must hold: a message that she did not read rang, by itself or together with
// a later one.
func TestADaysWakeUps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		rnd := rand.New(rand.NewPCG(1, 2))
		between := func(from, to time.Duration) time.Duration { return from + time.Duration(rnd.Int64N(int64(to-from))) }
		desk := im.DeviceKey{User: "alice", Device: "desk"}
		messages, seen := 0, im.Seq(0)
		day := func(hours time.Duration, connected bool) {
			r.fam.mu.Lock()
			r.fam.online[desk] = connected
			r.fam.mu.Unlock()
			for end := time.Now().Add(hours * time.Hour); time.Now().Before(end); {
				time.Sleep(between(2*time.Minute, 18*time.Minute))
				looks := connected && rnd.IntN(10) < 9 // else she is in a meeting, and the desk's machine asleep
				for range 1 + rnd.IntN(6) {
					seq := r.say(dmAB, "bob", "a line")
					messages++
					if looks {
						time.Sleep(between(time.Second, 8*time.Second)) // longer than the grace, now and then
						r.read("desk", seq)
						seen = seq
					}
					time.Sleep(between(2*time.Second, 20*time.Second))
				}
			}
		}
		day(8, true)
		time.Sleep(time.Minute)
		synctest.Wait()
		atDesk, rangAtDesk := messages, 0
		for _, p := range r.apns.pushes() {
			if p.Kind == Alert {
				rangAtDesk++
			}
		}
		day(8, false)
		time.Sleep(time.Hour)
		synctest.Wait()
		alerts, clears, last := 0, 0, 0
		for _, p := range r.apns.pushes() {
			switch p.Kind {
			case Alert:
				alerts++
				seq, err := strconv.Atoi(p.Data["seq"])
				if err != nil {
					t.Fatal(err)
				}
				last = max(last, seq)
			case Clear:
				clears++
			}
		}
		t.Logf("of %d messages while she was at the desk %d rang, of %d others %d; %d were taken off the screen again",
			atDesk, rangAtDesk, messages-atDesk, alerts-rangAtDesk, clears)
		if end := messages; max(int(seen), last) != end {
			t.Errorf("of %d messages she has read %d and was rung for %d", end, seen, last)
		}
		if rangAtDesk > atDesk/2 {
			t.Errorf("%d of %d messages rang although she sat at the desk", rangAtDesk, atDesk)
		}
	})
}
