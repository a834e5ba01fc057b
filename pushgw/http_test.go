package pushgw

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		why, value string
		want       time.Duration
	}{
		{"nothing said", "", 0},
		{"seconds", "30", 30 * time.Second},
		{"negative seconds are none", "-5", 0},
		{"a date", now.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second},
		{"a date gone by", now.Add(-time.Minute).Format(http.TimeFormat), 0},
		{"a year is cut to an hour", "31536000", time.Hour},
		{"more than fits", "99999999999999999999", 0},
		{"words", "later", 0},
	} {
		if got := RetryAfter(http.Header{"Retry-After": {c.value}}, now); got != c.want {
			t.Errorf("%s: RetryAfter(%q) = %v, want %v", c.why, c.value, got, c.want)
		}
	}
}

func TestCauseHidesTheURL(t *testing.T) {
	err := fmt.Errorf("sending: %w", &url.Error{Op: "Post", URL: "https://host/3/device/secret", Err: context.DeadlineExceeded})
	got := Cause(err)
	if strings.Contains(got.Error(), "secret") || !errors.Is(got, context.DeadlineExceeded) {
		t.Errorf("Cause = %v", got)
	}
}
