package mongostore

import (
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// weak is what a URI may say against every promise.
const weak = "w=0&journal=false&wtimeoutMS=1&readPreference=secondaryPreferred&maxStalenessSeconds=120&readPreferenceTags=dc:far&readConcernLevel=local&retryWrites=false&retryReads=false&timeoutMS=1&serverSelectionTimeoutMS=1"

// TestTheURIWeakensNothing sends every command the engine has, under a URI that
// weakens whatever a URI can, and looks at what is on the wire.
func TestTheURIWeakensNothing(t *testing.T) {
	uri := server.Database(t) + "?" + weak
	if server.Real {
		t.Skip("the URI has options of its own")
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	bare := map[string]string{}
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		mu.Lock()
		defer mu.Unlock()
		seen[c.Name] = true
		mode, level := c.Body.Lookup("$readPreference", "mode"), c.Body.Lookup("readConcern", "level")
		wc, _ := c.Body.Lookup("writeConcern").DocumentOK()
		w, _ := wc.Lookup("w").StringValueOK()
		j, _ := wc.Lookup("j").BooleanOK()
		_, err := wc.LookupErr("wtimeout")
		switch c.Name {
		case "insert", "update", "delete", "findAndModify", "createIndexes":
			if w != "majority" || err == nil || (!j && c.Name != "createIndexes") {
				bare[c.Name] = wc.String()
			}
		case "find", "aggregate":
			if l, _ := level.StringValueOK(); l != "majority" {
				bare[c.Name] = level.String()
			}
		}
		// "primaryPreferred" is what the driver gives a single node that is asked directly.
		if m, ok := mode.StringValueOK(); ok && m != "primary" && m != "primaryPreferred" {
			bare[c.Name+" mode"] = m
		}
		if _, err := c.Body.LookupErr("$readPreference", "tags"); err == nil {
			bare[c.Name+" tags"] = c.Body.Lookup("$readPreference").String()
		}
		return mongotest.Fault{}
	})
	s := open(t, uri, Options{})
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("seat", s.TakeSeat(ctx, "a test", nil))
	for range 3 {
		check("append", appendOne(s, "g/a"))
	}
	check("tx", s.Commit(ctx, &store.Tx{Groups: []store.Group{{ID: "team"}}, Members: []store.Member{{Group: "team", User: "alice", Role: "owner"}}}))
	_, err := s.CountTasks(ctx, "q", time.Now().UnixMilli())
	check("count", err)
	_, err = s.Heads(ctx, []im.ConvID{"g/a"})
	check("heads", err)
	_, err = s.Before(ctx, "g/a", 0, 2)
	check("before", err)
	check("trim", s.Trim(ctx, "g/a", 1))
	check("ping", s.Ping(ctx))
	check("close", s.Close())
	mu.Lock()
	defer mu.Unlock()
	for what, got := range bare {
		t.Errorf("%s: %s", what, got)
	}
	for _, name := range []string{"insert", "update", "delete", "findAndModify", "createIndexes", "find", "aggregate", "listIndexes"} {
		if !seen[name] {
			t.Errorf("%s was not sent", name)
		}
	}
	// FerretDB is no replica set, so retryable writes do not show on the wire.
	o, _, err := clientOptions(uri, &s.opt)
	if err != nil || !*o.RetryWrites || !*o.RetryReads || *o.Timeout != s.opt.Timeout {
		t.Errorf("retry writes %v, reads %v, timeout %v (%v)", *o.RetryWrites, *o.RetryReads, *o.Timeout, err)
	}
}
