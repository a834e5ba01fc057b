package pebblestore

import (
	"context"
	"errors"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Range reads forward: a method of store.Log.
func (s *Store) Range(ctx context.Context, conv im.ConvID, after im.Seq, limit, maxBytes int) (out []*im.Entry, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		h, err := s.heads.load(db, conv)
		if err != nil {
			return err
		}
		num, end, floor := s.heads.bounds(h)
		out, err = entries(db, conv, num, max(after, floor), end, limit, maxBytes)
		return err
	})
	return out, err
}

// Before reads the end of a stretch: a method of store.Log. There are no holes,
// so where it begins is known.
func (s *Store) Before(ctx context.Context, conv im.ConvID, before im.Seq, limit int) (out []*im.Entry, err error) {
	err = s.view(ctx, func(db *pebble.DB) error {
		h, err := s.heads.load(db, conv)
		if err != nil {
			return err
		}
		num, end, floor := s.heads.bounds(h)
		if before > 0 {
			end = min(end, before-1)
		}
		if limit > 0 && end > im.Seq(limit) {
			floor = max(floor, end-im.Seq(limit))
		}
		out, err = entries(db, conv, num, floor, end, limit, math.MaxInt)
		return err
	})
	return out, err
}

// entries reads after < seq <= end of a conversation, until limit entries or
// until their sizes pass maxBytes.
func entries(db *pebble.DB, conv im.ConvID, num uint64, after, end im.Seq, limit, maxBytes int) (out []*im.Entry, err error) {
	if num == 0 || after >= end || limit <= 0 {
		return nil, nil
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: msgKey(num, after+1), UpperBound: numKey(tMsg, num+1)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	out = make([]*im.Entry, 0, min(limit, int(end-after), 256))
	bytes := 0
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		r, err := openRow(conv, it.Key(), v)
		if err == nil {
			err = r.skip(after)
		}
		if err != nil {
			return nil, err
		}
		for r.more() {
			if r.next > end || len(out) == limit || (len(out) > 0 && bytes >= maxBytes) {
				return out, nil
			}
			e, err := r.entry()
			if err != nil {
				return nil, err
			}
			bytes += e.Size()
			out = append(out, e)
		}
		if r.last >= end {
			break
		}
	}
	return out, it.Error()
}

// Entry reads one entry: a method of store.Log.
func (s *Store) Entry(ctx context.Context, conv im.ConvID, seq im.Seq) (*im.Entry, error) {
	es, err := s.Before(ctx, conv, seq+1, 1)
	if err == nil && (len(es) == 0 || es[0].Seq != seq) {
		err = notFound("entry")
	}
	if err != nil {
		return nil, err
	}
	return es[0], nil
}

// Heads returns the heads of convs: a method of store.Log.
func (s *Store) Heads(ctx context.Context, convs []im.ConvID) (out []store.Head, err error) {
	out = make([]store.Head, len(convs))
	err = s.view(ctx, func(db *pebble.DB) error {
		for i := 0; i < len(convs); {
			i += s.heads.cached(convs[i:], out[i:])
			if i == len(convs) {
				break
			}
			h, err := s.heads.load(db, convs[i])
			if err != nil {
				return err
			}
			s.heads.mu.RLock()
			out[i] = h.durable()
			s.heads.mu.RUnlock()
			i++
		}
		return nil
	})
	return out, err
}

// Doubts: a method of store.Log.
func (s *Store) Doubts() uint64 { return s.doubts.Load() }

// bounds returns the conversation's number, its last durable seq and its floor.
func (h *heads) bounds(x *head) (num uint64, end, floor im.Seq) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return x.num, x.seq, x.floor
}

// pointDeletes is up to how many entries a Trim deletes one by one: a range
// tombstone costs every later reader of the conversation. A row that is needed
// for one of its entries stays whole; what is below the floor nobody sees.
const pointDeletes = 1024

// Trim forgets the beginning of a conversation: a method of store.Log.
func (s *Store) Trim(ctx context.Context, conv im.ConvID, upTo im.Seq) error {
	return s.view(ctx, func(db *pebble.DB) error {
		h, err := s.heads.hold(db, conv)
		if err != nil {
			return err
		}
		defer h.release()
		s.heads.mu.Lock()
		num, from, ts := h.num, h.floor, h.ts
		upTo = min(upTo, h.seq)
		if num == 0 || upTo <= from {
			s.heads.mu.Unlock()
			return nil
		}
		h.floor = upTo
		s.heads.mu.Unlock()
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		if upTo-from <= pointDeletes {
			for seq := from + 1; seq <= upTo; seq++ {
				if err := b.Delete(msgKey(num, seq), nil); err != nil {
					return err
				}
			}
		} else if err := b.DeleteRange(msgKey(num, 0), msgKey(num, upTo+1), nil); err != nil {
			return err
		}
		if err := trimEdits(db, b, num, upTo); err != nil {
			return err
		}
		if err := b.Set(numKey(tFloor, num), pair(uint64(upTo), uint64(ts)), nil); err != nil {
			return err
		}
		return db.Apply(b, pebble.NoSync)
	})
}

// trimEdits forgets the edits of what is trimmed, if there are any: a range
// tombstone for nothing would cost later readers.
func trimEdits(db *pebble.DB, b *pebble.Batch, num uint64, upTo im.Seq) error {
	lower, upper := editKey(num, 0, 0), editKey(num, upTo+1, 0)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	if it.First() {
		err = b.DeleteRange(lower, upper, nil)
	}
	return errors.Join(err, it.Error(), it.Close())
}

func notFound(what string) error { return im.Refuse(im.NotFound, "", "%s not found", what) }
