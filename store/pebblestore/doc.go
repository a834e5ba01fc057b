// Package pebblestore is the embedded engine: store.Store on Pebble. It hides
// Pebble.
//
// # One writer
//
// The sequencer is one goroutine and the only one that assigns seqs. It takes
// everything that waits, builds one batch, applies it and hands it to the
// announcer, which waits for the fsync, moves the committed heads and calls
// Done. While one batch is being synced the next is built; the deeper the disk
// falls behind, the larger the batches. A lone append commits at once: nothing
// waits for company.
//
// # What readers see
//
// Pebble shows a batch before it is synced. Range, Before, Entry and Heads are
// cut at the committed head, so nobody receives what a crash could take back.
//
// # Keys
//
// What one commit appends to a conversation is one row: table, conversation
// number, seq of the last of it. A message that comes alone is a row, and so is a
// burst of up to 64, because what a row costs on its way through log, memtable,
// flush and compactions is by the row. The head of a conversation is its last
// key, read once and then kept in memory; there is no head row to write.
// Conversation ids are interned as numbers of eight bytes. A dedupe row exists
// only for entries whose sender gave an id.
//
// # Failure
//
// When a commit fails, everything in flight fails with it, and so does everything
// after, until the database has been closed, reopened and read again from disk,
// which is tried with back-off. Below Options.MinFree of disk space appends are
// refused before Pebble meets a full disk.
package pebblestore
