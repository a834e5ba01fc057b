package pushtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// How APNs judges provider tokens.
const (
	tokenLife   = time.Hour
	tokenUpdate = 20 * time.Minute
	clockSkew   = time.Minute
	maxSeen     = 1000 // good tokens remembered per key; full: all are forgotten
)

// apnsAuth knows the keys of the simulated team and which tokens were used.
type apnsAuth struct {
	mu   sync.Mutex
	keys map[string]*apnsKey // by key id
}

type apnsKey struct {
	private *ecdsa.PrivateKey
	issued  int64           // iat of the newest token
	changed time.Time       // when it came
	seen    map[string]bool // tokens whose signature is good
}

const (
	apnsTeam = "SIMULATED1"
	apnsKeyA = "SIMKEYAAAA"
	apnsKeyB = "SIMKEYBBBB"
)

func (a *apnsAuth) init() error {
	a.keys = map[string]*apnsKey{}
	for _, id := range []string{apnsKeyA, apnsKeyB} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		a.keys[id] = &apnsKey{private: k, seen: map[string]bool{}}
	}
	return nil
}

// APNsKey is a key the simulator takes provider tokens of.
func (s *Simulator) APNsKey() (team, id string, p8 []byte) { return s.apnsKey(apnsKeyA) }

// SecondAPNsKey is another one of the same team, for a change of keys.
func (s *Simulator) SecondAPNsKey() (team, id string, p8 []byte) { return s.apnsKey(apnsKeyB) }

func (s *Simulator) apnsKey(id string) (string, string, []byte) {
	der, err := x509.MarshalPKCS8PrivateKey(s.apns.keys[id].private)
	if err != nil {
		panic(err) // a P-256 key always has this form
	}
	return apnsTeam, id, pemBlock("PRIVATE KEY", der)
}

// APNsCertificate is a client certificate with its key, as PEM, for a bundle.
func (s *Simulator) APNsCertificate(bundle string) ([]byte, error) { return s.ca.client(bundle) }

func forbidden(reason string) (Reply, bool) {
	return Reply{Status: http.StatusForbidden, Reason: reason}, false
}

func (s *Simulator) checkAuth(r *http.Request, e *Entry) (Reply, bool) {
	h := r.Header.Get("authorization")
	if h == "" && topicOf(r.TLS) != "" {
		return Reply{}, true
	}
	if h == "" {
		return forbidden("MissingProviderToken")
	}
	token, ok := strings.CutPrefix(h, "bearer ")
	if !ok {
		return forbidden("InvalidProviderToken")
	}
	return s.apns.check(token, e.At)
}

func (a *apnsAuth) check(token string, now time.Time) (Reply, bool) {
	var claims jwt.RegisteredClaims
	t, _, err := jwt.NewParser().ParseUnverified(token, &claims)
	if err != nil {
		return forbidden("InvalidProviderToken")
	}
	kid, _ := t.Header["kid"].(string)
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.keys[kid]
	if k == nil || claims.Issuer != apnsTeam || claims.IssuedAt == nil || !k.signed(token) {
		return forbidden("InvalidProviderToken")
	}
	iat := claims.IssuedAt.Time
	switch {
	case iat.After(now.Add(clockSkew)):
		return forbidden("InvalidProviderToken")
	case now.Sub(iat) >= tokenLife:
		return forbidden("ExpiredProviderToken")
	case iat.Unix() > k.issued:
		if !k.changed.IsZero() && now.Sub(k.changed) < tokenUpdate {
			return Reply{Status: http.StatusTooManyRequests, Reason: "TooManyProviderTokenUpdates"}, false
		}
		k.issued, k.changed = iat.Unix(), now
	}
	return Reply{}, true
}

// signed says whether the key signed the token. Checking costs more than all the
// rest, so good ones are remembered, as the real service must do.
func (k *apnsKey) signed(token string) bool {
	if k.seen[token] {
		return true
	}
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithoutClaimsValidation()).
		Parse(token, func(*jwt.Token) (any, error) { return k.private.Public(), nil })
	if err != nil {
		return false
	}
	if len(k.seen) >= maxSeen {
		clear(k.seen)
	}
	k.seen[token] = true
	return true
}

// Tokens counts the different provider tokens with a good signature, accepted or
// not, of the last thousand or so.
func (s *Simulator) Tokens() int {
	s.apns.mu.Lock()
	defer s.apns.mu.Unlock()
	var n int
	for _, k := range s.apns.keys {
		n += len(k.seen)
	}
	return n
}
