package im

import (
	"errors"
	"fmt"
)

// Kind classifies an error by what the caller can do about it. The edge turns a
// Kind into an MQTT reason code or an HTTP status, in one table each; no room
// compares error texts.
type Kind uint8

// The kinds. Temporary ones are Unavailable and TooMany.
const (
	Internal     Kind = iota // a fault of ours: deny, log
	Unauthorized             // who are you? bad, expired or revoked credentials
	Forbidden                // known, but may not: not friends, blocked, not a member, muted
	NotFound                 // no such thing, or none the caller may know of
	Conflict                 // taken, or changed since it was read
	Invalid                  // the request makes no sense: fix it, then try again
	TopicInvalid             // the topic is outside the grammar
	TooLarge                 // the body is over its limit
	TooMany                  // a rate or a count is exhausted: try later
	Payload                  // the payload does not have the form its topic asks for
	Unsupported              // understood and refused: retained IM message, unknown seq
	Unavailable              // the store cannot answer or commit now: try again
	Disabled                 // the account is disabled
	Gone                     // the store or server is closing
)

var kindNames = [...]string{"internal", "unauthorized", "forbidden", "not_found", "conflict", "invalid", "topic_invalid",
	"too_large", "too_many", "payload_invalid", "unsupported", "unavailable", "disabled", "gone"}

// String returns the kind's stable, snake_case name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// Error is the house's error: what kind, where, why. Reason is for the person
// or client at the other end and never holds a secret or a message body; Err is
// for the log.
type Error struct {
	Kind   Kind
	Code   string // stable and snake_case, such as "not_friends"; "" means Kind.String()
	Reason string // one sentence: what was wrong and what to do
	Op     string // where: "pebblestore.Append"
	Err    error  // cause, may be nil
}

func (e *Error) Error() string {
	s := e.Reason
	if s == "" {
		s = e.Kind.String()
	}
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// E classifies err at the place that knows: im.E(im.Unavailable, "mongostore.Append", err).
func E(k Kind, op string, err error) error { return &Error{Kind: k, Op: op, Err: err} }

// Refuse is an error whose code and reason are meant for the caller.
func Refuse(k Kind, code, format string, args ...any) error {
	return &Error{Kind: k, Code: code, Reason: fmt.Sprintf(format, args...)}
}

// KindOf returns the Kind of the first *Error in err's chain; Internal when
// there is none. KindOf(nil) is Internal too: ask only about errors.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is a house error of kind k.
func Is(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// CodeOf returns the stable code of err for clients: its Code, else its Kind's name.
func CodeOf(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return Internal.String()
	}
	if e.Code != "" {
		return e.Code
	}
	return e.Kind.String()
}

// ReasonOf returns the sentence meant for the caller. Causes are left out:
// they may name files, addresses or queries.
func ReasonOf(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return "internal error"
	}
	if e.Reason != "" {
		return e.Reason
	}
	return map[Kind]string{
		Unauthorized: "bad credentials", Forbidden: "not authorized", NotFound: "not found", Unavailable: "the store is not available, try again",
		TooMany: "too many requests", Disabled: "account disabled",
	}[e.Kind]
}
