package pebblestore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
)

// edit notes an edit of this batch below its entry, for a recall to find. If that
// was recalled already, the edit says nothing.
func (x *builder) edit(h *head, e *im.Entry) error {
	ref := entryAt(x.burst[h.tail], e.Ref)
	if ref == nil {
		_, es, err := x.stored(h, e.Ref)
		if err != nil {
			return err
		}
		ref = entryAt(es, e.Ref)
	}
	if ref != nil && ref.Flags&im.FlagRecalled != 0 {
		e.Empty()
	}
	return x.b.Set(editKey(h.num, e.Ref, e.Seq), nil, nil)
}

// recall empties an entry and its edits.
func (x *builder) recall(h *head, ref im.Seq) error {
	seqs := []im.Seq{ref}
	p := binary.BigEndian.AppendUint64(numKey(tEdit, h.num), uint64(ref))
	if err := scan(x.db, p, func(k, _ []byte) bool {
		if edit := im.Seq(binary.BigEndian.Uint64(k[len(p):])); edit > ref {
			seqs = append(seqs, edit)
		}
		return true
	}); err != nil {
		return err
	}
	for _, e := range x.burst[h.tail] { // what the database does not show yet
		if e.Seq == ref || (e.Op == im.OpEdit && e.Ref == ref && e.Seq > ref) {
			e.Empty()
		}
	}
	var k []byte // the row that is being emptied, and its entries
	var es []*im.Entry
	put := func() error {
		if es == nil {
			return nil
		}
		v := appendRow(nil, es)
		x.rows.put(k, v) // another of its entries may be emptied too
		return x.b.Set(k, v, nil)
	}
	for _, seq := range seqs { // they ascend: each row is written once
		if es == nil || seq > es[len(es)-1].Seq {
			err := put()
			if err == nil {
				k, es, err = x.stored(h, seq)
			}
			if err != nil {
				return err
			}
		}
		if e := entryAt(es, seq); e != nil {
			e.Empty()
		}
	}
	return put()
}

// entryAt is the one of es, whose seqs have no holes, at seq; nil if there is none.
func entryAt(es []*im.Entry, seq im.Seq) *im.Entry {
	if len(es) == 0 || seq < es[0].Seq || seq > es[len(es)-1].Seq {
		return nil
	}
	return es[seq-es[0].Seq]
}

// stored finds the row with an entry that an earlier batch has appended: its key
// and entries. es is nil if there is none.
func (x *builder) stored(h *head, seq im.Seq) (k []byte, es []*im.Entry, err error) {
	k, v, err := x.rowWith(h, seq)
	if err != nil || v == nil {
		return nil, nil, err
	}
	if es, err = readRow(h.conv, k, v, 0); err != nil {
		return nil, nil, fmt.Errorf("%s seq %d: %w", h.conv, seq, err)
	}
	if entryAt(es, seq) == nil { // it was trimmed, and this is the next row
		return nil, nil, nil
	}
	return k, es, nil
}

// rowWith finds the row that holds seq; v is nil if there is none.
func (x *builder) rowWith(h *head, seq im.Seq) (k, v []byte, err error) {
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: msgKey(h.num, seq), UpperBound: numKey(tMsg, h.num+1)})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return nil, nil, it.Error()
	}
	k = bytes.Clone(it.Key())
	if v, ok := x.rows[string(k)]; ok {
		return k, v, nil
	}
	v, err = it.ValueAndErr()
	return k, bytes.Clone(v), err
}

// indexEdits makes the index of the edits of a store that was written without it:
// the log is read once.
func indexEdits(db *pebble.DB) error {
	b := db.NewBatch()
	defer func() { _ = b.Close() }()
	var fault error
	err := scan(db, []byte{tMsg}, func(k, v []byte) bool {
		fault = func() error {
			num := binary.BigEndian.Uint64(k[1:])
			r, err := openRow("", k, v)
			for err == nil && r.more() {
				var raw []byte
				seq := r.next
				if raw, err = r.raw(); err != nil || len(raw) < 3 || im.Op(raw[2]) != im.OpEdit {
					continue
				}
				e, e2 := decodeEntry("", seq, raw)
				if err = e2; err == nil {
					err = b.Set(editKey(num, e.Ref, seq), nil, nil)
				}
			}
			if err == nil && b.Len() > 1<<20 {
				err = db.Apply(b, pebble.NoSync)
				b.Reset()
			}
			return err
		}()
		return fault == nil
	})
	return errors.Join(err, fault, db.Apply(b, pebble.NoSync))
}
