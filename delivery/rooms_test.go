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
