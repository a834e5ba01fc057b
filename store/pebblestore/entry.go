package pebblestore

import (
	"encoding/binary"
	"errors"

	"github.com/parley-im/parley/im"
)

// entryVersion is the first byte of a stored entry.
const entryVersion = 1

// fields present in a stored entry, by bit.
const (
	hasFrom = 1 << iota
	hasRef
	hasID
	hasType
	hasEvent
	hasTopic
	hasProps
)

var errCorrupt = errors.New("stored entry is corrupt")

// appendEntry encodes all of e but its conversation and seq, which are the key.
func appendEntry(b []byte, e *im.Entry) []byte {
	var has byte
	set := func(bit byte, ok bool) {
		if ok {
			has |= bit
		}
	}
	set(hasFrom, e.From != "" || e.Device != "")
	set(hasRef, e.Ref != 0)
	set(hasID, e.ID != "")
	set(hasType, e.Type != "")
	set(hasEvent, e.Event != "")
	set(hasTopic, e.Topic != "")
	set(hasProps, len(e.Props) > 0)
	b = append(b, entryVersion, has, byte(e.Op), byte(e.Flags))
	b = binary.AppendUvarint(b, uint64(e.TS))
	if has&hasFrom != 0 {
		b = appendStr(appendStr(b, string(e.From)), string(e.Device))
	}
	if has&hasRef != 0 {
		b = binary.AppendUvarint(b, uint64(e.Ref))
	}
	if has&hasID != 0 {
		b = appendStr(b, e.ID)
	}
	if has&hasType != 0 {
		b = appendStr(b, e.Type)
	}
	if has&hasEvent != 0 {
		b = appendStr(b, e.Event)
	}
	if has&hasTopic != 0 {
		b = appendStr(b, e.Topic)
	}
	if has&hasProps != 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Props)))
		b = append(b, e.Props...)
	}
	return append(b, e.Body...)
}

func appendStr(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeEntry reads what appendEntry wrote. The entry does not alias b.
func decodeEntry(conv im.ConvID, seq im.Seq, b []byte) (*im.Entry, error) {
	if len(b) < 5 || b[0] != entryVersion {
		return nil, errCorrupt
	}
	r := reader{b: b[4:], ok: true}
	has := b[1]
	e := &im.Entry{Conv: conv, Seq: seq, Op: im.Op(b[2]), Flags: im.Flags(b[3]), TS: int64(r.num())}
	if has&hasFrom != 0 {
		e.From, e.Device = im.UserID(r.str()), im.DeviceID(r.str())
	}
	if has&hasRef != 0 {
		e.Ref = im.Seq(r.num())
	}
	if has&hasID != 0 {
		e.ID = r.str()
	}
	if has&hasType != 0 {
		e.Type = r.str()
	}
	if has&hasEvent != 0 {
		e.Event = r.str()
	}
	if has&hasTopic != 0 {
		e.Topic = r.str()
	}
	if has&hasProps != 0 {
		e.Props = []byte(r.str())
	}
	if !r.ok {
		return nil, errCorrupt
	}
	if len(r.b) > 0 {
		e.Body = append([]byte(nil), r.b...)
	}
	return e, nil
}

// reader takes values off the front; after the first that is not there, ok is
// false and all are zero.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) num() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.ok, r.b = false, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string {
	n := r.num()
	if n > uint64(len(r.b)) {
		r.ok, r.b = false, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
