package mongostore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/parley-im/parley/im"
)

// The seat is a document that its holder counts up. Nobody compares clocks: who
// wants the seat watches the count, and takes it after it has stood still for as
// long as the holder said, by the watcher's own clock. The holder believes in its
// seat for three quarters of that, from before it last counted up, so it has
// stopped before anybody can have taken it. See docs/adr/0009.

// DefaultSeat is how long a holder may be silent.
const DefaultSeat = 10 * time.Second

// seatDoc is the document.
type seatDoc struct {
	ID      string `bson:"_id"`
	Holder  string `bson:"by"` // a new one each time the seat is taken
	Count   int64  `bson:"n"`
	Silence int64  `bson:"ms"` // for how long the count may stand still, ms
	Doing   string `bson:"do"`
	Host    string `bson:"host"`
	PID     int    `bson:"pid"`
	Since   int64  `bson:"at"` // Unix ms, for people
	// Where PID means the process, and when that began; "" where it cannot be told.
	Machine string `bson:"m,omitempty"`
	Began   string `bson:"b,omitempty"`
}

// String names the holder for people.
func (d *seatDoc) String() string {
	return fmt.Sprintf("%s on host %s, pid %d, since %s", d.Doing, d.Host, d.PID, time.UnixMilli(d.Since).UTC().Format(time.RFC3339))
}

// seat is what a store knows of its own.
type seat struct {
	mine    seatDoc                   // set before renewed
	renewed atomic.Pointer[time.Time] // from when it is ours; nil: it was never taken
	lost    atomic.Pointer[im.Error]
}

// seated reports whether this store may write: it has the seat for certain, or
// never asked for it. Both clocks count: one stands still while a machine sleeps,
// the other may be set back.
func (s *Store) seated() error {
	since := s.seat.renewed.Load()
	if since == nil {
		return nil
	}
	if e := s.seat.lost.Load(); e != nil {
		return e
	}
	now, sure := time.Now(), time.Duration(s.seat.mine.Silence)*time.Millisecond*3/4
	if now.Sub(*since) < sure && now.Round(0).Sub(since.Round(0)) < sure {
		return nil
	}
	return im.Refuse(im.Unavailable, "seat_lapsed", "this server has not been able to renew its seat on the database for %s, another may be serving now: nothing is acknowledged until it is renewed",
		now.Sub(*since).Round(100*time.Millisecond))
}

// TakeSeat: a method of store.Seats.
func (s *Store) TakeSeat(ctx context.Context, doing string, lost func(error)) error {
	if s.seat.renewed.Load() != nil {
		return im.E(im.Internal, "mongostore.TakeSeat", errors.New("the seat is this store's already"))
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	mine := seatDoc{ID: "seat", Holder: bson.NewObjectID().Hex(), Silence: s.opt.Seat.Milliseconds(), Doing: doing, Host: host, PID: os.Getpid(), Machine: machine(), Began: began(os.Getpid())}
	for {
		if err := s.sit(ctx, &mine); err != nil {
			return err
		}
		before := time.Now()
		ours, err := s.countUp(ctx, mine.Holder, 1, s.opt.Timeout)
		if err != nil {
			return unavailable("TakeSeat", err)
		}
		if ours {
			s.seat.mine = mine
			s.seat.renewed.Store(&before)
			s.seatHeld(true)
			break
		}
	}
	s.jobs.Go(func() { s.keepSeat(lost) })
	return nil
}

// claimPause is between a claim and reading who came first: another's may not be
// with a majority yet, and is not seen until it is.
const claimPause = 5 * time.Millisecond

// sit makes the seat ours as soon as nobody has it.
func (s *Store) sit(ctx context.Context, mine *seatDoc) error {
	var seen seatDoc
	var still time.Time // since when seen has not changed
	for {
		asked := time.Now()
		doc, found, err := one[seatDoc](ctx, s, "seat", s.meta, byID("seat"))
		silence := time.Duration(doc.Silence) * time.Millisecond
		pause := min(silence/20, 200*time.Millisecond)
		switch {
		case err != nil:
			return err
		case found && doc.Holder == mine.Holder:
			return nil
		case !found:
			if err := s.claim(ctx, nil, mine); err != nil {
				return err
			}
			pause = claimPause
		case doc.dead(), doc == seen && time.Since(still) >= silence:
			if err := s.claim(ctx, &doc, mine); err != nil {
				return err
			}
			seen, pause = seatDoc{}, claimPause
		case seen.ID != "" && doc != seen:
			return seatTaken(&doc, s.db.Name())
		case seen.ID == "":
			seen, still = doc, time.Now()
			s.log.Warn("the database is in use: waiting to see whether the holder of its seat is alive", "holder", doc.String())
		case time.Since(asked) > silence/4:
			still = time.Now() // while we could not ask, the holder could not count
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return im.E(im.Unavailable, "mongostore.TakeSeat", ctx.Err())
		case <-s.closing.Done():
			return gone()
		}
	}
}

// claim makes the seat ours if it is still as old says; nil: if there is none.
func (s *Store) claim(ctx context.Context, old, mine *seatDoc) error {
	mine.Since = time.Now().UnixMilli()
	if old == nil {
		err := s.retry(ctx, "seat", func(ctx context.Context) error {
			_, err := s.meta.InsertOne(ctx, mine)
			return err
		})
		if mongo.IsDuplicateKeyError(err) { // by another, or by ourselves before the answer was lost
			return nil
		}
		return err
	}
	return s.retry(ctx, "seat", func(ctx context.Context) error {
		_, err := s.meta.ReplaceOne(ctx, bson.D{{Key: "_id", Value: "seat"}, {Key: "by", Value: old.Holder}, {Key: "n", Value: old.Count}}, mine)
		return err
	})
}

func seatTaken(d *seatDoc, db string) error {
	return im.Refuse(im.Unavailable, "seat_taken", "the database %s is in use: %s. One process at a time may serve or change it: stop that one (one that was killed is given up after %s), or name another database in store.uri",
		db, d, time.Duration(d.Silence)*time.Millisecond)
}

// countUp renews the seat; ours is false if it is somebody else's.
func (s *Store) countUp(ctx context.Context, holder string, count int64, limit time.Duration) (ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := s.meta.UpdateOne(ctx, bson.D{{Key: "_id", Value: "seat"}, {Key: "by", Value: holder}}, bson.D{{Key: "$set", Value: bson.D{{Key: "n", Value: count}}}})
	return err == nil && res.MatchedCount > 0, err
}

// keepSeat counts up until the store is closed or the seat is another's.
func (s *Store) keepSeat(lost func(error)) {
	every := s.opt.Seat / 5
	wait, lapsed := every, false
	for count := int64(2); ; count++ {
		select {
		case <-time.After(wait):
		case <-s.closing.Done():
			return
		}
		before := time.Now()
		ours, err := s.countUp(s.closing, s.seat.mine.Holder, count, every)
		wait = every
		switch {
		case err != nil:
			wait = every / 4 // before it lapses, if that can be
			if why := s.seated(); why != nil && !lapsed && s.closing.Err() == nil {
				lapsed = true
				s.seatHeld(false)
				s.log.Error("the seat on the database is not renewed", "error", err, "reason", im.ReasonOf(why))
			}
		case !ours:
			s.loseSeat(lost)
			return
		default:
			s.seat.renewed.Store(&before)
			if lapsed {
				lapsed = false
				s.seatHeld(true)
				s.log.Info("the seat on the database is renewed")
			}
		}
	}
}

func (s *Store) seatHeld(held bool) {
	if s.opt.Events.Seat != nil {
		s.opt.Events.Seat(held)
	}
}

// loseSeat ends writing for ever.
func (s *Store) loseSeat(lost func(error)) {
	doc, found, err := one[seatDoc](s.closing, s, "seat", s.meta, byID("seat"))
	who := "it was removed by hand"
	switch {
	case err != nil:
		who = "by whom could not be read"
	case found:
		who = "it was taken by " + doc.String()
	}
	e := &im.Error{Kind: im.Unavailable, Code: "seat_lost", Op: "mongostore.seat", Reason: fmt.Sprintf("this process has lost its seat on the database %s while it was silent: %s", s.db.Name(), who)}
	s.seat.lost.Store(e)
	s.seatHeld(false)
	s.log.Error("the seat on the database is lost: nothing is acknowledged any more", "reason", e.Reason)
	if lost != nil {
		lost(e)
	}
}

// leaveSeat gives the seat up at Close.
func (s *Store) leaveSeat(ctx context.Context) {
	if s.seat.renewed.Load() == nil || s.seat.lost.Load() != nil {
		return
	}
	if _, err := s.meta.DeleteOne(ctx, bson.D{{Key: "_id", Value: "seat"}, {Key: "by", Value: s.seat.mine.Holder}}); err != nil {
		s.log.Warn("the seat on the database could not be given up: the next process waits for it", "for", s.opt.Seat, "error", err)
	}
}

// dead reports whether the holder was a process of this machine that is no more,
// so that a server that is started again need not wait.
func (d *seatDoc) dead() bool {
	if d.Machine == "" || d.Began == "" || d.Machine != machine() {
		return false
	}
	p, err := os.FindProcess(d.PID)
	if err == nil {
		err = p.Signal(syscall.Signal(0))
		_ = p.Release()
	}
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
		return true
	}
	b := began(d.PID)
	return b != "" && b != d.Began
}

// machine names where a process id means one process: this boot of the kernel,
// this namespace of process ids. "" where the system does not tell.
func machine() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + ns
}

// began is when the process began, in ticks since boot (proc_pid_stat(5), field
// 22); "ended" for a zombie, "" where it cannot be told.
func began(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name in brackets may hold anything
	if len(f) < 20 {
		return ""
	}
	if f[0] == "Z" || f[0] == "X" {
		return "ended"
	}
	return f[19]
}
