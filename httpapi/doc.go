// Package httpapi is the HTTP face: the operations of the house, each defined
// once with typed input and output, described in one OpenAPI 3.1 document, and
// served twice: over HTTP by Handler and over MQTT by Call. Both run the same
// handlers, so an operation cannot behave differently by the road it came.
//
// The room translates and never decides: who may do what is chat's, who is who
// is auth's. An error's Kind becomes a status in one table (problem.go), and
// every error is an RFC 9457 problem with a stable code, those of the router
// included. It starts no goroutine.
package httpapi
