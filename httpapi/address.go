package httpapi

import (
	"net/http"
	"net/netip"
	"strings"
)

// clientAddr returns the address a request came from: the peer's, or, where the
// peer is a trusted proxy, the last entry of X-Forwarded-For that is not one.
// What stands further left was written by the client and is not believed. The
// zero Addr is returned where the peer has no IP address (a unix socket).
func clientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	peer := parseHost(r.RemoteAddr)
	if !within(peer, trusted) {
		return peer
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := parseHost(strings.TrimSpace(hops[i]))
		if !hop.IsValid() {
			return peer // garbage in a header a trusted proxy passed on: stop believing
		}
		if !within(hop, trusted) {
			return hop
		}
		peer = hop
	}
	return peer
}

// parseHost reads an address with or without a port.
func parseHost(s string) netip.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap()
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

func within(a netip.Addr, ps []netip.Prefix) bool {
	for _, p := range ps {
		if a.IsValid() && p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// ClientIP is the address a request came from, as this API sees it.
func (a *API) ClientIP(r *http.Request) netip.Addr { return clientAddr(r, a.opt.TrustedProxies) }
