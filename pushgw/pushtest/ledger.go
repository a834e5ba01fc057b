package pushtest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Fates of an accepted push.
const (
	Delivered = "delivered" // the device was online
	Stored    = "stored"    // the device was offline: it waits
	Dropped   = "dropped"   // the device was offline and the push was now or never
)

// Entry is a push that a simulator accepted.
type Entry struct {
	N           uint64    `json:"n"` // counts from 1 in the order of acceptance
	At          time.Time `json:"at"`
	Provider    string    `json:"provider"`
	Environment string    `json:"environment,omitempty"` // APNs
	Topic       string    `json:"topic,omitempty"`       // APNs: topic; FCM: project
	Token       string    `json:"token"`                 // Web Push: id of the subscription
	ID          string    `json:"id"`                    // apns-id, or the message's name or path
	Collapse    string    `json:"collapse,omitempty"`
	Type        string    `json:"type,omitempty"`     // APNs: push type; FCM: "data" or "notification"
	Priority    string    `json:"priority,omitempty"` // apns-priority, android priority, Urgency
	Expires     time.Time `json:"expires,omitzero"`   // zero: now or never
	Payload     []byte    `json:"payload"`            // as the app gets it: decrypted, for Web Push
	Fate        string    `json:"fate"`
}

// ledger keeps the newest entries. Full: the oldest goes, and is counted.
type ledger struct {
	mu      sync.Mutex
	entries []Entry // a ring once it is full
	size    int
	total   uint64
}

func (l *ledger) add(e Entry) Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	e.N = l.total
	if len(l.entries) < l.size {
		l.entries = append(l.entries, e)
	} else {
		l.entries[(l.total-1)%uint64(l.size)] = e
	}
	return e
}

func (l *ledger) read() ([]Entry, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Entry, 0, len(l.entries))
	if l.total > uint64(len(l.entries)) {
		at := l.total % uint64(l.size)
		out = append(out, l.entries[at:]...)
		return append(out, l.entries[:at]...), l.total
	}
	return append(out, l.entries...), l.total
}

// Ledger is what was accepted, oldest first: at most Options.LedgerSize entries.
func (s *Simulator) Ledger() []Entry {
	e, _ := s.ledger.read()
	return e
}

// Accepted counts the pushes accepted since Start.
func (s *Simulator) Accepted() uint64 {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.total
}

// ledgerPage is the answer to GET /ledger.
type ledgerPage struct {
	Total   uint64  `json:"total"`   // accepted since the start
	Dropped uint64  `json:"dropped"` // of these, no longer kept
	Entries []Entry `json:"entries"`
}

// serveLedger answers GET /ledger?provider=&token=&after=N. Payloads are base64.
func (s *Simulator) serveLedger(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	after, err := strconv.ParseUint(q.Get("after"), 10, 64)
	if err != nil && q.Get("after") != "" {
		http.Error(w, "after is a number", http.StatusBadRequest)
		return
	}
	all, total := s.ledger.read()
	page := ledgerPage{Total: total, Dropped: total - uint64(len(all)), Entries: []Entry{}}
	for _, e := range all {
		if e.N > after && (q.Get("provider") == "" || e.Provider == q.Get("provider")) && (q.Get("token") == "" || e.Token == q.Get("token")) {
			page.Entries = append(page.Entries, e)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(page) // the client went away
}
