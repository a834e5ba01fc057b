package im

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func TestEnvelope(t *testing.T) {
	base := Entry{Seq: 7, From: "alice", TS: 1790000000000}
	for _, tt := range []struct {
		why  string
		edit func(*Entry)
		want string
	}{
		{"a text without a type", func(e *Entry) { e.Body = []byte("lunch?") }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"text/plain","text":"lunch?"}`},
		{"with the sender's id", func(e *Entry) { e.ID = `a"b`; e.Body = []byte("x") }, `{"seq":7,"from":"alice","ts":1790000000000,"id":"a\"b","type":"text/plain","text":"x"}`},
		{"quotes, newlines and controls", func(e *Entry) { e.Body = []byte("a\"\\\n\x1b") }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"text/plain","text":"a\"\\\n\u001b"}`},
		{"an untyped object", func(e *Entry) { e.Body = []byte(`{"a":1}`) }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"application/json","json":{"a":1}}`},
		{"an untyped number is a text", func(e *Entry) { e.Body = []byte(`42`) }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"text/plain","text":"42"}`},
		{"a number typed as JSON", func(e *Entry) { e.Type = "application/json"; e.Body = []byte(`42`) }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"application/json","json":42}`},
		{"an object typed as text", func(e *Entry) { e.Type = "text/plain"; e.Body = []byte(`{}`) }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"text/plain","text":"{}"}`},
		{"a picture", func(e *Entry) { e.Type = "image/png"; e.Body = []byte{0x89, 'P'} }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"image/png","data":"iVA="}`},
		{"bytes without a type", func(e *Entry) { e.Body = []byte{0xff} }, `{"seq":7,"from":"alice","ts":1790000000000,"data":"/w=="}`},
		{"JSON that is none", func(e *Entry) { e.Type = "application/json"; e.Body = []byte(`{`) }, `{"seq":7,"from":"alice","ts":1790000000000,"type":"application/json","data":"ew=="}`},
		{"an edit", func(e *Entry) { e.Op, e.Ref, e.Body = OpEdit, 3, []byte("y") }, `{"seq":7,"from":"alice","ts":1790000000000,"op":"edit","ref":3,"type":"text/plain","text":"y"}`},
		{"recalled", func(e *Entry) { e.Flags = FlagRecalled }, `{"seq":7,"from":"alice","ts":1790000000000,"recalled":true}`},
		{"an event", func(e *Entry) { e.Op, e.Event, e.Body = OpEvent, "member-added", []byte(`{"user":"bob"}`) }, `{"seq":7,"from":"alice","ts":1790000000000,"event":"member-added","type":"application/json","json":{"user":"bob"}}`},
	} {
		e := base
		tt.edit(&e)
		if got := string(AppendEnvelope(nil, &e)); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.why, got, tt.want)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add("text/plain", "id", []byte("hello"))
	f.Add("", "", []byte(`[1,2]`))
	f.Add("application/json; charset=utf-8", "\xff", []byte("\xf0\x9f\x98\x80\xff\u2028"))
	f.Fuzz(func(t *testing.T, typ, id string, body []byte) {
		b := AppendEnvelope(nil, &Entry{Seq: 1, From: "a", Type: typ, ID: id, Body: body})
		var got struct {
			Text *string
			JSON json.RawMessage
			Data []byte
		}
		if !utf8.Valid(b) {
			t.Fatalf("not UTF-8: %q", b)
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if got.Text != nil && *got.Text != string(body) {
			t.Fatalf("text %q, body %q", *got.Text, body)
		}
		if got.Text == nil && got.JSON == nil && string(got.Data) != string(body) {
			t.Fatalf("data %q, body %q", got.Data, body)
		}
	})
}

// TestJSONStrings puts every byte at every place of a text: it comes back as it
// was, or as U+FFFD where it was no UTF-8, and what need not be escaped is not.
func TestJSONStrings(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			in := bytes.Repeat([]byte("z"), 20)
			in[at] = byte(c)
			out := AppendJSONString(nil, string(in))
			var back string
			if err := json.Unmarshal(out, &back); err != nil || back != string([]rune(string(in))) {
				t.Fatalf("%q came back as %q from %s: %v", in, back, out, err)
			}
			escaped := c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf
			if !escaped && len(out) != len(in)+2 {
				t.Fatalf("%q was written as %s", in, out)
			}
		}
	}
	if out := AppendJSONString(nil, "grüße, 世界 \"\\\x00\n"); string(out) != `"grüße, 世界 \"\\\u0000\n"` {
		t.Errorf("%s", out)
	}
}

func BenchmarkEnvelope(b *testing.B) {
	e := &Entry{Seq: 12345, From: "alice", TS: 1790000000000, Body: bytes.Repeat([]byte("a text of many words "), 5)}
	var buf []byte
	for b.Loop() {
		buf = AppendEnvelope(buf[:0], e)
	}
	b.SetBytes(int64(len(buf)))
}
