// Package chat decides: may this sender say this here, is it new, and what
// follows from it (receipts, events, watermarks). It appends to the log and
// hands what was committed to a Courier. It never knows MQTT, nodes or devices'
// connections. It starts no goroutine; its callbacks run on the store's.
package chat
