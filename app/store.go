package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore"
	"github.com/parley-im/parley/store/pebblestore"
)

// StoreDir is where the embedded store of a data directory is.
func StoreDir(dataDir string) string { return filepath.Join(dataDir, "store") }

// storeEvents is what the engines announce.
type storeEvents struct {
	committed func(entries, bytes int, took time.Duration)
	failed    func(error)
	announce  func() func()
	mongo     mongostore.Events // the rest of MongoDB's
}

// OpenStore opens the store that the configuration names, to look into it. A
// store that is not whole is refused.
func OpenStore(ctx context.Context, cfg *configs.Config, log *slog.Logger) (store.Store, error) {
	st, err := openStore(ctx, cfg, log, storeEvents{})
	if err != nil {
		return nil, err
	}
	return closeUnless(st, whole(ctx, st))
}

// HoldStore opens the store for a process that wants it for itself, to change it
// or to see it at rest: it takes the seat, and doing says for what. A server that
// runs, here or on another machine, is named in the error. partial lets a store
// pass that is not whole.
func HoldStore(ctx context.Context, cfg *configs.Config, log *slog.Logger, doing string, partial bool) (store.Store, error) {
	st, err := openStore(ctx, cfg, log, storeEvents{})
	if err != nil {
		return nil, err
	}
	err = st.TakeSeat(ctx, doing, nil)
	if err == nil && !partial {
		err = whole(ctx, st)
	}
	return closeUnless(st, err)
}

func closeUnless(st store.Store, err error) (store.Store, error) {
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// whole refuses a store that an import has filled in part.
func whole(ctx context.Context, st store.Store) error {
	why, err := st.Partial(ctx)
	if err != nil || why == "" {
		return err
	}
	return im.Refuse(im.Unsupported, "store_partial", "the store holds a part of an installation only: %s. Run parley import with the same file again to finish it, or start over with an empty store: drop the database, or remove the directory store in data_dir", why)
}

func openStore(ctx context.Context, cfg *configs.Config, log *slog.Logger, ev storeEvents) (store.Store, error) {
	if cfg.Store.Embedded() {
		st, err := pebblestore.Open(StoreDir(cfg.DataDir), pebblestore.Options{
			CacheBytes: int64(cfg.Store.Cache), MinFree: uint64(cfg.Store.MinFree), DedupeWindow: cfg.Store.Dedupe, Log: log,
			Events: pebblestore.Events{Committed: ev.committed, CommitFailed: ev.failed, Announce: ev.announce},
		})
		if err != nil {
			return nil, err
		}
		return st, nil
	}
	uri, err := storeURI(cfg)
	if err != nil {
		return nil, err
	}
	ev.mongo.Committed, ev.mongo.CommitFailed, ev.mongo.Announce = ev.committed, ev.failed, ev.announce
	st, err := mongostore.Open(ctx, uri, mongostore.Options{Timeout: cfg.Store.Timeout, Seat: cfg.Store.Seat, Log: log, Events: ev.mongo})
	if err != nil {
		return nil, err
	}
	return st, nil
}

// storeURI is the URI, from its file if it has one.
func storeURI(cfg *configs.Config) (string, error) {
	if cfg.Store.URIFile == "" {
		return cfg.Store.URI, nil
	}
	b, err := os.ReadFile(cfg.Store.URIFile)
	if err != nil {
		return "", fmt.Errorf("store.uri_file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Inspect looks at a MongoDB database without changing it.
func Inspect(ctx context.Context, cfg *configs.Config) (*mongostore.Report, error) {
	uri, err := storeURI(cfg)
	if err != nil {
		return nil, err
	}
	return mongostore.Inspect(ctx, uri, mongostore.Options{Timeout: cfg.Store.Timeout})
}

// retain forgets messages that are older than the configuration wants.
type retain struct {
	st   store.Log
	log  *slog.Logger
	now  func() time.Time
	keep map[im.ConvKind]time.Duration
}

// retainEvery is how often old messages are looked for.
const retainEvery = time.Hour

func (r *retain) run(ctx context.Context) {
	if len(r.keep) == 0 {
		return
	}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		if n, err := r.once(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("old messages not forgotten, will try again in an hour", "error", err)
		} else if n > 0 {
			r.log.Info("old messages forgotten", "conversations", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// once trims every conversation and returns how many had something to trim.
func (r *retain) once(ctx context.Context) (trimmed int, err error) {
	after := im.ConvID("")
	for {
		var page []im.ConvID // nothing is asked of the store while it walks
		err := r.st.EachConversation(ctx, after, func(c im.ConvID) bool {
			after = c
			if r.keep[c.Kind()] > 0 {
				page = append(page, c)
			}
			return len(page) < 1000
		})
		if err != nil || len(page) == 0 {
			return trimmed, err
		}
		for _, c := range page {
			upTo, err := r.old(ctx, c, r.now().Add(-r.keep[c.Kind()]).UnixMilli())
			if err != nil {
				return trimmed, err
			}
			if upTo == 0 {
				continue
			}
			if err := r.st.Trim(ctx, c, upTo); err != nil {
				return trimmed, err
			}
			trimmed++
		}
	}
}

// old is the last entry before cutoff, 0 if there is none. Times never decrease
// within a conversation: it is found by halving.
func (r *retain) old(ctx context.Context, conv im.ConvID, cutoff int64) (im.Seq, error) {
	first, err := r.st.Range(ctx, conv, 0, 1, 1)
	if err != nil || len(first) == 0 || first[0].TS >= cutoff {
		return 0, err
	}
	heads, err := r.st.Heads(ctx, []im.ConvID{conv})
	if err != nil {
		return 0, err
	}
	lo, hi := first[0].Seq, heads[0].Seq // lo is old
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		e, err := r.st.Entry(ctx, conv, mid)
		if err != nil {
			return 0, err
		}
		if e.TS < cutoff {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo, nil
}
