package pebblestore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Rows that are written rarely are JSON: readable with any tool, and a new
// field needs no new version.
func encodeRow(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("pebblestore: a row cannot be encoded: %v", err)) // our own types: a programming error
	}
	return b
}

func decodeRow[T any](b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("stored row is corrupt: %w", err)
	}
	return v, nil
}

// row reads one row; NotFound if it is absent.
func row[T any](s *Store, ctx context.Context, what string, k []byte) (v T, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		b, err := get(db, k)
		if err != nil {
			return err
		}
		if b == nil {
			return notFound(what)
		}
		v, err = decodeRow[T](b)
		return err
	})
	return v, err
}

// list reads all rows below a prefix, in key order.
func list[T any](s *Store, ctx context.Context, p []byte, keep func(T) bool) (out []T, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		var bad error
		err := scan(db, p, func(_, v []byte) bool {
			var t T
			if t, bad = decodeRow[T](v); bad == nil && (keep == nil || keep(t)) {
				out = append(out, t)
			}
			return bad == nil
		})
		return errors.Join(err, bad)
	})
	return out, err
}

// tx writes a transaction into the batch, or reports Conflict to its caller.
func (x *builder) tx(j *job) error {
	var set []struct{ k, v []byte }
	put := func(k, v []byte) { set = append(set, struct{ k, v []byte }{k, v}) }
	fail := func(err error) error {
		var e *im.Error
		if !errors.As(err, &e) {
			return err // the database
		}
		for _, a := range j.tx.Entries {
			a.Err = err
			x.c.appends = append(x.c.appends, a) // told in its turn, without a place in the log
		}
		x.c.waiters = append(x.c.waiters, waiter{j.done, err})
		return nil
	}
	for _, u := range j.tx.Users {
		k := key(tUser, string(u.ID))
		if err := x.version(k, u.Ver); err != nil {
			return fail(err)
		}
		u.Ver++
		put(k, encodeRow(u))
	}
	for _, r := range j.tx.Relations {
		k := key(tRelation, string(r.User), string(r.Peer))
		if err := x.version(k, r.Ver); err != nil {
			return fail(err)
		}
		if r.State == store.Stranger && !r.Blocked && r.Remark == "" {
			put(k, nil)
			continue
		}
		r.Ver++
		put(k, encodeRow(r))
	}
	for _, g := range j.tx.Groups {
		k := key(tGroup, string(g.ID))
		if err := x.version(k, g.Ver); err != nil {
			return fail(err)
		}
		g.Ver++
		put(k, encodeRow(g))
	}
	for _, m := range j.tx.Members {
		k, of := key(tMember, string(m.Group), string(m.User)), key(tMemberOf, string(m.User), string(m.Group))
		if err := x.version(k, m.Ver); err != nil {
			return fail(err)
		}
		if m.Role == "" {
			put(k, nil)
			put(of, nil)
			continue
		}
		if m.Start == store.AtHead {
			h, err := x.s.heads.load(x.db, im.GroupConv(m.Group))
			if err != nil {
				return err
			}
			m.Start = h.assigned
		}
		m.Ver++
		put(k, encodeRow(m))
		put(of, binary.AppendUvarint(nil, uint64(m.Start)))
	}
	for _, kv := range set {
		x.rows.put(kv.k, kv.v)
		if kv.v == nil {
			if err := x.b.Delete(kv.k, nil); err != nil {
				return err
			}
		} else if err := x.b.Set(kv.k, kv.v, nil); err != nil {
			return err
		}
	}
	for _, a := range j.tx.Entries {
		if err := x.append(a); err != nil {
			return err
		}
	}
	x.c.waiters = append(x.c.waiters, waiter{j.done, nil})
	return nil
}

// version checks the row against the version it was read with. Ver of an absent
// row is 0.
func (x *builder) version(k []byte, ver uint64) error {
	v, ok := x.rows[string(k)]
	if !ok {
		var err error
		if v, err = get(x.db, k); err != nil {
			return err
		}
	}
	var have struct{ Ver uint64 }
	if v != nil {
		if err := json.Unmarshal(v, &have); err != nil {
			return fmt.Errorf("stored row is corrupt: %w", err)
		}
	}
	if have.Ver != ver {
		return im.Refuse(im.Conflict, "changed", "it was changed meanwhile")
	}
	return nil
}

// Relation: a method of store.Roster.
func (s *Store) Relation(ctx context.Context, u, peer im.UserID) (store.Relation, error) {
	r, err := row[store.Relation](s, ctx, "relation", key(tRelation, string(u), string(peer)))
	if im.Is(err, im.NotFound) {
		return store.Relation{User: u, Peer: peer}, nil
	}
	return r, err
}

// Relations: a method of store.Roster.
func (s *Store) Relations(ctx context.Context, u im.UserID) ([]store.Relation, error) {
	return list[store.Relation](s, ctx, prefix(tRelation, string(u)), nil)
}

// Group: a method of store.Roster.
func (s *Store) Group(ctx context.Context, g im.GroupID) (store.Group, error) {
	return row[store.Group](s, ctx, "group", key(tGroup, string(g)))
}

// Member: a method of store.Roster.
func (s *Store) Member(ctx context.Context, g im.GroupID, u im.UserID) (store.Member, error) {
	return row[store.Member](s, ctx, "member", key(tMember, string(g), string(u)))
}

// Members: a method of store.Roster.
func (s *Store) Members(ctx context.Context, g im.GroupID) ([]store.Member, error) {
	return list[store.Member](s, ctx, prefix(tMember, string(g)), nil)
}

// MemberIn: a method of store.Roster.
func (s *Store) MemberIn(ctx context.Context, u im.UserID, groups []im.GroupID) (out []store.Member, err error) {
	for _, g := range groups {
		m, err := s.Member(ctx, g, u)
		if err == nil {
			out = append(out, m)
		} else if !im.Is(err, im.NotFound) {
			return nil, err
		}
	}
	return out, nil
}

// Conversations: a method of store.Roster.
func (s *Store) Conversations(ctx context.Context, u im.UserID) (out []store.Participation, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		p := prefix(tUserConv, string(u))
		err := scan(db, p, func(k, _ []byte) bool {
			out = append(out, store.Participation{Conv: im.ConvID(k[len(p):])})
			return true
		})
		if err != nil {
			return err
		}
		p = prefix(tMemberOf, string(u))
		return scan(db, p, func(k, v []byte) bool {
			start, _ := binary.Uvarint(v)
			out = append(out, store.Participation{Conv: im.GroupConv(im.GroupID(k[len(p):])), Start: im.Seq(start)})
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	return append(out, store.Participation{Conv: im.AccountConv(u)}), nil
}

// PutRead: a method of store.Roster.
func (s *Store) PutRead(ctx context.Context, conv im.ConvID, u im.UserID, seq im.Seq) (now im.Seq, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		h, err := s.heads.hold(db, conv)
		if err != nil {
			return err
		}
		defer h.release()
		s.reads.Lock() // read, compare, write: watermarks never go back
		defer s.reads.Unlock()
		num, _, _ := s.heads.bounds(h)
		if num == 0 {
			return nil
		}
		k := append(numKey(tRead, num), u...)
		v, err := get(db, k)
		if err != nil {
			return err
		}
		old, _ := unpair(v)
		if now = im.Seq(old); seq <= now {
			return nil
		}
		now = seq
		ts := s.opt.Now().UnixMilli()
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		err = errors.Join(b.Set(k, pair(uint64(seq), uint64(ts)), nil), b.Set(numKey(tReadTS, num), pair(uint64(ts), 0), nil))
		if err == nil {
			err = db.Apply(b, pebble.NoSync)
		}
		if err == nil {
			s.heads.mu.Lock()
			h.readTS = max(h.readTS, ts)
			s.heads.mu.Unlock()
		}
		return err
	})
	return now, err
}

// Reads: a method of store.Roster.
func (s *Store) Reads(ctx context.Context, conv im.ConvID, since int64) (out []store.Read, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		h, err := s.heads.load(db, conv)
		if err != nil {
			return err
		}
		num, _, _ := s.heads.bounds(h)
		if num == 0 {
			return nil
		}
		return scan(db, numKey(tRead, num), func(k, v []byte) bool {
			seq, ts := unpair(v)
			if int64(ts) >= since {
				out = append(out, store.Read{User: im.UserID(k[9:]), Seq: im.Seq(seq), TS: int64(ts)})
			}
			return true
		})
	})
	return out, err
}

// ReadsOf: a method of store.Roster.
func (s *Store) ReadsOf(ctx context.Context, u im.UserID, convs []im.ConvID) (out []im.Seq, err error) {
	out = make([]im.Seq, len(convs))
	err = s.view(ctx, func(db *pebble.DB) error {
		for i, c := range convs {
			h, err := s.heads.load(db, c)
			if err != nil {
				return err
			}
			num, _, _ := s.heads.bounds(h)
			if num == 0 {
				continue
			}
			v, err := get(db, append(numKey(tRead, num), u...))
			if err != nil {
				return err
			}
			seq, _ := unpair(v)
			out[i] = im.Seq(seq)
		}
		return nil
	})
	return out, err
}

// User: a method of store.Accounts.
func (s *Store) User(ctx context.Context, u im.UserID) (store.User, error) {
	return row[store.User](s, ctx, "user", key(tUser, string(u)))
}

// FindUsers: a method of store.Accounts. Ids are found by their key; names are
// looked through.
func (s *Store) FindUsers(ctx context.Context, want string, behind im.UserID, limit int) (out []store.User, err error) {
	want = strings.ToLower(want)
	err = s.view(ctx, func(db *pebble.DB) error {
		lower := key(tUser, string(behind))
		if behind != "" {
			lower = append(lower, 0)
		}
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: []byte{tUser + 1}})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, it.Close()) }()
		for ok := it.First(); ok && len(out) < limit; ok = it.Next() {
			v, err := it.ValueAndErr()
			if err != nil {
				return err
			}
			u, err := decodeRow[store.User](v)
			if err != nil {
				return err
			}
			if strings.HasPrefix(string(u.ID), want) || strings.HasPrefix(strings.ToLower(u.Name), want) {
				out = append(out, u)
			}
		}
		return it.Error()
	})
	return out, err
}

// PutToken: a method of store.Accounts.
func (s *Store) PutToken(_ context.Context, t store.Token) error {
	return s.write(func(b *pebble.Batch) error {
		return errors.Join(b.Set(key(tToken, t.Hash), encodeRow(t), nil), b.Set(key(tTokenOf, string(t.User), t.Hash), nil, nil))
	})
}

// Token: a method of store.Accounts.
func (s *Store) Token(ctx context.Context, hash string) (store.Token, error) {
	return row[store.Token](s, ctx, "token", key(tToken, hash))
}

// UseToken: a method of store.Accounts. The sequencer makes it atomic.
func (s *Store) UseToken(ctx context.Context, hash string, now int64) (t store.Token, err error) {
	s.tokens.Lock()
	defer s.tokens.Unlock()
	t, err = s.Token(ctx, hash)
	if err != nil || t.Used != 0 {
		return t, err
	}
	used := t
	used.Used = now
	return t, s.PutToken(ctx, used)
}

// DropTokens: a method of store.Accounts.
func (s *Store) DropTokens(ctx context.Context, u im.UserID, keep func(store.Token) bool) error {
	s.tokens.Lock()
	defer s.tokens.Unlock()
	var drop []string
	err := s.view(ctx, func(db *pebble.DB) error {
		p := prefix(tTokenOf, string(u))
		return scan(db, p, func(k, _ []byte) bool {
			drop = append(drop, string(k[len(p):]))
			return true
		})
	})
	if err != nil {
		return err
	}
	drop = slices.DeleteFunc(drop, func(hash string) bool {
		t, err := s.Token(ctx, hash)
		return err == nil && keep != nil && keep(t)
	})
	if len(drop) == 0 {
		return nil
	}
	return s.write(func(b *pebble.Batch) error {
		for _, hash := range drop {
			if err := errors.Join(b.Delete(key(tToken, hash), nil), b.Delete(key(tTokenOf, string(u), hash), nil)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Device: a method of store.Devices.
func (s *Store) Device(ctx context.Context, k im.DeviceKey) (store.Device, error) {
	return row[store.Device](s, ctx, "device", key(tDevice, string(k.User), string(k.Device)))
}

// DevicesOf: a method of store.Devices.
func (s *Store) DevicesOf(ctx context.Context, u im.UserID) ([]store.Device, error) {
	return list[store.Device](s, ctx, prefix(tDevice, string(u)), nil)
}

// CountDevices: a method of store.Devices.
func (s *Store) CountDevices(ctx context.Context, u im.UserID) (n int, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		p := prefix(tDevice, string(u))
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: p, UpperBound: after(p)})
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			n++
		}
		return errors.Join(it.Error(), it.Close())
	})
	return n, err
}

// EachDevice: a method of store.Devices.
func (s *Store) EachDevice(ctx context.Context, fn func(store.Device) bool) error {
	return s.view(ctx, func(db *pebble.DB) error {
		var bad error
		err := scan(db, []byte{tDevice}, func(_, v []byte) bool {
			var d store.Device
			if d, bad = decodeRow[store.Device](v); bad != nil {
				return false
			}
			return fn(d)
		})
		return errors.Join(err, bad)
	})
}

// PutDevice: a method of store.Devices.
func (s *Store) PutDevice(ctx context.Context, d store.Device, sync bool) error {
	k, v := key(tDevice, string(d.Key.User), string(d.Key.Device)), encodeRow(d)
	if sync {
		return s.write(func(b *pebble.Batch) error { return b.Set(k, v, nil) })
	}
	return s.view(ctx, func(db *pebble.DB) error { return db.Set(k, v, pebble.NoSync) })
}

// DropDevice: a method of store.Devices.
func (s *Store) DropDevice(ctx context.Context, k im.DeviceKey) error {
	q := im.QueueConv(k.User, k.Device)
	heads, err := s.Heads(ctx, []im.ConvID{q})
	if err != nil {
		return err
	}
	if heads[0].Seq > 0 {
		if err := s.Trim(ctx, q, heads[0].Seq); err != nil {
			return err
		}
	}
	return s.view(ctx, func(db *pebble.DB) error {
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		cursors, receipts := prefix(tCursor, string(k.User), string(k.Device)), prefix(tReceipt, string(k.User), string(k.Device))
		err := errors.Join(b.Delete(key(tDevice, string(k.User), string(k.Device)), nil), dropAll(db, b, cursors), dropAll(db, b, receipts))
		if err != nil {
			return err
		}
		return db.Apply(b, pebble.NoSync)
	})
}

// dropAll deletes every key below p.
func dropAll(db *pebble.DB, b *pebble.Batch, p []byte) error {
	var errs error
	err := scan(db, p, func(k, _ []byte) bool {
		errs = b.Delete(bytes.Clone(k), nil)
		return errs == nil
	})
	return errors.Join(err, errs)
}

// Cursors: a method of store.Devices.
func (s *Store) Cursors(ctx context.Context, k im.DeviceKey) (out []store.Cursor, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		p := prefix(tCursor, string(k.User), string(k.Device))
		return scan(db, p, func(k, v []byte) bool {
			out = append(out, decodeCursor(im.ConvID(k[len(p):]), v))
			return true
		})
	})
	return out, err
}

// Cursor: a method of store.Devices.
func (s *Store) Cursor(ctx context.Context, k im.DeviceKey, conv im.ConvID) (c store.Cursor, err error) {
	c.Conv = conv
	err = s.view(ctx, func(db *pebble.DB) error {
		v, err := get(db, key(tCursor, string(k.User), string(k.Device), string(conv)))
		if v != nil {
			c = decodeCursor(conv, v)
		}
		return err
	})
	return c, err
}

// CursorsOf: a method of store.Devices.
func (s *Store) CursorsOf(ctx context.Context, k im.DeviceKey, convs []im.ConvID) (out []store.Cursor, err error) {
	out = make([]store.Cursor, len(convs))
	for i, c := range convs {
		if out[i], err = s.Cursor(ctx, k, c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// PutCursors: a method of store.Devices.
func (s *Store) PutCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor) error {
	return s.putCursors(ctx, k, cs, false)
}

// ResetCursors: a method of store.Devices.
func (s *Store) ResetCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor) error {
	return s.putCursors(ctx, k, cs, true)
}

func (s *Store) putCursors(ctx context.Context, k im.DeviceKey, cs []store.Cursor, reset bool) error {
	return s.view(ctx, func(db *pebble.DB) error {
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		p := prefix(tCursor, string(k.User), string(k.Device))
		if reset {
			if err := dropAll(db, b, p); err != nil {
				return err
			}
		}
		for _, c := range cs {
			if err := b.Set(append(slices.Clone(p), c.Conv...), encodeCursor(c), nil); err != nil {
				return err
			}
		}
		if b.Empty() {
			return nil
		}
		return db.Apply(b, pebble.NoSync)
	})
}

func encodeCursor(c store.Cursor) []byte {
	b := pair(uint64(c.Acked), uint64(c.Sent))
	for _, s := range c.Ahead {
		b = binary.AppendUvarint(b, uint64(s))
	}
	return b
}

func decodeCursor(conv im.ConvID, b []byte) store.Cursor {
	r := reader{b: b, ok: true}
	c := store.Cursor{Conv: conv, Acked: im.Seq(r.num()), Sent: im.Seq(r.num()), Known: true}
	for len(r.b) > 0 {
		c.Ahead = append(c.Ahead, im.Seq(r.num()))
	}
	return c
}

// Receipt: a method of store.Devices.
func (s *Store) Receipt(ctx context.Context, k im.DeviceKey, packet uint16) (r store.Receipt, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		v, err := get(db, receiptKey(k, packet))
		if err != nil {
			return err
		}
		if v == nil {
			return notFound("receipt")
		}
		d := reader{b: v, ok: true}
		r = store.Receipt{Packet: packet, Seq: im.Seq(d.num()), TS: int64(d.num())}
		r.Conv = im.ConvID(d.b)
		return nil
	})
	return r, err
}

// Release: a method of store.Devices.
func (s *Store) Release(ctx context.Context, k im.DeviceKey, packet uint16) error {
	return s.view(ctx, func(db *pebble.DB) error {
		if packet != 0 {
			return db.Delete(receiptKey(k, packet), pebble.NoSync)
		}
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		if err := dropAll(db, b, prefix(tReceipt, string(k.User), string(k.Device))); err != nil || b.Empty() {
			return err
		}
		return db.Apply(b, pebble.NoSync)
	})
}

// EachRetained: a method of store.Retained.
func (s *Store) EachRetained(ctx context.Context, fn func(store.RetainedMessage) bool) error {
	return s.view(ctx, func(db *pebble.DB) error {
		var bad error
		err := scan(db, []byte{tRetained}, func(_, v []byte) bool {
			var m store.RetainedMessage
			if m, bad = decodeRow[store.RetainedMessage](v); bad != nil {
				return false
			}
			return fn(m)
		})
		return errors.Join(err, bad)
	})
}

// Secret: a method of store.Store.
func (s *Store) Secret(ctx context.Context, name string, make func() ([]byte, error)) ([]byte, error) {
	s.secrets.Lock()
	defer s.secrets.Unlock()
	var v []byte
	err := s.view(ctx, func(db *pebble.DB) (err error) {
		v, err = get(db, key(tSecret, name))
		return err
	})
	if err != nil || v != nil {
		return v, err
	}
	if v, err = make(); err != nil {
		return nil, err
	}
	return v, s.write(func(b *pebble.Batch) error { return b.Set(key(tSecret, name), v, nil) })
}

// PutSecret: a method of store.Store.
func (s *Store) PutSecret(_ context.Context, name string, value []byte) error {
	s.secrets.Lock()
	defer s.secrets.Unlock()
	return s.write(func(b *pebble.Batch) error { return b.Set(key(tSecret, name), value, nil) })
}

// Note: a method of store.Notes.
func (s *Store) Note(ctx context.Context, k string) (v []byte, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		v, err = get(db, key(tNote, k))
		if err == nil && v == nil {
			err = notFound("note")
		}
		return err
	})
	return v, err
}

// EachNote: a method of store.Notes.
func (s *Store) EachNote(ctx context.Context, below string, fn func(store.Note) bool) error {
	return s.view(ctx, func(db *pebble.DB) error {
		return scan(db, key(tNote, below), func(k, v []byte) bool { return fn(store.Note{Key: string(k[1:]), Value: bytes.Clone(v)}) })
	})
}

// PutNotes: a method of store.Notes. They are one batch: all of them or none.
func (s *Store) PutNotes(ctx context.Context, notes []store.Note, sync bool) error {
	put := func(b *pebble.Batch) error {
		for _, n := range notes {
			k := key(tNote, n.Key)
			if n.Value == nil {
				if err := b.Delete(k, nil); err != nil {
					return err
				}
			} else if err := b.Set(k, n.Value, nil); err != nil {
				return err
			}
		}
		return nil
	}
	s.notes.RLock()
	defer s.notes.RUnlock()
	if sync {
		return s.write(put)
	}
	return s.view(ctx, func(db *pebble.DB) error {
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		if err := put(b); err != nil || b.Empty() {
			return err
		}
		return db.Apply(b, pebble.NoSync)
	})
}
