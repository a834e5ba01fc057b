package main

import (
	"bufio"
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
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

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

// screen is a terminal with a line to edit, or plain lines.
type screen struct {
	in     *bufio.Scanner
	term   *term.Terminal
	fd     int
	before *term.State

	mu  sync.Mutex
	out io.Writer
}

func openScreen(plain bool) (*screen, error) {
	s := &screen{fd: int(os.Stdin.Fd()), out: os.Stdout, in: bufio.NewScanner(os.Stdin)}
	if plain || !term.IsTerminal(s.fd) || !term.IsTerminal(int(os.Stdout.Fd())) {
		return s, nil
	}
	before, err := term.MakeRaw(s.fd)
	if err != nil {
		return nil, err
	}
	s.before = before
	s.term = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{os.Stdin, os.Stdout}, "> ")
	s.out = s.term
	s.resize()
	return s, nil
}

func (s *screen) resize() {
	if w, h, err := term.GetSize(s.fd); err == nil {
		_ = s.term.SetSize(w, h)
	}
}

func (s *screen) close() {
	if s.before != nil {
		_ = term.Restore(s.fd, s.before)
	}
}

func (s *screen) password(prompt string) (string, error) {
	if s.term != nil {
		return s.term.ReadPassword(prompt)
	}
	if term.IsTerminal(s.fd) {
		fmt.Fprint(os.Stderr, prompt)
		b, err := term.ReadPassword(s.fd)
		fmt.Fprintln(os.Stderr)
		return string(b), err
	}
	if s.in.Scan() {
		return s.in.Text(), nil
	}
	return "", errors.New("no password on standard input")
}

func (s *screen) line() (string, error) {
	if s.term != nil {
		return s.term.ReadLine()
	}
	if s.in.Scan() {
		return s.in.Text(), nil
	}
	return "", io.EOF
}

// print shows a line above the one being edited.
func (s *screen) print(style, format string, args ...any) {
	text := printable(fmt.Sprintf(format, args...))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil {
		fmt.Fprintln(s.out, text)
		return
	}
	fmt.Fprintf(s.out, "%s%s\x1b[0m\r\n", style, text)
}

// Styles of lines.
const (
	quiet = "\x1b[2m"
	loud  = "\x1b[1m"
	mine  = "\x1b[36m"
	alarm = "\x1b[31m"
	usual = ""
)

// printable replaces control characters: a message must not drive the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return '\u00b7'
		}
		return r
	}, s)
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
