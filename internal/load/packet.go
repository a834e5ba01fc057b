package load

import (
	"encoding/binary"
	"errors"
	"io"
)

// delivery is a PUBLISH that came in; its slices are valid until the next read.
type delivery struct {
	topic, payload, props []byte
	id                    uint16 // 0 at QoS 0
	dup                   bool
}

// parsePublish splits the body of a PUBLISH at QoS 0 or 1.
func parsePublish(first byte, body []byte, v5 bool) (d delivery, err error) {
	if len(body) < 2 {
		return d, io.ErrUnexpectedEOF
	}
	at := 2 + int(binary.BigEndian.Uint16(body))
	if len(body) < at {
		return d, io.ErrUnexpectedEOF
	}
	d.topic, d.dup = body[2:at], first&8 != 0
	if first&6 != 0 {
		if len(body) < at+2 {
			return d, io.ErrUnexpectedEOF
		}
		d.id = binary.BigEndian.Uint16(body[at:])
		at += 2
	}
	if d.payload = body[at:]; v5 {
		d.props, d.payload, err = splitProperties(d.payload)
	}
	return d, err
}

// ackOf is the packet id of a PUBACK, its reason code and properties.
func ackOf(body []byte, v5 bool) (id uint16, code byte, props []byte, err error) {
	if len(body) < 2 {
		return 0, 0, nil, io.ErrUnexpectedEOF
	}
	id = binary.BigEndian.Uint16(body)
	if v5 && len(body) > 2 {
		code = body[2]
		if len(body) > 3 {
			props, _, err = splitProperties(body[3:])
		}
	}
	return id, code, props, err
}

// splitProperties takes the properties of MQTT 5 off the front of b [MQTT-2.2.2].
func splitProperties(b []byte) (props, rest []byte, err error) {
	n, used := binary.Uvarint(b) // the encoding of a variable byte integer is the same
	if used <= 0 || uint64(len(b)-used) < n {
		return nil, nil, io.ErrUnexpectedEOF
	}
	return b[used : used+int(n)], b[used+int(n):], nil
}

var errProperty = errors.New("a property that does not belong there")

// userProperty finds a user property; "" if it is not there.
func userProperty(props []byte, key string) (string, error) {
	str := func() (s []byte, ok bool) {
		if len(props) < 2 {
			return nil, false
		}
		n := 2 + int(binary.BigEndian.Uint16(props))
		if len(props) < n {
			return nil, false
		}
		s, props = props[2:n], props[n:]
		return s, true
	}
	for len(props) > 0 {
		id := props[0]
		props = props[1:]
		skip, ok := 0, true
		switch id { // the properties that PUBLISH and PUBACK may carry
		case 0x26:
			k, ok1 := str()
			v, ok2 := str()
			if ok = ok1 && ok2; ok && string(k) == key {
				return string(v), nil
			}
		case 0x03, 0x08, 0x09, 0x1f:
			_, ok = str()
		case 0x0b:
			_, skip = binary.Uvarint(props)
			ok = skip > 0
		case 0x01:
			skip = 1
		case 0x23:
			skip = 2
		case 0x02:
			skip = 4
		default:
			return "", errProperty
		}
		if !ok || len(props) < skip {
			return "", io.ErrUnexpectedEOF
		}
		props = props[skip:]
	}
	return "", nil
}
