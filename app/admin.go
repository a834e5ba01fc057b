package app

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/parley-im/parley/httpapi"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// AdminFile tells the commands on this machine how to reach a running server: a
// listener of their own on loopback, whatever http.addr and http.cert say, and a
// bearer that is made anew at each start and good for that listener only. Only the
// owner of the data directory can read the file.
type AdminFile struct {
	URL   string `json:"url"`
	Token string `json:"token"`
	PID   int    `json:"pid"`
}

// AdminFilePath is where it is.
func AdminFilePath(dataDir string) string { return filepath.Join(dataDir, "run", "admin.json") }

type adminAccess struct {
	path  string
	addr  string // "" without a listener
	token string
}

func newAdminAccess(dataDir string) *adminAccess {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return &adminAccess{path: AdminFilePath(dataDir), token: hex.EncodeToString(b[:])}
}

// ofAdmin marks the requests of the listener.
type ofAdmin struct{}

// listenAdmin opens the listener. Without loopback there is none, and the commands
// work on a stopped server only.
func (a *App) listenAdmin() error {
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		if nl, err = net.Listen("tcp", "[::1]:0"); err != nil {
			return nil
		}
	}
	a.admin.addr = nl.Addr().String()
	srv := httpapi.NewServer(a.admin.addr, a.admin.handler(a), a.log)
	srv.BaseContext = func(net.Listener) context.Context { return context.WithValue(context.Background(), ofAdmin{}, true) }
	a.serveHTTP(srv, nl)
	return nil
}

// handler serves the API to the bearer alone.
func (x *adminAccess) handler(a *App) http.Handler {
	api := a.api.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !x.allows(r, bearer) {
			http.Error(w, "this listener is for the commands of the operator", http.StatusUnauthorized)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// publish writes the file.
func (x *adminAccess) publish() error {
	if x.addr == "" {
		return errors.New("this machine has no loopback address to listen on")
	}
	if err := os.MkdirAll(filepath.Dir(x.path), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(AdminFile{URL: "http://" + x.addr, Token: x.token, PID: os.Getpid()})
	if err != nil {
		return err
	}
	tmp := x.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, x.path)
}

func (x *adminAccess) withdraw() { _ = os.Remove(x.path) }

// allows reports whether the request came to the listener, with its bearer.
func (x *adminAccess) allows(r *http.Request, token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(x.token)) == 1 && r.Context().Value(ofAdmin{}) != nil
}

// backup writes a consistent copy of the store into dir, which must not exist. The
// operator is told what went wrong.
func (a *App) backup(ctx context.Context, dir string) error {
	if !filepath.IsAbs(dir) {
		return im.Refuse(im.Invalid, "dir_invalid", "dir is an absolute path")
	}
	if _, err := os.Stat(dir); err == nil {
		return im.Refuse(im.Conflict, "dir_exists", "%s exists already: name a new directory", dir)
	}
	cp, ok := a.store.(store.Checkpointer)
	if !ok {
		return im.Refuse(im.Unsupported, "no_backup", "this store is not copied by Parley: use the tools of MongoDB, or parley export")
	}
	if err := cp.Checkpoint(ctx, dir); err != nil {
		return im.Refuse(im.Unavailable, "backup_failed", "%v", err)
	}
	return nil
}
