package webpush

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

var errPrivate = errors.New("the push service has an address in a private or reserved network")

// global is what IANA has given out of IPv6 for the internet. All the rest is not:
// what wraps an IPv4 address (::/96, ::ffff:0:0:0/96, NAT64), local networks, and
// what has no use yet.
var global = netip.MustParsePrefix("2000::/3")

// reserved are the networks that no push service is in, beside those that
// net/netip knows (IANA's special-purpose registries).
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carriers' NAT
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"), // Teredo, ORCHID
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4: any IPv4 address inside
	netip.MustParsePrefix("3fff::/20"),
}

// public says whether an address is in the public internet.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	if a.Is6() && !global.Contains(a) {
		return false
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// dialer makes connections. It looks at the address that is about to be dialled,
// after the name was resolved, so a name that resolves differently the second
// time gets nowhere.
func dialer(private bool) *net.Dialer {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if !private {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			a, err := netip.ParseAddrPort(address)
			if err != nil || !public(a.Addr()) {
				return errPrivate
			}
			return nil
		}
	}
	return d
}
