package app

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
)

// pushKey is a credential of an app, in one source or several that go together:
// files, or environment variables, written env:NAME. It is loaded again when what
// is in them changes.
type pushKey struct {
	app  string
	from []string // "": nothing is there
	load func(contents [][]byte) error
	seen [sha256.Size]byte // of what was read last
}

func newPushKey(app string, from ...string) *pushKey { return &pushKey{app: app, from: from} }

// read returns what is in the sources, and remembers it.
func (k *pushKey) read() ([][]byte, error) {
	contents := make([][]byte, len(k.from))
	all := sha256.New()
	for i, from := range k.from {
		b, err := readSecret(from)
		if err != nil {
			return nil, err
		}
		contents[i] = b
		fmt.Fprintf(all, "%d\n%s", len(b), b)
	}
	all.Sum(k.seen[:0])
	return contents, nil
}

func readSecret(from string) ([]byte, error) {
	if from == "" {
		return nil, nil
	}
	name, env := strings.CutPrefix(from, "env:")
	if !env {
		return os.ReadFile(from)
	}
	v, ok := os.LookupEnv(name)
	if !ok {
		return nil, fmt.Errorf("there is no environment variable %s", name)
	}
	return []byte(v), nil
}

// changed loads the key again if it is not what it was, and reports whether.
func (k *pushKey) changed() (bool, error) {
	was := k.seen
	contents, err := k.read()
	if err != nil || k.seen == was {
		return false, nil // a file that is away is about to be replaced
	}
	return true, k.load(contents)
}

// reloadEvery is how often keys are looked at.
const reloadEvery = 10 * time.Second

type pushKeys []*pushKey

// reload loads keys again when they change, until ctx is done, and tells whose.
func (ks pushKeys) reload(ctx context.Context, log *slog.Logger, told func(app string)) {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, k := range ks {
			changed, err := k.changed()
			switch {
			case err != nil:
				log.Error("the new push key does not load; the old one stays in use", "app", k.app, "error", err)
			case changed:
				told(k.app)
				log.Info("push key read again", "app", k.app)
			}
		}
	}
}
