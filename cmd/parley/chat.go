package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/parley-im/parley/client"
	"github.com/parley-im/parley/im"
)

func newChatCmd() *cobra.Command {
	o := chatOptions{}
	host, _ := os.Hostname()
	cmd := &cobra.Command{
		Use:   "chat [CONVERSATION]",
		Short: "Chat from the terminal",
		Long: "Connects as a device of your account and shows what comes in. Write to dm/USER or g/GROUP; /help lists the commands.\n" +
			"The password is asked for once; after that a token is kept in your configuration directory, readable by you only.\n" +
			"With --plain, or without a terminal, it reads lines and prints lines, for scripts.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.conv = args[0]
			}
			return o.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.mqtt, "mqtt", "mqtt://127.0.0.1:1883", "server, as mqtt://, mqtts://, ws:// or wss:// URL")
	f.StringVar(&o.http, "http", "http://127.0.0.1:8080", "its HTTP API")
	f.StringVarP(&o.user, "user", "u", os.Getenv("USER"), "user id")
	f.StringVar(&o.device, "device", "terminal-"+clean(host), "device id")
	f.BoolVar(&o.register, "register", false, "make the account first")
	f.BoolVar(&o.plain, "plain", false, "no line editing, no colours")
	return cmd
}

// clean keeps what a device id may hold.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if im.DeviceID(string(r)).Valid() {
			return r
		}
		return '-'
	}, s[:min(len(s), 40)])
}

type chatOptions struct {
	mqtt, http, user, device, conv string
	register, plain                bool
}

func (o chatOptions) run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	scr, err := openScreen(o.plain)
	if err != nil {
		return err
	}
	defer scr.close()
	ch := &chat{screen: scr, conv: o.conv, last: map[string]im.Seq{}, names: map[string]bool{}}
	co := client.Options{MQTT: o.mqtt, HTTP: o.http, User: im.UserID(o.user), Device: im.DeviceID(o.device), OnEvent: ch.event, OnState: ch.state}
	tokens := tokenFile(o.http, o.user)
	co.OnLogin = func(t string) { _ = os.WriteFile(tokens, []byte(t), 0o600) }
	if o.register {
		if co.Password, err = scr.password("new password: "); err != nil {
			return err
		}
		if err := client.Register(ctx, o.http, co.User, co.Password, ""); err != nil {
			return err
		}
	} else if b, err := os.ReadFile(tokens); err == nil {
		co.RefreshToken = string(b)
	}
	c, err := client.Dial(ctx, co)
	var refused *client.Error
	if errors.As(err, &refused) && co.Password == "" { // no token, or not any more
		if co.Password, err = scr.password("password of " + o.user + ": "); err != nil {
			return err
		}
		c, err = client.Dial(ctx, co)
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	ch.c = c
	return ch.loop(ctx)
}

// tokenFile is where the refresh token of an account on a server is kept.
func tokenFile(server, user string) string {
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = os.TempDir()
	}
	dir = filepath.Join(dir, "parley")
	_ = os.MkdirAll(dir, 0o700)
	return filepath.Join(dir, clean(strings.TrimPrefix(server, "http://"))+"."+clean(user)+".token")
}

// chat is the conversation between a person and the client.
type chat struct {
	*screen
	c *client.Client

	mu    sync.Mutex
	conv  string
	last  map[string]im.Seq // the highest seq seen, by conversation
	names map[string]bool   // conversations, for completion
}

func (ch *chat) current() string {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.conv
}

func (ch *chat) enter(conv string) {
	ch.mu.Lock()
	ch.conv = conv
	ch.names[conv] = true
	ch.mu.Unlock()
	if ch.term != nil {
		ch.term.SetPrompt(printable(conv) + "> ")
	}
}

func (ch *chat) state(up bool, why error) {
	if !up {
		ch.print(quiet, "-- connection lost, trying again (%v)", why)
	}
}

// event shows what comes in.
func (ch *chat) event(e client.Event) {
	switch e := e.(type) {
	case client.Message:
		ch.mu.Lock()
		ch.last[e.Conv] = max(ch.last[e.Conv], e.Seq)
		ch.names[e.Conv] = true
		ch.mu.Unlock()
		ch.show(e)
	case client.Typing:
		if e.Conv == ch.current() {
			ch.print(quiet, "   %s is writing ...", e.From)
		}
	case client.Read:
		if e.Conv == ch.current() {
			ch.print(quiet, "   %s has read up to %d", e.User, e.Seq)
		}
	case client.Account:
		var about struct{ User, Group, Message, Name string }
		_ = json.Unmarshal(e.JSON, &about)
		ch.print(loud, "* %s %s%s %s%s", e.Name, about.User, about.Group, about.Name, about.Message)
		if e.Name == "friend-request" {
			ch.print(quiet, "  /friend %s accepts", about.User)
		}
	}
}

func (ch *chat) show(m client.Message) {
	at := time.UnixMilli(m.TS).Format("15:04")
	switch {
	case m.Event != "":
		ch.print(quiet, "%s %s * %s by %s", at, m.Conv, m.Event, m.From)
	case m.Op != "":
		ch.print(quiet, "%s %s %s %ss %d: %s", at, m.Conv, m.From, m.Op, m.Ref, m.Body)
	default:
		body := string(m.Body)
		if m.Type != "" && !strings.HasPrefix(m.Type, "text/") {
			body = fmt.Sprintf("[%s, %d bytes]", m.Type, len(m.Body))
		}
		ch.print(usual, "%s %s %s: %s", at, m.Conv, m.From, body)
	}
}

const chatHelp = `dm/USER or g/GROUP   talk there from now on; then every line is a message
/list                conversations, with what is unread
/history [N]         the last N messages here (20)
/read                everything here is read
/friend USER         ask for a friendship, or accept one
/unfriend USER       end it          /block USER  /unblock USER
/friends             friends and open requests
/group NAME A B ...  make a group with these friends
/add USER            bring a friend into this group     /kick USER     /leave
/edit SEQ TEXT       replace a message of yours         /recall SEQ    /react SEQ TEXT
/quit`

func (ch *chat) loop(ctx context.Context) error {
	if ch.term != nil {
		resized := make(chan os.Signal, 1)
		signal.Notify(resized, syscall.SIGWINCH)
		defer signal.Stop(resized)
		done := make(chan struct{})
		defer close(done)
		go func() {
			for {
				select {
				case <-resized:
					ch.resize()
				case <-done:
					return
				}
			}
		}()
		ch.term.AutoCompleteCallback = ch.complete
		ch.print(quiet, "connected as %s; /help lists the commands, ctrl-D leaves", ch.c.User())
	}
	if ch.conv != "" {
		ch.enter(ch.conv)
	}
	lines, failed := make(chan string), make(chan error, 1)
	go func() {
		for {
			l, err := ch.line()
			if err != nil {
				failed <- err
				return
			}
			select {
			case lines <- l:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case l := <-lines:
			if strings.TrimSpace(l) == "/quit" {
				return nil
			}
			if err := ch.do(ctx, strings.TrimSpace(l)); err != nil {
				ch.print(alarm, "! %v", err)
			}
		}
	}
}

// complete completes a conversation at the beginning of the line by tab.
func (ch *chat) complete(line string, pos int, key rune) (string, int, bool) {
	if key != '\t' || pos != len(line) || line == "" {
		return "", 0, false
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	var found []string
	for n := range ch.names {
		if strings.HasPrefix(n, line) {
			found = append(found, n)
		}
	}
	if len(found) == 0 {
		return "", 0, false
	}
	slices.Sort(found)
	return found[0], len(found[0]), true
}
