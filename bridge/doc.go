// Package bridge is the room for what connects a Parley to others: nodes to each
// other, remote MQTT brokers, webhooks. It hides the client libraries of these
// and never decides. It has no maker yet: one process serves everybody.
package bridge
