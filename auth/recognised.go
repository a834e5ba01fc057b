package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"sync"

	"github.com/parley-im/parley/store"
)

// recognised knows secrets again that were checked the slow way, by an HMAC under
// a key that lives as long as the process: when everybody comes back at once,
// checking each anew would cost more than all else. Bounded: full, it starts anew.
type recognised[V any] struct {
	key [32]byte
	max int
	mu  sync.RWMutex
	m   map[[32]byte]V
	gen uint64 // raised by forget, so that a check which began before is not added after
}

// How many passwords and tokens are recognised at most.
const (
	maxRemembered = 200_000
	maxProofs     = 100_000
)

func (r *recognised[V]) init(max int) {
	_, _ = rand.Read(r.key[:])
	r.max, r.m = max, make(map[[32]byte]V)
}

// sum is the HMAC of parts, none of which but the last may hold a zero byte.
func (r *recognised[V]) sum(parts ...[]byte) (out [32]byte) {
	h := hmac.New(sha256.New, r.key[:])
	for i, p := range parts {
		if i > 0 {
			h.Write([]byte{0})
		}
		h.Write(p)
	}
	h.Sum(out[:0])
	return out
}

// get returns what is known of a secret, and the generation to add it with if
// nothing is.
func (r *recognised[V]) get(sum [32]byte) (v V, gen uint64, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	v, ok = r.m[sum]
	return v, r.gen, ok
}

func (r *recognised[V]) add(sum [32]byte, v V, gen uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gen != gen {
		return
	}
	if len(r.m) >= r.max {
		clear(r.m)
	}
	r.m[sum] = v
}

func (r *recognised[V]) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gen++
	clear(r.m)
}

// passwordSum covers the stored hash, so a changed password is forgotten at once.
func (a *Auth) passwordSum(u store.User, password []byte) [32]byte {
	return a.remembered.sum([]byte(u.ID), []byte(u.Password), password)
}
