package im

import (
	"strings"
	"testing"
)

func TestShownName(t *testing.T) {
	for _, c := range []struct {
		why, name string
		ok        bool
	}{
		{"a name", "Alice", true}, {"two words", "Alice Ålesund", true}, {"another script", "アリス", true}, {"right to left, with a mark", "\u200fעליזה", true},
		{"an emoji of several characters", "👩‍👩‍👧", true}, {"combining marks", "e\u0301", true}, {"the longest", strings.Repeat("n", 128), true},
		{"nothing", "", false}, {"spaces", " \u00a0", false}, {"nothing to see", "\u200b\u200d", false}, {"longer", strings.Repeat("n", 129), false},
		{"two lines", "a\nb", false}, {"a line separator", "a\u2028b", false}, {"a zero byte", "a\x00", false}, {"an escape to the terminal", "\x1b[2J", false}, {"a C1 control", "a\u009bb", false},
		{"a text turned around", "a\u202eb", false}, {"an isolate", "a\u2066b", false}, {"no UTF-8", "a\xff", false},
	} {
		if ShownName(c.name) != c.ok {
			t.Errorf("%s: %q is taken: %v", c.why, c.name, !c.ok)
		}
	}
}
