package httpapi

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCheckJSON(t *testing.T) {
	for _, c := range []struct {
		why, doc string
		ok       bool
	}{
		{"an object", `{"a":1,"b":[1,2,{"a":null}],"c":{"a":"b"}}`, true},
		{"the same name at two levels, or in two objects, is two names", `{"a":{"a":1},"b":[{"a":1},{"a":2}]}`, true},
		{"a value that equals a name is no name", `{"a":"b","b":"a","c":["a","a"]}`, true},
		{"a lone value", ` "x" `, true},
		{"a field twice", `{"a":1,"a":1}`, false},
		{"a field twice, once escaped", `{"a":1,"\u0061":1}`, false},
		{"a field twice, deep", `[{"x":{"b":1,"c":[],"b":2}}]`, false},
		{"nothing", ``, false},
		{"half a document", `{"a":`, false},
		{"two documents", `{} {}`, false},
		{"garbage behind", `{}x`, false},
		{"no JSON", `a=b`, false},
		{"nested too deep", strings.Repeat("[", 40) + strings.Repeat("]", 40), false},
	} {
		if err := checkJSON([]byte(c.doc)); (err == nil) != c.ok {
			t.Errorf("%s: %s: got %v", c.why, c.doc, err)
		}
	}
}

// What checkJSON accepts, encoding/json accepts too, and it never panics.
func FuzzCheckJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,{"b":2}],"c":"d"}`, `[[[]]]`, `{"a":1,"a":2}`, `"x`, `}`, `{]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if checkJSON(doc) == nil && !json.Valid(doc) {
			t.Errorf("accepted %q, which is no JSON", doc)
		}
	})
}
