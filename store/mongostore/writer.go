package mongostore

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// writers holds a writer for each conversation that this process writes to.
// Each has one batch in flight; many work in parallel.
type writers struct {
	s      *Store
	mu     sync.Mutex
	room   *sync.Cond // bytes fell, or closed
	idle   *sync.Cond // busy fell to 0
	all    map[string]*writer
	ready  []*writer // have a queue and nobody at it, longest first; bounded by bytes
	bytes  int       // of what waits
	busy   int       // writers that are ready or at work
	hands  int       // goroutines at work, Options.Parallel at most
	closed bool
}

// writer appends to one conversation. While it is at work one goroutine owns all
// but queue, busy and told, which writers.mu guards.
type writer struct {
	s      *Store
	name   string // the conversation, or what stands for it (lane)
	conv   im.ConvID
	queue  []job
	busy   bool  // ready or at work
	told   end   // what Heads may know of it; zero: nothing
	until  int64 // the lease; 0: the head is not known
	others int64 // until then, Unix ms, another writer may write as well; 0: nobody
	head   im.Seq
	ts     int64
}

// end is where a conversation ends as long as the last lease taken is this one.
type end struct {
	lease int64
	head  im.Seq
	ts    int64
}

// job is an append and what makes it the same when it comes again.
type job struct {
	*store.Append
	key  string // set: that of a transaction's entry
	size int

	// For one batch:
	dup  bool   // not to be inserted: Entry.Seq and TS are the original's
	same *job   // a duplicate of an earlier one of the batch
	tx   string // the intent of a recall
}

func (w *writers) init(s *Store) {
	w.s, w.all = s, make(map[string]*writer)
	w.room, w.idle = sync.NewCond(&w.mu), sync.NewCond(&w.mu)
}

// lane is where an append has its order: its conversation, or for side rows
// alone the topic or the device.
func lane(a *store.Append) string {
	switch {
	case !a.NoEntry:
		return string(a.Entry.Conv)
	case a.Retain != nil:
		return "r/" + a.Retain.Topic
	}
	return "p/" + string(a.Entry.From) + "/" + string(a.Entry.Device)
}

// Append: a method of store.Log.
func (s *Store) Append(as ...*store.Append) {
	jobs := make([]job, len(as))
	for i, a := range as {
		jobs[i] = job{Append: a}
	}
	s.append(jobs)
}

func (s *Store) append(jobs []job) {
	down := s.up()
	for i := range jobs {
		err := down
		if err == nil {
			err = s.writers.push(jobs[i])
		}
		if err != nil {
			jobs[i].Err = err
			finish(jobs[i].Append)
		}
	}
}

func finish(a *store.Append) {
	if a.Done != nil {
		a.Done(a)
	}
}

func (w *writers) push(j job) error {
	j.size = j.Entry.Size()
	j.Dup, j.Err = false, nil
	name := lane(j.Append)
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.bytes >= w.s.opt.MaxPending && !w.closed {
		w.room.Wait()
	}
	if w.closed {
		return gone()
	}
	x := w.all[name]
	if x == nil {
		x = &writer{s: w.s, name: name}
		if !j.NoEntry {
			x.conv = j.Entry.Conv
		}
		w.all[name] = x
	}
	x.queue = append(x.queue, j)
	w.bytes += j.size
	if !x.busy {
		x.busy = true
		w.busy++
		w.ready = append(w.ready, x)
		if w.hands < w.s.opt.Parallel {
			w.hands++
			go w.work()
		}
	}
	return nil
}

// work writes one batch of the writer that waits longest, and so on while there
// are any.
func (w *writers) work() {
	for {
		x, batch := w.next()
		if x == nil {
			return
		}
		begun := time.Now()
		err := x.write(batch)
		if err == nil {
			err = w.s.seated() // it may be another's since
		}
		w.know(x, err)
		x.tell(batch, err, begun)
		w.rest(x)
	}
}

// next takes a batch off the queue of a writer; nil ends the goroutine.
func (w *writers) next() (*writer, []job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.ready) == 0 {
		w.hands--
		w.ready = nil
		return nil, nil
	}
	x := w.ready[0]
	w.ready = w.ready[1:]
	n, size := 0, 0
	for n < len(x.queue) && n < x.s.opt.MaxBatch && (n == 0 || size+x.queue[n].size <= x.s.opt.MaxBatchBytes) {
		size += x.queue[n].size
		n++
	}
	batch := x.queue[:n:n]
	x.queue = x.queue[n:]
	w.bytes -= size
	w.room.Broadcast()
	return x, batch
}

// know makes the outcome known to Heads, before anybody is told of it.
func (w *writers) know(x *writer, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x.told = end{}
	if err == nil && x.until != 0 && x.others == 0 {
		x.told = end{x.until, x.head, x.ts}
	}
}

// rest puts the writer at the end of those that are ready, or to rest.
func (w *writers) rest(x *writer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(x.queue) > 0 {
		w.ready = append(w.ready, x)
		return
	}
	x.busy, x.queue = false, nil
	w.busy--
	if x.conv == "" || x.until == 0 {
		delete(w.all, x.name) // it knows nothing worth keeping
	}
	w.idle.Broadcast()
}

// end is where the conversation of c ends if this process has its last lease and
// nobody else may write.
func (w *writers) end(c *conversation) (end, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.all[c.ID]
	if x == nil || c.Until == 0 || x.told.lease != c.Until {
		return end{}, false
	}
	return x.told, true
}

// tell gives the outcomes back, in order.
func (x *writer) tell(batch []job, err error, begun time.Time) {
	ev := &x.s.opt.Events
	if err == nil && ev.Committed != nil {
		entries, bytes := 0, 0
		for i := range batch {
			if !batch[i].Dup && !batch[i].NoEntry {
				entries++
				bytes += batch[i].size
			}
		}
		ev.Committed(entries, bytes, time.Since(begun))
	}
	if ev.Announce != nil {
		defer ev.Announce()()
	}
	for i := range batch {
		if err != nil {
			batch[i].Err, batch[i].Dup = err, false
		}
		finish(batch[i].Append)
	}
}

// write commits a batch, or returns why nothing of it may be acknowledged.
func (x *writer) write(batch []job) (err error) {
	if err := x.s.up(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), x.s.opt.Timeout)
	defer cancel()
	stop := context.AfterFunc(x.s.closing, cancel)
	defer stop()
	defer func() {
		if err != nil {
			x.until = 0 // what stands in the log is asked for again
			if im.Is(err, im.Unavailable) || transient(err) || ctx.Err() != nil {
				err = x.s.failed("append", err)
			} else {
				x.s.doubt() // of an ordered insert that failed in its middle the first part is there
				err = wrap("append", err)
				x.s.log.Error("entries not written", "conversation", x.name, "error", err)
			}
		}
	}()
	if err := x.sides(ctx, batch); err != nil {
		return err
	}
	fresh := x.pick(batch)
	if len(fresh) > 0 {
		if err := x.lease(ctx); err != nil {
			return err
		}
		if err := x.recalled(ctx, fresh); err != nil {
			return err
		}
		if err := x.intents(ctx, fresh); err != nil {
			return err
		}
		if err := x.insert(ctx, fresh); err != nil {
			return err
		}
	}
	for i := range batch {
		if j := &batch[i]; j.same != nil {
			j.Dup, j.Entry.Seq, j.Entry.TS = true, j.same.Entry.Seq, j.same.Entry.TS
		}
	}
	return x.blank(ctx, fresh)
}

// pick gives each job its key and leaves out what need not be inserted.
func (x *writer) pick(batch []job) (fresh []*job) {
	var seen map[[2]string]*job
	for i := range batch {
		j := &batch[i]
		if j.NoEntry || j.dup {
			j.Dup = j.dup
			continue
		}
		if j.key == "" && hasDedupe(&j.Entry) {
			j.key = idKey(j.Entry.ID)
		}
		if j.key != "" {
			name := [2]string{string(j.Entry.From), j.key}
			if first := seen[name]; first != nil {
				j.same = first
				continue
			}
			if seen == nil {
				seen = make(map[[2]string]*job)
			}
			seen[name] = j
		}
		fresh = append(fresh, j)
	}
	return fresh
}

// lease says in the conversation's document that this writer may write for a
// while, and learns the head if it is not known: in a round trip now and then,
// not for every batch.
//
// Each lease ends later than all before it. Whoever takes one sees the last: its
// owner has said that it is done, or it is over, or another writer may still be
// writing (a second process, or what a dead one has sent). That is written down
// too, because for so long the head is only in the messages, and no message may
// be trimmed behind the other's back: it would insert at a seq that was used.
func (x *writer) lease(ctx context.Context) error {
	now := x.s.opt.Now()
	if x.until > 0 && now.Add(x.s.opt.Timeout).UnixMilli() < leaseEnd(x.until) {
		return nil
	}
	until := newLease(now.Add(x.s.opt.Lease + x.s.opt.Timeout).UnixMilli())
	prev, isNew, err := x.take(ctx, until)
	for ; err == nil && prev.Until > until; prev, isNew, err = x.take(ctx, until) {
		until = newLease(leaseEnd(prev.Until) + 1)
	}
	if err != nil {
		return err
	}
	switch {
	case x.until > 0 && prev.Until == x.until: // nobody else came
		if x.others > 0 && x.s.over(x.others) {
			x.others = 0
			err = x.learn(ctx, &conversation{Head: int64(x.head), TS: x.ts})
		}
	case isNew: // it is written down before its first message
		x.head, x.ts, x.others = 0, 0, 0
	case prev.Until != until && settled(&prev):
		x.head, x.ts, x.others = im.Seq(max(prev.Head, prev.Floor)), prev.TS, 0
	default:
		x.others = 0
		if end := leaseEnd(prev.Until); !x.s.over(end) {
			x.others = end
			err = x.s.retry(ctx, "lease", func(ctx context.Context) error {
				_, err := x.s.convs.UpdateOne(ctx, byID(x.name), bson.D{{Key: "$max", Value: bson.D{{Key: "o", Value: end}}}})
				return err
			})
		}
		if err == nil {
			err = x.learn(ctx, &prev)
		}
	}
	if a, b := x.conv.Pair(); err == nil && a != "" && x.head == 0 {
		err = x.s.listDM(ctx, x.conv, a, b)
	}
	if err == nil {
		x.until = until
	}
	return err
}

// take writes the lease down if it is later than the last, and returns what the
// document was before: isNew, there was none. After a lost answer it may be what
// the first try made of it; prev.Until is then until.
func (x *writer) take(ctx context.Context, until int64) (prev conversation, isNew bool, err error) {
	err = x.s.retry(ctx, "lease", func(ctx context.Context) error {
		prev, isNew = conversation{}, false
		o := options.FindOneAndUpdate().SetReturnDocument(options.Before)
		up := bson.D{{Key: "$max", Value: bson.D{{Key: "w", Value: until}}}}
		err := x.s.convs.FindOneAndUpdate(ctx, byID(x.name), up, o.SetUpsert(true)).Decode(&prev)
		if mongo.IsDuplicateKeyError(err) { // another writer made it at the same moment
			err = x.s.convs.FindOneAndUpdate(ctx, byID(x.name), up, o.SetUpsert(false)).Decode(&prev)
		}
		if errors.Is(err, mongo.ErrNoDocuments) {
			isNew = true
			return nil
		}
		return err
	})
	return prev, isNew, err
}

// A lease is when it ends, Unix ms, above 20 random bits: each is one of its own,
// so that the last to take one is known by it.
func newLease(end int64) int64   { return end<<20 | rand.Int64N(1<<20) }
func leaseEnd(lease int64) int64 { return lease >> 20 }

// learn reads where the conversation ends.
func (x *writer) learn(ctx context.Context, c *conversation) error {
	m, found, err := x.s.last(ctx, x.conv)
	if err != nil {
		return err
	}
	x.head, x.ts = im.Seq(max(c.Head, c.Floor)), c.TS
	if found && m.Seq >= int64(x.head) {
		x.head, x.ts = im.Seq(m.Seq), m.TS
	}
	return nil
}

// listDM puts the conversation into the lists of its two users, before its first
// message is there.
func (s *Store) listDM(ctx context.Context, conv im.ConvID, a, b im.UserID) error {
	var models []mongo.WriteModel
	for _, u := range slices.Compact([]im.UserID{a, b}) {
		models = append(models, mongo.NewUpdateOneModel().SetUpsert(true).
			SetFilter(bson.D{{Key: "_id", Value: string(u) + " " + string(conv)}, {Key: "u", Value: string(u)}}).
			SetUpdate(bson.D{{Key: "$set", Value: bson.D{{Key: "c", Value: string(conv)}}}}))
	}
	return s.retry(ctx, "listDM", func(ctx context.Context) error {
		_, err := s.dms.BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
		if onlyDuplicates(err) { // two upserts met: it is there
			return nil
		}
		return err
	})
}

// insert puts the jobs at head+1 and on, in order, and resolves every outcome
// that is not plain: a seq or a key that is taken, an answer that never came.
func (x *writer) insert(ctx context.Context, jobs []*job) error {
	batch := bson.NewObjectID().Hex()
	now := x.s.opt.Now().UnixMilli()
	for i, j := range jobs {
		if j.key == "" {
			j.key = placeKey(batch + "." + strconv.Itoa(i))
		}
	}
	first := 0 // jobs before it are committed
	for wait := time.Millisecond; ; {
		docs := make([]any, 0, len(jobs)-first)
		for i, j := range jobs[first:] {
			e := &j.Entry
			e.Seq, e.TS = x.head+im.Seq(i)+1, max(now, x.ts)
			docs = append(docs, newMessage(e, j.key, batch))
		}
		try, done := x.s.attempt(ctx)
		_, err := x.s.messages.InsertMany(try, docs)
		done()
		if err == nil {
			x.moved(jobs[len(jobs)-1])
			return nil
		}
		taken, uncertain := failedAt(err)
		switch {
		case uncertain: // even what stands before a taken seq may not be with a majority
		case taken > 0: // everything before it is in
			x.moved(jobs[first+taken-1])
			first += taken
		case taken < 0:
			return err
		}
		if uncertain && x.s.opt.Events.Retried != nil {
			x.s.opt.Events.Retried()
		}
		// What of ours is there? It stands below its key, wherever that is.
		n, err := x.resolve(ctx, jobs[first:], docs[len(docs)-len(jobs)+first:], batch)
		if err != nil {
			return err
		}
		jobs, first = jobs[first+n:], 0
		if len(jobs) == 0 {
			return nil
		}
		if n > 0 {
			wait = time.Millisecond
			continue
		}
		// A foreign document has our seq. It may not be committed by a majority
		// yet, so that learn does not see it: then the next try fails likewise.
		if taken >= 0 && x.s.opt.Events.Conflict != nil {
			x.s.opt.Events.Conflict(x.conv)
		}
		if err := x.relearn(ctx, taken >= 0); err != nil {
			return err
		}
		select {
		case <-time.After(rand.N(wait) + time.Microsecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait = min(2*wait, 50*time.Millisecond)
	}
}

// relearn reads the head again after somebody else took our seq. After an
// uncertain outcome the head stays: the same documents are sent to the same
// places, so that a late first copy and the second cannot both be there.
func (x *writer) relearn(ctx context.Context, taken bool) error {
	if !taken {
		return nil
	}
	var c conversation
	c.Head, c.TS = int64(x.head), x.ts
	return x.learn(ctx, &c)
}

func (x *writer) moved(j *job) { x.head, x.ts = j.Entry.Seq, j.Entry.TS }

// resolve finds out for the first of jobs, one after the other, whether it is in
// the log: written by this batch, or a duplicate. It stops at the first that is
// not and returns how many are.
func (x *writer) resolve(ctx context.Context, jobs []*job, docs []any, batch string) (n int, err error) {
	for i, j := range jobs {
		doc := docs[i].(message)
		m, found, err := x.find(ctx, doc.From, doc.Key)
		if err != nil || !found {
			return n, err
		}
		j.Dup = m.Batch != batch
		j.Entry.Seq, j.Entry.TS = im.Seq(m.Seq), m.TS
		if m.Seq > int64(x.head) {
			x.head, x.ts = im.Seq(m.Seq), m.TS
		}
		n++
		if j.Dup { // the others are untried: no need to look each of them up
			return n, nil
		}
	}
	return n, nil
}

// find looks a message up by what makes it the same, among those that a majority has.
func (x *writer) find(ctx context.Context, from, key string) (message, bool, error) {
	return x.s.byKey(ctx, x.conv, from, key)
}

func (s *Store) byKey(ctx context.Context, conv im.ConvID, from, key string) (message, bool, error) {
	return one[message](ctx, s, "find", s.messages, bson.D{{Key: "c", Value: string(conv)}, {Key: "f", Value: from}, {Key: "k", Value: key}},
		options.FindOne().SetProjection(bson.D{{Key: "b", Value: 0}, {Key: "pr", Value: 0}}))
}

// failedAt reads the outcome of an ordered insert: the index of the document
// that a unique index refused, or -1; and whether anything is uncertain.
func failedAt(err error) (taken int, uncertain bool) {
	var be mongo.BulkWriteException
	if errors.As(err, &be) {
		for _, we := range be.WriteErrors {
			if mongo.IsDuplicateKeyError(we.WriteError) {
				return we.Index, be.WriteConcernError != nil
			}
		}
		if len(be.WriteErrors) > 0 && !transient(err) {
			return -1, false
		}
		return -1, be.WriteConcernError != nil || transient(err)
	}
	return -1, transient(err)
}

// retire gives up the leases of writers that are at rest and whose lease is
// nearly over, or of all of them. The conversation's document then has the head.
func (w *writers) retire(all bool) {
	now := w.s.opt.Now()
	var models []mongo.WriteModel
	w.mu.Lock()
	for name, x := range w.all {
		if x.busy || x.until == 0 || (!all && now.Add(w.s.opt.Timeout).UnixMilli() < leaseEnd(x.until)) {
			continue
		}
		delete(w.all, name)
		if x.others > 0 { // our head need not be the last: whoever asks for it when all leases are over notes it
			continue
		}
		models = append(models, noteHead(name, x.until, x.head, x.ts))
	}
	w.mu.Unlock()
	w.s.note(w.s.closing, models)
}

// close waits for what was accepted.
func (w *writers) close() {
	w.mu.Lock()
	w.closed = true
	w.room.Broadcast()
	for w.busy > 0 {
		w.idle.Wait()
	}
	w.mu.Unlock()
	if w.s.up() == nil {
		w.retire(true)
	}
}

func (w *writers) abandon() {
	w.mu.Lock()
	w.closed = true
	w.room.Broadcast()
	w.mu.Unlock()
}
