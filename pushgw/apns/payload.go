package apns

import (
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/payload"

	"github.com/parley-im/parley/pushgw"
)

// Limits of APNs.
const (
	maxPayload  = 4096 // bytes
	maxVoIP     = 5120 // bytes
	maxToken    = 100  // bytes; 32 today, and Apple asks not to count on that
	callExpires = 30 * time.Second
)

// voip is the kind of an address that takes calls.
const voip = "voip"

// notification makes Apple's form of a push. When there is none, the second
// result says why.
func notification(p *pushgw.Push, bundle string, now time.Time) (*apns2.Notification, *pushgw.Result) {
	if b, err := hex.DecodeString(p.To.Token); err != nil || len(b) == 0 || len(b) > maxToken {
		return nil, &pushgw.Result{Outcome: pushgw.Gone, Reason: apns2.ReasonBadDeviceToken}
	}
	n := &apns2.Notification{
		DeviceToken: p.To.Token, ApnsID: p.ID, CollapseID: p.Collapse, Expiration: p.Expires,
		Topic: bundle, PushType: apns2.PushTypeAlert, Priority: apns2.PriorityHigh,
	}
	pl, limit := payload.NewPayload(), maxPayload
	switch {
	case p.Kind == pushgw.Call && p.To.Kind == voip:
		n.PushType, n.Topic, limit = apns2.PushTypeVOIP, bundle+".voip", maxVoIP
		show(pl, p)
	case p.To.Kind == voip:
		// iOS ends apps that are woken by VoIP and show no call.
		return nil, rejected("a VoIP token takes calls only")
	case p.Kind == pushgw.Call:
		// Without a VoIP token: to send it as one would be DeviceTokenNotForTopic.
		show(pl, p)
		pl.InterruptionLevel(payload.InterruptionLevelTimeSensitive)
	case p.Kind == pushgw.Clear:
		n.PushType, n.Priority = apns2.PushTypeBackground, apns2.PriorityLow
		pl.ContentAvailable()
	case p.Kind == pushgw.Alert:
		show(pl, p)
	default:
		return nil, rejected("unknown kind of push")
	}
	if last := now.Add(callExpires); p.Kind == pushgw.Call && p.Expires.After(last) {
		n.Expiration = last
	}
	if p.SetBadge {
		pl.Badge(p.Badge)
	}
	for k, v := range p.Data {
		if k == "aps" {
			return nil, rejected("data under the name of Apple's dictionary")
		}
		pl.Custom(k, v)
	}
	pl.Custom(pushgw.KindKey, p.Kind.String())
	body, err := json.Marshal(pl)
	if err != nil {
		return nil, rejected("unreadable payload")
	}
	if len(body) > limit {
		return nil, &pushgw.Result{Outcome: pushgw.TooLarge, Reason: apns2.ReasonPayloadTooLarge}
	}
	n.Payload = body
	return n, nil
}

func rejected(reason string) *pushgw.Result {
	return &pushgw.Result{Outcome: pushgw.Rejected, Reason: reason}
}

// show puts in what the user sees and hears.
func show(pl *payload.Payload, p *pushgw.Push) {
	if p.TitleKey != "" {
		pl.AlertTitleLocKey(p.TitleKey)
		if len(p.TitleArgs) > 0 {
			pl.AlertTitleLocArgs(p.TitleArgs)
		}
	} else if p.Title != "" {
		pl.AlertTitle(p.Title)
	}
	if p.BodyKey != "" {
		pl.AlertLocKey(p.BodyKey)
		if len(p.BodyArgs) > 0 {
			pl.AlertLocArgs(p.BodyArgs)
		}
	} else if p.Body != "" {
		pl.AlertBody(p.Body)
	}
	if p.Sound != "" {
		pl.Sound(p.Sound)
	}
	if p.Category != "" {
		pl.Category(p.Category)
	}
	if p.Thread != "" {
		pl.ThreadID(p.Thread)
	}
	if p.Mutable {
		pl.MutableContent()
	}
}
