package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/httpapi"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/store"
)

// PushWorker rings phones for a server on the same MongoDB, as a process of its
// own. Make it with NewPushWorker, then Run it once.
type PushWorker struct {
	log      *slog.Logger
	store    store.Store
	worker   *pushgw.Worker
	keys     pushKeys
	operator *http.Server
	listener net.Listener
	addr     string
}

// CheckPushWorker says what keeps a push worker from being of use with this
// configuration.
func CheckPushWorker(cfg *configs.Config) error {
	switch {
	case cfg.Store.Embedded():
		return im.Refuse(im.Unsupported, "push_embedded", "parley push needs a store that processes share: the embedded one in %s belongs to parley serve, which rings phones by itself. "+
			"To ring from processes of their own, keep everything in MongoDB: set store.uri (docs/mongodb.md) and push.run: workers, here and for parley serve", cfg.DataDir)
	case cfg.Push.Run != configs.PushWorkers:
		return im.Refuse(im.Unsupported, "push_run", "push.run is %s: there is nothing for parley push to do. Set push.run: workers, here and for parley serve, and restart that", cfg.Push.Run)
	case len(cfg.Push.Apps) == 0:
		return im.Refuse(im.Unsupported, "push_apps", "push.apps names no app: give parley push the configuration of parley serve")
	}
	return nil
}

// NewPushWorker opens the store, without its seat, and the operator's listener.
func NewPushWorker(ctx context.Context, o Options) (_ *PushWorker, err error) {
	cfg := o.Config
	if err := CheckPushWorker(cfg); err != nil {
		return nil, err
	}
	w := &PushWorker{log: o.Log}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	apps, keys, err := pushApps(cfg.Push)
	if err != nil {
		return nil, err
	}
	w.keys = keys
	m := newProcessMetrics(o.Version)
	if w.store, err = openStore(ctx, cfg, w.log, storeEvents{mongo: m.mongo(false)}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.store.Close())
		}
	}()
	if err := whole(ctx, w.store); err != nil {
		return nil, err
	}
	unread := chat.New(chat.Options{Store: w.store, Log: w.log}).Unread // it looks into the store alone
	w.worker = pushgw.NewWorker(pushgw.WorkerOptions{
		Store: w.store, Names: names{w.store, unread}, Apps: apps, Log: w.log,
		Privacy: cfg.Push.Privacy, SealedTypes: cfg.Push.SealedTypes, Lease: cfg.Push.Lease, Events: m.push(),
	})
	m.held(w.worker.Held)
	if cfg.Push.WorkerAddr == "off" {
		return w, nil
	}
	if w.listener, err = net.Listen("tcp", cfg.Push.WorkerAddr); err != nil {
		return nil, fmt.Errorf("push.worker_addr: listen on %s: %w: several workers on one machine need an address each", cfg.Push.WorkerAddr, err)
	}
	w.addr = w.listener.Addr().String()
	w.operator = httpapi.NewServer(w.addr, m.handler(w.store.Ping), w.log)
	return w, nil
}

// Addr is where /metrics, /healthz and /readyz are; "" where they are off.
func (w *PushWorker) Addr() string { return w.addr }

// Run rings until ctx is done, ends what is under way, and closes the store.
func (w *PushWorker) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var living sync.WaitGroup
	var failed error
	living.Go(func() { w.keys.reload(ctx, w.log, w.worker.Reloaded) })
	if w.operator != nil {
		living.Go(func() {
			if err := w.operator.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
				failed = err
				stop()
			}
		})
	}
	w.worker.Run(ctx)
	stop()
	if w.operator != nil {
		drain, cancel := context.WithTimeout(context.Background(), time.Second)
		if err := w.operator.Shutdown(drain); err != nil {
			_ = w.operator.Close()
		}
		cancel()
	}
	living.Wait()
	return errors.Join(failed, w.store.Close())
}
