package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/parley-im/parley/im"
)

// Call runs an operation for a caller whose session is its authentication: the
// other road to the handlers of Handler. params is a JSON object of the
// operation's path, query and body names (nothing counts as {}); a name the
// operation does not have, or JSON that is none, is an Invalid error.
//
// data is the JSON that HTTP would have answered, and null where that has no
// body. err is always an *im.Error with Kind, Code and Reason for the caller;
// what went wrong inside has been logged.
func (a *API) Call(ctx context.Context, caller Caller, op string, params []byte) (data []byte, err error) {
	o := a.ops[op]
	switch {
	case o == nil:
		return nil, im.Refuse(im.NotFound, codeNoOperation, "there is no operation %.80q", op)
	case len(params) > a.opt.MaxBody:
		return nil, im.Refuse(im.TooLarge, codeTooLarge, "parameters may have %d bytes", a.opt.MaxBody)
	}
	x := &exchange{caller: caller, addr: caller.Addr, rpc: true, op: o.id}
	r, err := o.request(context.WithValue(ctx, exchangeKey{}, x), params)
	if err != nil {
		return nil, err
	}
	rec := &recorder{}
	defer func() {
		if v := recover(); v != nil {
			a.log.Error("handler panicked", "op", o.id, "panic", v, "stack", string(debug.Stack()))
			data, err = nil, &im.Error{Kind: im.Internal, Reason: "internal error"}
		}
	}()
	o.handler(humago.NewContext(o.huma, r, rec))
	return rec.result()
}

// request sorts params into the parts of the HTTP request they stand for.
func (o *operation) request(ctx context.Context, params []byte) (*http.Request, error) {
	given, err := parseParams(params)
	if err != nil {
		return nil, err
	}
	if err := o.splitConv(given); err != nil {
		return nil, err
	}
	r := (&http.Request{Method: o.method, URL: &url.URL{Path: o.path}, Header: http.Header{}, Body: http.NoBody}).WithContext(ctx)
	query := url.Values{}
	for _, p := range o.huma.Parameters {
		raw, ok := given[p.Name]
		if !ok || string(raw) == "null" {
			delete(given, p.Name)
			continue
		}
		delete(given, p.Name)
		s, err := paramText(p, raw)
		if err != nil {
			return nil, err
		}
		if p.In == "path" {
			r.SetPathValue(p.Name, s)
		} else {
			query.Set(p.Name, s)
		}
	}
	r.URL.RawQuery = query.Encode()
	return r, o.putBody(r, given)
}

// putBody makes the request's body of the parameters that are left. Whether the
// operation has fields of these names is checked by the body's schema, as for
// HTTP; where it takes no body, nothing may be left.
func (o *operation) putBody(r *http.Request, left map[string]json.RawMessage) error {
	if o.huma.RequestBody == nil {
		for name := range left {
			return im.Refuse(im.Invalid, codeUnknownParam, "%s has no parameter %.80q", o.id, name)
		}
		return nil
	}
	if len(left) == 0 && !o.huma.RequestBody.Required {
		return nil
	}
	body, err := json.Marshal(left)
	if err != nil {
		return im.Refuse(im.Invalid, codeBadJSON, "parameters: not a JSON object")
	}
	r.Header.Set("Content-Type", "application/json")
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

func parseParams(params []byte) (map[string]json.RawMessage, error) {
	given := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(params)) == 0 {
		return given, nil
	}
	if err := checkJSON(params); err != nil {
		return nil, im.Refuse(im.Invalid, codeBadJSON, "parameters: %v", err)
	}
	if err := json.Unmarshal(params, &given); err != nil || given == nil {
		return nil, im.Refuse(im.Invalid, codeBadJSON, "parameters: not a JSON object")
	}
	return given, nil
}

// splitConv lets a conversation be named as everywhere else, {"conv":"dm/bob"},
// where the path has it in two parts.
func (o *operation) splitConv(given map[string]json.RawMessage) error {
	raw, ok := given["conv"]
	if !ok || !strings.HasPrefix(o.path, convPath) {
		return nil
	}
	if given["kind"] != nil || given["id"] != nil {
		return im.Refuse(im.Invalid, codeInvalid, "name the conversation by conv or by kind and id, not both")
	}
	var conv string
	if err := json.Unmarshal(raw, &conv); err != nil {
		return im.Refuse(im.Invalid, codeInvalid, "conv: expected string")
	}
	kind, id, _ := strings.Cut(conv, "/")
	given["kind"], given["id"] = im.AppendJSONString(nil, kind), im.AppendJSONString(nil, id)
	delete(given, "conv")
	return nil
}

// paramText writes a JSON value as it would stand in a path or query. A string
// stands for itself; numbers and booleans only where the parameter is one, so
// that {"user":1} is not a way to name the user "1".
func paramText(p *huma.Param, raw json.RawMessage) (string, error) {
	wrong := im.Refuse(im.Invalid, codeInvalid, "%s: expected %s", p.Name, p.Schema.Type)
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", wrong
	}
	numeric := slices.Contains([]string{huma.TypeInteger, huma.TypeNumber}, p.Schema.Type)
	switch v := v.(type) {
	case string:
		if p.Schema.Type == huma.TypeString {
			return v, nil
		}
	case json.Number:
		if numeric {
			return v.String(), nil
		}
	case bool:
		if p.Schema.Type == huma.TypeBoolean {
			return string(raw), nil
		}
	}
	return "", wrong
}

// recorder is the ResponseWriter of a Call.
type recorder struct {
	header  http.Header
	body    bytes.Buffer
	problem *problem
}

// Header, Write and WriteHeader make it an http.ResponseWriter.
func (w *recorder) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}
func (w *recorder) Write(p []byte) (int, error) { return w.body.Write(p) }

// WriteHeader does nothing: an error comes by take.
func (w *recorder) WriteHeader(int) {}

func (w *recorder) take(p *problem) { w.problem = p }

func (w *recorder) result() ([]byte, error) {
	if w.problem != nil {
		return nil, w.problem.house()
	}
	data := bytes.TrimSpace(w.body.Bytes())
	if len(data) == 0 {
		return []byte("null"), nil
	}
	return data, nil
}
