package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"slices"
	"time"

	"github.com/parley-im/parley/auth"
)

// exchange is what the room knows of one request. It travels in the context:
// huma's handlers receive nothing else.
type exchange struct {
	caller Caller
	addr   netip.Addr
	rpc    bool   // came by Call: caller is already known
	op     string // operation id, once one was found

	operator bool // the caller is an operator
}

type exchangeKey struct{}

// exchangeOf returns the exchange that ctx belongs to. There always is one:
// only ServeHTTP and Call lead to a handler.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// ServeHTTP is the front door. Outermost first: account of the request, headers,
// cross-origin rules, the limit per address, routing; huma's chain (chain.go)
// follows.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{addr: clientAddr(r, a.opt.TrustedProxies)}
	out := &answer{ResponseWriter: w}
	begun := a.opt.Now()
	defer func() {
		a.caught(recover(), x, out)
		a.log.Debug("http", "method", r.Method, "op", x.op, "status", out.status, "user", x.caller.User,
			"addr", x.addr, "took", a.opt.Now().Sub(begun))
	}()
	_ = http.NewResponseController(out).SetWriteDeadline(time.Now().Add(a.answerTimeout)) // a recorder has no connection
	a.setHeaders(out.Header())
	if a.crossOrigin(out, r) || a.foreign(out, r) {
		return
	}
	if a.limits != nil {
		if wait, ok := a.limits.address.take(auth.Network(x.addr), begun); !ok {
			tooMany(wait).write(out)
			return
		}
	}
	// One format is spoken, so there is nothing to negotiate.
	r.Header.Del("Accept")
	a.route(out, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
}

// route finds the operation, and answers in our own words where there is none.
func (a *API) route(w http.ResponseWriter, r *http.Request) {
	// The mux would redirect an unclean path to its clean form, to a place the
	// caller did not name.
	if r.URL.Path == "" || path.Clean(r.URL.Path) != r.URL.Path {
		newProblem(http.StatusNotFound, codeNoSuchPath, "there is nothing at this path").write(w)
		return
	}
	h, pattern := a.mux.Handler(r)
	if pattern != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	probe := &recorder{}
	h.ServeHTTP(probe, r)
	if allow := probe.Header().Get("Allow"); allow != "" {
		newProblem(http.StatusMethodNotAllowed, codeMethod, "this path does not take "+methodName(r.Method)+": see Allow").set("Allow", allow).write(w)
		return
	}
	newProblem(http.StatusNotFound, codeNoSuchPath, "there is nothing at this path").write(w)
}

// methodName keeps a caller's own inventions out of the answer.
func methodName(m string) string {
	if slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, m) {
		return m
	}
	return "this method"
}

// setHeaders writes what every answer carries: it is data, it is not to be
// sniffed, framed, run or kept.
func (a *API) setHeaders(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
}

// crossOrigin applies the rules for browsers [Fetch §3.2] and reports whether it
// has answered. Without Options.Origins nothing is allowed: no header is sent,
// and the browser keeps the answer from the page. Access is by bearer token and
// never by cookie, so Allow-Credentials is never sent.
func (a *API) crossOrigin(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	preflight := r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
	if !slices.Contains(a.opt.Origins, origin) && !slices.Contains(a.opt.Origins, "*") {
		if preflight {
			newProblem(http.StatusForbidden, codeOrigin, "pages of this origin may not use this server").write(w)
		}
		return preflight
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if !preflight {
		h.Set("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate")
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}

// foreign refuses what a page of another origin has sent to change something, and
// reports whether it did. Without a token there is little to change, and a token
// is sent by nobody's browser unasked; but a page can send some requests without a
// preflight, and then its visitors would register accounts.
func (a *API) foreign(w http.ResponseWriter, r *http.Request) bool {
	if slices.Contains(a.opt.Origins, "*") || a.origins.Check(r) == nil {
		return false
	}
	newProblem(http.StatusForbidden, codeOrigin, "pages of this origin may not use this server").write(w)
	return true
}

// caught turns a panic of a handler into a 500, unless an answer has begun.
func (a *API) caught(v any, x *exchange, out *answer) {
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	a.log.Error("handler panicked", "op", x.op, "panic", v, "stack", string(debug.Stack()))
	if out.status == 0 {
		newProblem(http.StatusInternalServerError, "internal", "internal error").write(out)
	}
}

// answer is the ResponseWriter given to handlers. It remembers the status, and
// hides write errors: a client that went away is no fault of a handler, and
// huma would panic.
type answer struct {
	http.ResponseWriter
	status int
}

func (w *answer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *answer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	_, _ = w.ResponseWriter.Write(p)
	return len(p), nil
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
