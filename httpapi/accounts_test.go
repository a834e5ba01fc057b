package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

// desk is an API with accounts behind it.
func desk(t *testing.T, users ...store.User) *API {
	t.Helper()
	db, err := pebblestore.Open("store", pebblestore.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Commit(t.Context(), &store.Tx{Users: users}); err != nil {
		t.Fatal(err)
	}
	who, err := auth.New(t.Context(), auth.Options{Store: db})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Auth: who, Accounts: db, Devices: db, Operator: func(_ *http.Request, token string) bool { return token == "operator" }})
}

func TestDisabledAccountsAreNotShown(t *testing.T) {
	a := desk(t, store.User{ID: "a1", Name: "A", Disabled: true}, store.User{ID: "a2", Name: "A", Disabled: true},
		store.User{ID: "a3", Name: "A"}, store.User{ID: "a4", Name: "A", Disabled: true}, store.User{ID: "a5", Name: "A"}, store.User{ID: "a6", Name: "A"})
	find := func(params string) (ids []im.UserID) {
		t.Helper()
		b, err := a.Call(t.Context(), Caller{User: "a3"}, "users.find", []byte(params))
		if err != nil {
			t.Fatal(err)
		}
		var ps []profile
		if err := json.Unmarshal(b, &ps); err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			ids = append(ids, p.User)
		}
		return ids
	}
	if got := find(`{"q":"a","limit":2}`); !slices.Equal(got, []im.UserID{"a3", "a5"}) {
		t.Errorf("the first page is %v: disabled accounts take no place in it", got)
	}
	if got := find(`{"q":"a","limit":2,"after":"a5"}`); !slices.Equal(got, []im.UserID{"a6"}) {
		t.Errorf("the second page is %v", got)
	}
	_, err := a.Call(t.Context(), Caller{User: "a3"}, "users.get", []byte(`{"user":"a1"}`))
	if _, none := a.Call(t.Context(), Caller{User: "a3"}, "users.get", []byte(`{"user":"nobody"}`)); im.CodeOf(err) != im.CodeOf(none) || !im.Is(err, im.NotFound) {
		t.Errorf("a disabled account is answered by %v, one that is not there by %v", err, none)
	}
}

// The commands on this machine are no user: what is about an account is not theirs.
func TestAnOperatorIsNoUser(t *testing.T) {
	a := desk(t, store.User{ID: "admin", Name: "Admin"})
	base := serve(t, a.Handler())
	if g := exchangeWith(t, base, send{method: "GET", path: "/v1/admin/users", token: "operator"}); g.status != http.StatusOK {
		t.Errorf("admin operation: %d %s", g.status, g.body)
	}
	for _, path := range []string{"/v1/me", "/v1/users?q=a", "/v1/devices"} {
		if g := exchangeWith(t, base, send{method: "GET", path: path, token: "operator"}); g.status != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", path, g.status, g.body)
		}
	}
}

// A copy may take hours: the time-outs are for others. It is for the operator.
func TestALongBackupIsAnswered(t *testing.T) {
	a := desk(t)
	a.answerTimeout, a.opt.BodyTimeout = 100*time.Millisecond, 100*time.Millisecond
	var dirs []string
	a.opt.Backup = func(_ context.Context, dir string) error {
		<-time.After(300 * time.Millisecond)
		dirs = append(dirs, dir)
		return nil
	}
	base := serve(t, a.Handler())
	backup := send{method: "POST", path: "/v1/admin/backup", token: "operator", body: `{"dir":"/copy"}`}
	if g := exchangeWith(t, base, backup); g.status != http.StatusOK || string(g.body) != `{"dir":"/copy"}`+"\n" || len(dirs) != 1 {
		t.Errorf("%d %s, copied to %v", g.status, g.body, dirs)
	}
	if _, err := a.Call(t.Context(), Caller{User: "root", Role: "admin"}, "admin.backup", []byte(`{"dir":"/copy"}`)); im.CodeOf(err) != codeOperatorOnly || len(dirs) != 1 {
		t.Errorf("by an administrator: %v, copied to %v", err, dirs)
	}
}

// Tries of a password over RPC count for the address they come from: those of one
// address shut out no other.
func TestPasswordTriesOverRPCCountByAddress(t *testing.T) {
	a := desk(t)
	if _, err := a.opt.Auth.Register(t.Context(), "alice", "correct-horse", ""); err != nil {
		t.Fatal(err)
	}
	try := func(addr, old string) error {
		_, err := a.Call(context.Background(), Caller{User: "alice", Addr: netip.MustParseAddr(addr)}, "me.password", []byte(`{"old":"`+old+`","new":"battery-staple"}`))
		return err
	}
	for range 10 {
		if err := try("192.0.2.1", "wrong-horse"); !im.Is(err, im.Unauthorized) {
			t.Fatal(err)
		}
	}
	if err := try("192.0.2.1", "correct-horse"); !im.Is(err, im.TooMany) {
		t.Errorf("after ten failures: %v", err)
	}
	if err := try("192.0.2.2", "correct-horse"); err != nil {
		t.Errorf("from another address: %v", err)
	}
}

// Who has to wait is told how long.
func TestRetryAfterIsTheWait(t *testing.T) {
	base := serve(t, desk(t).Handler())
	var g got
	for range 11 {
		g = exchangeWith(t, base, send{method: "POST", path: "/v1/login", body: `{"user":"alice","password":"wrong-horse"}`})
	}
	if wait, _ := strconv.Atoi(g.header.Get("Retry-After")); g.status != http.StatusTooManyRequests || wait <= 240 || wait > 300 {
		t.Errorf("after ten failures in five minutes: %d, Retry-After %q", g.status, g.header.Get("Retry-After"))
	}
}
