package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// FrameError is a packet that ends its connection.
type FrameError struct {
	Code   byte   // MQTT 5 reason code of the DISCONNECT
	Reason string // for a person; never holds bytes of the packet
}

func (e *FrameError) Error() string { return fmt.Sprintf("0x%02x: %s", e.Code, e.Reason) }

// ErrNeedMore: the bytes so far are the beginning of a fixed header.
var ErrNeedMore = errors.New("fixed header incomplete")

var (
	errMalformed = &FrameError{Code: packets.ErrMalformedPacket.Code, Reason: "malformed packet"}
	errProtocol  = &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "protocol error"}
)

// HeaderLen reads the fixed header at the front of b: its length, and that of
// the whole packet. It needs at most 5 bytes and returns ErrNeedMore while they
// are not there. A length of more than four bytes, or one that is not the
// shortest, is malformed [MQTT-1.5.5-1]; so are wrong flags [MQTT-2.1.3-1] and
// type 0; packets only a server sends are a protocol error.
func HeaderLen(b []byte) (head, total int, err error) {
	if len(b) == 0 {
		return 0, 0, ErrNeedMore
	}
	if err := checkFirst(b[0]); err != nil {
		return 0, 0, err
	}
	n, shift := 0, 0
	for i := 1; ; i++ {
		if i > 4 {
			return 0, 0, malformed("Remaining Length of more than four bytes")
		}
		if i >= len(b) {
			return 0, 0, ErrNeedMore
		}
		n |= int(b[i]&0x7f) << shift
		shift += 7
		if b[i]&0x80 == 0 {
			if i > 1 && b[i] == 0 {
				return 0, 0, malformed("Remaining Length is not in its shortest form")
			}
			return i + 1, i + 1 + n, nil
		}
	}
}

func checkFirst(b byte) error {
	flags := b & 0x0f
	switch b >> 4 {
	case packets.Publish:
		if flags&0x06 == 0x06 {
			return malformed("QoS 3") // [MQTT-3.3.1-4]
		}
		return nil
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe:
		if flags != 2 {
			return malformed("reserved flags of the fixed header")
		}
		return nil
	case packets.Connect, packets.Puback, packets.Pubrec, packets.Pubcomp, packets.Pingreq, packets.Disconnect, packets.Auth:
		if flags != 0 {
			return malformed("reserved flags of the fixed header")
		}
		return nil
	case packets.Reserved:
		return malformed("packet type 0")
	}
	return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a packet only a server sends"}
}

// Publish is a parsed PUBLISH. Its slices alias the packet.
type Publish struct {
	Dup, Retain bool
	QoS         byte
	PacketID    uint16
	Topic       []byte
	Payload     []byte
	Props       PublishProps
}

// PublishProps are the properties of a PUBLISH.
type PublishProps struct {
	PayloadFormat   byte
	MessageExpiry   uint32 // seconds; 0 none
	ContentType     []byte
	ResponseTopic   []byte
	CorrelationData []byte
	HasAlias        bool
	Alias           uint16
	ID              []byte // value of the user property "id", the first
	Raw             []byte // all of them, as they stood
}

// ParsePublish parses and checks the body of a PUBLISH without allocating.
func ParsePublish(version, first byte, body []byte, p *Publish) error {
	p.Dup, p.Retain, p.QoS = first&8 != 0, first&1 != 0, first>>1&3
	if p.Dup && p.QoS == 0 {
		return malformed("DUP at QoS 0") // [MQTT-3.3.1-2]
	}
	var ok bool
	if p.Topic, body, ok = cutBytes(body); !ok {
		return errMalformed
	}
	if !validText(p.Topic) {
		return malformed("the topic is not clean UTF-8") // [MQTT-1.5.4-1, 1.5.4-2]
	}
	if p.QoS > 0 {
		if len(body) < 2 {
			return errMalformed
		}
		p.PacketID = binary.BigEndian.Uint16(body)
		if p.PacketID == 0 {
			return malformed("packet id 0") // [MQTT-2.2.1-3]
		}
		body = body[2:]
	}
	if version >= 5 {
		var raw []byte
		if raw, body, ok = cutProps(body); !ok {
			return errMalformed
		}
		if len(raw) > 0 {
			if err := p.Props.parse(raw); err != nil {
				return err
			}
		}
	}
	if len(p.Topic) == 0 && !p.Props.HasAlias {
		return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "an empty topic without alias"}
	}
	p.Payload = body
	return nil
}

func (p *PublishProps) parse(raw []byte) error {
	p.Raw = raw
	users := 0
	var seen propSet
	for it := raw; len(it) > 0; {
		id, val, key, rest, err := cutProp(it)
		if err != nil {
			return err
		}
		it = rest
		if id != packets.PropUser && !seen.add(id) {
			return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a property twice"}
		}
		switch id {
		case packets.PropPayloadFormat:
			if val[0] > 1 {
				return errMalformed
			}
			p.PayloadFormat = val[0]
		case packets.PropMessageExpiryInterval:
			p.MessageExpiry = binary.BigEndian.Uint32(val)
		case packets.PropContentType:
			p.ContentType = val
		case packets.PropResponseTopic:
			p.ResponseTopic = val
		case packets.PropCorrelationData:
			p.CorrelationData = val
		case packets.PropTopicAlias:
			p.HasAlias, p.Alias = true, binary.BigEndian.Uint16(val)
		case packets.PropUser:
			if users++; users > maxUserProps {
				return &FrameError{Code: packets.ErrPacketTooLarge.Code, Reason: "more than 32 user properties"}
			}
			if string(key) == "id" && p.ID == nil {
				p.ID = val
			}
		default:
			return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a property that PUBLISH of a client does not have"}
		}
	}
	return nil
}

// Forward returns the properties that go on to subscribers, as bytes: all but
// Message Expiry Interval (it counts down) and Topic Alias. It allocates.
func (p *PublishProps) Forward() []byte {
	var out []byte
	for it := p.Raw; len(it) > 0; {
		id, _, _, rest, err := cutProp(it)
		if err != nil {
			return out
		}
		if id != packets.PropMessageExpiryInterval && id != packets.PropTopicAlias {
			out = append(out, it[:len(it)-len(rest)]...)
		}
		it = rest
	}
	return out
}

// Limits on what a packet may hold.
const (
	maxUserProps = 32
	maxFilters   = 1024 // of a SUBSCRIBE or UNSUBSCRIBE: what each costs is bounded, so is what all do
)

type propSet uint64

func (s *propSet) add(id byte) bool {
	bit := propSet(1) << (id & 63)
	if *s&bit != 0 {
		return false
	}
	*s |= bit
	return true
}

// cutProp takes one property off the front. val aliases b; key is set for a
// user property. Strings are checked.
func cutProp(b []byte) (id byte, val, key, rest []byte, err error) {
	id, b = b[0], b[1:]
	fixed := func(n int) (byte, []byte, []byte, []byte, error) {
		if len(b) < n {
			return 0, nil, nil, nil, errMalformed
		}
		return id, b[:n], nil, b[n:], nil
	}
	switch id {
	case packets.PropPayloadFormat, packets.PropRequestProblemInfo, packets.PropRequestResponseInfo:
		return fixed(1)
	case packets.PropReceiveMaximum, packets.PropTopicAliasMaximum, packets.PropTopicAlias:
		return fixed(2)
	case packets.PropMessageExpiryInterval, packets.PropSessionExpiryInterval, packets.PropWillDelayInterval, packets.PropMaximumPacketSize:
		return fixed(4)
	case packets.PropSubscriptionIdentifier:
		n, used, ok := varint(b)
		if !ok || n == 0 {
			return 0, nil, nil, nil, errProtocol
		}
		return id, b[:used], nil, b[used:], nil
	case packets.PropCorrelationData, packets.PropAuthenticationData:
		v, r, ok := cutBytes(b)
		if !ok {
			return 0, nil, nil, nil, errMalformed
		}
		return id, v, nil, r, nil
	case packets.PropContentType, packets.PropResponseTopic, packets.PropAuthenticationMethod, packets.PropReasonString:
		v, r, ok := cutBytes(b)
		if !ok || !validText(v) {
			return 0, nil, nil, nil, errMalformed
		}
		return id, v, nil, r, nil
	case packets.PropUser:
		k, r, ok := cutBytes(b)
		if !ok || !validText(k) {
			return 0, nil, nil, nil, errMalformed
		}
		v, r, ok := cutBytes(r)
		if !ok || !validText(v) {
			return 0, nil, nil, nil, errMalformed
		}
		return id, v, k, r, nil
	}
	return 0, nil, nil, nil, malformed("unknown property")
}

// checkProps checks that raw has only the allowed properties, none but User
// Property twice.
func checkProps(raw []byte, allowed ...byte) error {
	var seen propSet
	users := 0
next:
	for len(raw) > 0 {
		id, val, _, rest, err := cutProp(raw)
		if err != nil {
			return err
		}
		raw = rest
		if id == packets.PropUser {
			if users++; users > maxUserProps {
				return &FrameError{Code: packets.ErrPacketTooLarge.Code, Reason: "more than 32 user properties"}
			}
		} else if !seen.add(id) {
			return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a property twice"}
		}
		switch id {
		case packets.PropRequestProblemInfo, packets.PropRequestResponseInfo, packets.PropPayloadFormat:
			if val[0] > 1 {
				return errProtocol
			}
		case packets.PropReceiveMaximum:
			if binary.BigEndian.Uint16(val) == 0 {
				return errProtocol // [MQTT-3.1.2-*]: it is a protocol error to include 0
			}
		case packets.PropMaximumPacketSize:
			if binary.BigEndian.Uint32(val) == 0 {
				return errProtocol
			}
		}
		for _, a := range allowed {
			if a == id {
				continue next
			}
		}
		return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "a property that this packet does not have"}
	}
	return nil
}

// hasProp reports whether checked properties have one of this id.
func hasProp(raw []byte, id byte) bool {
	for len(raw) > 0 {
		p, _, _, rest, err := cutProp(raw)
		if err != nil {
			return false
		}
		if p == id {
			return true
		}
		raw = rest
	}
	return false
}

// CheckConnect checks the body of a CONNECT.
func CheckConnect(b []byte) error {
	name, b, ok := cutBytes(b)
	if !ok || len(b) < 4 {
		return errMalformed
	}
	version, flags := b[0], b[1]
	if string(name) != "MQTT" || (version != 4 && version != 5) {
		return &FrameError{Code: packets.ErrUnsupportedProtocolVersion.Code, Reason: "this server speaks MQTT 3.1.1 and 5.0"}
	}
	will, willQoS, willRetain := flags&4 != 0, flags>>3&3, flags&0x20 != 0
	switch {
	case flags&1 != 0:
		return malformed("reserved connect flag") // [MQTT-3.1.2-3]
	case !will && (willQoS != 0 || willRetain), willQoS == 3:
		return malformed("will flags") // [MQTT-3.1.2-11..13]
	case version == 4 && flags&0xC0 == 0x40:
		return malformed("a password without a user name") // 3.1.1: [MQTT-3.1.2-22]
	}
	b = b[4:]
	if version == 5 {
		var props []byte
		if props, b, ok = cutProps(b); !ok {
			return errMalformed
		}
		err := checkProps(props, packets.PropSessionExpiryInterval, packets.PropReceiveMaximum, packets.PropMaximumPacketSize, packets.PropTopicAliasMaximum,
			packets.PropRequestResponseInfo, packets.PropRequestProblemInfo, packets.PropUser, packets.PropAuthenticationMethod, packets.PropAuthenticationData)
		if err != nil {
			return err
		}
		if hasProp(props, packets.PropAuthenticationData) && !hasProp(props, packets.PropAuthenticationMethod) {
			return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "Authentication Data without an Authentication Method"} // section 3.1.2.11.10
		}
	}
	if b, ok = cutText(b); !ok { // client id
		return errMalformed
	}
	if will {
		if version == 5 {
			var props []byte
			if props, b, ok = cutProps(b); !ok {
				return errMalformed
			}
			err := checkProps(props, packets.PropWillDelayInterval, packets.PropPayloadFormat, packets.PropMessageExpiryInterval, packets.PropContentType,
				packets.PropResponseTopic, packets.PropCorrelationData, packets.PropUser)
			if err != nil {
				return err
			}
		}
		if b, ok = cutText(b); !ok {
			return errMalformed
		}
		if _, b, ok = cutBytes(b); !ok {
			return errMalformed
		}
	}
	if flags&0x80 != 0 {
		if b, ok = cutText(b); !ok {
			return errMalformed
		}
	}
	if flags&0x40 != 0 {
		if _, b, ok = cutBytes(b); !ok {
			return errMalformed
		}
	}
	if len(b) != 0 {
		return malformed("bytes after the payload")
	}
	return nil
}

// CheckSubscribe checks the body of a SUBSCRIBE.
func CheckSubscribe(version byte, b []byte) error {
	b, err := checkID(version, b, packets.PropSubscriptionIdentifier, packets.PropUser)
	if err != nil {
		return err
	}
	n, ok := 0, false
	for ; len(b) > 0; n++ {
		if b, ok = cutText(b); !ok || len(b) == 0 {
			return errMalformed
		}
		opt := b[0]
		b = b[1:]
		if opt&3 == 3 || (version < 5 && opt > 2) || opt&0xC0 != 0 || opt>>4&3 == 3 {
			return malformed("subscription options") // [MQTT-3.8.3-5]
		}
	}
	return filterCount(n)
}

// CheckUnsubscribe checks the body of an UNSUBSCRIBE.
func CheckUnsubscribe(version byte, b []byte) error {
	b, err := checkID(version, b, packets.PropUser)
	if err != nil {
		return err
	}
	n, ok := 0, false
	for ; len(b) > 0; n++ {
		if b, ok = cutText(b); !ok {
			return errMalformed
		}
	}
	return filterCount(n)
}

func filterCount(n int) error {
	switch {
	case n == 0:
		return &FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "no filter"} // [MQTT-3.8.3-2]
	case n > maxFilters:
		return &FrameError{Code: packets.ErrPacketTooLarge.Code, Reason: "more than 1,024 filters"}
	}
	return nil
}

// checkID checks packet id and properties and returns what follows.
func checkID(version byte, b []byte, allowed ...byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, errMalformed
	}
	if binary.BigEndian.Uint16(b) == 0 {
		return nil, malformed("packet id 0")
	}
	b = b[2:]
	if version < 5 {
		return b, nil
	}
	props, b, ok := cutProps(b)
	if !ok {
		return nil, errMalformed
	}
	return b, checkProps(props, allowed...)
}

// CheckDisconnect checks the body of a DISCONNECT.
func CheckDisconnect(version byte, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if version < 5 {
		return malformed("DISCONNECT has a body")
	}
	switch b[0] {
	case 0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99:
	default:
		return errProtocol
	}
	if len(b) == 1 {
		return nil
	}
	props, rest, ok := cutProps(b[1:])
	if !ok || len(rest) != 0 {
		return errMalformed
	}
	return checkProps(props, packets.PropSessionExpiryInterval, packets.PropReasonString, packets.PropUser)
}

// CheckAuth checks the body of an AUTH.
func CheckAuth(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if b[0] != 0x00 && b[0] != 0x18 && b[0] != 0x19 {
		return errProtocol
	}
	if len(b) == 1 {
		return malformed("AUTH without properties")
	}
	props, rest, ok := cutProps(b[1:])
	if !ok || len(rest) != 0 {
		return errMalformed
	}
	return checkProps(props, packets.PropAuthenticationMethod, packets.PropAuthenticationData, packets.PropReasonString, packets.PropUser)
}

// ParseAck parses the body of a PUBACK, PUBREC, PUBREL or PUBCOMP.
func ParseAck(version byte, b []byte) (id uint16, reason byte, err error) {
	if len(b) < 2 || (version < 5 && len(b) != 2) {
		return 0, 0, errMalformed
	}
	if id = binary.BigEndian.Uint16(b); id == 0 {
		return 0, 0, malformed("packet id 0")
	}
	if len(b) == 2 {
		return id, 0, nil
	}
	reason = b[2]
	if len(b) > 3 {
		props, rest, ok := cutProps(b[3:])
		if !ok || len(rest) != 0 {
			return 0, 0, errMalformed
		}
		if len(props) > 0 {
			err = checkProps(props, packets.PropReasonString, packets.PropUser)
		}
	}
	return id, reason, err
}

func cutBytes(b []byte) (val, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(b[0])<<8 | int(b[1])
	if len(b)-2 < n {
		return nil, nil, false
	}
	return b[2 : 2+n : 2+n], b[2+n:], true
}

func cutText(b []byte) (rest []byte, ok bool) {
	v, rest, ok := cutBytes(b)
	return rest, ok && validText(v)
}

func cutProps(b []byte) (props, rest []byte, ok bool) {
	n, used, ok := varint(b)
	if !ok || len(b)-used < n {
		return nil, nil, false
	}
	return b[used : used+n], b[used+n:], true
}

func varint(b []byte) (n, used int, ok bool) {
	for i := 0; i < 4 && i < len(b); i++ {
		n |= int(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return n, i + 1, i == 0 || b[i] != 0
		}
	}
	return 0, 0, false
}

// validText accepts an MQTT UTF-8 string: well-formed, no U+0000 [MQTT-1.5.4-1,
// 1.5.4-2]. ASCII goes fast.
func validText(b []byte) bool {
	for i, c := range b {
		if c == 0 {
			return false
		}
		if c >= utf8.RuneSelf {
			return utf8.Valid(b[i:]) && !hasNUL(b[i:])
		}
	}
	return true
}

func hasNUL(b []byte) bool {
	for _, c := range b {
		if c == 0 {
			return true
		}
	}
	return false
}

// emptyWill finds, in a checked CONNECT, a will without payload, and returns the
// offset of its payload's length; 0 if there is none.
func emptyWill(frame []byte) int {
	head, _, _ := HeaderLen(frame)
	b := frame[head:]
	_, b, _ = cutBytes(b)
	version, flags := b[0], b[1]
	if flags&4 == 0 {
		return 0
	}
	b = b[4:]
	if version == 5 {
		_, b, _ = cutProps(b)
	}
	_, b, _ = cutBytes(b) // client id
	if version == 5 {
		_, b, _ = cutProps(b)
	}
	_, b, _ = cutBytes(b) // topic
	if b[0] != 0 || b[1] != 0 {
		return 0
	}
	return len(frame) - len(b)
}

// fillWill gives an empty will one byte of payload. mochi takes a will without
// payload for a protocol error, which it is not [MQTT-3.1.3-10 of 3.1.1].
func fillWill(frame []byte, at int) []byte {
	head, total, _ := HeaderLen(frame)
	out := AppendVarint([]byte{frame[0]}, total-head+1)
	out = append(out, frame[head:at]...)
	out = append(out, 0, 1, 0)
	return append(out, frame[at+2:]...)
}
