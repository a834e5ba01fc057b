package pushgw

import (
	"strings"
	"testing"
	"time"

	"github.com/parley-im/parley/im"
)

var noon = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

func TestEligible(t *testing.T) {
	base := facts{entry: &im.Entry{From: "bob", TS: noon.UnixMilli()}, user: "alice", now: noon, maxAge: time.Hour}
	soon := noon.Add(time.Minute).UnixMilli()
	for why, tt := range map[string]struct {
		change func(*facts)
		want   string
		goes   bool
	}{
		"a message":                       {func(*facts) {}, "message", true},
		"one's own":                       {func(f *facts) { f.user = "bob" }, "own_message", false},
		"registered later":                {func(f *facts) { f.registered = soon }, "registered_later", false},
		"old":                             {func(f *facts) { f.now = noon.Add(2 * time.Hour) }, "too_old", false},
		"none":                            {func(f *facts) { f.level.Level = LevelNone }, "level_none", false},
		"none, though mentioned":          {func(f *facts) { f.level.Level, f.mentioned = LevelNone, true }, "level_none", false},
		"muted":                           {func(f *facts) { f.level.Muted = soon }, "muted", false},
		"muted and mentioned":             {func(f *facts) { f.level.Muted, f.mentioned = soon, true }, "mentioned", true},
		"muted until a while ago":         {func(f *facts) { f.level.Muted = noon.UnixMilli() - 1 }, "message", true},
		"mentions only":                   {func(f *facts) { f.level.Level = LevelMentions }, "level_mentions", false},
		"mentions only, and mentioned":    {func(f *facts) { f.level.Level, f.mentioned = LevelMentions, true }, "mentioned", true},
		"a large group":                   {func(f *facts) { f.large = true }, "large_group", false},
		"a large group, mentioned":        {func(f *facts) { f.large, f.mentioned = true, true }, "mentioned", true},
		"a large group, all of it wanted": {func(f *facts) { f.large, f.level.Level = true, LevelAll }, "message", true},
	} {
		f := base
		tt.change(&f)
		if d := eligible(f); d != (Decision{tt.goes, tt.want}) {
			t.Errorf("%s: %+v, want %s", why, d, tt.want)
		}
	}
}

func TestCallee(t *testing.T) {
	for why, tt := range map[string]struct {
		c    callee
		want Decision
	}{
		"away":                       {callee{}, yes("call")},
		"only mentions are wanted":   {callee{level: LevelMentions}, yes("call")},
		"nothing is wanted":          {callee{level: LevelNone}, no("level_none")},
		"it has the signal itself":   {callee{connected: true}, no("connected")},
		"an address for alerts only": {callee{deaf: true}, no("not_for_calls")},
	} {
		if d := tt.c.rings(); d != tt.want {
			t.Errorf("%s: %+v", why, d)
		}
	}
}

func TestRinging(t *testing.T) {
	for want, e := range map[string]*im.Entry{
		"message":            {Conv: "d/a/b"},
		"not_a_message":      {Conv: "d/a/b", Op: im.OpReact},
		"recalled":           {Conv: "g/x", Flags: im.FlagRecalled},
		"not_a_conversation": {Conv: "u/a"},
	} {
		if d := ringing(e); d.Reason != want || d.Go != (want == "message") {
			t.Errorf("%+v, want %s", d, want)
		}
	}
}

func TestGraceAndDue(t *testing.T) {
	c := Grace{Online: 4 * time.Second, Active: 20 * time.Second}
	for p, want := range map[presence]time.Duration{{}: 0, {online: true}: 4 * time.Second, {active: true}: 20 * time.Second, {true, true}: 20 * time.Second} {
		if got, _ := c.of(p); got != want {
			t.Errorf("%+v: %s, want %s", p, got, want)
		}
	}
	for s, want := range map[seen]string{{last: 5}: "unseen", {last: 5, acked: 5}: "acknowledged", {last: 5, read: 7}: "read", {last: 5, acked: 4, read: 4}: "unseen"} {
		if d := s.due(); d.Reason != want || d.Go != (want == "unseen") {
			t.Errorf("%+v: %+v", s, d)
		}
	}
}

func TestQuietHours(t *testing.T) {
	night := &Quiet{From: "22:00", To: "07:00", Zone: "Europe/Berlin"} // UTC+2 in June
	for at, want := range map[string]bool{"19:59": false, "20:00": true, "23:00": true, "04:59": true, "05:00": false, "12:00": false} {
		hm, _ := time.Parse("15:04", at)
		now := time.Date(2030, 6, 1, hm.Hour(), hm.Minute(), 0, 0, time.UTC)
		if got := night.at(now); got != want {
			t.Errorf("%s UTC: %v", at, got)
		}
		if quiet(night, true, now).Go != true || quiet(night, false, now).Go != !want {
			t.Errorf("%s UTC: mentions ring, the rest does not", at)
		}
	}
	for at, want := range map[string]bool{ // the clocks go forward on March 31, 2030, and back on October 27, at 01:00 UTC
		"2030-03-30T20:59:00Z": false, "2030-03-30T21:00:00Z": true, "2030-03-31T04:59:00Z": true, "2030-03-31T05:00:00Z": false,
		"2030-10-26T19:59:00Z": false, "2030-10-26T20:00:00Z": true, "2030-10-27T05:59:00Z": true, "2030-10-27T06:00:00Z": false,
	} {
		now, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := night.at(now); got != want {
			t.Errorf("%s, a night in which the clocks change: %v", at, got)
		}
	}
	noonNap := &Quiet{From: "12:00", To: "13:00", Zone: "UTC"}
	if !noonNap.at(noon) || noonNap.at(noon.Add(time.Hour)) || (*Quiet)(nil).at(noon) || (&Quiet{From: "1", To: "1"}).at(noon) {
		t.Error("a nap at noon")
	}
	morning := &Quiet{From: "9:00", To: "17:00", Zone: "UTC"} // an hour of one digit passes Check
	if err := (&Settings{Quiet: morning}).Check(); err != nil || !morning.at(noon) || morning.at(noon.Add(-10*time.Hour)) || morning.at(noon.Add(8*time.Hour)) {
		t.Error("9:00 to 17:00 is a day", err)
	}
	for _, bad := range []Settings{{Privacy: "x"}, {Quiet: &Quiet{From: "25:00", To: "07:00", Zone: "UTC"}}, {Quiet: &Quiet{From: "22:00", To: "07:00", Zone: "Mars/Base"}}, {Quiet: &Quiet{From: "22:00", To: "07:00"}}, {Conv: map[im.ConvID]ConvLevel{"g/x": {Level: "loud"}}}} {
		if bad.Check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func TestMentions(t *testing.T) {
	for body, want := range map[string]string{
		"hi @bob, and @carol.":  "bob carol",
		"@Bob":                  "bob",
		"mail me: a@bob.org":    "",
		"(@dave-2)":             "dave-2",
		"@@eve @ @":             "eve",
		"@all look":             "*",
		`{"text":"for @frank"}`: "frank",
		"\xff@bob":              "",
	} {
		users, all := mentions(&im.Entry{Body: []byte(body)})
		got := map[im.UserID]bool{}
		for _, w := range strings.Fields(want) {
			if w != "*" {
				got[im.UserID(w)] = true
			}
		}
		if all != (want == "*") || len(users) != len(got) {
			t.Errorf("%q: %v %v", body, users, all)
		}
		for u := range got {
			if !users[u] {
				t.Errorf("%q does not name %s: %v", body, u, users)
			}
		}
	}
	if u, _ := mentions(&im.Entry{Type: "image/png", Body: []byte("@bob")}); u != nil {
		t.Error("a picture mentions somebody")
	}
}

func TestRender(t *testing.T) {
	dev := im.DeviceKey{User: "alice", Device: "phone"}
	mk := func(change func(*scene)) *Push {
		s := scene{
			bell: &bell{Last: 7, First: 7, Count: 1, From: "bob", Expires: noon.UnixMilli(), key: slotKey{dev, "d/alice/bob"}}, to: Address{Token: "t"},
			entry: &im.Entry{ID: "m1", Body: []byte("see you  at\n8?")}, sender: "Bob", privacy: PrivacyFull, badge: 3, known: true,
		}
		if change != nil {
			change(&s)
		}
		return render(s)
	}
	p := mk(nil)
	if p.Title != "Bob" || p.Body != "see you at 8?" || p.Badge != 3 || !p.SetBadge || p.Data["conv"] != "dm/bob" || p.Data["seq"] != "7" || p.Data["id"] != "m1" || p.Data["from"] != "bob" {
		t.Errorf("%+v", p)
	}
	if len(p.Collapse) > 64 || p.Collapse == "" || strings.Contains(p.Collapse+p.Thread, "bob") {
		t.Errorf("collapse %q thread %q", p.Collapse, p.Thread)
	}
	if p.ID != mk(nil).ID || p.ID == mk(func(s *scene) { s.bell.Last = 8 }).ID || p.ID == mk(func(s *scene) { s.to.Token = "u" }).ID {
		t.Error("the id is not that of the message and the address")
	}
	for why, tt := range map[string]struct {
		change         func(*scene)
		title, body    string
		key, args      string
		from, sealed   bool
		mutable, hasID bool
	}{
		"sender only":          {func(s *scene) { s.privacy = PrivacySender }, "Bob", "", LocMessage, "Bob", true, false, false, true},
		"several, sender only": {func(s *scene) { s.privacy, s.bell.Count = PrivacySender, 4 }, "Bob", "", LocMessages, "Bob 4", true, false, false, true},
		"nobody":               {func(s *scene) { s.privacy = PrivacyNone }, "", "", LocNew, "", false, false, false, true},
		"ids only":             {func(s *scene) { s.privacy = PrivacyIDOnly }, "", "", LocNew, "", false, false, true, false},
		"too large once":       {func(s *scene) { s.bell.Small = 1 }, "Bob", "", LocMessage, "Bob", true, false, false, true},
		"too large twice":      {func(s *scene) { s.bell.Small = 2 }, "", "", LocNew, "", false, false, true, false},
		"a group":              {func(s *scene) { s.group = "Team" }, "Team", "Bob: see you at 8?", "", "", true, false, false, true},
		"a group, sender only": {func(s *scene) { s.group, s.privacy = "Team", PrivacySender }, "Team", "", LocGroup, "Bob Team", true, false, false, true},
		"a picture":            {func(s *scene) { s.entry.Type = "image/png" }, "Bob", "", LocOther, "Bob", true, false, false, true},
		"sealed":               {func(s *scene) { s.sealed = true }, "Bob", "", LocSealed, "Bob", true, true, true, true},
		"sealed and large":     {func(s *scene) { s.sealed, s.entry.Body = true, make([]byte, maxSealed+1) }, "Bob", "", LocSealed, "Bob", true, false, false, true},
		"gone from the log":    {func(s *scene) { s.entry = nil }, "Bob", "", LocMessage, "Bob", true, false, false, false},
	} {
		p := mk(tt.change)
		_, sealed := p.Data["sealed"]
		if p.Title != tt.title || p.Body != tt.body || p.BodyKey != tt.key || strings.Join(p.BodyArgs, " ") != tt.args || (p.Data["from"] != "") != tt.from || sealed != tt.sealed || p.Mutable != tt.mutable || (p.Data["id"] != "") != tt.hasID {
			t.Errorf("%s: %+v", why, p)
		}
		if tt.title == "" && (strings.Contains(p.Body+strings.Join(p.BodyArgs, ""), "Bob") || strings.Contains(p.Body, "see you")) {
			t.Errorf("%s: says too much: %+v", why, p)
		}
	}
	if p := mk(func(s *scene) { s.bell.Kind = Clear }); p.Body+p.Title+p.BodyKey+p.Sound != "" || !p.SetBadge || p.Data["read"] != "7" {
		t.Errorf("clear: %+v", p)
	}
	if p := mk(func(s *scene) { s.bell.Kind = Call }); p.BodyKey != LocCall || p.Data["call"] != "1" {
		t.Errorf("call: %+v", p)
	}
	if long := preview([]byte(strings.Repeat("ä", 500))); len([]rune(long)) != previewRunes+1 {
		t.Errorf("%d runes", len([]rune(long)))
	}
}
