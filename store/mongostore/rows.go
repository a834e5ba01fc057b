package mongostore

import (
	"context"
	"errors"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

var byIDAscending = options.Find().SetSort(bson.D{{Key: "_id", Value: 1}})

// below selects the documents of u whose _id begins with prefix and sep, which
// no id contains: sep's successor ends the range.
func below(u im.UserID, prefix string, sep byte) bson.D {
	return bson.D{{Key: "u", Value: string(u)}, {Key: "_id", Value: bson.D{{Key: "$gte", Value: prefix + string(sep)}, {Key: "$lt", Value: prefix + string(sep+1)}}}}
}

// Relation: a method of store.Roster.
func (s *Store) Relation(ctx context.Context, u, peer im.UserID) (store.Relation, error) {
	r, ver, err := rowBy[store.Relation](ctx, s, "relation", s.relations, relationID(u, peer), string(u))
	if im.Is(err, im.NotFound) {
		return store.Relation{User: u, Peer: peer}, nil
	}
	r.Ver = uint64(ver)
	return r, err
}

// Relations: a method of store.Roster.
func (s *Store) Relations(ctx context.Context, u im.UserID) ([]store.Relation, error) {
	rows, err := rowsBy[store.Relation](ctx, s, "relations", s.relations, below(u, string(u), '/'), byIDAscending)
	out := make([]store.Relation, len(rows))
	for i := range rows {
		out[i] = rows[i].D
		out[i].Ver = uint64(rows[i].Ver)
	}
	return out, err
}

// Group: a method of store.Roster.
func (s *Store) Group(ctx context.Context, g im.GroupID) (store.Group, error) {
	v, ver, err := rowBy[store.Group](ctx, s, "group", s.groups, string(g), "")
	v.Ver = uint64(ver)
	return v, err
}

// Member: a method of store.Roster.
func (s *Store) Member(ctx context.Context, g im.GroupID, u im.UserID) (store.Member, error) {
	v, ver, err := rowBy[store.Member](ctx, s, "member", s.members, memberID(g, u), string(u))
	v.Ver = uint64(ver)
	return v, err
}

// Members: a method of store.Roster. Members live with their users, so this asks
// every shard; the house keeps what it returns.
func (s *Store) Members(ctx context.Context, g im.GroupID) ([]store.Member, error) {
	rows, err := rowsBy[store.Member](ctx, s, "members", s.members, bson.D{{Key: "g", Value: string(g)}}, byIDAscending)
	out := make([]store.Member, len(rows))
	for i := range rows {
		out[i] = rows[i].D
		out[i].Ver = uint64(rows[i].Ver)
	}
	return out, err
}

// MemberIn: a method of store.Roster.
func (s *Store) MemberIn(ctx context.Context, u im.UserID, groups []im.GroupID) (out []store.Member, err error) {
	for part := range chunks(groups, 1000) {
		ids := make([]string, len(part))
		for i, g := range part {
			ids[i] = memberID(g, u)
		}
		rows, err := rowsBy[store.Member](ctx, s, "members", s.members, append(in(ids), bson.E{Key: "u", Value: string(u)}))
		if err != nil {
			return nil, err
		}
		for i := range rows {
			m := rows[i].D
			m.Ver = uint64(rows[i].Ver)
			out = append(out, m)
		}
	}
	return out, nil
}

// Conversations: a method of store.Roster. A DM whose first message failed is
// listed too; its log is empty.
func (s *Store) Conversations(ctx context.Context, u im.UserID) ([]store.Participation, error) {
	type dm struct {
		Conv string `bson:"c"`
	}
	dms, err := read[dm](ctx, s, "conversations", s.dms, below(u, string(u), ' '), byIDAscending)
	if err != nil {
		return nil, err
	}
	rows, err := rowsBy[store.Member](ctx, s, "members", s.members, below(u, string(u), '/'), byIDAscending)
	if err != nil {
		return nil, err
	}
	out := make([]store.Participation, 0, len(dms)+len(rows)+1)
	for _, d := range dms {
		out = append(out, store.Participation{Conv: im.ConvID(d.Conv)})
	}
	for i := range rows {
		out = append(out, store.Participation{Conv: im.GroupConv(rows[i].D.Group), Start: rows[i].D.Start})
	}
	return append(out, store.Participation{Conv: im.AccountConv(u)}), nil
}

// watermark is how far a user has read: with the conversation, not with the
// user, because a conversation's readers are asked for together.
type watermark struct {
	ID   string `bson:"_id"` // conversation, space, user
	Conv string `bson:"c"`
	User string `bson:"u"`
	Seq  int64  `bson:"s"`
	TS   int64  `bson:"t"`
}

func readID(conv im.ConvID, u im.UserID) string { return string(conv) + " " + string(u) }

// PutRead: a method of store.Roster.
func (s *Store) PutRead(ctx context.Context, conv im.ConvID, u im.UserID, seq im.Seq) (im.Seq, error) {
	var w watermark
	where := bson.D{{Key: "_id", Value: readID(conv, u)}, {Key: "c", Value: string(conv)}}
	old, found, err := one[watermark](ctx, s, "PutRead", s.reads, where)
	if err != nil {
		return 0, err
	}
	if found && old.Seq >= int64(seq) {
		return im.Seq(old.Seq), nil
	}
	now := s.opt.Now().UnixMilli()
	update := bson.D{{Key: "$max", Value: bson.D{{Key: "s", Value: int64(seq)}, {Key: "t", Value: now}}}, {Key: "$setOnInsert", Value: bson.D{{Key: "u", Value: string(u)}}}}
	err = s.retry(ctx, "PutRead", func(ctx context.Context) error {
		err := s.reads.FindOneAndUpdate(ctx, where, update, options.FindOneAndUpdate().SetUpsert(true).SetReturnDocument(options.After)).Decode(&w)
		if mongo.IsDuplicateKeyError(err) {
			err = s.reads.FindOneAndUpdate(ctx, where, update, options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&w)
		}
		if err != nil {
			return err
		}
		_, err = s.convs.UpdateOne(ctx, byID(string(conv)), bson.D{{Key: "$max", Value: bson.D{{Key: "r", Value: now}}}})
		return err
	})
	return im.Seq(w.Seq), err
}

// Reads: a method of store.Roster.
func (s *Store) Reads(ctx context.Context, conv im.ConvID, since int64) ([]store.Read, error) {
	filter := bson.D{{Key: "c", Value: string(conv)}, {Key: "_id", Value: bson.D{{Key: "$gte", Value: string(conv) + " "}, {Key: "$lt", Value: string(conv) + "!"}}}, {Key: "t", Value: bson.D{{Key: "$gte", Value: since}}}}
	ws, err := read[watermark](ctx, s, "Reads", s.reads, filter, byIDAscending)
	out := make([]store.Read, len(ws))
	for i, w := range ws {
		out[i] = store.Read{User: im.UserID(w.User), Seq: im.Seq(w.Seq), TS: w.TS}
	}
	return out, err
}

// ReadsOf: a method of store.Roster.
func (s *Store) ReadsOf(ctx context.Context, u im.UserID, convs []im.ConvID) ([]im.Seq, error) {
	out := make([]im.Seq, len(convs))
	at := make(map[string]int, len(convs))
	for i, c := range convs {
		at[readID(c, u)] = i
	}
	ids := make([]string, 0, len(at))
	for id := range at {
		ids = append(ids, id)
	}
	for part := range chunks(ids, 1000) {
		ws, err := read[watermark](ctx, s, "ReadsOf", s.reads, in(part))
		if err != nil {
			return nil, err
		}
		for _, w := range ws {
			out[at[w.ID]] = im.Seq(w.Seq)
		}
	}
	return out, nil
}

// User: a method of store.Accounts.
func (s *Store) User(ctx context.Context, u im.UserID) (store.User, error) {
	v, ver, err := rowBy[store.User](ctx, s, "user", s.users, string(u), "")
	v.Ver = uint64(ver)
	return v, err
}

// FindUsers: a method of store.Accounts.
func (s *Store) FindUsers(ctx context.Context, prefix string, after im.UserID, limit int) ([]store.User, error) {
	filter := bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: string(after)}}}}
	if prefix = strings.ToLower(prefix); prefix != "" {
		from := func(field string) bson.D {
			return bson.D{{Key: field, Value: bson.D{{Key: "$gte", Value: prefix}, {Key: "$lt", Value: prefix + "\U0010ffff"}}}}
		}
		filter = append(filter, bson.E{Key: "$or", Value: bson.A{from("_id"), from("nl")}})
	}
	rows, err := rowsBy[store.User](ctx, s, "users", s.users, filter, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetLimit(int64(limit)))
	out := make([]store.User, len(rows))
	for i := range rows {
		out[i] = rows[i].D
		out[i].Ver = uint64(rows[i].Ver)
	}
	return out, err
}

// token is a refresh token's document.
type token struct {
	ID   string      `bson:"_id"`
	User string      `bson:"u"`
	Used int64       `bson:"used"`
	By   string      `bson:"by,omitempty"` // which call used it
	D    store.Token `bson:"d"`
}

func (t *token) value() store.Token {
	v := t.D
	v.Used = t.Used
	return v
}

// PutToken: a method of store.Accounts.
func (s *Store) PutToken(ctx context.Context, t store.Token) error {
	doc := token{ID: t.Hash, User: string(t.User), Used: t.Used, D: t}
	return s.retry(ctx, "PutToken", func(ctx context.Context) error {
		_, err := s.tokens.ReplaceOne(ctx, byID(t.Hash), doc, options.Replace().SetUpsert(true))
		return err
	})
}

// Token: a method of store.Accounts.
func (s *Store) Token(ctx context.Context, hash string) (store.Token, error) {
	t, found, err := one[token](ctx, s, "Token", s.tokens, byID(hash))
	if err == nil && !found {
		err = notFound("token")
	}
	return t.value(), err
}

// UseToken: a method of store.Accounts. The call leaves its mark, so that a lost
// answer does not make the first use look like the second.
func (s *Store) UseToken(ctx context.Context, hash string, now int64) (store.Token, error) {
	mark := bson.NewObjectID().Hex()
	err := s.retry(ctx, "UseToken", func(ctx context.Context) error {
		_, err := s.tokens.UpdateOne(ctx, bson.D{{Key: "_id", Value: hash}, {Key: "used", Value: int64(0)}}, bson.D{{Key: "$set", Value: bson.D{{Key: "used", Value: now}, {Key: "by", Value: mark}}}})
		return err
	})
	if err != nil {
		return store.Token{}, err
	}
	t, found, err := one[token](ctx, s, "UseToken", s.tokens, byID(hash))
	if err == nil && !found {
		err = notFound("token")
	}
	v := t.value()
	if t.By == mark {
		v.Used = 0
	}
	return v, err
}

// DropTokens: a method of store.Accounts.
func (s *Store) DropTokens(ctx context.Context, u im.UserID, keep func(store.Token) bool) error {
	ts, err := read[token](ctx, s, "DropTokens", s.tokens, bson.D{{Key: "u", Value: string(u)}})
	if err != nil {
		return err
	}
	var drop []string
	for i := range ts {
		if keep == nil || !keep(ts[i].value()) {
			drop = append(drop, ts[i].ID)
		}
	}
	if len(drop) == 0 {
		return nil
	}
	return s.retry(ctx, "DropTokens", func(ctx context.Context) error {
		_, err := s.tokens.DeleteMany(ctx, in(drop))
		return err
	})
}

// device is a device's document; its _id sorts by user.
type device struct {
	ID   string       `bson:"_id"`
	User string       `bson:"u"`
	Seen int64        `bson:"seen"`
	D    store.Device `bson:"d"`
}

func deviceID(k im.DeviceKey) string { return string(k.User) + "/" + string(k.Device) }

func deviceWhere(k im.DeviceKey) bson.D {
	return bson.D{{Key: "_id", Value: deviceID(k)}, {Key: "u", Value: string(k.User)}}
}

// Device: a method of store.Devices.
func (s *Store) Device(ctx context.Context, k im.DeviceKey) (store.Device, error) {
	d, found, err := one[device](ctx, s, "Device", s.devices, deviceWhere(k))
	if err == nil && !found {
		err = notFound("device")
	}
	return d.D, err
}

// DevicesOf: a method of store.Devices.
func (s *Store) DevicesOf(ctx context.Context, u im.UserID) ([]store.Device, error) {
	ds, err := read[device](ctx, s, "DevicesOf", s.devices, below(u, string(u), '/'), byIDAscending)
	out := make([]store.Device, len(ds))
	for i := range ds {
		out[i] = ds[i].D
	}
	return out, err
}

// CountDevices: a method of store.Devices.
func (s *Store) CountDevices(ctx context.Context, u im.UserID) (n int, err error) {
	err = s.ask(ctx, "CountDevices", func(ctx context.Context) error {
		count, err := s.devices.CountDocuments(ctx, below(u, string(u), '/'))
		n = int(count)
		return err
	})
	return n, err
}

// EachDevice: a method of store.Devices.
func (s *Store) EachDevice(ctx context.Context, fn func(store.Device) bool) error {
	return each(ctx, s, "EachDevice", s.devices, func(d *device) bool { return fn(d.D) })
}

// eachPage is how many documents are read at once.
const eachPage = 1000

// each walks a collection in the order of _id, page by page: each page has its
// own time and is read again by itself, however long the whole takes.
func each[T any, P interface {
	*T
	id() string
}](ctx context.Context, s *Store, op string, coll *mongo.Collection, fn func(P) bool) error {
	return eachAfter(ctx, s, op, coll, "", fn)
}

func eachAfter[T any, P interface {
	*T
	id() string
}](ctx context.Context, s *Store, op string, coll *mongo.Collection, after string, fn func(P) bool) error {
	return eachFrom(ctx, s, op, coll, "$gt", after, fn)
}

// eachFrom is eachAfter, or with "$gte" it begins at from itself.
func eachFrom[T any, P interface {
	*T
	id() string
}](ctx context.Context, s *Store, op string, coll *mongo.Collection, than, from string, fn func(P) bool) error {
	for {
		page, err := read[T](ctx, s, op, coll, bson.D{{Key: "_id", Value: bson.D{{Key: than, Value: from}}}},
			options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetLimit(eachPage))
		if err != nil {
			return err
		}
		for i := range page {
			p := P(&page[i])
			if !fn(p) {
				return nil
			}
			than, from = "$gt", p.id()
		}
		if len(page) < eachPage {
			return nil
		}
	}
}

func (d *device) id() string { return d.ID }

// PutDevice: a method of store.Devices. It is always durable on return.
func (s *Store) PutDevice(ctx context.Context, d store.Device, _ bool) error {
	doc := device{ID: deviceID(d.Key), User: string(d.Key.User), Seen: d.LastSeen, D: d}
	return s.retry(ctx, "PutDevice", func(ctx context.Context) error {
		_, err := s.devices.ReplaceOne(ctx, deviceWhere(d.Key), doc, options.Replace().SetUpsert(true))
		return err
	})
}

// DropDevice: a method of store.Devices. The row goes last: what is left by a
// crash in between is dropped with it the next time.
func (s *Store) DropDevice(ctx context.Context, k im.DeviceKey) error {
	if err := s.Trim(ctx, im.QueueConv(k.User, k.Device), noEnd); err != nil {
		return err
	}
	if err := errors.Join(s.dropBelow(ctx, s.cursors, k), s.dropBelow(ctx, s.receipts, k)); err != nil {
		return err
	}
	return s.retry(ctx, "DropDevice", func(ctx context.Context) error {
		_, err := s.devices.DeleteOne(ctx, deviceWhere(k))
		return err
	})
}

// dropBelow deletes all of a device from a collection.
func (s *Store) dropBelow(ctx context.Context, coll *mongo.Collection, k im.DeviceKey) error {
	return s.retry(ctx, "drop", func(ctx context.Context) error {
		_, err := coll.DeleteMany(ctx, below(k.User, deviceID(k), ' '))
		return err
	})
}

// cursor is a store.Cursor's document.
type cursor struct {
	ID    string   `bson:"_id"` // device, space, conversation
	User  string   `bson:"u"`
	Conv  string   `bson:"c"`
	Acked int64    `bson:"a"`
	Sent  int64    `bson:"s"`
	Ahead []im.Seq `bson:"h,omitempty"`
}

func cursorID(k im.DeviceKey, conv im.ConvID) string { return deviceID(k) + " " + string(conv) }

func (c *cursor) value() store.Cursor {
	return store.Cursor{Conv: im.ConvID(c.Conv), Acked: im.Seq(c.Acked), Sent: im.Seq(c.Sent), Ahead: c.Ahead, Known: true}
}

// Cursors: a method of store.Devices.
func (s *Store) Cursors(ctx context.Context, k im.DeviceKey) ([]store.Cursor, error) {
	cs, err := read[cursor](ctx, s, "Cursors", s.cursors, below(k.User, deviceID(k), ' '), byIDAscending)
	out := make([]store.Cursor, len(cs))
	for i := range cs {
		out[i] = cs[i].value()
	}
	return out, err
}

// Cursor: a method of store.Devices.
func (s *Store) Cursor(ctx context.Context, k im.DeviceKey, conv im.ConvID) (store.Cursor, error) {
	c, found, err := one[cursor](ctx, s, "Cursor", s.cursors, bson.D{{Key: "_id", Value: cursorID(k, conv)}, {Key: "u", Value: string(k.User)}})
	if err != nil || !found {
		return store.Cursor{Conv: conv}, err
	}
	return c.value(), nil
}

// CursorsOf: a method of store.Devices.
func (s *Store) CursorsOf(ctx context.Context, k im.DeviceKey, convs []im.ConvID) ([]store.Cursor, error) {
	out := make([]store.Cursor, len(convs))
	at := make(map[im.ConvID]*store.Cursor, len(convs))
	for i, c := range convs {
		out[i].Conv = c
		at[c] = &out[i]
	}
	for part := range chunks(convs, 1000) {
		ids := make([]string, len(part))
		for i, c := range part {
			ids[i] = cursorID(k, c)
		}
		cs, err := read[cursor](ctx, s, "CursorsOf", s.cursors, append(in(ids), bson.E{Key: "u", Value: string(k.User)}))
		if err != nil {
			return nil, err
		}
		for i := range cs {
			c := cs[i].value()
			*at[c.Conv] = c
		}
	}
	return out, nil
}

// PutCursors: a method of store.Devices.
func (s *Store) PutCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor) error {
	if len(cs) == 0 {
		return nil
	}
	models := make([]mongo.WriteModel, len(cs))
	for i, c := range cs {
		doc := cursor{ID: cursorID(k, c.Conv), User: string(k.User), Conv: string(c.Conv), Acked: int64(c.Acked), Sent: int64(c.Sent), Ahead: c.Ahead}
		models[i] = mongo.NewReplaceOneModel().SetFilter(bson.D{{Key: "_id", Value: doc.ID}, {Key: "u", Value: doc.User}}).SetReplacement(doc).SetUpsert(true)
	}
	for part := range chunks(models, 1000) {
		err := s.retry(ctx, "PutCursors", func(ctx context.Context) error {
			_, err := s.cursors.BulkWrite(ctx, part, options.BulkWrite().SetOrdered(false))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ResetCursors: a method of store.Devices. The new ones are written first: a
// crash in between leaves cursors that repeat messages, not none.
func (s *Store) ResetCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor) error {
	old, err := s.Cursors(ctx, k)
	if err != nil {
		return err
	}
	if err := s.PutCursors(ctx, k, cs); err != nil {
		return err
	}
	var drop []string
	for _, c := range old {
		if !slices.ContainsFunc(cs, func(n store.Cursor) bool { return n.Conv == c.Conv }) {
			drop = append(drop, cursorID(k, c.Conv))
		}
	}
	for part := range chunks(drop, 1000) {
		err := s.retry(ctx, "ResetCursors", func(ctx context.Context) error {
			_, err := s.cursors.DeleteMany(ctx, append(in(part), bson.E{Key: "u", Value: string(k.User)}))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// retainedDoc is a retained message's document.
type retainedDoc struct {
	ID string                `bson:"_id"`
	D  store.RetainedMessage `bson:"d"`
}

func (r *retainedDoc) id() string { return r.ID }

// EachRetained: a method of store.Retained.
func (s *Store) EachRetained(ctx context.Context, fn func(store.RetainedMessage) bool) error {
	return each(ctx, s, "EachRetained", s.retained, func(r *retainedDoc) bool { return fn(r.D) })
}

// secret is a named secret's document.
type secret struct {
	ID    string `bson:"_id"`
	Value []byte `bson:"v"`
}

// Secret: a method of store.Store. Of two processes that make one at once, both
// get the one that was stored first.
func (s *Store) Secret(ctx context.Context, name string, make func() ([]byte, error)) ([]byte, error) {
	s.secret.Lock()
	defer s.secret.Unlock()
	old, found, err := one[secret](ctx, s, "Secret", s.secrets, byID(name))
	if err != nil || found {
		return old.Value, err
	}
	v, err := make()
	if err != nil {
		return nil, err
	}
	err = s.retry(ctx, "Secret", func(ctx context.Context) error {
		_, err := s.secrets.InsertOne(ctx, secret{ID: name, Value: v})
		if mongo.IsDuplicateKeyError(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	stored, _, err := one[secret](ctx, s, "Secret", s.secrets, byID(name))
	return stored.Value, err
}

// PutSecret: a method of store.Store.
func (s *Store) PutSecret(ctx context.Context, name string, value []byte) error {
	s.secret.Lock()
	defer s.secret.Unlock()
	return s.retry(ctx, "PutSecret", func(ctx context.Context) error {
		_, err := s.secrets.ReplaceOne(ctx, byID(name), secret{ID: name, Value: value}, options.Replace().SetUpsert(true))
		return err
	})
}

// Note: a method of store.Notes.
func (s *Store) Note(ctx context.Context, key string) ([]byte, error) {
	n, found, err := one[secret](ctx, s, "Note", s.notes, byID(key))
	if err == nil && !found {
		err = notFound("note")
	}
	return n.Value, err
}

// EachNote: a method of store.Notes.
func (s *Store) EachNote(ctx context.Context, prefix string, fn func(store.Note) bool) error {
	return eachFrom(ctx, s, "EachNote", s.notes, "$gte", prefix, func(n *secret) bool {
		return strings.HasPrefix(n.ID, prefix) && fn(store.Note{Key: n.ID, Value: n.Value}) // past the prefix it ends
	})
}

// PutNotes: a method of store.Notes. They are always durable on return.
func (s *Store) PutNotes(ctx context.Context, notes []store.Note, _ bool) error {
	models := make([]mongo.WriteModel, len(notes))
	for i, n := range notes {
		if n.Value == nil {
			models[i] = mongo.NewDeleteOneModel().SetFilter(byID(n.Key))
		} else {
			models[i] = mongo.NewReplaceOneModel().SetFilter(byID(n.Key)).SetReplacement(secret{ID: n.Key, Value: n.Value}).SetUpsert(true)
		}
	}
	for part := range chunks(models, 1000) {
		err := s.retry(ctx, "PutNotes", func(ctx context.Context) error {
			_, err := s.notes.BulkWrite(ctx, part)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
