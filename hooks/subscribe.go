package hooks

import (
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// Subscribe takes a SUBSCRIBE. A filter that overlaps the IM topics is accepted:
// it makes no second copy, it only sets their QoS. One that reaches the plain
// space needs a rule that covers all of it.
func (s *session) Subscribe(pk *packets.Packet) error {
	type granted struct {
		filter im.Filter
		sub    store.Subscription
		isNew  bool
	}
	s.Flush()
	s.c.Settle(false) // a retained message that was published before comes with the others
	codes := make([]byte, 0, len(pk.Filters))
	presence := false
	var plain []granted
	subs := slices.Clone(s.subs)
	for _, f := range pk.Filters {
		sub := store.Subscription{Filter: f.Filter, QoS: min(f.Qos, 1), NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling}
		if len(pk.Properties.SubscriptionIdentifier) > 0 {
			sub.ID = pk.Properties.SubscriptionIdentifier[0]
		}
		parsed, err := im.ParseFilter(f.Filter)
		if err == nil && parsed.Share != "" && f.NoLocal {
			return &broker.FrameError{Code: packets.ErrProtocolViolation.Code, Reason: "No Local on a shared subscription"} // [MQTT-3.8.3-4]
		}
		var inPlain bool
		if err == nil {
			inPlain, err = s.maySubscribe(parsed)
		}
		at := slices.IndexFunc(subs, func(x store.Subscription) bool { return x.Filter == f.Filter })
		full := at < 0 && len(subs) >= s.g.opt.MaxSubscriptions
		if full && err == nil && (inPlain || !idle(subs, sub, parsed)) {
			err = im.Refuse(im.TooMany, "too_many_subscriptions", "too many subscriptions")
		}
		if err != nil {
			codes = append(codes, subscribeCode(err, s.c.Version()))
			continue
		}
		if full { // granted, but there is nothing to remember
			codes = append(codes, sub.QoS)
			continue
		}
		isNew := at < 0 || subs[at].QoS == delivery.Stop
		if at >= 0 {
			subs[at] = sub
		} else {
			subs = append(subs, sub)
		}
		subs = unstop(subs, parsed)
		presence = presence || strings.HasPrefix(parsed.Topic, "presence/")
		if inPlain {
			plain = append(plain, granted{parsed, sub, isNew})
		}
		codes = append(codes, sub.QoS)
	}
	if err := s.save(subs); err != nil {
		return err
	}
	for _, p := range plain {
		s.g.opt.Plain.Subscribe(s.key, s.expiry > 0, p.sub)
	}
	s.c.Suback(pk.PacketID, codes)
	if presence {
		s.line.ShowPresence()
	}
	for _, p := range plain {
		// [MQTT-3.3.1-9..11]; a shared subscription gets none [MQTT-4.8.2-*].
		if p.filter.Share == "" && (p.sub.RetainHandling == 0 || (p.sub.RetainHandling == 1 && p.isNew)) {
			s.sendRetained(p.filter, p.sub)
		}
	}
	return nil
}

// maySubscribe reports whether the filter is to enter the plain index. A filter
// of both spaces that no rule covers is an IM filter only.
func (s *session) maySubscribe(f im.Filter) (plain bool, err error) {
	inIM, inPlain := f.Overlaps()
	if inPlain && s.g.opt.Plain.MaySubscribe(s.caller(), f) {
		return true, nil
	}
	if inIM {
		return false, nil
	}
	return false, im.Refuse(im.Forbidden, "rule", "no rule allows you to subscribe here")
}

// idle reports whether an IM filter changes nothing of what a session with subs
// gets: a client may name each of its conversations, however many it has.
func idle(subs []store.Subscription, sub store.Subscription, f im.Filter) bool {
	asks := sub.QoS == 0 || sub.ID > 0 || f.Topic == "sent" || strings.HasPrefix(f.Topic, "presence/")
	return !asks && !slices.ContainsFunc(subs, func(x store.Subscription) bool { return x.QoS != 1 }) // lowered or stopped: it may raise that
}

// unstop removes the stops that a new IM filter takes back.
func unstop(subs []store.Subscription, f im.Filter) []store.Subscription {
	if f.Share != "" {
		return subs
	}
	return slices.DeleteFunc(subs, func(x store.Subscription) bool {
		if x.QoS != delivery.Stop {
			return false
		}
		stop, err := im.ParseFilter(x.Filter)
		return err != nil || f.Covers(stop)
	})
}

// Unsubscribe takes an UNSUBSCRIBE. Exactly dm/+, g/+ … stop those IM topics.
func (s *session) Unsubscribe(pk *packets.Packet) error {
	s.Flush()
	codes := make([]byte, 0, len(pk.Filters))
	subs := slices.Clone(s.subs)
	for _, f := range pk.Filters {
		n := len(subs)
		stopped := slices.ContainsFunc(subs, func(x store.Subscription) bool { return x.Filter == f.Filter && x.QoS == delivery.Stop })
		subs = slices.DeleteFunc(subs, func(x store.Subscription) bool { return x.Filter == f.Filter })
		had := len(subs) < n && !stopped
		if delivery.Stoppable(f.Filter) {
			subs = append(subs, store.Subscription{Filter: f.Filter, QoS: delivery.Stop})
			had = !stopped
		}
		code := packets.CodeNoSubscriptionExisted.Code
		if had {
			code = packets.CodeSuccess.Code
		}
		codes = append(codes, code)
	}
	if err := s.save(subs); err != nil {
		return err
	}
	for _, f := range pk.Filters {
		s.g.opt.Plain.Unsubscribe(s.key, f.Filter)
	}
	s.c.Unsuback(pk.PacketID, codes)
	return nil
}

// save stores the session's subscriptions before they are acknowledged.
func (s *session) save(subs []store.Subscription) error {
	ctx, cancel := s.ctx()
	defer cancel()
	if err := s.g.opt.Delivery.SaveSession(ctx, s.line, subs); err != nil {
		s.g.log.Error("subscriptions not stored", "device", s.key, "error", err)
		s.c.Close(delivery.StoreAway)
		return &broker.FrameError{Code: packets.ErrServerBusy.Code, Reason: "the store cannot commit now"}
	}
	s.subs = subs
	return nil
}
