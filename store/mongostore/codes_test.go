package mongostore

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// What a server error means. Passing: the command was not done, or nobody knows,
// and asking again will tell. Definite: the server has looked at it and will say
// the same again. (MongoDB: Error Codes; src/mongo/base/error_codes.yml.)
var serverErrors = []struct {
	code    int
	name    string
	passing bool
}{
	{6, "HostUnreachable", true},
	{7, "HostNotFound", true},
	{24, "LockTimeout", true},
	{43, "CursorNotFound", true},
	{46, "LockBusy", true},
	{50, "MaxTimeMSExpired", true},
	{64, "WriteConcernTimeout", true},
	{89, "NetworkTimeout", true},
	{91, "ShutdownInProgress", true},
	{112, "WriteConflict", true},
	{117, "ConflictingOperationInProgress", true},
	{133, "FailedToSatisfyReadPreference", true},
	{134, "ReadConcernMajorityNotAvailableYet", true},
	{150, "StaleEpoch", true},
	{175, "QueryPlanKilled", true},
	{189, "PrimarySteppedDown", true},
	{202, "NetworkInterfaceExceededTimeLimit", true},
	{216, "ElectionInProgress", true},
	{217, "IncompleteTransactionHistory", true},
	{225, "TransactionTooOld", true},
	{228, "SessionTransferIncomplete", true},
	{237, "CursorKilled", true},
	{246, "SnapshotUnavailable", true},
	{249, "StaleDbVersion", true},
	{262, "ExceededTimeLimit", true},
	{314, "ObjectIsBusy", true},
	{365, "TemporarilyUnavailable", true},
	{402, "ResourceExhausted", true},
	{407, "PooledConnectionAcquisitionExceededTimeLimit", true},
	{412, "UpdatesStillPending", true},
	{433, "AdmissionQueueOverflow", true},
	{449, "RateLimitExceeded", true},
	{9001, "SocketException", true},
	{10058, "LegacyNotPrimary", true},
	{10107, "NotWritablePrimary", true},
	{11600, "InterruptedAtShutdown", true},
	{11601, "Interrupted", true},
	{11602, "InterruptedDueToReplStateChange", true},
	{13388, "StaleConfig", true},
	{13435, "NotPrimaryNoSecondaryOk", true},
	{13436, "NotPrimaryOrSecondary", true},

	{2, "BadValue", false},
	{9, "FailedToParse", false},
	{13, "Unauthorized", false},
	{20, "IllegalOperation", false},
	{26, "NamespaceNotFound", false},
	{59, "CommandNotFound", false},
	{61, "ShardKeyNotFound", false},
	{66, "ImmutableField", false},
	{121, "DocumentValidationFailure", false},
	{148, "ReadConcernMajorityNotEnabled", false},
	{323, "APIStrictError", false},
	{371, "UserWritesBlocked", false},
	{10334, "BSONObjectTooLarge", false},
	{17280, "KeyTooLong", false},
}

// TestServerErrors answers with each error once, to what writes and what reads,
// for the command and for the write in it. One that passes is asked again and
// nobody hears of it; of one that does not the caller hears, the store goes on,
// and nothing is written.
func TestServerErrors(t *testing.T) {
	uri := server.Database(t)
	s := open(t, uri, Options{})
	defer func() { _ = s.Close() }()
	l := newLedger()
	l.write(s, "g/a", "alice", "first", true, 0, 1)
	seq := im.Seq(1)
	ops := map[string]struct {
		coll, cmd string
		do        func(n int) error
	}{
		"append": {"messages", "insert", func(n int) error {
			a := &store.Append{Entry: im.Entry{Conv: "g/a", From: "alice", ID: fmt.Sprint("m", n), Body: []byte(fmt.Sprint("m", n))}}
			l.sent[fmt.Sprint("m", n)] = true
			appended(s, a)
			if a.Err == nil {
				seq++
				if l.acked[fmt.Sprint("m", n)] = a.Entry.Seq; a.Entry.Seq != seq || a.Dup {
					t.Errorf("append %d: seq %d, dup %v; want %d", n, a.Entry.Seq, a.Dup, seq)
				}
			}
			return a.Err
		}},
		"row": {"users", "insert", func(n int) error {
			return s.Commit(ctx, &store.Tx{Users: []store.User{{ID: im.UserID(fmt.Sprint("u", n))}}})
		}},
		"read": {"messages", "find", func(int) error { _, err := s.Range(ctx, "g/a", 0, 1, 1<<20); return err }},
	}
	n := 0
	for _, e := range serverErrors {
		for name, op := range ops {
			for _, how := range []mongotest.Action{mongotest.Refuse, mongotest.RefuseWrite} {
				if name == "read" && how == mongotest.RefuseWrite {
					continue
				}
				n++
				var hit atomic.Int32
				inject(t, uri, func(c mongotest.Command) mongotest.Fault {
					if c.Collection == op.coll && c.Name == op.cmd && hit.Add(1) == 1 {
						return mongotest.Fault{Do: how, Code: e.code}
					}
					return mongotest.Fault{}
				})
				err := op.do(n)
				server.Proxy.Inject(nil)
				switch {
				case hit.Load() == 0:
					t.Fatalf("%s: not asked", name)
				case e.passing && err != nil:
					t.Errorf("%s, %d %s (%d): %v", name, e.code, e.name, how, err)
				case !e.passing && !im.Is(err, im.Internal):
					t.Errorf("%s, %d %s (%d): %v, want Internal", name, e.code, e.name, how, err)
				}
				if err := s.up(); err != nil {
					t.Fatalf("after %d %s the store is down: %v", e.code, e.name, err)
				}
			}
		}
	}
	l.check(t, s, "g/a", true)
}

// TestWriteConcernErrors: ok: 1, but a majority may not have it. It is done
// again until a majority has; never is it acknowledged before, and never twice.
func TestWriteConcernErrors(t *testing.T) {
	uri := server.Database(t)
	s := open(t, uri, Options{})
	defer func() { _ = s.Close() }()
	do := map[string]func() error{
		"append": func() error {
			a := published("g/b", "")
			appended(s, a)
			if a.Err == nil && (a.Dup || a.Entry.Seq != 1) {
				return fmt.Errorf("seq %d, dup %v", a.Entry.Seq, a.Dup)
			}
			return a.Err
		},
		"dm": func() error { return appendOne(s, im.DM("alice", "bob")) },
		"tx": func() error {
			return s.Commit(ctx, &store.Tx{Groups: []store.Group{{ID: "team"}}, Members: []store.Member{{Group: "team", User: "alice", Role: "owner", Start: store.AtHead}},
				Entries: []*store.Append{{Entry: im.Entry{Conv: "g/team", Op: im.OpEvent}}}})
		},
		"row":    func() error { return s.Commit(ctx, &store.Tx{Users: []store.User{{ID: "alice"}}}) },
		"cursor": func() error { return s.Release(ctx, im.DeviceKey{User: "alice", Device: "phone"}, 5) },
		"note":   func() error { return s.PutNotes(ctx, []store.Note{{Key: "a/b", Value: []byte("1")}}, true) },
		"swap": func() error {
			ok, err := s.SwapNote(ctx, "c/d", nil, []byte("1"))
			if err == nil && !ok {
				return fmt.Errorf("not swapped")
			}
			return err
		},
		"trim": func() error { return s.Trim(ctx, "g/old", 1) },
	}
	if err := appendOne(s, "g/old"); err != nil {
		t.Fatal(err)
	}
	n := 0
	codes := []int{64, 91, 100, 189} // WriteConcernTimeout, ShutdownInProgress, UnsatisfiableWriteConcern, PrimarySteppedDown
	for _, name := range []string{"append", "dm", "tx", "row", "cursor", "note", "swap", "trim"} {
		seen := map[string]int{}
		inject(t, uri, func(c mongotest.Command) mongotest.Fault {
			switch c.Name {
			case "insert", "update", "delete", "findAndModify":
				if k := c.Name + c.Collection; seen[k] == 0 {
					seen[k]++
					n++
					return mongotest.Fault{Do: mongotest.Unsure, Code: codes[n%len(codes)]}
				}
			}
			return mongotest.Fault{}
		})
		err := do[name]()
		server.Proxy.Inject(nil)
		if err != nil || len(seen) == 0 {
			t.Errorf("%s: %v (%v)", name, err, seen)
		}
	}
	// The insert never gets its majority in time: it is looked up among what a
	// majority has, and only that is acknowledged.
	asked := 0
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		switch {
		case c.Collection == "messages" && c.Name == "insert":
			return mongotest.Fault{Do: mongotest.Unsure, Code: 64}
		case c.Collection == "messages" && c.Name == "find" && c.Body.Lookup("filter", "k").Type != 0:
			asked++
		}
		return mongotest.Fault{}
	})
	if err := appendOne(s, "g/c"); err != nil || asked == 0 {
		t.Errorf("%v, looked up %d times", err, asked)
	}
}

func appendOne(s *Store, conv im.ConvID) error {
	a := &store.Append{Entry: im.Entry{Conv: conv, From: "alice", Body: []byte("x")}}
	appended(s, a)
	return a.Err
}
