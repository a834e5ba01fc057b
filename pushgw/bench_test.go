package pushgw_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/pushgw"
	"github.com/parley-im/parley/pushgw/apns"
	"github.com/parley-im/parley/pushgw/pushtest"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

// nobody is a House where nobody is online.
type nobody struct{}

func (nobody) Members(context.Context, im.GroupID) ([]im.UserID, error) { return nil, nil }
func (nobody) UserName(_ context.Context, u im.UserID) string           { return string(u) }
func (nobody) GroupName(_ context.Context, g im.GroupID) string         { return string(g) }
func (nobody) Unread(context.Context, im.UserID) (int, error)           { return 1, nil }
func (nobody) Online(im.DeviceKey) bool                                 { return false }
func (nobody) AnyOnline(im.UserID) bool                                 { return false }

// BenchmarkGateway rings b.N phones, each once, from a commit in the embedded
// store to a simulator of APNs over HTTP/2 in the same process, 2,000 messages
// under way at most: as fast as it goes, and at 3,000 a second. With broken, every
// message also rings another app whose credentials are refused.
func BenchmarkGateway(b *testing.B) {
	b.Run("flat-out", func(b *testing.B) { benchGateway(b, 0, false) })
	b.Run("3000-per-second", func(b *testing.B) { benchGateway(b, 3000, false) })
	b.Run("3000-per-second-beside-a-broken-app", func(b *testing.B) { benchGateway(b, 3000, true) })
}

// refused is an app whose credentials do not work.
type refused struct{}

func (refused) Send(context.Context, *pushgw.Push) pushgw.Result {
	return pushgw.Result{Outcome: pushgw.Locked, Reason: "InvalidProviderToken"}
}
func (refused) Close() error { return nil }

func benchGateway(b *testing.B, rate int, broken bool) {
	sim, err := pushtest.Start(pushtest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = sim.Close() }()
	team, id, p8 := sim.APNsKey()
	sender, err := apns.New(apns.Config{Bundle: "com.example.chat", Key: apns.Key{Team: team, ID: id, P8: p8}, Tokens: apns.NewTokens(nil), Environment: apns.Production, ProductionURL: sim.URLs.APNs, SandboxURL: sim.URLs.Sandbox, RootCAs: sim.CA()})
	if err != nil {
		b.Fatal(err)
	}
	st, err := pebblestore.Open(b.TempDir(), pebblestore.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	slots := make(chan struct{}, 2000)
	var mu sync.Mutex
	var took []time.Duration
	g, err := pushgw.New(b.Context(), pushgw.Options{
		Store: st, House: nobody{}, Apps: []pushgw.App{{Name: "ios", Provider: pushgw.APNs, Sender: sender, Workers: 256}, {Name: "broken", Provider: pushgw.FCM, Sender: refused{}}},
		Events: pushgw.Events{Rung: func(_, _ string, d time.Duration) {
			mu.Lock()
			took = append(took, d)
			mu.Unlock()
			<-slots
		}},
	})
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		if err := g.Register(b.Context(), im.DeviceKey{User: im.UserID(fmt.Sprint("u", i)), Device: "phone"}, "", pushgw.Address{Provider: pushgw.APNs, App: "ios", Token: fmt.Sprintf("%064x", i)}); err != nil {
			b.Fatal(err)
		}
		if broken {
			if err := g.Register(b.Context(), im.DeviceKey{User: im.UserID(fmt.Sprint("u", i)), Device: "tablet"}, "", pushgw.Address{Provider: pushgw.FCM, App: "broken", Token: fmt.Sprint(i)}); err != nil {
				b.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	b.ResetTimer()
	begun := time.Now()
	for i := range b.N {
		if rate > 0 {
			time.Sleep(time.Until(begun.Add(time.Duration(i) * time.Second / time.Duration(rate)))) // the schedule of an open loop
		}
		slots <- struct{}{}
		st.Append(&store.Append{Entry: im.Entry{Conv: im.DM("bob", im.UserID(fmt.Sprint("u", i))), From: "bob", Body: []byte("hello")}, Done: func(a *store.Append) { g.Offer(&a.Entry) }})
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	b.StopTimer()
	cancel()
	running.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pushes/s")
	b.ReportMetric(float64(took[len(took)*99/100].Milliseconds()), "p99-ms")
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "p50-ms")
}
