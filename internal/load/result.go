package load

// Result is what one run of a scenario measured. Zero or nil is what the scenario
// does not measure.
type Result struct {
	Scenario    string  `json:"scenario"`
	Target      string  `json:"target"`
	Round       int     `json:"round"`
	Seconds     float64 `json:"seconds"`
	Messages    int64   `json:"messages"`              // what was counted
	Of          string  `json:"of"`                    // what that is: messages (acknowledged), deliveries or connections
	Rate        float64 `json:"rate"`                  // of Messages, per second
	CPU         float64 `json:"cpu_us,omitempty"`      // of the server for each of Messages, microseconds; Linux counts it in steps of 10 ms
	Interrupted bool    `json:"interrupted,omitempty"` // ended before its time

	Ack     *Latency `json:"ack,omitempty"`       // of PUBACK, from when the message was due
	Deliver *Latency `json:"deliver,omitempty"`   // of the delivery, from when the message was due
	AllRead *Latency `json:"all_read,omitempty"`  // of the delivery while no device stalls
	Late    *Latency `json:"late,omitempty"`      // how late the tool itself sent: more than the figures around it, and it is the tool that was measured
	Connack *Latency `json:"connack,omitempty"`   // from when the connection was due to CONNACK
	First   *Latency `json:"first,omitempty"`     // from when all return to the first message of a device
	Caught  *Latency `json:"caught_up,omitempty"` // from when all return to the last message of a device
	Restart *Latency `json:"restart,omitempty"`   // from starting the killed server to its being ready

	KB    float64 `json:"kb_per_connection,omitempty"`
	Bytes *Bytes  `json:"bytes,omitempty"`
	Kills int     `json:"kills,omitempty"`
	Seed  uint64  `json:"seed,omitempty"`

	Faults
	Notes []string `json:"notes,omitempty"` // the first faults in words
}

// Bytes is the number of bytes above TCP per message, or per connection for the
// last two.
type Bytes struct {
	Publish float64 `json:"publish"` // PUBLISH of the sender
	Ack     float64 `json:"ack"`     // the server's answer to it
	Deliver float64 `json:"deliver"` // PUBLISH to the receiver
	Answer  float64 `json:"answer"`  // the receiver's answer to it
	Connect float64 `json:"connect"`
	Connack float64 `json:"connack"`
}

// What is counted.
const (
	messages    = "messages"
	deliveries  = "deliveries"
	connections = "connections"
)

// over says that n of something took so long.
func (r *Result) over(seconds float64, n int64, of string) {
	r.Seconds, r.Messages, r.Of = seconds, n, of
	if seconds > 0 {
		r.Rate = float64(n) / seconds
	}
}
