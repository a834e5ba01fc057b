package configs

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Config is the whole configuration. The key of a field is its path of yaml
// names: mqtt.addr.
type Config struct {
	DataDir      string   `yaml:"data_dir" help:"directory of the embedded store and run-time files"`
	Registration string   `yaml:"registration" help:"who may make accounts: open, closed, or auto: open while every listener is on loopback"`
	MQTT         MQTT     `yaml:"mqtt"`
	HTTP         HTTP     `yaml:"http"`
	Metrics      Metrics  `yaml:"metrics"`
	Store        Store    `yaml:"store"`
	Auth         Auth     `yaml:"auth"`
	Sessions     Sessions `yaml:"sessions"`
	Limits       Limits   `yaml:"limits"`
	Log          Log      `yaml:"log"`
	Push         Push     `yaml:"push"`
	Rules        []Rule   `yaml:"rules" help:"who may publish and subscribe in the plain space, as YAML in one line; the first match wins, none means no"`
}

// MQTT configures the MQTT listeners and connections.
type MQTT struct {
	Addr           string        `yaml:"addr" help:"address of MQTT over TCP, or off"`
	TLS            TLS           `yaml:"tls"`
	ProxyProtocol  []string      `yaml:"proxy_protocol" help:"networks whose connections begin with a PROXY protocol v2 header, such as 10.0.0.0/8; empty: none"`
	MaxConnections int           `yaml:"max_connections" help:"connections at once, MQTT and WebSocket together"`
	MaxPerIP       int           `yaml:"max_per_ip" help:"connections at once from one address; 0: no limit"`
	ConnectTimeout time.Duration `yaml:"connect_timeout" help:"from accept to CONNECT, TLS included"`
	WriteTimeout   time.Duration `yaml:"write_timeout" help:"a client that takes nothing for so long is closed"`
	KeepAliveMax   time.Duration `yaml:"keepalive_max" help:"a longer or absent keep-alive of an MQTT 5 client is replaced by this; 0: no limit"`
	ReceiveMaximum int           `yaml:"receive_maximum" help:"publishes of one client that wait for their acknowledgement"`
	Window         int           `yaml:"window" help:"deliveries to one device that wait for its acknowledgement"`
}

// TLS configures a TLS listener; the files are read again when they change.
type TLS struct {
	Addr string `yaml:"addr" help:"address of MQTT over TLS, or off"`
	Cert string `yaml:"cert" help:"certificate chain, PEM"`
	Key  string `yaml:"key" help:"private key, PEM"`
}

// HTTP configures the API and WebSocket listener.
type HTTP struct {
	Addr           string   `yaml:"addr" help:"address of the HTTP API and of MQTT over WebSocket at /mqtt, or off"`
	Cert           string   `yaml:"cert" help:"certificate chain, PEM: serve HTTPS"`
	Key            string   `yaml:"key" help:"private key, PEM"`
	Origins        []string `yaml:"origins" help:"origins besides our own whose pages may call, such as https://chat.example.org"`
	TrustedProxies []string `yaml:"trusted_proxies" help:"networks whose X-Forwarded-For is believed"`
	MaxConnections int      `yaml:"max_connections" help:"connections at once, idle ones too; WebSocket is not counted here"`
}

// Metrics configures the operator's listener.
type Metrics struct {
	Addr string `yaml:"addr" help:"address of /metrics, /healthz, /readyz and /debug/pprof, or off"`
}

// Store configures where everything is kept.
type Store struct {
	URI       string        `yaml:"uri" help:"embedded, or mongodb:// or mongodb+srv:// (docs/mongodb.md)"`
	URIFile   string        `yaml:"uri_file" help:"file with the URI, instead of uri: keeps a password out of the configuration"`
	Cache     Size          `yaml:"cache" help:"block cache of the embedded store"`
	MinFree   Size          `yaml:"min_free" help:"disk space below which nothing is accepted any more; embedded store"`
	Dedupe    time.Duration `yaml:"dedupe" help:"how long a sender's message id is remembered, at least"`
	Timeout   time.Duration `yaml:"timeout" help:"how long MongoDB may take before a publish is refused"`
	Seat      time.Duration `yaml:"seat" help:"how long the server on a MongoDB database may be silent before another may take its place"`
	Retention Retention     `yaml:"retention"`
}

// Retention configures how long messages are kept. 0 keeps them for ever.
type Retention struct {
	DM    time.Duration `yaml:"dm" help:"how long messages of friends are kept; 0 for ever"`
	Group time.Duration `yaml:"group" help:"how long messages of groups are kept; 0 for ever"`
}

// Embedded reports whether the store is the embedded one.
func (s Store) Embedded() bool { return s.URI == "embedded" && s.URIFile == "" }

// Auth configures logins.
type Auth struct {
	TokenTTL   time.Duration `yaml:"token_ttl" help:"life of an access token"`
	RefreshTTL time.Duration `yaml:"refresh_ttl" help:"life of a refresh token"`
}

// Sessions configures devices.
type Sessions struct {
	ForgetAfter time.Duration `yaml:"forget_after" help:"a device unused for so long is forgotten"`
	MaxPerUser  int           `yaml:"max_per_user" help:"devices of one account"`
	Remember    int           `yaml:"remember" help:"conversations kept in memory for devices that are away, of all users together; 0: none"`
}

// Limits bounds what one user may do.
type Limits struct {
	Off               bool    `yaml:"off" help:"switch off the limits of rate, for benchmarks"`
	Message           Size    `yaml:"message" help:"largest message body"`
	MessagesPerSecond float64 `yaml:"messages_per_second" help:"publishes of one user, sustained"`
	Burst             int     `yaml:"burst" help:"publishes of one user at once"`
	BytesPerSecond    Size    `yaml:"bytes_per_second" help:"bytes published by one user, sustained"`
	Subscriptions     int     `yaml:"subscriptions" help:"subscriptions of one session"`
	GroupMembers      int     `yaml:"group_members" help:"members of one group"`
	Groups            int     `yaml:"groups" help:"groups of one user"`
	Friends           int     `yaml:"friends" help:"friends and open requests of one user"`

	RequestsPerSecond      float64 `yaml:"requests_per_second" help:"requests of one user, over HTTP and MQTT together, sustained"`
	RequestsBurst          int     `yaml:"requests_burst" help:"requests of one user at once"`
	AddressPerSecond       float64 `yaml:"address_per_second" help:"HTTP requests from one address (IPv6: one /64), sustained"`
	AddressBurst           int     `yaml:"address_burst" help:"HTTP requests from one address at once"`
	RegistrationsPerSecond float64 `yaml:"registrations_per_second" help:"new accounts from one address, sustained"`
	RegistrationsBurst     int     `yaml:"registrations_burst" help:"new accounts from one address at once"`
}

// Log configures what is written to standard error.
type Log struct {
	Level  string `yaml:"level" help:"debug, info, warn or error"`
	Format string `yaml:"format" help:"text, json, or auto: text on a terminal"`
}

// Rule is one rule of the plain space.
type Rule struct {
	Allow string `yaml:"allow"` // publish, subscribe or all
	Deny  string `yaml:"deny"`
	Topic string `yaml:"topic"` // a filter; {user} and {device} are the caller's
	Role  string `yaml:"role"`  // "admin", or empty for everybody
	User  string `yaml:"user"`
}

// Push configures how phones that are away are rung. Without apps nobody is.
type Push struct {
	Apps        []PushApp     `yaml:"apps" help:"the apps that may be rung, as YAML in one line (docs/push.md)"`
	Run         string        `yaml:"run" help:"who rings: serve, the server itself; workers, parley push processes on the same MongoDB; or off, nobody"`
	WorkerAddr  string        `yaml:"worker_addr" help:"where a parley push process serves /metrics, /healthz, /readyz and /debug/pprof, or off"`
	Lease       time.Duration `yaml:"lease" help:"after how long other workers ring what one that died had begun"`
	Privacy     string        `yaml:"privacy" help:"what a push says: full, sender, none or id-only; users may ask for less"`
	GraceOnline time.Duration `yaml:"grace_online" help:"how long a push waits while another device of the user is connected"`
	GraceActive time.Duration `yaml:"grace_active" help:"how long it waits while the user was active elsewhere in the last minute"`
	LargeGroup  int           `yaml:"large_group" help:"with more members only mentions ring, unless a member wants all"`
	TTL         time.Duration `yaml:"ttl" help:"how long after the message a push is of use"`
	SealedTypes []string      `yaml:"sealed_types" help:"content types of bodies that are encrypted end to end; they travel with the push if they are small"`
}

// Who rings: the values of push.run.
const (
	PushServe   = "serve"   // parley serve
	PushWorkers = "workers" // parley push processes
	PushOff     = "off"
)

// PushApp is one app of one provider. Keys are in files; an APNs .p8 and an FCM
// service account are read again when they change.
type PushApp struct {
	Name     string // what devices register with
	Provider string // apns, fcm or webpush

	Bundle       string // apns: the bundle id
	Team, KeyID  string // apns, with a key
	Key          string // file or env:NAME, as are the next two: apns .p8, webpush VAPID private key
	Certificate  string // file: apns, instead of a key
	PasswordFile string // file: of the certificate
	Environment  string // apns: where tokens of unknown environment are tried first

	ServiceAccount string // file or env:NAME: fcm

	Subject string // webpush: mail address or page of the operator
	Hosts   string // webpush: allowed push services, by comma; empty: the known ones

	// For a simulator.
	Endpoint, Sandbox string // instead of the provider's
	CA                string // file: who signs its certificate
	AllowPrivate      bool   // webpush: endpoints on this machine or network
}

// Size is a number of bytes; written 256KB, 64MB or plain.
type Size int64

// String writes the size as short as it goes.
func (s Size) String() string {
	for _, u := range []struct {
		n int64
		s string
	}{{1 << 30, "GB"}, {1 << 20, "MB"}, {1 << 10, "KB"}} {
		if int64(s) >= u.n && int64(s)%u.n == 0 {
			return strconv.FormatInt(int64(s)/u.n, 10) + u.s
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// ParseSize reads a size; KB, MB and GB are powers of 1024.
func ParseSize(s string) (Size, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	unit := int64(1)
	for suffix, u := range map[string]int64{"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30} {
		if rest, ok := strings.CutSuffix(t, suffix); ok {
			t, unit = strings.TrimSpace(rest), u
		}
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("%q is not a size: write 65536, 256KB or 64MB", s)
	}
	return Size(n * unit), nil
}

// ParseDuration reads a duration; besides Go's units, d is 24 hours.
func ParseDuration(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err == nil && n >= 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration: write 10s, 15m or 90d", s)
	}
	return d, nil
}

func formatDuration(d time.Duration) string {
	switch {
	case d == 0:
		return "0s"
	case d%(24*time.Hour) == 0:
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	case d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	}
	return d.String()
}

// Defaults is the configuration of somebody who sets nothing.
func Defaults() Config {
	return Config{
		DataDir:      "data",
		Registration: "auto",
		MQTT: MQTT{Addr: "127.0.0.1:1883", TLS: TLS{Addr: "off"}, MaxConnections: 100_000, MaxPerIP: 0, ConnectTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, KeepAliveMax: 0, ReceiveMaximum: 1024, Window: 256},
		HTTP:     HTTP{Addr: "127.0.0.1:8080", MaxConnections: 100_000},
		Metrics:  Metrics{Addr: "127.0.0.1:9090"},
		Push:     Push{Run: PushServe, WorkerAddr: "127.0.0.1:9091", Lease: 30 * time.Second, Privacy: "sender", GraceOnline: 4 * time.Second, GraceActive: 20 * time.Second, LargeGroup: 100, TTL: 24 * time.Hour, SealedTypes: []string{"application/vnd.parley.sealed"}},
		Store:    Store{URI: "embedded", Cache: 64 << 20, MinFree: 64 << 20, Dedupe: 4 * 24 * time.Hour, Timeout: 10 * time.Second, Seat: 10 * time.Second},
		Auth:     Auth{TokenTTL: 15 * time.Minute, RefreshTTL: 90 * 24 * time.Hour},
		Sessions: Sessions{ForgetAfter: 90 * 24 * time.Hour, MaxPerUser: 1000, Remember: 500_000},
		Limits: Limits{Message: 256 << 10, MessagesPerSecond: 100, Burst: 2000, BytesPerSecond: 16 << 20, Subscriptions: 100, GroupMembers: 10_000,
			Groups: 1000, Friends: 10_000, RequestsPerSecond: 50, RequestsBurst: 1000, AddressPerSecond: 200, AddressBurst: 1000, RegistrationsPerSecond: 5, RegistrationsBurst: 1000},
		Log: Log{Level: "info", Format: "auto"},
	}
}
