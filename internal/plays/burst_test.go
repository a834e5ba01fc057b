package plays

import (
	"bytes"
	"net"
	"testing"
)

// TestAClientThatDiesInABurstIsNoticed: the end of its stream comes together with
// its last bytes, on a connection that was busy, so it is no event of its own. Its
// will is sent nevertheless, long before its keep-alive is over.
func TestAClientThatDiesInABurstIsNoticed(t *testing.T) {
	_, alice, bob := stage(t)
	phone := bob.Connect("phone")
	for range 5 {
		d := alice.Connect("sensor", withWill(will{topic: "dm/bob", body: "gone", delay: 0}))
		pings := bytes.Repeat([]byte{0xc0, 0}, 100)
		for range 30 {
			if err := d.Raw(pings); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.nc.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		phone.Expect("dm/alice", "gone")
		d.Drop()
	}
}
