package httpapi

import (
	"context"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/im"
)

// metaKey is where an operation finds its own row in huma's.
const metaKey = "parley"

// operation is one row of the API: what a reader of the document is told, who
// may call it and by which road.
type operation struct {
	id, method, path string
	tag              string
	summary          string
	detail           string // CommonMark
	status           int    // of success; default 200, or 204 without a body
	refusals         map[int]string

	public   bool // needs no token
	admin    bool // role admin only
	operator bool // and of these only the commands on the server's machine
	slow     bool // takes as long as it takes

	aliases []string // further names over RPC

	huma    *huma.Operation // set by rack
	handler func(huma.Context)
}

// define writes one operation into the book. fn gets the caller (the zero Caller
// for a public operation) and the validated input; its error's Kind becomes the
// status.
func define[I, O any](a *API, book huma.API, o operation, fn func(context.Context, Caller, *I) (*O, error)) {
	op := huma.Operation{
		OperationID: o.id, Method: o.method, Path: o.path, Tags: []string{o.tag},
		Summary: o.summary, Description: o.describe(), DefaultStatus: o.status,
		MaxBodyBytes: int64(a.opt.MaxBody) + 1, // huma refuses a body that fills its limit
		Metadata:     map[string]any{metaKey: &o},
		Responses:    refusals(book.OpenAPI().Components.Schemas, o, takesBody[I]()),
	}
	if len(o.aliases) > 0 {
		op.Extensions = map[string]any{"x-rpc-aliases": o.aliases}
	}
	if !o.public {
		op.Security = []map[string][]string{{"bearer": {}}}
	}
	huma.Register(book, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := fn(ctx, exchangeOf(ctx).caller, in)
		if err != nil {
			return nil, a.refused(o.id, err)
		}
		return out, nil
	})
}

// refused translates an error for the caller, and tells the log what the caller
// is not told.
func (a *API) refused(op string, err error) *problem {
	p := problemOf(err)
	switch {
	case error(p) == err: // already said in full
	case p.kind == im.Internal:
		a.log.Error("operation failed", "op", op, "err", err)
	case p.kind == im.Unavailable:
		a.log.Warn("operation could not be done now", "op", op, "err", err)
	}
	return p
}

func (o *operation) describe() string {
	s := o.detail
	if s != "" {
		s += "\n\n"
	}
	s += "RPC: publish the parameters as one JSON object to `rpc/" + o.id + "/{rid}`."
	switch {
	case o.operator:
		s += " For the commands on the server's machine only."
	case o.admin:
		s += " Role `admin` only."
	}
	return s
}

func takesBody[I any]() bool {
	_, takes := reflect.TypeFor[I]().FieldByName("Body")
	return takes
}

// refusals describes the answers an operation refuses with. All share one shape.
func refusals(reg huma.Registry, o operation, body bool) map[string]*huma.Response {
	schema := reg.Schema(reflect.TypeFor[problem](), true, "Problem")
	rs := map[string]*huma.Response{}
	add := func(status int, why string) {
		rs[strconv.Itoa(status)] = &huma.Response{Description: why, Content: map[string]*huma.MediaType{problemType: {Schema: schema}}}
	}
	if o.admin {
		add(http.StatusForbidden, "`admin_only`: the caller is no administrator.")
	}
	if body {
		add(http.StatusBadRequest, "`json_invalid`: the body is no JSON document, or names a field twice.")
		add(http.StatusRequestTimeout, "`body_timeout`: the body did not arrive in time.")
		add(http.StatusRequestEntityTooLarge, "`body_too_large`.")
		add(http.StatusUnsupportedMediaType, "`content_type_unsupported`: send application/json.")
	}
	if !o.public {
		add(http.StatusUnauthorized, "`unauthorized`: no token, or an expired or revoked one.")
	}
	add(http.StatusUnprocessableEntity, "`validation_failed`: an unknown field or one of the wrong form; `errors` says which.")
	add(http.StatusTooManyRequests, "`rate_limited`: wait as long as Retry-After says; another code: as many of something as may be are there.")
	add(http.StatusServiceUnavailable, "`unavailable`: the store does not answer now; try again after Retry-After.")
	for status, why := range o.refusals {
		add(status, why)
	}
	rs["default"] = &huma.Response{Description: "Any other refusal.", Content: map[string]*huma.MediaType{problemType: {Schema: schema}}}
	return rs
}

// reply is an answer with a body of T; none is one without.
type reply[T any] struct {
	Body T `nullable:"false"`
}

type none struct{}

func answerWith[T any](v T, err error) (*reply[T], error) {
	if err != nil {
		return nil, err
	}
	return &reply[T]{Body: v}, nil
}

// answerList is answerWith for a list, which is [] and never null.
func answerList[T any](v []T, err error) (*reply[[]T], error) {
	if v == nil {
		v = []T{}
	}
	return answerWith(v, err)
}

func answerNone(err error) (*none, error) { return nil, err }
