package mongostore

import (
	"context"
	"fmt"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Report is what Inspect has found.
type Report struct {
	Faults   []string // no promise holds until they are mended
	Warnings []string // it works, but an operator would want to know
	Holder   string   // who has the seat; "" nobody
}

// Inspect connects and says what an operator should mend: a schema of another
// version, indexes that are missing or wrong, a server that cannot keep the
// promises. It writes one small document, to see whether a majority takes it.
func Inspect(ctx context.Context, uri string, o Options) (*Report, error) {
	setDefaults(&o)
	s, err := dial(uri, o)
	if err != nil {
		return nil, err
	}
	defer s.disconnect()
	r := &Report{}
	fault := func(format string, args ...any) { r.Faults = append(r.Faults, fmt.Sprintf(format, args...)) }
	if r.Warnings, err = s.Warnings(ctx); err != nil {
		return nil, err
	}
	doc, found, err := one[schemaDoc](ctx, s, "schema", s.meta, byID("schema"))
	switch {
	case err != nil:
		return nil, err
	case !found:
		fault("the database %s has no schema yet: the server makes it when it starts", s.db.Name())
		return r, nil
	case doc.Version != schemaVersion:
		fault("the schema is version %d, this Parley knows %d", doc.Version, schemaVersion)
	}
	missing, wrong, err := s.compareIndexes(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range missing {
		fault("index %s of %s is missing (%s); a start of the server makes it", x.name(), x.coll, x.why)
	}
	r.Faults = append(r.Faults, wrong...)
	why, err := s.Partial(ctx)
	if err != nil {
		return nil, err
	}
	if why != "" {
		fault("it holds a part of an installation only: %s; run parley import with the same file again, or drop the database", why)
	}
	holder, found, err := one[seatDoc](ctx, s, "seat", s.meta, byID("seat"))
	if err != nil {
		return nil, err
	}
	if found {
		r.Holder = holder.String()
	}
	try, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	defer cancel()
	_, err = s.meta.UpdateOne(try, byID("ping"), bson.D{{Key: "$set", Value: bson.D{{Key: "at", Value: s.opt.Now().UnixMilli()}}}}, options.UpdateOne().SetUpsert(true))
	if err != nil && !mongo.IsDuplicateKeyError(err) {
		fault("a write with majority and journal fails: %v", err)
	}
	return r, nil
}

// hello is what a server says of itself.
type hello struct {
	SetName  string   `bson:"setName"`
	Msg      string   `bson:"msg"`
	Hosts    []string `bson:"hosts"`
	Arbiters []string `bson:"arbiters"`
	Wire     int      `bson:"maxWireVersion"`
}

// wire60 is the wire version of MongoDB 6.0, which is asked for because the Stable
// API has no command that tells the version itself.
const wire60 = 17

func (h *hello) warnings() (out []string) {
	switch sharded := h.Msg == "isdbgrid"; {
	case sharded:
	case h.SetName == "":
		out = append(out, "the server is neither a replica set nor a sharded cluster: what is acknowledged is on one machine only, and writes are not tried again by the driver")
	case len(h.Hosts) == 1:
		out = append(out, "the replica set has one member: what is acknowledged is on one machine only")
	}
	if len(h.Arbiters) > 0 {
		out = append(out, "the replica set has an arbiter: with one data member down no majority takes writes, and nothing is acknowledged; give it a third data member instead")
	}
	if h.Wire < wire60 {
		out = append(out, "the server is older than MongoDB 6.0, with which Parley is not tested")
	}
	return out
}

// Warnings says what of the server and of the URI an operator would want to know.
func (s *Store) Warnings(ctx context.Context) ([]string, error) {
	var h hello
	err := s.ask(ctx, "hello", func(ctx context.Context) error {
		return s.db.RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&h)
	})
	if err != nil {
		return nil, err
	}
	return append(h.warnings(), s.ignored()...), nil
}

// ignored says what the URI asks for and does not get, because the promises rest
// on it (connect).
func (s *Store) ignored() (out []string) {
	note := func(asked bool, option string, got any, used string) {
		if asked {
			out = append(out, fmt.Sprintf("store.uri asks for %s=%v, which is not followed: Parley always uses %s", option, got, used))
		}
	}
	u := s.uri
	note(u.WNumberSet, "w", u.WNumber, "w=majority")
	note(u.WString != "" && u.WString != "majority", "w", u.WString, "w=majority")
	note(u.JSet && !u.J, "journal", u.J, "journal=true")
	note(u.ReadPreference != "" && !strings.EqualFold(u.ReadPreference, "primary"), "readPreference", u.ReadPreference, "readPreference=primary")
	note(u.ReadConcernLevel != "" && u.ReadConcernLevel != "majority", "readConcernLevel", u.ReadConcernLevel, "readConcernLevel=majority")
	note(u.RetryWritesSet && !u.RetryWrites, "retryWrites", u.RetryWrites, "retryWrites=true")
	return out
}
