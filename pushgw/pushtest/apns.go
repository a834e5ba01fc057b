package pushtest

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parley-im/parley/pushgw"
)

// Limits of APNs, in bytes.
const (
	apnsPayload  = 4096
	voipPayload  = 5120
	apnsCollapse = 64
)

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// apnsHandler serves POST /3/device/<token> of one environment.
func (s *Simulator) apnsHandler(environment string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.URL.Path, "/3/device/")
		id := r.Header.Get("apns-id")
		if id == "" {
			id = newUUID()
		}
		w.Header().Set("apns-id", id)
		refuse := func(rep Reply) { refuseAPNs(w, rep) }
		rep := s.request(pushgw.APNs, environment, token, r.Header.Get("apns-id"))
		if !s.begin(w, r, rep, refuse) {
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
		if err != nil {
			refuse(Reply{Status: 413, Reason: "PayloadTooLarge"})
			return
		}
		e := Entry{At: s.opt.Now(), Provider: pushgw.APNs, Environment: environment, Token: token, ID: id, Payload: body}
		if no, ok := s.checkAPNs(r, &e); !ok {
			refuse(no)
			return
		}
		s.accept(e)
		if rep.Reset == ResetAfter {
			reset(r)
			return
		}
		if environment == "sandbox" {
			w.Header().Set("apns-unique-id", newUUID())
		}
		w.WriteHeader(http.StatusOK)
	})
}

func refuseAPNs(w http.ResponseWriter, rep Reply) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(rep.Status)
	answer := struct {
		Reason    string `json:"reason"`
		Timestamp int64  `json:"timestamp,omitempty"` // Unix ms
	}{Reason: rep.Reason}
	if !rep.Since.IsZero() {
		answer.Timestamp = rep.Since.UnixMilli()
	}
	_ = json.NewEncoder(w).Encode(answer) // the client went away
}

// checkAPNs checks a push as APNs would and fills in the entry.
func (s *Simulator) checkAPNs(r *http.Request, e *Entry) (Reply, bool) {
	for _, check := range []func(*http.Request, *Entry) (Reply, bool){checkPath, s.checkAuth, checkHeaders, s.checkTopic, checkPayload, s.checkDevice} {
		if no, ok := check(r, e); !ok {
			return no, false
		}
	}
	return Reply{}, true
}

func bad(reason string) (Reply, bool) {
	return Reply{Status: http.StatusBadRequest, Reason: reason}, false
}

func checkPath(r *http.Request, e *Entry) (Reply, bool) {
	switch {
	case r.Method != http.MethodPost:
		return Reply{Status: http.StatusMethodNotAllowed, Reason: "MethodNotAllowed"}, false
	case !strings.HasPrefix(r.URL.Path, "/3/device/"):
		return Reply{Status: http.StatusNotFound, Reason: "BadPath"}, false
	case e.Token == "":
		return bad("MissingDeviceToken")
	}
	// 32 bytes today; Apple asks not to count on it.
	if b, err := hex.DecodeString(e.Token); err != nil || len(b) < 32 || len(b) > 100 {
		return bad("BadDeviceToken")
	}
	return Reply{}, true
}

func checkHeaders(r *http.Request, e *Entry) (Reply, bool) {
	h := r.Header
	for k, v := range h {
		if strings.HasPrefix(k, "Apns-") && len(v) > 1 {
			return bad("DuplicateHeaders")
		}
	}
	if !uuid.MatchString(e.ID) {
		return bad("BadMessageId")
	}
	if e.Collapse = h.Get("apns-collapse-id"); len(e.Collapse) > apnsCollapse {
		return bad("BadCollapseId")
	}
	e.Expires = e.At.AddDate(0, 0, 30) // what APNs does without the header
	if v := h.Get("apns-expiration"); v != "" {
		at, err := strconv.ParseInt(v, 10, 64)
		if err != nil || at < 0 {
			return bad("BadExpirationDate")
		}
		e.Expires = time.Time{}
		if at > 0 {
			e.Expires = time.Unix(at, 0)
		}
	}
	e.Type = h.Get("apns-push-type")
	if !slices.Contains([]string{"alert", "background", "voip"}, e.Type) {
		return bad("InvalidPushType")
	}
	e.Priority = h.Get("apns-priority")
	switch e.Priority {
	case "10":
		if e.Type == "background" {
			return bad("BadPriority")
		}
	case "", "5", "1":
	default:
		return bad("BadPriority")
	}
	return Reply{}, true
}

func (s *Simulator) checkTopic(r *http.Request, e *Entry) (Reply, bool) {
	e.Topic = r.Header.Get("apns-topic")
	if e.Topic == "" {
		return bad("MissingTopic")
	}
	bundle, voip := strings.CutSuffix(e.Topic, ".voip")
	if voip != (e.Type == "voip") {
		return bad("InvalidPushType")
	}
	if of := topicOf(r.TLS); r.Header.Get("authorization") == "" && of != "" && of != bundle {
		return bad("TopicDisallowed")
	}
	if len(s.opt.Topics) > 0 && !slices.Contains(s.opt.Topics, bundle) {
		return bad("TopicDisallowed")
	}
	return Reply{}, true
}

func checkPayload(_ *http.Request, e *Entry) (Reply, bool) {
	limit := apnsPayload
	if e.Type == "voip" {
		limit = voipPayload
	}
	if len(e.Payload) > limit {
		return Reply{Status: http.StatusRequestEntityTooLarge, Reason: "PayloadTooLarge"}, false
	}
	var p struct {
		APS *struct {
			Alert            json.RawMessage `json:"alert"`
			Badge            *int            `json:"badge"`
			Sound            json.RawMessage `json:"sound"`
			ContentAvailable int             `json:"content-available"`
		} `json:"aps"`
	}
	if err := json.Unmarshal(e.Payload, &p); err != nil || p.APS == nil {
		return bad("PayloadEmpty")
	}
	// APNs takes these and the phone then shows nothing; here it is a mistake.
	visible := p.APS.Alert != nil || p.APS.Badge != nil || p.APS.Sound != nil
	if e.Type == "alert" && !visible || e.Type == "background" && (p.APS.ContentAvailable != 1 || p.APS.Alert != nil || p.APS.Sound != nil) {
		return bad("InvalidPushType")
	}
	return Reply{}, true
}

func (s *Simulator) checkDevice(_ *http.Request, e *Entry) (Reply, bool) {
	d, ok := s.find(e.Token)
	switch {
	case !ok, d.Environment != "" && d.Environment != e.Environment:
		return bad("BadDeviceToken")
	case d.Topic != "" && d.Topic != e.Topic:
		return bad("DeviceTokenNotForTopic")
	case !d.Unregistered.IsZero():
		return Reply{Status: http.StatusGone, Reason: "Unregistered", Since: d.Unregistered}, false
	}
	return Reply{}, true
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
