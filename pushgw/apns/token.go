package apns

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// When provider tokens are made. Apple takes one for an hour, and answers
// TooManyProviderTokenUpdates to one that is replaced before 20 minutes.
//
// A token's time of issue is the last full renewEvery, and its signature is the
// deterministic one (RFC 6979): every process of a fleet, and a process that was
// started again, makes the same token without asking anybody.
const (
	renewEvery = 40 * time.Minute
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
	if p.bearer == "" || now.Sub(p.issued) >= renewEvery && !now.Before(p.held) {
		err = p.issue(name, now.Truncate(renewEvery))
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

func (p *provider) issue(name keyName, at time.Time) error {
	t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.RegisteredClaims{Issuer: name.team, IssuedAt: jwt.NewNumericDate(at)})
	t.Header["kid"] = name.id
	text, err := t.SigningString()
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(text))
	der, err := p.key.Sign(nil, sum[:], crypto.SHA256) // no randomness: RFC 6979
	if err != nil {
		return err
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return err
	}
	raw := make([]byte, 64) // as JWS wants it (RFC 7518, 3.4)
	sig.R.FillBytes(raw[:32])
	sig.S.FillBytes(raw[32:])
	p.bearer, p.issued = text+"."+t.EncodeSegment(raw), at
	return nil
}
