package pebblestore

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// head is the end of one conversation, in memory.
type head struct {
	num  uint64 // of the conversation; 0: it has no entry and no number yet
	conv im.ConvID

	pins atomic.Int32 // whoever may change it: a head with pins is not evicted

	// The sequencer's.
	assigned im.Seq // the last seq given out
	lastTS   int64  // of that entry
	batch    uint64 // the last batch that had to do with it
	tail     int    // index into that batch's tails

	// Under heads.mu.
	seq    im.Seq // the last seq that is durable: what readers see. seq <= assigned
	ts     int64
	readTS int64
	floor  im.Seq
}

// heads keeps the heads of conversations in use. A head is loaded from disk once
// and may be evicted only when nobody is about to change it and nothing of it is
// in flight, so that loading it again finds exactly what is durable, and what is
// changed is what is in the map.
type heads struct {
	mu      sync.RWMutex
	m       map[im.ConvID]*head
	max     int
	evicted uint64 // how often something was evicted; guards a load against it
}

func (h *heads) init(max int) { h.m, h.max = make(map[im.ConvID]*head), max }

// load returns the head of conv, reading it from db if need be.
func (h *heads) load(db *pebble.DB, conv im.ConvID) (*head, error) {
	for {
		h.mu.RLock()
		found, gen := h.m[conv], h.evicted
		h.mu.RUnlock()
		if found != nil {
			return found, nil
		}
		loaded, err := readHead(db, conv)
		if err != nil {
			return nil, err
		}
		h.mu.Lock()
		if found := h.m[conv]; found != nil {
			h.mu.Unlock()
			return found, nil
		}
		if h.evicted != gen { // it may have lived and died meanwhile
			h.mu.Unlock()
			continue
		}
		if len(h.m) >= h.max {
			h.evict()
		}
		h.m[conv] = loaded
		h.mu.Unlock()
		return loaded, nil
	}
}

// hold is load for those who will change the head. They release it afterwards.
func (h *heads) hold(db *pebble.DB, conv im.ConvID) (*head, error) {
	for {
		h.mu.RLock()
		x := h.m[conv]
		if x != nil {
			x.pins.Add(1) // evict holds the lock for writing
		}
		h.mu.RUnlock()
		if x != nil {
			return x, nil
		}
		if _, err := h.load(db, conv); err != nil {
			return nil, err
		}
	}
}

func (x *head) release() { x.pins.Add(-1) }

// durable is what readers see of a head. Caller holds heads.mu.
func (x *head) durable() store.Head { return store.Head{Seq: x.seq, TS: x.ts, ReadTS: x.readTS} }

// cached copies heads that are in memory to out, up to the first that is not, and
// returns how many.
func (h *heads) cached(convs []im.ConvID, out []store.Head) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for i, c := range convs {
		x := h.m[c]
		if x == nil {
			return i
		}
		out[i] = x.durable()
	}
	return len(convs)
}

// evict drops some unused heads; a map's order is random enough. Caller holds mu.
func (h *heads) evict() {
	n := h.max/64 + 1
	for conv, x := range h.m {
		if x.pins.Load() == 0 {
			delete(h.m, conv)
			h.evicted++
			if n--; n == 0 {
				return
			}
		}
	}
}

func (h *heads) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.m = make(map[im.ConvID]*head)
	h.evicted++
}

func readHead(db pebble.Reader, conv im.ConvID) (*head, error) {
	h := &head{conv: conv}
	v, err := get(db, key(tConv, string(conv)))
	if err != nil || v == nil {
		return h, err
	}
	h.num = binary.BigEndian.Uint64(v)
	if v, err = get(db, numKey(tFloor, h.num)); err != nil {
		return nil, err
	}
	if v != nil {
		seq, ts := unpair(v)
		h.floor, h.assigned, h.lastTS = im.Seq(seq), im.Seq(seq), int64(ts)
	}
	if v, err = get(db, numKey(tReadTS, h.num)); err != nil {
		return nil, err
	}
	if v != nil {
		ts, _ := unpair(v)
		h.readTS = int64(ts)
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: numKey(tMsg, h.num), UpperBound: numKey(tMsg, h.num+1)})
	if err != nil {
		return nil, err
	}
	if it.Last() {
		v, err := it.ValueAndErr()
		var last []*im.Entry
		if err == nil {
			last, err = readRow(conv, it.Key(), v, seqOf(it.Key())-1)
		}
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		h.assigned, h.lastTS = max(last[0].Seq, h.assigned), last[0].TS
	}
	h.seq, h.ts = h.assigned, h.lastTS
	return h, errors.Join(it.Error(), it.Close())
}

// get returns a copy of the value, nil if there is none.
func get(r pebble.Reader, k []byte) ([]byte, error) {
	v, closer, err := r.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v = append([]byte{}, v...)
	return v, closer.Close()
}
