package mongostore

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// migrating watches who migrates: the first to build an index is held up until
// release is closed.
type migrating struct {
	first    atomic.Pointer[string] // its name in the lease
	renewals atomic.Int64           // of the first
	silent   atomic.Bool            // the first cannot renew
	builds   atomic.Int64
	building chan struct{} // closed when the first builds
	release  chan struct{}
}

func watchMigration(t *testing.T, uri string) *migrating {
	m := &migrating{building: make(chan struct{}), release: make(chan struct{})}
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		switch {
		case c.Name == "createIndexes":
			if m.builds.Add(1) == 1 {
				close(m.building)
				<-m.release
			}
		case c.Collection == "meta" && c.Name == "insert" && m.first.Load() == nil:
			if by, ok := c.Docs["documents"][0].Lookup("by").StringValueOK(); ok {
				m.first.Store(&by)
			}
		case c.Collection == "meta" && c.Name == "update":
			if by := m.first.Load(); by != nil && strings.Contains(c.Docs["updates"][0].String(), *by) {
				m.renewals.Add(1)
				if m.silent.Load() {
					return mongotest.Fault{Do: mongotest.Drop}
				}
			}
		}
		return mongotest.Fault{}
	})
	return m
}

// An index takes longer than the lease: the lease is renewed, and whoever comes
// meanwhile waits and then finds all done.
func TestTheMigrationIsRenewed(t *testing.T) {
	uri := server.Database(t)
	o := Options{Migration: 3 * time.Second}
	m := watchMigration(t, uri)
	opened := make(chan error, 2)
	try := func() {
		s, err := Open(ctx, uri, o)
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}
	go try()
	<-m.building
	go try()
	until(t, "the lease is renewed for longer than it lasts", func() bool { return m.renewals.Load() >= 7 })
	close(m.release)
	for range 2 {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
	if n := m.builds.Load(); n != int64(len(indexes)) {
		t.Errorf("%d indexes were built, want %d: by one of them", n, len(indexes))
	}
}

// A process that stood still is overtaken: it does not go on, and says so.
func TestAStalledMigrationIsOver(t *testing.T) {
	uri := server.Database(t)
	o := Options{Migration: time.Second}
	m := watchMigration(t, uri)
	m.silent.Store(true)
	stalled := make(chan error, 1)
	go func() {
		s, err := Open(ctx, uri, o)
		if err == nil {
			_ = s.Close()
		}
		stalled <- err
	}()
	<-m.building
	s := open(t, uri, o)
	defer func() { _ = s.Close() }()
	built := m.builds.Load()
	close(m.release)
	if err := <-stalled; im.CodeOf(err) != "store_migrating" {
		t.Errorf("the one that stood still: %v", err)
	}
	if n := m.builds.Load(); n != built {
		t.Errorf("it built %d indexes after that", n-built)
	}
	if missing, err := s.checkIndexes(ctx); err != nil || len(missing) != 0 {
		t.Errorf("%d are missing (%v)", len(missing), err)
	}
}
