package im

import (
	"unicode"
	"unicode/utf8"
)

// MaxName is the longest name of a user or group that is shown to people, in bytes.
const MaxName = 128

// ShownName reports whether s may be shown to people as the name of a user or a
// group: one line of text with something to see in it, of at most MaxName bytes,
// and without the characters that turn around the text beside it (UTS #39, 5.4),
// by which a name could look like another or like what is said about it.
func ShownName(s string) bool {
	if len(s) > MaxName || !utf8.ValidString(s) {
		return false
	}
	seen := false
	for _, r := range s {
		switch {
		case unicode.IsControl(r), unicode.In(r, unicode.Zl, unicode.Zp),
			r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069':
			return false
		case unicode.IsGraphic(r) && !unicode.IsSpace(r):
			seen = true
		}
	}
	return seen
}
