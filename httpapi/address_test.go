package httpapi

import (
	"net/http"
	"net/netip"
	"testing"
)

func TestClientAddr(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		why, peer string
		forwarded []string
		want      string
	}{
		{"no proxy: the peer", "192.0.2.1:40000", nil, "192.0.2.1"},
		{"a stranger's header is not believed", "192.0.2.1:40000", []string{"1.1.1.1"}, "192.0.2.1"},
		{"a trusted proxy's is", "10.0.0.1:40000", []string{"192.0.2.7"}, "192.0.2.7"},
		{"what the client wrote itself stands further left", "10.0.0.1:40000", []string{"1.1.1.1, 192.0.2.7"}, "192.0.2.7"},
		{"also in a header line of its own", "10.0.0.1:40000", []string{"1.1.1.1", "192.0.2.7"}, "192.0.2.7"},
		{"through two trusted proxies", "10.0.0.1:40000", []string{"1.1.1.1, 192.0.2.7, 10.0.0.2"}, "192.0.2.7"},
		{"all of them trusted: the furthest", "10.0.0.1:40000", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"garbage ends the belief", "10.0.0.1:40000", []string{"192.0.2.7, unknown"}, "10.0.0.1"},
		{"no header from a trusted proxy", "10.0.0.1:40000", nil, "10.0.0.1"},
		{"IPv6, with port and brackets", "[fd00::1]:40000", []string{"[2001:db8::7]:1234"}, "2001:db8::7"},
		{"a mapped peer is matched as IPv4", "[::ffff:10.0.0.1]:40000", []string{"192.0.2.7"}, "192.0.2.7"},
		{"a unix socket has no address", "@", []string{"192.0.2.7"}, "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		if got := clientAddr(r, trusted).String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.why, got, c.want)
		}
	}
}
