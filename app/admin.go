package app

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// AdminFile tells the commands on this machine how to reach a running server:
// its address and a bearer that is made anew at each start. Only the owner of
// the data directory can read it, and only loopback may use it.
type AdminFile struct {
	URL   string `json:"url"`
	Token string `json:"token"`
	PID   int    `json:"pid"`
}

// AdminFilePath is where it is.
func AdminFilePath(dataDir string) string { return filepath.Join(dataDir, "run", "admin.json") }

type adminAccess struct {
	path  string
	token string
}

func newAdminAccess(dataDir string) *adminAccess {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return &adminAccess{path: AdminFilePath(dataDir), token: hex.EncodeToString(b[:])}
}

// publish writes the file.
func (x *adminAccess) publish(addr string) error {
	if addr == "" {
		return errors.New("http.addr is off")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	if err := os.MkdirAll(filepath.Dir(x.path), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(AdminFile{URL: "http://" + net.JoinHostPort(host, port), Token: x.token, PID: os.Getpid()})
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

// allows reports whether the bearer is that of the file, used from loopback.
func (x *adminAccess) allows(r *http.Request, token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(x.token)) == 1 && fromLoopback(r)
}

// backups serves POST /v1/admin/backup to the bearer of the file, and passes on
// everything else.
func (x *adminAccess) backups(next http.Handler, a *App) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if ok && r.Method == http.MethodPost && r.URL.Path == "/v1/admin/backup" && x.allows(r, bearer) {
			a.serveBackup(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func fromLoopback(r *http.Request) bool {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// serveBackup copies the store, online, to a directory on this machine.
func (a *App) serveBackup(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Dir string `json:"dir"`
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 8<<10)).Decode(&in)
	if err == nil && !filepath.IsAbs(in.Dir) {
		err = errors.New("dir is an absolute path")
	}
	if err == nil {
		err = a.Backup(r.Context(), in.Dir)
	}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(map[string]string{"detail": err.Error()})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"dir": in.Dir})
}

// Backup writes a consistent copy of the store into dir, which must not exist.
func (a *App) Backup(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return fmt.Errorf("%s exists already: name a new directory", dir)
	}
	cp, ok := a.store.(store.Checkpointer)
	if !ok {
		return im.Refuse(im.Unsupported, "no_backup", "this store is not copied by Parley: use the tools of MongoDB, or parley export")
	}
	return cp.Checkpoint(ctx, dir)
}
