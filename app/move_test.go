package app

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// mongo is what tests on MongoDB share; TestMain ends it.
var mongo = sync.OnceValues(func() (*mongotest.Server, error) {
	srv, err := mongotest.Start()
	if err == nil {
		endMongo = srv.Close
	}
	return srv, err
})

var endMongo = func() {}

func TestMain(m *testing.M) {
	code := m.Run()
	endMongo()
	os.Exit(code)
}

// openMongo opens an empty database.
func openMongo(t *testing.T) store.Store {
	t.Helper()
	srv, err := mongo()
	if err != nil {
		t.Fatal(err)
	}
	if !srv.Real {
		t.Log("on FerretDB, not on MongoDB")
	}
	st, err := mongostore.Open(t.Context(), srv.Database(t), mongostore.Options{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// filler puts every kind of row into a store, with values at the edge of what is
// allowed.
type filler struct {
	t   *testing.T
	st  store.Store
	rng *rand.Rand
}

func (f *filler) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// word is text that JSON, BSON or a terminal may treat specially.
func (f *filler) word() string {
	return []string{"", "x", "<&>\u2028", "Ü 漢字 🙂", "\"\\/\t\r\n", "$set", "a.b.$c", " ", strings.Repeat("long ", 200), "null", "\ufffd"}[f.rng.IntN(11)]
}

func (f *filler) body() []byte {
	switch f.rng.IntN(5) {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2:
		return []byte(f.word())
	}
	b := make([]byte, f.rng.IntN(3000))
	for i := range b {
		b[i] = byte(f.rng.Uint32())
	}
	return b
}

func (f *filler) num() int64 {
	return []int64{0, 1, 1_790_000_000_000, math.MaxInt64, 1<<53 + 1, -1}[f.rng.IntN(6)]
}

// append waits until the entries are in.
func (f *filler) append(as ...*store.Append) {
	f.t.Helper()
	var wg sync.WaitGroup
	for _, a := range as {
		wg.Add(1)
		a.Done = func(a *store.Append) {
			if a.Err != nil {
				f.t.Error(a.Err)
			}
			wg.Done()
		}
	}
	f.st.Append(as...)
	wg.Wait()
}

func (f *filler) fill() {
	ctx := f.t.Context()
	users := []im.UserID{"alice", "bob", "carol.x", "d-1", "e_2"}
	var tx store.Tx
	for _, u := range users {
		tx.Users = append(tx.Users, store.User{ID: u, Name: f.word(), Role: []string{"", "admin"}[f.rng.IntN(2)], Password: "$argon2id$" + f.word(), Disabled: f.rng.IntN(2) == 0, Created: f.num(), NotBefore: f.num()})
	}
	for i, u := range users {
		for _, p := range users[i+1:] {
			r := store.Relation{User: u, Peer: p, State: store.RelationState(f.rng.IntN(4)), Blocked: f.rng.IntN(3) == 0, Remark: "r" + f.word(), Message: f.word(), Since: f.num()}
			s := store.Relation{User: p, Peer: u, State: store.RelationState(1 + f.rng.IntN(3)), Since: f.num()}
			tx.Relations = append(tx.Relations, r, s)
		}
	}
	groups := []im.GroupID{"team", "g.2"}
	for _, g := range groups {
		tx.Groups = append(tx.Groups, store.Group{ID: g, Name: f.word(), Owner: "alice", Join: "invite", MaxMembers: 7, MuteAll: f.rng.IntN(2) == 0, Created: f.num(), Dissolved: f.rng.IntN(2) == 0})
		for _, u := range users[:3] {
			tx.Members = append(tx.Members, store.Member{Group: g, User: u, Role: "member", MutedUntil: f.num(), Start: im.Seq(f.rng.IntN(5)), Since: f.num()})
		}
	}
	tx.Members[0].Start = store.AtHead
	event := &store.Append{Entry: im.Entry{Conv: im.AccountConv("alice"), From: "bob", Op: im.OpEvent, Event: "friend-request", Body: []byte(`{"user":"bob"}`)}}
	tx.Entries = []*store.Append{event}
	f.must(f.st.Commit(ctx, &tx))

	phone, queue := im.DeviceKey{User: "alice", Device: "phone"}, im.QueueConv("alice", "phone")
	convs := []im.ConvID{im.DM("alice", "bob"), im.DM("alice", "alice"), im.GroupConv("team"), im.AccountConv("bob"), queue}
	for i := range 60 {
		conv := convs[f.rng.IntN(len(convs))]
		e := im.Entry{Conv: conv, From: users[f.rng.IntN(2)], Device: []im.DeviceID{"", "phone"}[f.rng.IntN(2)], Op: im.Op(f.rng.IntN(4)), Ref: im.Seq(f.rng.IntN(3)), Type: f.word(), Flags: im.Flags(f.rng.IntN(2) * int(im.FlagUTF8)), Body: f.body()}
		if f.rng.IntN(2) == 0 {
			e.ID = fmt.Sprint("id", i, f.rng.IntN(2))
		}
		if conv == queue {
			e = im.Entry{Conv: conv, Op: im.OpPublish, Topic: "a/" + f.word(), Props: f.body(), Type: f.word(), Flags: im.FlagRetained, Body: f.body()}
		}
		f.append(&store.Append{Entry: e})
	}
	f.append(&store.Append{Entry: im.Entry{Conv: im.DM("alice", "bob"), From: "alice", Body: []byte("to be recalled"), Type: "text/plain"}})
	heads, err := f.st.Heads(ctx, convs)
	f.must(err)
	recalled := heads[0].Seq
	f.append(&store.Append{Entry: im.Entry{Conv: convs[0], From: "alice", Op: im.OpRecall, Ref: recalled}})
	for packet := range uint16(3) { // not yet released
		f.append(&store.Append{Packet: packet + 1, Entry: im.Entry{Conv: convs[0], From: "alice", Device: "phone", Body: f.body()}})
	}
	f.append(&store.Append{Packet: 65_535, NoEntry: true, Entry: im.Entry{From: "alice", Device: "phone"}},
		&store.Append{Packet: 9, Entry: im.Entry{Conv: im.DM("bob", "carol.x"), From: "bob", Device: "pad", Body: []byte("forgotten before it is released")}},
		&store.Append{NoEntry: true, Retain: &store.RetainedMessage{Topic: "t/" + f.word(), Body: []byte("r"), QoS: 1, Props: f.body(), Type: f.word(), Flags: im.FlagUTF8, TS: f.num(), Expires: f.num()}},
		&store.Append{NoEntry: true, Retain: &store.RetainedMessage{Topic: "u", Body: append(f.body(), 0)}})
	f.must(f.st.Trim(ctx, convs[2], 3))
	f.must(f.st.Trim(ctx, queue, heads[4].Seq)) // all of it
	f.must(f.st.Trim(ctx, im.DM("bob", "carol.x"), 1))
	for _, u := range users[:2] {
		_, err := f.st.PutRead(ctx, convs[0], u, im.Seq(1+f.rng.IntN(3)))
		f.must(err)
	}
	for i := range 3 {
		f.must(f.st.PutToken(ctx, store.Token{Hash: fmt.Sprint("hash", i), User: "alice", Device: []im.DeviceID{"", "phone"}[f.rng.IntN(2)], Family: f.word(), Issued: f.num(), Expires: f.num()}))
	}
	_, err = f.st.UseToken(ctx, "hash1", 1_790_000_000_000)
	f.must(err)
	f.must(f.st.PutSecret(ctx, "key", append(f.body(), 0)))
	f.must(f.st.PutSecret(ctx, "nothing", []byte{}))
	f.must(f.st.PutDevice(ctx, store.Device{Key: phone, Created: f.num(), LastSeen: f.num(), Version: 5,
		Session: store.Session{Present: true, Expiry: math.MaxUint32, Ended: f.num(), Subs: []store.Subscription{{Filter: "a/#", ID: 268_435_455, QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}, {Filter: "$share/g/" + f.word() + "/+"}}}}, true))
	f.must(f.st.PutDevice(ctx, store.Device{Key: im.DeviceKey{User: "bob", Device: "P.A-D_1"}}, false))
	f.must(f.st.PutCursors(ctx, phone, []store.Cursor{{Conv: convs[0], Acked: 3, Sent: 7, Ahead: []im.Seq{5, 7}, Known: true}, {Conv: queue, Known: true}, {Conv: im.GroupConv("nowhere"), Acked: 1, Sent: 1, Known: true}}))
	f.must(f.st.PutNotes(ctx, []store.Note{{Key: "push/addr/alice/phone", Value: f.body()[:0:0]}, {Key: "push/mark/" + string(convs[0]), Value: []byte{0, 255}}, {Key: "push/" + f.word() + "!", Value: append(f.body(), 1)}}, true))
	done, err := f.st.PutTasks(ctx, []store.Task{{Key: "push/bell/1", Queue: "q", At: 7, Owner: f.word(), Value: []byte{0, 2}}, {Key: "push/bell/2", Queue: "q2", At: store.Never, Value: []byte{}}})
	f.must(err)
	if slices.Contains(done, false) {
		f.t.Fatal(done)
	}
}

// export returns the records of a store as lines, in an order of their own, and
// all of the file.
func export(t *testing.T, st store.Store) (lines []string, file []byte) {
	t.Helper()
	var b bytes.Buffer
	if _, err := Export(t.Context(), st, &b, nil); err != nil {
		t.Fatal(err)
	}
	lines = strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	lines = lines[1 : len(lines)-1]
	slices.Sort(lines)
	return lines, b.Bytes()
}

// TestMovesRowByRow fills a store of each engine with every kind of row and takes
// it to the other and back: the same rows, to the last byte.
func TestMovesRowByRow(t *testing.T) {
	embedded := func(t *testing.T) store.Store { return openTest(t, time.Now) }
	for name, engines := range map[string][2]func(*testing.T) store.Store{"embedded to MongoDB and back": {embedded, openMongo}, "MongoDB to embedded and back": {openMongo, embedded}} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			from := engines[0](t)
			(&filler{t: t, st: from, rng: rand.New(rand.NewPCG(seed, 0))}).fill()
			want, file := export(t, from)
			kinds := map[string]bool{}
			for _, l := range want {
				kinds[l[2:strings.IndexByte(l[2:], '"')+2]] = true
			}
			for _, k := range []string{"secret", "user", "token", "relation", "group", "member", "device", "retained", "conversation", "entry", "read", "cursor", "receipt", "note", "task"} {
				if !kinds[k] {
					t.Errorf("nothing of the kind %s is exported", k)
				}
			}
			for hop := range 2 {
				to := engines[1-hop](t)
				if _, err := Import(context.Background(), to, bytes.NewReader(file), nil); err != nil {
					t.Error(err) // and show what differs
				}
				var got []string
				got, file = export(t, to)
				for _, l := range got {
					if _, found := slices.BinarySearch(want, l); !found {
						t.Errorf("hop %d: it was not there before: %.300s", hop+1, l)
					}
				}
				for _, l := range want {
					if _, found := slices.BinarySearch(got, l); !found {
						t.Errorf("hop %d: it is lost: %.300s", hop+1, l)
					}
				}
			}
		})
	}
}
