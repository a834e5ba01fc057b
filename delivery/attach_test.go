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
// groups its user is in: to a server that has just started, as the first device of
// its user, and while another one is connected.
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
			attach := func(d *delivery.Delivery, device im.DeviceID) *delivery.Line {
				a, err := d.Attach(ctx, delivery.Attachment{Key: im.DeviceKey{User: "bob", Device: device}, Wire: nowire{}})
				if err != nil {
					b.Fatal(err)
				}
				return a.Line
			}
			b.Run("after a restart", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					d := delivery.New(delivery.Options{Source: st})
					d.Detach(ctx, attach(d, "phone"), nil, nil)
				}
			})
			d := delivery.New(delivery.Options{Source: st})
			back := func(b *testing.B) {
				d.Detach(ctx, attach(d, "phone"), nil, nil)
				b.ReportAllocs()
				for b.Loop() {
					d.Detach(ctx, attach(d, "phone"), nil, nil)
				}
			}
			b.Run("alone", back)
			defer d.Detach(ctx, attach(d, "tablet"), nil, nil)
			b.Run("beside another", back)
		})
	}
}
