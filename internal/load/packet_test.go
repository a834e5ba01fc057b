package load

import (
	"encoding/base64"
	"testing"
	"time"
)

func TestHeaderSurvives(t *testing.T) {
	h := header{run: 1<<20 - 1, n: 1<<35 - 1, at: 1<<50 - 1}
	b := newPayload(100)
	h.put(b)
	for why, wrapped := range map[string]string{
		"bare":           string(b),
		"in an envelope": `{"seq":7,"from":"alice","ts":1790000000000,"type":"text/plain","text":"` + string(b) + `"}`,
	} {
		if got, ok := readHeader([]byte(wrapped)); !ok || got != h {
			t.Errorf("%s: %+v %v", why, got, ok)
		}
	}
	for why, no := range map[string]string{
		"empty": "", "short": string(b[:headerLen-1]), "another text": "hello, this is a message that somebody else wrote",
		"an event": `{"seq":1,"user":"bob","event":"joined"}`, "data": `{"seq":1,"data":"` + base64.StdEncoding.EncodeToString(b) + `"}`,
		"a digit that is none": "~z" + string(b[2:]),
	} {
		if _, ok := readHeader([]byte(no)); ok {
			t.Errorf("%s: has a header", why)
		}
	}
	if len(newPayload(0)) != minPayload {
		t.Error("a payload must have room for a header")
	}
}

func TestPublishRoundTrip(t *testing.T) {
	for _, v5 := range []bool{false, true} {
		c := &conn{v5: v5}
		c.publish("dm/bob", 513, []byte("lunch?"))
		d, err := parsePublish(c.out[0], c.out[2:], v5)
		if err != nil || string(d.topic) != "dm/bob" || d.id != 513 || string(d.payload) != "lunch?" || d.dup {
			t.Errorf("v5 %v: %+v %v", v5, d, err)
		}
	}
}

func TestUserProperty(t *testing.T) {
	props := []byte{0x01, 1, 0x02, 0, 0, 0, 9, 0x03, 0, 1, 'x', 0x08, 0, 0, 0x09, 0, 2, 1, 2, 0x0b, 0x80, 1, 0x23, 0, 1,
		0x26, 0, 2, 't', 's', 0, 1, '5', 0x26, 0, 3, 's', 'e', 'q', 0, 2, '4', '2'}
	if v, err := userProperty(props, "seq"); v != "42" || err != nil {
		t.Errorf("%q %v", v, err)
	}
	if v, err := userProperty(props, "id"); v != "" || err != nil {
		t.Errorf("absent: %q %v", v, err)
	}
	for n := range props {
		_, _ = userProperty(props[:n], "seq") // must not panic
	}
	if _, err := userProperty([]byte{0x11}, "seq"); err == nil {
		t.Error("Session Expiry does not belong into a PUBACK")
	}
	body := append([]byte{2, 1, 0, byte(len(props))}, props...)
	id, code, got, err := ackOf(body, true)
	if id != 513 || code != 0 || len(got) != len(props) || err != nil {
		t.Errorf("%d %d %x %v", id, code, got, err)
	}
}

// FuzzPackets: whatever a server sends, the tool does not fall over it.
func FuzzPackets(f *testing.F) {
	c := &conn{v5: true}
	c.publish("dm/bob", 513, []byte("lunch?"))
	f.Add(byte(publish<<4|2), c.out[2:])
	f.Add(byte(puback<<4), []byte{2, 1, 0, 10, 0x26, 0, 3, 's', 'e', 'q', 0, 2, '4', '2'})
	f.Add(byte(publish<<4), []byte{0, 1, 'a', '{', '"', 't'})
	f.Fuzz(func(_ *testing.T, first byte, body []byte) {
		for _, v5 := range []bool{false, true} {
			if d, err := parsePublish(first, body, v5); err == nil {
				readHeader(d.payload)
				_, _ = userProperty(d.props, "seq")
			}
			if _, _, props, err := ackOf(body, v5); err == nil {
				_, _ = userProperty(props, "seq")
			}
		}
	})
}

func TestNowRises(t *testing.T) {
	if a, b := now(), now(); b < a || a < 0 || a > 24*time.Hour {
		t.Errorf("%s, %s", a, b)
	}
}
