package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

// desk is an Auth on a real store with a clock of its own.
type desk struct {
	*Auth
	t       *testing.T
	st      *pebblestore.Store
	now     atomic.Int64
	mu      sync.Mutex
	revoked []Revocation
}

var ctx = context.Background()

func newDesk(t *testing.T) *desk {
	t.Parallel()
	st, err := pebblestore.Open(t.TempDir(), pebblestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	d := &desk{t: t, st: st}
	d.now.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	d.reopen()
	if _, err := d.Register(ctx, "alice", "correct-horse", "Alice"); err != nil {
		t.Fatal(err)
	}
	return d
}

// reopen makes the Auth anew on the same store, as a restart does.
func (d *desk) reopen() {
	a, err := New(ctx, Options{Store: d.st, Now: func() time.Time { return time.Unix(0, d.now.Load()) }, Revoked: func(_ context.Context, r Revocation) {
		d.mu.Lock()
		d.revoked = append(d.revoked, r)
		d.mu.Unlock()
	}})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Auth = a
}

func (d *desk) pass(by time.Duration) { d.now.Add(int64(by)) }

func (d *desk) login() Grant {
	d.t.Helper()
	g, err := d.Login(ctx, "alice", "correct-horse", "", "192.0.2.1")
	if err != nil {
		d.t.Fatal(err)
	}
	return g
}

func (d *desk) want(k im.Kind, err error, what string) {
	d.t.Helper()
	if !im.Is(err, k) {
		d.t.Errorf("%s: %v, want %s", what, err, k)
	}
}

func (d *desk) ok(err error, what string) {
	d.t.Helper()
	if err != nil {
		d.t.Errorf("%s: %v", what, err)
	}
}

func TestRegister(t *testing.T) {
	d := newDesk(t)
	for _, tt := range []struct {
		why, user, password string
		kind                im.Kind
	}{
		{"taken", "alice", "correct-horse", im.Conflict},
		{"an upper-case id", "Bob", "correct-horse", im.Invalid},
		{"only dots", "..", "correct-horse", im.Invalid},
		{"a short password", "bob", "short", im.Invalid},
		{"a long password", "bob", strings.Repeat("x", 257), im.Invalid},
		{"the id as password", "bob.builder", "Bob.Builder", im.Invalid},
		{"a password that everybody tries", "bob", "password", im.Invalid},
		{"one character repeated", "bob", "aaaaaaaaaa", im.Invalid},
	} {
		_, err := d.Register(ctx, im.UserID(tt.user), tt.password, "")
		d.want(tt.kind, err, tt.why)
		if err != nil && strings.Contains(err.Error(), tt.password) && tt.password != "password" {
			t.Errorf("%s: the error tells the password", tt.why)
		}
	}
	_, err := d.Register(ctx, "bob", "correct-horse", "Bob\nadmin: hello")
	d.want(im.Invalid, err, "a name of two lines")
	d.want(im.Invalid, d.SetName(ctx, "alice", "\x1b[2J"), "a name that writes over the terminal")
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := d.Register(ctx, "carol", "correct-horse", ""); err == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d registrations of one id succeeded", won.Load())
	}
}

func TestLoginRefreshLogout(t *testing.T) {
	d := newDesk(t)
	_, err := d.Login(ctx, "alice", "wrong-horse", "", "x")
	d.want(im.Unauthorized, err, "a wrong password")
	_, err2 := d.Login(ctx, "nobody", "wrong-horse", "", "x")
	d.want(im.Unauthorized, err2, "an unknown user")
	if err.Error() != err2.Error() {
		t.Errorf("users can be told apart: %v / %v", err, err2)
	}
	g := d.login()
	id, err := d.CheckToken(ctx, g.Token)
	d.ok(err, "the token")
	if id.User != "alice" || id.Expires.IsZero() {
		t.Errorf("%+v", id)
	}
	d.reopen()
	_, err = d.CheckToken(ctx, g.Token)
	d.ok(err, "the token after a restart")

	d.pass(16 * time.Minute)
	_, err = d.CheckToken(ctx, g.Token)
	d.want(im.Unauthorized, err, "an expired token")
	if d.StillValid(id) {
		t.Error("an expired identity is valid")
	}
	next, err := d.Refresh(ctx, g.RefreshToken)
	d.ok(err, "refresh")
	_, err = d.Refresh(ctx, g.RefreshToken)
	d.ok(err, "again within the grace: the answer may have been lost")
	d.pass(time.Minute)
	_, err = d.Refresh(ctx, g.RefreshToken)
	d.want(im.Unauthorized, err, "a refresh token used twice")
	_, err = d.CheckToken(ctx, next.Token)
	d.want(im.Unauthorized, err, "a token of a login whose refresh token was stolen")
	_, err = d.Refresh(ctx, next.RefreshToken)
	d.want(im.Unauthorized, err, "its refresh token")
	if len(d.revoked) != 1 || d.revoked[0].Reason != "reuse" {
		t.Errorf("%+v", d.revoked)
	}

	g, other := d.login(), d.login()
	id, _ = d.CheckToken(ctx, g.Token)
	d.ok(d.Logout(ctx, id), "logout")
	_, err = d.CheckToken(ctx, g.Token)
	d.want(im.Unauthorized, err, "after logout")
	_, err = d.Refresh(ctx, g.RefreshToken)
	d.want(im.Unauthorized, err, "refresh after logout")
	_, err = d.CheckToken(ctx, other.Token)
	d.ok(err, "another login")
	d.reopen()
	_, err = d.CheckToken(ctx, g.Token)
	d.want(im.Unauthorized, err, "after logout and a restart")
	d.pass(91 * 24 * time.Hour)
	_, err = d.Refresh(ctx, other.RefreshToken)
	d.want(im.Unauthorized, err, "an old refresh token")
}

func TestPasswordChangeAndDisable(t *testing.T) {
	d := newDesk(t)
	g := d.login()
	id, err := d.CheckConnect(ctx, "alice", []byte("correct-horse"), "", "x")
	d.ok(err, "connect")
	d.want(im.Unauthorized, d.ChangePassword(ctx, "alice", "wrong-horse", "new-horse-1", "x"), "a wrong old password")
	d.ok(d.ChangePassword(ctx, "alice", "correct-horse", "new-horse-1", "x"), "change")
	if d.StillValid(id) {
		t.Error("a password identity outlives the password")
	}
	_, err = d.CheckToken(ctx, g.Token)
	d.want(im.Unauthorized, err, "a token from before")
	_, err = d.Refresh(ctx, g.RefreshToken)
	d.want(im.Unauthorized, err, "a refresh token from before")
	_, err = d.CheckConnect(ctx, "alice", []byte("correct-horse"), "", "x")
	d.want(im.Unauthorized, err, "the old password, remembered a moment ago")
	g, err = d.Login(ctx, "alice", "new-horse-1", "", "x")
	d.ok(err, "login in the same millisecond")
	_, err = d.CheckToken(ctx, g.Token)
	d.ok(err, "the new token")

	d.ok(d.SetDisabled(ctx, "alice", true), "disable")
	_, err = d.CheckToken(ctx, g.Token)
	d.want(im.Disabled, err, "a disabled account's token")
	_, err = d.Login(ctx, "alice", "new-horse-1", "", "x")
	d.want(im.Disabled, err, "login")
	_, err = d.CheckConnect(ctx, "alice", []byte("new-horse-1"), "", "x")
	d.want(im.Disabled, err, "connect")
	d.ok(d.SetDisabled(ctx, "alice", false), "enable")
	_, err = d.Login(ctx, "alice", "new-horse-1", "", "x")
	d.ok(err, "login again")
	d.want(im.NotFound, d.SetDisabled(ctx, "nobody", true), "an unknown user")
}

func TestConnect(t *testing.T) {
	d := newDesk(t)
	g := d.login()
	if _, err := d.Register(ctx, "bob", "correct-horse", ""); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		why, user, password string
		ok                  bool
	}{
		{"password", "alice", "correct-horse", true},
		{"token as password", "alice", g.Token, true},
		{"token alone", "", g.Token, true},
		{"somebody else's token", "bob", g.Token, false},
		{"no password", "alice", "", false},
		{"no user", "", "correct-horse", false},
		{"a token cut short", "alice", g.Token[:len(g.Token)-4], false},
		{"a refresh token", "alice", g.RefreshToken, false},
	} {
		_, err := d.CheckConnect(ctx, tt.user, []byte(tt.password), "phone", "192.0.2.9")
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.why, err)
		}
	}
}

func TestBackOff(t *testing.T) {
	d := newDesk(t)
	fail := func(addr string) error {
		_, err := d.Login(ctx, "alice", "wrong-horse", "", addr)
		return err
	}
	for i := range 10 {
		d.want(im.Unauthorized, fail("192.0.2.1"), fmt.Sprint("failure ", i))
	}
	err := fail("192.0.2.1")
	d.want(im.TooMany, err, "the eleventh")
	var r interface{ RetryAfter() time.Duration }
	if !errors.As(err, &r) || r.RetryAfter() <= 0 || r.RetryAfter() > 5*time.Minute {
		t.Errorf("%v does not say how long to wait", err)
	}
	_, err = d.Login(ctx, "alice", "correct-horse", "", "192.0.2.1")
	d.want(im.TooMany, err, "even with the password")
	_, err = d.Login(ctx, "alice", "correct-horse", "", "192.0.2.2")
	d.ok(err, "from another address")
	d.pass(5*time.Minute + time.Second)
	_, err = d.Login(ctx, "alice", "correct-horse", "", "192.0.2.1")
	d.ok(err, "after the window")
}

// TestFailuresAtOnceAreAllCounted: guesses that arrive together must not slip
// past the limit because none of them has failed yet.
// Somebody with a network of IPv6 has as many addresses as they like: they are
// one, also where the address is that of IPv4 in other clothes.
func TestFailuresAreCountedByNetwork(t *testing.T) {
	for _, addrs := range [][2]string{{"2001:db8:1:2::%x", "2001:db8:1:3::1"}, {"::ffff:192.0.2.1", "192.0.2.2"}} {
		t.Run(addrs[1], func(t *testing.T) {
			d := newDesk(t)
			for i := range 10 {
				addr := addrs[0]
				if strings.Contains(addr, "%x") {
					addr = fmt.Sprintf(addr, i+1)
				}
				if i == 9 && addr == "::ffff:192.0.2.1" {
					addr = "192.0.2.1"
				}
				_, err := d.Login(ctx, "alice", "wrong-horse", "", addr)
				d.want(im.Unauthorized, err, addr)
			}
			last := strings.Replace(addrs[0], "%x", "77", 1)
			_, err := d.CheckConnect(ctx, "alice", []byte("correct-horse"), "phone", last)
			d.want(im.TooMany, err, last)
			_, err = d.Login(ctx, "alice", "correct-horse", "", addrs[1])
			d.ok(err, addrs[1])
		})
	}
}

func TestFailuresAtOnceAreAllCounted(t *testing.T) {
	d := newDesk(t)
	var tried atomic.Int32
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			if _, err := d.Login(ctx, "alice", "wrong-horse", "", "192.0.2.1"); im.Is(err, im.Unauthorized) {
				tried.Add(1)
			}
		})
	}
	wg.Wait()
	if n := tried.Load(); n > 12 {
		t.Errorf("%d of 60 simultaneous guesses were checked", n)
	}
}

func TestForgedTokens(t *testing.T) {
	d := newDesk(t)
	good := d.login().Token
	parts := strings.Split(good, ".")
	var header map[string]any
	raw, _ := base64.RawURLEncoding.DecodeString(parts[0])
	if err := json.Unmarshal(raw, &header); err != nil {
		t.Fatal(err)
	}
	kid := header["kid"].(string)
	public := d.keys.keys[kid].Public().(ed25519.PublicKey)
	_, foreign, _ := ed25519.GenerateKey(rand.Reader)
	now := time.Unix(0, d.now.Load())
	base := func() jwt.MapClaims {
		return jwt.MapClaims{"iss": "parley", "aud": "parley", "sub": "alice", "exp": now.Add(time.Minute).Unix(), "nbf": now.Unix(), "iat": now.Unix(), "ims": now.UnixMilli(), "fam": "f"}
	}
	sign := func(m jwt.SigningMethod, key any, kid any, edit func(jwt.MapClaims)) string {
		c := base()
		if edit != nil {
			edit(c)
		}
		tok := jwt.NewWithClaims(m, c)
		if kid != nil {
			tok.Header["kid"] = kid
		}
		s, err := tok.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ours := d.keys.keys[kid]
	if _, err := d.CheckToken(ctx, sign(jwt.SigningMethodEdDSA, ours, kid, nil)); err != nil {
		t.Fatalf("the control is refused: %v", err)
	}
	for why, token := range map[string]string{
		"alg none":                  sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, kid, nil),
		"HS256 with the public key": sign(jwt.SigningMethodHS256, []byte(public), kid, nil),
		"a foreign key":             sign(jwt.SigningMethodEdDSA, foreign, kid, nil),
		"an unknown kid":            sign(jwt.SigningMethodEdDSA, ours, "../../etc/passwd", nil),
		"no kid":                    sign(jwt.SigningMethodEdDSA, ours, nil, nil),
		"a kid that is no string":   sign(jwt.SigningMethodEdDSA, ours, 7, nil),
		"no exp":                    sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { delete(c, "exp") }),
		"nbf in the future":         sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { c["nbf"] = now.Add(time.Hour).Unix() }),
		"another issuer":            sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { c["iss"] = "evil" }),
		"another audience":          sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { c["aud"] = "evil" }),
		"no subject":                sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { delete(c, "sub") }),
		"an unknown user":           sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { c["sub"] = "nobody" }),
		"no family":                 sign(jwt.SigningMethodEdDSA, ours, kid, func(c jwt.MapClaims) { delete(c, "fam") }),
		"a changed claim":           parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"bob"}`)) + "." + parts[2],
		"no signature":              parts[0] + "." + parts[1] + ".",
		"trailing bytes":            good + "=",
		"a megabyte":                good + strings.Repeat("x", 1<<20),
		"nothing":                   "",
	} {
		_, err := d.CheckToken(ctx, token)
		d.want(im.Unauthorized, err, why)
		if err != nil && len(token) > 20 && strings.Contains(err.Error(), token[:20]) {
			t.Errorf("%s: the error tells the token", why)
		}
	}
}

func TestKeyRotation(t *testing.T) {
	d := newDesk(t)
	before := d.login()
	d.ok(d.RotateKey(ctx), "rotate")
	after := d.login()
	for _, tok := range []string{before.Token, after.Token} {
		_, err := d.CheckToken(ctx, tok)
		d.ok(err, "a token of either key")
	}
	d.reopen()
	_, err := d.CheckToken(ctx, before.Token)
	d.ok(err, "after a restart")
	d.pass(time.Hour)
	d.ok(d.RotateKey(ctx), "rotate")
	d.pass(time.Hour)
	d.ok(d.RotateKey(ctx), "rotate")
	if n := len(d.keys.keys); n > 3 {
		t.Errorf("%d keys are kept", n)
	}
}

// TestARecognisedTokenIsHeldToItsTimes: the signature is checked once, all else
// each time.
func TestARecognisedTokenIsHeldToItsTimes(t *testing.T) {
	d := newDesk(t)
	g := d.login()
	check := func(k im.Kind, when string) {
		t.Helper()
		_, err := d.CheckToken(ctx, g.Token)
		if k == 0 {
			d.ok(err, when)
		} else {
			d.want(k, err, when)
		}
	}
	check(0, "seen first")
	if len(d.proofs.m) != 1 {
		t.Fatalf("%d tokens are remembered", len(d.proofs.m))
	}
	check(0, "recognised")
	d.pass(-time.Hour)
	check(im.Unauthorized, "before it was issued, by a clock that was put back")
	d.pass(time.Hour + d.opt.TokenTTL)
	check(im.Unauthorized, "expired")
	d.pass(-d.opt.TokenTTL)
	check(0, "in its time again")
	d.ok(d.RotateKey(ctx), "rotate")
	if len(d.proofs.m) != 0 {
		t.Error("what an older key vouched for is not asked again")
	}
	check(0, "after a rotation")
	d.ok(d.SetDisabled(ctx, "alice", true), "disable")
	check(im.Disabled, "of a disabled account")
}

func TestATokenOfADevice(t *testing.T) {
	d := newDesk(t)
	g, err := d.Login(ctx, "alice", "correct-horse", "phone", "x")
	d.ok(err, "login")
	id, err := d.CheckToken(ctx, g.Token)
	d.ok(err, "token")
	if id.Device != "phone" {
		t.Errorf("%+v", id)
	}
	g, err = d.Refresh(ctx, g.RefreshToken)
	d.ok(err, "refresh")
	if id, _ = d.CheckToken(ctx, g.Token); id.Device != "phone" {
		t.Errorf("after a refresh: %+v", id)
	}
	_, err = d.Login(ctx, "alice", "correct-horse", "no such id!", "x")
	d.want(im.Invalid, err, "a bad device id")
}

// BenchmarkConnect shows why a remembered password and a token keep a reconnect
// storm away from argon2id.
func BenchmarkConnect(b *testing.B) {
	st, err := pebblestore.Open(b.TempDir(), pebblestore.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	a, err := New(ctx, Options{Store: st})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := a.Register(ctx, "alice", "correct-horse", ""); err != nil {
		b.Fatal(err)
	}
	g, err := a.Login(ctx, "alice", "correct-horse", "", "x")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("argon2id", func(b *testing.B) {
		for b.Loop() {
			a.remembered.init(maxRemembered)
			_, _ = a.CheckConnect(ctx, "alice", []byte("correct-horse"), "", "x")
		}
	})
	b.Run("remembered", func(b *testing.B) {
		for b.Loop() {
			_, _ = a.CheckConnect(ctx, "alice", []byte("correct-horse"), "", "x")
		}
	})
	b.Run("token seen first", func(b *testing.B) {
		for b.Loop() {
			a.proofs.forget()
			_, _ = a.CheckConnect(ctx, "", []byte(g.Token), "", "x")
		}
	})
	b.Run("token", func(b *testing.B) {
		for b.Loop() {
			_, _ = a.CheckConnect(ctx, "", []byte(g.Token), "", "x")
		}
	})
}

// When more log in than can be served, those that come last are told at once, and
// there is room again when the others are done.
func TestTooManyLoginsAtOnceAreRefused(t *testing.T) {
	d := newDesk(t)
	for range cap(d.queue) {
		d.queue <- struct{}{}
	}
	_, err := d.Login(ctx, "alice", "correct-horse", "", "10.0.0.1")
	d.want(im.Unavailable, err, "with a full queue")
	if _, err := d.Register(ctx, "bob", "correct-horse", ""); !im.Is(err, im.Unavailable) {
		t.Errorf("registering with a full queue: %v", err)
	}
	for range cap(d.queue) {
		<-d.queue
	}
	d.login()
	// Who gives up waiting leaves no trace.
	for range cap(d.slots) {
		d.slots <- struct{}{}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err = d.Login(gone, "alice", "correct-horse", "", "10.0.0.1")
	d.want(im.Unavailable, err, "with nobody to serve it")
	if n := len(d.queue); n != 0 {
		t.Errorf("%d are still waiting", n)
	}
}

func TestNetwork(t *testing.T) {
	for _, c := range []struct{ why, a, b string }{
		{"two hosts of one /64 are one customer", "2001:db8::1", "2001:db8::ffff:2"},
		{"a mapped IPv4 address is that IPv4 address", "::ffff:192.0.2.1", "192.0.2.1"},
		{"the zone is ours, not theirs", "fe80::1%eth0", "fe80::2"},
	} {
		if x, y := Network(netip.MustParseAddr(c.a)), Network(netip.MustParseAddr(c.b)); x != y {
			t.Errorf("%s: %v and %v", c.why, x, y)
		}
	}
	if Network(netip.MustParseAddr("192.0.2.1")) == Network(netip.MustParseAddr("192.0.2.2")) {
		t.Error("two IPv4 hosts are counted as one")
	}
	if Network(netip.Addr{}).IsValid() {
		t.Error("no address became one")
	}
}

// hooked is a store that does something before it keeps a token or commits.
type hooked struct {
	Store
	putToken, commit func()
}

func (h *hooked) PutToken(ctx context.Context, t store.Token) error {
	if fn := h.putToken; fn != nil {
		h.putToken = nil
		fn()
	}
	return h.Store.PutToken(ctx, t)
}

func (h *hooked) Commit(ctx context.Context, tx *store.Tx) error {
	if fn := h.commit; fn != nil {
		h.commit = nil
		fn()
	}
	return h.Store.Commit(ctx, tx)
}

// A login or a refresh that is under way while the password changes gives nothing
// that outlives the old password.
func TestWhatWasUnderWayDoesNotOutliveAPassword(t *testing.T) {
	d := newDesk(t)
	h := &hooked{Store: d.st}
	d.Auth.st = h
	change := func(from, to string) func() {
		return func() {
			d.pass(time.Millisecond)
			d.ok(d.ChangePassword(ctx, "alice", from, to, "x"), "change")
			d.pass(time.Millisecond)
		}
	}
	worthless := func(g Grant, err error, what string) {
		t.Helper()
		if err != nil {
			return // refused outright
		}
		_, err = d.CheckToken(ctx, g.Token)
		d.want(im.Unauthorized, err, "the access token of "+what)
		_, err = d.Refresh(ctx, g.RefreshToken)
		d.want(im.Unauthorized, err, "the refresh token of "+what)
	}
	h.putToken = change("correct-horse", "new-horse-1")
	g, err := d.Login(ctx, "alice", "correct-horse", "", "x")
	worthless(g, err, "a login")

	g, err = d.Login(ctx, "alice", "new-horse-1", "", "x")
	d.ok(err, "login")
	h.putToken = change("new-horse-1", "new-horse-2")
	g, err = d.Refresh(ctx, g.RefreshToken)
	worthless(g, err, "a refresh")

	h.commit = func() {
		if turn := d.turns.of("alice"); turn.TryRLock() {
			turn.RUnlock()
			t.Error("while a revocation that is dated already is committed, the old row can be read: what is issued on its word is dated later")
		}
	}
	change("new-horse-2", "new-horse-3")()
}

// A refresh that is under way while its login ends gives nothing that is good once
// the end of the login need not be remembered any more.
func TestARefreshDoesNotOutliveItsLogout(t *testing.T) {
	d := newDesk(t)
	h := &hooked{Store: d.st}
	d.Auth.st = h
	g := d.login()
	id, err := d.CheckToken(ctx, g.Token)
	d.ok(err, "login")
	h.putToken = func() { d.ok(d.Logout(ctx, id), "logout") }
	next, err := d.Refresh(ctx, g.RefreshToken)
	d.want(im.Unauthorized, err, "the refresh")
	n := 0
	d.ok(d.st.DropTokens(ctx, "alice", func(store.Token) bool { n++; return true }), "count")
	if n > 0 {
		t.Errorf("%d refresh tokens of the ended login are in the store", n)
	}
	d.pass(time.Hour)
	if next.RefreshToken != "" {
		_, err = d.Refresh(ctx, next.RefreshToken)
		d.want(im.Unauthorized, err, "what the refresh gave, an hour later")
	}
}

// Revoked stays revoked whatever the clock does: here it was an hour ahead when the
// credentials were issued, and right when they were revoked.
func TestRevokedWhileTheClockWasAhead(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for what, revoke := range map[string]func(*desk, Identity) error{
			"a logout":   func(d *desk, id Identity) error { return d.Logout(ctx, id) },
			"a password": func(d *desk, _ Identity) error { return d.SetPassword(ctx, "alice", "new-horse-1") },
		} {
			t.Run(fmt.Sprint(what, restart), func(t *testing.T) {
				d := newDesk(t)
				d.pass(time.Hour)
				g := d.login()
				id, err := d.CheckToken(ctx, g.Token)
				d.ok(err, "the token")
				byPassword, err := d.CheckConnect(ctx, "alice", []byte("correct-horse"), "phone", "x")
				d.ok(err, "connect")
				d.pass(-time.Hour)
				if restart {
					d.reopen()
				}
				d.ok(revoke(d, id), what)
				if what == "a password" && !restart && d.StillValid(byPassword) {
					t.Error("a connection made by the old password stays")
				}
				d.pass(30 * time.Minute)
				other := d.login
				if what == "a password" {
					other = func() Grant { g, _ := d.Login(ctx, "alice", "new-horse-1", "", "x"); return g }
				}
				o, err := d.CheckToken(ctx, other().Token)
				d.ok(err, "another login")
				d.ok(d.Logout(ctx, o), "its end")
				d.pass(30*time.Minute + time.Second)
				_, err = d.CheckToken(ctx, g.Token)
				d.want(im.Unauthorized, err, "the token, once its time has come")
			})
		}
	}
}

// A used refresh token is good again for a moment, also where the clock was set back
// since: then the moment is not longer.
func TestReuseWhereTheClockWasSetBack(t *testing.T) {
	d := newDesk(t)
	g := d.login()
	_, err := d.Refresh(ctx, g.RefreshToken)
	d.ok(err, "refresh")
	d.pass(-5 * time.Second)
	_, err = d.Refresh(ctx, g.RefreshToken)
	d.ok(err, "again, by a clock that goes back a little")
	d.pass(-time.Hour)
	_, err = d.Refresh(ctx, g.RefreshToken)
	d.want(im.Unauthorized, err, "and by one that was an hour ahead")
}

// Of ended logins only so many are remembered; none of them is good again by that.
func TestManyLogoutsForgetNone(t *testing.T) {
	d := newDesk(t)
	stays, err := d.CheckToken(ctx, d.login().Token)
	d.ok(err, "a login that stays")
	var ended []Grant
	for range maxRevokedOfUser + 2 {
		u, at, err := d.row(ctx, "alice", d.st.User)
		d.ok(err, "the account")
		g, err := d.grant(ctx, u, at, "", familyOf("alice")) // a login whose password was checked
		d.ok(err, "login")
		id, err := d.CheckToken(ctx, g.Token)
		d.ok(err, "login")
		d.ok(d.Logout(ctx, id), "logout")
		ended = append(ended, g)
	}
	if n := len(d.Auth.revoked.m); n > maxRevokedOfUser {
		t.Errorf("%d are remembered, more than %d", n, maxRevokedOfUser)
	}
	if d.StillValid(stays) {
		t.Error("too many ended to be remembered one by one, and not all did")
	}
	d.reopen()
	for i, g := range ended {
		_, err := d.CheckToken(ctx, g.Token)
		d.want(im.Unauthorized, err, fmt.Sprint("login ", i))
		_, err = d.Refresh(ctx, g.RefreshToken)
		d.want(im.Unauthorized, err, fmt.Sprint("refresh ", i))
	}
	_, err = d.CheckToken(ctx, d.login().Token)
	d.ok(err, "the next login")
}

// Refresh tokens that have expired do not stay in the store.
func TestExpiredRefreshTokensGo(t *testing.T) {
	d := newDesk(t)
	g := d.login()
	for range 400 { // more than three lives of a token
		d.pass(24 * time.Hour)
		var err error
		if g, err = d.Refresh(ctx, g.RefreshToken); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	d.ok(d.st.DropTokens(ctx, "alice", func(store.Token) bool { n++; return true }), "count")
	if n > 90+2*pruneEvery {
		t.Errorf("%d refresh tokens are kept, of which 90 have not expired", n)
	}
}
