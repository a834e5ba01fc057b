package hooks

import (
	"strconv"
	"strings"

	"github.com/parley-im/parley/broker"
	"github.com/parley-im/parley/delivery"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
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
	if s.g.opt.RPC == nil {
		return im.Refuse(im.Unsupported, "no_rpc", "this server answers no requests")
	}
	n := &delivery.Note{Topic: answer, Type: "application/json", Correlation: append([]byte(nil), p.Props.CorrelationData...)}
	switch again, err := s.repeated(p); {
	case err != nil:
		return err
	case again:
		n.Body = rpcAnswer(nil, errRepeated)
	default:
		n.Body = s.call(t.RPC, append([]byte(nil), p.Payload...))
	}
	if !s.c.Takes(n) {
		n.Body = rpcAnswer(nil, im.Refuse(im.TooLarge, "answer_too_large", "the answer has %d bytes, your Maximum Packet Size is less", len(n.Body)))
	}
	s.line.Note(n, 1)
	s.finish(a, 0, "", 0, 0)
	s.line.Answered()
	return nil
}

var errRepeated = im.Refuse(im.Conflict, "repeated", "this request came before, on an earlier connection, and its answer went there: look what became of it")

// repeated reports whether a QoS 2 request came before. Its receipt is written
// before it is run: it runs once or, if the server dies in between, not at all, and
// the client hears of both. The other order would run it twice.
func (s *session) repeated(p *broker.Publish) (bool, error) {
	if p.QoS < 2 {
		return false, nil
	}
	done := make(chan *store.Append, 1)
	s.g.opt.Chat.Submit(&store.Append{NoEntry: true, Packet: p.PacketID, Entry: im.Entry{From: s.me.User, Device: s.me.Device}, Done: func(ap *store.Append) { done <- ap }})
	ap := <-done
	return ap.Dup, ap.Err
}

// call runs an operation and returns the body of its answer.
func (s *session) call(op string, params []byte) []byte {
	ctx, cancel := s.ctx()
	defer cancel()
	data, err := s.g.opt.RPC.Call(s.line.Asking(ctx), s.identity(), s.me.Device, host(s.c), op, params)
	if err != nil && im.KindOf(err) == im.Internal {
		s.g.log.Error("request failed", "op", op, "device", s.key, "error", err)
	}
	return rpcAnswer(data, err)
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
