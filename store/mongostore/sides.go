package mongostore

import (
	"context"
	"errors"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// receipt stands for a QoS 2 publish that was not yet released. It is written
// before the message, and the message carries its key: if the process dies
// between the two, the same publish comes again, finds the receipt and appends
// the message under the same key, once. Another publish takes the receipt over.
type receipt struct {
	ID   string `bson:"_id"`         // deviceID and the packet id
	User string `bson:"u"`           // the shard key
	Conv string `bson:"c,omitempty"` // "": there is no message
	Key  string `bson:"k,omitempty"` // of the message, or only of the receipt; "" when it was loaded:
	Seq  int64  `bson:"s,omitempty"` // of a loaded receipt
	TS   int64  `bson:"t,omitempty"`
}

func receiptID(k im.DeviceKey, packet uint16) string {
	return deviceID(k) + " " + string(hex4(packet))
}

func hex4(n uint16) []byte {
	const digits = "0123456789abcdef"
	return []byte{digits[n>>12], digits[n>>8&15], digits[n>>4&15], digits[n&15]}
}

// sides writes what goes along with appends: retained messages, which are the
// same when written again, and receipts.
func (x *writer) sides(ctx context.Context, batch []job) error {
	var retained []mongo.WriteModel
	var receipts []receipt
	var of []*job
	for i := range batch {
		j := &batch[i]
		if m := j.Retain; m != nil {
			if len(m.Body) == 0 {
				retained = append(retained, mongo.NewDeleteOneModel().SetFilter(byID(m.Topic)))
			} else {
				retained = append(retained, mongo.NewUpdateOneModel().SetFilter(byID(m.Topic)).SetUpdate(bson.D{{Key: "$set", Value: bson.D{{Key: "d", Value: m}}}}).SetUpsert(true))
			}
		}
		if j.Packet == 0 {
			continue
		}
		r := receipt{ID: receiptID(im.DeviceKey{User: j.Entry.From, Device: j.Entry.Device}, j.Packet), User: string(j.Entry.From)}
		if j.key == "" && !j.NoEntry && hasDedupe(&j.Entry) {
			j.key = idKey(j.Entry.ID)
		}
		if j.key == "" {
			j.key = receiptKey(bson.NewObjectID().Hex())
		}
		if r.Key = j.key; !j.NoEntry {
			r.Conv = string(j.Entry.Conv)
		}
		receipts, of = append(receipts, r), append(of, j)
	}
	if len(retained) > 0 {
		err := x.s.retry(ctx, "retained", func(ctx context.Context) error {
			_, err := x.s.retained.BulkWrite(ctx, retained)
			if mongo.IsDuplicateKeyError(err) { // two upserts met
				_, err = x.s.retained.BulkWrite(ctx, retained)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(receipts) == 0 {
		return nil
	}
	return x.receipts(ctx, receipts, of)
}

// receipts writes the receipts of a batch and finds the publishes that came before.
func (x *writer) receipts(ctx context.Context, rs []receipt, of []*job) error {
	// One batch may hold the same publish twice.
	first := make(map[string]*job, len(rs))
	again := map[*job]*job{}
	fresh := rs[:0:0]
	for i := range rs {
		if j := first[rs[i].ID]; j != nil {
			again[of[i]] = j
			continue
		}
		first[rs[i].ID] = of[i]
		fresh = append(fresh, rs[i])
	}
	known := map[int]bool{} // there already, or put there by a try whose answer was lost
	err := x.s.retry(ctx, "receipts", func(ctx context.Context) error {
		_, err := x.s.receipts.InsertMany(ctx, fresh, options.InsertMany().SetOrdered(false))
		var be mongo.BulkWriteException
		if errors.As(err, &be) {
			for _, we := range be.WriteErrors {
				if mongo.IsDuplicateKeyError(we.WriteError) {
					known[we.Index] = true
				}
			}
		}
		if onlyDuplicates(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := range known {
		if err := x.received(ctx, &fresh[i], first[fresh[i].ID]); err != nil {
			return err
		}
	}
	for j, before := range again {
		j.key, j.dup = before.key, before.dup || before.NoEntry
		j.Entry.Seq, j.Entry.TS = before.Entry.Seq, before.Entry.TS
	}
	return nil
}

// received is for a publish whose packet id has a receipt already: it is a
// duplicate if that one's message is in the log. If it is not, the process died
// before, and this publish is the first, under the key of the receipt if it may
// be the same one: two with ids of their own, to two conversations, or with and
// without an entry are not.
func (x *writer) received(ctx context.Context, mine *receipt, j *job) error {
	for {
		r, found, err := one[receipt](ctx, x.s, "receipts", x.s.receipts, mine.where())
		if err != nil {
			return err
		}
		if found {
			if r.Key == mine.Key && r.Conv == mine.Conv {
				return nil // our own
			}
			m, written, err := x.s.receiptOf(ctx, &r)
			if err != nil {
				return err
			}
			if written {
				j.dup, j.Entry.Seq, j.Entry.TS = true, im.Seq(m.Seq), m.TS
				return nil
			}
			if r.Conv == mine.Conv && isReceiptKey(r.Key) && isReceiptKey(mine.Key) {
				j.key = r.Key
				return nil
			}
		}
		// It is ours now, unless somebody comes between: reading it again tells.
		err = x.s.retry(ctx, "receipts", func(ctx context.Context) error {
			_, err := x.s.receipts.ReplaceOne(ctx, append(mine.where(), bson.E{Key: "k", Value: r.Key}), mine, options.Replace().SetUpsert(true))
			if mongo.IsDuplicateKeyError(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
}

// where selects the receipt, with its shard key.
func (r *receipt) where() bson.D { return append(byID(r.ID), bson.E{Key: "u", Value: r.User}) }

// intents writes down which entries are to be emptied, before the entries that
// say so are in the log: a transaction that is committed from the start.
func (x *writer) intents(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		if j.Entry.Op != im.OpRecall {
			continue
		}
		j.tx = bson.NewObjectID().Hex()
		if j.key == "" {
			j.key = txKey(j.tx, 0)
		}
		doc := txDoc{ID: j.tx, State: committed, Begun: x.s.opt.Now().UnixMilli(), Entries: []message{newMessage(&j.Entry, j.key, "")}, Conv: string(x.conv), Recall: int64(j.Entry.Ref)}
		if err := x.s.putTx(ctx, &doc); err != nil {
			return err
		}
	}
	return nil
}

// recalled empties those of jobs that edit what was recalled, before or by one of
// them.
func (x *writer) recalled(ctx context.Context, jobs []*job) error {
	gone := map[im.Seq]bool{}
	var refs []string
	for _, j := range jobs {
		switch j.Entry.Op {
		case im.OpRecall:
			gone[j.Entry.Ref] = true
		case im.OpEdit:
			refs = append(refs, messageID(x.conv, j.Entry.Ref))
		}
	}
	if len(refs) == 0 {
		return nil
	}
	ms, err := read[message](ctx, x.s, "recalled", x.s.messages, append(bson.D{{Key: "c", Value: string(x.conv)}}, in(refs)...),
		options.Find().SetProjection(bson.D{{Key: "s", Value: 1}, {Key: "fl", Value: 1}}))
	if err != nil {
		return err
	}
	for i := range ms {
		if im.Flags(ms[i].Flags)&im.FlagRecalled != 0 {
			gone[im.Seq(ms[i].Seq)] = true
		}
	}
	for _, j := range jobs {
		if j.Entry.Op == im.OpEdit && gone[j.Entry.Ref] {
			j.Entry.Empty()
		}
	}
	return nil
}

// blank does what intents has written down.
func (x *writer) blank(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		if j.tx == "" {
			continue
		}
		if err := x.s.recall(ctx, x.conv, int64(j.Entry.Ref)); err != nil {
			return err
		}
		if err := x.s.dropTx(ctx, j.tx); err != nil {
			return err
		}
	}
	return nil
}

// recall empties a message and its edits. The database looks for them in the
// conversation after the message; only what it finds is sent here.
func (s *Store) recall(ctx context.Context, conv im.ConvID, ref int64) error {
	edits, err := read[message](ctx, s, "recall", s.messages,
		append(between(conv, im.Seq(ref)+1, noEnd), bson.E{Key: "ref", Value: ref}, bson.E{Key: "op", Value: int32(im.OpEdit)}),
		options.Find().SetProjection(bson.D{{Key: "s", Value: 1}}))
	if err != nil {
		return err
	}
	seqs := []int64{ref}
	for i := range edits {
		seqs = append(seqs, edits[i].Seq)
	}
	return s.empty(ctx, conv, seqs)
}

// empty takes body and type of messages away.
func (s *Store) empty(ctx context.Context, conv im.ConvID, seqs []int64) error {
	if len(seqs) == 0 {
		return nil
	}
	models := make([]mongo.WriteModel, len(seqs))
	for i, seq := range seqs {
		models[i] = mongo.NewUpdateOneModel().SetFilter(bson.D{{Key: "c", Value: string(conv)}, {Key: "_id", Value: messageID(conv, im.Seq(seq))}}).
			SetUpdate(bson.D{{Key: "$unset", Value: bson.D{{Key: "b", Value: ""}, {Key: "ty", Value: ""}}}, {Key: "$bit", Value: bson.D{{Key: "fl", Value: bson.D{{Key: "or", Value: int32(im.FlagRecalled)}}}}}})
	}
	return s.retry(ctx, "blank", func(ctx context.Context) error {
		_, err := s.messages.BulkWrite(ctx, models)
		return err
	})
}

// receiptOf is seq and time of the message that r stands for, 0 if it is one of
// a publish without; false if the message is not in the log.
func (s *Store) receiptOf(ctx context.Context, r *receipt) (message, bool, error) {
	if r.Seq > 0 || r.Conv == "" {
		return message{Seq: r.Seq, TS: r.TS}, true, nil
	}
	return s.byKey(ctx, im.ConvID(r.Conv), r.User, r.Key)
}

// Receipt: a method of store.Devices.
func (s *Store) Receipt(ctx context.Context, k im.DeviceKey, packet uint16) (store.Receipt, error) {
	r, found, err := one[receipt](ctx, s, "Receipt", s.receipts, bson.D{{Key: "_id", Value: receiptID(k, packet)}, {Key: "u", Value: string(k.User)}})
	if err == nil && !found {
		err = notFound("receipt")
	}
	if err != nil {
		return store.Receipt{}, err
	}
	out := store.Receipt{Packet: packet, Conv: im.ConvID(r.Conv)}
	m, found, err := s.receiptOf(ctx, &r)
	if err == nil && !found { // the process died before the message was in
		err = notFound("receipt")
	}
	out.Seq, out.TS = im.Seq(m.Seq), m.TS
	return out, err
}

// Release: a method of store.Devices.
func (s *Store) Release(ctx context.Context, k im.DeviceKey, packet uint16) error {
	if packet == 0 {
		return s.dropBelow(ctx, s.receipts, k)
	}
	return s.retry(ctx, "Release", func(ctx context.Context) error {
		_, err := s.receipts.DeleteOne(ctx, bson.D{{Key: "_id", Value: receiptID(k, packet)}, {Key: "u", Value: string(k.User)}})
		return err
	})
}
