package httpapi

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/parley-im/parley/im"
)

// document is the part of OpenAPI that the tests look at.
type document struct {
	OpenAPI string
	Info    struct{ Title, Version string }
	Paths   map[string]map[string]struct {
		OperationID string
		Aliases     []string
		Security    []map[string][]string
		Parameters  []struct {
			Name, In string
			Required bool
		}
		RequestBody *struct{ Content map[string]any }
		Responses   map[string]struct{ Content map[string]any }
	}
	Components struct {
		Schemas         map[string]any
		SecuritySchemes map[string]struct{ Type, Scheme string }
	}
}

func readDocument(t *testing.T) (document, []byte) {
	t.Helper()
	base := serve(t, New(Options{Version: "1.2.3"}).Handler())
	g := exchangeWith(t, base, send{method: "GET", path: "/openapi.json"})
	if g.status != 200 || g.header.Get("Content-Type") != "application/json" {
		t.Fatalf("got %d %s", g.status, g.header.Get("Content-Type"))
	}
	var d document
	if err := json.Unmarshal(g.body, &d); err != nil {
		t.Fatal(err)
	}
	if again := exchangeWith(t, base, send{method: "GET", path: "/openapi.json", header: http.Header{"If-None-Match": {g.header.Get("ETag")}}}); again.status != 304 {
		t.Errorf("asked again with its tag: %d, want 304", again.status)
	}
	return d, g.body
}

func TestDocumentIsOpenAPI31(t *testing.T) {
	d, text := readDocument(t)
	if d.OpenAPI != "3.1.0" || d.Info.Title == "" || d.Info.Version != "1.2.3" {
		t.Errorf("got openapi %q, title %q, version %q", d.OpenAPI, d.Info.Title, d.Info.Version)
	}
	if s := d.Components.SecuritySchemes["bearer"]; s.Type != "http" || s.Scheme != "bearer" {
		t.Errorf("got %+v for the token", s)
	}
	var all any
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	eachRef(all, func(ref string) {
		name, ok := strings.CutPrefix(ref, "#/components/schemas/")
		if _, found := d.Components.Schemas[name]; !ok || !found {
			t.Errorf("%s leads nowhere", ref)
		}
	})
	ids := map[string]bool{}
	for path, item := range d.Paths {
		for method, op := range item {
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s: operation id %q is missing or taken", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
			for status, r := range op.Responses {
				if status < "4" {
					continue
				}
				if _, ok := r.Content[problemType]; !ok {
					t.Errorf("%s: %s is not described as a problem", op.OperationID, status)
				}
			}
			for _, p := range op.Parameters {
				if p.In == "path" && (!p.Required || !strings.Contains(path, "{"+p.Name+"}")) {
					t.Errorf("%s: path parameter %s is optional or not in the path", op.OperationID, p.Name)
				}
			}
		}
	}
}

func eachRef(v any, fn func(string)) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if s, ok := x.(string); ok && k == "$ref" {
				fn(s)
			}
			eachRef(x, fn)
		}
	case []any:
		for _, x := range v {
			eachRef(x, fn)
		}
	}
}

// The paths are part of the wire contract: none may go or change its id.
func TestContractIsInTheDocument(t *testing.T) {
	d, _ := readDocument(t)
	for _, row := range strings.Split(strings.TrimSpace(`
post   /v1/register                             auth.register
post   /v1/login                                auth.login
post   /v1/refresh                              auth.refresh
post   /v1/logout                               auth.logout
get    /v1/me                                   me.get
patch  /v1/me                                   me.update
post   /v1/me/password                          me.password
get    /v1/users                                users.find
get    /v1/users/{user}                         users.get
get    /v1/friends                              friends.list
put    /v1/friends/{user}                       friends.add
delete /v1/friends/{user}                       friends.remove
get    /v1/friend-requests                      friend-requests.list
delete /v1/friend-requests/{user}               friend-requests.remove
get    /v1/blocks                               blocks.list
put    /v1/blocks/{user}                        blocks.add
delete /v1/blocks/{user}                        blocks.remove
get    /v1/groups                               groups.list
post   /v1/groups                               groups.create
get    /v1/groups/{group}                       groups.get
patch  /v1/groups/{group}                       groups.update
delete /v1/groups/{group}                       groups.delete
put    /v1/groups/{group}/members/{user}        groups.members.put
delete /v1/groups/{group}/members/{user}        groups.members.remove
get    /v1/conversations                        conversations.list
get    /v1/conversations/{kind}/{id}/messages   conversations.history
put    /v1/conversations/{kind}/{id}/read       conversations.read
get    /v1/devices                              devices.list
delete /v1/devices/{device}                     devices.remove
get    /v1/admin/users                          admin.users.list
post   /v1/admin/users                          admin.users.create
get    /v1/admin/users/{user}                   admin.users.get
patch  /v1/admin/users/{user}                   admin.users.update
delete /v1/admin/users/{user}                   admin.users.disable
post   /v1/admin/users/{user}/password          admin.users.password
post   /v1/admin/users/{user}/revoke            admin.users.revoke
post   /v1/admin/backup                         admin.backup`), "\n") {
		f := strings.Fields(row)
		if got := d.Paths[f[1]][f[0]].OperationID; got != f[2] {
			t.Errorf("%s %s: operation id %q, want %q", f[0], f[1], got, f[2])
		}
	}
}

// The manual names every path, as the contract writes them.
func TestEveryPathIsInTheManual(t *testing.T) {
	manual, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	d, _ := readDocument(t)
	for path := range d.Paths {
		path = strings.Replace(path, "{kind}", "{dm|g}", 1)
		if !regexp.MustCompile(regexp.QuoteMeta(path) + `[ ?\n]`).Match(manual) {
			t.Errorf("%s is not in docs/protocol.md", path)
		}
	}
}

// Every operation of the document can be called over RPC by its id.
func TestEveryOperationIsAnRPC(t *testing.T) {
	d, _ := readDocument(t)
	a := New(Options{})
	listed := map[string]bool{}
	for _, item := range d.Paths {
		for _, op := range item {
			listed[op.OperationID] = true
			// A parameter no operation has: refused by each one before it acts.
			_, err := a.Call(context.Background(), Caller{User: "alice", Role: "admin"}, op.OperationID, []byte(`{"no-such":1}`))
			if !im.Is(err, im.Invalid) && im.CodeOf(err) != codeOperatorOnly {
				t.Errorf("%s: got %v, want Invalid", op.OperationID, err)
			}
		}
	}
	for name, o := range a.ops {
		if !listed[name] && !slices.Contains(o.aliases, name) {
			t.Errorf("%s can be called and is not in the document", name)
		}
	}
	if len(listed) < 36 {
		t.Errorf("only %d operations: %v", len(listed), slices.Sorted(maps.Keys(listed)))
	}
}

// samplePath fills the names of a path with ids that are well formed.
func samplePath(p string) string {
	return strings.NewReplacer("{user}", "bob", "{group}", "team", "{device}", "phone", "{kind}", "dm", "{id}", "bob").Replace(p)
}

// No operation but the three that make a login answers without a token.
func TestEveryOperationWantsAToken(t *testing.T) {
	a := New(Options{})
	base := serve(t, a.Handler())
	var public []string
	for name, o := range a.ops {
		if name != o.id {
			continue
		}
		if o.public {
			public = append(public, o.id)
			continue
		}
		if g := exchangeWith(t, base, send{method: o.method, path: samplePath(o.path), body: `{}`}); g.status != 401 || g.code() != codeBadAuth {
			t.Errorf("%s: got %d %s", o.id, g.status, g.body)
		}
	}
	slices.Sort(public)
	if want := []string{"auth.login", "auth.refresh", "auth.register"}; !slices.Equal(public, want) {
		t.Errorf("public are %v, want %v", public, want)
	}
}

// The reference page shows every operation and asks nobody else for anything.
func TestReferencePage(t *testing.T) {
	a := New(Options{})
	g := exchangeWith(t, serve(t, a.Handler()), send{method: "GET", path: "/docs"})
	page, policy := string(g.body), g.header.Get("Content-Security-Policy")
	if g.status != 200 || !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") {
		t.Fatalf("got %d, policy %q", g.status, policy)
	}
	for _, alien := range []string{"http://", "https://", "<script", "onclick", "@import"} {
		if strings.Contains(page, alien) {
			t.Errorf("the page has %q", alien)
		}
	}
	for name, o := range a.ops {
		if name == o.id && (!strings.Contains(page, `id="`+name+`"`) || !strings.Contains(page, o.path)) {
			t.Errorf("%s is not on the page", name)
		}
	}
	// The style the policy allows is the style the page has.
	style, _, _ := strings.Cut(page[strings.Index(page, "<style>")+len("<style>"):], "</style>")
	if style != docsStyle {
		t.Error("the style in the page is not the one the policy was made for")
	}
}
