package pushgw

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/parley-im/parley/im"
)

// The keys that an app translates. Their arguments are names, or a count.
const (
	LocMessage  = "PARLEY_MESSAGE"  // a message from %1
	LocMessages = "PARLEY_MESSAGES" // %2 messages from %1
	LocGroup    = "PARLEY_GROUP"    // %1 wrote in %2
	LocNew      = "PARLEY_NEW"      // there is a message
	LocSealed   = "PARLEY_SEALED"   // %1 sent something that is encrypted
	LocOther    = "PARLEY_OTHER"    // %1 sent something that is no text
	LocCall     = "PARLEY_CALL"     // %1 calls
)

// Sound and Category of an alert, as the app knows them.
const (
	alertSound      = "default"
	messageCategory = "PARLEY_MESSAGE"
)

// maxSealed is the largest encrypted body that travels with a push: with base64
// and the rest it stays below 4 KB.
const maxSealed = 2560

// previewRunes is how much of a text is shown.
const previewRunes = 160

// scene is what render needs to know.
type scene struct {
	bell    *bell
	to      Address
	entry   *im.Entry // of Last; nil: it is gone
	sender  string    // display name
	group   string    // the group's name; "" in a DM
	privacy string
	badge   int
	known   bool // badge is
	sealed  bool // the body is encrypted end to end
}

// render makes a push of a bell. Small says less: 1 without the text, 2 without
// anything but the ids.
func render(s scene) *Push {
	b := s.bell
	p := &Push{
		ID: pushID(b, s.to), To: s.to, Kind: b.Kind, Collapse: collapse(b.key.conv), Thread: thread(b.key), Expires: time.UnixMilli(b.Expires), Badge: s.badge, SetBadge: s.known,
		Data: map[string]string{"conv": b.key.conv.Topic(b.key.dev.User), "seq": strconv.FormatUint(uint64(b.Last), 10)},
	}
	if b.Kind == Clear {
		p.Data["read"] = p.Data["seq"]
		return p
	}
	privacy := s.privacy
	if b.Small >= 2 {
		privacy = PrivacyIDOnly
	}
	p.Sound, p.Category = alertSound, messageCategory
	if s.entry != nil && s.entry.ID != "" && privacy != PrivacyIDOnly {
		p.Data["id"] = s.entry.ID
	}
	if privacy == PrivacyFull || privacy == PrivacySender {
		p.Data["from"] = string(b.From)
	}
	words(s, p, privacy)
	if s.sealed && s.entry != nil && b.Small == 0 && privacy != PrivacyIDOnly && len(s.entry.Body) <= maxSealed {
		p.Data["sealed"] = base64.StdEncoding.EncodeToString(s.entry.Body)
		p.Mutable = true
	}
	if privacy == PrivacyIDOnly {
		p.Mutable = true // the app fetches the message and writes the text itself
	}
	return p
}

// words puts the text in.
func words(s scene, p *Push, privacy string) {
	b := s.bell
	if b.Kind == Call {
		p.BodyKey, p.BodyArgs = LocCall, []string{s.sender}
		p.Data["call"] = "1"
		return
	}
	if privacy == PrivacyNone || privacy == PrivacyIDOnly {
		p.BodyKey = LocNew
		return
	}
	p.Title = s.sender
	if s.group != "" {
		p.Title = s.group
	}
	text := ""
	if privacy == PrivacyFull && b.Small == 0 && s.entry != nil && !s.sealed && isText(s.entry) {
		text = preview(s.entry.Body)
	}
	switch {
	case text != "" && s.group != "":
		p.Body = s.sender + ": " + text
	case text != "":
		p.Body = text
	case s.group != "":
		p.BodyKey, p.BodyArgs = LocGroup, []string{s.sender, s.group}
	case b.Count > 1:
		p.BodyKey, p.BodyArgs = LocMessages, []string{s.sender, strconv.Itoa(b.Count)}
	case s.sealed:
		p.BodyKey, p.BodyArgs = LocSealed, []string{s.sender}
	case s.entry != nil && !isText(s.entry):
		p.BodyKey, p.BodyArgs = LocOther, []string{s.sender}
	default:
		p.BodyKey, p.BodyArgs = LocMessage, []string{s.sender}
	}
}

func isText(e *im.Entry) bool {
	return (e.Type == "" || strings.HasPrefix(e.Type, "text/")) && utf8.Valid(e.Body)
}

// preview is the beginning of a text on one line.
func preview(body []byte) string {
	var out strings.Builder
	n, space := 0, false
	for _, r := range string(body) {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			space = n > 0
			continue
		}
		if n == previewRunes {
			out.WriteRune('…')
			break
		}
		if space {
			out.WriteByte(' ')
			space = false
		}
		out.WriteRune(r)
		n++
	}
	return out.String()
}

// collapse is the same for all pushes of a conversation: the newer replaces the
// older on screen. It tells a provider nothing.
func collapse(conv im.ConvID) string {
	h := sha256.Sum256([]byte("collapse\x00" + conv))
	return base64.RawURLEncoding.EncodeToString(h[:21])
}

// thread groups what is shown, and is the device's alone.
func thread(k slotKey) string {
	h := sha256.Sum256([]byte("thread\x00" + k.name()))
	return base64.RawURLEncoding.EncodeToString(h[:12])
}

// pushID is the UUID of the push for a bell up to a message: whoever computes it
// again, after a crash too, gets the same, so that a provider that has it already
// takes it for the same.
func pushID(b *bell, to Address) string {
	once := int64(0)
	if b.Kind == Call { // it stands for no message
		once = b.Expires
	}
	h := sha256.Sum256(fmt.Appendf(nil, "push\x00%s\x00%d\x00%d\x00%d\x00%s", b.key.name(), b.Kind, b.Last, once, to.Token))
	u := h[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // version 8, RFC 9562
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
