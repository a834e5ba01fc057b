package httpapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"net/http"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

const bookIntro = `Messaging over MQTT and HTTP.

Every operation here can be called in two ways: by HTTP as described, with an access token as
` + "`Authorization: Bearer …`" + `; and over MQTT by its operation id, as a publish to ` + "`rpc/{operationId}/{rid}`" + ` whose
payload is one JSON object of the path, query and body names. The answer to the second arrives on
` + "`re/{rid}`" + ` as ` + "`{\"ok\":true,\"data\":…}`" + ` or ` + "`{\"ok\":false,\"error\":{\"code\":…,\"message\":…}}`" + `.

Errors are problem details (RFC 9457). Programs compare ` + "`code`" + `, which is stable; ` + "`detail`" + ` is for people.
Fields and query parameters that an operation does not have are refused.`

// publish closes the book: it writes the document and the page for people, once.
func (a *API) publish(book huma.API) {
	doc := book.OpenAPI()
	// Huma describes the errors it would write; ours go out (toProblem).
	delete(doc.Components.Schemas.Map(), "ErrorModel")
	delete(doc.Components.Schemas.Map(), "ErrorDetail")
	a.openAnswers(doc.Components.Schemas.Map())
	text, err := json.Marshal(doc)
	if err != nil {
		panic("httpapi: the OpenAPI document cannot be written: " + err.Error())
	}
	a.mux.Handle("GET /openapi.json", fixed("application/json", text, ""))
	page, policy := a.docsPage(doc)
	a.mux.Handle("GET /docs", fixed("text/html; charset=utf-8", page, policy))
}

// openAnswers says of every shape we send that it may get more fields one day;
// the shapes we take refuse what they do not know.
func (a *API) openAnswers(shapes map[string]*huma.Schema) {
	taken := map[string]bool{}
	for _, o := range a.ops {
		if o.huma.RequestBody != nil {
			taken[path.Base(o.huma.RequestBody.Content["application/json"].Schema.Ref)] = true
		}
	}
	for name, s := range shapes {
		if !taken[name] {
			s.AdditionalProperties = true
		}
	}
}

// fixed serves bytes that never change while the server runs. policy, if not
// empty, replaces the Content-Security-Policy.
func fixed(mediaType string, body []byte, policy string) http.Handler {
	sum := sha256.Sum256(body)
	tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", mediaType)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(body)
	})
}

//go:embed docs.html
var docsTemplate string

//go:embed docs.css
var docsStyle string

// chapter and entry are the document as the page shows it.
type chapter struct {
	Tag     string
	Entries []entry
}

type entry struct {
	ID, Method, Path, Summary, Detail string
	Fields                            []field
	Answers                           []reason
}

type field struct {
	Name, In, Type, Doc string
	Required            bool
}

type reason struct{ Status, Doc string }

// docsPage renders the reference. It needs no script and nothing from elsewhere,
// and its policy allows nothing but its own style sheet, by hash.
func (a *API) docsPage(doc *huma.OpenAPI) (page []byte, policy string) {
	t := template.Must(template.New("docs").Parse(docsTemplate))
	var b bytes.Buffer
	err := t.Execute(&b, map[string]any{
		"Title": doc.Info.Title, "Version": doc.Info.Version, "Intro": doc.Info.Description,
		"Style": template.CSS(docsStyle), "Chapters": a.chapters(doc.Components.Schemas),
	})
	if err != nil {
		panic("httpapi: the reference page cannot be written: " + err.Error())
	}
	sum := sha256.Sum256([]byte(docsStyle))
	return b.Bytes(), "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; frame-ancestors 'none'"
}

func (a *API) chapters(reg huma.Registry) []chapter {
	byTag := map[string][]entry{}
	for name, o := range a.ops {
		if name == o.id { // not an alias
			byTag[o.tag] = append(byTag[o.tag], o.entry(reg))
		}
	}
	var cs []chapter
	for tag, es := range byTag {
		slices.SortFunc(es, func(x, y entry) int { return strings.Compare(x.ID, y.ID) })
		cs = append(cs, chapter{tag, es})
	}
	slices.SortFunc(cs, func(x, y chapter) int { return strings.Compare(x.Tag, y.Tag) })
	return cs
}

func (o *operation) entry(reg huma.Registry) entry {
	e := entry{ID: o.id, Method: o.method, Path: o.path, Summary: o.summary, Detail: o.describe()}
	for _, p := range o.huma.Parameters {
		e.Fields = append(e.Fields, field{Name: p.Name, In: p.In, Type: p.Schema.Type, Doc: p.Description, Required: p.Required})
	}
	if body := o.huma.RequestBody; body != nil {
		e.Fields = append(e.Fields, bodyFields(reg, body.Content["application/json"].Schema)...)
	}
	for status, r := range o.huma.Responses {
		e.Answers = append(e.Answers, reason{status, r.Description})
	}
	sort.Slice(e.Answers, func(i, j int) bool { return e.Answers[i].Status < e.Answers[j].Status })
	return e
}

func bodyFields(reg huma.Registry, s *huma.Schema) []field {
	for s.Ref != "" {
		s = reg.SchemaFromRef(s.Ref)
	}
	var fs []field
	for name, p := range s.Properties {
		fs = append(fs, field{Name: name, In: "body", Type: p.Type, Doc: p.Description, Required: slices.Contains(s.Required, name)})
	}
	slices.SortFunc(fs, func(x, y field) int { return strings.Compare(x.Name, y.Name) })
	return fs
}
