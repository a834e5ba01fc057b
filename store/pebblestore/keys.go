package pebblestore

import (
	"encoding/binary"

	"github.com/parley-im/parley/im"
)

// Tables: the first byte of every key. Never renumber.
const (
	tMeta     = 0x00 // name → value
	tMsg      = 0x01 // conv number, seq of the last → entries of one commit
	tConv     = 0x02 // conversation id → number
	tFloor    = 0x04 // conv number → floor seq, ts of the last entry trimmed
	tReadTS   = 0x05 // conv number → ts of the last move of a watermark
	tDedupe   = 0x06 // epoch, conv number, from, 0, id → seq, ts
	tReceipt  = 0x07 // user, 0, device, 0, packet → conv, seq, ts
	tUserConv = 0x08 // user, 0, conv: DMs with at least one entry
	tEdit     = 0x09 // conv number, seq of an entry, seq of an edit of it
	tUser     = 0x10 // user → row
	tToken    = 0x11 // hash → row
	tTokenOf  = 0x12 // user, 0, hash
	tRelation = 0x13 // user, 0, peer → row
	tGroup    = 0x14 // group → row
	tMember   = 0x15 // group, 0, user → row
	tMemberOf = 0x16 // user, 0, group → start
	tRead     = 0x17 // conv number, user → seq, ts
	tReadOf   = 0x18 // user, 0, conv → seq
	tDevice   = 0x19 // user, 0, device → row
	tCursor   = 0x1A // user, 0, device, 0, conv → row
	tRetained = 0x1B // topic → row
	tSecret   = 0x1C // name → value
	tNote     = 0x1D // key → value
	tTask     = 0x1E // key → row
	tTaskAt   = 0x1F // queue, 0, time, key
)

// key joins a table and strings, each but the last ended by 0. No id holds a 0.
func key(table byte, parts ...string) []byte {
	n := 1 + len(parts)
	for _, p := range parts {
		n += len(p)
	}
	k := make([]byte, 1, n)
	k[0] = table
	for i, p := range parts {
		if i > 0 {
			k = append(k, 0)
		}
		k = append(k, p...)
	}
	return k
}

// prefix is key with a 0 at the end: what all keys below begin with.
func prefix(table byte, parts ...string) []byte { return append(key(table, parts...), 0) }

// numKey is a key below a conversation number.
func numKey(table byte, num uint64, rest ...byte) []byte {
	k := make([]byte, 1, 9+len(rest))
	k[0] = table
	k = binary.BigEndian.AppendUint64(k, num)
	return append(k, rest...)
}

func msgKey(num uint64, seq im.Seq) []byte {
	return binary.BigEndian.AppendUint64(numKey(tMsg, num), uint64(seq))
}

func editKey(num uint64, ref, edit im.Seq) []byte {
	k := binary.BigEndian.AppendUint64(numKey(tEdit, num), uint64(ref))
	return binary.BigEndian.AppendUint64(k, uint64(edit))
}

func seqOf(msgKey []byte) im.Seq { return im.Seq(binary.BigEndian.Uint64(msgKey[9:])) }

// after is the first key that does not begin with p.
func after(p []byte) []byte {
	end := append([]byte(nil), p...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

func dedupeKey(epoch uint32, num uint64, from im.UserID, id string) []byte {
	k := make([]byte, 1, 14+len(from)+len(id))
	k[0] = tDedupe
	k = binary.BigEndian.AppendUint32(k, epoch)
	k = binary.BigEndian.AppendUint64(k, num)
	k = append(append(k, from...), 0)
	return append(k, id...)
}

func receiptKey(k im.DeviceKey, packet uint16) []byte {
	return binary.BigEndian.AppendUint16(prefix(tReceipt, string(k.User), string(k.Device)), packet)
}

// pair packs two numbers.
func pair(a, b uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(make([]byte, 0, 16), a), b)
}

func unpair(b []byte) (x, y uint64) {
	x, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, 0
	}
	y, _ = binary.Uvarint(b[n:])
	return x, y
}
