package broker

import (
	"encoding/binary"

	"github.com/mochi-mqtt/server/v2/packets"
)

// AppendVarint appends a Variable Byte Integer.
func AppendVarint(dst []byte, n int) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

// AppendString appends a UTF-8 string or binary data with its length.
func AppendString(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// AppendPuback appends a PUBACK, PUBREC, PUBREL or PUBCOMP. In MQTT 5 a seq
// above 0 goes along as user properties seq and ts, and a reason as Reason
// String, unless bare (Request Problem Information 0).
func AppendPuback(dst []byte, version, typ byte, id uint16, code byte, seq uint64, ts int64, reason string, bare bool) []byte {
	first := typ << 4
	if typ == packets.Pubrel {
		first |= 2
	}
	if version < 5 || (code == 0 && (seq == 0 || bare)) {
		return append(dst, first, 2, byte(id>>8), byte(id))
	}
	if bare {
		return append(dst, first, 3, byte(id>>8), byte(id), code)
	}
	var scratch [80]byte
	props := scratch[:0]
	if reason != "" {
		props = AppendString(append(props, packets.PropReasonString), reason)
	}
	if seq > 0 {
		props = appendNumbers(props, seq, ts)
	}
	n := 3 + len(props) + varintLen(len(props))
	dst = append(dst, first)
	dst = AppendVarint(dst, n)
	dst = append(dst, byte(id>>8), byte(id), code)
	dst = AppendVarint(dst, len(props))
	return append(dst, props...)
}

func varintLen(n int) int {
	l := 1
	for ; n >= 0x80; n >>= 7 {
		l++
	}
	return l
}

// AppendDisconnect appends a DISCONNECT; MQTT 3.1.1 has none from a server.
func AppendDisconnect(dst []byte, version, code byte, reason string) []byte {
	if version < 5 {
		return dst
	}
	var props []byte
	if reason != "" {
		props = AppendString([]byte{packets.PropReasonString}, reason)
	}
	dst = append(dst, packets.Disconnect<<4)
	dst = AppendVarint(dst, 1+varintLen(len(props))+len(props))
	dst = append(dst, code)
	dst = AppendVarint(dst, len(props))
	return append(dst, props...)
}

// AppendSuback appends a SUBACK.
func AppendSuback(dst []byte, version byte, id uint16, codes []byte) []byte {
	return appendSub(dst, packets.Suback, version, id, codes)
}

// AppendUnsuback appends an UNSUBACK; in MQTT 3.1.1 it has no codes.
func AppendUnsuback(dst []byte, version byte, id uint16, codes []byte) []byte {
	if version < 5 {
		codes = nil
	}
	return appendSub(dst, packets.Unsuback, version, id, codes)
}

func appendSub(dst []byte, typ, version byte, id uint16, codes []byte) []byte {
	n := 2 + len(codes)
	if version >= 5 {
		n++
	}
	dst = append(dst, typ<<4)
	dst = AppendVarint(dst, n)
	dst = append(dst, byte(id>>8), byte(id))
	if version >= 5 {
		dst = append(dst, 0)
	}
	return append(dst, codes...)
}
