package app

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// moveFormat is the version of the file that Export writes: JSON Lines, first a
// header, then one store.Record a line, last the sums.
const moveFormat = 1

type moveHeader struct {
	Parley int `json:"parley_export"`
}

// Sums says what a store holds, whatever engine and order it comes in: how much
// of each kind, and the sum of the hashes of the records.
type Sums struct {
	Counts map[string]int `json:"counts"`
	Hash   string         `json:"hash"`

	sum [4]uint64
}

func newSums() *Sums { return &Sums{Counts: map[string]int{}} }

func (s *Sums) add(kind string, line []byte) {
	s.Counts[kind]++
	h := sha256.Sum256(line)
	for i := range s.sum { // addition does not mind the order
		for k := range 8 {
			s.sum[i] += uint64(h[8*i+k]) << (8 * k)
		}
	}
	s.Hash = ""
}

func (s *Sums) finish() {
	var b []byte
	for _, w := range s.sum {
		for k := range 8 {
			b = append(b, byte(w>>(8*k)))
		}
	}
	s.Hash = hex.EncodeToString(b)
}

// Same reports whether both hold the same.
func (s *Sums) Same(o *Sums) bool { return maps.Equal(s.Counts, o.Counts) && s.Hash == o.Hash }

type moveEnd struct {
	End *Sums `json:"end"`
}

// Progress is called for every record: doing is "exported", "imported" or
// "compared".
type Progress func(doing string)

func (p Progress) made(doing string) {
	if p != nil {
		p(doing)
	}
}

// Export writes all of st to w and returns what it was. progress may be nil.
func Export(ctx context.Context, st store.Store, w io.Writer, progress Progress) (*Sums, error) {
	out := bufio.NewWriterSize(w, 1<<20)
	sums := newSums()
	put := func(v any) ([]byte, error) {
		line, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		_, err = out.Write(append(line, '\n'))
		return line, err
	}
	if _, err := put(moveHeader{moveFormat}); err != nil {
		return nil, err
	}
	err := st.Dump(ctx, func(r store.Record) error {
		line, err := put(r)
		sums.add(r.Kind(), line)
		progress.made("exported")
		return err
	})
	if err != nil {
		return nil, err
	}
	sums.finish()
	if _, err := put(moveEnd{sums}); err != nil {
		return nil, err
	}
	return sums, out.Flush()
}

// What is loaded into the store at once.
const (
	moveBatch = 500
	moveBytes = 4 << 20
	// moveLine bounds a line: a record is a message at most, in base64.
	moveLine = 256 << 20
)

// Import reads what Export wrote into st, which must be empty or hold a part of
// the same import, and then reads st back and compares. Until that has succeeded
// the store says that it is partial, and no server takes it.
func Import(ctx context.Context, st store.Store, r io.Reader, progress Progress) (*Sums, error) {
	began, err := st.Partial(ctx)
	if err != nil {
		return nil, err
	}
	if began == "" {
		empty, err := st.Empty(ctx)
		if err != nil {
			return nil, err
		}
		if !empty {
			return nil, im.Refuse(im.Conflict, "not_empty", "the store is not empty: import into a new one")
		}
		if err := st.SetPartial(ctx, "the import that began on "+time.Now().UTC().Format(time.RFC3339)+" has not ended"); err != nil {
			return nil, err
		}
	}
	want, err := load(ctx, st, r, progress)
	if err != nil {
		return nil, err
	}
	got := newSums()
	err = st.Dump(ctx, func(r store.Record) error {
		line, err := json.Marshal(r)
		got.add(r.Kind(), line)
		progress.made("compared")
		return err
	})
	if err != nil {
		return nil, err
	}
	got.finish()
	if !got.Same(want) {
		return nil, fmt.Errorf("the store does not hold what the file says: %v, want %v; hash %s, want %s. Import into an empty store: drop the database, or remove the directory store in data_dir", got.Counts, want.Counts, got.Hash, want.Hash)
	}
	return got, st.SetPartial(ctx, "")
}

func load(ctx context.Context, st store.Store, r io.Reader, progress Progress) (*Sums, error) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 1<<20), moveLine)
	n := 0
	next := func() ([]byte, error) {
		if !in.Scan() {
			return nil, errors.Join(in.Err(), fmt.Errorf("line %d: the file ends too early", n+1))
		}
		n++
		return in.Bytes(), nil
	}
	line, err := next()
	if err != nil {
		return nil, err
	}
	var head moveHeader
	if err := json.Unmarshal(line, &head); err != nil || head.Parley == 0 {
		return nil, errors.New("line 1: this is not an export of Parley")
	}
	if head.Parley != moveFormat {
		return nil, fmt.Errorf("line 1: the export has format %d, this version reads %d", head.Parley, moveFormat)
	}
	sums := newSums()
	var batch []store.Record
	size := 0
	flush := func() error {
		err := st.Load(ctx, batch)
		batch, size = batch[:0], 0
		return err
	}
	for {
		line, err := next()
		if err != nil {
			return nil, err
		}
		var rec struct {
			moveEnd
			store.Record
		}
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("line %d: the file is cut or damaged: %w", n, err)
		}
		if rec.End != nil {
			if err := flush(); err != nil {
				return nil, err
			}
			sums.finish()
			if !sums.Same(rec.End) {
				return nil, fmt.Errorf("the file is damaged: it holds %v, and says %v", sums.Counts, rec.End.Counts)
			}
			return sums, nil
		}
		kind := rec.Kind()
		if kind == "" {
			return nil, fmt.Errorf("line %d: a record that this version does not know", n)
		}
		sums.add(kind, line)
		batch = append(batch, rec.Record)
		if size += len(line); len(batch) >= moveBatch || size >= moveBytes {
			if err := flush(); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		progress.made("imported")
	}
}

// Survey reads a whole store and counts it; every conversation must be dense
// from its floor to its head. live: others write meanwhile, so that a conversation
// may go on behind the head that it had and begin behind its floor.
func Survey(ctx context.Context, st store.Store, live bool) (*Sums, error) {
	sums := newSums()
	var conv store.Conversation
	var at im.Seq
	ended := func() error {
		if conv.Conv != "" && (at < conv.Head || (at > conv.Head && !live)) {
			return fmt.Errorf("%s ends at seq %d, its head is %d", conv.Conv, at, conv.Head)
		}
		return nil
	}
	err := st.Dump(ctx, func(r store.Record) error {
		sums.Counts[r.Kind()]++
		switch {
		case r.Conversation != nil:
			if err := ended(); err != nil {
				return err
			}
			conv, at = *r.Conversation, r.Conversation.Floor
		case r.Entry != nil:
			if r.Entry.Seq != at+1 && !(live && at == conv.Floor && r.Entry.Seq > at) {
				return fmt.Errorf("%s: after seq %d comes %d", conv.Conv, at, r.Entry.Seq)
			}
			at = r.Entry.Seq
		}
		return nil
	})
	return sums, errors.Join(err, ended())
}
