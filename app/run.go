package app

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/parley-im/parley/im"
)

// Ready is closed when the server accepts clients.
func (a *App) Ready() <-chan struct{} { return a.ready }

func (a *App) isReady(ctx context.Context) error {
	select {
	case <-a.ready:
	default:
		return im.Refuse(im.Unavailable, "starting", "the server is starting")
	}
	if a.ending.Load() {
		return im.Refuse(im.Unavailable, "stopping", "the server is stopping")
	}
	return a.store.Ping(ctx)
}

// drainTime is how long what was accepted may take to be committed, and clients to
// hear the end of a server that stops. Whatever waits for the store beyond it hears
// that the store is closed: together with that it stays below 10 s.
const drainTime = 6 * time.Second

// Run serves until ctx is done, then drains: what was accepted is committed and
// acknowledged, clients are told, the store is closed.
func (a *App) Run(ctx context.Context) error {
	rooms, stopRooms := context.WithCancel(context.Background())
	defer stopRooms()
	accept, stopAccept := context.WithCancel(ctx)
	defer stopAccept()
	var living, listening sync.WaitGroup
	failed := make(chan error, len(a.listeners)+len(a.pending))

	living.Go(func() { _ = a.delivery.Run(rooms) })
	living.Go(func() { _ = a.gate.Run(rooms) })
	living.Go(func() { a.retention().run(rooms) })
	if a.rings() {
		living.Go(func() { a.push.Run(rooms) })
		living.Go(func() { a.keys.reload(rooms, a.log, a.push.Reloaded) })
	}
	for _, l := range a.listeners {
		listening.Go(func() {
			if err := l.Serve(accept, a.broker.Handle); err != nil {
				failed <- err
			}
		})
	}
	for _, serve := range a.pending {
		listening.Go(func() {
			if err := serve(); err != nil {
				failed <- err
			}
		})
	}
	if err := a.admin.publish(); err != nil {
		a.log.Warn("the commands of an operator will not find this server", "error", err)
	}
	close(a.ready)

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		a.log.Error("a listener failed", "error", err)
	case err = <-a.lost:
		// What is in memory here may be untrue by now, and nothing can be committed:
		// clients are sent away, to find the other server.
	}
	a.log.Info("stopping")
	a.ending.Store(true)
	stopAccept()
	a.admin.withdraw()
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	a.broker.Shutdown(drain)
	for _, srv := range a.servers {
		if e := srv.Shutdown(drain); e != nil {
			_ = srv.Close()
		}
	}
	overdue := context.AfterFunc(drain, func() { _ = a.closeStore() })
	listening.Wait()
	stopRooms()
	living.Wait()
	overdue()
	return errors.Join(err, a.cleanup())
}
