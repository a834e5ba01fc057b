package plays

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// presence is what came on presence/{user}.
type presence struct {
	User   string
	Online bool
	Seen   int64
}

func (d *Device) presence(user string) (p presence) {
	d.t.Helper()
	g := d.Await("presence/" + user)
	if err := json.Unmarshal([]byte(g.Body), &p); err != nil || p.User != user {
		d.t.Fatalf("%s: %s", g.Topic, g.Body)
	}
	return p
}

// unseen wants that no presence was sent to the device up to now.
func (d *Device) unseen() {
	d.t.Helper()
	d.Quiet()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, pk := range d.got {
		d.t.Errorf("unexpected: %s %s", pk.TopicName, pk.Payload)
	}
}

// TestPresenceComesUnasked: like all that is the user's own. Who names what to see
// hears of it where a filter says so.
func TestPresenceComesUnasked(t *testing.T) {
	_, alice, bob := stage(t)
	all, old, hash := alice.Connect("all"), alice.Connect("old", v311), alice.Connect("hash")
	hash.Subscribe("#", 0)
	mail, nobody, none := alice.Connect("mail"), alice.Connect("nobody"), alice.Connect("none")
	mail.Subscribe("dm/+", 1)
	nobody.Subscribe("presence/nobody", 1)
	none.Unsubscribe("presence/+")
	b := bob.Connect("phone")
	for _, d := range []*Device{all, old, hash} {
		if p := d.presence("bob"); !p.Online {
			t.Errorf("bob has come: %+v", p)
		}
	}
	b.Leave()
	for d, qos := range map[*Device]byte{all: 1, old: 1, hash: 0} {
		if g := d.Await("presence/bob"); g.QoS != qos || g.Retain || !strings.HasPrefix(g.Body, `{"user":"bob","online":false,"seen":`) {
			t.Errorf("bob has gone: QoS %d, %s", g.QoS, g.Body)
		}
		d.unseen()
	}
	for _, d := range []*Device{mail, nobody, none} {
		d.unseen()
	}
}

func TestFriendsSeeWhoIsThere(t *testing.T) {
	h, alice, bob := stage(t)
	carol, mallory := h.Person("carol"), h.Person("mallory")
	h.Friends(alice, carol)
	phone := alice.Connect("phone")
	bob.Connect("phone").Leave()
	for phone.presence("bob").Online {
	}

	// Who subscribes is told how the friends are, and then what changes.
	a := alice.Connect("desk")
	if code := a.Subscribe("presence/+", 1); code != 1 {
		t.Fatalf("SUBSCRIBE: 0x%02x", code)
	}
	away := a.presence("bob")
	if away.Online || away.Seen == 0 {
		t.Errorf("bob, who has left: %+v", away)
	}
	if p := a.presence("carol"); p.Online {
		t.Errorf("carol, who was never here: %+v", p)
	}
	b := bob.Connect("phone")
	if p := a.presence("bob"); !p.Online || p.Seen < away.Seen {
		t.Errorf("bob has come: %+v", p)
	}
	tablet := bob.Connect("tablet")
	b.Leave()
	tablet.Drop()
	if p := a.presence("bob"); p.Online { // once, when the last device has gone
		t.Errorf("bob has gone: %+v", p)
	}
	b = bob.Connect("phone")
	b.Subscribe("presence/alice", 0)
	if g := b.Await("presence/alice"); g.QoS != 0 || g.Retain {
		t.Errorf("%+v", g)
	}
	a.presence("bob")

	// Nobody else hears anything: no stranger, and no friend who has been blocked.
	m := mallory.Connect("phone")
	for _, f := range []string{"presence/#", "#", "presence/alice"} {
		m.Subscribe(f, 1)
	}
	c := carol.Connect("phone")
	a.presence("carol")
	alice.must(http.StatusNoContent, "PUT", "/v1/blocks/bob", nil, nil)
	a.Await("me/blocked")
	b.Leave()
	carol.Connect("tablet")
	c.Drop()
	c = carol.Connect("phone")
	c.unseen()
	m.unseen()
	a.unseen()

	// An inactive device is not woken; active again, it is told.
	watch := alice.Connect("watch")
	watch.Subscribe("presence/+", 1)
	watch.presence("carol")
	a.Publish("me/state", "inactive")
	dave := h.Person("dave")
	h.Friends(alice, dave)
	a.Await("me/friend-accepted")
	dave.Connect("phone")
	watch.presence("dave")
	a.unseen()
	a.Publish("me/state", "active")
	a.presence("carol")
	if p := a.presence("dave"); !p.Online {
		t.Errorf("dave: %+v", p)
	}
	// The subscription is part of the session, until it is taken back.
	a.Leave()
	a = alice.Connect("desk")
	a.presence("carol")
	a.presence("dave")
	a.Unsubscribe("presence/+")
	eve := h.Person("eve")
	h.Friends(alice, eve)
	a.Await("me/friend-accepted")
	eve.Connect("phone")
	watch.presence("eve")
	a.unseen()
}
