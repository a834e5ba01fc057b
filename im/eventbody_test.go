package im

import (
	"encoding/json"
	"testing"
)

func TestAppendEventBody(t *testing.T) {
	for _, row := range []struct{ sentence, body, want string }{
		{"seq and ts come before what the event says", `{"user":"bob","message":"hi"}`, `{"seq":7,"ts":1790000000000,"user":"bob","message":"hi"}`},
		{"an event that says nothing has them alone", `{}`, `{"seq":7,"ts":1790000000000}`},
		{"as has one without a body", ``, `{"seq":7,"ts":1790000000000}`},
		{"and one that is no object", `"hello"`, `{"seq":7,"ts":1790000000000}`},
	} {
		got := AppendEventBody([]byte("x"), &Entry{Seq: 7, TS: 1_790_000_000_000, Body: []byte(row.body)})
		if string(got) != "x"+row.want {
			t.Errorf("%s: %s", row.sentence, got)
		}
		if !json.Valid(got[1:]) {
			t.Errorf("%s: not JSON", row.sentence)
		}
	}
}
