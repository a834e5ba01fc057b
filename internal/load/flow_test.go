package load

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"
)

// TestFaultsOnTheWayAreReported plays what a bad broker does to messages.
func TestFaultsOnTheWayAreReported(t *testing.T) {
	var held []byte
	for why, tt := range map[string]struct {
		spoil func(n int, p []byte) [][]byte
		want  Faults
	}{
		"a faithful broker": {faithful, Faults{}},
		"one that loses every tenth": {func(n int, p []byte) [][]byte {
			if n%10 == 0 {
				return nil
			}
			return [][]byte{p}
		}, Faults{Lost: 10}},
		"one that sends every twentieth twice": {func(n int, p []byte) [][]byte {
			if n%20 == 0 {
				return [][]byte{p, p}
			}
			return [][]byte{p}
		}, Faults{Duplicate: 5}},
		"one that turns the 7th and 8th around": {func(n int, p []byte) [][]byte {
			switch n {
			case 7:
				held = bytes.Clone(p)
				return nil
			case 8:
				return [][]byte{p, held}
			}
			return [][]byte{p}
		}, Faults{Disorder: 1}},
	} {
		for loop, f := range map[string]Flow{
			"closed loop": {Window: 50, Messages: 100, Patience: 300 * time.Millisecond},
			"open loop":   {Rate: 2000, Messages: 100, Patience: 300 * time.Millisecond},
		} {
			b := newFakeBroker(t, tt.spoil)
			r, err := DM{Pairs: 1, Flow: f}.Run(t.Context(), b.open(t), nil)
			if err != nil {
				t.Fatalf("%s, %s: %v", why, loop, err)
			}
			if r.Faults != tt.want || r.Messages != 100 || r.Interrupted {
				t.Errorf("%s, %s: %d messages, %v, want %v", why, loop, r.Messages, r.Faults, tt.want)
			}
			if r.Ack == nil || r.Ack.Count != 100 || r.Deliver == nil {
				t.Errorf("%s, %s: latencies %+v %+v", why, loop, r.Ack, r.Deliver)
			}
		}
	}
}

// TestTheLastOfALateBatchAreSent has every message due at once, so that the
// schedule ends while a batch is being collected.
func TestTheLastOfALateBatchAreSent(t *testing.T) {
	b := newFakeBroker(t, faithful)
	f := Flow{Rate: 1e9, Messages: batch + 10, Patience: 300 * time.Millisecond}
	r, err := DM{Pairs: 3, Flow: f}.Run(t.Context(), b.open(t), nil)
	if err != nil || r.Any() || r.Messages != batch+10 {
		t.Errorf("%d messages, %v, %v", r.Messages, r.Faults, err)
	}
}

func TestWhatOtherRunsSentIsNotCounted(t *testing.T) {
	b := newFakeBroker(t, func(n int, p []byte) [][]byte {
		other := bytes.Clone(p)
		h, _ := readHeader(other)
		h.run ^= 1
		h.put(other)
		return [][]byte{other, p}
	})
	r, err := Group{Members: 3, Flow: Flow{Window: 4, Messages: 50}}.Run(t.Context(), b.open(t), nil)
	if err != nil || r.Any() || r.Messages != 150 {
		t.Errorf("%d deliveries, %v, %v", r.Messages, r.Faults, err)
	}
}

// TestAnInterruptedRunTellsWhatItHas is Ctrl-C.
func TestAnInterruptedRunTellsWhatItHas(t *testing.T) {
	for loop, f := range map[string]Flow{"closed loop": {Window: 4, For: time.Hour}, "open loop": {Rate: 500, For: time.Hour}} {
		b := newFakeBroker(t, faithful)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-b.first; cancel() }()
		rs, err := Bench{Scenario: DM{Pairs: 3, Flow: f}, Targets: []*Target{b.open(t)}, Rounds: 3}.Run(ctx)
		if err != context.Canceled || len(rs) != 1 || !rs[0].Interrupted || rs[0].Any() {
			t.Errorf("%s: %+v %v", loop, rs, err)
		}
	}
}

// TestTargetsAreMeasuredInTurns, with a round to warm up that is not counted.
func TestTargetsAreMeasuredInTurns(t *testing.T) {
	b := newFakeBroker(t, faithful)
	one, two := b.open(t), b.open(t)
	two.Name = "other"
	var turns, results []string
	rs, err := Bench{Scenario: DM{Pairs: 1, Flow: Flow{Window: 1, Messages: 3}}, Targets: []*Target{one, two}, Rounds: 2, WarmUp: true, Progress: &Progress{},
		Turn: func(t *Target, round int) { turns = append(turns, t.Name) }}.Run(t.Context())
	for _, r := range rs {
		results = append(results, r.Target)
	}
	if err != nil || !slices.Equal(turns, []string{"fake", "other", "fake", "other", "fake", "other"}) || !slices.Equal(results, turns[2:]) {
		t.Errorf("%q %q %v", turns, results, err)
	}
}

func TestAServerThatGoesAwayIsAnError(t *testing.T) {
	b := newFakeBroker(t, faithful)
	target := b.open(t)
	go func() {
		<-b.first
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, nc := range b.conns {
			_ = nc.Close()
		}
	}()
	if r, err := (DM{Pairs: 1, Flow: Flow{Window: 1, For: time.Hour}}).Run(t.Context(), target, nil); err == nil {
		t.Errorf("%+v", r)
	}
	target.MQTT = "127.0.0.1:1"
	if _, err := (DM{Pairs: 2, Flow: Flow{Window: 1, For: time.Hour}}).Run(t.Context(), target, nil); err == nil {
		t.Error("connected to nobody")
	}
}
