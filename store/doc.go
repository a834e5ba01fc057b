// Package store is the contract every engine keeps: the log, the roster, the
// accounts, the devices with their cursors, and the retained messages of the
// plain space. It decides nothing about who may do what.
//
// Promises common to all methods: a method that is asked for something absent
// returns an *im.Error of kind NotFound (lists return an empty slice); an engine
// that cannot answer returns Unavailable; after Close everything returns Gone.
// Returned values belong to the caller except *im.Entry, which is shared and
// immutable. All methods may be called from many goroutines.
//
// The suite every engine passes is store/storetest.
package store
