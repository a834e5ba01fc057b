package pebblestore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/parley-im/parley/store"
)

// SwapNote: a method of store.Notes.
func (s *Store) SwapNote(ctx context.Context, k string, old, value []byte) (bool, error) {
	s.notes.Lock()
	defer s.notes.Unlock()
	var now []byte
	err := s.view(ctx, func(db *pebble.DB) (err error) {
		now, err = get(db, key(tNote, k))
		return err
	})
	same := func(v []byte) bool { return (v == nil) == (now == nil) && bytes.Equal(v, now) }
	if err != nil || !same(old) || same(value) {
		return same(value), err
	}
	err = s.write(func(b *pebble.Batch) error {
		if value == nil {
			return b.Delete(key(tNote, k), nil)
		}
		return b.Set(key(tNote, k), value, nil)
	})
	return err == nil, err
}

// taskAtKey is the task's key in the order of time.
func taskAtKey(t *store.Task) []byte {
	k := binary.BigEndian.AppendUint64(prefix(tTaskAt, t.Queue), uint64(max(t.At, 0)))
	return append(k, t.Key...)
}

// taskVersion is unlike any version that the row has had, also if it was removed
// in between.
func taskVersion(old uint64) uint64 {
	return max(old+1, uint64(time.Now().UnixMicro())<<8|rand.Uint64N(256))
}

// TasksOf: a method of store.Tasks.
func (s *Store) TasksOf(ctx context.Context, keys []string) ([]store.Task, error) {
	out := make([]store.Task, len(keys))
	err := s.view(ctx, func(db *pebble.DB) error {
		for i, k := range keys {
			out[i].Key = k
			v, err := get(db, key(tTask, k))
			if err == nil && v != nil {
				out[i], err = decodeRow[store.Task](v)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// EachTask: a method of store.Tasks.
func (s *Store) EachTask(ctx context.Context, below string, fn func(store.Task) bool) error {
	return s.view(ctx, func(db *pebble.DB) error {
		var bad error
		err := scan(db, key(tTask, below), func(_, v []byte) bool {
			var t store.Task
			t, bad = decodeRow[store.Task](v)
			return bad == nil && fn(t)
		})
		return errors.Join(err, bad)
	})
}

// CountTasks: a method of store.Tasks.
func (s *Store) CountTasks(ctx context.Context, queue string, before int64) (n int, err error) {
	p := prefix(tTaskAt, queue)
	err = s.view(ctx, func(db *pebble.DB) error {
		return scan(db, p, func(k, _ []byte) bool {
			if binary.BigEndian.Uint64(k[len(p):]) >= uint64(before) {
				return false
			}
			n++
			return true
		})
	})
	return n, err
}

// PutTasks: a method of store.Tasks.
func (s *Store) PutTasks(ctx context.Context, ts []store.Task) ([]bool, error) {
	s.tasks.Lock()
	defer s.tasks.Unlock()
	return s.putTasks(ctx, ts)
}

func (s *Store) putTasks(ctx context.Context, ts []store.Task) (done []bool, err error) {
	keys := make([]string, len(ts))
	for i := range ts {
		keys[i] = ts[i].Key
	}
	old, err := s.TasksOf(ctx, keys)
	if err != nil || len(ts) == 0 {
		return nil, err
	}
	done = make([]bool, len(ts))
	for i := range ts {
		if done[i] = old[i].Ver == ts[i].Ver || (ts[i].Value == nil && old[i].Ver == 0); done[i] {
			ts[i].Ver = taskVersion(ts[i].Ver)
		}
	}
	return done, s.write(func(b *pebble.Batch) error {
		for i := range ts {
			if !done[i] {
				continue
			}
			var err error
			if old[i].Ver != 0 {
				err = b.Delete(taskAtKey(&old[i]), nil)
			}
			if ts[i].Value == nil {
				err = errors.Join(err, b.Delete(key(tTask, ts[i].Key), nil))
			} else {
				err = errors.Join(err, setTask(b, &ts[i]))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func setTask(b *pebble.Batch, t *store.Task) error {
	return errors.Join(b.Set(key(tTask, t.Key), encodeRow(t), nil), b.Set(taskAtKey(t), nil, nil))
}

// TakeTasks: a method of store.Tasks.
func (s *Store) TakeTasks(ctx context.Context, queue, owner string, now, until int64, limit int) ([]store.Task, error) {
	s.tasks.Lock()
	defer s.tasks.Unlock()
	p := prefix(tTaskAt, queue)
	var keys []string
	err := s.view(ctx, func(db *pebble.DB) error {
		return scan(db, p, func(k, _ []byte) bool {
			if len(keys) >= limit || binary.BigEndian.Uint64(k[len(p):]) > uint64(now) {
				return false
			}
			keys = append(keys, string(k[len(p)+8:]))
			return true
		})
	})
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	ts, err := s.TasksOf(ctx, keys)
	if err != nil {
		return nil, err
	}
	for i := range ts {
		ts[i].Owner, ts[i].At = owner, until
	}
	if _, err := s.putTasks(ctx, ts); err != nil { // nobody can have changed them
		return nil, err
	}
	return ts, nil
}
