// Package auth says who somebody is: passwords, tokens, revocation. It never
// says what they may do, and never logs a password, a token or a hash.
//
// Access tokens are EdDSA JWTs, checked without the store but for a cached user
// row; refresh tokens are random, work once and are kept as hashes. A login and
// all its rotations are a family: logging out, or using a refresh token a second
// time, revokes the family.
//
// argon2id runs at a login behind a semaphore. A CONNECT with a password that
// was checked lately is recognised by a keyed hash, so that ten thousand devices
// that return at once wait for nobody.
//
// It starts no goroutine.
package auth
