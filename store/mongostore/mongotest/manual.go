package mongotest

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// ShardKeys is how docs/mongodb.md shards the collections: each by this one field.
var ShardKeys = map[string]string{
	"messages": "c", "convs": "_id", "reads": "c", "dms": "u", "users": "_id", "relations": "u", "members": "u", "groups": "_id",
	"devices": "u", "cursors": "u", "receipts": "u", "tokens": "_id", "retained": "_id", "tasks": "_id",
}

// commands are those of the Stable API, version 1, that Parley needs, and which
// of their fields it gives. FerretDB takes more; MongoDB with apiStrict does not.
var commands = map[string][]string{
	"find":          {"filter", "sort", "limit", "batchSize", "projection", "singleBatch"},
	"getMore":       {"collection", "batchSize"},
	"killCursors":   {"cursors"},
	"aggregate":     {"pipeline", "cursor"},
	"insert":        {"ordered", "documents"},
	"update":        {"ordered", "updates"},
	"delete":        {"ordered", "deletes"},
	"findAndModify": {"query", "update", "upsert", "new"},
	"createIndexes": {"indexes"},
	"listIndexes":   {"cursor"},
}

// common are fields of every command that the driver sets.
var common = []string{"$db", "lsid", "txnNumber", "$clusterTime", "$readPreference", "apiVersion", "apiStrict", "apiDeprecationErrors", "maxTimeMS", "writeConcern", "readConcern"}

// breaches collects what MongoDB would refuse, or what would not keep a promise.
type breaches struct {
	mu   sync.Mutex
	seen map[string]int
}

func (b *breaches) note(c *Command) {
	what := Breach(c)
	if what == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen == nil {
		b.seen = map[string]int{}
	}
	b.seen[what]++
}

// Breaches says what commands have come that a sharded MongoDB with the Stable
// API would refuse, or that are written or read with less than a majority.
func (p *Proxy) Breaches() (out []string) {
	p.breaches.mu.Lock()
	defer p.breaches.mu.Unlock()
	for what, n := range p.breaches.seen {
		out = append(out, fmt.Sprintf("%s (%d times)", what, n))
	}
	sort.Strings(out)
	return out
}

// Breach holds one command against the manual: "" if it may pass. FerretDB lets
// pass what MongoDB does not, so without this it would show only there. Commands
// of tests themselves, which do not use the Stable API, are not looked at.
func Breach(c *Command) string {
	version, ours := c.Body.Lookup("apiVersion").StringValueOK()
	if !ours {
		return ""
	}
	bad := func(format string, args ...any) string {
		return c.Name + " on " + c.Collection + ": " + fmt.Sprintf(format, args...)
	}
	if strict, _ := c.Body.Lookup("apiStrict").BooleanOK(); version != "1" || !strict {
		return bad("it is not API version 1, strictly")
	}
	fields, known := commands[c.Name]
	if !known {
		return bad("Parley does not need it, or it is not in API version 1")
	}
	els, _ := c.Body.Elements()
	for _, el := range els[1:] {
		if k := el.Key(); !slices.Contains(fields, k) && !slices.Contains(common, k) {
			return bad("field %s", k)
		}
	}
	switch c.Name {
	case "insert", "update", "delete", "findAndModify", "createIndexes":
		w, _ := c.Body.Lookup("writeConcern", "w").StringValueOK()
		j, _ := c.Body.Lookup("writeConcern", "j").BooleanOK()
		if w != "majority" || (!j && c.Name != "createIndexes") {
			return bad("write concern %s", c.Body.Lookup("writeConcern"))
		}
	case "find", "aggregate":
		if level, _ := c.Body.Lookup("readConcern", "level").StringValueOK(); level != "majority" {
			return bad("read concern %q", level)
		}
	}
	if mode, ok := c.Body.Lookup("$readPreference", "mode").StringValueOK(); ok && !strings.HasPrefix(mode, "primary") {
		return bad("read preference %s", mode)
	}
	if key := ShardKeys[c.Collection]; key != "" {
		return targeted(c, key, bad)
	}
	return ""
}

// targeted holds a command against what the manual says about sharded
// collections: one document is changed, and an upsert made, only by a filter with
// the shard key, which is never changed; documents have it; unique indexes begin
// with it.
func targeted(c *Command, key string, bad func(string, ...any) string) string {
	equal := func(filter bson.Raw) (string, bool) { return filter.Lookup(key).StringValueOK() }
	document := func(v bson.RawValue) bson.Raw { d, _ := v.DocumentOK(); return d }
	change := func(filter, update bson.Raw) string {
		want, ok := equal(filter)
		if !ok {
			return bad("one document, by a filter without the shard key %s", key)
		}
		els, _ := update.Elements()
		if len(els) > 0 && !strings.HasPrefix(els[0].Key(), "$") {
			if got, _ := equal(update); got != want {
				return bad("a replacement without the shard key %s", key)
			}
		}
		for _, el := range els {
			if set, ok := el.Value().DocumentOK(); ok && strings.HasPrefix(el.Key(), "$") {
				if got, err := set.LookupErr(key); err == nil && got.String() != filter.Lookup(key).String() {
					return bad("%s changes the shard key", el.Key())
				}
			}
		}
		return ""
	}
	switch c.Name {
	case "insert":
		for _, d := range c.Docs["documents"] {
			if _, ok := equal(d); !ok {
				return bad("a document without the shard key %s", key)
			}
		}
	case "update":
		for _, u := range c.Docs["updates"] {
			if multi, _ := u.Lookup("multi").BooleanOK(); multi {
				continue
			}
			if what := change(document(u.Lookup("q")), document(u.Lookup("u"))); what != "" {
				return what
			}
		}
	case "delete":
		for _, d := range c.Docs["deletes"] {
			if _, ok := equal(document(d.Lookup("q"))); d.Lookup("limit").AsInt64() == 1 && !ok {
				return bad("one document, by a filter without the shard key %s", key)
			}
		}
	case "findAndModify":
		return change(document(c.Body.Lookup("query")), document(c.Body.Lookup("update")))
	case "createIndexes":
		list, _ := c.Body.Lookup("indexes").ArrayOK()
		ixs, _ := list.Values()
		for _, ix := range ixs {
			keys, _ := ix.Document().Lookup("key").DocumentOK()
			els, _ := keys.Elements()
			if unique, _ := ix.Document().Lookup("unique").BooleanOK(); unique && (len(els) == 0 || els[0].Key() != key) {
				return bad("a unique index that does not begin with the shard key %s", key)
			}
		}
	}
	return ""
}
