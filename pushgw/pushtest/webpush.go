package pushtest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/parley-im/parley/pushgw"
)

// pushState holds the subscriptions the simulator gave out, as browsers would.
type pushState struct {
	mu   sync.Mutex
	subs map[string]*subscription
}

type subscription struct {
	key  *ecdh.PrivateKey
	auth []byte
	site string // the VAPID public key it was made for, base64url; "": any
}

// Subscribe makes a subscription as a browser would and gives its JSON. site is
// the VAPID public key of the site (applicationServerKey), "" for any.
func (s *Simulator) Subscribe(site string) (string, error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	auth := make([]byte, 16)
	_, _ = rand.Read(auth)
	id := rand.Text()
	s.push.mu.Lock()
	s.push.subs[id] = &subscription{key: key, auth: auth, site: site}
	s.push.mu.Unlock()
	b, err := json.Marshal(map[string]any{
		"endpoint": s.URLs.WebPush + "/push/" + id, "expirationTime": nil,
		"keys": map[string]string{"p256dh": unpadded.EncodeToString(key.PublicKey().Bytes()), "auth": unpadded.EncodeToString(auth)},
	})
	return string(b), err
}

func (s *Simulator) servePush(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutPrefix(r.URL.Path, "/push/")
	if !ok || r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	refuse := func(rep Reply) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(rep.Status)
		_ = json.NewEncoder(w).Encode(map[string]string{"reason": rep.Reason})
	}
	rep := s.request(pushgw.WebPush, "", id, "")
	if !s.begin(w, r, rep, refuse) {
		return
	}
	e := Entry{At: s.opt.Now(), Provider: pushgw.WebPush, Token: id, ID: "/message/" + rand.Text()}
	if no, ok := s.checkPush(w, r, &e); !ok {
		refuse(no)
		return
	}
	s.accept(e)
	if rep.Reset == ResetAfter {
		reset(r)
		return
	}
	w.Header().Set("Location", s.URLs.WebPush+e.ID)
	w.WriteHeader(http.StatusCreated)
}

var pushTopic = regexp.MustCompile(`^[A-Za-z0-9_-]{0,32}$`)

// pushBody is the least a push service must take and the most these do
// [RFC 8030, 7.2].
const pushBody = 4096

// checkPush checks a push as the push services do and fills in the entry.
func (s *Simulator) checkPush(w http.ResponseWriter, r *http.Request, e *Entry) (Reply, bool) {
	s.push.mu.Lock()
	sub := s.push.subs[e.Token]
	s.push.mu.Unlock()
	if sub == nil {
		return Reply{Status: http.StatusNotFound}, false
	}
	if d, _ := s.find(e.Token); !d.Unregistered.IsZero() {
		return Reply{Status: http.StatusGone}, false
	}
	if err := checkVAPID(r.Header.Get("Authorization"), s.URLs.WebPush, sub.site, e.At); err != nil {
		return forbidden("BadJwtToken")
	}
	ttl, err := strconv.Atoi(r.Header.Get("TTL"))
	if err != nil || ttl < 0 {
		return bad("BadTtl")
	}
	if ttl > 0 {
		e.Expires = e.At.Add(time.Duration(ttl) * time.Second)
	}
	e.Collapse, e.Priority = r.Header.Get("Topic"), r.Header.Get("Urgency")
	if !pushTopic.MatchString(e.Collapse) {
		return bad("BadTopic")
	}
	switch e.Priority {
	case "", "very-low", "low", "normal", "high":
	default:
		return bad("BadUrgency")
	}
	if r.Header.Get("Content-Encoding") != "aes128gcm" {
		return Reply{Status: http.StatusUnsupportedMediaType, Reason: "BadEncoding"}, false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, pushBody))
	if err != nil {
		return Reply{Status: http.StatusRequestEntityTooLarge, Reason: "PayloadTooLarge"}, false
	}
	if e.Payload, err = sub.open(body); err != nil {
		return bad("BadPayload")
	}
	return Reply{}, true
}

// checkVAPID checks an Authorization header of RFC 8292.
func checkVAPID(header, origin, site string, now time.Time) error {
	fields, ok := strings.CutPrefix(header, "vapid ")
	if !ok {
		return errors.New("no vapid scheme")
	}
	var token, key string
	for f := range strings.SplitSeq(fields, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(f), "=")
		switch name {
		case "t":
			token = value
		case "k":
			key = value
		}
	}
	if site != "" && key != site {
		return errors.New("another site's key")
	}
	raw, err := unpadded.DecodeString(key)
	if err != nil {
		return err
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	if err != nil {
		return err
	}
	var claims jwt.RegisteredClaims
	if _, err = jwt.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) { return pub, nil }, jwt.WithValidMethods([]string{"ES256"}),
		jwt.WithAudience(origin), jwt.WithExpirationRequired(), jwt.WithTimeFunc(func() time.Time { return now })); err != nil {
		return err
	}
	if claims.ExpiresAt.Sub(now) > 24*time.Hour {
		return errors.New("valid for more than a day")
	}
	// Apple refuses anything but one mailto: or https:, and localhost.
	u, err := url.Parse(claims.Subject)
	if err != nil || u.Scheme != "mailto" && u.Scheme != "https" || strings.Contains(u.Opaque, ":") || strings.HasSuffix(u.Opaque+u.Hostname(), "localhost") {
		return errors.New("no contact")
	}
	return nil
}

// open decrypts a body of RFC 8291: one aes128gcm record (RFC 8188).
func (x *subscription) open(body []byte) ([]byte, error) {
	const salt, fixed = 16, 16 + 4 + 1
	if len(body) < fixed || len(body) < fixed+int(body[fixed-1]) {
		return nil, errors.New("short header")
	}
	size := binary.BigEndian.Uint32(body[salt:])
	public, sealed := body[fixed:fixed+int(body[fixed-1])], body[fixed+int(body[fixed-1]):]
	if size < 18 || len(sealed) > int(size) {
		return nil, errors.New("more than one record")
	}
	theirs, err := ecdh.P256().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	shared, err := x.key.ECDH(theirs)
	if err != nil {
		return nil, err
	}
	info := "WebPush: info\x00" + string(x.key.PublicKey().Bytes()) + string(public)
	ikm, err := hkdf.Key(sha256.New, shared, x.auth, info, 32)
	if err != nil {
		return nil, err
	}
	cek, err := hkdf.Key(sha256.New, ikm, body[:salt], "Content-Encoding: aes128gcm\x00", 16)
	if err != nil {
		return nil, err
	}
	nonce, err := hkdf.Key(sha256.New, ikm, body[:salt], "Content-Encoding: nonce\x00", 12)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, nonce, sealed, nil)
	if err != nil {
		return nil, err
	}
	// Padding is zeros after the delimiter of the last record, 2.
	i := len(plain) - 1
	for i >= 0 && plain[i] == 0 {
		i--
	}
	if i < 0 || plain[i] != 2 {
		return nil, errors.New("no delimiter")
	}
	return plain[:i], nil
}
