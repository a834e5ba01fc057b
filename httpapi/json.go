package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// strictJSON is the one format spoken. A field given twice is refused: two
// readers of the same document must never see two different requests.
var strictJSON = huma.Format{
	Marshal: huma.DefaultJSONFormat.Marshal,
	Unmarshal: func(data []byte, v any) error {
		// Huma decodes twice: first into an any, to validate, then into the
		// input. The first time is enough to look for doubles.
		if _, first := v.(*any); first {
			if err := checkJSON(data); err != nil {
				return err
			}
		}
		err := json.Unmarshal(data, v)
		if _, first := v.(*any); first && err != nil {
			return errors.New("a number is out of range") // json's words repeat it, and name Go's types
		}
		return err
	},
}

// checkJSON accepts exactly one JSON document whose objects name no field
// twice. Its errors repeat no value.
func checkJSON(data []byte) error {
	if !utf8.Valid(data) { // the decoder would put U+FFFD in its place [RFC 8259, 8.1]
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := checkValue(d); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return fmt.Errorf("not a JSON document (byte %d)", d.InputOffset())
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("something follows the JSON document (byte %d)", d.InputOffset())
	}
	return nil
}

// maxJSONDepth is far beyond what any operation takes.
const maxJSONDepth = 32

func checkValue(d *json.Decoder) error {
	var open []map[string]bool // the keys seen at each level; nil for an array
	atKey := false
	for {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		name, isString := tok.(string)
		isKey := atKey && isString
		switch {
		case tok == json.Delim('{'):
			open = append(open, map[string]bool{})
		case tok == json.Delim('['):
			open = append(open, nil)
		case tok == json.Delim('}') || tok == json.Delim(']'):
			open = open[:len(open)-1]
		case isKey && open[len(open)-1][name]:
			return fmt.Errorf("a field is given twice (byte %d)", d.InputOffset())
		case isKey:
			open[len(open)-1][name] = true
		}
		if len(open) == 0 {
			return nil
		}
		if len(open) > maxJSONDepth {
			return fmt.Errorf("nested deeper than %d levels", maxJSONDepth)
		}
		// In an object a key, or the end, follows whatever is not itself a key.
		atKey = open[len(open)-1] != nil && !isKey
	}
}
