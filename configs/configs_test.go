package configs

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write parley.yaml anew")

const sampleHead = `# Every key with its default, as parley serve uses it without a file.
# Each is also a flag (--mqtt.addr) and an environment variable
# (PARLEY_MQTT_ADDR); flag over environment over file.
# Check a file with: parley check --config FILE
#
# Sizes are written 65536, 256KB or 64MB, durations 10s, 15m or 90d.
`

const sampleTail = `  # the apps that may be rung; keys are files, read again when they change, or environment variables, written env:NAME:
  #   - {name: com.example.chat, provider: apns, bundle: com.example.chat, team: ABCDE12345, key_id: ABC1234567, key: /etc/parley/AuthKey.p8}
  #   - {name: example, provider: fcm, service_account: /etc/parley/service-account.json}
  #   - {name: web, provider: webpush, key: /etc/parley/vapid.key, subject: ops@example.com}
  apps: []

# Who may publish and subscribe in the plain space, the topics outside the chat:
# the first rule that matches decides, and without one the answer is no. allow or
# deny is publish, subscribe or all; {user} and {device} are the caller's; role
# and user narrow a rule down.
#   - {allow: publish,   topic: "devices/{device}/#"}
#   - {allow: subscribe, topic: "devices/#", role: admin}
rules: []
`

// sample renders the file that shows every key.
func sample() string {
	var b strings.Builder
	b.WriteString(sampleHead)
	section := ""
	for _, k := range Keys() {
		parts := strings.Split(k.Name, ".")
		prefix := strings.Join(parts[:len(parts)-1], ".")
		if prefix != section {
			for i := range parts[:len(parts)-1] {
				if head := strings.Join(parts[:i+1], "."); !strings.HasPrefix(section+".", head+".") {
					fmt.Fprintf(&b, "\n%s%s:\n", strings.Repeat("  ", i), parts[i])
				}
			}
			section = prefix
		}
		indent := strings.Repeat("  ", len(parts)-1)
		v, _ := field(ptr(Defaults()), k.Name)
		value := Default(k.Name)
		if v.Kind() == reflect.Slice {
			value = "[" + value + "]"
		} else if value == "" || strings.Contains(value, ":") {
			value = `"` + value + `"`
		}
		fmt.Fprintf(&b, "%s# %s\n%s%s: %s\n", indent, k.Help, indent, parts[len(parts)-1], value)
	}
	b.WriteString(sampleTail)
	return b.String()
}

func ptr[T any](v T) *T { return &v }

func TestSampleShowsEveryKeyWithItsDefault(t *testing.T) {
	want := sample()
	if *update {
		if err := os.WriteFile("parley.yaml", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("parley.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("parley.yaml is not what the code says: go test ./configs -update")
	}
	c, err := Load(Sources{File: "parley.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	d := Defaults()
	d.MQTT.ProxyProtocol, d.HTTP.Origins, d.HTTP.TrustedProxies = []string{}, []string{}, []string{}
	if !reflect.DeepEqual(*c, d) {
		t.Errorf("got  %+v\nwant %+v", *c, d)
	}
}

func TestProductionExampleLoads(t *testing.T) {
	b, err := os.ReadFile("production.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := string(b)
	for _, f := range []string{"fullchain.pem", "privkey.pem"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "/etc/parley/"+f, filepath.Join(dir, f))
	}
	if _, err := Load(Sources{File: write(t, text)}); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "parley.yaml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFlagOverEnvironmentOverFile(t *testing.T) {
	file := write(t, "mqtt: {addr: \"127.0.0.1:1\"}\nhttp: {addr: \"127.0.0.1:1\"}\nlog: {level: debug}\nlimits: {message: 1MB}\nsessions: {forget_after: 7d}\n")
	env := map[string]string{"PARLEY_MQTT_ADDR": "127.0.0.1:2", "PARLEY_HTTP_ADDR": "127.0.0.1:2", "PARLEY_HTTP_ORIGINS": "https://a.example, https://b.example"}
	c, err := Load(Sources{File: file, Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }, Flags: map[string]string{"mqtt.addr": "127.0.0.1:3", "limits.off": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.MQTT.Addr != "127.0.0.1:3" || c.HTTP.Addr != "127.0.0.1:2" || c.Log.Level != "debug" || c.Limits.Message != 1<<20 || !c.Limits.Off ||
		c.Sessions.ForgetAfter != 7*24*time.Hour || len(c.HTTP.Origins) != 2 {
		t.Errorf("%+v", c)
	}
}

// The lists of mappings are settings like the others, written as YAML in one line.
func TestListsInFlagsAndEnvironment(t *testing.T) {
	file := write(t, "rules:\n  - {allow: publish, topic: file}\n  - {allow: all, topic: more}\n")
	load := func(env, flag string) (*Config, error) {
		s := Sources{File: file, Env: func(k string) (string, bool) { return env, k == "PARLEY_RULES" && env != "" }}
		if flag != "" {
			s.Flags = map[string]string{"rules": flag}
		}
		return Load(s)
	}
	for _, c := range []struct{ env, flag, want string }{
		{"", "", "file more"}, {`[{allow: all, topic: "env/#"}]`, "", "env/#"},
		{`[{allow: all, topic: "env/#"}]`, `[{deny: all, topic: a}, {allow: all, topic: b}]`, "a b"}, {"", "[]", ""},
	} {
		got, err := load(c.env, c.flag)
		if err != nil {
			t.Fatal(err)
		}
		var topics []string
		for _, r := range got.Rules {
			topics = append(topics, r.Topic)
		}
		if strings.Join(topics, " ") != c.want {
			t.Errorf("env %q, flag %q: %v, want %s", c.env, c.flag, topics, c.want)
		}
	}
	for value, want := range map[string]string{"nonsense": "--rules:1: rules: a list goes here", "[{allow: shout, topic: x}]": "--rules:1: rules[0]: ", "[": "--rules: this is not YAML", "": "--rules: rules: a list goes here"} {
		if _, err := Load(Sources{Flags: map[string]string{"rules": value}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", value, err, want)
		}
	}
	c, err := Load(Sources{Flags: map[string]string{"push.apps": "[{name: web, provider: webpush, key: k, subject: s@example.com}]"}})
	if err != nil || len(c.Push.Apps) != 1 || c.Push.Apps[0].Name != "web" {
		t.Errorf("push.apps: %v", err)
	}
}

func TestAllFaultsAtOnceWithTheirPlace(t *testing.T) {
	file := write(t, `mqtt:
  addr: nonsense
  windoe: 5
log:
  level: loud
limits:
  message: tiny
  burst: [1]
rules:
  - {allow: publish, deny: all, topic: x}
  - {allow: shout, topic: x}
  - {allow: publish, topic: "dm/#"}
  - {allow: publish, topic: "a+"}
  - {allow: publish, topic: ok, who: me}
nothing: 1
`)
	_, err := Load(Sources{File: file, Flags: map[string]string{"http.addr": "host"}, Env: func(k string) (string, bool) { return "x", k == "PARLEY_MQTT_WINDOW" }})
	var faults Faults
	if !errors.As(err, &faults) {
		t.Fatalf("%v", err)
	}
	text := faults.Error()
	for _, want := range []string{
		":2: mqtt.addr: ", ":3: mqtt.windoe: there is no such setting: did you mean mqtt.window?", ":5: log.level: ", ":7: limits.message: ", ":8: limits.burst: ",
		":10: rules[0]: ", ":11: rules[1]: ", ":12: rules[2]: ", ":13: rules[3]: ", ":14: rules[4]: ", ":15: nothing: there is no such setting",
		"--http.addr: http.addr: ", "PARLEY_MQTT_WINDOW: mqtt.window: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
}

func TestNotYAML(t *testing.T) {
	_, err := Load(Sources{File: write(t, "a: [1\nb")})
	if err == nil || !strings.Contains(err.Error(), "not YAML") {
		t.Errorf("%v", err)
	}
	if _, err := Load(Sources{File: filepath.Join(t.TempDir(), "absent")}); err == nil {
		t.Error("an absent file was read")
	}
}

func TestSizesAndDurations(t *testing.T) {
	for in, want := range map[string]Size{"0": 0, "65536": 65536, "256KB": 256 << 10, "64 mb": 64 << 20, "2GB": 2 << 30} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: %d %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "-1", "1.5MB", "KB", "9999999999GB"} {
		if got, err := ParseSize(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
	for in, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "15m": 15 * time.Minute, "1500ms": 1500 * time.Millisecond} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%q: %s %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "5", "-5s", "d", "1.5d"} {
		if got, err := ParseDuration(bad); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

func TestRegistrationIsOpenOnLoopbackOnly(t *testing.T) {
	c := Defaults()
	if !c.RegistrationOpen() {
		t.Error("closed on loopback")
	}
	for _, addr := range []string{":1883", "0.0.0.0:1883", "[::]:1883", "192.0.2.1:1883"} {
		c.MQTT.Addr = addr
		if c.RegistrationOpen() {
			t.Errorf("open on %s", addr)
		}
	}
	c = Defaults()
	c.Metrics.Addr = ":9090" // everything that listens: /metrics tells strangers what there is to find
	if c.RegistrationOpen() {
		t.Error("open while the metrics are public")
	}
	c.MQTT.Addr, c.HTTP.Addr, c.Metrics.Addr = "localhost:1883", "[::1]:8080", "off"
	if !c.RegistrationOpen() {
		t.Error("closed on loopback by another name")
	}
	c.MQTT.Addr = ":1883"
	c.Registration = "open"
	if !c.RegistrationOpen() {
		t.Error("open is open")
	}
}

func TestMongoDBHasLimitsOfItsOwn(t *testing.T) {
	load := func(flags map[string]string) (*Config, error) { return Load(Sources{Flags: flags}) }
	uri := filepath.Join(t.TempDir(), "uri")
	for key, value := range map[string]string{"store.uri": "mongodb://db", "store.uri_file": uri} {
		_, err := load(map[string]string{key: value, "limits.message": "16MB"})
		if err == nil || !strings.Contains(err.Error(), "limits.message: it is at most 15MB with MongoDB, not 16MB") {
			t.Errorf("%s: %v", key, err)
		}
		if _, err := load(map[string]string{key: value, "limits.message": "15MB"}); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := load(map[string]string{"limits.message": "16MB"}); err != nil {
		t.Errorf("embedded: %v", err)
	}
	short := map[string]string{"store.retention.dm": "3d", "store.retention.group": "4d"}
	c, err := load(short)
	if err != nil || len(c.Warnings()) != 0 { // it remembers ids apart from messages
		t.Errorf("embedded: %v %q", err, c.Warnings())
	}
	short["store.uri"] = "mongodb://db"
	c, err = load(short)
	if err != nil || len(c.Warnings()) != 1 || !strings.Contains(c.Warnings()[0], "store.retention.dm: 3d is shorter than store.dedupe (4d)") {
		t.Errorf("%v %q", err, c.Warnings())
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("mqtt: {addr: x}")
	f.Add("rules:\n  - {allow: publish, topic: \"a/#\"}\n")
	f.Add("a: &x [*x]")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "f.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Load(Sources{File: file}) // any error, no panic
	})
}
