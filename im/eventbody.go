package im

import "strconv"

// AppendEventBody appends the body of an account event as devices see it:
// {"seq":…,"ts":…, and what e.Body, a JSON object, has}. seq and ts are known
// only after the commit, so they are not in the log.
func AppendEventBody(dst []byte, e *Entry) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, uint64(e.Seq), 10)
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, e.TS, 10)
	if len(e.Body) <= 2 || e.Body[0] != '{' {
		return append(dst, '}')
	}
	return append(append(dst, ','), e.Body[1:]...)
}
