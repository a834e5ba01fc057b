package broker

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// WSOptions configure MQTT over WebSocket.
type WSOptions struct {
	Origins   []string // allowed besides our own host; "*" allows all
	Limits    *Limits  // nil: none
	MaxPacket int      // bytes of one message; default 1 MiB
	// ClientIP tells the client's address behind a proxy; nil: the peer's.
	ClientIP func(*http.Request) netip.Addr
	Log      *slog.Logger
	Refused  func(reason string)
}

// WebSocket serves MQTT over WebSocket: subprotocol mqtt [MQTT-6.0.0-3], binary
// messages that packets may span or share [MQTT-6.0.0-1, 6.0.0-2]. A request of
// a page from another origin is refused; one without Origin, which no browser
// sends, is not.
func WebSocket(o WSOptions, handle func(nc net.Conn, ended func())) http.Handler {
	if o.MaxPacket <= 0 {
		o.MaxPacket = 1 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Refused == nil {
		o.Refused = func(string) {}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !originAllowed(r, o.Origins) {
			o.Refused("origin")
			http.Error(w, "this origin may not connect", http.StatusForbidden)
			return
		}
		if !offersMQTT(r) {
			o.Refused("subprotocol")
			http.Error(w, "the WebSocket subprotocol is mqtt", http.StatusBadRequest)
			return
		}
		var remote net.Addr = tcpAddr(r.RemoteAddr)
		if o.ClientIP != nil {
			if ip := o.ClientIP(r); ip.IsValid() {
				remote = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(remote.(*net.TCPAddr).Port)))
			}
		}
		ended, handed := func() {}, false
		defer func() {
			if !handed {
				ended()
			}
		}()
		if o.Limits != nil {
			release, full := o.Limits.Acquire(remote)
			if full != "" {
				o.Refused(full)
				http.Error(w, "too many connections", http.StatusServiceUnavailable)
				return
			}
			ended = release
		}
		up := websocket.Upgrader{Subprotocols: []string{"mqtt"}, HandshakeTimeout: wsHandshake,
			CheckOrigin: func(*http.Request) bool { return true }} // checked above
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			o.Refused("upgrade")
			return
		}
		ws.SetReadLimit(int64(o.MaxPacket))
		handed = true
		handle(&wsConn{ws: ws, remote: remote}, ended)
	})
}

const wsHandshake = 10 * time.Second

// wsConn is a WebSocket as a stream of the bytes of its binary messages. After
// a read deadline has fired it reads no more, but still writes.
type wsConn struct {
	ws     *websocket.Conn
	in     io.Reader // rest of the current message
	remote net.Addr
}

func (c *wsConn) Read(b []byte) (int, error) {
	for {
		if c.in == nil {
			typ, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if typ != websocket.BinaryMessage {
				return 0, malformed("a WebSocket message that is not binary") // [MQTT-6.0.0-1]
			}
			c.in = r
		}
		n, err := c.in.Read(b)
		if errors.Is(err, io.EOF) {
			c.in, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *wsConn) Write(b []byte) (int, error) {
	if err := c.ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *wsConn) Close() error {
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	return c.ws.Close()
}

func (c *wsConn) LocalAddr() net.Addr                { return c.ws.LocalAddr() }
func (c *wsConn) RemoteAddr() net.Addr               { return c.remote }
func (c *wsConn) SetReadDeadline(t time.Time) error  { return c.ws.SetReadDeadline(t) }
func (c *wsConn) SetWriteDeadline(t time.Time) error { return c.ws.SetWriteDeadline(t) }
func (c *wsConn) SetDeadline(t time.Time) error {
	return errors.Join(c.ws.SetReadDeadline(t), c.ws.SetWriteDeadline(t))
}

func tcpAddr(s string) *net.TCPAddr {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return &net.TCPAddr{}
	}
	return net.TCPAddrFromAddrPort(ap)
}

func originAllowed(r *http.Request, allowed []string) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(allowed, "*") {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	return strings.EqualFold(u.Host, r.Host) || slices.ContainsFunc(allowed, func(a string) bool { return strings.EqualFold(a, origin) })
}

func offersMQTT(r *http.Request) bool {
	for _, h := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(h, ",") {
			if strings.EqualFold(strings.TrimSpace(p), "mqtt") {
				return true
			}
		}
	}
	return false
}
