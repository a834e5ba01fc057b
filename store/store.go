package store

import (
	"context"

	"github.com/parley-im/parley/im"
)

// Store is all of it. Rooms declare the part they need.
type Store interface {
	Log
	Roster
	Accounts
	Devices
	Retained
	Notes
	Tasks
	Mover
	Seats

	// Commit writes tx whole or not at all and returns once it is durable.
	// Rows carry the version they were read with; if one has changed since
	// (or exists, for version 0) nothing is written and the error is Conflict.
	// Entries of the transaction are appended in the same commit and their Done
	// is called as by Append, before or after Commit returns.
	Commit(ctx context.Context, tx *Tx) error

	// Secret returns the named secret, storing make()'s result first if there is
	// none; concurrent callers get the same bytes. Durable on return.
	Secret(ctx context.Context, name string, make func() ([]byte, error)) ([]byte, error)

	// PutSecret replaces the named secret. Durable on return.
	PutSecret(ctx context.Context, name string, value []byte) error

	// Ping reports whether the store can commit now: nil, or an Unavailable
	// error that says why. It is cheap: the state left by the last commit.
	Ping(ctx context.Context) error

	// Close commits what was accepted, flushes and releases the store.
	Close() error
}

// Log is the set of append-only conversations.
type Log interface {
	// Append hands entries over to the sequencer and returns at once; it blocks
	// only while the sequencer's queue is full (Options of the engine). From the
	// call on, each Append belongs to the store until its Done is called.
	//
	// Done is called exactly once for each, from a goroutine of the store, after
	// the commit: then Err is nil and Entry.Seq and Entry.TS are set, or Err says
	// why nothing was written. Done calls of one conversation come in seq order;
	// those of different conversations in any. Done must not block.
	//
	// Entries of one call for one conversation get increasing seqs, and calls
	// made one after another by one goroutine keep their order.
	Append(as ...*Append)

	// Range returns the entries of conv with after < seq, ascending, until limit
	// entries or until their sizes pass maxBytes (at least one entry is returned
	// if there is one). It sees every entry whose Done has been called.
	Range(ctx context.Context, conv im.ConvID, after im.Seq, limit, maxBytes int) ([]*im.Entry, error)

	// Before returns the last limit entries with seq < before (0: from the end),
	// ascending.
	Before(ctx context.Context, conv im.ConvID, before im.Seq, limit int) ([]*im.Entry, error)

	// Entry returns one entry; NotFound if there is none at seq.
	Entry(ctx context.Context, conv im.ConvID, seq im.Seq) (*im.Entry, error)

	// Heads returns the head of each conversation, in the order asked; the zero
	// Head for an empty one.
	Heads(ctx context.Context, convs []im.ConvID) ([]Head, error)

	// Doubts moves whenever the store holds, or may yet hold, what nobody was told
	// of: a commit failed whose outcome is not known, or one that somebody else left
	// half done was finished. Who remembers what Done, Commit and reads have told
	// reads anew once it is not what it was before they read. It does not block.
	Doubts() uint64

	// EachConversation calls fn for every conversation that has had an entry and
	// whose id is greater than after, in their order, until it returns false.
	EachConversation(ctx context.Context, after im.ConvID, fn func(im.ConvID) bool) error

	// Trim forgets the entries of conv up to and including upTo. Seqs are never
	// reused. Queues of the plain space are trimmed as they are acknowledged.
	Trim(ctx context.Context, conv im.ConvID, upTo im.Seq) error
}

// Head is the end of a conversation.
type Head struct {
	Seq    im.Seq // of the last entry; 0 when empty
	TS     int64  // of the last entry, Unix ms
	ReadTS int64  // when a read watermark last moved, Unix ms; 0 never
}

// Append is one entry on its way into the log.
//
// An OpRecall empties, in the same commit, the entry Ref and every OpEdit of Ref
// that follows it in the log: Body and Type go, FlagRecalled is set. An OpEdit of an entry
// that was recalled before is itself appended so. Entries between are not sent through
// the engine. Ref need not be there.
type Append struct {
	Entry im.Entry // Seq and TS are set by the store

	// Packet, if not zero, is the QoS 2 packet id under which Entry.Device of
	// Entry.From published: the commit also writes a receipt, and finding one
	// means the same publish came before (a duplicate). [MQTT-4.3.3-2]
	Packet uint16

	// Retain, if not nil, is written in the same commit (plain space).
	Retain *RetainedMessage

	// NoEntry: only the side rows (Packet, Retain) are written, nothing is
	// appended and no seq is taken.
	NoEntry bool

	// Done receives the append back. It may be nil.
	Done func(*Append)

	// Results, valid in Done.
	Dup bool  // the entry existed (by ID or Packet): Entry.Seq and TS are the original's, nothing was appended
	Err error // nothing was written

	// Owner is the caller's: whom the outcome concerns. The store ignores it.
	Owner any
}

// Dedupe: an Append with a non-empty Entry.ID is looked up by (Conv, From, ID)
// among those committed within the engine's dedupe window (at least 4 days) and
// comes back with Dup set when found; OpEvent and OpPublish entries are not.

// Tx is a set of rows and entries that are committed together.
type Tx struct {
	Users     []User
	Relations []Relation
	Groups    []Group
	Members   []Member
	Entries   []*Append
}

// Roster is who knows whom and who is where.
type Roster interface {
	// Relation returns what u has to do with peer; the zero Relation with User
	// and Peer set, and Ver 0, when there is nothing.
	Relation(ctx context.Context, u, peer im.UserID) (Relation, error)
	// Relations returns all of u's rows, by peer.
	Relations(ctx context.Context, u im.UserID) ([]Relation, error)
	Group(ctx context.Context, g im.GroupID) (Group, error)
	// Member returns u's row in g, NotFound if u is not a member.
	Member(ctx context.Context, g im.GroupID, u im.UserID) (Member, error)
	Members(ctx context.Context, g im.GroupID) ([]Member, error)
	// MemberIn returns u's rows in those of groups that u is a member of, in any
	// order; the groups differ.
	MemberIn(ctx context.Context, u im.UserID, groups []im.GroupID) ([]Member, error)
	// Conversations returns every log u takes part in: DMs with at least one
	// entry, groups u is a member of, and u's account log; ordered by ConvID.
	Conversations(ctx context.Context, u im.UserID) ([]Participation, error)

	// PutRead raises u's read watermark in conv to seq and returns what it is
	// then; it never goes back. Visible at once, durable soon.
	PutRead(ctx context.Context, conv im.ConvID, u im.UserID, seq im.Seq) (im.Seq, error)
	// Reads returns the watermarks of conv changed at or after since (Unix ms).
	Reads(ctx context.Context, conv im.ConvID, since int64) ([]Read, error)
	// ReadsOf returns u's own watermark in each of convs, in order.
	ReadsOf(ctx context.Context, u im.UserID, convs []im.ConvID) ([]im.Seq, error)
}

// Participation is one log of a user, and where it begins for them.
type Participation struct {
	Conv  im.ConvID
	Start im.Seq // the user may see entries with seq > Start
}

// Read is a reader's watermark.
type Read struct {
	User im.UserID
	Seq  im.Seq
	TS   int64
}

// Relation is one side of two users' relation; both sides are written together.
type Relation struct {
	User, Peer im.UserID
	State      RelationState
	Blocked    bool   // User has blocked Peer
	Remark     string // User's name for Peer
	Message    string // with a request
	Since      int64  // of State, Unix ms
	Ver        uint64 // set by the store at each write; 0: no row
}

// RelationState is what User is to Peer.
type RelationState uint8

// Relation states. Stored: never renumber. A row with Stranger, no block and no
// remark is removed.
const (
	Stranger RelationState = iota
	Asked                  // User asked Peer
	Asking                 // Peer asked User
	Friends
)

// Group is a group's row. Ver as in Relation. Deleted groups keep a row with
// Dissolved set, so that an id is never used again.
type Group struct {
	ID         im.GroupID
	Name       string
	Owner      im.UserID
	Join       string // "invite" (members bring in friends) or "admin" (only owner and admins do)
	MaxMembers int
	MuteAll    bool // only owner and admins may write
	Created    int64
	Dissolved  bool
	Ver        uint64
}

// Member is one member's row. A Member with Role "" removes the row.
type Member struct {
	Group      im.GroupID
	User       im.UserID
	Role       string // "owner", "admin", "member"
	MutedUntil int64  // Unix ms; may not write before; 0 not muted
	Start      im.Seq // sees entries with seq > Start; AtHead: the store puts in the head
	Since      int64
	Ver        uint64
}

// AtHead, as Member.Start in a Tx, stands for the head of the group's
// conversation before the entries of that Tx: the new member sees those.
const AtHead = ^im.Seq(0)

// Accounts is who may come in.
type Accounts interface {
	User(ctx context.Context, u im.UserID) (User, error)
	// FindUsers returns up to limit users whose id or name begins with prefix,
	// by id; a prefix of "" matches all. after is exclusive, "" from the start.
	FindUsers(ctx context.Context, prefix string, after im.UserID, limit int) ([]User, error)

	// PutToken stores a refresh token under its hash, replacing the row.
	PutToken(ctx context.Context, t Token) error
	Token(ctx context.Context, hash string) (Token, error)
	// UseToken marks the token used, atomically: the first caller gets it with
	// Used 0, everyone after with the time it was first used. NotFound if unknown.
	UseToken(ctx context.Context, hash string, now int64) (Token, error)
	// DropTokens removes the refresh tokens of u that keep returns false for.
	DropTokens(ctx context.Context, u im.UserID, keep func(Token) bool) error
}

// User is an account.
type User struct {
	ID       im.UserID
	Name     string
	Role     string // "" or "admin"
	Password string // argon2id, PHC string format; "" cannot log in
	Disabled bool
	Created  int64
	// NotBefore revokes: access tokens issued before this Unix ms are refused.
	NotBefore int64
	Ver       uint64
}

// Token is a refresh token, known by the hash of its secret.
type Token struct {
	Hash    string // hex SHA-256
	User    im.UserID
	Device  im.DeviceID // "" when not bound to one
	Family  string      // all rotations of one login share it
	Issued  int64       // Unix ms
	Expires int64       // Unix ms
	Used    int64       // Unix ms of rotation; 0 not yet
}

// Devices is what the store knows of each device.
type Devices interface {
	Device(ctx context.Context, k im.DeviceKey) (Device, error)
	DevicesOf(ctx context.Context, u im.UserID) ([]Device, error)
	// CountDevices is how many devices u has, without reading them.
	CountDevices(ctx context.Context, u im.UserID) (int, error)
	// EachDevice calls fn for every device of every user until it returns false.
	// fn must not call the store.
	EachDevice(ctx context.Context, fn func(Device) bool) error
	// PutDevice stores d. Visible at once; durable on return if sync, else soon.
	PutDevice(ctx context.Context, d Device, sync bool) error
	// DropDevice forgets the device: row, cursors, receipts and queue log.
	DropDevice(ctx context.Context, k im.DeviceKey) error

	// Cursors returns all cursors of a device, by ConvID.
	Cursors(ctx context.Context, k im.DeviceKey) ([]Cursor, error)
	// Cursor returns one; the zero Cursor with Conv set and Known false if absent.
	Cursor(ctx context.Context, k im.DeviceKey, conv im.ConvID) (Cursor, error)
	// CursorsOf returns the cursor in each of convs, which differ, in their order;
	// where there is none as Cursor.
	CursorsOf(ctx context.Context, k im.DeviceKey, convs []im.ConvID) ([]Cursor, error)
	// PutCursors stores cursors. Visible at once, durable soon: losing one
	// repeats messages, never loses them.
	PutCursors(ctx context.Context, k im.DeviceKey, cs []Cursor) error
	// ResetCursors replaces all cursors of the device by cs (a clean start).
	ResetCursors(ctx context.Context, k im.DeviceKey, cs []Cursor) error

	// Receipt returns the receipt of a QoS 2 publish that was committed and not
	// yet released; NotFound if there is none.
	Receipt(ctx context.Context, k im.DeviceKey, packet uint16) (Receipt, error)
	// Release forgets a receipt (PUBREL). packet 0 forgets all of the device.
	// Visible at once, durable soon.
	Release(ctx context.Context, k im.DeviceKey, packet uint16) error
}

// Receipt is the outcome of a QoS 2 publish.
type Receipt struct {
	Packet uint16
	Conv   im.ConvID
	Seq    im.Seq
	TS     int64
}

// Device is one device of one user.
type Device struct {
	Key      im.DeviceKey
	Created  int64 // Unix ms
	LastSeen int64 // Unix ms of the last disconnect or connect
	Version  byte  // MQTT protocol version of the last connection: 4 or 5; 0 never connected
	Session  Session
}

// Session is the MQTT session of a device: what SUBSCRIBE asked for. Cursors are
// not part of it: they outlive it.
type Session struct {
	Subs    []Subscription
	Expiry  uint32 // Session Expiry Interval, seconds; 0xFFFFFFFF never
	Ended   int64  // Unix ms when the connection ended; 0 while connected
	Present bool   // there is one
}

// Subscription is one filter of a session, with its options.
type Subscription struct {
	Filter            string
	ID                int // Subscription Identifier, 0 none
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// Cursor is how far a device has acknowledged one log.
type Cursor struct {
	Conv  im.ConvID
	Acked im.Seq   // everything up to here is acknowledged
	Sent  im.Seq   // highest seq ever put on a wire: up to here a resend has DUP
	Ahead []im.Seq // acknowledged beyond Acked, ascending; at most a window
	Known bool     // there is a row
}

// Retained is the retained messages of the plain space.
type Retained interface {
	// EachRetained calls fn for every retained message, until it returns false.
	EachRetained(ctx context.Context, fn func(RetainedMessage) bool) error
}

// RetainedMessage is one retained publication; an empty Body removes it.
type RetainedMessage struct {
	Topic   string
	Body    []byte
	QoS     byte
	Props   []byte // MQTT 5 properties to hand on, encoded by the plain space
	Type    string
	Flags   im.Flags
	TS      int64 // Unix ms of the publication
	Expires int64 // Unix ms; 0 never
}

// Notes keeps small rows of rooms, whose form the store need not know. A key is
// the room's name, a slash and what the room likes.
type Notes interface {
	// Note returns the value of key, NotFound if there is none.
	Note(ctx context.Context, key string) ([]byte, error)
	// EachNote calls fn for every note whose key begins with prefix, by key, until
	// it returns false. fn must not call the store.
	EachNote(ctx context.Context, prefix string, fn func(Note) bool) error
	// PutNotes writes notes in the order given: a crash keeps the first of them.
	// Visible at once; durable on return if sync, else soon.
	PutNotes(ctx context.Context, notes []Note, sync bool) error
	// SwapNote replaces the value of key by value if it still is old; a nil old
	// means absent, a nil value removes. It reports whether the note is value
	// afterwards, whoever made it so: a value that counts only once for each
	// caller has something in it that no other has. Durable on return.
	SwapNote(ctx context.Context, key string, old, value []byte) (bool, error)
}

// Note is a row of Notes; a nil Value removes it.
type Note struct {
	Key   string
	Value []byte
}

// Tasks keeps work that is due at a time and is done by whoever takes it first,
// in any number of processes. Keys are as those of Notes, of 1 KB at most.
type Tasks interface {
	// TasksOf returns the tasks of the keys, in the order asked, with duplicates;
	// for an absent one a Task that has a Key and Ver 0.
	TasksOf(ctx context.Context, keys []string) ([]Task, error)
	// EachTask calls fn for every task whose key begins with prefix, by key, until
	// it returns false. fn must not call the store.
	EachTask(ctx context.Context, prefix string, fn func(Task) bool) error
	// CountTasks is how many tasks of a queue have an At before the time given.
	CountTasks(ctx context.Context, queue string, before int64) (int, error)

	// PutTasks writes each task, by itself, whose version is still Ver; it gets a
	// new one, unlike any before, in ts. done says for each whether that was so; of
	// a removal, whether it is not there now. Keys differ. Durable on return. After an error some may have been written:
	// read them.
	PutTasks(ctx context.Context, ts []Task) (done []bool, err error)
	// TakeTasks takes up to limit tasks of a queue whose At is not after now, the
	// earliest before others as far as several takers allow: they get owner as
	// Owner and until as At. Of two who want a task one gets it, and nobody else
	// before until. Less than limit, or none, does not mean that no more are due.
	TakeTasks(ctx context.Context, queue, owner string, now, until int64, limit int) ([]Task, error)
}

// Task is one piece of work. Whoever has taken it holds it until At; it is put
// back, moved on, or removed, by PutTasks.
type Task struct {
	Key   string
	Queue string
	At    int64  // Unix ms: not taken before; Never for one that only waits to be changed
	Owner string // who has taken it; "" nobody
	Value []byte // the room's; nil removes the task
	Ver   uint64 // set by the store at each write; 0: no row
}

// Never, as Task.At, is a time that does not come.
const Never = int64(1<<63 - 1)

// Seats is the right to be the one process that uses a store: what a server keeps
// in memory (who may do what, who is connected) is true only while nobody else
// writes. An engine that only one process can open gives it with Open.
type Seats interface {
	// TakeSeat takes the seat for a process that is doing what doing says, such as
	// "parley serve"; the store renews it and gives it up at Close. It fails with
	// Unavailable, code "seat_taken", whose reason names the holder and what to do;
	// as long as a holder is silent it blocks, until the holder is renewed, or is
	// over and the seat is taken.
	//
	// A process that cannot renew its seat has every write refused with Unavailable,
	// code "seat_lapsed", and Ping says so, before anybody else can have taken it;
	// both end when it is renewed. Once somebody else has it, writes are refused for
	// ever with code "seat_lost", and lost, which may be nil, is called once, from a
	// goroutine of the store. Without TakeSeat nothing is refused.
	TakeSeat(ctx context.Context, doing string, lost func(error)) error
}

// Checkpointer is met by engines that can copy themselves while in use.
type Checkpointer interface {
	// Checkpoint writes a consistent copy, which Open accepts, into dir.
	// dir must not exist.
	Checkpoint(ctx context.Context, dir string) error
}
