package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/parley-im/parley/im"
)

// Options say where to connect and as whom. User and Password, or RefreshToken,
// are needed.
type Options struct {
	MQTT string // mqtt://host:1883, mqtts://, ws:// or wss://…/mqtt; default mqtt://127.0.0.1:1883
	HTTP string // default http://127.0.0.1:8080

	User         im.UserID
	Password     string
	RefreshToken string // of an earlier login, instead of User and Password
	// Device names this installation; the server keeps its place under it.
	Device im.DeviceID
	// Clean starts at now instead of where the device left off.
	Clean bool

	// OnEvent gets everything that arrives, one at a time, in order; a message
	// once, as long as this Client lives. What it
	// returns from is acknowledged, so it may take its time, but a slow one is
	// served slowly. It may call methods of the client, except Call.
	OnEvent func(Event)
	// OnLogin gets the refresh token to keep, at the login and each renewal.
	OnLogin func(refreshToken string)
	// OnState tells that the connection is up, or why it is not.
	OnState func(up bool, why error)
	Log     *slog.Logger
}

// Event is a Message, Read, Typing, Signal or Account.
type Event interface{ event() }

// Message is an entry of a conversation.
type Message struct {
	Conv  string // dm/bob, g/team
	Seq   im.Seq
	TS    int64 // Unix ms
	From  im.UserID
	ID    string
	Type  string
	Body  []byte
	Op    string // "", edit, recall, react
	Ref   im.Seq // of Op
	Event string // a change of membership, such as member-added
}

// Read tells how far a user has read a conversation.
type Read struct {
	Conv string
	User im.UserID
	Seq  im.Seq
}

// Typing tells that somebody is writing.
type Typing struct {
	Conv string
	From im.UserID
}

// Signal is an ephemeral payload.
type Signal struct {
	Conv string
	From im.UserID
	Body []byte
}

// Account is an event of one's own account, such as friend-request.
type Account struct {
	Name string
	JSON json.RawMessage // {"seq":…,"ts":…,"user":…}
}

func (Message) event() {}
func (Read) event()    {}
func (Typing) event()  {}
func (Signal) event()  {}
func (Account) event() {}

// Error is a refusal by the server.
type Error struct {
	Code   string // stable, such as not_friends; or an MQTT reason code in hex
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// Client is a connected account. Make it with Dial.
type Client struct {
	opt  Options
	conn *autopaho.ConnectionManager

	mu      sync.Mutex
	user    im.UserID
	token   string
	expires time.Time
	refresh string
	waiting map[string]chan []byte // of Call, by request id
	seen    map[string]im.Seq      // the highest seq passed on, by conversation
}

// Dial logs in, connects and waits until the connection stands. It lasts until
// Close or until ctx is done.
func Dial(ctx context.Context, o Options) (*Client, error) {
	if o.MQTT == "" {
		o.MQTT = "mqtt://127.0.0.1:1883"
	}
	if o.HTTP == "" {
		o.HTTP = "http://127.0.0.1:8080"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if !o.Device.Valid() {
		return nil, errors.New("client: Device is 1-64 characters of A-Z a-z 0-9 . _ -")
	}
	server, err := url.Parse(o.MQTT)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c := &Client{opt: o, user: o.User, refresh: o.RefreshToken, waiting: make(map[string]chan []byte), seen: make(map[string]im.Seq)}
	if err := c.login(ctx); err != nil {
		return nil, err
	}
	c.conn, err = autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls: []*url.URL{server}, KeepAlive: 60, CleanStartOnInitialConnection: o.Clean, SessionExpiryInterval: 0xFFFFFFFF,
		ConnectPacketBuilder: c.connectPacket,
		ReconnectBackoff:     autopaho.NewExponentialBackoff(200*time.Millisecond, 30*time.Second, time.Second, 1.5),
		OnConnectionUp:       func(*autopaho.ConnectionManager, *paho.Connack) { c.state(true, nil) },
		OnConnectError:       func(err error) { c.state(false, err) },
		ClientConfig: paho.ClientConfig{
			ClientID:          string(o.Device),
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){c.received},
			OnClientError:     func(err error) { c.state(false, err) },
			OnServerDisconnect: func(d *paho.Disconnect) {
				c.state(false, fmt.Errorf("disconnected by the server: 0x%02x", d.ReasonCode))
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if err := c.conn.AwaitConnection(ctx); err != nil {
		return nil, fmt.Errorf("client: connect to %s: %w", o.MQTT, err)
	}
	return c, nil
}

func (c *Client) state(up bool, why error) {
	if c.opt.OnState != nil {
		c.opt.OnState(up, why)
	}
}

// User is whose connection this is.
func (c *Client) User() im.UserID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.user
}

// Close disconnects; the device's place is kept.
func (c *Client) Close(ctx context.Context) error { return c.conn.Disconnect(ctx) }

// connectPacket puts a token that is valid for a while into each CONNECT.
func (c *Client) connectPacket(p *paho.Connect, _ *url.URL) (*paho.Connect, error) {
	c.mu.Lock()
	stale := time.Until(c.expires) < time.Minute
	c.mu.Unlock()
	if stale {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.login(ctx); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.UsernameFlag, p.Username = true, string(c.user)
	p.PasswordFlag, p.Password = true, []byte(c.token)
	p.Properties.RequestProblemInfo = true // else acknowledgements carry no seq
	return p, nil
}

// login gets a token: by the refresh token if there is one, else by password.
func (c *Client) login(ctx context.Context) error {
	c.mu.Lock()
	refresh := c.refresh
	c.mu.Unlock()
	var out struct {
		Token        string    `json:"token"`
		RefreshToken string    `json:"refresh_token"`
		ExpiresIn    int       `json:"expires_in"`
		User         im.UserID `json:"user"`
	}
	err := error(&Error{Code: "unauthorized", Reason: "no password and no refresh token"})
	if refresh != "" {
		err = c.post(ctx, "/v1/refresh", map[string]string{"refresh_token": refresh}, &out)
	}
	if err != nil && c.opt.Password != "" {
		err = c.post(ctx, "/v1/login", map[string]string{"user": string(c.opt.User), "password": c.opt.Password}, &out)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.token, c.refresh, c.user = out.Token, out.RefreshToken, out.User
	c.expires = time.Now().Add(time.Duration(out.ExpiresIn) * time.Second)
	c.mu.Unlock()
	if c.opt.OnLogin != nil {
		c.opt.OnLogin(out.RefreshToken)
	}
	return nil
}

// Register makes an account.
func Register(ctx context.Context, httpURL string, user im.UserID, password, name string) error {
	c := &Client{opt: Options{HTTP: httpURL}}
	in := map[string]string{"user": string(user), "password": password}
	if name != "" {
		in["name"] = name
	}
	return c.post(ctx, "/v1/register", in, nil)
}

func (c *Client) post(ctx context.Context, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.opt.HTTP, "/")+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		var p struct{ Code, Detail, Title string }
		_ = json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&p)
		if p.Detail == "" {
			p.Detail = p.Title
		}
		if p.Detail == "" {
			p.Detail = res.Status
		}
		return &Error{Code: p.Code, Reason: p.Detail}
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// Sent is a message's place in its conversation.
type Sent struct {
	Seq im.Seq
	TS  int64
}

// Send sends a text to a conversation (dm/bob, g/team) and returns once it is
// durable. It may be repeated with the same id, which makes no second message;
// an empty id gets one.
func (c *Client) Send(ctx context.Context, conv, id, text string) (Sent, error) {
	if id == "" {
		id = randomID()
	}
	return c.publish(ctx, &paho.Publish{Topic: conv, QoS: 1, Payload: []byte(text),
		Properties: &paho.PublishProperties{ContentType: "text/plain", User: paho.UserProperties{{Key: "id", Value: id}}}})
}

// Publish is Send for any topic of the contract: dm/bob/edit/7, g/team/react/3.
func (c *Client) Publish(ctx context.Context, topic, contentType string, body []byte) (Sent, error) {
	return c.publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: body, Properties: &paho.PublishProperties{ContentType: contentType}})
}

// MarkRead tells that everything up to seq was read.
func (c *Client) MarkRead(ctx context.Context, conv string, seq im.Seq) error {
	_, err := c.publish(ctx, &paho.Publish{Topic: conv + "/read", QoS: 1, Payload: strconv.AppendUint(nil, uint64(seq), 10)})
	return err
}

// Typing tells the others that one is writing.
func (c *Client) Typing(ctx context.Context, conv string) error {
	_, err := c.conn.Publish(ctx, &paho.Publish{Topic: conv + "/typing"})
	return err
}

func (c *Client) publish(ctx context.Context, p *paho.Publish) (Sent, error) {
	res, err := c.conn.Publish(ctx, p)
	if res != nil && res.ReasonCode >= 0x80 {
		e := &Error{Code: fmt.Sprintf("0x%02x", res.ReasonCode), Reason: fmt.Sprintf("refused: 0x%02x", res.ReasonCode)}
		if res.Properties != nil && res.Properties.ReasonString != "" {
			e.Reason = res.Properties.ReasonString
		}
		return Sent{}, e
	}
	if err != nil {
		return Sent{}, err
	}
	var s Sent
	if res != nil && res.Properties != nil {
		seq, _ := strconv.ParseUint(res.Properties.User.Get("seq"), 10, 64)
		s.Seq = im.Seq(seq)
		s.TS, _ = strconv.ParseInt(res.Properties.User.Get("ts"), 10, 64)
	}
	return s, nil
}

// Call runs an operation of the OpenAPI document by its id: friends.add with
// {"user":"bob"}. in and out may be nil. A refusal is an *Error.
func (c *Client) Call(ctx context.Context, op string, in, out any) error {
	body := []byte("{}")
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	rid, ch := randomID(), make(chan []byte, 1)
	c.mu.Lock()
	c.waiting[rid] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, rid)
		c.mu.Unlock()
	}()
	if _, err := c.publish(ctx, &paho.Publish{Topic: "rpc/" + op + "/" + rid, QoS: 1, Payload: body}); err != nil {
		return err
	}
	select {
	case b := <-ch:
		var answer struct {
			OK    bool
			Data  json.RawMessage
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal(b, &answer); err != nil {
			return fmt.Errorf("client: answer of %s: %w", op, err)
		}
		if !answer.OK {
			return &Error{Code: answer.Error.Code, Reason: answer.Error.Message}
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(answer.Data, out)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// received sorts what arrives.
func (c *Client) received(r paho.PublishReceived) (bool, error) {
	p := r.Packet
	if rid, ok := strings.CutPrefix(p.Topic, "re/"); ok {
		c.mu.Lock()
		ch := c.waiting[rid]
		c.mu.Unlock()
		if ch != nil {
			select {
			case ch <- p.Payload:
			default: // a second answer to one request
			}
		}
		return true, nil
	}
	if ev := parse(p); ev != nil && c.opt.OnEvent != nil && c.fresh(ev) {
		c.opt.OnEvent(ev)
	}
	return true, nil
}

// fresh reports false for a message that was passed on before: after a break,
// what the server had not heard an acknowledgement of comes again.
func (c *Client) fresh(ev Event) bool {
	m, ok := ev.(Message)
	if !ok {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Seq <= c.seen[m.Conv] {
		return false
	}
	c.seen[m.Conv] = m.Seq
	return true
}

func parse(p *paho.Publish) Event {
	parts := strings.Split(p.Topic, "/")
	if len(parts) < 2 {
		return nil
	}
	if parts[0] == "me" {
		return Account{Name: parts[1], JSON: p.Payload}
	}
	if parts[0] != "dm" && parts[0] != "g" {
		return nil
	}
	conv := parts[0] + "/" + parts[1]
	var user paho.UserProperties
	typ := ""
	if p.Properties != nil {
		user, typ = p.Properties.User, p.Properties.ContentType
	}
	from := im.UserID(user.Get("from"))
	if from == "" && parts[0] == "dm" {
		from = im.UserID(parts[1])
	}
	if len(parts) == 3 {
		switch parts[2] {
		case "typing":
			return Typing{Conv: conv, From: from}
		case "signal":
			return Signal{Conv: conv, From: from, Body: p.Payload}
		case "read":
			r := Read{Conv: conv}
			_ = json.Unmarshal(p.Payload, &r)
			return r
		}
		return nil
	}
	m := Message{Conv: conv, From: from, ID: user.Get("id"), Type: typ, Body: p.Payload, Event: user.Get("event")}
	seq, _ := strconv.ParseUint(user.Get("seq"), 10, 64)
	m.Seq = im.Seq(seq)
	m.TS, _ = strconv.ParseInt(user.Get("ts"), 10, 64)
	if len(parts) == 4 {
		ref, _ := strconv.ParseUint(parts[3], 10, 64)
		m.Op, m.Ref = parts[2], im.Seq(ref)
	}
	return m
}

func randomID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
