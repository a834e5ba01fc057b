// Package app wires the house: it is the only room that has seen all others. It
// opens the store, makes the rooms, starts what lives, and stops everything in
// the opposite order.
package app
