package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/httpapi"
)

// listen opens every listener, so that an address in use is known before
// anything runs.
func (a *App) listen(context.Context) error {
	cfg := a.cfg
	a.limits = broker.NewLimits(cfg.MQTT.MaxConnections, cfg.MQTT.MaxPerIP)
	proxies, err := configs.Prefixes(cfg.MQTT.ProxyProtocol)
	if err != nil {
		return err
	}
	open := func(key, addr string, tc *tls.Config) (string, error) {
		if addr == "off" {
			return "", nil
		}
		l, err := broker.Listen(broker.ListenOptions{Addr: addr, TLS: tc, Proxies: proxies, Limits: a.limits, HandshakeTimeout: cfg.MQTT.ConnectTimeout, Log: a.log,
			Refused: func(r string) { a.metrics.rejected.WithLabelValues(r).Inc() }})
		if err != nil {
			return "", fmt.Errorf("%s: %w", key, err)
		}
		a.listeners = append(a.listeners, l)
		a.onCleanup(func() error { _ = l.Close(); return nil })
		return l.Addr().String(), nil
	}
	if a.addrs.MQTT, err = open("mqtt.addr", cfg.MQTT.Addr, nil); err != nil {
		return err
	}
	if cfg.MQTT.TLS.Addr != "off" {
		cert, err := broker.LoadCertificate(cfg.MQTT.TLS.Cert, cfg.MQTT.TLS.Key, a.log)
		if err != nil {
			return err
		}
		if a.addrs.MQTTS, err = open("mqtt.tls.addr", cfg.MQTT.TLS.Addr, cert.Config()); err != nil {
			return err
		}
	}
	for _, listen := range []func() error{a.listenHTTP, a.listenMetrics, a.listenAdmin} {
		if err := listen(); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) listenHTTP() error {
	cfg := a.cfg
	if cfg.HTTP.Addr == "off" {
		return nil
	}
	api := a.api.Handler()
	mqtt := broker.WebSocket(broker.WSOptions{Origins: cfg.HTTP.Origins, Limits: a.limits, MaxPacket: int(cfg.Limits.Message) + 128<<10, Log: a.log,
		ClientIP: a.api.ClientIP, Refused: func(r string) { a.metrics.rejected.WithLabelValues(r).Inc() }}, a.broker.Handle)
	// No mux: it would redirect an unclean path to its clean form.
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/mqtt" {
			mqtt.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
	nl, err := net.Listen("tcp", cfg.HTTP.Addr)
	if err != nil {
		return fmt.Errorf("http.addr: listen on %s: %w", cfg.HTTP.Addr, err)
	}
	a.addrs.HTTP = nl.Addr().String()
	if cfg.HTTP.Cert != "" {
		cert, err := broker.LoadCertificate(cfg.HTTP.Cert, cfg.HTTP.Key, a.log)
		if err != nil {
			_ = nl.Close()
			return err
		}
		nl = tls.NewListener(nl, cert.Config())
	}
	srv := httpapi.NewServer(cfg.HTTP.Addr, h, a.log)
	srv.ConnState = bounded(int64(cfg.HTTP.MaxConnections), func() { a.metrics.rejected.WithLabelValues("max_connections").Inc() })
	a.serveHTTP(srv, nl)
	return nil
}

// bounded closes connections above a number: they cost descriptors, which the
// store needs too. One that became a WebSocket is MQTT's, and counted there.
func bounded(most int64, rejected func()) func(net.Conn, http.ConnState) {
	var open atomic.Int64
	return func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > most {
				rejected()
				_ = c.Close() // StateClosed follows
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
}

func (a *App) listenMetrics() error {
	addr := a.cfg.Metrics.Addr
	if addr == "off" {
		return nil
	}
	nl, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("metrics.addr: listen on %s: %w", addr, err)
	}
	a.addrs.Metrics = nl.Addr().String()
	a.serveHTTP(httpapi.NewServer(addr, a.metrics.handler(a.isReady), a.log), nl)
	return nil
}

// serveHTTP keeps the listener for Run.
func (a *App) serveHTTP(srv *http.Server, nl net.Listener) {
	srv.Addr = nl.Addr().String()
	a.servers = append(a.servers, srv)
	a.onCleanup(func() error { _ = nl.Close(); return nil })
	a.pending = append(a.pending, func() error {
		err := srv.Serve(nl)
		if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
}

// Addrs returns the addresses listened on.
func (a *App) Addrs() Addrs { return a.addrs }
