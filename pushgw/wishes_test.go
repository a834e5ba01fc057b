package pushgw

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
)

// reasons are those of the decisions about a message.
func (r *rig) reasons(conv im.ConvID, seq im.Seq) (out []string) {
	r.t.Helper()
	steps, err := r.g.Explain(context.Background(), conv, seq)
	if err != nil {
		r.t.Error(err)
	}
	for _, s := range steps {
		out = append(out, s.Reason)
	}
	return out
}

func (r *rig) level(conv im.ConvID, l ConvLevel) {
	r.t.Helper()
	if err := r.g.PutLevel(context.Background(), "alice", conv, l); err != nil {
		r.t.Fatal(err)
	}
}

// stops wants a message to ring nobody, for a reason that explain shows.
func (r *rig) stops(conv im.ConvID, from im.UserID, body, reason string) {
	r.t.Helper()
	before := len(r.apns.pushes())
	seq := r.say(conv, from, body)
	time.Sleep(time.Minute)
	r.want(r.apns, before, body)
	if got := r.reasons(conv, seq); len(got) == 0 || got[len(got)-1] != reason {
		r.t.Errorf("%s %q: %q, want %s", conv, body, got, reason)
	}
}

// goes wants a message to ring.
func (r *rig) goes(conv im.ConvID, from im.UserID, body string) {
	r.t.Helper()
	before := len(r.apns.pushes())
	r.say(conv, from, body)
	time.Sleep(2 * time.Minute)
	r.want(r.apns, before+1, body)
}

// TestWishes: what a user wants of one conversation, by name.
func TestWishes(t *testing.T) {
	both(t, "wishes", func(r *rig) {
		r.fam.groups["team"] = []im.UserID{"alice", "bob"}
		r.fam.groups["big"] = []im.UserID{"alice", "b", "c", "d", "e", "f", "g"}
		later := time.Now().Add(time.Hour).UnixMilli()

		r.level(dmAB, ConvLevel{Level: LevelNone})
		r.stops(dmAB, "bob", "no", "level_none")
		r.stops(dmAB, "bob", "@alice no", "level_none")
		r.level(dmAB, ConvLevel{Muted: later})
		// In a DM everything is for the other: a name is nothing special.
		r.stops(dmAB, "bob", "@alice muted", "muted")
		r.level(dmAB, ConvLevel{Level: LevelMentions})
		r.stops(dmAB, "bob", "@alice mentions", "level_mentions")
		r.level(dmAB, ConvLevel{})
		r.goes(dmAB, "bob", "yes")

		r.level("g/team", ConvLevel{Level: LevelMentions, Muted: later})
		r.stops("g/team", "bob", "anything", "muted")
		r.goes("g/team", "bob", "@alice look")
		r.level("g/team", ConvLevel{Level: LevelNone})
		r.stops("g/team", "bob", "@all none", "level_none")

		r.stops("g/big", "b", "to nobody in particular", "large_group")
		r.goes("g/big", "b", "@alice in the crowd")
	})
}

// TestQuietHoursDropRatherThanDelay: what came in them does not ring at their end,
// when it would be many hours old; the next message does, with the badge for all.
func TestQuietHoursDropRatherThanDelay(t *testing.T) {
	both(t, "quiet", func(r *rig) {
		r.fam.groups["team"] = []im.UserID{"alice", "bob"}
		now := time.Now().UTC()
		hours := &Quiet{From: now.Format("15:04"), To: now.Add(time.Hour).Format("15:04"), Zone: "UTC"}
		if err := r.g.PutSettings(context.Background(), "alice", "", hours); err != nil {
			r.t.Fatal(err)
		}
		r.stops(dmAB, "bob", "@alice in the night", "quiet_hours")
		r.goes("g/team", "bob", "@alice a mention in the night")
		time.Sleep(2 * time.Hour)
		r.want(r.apns, 1, "when they are over")
		r.goes(dmAB, "bob", "in the morning")
	})
}

// TestWhyACallRingsNobody: a call is heard or not for a reason that is counted.
func TestWhyACallRingsNobody(t *testing.T) {
	both(t, "calls", func(r *rig) {
		r.fam.groups["big"] = []im.UserID{"alice", "bob", "c", "d", "e", "f", "g"}
		call := func(conv im.ConvID, reason string) {
			r.t.Helper()
			r.g.Signal(im.Ephemeral{Conv: conv, From: "bob", Verb: im.VerbSignal, Type: CallType})
			time.Sleep(2 * time.Second)
			if got := r.reasons(conv+callSlot, 0); !slices.Contains(got, reason) { // none comes twice here
				r.t.Errorf("%q, want %s", got, reason)
			}
		}
		call(dmAB, "not_for_calls")
		r.register(phone, Address{Provider: APNs, App: "ios", Token: "cc", Kind: KindVoIP})
		call("g/big", "large_group")
		r.level(dmAB, ConvLevel{Level: LevelNone})
		call(dmAB, "level_none")
		r.level(dmAB, ConvLevel{Level: LevelMentions, Muted: time.Now().Add(time.Hour).UnixMilli()})
		r.want(r.apns, 0, "so far")
		call(dmAB, "call")
		r.want(r.apns, 1, "calls ring though it is muted")
		r.fam.mu.Lock()
		r.fam.online[phone] = true
		r.fam.mu.Unlock()
		call(dmAB, "connected")
		r.want(r.apns, 1, "in the end")
	})
}
