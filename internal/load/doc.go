// Package load drives MQTT brokers over real sockets and measures them: Parley
// through its accounts and conversations, any other broker through plain topics.
// Its client speaks raw frames, reads and writes in bursts and checks what
// arrives, so that it costs little of the machine it shares with the server.
package load
