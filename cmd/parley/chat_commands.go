package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/parley-im/parley/client"
	"github.com/parley-im/parley/im"
)

func (ch *chat) do(ctx context.Context, line string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch {
	case line == "":
		return nil
	case line[0] == '/':
		word, rest, _ := strings.Cut(line[1:], " ")
		return ch.command(ctx, word, strings.TrimSpace(rest))
	case isConversation(line):
		ch.enter(line)
		return nil
	}
	conv := ch.current()
	if conv == "" {
		return errors.New("say where first: dm/USER or g/GROUP")
	}
	sent, err := ch.c.Send(ctx, conv, "", line)
	if err != nil {
		return err
	}
	ch.print(mine, "%s %s %s: %s", time.UnixMilli(sent.TS).Format("15:04"), conv, ch.c.User(), line)
	return nil
}

func isConversation(s string) bool {
	_, err := im.ParseConv("x", s)
	return err == nil
}

func (ch *chat) command(ctx context.Context, word, rest string) error {
	conv := ch.current()
	group := strings.TrimPrefix(conv, "g/")
	call := func(op string, in any) error { return ch.c.Call(ctx, op, in, nil) }
	who := map[string]string{"user": rest}
	switch word {
	case "help":
		for l := range strings.Lines(chatHelp) {
			ch.print(quiet, "%s", strings.TrimRight(l, "\n"))
		}
		return nil
	case "list":
		return ch.list(ctx)
	case "history":
		return ch.history(ctx, conv, rest)
	case "read":
		ch.mu.Lock()
		seq := ch.last[conv]
		ch.mu.Unlock()
		return ch.c.MarkRead(ctx, conv, seq)
	case "friend":
		var out struct{ State string }
		if err := ch.c.Call(ctx, "friends.add", who, &out); err != nil {
			return err
		}
		ch.print(quiet, "%s: %s", rest, out.State)
		return nil
	case "unfriend":
		return call("friends.remove", who)
	case "block":
		return call("blocks.add", who)
	case "unblock":
		return call("blocks.remove", who)
	case "friends":
		return ch.friends(ctx)
	case "group":
		words := strings.Fields(rest)
		if len(words) == 0 {
			return errors.New("write /group NAME and the friends to put in")
		}
		var out struct{ Group string }
		if err := ch.c.Call(ctx, "groups.create", map[string]any{"name": words[0], "members": words[1:]}, &out); err != nil {
			return err
		}
		ch.enter("g/" + out.Group)
		return nil
	case "add":
		return call("groups.members.put", map[string]string{"group": group, "user": rest})
	case "kick":
		return call("groups.members.remove", map[string]string{"group": group, "user": rest})
	case "leave":
		return call("groups.members.remove", map[string]string{"group": group, "user": string(ch.c.User())})
	case "edit", "recall", "react":
		seq, text, _ := strings.Cut(rest, " ")
		_, err := ch.c.Publish(ctx, conv+"/"+word+"/"+seq, "text/plain", []byte(text))
		return err
	}
	return fmt.Errorf("there is no /%s; /help lists the commands", word)
}

func (ch *chat) list(ctx context.Context) error {
	var convs []struct {
		Conv   string
		Unread int
		Last   struct{ Text, From string }
	}
	if err := ch.c.Call(ctx, "conversations.list", nil, &convs); err != nil {
		return err
	}
	for _, c := range convs {
		style := usual
		if c.Unread > 0 {
			style = loud
		}
		ch.print(style, "%-28s %4d unread  %s: %.60s", c.Conv, c.Unread, c.Last.From, c.Last.Text)
		ch.mu.Lock()
		ch.names[c.Conv] = true
		ch.mu.Unlock()
	}
	return nil
}

func (ch *chat) history(ctx context.Context, conv, limit string) error {
	if limit == "" {
		limit = "20"
	}
	n, err := im.ParseSeq(limit)
	if err != nil {
		return errors.New("/history takes a number")
	}
	kind, id, _ := strings.Cut(conv, "/")
	var page struct {
		Messages []struct {
			Seq            im.Seq
			TS             int64
			From           im.UserID
			Text, Op, Type string
			Ref            im.Seq
			Event          string
			Recalled       bool
		}
	}
	if err := ch.c.Call(ctx, "history", map[string]any{"kind": kind, "id": id, "limit": n}, &page); err != nil {
		return err
	}
	for _, m := range page.Messages {
		if m.Recalled {
			m.Text = "[recalled]"
		}
		ch.print(quiet, "%4d", m.Seq)
		ch.show(client.Message{Conv: conv, Seq: m.Seq, TS: m.TS, From: m.From, Body: []byte(m.Text), Op: m.Op, Ref: m.Ref, Event: m.Event})
	}
	return nil
}

func (ch *chat) friends(ctx context.Context) error {
	var friends []struct{ User, Name, Remark string }
	if err := ch.c.Call(ctx, "friends.list", nil, &friends); err != nil {
		return err
	}
	for _, f := range friends {
		ch.print(usual, "dm/%-24s %s %s", f.User, f.Name, f.Remark)
	}
	var requests []struct{ User, Message, Direction string }
	if err := ch.c.Call(ctx, "friend-requests.list", nil, &requests); err != nil {
		return err
	}
	for _, r := range requests {
		ch.print(quiet, "request (%s) %s %s", r.Direction, r.User, r.Message)
	}
	return nil
}
