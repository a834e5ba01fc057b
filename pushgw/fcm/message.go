package fcm

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/parley-im/parley/pushgw"
)

// Limits of FCM.
const (
	maxPayload = 4096 // bytes of data and notification
	maxTTL     = 28 * 24 * time.Hour
)

// fid is the kind of an address that is a Firebase installation id.
const fid = "fid"

// sender is what Data's "from" is called on the way: FCM keeps that word for
// itself.
const sender = "sender"

type message struct {
	Token   string            `json:"token,omitempty"`
	FID     string            `json:"fid,omitempty"`
	Data    map[string]string `json:"data"`
	Android android           `json:"android"`
}

type android struct {
	Priority     string        `json:"priority"`
	TTL          string        `json:"ttl"`
	CollapseKey  string        `json:"collapse_key,omitempty"`
	Notification *notification `json:"notification,omitempty"`
}

type notification struct {
	Title       string   `json:"title,omitempty"`
	Body        string   `json:"body,omitempty"`
	TitleKey    string   `json:"title_loc_key,omitempty"`
	TitleArgs   []string `json:"title_loc_args,omitempty"`
	BodyKey     string   `json:"body_loc_key,omitempty"`
	BodyArgs    []string `json:"body_loc_args,omitempty"`
	Tag         string   `json:"tag,omitempty"` // replaces on screen what has the same
	Sound       string   `json:"sound,omitempty"`
	ChannelID   string   `json:"channel_id,omitempty"`
	ClickAction string   `json:"click_action,omitempty"`
	Count       *int     `json:"notification_count,omitempty"`
}

// encode makes the body of a request. When there is none, the second result says
// why.
func encode(p *pushgw.Push, now time.Time) ([]byte, *pushgw.Result) {
	m := message{Data: make(map[string]string, len(p.Data)+4), Android: android{Priority: "high", TTL: ttl(p.Expires, now), CollapseKey: p.Collapse}}
	switch p.To.Kind {
	case fid:
		m.FID = p.To.Token
	case "", "token":
		m.Token = p.To.Token
	default:
		return nil, rejected("unknown kind of address")
	}
	if p.To.Token == "" {
		return nil, &pushgw.Result{Outcome: pushgw.Gone, Reason: "no token"}
	}
	maps.Copy(m.Data, p.Data)
	if from, ok := m.Data["from"]; ok {
		delete(m.Data, "from")
		m.Data[sender] = from
	}
	for k := range m.Data {
		if reserved(k) {
			return nil, rejected("data under a name that FCM keeps for itself")
		}
	}
	m.Data[pushgw.KindKey] = p.Kind.String()
	if p.SetBadge {
		m.Data["badge"] = strconv.Itoa(p.Badge)
	}
	switch p.Kind {
	case pushgw.Alert:
		if !p.Mutable {
			m.Android.Notification = visible(p)
		}
	case pushgw.Call: // the app shows it, over the lock screen
		text(m.Data, p)
	case pushgw.Clear:
		m.Android.Priority = "normal" // a silent one of high priority costs the app its priority
	default:
		return nil, rejected("unknown kind of push")
	}
	if p.Mutable {
		text(m.Data, p)
	}
	b, err := json.Marshal(map[string]*message{"message": &m})
	if err != nil {
		return nil, rejected("unreadable message")
	}
	if size(&m) > maxPayload {
		return nil, &pushgw.Result{Outcome: pushgw.TooLarge, Reason: "payload over 4096 bytes"}
	}
	return b, nil
}

func rejected(reason string) *pushgw.Result {
	return &pushgw.Result{Outcome: pushgw.Rejected, Reason: reason}
}

// reserved says whether FCM refuses data of this name.
func reserved(k string) bool {
	return k == "from" || k == "message_type" || k == "notification" || strings.HasPrefix(k, "google.") || strings.HasPrefix(k, "gcm.")
}

// ttl is how long FCM keeps the message, in whole seconds; 0 is now or never.
func ttl(expires, now time.Time) string {
	left := min(max(expires.Sub(now), 0), maxTTL)
	if expires.IsZero() {
		left = 0
	}
	return strconv.FormatInt(int64(left/time.Second), 10) + "s"
}

func visible(p *pushgw.Push) *notification {
	n := &notification{Tag: p.Collapse, Sound: p.Sound, ChannelID: p.Category}
	if n.TitleKey = p.TitleKey; n.TitleKey != "" {
		n.TitleArgs = p.TitleArgs
	} else {
		n.Title = p.Title
	}
	if n.BodyKey = p.BodyKey; n.BodyKey != "" {
		n.BodyArgs = p.BodyArgs
	} else {
		n.Body = p.Body
	}
	if p.SetBadge {
		n.Count = &p.Badge
	}
	return n
}

// text puts the words into the data, for an app that shows them itself.
func text(data map[string]string, p *pushgw.Push) {
	for k, v := range map[string]string{"title": p.Title, "body": p.Body, "title_loc_key": p.TitleKey, "body_loc_key": p.BodyKey, "thread": p.Thread} {
		if v != "" {
			data[k] = v
		}
	}
	for k, v := range map[string][]string{"title_loc_args": p.TitleArgs, "body_loc_args": p.BodyArgs} {
		if b, err := json.Marshal(v); err == nil && len(v) > 0 {
			data[k] = string(b)
		}
	}
}

// size is what FCM counts: names and values of the data, and the notification.
func size(m *message) int {
	n := 0
	for k, v := range m.Data {
		n += len(k) + len(v)
	}
	if m.Android.Notification != nil {
		b, _ := json.Marshal(m.Android.Notification) // it was part of one that could be
		n += len(b)
	}
	return n
}
