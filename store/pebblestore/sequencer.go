package pebblestore

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// job is one thing for the sequencer: a list of appends, a transaction or a
// synchronous write.
type job struct {
	appends []*store.Append
	one     *store.Append // instead of appends: spares the slice
	tx      *store.Tx
	write   func(*pebble.Batch) error
	done    chan error // tx and write
	size    int
}

// queue is what waits for the sequencer. Full above max bytes: Append blocks.
type queue struct {
	mu     sync.Mutex
	work   *sync.Cond // something came, or closed
	room   *sync.Cond // bytes fell, or closed
	jobs   []job
	spare  []job
	bytes  int
	max    int
	closed bool
}

// enough jobs are taken without waiting for more.
const enough = 256

func (q *queue) init(max int) {
	q.max = max
	q.work, q.room = sync.NewCond(&q.mu), sync.NewCond(&q.mu)
}

func (q *queue) push(j job) bool {
	q.mu.Lock()
	for q.bytes >= q.max && !q.closed {
		q.room.Wait()
	}
	if q.closed {
		q.mu.Unlock()
		return false
	}
	q.jobs = append(q.jobs, j)
	q.bytes += j.size
	first := len(q.jobs) == 1
	q.mu.Unlock()
	if first {
		q.work.Signal()
	}
	return true
}

// take waits for work and returns all of it; nil when closed and empty. As long as
// goroutines that run anyway add to it, it lets them: what they have comes into
// the same batch instead of waiting for a sync of its own. Where nobody else wants
// to run this takes no time.
func (q *queue) take() []job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.jobs) == 0 && !q.closed {
		q.work.Wait()
	}
	for n := 0; n < len(q.jobs) && len(q.jobs) < enough; {
		n = len(q.jobs)
		q.mu.Unlock()
		runtime.Gosched()
		q.mu.Lock()
	}
	jobs := q.jobs
	q.jobs, q.spare = q.spare[:0], nil
	q.bytes = 0
	q.room.Broadcast()
	if len(jobs) == 0 {
		return nil
	}
	return jobs
}

// give returns a list for reuse.
func (q *queue) give(jobs []job) {
	clear(jobs)
	q.mu.Lock()
	if q.spare == nil && cap(jobs) <= 4096 {
		q.spare = jobs[:0]
	}
	q.mu.Unlock()
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.work.Broadcast()
	q.room.Broadcast()
}

// Append hands entries to the sequencer: a method of store.Log.
func (s *Store) Append(as ...*store.Append) {
	j := job{}
	switch len(as) {
	case 0:
		return
	case 1:
		j.one = as[0]
	default:
		j.appends = append([]*store.Append(nil), as...) // the caller may reuse its slice
	}
	for _, a := range as {
		j.size += a.Entry.Size()
	}
	if !s.queue.push(j) {
		for _, a := range as {
			a.Err = gone()
			finish(a)
		}
	}
}

func finish(a *store.Append) {
	if a.Done != nil {
		a.Done(a)
	}
}

// Commit writes tx through the sequencer: a method of store.Store. It waits for
// the outcome even if ctx ends: the commit may be under way.
func (s *Store) Commit(_ context.Context, tx *store.Tx) error {
	j := job{tx: tx, done: make(chan error, 1)}
	for _, a := range tx.Entries {
		j.size += a.Entry.Size()
	}
	if !s.queue.push(j) {
		for _, a := range tx.Entries {
			a.Err = gone()
			finish(a)
		}
		return gone()
	}
	return <-j.done
}

// write runs fn on the next batch and returns when it is durable.
func (s *Store) write(fn func(*pebble.Batch) error) error {
	j := job{write: fn, done: make(chan error, 1)}
	if !s.queue.push(j) {
		return gone()
	}
	return <-j.done
}

// commit is one batch from the sequencer to the announcer.
type commit struct {
	batch   *pebble.Batch
	begun   time.Time
	appends []*store.Append // with what Done is to see
	tails   []tail          // the heads it has to do with, and where they stand after it
	waiters []waiter
	entries int
	bytes   int
	failed  error         // it never got as far as a batch
	barrier chan struct{} // closed when everything before it is announced
	last    bool          // the announcer ends here
	gen     uint64        // which opening of the database it was applied to
}

type tail struct {
	h   *head
	seq im.Seq
	ts  int64
}

type waiter struct {
	ch  chan error
	err error
}

// run is the sequencer; it ends when the queue is closed and empty.
func (s *Store) run() {
	announced := make(chan struct{})
	go func() {
		defer close(announced)
		for c := range s.announce {
			if c.last {
				return
			}
			s.settle(c)
			s.inFlight.Add(-1)
		}
	}()
	for {
		jobs := s.queue.take()
		if jobs == nil {
			break
		}
		s.serve(jobs)
		s.queue.give(jobs)
	}
	s.pass(&commit{last: true}) // not closed: heal may send
	<-announced
	close(s.done)
}

// serve builds and applies batches from jobs.
func (s *Store) serve(jobs []job) {
	for len(jobs) > 0 {
		n, entries, bytes := 0, 0, 0
		for n < len(jobs) && (n == 0 || (entries < s.opt.MaxBatch && bytes < s.opt.MaxBatchBytes)) {
			entries += max(1, len(jobs[n].appends))
			bytes += jobs[n].size
			n++
		}
		s.serveBatch(jobs[:n])
		jobs = jobs[n:]
	}
}

func (s *Store) serveBatch(jobs []job) {
	if f := s.bad.Load(); f != nil {
		s.refuse(jobs, f.err)
		return
	}
	if err := s.free.check(s.dir, s.opt.MinFree, s.opt.Now()); err != nil {
		s.refuse(jobs, err)
		return
	}
	c, err := s.build(jobs)
	if err != nil { // the database could not be read or written: nothing of it counts
		s.refuse(jobs, s.broke(err))
		return
	}
	if len(jobs) == 1 && s.inFlight.Load() == 0 {
		s.settle(c) // nothing to overlap with: spare the hop to the announcer
		return
	}
	s.pass(c)
}

// pass hands a commit to the announcer.
func (s *Store) pass(c *commit) {
	s.inFlight.Add(1)
	s.announce <- c
}

// refuse answers jobs in their turn: after what is in flight.
func (s *Store) refuse(jobs []job, err error) {
	c := &commit{failed: err}
	for i := range jobs {
		j := &jobs[i]
		if j.one != nil {
			c.appends = append(c.appends, j.one)
		}
		c.appends = append(c.appends, j.appends...)
		if j.tx != nil {
			c.appends = append(c.appends, j.tx.Entries...)
		}
		if j.done != nil {
			c.waiters = append(c.waiters, waiter{j.done, err})
		}
	}
	s.pass(c)
}

// settle is the announcer's part: wait for the sync, then tell everybody.
func (s *Store) settle(c *commit) {
	if c.barrier != nil {
		close(c.barrier)
		return
	}
	err := c.failed
	if err == nil {
		if f := s.bad.Load(); f != nil {
			err = f.err // a commit before this one failed: its seqs are not to be trusted
		}
		if e := syncBatch(c.batch); e != nil && err == nil {
			err = s.broke(e)
		}
		if err == nil && c.gen != s.gen.Load() {
			err = im.E(im.Unavailable, "pebblestore.commit", errors.New("the database was opened again meanwhile"))
		}
	}
	s.heads.mu.Lock()
	for _, t := range c.tails {
		if err == nil {
			t.h.seq, t.h.ts = t.seq, t.ts
		}
		t.h.release()
	}
	s.heads.mu.Unlock()
	if err == nil {
		if s.opt.Events.Committed != nil {
			s.opt.Events.Committed(c.entries, c.bytes, time.Since(c.begun))
		}
	}
	if s.opt.Events.Announce != nil && len(c.appends) > 0 {
		defer s.opt.Events.Announce()()
	}
	for _, a := range c.appends {
		if err != nil {
			a.Err, a.Dup = err, false
		}
		finish(a)
	}
	for _, w := range c.waiters {
		if err != nil {
			w.err = err
		}
		w.ch <- w.err
	}
	if c.batch != nil {
		_ = c.batch.Close()
	}
}

func syncBatch(b *pebble.Batch) (err error) {
	defer recoverFatal(&err)
	return b.SyncWait()
}

// broke notes that commits fail and returns the error for those who wait. Until
// the database was opened again nothing is accepted.
func (s *Store) broke(err error) error {
	f := &failure{im.E(im.Unavailable, "pebblestore.commit", err)}
	if s.bad.CompareAndSwap(nil, f) {
		s.doubts.Add(1)
		s.log.Error("commit failed: nothing is acknowledged until the store is back", "error", err)
		if s.opt.Events.CommitFailed != nil {
			s.opt.Events.CommitFailed(err)
		}
		go s.heal()
	}
	return f.err
}

// reviveEvery is how often a broken store is opened again.
const reviveEvery = 500 * time.Millisecond

// heal tries until the store is back, or closed. It runs beside the sequencer,
// which refuses meanwhile: opening waits for as long as the disk is at fault.
func (s *Store) heal() {
	for !s.revive() {
		select {
		case <-time.After(reviveEvery):
		case <-s.closing.Done():
			return
		}
	}
}

// revive closes the database, opens it again and forgets all that memory holds,
// so that the disk is the truth.
func (s *Store) revive() bool {
	barrier := make(chan struct{}) // what is in flight fails first
	s.inFlight.Add(1)
	select {
	case s.announce <- &commit{barrier: barrier}:
	case <-s.closing.Done():
		return false
	}
	select {
	case <-barrier:
	case <-s.closing.Done():
		return false
	}
	f := s.bad.Load()
	s.db.Lock() // waits for a batch that is being built, and for readers
	old := s.db.DB
	s.db.DB, s.db.err = nil, f.err
	s.db.Unlock()
	if old != nil {
		if err := closeDB(old, false); err != nil {
			s.log.Warn("broken store closed with an error", "error", err)
		}
	}
	db, err := s.open()
	if err != nil {
		s.log.Error("store could not be opened again", "error", err)
		return false
	}
	s.heads.reset()
	s.gen.Add(1)
	s.doubts.Add(1) // it may hold what was refused
	s.db.Lock()
	defer s.db.Unlock()
	if s.closing.Err() != nil { // Close did not wait for us
		_ = closeDB(db, false)
		return true
	}
	s.db.DB, s.db.err = db, nil
	s.bad.Store(nil)
	s.log.Info("store is back")
	return true
}

// builder makes one batch.
type builder struct {
	s     *Store
	db    *pebble.DB
	b     *pebble.Batch
	c     *commit
	now   time.Time
	ids   *pebble.Iterator // of dedupe rows, made on first use
	mine  map[string]*store.Append
	rows  rewrites      // rows written by transactions and recalls of this batch
	burst [][]*im.Entry // what is appended, by tail; the store's, see Store.burst
}

// rewrites are values that a later part of the same batch must see. A nil value
// is a deletion.
type rewrites map[string][]byte

func (r *rewrites) put(k, v []byte) {
	if *r == nil {
		*r = make(rewrites)
	}
	(*r)[string(k)] = v
}

func (s *Store) build(jobs []job) (c *commit, err error) {
	s.db.RLock()
	defer s.db.RUnlock()
	if s.db.DB == nil {
		return nil, s.db.err
	}
	defer recoverFatal(&err)
	now := s.opt.Now()
	x := &builder{s: s, db: s.db.DB, now: now, c: &commit{begun: time.Now(), gen: s.gen.Load()}, burst: s.burst[:0]}
	x.b = x.db.NewBatch()
	defer func() {
		if x.ids != nil {
			err = errors.Join(err, x.ids.Close())
		}
		if err != nil { // heads it holds are forgotten when the store is opened again
			_ = x.b.Close()
		}
		s.keep(x.burst)
	}()
	s.batches++
	if e := s.epochAt(now); e > s.epoch { // never back: a clock that was ahead has left ids there
		s.epoch = e
		if err := s.expireDedupe(x.db); err != nil {
			return nil, err
		}
	}
	for i := range jobs {
		if err := x.add(&jobs[i]); err != nil {
			return nil, err
		}
	}
	if err := x.putBursts(); err != nil {
		return nil, err
	}
	x.c.batch = x.b
	x.c.bytes = x.b.Len()
	if x.b.Empty() { // everything was a duplicate or a conflict: wait for what is before
		if err := x.b.LogData(nil, nil); err != nil {
			return nil, err
		}
	}
	if err := x.db.ApplyNoSyncWait(x.b, pebble.Sync); err != nil {
		return nil, err
	}
	return x.c, nil
}

func (x *builder) add(j *job) error {
	switch {
	case j.one != nil:
		return x.append(j.one)
	case j.tx != nil:
		return x.tx(j)
	case j.write != nil:
		err := j.write(x.b)
		x.c.waiters = append(x.c.waiters, waiter{j.done, err})
		return nil
	}
	for _, a := range j.appends {
		if err := x.append(a); err != nil {
			return err
		}
	}
	return nil
}

// append gives the entry its seq and writes it, unless it is a duplicate.
func (x *builder) append(a *store.Append) error {
	x.c.appends = append(x.c.appends, a)
	e := &a.Entry
	a.Dup, a.Err = false, nil
	var receipt []byte
	if a.Packet != 0 {
		receipt = receiptKey(im.DeviceKey{User: e.From, Device: e.Device}, a.Packet)
		if dup, err := x.received(a, receipt); dup || err != nil {
			return err
		}
	}
	if a.NoEntry {
		return x.side(a, receipt)
	}
	h, err := x.head(e.Conv)
	if err != nil {
		return err
	}
	dedupe := e.ID != "" && e.Op != im.OpEvent && e.Op != im.OpPublish
	if dedupe {
		if dup, err := x.known(a, h); dup || err != nil {
			return err
		}
	}
	if h.num == 0 {
		if err := x.begin(h); err != nil {
			return err
		}
	}
	h.assigned++
	h.lastTS = max(x.now.UnixMilli(), h.lastTS)
	e.Seq, e.TS = h.assigned, h.lastTS
	x.burst[h.tail] = append(x.burst[h.tail], e)
	x.c.entries++
	if dedupe {
		if err := x.b.Set(dedupeKey(x.s.epoch, h.num, e.From, e.ID), pair(uint64(e.Seq), uint64(e.TS)), nil); err != nil {
			return err
		}
	}
	switch e.Op {
	case im.OpEdit:
		err = x.edit(h, e)
	case im.OpRecall:
		err = x.recall(h, e.Ref)
	}
	if err != nil {
		return err
	}
	return x.side(a, receipt)
}

// head holds the head of conv until the batch is settled.
func (x *builder) head(conv im.ConvID) (*head, error) {
	h, err := x.s.heads.hold(x.db, conv)
	if err != nil {
		return nil, err
	}
	if h.batch == x.s.batches { // by this batch already
		h.release()
		return h, nil
	}
	h.batch, h.tail = x.s.batches, len(x.c.tails)
	x.c.tails = append(x.c.tails, tail{h: h})
	if h.tail < cap(x.burst) {
		x.burst = x.burst[:h.tail+1]
		x.burst[h.tail] = x.burst[h.tail][:0]
	} else {
		x.burst = append(x.burst, nil)
	}
	return h, nil
}

// Sizes above which memory of one batch is not kept for the next.
const (
	keepBurst   = 4 * rowEntries
	keepScratch = 1 << 20
)

// keep clears lists of entries for the next batch to use.
func (s *Store) keep(burst [][]*im.Entry) {
	for i, es := range burst {
		clear(es)
		if cap(es) > keepBurst {
			burst[i] = nil
		}
	}
	s.burst = burst
	if cap(s.scratch) > keepScratch {
		s.scratch = nil
	}
}

// putBursts writes what was appended to each conversation.
func (x *builder) putBursts() error {
	for i := range x.c.tails {
		t := &x.c.tails[i]
		t.seq, t.ts = t.h.assigned, t.h.lastTS
		if err := x.s.putRows(x.b, t.h.num, x.burst[i]); err != nil {
			return err
		}
	}
	return nil
}

// begin gives a new conversation its number, and a DM its place in the lists of
// its users.
func (x *builder) begin(h *head) error {
	x.s.nextConv++
	num := x.s.nextConv
	n := binary.BigEndian.AppendUint64(nil, num)
	if err := errors.Join(x.b.Set(key(tConv, string(h.conv)), n, nil), x.b.Set(key(tMeta, "conversations"), n, nil)); err != nil {
		return err
	}
	if a, b := h.conv.Pair(); a != "" {
		err := errors.Join(x.b.Set(key(tUserConv, string(a), string(h.conv)), nil, nil), x.b.Set(key(tUserConv, string(b), string(h.conv)), nil, nil))
		if err != nil {
			return err
		}
	}
	x.s.heads.mu.Lock()
	h.num = num
	x.s.heads.mu.Unlock()
	return nil
}

// known looks the sender's id up, in this batch and on disk.
func (x *builder) known(a *store.Append, h *head) (bool, error) {
	e := &a.Entry
	name := string(e.Conv) + "\x00" + string(e.From) + "\x00" + e.ID
	if first := x.mine[name]; first != nil {
		a.Dup = true
		e.Seq, e.TS = first.Entry.Seq, first.Entry.TS
		return true, nil
	}
	if h.num != 0 {
		if x.ids == nil {
			it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte{tDedupe}, UpperBound: []byte{tDedupe + 1}, UseL6Filters: true})
			if err != nil {
				return false, err
			}
			x.ids = it
		}
		for back := range uint32(2) {
			k := dedupeKey(x.s.epoch-back, h.num, e.From, e.ID)
			if x.ids.SeekPrefixGE(k) && string(x.ids.Key()) == string(k) {
				v, err := x.ids.ValueAndErr()
				if err != nil {
					return false, err
				}
				seq, ts := unpair(v)
				a.Dup = true
				e.Seq, e.TS = im.Seq(seq), int64(ts)
				return true, nil
			}
			if err := x.ids.Error(); err != nil {
				return false, err
			}
		}
	}
	if x.mine == nil {
		x.mine = make(map[string]*store.Append)
	}
	x.mine[name] = a
	return false, nil
}

// received looks a QoS 2 receipt up, in this batch and on disk.
func (x *builder) received(a *store.Append, k []byte) (bool, error) {
	if first := x.mine[string(k)]; first != nil {
		a.Dup, a.Entry.Seq, a.Entry.TS = true, first.Entry.Seq, first.Entry.TS
		return true, nil
	}
	v, err := get(x.db, k)
	if err != nil {
		return false, err
	}
	if v != nil {
		seq, ts := unpair(v)
		a.Dup, a.Entry.Seq, a.Entry.TS = true, im.Seq(seq), int64(ts)
		return true, nil
	}
	if x.mine == nil {
		x.mine = make(map[string]*store.Append)
	}
	x.mine[string(k)] = a
	return false, nil
}

// side writes what goes along with an append.
func (x *builder) side(a *store.Append, receipt []byte) error {
	if receipt != nil {
		v := append(pair(uint64(a.Entry.Seq), uint64(a.Entry.TS)), a.Entry.Conv...)
		if err := x.b.Set(receipt, v, nil); err != nil {
			return err
		}
	}
	if m := a.Retain; m != nil {
		if len(m.Body) == 0 {
			return x.b.Delete(key(tRetained, m.Topic), nil)
		}
		return x.b.Set(key(tRetained, m.Topic), encodeRow(m), nil)
	}
	return nil
}

// epochAt is the number of the dedupe window that holds t. An id is looked up in
// two windows, so it is remembered for one to two of them.
func (s *Store) epochAt(t time.Time) uint32 { return uint32(t.UnixNano() / int64(s.opt.DedupeWindow)) }

// firstEpoch is the dedupe window to begin with: that of the clock, or the last
// one with an id, where the clock has been set back since.
func (s *Store) firstEpoch(db *pebble.DB) (uint32, error) {
	now := s.epochAt(s.opt.Now())
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{tDedupe}, UpperBound: []byte{tDedupe + 1}})
	if err != nil {
		return 0, err
	}
	if it.Last() && len(it.Key()) > 5 {
		now = max(now, binary.BigEndian.Uint32(it.Key()[1:]))
	}
	return now, it.Close()
}

// expireDedupe forgets ids older than the last two windows.
func (s *Store) expireDedupe(db *pebble.DB) error {
	if s.epoch < 2 {
		return nil
	}
	end := binary.BigEndian.AppendUint32([]byte{tDedupe}, s.epoch-1)
	return db.DeleteRange([]byte{tDedupe}, end, pebble.NoSync)
}
