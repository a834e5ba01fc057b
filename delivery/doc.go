// Package delivery carries entries from the log to every device: here, later on
// other nodes, or by bell. It owns lines (one per connected device), their
// windows, packet ids and cursors. It never decides who may say what, and knows
// MQTT only as packet ids and QoS: a Wire does the encoding.
//
// # How an entry travels
//
// Offer is called by the store's announcer, one entry at a time, in seq order per
// conversation. It finds the lines of the users or the group and offers the entry
// to each. A line that is caught up with the conversation and has room in its
// window writes it; otherwise it notes that it is behind, and nothing is queued:
// the entry is in the log. A pump worker reads the log for lines that are behind,
// a chunk of one conversation at a time, so that conversations of a line and
// lines of the server share fairly.
//
// # What may run together
//
// Each line has one mutex. Offer, acknowledgements, pumps and closing take it for
// a few hundred nanoseconds; store reads happen outside of it. A track (one
// conversation on one line) that is behind belongs to the pump: live entries only
// raise its target, so the order of one conversation never depends on a race.
//
// # Who comes back
//
// For a device that left it is written down in which conversations something
// happens, so that it looks at those when it is back; a user of whom no device is
// here stays in the rooms of their groups for it. See journal.go, and ADR 12.
//
// # Memory
//
// An idle line holds no per-conversation state: a track is made when the
// conversation first moves on this connection, and its cursor is read from the
// store then.
//
// Run owns all goroutines: the pump workers, the cursor flusher and the one that
// tells presence.
package delivery
