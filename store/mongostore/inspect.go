package mongostore

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Inspect connects and says what an operator should mend: a schema of another
// version, missing indexes, a server that cannot keep the promises. It writes
// one small document, to see whether a majority takes it.
func Inspect(ctx context.Context, uri string, o Options) (faults []string, err error) {
	setDefaults(&o)
	s := &Store{opt: o, log: o.Log}
	if err := s.connect(uri); err != nil {
		return nil, err
	}
	s.closing, s.shut = context.WithCancel(context.Background())
	defer func() {
		s.shut()
		_ = s.client.Disconnect(context.WithoutCancel(ctx))
	}()
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }

	var hello struct {
		SetName string `bson:"setName"`
		Msg     string `bson:"msg"`
	}
	err = s.ask(ctx, "hello", func(ctx context.Context) error {
		return s.db.RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&hello)
	})
	if err != nil {
		return nil, err
	}
	if hello.SetName == "" && hello.Msg != "isdbgrid" {
		fault("the server is neither a replica set nor a sharded cluster: what is acknowledged is on one machine only, and writes are not tried again by the driver")
	}
	doc, found, err := one[schemaDoc](ctx, s, "schema", s.meta, byID("schema"))
	switch {
	case err != nil:
		return faults, err
	case !found:
		fault("the database %s has no schema yet: the server makes it when it starts", s.db.Name())
		return faults, nil
	case doc.Version != schemaVersion:
		fault("the schema is version %d, this Parley knows %d", doc.Version, schemaVersion)
	}
	missing, err := s.missingIndexes(ctx)
	if err != nil {
		return faults, err
	}
	for _, x := range missing {
		fault("index %s of %s is missing (%s); a start of the server makes it", x.name(), x.coll, x.why)
	}
	_, err = s.meta.UpdateOne(ctx, byID("ping"), bson.D{{Key: "$set", Value: bson.D{{Key: "at", Value: s.opt.Now().UnixMilli()}}}}, options.UpdateOne().SetUpsert(true))
	if err != nil && !mongo.IsDuplicateKeyError(err) {
		fault("a write with majority and journal fails: %v", err)
	}
	return faults, nil
}
