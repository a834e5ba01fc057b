package mongostore

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
)

// schemaVersion is the version of documents and indexes that this code reads and
// writes.
const schemaVersion = 1

// index is one that Parley needs, beside the _id of each collection.
type index struct {
	coll   string
	keys   bson.D
	unique bool
	why    string
}

var indexes = []index{
	{"messages", bson.D{{Key: "c", Value: 1}, {Key: "f", Value: 1}, {Key: "k", Value: 1}}, true, "a message is the same when its sender, conversation and id are: no duplicate, and outcomes can be looked up"},
	{"members", bson.D{{Key: "g", Value: 1}}, false, "the members of a group; rows are kept with their users"},
	{"users", bson.D{{Key: "nl", Value: 1}}, false, "users are found by the beginning of their name"},
	{"tokens", bson.D{{Key: "u", Value: 1}}, false, "all refresh tokens of a user are dropped together"},
	{"tasks", bson.D{{Key: "q", Value: 1}, {Key: "at", Value: 1}}, false, "what is due of a queue, the earliest first"},
	{"txs", bson.D{{Key: "at", Value: 1}}, false, "what a process left unfinished is found by its age"},
}

// name is the index's, as MongoDB would call it.
func (x *index) name() string {
	var parts []string
	for _, k := range x.keys {
		parts = append(parts, fmt.Sprintf("%s_%v", k.Key, k.Value))
	}
	return strings.Join(parts, "_")
}

type schemaDoc struct {
	ID      string `bson:"_id"`
	Version int    `bson:"v"`
	Holder  string `bson:"by,omitempty"` // who migrates
	Until   int64  `bson:"until,omitempty"`
}

// migrate brings the schema up to date. One process at a time does it, under a
// lease; the others wait. Every step may be done again.
func (s *Store) migrate(ctx context.Context) error {
	me := bson.NewObjectID().Hex()
	deadline := time.Now().Add(2 * s.opt.Migration) // longer than a dead one's lease
	for {
		var doc schemaDoc
		doc, found, err := one[schemaDoc](ctx, s, "schema", s.meta, byID("schema"))
		if err != nil {
			return err
		}
		if found && doc.Version > schemaVersion {
			return im.Refuse(im.Unsupported, "store_version", "the database %s was written by a later Parley (schema %d; this one knows %d): use that version", s.db.Name(), doc.Version, schemaVersion)
		}
		if found && doc.Version == schemaVersion {
			missing, err := s.checkIndexes(ctx)
			if err != nil || len(missing) == 0 {
				return err
			}
		}
		held, err := s.holdSchema(ctx, me, found)
		if err != nil {
			return err
		}
		if held {
			break
		}
		if time.Now().After(deadline) {
			return im.Refuse(im.Unavailable, "store_migrating", "another process has been migrating the database for %s: see what it does, or wait", 2*s.opt.Migration)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	var keeper sync.WaitGroup
	defer keeper.Wait()
	held, done := context.WithCancel(ctx)
	defer done()
	keeper.Go(func() { s.keepSchema(held, me, lose) })
	if err := s.createIndexes(ctx); err != nil {
		if why := context.Cause(ctx); why != nil {
			return why
		}
		return err
	}
	last := bson.D{{Key: "$set", Value: bson.D{{Key: "v", Value: schemaVersion}}}, {Key: "$unset", Value: bson.D{{Key: "by", Value: ""}, {Key: "until", Value: ""}}}}
	err := s.retry(ctx, "schema", func(ctx context.Context) error {
		_, err := s.meta.UpdateOne(ctx, schemaOf(me), last)
		return err
	})
	if err != nil {
		return err
	}
	// Not ours at that moment? Then it is said to be done only if another did it.
	doc, _, err := one[schemaDoc](ctx, s, "schema", s.meta, byID("schema"))
	if err == nil && doc.Version != schemaVersion {
		err = schemaLost()
	}
	return err
}

func schemaOf(holder string) bson.D {
	return bson.D{{Key: "_id", Value: "schema"}, {Key: "by", Value: holder}}
}

func schemaLost() error {
	return im.Refuse(im.Unavailable, "store_migrating", "this process was silent for so long that another took the migration of the database over: start again")
}

// keepSchema renews the lease until ctx ends. It calls lose when the lease is
// another's, or could not be renewed before it ended.
func (s *Store) keepSchema(ctx context.Context, me string, lose func(error)) {
	tick := time.NewTicker(s.opt.Migration / 6)
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		before := time.Now()
		try, done := context.WithTimeout(ctx, s.opt.Migration/6)
		res, err := s.meta.UpdateOne(try, schemaOf(me), bson.D{{Key: "$set", Value: bson.D{{Key: "until", Value: s.opt.Now().Add(s.opt.Migration).UnixMilli()}}}})
		done()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && res.MatchedCount == 0, err != nil && time.Since(renewed) > s.opt.Migration/2:
			lose(schemaLost())
			return
		case err == nil:
			renewed = before
		}
	}
}

// holdSchema takes the lease for the migration.
func (s *Store) holdSchema(ctx context.Context, me string, exists bool) (held bool, err error) {
	now := s.opt.Now().UnixMilli()
	until := now + s.opt.Migration.Milliseconds()
	err = s.retry(ctx, "schema", func(ctx context.Context) error {
		if !exists {
			_, err := s.meta.InsertOne(ctx, schemaDoc{ID: "schema", Holder: me, Until: until})
			if mongo.IsDuplicateKeyError(err) {
				return nil
			}
			return err
		}
		_, err := s.meta.UpdateOne(ctx, bson.D{{Key: "_id", Value: "schema"}, {Key: "$or", Value: bson.A{bson.D{{Key: "until", Value: bson.D{{Key: "$exists", Value: false}}}}, bson.D{{Key: "until", Value: bson.D{{Key: "$lt", Value: now}}}}}}},
			bson.D{{Key: "$set", Value: bson.D{{Key: "by", Value: me}, {Key: "until", Value: until}}}})
		return err
	})
	if err != nil {
		return false, err
	}
	doc, _, err := one[schemaDoc](ctx, s, "schema", s.meta, byID("schema"))
	return doc.Holder == me, err
}

func (s *Store) createIndexes(ctx context.Context) error {
	missing, err := s.checkIndexes(ctx)
	if err != nil {
		return err
	}
	for _, x := range missing {
		o := options.Index().SetName(x.name())
		if x.unique {
			o.SetUnique(true)
		}
		// The time of one attempt would not do for a large collection, and the
		// server gives the index up when it is over.
		err := s.retryFor(ctx, 10*time.Minute, "indexes", func(context.Context) error {
			build, cancel := context.WithTimeout(ctx, 10*time.Minute)
			defer cancel()
			defer context.AfterFunc(s.closing, cancel)()
			_, err := s.rowsOf(x.coll).Indexes().CreateOne(build, mongo.IndexModel{Keys: x.keys, Options: o})
			return err
		})
		if err != nil {
			return fmt.Errorf("index %s of %s.%s: %w", x.name(), s.db.Name(), x.coll, err)
		}
	}
	return nil
}

// checkIndexes returns what is missing, and refuses what is wrong.
func (s *Store) checkIndexes(ctx context.Context) (missing []index, err error) {
	missing, wrong, err := s.compareIndexes(ctx)
	if err == nil && len(wrong) > 0 {
		err = im.Refuse(im.Unsupported, "store_indexes", "the database %s has indexes with which no promise holds: %s", s.db.Name(), strings.Join(wrong, "; "))
	}
	return missing, err
}
