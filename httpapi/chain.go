package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/im"
)

// answerTimeout is how long one operation may take to write its answer.
const answerTimeout = 30 * time.Second

// admit stands before every operation, on both roads: who is it, may they call
// this at all, not too often, and with a body that can be one.
func (a *API) admit(ctx huma.Context, next func(huma.Context)) {
	x := exchangeOf(ctx.Context())
	op := ctx.Operation().Metadata[metaKey].(*operation)
	x.op = op.id
	r, w := humago.Unwrap(ctx)
	for _, step := range []func(*exchange, *operation, http.ResponseWriter, *http.Request) error{
		a.authenticate, a.authorise, a.throttle, a.checkQuery, a.readBody,
	} {
		if err := step(x, op, w, r); err != nil {
			a.refused(op.id, err).write(w)
			return
		}
	}
	next(ctx)
}

// authenticate finds out who asks. An RPC brings its caller along.
func (a *API) authenticate(x *exchange, op *operation, _ http.ResponseWriter, r *http.Request) error {
	if op.public || x.rpc {
		return nil
	}
	token, ok := bearer(r.Header)
	if !ok {
		return newProblem(http.StatusUnauthorized, codeBadAuth, "send an access token as Authorization: Bearer …")
	}
	// An operator is nobody in particular: there is no account that the other
	// operations could be about.
	if op.admin && a.opt.Operator != nil && a.opt.Operator(r, token) {
		x.caller, x.operator = Caller{User: "admin", Role: "admin"}, true
		return nil
	}
	id, err := a.opt.Auth.CheckToken(r.Context(), token)
	if err != nil {
		p := a.refused(op.id, err)
		if p.Status == http.StatusUnauthorized {
			p.set("WWW-Authenticate", `Bearer error="invalid_token"`) // [RFC 6750 §3.1]
		}
		return p
	}
	x.caller = Caller{User: id.User, Role: id.Role, Device: id.Device, Identity: id}
	return nil
}

// bearer returns the token of an Authorization header [RFC 6750 §2.1]. Two such
// headers are none: a proxy and we might each believe another one.
func bearer(h http.Header) (string, bool) {
	vs := h.Values("Authorization")
	if len(vs) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(vs[0], " ")
	token = strings.TrimSpace(token)
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}

func (a *API) authorise(x *exchange, op *operation, _ http.ResponseWriter, _ *http.Request) error {
	if op.admin && x.caller.Role != "admin" {
		return im.Refuse(im.Forbidden, codeAdminOnly, "only an administrator may do this")
	}
	if op.operator && !x.operator {
		return im.Refuse(im.Forbidden, codeOperatorOnly, "only a command on the server's machine may do this")
	}
	return nil
}

func (a *API) throttle(x *exchange, op *operation, _ http.ResponseWriter, _ *http.Request) error {
	if a.limits == nil {
		return nil
	}
	now := a.opt.Now()
	if !op.public || x.rpc {
		if wait, ok := a.limits.user.take(string(x.caller.User), now); !ok {
			return tooMany(wait)
		}
	}
	if op.id == opRegister {
		if wait, ok := a.limits.register.take(auth.Network(x.addr), now); !ok {
			return tooMany(wait)
		}
	}
	return nil
}

// checkQuery refuses a query that two readers could understand differently: one
// that is malformed, or names a parameter twice.
func (a *API) checkQuery(_ *exchange, _ *operation, _ http.ResponseWriter, r *http.Request) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return newProblem(http.StatusUnprocessableEntity, codeInvalid, "the query cannot be read")
	}
	for name, values := range q {
		if len(values) > 1 {
			return newProblem(http.StatusUnprocessableEntity, codeInvalid, fmt.Sprintf("query.%.40s: given more than once", name))
		}
	}
	return nil
}

// readBody reads the body to its end, within a limit of size and time, and
// leaves huma a body that cannot fail.
func (a *API) readBody(x *exchange, op *operation, w http.ResponseWriter, r *http.Request) error {
	if x.rpc {
		return nil // built by request, which checked it
	}
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(a.opt.BodyTimeout)) // a recorder has no connection
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(a.opt.MaxBody)))
	if err != nil {
		return a.unreadable(err)
	}
	// net/http watches the connection while the handler runs: a deadline left
	// standing would look to it like a client that went away.
	_ = conn.SetReadDeadline(time.Time{})
	if op.slow {
		_ = conn.SetWriteDeadline(time.Time{})
	}
	if err := checkBody(op, r.Header, body); err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

func (a *API) unreadable(err error) error {
	var tooLarge *http.MaxBytesError
	var timeout net.Error
	switch {
	case errors.As(err, &tooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, codeTooLarge, fmt.Sprintf("a body may have %d bytes", a.opt.MaxBody))
	case errors.As(err, &timeout) && timeout.Timeout():
		return newProblem(http.StatusRequestTimeout, codeSlowBody, "the body did not arrive in time")
	}
	return newProblem(http.StatusBadRequest, codeBadBody, "the body could not be read to its end")
}

// checkBody refuses what is not a JSON object, or is one where none is taken.
func checkBody(op *operation, h http.Header, body []byte) error {
	takes := op.huma.RequestBody
	if len(body) == 0 {
		if takes != nil && takes.Required {
			return newProblem(http.StatusUnprocessableEntity, codeInvalid, "this operation needs a body")
		}
		return nil
	}
	if takes == nil {
		if s := strings.TrimSpace(string(body)); s == "{}" || s == "null" {
			return nil // some clients always send one
		}
		return newProblem(http.StatusUnprocessableEntity, codeInvalid, "this operation takes no body")
	}
	if !jsonType(h.Get("Content-Type")) {
		return newProblem(http.StatusUnsupportedMediaType, codeContentType, "send the body as application/json")
	}
	if err := checkJSON(body); err != nil {
		return newProblem(http.StatusBadRequest, codeBadJSON, "body: "+err.Error())
	}
	return nil
}

// jsonType accepts application/json in UTF-8, and a body without a type. A page
// of another origin can send text/plain or a form without asking first, so these
// are refused. [RFC 8259 §8.1]
func jsonType(v string) bool {
	if v == "" {
		return true
	}
	t, params, err := mime.ParseMediaType(v)
	if err != nil || t != "application/json" {
		return false
	}
	charset, set := params["charset"]
	return !set || strings.EqualFold(charset, "utf-8")
}
