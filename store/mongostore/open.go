package mongostore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/auth"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/connstring"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/topology"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// DefaultDatabase is used when the URI names none.
const DefaultDatabase = "parley"

// Events announces what an operator wants to count. All fields may be nil. They
// are called from many goroutines.
type Events struct {
	Command      func(name string, took time.Duration, failed bool) // one round trip
	Pool         func(open, inUse int)                              // connections, after each change
	Committed    func(entries, bytes int, took time.Duration)       // one batch of one conversation is durable
	CommitFailed func(err error)
	Conflict     func(conv im.ConvID) // another writer took the seq
	Seat         func(held bool)      // the seat is held for certain, or no longer; after TakeSeat
	Retried      func()               // an uncertain outcome was asked for again
	Announce     func() (end func())  // around the outcomes of one batch
}

// Options configure a Store; the zero value is sensible.
type Options struct {
	MaxBatch      int           // entries of one insert; default and most 100
	MaxBatchBytes int           // default 4 MiB
	MaxPending    int           // bytes that wait before Append blocks; default 64 MiB
	Parallel      int           // conversations written at once; default 64
	Timeout       time.Duration // how long an outcome may stay uncertain before Unavailable; default 10 s
	Lease         time.Duration // for how long a writer says it may write to a conversation; default 30 s
	Skew          time.Duration // by how much the clocks of two processes may differ; default 10 s
	Seat          time.Duration // how long a holder of the seat may be silent before it is taken from it; default 10 s
	Migration     time.Duration // how long a process that migrates the schema may be silent before another does it; default 1 min
	Now           func() time.Time
	Log           *slog.Logger
	Events        Events
}

// Store is a store.Store on MongoDB. Make it with Open.
type Store struct {
	opt    Options
	log    *slog.Logger
	client *mongo.Client
	uri    *connstring.ConnString
	db     *mongo.Database

	users, relations, groups, members, txs *mongo.Collection
	messages, convs, dms, reads            *mongo.Collection
	devices, cursors, receipts             *mongo.Collection
	tokens, secrets, retained, notes, meta *mongo.Collection
	tasks                                  *mongo.Collection

	writers writers
	health  health
	doubts  doubts
	mine    sync.Map // ids of the transactions that Commit is at work on here
	seat    seat
	secret  sync.Mutex
	closing context.Context
	shut    context.CancelFunc
	closed  atomic.Bool
	reached atomic.Bool    // the server has answered: what fails later may pass
	jobs    sync.WaitGroup // background work
	pool    struct{ open, used atomic.Int64 }
}

var _ store.Store = (*Store)(nil)

// Open connects to uri (a mongodb:// or mongodb+srv:// string), creates or
// migrates the schema and starts the background work. It fails with Unavailable
// if the server does not answer within Timeout, and with Unsupported if the
// database was written by a later version.
func Open(ctx context.Context, uri string, o Options) (*Store, error) {
	setDefaults(&o)
	s, err := dial(uri, o)
	if err != nil {
		return nil, err
	}
	s.writers.init(s)
	if err := s.migrate(ctx); err != nil {
		s.disconnect()
		return nil, err
	}
	s.jobs.Go(s.watch)
	s.jobs.Go(s.housekeeping)
	return s, nil
}

// dial makes a store that can ask; o has its defaults. End it with disconnect.
func dial(uri string, o Options) (*Store, error) {
	s := &Store{opt: o, log: o.Log}
	if err := s.connect(uri); err != nil {
		return nil, err
	}
	s.closing, s.shut = context.WithCancel(context.Background())
	return s, nil
}

func (s *Store) disconnect() {
	s.shut()
	_ = s.client.Disconnect(context.Background())
}

func setDefaults(o *Options) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	// FerretDB v1 takes an ordered insert in parts of 100 and goes on with the next
	// part after an error, which would leave a hole. On MongoDB more than 100 would
	// do, but the round trip is then no longer what costs.
	def(&o.MaxBatch, 100)
	o.MaxBatch = min(o.MaxBatch, 100)
	def(&o.MaxBatchBytes, 4<<20)
	def(&o.MaxPending, 64<<20)
	def(&o.Parallel, 64)
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Lease == 0 {
		o.Lease = 30 * time.Second
	}
	if o.Skew == 0 {
		o.Skew = 10 * time.Second
	}
	if o.Seat == 0 {
		o.Seat = DefaultSeat
	}
	if o.Migration == 0 {
		o.Migration = time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// clientOptions is what the client of uri is made with. What the promises rest
// on is set after the URI, so that the URI cannot weaken it.
func clientOptions(uri string, opt *Options) (*options.ClientOptions, *connstring.ConnString, error) {
	cs, err := connstring.ParseAndValidate(uri)
	if err != nil {
		return nil, nil, im.Refuse(im.Invalid, "store_uri", "store.uri is not a MongoDB connection string: %s", secretPart.ReplaceAllString(err.Error(), "//…@"))
	}
	journal := true
	o := options.Client().ApplyURI(uri).
		SetServerAPIOptions(options.ServerAPI(options.ServerAPIVersion1).SetStrict(true).SetDeprecationErrors(true)).
		SetWriteConcern(&writeconcern.WriteConcern{W: writeconcern.WCMajority, Journal: &journal}).
		SetReadConcern(readconcern.Majority()).
		SetReadPreference(readpref.Primary()).
		SetRetryWrites(true).SetRetryReads(true).
		SetAppName("parley").
		SetTimeout(opt.Timeout).
		SetServerSelectionTimeout(min(opt.Timeout, 5*time.Second))
	if cs.MaxPoolSize == 0 {
		o.SetMaxPoolSize(uint64(opt.Parallel) + 36) // writers, and readers beside them
	}
	return o, cs, nil
}

func (s *Store) connect(uri string) error {
	o, cs, err := clientOptions(uri, &s.opt)
	if err != nil {
		return err
	}
	s.uri = cs
	if s.client, err = mongo.Connect(o.SetMonitor(s.commandMonitor()).SetPoolMonitor(s.poolMonitor())); err != nil {
		return im.E(im.Unavailable, "mongostore.connect", err)
	}
	name := cs.Database
	if name == "" {
		name = DefaultDatabase
	}
	s.db = s.client.Database(name)
	for coll, to := range s.collections() {
		*to = s.db.Collection(coll)
	}
	return nil
}

// secretPart is user and password of a connection string.
var secretPart = regexp.MustCompile(`//[^/@]*@`)

func (s *Store) collections() map[string]**mongo.Collection {
	return map[string]**mongo.Collection{
		"users": &s.users, "relations": &s.relations, "groups": &s.groups, "members": &s.members, "txs": &s.txs,
		"messages": &s.messages, "convs": &s.convs, "dms": &s.dms, "reads": &s.reads,
		"devices": &s.devices, "cursors": &s.cursors, "receipts": &s.receipts,
		"tokens": &s.tokens, "secrets": &s.secrets, "retained": &s.retained, "notes": &s.notes, "tasks": &s.tasks, "meta": &s.meta,
	}
}

func (s *Store) commandMonitor() *event.CommandMonitor {
	fn := s.opt.Events.Command
	if fn == nil {
		return nil
	}
	return &event.CommandMonitor{
		Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) { fn(e.CommandName, e.Duration, false) },
		Failed:    func(_ context.Context, e *event.CommandFailedEvent) { fn(e.CommandName, e.Duration, true) },
	}
}

func (s *Store) poolMonitor() *event.PoolMonitor {
	fn := s.opt.Events.Pool
	if fn == nil {
		return nil
	}
	return &event.PoolMonitor{Event: func(e *event.PoolEvent) {
		switch e.Type {
		case event.ConnectionCreated:
			s.pool.open.Add(1)
		case event.ConnectionClosed:
			s.pool.open.Add(-1)
		case event.ConnectionCheckedOut:
			s.pool.used.Add(1)
		case event.ConnectionCheckedIn:
			s.pool.used.Add(-1)
		default:
			return
		}
		fn(int(s.pool.open.Load()), int(s.pool.used.Load()))
	}}
}

// closeGrace bounds what Close waits for a MongoDB that does not answer: a server
// that is stopped has ten seconds for everything, and seven for its clients.
const closeGrace = 500 * time.Millisecond

// Close waits for what was accepted, if MongoDB answers in time, says which
// conversations it no longer writes to, and disconnects.
func (s *Store) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return gone()
	}
	overdue := time.AfterFunc(3*closeGrace, s.shut) // what is under way fails then: nobody was told yes
	s.writers.close()
	overdue.Stop()
	s.shut()
	s.jobs.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	s.leaveSeat(ctx)
	return s.client.Disconnect(ctx)
}

// abandon ends the store as a crash does: what waits is not written, nothing is
// said to anybody else. For tests.
func (s *Store) abandon() {
	s.shut()
	s.closed.Store(true)
	s.writers.abandon()
	_ = s.client.Disconnect(context.Background())
	s.jobs.Wait()
}

func gone() error { return im.E(im.Gone, "mongostore", errors.New("the store is closed")) }

func notFound(what string) error { return im.Refuse(im.NotFound, "", "%s not found", what) }

// health is whether MongoDB takes writes.
type health struct {
	mu   sync.Mutex
	down error // nil: it does
}

// Ping reports the outcome of the last writes and, if that was good, whether the
// primary answers now: without traffic no write would notice that it is away.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.up(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	defer cancel()
	if err := s.client.Ping(ctx, readpref.Primary()); err != nil {
		return unavailable("mongostore.Ping", err)
	}
	return nil
}

// up reports the outcome of the last writes, without asking the server.
func (s *Store) up() error {
	if err := s.alive(); err != nil {
		return err
	}
	if err := s.seated(); err != nil {
		return err
	}
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	return s.health.down
}

// failed notes that MongoDB could not be reached in time: from now on writes are
// refused at once, until watch finds it back.
func (s *Store) failed(op string, err error) error {
	s.doubt()
	err = unavailable(op, err)
	if s.closing.Err() != nil {
		return gone()
	}
	if why := s.seated(); why != nil {
		return why
	}
	s.health.mu.Lock()
	first := s.health.down == nil
	s.health.down = err
	s.health.mu.Unlock()
	if first {
		s.log.Error("MongoDB does not take writes: nothing is acknowledged until it does", "error", err)
	}
	if s.opt.Events.CommitFailed != nil {
		s.opt.Events.CommitFailed(err)
	}
	return err
}

// doubts counts what nobody was told of.
type doubts struct {
	sync.Mutex
	n    uint64
	last time.Time
}

// doubt notes that the log or the rows may hold what nobody was told of.
func (s *Store) doubt() {
	s.doubts.Lock()
	defer s.doubts.Unlock()
	s.doubts.n += 2
	s.doubts.last = s.opt.Now()
}

// Doubts: a method of store.Log. What was sent and not answered may still come
// to be done, for as long as a writer may write; when that is over it moves once
// more.
func (s *Store) Doubts() uint64 {
	s.doubts.Lock()
	defer s.doubts.Unlock()
	n := s.doubts.n
	if n > 0 && s.opt.Now().Sub(s.doubts.last) > max(s.opt.Lease+s.opt.Timeout+s.opt.Skew, txPatience) {
		n++
	}
	return n
}

func unavailable(op string, err error) error {
	return &im.Error{Kind: im.Unavailable, Code: "store_unavailable", Op: "mongostore." + op, Reason: "the database does not answer", Err: err}
}

// watchEvery is how often a server that is down is tried.
const watchEvery = 250 * time.Millisecond

// watch brings the store back: while it is down a small write is tried.
func (s *Store) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.closing.Done():
			return
		}
		s.health.mu.Lock()
		down := s.health.down
		s.health.mu.Unlock()
		if down == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(s.closing, time.Second)
		_, err := s.meta.UpdateOne(ctx, bson.D{{Key: "_id", Value: "ping"}}, bson.D{{Key: "$set", Value: bson.D{{Key: "at", Value: s.opt.Now().UnixMilli()}}}}, options.UpdateOne().SetUpsert(true))
		cancel()
		if err != nil && !mongo.IsDuplicateKeyError(err) {
			continue
		}
		s.health.mu.Lock()
		s.health.down = nil
		s.health.mu.Unlock()
		s.log.Info("MongoDB takes writes again")
	}
}

// transient says that the outcome of a write is unknown, or that it was not done
// for a reason that passes: a lost connection, a time-out, an election.
func transient(err error) bool {
	if err == nil {
		return false
	}
	if mongo.IsNetworkError(err) || mongo.IsTimeout(err) || errors.Is(err, mongo.ErrClientDisconnected) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var lbl mongo.LabeledError
	if errors.As(err, &lbl) && (lbl.HasErrorLabel("RetryableWriteError") || lbl.HasErrorLabel("TransientTransactionError")) {
		return true
	}
	var se mongo.ServerError
	if errors.As(err, &se) {
		for _, code := range transientCodes {
			if se.HasErrorCode(code) {
				return true
			}
		}
	}
	var wce *mongo.WriteConcernError
	if errors.As(err, &wce) {
		return true
	}
	var we mongo.WriteException
	if errors.As(err, &we) && we.WriteConcernError != nil && len(we.WriteErrors) == 0 {
		return true
	}
	var be mongo.BulkWriteException
	if errors.As(err, &be) && be.WriteConcernError != nil {
		return true
	}
	return errors.As(err, new(topology.ServerSelectionError)) || errors.As(err, new(topology.ConnectionError))
}

// transientCodes are server errors after which the same command may do: the
// server did not do it or nobody knows, and what made it so passes. (MongoDB:
// Error Codes, src/mongo/base/error_codes.yml; the Retryable Writes and Retryable
// Reads specifications.) All others are definite.
var transientCodes = []int{
	6, 7, 89, 202, 407, 9001, // a node or shard was not reached, or not in time
	91, 133, 189, 216, 10058, 10107, 11600, 11602, 13435, 13436, // shutdown, an election, no primary
	50, 262, 11601, // it took too long, or an operator killed it
	64, 134, // a majority has not got it yet
	24, 46, 112, 117, 314, 365, 402, 412, 433, 449, // in the way of others, or too much at once
	43, 175, 237, // a cursor or plan ended early
	150, 246, 249, 13388, // a shard, or the router, knows an old distribution
	217, 225, 228, // whether the first try of a retryable write was done is not known any more
}

// retry runs an idempotent write until it is done, its error does not pass,
// Timeout is over (then Unavailable), or another process may have the seat.
func (s *Store) retry(ctx context.Context, op string, fn func(context.Context) error) error {
	return s.retryFor(ctx, s.opt.Timeout, op, func(ctx context.Context) error {
		if err := s.seated(); err != nil {
			return err
		}
		return fn(ctx)
	})
}

// ask is retry for what only reads.
func (s *Store) ask(ctx context.Context, op string, fn func(context.Context) error) error {
	return s.retryFor(ctx, s.opt.Timeout, op, fn)
}

func (s *Store) retryFor(ctx context.Context, limit time.Duration, op string, fn func(context.Context) error) error {
	if err := s.alive(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(s.closing, cancel)
	defer stop()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		try, done := s.attempt(ctx)
		err := fn(try)
		done()
		if err == nil && !s.reached.Load() {
			s.reached.Store(true)
		}
		if !s.reached.Load() && errors.As(err, new(*auth.Error)) {
			return &im.Error{Kind: im.Unauthorized, Code: "store_auth", Op: "mongostore." + op, Err: err, Reason: "MongoDB does not take the user or password of store.uri (is authSource right?)"}
		}
		if err == nil || !transient(err) {
			return wrap(op, err)
		}
		if s.opt.Events.Retried != nil {
			s.opt.Events.Retried()
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			if s.closing.Err() != nil {
				return gone()
			}
			return unavailable(op, err)
		}
	}
}

// attempt bounds one round trip, so that a server that took a command and fell
// silent leaves time to ask again.
func (s *Store) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.opt.Timeout/3)
}

func (s *Store) alive() error {
	if s.closing.Err() != nil {
		return gone()
	}
	return nil
}

// wrap gives a driver's error a kind; errors of this house pass.
func wrap(op string, err error) error {
	var ours *im.Error
	if err == nil || errors.As(err, &ours) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return im.E(im.Internal, "mongostore."+op, fmt.Errorf("MongoDB: %w", err))
}

// housekeeping finishes what crashed processes left and closes idle writers.
func (s *Store) housekeeping() {
	tick := time.NewTicker(s.opt.Lease / 4)
	defer tick.Stop()
	for {
		if err := s.finishOldTxs(s.closing); err != nil && s.closing.Err() == nil {
			s.log.Warn("unfinished transactions not looked at, will try again", "error", err)
		}
		s.writers.retire(false)
		select {
		case <-tick.C:
		case <-s.closing.Done():
			return
		}
	}
}
