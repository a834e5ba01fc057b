package mongotest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Action is what the proxy does to one command.
type Action uint8

// The actions.
const (
	Pass        Action = iota
	LoseReply          // the server executes it; the answer is lost with the connection
	CutBatch           // an insert: the server gets the first half of the documents, then as LoseReply
	Drop               // the server never gets it; the connection is lost
	Refuse             // the server never gets it; the answer is error Code
	Late               // the server gets it only after the connection is lost and Delay is over
	Slow               // the answer comes after Delay
	Unsure             // the server executes it; the answer has Code as its write concern error beside ok: 1
	RefuseWrite        // the server never gets it; the answer is ok: 1 and has Code as the error of its first write
)

// Fault is an action and its details.
type Fault struct {
	Do    Action
	Code  int // Refuse, Unsure, RefuseWrite
	Delay time.Duration
}

// Command is what the proxy sees of one.
type Command struct {
	Name       string // "insert", "find", …
	Collection string
	DB         string
	Body       bson.Raw              // the command without its document sequences
	Docs       map[string][]bson.Raw // the document sequences: "documents", "updates", "deletes"
}

// Proxy stands between clients and a server. Make it with NewProxy.
type Proxy struct {
	ln       net.Listener
	server   string
	serial   bool       // one write command at a time
	writing  sync.Mutex // held from a write command to its reply
	mu       sync.Mutex
	conns    map[net.Conn]bool
	faults   atomic.Pointer[func(Command) Fault]
	down     atomic.Bool
	done     sync.WaitGroup
	closed   chan struct{} // ends delays
	breaches breaches
	Commands atomic.Int64 // how many went through
	Faults   atomic.Int64 // how many were not just passed
}

// NewProxy listens on a free port in front of server, a host:port. With serial
// it lets one write command at a time through.
func NewProxy(server string, serial bool) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{ln: ln, server: server, serial: serial, conns: map[net.Conn]bool{}, closed: make(chan struct{})}
	p.done.Go(p.accept)
	return p, nil
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Inject makes fn decide about each command that is not about the connection; nil
// passes all.
func (p *Proxy) Inject(fn func(Command) Fault) {
	if fn == nil {
		p.faults.Store(nil)
		return
	}
	p.faults.Store(&fn)
}

// Down cuts every connection and lets nobody in, until Up.
func (p *Proxy) Down() {
	p.down.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Up ends Down.
func (p *Proxy) Up() { p.down.Store(false) }

// Close ends the proxy.
func (p *Proxy) Close() {
	close(p.closed)
	_ = p.ln.Close()
	p.Down()
	p.done.Wait()
}

// wait is the delay of a fault.
func (p *Proxy) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-p.closed:
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.down.Load() {
			_ = c.Close()
		} else {
			p.conns[c] = true
			p.done.Go(func() {
				p.serve(c)
				_ = c.Close()
				p.mu.Lock()
				delete(p.conns, c)
				p.mu.Unlock()
			})
		}
		p.mu.Unlock()
	}
}

// link is one client's connection and ours to the server.
type link struct {
	p              *Proxy
	client, server net.Conn
	mu             sync.Mutex
	waiting        map[int32]*waiting
}

// waiting is a command whose reply is treated specially.
type waiting struct {
	fault Fault
	done  chan struct{} // the reply is dealt with, or will not come
}

func (p *Proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	l := &link{p: p, client: client, server: server, waiting: map[int32]*waiting{}}
	var replies sync.WaitGroup
	replies.Go(l.replies)
	for l.request() == nil {
	}
	_ = client.Close()
	_ = server.Close()
	replies.Wait()
}

const opMsg = 2013

var errCut = errors.New("cut by a fault")

// request passes one message of the client on.
func (l *link) request() error {
	msg, err := readMessage(l.client)
	if err != nil {
		return err
	}
	cmd, ok := parse(msg)
	if !ok {
		_, err := l.server.Write(msg)
		return err
	}
	fault := Fault{}
	switch cmd.Name {
	case "hello", "isMaster", "ismaster", "ping", "saslStart", "saslContinue", "endSessions", "buildInfo":
		_, err := l.server.Write(msg)
		return err
	}
	l.p.Commands.Add(1)
	l.p.breaches.note(&cmd)
	if fn := l.p.faults.Load(); fn != nil {
		fault = (*fn)(cmd)
	}
	if (fault.Do == Unsure || fault.Do == RefuseWrite) && !writes(cmd.Name) {
		fault.Do = Pass // no server says so of a read
	}
	if fault.Do != Pass {
		l.p.Faults.Add(1)
	}
	id := int32(binary.LittleEndian.Uint32(msg[4:]))
	switch fault.Do {
	case Drop:
		return errCut
	case Refuse:
		_, err := l.client.Write(reply(id, append(refusal(fault.Code), bson.E{Key: "ok", Value: 0.0})))
		return err
	case RefuseWrite:
		_, err := l.client.Write(reply(id, bson.D{{Key: "ok", Value: 1.0}, {Key: "n", Value: int32(0)},
			{Key: "writeErrors", Value: bson.A{append(refusal(fault.Code), bson.E{Key: "index", Value: int32(0)})}}}))
		return err
	case Late:
		server := l.p.server
		l.p.done.Go(func() { l.p.late(server, msg, fault.Delay, cmd) })
		return errCut
	case CutBatch:
		msg = half(msg)
	}
	if l.p.serial && writes(cmd.Name) {
		l.p.writing.Lock()
		defer l.p.writing.Unlock()
	}
	w := &waiting{fault: fault, done: make(chan struct{})}
	l.mu.Lock()
	l.waiting[id] = w
	l.mu.Unlock()
	if _, err := l.server.Write(msg); err != nil {
		return err
	}
	<-w.done
	if fault.Do == LoseReply || fault.Do == CutBatch {
		return errCut
	}
	return nil
}

// late executes a command whose client has long given up: on a connection of its own.
func (p *Proxy) late(server string, msg []byte, after time.Duration, cmd Command) {
	p.wait(after)
	c, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	if p.serial && writes(cmd.Name) {
		p.writing.Lock()
		defer p.writing.Unlock()
	}
	if _, err := c.Write(msg); err == nil {
		_, _ = readMessage(c)
	}
}

// replies passes the server's messages on.
func (l *link) replies() {
	defer func() {
		_ = l.client.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		for id, w := range l.waiting {
			close(w.done)
			delete(l.waiting, id)
		}
	}()
	for {
		msg, err := readMessage(l.server)
		if err != nil {
			return
		}
		to := int32(binary.LittleEndian.Uint32(msg[8:]))
		l.mu.Lock()
		w := l.waiting[to]
		delete(l.waiting, to)
		l.mu.Unlock()
		lose := false
		if w != nil {
			switch w.fault.Do {
			case LoseReply, CutBatch:
				lose = true
			case Slow:
				l.p.wait(w.fault.Delay)
			case Unsure:
				msg = unsure(msg, to, w.fault.Code)
			}
		}
		if !lose {
			_, err = l.client.Write(msg)
		}
		if w != nil {
			close(w.done)
		}
		if err != nil || lose {
			return
		}
	}
}

func writes(cmd string) bool {
	switch cmd {
	case "insert", "update", "delete", "findAndModify", "findandmodify", "createIndexes", "drop", "dropDatabase", "create":
		return true
	}
	return false
}

func readMessage(r io.Reader) ([]byte, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n < 16 || n > 64<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	msg := make([]byte, n)
	copy(msg, head[:])
	_, err := io.ReadFull(r, msg[16:])
	return msg, err
}

// parse reads the command of an OP_MSG: the first element of its body section.
func parse(msg []byte) (cmd Command, ok bool) {
	if binary.LittleEndian.Uint32(msg[12:]) != opMsg || len(msg) < 26 || msg[20] != 0 {
		return cmd, false
	}
	doc := bson.Raw(msg[21:])
	if n := binary.LittleEndian.Uint32(msg[21:]); int(n) <= len(doc) {
		doc = doc[:n]
	}
	els, err := doc.Elements()
	if err != nil || len(els) == 0 {
		return cmd, false
	}
	cmd.Name = els[0].Key()
	cmd.Collection, _ = els[0].Value().StringValueOK()
	if cmd.Name == "getMore" {
		cmd.Collection, _ = doc.Lookup("collection").StringValueOK()
	}
	cmd.DB, _ = doc.Lookup("$db").StringValueOK()
	cmd.Body, cmd.Docs = doc, sequences(msg, 21+len(doc))
	return cmd, true
}

// sequences reads the document sequence sections (kind 1) that begin at at.
func sequences(msg []byte, at int) map[string][]bson.Raw {
	out := map[string][]bson.Raw{}
	for at+5 < len(msg) && msg[at] == 1 {
		end := at + 1 + int(binary.LittleEndian.Uint32(msg[at+1:]))
		name := bytes.IndexByte(msg[at+5:], 0)
		if name < 0 || end > len(msg) {
			return out
		}
		key := string(msg[at+5 : at+5+name])
		for i := at + 5 + name + 1; i+4 <= end; {
			n := int(binary.LittleEndian.Uint32(msg[i:]))
			if n < 5 || i+n > end {
				return out
			}
			out[key] = append(out[key], msg[i:i+n])
			i += n
		}
		at = end
	}
	return out
}

// half leaves the first half of an insert's documents, which stand in a document
// sequence section (kind 1) after the body.
func half(msg []byte) []byte {
	at := 21 + int(binary.LittleEndian.Uint32(msg[21:]))
	if at+5 > len(msg) || msg[at] != 1 {
		return msg
	}
	size := int(binary.LittleEndian.Uint32(msg[at+1:]))
	name := bytes.IndexByte(msg[at+5:], 0)
	docs := at + 5 + name + 1
	end := at + 1 + size
	var starts []int
	for i := docs; i < end; i += int(binary.LittleEndian.Uint32(msg[i:])) {
		starts = append(starts, i)
	}
	if len(starts) < 2 {
		return msg
	}
	cut := starts[len(starts)/2]
	out := append(bytes.Clone(msg[:cut]), msg[end:]...)
	binary.LittleEndian.PutUint32(out[at+1:], uint32(cut-at-1))
	binary.LittleEndian.PutUint32(out, uint32(len(out)))
	return out
}

// refusal is what a server says of an error.
func refusal(code int) bson.D {
	return bson.D{{Key: "code", Value: int32(code)}, {Key: "codeName", Value: "Injected"}, {Key: "errmsg", Value: "injected by the proxy"}}
}

// unsure adds a write concern error to a reply.
func unsure(msg []byte, to int32, code int) []byte {
	var doc bson.D
	if len(msg) < 26 || bson.Unmarshal(msg[21:], &doc) != nil {
		return msg
	}
	return reply(to, append(doc, bson.E{Key: "writeConcernError", Value: refusal(code)}))
}

// reply is an OP_MSG reply.
func reply(to int32, doc bson.D) []byte {
	raw, err := bson.Marshal(doc)
	if err != nil {
		panic(err) // documents of ours, or of a server
	}
	msg := make([]byte, 21, 21+len(raw))
	msg = append(msg, raw...)
	binary.LittleEndian.PutUint32(msg, uint32(len(msg)))
	binary.LittleEndian.PutUint32(msg[8:], uint32(to))
	binary.LittleEndian.PutUint32(msg[12:], opMsg)
	return msg
}
