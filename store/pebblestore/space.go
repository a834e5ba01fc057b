package pebblestore

import (
	"sync"
	"syscall"
	"time"

	"github.com/parley-im/parley/im"
)

// freeSpace asks the file system now and then how much is left.
type freeSpace struct {
	mu    sync.Mutex
	asked time.Time
	err   error
}

// freeEvery is how old an answer may be.
const freeEvery = time.Second

// check fails with Unavailable while less than reserve bytes are free.
func (f *freeSpace) check(dir string, reserve uint64, now time.Time) error {
	if reserve == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := now.Sub(f.asked); d >= 0 && d < freeEvery {
		return f.err
	}
	f.asked, f.err = now, nil
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return nil // no answer is no reason to refuse
	}
	if free := st.Bavail * uint64(st.Bsize); free < reserve {
		f.err = im.Refuse(im.Unavailable, "disk_full", "the disk of the data directory has %d MiB left, %d MiB are kept free: make room", free>>20, reserve>>20)
	}
	return f.err
}
