package mongostore

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
	"github.com/parley-im/parley/store/storetest"
)

var server *mongotest.Server

func TestMain(m *testing.M) { os.Exit(mongotest.Main(m, &server)) }

var ctx = context.Background()

func open(t testing.TB, uri string, o Options) *Store {
	t.Helper()
	s, err := Open(ctx, uri, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	var uris sync.Map // by store
	storetest.Run(t, storetest.Factory{
		Open: func(t testing.TB) store.Store {
			uri := server.Database(t)
			s := open(t, uri, Options{})
			uris.Store(s, uri)
			return s
		},
		Reopen: func(t testing.TB, old store.Store) store.Store {
			old.(*Store).abandon()
			uri, _ := uris.Load(old)
			s := open(t, uri.(string), Options{})
			uris.Store(s, uri)
			return s
		},
	})
}

func BenchmarkStore(b *testing.B) {
	conversations := 10_000
	if !server.Real {
		conversations = 100 // FerretDB looks through all documents for each of them
	}
	storetest.Bench(b, conversations, func(b testing.TB) store.Store { return open(b, server.Database(b), Options{Timeout: time.Minute}) })
}
