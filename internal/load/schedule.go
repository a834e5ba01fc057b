package load

import "time"

// schedule says when each message of an open loop is meant to be sent: at a fixed
// rate, whatever the target does.
type schedule struct {
	start    time.Duration // on the clock of now
	interval float64       // nanoseconds
}

// at is when message k, from 0, is due. It is multiplied, not added up, so that it
// does not drift.
func (s schedule) at(k int64) time.Duration {
	return s.start + time.Duration(float64(k)*s.interval)
}

// pace calls send for each message of the schedule, at its time or, if it is late
// by then, at once: what is late is never left out, and send is told when it
// should have been, for the latency is counted from there. It ends when send or
// wait says so by false. Messages that are due together are told by more.
func (s schedule) pace(clock func() time.Duration, wait func(time.Duration) bool, send func(due time.Duration, more bool) bool) {
	for k := int64(0); ; k++ {
		due, t := s.at(k), clock()
		if due > t {
			if !wait(due - t) {
				return
			}
			t = clock()
		}
		if !send(due, s.at(k+1) <= t) {
			return
		}
	}
}

// patience is the longest that a schedule sleeps without looking whether the run
// is over.
const patience = 50 * time.Millisecond

// waiter returns a wait for pace that gives up when done is closed.
func waiter(done <-chan struct{}) func(time.Duration) bool {
	return func(d time.Duration) bool {
		for until := now() + d; ; {
			select {
			case <-done:
				return false
			default:
			}
			left := until - now()
			if left <= 0 {
				return true
			}
			doze(min(left, patience))
		}
	}
}
