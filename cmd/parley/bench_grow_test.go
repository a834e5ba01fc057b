package main

import (
	"testing"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/internal/load"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

func TestGrow(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	open := func() *pebblestore.Store {
		st, err := pebblestore.Open(app.StoreDir(dir), pebblestore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := open()
	err := st.Commit(ctx, &store.Tx{
		Users:     []store.User{{ID: "bench-a"}, {ID: "bench-b"}, {ID: "other"}},
		Relations: []store.Relation{{User: "bench-a", Peer: "bench-b", State: store.Friends}, {User: "bench-b", Peer: "bench-a", State: store.Friends}},
		Groups:    []store.Group{{ID: "team", Owner: "bench-a"}},
		Members:   []store.Member{{Group: "team", User: "bench-a", Role: "owner"}, {Group: "team", User: "bench-b", Role: "member"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := grow(ctx, dir, load.Grow{Stored: 100, Conversations: 7, Members: 1500}); err != nil {
		t.Fatal(err)
	}
	st = open()
	defer func() { _ = st.Close() }()
	hs, err := st.Heads(ctx, []im.ConvID{"g/team", im.DM("bench-a", "bench-b")})
	if err != nil || hs[0].Seq != 50 || hs[1].Seq != 50 {
		t.Errorf("heads %v (%v)", hs, err)
	}
	if ms, err := st.Members(ctx, "team"); err != nil || len(ms) != 1500 {
		t.Errorf("%d members (%v)", len(ms), err)
	}
	if cs, err := st.Conversations(ctx, "bench-b"); err != nil || len(cs) != 9+accountLog(cs) {
		t.Errorf("conversations %v (%v)", cs, err)
	}
	if cs, err := st.Conversations(ctx, "other"); err != nil || len(cs) != accountLog(cs) {
		t.Errorf("conversations of somebody else: %v (%v)", cs, err)
	}
	if err := grow(ctx, t.TempDir(), load.Grow{Stored: 1}); err == nil {
		t.Error("a store without the scenario's users was grown")
	}
}

// accountLog counts the account logs, which every user has.
func accountLog(cs []store.Participation) (n int) {
	for _, c := range cs {
		if c.Conv.Kind() == im.KindAccount {
			n++
		}
	}
	return n
}
