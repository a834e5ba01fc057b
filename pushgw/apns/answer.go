package apns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sideshow/apns2"

	"github.com/parley-im/parley/pushgw"
)

// maxAnswer is how much of an answer is read, in bytes; Apple's have under 100.
const maxAnswer = 4096

// exchange is the transport of one request. It adds the headers that apns2 leaves
// out and keeps of the answer what apns2 drops.
type exchange struct {
	over   http.RoundTripper
	bearer string // "" with a client certificate
	now    time.Time

	status int // 0: there was no answer
	after  time.Duration
	body   struct {
		Reason    string `json:"reason"`
		Timestamp int64  `json:"timestamp"` // Unix ms; apns2 cuts it to seconds
	}
}

// RoundTrip sends r, which is ours: apns2 has just made it.
func (x *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	if x.bearer != "" {
		r.Header.Set("authorization", "bearer "+x.bearer)
	}
	if r.Header.Get("apns-expiration") == "" {
		// apns2 sends no zero, and without the header APNs stores for up to 30 days.
		r.Header.Set("apns-expiration", "0")
	}
	resp, err := x.over.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close() // it was read, or the status has to do
	x.status, x.after = resp.StatusCode, pushgw.RetryAfter(resp.Header, x.now)
	if err == nil && json.Unmarshal(b, &x.body) != nil {
		x.body.Reason = "" // a proxy's page: the status has to do
	}
	resp.Body = http.NoBody
	return resp, nil
}

// judge turns what happened into an outcome. err is the error of a request that
// had no answer.
func (x *exchange) judge(err error) pushgw.Result {
	if x.status == 0 {
		err = pushgw.Cause(err)
		r := pushgw.Result{Outcome: pushgw.Retry, Reason: "network", Err: err}
		if p, ok := errors.AsType[pauseError](err); ok {
			r.After = p.wait
		} else if errors.Is(err, context.DeadlineExceeded) {
			r.Reason = "timeout"
		}
		return r
	}
	if x.status == http.StatusOK {
		return pushgw.Result{Outcome: pushgw.Sent}
	}
	r := pushgw.Result{Reason: word(x.body.Reason)}
	if r.Reason == "" {
		r.Reason = fmt.Sprintf("http %d", x.status)
	}
	r.Outcome = outcome(x.status, x.body.Reason)
	switch r.Outcome {
	case pushgw.Retry:
		r.After = x.after
		r.Device = x.body.Reason == apns2.ReasonTooManyRequests
	case pushgw.Gone:
		if x.status == http.StatusGone && x.body.Timestamp > 0 {
			r.Since = time.UnixMilli(x.body.Timestamp)
		}
	}
	return r
}

// outcome is the table of Apple's "Handling notification responses from APNs".
func outcome(status int, reason string) pushgw.Outcome {
	switch {
	case status == http.StatusGone:
		return pushgw.Gone
	case status == http.StatusForbidden:
		return pushgw.Locked
	case status == http.StatusRequestEntityTooLarge:
		return pushgw.TooLarge
	case status == http.StatusTooManyRequests, status >= 500, reason == apns2.ReasonIdleTimeout:
		return pushgw.Retry
	}
	switch reason {
	case apns2.ReasonBadDeviceToken:
		return pushgw.Gone
	case apns2.ReasonDeviceTokenNotForTopic, apns2.ReasonTopicDisallowed:
		return pushgw.Misplaced
	}
	return pushgw.Rejected
}

// word keeps a reason that looks like one of Apple's, so that nothing else gets
// into logs and metrics.
func word(s string) string {
	if len(s) > 40 {
		return ""
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return ""
		}
	}
	return s
}
