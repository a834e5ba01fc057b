package pebblestore

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/im"
)

// A row of the log holds what one commit appended to a conversation, up to
// rowEntries or about rowBytes: its key has the seq of the last of them, and
// those before it count down. What a row costs on its way through the write-ahead
// log, the memtable, a flush and compactions is then paid once for a burst.
//
// A row of one entry is the entry itself. A row of several begins with
// burstVersion and their number; then each with its length in two bytes.
const (
	burstVersion = 2
	rowEntries   = 64
	rowBytes     = 16 << 10
)

// putRows writes entries of one conversation, whose seqs have no holes, as rows.
// It is the sequencer's.
func (s *Store) putRows(b *pebble.Batch, num uint64, entries []*im.Entry) error {
	for len(entries) > 0 {
		n, size := 1, entries[0].Size()
		for n < len(entries) && n < rowEntries && size+entries[n].Size() <= rowBytes {
			size += entries[n].Size()
			n++
		}
		s.scratch = appendRow(s.scratch[:0], entries[:n])
		op := b.SetDeferred(17, len(s.scratch))
		op.Key[0] = tMsg
		binary.BigEndian.PutUint64(op.Key[1:], num)
		binary.BigEndian.PutUint64(op.Key[9:], uint64(entries[n-1].Seq))
		copy(op.Value, s.scratch)
		if err := op.Finish(); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func appendRow(b []byte, entries []*im.Entry) []byte {
	if len(entries) == 1 {
		return appendEntry(b, entries[0])
	}
	b = binary.AppendUvarint(append(b, burstVersion), uint64(len(entries)))
	for _, e := range entries {
		at := len(b)
		b = appendEntry(append(b, 0, 0), e)
		binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2)) // rowBytes sees to it that it fits
	}
	return b
}

// logRow reads a row of the log.
type logRow struct {
	conv  im.ConvID
	next  im.Seq // of the entry that comes next
	last  im.Seq
	one   bool
	value reader // what is left of it
}

// openRow begins to read; key and value must stay as they are meanwhile.
func openRow(conv im.ConvID, key, value []byte) (logRow, error) {
	r := logRow{conv: conv, last: seqOf(key), value: reader{b: value, ok: true}}
	r.next = r.last
	if len(value) == 0 || value[0] != burstVersion {
		r.one = true
		return r, nil
	}
	r.value.b = value[1:]
	n := im.Seq(r.value.num())
	if !r.value.ok || n == 0 || n > r.last {
		return r, errCorrupt
	}
	r.next = r.last - n + 1
	return r, nil
}

// skip passes over the entries up to and including seq.
func (r *logRow) skip(seq im.Seq) error {
	for r.next <= min(seq, r.last) {
		if _, err := r.raw(); err != nil {
			return err
		}
	}
	return nil
}

// more reports whether there is another entry.
func (r *logRow) more() bool { return r.next <= r.last }

// raw is the next entry as it is stored.
func (r *logRow) raw() ([]byte, error) {
	r.next++
	if r.one {
		return r.value.b, nil
	}
	b := r.value.b
	if len(b) < 2 {
		return nil, errCorrupt
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n > len(b) || (!r.more() && n < len(b)) {
		return nil, errCorrupt
	}
	raw := b[:n]
	r.value.b = b[n:]
	return raw, nil
}

// entry is the next entry, which does not alias the row.
func (r *logRow) entry() (*im.Entry, error) {
	seq := r.next
	raw, err := r.raw()
	if err != nil {
		return nil, err
	}
	return decodeEntry(r.conv, seq, raw)
}

// readRow reads the entries of a row that come after seq.
func readRow(conv im.ConvID, key, value []byte, after im.Seq) (out []*im.Entry, err error) {
	r, err := openRow(conv, key, value)
	if err == nil {
		err = r.skip(after)
	}
	for err == nil && r.more() {
		var e *im.Entry
		e, err = r.entry()
		out = append(out, e)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}
