package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/parley-im/parley/internal/ledger"
)

// Crash kills a Parley that the tool itself has started, again and again under
// load, and then holds the history and what devices got against a ledger of what
// was acknowledged.
type Crash struct {
	Writers int // each writes to a reader of its own
	Kills   int
	Seed    uint64 // of the moments of the kills
	Payload int
}

// crashWindow is how many messages of a writer are under way.
const crashWindow = 8

// crashPatience is how long a server that is not killed any more may take to
// answer for what was sent.
const crashPatience = 30 * time.Second

// String names the scenario with its parameters.
func (c Crash) String() string {
	return fmt.Sprintf("crash, %d writers, %d times kill -9, seed %d", c.Writers, c.Kills, c.Seed)
}

// Prepare makes the accounts and friendships.
func (c Crash) Prepare(ctx context.Context, t *Target, p *Progress) error {
	if !t.Ours() || t.Plain {
		return errors.New("only a Parley that this tool has started itself can be killed")
	}
	if err := t.preparePairs(ctx, p, c.Writers); err != nil {
		return err
	}
	// A device that was never seen starts at now: it has to be known before.
	return parallel(ctx, 8, c.Writers, func(ctx context.Context, i int) error {
		_, to := t.pairUsers(i)
		cn, err := t.dial(ctx, t.as(to, "phone", false))
		if err == nil {
			cn.farewell()
		}
		return err
	})
}

// crashRun is a Crash that runs.
type crashRun struct {
	t    *Target
	p    *Progress
	size int
	stop chan struct{} // closed when the server is not killed any more
	gone chan struct{} // closed when readers may end
	run  uint32
	*ledger.Ledger
	mu struct {
		sync.Mutex
		ledger.Findings
		err error
	}
}

// crashWriter is where one writer stands: its messages are numbered from 1, and
// sent in order, also again.
type crashWriter struct {
	conv        string // as the reader sees it
	sent, acked int64
}

// entry is a message of the history.
type entry struct {
	Seq  uint64 `json:"seq"`
	Text string `json:"text"`
}

// text is what the ledger knows a message by: its number, where it is of this run.
func (x *crashRun) text(payload []byte) string {
	if h, ok := readHeader(payload); ok && h.run == x.run {
		return strconv.FormatInt(h.n, 10)
	}
	return "of somebody else"
}

// Run runs it against t; its messages are those acknowledged.
func (c Crash) Run(ctx context.Context, t *Target, p *Progress) (r Result, err error) {
	x := &crashRun{t: t, p: p, size: c.Payload, stop: make(chan struct{}), gone: make(chan struct{}), run: newRun(), Ledger: ledger.New()}
	rng := rand.New(rand.NewPCG(c.Seed, 1))
	devices, histories := make([]*ledger.Device, c.Writers), make([][]ledger.Entry, c.Writers)
	var writers, readers sync.WaitGroup
	p.begin("killing", c.Kills)
	begin := now()
	// Writers and readers outlive a Ctrl-C: what was acknowledged is checked.
	work := context.WithoutCancel(ctx)
	for i := range c.Writers {
		from, to := t.pairUsers(i)
		devices[i] = ledger.NewDevice(to + "/phone")
		devices[i].Known("dm/"+from, 0)
		writers.Go(func() { x.write(work, i, &crashWriter{conv: "dm/" + from}) })
		readers.Go(func() { x.follow(work, i, devices[i]) })
	}
	var restart latencies
	for r.Kills < c.Kills && ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-time.After(time.Duration(150+rng.IntN(700)) * time.Millisecond): // random on purpose
		}
		t.server.kill()
		from := now()
		if err = t.server.start(work); err == nil && t.server.addrs["mqtt"] != t.MQTT {
			err = errors.New("the server must listen where it did before: put {mqtt} and {http} into its command")
		}
		if err != nil {
			break
		}
		restart.add(0, now()-from)
		r.Kills++
		p.step()
	}
	t.PID = t.server.cmd.Process.Pid
	close(x.stop)
	writers.Wait()
	took := now() - begin
	p.begin("checking", c.Writers)
	for i := range c.Writers {
		var e error
		histories[i], e = x.check(work, i)
		err = errors.Join(err, e)
		p.step()
	}
	close(x.gone)
	readers.Wait()
	for i, d := range devices {
		from, _ := t.pairUsers(i)
		d.Check("dm/"+from, histories[i], &x.mu.Findings)
	}
	r.over(took.Seconds(), int64(x.Count()), messages)
	r.Seed, r.Restart, r.Interrupted = c.Seed, restart.summary(), r.Kills < c.Kills
	r.Faults, r.Notes = x.mu.Faults, x.mu.Notes
	return r, errors.Join(err, x.mu.err)
}

func (x *crashRun) fail(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mu.err == nil {
		x.mu.err = err
	}
}

func (x *crashRun) stopped() bool { return isClosed(x.stop) }

// again waits a little before the next attempt to connect to a server that is
// being started; false once limit has passed since done was closed.
func again(done <-chan struct{}, since *time.Time, limit time.Duration) bool {
	time.Sleep(10 * time.Millisecond)
	if !isClosed(done) {
		return true
	}
	if since.IsZero() {
		*since = time.Now()
	}
	return time.Since(*since) < limit
}

// write sends until the killing is over and everything is acknowledged; after a
// break it sends again, under the same ids, what was not.
func (x *crashRun) write(ctx context.Context, i int, w *crashWriter) {
	from, to := x.t.pairUsers(i)
	var since time.Time
	for {
		c, err := x.connect(ctx, from, "phone", true)
		if err == nil {
			err = x.writeOn(c, x.t.dm(to), w)
			c.leave()
			if err == nil {
				return
			}
			var no *refusedError
			if errors.As(err, &no) {
				x.fail(err)
				return
			}
		}
		if !again(x.stop, &since, crashPatience) {
			x.fail(fmt.Errorf("pair %d: the server lives and does not answer for message %d: %w", i, w.acked+1, err))
			return
		}
	}
}

func (x *crashRun) connect(ctx context.Context, user, device string, clean bool) (*conn, error) {
	l, err := x.t.asToken(ctx, user, device, clean)
	if err != nil {
		return nil, err
	}
	l.v5 = true // its PUBACK says the seq
	return x.t.dial(ctx, l)
}

// writeOn writes on one connection; nil when all is done.
func (x *crashRun) writeOn(c *conn, topic string, w *crashWriter) error {
	payload := newPayload(x.size)
	for sent := w.acked; ; {
		for sent < w.acked+crashWindow && (sent < w.sent || !x.stopped()) {
			sent++
			w.sent = max(w.sent, sent)
			header{run: x.run, n: sent, at: now()}.put(payload)
			x.Sending(w.conv, strconv.FormatInt(sent, 10), true)
			c.publish(fmt.Sprintf("%s/id/%x-%d", topic, x.run, sent), uint16(sent%65535+1), payload)
		}
		if sent == w.acked {
			return nil
		}
		if err := c.flush(); err != nil {
			return err
		}
		_ = c.nc.SetReadDeadline(time.Now().Add(crashPatience))
		for first := true; first || !c.idle(); first = false {
			if err := x.readSeq(c, w); err != nil {
				return err
			}
		}
	}
}

// readSeq reads one packet; a PUBACK goes into the ledger.
func (x *crashRun) readSeq(c *conn, w *crashWriter) error {
	first, body, err := c.next()
	if err != nil {
		return err
	}
	switch first >> 4 {
	case publish:
		if d, err := parsePublish(first, body, true); err == nil && d.id != 0 {
			c.answer(d.id)
		}
	case puback:
		id, code, props, err := ackOf(body, true)
		if err != nil {
			return err
		}
		if code >= 0x80 {
			return refused(fmt.Sprintf("PUBACK with code 0x%02x", code))
		}
		n := w.acked + 1
		if id != uint16(n%65535+1) { // [MQTT-4.6.0-2]: in the order of the publishes
			return fmt.Errorf("PUBACK %d came where %d belongs", id, n)
		}
		v, err := userProperty(props, "seq")
		if err != nil {
			return err
		}
		seq, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return fmt.Errorf("PUBACK without a seq: %w", err)
		}
		x.Acked(w.conv, strconv.FormatInt(n, 10), seq)
		w.acked = n
	}
	return nil
}

// follow keeps the reader's device connected until everything was checked and it
// has what is there.
func (x *crashRun) follow(ctx context.Context, i int, d *ledger.Device) {
	from, to := x.t.pairUsers(i)
	var since time.Time
	for {
		if c, err := x.connect(ctx, to, "phone", false); err == nil {
			d.Connected(false) // it breaks off anywhere
			err = x.followOn(c, x.t.dm(from), d)
			c.leave()
			if err == nil {
				return
			}
		}
		if !again(x.gone, &since, crashPatience) {
			return
		}
	}
}

// quiet is how long nothing must come in for a device to have everything.
const quiet = 500 * time.Millisecond

// followOn reads on one connection; nil when it is over and nothing comes any more.
func (x *crashRun) followOn(c *conn, topic string, dev *ledger.Device) error {
	for {
		if c.idle() {
			if err := c.flush(); err != nil {
				return err
			}
			_ = c.nc.SetReadDeadline(time.Now().Add(quiet))
			_, err := c.in.Peek(1) // a time-out must not fall into a packet
			if isTimeout(err) {
				if isClosed(x.gone) {
					return nil
				}
				continue
			}
			if err != nil {
				return err
			}
			_ = c.nc.SetReadDeadline(time.Now().Add(crashPatience))
		}
		d, err := c.delivery()
		if err != nil {
			return err
		}
		v, err := userProperty(d.props, "seq")
		if err != nil || string(d.topic) != topic {
			continue
		}
		seq, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return err
		}
		x.mu.Lock()
		dev.Got(topic, seq, x.text(d.payload), &x.mu.Findings)
		x.mu.Unlock()
	}
}

// check reads the whole history of a conversation and holds it against the ledger.
func (x *crashRun) check(ctx context.Context, i int) (history []ledger.Entry, err error) {
	from, to := x.t.pairUsers(i)
	tok, err := x.t.token(ctx, to)
	if err != nil {
		return nil, err
	}
	for after := uint64(0); ; {
		var page struct {
			Messages []entry
			More     bool
		}
		path := fmt.Sprintf("/v1/conversations/dm/%s/messages?limit=200&after=%d", from, after)
		if err := x.t.call(ctx, http.MethodGet, path, tok, nil, &page); err != nil {
			return history, err
		}
		for _, e := range page.Messages {
			history = append(history, ledger.Entry{Seq: e.Seq, Text: x.text([]byte(e.Text))})
		}
		if !page.More || len(page.Messages) == 0 {
			break
		}
		after = page.Messages[len(page.Messages)-1].Seq
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	conv := "dm/" + from
	x.Check(conv, history, &x.mu.Findings)
	ledger.CheckWriters(conv, history, func(text string) (string, int64) {
		n, _ := strconv.ParseInt(text, 10, 64)
		return from, n
	}, &x.mu.Findings)
	return history, nil
}
