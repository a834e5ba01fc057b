package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
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
		k := newKeyFile("ios", path)
		k.load = func(b []byte) error { loaded = append(loaded, string(b)); return nil }
		write("new", first.Add(time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		go keyFiles{k}.reload(ctx, slog.New(slog.DiscardHandler), func(app string) { told = append(told, app) })
		time.Sleep(3*reloadEvery + time.Second)
		cancel()
		synctest.Wait()
		if !slices.Equal(loaded, []string{"new"}) || !slices.Equal(told, []string{"ios"}) {
			t.Errorf("loaded %q, told %q", loaded, told)
		}
	})
}
