package plays

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

var (
	kills = flag.Int("kills", 5, "how often TestKill9 kills the server")
	seed  = flag.Uint64("seed", 0, "seed of TestKill9; 0: a new one, which is printed")
)

// ledger is what writers know of their messages, by body.
type ledger struct {
	mu    sync.Mutex
	sent  map[string]bool
	acked map[string]uint64 // seq, 0 where the protocol does not tell
	once  map[string]bool   // sent with an id or at QoS 2: at most once in the log
	last  map[string]string // conversation → body acknowledged last, for real-time order
	stuck []string          // the server would not answer for these
	after map[string]string // body → body of the same conversation that was acknowledged before it was sent
}

func newLedger() *ledger {
	return &ledger{sent: map[string]bool{}, acked: map[string]uint64{}, once: map[string]bool{}, last: map[string]string{}, after: map[string]string{}}
}

func (l *ledger) sending(conv, body string, once bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.sent[body] {
		l.after[body] = l.last[conv]
	}
	l.sent[body] = true
	if once {
		l.once[body] = true
	}
}

func (l *ledger) ack(conv, body string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[body] = seq
	l.last[conv] = body
}

// check holds a conversation's history against the ledger: every acknowledged
// message is there at its seq, once if it was sent to be there once, in
// real-time order. Density is checked by whoever read the history.
func (l *ledger) check(conv string, history []entry) error {
	for _, body := range l.stuck {
		if convOf(body) == conv {
			return fmt.Errorf("%s: the server never answered for %q", conv, body)
		}
	}
	at := map[string]uint64{}
	for _, e := range history {
		if e.Op != "" || e.Event != "" {
			continue
		}
		if !l.sent[e.Text] {
			return fmt.Errorf("%s seq %d: %q was never sent", conv, e.Seq, e.Text)
		}
		if first, twice := at[e.Text]; twice {
			if l.once[e.Text] {
				return fmt.Errorf("%s: %q is there twice, at %d and %d", conv, e.Text, first, e.Seq)
			}
			continue
		}
		at[e.Text] = e.Seq
	}
	for body, seq := range l.acked {
		if convOf(body) != conv {
			continue
		}
		switch got, ok := at[body]; {
		case !ok:
			return fmt.Errorf("%s: %q was acknowledged (seq %d) and is lost", conv, body, seq)
		case seq != 0 && l.once[body] && got != seq:
			return fmt.Errorf("%s: %q was acknowledged at seq %d and stands at %d", conv, body, seq, got)
		}
	}
	for body, before := range l.after {
		if convOf(body) == conv && before != "" && at[body] != 0 && at[before] > at[body] {
			return fmt.Errorf("%s: %q was acknowledged before %q was sent, but stands after it", conv, before, body)
		}
	}
	return nil
}

// unanswered notes that the server lives and does not answer for a message.
func (l *ledger) unanswered(body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stuck = append(l.stuck, body)
}

func convOf(body string) string {
	for i := range body {
		if body[i] == '|' {
			return body[:i]
		}
	}
	return ""
}

// writer sends messages until told to stop, through kills and restarts.
type writer struct {
	p    *Person
	name string
	conv string // topic
	key  string // what the ledger calls the conversation
	v    byte
	qos  byte
	ids  bool
	led  *ledger
}

func (w *writer) run(stop <-chan struct{}) {
	n, tries := 0, 0
	var unanswered *message // is sent again after a reconnect
	for {
		select {
		case <-stop: // nobody kills the server any more: it answers, or is at fault
			if tries++; tries > 3 {
				w.led.unanswered(unanswered.body)
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
			w.led.sending(w.key, m.body, w.ids || w.qos == 2)
			unanswered = &m
			out, ok := d.try(m)
			if !ok {
				break
			}
			if out.Code == 0 {
				w.led.ack(w.key, m.body, out.Seq)
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

// listener keeps a device connected through restarts and logs what it applies:
// each seq once, in the order it came.
type listener struct {
	p       *Person
	name    string
	mu      sync.Mutex
	applied map[string][]uint64
	fault   error
}

func (l *listener) run(stop <-chan struct{}) {
	for {
		d, err := dial(l.p.h, l.name, connectOptions{version: V5, expiry: 3600, username: l.p.Name, password: l.p.Token})
		if err == nil && d.Connack.ReasonCode == 0 {
			l.read(d, stop)
			d.Drop()
		}
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *listener) read(d *Device, stop <-chan struct{}) {
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-stop:
			d.Drop()
		case <-done:
		}
	}()
	onThis := map[string]uint64{}
	for {
		g, err := d.next(func(packets.Packet) bool { return true })
		if err == errTimeout {
			continue
		}
		if err != nil {
			return
		}
		if strings.HasPrefix(g.Topic, "me/") {
			continue
		}
		l.mu.Lock()
		seq := g.Seq()
		if prev, ok := onThis[g.Topic]; ok && seq != prev+1 && l.fault == nil {
			l.fault = fmt.Errorf("%s/%s: on one connection, %s %d came after %d", l.p.Name, l.name, g.Topic, seq, prev)
		}
		onThis[g.Topic] = seq
		a := l.applied[g.Topic]
		switch {
		case len(a) == 0 || seq == a[len(a)-1]+1:
			l.applied[g.Topic] = append(a, seq)
		case seq > a[len(a)-1]+1 && l.fault == nil:
			l.fault = fmt.Errorf("%s/%s: %s has a hole between %d and %d", l.p.Name, l.name, g.Topic, a[len(a)-1], seq)
		}
		l.mu.Unlock()
	}
}

// TestKill9 kills the server again and again while people write, and then holds
// history and devices against the ledger of what was acknowledged.
func TestKill9(t *testing.T) {
	h := killAgainAndAgain(t, *kills, 300*time.Millisecond)
	t.Log(cli(t, h, "check", "--store"))
}

// killAgainAndAgain kills a server with further flags; what came up last has
// settle before the writers stop.
func killAgainAndAgain(t *testing.T, kills int, settle time.Duration, more ...string) *House {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", *seed)
	rng := rand.New(rand.NewPCG(*seed, 1))
	h := Open(t, append([]string{"--limits.off=true", "--auth.token-ttl", "24h"}, more...)...)
	reader := h.Person("reader")
	away := reader.Connect("away")
	led := newLedger()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var ws []*writer
	var group string
	writers := make([]*Person, 6)
	for i := range writers {
		writers[i] = h.Person(fmt.Sprintf("w%d", i))
		h.Friends(writers[i], reader)
	}
	group = "g/" + reader.Group("all", writers...)
	away.Leave()
	for i, p := range writers {
		for conv, key := range map[string]string{"dm/reader": "dm/" + p.Name, group: group} { // the ledger uses the reader's view
			ws = append(ws, &writer{p: p, name: fmt.Sprintf("w%d-%s", i, conv[:1]), conv: conv, key: key, v: []byte{V5, V311}[i%2], qos: byte(1 + i/2%2), ids: i >= 3, led: led})
		}
	}
	for _, w := range ws {
		wg.Go(func() { w.run(stop) })
	}
	online := &listener{p: reader, name: "online", applied: map[string][]uint64{}}
	wg.Go(func() { online.run(stop) })
	begin := time.Now()
	for k := range kills {
		time.Sleep(time.Duration(150+rng.IntN(700)) * time.Millisecond) // the moment is random on purpose
		h.Kill()
		h.Start()
		if k%20 == 19 {
			fmt.Fprintf(os.Stderr, "%d kills, %d messages acknowledged\n", k+1, len(led.acked))
		}
	}
	time.Sleep(settle)
	close(stop)
	wg.Wait()
	if online.fault != nil {
		t.Error(online.fault)
	}
	h.checkAll(t, led, reader, writers, group, online)
	t.Logf("%d kills in %s, %d messages acknowledged", kills, time.Since(begin).Round(time.Second), len(led.acked))
	h.Stop()
	return h
}

func (h *House) checkAll(t *testing.T, led *ledger, reader *Person, writers []*Person, group string, online *listener) {
	t.Helper()
	heads := map[string]uint64{}
	topics := []string{group}
	for _, w := range writers {
		topics = append(topics, "dm/"+w.Name)
	}
	for _, topic := range topics {
		history := reader.History(topic)
		if history[0].Seq != 1 {
			t.Errorf("history of %s begins at %d", topic, history[0].Seq)
		}
		heads[topic] = history[len(history)-1].Seq
		if err := led.check(topic, history); err != nil {
			t.Error(err)
		}
	}
	// One device was there all the time, the other comes back after all of it.
	reader.Connect("online").catchUp(t, heads, online.applied)
	reader.Connect("away").catchUp(t, heads, map[string][]uint64{})
}

// catchUp reads until the device has every head, after what it had applied
// before, and wants no hole.
func (d *Device) catchUp(t *testing.T, heads map[string]uint64, applied map[string][]uint64) {
	t.Helper()
	last := map[string]uint64{}
	for topic, seqs := range applied {
		last[topic] = seqs[len(seqs)-1]
	}
	behind := func() bool {
		for topic, head := range heads {
			if last[topic] < head {
				return true
			}
		}
		return false
	}
	for behind() {
		g := d.Next()
		switch prev, seen := last[g.Topic]; {
		case heads[g.Topic] == 0: // of something else
		case g.Seq() <= prev: // again
		case seen && g.Seq() != prev+1:
			t.Fatalf("%s: after %d came %d", g.Topic, prev, g.Seq())
		default:
			last[g.Topic] = g.Seq()
		}
	}
}

// TestTheLedgerNotices shows that the checker can fail.
func TestTheLedgerNotices(t *testing.T) {
	base := func() (*ledger, []entry) {
		l := newLedger()
		var h []entry
		for i := range 3 {
			body := fmt.Sprintf("c|m%d", i)
			l.sending("c", body, true)
			l.ack("c", body, uint64(i+1))
			h = append(h, entry{Seq: uint64(i + 1), Text: body})
		}
		return l, h
	}
	if l, h := base(); l.check("c", h) != nil {
		t.Fatal(l.check("c", h))
	}
	for why, spoil := range map[string]func(l *ledger, h []entry) []entry{
		"a lost message":       func(_ *ledger, h []entry) []entry { return h[:2] },
		"a duplicate":          func(_ *ledger, h []entry) []entry { return append(h, entry{Seq: 4, Text: h[0].Text}) },
		"a wrong seq":          func(l *ledger, h []entry) []entry { l.acked[h[1].Text] = 9; return h },
		"a refusal to answer":  func(l *ledger, h []entry) []entry { l.unanswered("c|m3"); return h },
		"a foreign message":    func(_ *ledger, h []entry) []entry { return append(h, entry{Seq: 4, Text: "c|never"}) },
		"a break of real time": func(l *ledger, h []entry) []entry { l.acked = map[string]uint64{}; h[0].Seq, h[1].Seq = 2, 1; return h },
	} {
		l, h := base()
		if l.check("c", spoil(l, h)) == nil {
			t.Errorf("%s was not noticed", why)
		}
	}
}
