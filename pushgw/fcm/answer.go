package fcm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/parley-im/parley/pushgw"
)

// leastQuota is the pause after QUOTA_EXCEEDED without Retry-After, by Google's
// "best practices when sending messages at scale".
const leastQuota = time.Minute

// failure is Google's form of an error, as far as FCM uses it.
type failure struct {
	Error struct {
		Status  string   `json:"status"`
		Details []detail `json:"details"`
	} `json:"error"`
}

type detail struct {
	Type       string `json:"@type"`
	ErrorCode  string `json:"errorCode"` // of FcmError
	Violations []struct {
		Subject     string `json:"subject"`
		Description string `json:"description"`
	} `json:"violations"` // of QuotaFailure
	Fields []struct {
		Field string `json:"field"`
	} `json:"fieldViolations"` // of BadRequest
}

func (f *failure) code() string {
	for _, d := range f.Error.Details {
		if strings.HasSuffix(d.Type, "google.firebase.fcm.v1.FcmError") {
			return word(d.ErrorCode)
		}
	}
	return ""
}

// namesToken says whether the device's address is what is wrong.
func (f *failure) namesToken() bool {
	for _, d := range f.Error.Details {
		for _, v := range d.Fields {
			if v.Field == "message.token" || v.Field == "message.fid" {
				return true
			}
		}
	}
	return false
}

// ofDevice says whether the quota is the device's. Google tells it in words only:
// "device message rate".
func (f *failure) ofDevice() bool {
	for _, d := range f.Error.Details {
		for _, v := range d.Violations {
			if strings.Contains(strings.ToLower(v.Subject+" "+v.Description), "device") {
				return true
			}
		}
	}
	return false
}

// judge turns an answer into an outcome.
func judge(status int, h http.Header, body []byte, now time.Time) pushgw.Result {
	if status == http.StatusOK {
		return pushgw.Result{Outcome: pushgw.Sent}
	}
	var f failure
	if json.Unmarshal(body, &f) != nil {
		f = failure{} // a proxy's page: the status has to do
	}
	code := f.code()
	r := pushgw.Result{Reason: code}
	if r.Reason == "" {
		r.Reason = word(f.Error.Status)
	}
	if r.Reason == "" {
		r.Reason = fmt.Sprintf("http %d", status)
	}
	r.Outcome = outcome(status, code)
	if code == "INVALID_ARGUMENT" && f.namesToken() {
		r.Outcome = pushgw.Gone
	}
	if r.Outcome == pushgw.Retry {
		r.After = pushgw.RetryAfter(h, now)
	}
	if status == http.StatusTooManyRequests {
		r.Device = f.ofDevice()
		if r.After == 0 {
			r.After = leastQuota
		}
	}
	return r
}

// outcome is the table of FCM's ErrorCode and the HTTP status.
func outcome(status int, code string) pushgw.Outcome {
	switch code {
	case "UNREGISTERED":
		return pushgw.Gone
	case "SENDER_ID_MISMATCH":
		return pushgw.Misplaced
	case "INVALID_ARGUMENT":
		return pushgw.Rejected
	case "THIRD_PARTY_AUTH_ERROR":
		return pushgw.Locked
	case "QUOTA_EXCEEDED", "UNAVAILABLE", "INTERNAL":
		return pushgw.Retry
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return pushgw.Locked
	case http.StatusNotFound:
		// Not of a device: there is no such project. To throw away every push for a
		// wrong configuration would be a pity.
		return pushgw.Locked
	case http.StatusRequestEntityTooLarge:
		return pushgw.TooLarge
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return pushgw.Retry
	}
	if status >= 500 {
		return pushgw.Retry
	}
	return pushgw.Rejected
}

// unanswered is the result of a request without an answer.
func unanswered(err error) pushgw.Result {
	r := pushgw.Result{Outcome: pushgw.Retry, Reason: "network", Err: pushgw.Cause(err)}
	if errors.Is(err, context.DeadlineExceeded) {
		r.Reason = "timeout"
	}
	return r
}

// word keeps a reason that looks like one of Google's, so that nothing else gets
// into logs and metrics.
func word(s string) string {
	if len(s) > 40 {
		return ""
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' {
			return ""
		}
	}
	return s
}
