package delivery

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// counter is a wire that keeps what is unacknowledged.
type counter struct {
	topics []string
	ids    []uint16
}

func (w *counter) Deliver(p *Parcel, _ byte, packet uint16, _ bool) Outcome {
	w.topics, w.ids = append(w.topics, string(p.Conv)), append(w.ids, packet)
	return Written
}
func (w *counter) Send(n *Note, _ byte, packet uint16) Outcome {
	w.topics, w.ids = append(w.topics, n.Topic), append(w.ids, packet)
	return Written
}
func (w *counter) Close(CloseReason) {}

// TestPacketIDsGoRound: ids are never 0 and never in use twice, also around the end
// of the circle, and a client that leaves one unacknowledged for ever stalls before
// they come round to it.
func TestPacketIDsGoRound(t *testing.T) {
	w := &counter{}
	l := &Line{d: New(Options{Source: newMemory()}), wire: w, window: 4, started: true}
	for range 70_000 {
		l.Note(&Note{Topic: "x"}, 1)
		id := w.ids[len(w.ids)-1]
		if id == 0 {
			t.Fatal("packet id 0")
		}
		if !l.Ack(id) {
			t.Fatalf("packet id %d is not known", id)
		}
	}
	l.Note(&Note{Topic: "never acknowledged"}, 1)
	w.ids = nil
	for range 70_000 {
		l.Note(&Note{Topic: "x"}, 1)
		if len(w.ids) == 0 {
			break
		}
		l.Ack(w.ids[0])
		w.ids = w.ids[:0]
	}
	if n := l.flights.len(); n != maxSpan {
		t.Errorf("%d packets after one that is not acknowledged, want a stall at %d", n, maxSpan)
	}
}

// TestAnExpiredSessionLeavesTheQueueOnly: a plain session that expired gets nothing
// of its queue, and is not Present; the conversations go on from the cursor.
func TestAnExpiredSessionLeavesTheQueueOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, away := range []time.Duration{time.Minute, 2 * time.Hour} {
			mem := newMemory()
			d := New(Options{Source: mem})
			k := im.DeviceKey{User: "bob", Device: "phone"}
			dm, queue := im.DM("alice", "bob"), im.QueueConv("bob", "phone")
			attach := func(w Wire) *Attached {
				at, err := d.Attach(t.Context(), Attachment{Key: k, Wire: w, Version: 5, Expiry: 3600})
				if err != nil {
					t.Fatal(err)
				}
				return at
			}
			at := attach(&counter{})
			if err := d.SaveSession(t.Context(), at.Line, []store.Subscription{{Filter: "weather/#", QoS: 1}}); err != nil {
				t.Fatal(err)
			}
			d.Detach(t.Context(), at.Line, nil, nil)
			d.Offer(mem.append(im.Entry{Conv: dm, From: "alice"}))
			d.Offer(mem.append(im.Entry{Conv: queue, Op: im.OpPublish, Topic: "weather/rain"}))
			time.Sleep(away)
			at = attach(&counter{})
			var want []im.ConvID
			if want = []im.ConvID{dm, queue}; away > time.Hour {
				want = want[:1]
			}
			got := map[im.ConvID]bool{}
			for _, tr := range at.Line.behind {
				got[tr.conv] = true
			}
			if at.Present != (away < time.Hour) || fmt.Sprint(len(at.Session.Subs)) != fmt.Sprint(len(want)-1) || len(got) != len(want) || !got[dm] {
				t.Errorf("away %s: present %v, subscriptions %v, to come %v", away, at.Present, at.Session.Subs, got)
			}
			d.Detach(t.Context(), at.Line, nil, nil)
		}
	})
}

// TestATrimmedStretch: the cursor passes over it, whatever is still under way, and
// keeps no list of it.
func TestATrimmedStretch(t *testing.T) {
	l := &Line{d: New(Options{Source: newMemory()}), wire: &counter{}, window: 4, started: true}
	tr := &track{conv: "g/x", acked: 3, sent: 5, ahead: []im.Seq{5}, resolved: true}
	l.tracks = map[im.ConvID]*track{tr.conv: tr}
	l.skipTo(tr, 5)
	if tr.acked != 3 {
		t.Errorf("acknowledged up to %d: nothing was skipped", tr.acked)
	}
	const far = 1_000_000
	l.skipTo(tr, far)
	l.settle(tr, 4) // its PUBACK comes late
	cs := l.takeCursors()
	if len(cs) != 1 || cs[0].Acked != far || cs[0].Sent != far || len(cs[0].Ahead) > 0 {
		t.Errorf("%+v", cs)
	}
}

// TestACursorIsACopy: what was taken to be stored does not change with the line.
func TestACursorIsACopy(t *testing.T) {
	l := &Line{d: New(Options{Source: newMemory()})}
	tr := &track{conv: "g/x", sent: 9, resolved: true}
	l.tracks = map[im.ConvID]*track{tr.conv: tr}
	for _, seq := range []im.Seq{3, 5, 6, 9} {
		l.settle(tr, seq)
	}
	cs := l.takeCursors()
	l.settle(tr, 1)
	l.settle(tr, 2)
	l.settle(tr, 4)
	if got := fmt.Sprint(cs[0].Acked, cs[0].Ahead); got != "0 [3 5 6 9]" {
		t.Errorf("the cursor that was taken is now %s", got)
	}
	if got := fmt.Sprint(tr.acked, tr.ahead); got != "6 [9]" {
		t.Errorf("the line's is %s", got)
	}
}
