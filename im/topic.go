package im

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of topics and filters. A deeper or longer one is refused before it
// reaches any index, whose cost grows with depth.
const (
	MaxTopicLevels = 8
	MaxTopicBytes  = 256
)

// Verb is what a published topic asks for within its conversation.
type Verb uint8

// The verbs of the topic grammar.
const (
	VerbMessage Verb = iota // {conv} and {conv}/id/{mid}
	VerbEdit                // {conv}/edit/{seq}
	VerbRecall              // {conv}/recall/{seq}
	VerbReact               // {conv}/react/{seq}
	VerbRead                // {conv}/read
	VerbTyping              // {conv}/typing
	VerbSignal              // {conv}/signal
	VerbRPC                 // rpc/{op} and rpc/{op}/{rid}
	VerbState               // me/state
	VerbPlain               // everything outside the IM topics
)

// Op returns the log operation a verb appends, and whether it appends one.
func (v Verb) Op() (Op, bool) {
	switch v {
	case VerbMessage:
		return OpMessage, true
	case VerbEdit:
		return OpEdit, true
	case VerbRecall:
		return OpRecall, true
	case VerbReact:
		return OpReact, true
	}
	return 0, false
}

// Topic is a parsed topic of a PUBLISH, seen from the user who sent it.
type Topic struct {
	Verb  Verb
	Conv  ConvID  // for conversation verbs
	Peer  UserID  // the other user, when Conv is a DM
	Group GroupID // the group, when Conv is one
	Mid   string  // the sender's message id, from {conv}/id/{mid}
	Ref   Seq     // the entry that an edit, recall or react is about
	RPC   string  // operation id of an rpc
	RID   string  // request id of an rpc; "" when the answer goes to a Response Topic
}

// ParseTopic parses the topic name of a PUBLISH by me. It is total: any string
// gives a Topic or a TopicInvalid error whose reason says what to write
// instead. Topics outside the IM space come back as VerbPlain.
func ParseTopic(me UserID, name string) (Topic, error) {
	if err := checkName(name); err != nil {
		return Topic{}, err
	}
	head, rest, deep := strings.Cut(name, "/")
	switch head {
	case "dm", "g":
		if !deep {
			return Topic{}, badTopic(name, "name a conversation: dm/{user} or g/{group}")
		}
		return parseConvTopic(me, name, head, rest)
	case "rpc":
		op, rid, hasRID := strings.Cut(rest, "/")
		if op == "" || len(op) > MaxID || (hasRID && (rid == "" || len(rid) > MaxID || strings.Contains(rid, "/"))) {
			return Topic{}, badTopic(name, "write rpc/{op}/{rid}, or rpc/{op} with a Response Topic")
		}
		return Topic{Verb: VerbRPC, RPC: op, RID: rid}, nil
	case "me":
		if rest == "state" {
			return Topic{Verb: VerbState}, nil
		}
		return Topic{}, badTopic(name, "only me/state can be published under me/")
	case "re", "presence", "error", "sent":
		return Topic{}, badTopic(name, "this topic is written by the server only")
	}
	return Topic{Verb: VerbPlain}, checkLength(name) // the grammar bounds the others: an id of 64 characters may have 256 bytes by itself
}

func parseConvTopic(me UserID, name, head, rest string) (Topic, error) {
	id, tail, hasTail := strings.Cut(rest, "/")
	var t Topic
	if head == "dm" {
		t.Peer = UserID(id)
		if !t.Peer.Valid() {
			return Topic{}, badTopic(name, "a user id is 1-64 characters of a-z 0-9 . _ -, not only dots")
		}
		t.Conv = DM(me, t.Peer)
	} else {
		t.Group = GroupID(id)
		if !t.Group.Valid() {
			return Topic{}, badTopic(name, "a group id is 1-64 characters of a-z 0-9 . _ -, not only dots")
		}
		t.Conv = GroupConv(t.Group)
	}
	if !hasTail {
		return t, nil
	}
	verb, arg, hasArg := strings.Cut(tail, "/")
	switch verb {
	case "read", "typing", "signal":
		if hasArg {
			return Topic{}, badTopic(name, "nothing may follow /"+verb)
		}
		t.Verb = map[string]Verb{"read": VerbRead, "typing": VerbTyping, "signal": VerbSignal}[verb]
		return t, nil
	case "id":
		if err := CheckMessageID(arg); err != nil || strings.Contains(arg, "/") {
			return Topic{}, badTopic(name, "a message id is 1-64 characters without /")
		}
		t.Mid = arg
		return t, nil
	case "edit", "recall", "react":
		seq, err := ParseSeq(arg)
		if err != nil || seq == 0 {
			return Topic{}, badTopic(name, "after /"+verb+"/ comes the seq of a message, in decimal")
		}
		t.Verb = map[string]Verb{"edit": VerbEdit, "recall": VerbRecall, "react": VerbReact}[verb]
		t.Ref = seq
		return t, nil
	}
	return Topic{}, badTopic(name, "after the conversation comes nothing, id/{mid}, edit/{seq}, recall/{seq}, react/{seq}, read, typing or signal")
}

func badTopic(name, hint string) error {
	return Refuse(TopicInvalid, "topic_invalid", "topic %.80q: %s", name, hint)
}

// ParseSeq reads a decimal seq: digits only, no sign, no leading zero but "0" itself.
func ParseSeq(s string) (Seq, error) {
	if s == "" || len(s) > 19 || (s[0] == '0' && len(s) > 1) {
		return 0, Refuse(Payload, "seq_invalid", "%.32q is not a seq in decimal", s)
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, Refuse(Payload, "seq_invalid", "%.32q is not a seq in decimal", s)
		}
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, Refuse(Payload, "seq_invalid", "%.32q is not a seq in decimal", s)
	}
	return Seq(n), nil
}

// ParseWatermark reads how far somebody has read: a decimal number, of any size,
// since what is beyond the head is cut there.
func ParseWatermark(s string) (Seq, error) {
	s = strings.TrimSpace(s)
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			s = ""
		}
	}
	if s == "" || len(s) > 64 {
		return 0, Refuse(Payload, "seq_invalid", "the payload of read is the highest seq read, in decimal")
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return math.MaxInt64, nil
	}
	return Seq(n), nil
}

// CheckMessageID accepts a sender's message id: 1–64 characters of UTF-8, none
// of them a control character.
func CheckMessageID(id string) error {
	if id == "" || utf8.RuneCountInString(id) > MaxID || !cleanUTF8(id) {
		return Refuse(Invalid, "id_invalid", "a message id is 1-64 characters of text without control characters")
	}
	return nil
}

// CheckTopicName accepts what may stand in a PUBLISH as topic name
// [MQTT-3.3.2-2]: no wildcard, no control character, at most MaxTopicLevels
// levels and MaxTopicBytes bytes.
func CheckTopicName(name string) error {
	if err := checkLength(name); err != nil {
		return err
	}
	return checkName(name)
}

func checkLength(name string) error {
	if len(name) > MaxTopicBytes {
		return badTopic(name, "it is longer than 256 bytes")
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return badTopic(name, "it is empty")
	case strings.ContainsAny(name, "+#"):
		return badTopic(name, "a published topic has no wildcard [MQTT-3.3.2-2]")
	case name[0] == '$':
		return badTopic(name, "topics that begin with $ belong to the server")
	case strings.Count(name, "/") >= MaxTopicLevels:
		return badTopic(name, "it has more than 8 levels")
	case !cleanUTF8(name):
		return badTopic(name, "it has control characters or is not UTF-8")
	}
	return nil
}

// Filter is a checked topic filter.
type Filter struct {
	Share string // group of a shared subscription, or ""
	Topic string // the filter without $share/{group}/
}

// ParseFilter checks the filter of a SUBSCRIBE or UNSUBSCRIBE [MQTT-4.7.1-1..3,
// MQTT-4.8.2-1..2].
func ParseFilter(s string) (Filter, error) {
	bad := func(hint string) (Filter, error) {
		return Filter{}, Refuse(TopicInvalid, "filter_invalid", "filter %.80q: %s", s, hint)
	}
	if s == "" || len(s) > MaxTopicBytes || !cleanUTF8(s) {
		return bad("a filter is 1-256 bytes of UTF-8 without control characters")
	}
	f := Filter{Topic: s}
	if strings.HasPrefix(s, "$share/") {
		group, rest, ok := strings.Cut(s[len("$share/"):], "/")
		if !ok || group == "" || rest == "" || strings.ContainsAny(group, "+#") {
			return bad("a shared subscription is $share/{group}/{filter} [MQTT-4.8.2-1]")
		}
		f = Filter{Share: group, Topic: rest}
	}
	if f.Topic[0] == '$' {
		return bad("filters that begin with $ are not served")
	}
	levels := strings.Split(f.Topic, "/")
	if len(levels) > MaxTopicLevels {
		return bad("it has more than 8 levels")
	}
	for i, l := range levels {
		switch {
		case strings.Contains(l, "#") && (l != "#" || i != len(levels)-1):
			return bad("# stands alone in the last level [MQTT-4.7.1-1]")
		case strings.Contains(l, "+") && l != "+":
			return bad("+ stands alone in its level [MQTT-4.7.1-2]")
		}
	}
	return f, nil
}

// Match reports whether the filter (without its share prefix) matches topic.
// Filters that begin with a wildcard do not match topics that begin with $
// [MQTT-4.7.2-1].
func (f Filter) Match(topic string) bool {
	if topic != "" && topic[0] == '$' && (f.Topic[0] == '+' || f.Topic[0] == '#') {
		return false
	}
	fl, tl := f.Topic, topic
	for {
		fh, frest, fmore := strings.Cut(fl, "/")
		if fh == "#" {
			return true
		}
		th, trest, tmore := strings.Cut(tl, "/")
		if fh != "+" && fh != th {
			return false
		}
		switch {
		case !fmore && !tmore:
			return true
		case !tmore:
			return frest == "#" // sport/# matches sport [MQTT-4.7.1-2]
		case !fmore:
			return false
		}
		fl, tl = frest, trest
	}
}

// Covers reports whether every topic that inner matches is matched by f too.
func (f Filter) Covers(inner Filter) bool {
	fl, il := strings.Split(f.Topic, "/"), strings.Split(inner.Topic, "/")
	for i, l := range fl {
		if l == "#" {
			return true
		}
		if i >= len(il) {
			return false
		}
		switch {
		case il[i] == "#":
			return false
		case l == "+":
		case l != il[i]:
			return false
		}
	}
	return len(il) == len(fl)
}

// imHeads are the first levels of the IM space. Nothing under them is ever in a
// tree shared between users.
var imHeads = [...]string{"dm", "g", "rpc", "re", "me", "presence", "error", "sent"}

// Overlaps reports whether the filter can match any IM topic. Such a filter is
// a switch for the subscriber's own view, never an entry of the shared index;
// one that also reaches plain topics (#, +/…) is both.
func (f Filter) Overlaps() (im, plain bool) {
	head, _, _ := strings.Cut(f.Topic, "/")
	if head == "#" || head == "+" {
		return true, true
	}
	if InIMSpace(head) {
		return true, false
	}
	return false, true
}

// InIMSpace reports whether a topic lies in the IM space.
func InIMSpace(topic string) bool {
	head, _, _ := strings.Cut(topic, "/")
	for _, h := range imHeads {
		if head == h {
			return true
		}
	}
	return false
}

// cleanUTF8 reports whether s is UTF-8 without U+0000..U+001F, U+007F..U+009F
// and non-characters, which [MQTT-1.5.4-1, 1.5.4-2] forbid or advise against.
func cleanUTF8(s string) bool {
	for i, r := range s {
		switch {
		case r < 0x20, r >= 0x7f && r <= 0x9f, r&0xfffe == 0xfffe, r >= 0xfdd0 && r <= 0xfdef:
			return false
		case r == '\uFFFD' && !strings.HasPrefix(s[i:], "\uFFFD"):
			return false // a decoding error, not the character itself
		}
	}
	return true
}
