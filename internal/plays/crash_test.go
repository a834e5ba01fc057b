package plays

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/internal/ledger"
)

var (
	kills = flag.Int("kills", 5, "how often TestKill9 kills the server")
	seed  = flag.Uint64("seed", 0, "seed of the tests with faults; 0: a new one, which is printed")
)

// writer sends messages until told to stop, through kills and restarts.
type writer struct {
	p    *Person
	name string
	conv string // topic
	key  string // what the ledger calls the conversation
	v    byte
	qos  byte
	ids  bool
	led  *ledger.Ledger
}

func (w *writer) run(stop <-chan struct{}) {
	n, tries := 0, 0
	var unanswered *message // is sent again after a reconnect
	for {
		select {
		case <-stop: // nobody kills the server any more: it answers, or is at fault
			if tries++; tries > 3 {
				w.led.Unanswered(w.key, unanswered.body)
				return
			}
		default:
		}
		d, err := dial(w.p.h, w.name, connectOptions{version: w.v, expiry: 3600, username: w.p.Name, password: w.p.Token})
		if err != nil || d.Connack.ReasonCode != 0 {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // the server is being restarted
				continue
			}
		}
		for {
			var m message
			if unanswered != nil {
				m = *unanswered
				m.dup = true
			} else {
				select {
				case <-stop:
					d.Drop()
					return
				default:
				}
				n++
				m = message{topic: w.conv, body: fmt.Sprintf("%s|%s-%d", w.key, w.name, n), qos: w.qos, id: uint16(n%60000 + 1)}
				if w.ids {
					m.topic += fmt.Sprintf("/id/%s-%d", w.name, n)
				}
			}
			w.led.Sending(w.key, m.body, w.ids || w.qos == 2)
			unanswered = &m
			out, ok := d.try(m)
			if !ok {
				break
			}
			if out.Code == 0 {
				w.led.Acked(w.key, m.body, out.Seq)
			}
			unanswered = nil
		}
		d.Drop()
	}
}

// try is Send for a connection that may break.
func (d *Device) try(m message) (out Outcome, ok bool) {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.qos, Dup: m.dup}, TopicName: m.topic, Payload: []byte(m.body), PacketID: m.id}
	if d.write(pk) != nil {
		return out, false
	}
	typ := packets.Puback
	if m.qos == 2 {
		typ = packets.Pubrec
	}
	ack, ok := d.tryWait(typ, m.id)
	if !ok {
		return out, false
	}
	for _, u := range ack.Properties.User {
		if u.Key == "seq" {
			_, _ = fmt.Sscan(u.Val, &out.Seq)
		}
	}
	out.Code = ack.ReasonCode
	if m.qos == 2 && out.Code < 0x80 {
		if d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: m.id}) == nil {
			d.tryWait(packets.Pubcomp, m.id)
		}
	}
	return out, true
}

func (d *Device) tryWait(typ byte, id uint16) (pk packets.Packet, ok bool) {
	err := d.await(func() bool {
		if pk, ok = d.acks[ackKey(typ, id)]; ok {
			delete(d.acks, ackKey(typ, id))
		}
		return ok
	})
	return pk, err == nil
}

// reading is one of the reader's devices, with what it found wrong.
type reading struct {
	p        *Person
	dev      *ledger.Device
	findings ledger.Findings
	rng      *rand.Rand // nil: it is connected all the time; else it comes and goes
	kills    *atomic.Int32
	visits   int
}

// run reads until stop, through kills and restarts.
func (r *reading) run(stop <-chan struct{}) {
	left := int32(-1) // kills when it left in peace
	for {
		d, err := dial(r.p.h, r.dev.Name, connectOptions{version: V5, expiry: 3600, username: r.p.Name, password: r.p.Token, manual: true})
		if err == nil && d.Connack.ReasonCode == 0 {
			died := r.kills.Load() // a server that is killed from now on leaves no peace
			r.dev.Connected(left == died)
			left = -1
			r.visits++
			enough := -1
			if r.rng != nil {
				enough = r.rng.IntN(300)
			}
			if r.read(d, enough, stop) && r.rng != nil && r.rng.IntN(3) > 0 {
				_ = d.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
				if d.await(func() bool { return d.ended }) == nil && died == r.kills.Load() {
					left = died
				}
			}
			d.Drop()
		}
		pause := 20 * time.Millisecond
		if r.rng != nil {
			pause = time.Duration(r.rng.IntN(400)) * time.Millisecond // short of a kill, or past it
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}

// read takes and acknowledges up to enough deliveries (-1: all), until the
// connection breaks or stop. It reports whether the connection still stands.
func (r *reading) read(d *Device, enough int, stop <-chan struct{}) bool {
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-stop:
			d.Drop()
		case <-done:
		}
	}()
	for n := 0; n != enough; n++ {
		g, err := d.next(func(packets.Packet) bool { return true })
		if err == errTimeout {
			continue
		}
		if err != nil {
			return false
		}
		r.take(d, g)
	}
	return true
}

// take notes a delivery and acknowledges it.
func (r *reading) take(d *Device, g Got) {
	if !strings.HasPrefix(g.Topic, "me/") && !strings.HasPrefix(g.Topic, "presence/") { // what is in conversations
		r.dev.Got(g.Topic, g.Seq(), g.Body, &r.findings)
	}
	d.Ack(g.ID)
}

// finish reads what is left, and holds everything against the histories.
func (r *reading) finish(t *testing.T, histories map[string][]ledger.Entry) {
	t.Helper()
	d := r.p.Connect(r.dev.Name, manual, anyCode)
	for begin := time.Now(); d.Connack.ReasonCode == packets.ErrServerUnavailable.Code && time.Since(begin) < patience; { // its store is still coming up: come again
		time.Sleep(20 * time.Millisecond) // a poll of the condition
		d = r.p.Connect(r.dev.Name, manual, anyCode)
	}
	if d.Connack.ReasonCode != 0 {
		t.Fatalf("%s connects %s: CONNACK 0x%02x", r.p.Name, r.dev.Name, d.Connack.ReasonCode)
	}
	r.dev.Connected(false)
	behind := func() bool {
		for conv, h := range histories {
			if r.dev.Last(conv) < h[len(h)-1].Seq {
				return true
			}
		}
		return false
	}
	for behind() {
		g, err := d.next(func(packets.Packet) bool { return true })
		if err != nil {
			break // Check says what is missing
		}
		r.take(d, g)
	}
	d.Leave()
	for conv, h := range histories {
		r.dev.Check(conv, h, &r.findings)
	}
	if err := r.findings.Err(); err != nil {
		t.Error(err)
	}
}

// TestKill9 kills the server again and again while people write and devices come
// and go, and then holds history and devices against the ledger.
func TestKill9(t *testing.T) {
	h := killAgainAndAgain(t, *kills, 300*time.Millisecond)
	t.Log(cli(t, h, "check", "--store"))
}

// seeded gives a test with faults its seed, and says how to repeat it.
func seeded(t *testing.T) uint64 {
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; again with: go test ./internal/plays -run '^%s$' -kills %d -seed %d", n, t.Name(), *kills, n)
	return n
}

// killAgainAndAgain kills a server with further flags; what came up last has
// settle before the writers stop. The reader has a device that is connected all
// the time, two that come and go, and one that is away until the end.
func killAgainAndAgain(t *testing.T, kills int, settle time.Duration, more ...string) *House {
	seed := seeded(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	h := Open(t, append([]string{"--limits.off=true", "--auth.token-ttl", "24h"}, more...)...)
	reader := h.Person("reader")
	led := ledger.New()
	var died atomic.Int32
	var devices []*reading
	for i, name := range []string{"online", "comes", "goes", "away"} {
		r := &reading{p: reader, dev: ledger.NewDevice(name), kills: &died}
		if name == "comes" || name == "goes" {
			r.rng = rand.New(rand.NewPCG(seed, uint64(10+i)))
		}
		devices = append(devices, r)
		reader.Connect(name).Leave() // from now on it is known
	}
	stop := make(chan struct{})
	var wg, reads sync.WaitGroup
	var ws []*writer
	writers := make([]*Person, 6)
	for i := range writers {
		writers[i] = h.Person(fmt.Sprintf("w%d", i))
		h.Friends(writers[i], reader)
	}
	group := "g/" + reader.Group("all", writers...)
	topics := []string{group}
	for _, p := range writers {
		topics = append(topics, "dm/"+p.Name)
	}
	for _, r := range devices {
		for _, topic := range topics {
			r.dev.Known(topic, 0)
		}
	}
	for i, p := range writers {
		for _, c := range [][2]string{{"dm/reader", "dm/" + p.Name}, {group, group}} { // the ledger uses the reader's view
			ws = append(ws, &writer{p: p, name: fmt.Sprintf("w%d-%s", i, c[0][:1]), conv: c[0], key: c[1], v: []byte{V5, V311}[i%2], qos: byte(1 + i/2%2), ids: i >= 3, led: led})
		}
	}
	for _, w := range ws {
		wg.Go(func() { w.run(stop) })
	}
	for _, r := range devices[:3] {
		reads.Go(func() { r.run(stop) })
	}
	begin := time.Now()
	for k := range kills {
		time.Sleep(time.Duration(150+rng.IntN(700)) * time.Millisecond) // the moment is random on purpose
		died.Add(1)
		h.Kill()
		h.Start()
		if k%20 == 19 {
			fmt.Fprintf(os.Stderr, "%d kills, %d messages acknowledged\n", k+1, led.Count())
		}
	}
	time.Sleep(settle)
	close(stop)
	wg.Wait()
	reads.Wait()
	h.checkAll(t, led, topics, devices)
	t.Logf("%d kills in %s, %d messages acknowledged, %d and %d visits", kills, time.Since(begin).Round(time.Second), led.Count(), devices[1].visits, devices[2].visits)
	h.Stop()
	return h
}

// checkAll holds the histories of the reader's conversations against the ledger,
// and the devices against both.
func (h *House) checkAll(t *testing.T, led *ledger.Ledger, topics []string, devices []*reading) {
	t.Helper()
	var f ledger.Findings
	histories := map[string][]ledger.Entry{}
	for _, topic := range topics {
		var es []ledger.Entry
		for _, e := range devices[0].p.History(topic) {
			es = append(es, ledger.Entry{Seq: e.Seq, Text: e.Text, Other: e.Op != "" || e.Event != ""})
		}
		led.Check(topic, es, &f)
		if len(es) > 0 {
			histories[topic] = es
		}
	}
	if err := f.Err(); err != nil {
		t.Error(err)
	}
	for _, r := range devices {
		r.finish(t, histories)
	}
}
