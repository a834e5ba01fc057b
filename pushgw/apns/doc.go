// Package apns sends pushes to Apple's devices over APNs, with apns2 for payloads,
// requests and answers, and connections of its own.
//
// What apns2 leaves out is done here: an expiration of 0 is sent, an answer that
// is not JSON keeps its status, Retry-After is read, device tokens are checked
// before they become part of a URL, provider tokens are shared and renewed as
// Apple wants it, and connections are neither made in haste nor shared between
// environments.
//
// It starts no goroutine but those of net/http's connections, which Close ends.
package apns
