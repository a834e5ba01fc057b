package mongostore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/store"
)

// SwapNote: a method of store.Notes. One command compares and writes; if it did
// not, what is there is read: an answer before it may have been lost.
func (s *Store) SwapNote(ctx context.Context, key string, old, value []byte) (bool, error) {
	is := append(byID(key), bson.E{Key: "v", Value: old})
	sure := false
	err := s.retry(ctx, "SwapNote", func(ctx context.Context) (err error) {
		switch {
		case old == nil && value == nil:
		case old == nil:
			if _, err = s.notes.InsertOne(ctx, secret{ID: key, Value: value}); mongo.IsDuplicateKeyError(err) {
				return nil
			}
			sure = err == nil
		case value == nil:
			res, err := s.notes.DeleteOne(ctx, is)
			sure = err == nil && res.DeletedCount == 1
			return err
		default:
			res, err := s.notes.UpdateOne(ctx, is, bson.D{{Key: "$set", Value: bson.D{{Key: "v", Value: value}}}})
			sure = err == nil && res.MatchedCount == 1
			return err
		}
		return err
	})
	if err != nil || sure {
		return sure, err
	}
	now, found, err := one[secret](ctx, s, "SwapNote", s.notes, byID(key))
	return err == nil && found == (value != nil) && bytes.Equal(now.Value, value), err
}

// task is a store.Task's document. Who has taken it is in the same document as
// when it may be taken, so that taking it is one compare-and-set of its version.
type task struct {
	ID    string `bson:"_id"`
	Queue string `bson:"q"`
	At    int64  `bson:"at"`
	Owner string `bson:"o"`
	Value []byte `bson:"d"`
	Ver   int64  `bson:"v"`
}

func (t *task) id() string { return t.ID }

func (t *task) value() store.Task {
	return store.Task{Key: t.ID, Queue: t.Queue, At: t.At, Owner: t.Owner, Value: t.Value, Ver: uint64(t.Ver)}
}

func taskDoc(t *store.Task, ver int64) task {
	return task{ID: t.Key, Queue: t.Queue, At: t.At, Owner: t.Owner, Value: t.Value, Ver: ver}
}

// TasksOf: a method of store.Tasks.
func (s *Store) TasksOf(ctx context.Context, keys []string) ([]store.Task, error) {
	have := make(map[string]*task, len(keys))
	for part := range chunks(keys, 1000) {
		docs, err := read[task](ctx, s, "TasksOf", s.tasks, in(part))
		if err != nil {
			return nil, err
		}
		for i := range docs {
			have[docs[i].ID] = &docs[i]
		}
	}
	out := make([]store.Task, len(keys))
	for i, k := range keys {
		if out[i].Key = k; have[k] != nil {
			out[i] = have[k].value()
		}
	}
	return out, nil
}

// EachTask: a method of store.Tasks.
func (s *Store) EachTask(ctx context.Context, prefix string, fn func(store.Task) bool) error {
	return eachFrom(ctx, s, "EachTask", s.tasks, "$gte", prefix, func(t *task) bool {
		return strings.HasPrefix(t.ID, prefix) && fn(t.value()) // past the prefix it ends
	})
}

// CountTasks: a method of store.Tasks.
func (s *Store) CountTasks(ctx context.Context, queue string, before int64) (n int, err error) {
	err = s.ask(ctx, "CountTasks", func(ctx context.Context) error {
		count, err := s.tasks.CountDocuments(ctx, bson.D{{Key: "q", Value: queue}, {Key: "at", Value: bson.D{{Key: "$lt", Value: before}}}})
		n = int(count)
		return err
	})
	return n, err
}

// PutTasks: a method of store.Tasks. All are one unordered batch, each of which
// compares a version. If the server does not say that every one was written, what
// is there now is read: a new version is like no other.
func (s *Store) PutTasks(ctx context.Context, ts []store.Task) ([]bool, error) {
	done := make([]bool, len(ts))
	for from := 0; from < len(ts); from += 1000 {
		to := min(from+1000, len(ts))
		if err := s.putTasks(ctx, ts[from:to], done[from:to]); err != nil {
			return done, err
		}
	}
	return done, nil
}

func (s *Store) putTasks(ctx context.Context, ts []store.Task, done []bool) error {
	vers := make([]int64, len(ts))
	models := make([]mongo.WriteModel, len(ts))
	for i := range ts {
		t := &ts[i]
		vers[i] = 1 + rand.Int64N(1<<62) // who reads it back knows it for their own
		is := append(byID(t.Key), bson.E{Key: "v", Value: int64(t.Ver)})
		switch {
		case t.Value == nil:
			models[i] = mongo.NewDeleteOneModel().SetFilter(is)
		case t.Ver == 0:
			models[i] = mongo.NewInsertOneModel().SetDocument(taskDoc(t, vers[i]))
		default:
			models[i] = mongo.NewReplaceOneModel().SetFilter(is).SetReplacement(taskDoc(t, vers[i]))
		}
	}
	var sure int64
	tries := 0
	err := s.retry(ctx, "PutTasks", func(ctx context.Context) error {
		tries++
		res, err := s.tasks.BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
		if onlyDuplicates(err) {
			err = nil
		}
		if res != nil && tries == 1 {
			sure = res.MatchedCount + res.InsertedCount + res.DeletedCount
		}
		return err
	})
	if err != nil {
		return err
	}
	if sure == int64(len(ts)) {
		for i := range ts {
			done[i], ts[i].Ver = true, uint64(vers[i])
		}
		return nil
	}
	ids := make([]string, len(ts))
	for i := range ts {
		ids[i] = ts[i].Key
	}
	type version struct {
		ID  string `bson:"_id"`
		Ver int64  `bson:"v"`
	}
	docs, err := read[version](ctx, s, "PutTasks", s.tasks, in(ids), options.Find().SetProjection(bson.D{{Key: "v", Value: 1}}))
	if err != nil {
		return err
	}
	now := make(map[string]int64, len(docs))
	for _, d := range docs {
		now[d.ID] = d.Ver
	}
	for i := range ts {
		v, found := now[ts[i].Key]
		if ts[i].Value == nil {
			done[i] = !found // by us, or by somebody else: it is not there
		} else {
			done[i] = v == vers[i]
		}
		if done[i] {
			ts[i].Ver = uint64(vers[i])
		}
	}
	return nil
}

// takeMore is how many times as many tasks are looked at as are wanted: takers
// that choose at random among them seldom want the same.
const takeMore = 4

// TakeTasks: a method of store.Tasks.
func (s *Store) TakeTasks(ctx context.Context, queue, owner string, now, until int64, limit int) ([]store.Task, error) {
	due := bson.D{{Key: "q", Value: queue}, {Key: "at", Value: bson.D{{Key: "$lte", Value: now}}}}
	docs, err := read[task](ctx, s, "TakeTasks", s.tasks, due, options.Find().SetSort(bson.D{{Key: "at", Value: 1}}).SetLimit(int64(min(takeMore*limit, 1000))))
	if err != nil {
		return nil, err
	}
	if len(docs) > limit {
		rand.Shuffle(len(docs), func(i, k int) { docs[i], docs[k] = docs[k], docs[i] })
		docs = docs[:limit]
	}
	ts := make([]store.Task, len(docs))
	for i := range docs {
		ts[i] = docs[i].value()
		ts[i].Owner, ts[i].At = owner, until
	}
	done, err := s.PutTasks(ctx, ts)
	if err != nil {
		return nil, err
	}
	taken := ts[:0]
	for i := range ts {
		if done[i] {
			taken = append(taken, ts[i])
		}
	}
	return taken, nil
}
