package mongostore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// A transaction goes through these steps, each a write to single documents:
//
//  1. its document is inserted, pending, with everything it will write;
//  2. each row is locked, by comparing its version (an absent row is inserted,
//     marked absent);
//  3. the document becomes committed: from here on it is done;
//  4. entries are appended, rows take their new values and are unlocked;
//  5. the document is removed.
//
// Whoever meets a locked row reads the transaction's document: committed, they
// finish it; pending, the row's value is the old one; gone or too old, they
// abort it. So a process may die between any two steps.

// Tx states.
const (
	pending   = "pending"
	committed = "committed"
	aborted   = "aborted"
)

// txPatience is how long a transaction may be pending before others abort it.
const txPatience = 15 * time.Second

type txDoc struct {
	ID      string    `bson:"_id"`
	State   string    `bson:"st"`
	Begun   int64     `bson:"at"` // Unix ms
	Rows    []txRow   `bson:"rows,omitempty"`
	Entries []message `bson:"es,omitempty"` // without seq and time
	Conv    string    `bson:"c,omitempty"`  // of Recall
	Recall  int64     `bson:"rc,omitempty"` // what to empty, with its edits, once the entries are in
	Blank   []int64   `bson:"bl,omitempty"` // the same, as earlier versions wrote it
}

// txRow is one row of a transaction. Exactly one of the values is set, unless it
// is removed.
type txRow struct {
	Coll     string          `bson:"k"`
	ID       string          `bson:"id"`
	Expect   int64           `bson:"v"` // the version it must have; 0: absent
	User     *store.User     `bson:"user,omitempty"`
	Relation *store.Relation `bson:"rel,omitempty"`
	Group    *store.Group    `bson:"group,omitempty"`
	Member   *store.Member   `bson:"mem,omitempty"`
	AtHead   bool            `bson:"head,omitempty"` // Member.Start is the head before the transaction's entries
	Remove   bool            `bson:"del,omitempty"`
}

// row is a document of users, relations, groups or members.
type row[T any] struct {
	ID     string `bson:"_id"`
	Ver    int64  `bson:"v"`
	Lock   string `bson:"l,omitempty"`  // the transaction that is changing it
	Absent bool   `bson:"x,omitempty"`  // it is only here to be locked
	Name   string `bson:"nl,omitempty"` // users: the name in lower case
	Group  string `bson:"g,omitempty"`  // members
	User   string `bson:"u,omitempty"`  // relations and members: the shard key
	D      T      `bson:"d"`
}

func relationID(u, peer im.UserID) string             { return string(u) + "/" + string(peer) }
func memberID(g im.GroupID, u im.UserID) string       { return string(u) + "/" + string(g) }
func (s *Store) rowsOf(coll string) *mongo.Collection { return *s.collections()[coll] }

// newVersion is unlike any version that the row has had.
func newVersion(old int64) int64 { return max(old+1, time.Now().UnixMicro()<<8|rand.Int64N(256)) }

func rowsOf(tx *store.Tx) (rows []txRow) {
	for _, u := range tx.Users {
		rows = append(rows, txRow{Coll: "users", ID: string(u.ID), Expect: int64(u.Ver), User: &u})
	}
	for _, r := range tx.Relations {
		rows = append(rows, txRow{Coll: "relations", ID: relationID(r.User, r.Peer), Expect: int64(r.Ver), Relation: &r, Remove: r.State == store.Stranger && !r.Blocked && r.Remark == ""})
	}
	for _, g := range tx.Groups {
		rows = append(rows, txRow{Coll: "groups", ID: string(g.ID), Expect: int64(g.Ver), Group: &g})
	}
	for _, m := range tx.Members {
		r := txRow{Coll: "members", ID: memberID(m.Group, m.User), Expect: int64(m.Ver), Member: &m, Remove: m.Role == ""}
		if m.Start == store.AtHead {
			r.AtHead, m.Start = true, 0
		}
		rows = append(rows, r)
	}
	// One order for everybody.
	sort.Slice(rows, func(i, j int) bool {
		return rows[i].Coll < rows[j].Coll || (rows[i].Coll == rows[j].Coll && rows[i].ID < rows[j].ID)
	})
	return rows
}

// Commit: a method of store.Store.
func (s *Store) Commit(ctx context.Context, tx *store.Tx) error {
	told, err := s.commit(context.WithoutCancel(ctx), tx)
	if err == nil {
		err = s.seated() // it may be another's since
	}
	if !told {
		for _, a := range tx.Entries {
			a.Err = err
			finish(a)
		}
	}
	return err
}

// commit reports whether the outcome of the entries has been told.
func (s *Store) commit(ctx context.Context, tx *store.Tx) (told bool, err error) {
	if err := s.up(); err != nil {
		return false, err
	}
	rows := rowsOf(tx)
	if len(rows) == 0 && len(tx.Entries) == 0 {
		return true, nil
	}
	if len(rows) == 1 && len(tx.Entries) == 0 && !rows[0].AtHead {
		return true, s.single(ctx, &rows[0])
	}
	doc := txDoc{ID: bson.NewObjectID().Hex(), State: pending, Begun: s.opt.Now().UnixMilli(), Rows: rows}
	for i, a := range tx.Entries {
		m := newMessage(&a.Entry, txKey(doc.ID, i), "")
		if hasDedupe(&a.Entry) {
			m.Key = idKey(a.Entry.ID)
		}
		doc.Entries = append(doc.Entries, m)
	}
	s.mine.Store(doc.ID, true)
	defer s.mine.Delete(doc.ID)
	if err := s.putTx(ctx, &doc); err != nil {
		return false, s.broken("Commit", err)
	}
	if err := s.lockAll(ctx, &doc); err != nil {
		s.undo(ctx, &doc)
		return false, s.broken("Commit", err)
	}
	if err := s.decide(ctx, &doc); err != nil {
		return false, s.broken("Commit", err)
	}
	// From here on it is done; what fails now is finished by whoever meets it.
	if told, err = s.apply(ctx, &doc, tx.Entries); err != nil {
		s.doubt()
	}
	return told, s.broken("Commit", err)
}

// broken notes an outage; other errors pass.
func (s *Store) broken(op string, err error) error {
	if err != nil && im.Is(err, im.Unavailable) {
		return s.failed(op, err)
	}
	return err
}

func (s *Store) putTx(ctx context.Context, doc *txDoc) error {
	return s.retry(ctx, "tx.begin", func(ctx context.Context) error {
		_, err := s.txs.InsertOne(ctx, doc)
		if mongo.IsDuplicateKeyError(err) { // it was done the first time
			return nil
		}
		return err
	})
}

// errBusy says that a row is locked by another transaction.
var errBusy = errors.New("a row is locked")

// lockAll locks every row, or none and returns Conflict. It never waits for a
// lock while it holds one.
func (s *Store) lockAll(ctx context.Context, doc *txDoc) error {
	deadline := time.Now().Add(s.opt.Timeout)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := s.tryLock(ctx, doc)
		if !errors.Is(err, errBusy) {
			return err
		}
		if err := s.unlock(ctx, doc); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return im.Refuse(im.Conflict, "changed", "it is being changed by somebody else: try again")
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-s.closing.Done():
			return gone()
		}
	}
}

func (s *Store) tryLock(ctx context.Context, doc *txDoc) error {
	for i := 0; i < len(doc.Rows); {
		coll := doc.Rows[i].Coll
		k := i
		for k < len(doc.Rows) && doc.Rows[k].Coll == coll && k-i < 500 {
			k++
		}
		if err := s.lockRows(ctx, doc.ID, s.rowsOf(coll), doc.Rows[i:k]); err != nil {
			return err
		}
		i = k
	}
	return nil
}

func (s *Store) lockRows(ctx context.Context, tx string, coll *mongo.Collection, rows []txRow) error {
	err := s.retry(ctx, "tx.lock", func(ctx context.Context) error {
		models := make([]mongo.WriteModel, len(rows))
		for i := range rows {
			r := &rows[i]
			if r.Expect == 0 {
				doc := append(r.where(), bson.E{Key: "v", Value: int64(0)}, bson.E{Key: "l", Value: tx}, bson.E{Key: "x", Value: true})
				if r.Member != nil { // who lists the group's members has to meet it
					doc = append(doc, bson.E{Key: "g", Value: string(r.Member.Group)})
				}
				models[i] = mongo.NewInsertOneModel().SetDocument(doc)
				continue
			}
			models[i] = mongo.NewUpdateOneModel().
				SetFilter(append(r.where(), bson.E{Key: "v", Value: r.Expect}, bson.E{Key: "l", Value: bson.D{{Key: "$exists", Value: false}}})).
				SetUpdate(bson.D{{Key: "$set", Value: bson.D{{Key: "l", Value: tx}}}})
		}
		_, err := coll.BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
		if onlyDuplicates(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	// What do we hold? Reading it back also tells apart what was uncertain.
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	type lockState struct {
		ID   string `bson:"_id"`
		Ver  int64  `bson:"v"`
		Lock string `bson:"l"`
	}
	have, err := read[lockState](ctx, s, "tx.lock", coll, in(ids), options.Find().SetProjection(bson.D{{Key: "v", Value: 1}, {Key: "l", Value: 1}}))
	if err != nil {
		return err
	}
	at := make(map[string]lockState, len(have))
	for _, h := range have {
		at[h.ID] = h
	}
	for i := range rows {
		switch h := at[rows[i].ID]; {
		case h.Lock == tx:
		case h.Lock != "":
			if found, err := s.meet(ctx, h.Lock); err != nil {
				return err
			} else if !found {
				if err := s.orphan(ctx, coll, rows[i].where(), h.Lock); err != nil {
					return err
				}
			}
			return errBusy
		case h.Ver != rows[i].Expect:
			return im.Refuse(im.Conflict, "changed", "it was changed meanwhile")
		default:
			return errBusy // it was unlocked between the two steps
		}
	}
	return nil
}

// owner is the shard key of a row: the user it belongs to.
func (r *txRow) owner() string {
	if u, _, ok := strings.Cut(r.ID, "/"); ok && r.Coll != "groups" {
		return u
	}
	return ""
}

// where selects the row, with its shard key.
func (r *txRow) where() bson.D {
	d := byID(r.ID)
	if u := r.owner(); u != "" {
		d = append(d, bson.E{Key: "u", Value: u})
	}
	return d
}

func onlyDuplicates(err error) bool {
	var be mongo.BulkWriteException
	if !errors.As(err, &be) || be.WriteConcernError != nil {
		return mongo.IsDuplicateKeyError(err) && !errors.As(err, &be)
	}
	for _, we := range be.WriteErrors {
		if !mongo.IsDuplicateKeyError(we.WriteError) {
			return false
		}
	}
	return len(be.WriteErrors) > 0
}

// decide is the commit: the one update that makes the transaction true.
func (s *Store) decide(ctx context.Context, doc *txDoc) error {
	state, err := s.turnTx(ctx, doc.ID, committed)
	if err != nil {
		return err
	}
	if state != committed { // we were too slow and somebody gave it up
		s.undo(ctx, doc)
		return im.Refuse(im.Conflict, "changed", "it took too long and was given up: try again")
	}
	doc.State = committed
	return nil
}

// turnTx moves a pending transaction to state and returns the state it is in
// then: "" if it is gone.
func (s *Store) turnTx(ctx context.Context, id, state string) (now string, err error) {
	err = s.retry(ctx, "tx.decide", func(ctx context.Context) error {
		_, err := s.txs.UpdateOne(ctx, bson.D{{Key: "_id", Value: id}, {Key: "st", Value: pending}}, bson.D{{Key: "$set", Value: bson.D{{Key: "st", Value: state}}}})
		return err
	})
	if err != nil {
		return "", err
	}
	doc, _, err := one[txDoc](ctx, s, "tx.decide", s.txs, byID(id), options.FindOne().SetProjection(bson.D{{Key: "st", Value: 1}}))
	return doc.State, err
}

// undo gives an undecided transaction up. What fails is done later by others.
func (s *Store) undo(ctx context.Context, doc *txDoc) {
	if state, err := s.turnTx(ctx, doc.ID, aborted); err != nil || state == committed {
		return
	}
	if s.unlock(ctx, doc) == nil {
		_ = s.dropTx(ctx, doc.ID)
	}
}

func (s *Store) dropTx(ctx context.Context, id string) error {
	return s.retry(ctx, "tx.end", func(ctx context.Context) error {
		_, err := s.txs.DeleteOne(ctx, byID(id))
		return err
	})
}

// unlock takes the transaction's locks off without changing anything.
func (s *Store) unlock(ctx context.Context, doc *txDoc) error {
	return s.eachColl(ctx, doc, func(r *txRow) []mongo.WriteModel {
		mine := append(r.where(), bson.E{Key: "l", Value: doc.ID})
		if r.Expect == 0 {
			return []mongo.WriteModel{mongo.NewDeleteOneModel().SetFilter(mine)}
		}
		return []mongo.WriteModel{mongo.NewUpdateOneModel().SetFilter(mine).SetUpdate(bson.D{{Key: "$unset", Value: bson.D{{Key: "l", Value: ""}}}})}
	})
}

// eachColl writes what fn makes of the rows, a bulk per collection.
func (s *Store) eachColl(ctx context.Context, doc *txDoc, fn func(*txRow) []mongo.WriteModel) error {
	models := map[string][]mongo.WriteModel{}
	for i := range doc.Rows {
		r := &doc.Rows[i]
		models[r.Coll] = append(models[r.Coll], fn(r)...)
	}
	for coll, ms := range models {
		for part := range chunks(ms, 500) {
			err := s.retry(ctx, "tx.rows", func(ctx context.Context) error {
				_, err := s.rowsOf(coll).BulkWrite(ctx, part, options.BulkWrite().SetOrdered(false))
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// apply does what a committed transaction says, again if need be. as are the
// appends of the entries if their caller waits for them; told, if it has heard
// their outcome.
func (s *Store) apply(ctx context.Context, doc *txDoc, as []*store.Append) (told bool, err error) {
	before, err := s.appendAll(ctx, doc, as)
	if err != nil {
		return true, err
	}
	for i := range doc.Rows {
		r := &doc.Rows[i]
		if !r.AtHead {
			continue
		}
		conv := im.GroupConv(r.Member.Group)
		start, known := before[conv]
		if !known {
			heads, err := s.Heads(ctx, []im.ConvID{conv})
			if err != nil {
				return true, err
			}
			start = heads[0].Seq
			before[conv] = start
		}
		r.Member.Start = start
	}
	err = s.eachColl(ctx, doc, func(r *txRow) []mongo.WriteModel {
		mine := append(r.where(), bson.E{Key: "l", Value: doc.ID})
		if r.Remove {
			return []mongo.WriteModel{mongo.NewDeleteOneModel().SetFilter(mine)}
		}
		return []mongo.WriteModel{mongo.NewUpdateOneModel().SetFilter(mine).SetUpdate(bson.D{{Key: "$set", Value: r.values(newVersion(r.Expect))}, {Key: "$unset", Value: bson.D{{Key: "l", Value: ""}, {Key: "x", Value: ""}}}})}
	})
	if err != nil {
		return true, err
	}
	if err := s.empty(ctx, im.ConvID(doc.Conv), doc.Blank); err != nil {
		return true, err
	}
	if doc.Recall != 0 {
		if err := s.recall(ctx, im.ConvID(doc.Conv), doc.Recall); err != nil {
			return true, err
		}
	}
	return true, s.dropTx(ctx, doc.ID)
}

// values are the fields of the row but its _id.
func (r *txRow) values(ver int64) bson.D {
	d := bson.D{{Key: "v", Value: ver}}
	switch {
	case r.User != nil:
		d = append(d, bson.E{Key: "nl", Value: strings.ToLower(r.User.Name)}, bson.E{Key: "d", Value: r.User})
	case r.Relation != nil:
		d = append(d, bson.E{Key: "u", Value: string(r.Relation.User)}, bson.E{Key: "d", Value: r.Relation})
	case r.Group != nil:
		d = append(d, bson.E{Key: "d", Value: r.Group})
	case r.Member != nil:
		d = append(d, bson.E{Key: "u", Value: string(r.Member.User)}, bson.E{Key: "g", Value: string(r.Member.Group)}, bson.E{Key: "d", Value: r.Member})
	}
	return d
}

// appendAll appends the transaction's entries, those that are not there yet, and
// returns for each of their conversations the head before them.
func (s *Store) appendAll(ctx context.Context, doc *txDoc, as []*store.Append) (before map[im.ConvID]im.Seq, err error) {
	before = map[im.ConvID]im.Seq{}
	if len(doc.Entries) == 0 {
		return before, nil
	}
	var wg sync.WaitGroup
	jobs := make([]job, len(doc.Entries))
	for i := range doc.Entries {
		m := &doc.Entries[i]
		var a *store.Append
		if as != nil {
			a = as[i]
		} else {
			e := m.entry()
			e.Seq, e.TS = 0, 0
			a = &store.Append{Entry: *e}
		}
		told := a.Done
		wg.Add(1)
		a.Done = func(a *store.Append) {
			a.Done = told
			finish(a)
			wg.Done()
		}
		jobs[i] = job{Append: a, key: m.Key}
	}
	s.append(jobs)
	wg.Wait()
	for i := range jobs {
		a := jobs[i].Append
		if a.Err != nil {
			return nil, a.Err
		}
		if b, ok := before[a.Entry.Conv]; !ok || a.Entry.Seq-1 < b {
			before[a.Entry.Conv] = a.Entry.Seq - 1
		}
	}
	return before, nil
}

// meet is for a lock: its transaction is finished if it is committed and given
// up if it is too old. If it is at work nothing is done; found is false if it is
// gone.
func (s *Store) meet(ctx context.Context, id string) (found bool, err error) {
	doc, found, err := one[txDoc](ctx, s, "tx.meet", s.txs, byID(id))
	if err != nil || !found {
		return found, err
	}
	switch {
	case doc.State == committed:
		_, err = s.apply(ctx, &doc, nil)
		if _, mine := s.mine.Load(id); !mine {
			s.doubt() // who began it tells nobody any more
		}
	case doc.State == aborted:
		s.undo(ctx, &doc)
	case s.opt.Now().UnixMilli()-doc.Begun > txPatience.Milliseconds():
		s.undo(ctx, &doc)
	}
	return true, err
}

// orphan takes the lock of a transaction that is gone off one row. Gone means
// finished, and then the row no longer has the lock, or given up.
func (s *Store) orphan(ctx context.Context, coll *mongo.Collection, row bson.D, tx string) error {
	mine := append(row[:len(row):len(row)], bson.E{Key: "l", Value: tx})
	return s.retry(ctx, "tx.orphan", func(ctx context.Context) error {
		_, err := coll.DeleteOne(ctx, append(mine[:len(mine):len(mine)], bson.E{Key: "x", Value: true}))
		if err == nil {
			_, err = coll.UpdateOne(ctx, mine, bson.D{{Key: "$unset", Value: bson.D{{Key: "l", Value: ""}}}})
		}
		return err
	})
}

// finishOldTxs finishes what processes that died have begun.
func (s *Store) finishOldTxs(ctx context.Context) error {
	docs, err := read[txDoc](ctx, s, "tx.old", s.txs, byAge(s.opt.Now().Add(-txPatience)), options.Find().SetLimit(1000).SetProjection(bson.D{{Key: "_id", Value: 1}}))
	for i := range docs {
		if _, err := s.meet(ctx, docs[i].ID); err != nil {
			return err
		}
	}
	return err
}

func byAge(before time.Time) bson.D {
	return bson.D{{Key: "at", Value: bson.D{{Key: "$lt", Value: before.UnixMilli()}}}}
}

// single changes one row, which needs no transaction.
func (s *Store) single(ctx context.Context, r *txRow) error {
	ver := newVersion(r.Expect)
	coll := s.rowsOf(r.Coll)
	type state struct {
		Ver    int64  `bson:"v"`
		Lock   string `bson:"l"`
		Absent bool   `bson:"x"`
	}
	deadline := time.Now().Add(s.opt.Timeout)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		done := false
		err := s.retry(ctx, "row", func(ctx context.Context) error {
			free := append(r.where(), bson.E{Key: "v", Value: r.Expect}, bson.E{Key: "l", Value: bson.D{{Key: "$exists", Value: false}}})
			var err error
			switch {
			case r.Expect == 0 && r.Remove:
			case r.Expect == 0:
				_, err = coll.InsertOne(ctx, append(byID(r.ID), r.values(ver)...))
				done = err == nil
			case r.Remove:
				var res *mongo.DeleteResult
				res, err = coll.DeleteOne(ctx, free)
				done = err == nil && res.DeletedCount == 1
			default:
				var res *mongo.UpdateResult
				res, err = coll.UpdateOne(ctx, free, bson.D{{Key: "$set", Value: r.values(ver)}})
				done = err == nil && res.MatchedCount == 1
			}
			if mongo.IsDuplicateKeyError(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return s.broken("Commit", err)
		}
		if done {
			return nil
		}
		now, found, err := one[state](ctx, s, "row", coll, r.where(), options.FindOne().SetProjection(bson.D{{Key: "v", Value: 1}, {Key: "l", Value: 1}, {Key: "x", Value: 1}}))
		switch {
		case err != nil:
			return s.broken("Commit", err)
		case r.Remove && !found, found && now.Ver == ver:
			return nil
		case now.Lock != "":
			if known, err := s.meet(ctx, now.Lock); err != nil {
				return err
			} else if !known {
				if err := s.orphan(ctx, coll, r.where(), now.Lock); err != nil {
					return err
				}
			}
		case found && now.Ver != r.Expect, !found && r.Expect != 0:
			// Ours may have been there and be changed again already; the caller
			// cannot tell either, and reads it anew.
			return im.Refuse(im.Conflict, "changed", "it was changed meanwhile")
		}
		if time.Now().After(deadline) {
			return im.Refuse(im.Conflict, "changed", "it is being changed by somebody else: try again")
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-s.closing.Done():
			return gone()
		}
	}
}

// rowBy reads one row. If a committed transaction has it locked, that is
// finished first.
func rowBy[T any](ctx context.Context, s *Store, what string, coll *mongo.Collection, id, owner string) (v T, ver int64, err error) {
	for {
		filter := byID(id)
		if owner != "" {
			filter = append(filter, bson.E{Key: "u", Value: owner})
		}
		r, found, err := one[row[T]](ctx, s, what, coll, filter)
		if err != nil {
			return v, 0, err
		}
		if found && r.Lock != "" {
			again, err := s.settleRow(ctx, coll, filter, r.Lock)
			if err != nil {
				return v, 0, err
			}
			if again {
				continue
			}
		}
		if !found || r.Absent {
			return v, 0, notFound(what)
		}
		return r.D, r.Ver, nil
	}
}

// settleRow looks at the transaction that holds a lock and reports whether the
// row has to be read again; if not, its present value is the true one.
func (s *Store) settleRow(ctx context.Context, coll *mongo.Collection, row bson.D, tx string) (again bool, err error) {
	doc, found, err := one[txDoc](ctx, s, "tx.meet", s.txs, byID(tx), options.FindOne().SetProjection(bson.D{{Key: "st", Value: 1}}))
	switch {
	case err != nil:
		return false, err
	case !found:
		return true, s.orphan(ctx, coll, row, tx)
	case doc.State != committed:
		return false, nil
	}
	_, err = s.meet(ctx, tx)
	return true, err
}

// rowsBy reads rows, likewise.
func rowsBy[T any](ctx context.Context, s *Store, what string, coll *mongo.Collection, filter bson.D, opts ...options.Lister[options.FindOptions]) (out []row[T], err error) {
again:
	for {
		rows, err := read[row[T]](ctx, s, what, coll, filter, opts...)
		if err != nil {
			return nil, err
		}
		out = out[:0]
		met := map[string]bool{}
		for i := range rows {
			if l := rows[i].Lock; l != "" && !met[l] {
				met[l] = true
				row := byID(rows[i].ID)
				if rows[i].User != "" {
					row = append(row, bson.E{Key: "u", Value: rows[i].User})
				}
				redo, err := s.settleRow(ctx, coll, row, l)
				if err != nil {
					return nil, err
				}
				if redo {
					continue again
				}
			}
			if !rows[i].Absent {
				out = append(out, rows[i])
			}
		}
		return out, nil
	}
}
