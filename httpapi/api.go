package httpapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Accounts and Devices are the parts of the store that are read directly: what
// they hold needs no decision beyond "is it yours".
type Accounts interface {
	User(ctx context.Context, u im.UserID) (store.User, error)
	FindUsers(ctx context.Context, prefix string, after im.UserID, limit int) ([]store.User, error)
}

// Devices lists what the store knows of a user's devices.
type Devices interface {
	Device(ctx context.Context, k im.DeviceKey) (store.Device, error)
	DevicesOf(ctx context.Context, u im.UserID) ([]store.Device, error)
}

// Sessions is who is connected.
type Sessions interface {
	// Online reports whether the device is connected.
	Online(k im.DeviceKey) bool
	// Leave ends the device's connection, if there is one.
	Leave(ctx context.Context, k im.DeviceKey)
	// Forget disconnects the device and removes it with its session, cursors and
	// queue. Forgetting what is not there is no error.
	Forget(ctx context.Context, k im.DeviceKey) error
}

// Options configure an API. The first five are needed, the rest has defaults.
type Options struct {
	Chat     *chat.Chat
	Auth     *auth.Auth
	Accounts Accounts
	Devices  Devices
	Sessions Sessions

	// Registration reports whether strangers may make accounts now; nil: never.
	Registration func() bool
	// Version is told in the OpenAPI document.
	Version string
	// MaxBody bounds a request's body and an RPC's parameters, in bytes; default 64 KiB.
	MaxBody int
	// BodyTimeout is how long a body may take to arrive; default 10 s.
	BodyTimeout time.Duration
	Limits      Limits
	// Origins lists the origins whose pages may call, such as
	// https://chat.example.org; "*" for all; empty for none but our own.
	Origins []string
	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix

	// Operator reports whether a bearer is that of the commands on this machine,
	// which may call the admin operations and no others; nil: there is none.
	Operator func(r *http.Request, token string) bool

	// Backup copies the store into a directory, for an operator; nil: it cannot.
	Backup func(ctx context.Context, dir string) error

	// Push rings phones; nil: nobody is rung here.
	Push Push

	Now func() time.Time // default time.Now
	Log *slog.Logger     // default: discard
}

// API is the room. Make it with New; it is safe for concurrent use.
type API struct {
	opt    Options
	log    *slog.Logger
	mux    *http.ServeMux
	limits *limits
	ops    map[string]*operation // by operation id and alias; complete after New

	answerTimeout time.Duration
	origins       *http.CrossOriginProtection
}

// Caller is who asks, as the edge that authenticated them knows.
type Caller struct {
	User     im.UserID
	Role     string      // "" or "admin"
	Device   im.DeviceID // "" where the caller is on none (a plain HTTP login)
	Identity auth.Identity
	Addr     netip.Addr // where an RPC comes from; tries of a password are counted by it
}

// huma compares field names without regard to case unless this switch, which is
// its package's, is set: {"USER":…} and even {"uſer":…} would name "user".
var strictNames = sync.OnceFunc(func() { huma.ValidateStrictCasing = true })

// New makes an API. It starts nothing. It panics if an operation is defined
// wrongly, which a test of this room finds, or an origin is none.
func New(o Options) *API {
	strictNames()
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registration == nil {
		o.Registration = func() bool { return false }
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	def(&o.MaxBody, 64<<10)
	def(&o.BodyTimeout, 10*time.Second)
	a := &API{opt: o, log: o.Log, mux: http.NewServeMux(), limits: newLimits(o.Limits), ops: map[string]*operation{}, answerTimeout: answerTimeout, origins: http.NewCrossOriginProtection()}
	for _, origin := range o.Origins {
		if origin != "*" {
			if err := a.origins.AddTrustedOrigin(origin); err != nil {
				panic("httpapi: " + err.Error())
			}
		}
	}
	book := a.newBook()
	a.authOperations(book)
	a.meOperations(book)
	a.userOperations(book)
	a.friendOperations(book)
	a.groupOperations(book)
	a.conversationOperations(book)
	a.deviceOperations(book)
	a.pushOperations(book)
	a.adminOperations(book)
	a.backupOperation(book)
	a.publish(book)
	return a
}

// Handler returns the HTTP side: everything under /v1, /openapi.json and /docs.
// Any other path is answered 404 as a problem.
func (a *API) Handler() http.Handler { return a }

// newBook makes the OpenAPI document that operations are written into, and the
// way huma hands their handlers to us.
func (a *API) newBook() huma.API {
	cfg := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "Parley", Version: a.opt.Version, Description: bookIntro},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", BearerFormat: "JWT", Description: "An access token, from auth.login or auth.refresh."},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": strictJSON, "json": strictJSON},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{toProblem},
	}
	book := huma.NewAPI(cfg, (*rack)(a))
	book.UseMiddleware(a.admit)
	return book
}

// toProblem sees every answer on its way out. It replaces huma's own error body
// by ours, and hands problems to a writer that wants them whole.
func toProblem(ctx huma.Context, _ string, v any) (any, error) {
	if m, ok := v.(*huma.ErrorModel); ok {
		v = fromHuma(m)
	}
	if p, ok := v.(*problem); ok {
		if _, w := humago.Unwrap(ctx); w != nil {
			if t, ok := w.(taker); ok {
				t.take(p)
			}
		}
	}
	return v, nil
}

// rack is where huma hangs up the handler of each operation: once for the mux,
// once for Call.
type rack API

// Handle takes op's handler.
func (k *rack) Handle(op *huma.Operation, h func(huma.Context)) {
	o, ok := op.Metadata[metaKey].(*operation)
	if !ok {
		panic("httpapi: operation " + op.OperationID + " was not defined by define")
	}
	if err := checkPath(op); err != nil {
		panic("httpapi: " + err.Error())
	}
	o.huma, o.handler = op, h
	for _, name := range append([]string{op.OperationID}, o.aliases...) {
		if k.ops[name] != nil {
			panic("httpapi: two operations are called " + name)
		}
		k.ops[name] = o
	}
	k.mux.HandleFunc(op.Method+" "+op.Path, func(w http.ResponseWriter, r *http.Request) {
		h(humago.NewContext(op, r, w))
	})
}

// checkPath finds a path whose names the input does not have: a handler behind
// it would not look at what it was asked about.
func checkPath(op *huma.Operation) error {
	for part := range strings.SplitSeq(op.Path, "/") {
		name, isName := strings.CutPrefix(part, "{")
		name = strings.TrimSuffix(name, "}")
		if isName && !slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.In == "path" && p.Name == name }) {
			return fmt.Errorf("%s: the input has no path parameter %q", op.OperationID, name)
		}
	}
	return nil
}

// ServeHTTP is part of huma's Adapter.
func (k *rack) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*API)(k).ServeHTTP(w, r) }
