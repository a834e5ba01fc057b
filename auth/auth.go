package auth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"hash/maphash"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Store is what auth needs of the store.
type Store interface {
	store.Accounts
	Commit(ctx context.Context, tx *store.Tx) error
	Secret(ctx context.Context, name string, make func() ([]byte, error)) ([]byte, error)
	PutSecret(ctx context.Context, name string, value []byte) error
}

// Options configure an Auth. Store is needed.
type Options struct {
	Store      Store
	Now        func() time.Time
	Log        *slog.Logger
	Issuer     string        // default "parley"
	TokenTTL   time.Duration // of access tokens; default 15 min
	RefreshTTL time.Duration // of refresh tokens; default 90 days
	Parallel   int           // argon2id computations at once; default GOMAXPROCS
	Remember   time.Duration // how long a checked password is recognised without argon2id; default 1 h
	// Failures per account and address, and per address, within Window before
	// TooMany; default 10 and 200 in 5 minutes.
	MaxFailures, MaxAddressFailures int
	Window                          time.Duration
	// Revoked is called after a revocation is durable, so that what is connected
	// can be disconnected, with the context of who asked for it. It must not block.
	Revoked func(context.Context, Revocation)
}

// Revocation says whose credentials ended. With Family set, only those of that
// login; else all of the user's that were issued before now.
type Revocation struct {
	User   im.UserID
	Family string
	Reason string // "logout", "password", "disabled", "reuse", "admin"
}

// Identity is who somebody proved to be.
type Identity struct {
	User    im.UserID
	Role    string      // "" or "admin"
	Device  im.DeviceID // the token is bound to it; "" to none
	Expires time.Time   // of the token; zero for a password
	Family  string      // of the token; "" for a password
	Issued  int64       // Unix ms: when the token was issued or the password checked
}

// Grant is what a login gives.
type Grant struct {
	Token        string
	RefreshToken string
	ExpiresIn    time.Duration
	User         im.UserID
}

// Auth is the room. Make it with New.
type Auth struct {
	opt   Options
	st    Store
	log   *slog.Logger
	slots chan struct{} // argon2id computations
	queue chan struct{} // those that wait for one, and those that have one; full: refused
	dummy string        // hash to check unknown users against: it takes as long

	pairs, addresses *throttle
	keys             keyring
	remembered       recognised[time.Time] // passwords that argon2id accepted lately, and until when
	proofs           recognised[proof]     // tokens whose signature was checked
	users            userCache
	revoked          revokedFamilies
	changes          sync.Mutex // PutSecret of keys and revoked families
	turns            turns
	newest           atomic.Int64 // Unix ms of the latest thing issued: the clock may be set back
	grants           atomic.Int64
}

// turns keep reading an account, for what is issued on its word, and revoking
// what was issued apart: whatever was issued by the old row is dated before the
// revocation. Users share them by hash.
type turns [64]sync.RWMutex

var turnSeed = maphash.MakeSeed()

func (t *turns) of(u im.UserID) *sync.RWMutex {
	return &t[maphash.String(turnSeed, string(u))%uint64(len(t))]
}

// row reads an account and the time, before which nothing is dated that is issued
// on its word, and after which nothing: a revocation that follows covers it,
// however long a password takes to check or a token to be stored.
func (a *Auth) row(ctx context.Context, user im.UserID, read func(context.Context, im.UserID) (store.User, error)) (u store.User, at time.Time, err error) {
	turn := a.turns.of(user)
	turn.RLock()
	defer turn.RUnlock()
	at = a.opt.Now()
	u, err = read(ctx, user)
	for ms := max(at.UnixMilli(), u.NotBefore); ; {
		if was := a.newest.Load(); was >= ms || a.newest.CompareAndSwap(was, ms) {
			return u, at, err
		}
	}
}

// latest is the latest time that something issued to the user may be dated, which
// is later than now if the clock was set back.
func (a *Auth) latest(ctx context.Context, user im.UserID) (int64, error) {
	ms := max(a.nowMS(), a.newest.Load())
	err := a.st.DropTokens(ctx, user, func(t store.Token) bool { // drops none
		ms = max(ms, t.Issued)
		return true
	})
	return ms, err
}

// New makes an Auth; the first one on a store makes its signing key.
func New(ctx context.Context, o Options) (*Auth, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Issuer == "" {
		o.Issuer = "parley"
	}
	dur := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	num := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	dur(&o.TokenTTL, 15*time.Minute)
	dur(&o.RefreshTTL, 90*24*time.Hour)
	dur(&o.Remember, time.Hour)
	dur(&o.Window, 5*time.Minute)
	num(&o.Parallel, runtime.GOMAXPROCS(0))
	num(&o.MaxFailures, 10)
	num(&o.MaxAddressFailures, 200)
	a := &Auth{opt: o, st: o.Store, log: o.Log, slots: make(chan struct{}, o.Parallel), queue: make(chan struct{}, (1+maxWaiting)*o.Parallel), dummy: hashPassword("not a password"),
		pairs: newThrottle(o.MaxFailures, o.Window), addresses: newThrottle(o.MaxAddressFailures, o.Window)}
	a.remembered.init(maxRemembered)
	a.proofs.init(maxProofs)
	a.users.init()
	if err := a.loadKeys(ctx); err != nil {
		return nil, err
	}
	return a, a.loadRevoked(ctx)
}

func (a *Auth) nowMS() int64 { return a.opt.Now().UnixMilli() }

var errCredentials = im.Refuse(im.Unauthorized, "unauthorized", "wrong user, password or token")

var errName = im.Refuse(im.Invalid, "name_invalid", "a name is one line of 1 to %d bytes, with something to see in it", im.MaxName)

// Register makes an account. Conflict "taken" if there is one, Invalid for a bad
// id, password or name.
func (a *Auth) Register(ctx context.Context, user im.UserID, password, name string) (store.User, error) {
	return a.AddUser(ctx, user, password, name, "")
}

// AddUser is Register with a role: "" or "admin".
func (a *Auth) AddUser(ctx context.Context, user im.UserID, password, name, role string) (store.User, error) {
	switch {
	case !user.Valid():
		return store.User{}, im.Refuse(im.Invalid, "user_invalid", "a user id is 1-64 characters of a-z 0-9 . _ -, not only dots")
	case name != "" && !im.ShownName(name):
		return store.User{}, errName
	case role != "" && role != "admin":
		return store.User{}, im.Refuse(im.Invalid, "role_invalid", "a role is admin or nothing")
	}
	if err := CheckPassword(user, password); err != nil {
		return store.User{}, err
	}
	taken := im.Refuse(im.Conflict, "taken", "the user id %s is taken", user)
	if _, err := a.st.User(ctx, user); err == nil {
		return store.User{}, taken
	} else if !im.Is(err, im.NotFound) {
		return store.User{}, err
	}
	hash, err := a.hash(ctx, password)
	if err != nil {
		return store.User{}, err
	}
	if name == "" {
		name = string(user)
	}
	u := store.User{ID: user, Name: name, Role: role, Password: hash, Created: a.nowMS()}
	err = a.st.Commit(ctx, &store.Tx{Users: []store.User{u}})
	if im.Is(err, im.Conflict) {
		return store.User{}, taken
	}
	a.users.drop(user)
	return u, err
}

// hash computes argon2id behind the semaphore.
func (a *Auth) hash(ctx context.Context, password string) (string, error) {
	if err := a.slot(ctx); err != nil {
		return "", err
	}
	defer a.leave()
	return hashPassword(password), nil
}

// maxWaiting is how many computations may wait for each that runs. At 20 to 40 ms
// each that is longer than anybody waits for an answer: who comes later is
// refused at once instead of making all wait for answers nobody reads any more.
const maxWaiting = 512

// slot waits for a turn to compute; leave ends it.
func (a *Auth) slot(ctx context.Context) error {
	select {
	case a.queue <- struct{}{}:
	default:
		return im.Refuse(im.Unavailable, "busy", "too many logins at once: try again in a moment")
	}
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		<-a.queue
		return im.E(im.Unavailable, "auth", ctx.Err())
	}
}

func (a *Auth) leave() {
	<-a.slots
	<-a.queue
}

// Login checks a password and begins a family. device binds its tokens.
func (a *Auth) Login(ctx context.Context, user im.UserID, password string, device im.DeviceID, addr string) (Grant, error) {
	if device != "" && !device.Valid() {
		return Grant{}, im.Refuse(im.Invalid, "device_invalid", "a device id is 1-64 characters of A-Z a-z 0-9 . _ -")
	}
	u, at, err := a.password(ctx, user, password, addr)
	if err != nil {
		return Grant{}, err
	}
	return a.grant(ctx, u, at, device, familyOf(user))
}

// pairOf names an account and an address: what failures are counted by.
func pairOf(user im.UserID, addr string) string {
	if len(user) > im.MaxID {
		user = "-"
	}
	return string(user) + " " + addr
}

// password checks one, slowly, and returns the account and when it was read;
// failures are counted. It takes as long for a user that does not exist, and says
// the same.
func (a *Auth) password(ctx context.Context, user im.UserID, password, from string) (u store.User, at time.Time, err error) {
	now, addr := a.opt.Now(), counted(from)
	pair := pairOf(user, addr)
	if wait := max(a.pairs.check(pair, now), a.addresses.check(addr, now)); wait > 0 {
		return u, at, tooManyErr(wait)
	}
	err = errCredentials
	if user.Valid() {
		u, at, err = a.row(ctx, user, a.st.User)
	}
	if err != nil && !im.Is(err, im.NotFound) && err != error(errCredentials) {
		return u, at, err
	}
	hash := u.Password
	if err != nil || hash == "" {
		hash = a.dummy
	}
	if e := a.slot(ctx); e != nil {
		return u, at, e
	}
	// Failures that arrived together are counted one by one: look again in turn.
	wait := max(a.pairs.check(pair, now), a.addresses.check(addr, now))
	ok := wait <= 0 && len(password) <= MaxPassword && verifyPassword(hash, password)
	a.leave()
	switch {
	case wait > 0:
		return u, at, tooManyErr(wait)
	case !ok || err != nil || u.Password == "":
		a.pairs.strike(pair, now)
		a.addresses.strike(addr, now)
		return u, at, errCredentials
	case u.Disabled:
		return u, at, im.Refuse(im.Disabled, "disabled", "the account is disabled")
	}
	return u, at, nil
}

// grant issues an access token and a refresh token of a family on the word of an
// account as it was at the time now.
func (a *Auth) grant(ctx context.Context, u store.User, now time.Time, device im.DeviceID, family string) (Grant, error) {
	secret := random(32)
	err := a.st.PutToken(ctx, store.Token{Hash: hashToken(secret), User: u.ID, Device: device, Family: family,
		Issued: max(now.UnixMilli(), u.NotBefore), Expires: now.Add(a.opt.RefreshTTL).UnixMilli()})
	if err != nil {
		return Grant{}, err
	}
	// The login may have ended while its token was stored: it is remembered first and
	// its tokens dropped then, so one of the two sees the other.
	if a.revoked.has(family) {
		if err := a.st.DropTokens(ctx, u.ID, func(t store.Token) bool { return t.Family != family }); err != nil {
			return Grant{}, err
		}
		return Grant{}, errCredentials
	}
	if a.grants.Add(1)%pruneEvery == 0 {
		ms := now.UnixMilli()
		if err := a.st.DropTokens(ctx, u.ID, func(t store.Token) bool { return t.Expires > ms }); err != nil {
			return Grant{}, err
		}
	}
	token, err := a.issue(u, device, family, now)
	return Grant{Token: token, RefreshToken: secret, ExpiresIn: a.opt.TokenTTL, User: u.ID}, err
}

// pruneEvery is after how many grants the expired refresh tokens of one user go: the
// user's who is granted that one. Used ones stay until they expire, to be known if
// they are used again.
const pruneEvery = 32

// reuseGrace is how long after its use a refresh token may be used again: the
// first answer may have been lost on a mobile network. Later it is theft.
const reuseGrace = 10 * time.Second

// Refresh exchanges a refresh token for the next pair.
func (a *Auth) Refresh(ctx context.Context, refresh string) (Grant, error) {
	if refresh == "" || len(refresh) > 256 {
		return Grant{}, errCredentials
	}
	now := a.opt.Now()
	t, err := a.st.UseToken(ctx, hashToken(refresh), now.UnixMilli())
	if im.Is(err, im.NotFound) {
		return Grant{}, errCredentials
	}
	if err != nil {
		return Grant{}, err
	}
	if since := now.UnixMilli() - t.Used; t.Used != 0 && max(since, -since) > reuseGrace.Milliseconds() {
		a.log.Warn("a refresh token was used twice: its login is revoked", "user", t.User)
		if err := a.revokeFamily(ctx, t.User, t.Family, "reuse"); err != nil {
			return Grant{}, err
		}
		return Grant{}, errCredentials
	}
	u, at, err := a.row(ctx, t.User, a.st.User)
	if im.Is(err, im.NotFound) {
		return Grant{}, errCredentials
	}
	if err != nil {
		return Grant{}, err
	}
	switch {
	case t.Expires <= now.UnixMilli() || t.Issued < u.NotBefore || a.revoked.has(t.Family):
		return Grant{}, errCredentials
	case u.Disabled:
		return Grant{}, im.Refuse(im.Disabled, "disabled", "the account is disabled")
	}
	return a.grant(ctx, u, at, t.Device, t.Family)
}

// Logout ends the login that id came from: both its tokens, and what is
// connected with them. A password is no login.
func (a *Auth) Logout(ctx context.Context, id Identity) error {
	if id.Family == "" {
		return im.Refuse(im.Invalid, "no_login", "there is no login to end: a password needs no logout")
	}
	return a.revokeFamily(ctx, id.User, id.Family, "logout")
}

// familyOf names a new login of a user.
func familyOf(user im.UserID) string { return string(user) + "/" + random(12) }

func (a *Auth) revokeFamily(ctx context.Context, user im.UserID, family, reason string) error {
	latest, err := a.latest(ctx, user)
	if err != nil {
		return err
	}
	switch full, err := a.saveRevoked(ctx, user, family, latest); {
	case err != nil:
		return err
	case full:
		return a.change(ctx, user, reason, func(*store.User) {})
	}
	if err := a.st.DropTokens(ctx, user, func(t store.Token) bool { return t.Family != family }); err != nil {
		return err
	}
	a.tell(ctx, Revocation{User: user, Family: family, Reason: reason})
	return nil
}

func (a *Auth) tell(ctx context.Context, r Revocation) {
	if a.opt.Revoked != nil {
		a.opt.Revoked(ctx, r)
	}
}

// ChangePassword replaces one's password after checking the old one. Everything
// issued before is revoked.
func (a *Auth) ChangePassword(ctx context.Context, user im.UserID, old, password, addr string) error {
	if _, _, err := a.password(ctx, user, old, addr); err != nil {
		return err
	}
	return a.SetPassword(ctx, user, password)
}

// SetPassword replaces a password and revokes everything issued before.
func (a *Auth) SetPassword(ctx context.Context, user im.UserID, password string) error {
	if err := CheckPassword(user, password); err != nil {
		return err
	}
	hash, err := a.hash(ctx, password)
	if err != nil {
		return err
	}
	return a.change(ctx, user, "password", func(u *store.User) { u.Password = hash })
}

// Revoke ends everything issued to the user so far.
func (a *Auth) Revoke(ctx context.Context, user im.UserID) error {
	return a.change(ctx, user, "admin", func(*store.User) {})
}

// SetDisabled disables or enables an account; disabling revokes.
func (a *Auth) SetDisabled(ctx context.Context, user im.UserID, disabled bool) error {
	if disabled {
		return a.change(ctx, user, "disabled", func(u *store.User) { u.Disabled = true })
	}
	return a.update(ctx, user, func(u *store.User) { u.Disabled = false })
}

// SetRole makes somebody an admin, or not. Tokens carry the role, so it revokes.
func (a *Auth) SetRole(ctx context.Context, user im.UserID, role string) error {
	if role != "" && role != "admin" {
		return im.Refuse(im.Invalid, "role_invalid", "a role is admin or nothing")
	}
	return a.change(ctx, user, "admin", func(u *store.User) { u.Role = role })
}

// SetName changes the name shown to people.
func (a *Auth) SetName(ctx context.Context, user im.UserID, name string) error {
	if !im.ShownName(name) {
		return errName
	}
	return a.update(ctx, user, func(u *store.User) { u.Name = name })
}

// change updates the account and revokes all that was issued before.
func (a *Auth) change(ctx context.Context, user im.UserID, reason string, fn func(*store.User)) error {
	turn := a.turns.of(user)
	turn.Lock()
	latest, err := a.latest(ctx, user)
	if err == nil {
		err = a.update(ctx, user, func(u *store.User) {
			fn(u)
			u.NotBefore = max(latest, u.NotBefore) + 1 // what was issued in this very millisecond is from before
		})
	}
	turn.Unlock()
	if err != nil {
		return err
	}
	if err := a.st.DropTokens(ctx, user, nil); err != nil {
		return err
	}
	a.tell(ctx, Revocation{User: user, Reason: reason})
	return nil
}

func (a *Auth) update(ctx context.Context, user im.UserID, fn func(*store.User)) error {
	for {
		u, err := a.st.User(ctx, user)
		if err != nil {
			return err
		}
		fn(&u)
		err = a.st.Commit(ctx, &store.Tx{Users: []store.User{u}})
		a.users.drop(user)
		if !im.Is(err, im.Conflict) {
			return err
		}
	}
}

// CheckConnect checks the credentials of a CONNECT: the account's password, or
// an access token in its place, with which the user name may be empty.
func (a *Auth) CheckConnect(ctx context.Context, username string, password []byte, _ im.DeviceID, from string) (Identity, error) {
	addr := counted(from)
	if looksLikeToken(password) {
		id, err := a.CheckToken(ctx, string(password))
		if err == nil && username != "" && username != string(id.User) {
			err = errCredentials
		}
		if im.Is(err, im.Unauthorized) {
			now := a.opt.Now()
			if wait := a.addresses.check(addr, now); wait > 0 {
				return Identity{}, tooManyErr(wait)
			}
			a.addresses.strike(addr, now)
		}
		return id, err
	}
	user := im.UserID(username)
	if username == "" || len(password) == 0 {
		return Identity{}, errCredentials
	}
	now := a.opt.Now()
	if wait := a.pairs.check(pairOf(user, addr), now); wait > 0 { // also for a password that was right before
		return Identity{}, tooManyErr(wait)
	}
	known := func(ctx context.Context, user im.UserID) (store.User, error) { return a.users.get(ctx, a.st, user) }
	if u, at, err := a.row(ctx, user, known); err == nil && !u.Disabled {
		if until, _, ok := a.remembered.get(a.passwordSum(u, password)); ok && now.Before(until) {
			return Identity{User: u.ID, Role: u.Role, Issued: max(at.UnixMilli(), u.NotBefore)}, nil
		}
	}
	u, at, err := a.password(ctx, user, string(password), addr)
	if err != nil {
		return Identity{}, err
	}
	a.remembered.add(a.passwordSum(u, password), now.Add(a.opt.Remember), 0) // nothing makes it forget: its generation stays 0
	return Identity{User: u.ID, Role: u.Role, Issued: max(at.UnixMilli(), u.NotBefore)}, nil
}

// StillValid reports whether an identity has not been revoked or expired since.
func (a *Auth) StillValid(id Identity) bool {
	if !id.Expires.IsZero() && !a.opt.Now().Before(id.Expires) {
		return false
	}
	if id.Family != "" && a.revoked.has(id.Family) {
		return false
	}
	u, err := a.users.get(context.Background(), a.st, id.User)
	if err != nil {
		return im.Is(err, im.Unavailable) // unknown for the moment: it was valid when it was checked
	}
	return !u.Disabled && id.Issued >= u.NotBefore
}

func looksLikeToken(p []byte) bool {
	return len(p) > 100 && bytes.HasPrefix(p, []byte("eyJ")) && bytes.Count(p, []byte(".")) == 2
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func hashToken(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// userCache keeps account rows. A change through this Auth drops the row first
// from the cache's point of view: a load that began before does not come back.
type userCache struct {
	mu  sync.RWMutex
	m   map[im.UserID]store.User
	gen uint64
}

const maxCachedUsers = 100_000

func (c *userCache) init() { c.m = make(map[im.UserID]store.User) }

func (c *userCache) get(ctx context.Context, st Store, user im.UserID) (store.User, error) {
	c.mu.RLock()
	u, ok := c.m[user]
	gen := c.gen
	c.mu.RUnlock()
	if ok {
		return u, nil
	}
	if !user.Valid() {
		return u, errCredentials
	}
	u, err := st.User(ctx, user)
	if err != nil {
		return u, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen == gen {
		if len(c.m) >= maxCachedUsers {
			clear(c.m)
		}
		c.m[user] = u
	}
	return u, nil
}

func (c *userCache) drop(user im.UserID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	delete(c.m, user)
}

// Invalidate forgets what is cached of a user, after a change elsewhere.
func (a *Auth) Invalidate(user im.UserID) { a.users.drop(user) }

// revokedFamilies are logins ended before their access tokens expire. They are
// stored as one secret, which stays small: an entry lives as long as an access
// token, and there are at most maxRevoked.
type revokedFamilies struct {
	mu sync.RWMutex
	m  map[string]int64 // until, Unix ms
}

func (r *revokedFamilies) has(family string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.m[family]
	return ok
}

const revokedSecret = "auth.revoked"

func (a *Auth) loadRevoked(ctx context.Context) error {
	b, err := a.st.Secret(ctx, revokedSecret, func() ([]byte, error) { return []byte("{}"), nil })
	if err != nil {
		return err
	}
	m := make(map[string]int64)
	if err := json.Unmarshal(b, &m); err != nil {
		return im.E(im.Internal, "auth.loadRevoked", err)
	}
	a.revoked.m = m
	return nil
}

// Of a user's logins, and of all, so many are remembered to have ended. Beyond
// that the end of one ends all of that user: what was revoked stays revoked.
const (
	maxRevokedOfUser = 200
	maxRevoked       = 20_000
)

// saveRevoked remembers that a login has ended, until the last token that may have
// been issued to it, at latest, has expired. full: there is no room for it.
func (a *Auth) saveRevoked(ctx context.Context, user im.UserID, family string, latest int64) (full bool, err error) {
	a.changes.Lock()
	defer a.changes.Unlock()
	now := a.nowMS()
	next := map[string]int64{family: latest + a.opt.TokenTTL.Milliseconds() + time.Minute.Milliseconds()}
	ofUser := 1
	a.revoked.mu.RLock()
	for f, until := range a.revoked.m {
		if until <= now || f == family {
			continue
		}
		next[f] = until
		if strings.HasPrefix(f, string(user)+"/") {
			ofUser++
		}
	}
	a.revoked.mu.RUnlock()
	if ofUser > maxRevokedOfUser || len(next) > maxRevoked {
		return true, nil
	}
	b, err := json.Marshal(next)
	if err != nil {
		return false, im.E(im.Internal, "auth.saveRevoked", err)
	}
	if err := a.st.PutSecret(ctx, revokedSecret, b); err != nil {
		return false, err
	}
	a.revoked.mu.Lock()
	a.revoked.m = next
	a.revoked.mu.Unlock()
	return false, nil
}
