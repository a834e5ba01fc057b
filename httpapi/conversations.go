package httpapi

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/chat"
	"github.com/parley-im/parley/im"
)

func (a *API) conversationOperations(book huma.API) {
	const tag = "conversations"
	hidden := map[int]string{404: "No such conversation, or none one may see."}

	define(a, book, operation{
		id: "conversations.list", method: http.MethodGet, path: "/v1/conversations", tag: tag,
		summary: "List one's conversations",
		detail:  "With how far each is read. One's own messages are never unread.",
	}, a.listConversations)

	define(a, book, operation{
		id: "conversations.history", aliases: []string{"history"}, method: http.MethodGet, path: convPath + "/messages", tag: tag,
		summary: "Read a conversation", refusals: hidden,
		detail: "Ascending by seq. Without `before` and `after`: the latest. `more` says whether there are further entries " +
			"in the direction that was read: older ones, or with `after` newer ones. Over RPC it is also called `history`.",
	}, a.history)

	define(a, book, operation{
		id: "conversations.read", method: http.MethodPut, path: convPath + "/read", tag: tag,
		summary: "Say how far one has read", refusals: map[int]string{403: "`not_friends`, `not_member`: no such conversation, or none one has a part in."},
		detail: "The watermark never goes back and is cut at the head. Answers where it is now.",
	}, a.markRead)
}

func (a *API) listConversations(ctx context.Context, c Caller, _ *none) (*reply[[]conversation], error) {
	cs, err := a.opt.Chat.Conversations(ctx, c.User)
	return answerList(convert(cs, conversationOf), err)
}

type historyInput struct {
	ConvPath
	Before im.Seq `query:"before" doc:"Only entries with a smaller seq."`
	After  int64  `query:"after" minimum:"-1" default:"-1" doc:"Only entries with a greater seq, from the first of them on: 0 reads from the beginning. -1 is as without it."`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"At most so many."`
}

type page struct {
	Messages []message `json:"messages" nullable:"false" doc:"Ascending by seq."`
	More     bool      `json:"more" doc:"There are further entries in the direction that was read."`
}

func (a *API) history(ctx context.Context, c Caller, in *historyInput) (*reply[page], error) {
	conv, err := in.conv(c.User)
	if err != nil {
		return nil, err
	}
	read := func() ([]json.RawMessage, bool, error) {
		if in.After >= 0 {
			return a.opt.Chat.HistoryAfter(ctx, c.User, conv, im.Seq(in.After), in.Before, in.Limit)
		}
		return a.opt.Chat.History(ctx, c.User, conv, in.Before, 0, in.Limit)
	}
	msgs, more, err := read()
	p := page{Messages: make([]message, 0, len(msgs)), More: more}
	for _, m := range msgs {
		p.Messages = append(p.Messages, message(m))
	}
	return answerWith(p, err)
}

type readInput struct {
	ConvPath
	Body struct {
		Seq im.Seq `json:"seq" doc:"The highest seq read. What is above the head is cut there."`
	} `nameHint:"MarkRead"`
}

type watermark struct {
	Seq im.Seq `json:"seq" doc:"The highest seq read, as it is now."`
}

func conversationOf(c chat.Conversation) conversation {
	return conversation{Conv: c.Conv, Head: c.Head, Read: c.Read, Unread: c.Unread, Last: message(c.Last)}
}

func (a *API) markRead(ctx context.Context, c Caller, in *readInput) (*reply[watermark], error) {
	conv, err := in.conv(c.User)
	if err != nil {
		return nil, err
	}
	seq, err := a.opt.Chat.MarkRead(ctx, c.User, c.Device, conv, in.Body.Seq)
	return answerWith(watermark{Seq: seq}, err)
}
