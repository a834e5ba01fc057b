package app

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parley-im/parley/store"
)

// slowCopy is a store whose copy takes longer than the server gives an answer.
type slowCopy struct {
	store.Store
	takes time.Duration
}

func (s slowCopy) Checkpoint(context.Context, string) error {
	<-time.After(s.takes)
	return nil
}

// A copy may take hours; the time-outs of the listener are for others.
func TestALongBackupIsAnswered(t *testing.T) {
	a := &App{store: slowCopy{takes: 300 * time.Millisecond}}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(a.serveBackup))
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	srv.Start()
	defer srv.Close()
	dir := filepath.Join(t.TempDir(), "copy")
	body, err := json.Marshal(map[string]string{"dir": dir})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(srv.URL, "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out struct{ Dir string }
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil || out.Dir != dir || res.StatusCode != 200 {
		t.Errorf("%d %+v %v", res.StatusCode, out, err)
	}
}
