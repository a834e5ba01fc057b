// Package im holds the words of the house: identifiers, conversations, entries,
// the topic grammar and the kinds of error. It is pure: standard library only,
// no I/O, no goroutine, no clock. Every other room speaks in these types.
package im
