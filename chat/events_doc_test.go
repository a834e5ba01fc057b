package chat

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEventsAreDocumented: client authors read docs/protocol.md, so every event
// has to be there.
func TestEventsAreDocumented(t *testing.T) {
	code, err := os.ReadFile("events.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^(?:const )?\s*ev\w+\s*=\s*"([a-z-]+)"`).FindAllStringSubmatch(string(code), -1)
	if len(names) < 15 {
		t.Fatalf("only %d events found", len(names))
	}
	for _, n := range names {
		if !strings.Contains(string(page), "`"+n[1]+"`") {
			t.Errorf("docs/protocol.md does not know the event %s", n[1])
		}
	}
}
