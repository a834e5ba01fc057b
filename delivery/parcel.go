package delivery

import (
	"sync/atomic"

	"github.com/parley-im/parley/im"
)

// Parcel is an entry on its way to many devices, with room for its encodings.
// Wires encode once per form and share: they put the bytes into a slot and never
// write to them again.
type Parcel struct {
	*im.Entry
	SubIDs []int // Subscription Identifiers; such a parcel is for one device
	forms  [NumForms]atomic.Pointer[Form]
}

// Form is one encoding of a parcel.
type Form struct {
	Frame []byte // a whole packet with packet id 0, or with none at QoS 0
	ID    int    // offset of the packet id in Frame; 0: there is none
}

// NumForms is how many encodings a parcel can hold. Which is which is the
// wires' business.
const NumForms = 12

// Form returns encoding i, made by encode on first use. Two wires may encode at
// once; one result is kept.
func (p *Parcel) Form(i int, encode func(*Parcel, int) *Form) *Form {
	if f := p.forms[i].Load(); f != nil {
		return f
	}
	f := encode(p, i)
	if !p.forms[i].CompareAndSwap(nil, f) {
		return p.forms[i].Load()
	}
	return f
}

// Outcome is what became of a parcel at a wire.
type Outcome uint8

// Outcomes of Wire.Deliver.
const (
	Written Outcome = iota // on its way
	Full                   // the buffer is over its mark: ask again after Line.Writable
	Passed                 // not for this client: larger than its Maximum Packet Size, or expired
	Closed                 // the connection is gone
)

// Wire is one device's connection, as delivery needs it. Met by the broker. No
// method blocks or calls back into delivery.
type Wire interface {
	// Deliver writes the entry as a PUBLISH. packet is 0 at QoS 0.
	Deliver(p *Parcel, qos byte, packet uint16, dup bool) Outcome
	// Send writes a PUBLISH that is not an entry: ephemeral events and answers.
	Send(n *Note, qos byte, packet uint16) Outcome
	// Close ends the connection for reason; once is enough.
	Close(reason CloseReason)
}

// CloseReason is why delivery, or the app through it, ends a connection.
type CloseReason uint8

// Close reasons.
const (
	TakenOver    CloseReason = iota + 1 // the same device connected again
	Revoked                             // credentials or permission withdrawn
	ShuttingDown                        // the server stops
	StoreAway                           // the store cannot commit or be read
	Removed                             // the device was deleted
)

// Note is a PUBLISH that is in no log.
type Note struct {
	Topic       string // as the receiver sees it
	Body        []byte
	Type        string
	From        im.UserID // who sent it, for typing and signal
	TS          int64     // Unix ms, for the envelope
	Envelope    bool      // clients that take envelopes get Body in one
	PeerNamed   bool      // From is the peer named in Topic: no user property needed
	Correlation []byte    // MQTT 5 Correlation Data
	Props       []byte    // plain space: MQTT 5 properties to hand on, encoded
	Retain      bool
	SubIDs      []int // Subscription Identifiers
}
