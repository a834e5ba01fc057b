package pushgw

import (
	"testing"
	"time"
)

// TestJudge: what becomes of a bell after each answer.
func TestJudge(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	fresh := bell{Kind: Alert, Expires: now.Add(time.Hour).UnixMilli()}
	small, late, call := fresh, fresh, fresh
	small.Small = 2
	late.Expires = now.UnixMilli()
	call.Kind, call.Expires = Call, now.UnixMilli()
	for why, tt := range map[string]struct {
		bell bell
		res  Result
		want verdict // without at
	}{
		"sent":                               {fresh, Result{}, verdict{fate: rung, reason: "rung"}},
		"a failure that passes":              {fresh, Result{Outcome: Retry, Reason: "http 503"}, verdict{fate: again, tries: 1, reason: "retry", because: "http 503"}},
		"a failure when it would be late":    {late, Result{Outcome: Retry, Reason: "http 503", After: time.Second}, verdict{fate: buried, tries: 1, reason: "dead_letter", because: "expired after http 503"}},
		"a call that would be late":          {call, Result{Outcome: Retry, Reason: "network", After: time.Second}, verdict{fate: dropped, tries: 1, reason: "expired", because: "network"}},
		"too large":                          {fresh, Result{Outcome: TooLarge, Reason: "413"}, verdict{fate: again, small: 1, reason: "too_large", because: "413"}},
		"too large for the third time":       {small, Result{Outcome: TooLarge, Reason: "413"}, verdict{fate: buried, small: 3, reason: "dead_letter", because: "too_large"}},
		"gone":                               {fresh, Result{Outcome: Gone, Reason: "Unregistered"}, verdict{fate: forgotten, reason: "address_gone", because: "Unregistered"}},
		"gone after it was registered":       {fresh, Result{Outcome: Gone, Since: time.UnixMilli(501)}, verdict{fate: forgotten, reason: "address_gone"}},
		"gone before it was registered":      {fresh, Result{Outcome: Gone, Since: time.UnixMilli(500)}, verdict{fate: again, tries: 1, reason: "retry"}},
		"of another app":                     {fresh, Result{Outcome: Misplaced}, verdict{fate: forgotten, reason: "address_misplaced"}},
		"a request that is wrong":            {fresh, Result{Outcome: Rejected, Reason: "BadTopic"}, verdict{fate: buried, reason: "dead_letter", because: "BadTopic"}},
		"credentials refused, not its fault": {fresh, Result{Outcome: Locked, Reason: "Forbidden"}, verdict{fate: again, reason: "circuit_open", because: "Forbidden"}},
	} {
		got := judge(&tt.bell, 500, tt.res, now)
		if got.at.Before(now) || got.at.After(now.Add(retryFirst+tt.res.After)) {
			t.Errorf("%s: at %s", why, got.at.Sub(now))
		}
		if got.at = (time.Time{}); got != tt.want {
			t.Errorf("%s: %+v, want %+v", why, got, tt.want)
		}
	}
}

// TestPace: bursts, then one at a time; a turn that lies ahead is taken once.
func TestPace(t *testing.T) {
	r, now := &Registration{}, time.UnixMilli(1_000_000)
	for i := range loudBurst + 5 {
		wait, ok := r.pace(Alert, now)
		if want := max(0, time.Duration(i-loudBurst+1)*loudEvery); wait != want || !ok {
			t.Errorf("alert %d waits %s (%v), want %s", i, wait, ok, want)
		}
	}
	for i := range silentBurst + 3 {
		if wait, ok := r.pace(Clear, now); wait != 0 || ok != (i < silentBurst) {
			t.Errorf("clear %d: %v, %s", i, ok, wait)
		}
	}
	if _, ok := r.pace(Clear, now.Add(silentEvery)); !ok {
		t.Error("no clear after a while")
	}
	if wait, ok := r.pace(Call, now); wait != 0 || !ok {
		t.Error("a call waits")
	}
	b := &bell{Kind: Alert}
	if wait, _ := b.turn(r, now); wait == 0 {
		t.Error("the device's turns are taken, and the bell need not wait")
	}
	before := r.Loud
	if wait, ok := b.turn(r, now); wait != 0 || !ok || r.Loud != before {
		t.Error("its own turn is taken twice")
	}
}
