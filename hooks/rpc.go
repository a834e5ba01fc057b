package hooks

import (
	"strconv"
	"strings"

	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
)

// rpc runs a request and answers it on re/{rid}, or on the Response Topic with
// the Correlation Data of an MQTT 5 client. It runs in the read loop: what a
// client publishes after a request sees the request done.
func (s *session) rpc(p *broker.Publish, a *accept, t *im.Topic) error {
	answer := "re/" + t.RID
	if t.RID == "" {
		answer = string(p.Props.ResponseTopic)
		if !strings.HasPrefix(answer, "re/") || len(answer) == len("re/") || im.CheckTopicName(answer) != nil {
			return im.Refuse(im.TopicInvalid, "response_topic", "a request without an id needs a Response Topic under re/")
		}
	}
	correlation := append([]byte(nil), p.Props.CorrelationData...)
	if s.g.opt.RPC == nil {
		return im.Refuse(im.Unsupported, "no_rpc", "this server answers no requests")
	}
	ctx, cancel := s.ctx()
	defer cancel()
	params := append([]byte(nil), p.Payload...)
	data, err := s.g.opt.RPC.Call(s.line.Asking(ctx), s.identity(), s.me.Device, host(s.c), t.RPC, params)
	if k := im.KindOf(err); err != nil && k == im.Internal {
		s.g.log.Error("request failed", "op", t.RPC, "device", s.key, "error", err)
	}
	s.line.Note(&delivery.Note{Topic: answer, Body: rpcAnswer(data, err), Type: "application/json", Correlation: correlation}, 1)
	s.finish(a, 0, "", 0, 0)
	s.line.Answered()
	return nil
}

func rpcAnswer(data []byte, err error) []byte {
	if err == nil {
		if len(data) == 0 {
			data = []byte("null")
		}
		return append(append([]byte(`{"ok":true,"data":`), data...), '}')
	}
	b := append([]byte(`{"ok":false,"error":{"code":`), strconv.Quote(im.CodeOf(err))...)
	b = append(b, `,"message":`...)
	return append(im.AppendJSONString(b, im.ReasonOf(err)), '}', '}')
}
