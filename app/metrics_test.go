package app

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/pushgw/pushtest"
)

// everyMetric is the names of all metrics of a server with everything switched on,
// and of a push worker.
func everyMetric(t *testing.T) map[string]bool {
	t.Helper()
	sim, err := pushtest.Start(pushtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sim.Close() }()
	dir := t.TempDir()
	if err := sim.Save(dir); err != nil {
		t.Fatal(err)
	}
	cfg := configs.Defaults()
	cfg.DataDir = dir
	cfg.MQTT.Addr, cfg.HTTP.Addr, cfg.Metrics.Addr = "off", "off", "off"
	cfg.Push.Apps = []configs.PushApp{{Name: "android", Provider: "fcm", ServiceAccount: filepath.Join(dir, "service-account.json"), Endpoint: sim.URLs.FCM, CA: filepath.Join(dir, "ca.pem")}}
	a, err := New(t.Context(), Options{Config: &cfg})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.cleanup() }()
	a.metrics.mongo(false).Seat(true)
	a.metrics.held(func() int { return 0 })
	descs := make(chan *prometheus.Desc, 1000)
	a.metrics.reg.Describe(descs)
	close(descs)
	names := map[string]bool{}
	fq := regexp.MustCompile(`fqName: "(parley_\w+)"`)
	for d := range descs {
		if m := fq.FindStringSubmatch(d.String()); m != nil {
			names[m[1]] = true
		}
	}
	return names
}

// TestEveryMetricIsDocumented: docs/operations.md has them all, and no page names
// one that there is not.
func TestEveryMetricIsDocumented(t *testing.T) {
	have := everyMetric(t)
	if len(have) < 20 {
		t.Fatalf("%d metrics", len(have))
	}
	name := regexp.MustCompile(`\bparley_[a-z_]+\b`)
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range name.FindAllString(string(b), -1) {
			if !have[n] && n != "parley_test_" && n != "parley_export" {
				t.Errorf("%s names %s, which there is not", page, n)
			}
		}
		if filepath.Base(page) != "operations.md" {
			continue
		}
		for n := range have {
			if !strings.Contains(string(b), "`"+n) {
				t.Errorf("%s does not tell of %s", page, n)
			}
		}
	}
}

// Profiles show more than figures: they are for this machine, wherever the
// listener is.
func TestProfilesAreForThisMachine(t *testing.T) {
	h := newMetrics("test").handler(func(context.Context) error { return nil })
	for _, c := range []struct {
		from, path string
		want       int
	}{
		{"127.0.0.1:9", "/debug/pprof/", 200}, {"[::1]:9", "/debug/pprof/cmdline", 200},
		{"192.0.2.1:9", "/debug/pprof/", 403}, {"192.0.2.1:9", "/debug/pprof/heap", 403}, {"[2001:db8::1]:9", "/debug/pprof/cmdline", 403},
		{"192.0.2.1:9", "/metrics", 200}, {"192.0.2.1:9", "/readyz", 200}, {"192.0.2.1:9", "/healthz", 200},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.RemoteAddr = c.from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s from %s: %d, want %d", c.path, c.from, w.Code, c.want)
		}
	}
}
