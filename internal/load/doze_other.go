//go:build !linux

package load

import "time"

// doze sleeps for d.
func doze(d time.Duration) { time.Sleep(d) }
