package chat

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

// house is a Chat on a real store, with a courier that writes down what it gets.
// The store's files are in memory: this room decides, and what a disk keeps is
// tested with the store. A new store for each of 250 rows is what costs: on a
// disk that others use too, most of a minute of waiting for sync and unlink.
type house struct {
	*Chat
	t     testing.TB
	st    *hookedStore
	mail  *mail
	clock atomic.Int64 // Unix ms
}

func newHouse(t testing.TB, o Options) *house {
	t.Helper()
	db, err := pebblestore.Open("store", pebblestore.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &house{t: t, st: &hookedStore{Store: db}, mail: &mail{t: t, rooms: map[im.GroupID]map[im.UserID]bool{}, heads: map[im.ConvID]im.Seq{}}}
	h.clock.Store(1_790_000_000_000)
	o.Store, o.Courier = h.st, h.mail
	o.Now = func() time.Time { return time.UnixMilli(h.clock.Load()) }
	h.Chat = New(o)
	return h
}

// people makes accounts.
func (h *house) people(ids ...im.UserID) {
	h.t.Helper()
	tx := &store.Tx{}
	for _, id := range ids {
		tx.Users = append(tx.Users, store.User{ID: id, Name: "Name of " + string(id)})
	}
	h.must(h.st.Store.Commit(context.Background(), tx))
}

// friends makes friends of a and all others, by asking and accepting.
func (h *house) friends(a im.UserID, others ...im.UserID) {
	h.t.Helper()
	for _, b := range others {
		h.add(a, b, StateRequested)
		h.add(b, a, StateFriends)
	}
}

func (h *house) add(me, peer im.UserID, want string) {
	h.t.Helper()
	if got, err := h.AddFriend(context.Background(), me, peer, "", nil); got != want || err != nil {
		h.t.Fatalf("%s adds %s: %q, %v; want %q", me, peer, got, err, want)
	}
}

// group makes a group of owner and friends of theirs.
func (h *house) group(owner im.UserID, members ...im.UserID) im.GroupID {
	h.t.Helper()
	g, err := h.CreateGroup(context.Background(), owner, "team", members)
	h.must(err)
	return g.ID
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// told is an Owner that waits for its append.
type told chan *store.Append

func (c told) Committed(a *store.Append) { c <- a }

// try publishes and returns the seq, as a connection would.
func (h *house) try(from im.UserID, topic, body string) (im.Seq, error) {
	h.t.Helper()
	tp, err := im.ParseTopic(from, topic)
	h.must(err)
	a := &store.Append{Entry: im.Entry{Body: []byte(body)}, Owner: make(told, 1)}
	if err := h.Check(context.Background(), Sender{User: from, Device: "phone"}, &tp, a); err != nil {
		return 0, err
	}
	h.Submit(a)
	<-a.Owner.(told)
	return a.Entry.Seq, a.Err
}

func (h *house) say(from im.UserID, topic, body string) im.Seq {
	h.t.Helper()
	seq, err := h.try(from, topic, body)
	h.must(err)
	return seq
}

// code is what a client sees of err: "" for nil.
func code(err error) string {
	if err == nil {
		return ""
	}
	return im.CodeOf(err)
}

func (h *house) wantCode(err error, want string) {
	h.t.Helper()
	if got := code(err); got != want {
		h.t.Errorf("got %q (%v), want %q", got, err, want)
	}
}

// mail is a courier that keeps who is in which room, as delivery does, and
// writes down what everybody gets.
type mail struct {
	t     testing.TB
	mu    sync.Mutex
	rooms map[im.GroupID]map[im.UserID]bool
	heads map[im.ConvID]im.Seq
	got   []got
	calls []string // Read, Joined, Left
}

// got is an entry that reached a user.
type got struct {
	user  im.UserID
	conv  im.ConvID
	seq   im.Seq
	event string
	body  string
}

func (m *mail) Offer(e *im.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.Seq != m.heads[e.Conv]+1 {
		m.t.Errorf("%s: offered %d after %d", e.Conv, e.Seq, m.heads[e.Conv])
	}
	m.heads[e.Conv] = e.Seq
	var to []im.UserID
	switch e.Conv.Kind() {
	case im.KindDM:
		a, b := e.Conv.Pair()
		to = slices.Compact([]im.UserID{a, b})
	case im.KindGroup:
		for u := range m.rooms[e.Conv.Group()] {
			to = append(to, u)
		}
	case im.KindAccount:
		to = []im.UserID{e.Conv.Owner()}
	}
	for _, u := range to {
		m.got = append(m.got, got{u, e.Conv, e.Seq, e.Event, string(e.Body)})
	}
}

func (m *mail) Joined(g im.GroupID, u im.UserID, start im.Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rooms[g] == nil {
		m.rooms[g] = map[im.UserID]bool{}
	}
	m.rooms[g][u] = true
	m.calls = append(m.calls, fmt.Sprintf("joined %s %d", u, start))
}

func (m *mail) Left(g im.GroupID, u im.UserID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rooms[g], u)
	m.calls = append(m.calls, "left "+string(u))
}

func (m *mail) Read(conv im.ConvID, u im.UserID, d im.DeviceID, seq im.Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf("read %s %s/%s %d", conv, u, d, seq))
}

func (m *mail) Wake(conv im.ConvID, seq im.Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf("wake %s %d", conv, seq))
}

func (m *mail) Ephemeral(im.Ephemeral) {}

// reached returns what u got, as "event body", of conv; all logs if it is "".
func (m *mail) reached(u im.UserID, conv im.ConvID) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []string{}
	for _, g := range m.got {
		if g.user == u && (conv == "" || g.conv == conv) {
			out = append(out, g.event+" "+g.body)
		}
	}
	return out
}

// me returns what u got on their account log, and forgets what came so far.
func (m *mail) me(u im.UserID) []string {
	out := m.reached(u, im.AccountConv(u))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.got = slices.DeleteFunc(m.got, func(g got) bool { return g.user == u && g.conv == im.AccountConv(u) })
	return out
}

func (m *mail) inRoom(g im.GroupID, u im.UserID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rooms[g][u]
}

func (m *mail) takeCalls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.calls
	m.calls = nil
	return out
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// hookedStore lets a test look at, count, hold up or fail calls. Hooks are set
// while nothing is under way.
type hookedStore struct {
	store.Store
	onCommit  func(*store.Tx) error // before a commit; an error is its outcome
	onRead    func(what string)     // after a row was read, before it is returned
	late      chan func()           // if not nil: where Done calls go instead of being made
	roleReads atomic.Int64          // Relation, Group and Member
}

func (s *hookedStore) Commit(ctx context.Context, tx *store.Tx) error {
	if s.onCommit != nil {
		if err := s.onCommit(tx); err != nil {
			return err
		}
	}
	if s.late != nil {
		for _, a := range tx.Entries {
			done := a.Done
			a.Done = func(a *store.Append) { s.late <- func() { done(a) } }
		}
	}
	return s.Store.Commit(ctx, tx)
}

func (s *hookedStore) read(what string) {
	s.roleReads.Add(1)
	if s.onRead != nil {
		s.onRead(what)
	}
}

func (s *hookedStore) Relation(ctx context.Context, u, peer im.UserID) (store.Relation, error) {
	r, err := s.Store.Relation(ctx, u, peer)
	s.read("relation")
	return r, err
}

func (s *hookedStore) Group(ctx context.Context, g im.GroupID) (store.Group, error) {
	r, err := s.Store.Group(ctx, g)
	s.read("group")
	return r, err
}

func (s *hookedStore) Member(ctx context.Context, g im.GroupID, u im.UserID) (store.Member, error) {
	r, err := s.Store.Member(ctx, g, u)
	s.read("member")
	return r, err
}

// jsonText is how messages come.
type jsonText = json.RawMessage

// envelope is what the tests read of one.
type envelope struct {
	Seq   im.Seq
	From  im.UserID
	Text  string
	Event string
}

func open(t *testing.T, msgs []jsonText) []envelope {
	t.Helper()
	out := make([]envelope, len(msgs))
	for i, m := range msgs {
		if err := json.Unmarshal(m, &out[i]); err != nil {
			t.Fatalf("%s: %v", m, err)
		}
	}
	return out
}

func seqs(t *testing.T, msgs []jsonText) []im.Seq {
	t.Helper()
	out := []im.Seq{}
	for _, e := range open(t, msgs) {
		out = append(out, e.Seq)
	}
	return out
}

func ptr[T any](v T) *T { return &v }
