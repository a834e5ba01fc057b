package im

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// AppendEnvelope appends e's JSON envelope to dst: what an MQTT 3.1.1 client
// receives as payload and what the history returns. A UTF-8 text is "text", a
// JSON document is "json" verbatim, all else is "data" in base64.
func AppendEnvelope(dst []byte, e *Entry) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, uint64(e.Seq), 10)
	if e.From != "" {
		dst = append(dst, `,"from":"`...)
		dst = append(dst, e.From...) // [a-z0-9._-]: nothing to escape
		dst = append(dst, '"')
	}
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, e.TS, 10)
	if e.ID != "" {
		dst = append(dst, `,"id":`...)
		dst = AppendJSONString(dst, e.ID)
	}
	if op := e.Op.String(); op != "" {
		dst = append(dst, `,"op":"`...)
		dst = append(dst, op...)
		dst = append(dst, `","ref":`...)
		dst = strconv.AppendUint(dst, uint64(e.Ref), 10)
	}
	if e.Event != "" {
		dst = append(dst, `,"event":`...)
		dst = AppendJSONString(dst, e.Event)
	}
	if e.Flags&FlagRecalled != 0 {
		return append(dst, `,"recalled":true}`...)
	}
	return append(appendBody(dst, e), '}')
}

func appendBody(dst []byte, e *Entry) []byte {
	kind := bodyKind(e)
	typ := e.Type
	if typ == "" {
		typ = kind.defaultType
	}
	if typ != "" {
		dst = append(dst, `,"type":`...)
		dst = AppendJSONString(dst, typ)
	}
	dst = append(dst, kind.field...)
	switch kind.field {
	case jsonBody.field:
		return append(dst, e.Body...)
	case textBody.field:
		return appendJSON(dst, e.Body)
	}
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, e.Body)
	return append(dst, '"')
}

type bodyForm struct{ field, defaultType string }

var (
	textBody = bodyForm{`,"text":`, "text/plain"}
	jsonBody = bodyForm{`,"json":`, "application/json"}
	dataBody = bodyForm{`,"data":`, ""}
)

// bodyKind decides how an envelope shows a body. An untyped body is JSON only
// when it is an object or array: "42" typed by a person is a text.
func bodyKind(e *Entry) bodyForm {
	if !utf8.Valid(e.Body) {
		return dataBody
	}
	typ, _, _ := strings.Cut(strings.ToLower(e.Type), ";")
	typ = strings.TrimSpace(typ)
	switch {
	case strings.HasPrefix(typ, "text/"):
		return textBody
	case typ == "application/json" || strings.HasSuffix(typ, "+json"):
		if json.Valid(e.Body) {
			return jsonBody
		}
	case typ == "":
		if b := bytes.TrimLeft(e.Body, " \t\r\n"); len(b) > 0 && (b[0] == '{' || b[0] == '[') && json.Valid(b) {
			return jsonBody
		}
		return textBody
	}
	return dataBody
}

// AppendJSONString appends s as a JSON string. Invalid UTF-8 becomes U+FFFD.
func AppendJSONString(dst []byte, s string) []byte { return appendJSON(dst, []byte(s)) }

func appendJSON(dst, s []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for {
		n := plain(s)
		dst = append(dst, s[:n]...)
		if s = s[n:]; len(s) == 0 {
			return append(dst, '"')
		}
		n = 1
		switch c := s[0]; {
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRune(s)
			if r == utf8.RuneError && size == 1 {
				dst = append(dst, `\ufffd`...)
			} else {
				dst, n = append(dst, s[:size]...), size
			}
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		s = s[n:]
	}
}

// plain returns how many bytes at the front of s are ASCII that JSON writes as it
// is, looking at eight at a time: each message to a 3.1.1 client goes through here.
func plain(s []byte) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	n := 0
	for ; n+8 <= len(s); n += 8 {
		w := binary.LittleEndian.Uint64(s[n:])
		// The high bit of a byte is set if the byte is not ASCII, below 0x20, a quote
		// or a backslash. A borrow may set it in a byte above one that is, too, which
		// does no harm: the first is what counts.
		quote, slash := w^('"'*ones), w^('\\'*ones)
		odd := (w | (w - 0x20*ones) | (quote - ones) | (slash - ones)) & highs
		if odd != 0 {
			return n + bits.TrailingZeros64(odd)/8
		}
	}
	for ; n < len(s); n++ {
		if c := s[n]; c < 0x20 || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			break
		}
	}
	return n
}
