package im

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
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
		return appendJSONBytes(dst, e.Body)
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
func AppendJSONString(dst []byte, s string) []byte { return appendJSON(dst, s) }

func appendJSONBytes(dst, b []byte) []byte { return appendJSON(dst, b) }

func appendJSON[T string | []byte](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	clean := 0 // s[clean:i] needs no escape
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = append(append(dst, s[clean:i]...), `\ufffd`...)
		} else {
			dst = append(dst, s[clean:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
		}
		i++
		clean = i
	}
	dst = append(dst, s[clean:]...)
	return append(dst, '"')
}
