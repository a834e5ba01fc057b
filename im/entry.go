package im

import "strconv"

// Op says what an entry of a log is.
type Op uint8

// The operations. Their numbers are stored: never renumber.
const (
	OpMessage Op = 0 // a message
	OpEdit    Op = 1 // replaces the body of Ref
	OpRecall  Op = 2 // empties Ref and its edits
	OpReact   Op = 3 // a reaction to Ref
	OpEvent   Op = 4 // membership of a group, or an account event; Event names it
	OpPublish Op = 5 // a plain-space publication in a device's queue
)

// String returns the operation as topics and envelopes write it; "" for a message.
func (o Op) String() string {
	switch o {
	case OpEdit:
		return "edit"
	case OpRecall:
		return "recall"
	case OpReact:
		return "react"
	}
	return ""
}

// Entry is one record of a conversation's log. Once committed it is immutable
// and shared between rooms: nobody may write to it or to its Body.
// (Conv, Seq) names it for ever.
type Entry struct {
	Conv   ConvID
	Seq    Seq      // set by the store; dense from 1 in each conversation
	TS     int64    // Unix ms, set by the store at commit; never decreases within a conversation
	From   UserID   // the author; "" for none (plain space)
	Device DeviceID // the author's device: it does not get its own message back
	Op     Op
	Ref    Seq    // what an edit, recall or react is about
	ID     string // the sender's own message id, or ""
	Type   string // Content Type as published, or ""
	Event  string // OpEvent: "member-added", "friend-request", …
	Topic  string // OpPublish: the topic, in the plain space
	Props  []byte // OpPublish: the MQTT 5 properties to hand on, encoded by the plain space
	Flags  Flags
	Body   []byte
}

// Flags of an entry. Stored: never renumber.
type Flags uint8

// Entry flags.
const (
	FlagRecalled Flags = 1 << iota // the body was emptied by a recall
	FlagRetained                   // OpPublish: deliver with RETAIN set
	FlagUTF8                       // Payload Format Indicator 1
)

// ViewTopic is the topic of the entry as viewer sees it: that of its conversation,
// {conv}/{op}/{ref} for an operation, me/{event} for an account event, the
// published one in a queue.
func (e *Entry) ViewTopic(viewer UserID) string { return string(e.AppendTopic(nil, viewer)) }

// AppendTopic appends what ViewTopic returns.
func (e *Entry) AppendTopic(b []byte, viewer UserID) []byte {
	switch {
	case e.Op == OpPublish:
		return append(b, e.Topic...)
	case e.Conv.Kind() == KindAccount:
		return append(append(b, "me/"...), e.Event...)
	}
	b = e.Conv.AppendTopic(b, viewer)
	if op := e.Op.String(); op != "" {
		b = append(append(append(b, '/'), op...), '/')
		b = strconv.AppendUint(b, uint64(e.Ref), 10)
	}
	return b
}

// Empty takes away what the entry says, as a recall does. The entry must be in
// nobody else's hands yet.
func (e *Entry) Empty() {
	e.Body, e.Type = nil, ""
	e.Flags |= FlagRecalled
}

// Size is what the entry weighs in a queue or cache, in bytes: its variable
// parts and a constant for the rest.
func (e *Entry) Size() int {
	return 160 + len(e.Body) + len(e.ID) + len(e.Type) + len(e.Topic) + len(e.Props)
}

// Ephemeral is a typing or a signal on its way: to devices online now, in no log.
type Ephemeral struct {
	Conv   ConvID
	From   UserID
	Device DeviceID // the sender's: it does not get it back
	Verb   Verb     // VerbTyping or VerbSignal
	TS     int64    // Unix ms
	Type   string
	Body   []byte
}
