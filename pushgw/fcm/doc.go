// Package fcm sends pushes to Android devices over the HTTP v1 interface of
// Firebase Cloud Messaging: one request per push, without the vendor's SDK, which
// retries inside, hides quotas and weighs 23 MB.
//
// It starts no goroutine but those of net/http's connections, which Close ends.
package fcm
