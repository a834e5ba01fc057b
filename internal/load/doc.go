// Package load drives MQTT brokers over real sockets and measures them: Parley
// through its accounts and conversations, any other broker through plain topics.
// Its client speaks raw frames, reads and writes in bursts and checks what
// arrives, so that it costs little of the machine it shares with the server.
//
// A Spec says where a target is and opens it, a Scenario is what is done to it, a
// Bench runs one scenario against several targets in turns, and a Report compares
// what came out. Latencies run from the moment a message was meant to be sent, so
// a target that stalls does not hide what it kept waiting (coordinated omission).
//
// Everything is bounded and ends by itself; every goroutine ends before the
// function that started it returns.
package load
