// Package ledger is the one checker of all tests with faults, and of parley bench
// crash: what writers and devices saw of a server is held against its history.
//
//   - What was acknowledged is in the history, once, at the seq that was told.
//   - A conversation is dense from 1, and holds nothing that was never sent.
//   - What was acknowledged before another message was sent stands before it,
//     whoever sent them (real-time order).
//   - A device gets every seq, in order, and the same at it as the history has;
//     once on a connection; across connections without a hole, and nothing again
//     that it had acknowledged before it left in peace.
//
// It never talks to a server, and believes nobody: what it is told comes from the
// outside of the connections.
package ledger
