// Package mongostore keeps everything in MongoDB: a replica set or a sharded
// cluster. It hides the driver; nobody else imports it.
//
//   - A message is one document whose _id is its conversation and seq. A writer
//     inserts at head+1; the unique _id arbitrates between writers, so there are
//     no holes and no two entries with one seq, whoever dies when (writer.go).
//   - What the sender's id is to the protocol, (c, f, k) is to the store: unique
//     for each message, so that an uncertain outcome is found again by reading.
//   - No multi-document transactions. A Tx is a document of its own that is
//     committed by one update and then applied; whoever meets a row that it has
//     locked finishes the work (tx.go).
//   - Everything is written with majority and journal and read from the primary
//     with majority, whatever the URI says.
package mongostore
