// Package client is a Parley client for Go: MQTT 5 by paho.golang for messages,
// HTTP for the login. It reconnects by itself, with the session, so that after a
// break everything missed arrives; it renews its token; it sends each message
// under an id, so that a retry never makes a second one.
//
// Any MQTT client can do what this one does: see docs/protocol.md.
package client
