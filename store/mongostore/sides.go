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
// the message under the same key, once.
type receipt struct {
	ID   string `bson:"_id"` // deviceID and the packet id
	User string `bson:"u"`   // the shard key
	Conv string `bson:"c,omitempty"`
	Key  string `bson:"k,omitempty"` // of the message; "" when there is none, or when it was loaded:
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
		if !j.NoEntry {
			if j.key == "" && hasDedupe(&j.Entry) {
				j.key = idKey(j.Entry.ID)
			}
			if j.key == "" {
				j.key = receiptKey(bson.NewObjectID().Hex())
			}
			r.Conv, r.Key = string(j.Entry.Conv), j.key
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
	fresh := rs[:0:0]
	for i := range rs {
		if j := first[rs[i].ID]; j != nil {
			of[i].key, of[i].dup = j.key, j.NoEntry
			continue
		}
		first[rs[i].ID] = of[i]
		fresh = append(fresh, rs[i])
	}
	known := map[string]bool{} // there already, or put there by a try whose answer was lost
	ids := make([]string, len(fresh))
	for i := range fresh {
		ids[i] = fresh[i].ID
	}
	err := x.s.retry(ctx, "receipts", func(ctx context.Context) error {
		_, err := x.s.receipts.InsertMany(ctx, fresh, options.InsertMany().SetOrdered(false))
		var be mongo.BulkWriteException
		if errors.As(err, &be) {
			for _, we := range be.WriteErrors {
				if mongo.IsDuplicateKeyError(we.WriteError) && we.Index < len(ids) {
					known[ids[we.Index]] = true
				}
			}
		}
		if onlyDuplicates(err) {
			return nil
		}
		return err
	})
	if err != nil || len(known) == 0 {
		return err
	}
	old, err := read[receipt](ctx, x.s, "receipts", x.s.receipts, in(ids))
	if err != nil {
		return err
	}
	for _, r := range old {
		j := first[r.ID]
		if !known[r.ID] || (r.Key == j.key && !j.NoEntry) {
			continue // our own
		}
		if j.NoEntry {
			j.dup = true
			continue
		}
		m, found, err := x.s.receiptOf(ctx, &r)
		if err != nil {
			return err
		}
		if found {
			j.dup, j.Entry.Seq, j.Entry.TS = true, im.Seq(m.Seq), m.TS
		} else if r.Conv == string(j.Entry.Conv) {
			j.key = r.Key // its message was never written: now it is
		}
	}
	return nil
}

// intents writes down which entries are to be emptied, before the entries that
// say so are in the log: a transaction that is committed from the start.
func (x *writer) intents(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		if len(j.Blank) == 0 {
			continue
		}
		j.tx = bson.NewObjectID().Hex()
		if j.key == "" {
			j.key = txKey(j.tx, 0)
		}
		doc := txDoc{ID: j.tx, State: committed, Begun: x.s.opt.Now().UnixMilli(), Entries: []message{newMessage(&j.Entry, j.key, "")}, Conv: string(x.conv), Blank: seqs(j.Blank)}
		if err := x.s.putTx(ctx, &doc); err != nil {
			return err
		}
	}
	return nil
}

func seqs(in []im.Seq) []int64 {
	out := make([]int64, len(in))
	for i, s := range in {
		out[i] = int64(s)
	}
	return out
}

// blank does what intents has written down.
func (x *writer) blank(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		if j.tx == "" {
			continue
		}
		if err := x.s.empty(ctx, x.conv, seqs(j.Blank)); err != nil {
			return err
		}
		if err := x.s.dropTx(ctx, j.tx); err != nil {
			return err
		}
	}
	return nil
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

// receiptOf is seq and time of the message that r stands for.
func (s *Store) receiptOf(ctx context.Context, r *receipt) (message, bool, error) {
	if r.Seq > 0 {
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
	if r.Conv == "" {
		return out, nil
	}
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
