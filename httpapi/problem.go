package httpapi

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/im"
)

// problemType is the media type of every error. [RFC 9457 §3]
const problemType = "application/problem+json"

// Codes of the faults that arise before an operation is reached.
const (
	codeNoSuchPath   = "path_not_found"
	codeMethod       = "method_not_allowed"
	codeContentType  = "content_type_unsupported"
	codeBadJSON      = "json_invalid"
	codeInvalid      = "validation_failed"
	codeTooLarge     = "body_too_large"
	codeSlowBody     = "body_timeout"
	codeBadBody      = "body_unreadable"
	codeTooMany      = "rate_limited"
	codeOrigin       = "origin_not_allowed"
	codeBadAuth      = "token_required"
	codeNoOperation  = "operation_not_found"
	codeAdminOnly    = "admin_only"
	codeOperatorOnly = "operator_only"
	codeClosed       = "registration_closed"
	codeUnknownParam = "unknown_parameter"
)

// problem is the body of every error answer. [RFC 9457 §3.1]
type problem struct {
	Type   string  `json:"type" doc:"Always about:blank: the code says what happened."`
	Title  string  `json:"title" doc:"The phrase of the HTTP status."`
	Status int     `json:"status" doc:"The HTTP status." example:"403"`
	Code   string  `json:"code" doc:"Stable, snake_case: what programs compare." example:"not_friends"`
	Detail string  `json:"detail,omitempty" doc:"One sentence for people."`
	Errors []fault `json:"errors,omitempty" nullable:"false" doc:"Which fields were wrong, and how."`

	kind   im.Kind
	header http.Header // sent with it; may be nil
}

// fault is one wrong field.
type fault struct {
	Location string `json:"location" doc:"Where: body.name, query.limit, path.user." example:"body.name"`
	Message  string `json:"message" doc:"What was expected."`
}

// statusOf is the table of kinds: the only place where one becomes a status.
var statusOf = map[im.Kind]int{
	im.Internal:     http.StatusInternalServerError,
	im.Unauthorized: http.StatusUnauthorized,
	im.Forbidden:    http.StatusForbidden,
	im.NotFound:     http.StatusNotFound,
	im.Conflict:     http.StatusConflict,
	im.Invalid:      http.StatusUnprocessableEntity,
	im.TopicInvalid: http.StatusUnprocessableEntity,
	im.TooLarge:     http.StatusRequestEntityTooLarge,
	im.TooMany:      http.StatusTooManyRequests,
	im.Payload:      http.StatusUnprocessableEntity,
	im.Unsupported:  http.StatusUnprocessableEntity,
	im.Unavailable:  http.StatusServiceUnavailable,
	im.Disabled:     http.StatusForbidden,
	im.Gone:         http.StatusServiceUnavailable,
}

// kindOf is the way back, for the statuses that the router and the validation
// give by themselves.
func kindOf(status int) im.Kind {
	switch status {
	case http.StatusUnauthorized:
		return im.Unauthorized
	case http.StatusForbidden:
		return im.Forbidden
	case http.StatusNotFound:
		return im.NotFound
	case http.StatusConflict:
		return im.Conflict
	case http.StatusRequestEntityTooLarge:
		return im.TooLarge
	case http.StatusTooManyRequests:
		return im.TooMany
	case http.StatusServiceUnavailable:
		return im.Unavailable
	}
	if status >= 500 {
		return im.Internal
	}
	return im.Invalid
}

// retrier is met by errors that know when a new try makes sense.
type retrier interface{ RetryAfter() time.Duration }

// problemOf turns any error into the answer a caller may see. Causes stay
// behind: they may name files, addresses or queries.
func problemOf(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	kind := im.KindOf(err)
	p = newProblem(statusOf[kind], im.CodeOf(err), im.ReasonOf(err))
	p.kind = kind
	var r retrier
	switch {
	case errors.As(err, &r):
		p.retryAfter(r.RetryAfter())
	case kind == im.TooMany:
		p.retryAfter(time.Minute)
	case kind == im.Unavailable || kind == im.Gone:
		p.retryAfter(time.Second)
	}
	return p
}

func newProblem(status int, code, detail string) *problem {
	p := &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail, kind: kindOf(status)}
	if status == http.StatusUnauthorized {
		p.set("WWW-Authenticate", "Bearer") // [RFC 9110 §15.5.2]
	}
	return p
}

// fromHuma rewrites what huma says of a request that failed its checks. Huma
// repeats the values it was given; we never do: one of them may be a password.
func fromHuma(m *huma.ErrorModel) *problem {
	p := newProblem(m.Status, codeInvalid, m.Detail)
	switch {
	case m.Status >= 500:
		return newProblem(m.Status, im.Internal.String(), "internal error")
	case m.Status == http.StatusBadRequest:
		p.Code = codeBadJSON
	case m.Status == http.StatusRequestEntityTooLarge:
		p.Code = codeTooLarge
	case m.Status == http.StatusUnsupportedMediaType:
		p.Code = codeContentType
	}
	for _, d := range m.Errors {
		if d == nil {
			continue
		}
		f := fault{Location: d.Location, Message: d.Message}
		if d.Location == "body" && m.Status == http.StatusUnprocessableEntity && d.Value != nil {
			if _, raw := d.Value.(string); raw {
				f.Message = "a field does not have the form its type asks for" // the decoder's text names our Go types
			}
		}
		p.Errors = append(p.Errors, f)
	}
	if len(p.Errors) > 0 {
		p.Detail = p.Errors[0].Location + ": " + p.Errors[0].Message
	}
	return p
}

func (p *problem) set(name, value string) *problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

func (p *problem) retryAfter(d time.Duration) *problem {
	return p.set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(d.Seconds())))))
}

// Error, GetStatus, GetHeaders and ContentType let huma write the problem.
func (p *problem) Error() string             { return p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) GetHeaders() http.Header   { return p.header }
func (p *problem) ContentType(string) string { return problemType }
func (p *problem) house() error              { return &im.Error{Kind: p.kind, Code: p.Code, Reason: p.Detail} }

// taker is a ResponseWriter that wants the problem itself and not its text.
type taker interface{ take(*problem) }

// write answers with p.
func (p *problem) write(w http.ResponseWriter) {
	if t, ok := w.(taker); ok {
		t.take(p)
		return
	}
	for name, values := range p.header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client went away: nobody to tell
}
