package pebblestore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// EachConversation: a method of store.Log.
func (s *Store) EachConversation(ctx context.Context, behind im.ConvID, fn func(im.ConvID) bool) error {
	return s.view(ctx, func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: append(key(tConv, string(behind)), 0), UpperBound: []byte{tConv + 1}})
		if err != nil {
			return err
		}
		for ok := it.First(); ok && ctx.Err() == nil && fn(im.ConvID(it.Key()[1:])); ok = it.Next() {
		}
		return errors.Join(it.Error(), it.Close(), ctx.Err())
	})
}

// Empty: a method of store.Mover.
func (s *Store) Empty(ctx context.Context) (empty bool, err error) {
	empty = true
	err = s.view(ctx, func(db *pebble.DB) error {
		found := func(_, _ []byte) bool { empty = false; return false }
		return errors.Join(scan(db, []byte{tUser}, found), scan(db, []byte{tConv}, found))
	})
	return empty, err
}

// SetPartial: a method of store.Mover.
func (s *Store) SetPartial(_ context.Context, why string) error {
	return s.write(func(b *pebble.Batch) error {
		if why == "" {
			return b.Delete(key(tMeta, "partial"), nil)
		}
		return b.Set(key(tMeta, "partial"), []byte(why), nil)
	})
}

// Partial: a method of store.Mover.
func (s *Store) Partial(ctx context.Context) (why string, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		v, err := get(db, key(tMeta, "partial"))
		why = string(v)
		return err
	})
	return why, err
}

// Dump: a method of store.Mover. It reads one snapshot.
func (s *Store) Dump(ctx context.Context, fn func(store.Record) error) error {
	var snap *pebble.Snapshot
	err := s.view(ctx, func(db *pebble.DB) error {
		snap = db.NewSnapshot()
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { _ = snap.Close() }()
	d := &dumper{ctx: ctx, r: snap, fn: fn}
	return errors.Join(
		d.table(tSecret, func(k, v []byte) (store.Record, error) {
			return store.Record{Secret: &store.Secret{Name: string(k[1:]), Value: bytes.Clone(v)}}, nil
		}),
		dumpRows(d, tUser, func(v *store.User) store.Record { return store.Record{User: v} }),
		dumpRows(d, tToken, func(v *store.Token) store.Record { return store.Record{Token: v} }),
		dumpRows(d, tRelation, func(v *store.Relation) store.Record { return store.Record{Relation: v} }),
		dumpRows(d, tGroup, func(v *store.Group) store.Record { return store.Record{Group: v} }),
		dumpRows(d, tMember, func(v *store.Member) store.Record { return store.Record{Member: v} }),
		dumpRows(d, tDevice, func(v *store.Device) store.Record { return store.Record{Device: v} }),
		dumpRows(d, tRetained, func(v *store.RetainedMessage) store.Record { return store.Record{Retained: v} }),
		d.conversations(),
		d.table(tCursor, func(k, v []byte) (store.Record, error) {
			p := bytes.SplitN(k[1:], []byte{0}, 3)
			if len(p) != 3 {
				return store.Record{}, errCorrupt
			}
			dev := im.DeviceKey{User: im.UserID(p[0]), Device: im.DeviceID(p[1])}
			return store.Record{Cursor: &store.DeviceCursor{Key: dev, Cursor: decodeCursor(im.ConvID(p[2]), v)}}, nil
		}),
		d.table(tReceipt, func(k, v []byte) (store.Record, error) {
			p := bytes.SplitN(k[1:], []byte{0}, 3)
			if len(p) != 3 || len(p[2]) != 2 {
				return store.Record{}, errCorrupt
			}
			r := reader{b: v, ok: true}
			rc := store.Receipt{Packet: binary.BigEndian.Uint16(p[2]), Seq: im.Seq(r.num()), TS: int64(r.num())}
			rc.Conv = im.ConvID(r.b)
			return store.Record{Receipt: &store.DeviceReceipt{Key: im.DeviceKey{User: im.UserID(p[0]), Device: im.DeviceID(p[1])}, Receipt: rc}}, nil
		}),
		d.table(tNote, func(k, v []byte) (store.Record, error) {
			return store.Record{Note: &store.Note{Key: string(k[1:]), Value: bytes.Clone(v)}}, nil
		}),
		dumpRows(d, tTask, func(v *store.Task) store.Record { return store.Record{Task: v} }),
	)
}

// dumper hands records on until the first error.
type dumper struct {
	ctx  context.Context
	r    pebble.Reader
	fn   func(store.Record) error
	fail error
}

func (d *dumper) give(r store.Record, err error) bool {
	if err == nil {
		err = d.ctx.Err()
	}
	if err == nil {
		err = d.fn(r)
	}
	if err != nil {
		d.fail = err
	}
	return err == nil
}

// table dumps a table; after a failure nothing more is dumped, and it is told once.
func (d *dumper) table(table byte, decode func(k, v []byte) (store.Record, error)) error {
	if d.fail != nil {
		return nil
	}
	err := scan(d.r, []byte{table}, func(k, v []byte) bool { return d.give(decode(k, v)) })
	if err == nil {
		err = d.fail
	}
	d.fail = err
	return err
}

func dumpRows[T any](d *dumper, table byte, wrap func(*T) store.Record) error {
	return d.table(table, func(_, v []byte) (store.Record, error) {
		row, err := decodeRow[T](v)
		return wrap(&row), err
	})
}

func (d *dumper) conversations() error {
	if d.fail != nil {
		return nil
	}
	err := scan(d.r, []byte{tConv}, func(k, v []byte) bool {
		conv, num := im.ConvID(k[1:]), binary.BigEndian.Uint64(v)
		h, err := readHead(d.r, conv)
		if !d.give(store.Record{Conversation: &store.Conversation{Conv: conv, Head: h.seq, TS: h.ts, Floor: h.floor, ReadTS: h.readTS}}, err) {
			return false
		}
		err = scan(d.r, numKey(tMsg, num), func(k, v []byte) bool {
			es, err := readRow(conv, k, v, h.floor)
			if err != nil {
				return d.give(store.Record{}, err)
			}
			for _, e := range es {
				if !d.give(store.Record{Entry: e}, nil) {
					return false
				}
			}
			return true
		})
		if err == nil && d.fail == nil {
			err = scan(d.r, numKey(tRead, num), func(k, v []byte) bool {
				seq, ts := unpair(v)
				return d.give(store.Record{Read: &store.ConvRead{Conv: conv, Read: store.Read{User: im.UserID(k[9:]), Seq: im.Seq(seq), TS: int64(ts)}}}, nil)
			})
		}
		if err != nil && d.fail == nil {
			d.fail = err
		}
		return d.fail == nil
	})
	if err == nil {
		err = d.fail
	}
	d.fail = err
	return err
}

// Load: a method of store.Mover.
func (s *Store) Load(ctx context.Context, rs []store.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.write(func(b *pebble.Batch) error {
		x := &loader{s: s, b: b, nums: map[im.ConvID]uint64{}}
		for i := range rs {
			if err := x.put(&rs[i]); err != nil {
				return err
			}
		}
		return x.putBurst()
	})
	s.heads.reset()
	return err
}

// loader writes records into the sequencer's batch.
type loader struct {
	s    *Store
	b    *pebble.Batch
	nums map[im.ConvID]uint64

	burst []*im.Entry // of one conversation, without a hole, not written yet
	of    uint64      // its number
}

func (x *loader) put(r *store.Record) error {
	b := x.b
	switch {
	case r.Secret != nil:
		return b.Set(key(tSecret, r.Secret.Name), r.Secret.Value, nil)
	case r.User != nil:
		return b.Set(key(tUser, string(r.User.ID)), encodeRow(r.User), nil)
	case r.Token != nil:
		return errors.Join(b.Set(key(tToken, r.Token.Hash), encodeRow(r.Token), nil), b.Set(key(tTokenOf, string(r.Token.User), r.Token.Hash), nil, nil))
	case r.Relation != nil:
		return b.Set(key(tRelation, string(r.Relation.User), string(r.Relation.Peer)), encodeRow(r.Relation), nil)
	case r.Group != nil:
		return b.Set(key(tGroup, string(r.Group.ID)), encodeRow(r.Group), nil)
	case r.Member != nil:
		m := r.Member
		return errors.Join(b.Set(key(tMember, string(m.Group), string(m.User)), encodeRow(m), nil),
			b.Set(key(tMemberOf, string(m.User), string(m.Group)), binary.AppendUvarint(nil, uint64(m.Start)), nil))
	case r.Device != nil:
		return b.Set(key(tDevice, string(r.Device.Key.User), string(r.Device.Key.Device)), encodeRow(r.Device), nil)
	case r.Retained != nil:
		return b.Set(key(tRetained, r.Retained.Topic), encodeRow(r.Retained), nil)
	case r.Conversation != nil:
		return x.conversation(r.Conversation)
	case r.Entry != nil:
		return x.entry(r.Entry)
	case r.Read != nil:
		num, err := x.num(r.Read.Conv)
		if err != nil {
			return err
		}
		return b.Set(append(numKey(tRead, num), r.Read.User...), pair(uint64(r.Read.Seq), uint64(r.Read.TS)), nil)
	case r.Cursor != nil:
		c := r.Cursor
		return b.Set(key(tCursor, string(c.Key.User), string(c.Key.Device), string(c.Conv)), encodeCursor(c.Cursor), nil)
	case r.Receipt != nil:
		rc := r.Receipt
		return b.Set(receiptKey(rc.Key, rc.Packet), append(pair(uint64(rc.Seq), uint64(rc.TS)), rc.Conv...), nil)
	}
	if n := r.Note; n != nil {
		return b.Set(key(tNote, n.Key), n.Value, nil)
	}
	if r.Task != nil {
		return setTask(b, r.Task)
	}
	return im.Refuse(im.Invalid, "record", "a record that this version does not know")
}

// num is the number of a conversation that was loaded before.
func (x *loader) num(conv im.ConvID) (uint64, error) {
	if n, ok := x.nums[conv]; ok {
		return n, nil
	}
	v, err := get(x.s.db.DB, key(tConv, string(conv)))
	if err != nil {
		return 0, err
	}
	if v == nil {
		return 0, im.Refuse(im.Invalid, "record", "an entry of %s comes before the conversation itself", conv)
	}
	x.nums[conv] = binary.BigEndian.Uint64(v)
	return x.nums[conv], nil
}

func (x *loader) conversation(c *store.Conversation) error {
	num, err := x.num(c.Conv)
	if im.Is(err, im.Invalid) { // new
		x.s.nextConv++
		num = x.s.nextConv
		x.nums[c.Conv] = num
		n := binary.BigEndian.AppendUint64(nil, num)
		err = errors.Join(x.b.Set(key(tConv, string(c.Conv)), n, nil), x.b.Set(key(tMeta, "conversations"), n, nil))
		if a, b := c.Conv.Pair(); a != "" {
			err = errors.Join(err, x.b.Set(key(tUserConv, string(a), string(c.Conv)), nil, nil), x.b.Set(key(tUserConv, string(b), string(c.Conv)), nil, nil))
		}
	}
	if err == nil && c.Floor > 0 {
		err = x.b.Set(numKey(tFloor, num), pair(uint64(c.Floor), uint64(c.TS)), nil)
	}
	if err == nil && c.ReadTS > 0 {
		err = x.b.Set(numKey(tReadTS, num), pair(uint64(c.ReadTS), 0), nil)
	}
	return err
}

func (x *loader) entry(e *im.Entry) error {
	num, err := x.num(e.Conv)
	if err != nil {
		return err
	}
	if n := len(x.burst); n > 0 && (x.of != num || x.burst[n-1].Seq+1 != e.Seq) {
		if err := x.putBurst(); err != nil {
			return err
		}
	}
	x.of, x.burst = num, append(x.burst, e)
	if e.Op == im.OpEdit {
		if err := x.b.Set(editKey(num, e.Ref, e.Seq), nil, nil); err != nil {
			return err
		}
	}
	young := e.TS > x.s.opt.Now().Add(-2*x.s.opt.DedupeWindow).UnixMilli()
	if e.ID != "" && e.Op != im.OpEvent && e.Op != im.OpPublish && young {
		return x.b.Set(dedupeKey(x.s.epochAt(x.s.opt.Now()), num, e.From, e.ID), pair(uint64(e.Seq), uint64(e.TS)), nil)
	}
	return nil
}

func (x *loader) putBurst() (err error) {
	err = x.s.putRows(x.b, x.of, x.burst)
	x.burst = x.burst[:0]
	return err
}
