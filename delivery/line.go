package delivery

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Line is one connected device: what was sent to it, what it acknowledged, and
// what it still has to get. Made by Delivery.Attach, ended by Detach.
type Line struct {
	d    *Delivery
	key  im.DeviceKey
	user *userLines // set by register
	wire Wire

	transient bool         // forgotten when it detaches
	clean     bool         // its CONNECT began a new session
	heir      Heir         // written under the device's lock, before Detach returns
	asOf      uint64       // Source.Doubts before its attach looked at everything
	device    store.Device // the stored row; guarded by Delivery.lock of key
	storing   sync.Mutex   // held from taking cursors until they are stored: a cursor never goes back

	leaving atomic.Int32 // a CloseReason that waits for Answered; 0: none

	sent atomic.Bool // view.Sent, for those who do not hold mu

	mu       sync.Mutex
	window   int // QoS 1 packets that may be unacknowledged: ≤ the client's Receive Maximum
	view     View
	closed   bool
	started  bool // CONNACK is out; before that everything waits
	inactive bool // me/state: not woken for ephemera
	watching bool // counted among those that watch presence
	full     bool // the wire is over its mark; Writable clears it

	flights  ring // unacknowledged packets, in the order sent
	inflight int  // those of flights that are not acknowledged
	lastID   uint16

	tracks  map[im.ConvID]*track
	behind  []*track // tracks the pump has to serve, in turn
	queued  bool     // a pump worker has or will get this line
	dirty   bool     // on the flusher's list
	waiting []waiting
}

// waiting is a QoS 1 note that found the window closed, or a stream of notes.
type waiting struct {
	note   *Note
	parcel *Parcel
	stream *stream
}

// stream is notes that are made when their turn comes: see Line.Stream.
type stream struct {
	name string
	next func() (*Note, byte)
	note *Note // made, and not taken by the wire yet
	qos  byte
}

// maxWaiting bounds the volatile queue of a line; beyond it notes are dropped
// and counted, as QoS 1 without a session allows.
const maxWaiting = 1000

// maxSpan bounds the ring: a client that never acknowledges one packet, but all
// after it, stalls here. Far below 65,535, so that packet ids never collide.
const maxSpan = 16384

// track is one conversation on one line.
type track struct {
	conv     im.ConvID
	sent     im.Seq   // everything up to here was written on this connection, or needs no writing
	acked    im.Seq   // the cursor: acked <= sent
	ahead    []im.Seq // acknowledged beyond acked, ascending
	dupTo    im.Seq   // a write up to here is a repetition: DUP
	upTo     im.Seq   // the highest seq known to exist
	resolved bool     // sent and acked are known
	behind   bool     // in Line.behind or in the hands of the pump
	stopped  bool     // unsubscribed: nothing is written
	look     bool     // there may be more than upTo: the pump reads until nothing comes
	dirty    bool     // acked moved since the last flush
	qos      byte
	recalls  uint        // offered: what was read before the last one is not to be written
	ready    []*im.Entry // read from the log for the window to open; at most a chunk
}

// flight is one packet on the wire; track is nil for a note.
type flight struct {
	track *track
	seq   im.Seq
	acked bool
}

// offer is the live path: no store read, no allocation once the track exists.
func (l *Line) offer(p *Parcel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	t := l.track(p.Conv)
	if p.Seq > t.upTo {
		t.upTo = p.Seq
	}
	if p.Op == im.OpRecall {
		t.ready = nil // what was read before may have its body still
		t.recalls++   // and so may what the pump has in its hands
	}
	if t.behind || t.stopped || (t.resolved && p.Seq <= t.sent) {
		return
	}
	if l.inactive && l.d.opt.Muted != nil && l.d.opt.Muted(l.key.User, t.conv) {
		return // it waits in the log for SetInactive, or for something that wakes
	}
	if !l.started || !t.resolved || p.Seq != t.sent+1 || !l.write(t, p) {
		l.fallBehind(t)
	}
}

// wake has the pump look for what may be in the log and was not offered, seq at
// least, unless the line has heard of it.
func (l *Line) wake(conv im.ConvID, seq im.Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	t := l.track(conv)
	if seq <= t.upTo || (t.resolved && seq <= t.sent) {
		return
	}
	t.look = true
	t.ready, t.recalls = nil, t.recalls+1 // what was read before is not all; it may be a recall
	l.fallBehind(t)
}

// track returns the line's track of conv, an unresolved one if it is new.
func (l *Line) track(conv im.ConvID) *track {
	t := l.tracks[conv]
	if t == nil {
		t = &track{conv: conv}
		t.qos, t.stopped = l.view.Conv(conv, l.key.User)
		if l.tracks == nil {
			l.tracks = make(map[im.ConvID]*track, 4)
		}
		l.tracks[conv] = t
	}
	return t
}

// write sends the entry after t.sent, or passes over it, and reports false if
// the window or the wire is full. Caller holds mu.
func (l *Line) write(t *track, p *Parcel) bool {
	if l.own(p.Entry) {
		t.sent = p.Seq
		l.settle(t, p.Seq)
		return true
	}
	if _, ok := slices.BinarySearch(t.ahead, p.Seq); ok || p.Seq <= t.acked {
		t.sent = p.Seq // acknowledged on an earlier connection, out of order
		return true
	}
	qos := t.qos
	if t.conv.Kind() == im.KindAccount {
		var stopped bool
		if qos, stopped = l.view.event(p.Entry, l.key.User); stopped {
			t.sent = p.Seq
			l.settle(t, p.Seq)
			return true
		}
	}
	if l.view.ids && p.Op != im.OpPublish { // a queue's entry has its own in it
		if ids := l.view.subIDs(p.ViewTopic(l.key.User)); ids != nil {
			p = &Parcel{Entry: p.Entry, SubIDs: ids}
		}
	}
	if qos == 0 {
		switch l.wire.Deliver(p, 0, 0, false) {
		case Full, Closed:
			l.full = true // a closed wire never says Writable: the line rests until it is detached
			return false
		}
		l.d.delivered.Add(1)
		t.sent = p.Seq
		l.settle(t, p.Seq) // at QoS 0, written is acknowledged
		return true
	}
	if !l.room() {
		return false
	}
	id := l.nextID()
	switch l.wire.Deliver(p, 1, id, p.Seq <= t.dupTo) {
	case Full, Closed:
		l.full = true
		return false
	case Passed:
		t.sent = p.Seq
		l.settle(t, p.Seq)
		return true
	}
	l.d.delivered.Add(1)
	l.lastID = id
	l.flights.push(flight{track: t, seq: p.Seq})
	l.inflight++
	t.sent = p.Seq
	return true
}

// own reports whether this device wrote the entry: it knows it from its PUBACK.
func (l *Line) own(e *im.Entry) bool {
	return e.Device == l.key.Device && e.From == l.key.User && e.Op != im.OpEvent && e.Op != im.OpPublish
}

func (l *Line) room() bool { return l.inflight < l.window && l.flights.len() < maxSpan }

// nextID is the packet id after the last one. Ids are handed out in a circle
// and the ring is shorter than it, so none is in use twice [MQTT-2.2.1-3].
func (l *Line) nextID() uint16 {
	if l.lastID == 65535 {
		return 1
	}
	return l.lastID + 1
}

// Ack takes the device's PUBACK. It reports false for an id that is not in
// flight, which a client may send after a takeover: it is ignored.
func (l *Line) Ack(packet uint16) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.flight(packet)
	if f == nil || f.acked {
		return false
	}
	f.acked = true
	l.inflight--
	if f.track != nil {
		l.settle(f.track, f.seq)
	}
	for l.flights.len() > 0 && l.flights.at(0).acked {
		l.flights.pop()
	}
	l.resume()
	return true
}

// flight finds a packet in the ring by its distance from the last id.
func (l *Line) flight(packet uint16) *flight {
	n := l.flights.len()
	if packet == 0 || n == 0 {
		return nil
	}
	back := (int(l.lastID) - int(packet) + 65535) % 65535
	if back >= n {
		return nil
	}
	return l.flights.at(n - 1 - back)
}

// settle records that seq needs nothing more, and moves the cursor over all
// that is settled without a hole.
func (l *Line) settle(t *track, seq im.Seq) {
	switch {
	case seq <= t.acked:
		return
	case seq == t.acked+1:
		t.acked = seq
		n := 0
		for n < len(t.ahead) && t.ahead[n] <= t.acked+1 {
			t.acked = max(t.acked, t.ahead[n])
			n++
		}
		if n > 0 {
			t.ahead = append(t.ahead[:0], t.ahead[n:]...)
		}
	default:
		if i, ok := slices.BinarySearch(t.ahead, seq); !ok {
			t.ahead = slices.Insert(t.ahead, i, seq)
		}
	}
	l.moved(t)
}

// moved notes that the cursor is to be stored. Caller holds mu.
func (l *Line) moved(t *track) {
	t.dirty = true
	if !l.dirty {
		l.dirty = true
		l.d.markDirty(l)
	}
}

// fallBehind hands the track to the pump. Caller holds mu.
func (l *Line) fallBehind(t *track) {
	if t.behind || t.stopped {
		return
	}
	t.behind = true
	l.behind = append(l.behind, t)
	l.resume()
}

// resume asks for a pump if there is work and room. Caller holds mu.
func (l *Line) resume() {
	if l.closed || !l.started || l.full {
		return
	}
	if !l.writeWaiting() {
		return
	}
	if l.queued {
		return // the pump will see to it
	}
	l.writeReady()
	if len(l.behind) == 0 || l.full || !(l.room() || l.behind[0].qos == 0) {
		return
	}
	l.queued = true
	l.d.pump(l)
}

// writeWaiting writes the notes that wait, in turn, as far as the window is open,
// and reports false if the wire is full. Caller holds mu.
func (l *Line) writeWaiting() bool {
	for len(l.waiting) > 0 && l.room() {
		w := l.waiting[0]
		if w.stream != nil {
			if l.full {
				return false
			}
			if !l.writeNext(w.stream) {
				continue
			}
		} else if out := l.writeVolatile(w, 1); out == Full || out == Closed {
			return false
		}
		l.waiting[0] = waiting{}
		l.waiting = l.waiting[1:]
	}
	if len(l.waiting) == 0 {
		l.waiting = nil
	}
	return true
}

// writeNext writes one note of a stream and reports true if there was none left.
func (l *Line) writeNext(s *stream) (end bool) {
	if s.note == nil {
		if s.note, s.qos = s.next(); s.note == nil {
			return true
		}
	}
	if out := l.writeVolatile(waiting{note: s.note}, s.qos); out != Full && out != Closed {
		s.note = nil
	}
	return false
}

// writeReady writes what was read for the first track that is behind, as far as
// the window is open. Caller holds mu.
func (l *Line) writeReady() {
	for len(l.behind) > 0 && len(l.behind[0].ready) > 0 {
		t := l.behind[0]
		if !l.writeChunk(t) {
			return
		}
		l.behind[0] = nil
		l.behind = l.behind[1:]
		if t.behind { // more in the log: behind the others
			l.behind = append(l.behind, t)
		}
	}
}

// writeChunk writes t.ready and reports true if it is used up; then t.behind
// says whether there is more. Caller holds mu.
func (l *Line) writeChunk(t *track) bool {
	for len(t.ready) > 0 {
		e := t.ready[0]
		if e.Seq > t.sent {
			l.skipTo(t, e.Seq-1)
			if !l.write(t, &Parcel{Entry: e}) {
				return false
			}
		}
		t.ready[0] = nil
		t.ready = t.ready[1:]
	}
	t.ready = nil
	t.behind = t.sent < t.upTo || t.look
	return true
}

// Writable tells that the wire has drained after a Full.
func (l *Line) Writable() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full = false
	l.resume()
}

// Note sends n at qos 0 or 1. At QoS 1 it waits for the window in a bounded
// queue; at QoS 0, or when that is full, it is dropped and counted. On IM topics
// it goes by what the device subscribed to: at QoS 0 where that says so, not at
// all where it stopped them.
func (l *Line) Note(n *Note, qos byte) { l.volatile(waiting{note: n}, qos) }

// Volatile sends an entry that is in no log of this device: what the plain
// space has for a session without a queue.
func (l *Line) Volatile(p *Parcel, qos byte) { l.volatile(waiting{parcel: p}, qos) }

// Stream sends the notes that next makes, with their QoS, until it makes none,
// in turn with what else waits: as many as there are, without a queue of them.
// An earlier stream of that name that is still under way is given up. next is
// called with the line locked: it must be quick, and never call the line.
func (l *Line) Stream(name string, next func() (*Note, byte)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(w waiting) bool { return w.stream != nil && w.stream.name == name })
	l.waiting = append(l.waiting, waiting{stream: &stream{name: name, next: next}})
	l.resume()
}

func (l *Line) volatile(w waiting, qos byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := w.note; n != nil && im.InIMSpace(n.Topic) {
		most, stopped := l.view.topic(n.Topic)
		if stopped {
			return
		}
		qos = min(qos, most)
		if ids := l.view.subIDs(n.Topic); ids != nil {
			own := *n
			own.SubIDs = ids
			w.note = &own
		}
	}
	switch {
	case l.closed || (qos == 0 && !l.started):
		l.d.dropped("note")
		return
	case qos == 0:
		if l.writeVolatile(w, 0) == Full {
			l.d.dropped("note")
		}
		return
	}
	if l.started && !l.full && len(l.waiting) == 0 && l.room() {
		if l.writeVolatile(w, 1) != Full {
			return
		}
	}
	if len(l.waiting) >= maxWaiting {
		l.d.dropped("line")
		return
	}
	l.waiting = append(l.waiting, w)
}

func (l *Line) writeVolatile(w waiting, qos byte) Outcome {
	id := uint16(0)
	if qos > 0 {
		id = l.nextID()
	}
	var out Outcome
	if w.note != nil {
		out = l.wire.Send(w.note, qos, id)
	} else {
		out = l.wire.Deliver(w.parcel, qos, id, false)
	}
	if out == Full || out == Closed {
		l.full = true
	}
	if out == Written && qos > 0 {
		l.lastID = id
		l.flights.push(flight{})
		l.inflight++
	}
	return out
}

// catchUp hands the tracks that have something left over to the pump. Caller holds mu.
func (l *Line) catchUp() {
	for _, t := range l.tracks {
		if !t.resolved || t.look || t.upTo > t.sent {
			l.fallBehind(t)
		}
	}
}

// SetView changes what the device wants to see of the IM topics. What it
// stopped and wants again comes from the cursor on.
func (l *Line) SetView(v View) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view = v
	l.sent.Store(v.Sent)
	l.watch()
	var again []*track // for later: something is written then, by what all tracks are now
	for _, t := range l.tracks {
		was := t.stopped
		t.qos, t.stopped = v.Conv(t.conv, l.key.User)
		if t.stopped && !was {
			l.rest(t)
		}
		if was && !t.stopped && (!t.resolved || t.look || t.upTo > t.sent) {
			again = append(again, t)
		}
	}
	for _, t := range again {
		l.fallBehind(t)
	}
}

// rest takes a track that was stopped out of the pump's turns, and what was read
// for it with it. One that the pump has in its hands ends in take. Caller holds mu.
func (l *Line) rest(t *track) {
	t.ready = nil
	if i := slices.Index(l.behind, t); i >= 0 {
		l.behind = slices.Delete(l.behind, i, i+1)
		t.behind = false
	}
}

// SetInactive takes the device's me/state. One that is active again gets what it was
// not woken for.
func (l *Line) SetInactive(v bool) {
	l.mu.Lock()
	back := l.inactive && !v && l.watching && l.view.friends
	l.inactive = v
	if !v {
		l.catchUp()
	}
	l.mu.Unlock()
	if back {
		l.d.presence.ask(l)
	}
}

// ShowPresence has the device told how those friends are whose presence it
// subscribed to.
func (l *Line) ShowPresence() {
	l.mu.Lock()
	watching := l.watching && l.view.friends
	l.mu.Unlock()
	if watching {
		l.d.presence.ask(l)
	}
}

// wants reports whether the device takes ephemera on topic now.
func (l *Line) wants(topic string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started && !l.closed && !l.inactive && !l.view.Stops(topic)
}

// wantsAlways is wants for what an inactive device is woken for too.
func (l *Line) wantsAlways(topic string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started && !l.closed && !l.view.Stops(topic)
}

// Heir is who came after a line as the same device.
type Heir uint8

// The heirs of a line.
const (
	NoHeir     Heir = iota // the connection ended by itself, or the device was removed
	GoesOn                 // a new connection took it over and goes on with its session
	StartsAnew             // a new connection took it over and began a new session
)

// Heir says who took the line over. It is for the line's owner, after Detach.
func (l *Line) Heir() Heir { return l.heir }

// Clean reports whether the device began a new session with this connection.
func (l *Line) Clean() bool { return l.clean }

// WantsSent reports whether the device subscribed to "sent".
func (l *Line) WantsSent() bool { return l.sent.Load() }

// Key returns whose device this is.
func (l *Line) Key() im.DeviceKey { return l.key }

// Wire returns the connection.
func (l *Line) Wire() Wire { return l.wire }

// read tells the device how far user has read conv.
func (l *Line) read(conv im.ConvID, user im.UserID, seq im.Seq) {
	topic := conv.Topic(l.key.User) + "/read"
	if l.wants(topic) {
		l.Note(&Note{Topic: topic, Body: readBody(user, seq), Type: "application/json"}, 1)
	}
}

// forget drops the track of a conversation the user has no part in any more.
func (l *Line) forget(conv im.ConvID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.tracks[conv]; t != nil {
		l.drop(t)
	}
}

// drop forgets a track, but not one that was made in its place since. Caller
// holds mu.
func (l *Line) drop(t *track) {
	t.stopped = true // the pump may hold it
	if l.tracks[t.conv] == t {
		delete(l.tracks, t.conv)
	}
	l.behind = slices.DeleteFunc(l.behind, func(x *track) bool { return x == t })
}

func (l *Line) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// takeCursors returns the cursors that moved since the last call. Caller holds mu.
func (l *Line) takeCursors() []store.Cursor {
	l.dirty = false
	var cs []store.Cursor
	for _, t := range l.tracks {
		if t.dirty {
			t.dirty = false
			cs = append(cs, t.cursor())
		}
	}
	return cs
}

func (t *track) cursor() store.Cursor {
	return store.Cursor{Conv: t.conv, Acked: t.acked, Sent: max(t.sent, t.dupTo), Ahead: slices.Clone(t.ahead), Known: true}
}

// ring is a growing circular queue of flights.
type ring struct {
	buf  []flight
	head int
	n    int
}

func (r *ring) len() int { return r.n }

func (r *ring) at(i int) *flight { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring) push(f flight) {
	if r.n == len(r.buf) {
		next := make([]flight, max(8, 2*len(r.buf)))
		for i := range r.n {
			next[i] = *r.at(i)
		}
		r.buf, r.head = next, 0
	}
	r.n++
	*r.at(r.n - 1) = f
}

func (r *ring) pop() {
	r.buf[r.head] = flight{}
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	if r.n == 0 && len(r.buf) > 64 {
		r.buf = nil // an idle line gives its burst back
	}
}
