package mongostore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// found is an index as listIndexes tells of it.
type found struct {
	Name      string   `bson:"name"`
	Keys      bson.Raw `bson:"key"`
	Unique    bool     `bson:"unique"`
	Sparse    bool     `bson:"sparse"`
	Hidden    bool     `bson:"hidden"`
	Expire    any      `bson:"expireAfterSeconds"`
	Partial   bson.Raw `bson:"partialFilterExpression"`
	Collation bson.Raw `bson:"collation"`
}

// form is the keys, as a name is made of them: tools write 1 as any kind of number.
func (f *found) form() string {
	var parts []string
	els, _ := f.Keys.Elements()
	for _, el := range els {
		v := el.Value().String()
		if n, ok := el.Value().AsInt64OK(); ok {
			v = fmt.Sprint(n)
		}
		parts = append(parts, el.Key()+"_"+v)
	}
	return strings.Join(parts, "_")
}

// differs says how f is not the index wanted, "" if it is.
func (f *found) differs(x *index) string {
	switch {
	case f.form() != x.name():
		return "has the keys " + f.form() + ", not " + x.name()
	case x.unique && !f.Unique:
		return "is not unique"
	case !x.unique && f.Unique:
		return "is unique, which refuses what must be taken"
	case f.Expire != nil:
		return "expires documents, which loses what was acknowledged"
	case f.Partial != nil:
		return "is partial, so it leaves documents out"
	case f.Sparse:
		return "is sparse, so it leaves documents out"
	case f.Hidden:
		return "is hidden, so no query uses it"
	case f.Collation != nil:
		return "has a collation, so names that differ count as the same"
	}
	return ""
}

// compareIndexes compares the indexes of a collection, as listed, with what
// Parley needs. An index of another name will do; one more will do too, unless it
// is unique or expires documents.
func compareIndexes(coll string, listed []bson.Raw) (missing []index, wrong []string) {
	have := make([]found, 0, len(listed))
	for _, raw := range listed {
		var f found
		if err := bson.Unmarshal(raw, &f); err != nil {
			wrong = append(wrong, fmt.Sprintf("an index of %s is not understood: %v", coll, err))
			continue
		}
		have = append(have, f)
	}
	say := func(f *found, what, then string) {
		wrong = append(wrong, fmt.Sprintf("index %s of %s %s: drop it with db.%s.dropIndex(%q)%s", f.Name, coll, what, coll, f.Name, then))
	}
	known := map[string]bool{"_id_": true}
	for _, x := range indexes {
		if x.coll != coll {
			continue
		}
		ok := false
		for i := range have {
			if f := &have[i]; f.differs(&x) == "" {
				known[f.Name], ok = true, true
			}
		}
		if ok {
			continue
		}
		clash := slices.IndexFunc(have, func(f found) bool { return f.Name == x.name() || f.form() == x.name() })
		if clash < 0 {
			missing = append(missing, x)
			continue
		}
		say(&have[clash], have[clash].differs(&x), " and start the server, which makes it as it should be ("+x.why+")")
		known[have[clash].Name] = true
	}
	for i := range have {
		switch f := &have[i]; {
		case known[f.Name]:
		case f.Expire != nil:
			say(f, "is not Parley's and expires documents, which loses what was acknowledged", "")
		case f.Unique:
			say(f, "is not Parley's and is unique, which refuses what must be taken", "")
		}
	}
	return missing, wrong
}

// compareIndexes compares those of every collection.
func (s *Store) compareIndexes(ctx context.Context) (missing []index, wrong []string, err error) {
	for _, coll := range slices.Sorted(maps.Keys(s.collections())) {
		listed, err := s.listIndexes(ctx, coll)
		if err != nil {
			return nil, nil, err
		}
		m, w := compareIndexes(coll, listed)
		missing, wrong = append(missing, m...), append(wrong, w...)
	}
	return missing, wrong, nil
}

func (s *Store) listIndexes(ctx context.Context, coll string) (listed []bson.Raw, err error) {
	err = s.ask(ctx, "indexes", func(ctx context.Context) error {
		listed = nil
		cur, err := s.rowsOf(coll).Indexes().List(ctx)
		var se mongo.ServerError
		if errors.As(err, &se) && se.HasErrorCode(26) { // NamespaceNotFound: no collection, no index
			return nil
		}
		if err != nil {
			return err
		}
		return cur.All(ctx, &listed)
	})
	return listed, err
}
