package mongostore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// message is one entry. Every collection that is read by range is read by its
// _id, which sorts as the house needs it: no second index, and the same on any
// server that speaks the protocol.
type message struct {
	ID     string `bson:"_id"` // messageID
	Conv   string `bson:"c"`   // the shard key
	Seq    int64  `bson:"s"`
	TS     int64  `bson:"t"`
	From   string `bson:"f"`
	Key    string `bson:"k"` // unique with c and f: messageKey
	Batch  string `bson:"n"` // who inserted it: tells our own document from another writer's
	Device string `bson:"d,omitempty"`
	Op     int32  `bson:"op,omitempty"`
	Ref    int64  `bson:"ref,omitempty"`
	MsgID  string `bson:"id,omitempty"`
	Type   string `bson:"ty,omitempty"`
	Event  string `bson:"ev,omitempty"`
	Topic  string `bson:"to,omitempty"`
	Props  []byte `bson:"pr,omitempty"`
	Flags  int32  `bson:"fl,omitempty"`
	Body   []byte `bson:"b,omitempty"`
}

// messageID is the conversation, a space, which no id has, and the seq in 16
// hexadecimal digits: it sorts by seq within the conversation.
func messageID(conv im.ConvID, seq im.Seq) string { return fmt.Sprintf("%s %016x", conv, uint64(seq)) }

// The key of a message is what makes it the same when it comes again: the
// sender's id, the QoS 2 receipt, or its place in a transaction; any other
// message is only the same as itself.
func idKey(id string) string        { return ":" + id }
func placeKey(id string) string     { return "#" + id }
func receiptKey(n string) string    { return "2" + n }
func isReceiptKey(k string) bool    { return strings.HasPrefix(k, "2") }
func txKey(tx string, i int) string { return fmt.Sprintf("t%s/%d", tx, i) }

func hasDedupe(e *im.Entry) bool { return e.ID != "" && e.Op != im.OpEvent && e.Op != im.OpPublish }

func newMessage(e *im.Entry, key, batch string) message {
	return message{
		ID: messageID(e.Conv, e.Seq), Conv: string(e.Conv), Seq: int64(e.Seq), TS: e.TS, From: string(e.From), Key: key, Batch: batch,
		Device: string(e.Device), Op: int32(e.Op), Ref: int64(e.Ref), MsgID: e.ID, Type: e.Type, Event: e.Event, Topic: e.Topic,
		Props: e.Props, Flags: int32(e.Flags), Body: e.Body,
	}
}

func (m *message) entry() *im.Entry {
	return &im.Entry{
		Conv: im.ConvID(m.Conv), Seq: im.Seq(m.Seq), TS: m.TS, From: im.UserID(m.From), Device: im.DeviceID(m.Device), Op: im.Op(m.Op), Ref: im.Seq(m.Ref),
		ID: m.MsgID, Type: m.Type, Event: m.Event, Topic: m.Topic, Props: m.Props, Flags: im.Flags(m.Flags), Body: m.Body,
	}
}

// conversation is what is known of a conversation beside its messages.
type conversation struct {
	ID    string `bson:"_id"`
	Floor int64  `bson:"fl,omitempty"` // entries up to here were trimmed
	Read  int64  `bson:"r,omitempty"`  // when a watermark last moved
	// Head is the truth only when no writer can have changed it since: the last
	// one said Fin to its own Until, which it does if nobody else wrote meanwhile.
	Head   int64 `bson:"s,omitempty"`
	TS     int64 `bson:"t,omitempty"`
	Until  int64 `bson:"w,omitempty"` // a writer may write until then: the last lease
	Fin    int64 `bson:"fin,omitempty"`
	Others int64 `bson:"o,omitempty"` // until then, Unix ms, more than one may
}

func settled(c *conversation) bool { return c.Fin == c.Until }

// over reports whether no writer may still be writing after end, Unix ms, by any clock.
func (s *Store) over(end int64) bool {
	return end+s.opt.Skew.Milliseconds() < s.opt.Now().UnixMilli()
}

// between selects the messages of conv with from <= seq <= to.
func between(conv im.ConvID, from, to im.Seq) bson.D {
	return bson.D{{Key: "c", Value: string(conv)}, {Key: "_id", Value: bson.D{{Key: "$gte", Value: messageID(conv, from)}, {Key: "$lte", Value: messageID(conv, to)}}}}
}

const noEnd = im.Seq(1<<63 - 1)

// read runs a query and decodes all of what it finds.
func read[T any](ctx context.Context, s *Store, op string, coll *mongo.Collection, filter any, opts ...options.Lister[options.FindOptions]) (out []T, err error) {
	err = s.ask(ctx, op, func(ctx context.Context) error {
		out = nil
		cur, err := coll.Find(ctx, filter, opts...)
		if err != nil {
			return err
		}
		return cur.All(ctx, &out)
	})
	return out, err
}

// one reads a document by its filter; found is false if there is none.
func one[T any](ctx context.Context, s *Store, op string, coll *mongo.Collection, filter any, opts ...options.Lister[options.FindOneOptions]) (v T, found bool, err error) {
	err = s.ask(ctx, op, func(ctx context.Context) error {
		var zero T
		v = zero
		err := coll.FindOne(ctx, filter, opts...).Decode(&v)
		found = err == nil
		if errors.Is(err, mongo.ErrNoDocuments) {
			return nil
		}
		return err
	})
	return v, found, err
}

func byID(id string) bson.D { return bson.D{{Key: "_id", Value: id}} }

// Range: a method of store.Log. Documents beyond maxBytes are not asked for in
// one go: a batch of the cursor is about as large as what is wanted.
func (s *Store) Range(ctx context.Context, conv im.ConvID, after im.Seq, limit, maxBytes int) (out []*im.Entry, err error) {
	if limit <= 0 {
		return nil, nil
	}
	if after >= noEnd {
		return nil, nil
	}
	err = s.ask(ctx, "Range", func(ctx context.Context) (err error) {
		out = nil
		o := options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetLimit(int64(limit)).SetBatchSize(int32(min(limit, 256)))
		cur, err := s.messages.Find(ctx, between(conv, after+1, noEnd), o)
		if err != nil {
			return err
		}
		defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
		for size := 0; cur.Next(ctx); {
			var m message
			if err := cur.Decode(&m); err != nil {
				return err
			}
			e := m.entry()
			if size += e.Size(); len(out) > 0 && size > maxBytes {
				return nil
			}
			out = append(out, e)
		}
		return cur.Err()
	})
	return out, err
}

// Before: a method of store.Log.
func (s *Store) Before(ctx context.Context, conv im.ConvID, before im.Seq, limit int) ([]*im.Entry, error) {
	if limit <= 0 || before == 1 {
		return nil, s.alive()
	}
	to := noEnd
	if before > 0 {
		to = before - 1
	}
	ms, err := read[message](ctx, s, "Before", s.messages, between(conv, 1, to), options.Find().SetSort(bson.D{{Key: "_id", Value: -1}}).SetLimit(int64(limit)))
	out := make([]*im.Entry, len(ms))
	for i := range ms {
		out[len(ms)-1-i] = ms[i].entry()
	}
	return out, err
}

// Entry: a method of store.Log.
func (s *Store) Entry(ctx context.Context, conv im.ConvID, seq im.Seq) (*im.Entry, error) {
	m, found, err := one[message](ctx, s, "Entry", s.messages, bson.D{{Key: "c", Value: string(conv)}, {Key: "_id", Value: messageID(conv, seq)}})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, notFound("entry")
	}
	return m.entry(), nil
}

// last reads the end of a conversation from its messages.
func (s *Store) last(ctx context.Context, conv im.ConvID) (m message, found bool, err error) {
	return one[message](ctx, s, "head", s.messages, between(conv, 1, noEnd),
		options.FindOne().SetSort(bson.D{{Key: "_id", Value: -1}}).SetProjection(bson.D{{Key: "c", Value: 1}, {Key: "s", Value: 1}, {Key: "t", Value: 1}}))
}

// headReaders is how many conversations that are being written are looked at at once.
const headReaders = 16

// Heads: a method of store.Log. Conversations nobody writes to are read
// together; so are those that this process alone writes to. Of the others the
// last message is looked up, and noted if their writers are gone.
func (s *Store) Heads(ctx context.Context, convs []im.ConvID) ([]store.Head, error) {
	out := make([]store.Head, len(convs))
	known := make(map[string]*conversation, len(convs))
	for chunk := range chunks(convs, 1000) {
		cs, err := read[conversation](ctx, s, "Heads", s.convs, in(chunk))
		if err != nil {
			return nil, err
		}
		for i := range cs {
			known[cs[i].ID] = &cs[i]
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, len(convs))
	notes := make([]mongo.WriteModel, len(convs))
	room := make(chan struct{}, headReaders)
	for i, conv := range convs {
		c := known[string(conv)]
		if c == nil { // written down before the first message
			continue
		}
		out[i] = store.Head{Seq: im.Seq(max(c.Head, c.Floor)), TS: c.TS, ReadTS: c.Read}
		if settled(c) {
			continue
		}
		if e, ok := s.writers.end(c); ok {
			out[i].Seq, out[i].TS = e.head, e.ts
			continue
		}
		left := s.over(leaseEnd(c.Until))
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			m, found, err := s.last(ctx, conv)
			if found && m.Seq >= int64(out[i].Seq) {
				out[i].Seq, out[i].TS = im.Seq(m.Seq), m.TS
			}
			if errs[i] = err; err == nil && left {
				notes[i] = noteHead(c.ID, c.Until, out[i].Seq, out[i].TS)
			}
		})
	}
	wg.Wait()
	s.note(ctx, slices.DeleteFunc(notes, func(m mongo.WriteModel) bool { return m == nil }))
	return out, errors.Join(errs...)
}

// noteHead writes the head down as long as lease is the last that was taken.
func noteHead(conv string, lease int64, head im.Seq, ts int64) mongo.WriteModel {
	return mongo.NewUpdateOneModel().SetFilter(bson.D{{Key: "_id", Value: conv}, {Key: "w", Value: lease}}).
		SetUpdate(bson.D{{Key: "$max", Value: bson.D{{Key: "s", Value: int64(head)}, {Key: "t", Value: ts}}}, {Key: "$set", Value: bson.D{{Key: "fin", Value: lease}}}})
}

// note writes heads down. If it fails they are looked up in the messages: slower,
// not wrong.
func (s *Store) note(ctx context.Context, heads []mongo.WriteModel) {
	for part := range chunks(heads, 1000) {
		try, done := s.attempt(ctx)
		_, err := s.convs.BulkWrite(try, part, options.BulkWrite().SetOrdered(false))
		done()
		if err != nil {
			s.log.Warn("heads not noted", "error", err)
			return
		}
	}
}

// in selects documents by _id.
func in[T ~string](ids []T) bson.D {
	list := make(bson.A, len(ids))
	for i, id := range ids {
		list[i] = string(id)
	}
	return bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: list}}}}
}

// chunks yields a list in parts of at most n.
func chunks[T any](list []T, n int) func(func([]T) bool) {
	return func(yield func([]T) bool) {
		for len(list) > 0 {
			k := min(n, len(list))
			if !yield(list[:k]) {
				return
			}
			list = list[k:]
		}
	}
}

// trimStep is how many messages one command deletes at most.
const trimStep = 10_000

// Trim: a method of store.Log. The floor goes up first: it keeps the head when
// every message is gone. While more than one writer may be at work nothing is
// trimmed (lease says why): the next call does it.
func (s *Store) Trim(ctx context.Context, conv im.ConvID, upTo im.Seq) error {
	for {
		c, found, err := one[conversation](ctx, s, "Trim", s.convs, byID(string(conv)))
		if err != nil || !found || (c.Others > 0 && !s.over(c.Others)) {
			return err
		}
		heads, err := s.Heads(ctx, []im.ConvID{conv})
		if err != nil {
			return err
		}
		upTo := min(upTo, heads[0].Seq)
		if upTo == 0 {
			return nil
		}
		// Nobody may have come meanwhile and have written more than upTo.
		raised := false
		err = s.retry(ctx, "Trim", func(ctx context.Context) error {
			filter := append(byID(string(conv)), bson.E{Key: "w", Value: c.Until})
			if c.Until == 0 {
				filter[1].Value = bson.D{{Key: "$exists", Value: false}}
			}
			res, err := s.convs.UpdateOne(ctx, filter, bson.D{{Key: "$max", Value: bson.D{{Key: "fl", Value: int64(upTo)}, {Key: "t", Value: heads[0].TS}}}})
			raised = err == nil && res.MatchedCount == 1
			return err
		})
		if err != nil {
			return err
		}
		if raised {
			return s.deleteUpTo(ctx, conv, im.Seq(c.Floor), upTo)
		}
	}
}

// deleteUpTo deletes messages in steps that each end in time. Below the old floor
// is what a crash has left.
func (s *Store) deleteUpTo(ctx context.Context, conv im.ConvID, floor, upTo im.Seq) error {
	for to := floor; to < upTo; {
		to = min(to+trimStep, upTo)
		err := s.retry(ctx, "Trim", func(ctx context.Context) error {
			_, err := s.messages.DeleteMany(ctx, between(conv, 1, to))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
