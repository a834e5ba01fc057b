package load

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// paceWith runs a schedule of a message per millisecond for n messages, whose
// sending takes as long as cost says, and returns when each was due and how long
// after that it was through.
func paceWith(t *testing.T, n int, cost func(k int) time.Duration) (due, latency []time.Duration) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		begin := time.Now()
		clock := func() time.Duration { return time.Since(begin) }
		wait := func(d time.Duration) bool { time.Sleep(d); return true }
		schedule{interval: float64(time.Millisecond)}.pace(clock, wait, func(at time.Duration, _ bool) bool {
			time.Sleep(cost(len(due)))
			due, latency = append(due, at), append(latency, clock()-at)
			return len(due) < n
		})
	})
	return due, latency
}

// TestAStallIsNotOmitted is what an open loop is for: a target that stalls for
// 100 ms delays the hundred messages that were due meanwhile, and they count.
func TestAStallIsNotOmitted(t *testing.T) {
	due, latency := paceWith(t, 1000, func(k int) time.Duration {
		if k == 500 {
			return 100 * time.Millisecond
		}
		return 0
	})
	for k, at := range due {
		if want := time.Duration(k) * time.Millisecond; at != want {
			t.Fatalf("message %d was due at %s, want %s", k, at, want)
		}
	}
	for k, l := range latency {
		want := time.Duration(0)
		if k >= 500 && k < 600 {
			want = time.Duration(600-k) * time.Millisecond
		}
		if l != want {
			t.Fatalf("message %d took %s, want %s", k, l, want)
		}
	}
	var h latencies
	for k, l := range latency {
		h.add(k, l)
	}
	if s := h.summary(); s.P99 < 80 || s.Max < 99.9 || s.P50 > 0.01 {
		t.Errorf("a tenth of all messages was late, but the histogram says %+v", *s)
	}
}

func TestALateScheduleCatchesUpAndDoesNotDrift(t *testing.T) {
	// Each message takes 0.9 ms of the tool: it keeps up. At a rate that does not
	// divide a second evenly, nothing adds up.
	due, latency := paceWith(t, 100, func(int) time.Duration { return 900 * time.Microsecond })
	for k := range due {
		if latency[k] != 900*time.Microsecond {
			t.Fatalf("message %d took %s", k, latency[k])
		}
	}
	s := schedule{interval: float64(time.Second) / 3}
	if at := s.at(3_000_000); at != 1_000_000*time.Second {
		t.Errorf("three million messages at 3/s end at %s", at)
	}
}

func TestAScheduleEndsWhenToldSo(t *testing.T) {
	done := make(chan struct{})
	close(done)
	s := schedule{start: now() + time.Hour, interval: 1}
	s.pace(now, waiter(done), func(time.Duration, bool) bool { t.Error("sent"); return false })
}

func TestLatencies(t *testing.T) {
	var l latencies
	if l.summary() != nil {
		t.Error("nothing was recorded, but there is a summary")
	}
	var wg sync.WaitGroup
	for who := range 20 {
		wg.Go(func() {
			for i := 1 + who; i <= 10_000; i += 20 {
				l.add(who, time.Duration(i)*10*time.Microsecond)
			}
		})
	}
	wg.Wait()
	s := l.summary()
	for what, v := range map[string][2]float64{"p50": {s.P50, 50}, "p90": {s.P90, 90}, "p99": {s.P99, 99}, "p99.9": {s.P999, 99.9}, "max": {s.Max, 100}} {
		if math.Abs(v[0]-v[1]) > v[1]/500 {
			t.Errorf("%s of 0.01 to 100 ms is %g ms, want %g", what, v[0], v[1])
		}
	}
	if s.Count != 10_000 {
		t.Errorf("%d durations", s.Count)
	}
	l.add(0, -1)
	l.add(0, 24*time.Hour)
	if s := l.summary(); s.Count != 10_002 || s.Max > 601e3 {
		t.Errorf("what is out of range is cut: %+v", *s)
	}
}
