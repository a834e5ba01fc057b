package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// maxToken is the longest access token that is looked at, in bytes.
const maxToken = 4096

const audience = "parley"

// claims of an access token. ims is iat in milliseconds: a token from the second
// in which a password was changed is from before or after it.
type claims struct {
	jwt.RegisteredClaims
	IMS    int64  `json:"ims"`
	Family string `json:"fam"`
	Device string `json:"dev,omitempty"`
	Role   string `json:"role,omitempty"`
}

// keyring holds the signing keys: the current one signs, all of them verify.
type keyring struct {
	mu      sync.RWMutex
	current string
	keys    map[string]ed25519.PrivateKey
}

// storedKeys is the keyring as it is kept.
type storedKeys struct {
	Current string            `json:"current"`
	Keys    map[string][]byte `json:"keys"` // kid → seed
	Made    map[string]int64  `json:"made"` // kid → Unix ms
}

const keysSecret = "auth.keys"

func (s *storedKeys) add(now time.Time) {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed)
	kid := random(8)
	s.Current, s.Keys[kid], s.Made[kid] = kid, seed, now.UnixMilli()
}

func (a *Auth) loadKeys(ctx context.Context) error {
	b, err := a.st.Secret(ctx, keysSecret, func() ([]byte, error) {
		s := storedKeys{Keys: map[string][]byte{}, Made: map[string]int64{}}
		s.add(a.opt.Now())
		return json.Marshal(s)
	})
	if err != nil {
		return err
	}
	var s storedKeys
	if err := json.Unmarshal(b, &s); err != nil {
		return im.E(im.Internal, "auth.loadKeys", errors.New("the stored signing keys are unreadable"))
	}
	return a.useKeys(s)
}

// useKeys puts the keys into service. What the old ones vouched for is asked again.
func (a *Auth) useKeys(s storedKeys) error {
	err := a.keys.use(s)
	a.proofs.forget()
	return err
}

func (k *keyring) use(s storedKeys) error {
	keys := make(map[string]ed25519.PrivateKey, len(s.Keys))
	for kid, seed := range s.Keys {
		if len(seed) != ed25519.SeedSize {
			return im.E(im.Internal, "auth.loadKeys", errors.New("a stored signing key has the wrong size"))
		}
		keys[kid] = ed25519.NewKeyFromSeed(seed)
	}
	if keys[s.Current] == nil {
		return im.E(im.Internal, "auth.loadKeys", errors.New("the current signing key is not there"))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current, k.keys = s.Current, keys
	return nil
}

// RotateKey makes a new signing key. Tokens of older keys stay valid until they
// expire; keys that can have no valid token any more are dropped.
func (a *Auth) RotateKey(ctx context.Context) error {
	a.changes.Lock()
	defer a.changes.Unlock()
	b, err := a.st.Secret(ctx, keysSecret, func() ([]byte, error) { return nil, errors.New("no keys") })
	if err != nil {
		return err
	}
	var s storedKeys
	if err := json.Unmarshal(b, &s); err != nil {
		return im.E(im.Internal, "auth.RotateKey", errors.New("the stored signing keys are unreadable"))
	}
	now := a.opt.Now()
	replaced := s.Current
	s.add(now)
	for kid, made := range s.Made {
		// A key signs until the next is made; the one just replaced signed until now.
		if kid != s.Current && kid != replaced && now.Sub(time.UnixMilli(made)) > 2*a.opt.TokenTTL {
			delete(s.Keys, kid)
			delete(s.Made, kid)
		}
	}
	if b, err = json.Marshal(s); err != nil {
		return im.E(im.Internal, "auth.RotateKey", err)
	}
	if err := a.st.PutSecret(ctx, keysSecret, b); err != nil {
		return err
	}
	return a.useKeys(s)
}

func (a *Auth) issue(u store.User, device im.DeviceID, family string, now time.Time) (string, error) {
	a.keys.mu.RLock()
	kid, key := a.keys.current, a.keys.keys[a.keys.current]
	a.keys.mu.RUnlock()
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: a.opt.Issuer, Subject: string(u.ID), Audience: jwt.ClaimStrings{audience}, ID: random(9),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(a.opt.TokenTTL)),
		},
		IMS: max(now.UnixMilli(), u.NotBefore), Family: family, Device: string(device), Role: u.Role,
	})
	t.Header["kid"] = kid
	s, err := t.SignedString(key)
	if err != nil {
		return "", im.E(im.Internal, "auth.issue", err)
	}
	return s, nil
}

// CheckToken checks an access token: its signature by one of our keys and no
// other algorithm, issuer, audience, times, and that neither it nor its user was
// revoked or disabled since.
func (a *Auth) CheckToken(ctx context.Context, token string) (Identity, error) {
	if len(token) > maxToken {
		return Identity{}, errCredentials
	}
	p, ok := a.verify(token)
	if !ok || a.revoked.has(p.family) {
		return Identity{}, errCredentials
	}
	u, err := a.users.get(ctx, a.st, p.user)
	switch {
	case im.Is(err, im.NotFound):
		return Identity{}, errCredentials
	case err != nil:
		return Identity{}, err
	case u.Disabled:
		return Identity{}, im.Refuse(im.Disabled, "disabled", "the account is disabled")
	case p.issued < u.NotBefore:
		return Identity{}, errCredentials
	}
	return Identity{User: p.user, Role: u.Role, Device: p.device, Expires: p.expires, Family: p.family, Issued: p.issued}, nil
}

// proof is what a token says whose signature was checked. Whether that still
// holds (times, revocation, the account) is asked each time.
type proof struct {
	user    im.UserID
	device  im.DeviceID
	family  string
	issued  int64 // Unix ms
	from    time.Time
	expires time.Time
}

// verify checks signature, issuer, audience and times. The reason of a failure is
// not returned: it would hold parts of the token.
func (a *Auth) verify(token string) (proof, bool) {
	now, sum := a.opt.Now(), a.proofs.sum([]byte(token))
	p, gen, ok := a.proofs.get(sum)
	if ok {
		return p, !now.Before(p.from) && now.Before(p.expires)
	}
	var c claims
	_, err := jwt.ParseWithClaims(token, &c, a.verifyKey,
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(a.opt.Issuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithTimeFunc(a.opt.Now), jwt.WithStrictDecoding())
	p = proof{user: im.UserID(c.Subject), device: im.DeviceID(c.Device), family: c.Family, issued: c.IMS}
	if err != nil || !p.user.Valid() || p.family == "" || p.issued == 0 {
		return proof{}, false
	}
	p.expires = c.ExpiresAt.Time
	for _, t := range []*jwt.NumericDate{c.IssuedAt, c.NotBefore} {
		if t != nil && t.After(p.from) {
			p.from = t.Time
		}
	}
	a.proofs.add(sum, p, gen)
	return p, true
}

func (a *Auth) verifyKey(t *jwt.Token) (any, error) {
	kid, _ := t.Header["kid"].(string)
	a.keys.mu.RLock()
	defer a.keys.mu.RUnlock()
	key := a.keys.keys[kid]
	if key == nil {
		return nil, errors.New("unknown key")
	}
	return key.Public(), nil
}
