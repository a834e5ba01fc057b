// Package plays holds the end-to-end tests: each play starts a real server,
// lets people with real MQTT clients talk to each other over real sockets, and
// reads like the story it tests. house_test.go is the stage, device_test.go the
// actors' phones.
package plays
