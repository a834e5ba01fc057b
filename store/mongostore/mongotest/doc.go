// Package mongotest gives tests a server that speaks the MongoDB wire protocol
// and a proxy in front of it that makes faults: FerretDB on SQLite, started from
// a module of its own, or a real MongoDB where PARLEY_TEST_MONGODB_URI names one.
//
// FerretDB v1 reads and writes without isolation, so that two $inc at once lose
// one. The proxy lets one write command at a time through, which makes commands
// atomic as MongoDB's are.
package mongotest
