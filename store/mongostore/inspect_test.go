package mongostore

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/mongostore/mongotest"
)

// plain is a client as an operator's tools have it: without Parley's options.
func plain(t *testing.T, uri string) *mongo.Database {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(ctx) })
	name := uri[strings.LastIndexByte(uri, '/')+1:]
	name, _, _ = strings.Cut(name, "?")
	return c.Database(name)
}

func inspect(t *testing.T, uri string) *Report {
	t.Helper()
	r, err := Inspect(ctx, uri, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// one of list holds all of the words.
func says(list []string, words ...string) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(s, w) })
	})
}

func TestInspectASoundDatabase(t *testing.T) {
	uri := server.Database(t)
	if r := inspect(t, uri); !says(r.Faults, "no schema yet") {
		t.Errorf("an empty database: %+v", r)
	}
	s := open(t, uri, Options{})
	r := inspect(t, uri)
	if len(r.Faults) != 0 || r.Holder != "" || (!server.Real && (len(r.Warnings) != 1 || !says(r.Warnings, "neither a replica set nor a sharded cluster"))) {
		t.Errorf("%+v", r)
	}
	if err := s.TakeSeat(ctx, "parley serve", nil); err != nil {
		t.Fatal(err)
	}
	if r := inspect(t, uri); !strings.Contains(r.Holder, "parley serve on host") {
		t.Errorf("the holder is %q", r.Holder)
	}
	if err := s.SetPartial(ctx, "half an import"); err != nil {
		t.Fatal(err)
	}
	if r := inspect(t, uri); !says(r.Faults, "half an import") {
		t.Errorf("%+v", r)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Each index is replaced by one that differs in one thing; none of them is made
// out of sight, all are found, and no server starts on them.
func TestInspectFindsWhatIsWrongWithIndexes(t *testing.T) {
	type ix struct {
		coll string
		keys bson.D
		o    *options.IndexOptionsBuilder
	}
	asc := func(keys ...string) (d bson.D) {
		for _, k := range keys {
			d = append(d, bson.E{Key: k, Value: int32(1)})
		}
		return d
	}
	named := func(name string) *options.IndexOptionsBuilder { return options.Index().SetName(name) }
	for name, tt := range map[string]struct {
		drop   string // of coll
		create ix
		want   []string // words of a fault
		ferret bool     // FerretDB can do it; else it is answered for
	}{
		"it is missing":             {"c_1_f_1_k_1", ix{coll: "messages"}, []string{"c_1_f_1_k_1 of messages is missing"}, true},
		"it is not unique":          {"c_1_f_1_k_1", ix{"messages", asc("c", "f", "k"), named("c_1_f_1_k_1")}, []string{"c_1_f_1_k_1 of messages is not unique", "dropIndex"}, true},
		"its keys differ":           {"c_1_f_1_k_1", ix{"messages", asc("c", "k", "f"), named("c_1_f_1_k_1").SetUnique(true)}, []string{"c_1_f_1_k_1 of messages", "keys", "dropIndex"}, true},
		"its direction differs":     {"nl_1", ix{"users", bson.D{{Key: "nl", Value: int32(-1)}}, named("nl_1")}, []string{"nl_1 of users", "keys"}, true},
		"it lets documents die":     {"at_1", ix{"txs", asc("at"), named("at_1").SetExpireAfterSeconds(60)}, []string{"at_1 of txs", "expires documents"}, false},
		"it leaves some out":        {"u_1", ix{"tokens", asc("u"), named("u_1").SetPartialFilterExpression(bson.D{{Key: "used", Value: int64(0)}})}, []string{"u_1 of tokens", "partial"}, false},
		"it is sparse":              {"u_1", ix{"tokens", asc("u"), named("u_1").SetSparse(true)}, []string{"u_1 of tokens", "sparse"}, false},
		"it is hidden":              {"u_1", ix{"tokens", asc("u"), named("u_1").SetHidden(true)}, []string{"u_1 of tokens", "hidden"}, false},
		"another makes unique":      {"", ix{"messages", asc("c", "t"), named("mine").SetUnique(true)}, []string{"mine of messages", "unique", "not Parley's"}, true},
		"another lets messages die": {"", ix{"messages", asc("at"), named("ttl").SetExpireAfterSeconds(60)}, []string{"ttl of messages", "expires documents", "not Parley's"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			uri := server.Database(t)
			if err := open(t, uri, Options{}).Close(); err != nil {
				t.Fatal(err)
			}
			db := plain(t, uri)
			coll := db.Collection(tt.create.coll)
			if tt.drop != "" {
				if err := coll.Indexes().DropOne(ctx, tt.drop); err != nil {
					t.Fatal(err)
				}
			}
			var pretend bson.D
			switch {
			case tt.create.keys == nil:
			case tt.ferret || server.Real:
				if _, err := coll.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: tt.create.keys, Options: tt.create.o}); err != nil {
					t.Fatal(err)
				}
			default:
				pretend = asListed(t, tt.create.keys, tt.create.o)
			}
			s, err := connected(uri)
			if err != nil {
				t.Fatal(err)
			}
			defer s.disconnect()
			have, err := s.listIndexes(ctx, tt.create.coll)
			if err != nil {
				t.Fatal(err)
			}
			if pretend != nil {
				doc, err := bson.Marshal(pretend)
				if err != nil {
					t.Fatal(err)
				}
				missing, wrong := compareIndexes(tt.create.coll, append(have, doc))
				if len(wrong) != 1 || !says(wrong, tt.want...) || len(missing) != 0 {
					t.Errorf("%q and %d missing, want one with %q", wrong, len(missing), tt.want)
				}
				return
			}
			if r := inspect(t, uri); len(r.Faults) != 1 || !says(r.Faults, tt.want...) {
				t.Errorf("%q, want one with %q", r.Faults, tt.want)
			}
			if tt.create.keys == nil {
				return // a start makes it
			}
			opened, err := Open(ctx, uri, Options{})
			if err == nil {
				_ = opened.Close()
			}
			if im.CodeOf(err) != "store_indexes" || !says([]string{im.ReasonOf(err)}, tt.want...) {
				t.Errorf("a start on it: %v", err)
			}
		})
	}
}

// asListed is how MongoDB lists an index that FerretDB cannot make.
func asListed(t *testing.T, keys bson.D, o *options.IndexOptionsBuilder) bson.D {
	t.Helper()
	var v options.IndexOptions
	for _, set := range o.List() {
		if err := set(&v); err != nil {
			t.Fatal(err)
		}
	}
	d := bson.D{{Key: "v", Value: int32(2)}, {Key: "key", Value: keys}, {Key: "name", Value: *v.Name}}
	if v.ExpireAfterSeconds != nil {
		d = append(d, bson.E{Key: "expireAfterSeconds", Value: *v.ExpireAfterSeconds})
	}
	if v.PartialFilterExpression != nil {
		d = append(d, bson.E{Key: "partialFilterExpression", Value: v.PartialFilterExpression})
	}
	if v.Sparse != nil {
		d = append(d, bson.E{Key: "sparse", Value: true})
	}
	if v.Hidden != nil {
		d = append(d, bson.E{Key: "hidden", Value: true})
	}
	return d
}

func connected(uri string) (*Store, error) {
	o := Options{}
	setDefaults(&o)
	return dial(uri, o)
}

// An index of the right form under another name will do: tools that restore a
// database name them as they like.
func TestAnIndexOfAnotherNameWillDo(t *testing.T) {
	uri := server.Database(t)
	if err := open(t, uri, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	messages := plain(t, uri).Collection("messages")
	if err := messages.Indexes().DropOne(ctx, "c_1_f_1_k_1"); err != nil {
		t.Fatal(err)
	}
	keys := bson.D{{Key: "c", Value: 1.0}, {Key: "f", Value: int64(1)}, {Key: "k", Value: int32(1)}} // a shell writes doubles
	if _, err := messages.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: keys, Options: options.Index().SetName("mine").SetUnique(true)}); err != nil {
		t.Fatal(err)
	}
	if r := inspect(t, uri); len(r.Faults) != 0 {
		t.Errorf("%q", r.Faults)
	}
	s := open(t, uri, Options{})
	if err := say(s, "1"); err != nil {
		t.Error(err)
	}
	_ = s.Close()
}

func TestInspectWarnsOfWeakServers(t *testing.T) {
	for name, tt := range map[string]struct {
		hello hello
		want  []string // words of the warning; none: there is none
	}{
		"a replica set":        {hello{SetName: "rs0", Hosts: []string{"a", "b", "c"}, Wire: 21}, nil},
		"a sharded cluster":    {hello{Msg: "isdbgrid", Wire: 25}, nil},
		"one server":           {hello{Wire: 21}, []string{"neither a replica set nor a sharded cluster"}},
		"a set of one":         {hello{SetName: "rs0", Hosts: []string{"a"}, Wire: 21}, []string{"one member"}},
		"an arbiter":           {hello{SetName: "rs0", Hosts: []string{"a", "b"}, Arbiters: []string{"c"}, Wire: 21}, []string{"arbiter"}},
		"a version of its own": {hello{SetName: "rs0", Hosts: []string{"a", "b", "c"}, Wire: 13}, []string{"older than MongoDB 6.0"}},
	} {
		got := tt.hello.warnings()
		if (len(tt.want) == 0) != (len(got) == 0) || (len(tt.want) > 0 && !says(got, tt.want...)) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestInspectSaysWhatOfTheURIIsNotFollowed(t *testing.T) {
	uri := server.Database(t)
	if err := open(t, uri, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	sep := "?"
	if strings.Contains(uri, "?") {
		sep = "&"
	}
	r := inspect(t, uri+sep+"w=1&journal=false&readPreference=secondaryPreferred&readConcernLevel=local&retryWrites=false")
	for _, word := range []string{"w=1", "journal=false", "readPreference=secondaryPreferred", "readConcernLevel=local", "retryWrites=false"} {
		if !says(r.Warnings, word, "not followed") {
			t.Errorf("%s: %q", word, r.Warnings)
		}
	}
	if r := inspect(t, uri+sep+"w=majority&journal=true&readPreference=primary&readConcernLevel=majority&retryWrites=true"); says(r.Warnings, "not followed") {
		t.Errorf("%q", r.Warnings)
	}
}

func TestInspectTriesAWrite(t *testing.T) {
	uri := server.Database(t)
	if err := open(t, uri, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	inject(t, uri, func(c mongotest.Command) mongotest.Fault {
		if c.Name == "update" {
			return mongotest.Fault{Do: mongotest.Refuse, Code: 79} // UnknownReplWriteConcern
		}
		return mongotest.Fault{}
	})
	if r := inspect(t, uri); !says(r.Faults, "majority and journal fails") {
		t.Errorf("%+v", r)
	}
}

// configs allows bodies of 15 MB: with all else that a message has it is a document.
func TestTheLargestMessageIsADocument(t *testing.T) {
	s := open(t, server.Database(t), Options{Timeout: time.Minute})
	defer func() { _ = s.Close() }()
	e := im.Entry{Conv: im.QueueConv("alice", im.DeviceID(strings.Repeat("d", 64))), From: im.UserID(strings.Repeat("a", 64)), Device: "phone", Op: im.OpPublish, ID: strings.Repeat("i", 64),
		Type: strings.Repeat("t", 1000), Topic: strings.Repeat("t", 65_535), Props: make([]byte, 64<<10), Body: make([]byte, 15<<20)}
	done := make(chan error, 1)
	s.Append(&store.Append{Entry: e, Retain: &store.RetainedMessage{Topic: e.Topic, Body: e.Body, Props: e.Props, Type: e.Type}, Done: func(a *store.Append) { done <- a.Err }})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	es, err := s.Range(ctx, e.Conv, 0, 1, 1)
	if err != nil || len(es) != 1 || len(es[0].Body) != 15<<20 {
		t.Errorf("%d entries, %v", len(es), err)
	}
}

// A wrong password is told at once, and not told.
func TestAWrongPasswordIsNamed(t *testing.T) {
	uri := strings.Replace(server.Database(t), "mongodb://", "mongodb://parley:hunter2@", 1)
	if server.Real {
		t.Skip("the URI of the server has a user of its own")
	}
	_, opened := Open(ctx, uri, Options{Timeout: time.Hour})
	_, inspected := Inspect(ctx, uri, Options{Timeout: time.Hour})
	for _, err := range []error{opened, inspected} {
		if im.CodeOf(err) != "store_auth" || !strings.Contains(err.Error(), "does not take the user or password of store.uri") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}
