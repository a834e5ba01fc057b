// Package pushtest simulates APNs, FCM and Web Push over real TLS and HTTP/2,
// with a certificate authority of its own: for tests, for load, and for operators
// who want to see a gateway work without phones (`parley push simulate`).
//
// It checks what the real ones check (credentials, headers, sizes, limits), keeps
// the state of devices, can be told to fail, and writes down what it accepted in
// a ledger. What differs: APNs allows one stream until the first good token and
// gives its reason in the GOAWAY frame; net/http can do neither.
//
// A Simulator's goroutines are those of its servers; Close ends them.
package pushtest
