package pushgw

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// KindKey is the key under which every push tells the app its Kind, beside Data.
const KindKey = "push"

// String is the Kind's name, as apps get it under KindKey.
func (k Kind) String() string {
	switch k {
	case Alert:
		return "alert"
	case Clear:
		return "clear"
	case Call:
		return "call"
	}
	return "unknown"
}

// longestWait is how long a provider may make us wait, whatever it asks for: a
// push is worth little later.
const longestWait = time.Hour

// RetryAfter reads a Retry-After header (RFC 9110, 10.2.3), seconds or a date.
// It is 0 when there is none or it makes no sense, and at most an hour.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if s, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(s, 0), int(longestWait/time.Second))) * time.Second
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), longestWait)
}

// Cause takes the URL off an error of net/http: a URL holds the device's token.
func Cause(err error) error {
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			return err
		}
		err = u.Err
	}
}
