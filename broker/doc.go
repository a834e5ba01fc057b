// Package broker owns the sockets: listeners, the guard in front of every
// decoder, the MQTT handshake, and for each connection one read loop and a
// bounded buffer to write to. It hides mochi-mqtt.
//
// # The life of a connection
//
//	accept ► guard: first frame is a sound CONNECT, within its size and time
//	       ► mochi's EstablishConnection over an in-memory pipe: validation,
//	         our hooks, CONNACK (handshake.go)
//	       ► Conn.read: frames are checked, PUBLISH and acknowledgements parsed
//	         in place, the rest decoded by mochi's packets under recover
//	       ► Session (hooks) decides; Conn writes
//
// mochi serves as the doorman: when CONNACK is out it has seen the end of its
// stream, its goroutines are gone, and nothing of it stays with the connection.
//
// # Goroutines
//
// One per connection, the reader; a second, the flusher, exists only while
// there is something to write. Writers append to the buffer and never wait for
// the socket: a reader that stalls is closed, and its cursor repairs what it
// missed.
package broker
