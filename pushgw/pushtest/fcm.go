package pushtest

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"

	"github.com/parley-im/parley/pushgw"
)

// fcmState is the simulated project: its service account, its OAuth tokens and
// its quota.
type fcmState struct {
	key     *rsa.PrivateKey
	account []byte
	url     string
	quota   *rate.Limiter

	mu     sync.Mutex
	tokens map[string]time.Time // access token → when it ends
	issued int
}

const fcmScope = "https://www.googleapis.com/auth/firebase.messaging"

func newFCMState(o Options, url string) (*fcmState, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	account, err := json.MarshalIndent(map[string]string{
		"type": "service_account", "project_id": o.Project, "private_key_id": "simulated", "private_key": string(pemBlock("PRIVATE KEY", der)),
		"client_email": "push@" + o.Project + ".invalid", "token_uri": url + "/token",
	}, "", "  ")
	return &fcmState{
		key: key, account: account, url: url, tokens: map[string]time.Time{},
		quota: rate.NewLimiter(rate.Limit(float64(o.ProjectMin)/60), o.ProjectMin),
	}, err
}

// ServiceAccount is the service account of the project, with token_uri at the
// simulator, as the JSON file that Google's console gives.
func (s *Simulator) ServiceAccount() []byte { return bytes.Clone(s.fcm.account) }

// ExpireAccess makes all OAuth access tokens invalid.
func (s *Simulator) ExpireAccess() {
	s.fcm.mu.Lock()
	defer s.fcm.mu.Unlock()
	clear(s.fcm.tokens)
}

// AccessTokens counts the OAuth access tokens issued since Start.
func (s *Simulator) AccessTokens() int {
	s.fcm.mu.Lock()
	defer s.fcm.mu.Unlock()
	return s.fcm.issued
}

func (s *Simulator) serveFCM(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/token":
		s.serveToken(w, r)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/projects/"+s.opt.Project+"/messages:send":
		s.serveSend(w, r)
	default:
		http.Error(w, "<html>Not Found</html>", http.StatusNotFound)
	}
}

// serveToken is the OAuth 2.0 JWT bearer grant (RFC 7523).
func (s *Simulator) serveToken(w http.ResponseWriter, r *http.Request) {
	var claims struct {
		jwt.RegisteredClaims
		Scope string `json:"scope"`
	}
	_, err := jwt.ParseWithClaims(r.PostFormValue("assertion"), &claims, func(*jwt.Token) (any, error) { return s.fcm.key.Public(), nil },
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithAudience(s.fcm.url+"/token"), jwt.WithExpirationRequired(), jwt.WithTimeFunc(s.opt.Now))
	w.Header().Set("Content-Type", "application/json")
	if err != nil || r.PostFormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || !strings.Contains(claims.Scope, fcmScope) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
		return
	}
	token := "sim." + rand.Text()
	s.fcm.mu.Lock()
	s.fcm.issued++
	s.fcm.tokens[token] = s.opt.Now().Add(s.opt.TokenTTL)
	s.fcm.mu.Unlock()
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "expires_in": int(s.opt.TokenTTL / time.Second), "token_type": "Bearer"})
}

// fcmMessage is the part of the v1 message that Parley sends.
type fcmMessage struct {
	Token   string            `json:"token"`
	FID     string            `json:"fid"`
	Data    map[string]string `json:"data"`
	Android struct {
		Priority     string          `json:"priority"`
		TTL          string          `json:"ttl"`
		CollapseKey  string          `json:"collapse_key"`
		Notification json.RawMessage `json:"notification"`
	} `json:"android"`
}

func (s *Simulator) serveSend(w http.ResponseWriter, r *http.Request) {
	refuse := func(rep Reply) { refuseFCM(w, rep) }
	rep := s.request(pushgw.FCM, "", "", "")
	if !s.begin(w, r, rep, refuse) {
		return
	}
	now := s.opt.Now()
	s.fcm.mu.Lock()
	ends, ok := s.fcm.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	s.fcm.mu.Unlock()
	if !ok || !ends.After(now) {
		refuse(Reply{Status: http.StatusUnauthorized})
		return
	}
	if !s.fcm.quota.AllowN(now, 1) {
		refuse(Reply{Status: http.StatusTooManyRequests, Reason: "QUOTA_EXCEEDED"})
		return
	}
	var in struct {
		Message fcmMessage `json:"message"`
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		refuse(Reply{Status: http.StatusBadRequest, Reason: "INVALID_ARGUMENT", Field: "message"})
		return
	}
	e, no, ok := s.checkFCM(&in.Message, now)
	if !ok {
		refuse(no)
		return
	}
	s.accept(e)
	if rep.Reset == ResetAfter {
		reset(r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"name": e.ID})
}

var fcmTTL = regexp.MustCompile(`^([0-9]{1,10})(\.[0-9]{1,9})?s$`)

const (
	fcmPayload = 4096
	fcmMaxTTL  = 2_419_200 // seconds: 4 weeks
)

func (s *Simulator) checkFCM(m *fcmMessage, now time.Time) (Entry, Reply, bool) {
	invalid := func(field string) (Entry, Reply, bool) {
		return Entry{}, Reply{Status: http.StatusBadRequest, Reason: "INVALID_ARGUMENT", Field: field}, false
	}
	token, field := m.Token, "message.token"
	if m.FID != "" {
		token, field = m.FID, "message.fid"
	}
	if token == "" || m.Token != "" && m.FID != "" {
		return invalid("message")
	}
	size := len(m.Android.Notification)
	for k, v := range m.Data {
		if k == "from" || k == "message_type" || strings.HasPrefix(k, "google.") || strings.HasPrefix(k, "gcm.") {
			return invalid("message.data[0].key")
		}
		size += len(k) + len(v)
	}
	if size > fcmPayload {
		return invalid("")
	}
	ttl := fcmTTL.FindStringSubmatch(m.Android.TTL)
	seconds := fcmMaxTTL
	if m.Android.TTL != "" {
		if ttl == nil {
			return invalid("message.android.ttl")
		}
		if seconds, _ = strconv.Atoi(ttl[1]); seconds > fcmMaxTTL {
			return invalid("message.android.ttl")
		}
	}
	switch m.Android.Priority {
	case "", "high", "normal", "HIGH", "NORMAL":
	default:
		return invalid("message.android.priority")
	}
	e := Entry{
		At: now, Provider: pushgw.FCM, Topic: s.opt.Project, Token: token, ID: "projects/" + s.opt.Project + "/messages/" + rand.Text(),
		Collapse: m.Android.CollapseKey, Priority: m.Android.Priority, Type: "data",
	}
	if m.Android.Notification != nil {
		e.Type = "notification"
	}
	if seconds > 0 {
		e.Expires = now.Add(time.Duration(seconds) * time.Second)
	}
	e.Payload, _ = json.Marshal(m) // it came as JSON
	if no, ok := s.checkTarget(token, field, e.Collapse != "", now); !ok {
		return Entry{}, no, false
	}
	return e, Reply{}, true
}

// checkTarget checks the device and takes from its buckets.
func (s *Simulator) checkTarget(token, field string, collapsible bool, now time.Time) (Reply, bool) {
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	d := s.devices.known[token]
	if d == nil && s.opt.KnownOnly {
		return Reply{Status: http.StatusBadRequest, Reason: "INVALID_ARGUMENT", Field: field}, false
	}
	d = s.devices.of(token)
	switch {
	case !d.Unregistered.IsZero():
		return Reply{Status: http.StatusNotFound, Reason: "UNREGISTERED"}, false
	case d.Topic != "" && d.Topic != s.opt.Project:
		return Reply{Status: http.StatusForbidden, Reason: "SENDER_ID_MISMATCH"}, false
	case collapsible && !d.collaps.AllowN(now, 1), !d.minute.AllowN(now, 1), !d.hour.AllowN(now, 1):
		return Reply{Status: http.StatusTooManyRequests, Reason: "QUOTA_EXCEEDED", Device: true}, false
	}
	return Reply{}, true
}

// grpcStatus is Google's word for an HTTP status.
var grpcStatus = map[int]string{
	400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE",
}

func refuseFCM(w http.ResponseWriter, rep Reply) {
	const types = "type.googleapis.com/"
	details := []any{}
	if rep.Reason != "" {
		details = append(details, map[string]string{"@type": types + "google.firebase.fcm.v1.FcmError", "errorCode": rep.Reason})
	}
	if rep.Field != "" {
		details = append(details, map[string]any{"@type": types + "google.rpc.BadRequest", "fieldViolations": []any{map[string]string{"field": rep.Field, "description": "invalid"}}})
	}
	if rep.Device {
		details = append(details, map[string]any{"@type": types + "google.rpc.QuotaFailure", "violations": []any{map[string]string{"subject": "device", "description": "Device message rate quota exceeded"}}})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(rep.Status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": rep.Status, "message": "simulated", "status": grpcStatus[rep.Status], "details": details,
	}})
}

// unpadded is the base64 of web push and JWT.
var unpadded = base64.RawURLEncoding
