package plain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

func TestRules(t *testing.T) {
	rules := Rules{
		{Deny: true, Actions: Publish | Subscribe, Topic: "devices/secret/#"},
		{Actions: Publish, Topic: "devices/{device}/#"},
		{Actions: Publish, Topic: "users/{user}/+"},
		{Actions: Subscribe, Topic: "devices/#", Role: "admin"},
		{Actions: Publish | Subscribe, Topic: "open/+", User: "bob"},
	}
	lamp := Caller{Key: im.DeviceKey{User: "alice", Device: "lamp"}}
	admin := Caller{Key: im.DeviceKey{User: "root", Device: "desk"}, Role: "admin"}
	bob := Caller{Key: im.DeviceKey{User: "bob", Device: "x"}}
	for _, tt := range []struct {
		who   Caller
		topic string
		want  bool
	}{
		{lamp, "devices/lamp/temp", true}, {lamp, "devices/door/temp", false}, {lamp, "devices/secret/x", false}, {lamp, "users/alice/x", true},
		{lamp, "users/bob/x", false}, {lamp, "other", false}, {bob, "open/x", true}, {lamp, "open/x", false}, {admin, "devices/lamp/x", false},
	} {
		if got := rules.MayPublish(tt.who, tt.topic); got != tt.want {
			t.Errorf("%s publishes %s: %v", tt.who.Key, tt.topic, got)
		}
	}
	for _, tt := range []struct {
		who    Caller
		filter string
		want   bool
	}{
		{admin, "devices/lamp/#", true}, {admin, "devices/#", false}, {admin, "devices/+/x", false}, {admin, "#", false}, {admin, "$share/g/devices/lamp/x", true},
		{lamp, "devices/lamp/#", false}, {bob, "open/x", true}, {bob, "open/+", true}, {bob, "open/#", false}, {lamp, "open/x", false},
	} {
		f, err := im.ParseFilter(tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		if got := rules.MaySubscribe(tt.who, f); got != tt.want {
			t.Errorf("%s subscribes %s: %v", tt.who.Key, tt.filter, got)
		}
	}
	if (Rules{}).MayPublish(admin, "x") {
		t.Error("closed by default")
	}
}

func dev(name string) im.DeviceKey { return im.DeviceKey{User: "u", Device: im.DeviceID(name)} }

func online(im.DeviceKey) bool { return true }

func names(ts []Target) (out []string) {
	for _, t := range ts {
		out = append(out, string(t.Key.Device))
	}
	slices.Sort(out)
	return out
}

func TestMatch(t *testing.T) {
	s := New(nil, nil)
	for name, filters := range map[string]string{"a": "x/y x/+ #", "b": "x/+", "c": "+/y/#", "d": "x", "e": "x/#", "f": "dm/+"} {
		for f := range strings.FieldsSeq(filters) {
			s.Subscribe(dev(name), false, store.Subscription{Filter: f, QoS: 1, ID: len(f)})
		}
	}
	for topic, want := range map[string]string{"x/y": "a b c e", "x": "a d e", "x/z": "a b e", "q/y": "a c", "dm/bob": "a", "x/y/z": "a c e"} {
		if got := strings.Join(names(s.Match(topic, dev("pub"), online)), " "); got != want {
			t.Errorf("%s: %s, want %s", topic, got, want)
		}
	}
	for _, target := range s.Match("x/y", dev("pub"), online) {
		if target.Key == dev("a") && (target.QoS != 1 || len(target.SubIDs) != 3) {
			t.Errorf("overlapping filters are one delivery with all identifiers: %+v", target)
		}
	}
	if !s.Unsubscribe(dev("a"), "#") || s.Unsubscribe(dev("a"), "#") {
		t.Error("Unsubscribe reports wrongly")
	}
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		s.Drop(dev(n))
	}
	if got := s.Match("x/y", dev("pub"), online); len(got) != 0 || len(s.mu.root.kids) != 0 {
		t.Errorf("after all left: %v, %d nodes", names(got), len(s.mu.root.kids))
	}
}

func TestNoLocalAndExpiry(t *testing.T) {
	now := time.Unix(1000, 0)
	s := New(nil, func() time.Time { return now })
	s.Subscribe(dev("a"), true, store.Subscription{Filter: "x", QoS: 1, NoLocal: true})
	if n := len(s.Match("x", dev("a"), online)); n != 0 {
		t.Error("No Local is ignored")
	}
	s.Keep(dev("a"), now.Add(time.Minute).UnixMilli())
	if n := len(s.Match("x", dev("b"), online)); n != 1 {
		t.Error("a session that is kept gets nothing")
	}
	now = now.Add(2 * time.Minute)
	if n := len(s.Match("x", dev("b"), online)); n != 0 {
		t.Error("an expired session gets something")
	}
	if gone := s.Expire(); len(gone) != 1 || gone[0] != dev("a") || s.Subscriptions() != 0 {
		t.Errorf("%v", gone)
	}
}

func TestSharedSubscription(t *testing.T) {
	s := New(nil, nil)
	for _, n := range []string{"a", "b", "away"} {
		s.Subscribe(dev(n), n == "away", store.Subscription{Filter: "$share/g/x", QoS: 1})
	}
	got := map[string]int{}
	for range 30 {
		ts := s.Match("x", dev("p"), func(k im.DeviceKey) bool { return k != dev("away") })
		if len(ts) != 1 {
			t.Fatalf("%d members got it", len(ts))
		}
		got[string(ts[0].Key.Device)]++
	}
	if got["a"] != 15 || got["b"] != 15 {
		t.Errorf("%v", got)
	}
	ts := s.Match("x", dev("p"), func(im.DeviceKey) bool { return false })
	if len(ts) != 1 || ts[0].Key != dev("away") || !ts[0].Persistent {
		t.Errorf("nobody is online: %+v", ts)
	}
}

func TestRetained(t *testing.T) {
	now := time.Unix(1000, 0)
	s := New(nil, func() time.Time { return now })
	for _, topic := range []string{"a", "a/b", "a/b/c", "x/b"} {
		s.Retain(store.RetainedMessage{Topic: topic, Body: []byte(topic)})
	}
	s.Retain(store.RetainedMessage{Topic: "a/late", Body: []byte("x"), Expires: now.UnixMilli() + 10})
	for filter, want := range map[string]string{"a": "a", "a/#": "a a/b a/b/c a/late", "+/b": "a/b x/b", "#": "a a/b a/b/c a/late x/b", "a/+": "a/b a/late", "q": ""} {
		f, _ := im.ParseFilter(filter)
		var got []string
		for _, m := range s.Retained(f) {
			got = append(got, m.Topic)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", filter, got, want)
		}
	}
	now = now.Add(time.Second)
	f, _ := im.ParseFilter("a/late")
	if len(s.Retained(f)) != 0 {
		t.Error("an expired message is retained")
	}
	for _, topic := range []string{"a", "a/b", "a/b/c", "x/b", "a/late", "never"} {
		s.Retain(store.RetainedMessage{Topic: topic})
	}
	if s.RetainedCount() != 0 || len(s.mu.retained.kids) != 0 {
		t.Errorf("%d retained, %d nodes left", s.RetainedCount(), len(s.mu.retained.kids))
	}
}

func BenchmarkMatch(b *testing.B) {
	s := New(nil, nil)
	for i := range 1000 {
		s.Subscribe(dev(fmt.Sprint(i)), false, store.Subscription{Filter: fmt.Sprintf("devices/%d/+", i), QoS: 1})
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(s.Match("devices/500/temp", dev("p"), online)) != 1 {
			b.Fatal("no match")
		}
	}
}
