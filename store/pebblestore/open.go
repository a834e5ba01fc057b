package pebblestore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// formatVersion is the version of keys and values that this code writes. It reads
// those before it too: the first had one row for each entry, the second no index
// of edits.
const (
	formatVersion = 3
	editsFormat   = 3
	firstFormat   = 1
)

// Events announces what an operator wants to count. All fields may be nil.
type Events struct {
	Committed    func(entries, bytes int, took time.Duration) // a batch is durable; took is from its start to the end of its sync
	CommitFailed func(err error)
	// Announce is called around the outcomes of one commit: before the first Done,
	// and what it returned after the last.
	Announce func() (done func())
}

// Options configure a Store; the zero value is sensible.
type Options struct {
	FS            vfs.FS        // default: the operating system's
	CacheBytes    int64         // block cache; default 64 MiB
	MemTableBytes uint64        // default 32 MiB
	MaxBatch      int           // entries of one commit; default 2048
	MaxBatchBytes int           // default 4 MiB
	MaxPending    int           // bytes that wait for the sequencer before Append blocks; default 64 MiB
	MaxHeads      int           // conversations whose head is kept in memory; default 500,000
	DedupeWindow  time.Duration // how long an id is remembered, at least; default 4 days
	MinFree       uint64        // bytes of disk to leave free; default 64 MiB; only with the real file system
	Now           func() time.Time
	Log           *slog.Logger
	Events        Events

	rewriteAge time.Duration // how old a file of values is that is rewritten; default 5 minutes
}

// Store is a store.Store on Pebble. Make it with Open.
type Store struct {
	dir   string
	opt   Options
	log   *slog.Logger
	lock  *pebble.Lock
	cache *pebble.Cache

	db struct {
		sync.RWMutex
		*pebble.DB       // nil while broken
		err        error // why it is
	}
	queue    queue
	heads    heads
	announce chan *commit
	inFlight atomic.Int64  // commits with the announcer
	epoch    uint32        // of dedupe rows; the sequencer's
	nextConv uint64        // the sequencer's
	batches  uint64        // the sequencer's: how many it has begun
	burst    [][]*im.Entry // the sequencer's, to use again: entries of a batch by conversation
	scratch  []byte        // the sequencer's, to use again
	free     freeSpace
	bad      atomic.Pointer[failure] // the last commit failed: why
	gen      atomic.Uint64           // how often the database was opened again
	doubts   atomic.Uint64           // how often that was, or a commit failed
	done     chan struct{}           // sequencer and announcer have ended
	reads    sync.Mutex              // PutRead: read, compare, write
	tokens   sync.Mutex              // UseToken and DropTokens likewise
	secrets  sync.Mutex              // Secret and PutSecret likewise
	tasks    sync.Mutex              // PutTasks and TakeTasks likewise
	notes    sync.RWMutex            // held for writing by SwapNote, for reading by PutNotes
	closing  context.Context
	shut     context.CancelFunc
}

type failure struct{ err error }

var (
	_ store.Store        = (*Store)(nil)
	_ store.Checkpointer = (*Store)(nil)
)

// Open opens the store in dir, which is made if it is not there. It fails with
// Unavailable if another process has it open and with Unsupported if it was
// written by another version.
func Open(dir string, o Options) (*Store, error) {
	setDefaults(&o)
	s := &Store{dir: dir, opt: o, log: o.Log, announce: make(chan *commit, 2), done: make(chan struct{})}
	s.closing, s.shut = context.WithCancel(context.Background())
	s.queue.init(o.MaxPending)
	s.heads.init(o.MaxHeads)
	if err := o.FS.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	lock, err := pebble.LockDirectory(dir, o.FS)
	if err != nil {
		return nil, &im.Error{Kind: im.Unavailable, Code: "store_locked", Op: "pebblestore.Open", Err: err,
			Reason: fmt.Sprintf("the data directory %s is in use by another process: stop it, or choose another directory", dir)}
	}
	s.lock = lock
	s.cache = pebble.NewCache(o.CacheBytes)
	db, err := s.open()
	if err != nil {
		s.cache.Unref()
		_ = lock.Close()
		return nil, err
	}
	if err := s.warmLog(db); err != nil {
		_ = closeDB(db, false)
		s.cache.Unref()
		_ = lock.Close()
		return nil, err
	}
	s.db.DB = db
	go s.run()
	return s, nil
}

func setDefaults(o *Options) {
	if o.FS == nil {
		o.FS = vfs.Default
	} else {
		o.MinFree = 0
	}
	if o.MinFree == 0 && o.FS == vfs.Default {
		o.MinFree = 64 << 20
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes <= 0 {
		o.MemTableBytes = 32 << 20
	}
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&o.MaxBatch, 2048)
	def(&o.MaxBatchBytes, 4<<20)
	def(&o.MaxPending, 64<<20)
	def(&o.MaxHeads, 500_000)
	if o.DedupeWindow <= 0 {
		o.DedupeWindow = 4 * 24 * time.Hour
	}
	if o.rewriteAge <= 0 {
		o.rewriteAge = 5 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// quiet is Pebble's logger. Fatalf must not return: Pebble calls it when a
// commit failed and would go on as if it had not.
type quiet struct{ s *Store }

type fatal struct{ err error }

func (quiet) Infof(string, ...any) {}
func (q quiet) Errorf(format string, args ...any) {
	q.s.log.Error("store", "error", fmt.Sprintf(format, args...))
}
func (q quiet) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if ours() {
		panic(fatal{err}) // recovered where we called Pebble
	}
	// A flush or compaction of Pebble's own could not write down what it did. The
	// database in memory is of no use any more and cannot be closed; on disk
	// everything that was acknowledged is safe.
	q.s.log.Error("the store cannot go on and the process ends: nothing that was acknowledged is lost; start it again once the disk works", "error", err)
	os.Exit(1)
}

// ours reports whether the calling goroutine is in a call of this package.
func ours() bool {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])]) // without Fatalf and ours
	for {
		f, more := frames.Next()
		if strings.Contains(f.Function, "/store/pebblestore.") {
			return true
		}
		if !more {
			return false
		}
	}
}

func (s *Store) options(readOnly bool) *pebble.Options {
	o := &pebble.Options{
		FS: s.opt.FS, Cache: s.cache, Lock: s.lock, Logger: quiet{s}, ReadOnly: readOnly,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                s.opt.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       20,
		MaxOpenFiles:                1000,
	}
	o.Experimental.ValueSeparationPolicy = s.separation
	for i := range o.Levels {
		o.Levels[i].BlockSize = 16 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	}
	return o
}

// separation keeps bodies out of compactions: what is long, which is bursts and
// long messages, is written once, to a file of values, and only where it lies is
// rewritten. A file that is a fifth garbage is written again.
func (s *Store) separation() pebble.ValueSeparationPolicy {
	return pebble.ValueSeparationPolicy{
		Enabled:               true,
		MinimumSize:           256,
		MaxBlobReferenceDepth: 10,
		RewriteMinimumAge:     s.opt.rewriteAge,
		TargetGarbageRatio:    0.2,
	}
}

// open opens the database and reads what the sequencer needs to know.
func (s *Store) open() (db *pebble.DB, err error) {
	defer recoverFatal(&err)
	db, err = pebble.Open(s.dir, s.options(false))
	if err != nil {
		return nil, im.E(im.Unavailable, "pebblestore.Open", err)
	}
	if err := s.takeOver(db); err != nil {
		_ = db.Close()
		return nil, err
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{tMsg}, UpperBound: []byte{tMsg + 1}})
	if err != nil {
		_ = db.Close()
		return nil, im.E(im.Unavailable, "pebblestore.Open", err)
	}
	_ = it.Close()
	v, closer, err := db.Get(key(tMeta, "conversations"))
	switch {
	case err == nil:
		s.nextConv = binary.BigEndian.Uint64(v)
		_ = closer.Close()
	case !errors.Is(err, pebble.ErrNotFound):
		_ = db.Close()
		return nil, im.E(im.Unavailable, "pebblestore.Open", err)
	default:
		s.nextConv = 0
	}
	if s.epoch, err = s.firstEpoch(db); err != nil {
		_ = db.Close()
		return nil, im.E(im.Unavailable, "pebblestore.Open", err)
	}
	return db, s.expireDedupe(db)
}

// warmBytes is how much of the write-ahead log is laid out at the start.
const warmBytes = 16 << 20

// warmLog makes Pebble begin with a recycled write-ahead log. A sync after an
// append to a growing file has to write the file's size too; one that overwrites
// a recycled log does not, and takes about half as long. Pebble recycles its
// logs by itself, but only after the first memtables were flushed.
func (s *Store) warmLog(db *pebble.DB) (err error) {
	if s.opt.FS != vfs.Default {
		return nil
	}
	defer recoverFatal(&err)
	filler := make([]byte, 1<<20)
	for range 2 { // the first flush retires a log of this size, the second puts it to use
		b := db.NewBatch()
		for range warmBytes / len(filler) / 2 {
			if err := b.LogData(filler, nil); err != nil {
				return err
			}
			if err := db.Apply(b, pebble.NoSync); err != nil {
				return err
			}
			b.Reset()
		}
		_ = b.Close()
		if err := db.Set(key(tMeta, "opened"), []byte(s.opt.Now().UTC().Format(time.RFC3339)), pebble.Sync); err != nil {
			return err
		}
		if err := db.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// takeOver brings a store of an earlier format to this one; a new store has it
// from the start. Older versions refuse it from then on.
func (s *Store) takeOver(db *pebble.DB) error {
	found, err := checkFormat(db, s.dir)
	if err != nil {
		return err
	}
	switch {
	case found == formatVersion:
		return nil
	case found != 0 && found < editsFormat:
		s.log.Info("the store is of an earlier version: its log is read once, to know its edits", "format", found)
		if err := indexEdits(db); err != nil {
			return im.E(im.Unavailable, "pebblestore.Open", err)
		}
	}
	return db.Set(key(tMeta, "format"), []byte(strconv.Itoa(formatVersion)), pebble.Sync)
}

// checkFormat returns the format of the store, 0 if it is new, and refuses what
// this version cannot read.
func checkFormat(db *pebble.DB, dir string) (int, error) {
	v, closer, err := db.Get(key(tMeta, "format"))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, im.E(im.Unavailable, "pebblestore.Open", fmt.Errorf("no Parley store in %s: %w", dir, err))
	}
	found := string(v)
	_ = closer.Close()
	n, err := strconv.Atoi(found)
	if err != nil || n < firstFormat || n > formatVersion {
		return 0, im.Refuse(im.Unsupported, "store_format", "the store in %s has format %s, this version of Parley reads formats %d to %d: use the version that wrote it, or export and import",
			dir, found, firstFormat, formatVersion)
	}
	return n, nil
}

func recoverFatal(err *error) {
	switch r := recover().(type) {
	case nil:
	case fatal:
		*err = im.E(im.Unavailable, "pebblestore", r.err)
	default:
		panic(r)
	}
}

// view calls fn with the database, or fails with Unavailable or Gone.
func (s *Store) view(ctx context.Context, fn func(*pebble.DB) error) (err error) {
	if ctx.Err() != nil {
		return im.E(im.Unavailable, "pebblestore", ctx.Err())
	}
	s.db.RLock()
	defer s.db.RUnlock()
	if s.db.DB == nil {
		return s.db.err
	}
	defer recoverFatal(&err)
	if err = fn(s.db.DB); err != nil {
		var e *im.Error
		if !errors.As(err, &e) {
			err = im.E(im.Unavailable, "pebblestore", err)
		}
	}
	return err
}

// Close commits what was accepted and closes the database.
func (s *Store) Close() error {
	s.queue.close()
	s.shut()
	<-s.done
	s.db.Lock()
	defer s.db.Unlock()
	db := s.db.DB
	s.db.DB, s.db.err = nil, gone()
	if db == nil {
		return nil
	}
	err := closeDB(db, true)
	s.cache.Unref()
	if e := s.lock.Close(); err == nil {
		err = e
	}
	return err
}

func closeDB(db *pebble.DB, flush bool) (err error) {
	defer recoverFatal(&err)
	if flush {
		if err := db.Flush(); err != nil { // so that the next open replays nothing
			_ = db.Close()
			return im.E(im.Unavailable, "pebblestore.Close", err)
		}
	}
	if err := db.Close(); err != nil {
		return im.E(im.Unavailable, "pebblestore.Close", err)
	}
	return nil
}

func gone() error { return im.E(im.Gone, "pebblestore", errors.New("the store is closed")) }

// Ping reports the outcome of the last commit: a method of store.Store.
func (s *Store) Ping(context.Context) error {
	if f := s.bad.Load(); f != nil {
		return f.err
	}
	s.db.RLock()
	defer s.db.RUnlock()
	if s.db.DB == nil {
		return s.db.err
	}
	return s.free.check(s.dir, s.opt.MinFree, s.opt.Now())
}

// TakeSeat: a method of store.Seats. The lock of the directory is the seat.
func (s *Store) TakeSeat(context.Context, string, func(error)) error { return nil }

// Checkpoint writes a consistent copy into dir: a method of store.Checkpointer.
func (s *Store) Checkpoint(ctx context.Context, dir string) error {
	return s.view(ctx, func(db *pebble.DB) error {
		if err := db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
			return im.E(im.Unavailable, "pebblestore.Checkpoint", fmt.Errorf("copy to %s: %w", dir, err))
		}
		return nil
	})
}

// Info is what Verify found.
type Info struct {
	Format        int
	Conversations int
	Entries       int
	Users         int
	Devices       int
	Partial       string // what SetPartial noted
}

// Verify opens the store in dir for reading, checks its format and that every
// conversation is dense and every entry readable, and counts.
func Verify(dir string) (info Info, err error) {
	defer recoverFatal(&err)
	o := Options{}
	setDefaults(&o)
	s := &Store{dir: dir, opt: o, log: o.Log}
	if _, err := o.FS.Stat(filepath.Clean(dir)); err != nil {
		return info, im.Refuse(im.NotFound, "store_absent", "there is no directory %s", dir)
	}
	s.cache = pebble.NewCache(o.CacheBytes)
	defer s.cache.Unref()
	db, err := pebble.Open(dir, s.options(true))
	if err != nil {
		return info, im.E(im.Unavailable, "pebblestore.Verify", fmt.Errorf("%s: %w", dir, err))
	}
	defer func() { _ = db.Close() }()
	format, err := checkFormat(db, dir)
	if err == nil && format == 0 {
		err = im.E(im.Unavailable, "pebblestore.Open", fmt.Errorf("no Parley store in %s", dir))
	}
	if err != nil {
		return info, err
	}
	info.Format = format
	partial, err := get(db, key(tMeta, "partial"))
	if err != nil {
		return info, im.E(im.Unavailable, "pebblestore.Verify", err)
	}
	info.Partial = string(partial)
	for table, n := range map[byte]*int{tUser: &info.Users, tDevice: &info.Devices, tConv: &info.Conversations} {
		if err := scan(db, []byte{table}, func(_, _ []byte) bool { *n++; return true }); err != nil {
			return info, im.E(im.Unavailable, "pebblestore.Verify", err)
		}
	}
	var conv uint64
	var last im.Seq
	var fault error
	err = scan(db, []byte{tMsg}, func(k, v []byte) bool {
		num := binary.BigEndian.Uint64(k[1:])
		es, e := readRow("", k, v, 0)
		if e != nil {
			fault = fmt.Errorf("conversation %d, row of seq %d: %w", num, seqOf(k), e)
			return false
		}
		if num == conv && es[0].Seq != last+1 {
			fault = fmt.Errorf("conversation %d: after seq %d comes %d", num, last, es[0].Seq)
		}
		conv, last = num, seqOf(k)
		info.Entries += len(es)
		return fault == nil
	})
	if err == nil {
		err = fault
	}
	if err != nil {
		return info, im.E(im.Internal, "pebblestore.Verify", err)
	}
	return info, nil
}

// scan calls fn for every key below prefix p until it returns false. Key and
// value are valid during the call.
func scan(r pebble.Reader, p []byte, fn func(k, v []byte) bool) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: p, UpperBound: after(p)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			_ = it.Close()
			return err
		}
		if !fn(it.Key(), v) {
			break
		}
	}
	return errors.Join(it.Error(), it.Close())
}
