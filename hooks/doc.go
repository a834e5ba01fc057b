// Package hooks translates between MQTT and the house: a CONNECT becomes a
// checked identity and a line, a PUBLISH an append, a whisper, a watermark, an
// RPC or a plain publication; house errors become reason codes, in one table
// (codes.go). It never decides: chat, plain and auth do.
//
// It stands on broker, whose Session and Gate it meets. A session's methods run
// in its connection's read loop; Committed runs on the store's goroutine.
// Gate.Run owns the only goroutines: token expiry and delayed wills.
package hooks
