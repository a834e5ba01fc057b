package im

import (
	"strings"
	"testing"
)

func TestParseTopic(t *testing.T) {
	tests := []struct {
		why, topic string
		want       Topic
	}{
		{"a message to a user", "dm/bob", Topic{Conv: "d/alice/bob", Peer: "bob"}},
		{"the conversation has one name from both sides", "dm/aaron", Topic{Conv: "d/aaron/alice", Peer: "aaron"}},
		{"notes to oneself", "dm/alice", Topic{Conv: "d/alice/alice", Peer: "alice"}},
		{"a message to a group", "g/team-1", Topic{Conv: "g/team-1", Group: "team-1"}},
		{"a message with the sender's id", "dm/bob/id/a b", Topic{Conv: "d/alice/bob", Peer: "bob", Mid: "a b"}},
		{"an edit", "g/t/edit/7", Topic{Verb: VerbEdit, Conv: "g/t", Group: "t", Ref: 7}},
		{"a recall", "dm/bob/recall/1", Topic{Verb: VerbRecall, Conv: "d/alice/bob", Peer: "bob", Ref: 1}},
		{"a reaction", "dm/bob/react/12", Topic{Verb: VerbReact, Conv: "d/alice/bob", Peer: "bob", Ref: 12}},
		{"a watermark", "dm/bob/read", Topic{Verb: VerbRead, Conv: "d/alice/bob", Peer: "bob"}},
		{"typing", "g/t/typing", Topic{Verb: VerbTyping, Conv: "g/t", Group: "t"}},
		{"a signal", "g/t/signal", Topic{Verb: VerbSignal, Conv: "g/t", Group: "t"}},
		{"a request", "rpc/friends.add/17", Topic{Verb: VerbRPC, RPC: "friends.add", RID: "17"}},
		{"a request with a Response Topic", "rpc/history", Topic{Verb: VerbRPC, RPC: "history"}},
		{"state", "me/state", Topic{Verb: VerbState}},
		{"anything else is plain", "devices/a/temp", Topic{Verb: VerbPlain}},
		{"dmx is not dm", "dmx/bob", Topic{Verb: VerbPlain}},
		{"case matters", "DM/bob", Topic{Verb: VerbPlain}},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			got, err := ParseTopic("alice", tt.topic)
			if err != nil || got != tt.want {
				t.Errorf("ParseTopic(%q) = %+v, %v, want %+v", tt.topic, got, err, tt.want)
			}
		})
	}
}

func TestParseTopicRefuses(t *testing.T) {
	for _, tt := range []struct{ why, topic string }{
		{"empty", ""},
		{"a family without a conversation", "dm"},
		{"an empty user", "dm/"},
		{"an upper-case user", "dm/Bob"},
		{"only dots", "dm/.."},
		{"a wildcard", "dm/+"},
		{"a multi-level wildcard", "dm/#"},
		{"an unknown verb", "dm/bob/delete/1"},
		{"a trailing slash", "dm/bob/"},
		{"something after read", "dm/bob/read/1"},
		{"an id that is empty", "dm/bob/id/"},
		{"an id with a slash", "dm/bob/id/a/b"},
		{"an id that is too long", "dm/bob/id/" + strings.Repeat("x", 65)},
		{"seq 0", "dm/bob/edit/0"},
		{"a negative seq", "dm/bob/edit/-1"},
		{"a seq with a sign", "dm/bob/edit/+1"},
		{"a seq with a leading zero", "dm/bob/edit/01"},
		{"a seq beyond 63 bits", "dm/bob/edit/9999999999999999999"},
		{"a float", "dm/bob/edit/1.5"},
		{"what only the server writes", "presence/bob"},
		{"an answer", "re/1"},
		{"an account event", "me/friend-request"},
		{"sent", "sent"},
		{"below error", "error/x"},
		{"a request without an operation", "rpc/"},
		{"a request with too many levels", "rpc/a/b/c"},
		{"the server's own space", "$SYS/x"},
		{"a look-alike user", "dm/bоb"},
		{"a user that climbs", "dm/../x"},
		{"a NUL", "dm/bob\x00"},
		{"a control character", "x/\x1b[2J"},
		{"not UTF-8", "x/\xff"},
		{"too deep", strings.Repeat("/", 8)},
		{"65,000 levels", strings.Repeat("/", 65000)},
		{"a name of 65 characters", "dm/" + strings.Repeat("a", 65)},
	} {
		if got, err := ParseTopic("alice", tt.topic); !Is(err, TopicInvalid) {
			t.Errorf("%s: ParseTopic(%.40q) = %+v, %v, want a TopicInvalid error", tt.why, tt.topic, got, err)
		}
	}
}

func TestFilterMatch(t *testing.T) {
	for _, tt := range []struct {
		filter, topic string
		want          bool
	}{
		{"sport/#", "sport", true}, // [MQTT-4.7.1-2], non-normative examples
		{"sport/#", "sport/tennis/player1", true},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"#", "a/b", true},
		{"#", "$SYS/x", false}, // [MQTT-4.7.2-1]
		{"+/x", "$SYS/x", false},
		{"a/b", "a/b", true},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/+/c", "a/b/c", true},
		{"a//c", "a//c", true},
	} {
		f, err := ParseFilter(tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(tt.topic); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.filter, tt.topic, got, tt.want)
		}
	}
}

func TestFilterCovers(t *testing.T) {
	for _, tt := range []struct {
		outer, inner string
		want         bool
	}{
		{"devices/#", "devices/a/b", true},
		{"devices/#", "devices/+", true},
		{"devices/#", "devices", true},
		{"devices/#", "#", false},
		{"devices/+", "devices/#", false},
		{"devices/+", "devices/a", true},
		{"devices/a", "devices/+", false},
		{"a/+/c", "a/b/c", true},
		{"a/b", "a/b/c", false},
	} {
		o, _ := ParseFilter(tt.outer)
		i, _ := ParseFilter(tt.inner)
		if got := o.Covers(i); got != tt.want {
			t.Errorf("%q covers %q: %v, want %v", tt.outer, tt.inner, got, tt.want)
		}
	}
}

func TestParseFilter(t *testing.T) {
	for _, bad := range []string{"", "a+", "a/b+/c", "+#", "#/a", "a/#/b", "$share//x", "$share/g/", "$share/g", "$share/a+/x", "$SYS/#", "$ShArE/g/x", "a\x01", "a\xff", strings.Repeat("/", 8), strings.Repeat("a", 257)} {
		if f, err := ParseFilter(bad); err == nil {
			t.Errorf("ParseFilter(%.30q) = %+v, want an error", bad, f)
		}
	}
	f, err := ParseFilter("$share/workers/devices/+/x")
	if err != nil || f.Share != "workers" || f.Topic != "devices/+/x" {
		t.Errorf("shared filter: %+v, %v", f, err)
	}
}

func TestFilterOverlaps(t *testing.T) {
	for _, tt := range []struct {
		filter    string
		im, plain bool
	}{
		{"#", true, true}, {"+/bob", true, true}, {"+", true, true}, {"dm/+", true, false}, {"sent", true, false},
		{"me/#", true, false}, {"devices/#", false, true}, {"dmx", false, true}, {"$share/x/#", true, true},
	} {
		f, err := ParseFilter(tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		if i, p := f.Overlaps(); i != tt.im || p != tt.plain {
			t.Errorf("%q overlaps: im %v plain %v", tt.filter, i, p)
		}
	}
}

func FuzzParseTopic(f *testing.F) {
	for _, s := range []string{"dm/bob", "g/t/edit/7", "rpc/a/b", "x/y", "dm/bob/id/ü", "me/state", "$share/a/#", "a\xffb", "///////"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		topic, err := ParseTopic("alice", s)
		if err != nil {
			if !Is(err, TopicInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if topic.Verb == VerbPlain {
			if InIMSpace(s) {
				t.Fatalf("%q is plain", s)
			}
			return
		}
		if !InIMSpace(s) {
			t.Fatalf("%q is not plain", s)
		}
		if topic.Conv != "" && topic.Conv.Kind() == KindDM && topic.Conv.Topic("alice") != "dm/"+string(topic.Peer) {
			t.Fatalf("%q: %+v", s, topic)
		}
	})
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"dm/+", "#", "$share/a/b/#", "a+", "+/+/+", "a\x00"} {
		f.Add(s, "dm/bob")
	}
	f.Fuzz(func(t *testing.T, s, topic string) {
		flt, err := ParseFilter(s)
		if err != nil {
			return
		}
		if !flt.Covers(flt) {
			t.Fatalf("%q does not cover itself", s)
		}
		if CheckTopicName(topic) != nil {
			return
		}
		if own, err := ParseFilter(topic); err == nil && own.Share == "" && flt.Covers(own) != flt.Match(topic) {
			t.Fatalf("%q and %q: covers %v, matches %v", s, topic, flt.Covers(own), flt.Match(topic))
		}
	})
}
