package configs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parley-im/parley/im"
)

// check finds everything wrong with the values, each with where it was set.
func (c *Config) check(where map[string]string) Faults {
	var fs Faults
	fault := func(key, format string, args ...any) {
		fs = append(fs, Fault{where[key], key, fmt.Sprintf(format, args...)})
	}
	want := func(ok bool, key, format string, args ...any) {
		if !ok {
			fault(key, format, args...)
		}
	}
	want(c.DataDir != "", "data_dir", "name a directory")
	want(oneOf(c.Registration, "auto", "open", "closed"), "registration", "%q is not open, closed or auto", c.Registration)
	for key, addr := range map[string]string{"mqtt.addr": c.MQTT.Addr, "mqtt.tls.addr": c.MQTT.TLS.Addr, "http.addr": c.HTTP.Addr, "metrics.addr": c.Metrics.Addr, "push.worker_addr": c.Push.WorkerAddr} {
		if err := checkAddr(addr); err != nil {
			fault(key, "%s", err)
		}
	}
	for key, n := range map[string]int{"mqtt.max_connections": c.MQTT.MaxConnections, "http.max_connections": c.HTTP.MaxConnections, "sessions.max_per_user": c.Sessions.MaxPerUser, "limits.burst": c.Limits.Burst,
		"limits.subscriptions": c.Limits.Subscriptions, "limits.group_members": c.Limits.GroupMembers, "limits.groups": c.Limits.Groups, "limits.friends": c.Limits.Friends,
		"limits.requests_burst": c.Limits.RequestsBurst, "limits.address_burst": c.Limits.AddressBurst, "limits.registrations_burst": c.Limits.RegistrationsBurst} {
		want(n >= 1, key, "it is at least 1, not %d", n)
	}
	want(c.Sessions.Remember >= 0, "sessions.remember", "it is 0 for none, or more")
	want(c.MQTT.MaxPerIP >= 0, "mqtt.max_per_ip", "it is 0 for no limit, or more")
	for key, n := range map[string]int{"mqtt.receive_maximum": c.MQTT.ReceiveMaximum, "mqtt.window": c.MQTT.Window} {
		want(n >= 1 && n <= 65535, key, "it is 1 to 65535, not %d", n)
	}
	for key, d := range map[string]time.Duration{"mqtt.connect_timeout": c.MQTT.ConnectTimeout, "mqtt.write_timeout": c.MQTT.WriteTimeout, "auth.token_ttl": c.Auth.TokenTTL,
		"auth.refresh_ttl": c.Auth.RefreshTTL, "sessions.forget_after": c.Sessions.ForgetAfter, "store.dedupe": c.Store.Dedupe, "store.timeout": c.Store.Timeout, "store.seat": c.Store.Seat} {
		want(d >= time.Second, key, "it is at least 1s, not %s", d)
	}
	want(c.MQTT.KeepAliveMax == 0 || (c.MQTT.KeepAliveMax >= time.Second && c.MQTT.KeepAliveMax <= 65535*time.Second), "mqtt.keepalive_max", "it is 0, or 1s to 65535s")
	want(c.Limits.Message >= 1024 && c.Limits.Message <= 64<<20, "limits.message", "it is 1KB to 64MB, not %s", c.Limits.Message)
	for key, rate := range map[string]float64{"limits.messages_per_second": c.Limits.MessagesPerSecond, "limits.requests_per_second": c.Limits.RequestsPerSecond,
		"limits.address_per_second": c.Limits.AddressPerSecond, "limits.registrations_per_second": c.Limits.RegistrationsPerSecond} {
		want(rate > 0, key, "it is more than 0; limits.off switches limits off")
	}
	want(oneOf(c.Log.Level, "debug", "info", "warn", "error"), "log.level", "%q is not debug, info, warn or error", c.Log.Level)
	want(oneOf(c.Log.Format, "auto", "text", "json"), "log.format", "%q is not text, json or auto", c.Log.Format)
	want(c.Store.URI == "embedded" || strings.HasPrefix(c.Store.URI, "mongodb://") || strings.HasPrefix(c.Store.URI, "mongodb+srv://"), "store.uri", "it is embedded, or begins with mongodb:// or mongodb+srv://")
	want(c.Store.URIFile == "" || c.Store.URI == "embedded", "store.uri_file", "store.uri is set too: leave one of them out")
	for key, d := range map[string]time.Duration{"store.retention.dm": c.Store.Retention.DM, "store.retention.group": c.Store.Retention.Group} {
		want(d == 0 || d >= time.Minute, key, "it is 0 for ever, or at least 1m, not %s", d)
	}
	// One message is one document, of 16 MB at most: body, topic, properties.
	want(c.Store.Embedded() || c.Limits.Message <= mongoMessage, "limits.message", "it is at most %s with MongoDB, not %s: a document of MongoDB has 16MB at most", mongoMessage, c.Limits.Message)
	c.checkTLS(fault)
	for key, list := range map[string][]string{"mqtt.proxy_protocol": c.MQTT.ProxyProtocol, "http.trusted_proxies": c.HTTP.TrustedProxies} {
		if _, err := Prefixes(list); err != nil {
			fault(key, "%s", err)
		}
	}
	for _, o := range c.HTTP.Origins {
		u, err := url.Parse(o)
		want(o == "*" || (err == nil && u.Host != "" && oneOf(u.Scheme, "http", "https") && u.Path == ""), "http.origins", "%q is not an origin: write https://chat.example.org", o)
	}
	want(oneOf(c.Push.Run, PushServe, PushWorkers, PushOff), "push.run", "%q is not serve, workers or off", c.Push.Run)
	want(c.Push.Run != PushWorkers || !c.Store.Embedded(), "push.run", "workers share a MongoDB: set store.uri to mongodb://…, or push.run to serve: the embedded store belongs to one process, which then rings by itself")
	want(c.Push.Lease >= 3*time.Second && c.Push.Lease <= 10*time.Minute, "push.lease", "it is 3s to 10m, not %s", c.Push.Lease)
	want(oneOf(c.Push.Privacy, "full", "sender", "none", "id-only"), "push.privacy", "%q is not full, sender, none or id-only", c.Push.Privacy)
	want(c.Push.LargeGroup >= 1, "push.large_group", "it is at least 1, not %d", c.Push.LargeGroup)
	for key, d := range map[string]time.Duration{"push.grace_online": c.Push.GraceOnline, "push.grace_active": c.Push.GraceActive} {
		want(d > 0 && d <= time.Minute, key, "it is more than 0 and at most 1m, not %s", d)
	}
	want(c.Push.TTL >= time.Minute && c.Push.TTL <= 28*24*time.Hour, "push.ttl", "it is 1m to 28d, not %s", c.Push.TTL)
	names := map[string]bool{}
	for i, a := range c.Push.Apps {
		key := fmt.Sprintf("push.apps[%d]", i)
		if err := a.check(); err != nil {
			fault(key, "%s", err)
		}
		want(!names[a.Name], key, "there are two apps of the name %q", a.Name)
		names[a.Name] = true
	}
	for i, r := range c.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		if err := r.check(); err != nil {
			fault(key, "%s", err)
		}
	}
	return fs
}

// mongoMessage is the largest body that fits into a document of MongoDB.
const mongoMessage = Size(15 << 20)

// Warnings says what works and is probably not meant; each names its key.
func (c *Config) Warnings() (out []string) {
	for _, r := range []struct {
		key  string
		kept time.Duration
	}{{"store.retention.dm", c.Store.Retention.DM}, {"store.retention.group", c.Store.Retention.Group}} {
		if !c.Store.Embedded() && r.kept > 0 && r.kept < c.Store.Dedupe {
			out = append(out, fmt.Sprintf("%s: %s is shorter than store.dedupe (%s): on MongoDB the sender's id is forgotten with the message, and one that is sent again later makes a second message",
				r.key, formatDuration(r.kept), formatDuration(c.Store.Dedupe)))
		}
	}
	return out
}

// check says what is missing or too much.
func (a PushApp) check() error {
	need := func(fields map[string]string) error {
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			if fields[name] == "" {
				return fmt.Errorf("%s %q needs %s", a.Provider, a.Name, name)
			}
		}
		return nil
	}
	if a.Name == "" {
		return errors.New("it needs a name")
	}
	switch a.Provider {
	case "apns":
		if !oneOf(a.Environment, "", "production", "sandbox") {
			return fmt.Errorf("environment is production or sandbox, not %q", a.Environment)
		}
		if a.Certificate != "" {
			return need(map[string]string{"bundle": a.Bundle})
		}
		return need(map[string]string{"bundle": a.Bundle, "team": a.Team, "key_id": a.KeyID, "key": a.Key})
	case "fcm":
		return need(map[string]string{"service_account": a.ServiceAccount})
	case "webpush":
		return need(map[string]string{"key": a.Key, "subject": a.Subject})
	}
	return fmt.Errorf("provider is apns, fcm or webpush, not %q", a.Provider)
}

func (c *Config) checkTLS(fault func(key, format string, args ...any)) {
	pair := func(prefix, cert, key string, needed bool) {
		switch {
		case (cert == "") != (key == ""), needed && cert == "":
			fault(prefix+".cert", "TLS needs both %s.cert and %s.key", prefix, prefix)
		case cert != "":
			for name, file := range map[string]string{prefix + ".cert": cert, prefix + ".key": key} {
				if _, err := os.Stat(file); err != nil {
					fault(name, "%s", cause(err))
				}
			}
		}
	}
	pair("mqtt.tls", c.MQTT.TLS.Cert, c.MQTT.TLS.Key, c.MQTT.TLS.Addr != "off")
	pair("http", c.HTTP.Cert, c.HTTP.Key, false)
}

func cause(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Path + ": " + pe.Err.Error()
	}
	return err.Error()
}

func checkAddr(addr string) error {
	if addr == "off" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not an address: write 127.0.0.1:1883, :1883 or off", addr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q is not a port: 0 to 65535", port)
	}
	return nil
}

func (r Rule) check() error {
	verb := r.Allow + r.Deny
	switch {
	case (r.Allow == "") == (r.Deny == ""):
		return errors.New("a rule has either allow or deny")
	case !oneOf(verb, "publish", "subscribe", "all"):
		return fmt.Errorf("%q is not publish, subscribe or all", verb)
	case r.Role != "" && r.Role != "admin":
		return fmt.Errorf("the only role is admin, not %q", r.Role)
	case r.User != "" && !im.UserID(r.User).Valid():
		return fmt.Errorf("%q is not a user id", r.User)
	}
	topic := strings.NewReplacer("{user}", "u", "{device}", "d").Replace(r.Topic)
	if strings.ContainsAny(topic, "{}") {
		return errors.New("only {user} and {device} are replaced in a topic")
	}
	f, err := im.ParseFilter(topic)
	switch {
	case err != nil:
		return errors.New(im.ReasonOf(err))
	case f.Share != "":
		return errors.New("the $share prefix is not counted: leave it out")
	}
	if _, plain := f.Overlaps(); !plain {
		return errors.New("rules are for the plain space: the IM topics have friends and members instead")
	}
	return nil
}

func oneOf(s string, list ...string) bool {
	for _, x := range list {
		if s == x {
			return true
		}
	}
	return false
}

// Prefixes parses networks; a single address is a network of one.
func Prefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, e := netip.ParseAddr(s)
			if e != nil {
				return nil, fmt.Errorf("%q is not a network: write 10.0.0.0/8 or 192.0.2.1", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// OnLoopback reports whether everything that listens does so on loopback only.
func (c *Config) OnLoopback() bool {
	for _, addr := range []string{c.MQTT.Addr, c.MQTT.TLS.Addr, c.HTTP.Addr, c.Metrics.Addr} {
		if addr == "off" {
			continue
		}
		host, _, err := net.SplitHostPort(addr)
		ip := net.ParseIP(host)
		if err != nil || (host != "localhost" && (ip == nil || !ip.IsLoopback())) {
			return false
		}
	}
	return true
}

// RegistrationOpen resolves auto.
func (c *Config) RegistrationOpen() bool {
	return c.Registration == "open" || (c.Registration == "auto" && c.OnLoopback())
}
