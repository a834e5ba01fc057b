package pushgw

import (
	"context"
	"time"
)

// Provider names, as in a registration (docs/protocol.md).
const (
	APNs    = "apns"
	FCM     = "fcm"
	WebPush = "webpush"
)

// Address is where a device is rung.
type Address struct {
	Provider    string // APNs, FCM or WebPush
	App         string // name of the app in the configuration: bundle, project or site
	Token       string // device token (hex), FCM token or installation id, or the Web Push subscription as JSON
	Kind        string // FCM: "token" (also when empty) or "fid"; APNs: "" or "voip"
	Environment string // APNs: "production", "sandbox", or "" when not known
	Registered  int64  // Unix ms of the registration
}

// Kind is what a push is for. It decides push type, priority and visibility.
type Kind uint8

// Kinds of push.
const (
	Alert Kind = iota // somebody wrote: visible
	Clear             // read elsewhere: takes an alert away and sets the badge; silent
	Call              // somebody rings: now or never
)

// Push is one notification for one address. It is complete: a maker only
// translates it.
type Push struct {
	ID       string // UUID, the same at every retry: apns-id
	To       Address
	Kind     Kind
	Collapse string    // pushes with the same one replace each other on screen; at most 64 bytes
	Thread   string    // groups notifications: the conversation
	Expires  time.Time // after it the provider need not deliver; zero: now or never

	// Text. With a Key the device puts in its own language, with Args.
	Title, Body         string
	TitleKey, BodyKey   string
	TitleArgs, BodyArgs []string

	Badge    int  // absolute unread count
	SetBadge bool // Badge counts
	Sound    string
	Category string
	Mutable  bool // the app's extension may change it before it is shown (it decrypts)

	// Data goes to the app with the push: "conv", "seq", "id", "from", "sealed".
	Data map[string]string
}

// Outcome says what to do after an attempt.
type Outcome uint8

// Outcomes of an attempt.
const (
	Sent      Outcome = iota // the provider has it
	Retry                    // later, not before Result.After; the provider may or may not have it
	Gone                     // the address is dead: forget it if registered before Result.Since
	Misplaced                // the address belongs to another app or project: forget it, and tell the operator
	TooLarge                 // render it smaller and try once more
	Rejected                 // the request is wrong: never again
	Locked                   // the app's credentials are refused: stop for the whole app until they change
)

// Result is the provider's answer.
type Result struct {
	Outcome Outcome
	Reason  string        // the provider's word for it ("BadDeviceToken", "UNREGISTERED", "http 502"), or "network"
	After   time.Duration // with Retry: what the provider asked for; 0: it did not say
	// Device, with Retry: the limit is this device's own, others may go on.
	Device bool
	// Since, with Gone: the address is dead since then; zero: whenever it was registered.
	Since time.Time
	// Environment, with Sent, is where APNs knew the token, if the address did not say so.
	Environment string
	Err         error // the cause, for the log; it holds no token and no text
}

// Sender sends pushes of one app over one provider. Safe for concurrent use.
type Sender interface {
	// Send makes one attempt. It returns when the provider answered or ctx ended.
	Send(ctx context.Context, p *Push) Result
	// Close gives connections back.
	Close() error
}
