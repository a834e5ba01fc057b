// Package webpush sends pushes to browsers (RFC 8030, 8291, 8292), with webpush-go
// for the encryption and a signature (VAPID) of its own, which is made once per
// push service and not per message.
//
// The address of a push is a URL that a client gave us. It is only used when its
// host is on a list, and connections to private networks are refused when they
// are dialled, whatever the name said.
//
// It starts no goroutine but those of net/http's connections, which Close ends.
package webpush
