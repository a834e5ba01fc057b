package load

import (
	"syscall"
	"time"
)

// doze sleeps for d or less. A timer of the Go runtime is late by up to a
// millisecond when nothing else runs, since epoll counts in those; that would be
// the greater part of what is measured here.
func doze(d time.Duration) {
	ts := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&ts, nil) // interrupted: the caller looks at the clock
}
