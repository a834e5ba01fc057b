package apns

import (
	"crypto/ecdsa"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// When provider tokens are made. Apple takes one for an hour, and answers
// TooManyProviderTokenUpdates to one that is replaced before 20 minutes.
const (
	renewAfter = 45 * time.Minute
	leastAge   = 20 * time.Minute
)

// Tokens holds the provider tokens (JWT, ES256) of a process: one for each team
// and key, whatever the number of apps, environments and connections that use it.
// Make one per process and give it to every Sender. Safe for concurrent use.
type Tokens struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		by map[keyName]*provider
	}
}

type keyName struct{ team, id string }

type provider struct {
	key    *ecdsa.PrivateKey
	bearer string // "" until the first is needed
	issued time.Time
	held   time.Time // Apple complained: nothing is made before this
}

// NewTokens makes an empty set. now is the clock, nil for time.Now.
func NewTokens(now func() time.Time) *Tokens {
	if now == nil {
		now = time.Now
	}
	t := &Tokens{now: now}
	t.mu.by = map[keyName]*provider{}
	return t
}

// use makes a key known. The same key again changes nothing.
func (t *Tokens) use(name keyName, key *ecdsa.PrivateKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.mu.by[name]; p == nil || !p.key.Equal(key) {
		t.mu.by[name] = &provider{key: key}
	}
}

// bearer is the token to use now.
func (t *Tokens) bearer(name keyName) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, now := t.mu.by[name], t.now()
	var err error
	if p.bearer == "" || now.Sub(p.issued) >= renewAfter && !now.Before(p.held) {
		err = p.issue(name, now)
	}
	return p.bearer, err
}

// renew replaces a token that Apple calls expired. When somebody else did so
// meanwhile, theirs is the answer. When it is too young to be replaced, wait says
// how long that takes; then our clock is probably wrong.
func (t *Tokens) renew(name keyName, refused string) (bearer string, wait time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, now := t.mu.by[name], t.now()
	if p.bearer != refused && p.bearer != "" {
		return p.bearer, 0, nil
	}
	if wait = max(leastAge-now.Sub(p.issued), p.held.Sub(now)); wait > 0 {
		return "", wait, nil
	}
	err = p.issue(name, now)
	return p.bearer, 0, err
}

// hold stops the making of tokens: Apple said there are too many.
func (t *Tokens) hold(name keyName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Never so long that the token we have expires.
	p := t.mu.by[name]
	p.held = earlier(t.now().Add(leastAge), p.issued.Add(time.Hour-time.Minute))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (p *provider) issue(name keyName, now time.Time) error {
	t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.RegisteredClaims{Issuer: name.team, IssuedAt: jwt.NewNumericDate(now)})
	t.Header["kid"] = name.id
	s, err := t.SignedString(p.key)
	if err == nil {
		p.bearer, p.issued = s, now
	}
	return err
}
