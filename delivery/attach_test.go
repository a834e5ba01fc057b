package delivery_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

type nowire struct{}

func (nowire) Deliver(*delivery.Parcel, byte, uint16, bool) delivery.Outcome { return delivery.Written }
func (nowire) Send(*delivery.Note, byte, uint16) delivery.Outcome            { return delivery.Written }
func (nowire) Close(delivery.CloseReason)                                    {}

// BenchmarkAttach is the return of a device to which nothing happened, by how many
// groups its user is in.
func BenchmarkAttach(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			st, err := pebblestore.Open(b.TempDir(), pebblestore.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = st.Close() }()
			ctx := context.Background()
			for i := range n {
				g := im.GroupID(fmt.Sprint("g", i))
				tx := &store.Tx{Groups: []store.Group{{ID: g, Owner: "bob", Join: "invite"}},
					Members: []store.Member{{Group: g, User: "bob", Role: "owner", Start: 1}},
					Entries: []*store.Append{{Entry: im.Entry{Conv: im.GroupConv(g), From: "bob", Op: im.OpEvent, Event: "group-created"}}}}
				if err := st.Commit(ctx, tx); err != nil {
					b.Fatal(err)
				}
			}
			d := delivery.New(delivery.Options{Source: st})
			for _, other := range []bool{false, true} {
				name := "alone"
				if other {
					name = "beside another"
					a, err := d.Attach(ctx, delivery.Attachment{Key: im.DeviceKey{User: "bob", Device: "tablet"}, Wire: nowire{}})
					if err != nil {
						b.Fatal(err)
					}
					defer d.Detach(ctx, a.Line, nil, nil)
				}
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						a, err := d.Attach(ctx, delivery.Attachment{Key: im.DeviceKey{User: "bob", Device: "phone"}, Wire: nowire{}})
						if err != nil {
							b.Fatal(err)
						}
						d.Detach(ctx, a.Line, nil, nil)
					}
				})
			}
		})
	}
}
