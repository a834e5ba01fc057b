package mongostore

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// id makes documents streamable: each goes on after it.
func (r *row[T]) id() string       { return r.ID }
func (t *token) id() string        { return t.ID }
func (x *secret) id() string       { return x.ID }
func (c *conversation) id() string { return c.ID }
func (c *cursor) id() string       { return c.ID }
func (r *receipt) id() string      { return r.ID }

// EachConversation: a method of store.Log.
func (s *Store) EachConversation(ctx context.Context, after im.ConvID, fn func(im.ConvID) bool) error {
	return eachAfter(ctx, s, "EachConversation", s.convs, string(after), func(c *conversation) bool { return fn(im.ConvID(c.ID)) })
}

// Empty: a method of store.Mover.
func (s *Store) Empty(ctx context.Context) (bool, error) {
	for _, coll := range []*mongo.Collection{s.users, s.convs} {
		if _, found, err := one[bson.Raw](ctx, s, "Empty", coll, bson.D{}); err != nil || found {
			return false, err
		}
	}
	return true, nil
}

// partialDoc is a document of meta.
type partialDoc struct {
	ID  string `bson:"_id"`
	Why string `bson:"why"`
}

// SetPartial: a method of store.Mover.
func (s *Store) SetPartial(ctx context.Context, why string) error {
	return s.retry(ctx, "SetPartial", func(ctx context.Context) error {
		if why == "" {
			_, err := s.meta.DeleteOne(ctx, byID("partial"))
			return err
		}
		_, err := s.meta.ReplaceOne(ctx, byID("partial"), partialDoc{"partial", why}, options.Replace().SetUpsert(true))
		return err
	})
}

// Partial: a method of store.Mover.
func (s *Store) Partial(ctx context.Context) (string, error) {
	doc, _, err := one[partialDoc](ctx, s, "Partial", s.meta, byID("partial"))
	return doc.Why, err
}

// Dump: a method of store.Mover. It reads no snapshot: nobody should be writing.
func (s *Store) Dump(ctx context.Context, fn func(store.Record) error) error {
	if err := s.finishOldTxs(ctx); err != nil {
		return err
	}
	var fail error
	give := func(r store.Record) bool {
		fail = fn(r)
		return fail == nil
	}
	steps := []func() error{
		func() error {
			return each(ctx, s, "Dump", s.secrets, func(x *secret) bool {
				return give(store.Record{Secret: &store.Secret{Name: x.ID, Value: x.Value}})
			})
		},
		func() error {
			return dumpRows(ctx, s, s.users, give, func(v *store.User, ver uint64) store.Record { v.Ver = ver; return store.Record{User: v} })
		},
		func() error {
			return each(ctx, s, "Dump", s.tokens, func(t *token) bool { v := t.value(); return give(store.Record{Token: &v}) })
		},
		func() error {
			return dumpRows(ctx, s, s.relations, give, func(v *store.Relation, ver uint64) store.Record { v.Ver = ver; return store.Record{Relation: v} })
		},
		func() error {
			return dumpRows(ctx, s, s.groups, give, func(v *store.Group, ver uint64) store.Record { v.Ver = ver; return store.Record{Group: v} })
		},
		func() error {
			return dumpRows(ctx, s, s.members, give, func(v *store.Member, ver uint64) store.Record { v.Ver = ver; return store.Record{Member: v} })
		},
		func() error {
			return each(ctx, s, "Dump", s.devices, func(d *device) bool { return give(store.Record{Device: &d.D}) })
		},
		func() error {
			return each(ctx, s, "Dump", s.retained, func(r *retainedDoc) bool { return give(store.Record{Retained: &r.D}) })
		},
		func() error { return s.dumpConversations(ctx, give) },
		func() error {
			return each(ctx, s, "Dump", s.cursors, func(c *cursor) bool {
				return give(store.Record{Cursor: &store.DeviceCursor{Key: deviceOf(c.ID), Cursor: c.value()}})
			})
		},
		func() error {
			return each(ctx, s, "Dump", s.receipts, func(r *receipt) bool {
				k := deviceOf(r.ID)
				rc, err := s.Receipt(ctx, k, packetOf(r.ID))
				if im.Is(err, im.NotFound) {
					return true
				}
				if err != nil {
					fail = err
					return false
				}
				return give(store.Record{Receipt: &store.DeviceReceipt{Key: k, Receipt: rc}})
			})
		},
	}
	steps = append(steps, func() error {
		return each(ctx, s, "Dump", s.notes, func(n *secret) bool {
			return give(store.Record{Note: &store.Note{Key: n.ID, Value: n.Value}})
		})
	}, func() error {
		return each(ctx, s, "Dump", s.tasks, func(t *task) bool { v := t.value(); return give(store.Record{Task: &v}) })
	})
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
		if fail != nil {
			return fail
		}
	}
	return nil
}

func dumpRows[T any](ctx context.Context, s *Store, coll *mongo.Collection, give func(store.Record) bool, wrap func(*T, uint64) store.Record) error {
	return each(ctx, s, "Dump", coll, func(r *row[T]) bool { return r.Absent || give(wrap(&r.D, uint64(r.Ver))) })
}

// dumpPage is how many entries are read at once.
const dumpPage = 1000

func (s *Store) dumpConversations(ctx context.Context, give func(store.Record) bool) error {
	var convs []conversation // a page of them: no cursor stays open over their entries
	for after := ""; ; after = convs[len(convs)-1].ID {
		var err error
		convs, err = read[conversation](ctx, s, "Dump", s.convs, bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: after}}}}, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetLimit(dumpPage))
		if err != nil || len(convs) == 0 {
			return err
		}
		ids := make([]im.ConvID, len(convs))
		for i := range convs {
			ids[i] = im.ConvID(convs[i].ID)
		}
		heads, err := s.Heads(ctx, ids)
		if err != nil {
			return err
		}
		for i, conv := range ids {
			if heads[i].Seq == 0 {
				continue // its first message failed
			}
			if !give(store.Record{Conversation: &store.Conversation{Conv: conv, Head: heads[i].Seq, TS: heads[i].TS, Floor: im.Seq(convs[i].Floor), ReadTS: heads[i].ReadTS}}) {
				return nil
			}
			for from := im.Seq(0); ; {
				es, err := s.Range(ctx, conv, from, dumpPage, 16<<20)
				if err != nil {
					return err
				}
				for _, e := range es {
					if !give(store.Record{Entry: e}) {
						return nil
					}
				}
				if len(es) == 0 {
					break
				}
				from = es[len(es)-1].Seq
			}
			rs, err := s.Reads(ctx, conv, 0)
			if err != nil {
				return err
			}
			for _, r := range rs {
				if !give(store.Record{Read: &store.ConvRead{Conv: conv, Read: r}}) {
					return nil
				}
			}
		}
	}
}

// deviceOf reads the device of the _id of a cursor or receipt.
func deviceOf(id string) im.DeviceKey {
	dev, _, _ := strings.Cut(id, " ")
	u, d, _ := strings.Cut(dev, "/")
	return im.DeviceKey{User: im.UserID(u), Device: im.DeviceID(d)}
}

func packetOf(id string) uint16 {
	_, hex, _ := strings.Cut(id, " ")
	n, err := strconv.ParseUint(hex, 16, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// Load: a method of store.Mover.
func (s *Store) Load(ctx context.Context, rs []store.Record) error {
	docs := map[*mongo.Collection][]any{}
	put := func(coll *mongo.Collection, doc any) { docs[coll] = append(docs[coll], doc) }
	for i := range rs {
		switch r := &rs[i]; {
		case r.Secret != nil:
			put(s.secrets, secret{ID: r.Secret.Name, Value: r.Secret.Value})
		case r.User != nil:
			put(s.users, loaded(txRow{ID: string(r.User.ID), User: r.User}, r.User.Ver))
		case r.Token != nil:
			put(s.tokens, token{ID: r.Token.Hash, User: string(r.Token.User), Used: r.Token.Used, D: *r.Token})
		case r.Relation != nil:
			put(s.relations, loaded(txRow{ID: relationID(r.Relation.User, r.Relation.Peer), Relation: r.Relation}, r.Relation.Ver))
		case r.Group != nil:
			put(s.groups, loaded(txRow{ID: string(r.Group.ID), Group: r.Group}, r.Group.Ver))
		case r.Member != nil:
			put(s.members, loaded(txRow{ID: memberID(r.Member.Group, r.Member.User), Member: r.Member}, r.Member.Ver))
		case r.Device != nil:
			put(s.devices, device{ID: deviceID(r.Device.Key), User: string(r.Device.Key.User), Seen: r.Device.LastSeen, D: *r.Device})
		case r.Retained != nil:
			put(s.retained, retainedDoc{ID: r.Retained.Topic, D: *r.Retained})
		case r.Conversation != nil:
			c := r.Conversation
			put(s.convs, conversation{ID: string(c.Conv), Floor: int64(c.Floor), Read: c.ReadTS, Head: int64(c.Head), TS: c.TS})
			if a, b := c.Conv.Pair(); a != "" {
				for _, u := range slices.Compact([]im.UserID{a, b}) {
					put(s.dms, bson.D{{Key: "_id", Value: string(u) + " " + string(c.Conv)}, {Key: "u", Value: string(u)}, {Key: "c", Value: string(c.Conv)}})
				}
			}
		case r.Entry != nil:
			key := placeKey("load." + strconv.FormatUint(uint64(r.Entry.Seq), 16))
			if hasDedupe(r.Entry) {
				key = idKey(r.Entry.ID)
			}
			put(s.messages, newMessage(r.Entry, key, "load"))
		case r.Read != nil:
			put(s.reads, watermark{ID: readID(r.Read.Conv, r.Read.User), Conv: string(r.Read.Conv), User: string(r.Read.User), Seq: int64(r.Read.Seq), TS: r.Read.TS})
		case r.Cursor != nil:
			c := r.Cursor
			put(s.cursors, cursor{ID: cursorID(c.Key, c.Conv), User: string(c.Key.User), Conv: string(c.Conv), Acked: int64(c.Acked), Sent: int64(c.Sent), Ahead: c.Ahead})
		case r.Receipt != nil:
			rc := r.Receipt
			put(s.receipts, receipt{ID: receiptID(rc.Key, rc.Packet), User: string(rc.Key.User), Conv: string(rc.Conv), Seq: int64(rc.Seq), TS: rc.TS})
		case r.Note != nil:
			put(s.notes, secret{ID: r.Note.Key, Value: r.Note.Value})
		case r.Task != nil:
			put(s.tasks, taskDoc(r.Task, int64(r.Task.Ver)))
		default:
			return im.Refuse(im.Invalid, "record", "a record that this version does not know")
		}
	}
	for coll, list := range docs {
		err := s.retry(ctx, "Load", func(ctx context.Context) error {
			_, err := coll.InsertMany(ctx, list, options.InsertMany().SetOrdered(false))
			if onlyDuplicates(err) { // loaded before
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func loaded(r txRow, ver uint64) bson.D { return append(byID(r.ID), r.values(int64(ver))...) }
