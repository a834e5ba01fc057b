package store

import (
	"context"

	"github.com/parley-im/parley/im"
)

// Mover is met by engines whose whole content can be read out and put into an
// empty store of any engine. Every engine of this house is one.
type Mover interface {
	// Dump calls fn with everything in the store: rows first, then each
	// conversation followed by its entries in order of seq, then cursors and
	// receipts. It ends with fn's first error. Where the engine cannot read a
	// snapshot, nobody should be writing meanwhile.
	Dump(ctx context.Context, fn func(Record) error) error

	// Load writes records as they are, with their versions, seqs and times, into
	// a store that was empty when the first were loaded and that nobody uses yet.
	// Records come in the order of Dump; to load the same ones again changes
	// nothing. Durable on return.
	Load(ctx context.Context, rs []Record) error

	// Empty reports whether there is no user and no conversation.
	Empty(ctx context.Context) (bool, error)

	// SetPartial notes that the store does not hold all that it should, and why: a
	// Load that has begun. "" takes the note away. It is no record. Durable on return.
	SetPartial(ctx context.Context, why string) error
	// Partial returns the note, "" if there is none.
	Partial(ctx context.Context) (string, error)
}

// Record is one thing of a store. Exactly one field is set.
type Record struct {
	Secret       *Secret          `json:"secret,omitempty"`
	User         *User            `json:"user,omitempty"`
	Token        *Token           `json:"token,omitempty"`
	Relation     *Relation        `json:"relation,omitempty"`
	Group        *Group           `json:"group,omitempty"`
	Member       *Member          `json:"member,omitempty"`
	Device       *Device          `json:"device,omitempty"`
	Retained     *RetainedMessage `json:"retained,omitempty"`
	Conversation *Conversation    `json:"conversation,omitempty"`
	Entry        *im.Entry        `json:"entry,omitempty"`
	Read         *ConvRead        `json:"read,omitempty"`
	Cursor       *DeviceCursor    `json:"cursor,omitempty"`
	Receipt      *DeviceReceipt   `json:"receipt,omitempty"`
	Note         *Note            `json:"note,omitempty"`
	Task         *Task            `json:"task,omitempty"`
}

// Secret is a named secret.
type Secret struct {
	Name  string
	Value []byte
}

// Conversation is a log without its entries.
type Conversation struct {
	Conv   im.ConvID
	Head   im.Seq
	TS     int64  // of the head, Unix ms
	Floor  im.Seq // entries up to here were trimmed
	ReadTS int64
}

// ConvRead is a watermark and whose conversation it is of.
type ConvRead struct {
	Conv im.ConvID
	Read
}

// DeviceCursor is a cursor and whose it is.
type DeviceCursor struct {
	Key im.DeviceKey
	Cursor
}

// DeviceReceipt is a receipt and whose it is.
type DeviceReceipt struct {
	Key im.DeviceKey
	Receipt
}

// Kind names what the record is: "user", "entry", …
func (r *Record) Kind() string {
	switch {
	case r.Secret != nil:
		return "secret"
	case r.User != nil:
		return "user"
	case r.Token != nil:
		return "token"
	case r.Relation != nil:
		return "relation"
	case r.Group != nil:
		return "group"
	case r.Member != nil:
		return "member"
	case r.Device != nil:
		return "device"
	case r.Retained != nil:
		return "retained"
	case r.Conversation != nil:
		return "conversation"
	case r.Entry != nil:
		return "entry"
	case r.Read != nil:
		return "read"
	case r.Cursor != nil:
		return "cursor"
	case r.Receipt != nil:
		return "receipt"
	case r.Note != nil:
		return "note"
	case r.Task != nil:
		return "task"
	}
	return ""
}
