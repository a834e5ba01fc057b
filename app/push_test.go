package app

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/pushtest"
	"github.com/parley-im/parley/pushgw/webpush"
)

// A key that is replaced after it was read and before anybody looks for changes.
func TestAKeyThatChangesWhileTheServerStarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	write := func(text string, at time.Time) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		write("old", first)
		var loaded, told []string
		k := newPushKey("ios", path)
		k.load = func(b [][]byte) error { loaded = append(loaded, string(b[0])); return nil }
		if _, err := k.read(); err != nil { // the server reads it
			t.Fatal(err)
		}
		write("new", first.Add(time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		go pushKeys{k}.reload(ctx, slog.New(slog.DiscardHandler), func(app string) { told = append(told, app) })
		time.Sleep(3*reloadEvery + time.Second)
		cancel()
		synctest.Wait()
		if !slices.Equal(loaded, []string{"new"}) || !slices.Equal(told, []string{"ios"}) {
			t.Errorf("loaded %q, told %q", loaded, told)
		}
	})
}

// TestKeysAreReplaced replaces the files of every kind of credential while the
// senders are in use: wrong ones by the right ones, with rubbish in between.
func TestKeysAreReplaced(t *testing.T) {
	sim, err := pushtest.Start(pushtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	other, err := pushtest.Start(pushtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	dir := t.TempDir()
	if err := sim.Save(dir); err != nil {
		t.Fatal(err)
	}
	const bundle = "com.example.chat"
	team, id, right := sim.APNsKey()
	_, _, wrong := other.APNsKey()
	certificate := func(app string) []byte {
		pem, err := sim.APNsCertificate(app)
		if err != nil {
			t.Fatal(err)
		}
		return pem
	}
	vapid1, _, err := webpush.GenerateVAPIDKeys()
	if err != nil {
		t.Fatal(err)
	}
	vapid2, site, err := webpush.GenerateVAPIDKeys()
	if err != nil {
		t.Fatal(err)
	}
	sub, err := sim.Subscribe(site)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, content []byte) { // as a careful operator does
		if err := os.WriteFile(file("new"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file("new"), file(name)); err != nil {
			t.Fatal(err)
		}
	}
	local := configs.PushApp{Endpoint: sim.URLs.APNs, Sandbox: sim.URLs.Sandbox, CA: file("ca.pem"), Bundle: bundle, Provider: pushgw.APNs}
	for _, c := range []struct {
		name         string
		wrong, right []byte
		app          func(from string) configs.PushApp
		token        string
	}{
		{"a key", wrong, right, func(from string) configs.PushApp {
			a := local
			a.Team, a.KeyID, a.Key = team, id, from
			return a
		}, strings.Repeat("0a", 32)},
		{"a certificate", certificate("com.example.other"), certificate(bundle), func(from string) configs.PushApp {
			a := local
			a.Certificate = from
			return a
		}, strings.Repeat("0b", 32)},
		{"a service account", swapKey(t, sim.ServiceAccount(), other.ServiceAccount()), sim.ServiceAccount(), func(from string) configs.PushApp {
			return configs.PushApp{Provider: pushgw.FCM, ServiceAccount: from, Endpoint: sim.URLs.FCM, CA: file("ca.pem")}
		}, "device-token"},
		{"a VAPID key", []byte(vapid1 + "\n"), []byte(vapid2 + "\n"), func(from string) configs.PushApp {
			return configs.PushApp{Provider: pushgw.WebPush, Key: from, Subject: "ops@example.com", Hosts: "127.0.0.1:" + sim.URLs.WebPush[strings.LastIndexByte(sim.URLs.WebPush, ':')+1:],
				AllowPrivate: true, CA: file("ca.pem")}
		}, sub},
	} {
		t.Run(c.name, func(t *testing.T) {
			put("secret", c.wrong)
			app := c.app(file("secret"))
			app.Name = "app"
			apps, keys, err := pushApps(configs.Push{Apps: []configs.PushApp{app}})
			if err != nil {
				t.Fatal(err)
			}
			s := apps[0].Sender
			t.Cleanup(func() { _ = s.Close() })
			before := sim.Accepted()
			send := func() pushgw.Result {
				return s.Send(t.Context(), &pushgw.Push{ID: "8f1e6a52-3d0c-4c57-9f39-0c6a2d7b1e01", Title: "bob", Body: "lunch?", Expires: time.Now().Add(time.Hour),
					To: pushgw.Address{Provider: app.Provider, Token: c.token, Environment: map[bool]string{true: "production"}[app.Provider == pushgw.APNs]}})
			}
			const often = 8 // more than connections, which are used in turn
			for range often {
				if r := send(); r.Outcome == pushgw.Sent {
					t.Fatalf("the wrong one is taken: %+v", r)
				}
			}
			if changed, err := keys[0].changed(); changed || err != nil {
				t.Error("it has not changed:", changed, err)
			}
			if err := os.Remove(file("secret")); err != nil {
				t.Fatal(err)
			}
			if changed, err := keys[0].changed(); changed || err != nil {
				t.Error("it is away:", changed, err)
			}
			put("secret", []byte("half a "))
			if _, err := keys[0].changed(); err == nil || strings.Contains(err.Error(), "half a") {
				t.Error("rubbish:", err)
			}
			put("secret", c.right)
			if changed, err := keys[0].changed(); !changed || err != nil {
				t.Fatal("the right one:", changed, err)
			}
			for range often {
				if r := send(); r.Outcome != pushgw.Sent {
					t.Errorf("with the right one: %+v", r)
				}
			}
			if n := sim.Accepted() - before; n != often {
				t.Errorf("%d of %d pushes arrived", n, often)
			}
			t.Setenv("PARLEY_TEST_SECRET", string(c.right))
			app = c.app("env:PARLEY_TEST_SECRET")
			apps, _, err = pushApps(configs.Push{Apps: []configs.PushApp{app}})
			if err != nil {
				t.Fatal(err)
			}
			s = apps[0].Sender
			t.Cleanup(func() { _ = apps[0].Sender.Close() })
			if r := send(); r.Outcome != pushgw.Sent {
				t.Errorf("from the environment: %+v", r)
			}
			if _, _, err := pushApps(configs.Push{Apps: []configs.PushApp{c.app("env:PARLEY_TEST_NOTHING")}}); err == nil || !strings.Contains(err.Error(), "PARLEY_TEST_NOTHING") {
				t.Error("a variable that is not there:", err)
			}
		})
	}
}

// swapKey is the account a with the private key of b.
func swapKey(t *testing.T, a, b []byte) []byte {
	var x, y map[string]any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	x["private_key"] = y["private_key"]
	out, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
