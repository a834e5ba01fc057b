// Package plain is the plain space: ordinary MQTT topics outside the IM space.
// It keeps the rules (who may publish and subscribe where), the index of
// subscriptions and the retained messages in memory, and decides whom a
// publication concerns. It carries nothing and stores nothing: retained messages
// and queues are in the log, under the keys the caller commits.
//
// It starts no goroutine.
package plain
