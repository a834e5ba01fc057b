package webpush

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"net/mail"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	webpush "github.com/SherClockHolmes/webpush-go"
	"github.com/golang-jwt/jwt/v5"
)

// Times of a VAPID signature. At most a day is allowed [RFC 8292, 2].
const (
	signatureLife = 12 * time.Hour
	signatureLeft = time.Hour // with less it is made again
)

// maxOrigins is for how many push services signatures are kept; there are about
// five. Full: all are made again.
const maxOrigins = 256

// GenerateVAPIDKeys makes the key pair of a site, base64url. The private one goes
// into the configuration, the public one to browsers as applicationServerKey.
// With another pair all subscriptions are lost.
func GenerateVAPIDKeys() (private, public string, err error) {
	return webpush.GenerateVAPIDKeys()
}

// signer makes the Authorization headers of RFC 8292.
type signer struct {
	key     *ecdsa.PrivateKey
	private string // base64url, as is public
	public  string
	subject string
	now     func() time.Time
	mu      struct {
		sync.Mutex
		by map[string]*signature // by origin
	}
}

// signature is a header for one push service. proven: it was accepted once, so
// when it is refused the subscription is the reason.
type signature struct {
	header string
	ends   time.Time
	proven atomic.Bool
}

func newSigner(private, subject string, now func() time.Time) (*signer, error) {
	raw, err := decode(private)
	if err != nil {
		return nil, errors.New("webpush: the private key is not base64")
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		return nil, errors.New("webpush: the private key is not a P-256 key of 32 bytes")
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, errors.New("webpush: the private key has no public one")
	}
	if subject, err = contact(subject); err != nil {
		return nil, err
	}
	s := &signer{key: key, private: base64.RawURLEncoding.EncodeToString(raw), public: base64.RawURLEncoding.EncodeToString(public), subject: subject, now: now}
	s.mu.by = map[string]*signature{}
	return s, nil
}

// contact makes the subject: one mailto:, however it was written, or an https
// address. Apple refuses all else, and localhost.
func contact(s string) (string, error) {
	if u, err := url.Parse(s); err == nil && u.Scheme == "https" && strings.Contains(u.Hostname(), ".") {
		return s, nil
	}
	for strings.HasPrefix(s, "mailto:") {
		s = strings.TrimPrefix(s, "mailto:")
	}
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s || !strings.Contains(s[strings.LastIndexByte(s, '@'):], ".") {
		return "", errors.New("webpush: the subject is the operator's mail address or https page, with a real domain")
	}
	return "mailto:" + s, nil
}

// sign gives the header for an origin.
func (s *signer) sign(origin string) (*signature, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if x := s.mu.by[origin]; x != nil && x.ends.Sub(now) > signatureLeft {
		return x, nil
	}
	ends := now.Add(signatureLife)
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"aud": origin, "exp": ends.Unix(), "sub": s.subject}).SignedString(s.key)
	if err != nil {
		return nil, err
	}
	if len(s.mu.by) >= maxOrigins {
		clear(s.mu.by)
	}
	x := &signature{header: "vapid t=" + token + ", k=" + s.public, ends: ends}
	s.mu.by[origin] = x
	return x, nil
}
