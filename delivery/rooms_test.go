package delivery

import (
	"testing"

	"github.com/parley-im/parley/im"
)

// TestAnEndedLineEntersNoRoom: a Joined that overtakes a Detach finds the line
// before, and would put it into the room after, unregister.
func TestAnEndedLineEntersNoRoom(t *testing.T) {
	d := New(Options{Source: newMemory()})
	l := &Line{d: d, key: im.DeviceKey{User: "bob", Device: "phone"}}
	d.register(l)
	found := d.moved("bob")
	d.discard(l)
	for _, l := range found {
		d.enter("team", l)
	}
	if s := &d.rooms[shard(im.GroupID("team"))]; len(s.m) > 0 {
		t.Errorf("the room holds %d lines", len(s.m["team"]))
	}
}
