package webpush

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"net/url"
	"strings"

	webpush "github.com/SherClockHolmes/webpush-go"
)

// DefaultHosts are the push services of the browsers: Chrome and its kin, Firefox,
// Safari, Edge.
func DefaultHosts() []string {
	return []string{"fcm.googleapis.com", "updates.push.services.mozilla.com", "*.push.apple.com", "*.notify.windows.com"}
}

// maxSubscription is the size of a subscription in bytes; real ones have 300 to
// 900.
const maxSubscription = 4096

// Errors of ValidateSubscription. They quote nothing of the subscription.
var (
	ErrMalformed   = errors.New("not a Web Push subscription")
	ErrHostRefused = errors.New("the push service is not on the list of allowed hosts")
)

// ValidateSubscription checks a subscription, the JSON of a browser's
// PushSubscription, before it is stored. hosts are those allowed, nil for
// DefaultHosts: a name, a name with a port, or *.name for all names under it.
// Without a port only 443 is allowed. It fails with ErrMalformed or
// ErrHostRefused.
func ValidateSubscription(subscription string, hosts []string) error {
	_, _, err := parseSubscription(subscription, hosts)
	return err
}

// parseSubscription also gives the origin of the push service, as RFC 8292 wants
// it for aud.
func parseSubscription(text string, hosts []string) (*webpush.Subscription, string, error) {
	if hosts == nil {
		hosts = DefaultHosts()
	}
	var s webpush.Subscription
	if len(text) > maxSubscription || json.Unmarshal([]byte(text), &s) != nil {
		return nil, "", ErrMalformed
	}
	point, err := decode(s.Keys.P256dh)
	if err != nil {
		return nil, "", ErrMalformed
	}
	if _, err = ecdh.P256().NewPublicKey(point); err != nil {
		return nil, "", ErrMalformed // [RFC 8291, 7]: also a point that is not on the curve
	}
	if auth, err := decode(s.Keys.Auth); err != nil || len(auth) != 16 {
		return nil, "", ErrMalformed
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return nil, "", ErrMalformed
	}
	if !allowed(u, hosts) {
		return nil, "", ErrHostRefused
	}
	// An origin leaves the default port out [RFC 6454, 6.2].
	host := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(u.Host), ":443"), ":")
	return &s, "https://" + host, nil
}

// decode reads either base64 that browsers and libraries write.
func decode(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if b, err := base64.RawURLEncoding.DecodeString(s); err == nil {
		return b, nil
	}
	return base64.RawStdEncoding.DecodeString(s)
}

func allowed(u *url.URL, hosts []string) bool {
	name, port := strings.ToLower(u.Hostname()), u.Port()
	for _, h := range hosts {
		h = strings.ToLower(h)
		want := "443"
		if i := strings.LastIndexByte(h, ':'); i >= 0 && !strings.HasSuffix(h, "]") {
			h, want = h[:i], h[i+1:]
		}
		if port != want && (port != "" || want != "443") {
			continue
		}
		if under, wild := strings.CutPrefix(h, "*"); wild {
			// At least one label more, and no address of digits.
			if _, err := netip.ParseAddr(name); err != nil && len(under) > 1 && under[0] == '.' && strings.HasSuffix(name, under) && len(name) > len(under) {
				return true
			}
		} else if name == strings.Trim(h, "[]") {
			return true
		}
	}
	return false
}
