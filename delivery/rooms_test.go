package delivery

import (
	"testing"

	"github.com/parley-im/parley/im"
)

// TestAUserWhoLeftEntersNoRoom: a Joined that overtakes a Detach finds the user
// before, and would put it into the room after, the last line was unregistered.
func TestAUserWhoLeftEntersNoRoom(t *testing.T) {
	d := New(Options{Source: newMemory()})
	l := &Line{d: d, key: im.DeviceKey{User: "bob", Device: "phone"}}
	d.register(l)
	found := d.moved("bob")
	d.discard(l)
	if d.enter("team", found) {
		t.Error("it entered")
	}
	if s := &d.rooms[shard(im.GroupID("team"))]; len(s.m) > 0 {
		t.Errorf("the room holds %d", len(s.m["team"]))
	}
}

// TestWhoIsBackIsNotLetOut: between an offer that found no line and the letting out
// a device may have come, which looked for rooms to go back to before that.
func TestWhoIsBackIsNotLetOut(t *testing.T) {
	d := New(Options{Source: newMemory()})
	l := &Line{d: d, key: im.DeviceKey{User: "bob", Device: "phone"}}
	d.register(l)
	d.enter("team", l.user)
	d.letIn(l.user)
	d.letOut("team", []*userLines{l.user})
	if room := d.rooms[shard(im.GroupID("team"))].m["team"]; len(room) != 1 || len(l.user.rooms.out) > 0 {
		t.Errorf("bob was let out: %v, %v", room, l.user.rooms.out)
	}
}
