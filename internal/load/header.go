package load

import (
	"bytes"
	"math/rand/v2"
	"time"
)

// header stands at the front of each payload. It is text, so that it survives an
// envelope of JSON: "~", run (4), number (7) and time (10) in base 32, ".".
type header struct {
	run uint32        // which run sent it; anything else is left over from another
	n   int64         // from 1, in the order of one sender
	at  time.Duration // when it was meant to be sent, on the clock of now
}

const headerLen = 23

// Payloads are never shorter than this, in bytes.
const minPayload = headerLen

// began is the origin of the clock that headers and latencies use.
var began = time.Now()

// now is the monotonic time since the process began.
func now() time.Duration { return time.Since(began) }

// newRun draws the number of a run.
func newRun() uint32 { return rand.Uint32N(1 << 20) }

// newPayload makes a body of n bytes that has room for a header.
func newPayload(n int) []byte {
	b := make([]byte, max(n, minPayload))
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return b
}

func (h header) put(b []byte) {
	b[0], b[headerLen-1] = '~', '.'
	put32(b[1:5], uint64(h.run))
	put32(b[5:12], uint64(h.n))
	put32(b[12:22], uint64(h.at))
}

func put32(b []byte, v uint64) {
	const digits = "0123456789abcdefghijklmnopqrstuv"
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = digits[v&31]
		v >>= 5
	}
}

// readHeader finds the header of a payload, bare or in an envelope.
func readHeader(b []byte) (h header, ok bool) {
	if len(b) > 0 && b[0] == '{' {
		const key = `"text":"`
		i := bytes.Index(b, []byte(key+"~"))
		if i < 0 {
			return h, false
		}
		b = b[i+len(key):]
	}
	if len(b) < headerLen || b[0] != '~' || b[headerLen-1] != '.' {
		return h, false
	}
	run, ok1 := get32(b[1:5])
	n, ok2 := get32(b[5:12])
	at, ok3 := get32(b[12:22])
	return header{run: uint32(run), n: int64(n), at: time.Duration(at)}, ok1 && ok2 && ok3
}

func get32(b []byte) (v uint64, ok bool) {
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			v = v<<5 | uint64(c-'0')
		case c >= 'a' && c <= 'v':
			v = v<<5 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}
