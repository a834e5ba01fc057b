package app

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/store/mongostore"
)

// metrics is what /metrics shows. Rooms announce through callbacks; nothing here
// is read by a room.
type metrics struct {
	reg *prometheus.Registry

	accepted   *prometheus.CounterVec
	refused    *prometheus.CounterVec
	logins     *prometheus.CounterVec
	rejected   *prometheus.CounterVec
	closed     *prometheus.CounterVec
	dropped    *prometheus.CounterVec
	returned   *prometheus.CounterVec
	bytesIn    prometheus.Counter
	bytesOut   prometheus.Counter
	packetsIn  prometheus.Counter
	panics     prometheus.Counter
	behind     prometheus.Gauge
	commits    prometheus.Histogram
	batch      prometheus.Histogram
	commitFail prometheus.Counter
}

// newProcessMetrics is what every process shows.
func newProcessMetrics(version string) *metrics {
	m := &metrics{reg: prometheus.NewRegistry()}
	m.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "parley", Name: "build_info", Help: "The version.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	m.reg.MustRegister(info)
	return m
}

func newMetrics(version string) *metrics {
	m := newProcessMetrics(version)
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "parley", Name: name, Help: help}, []string{label})
		m.reg.MustRegister(c)
		return c
	}
	one := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "parley", Name: name, Help: help})
		m.reg.MustRegister(c)
		return c
	}
	m.accepted = vec("messages_accepted_total", "Publishes acknowledged after their commit, by kind.", "kind")
	m.refused = vec("publishes_refused_total", "Publishes refused, by reason.", "reason")
	m.logins = vec("connects_refused_total", "CONNECTs refused, by reason.", "reason")
	m.rejected = vec("connections_rejected_total", "Connections closed before they had a session, by reason.", "reason")
	m.closed = vec("connections_closed_total", "Connections ended by the server, by reason.", "reason")
	m.dropped = vec("queue_dropped_total", "What a full volatile queue dropped, by queue.", "queue")
	m.returned = vec("devices_returned_total", "Known devices that connected, by whether it was remembered what happened while they were away.", "remembered")
	m.bytesIn = one("received_bytes_total", "Bytes read from clients.")
	m.bytesOut = one("sent_bytes_total", "Bytes written to clients.")
	m.packetsIn = one("packets_received_total", "MQTT packets read from clients.")
	m.panics = one("panics_total", "Connections closed because handling them panicked.")
	m.commitFail = one("commit_failures_total", "Commits that failed: nothing of them was acknowledged.")
	m.behind = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "parley", Name: "lines_behind", Help: "Connected devices that read from the log now."})
	m.commits = prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "parley", Name: "commit_duration_seconds", Help: "From the start of a batch to the end of its sync.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15)})
	m.batch = prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "parley", Name: "commit_batch_entries", Help: "Entries per commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 12)})
	m.reg.MustRegister(m.behind, m.commits, m.batch)
	return m
}

// gauge shows a number that is asked for when somebody looks.
func (m *metrics) gauge(name, help string, fn func() float64) {
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "parley", Name: name, Help: help}, fn))
}

func (m *metrics) counter(name, help string, fn func() float64) {
	m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "parley", Name: name, Help: help}, fn))
}

func (m *metrics) committed(entries, _ int, took time.Duration) {
	m.commits.Observe(took.Seconds())
	m.batch.Observe(float64(entries))
}

// mongo counts what the MongoDB engine announces; nothing is shown of it if
// another engine is used.
func (m *metrics) mongo(off bool) mongostore.Events {
	if off {
		return mongostore.Events{}
	}
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "parley", Subsystem: "mongodb", Name: "command_duration_seconds", Help: "Round trips to MongoDB, by command.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"command"})
	failed := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "parley", Subsystem: "mongodb", Name: "command_failures_total", Help: "Commands that failed or were not answered, by command."}, []string{"command"})
	conflicts := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "parley", Subsystem: "mongodb", Name: "seq_conflicts_total", Help: "Inserts that found their seq taken by another process, by kind of conversation."}, []string{"kind"})
	seat := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "parley", Subsystem: "mongodb", Name: "seat", Help: "1 while this server has the seat on the database for certain; without it nothing is acknowledged."})
	retries := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "parley", Subsystem: "mongodb", Name: "retries_total", Help: "Uncertain or refused operations that were tried again."})
	conns := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "parley", Subsystem: "mongodb", Name: "connections", Help: "Connections of the pool, by state."}, []string{"state"})
	m.reg.MustRegister(took, failed, conflicts, retries, conns)
	show := sync.OnceFunc(func() { m.reg.MustRegister(seat) }) // a push worker takes none
	open, used := conns.WithLabelValues("open"), conns.WithLabelValues("in_use")
	return mongostore.Events{
		Command: func(name string, d time.Duration, bad bool) {
			took.WithLabelValues(name).Observe(d.Seconds())
			if bad {
				failed.WithLabelValues(name).Inc()
			}
		},
		Pool:     func(o, u int) { open.Set(float64(o)); used.Set(float64(u)) },
		Conflict: func(conv im.ConvID) { conflicts.WithLabelValues(kindOf(conv)).Inc() },
		Seat: func(held bool) {
			show()
			if held {
				seat.Set(1)
			} else {
				seat.Set(0)
			}
		},
		Retried: retries.Inc,
	}
}

// kindOf names the kind of a conversation; each conversation by itself would be a
// series too many.
func kindOf(conv im.ConvID) string {
	switch conv.Kind() {
	case im.KindDM:
		return "dm"
	case im.KindGroup:
		return "group"
	case im.KindAccount:
		return "account"
	}
	return "queue"
}

// push counts what the push gateway announces.
func (m *metrics) push() pushgw.Events {
	decided := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "parley", Subsystem: "push", Name: "decisions_total", Help: "Decisions about devices, by step of the pipeline and reason."}, []string{"step", "reason"})
	sent := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "parley", Subsystem: "push", Name: "attempt_duration_seconds", Help: "Attempts to deliver, by provider, app and what the provider said.",
		Buckets: prometheus.ExponentialBuckets(0.005, 2, 12)}, []string{"provider", "app", "result"})
	rung := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "parley", Subsystem: "push", Name: "delay_seconds", Help: "From the commit of the message until the provider had the push, grace included.",
		Buckets: prometheus.ExponentialBuckets(0.01, 2, 16)}, []string{"provider", "app"})
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "parley", Subsystem: "push", Name: "circuit_open", Help: "1 while the app's credentials are refused."}, []string{"provider", "app"})
	m.reg.MustRegister(decided, sent, rung, open)
	return pushgw.Events{
		Decided: func(step, reason string) { decided.WithLabelValues(step, reason).Inc() },
		Sent: func(provider, app, result string, took time.Duration) {
			sent.WithLabelValues(provider, app, result).Observe(took.Seconds())
		},
		Rung: func(provider, app string, since time.Duration) {
			rung.WithLabelValues(provider, app).Observe(since.Seconds())
		},
		Circuit: func(provider, app string, isOpen bool) {
			v := 0.0
			if isOpen {
				v = 1
			}
			open.WithLabelValues(provider, app).Set(v)
		},
	}
}

// held is the one metric that only a push worker has.
func (m *metrics) held(fn func() int) {
	m.gauge("push_held", "Bells that this push worker has leased.", func() float64 { return float64(fn()) })
}

// handler serves the operator's listener.
func (m *metrics) handler(ready func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"ok"}` + "\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := map[string]string{"status": "ready"}
		if err := ready(r.Context()); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			answer = map[string]string{"status": "not ready", "reason": im.ReasonOf(err)}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	for path, fn := range map[string]http.HandlerFunc{"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace} {
		mux.HandleFunc("/debug/pprof/"+path, fromHere(fn))
	}
	return mux
}

// fromHere lets only this machine in: profiles show the command line and what the
// process does, and take their time of it.
func fromHere(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !peer.Addr().Unmap().IsLoopback() {
			http.Error(w, "profiles are for this machine: ask from there", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// counters resolves the labels once: this is on the path of every message.
func counters(v *prometheus.CounterVec, labels ...string) func(string) {
	m := make(map[string]prometheus.Counter, len(labels))
	for _, l := range labels {
		m[l] = v.WithLabelValues(l)
	}
	return func(l string) {
		if c := m[l]; c != nil {
			c.Inc()
		} else {
			v.WithLabelValues(l).Inc()
		}
	}
}
