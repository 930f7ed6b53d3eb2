package realtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// closeTimeout is how long a client has to take what waits for it and to
// answer a close frame.
const closeTimeout = 5 * time.Second

var (
	errWriteTimeout = errors.New("realtime: client took no bytes for Hub.WriteTimeout")
	errPongTimeout  = errors.New("realtime: client left a ping unanswered for Hub.PongTimeout")
	errIncomplete   = errors.New("realtime: client left a message incomplete for Hub.PongTimeout")
)

// A Client is one connection of a hub, a WebSocket or an event stream. All its
// methods are safe for concurrent use and none of them waits for the connection.
type Client struct {
	// Set at construction, never changed.
	hub          *Hub
	id           [16]byte
	onMessage    func(hub *Hub, msg Message)
	onDisconnect func(c *Client, err error)

	// Owned by the hub's registry, see Hub.mu.
	slot int
	home *shard

	// Owned by the shard's goroutine.
	index int           // in shard.clients; negative: not any more
	subs  *subscription // the first of them
	list  *list         // the events of the batch at hand; nil: none yet

	out  outbox
	wire wire

	// Owned by the reading goroutine.
	conn      *websocket.Conn
	inMessage bool  // between the first frame of a message and its end
	junk      int32 // bytes that came on an event stream

	beat time.Duration // when the last heartbeat was due, on the hub's clock; owned by the sweeper

	stream    bool         // an event stream, not a WebSocket; never changed, and here to fill a gap
	inHandler atomic.Bool  // OnMessage is running: nothing is read
	pinged    atomic.Int64 // when the last ping was queued, on the hub's clock
	closeBy   atomic.Int64 // when to abort a connection that is being closed; zero: it isn't

	mu     sync.Mutex // guards the fields below
	member bool       // it counts: OnConnect has returned nil and it hasn't left
	cause  error      // why it left; nil: it hasn't
	ctx    context.Context
	cancel context.CancelCauseFunc
	values map[string]any

	// tmu orders changes of topics, also while they are on their way to the
	// shard: its goroutine must never wait for it.
	tmu     sync.Mutex      // guards the fields below
	topics  []*subscription // sorted by name
	quitted bool            // it is out of its shard
	joined  bool            // what it had to get of the past at its joining, it has got
}

func newClient(h *Hub, stream bool) *Client {
	c := &Client{hub: h, stream: stream, onMessage: h.OnMessage, onDisconnect: h.OnDisconnect}
	rand.Read(c.id[:]) // never fails
	c.out.shared = &h.shared
	c.wire.clock = &h.shared.clock
	if !stream {
		c.wire.reply = c.closing
	}
	return c
}

// ID returns the client's id: 32 hexadecimal digits, random, so that knowing
// one tells nothing of another.
func (c *Client) ID() string { return hex.EncodeToString(c.id[:]) }

// parseID is the reverse of ID.
func parseID(s string) (id [16]byte, err error) {
	if len(s) != 2*len(id) {
		return id, errors.New("realtime: not a client's id")
	}
	_, err = hex.Decode(id[:], []byte(s))
	return id, err
}

// Context returns a context that is done when the client is gone, or going:
// from then on nothing can be sent to it. Its [context.Cause] is the error
// that OnDisconnect gets. It is not derived from the request's context, which
// ends with the HTTP handler.
func (c *Client) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancelCause(context.Background())
		if c.cause != nil {
			c.cancel(c.cause)
		}
	}
	return c.ctx
}

// Send sends data to this client alone, as a text message or an event without
// a name. It queues and
// returns at once; what one goroutine sends arrives in that order, but in no
// particular order with what is published to many. data belongs to the hub
// from then on and must be valid UTF-8.
//
// The error is [ErrClientClosed] where the client is gone or leaving, and
// [ErrSlowClient] where this message was one too many for it: it has been
// disconnected then. Within OnConnect, what is sent goes out right after the
// handshake.
func (c *Client) Send(data []byte) error {
	return c.SendEvent(Event{Data: data})
}

// SendEvent sends e to this client alone; see [Client.Send]. Where it has a
// Key, it replaces an older one of that Key that was sent to this client or
// published to all. Except means nothing here.
func (c *Client) SendEvent(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	return c.pushed(c.out.post(&e))
}

// Set keeps a value with the client, under a key. It may be read until after
// OnDisconnect.
func (c *Client) Set(key string, value any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.values == nil {
		c.values = make(map[string]any)
	}
	c.values[key] = value
}

// Get returns the value that Set has kept under key, and reports whether
// there is one.
func (c *Client) Get(key string) (value any, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value, ok = c.values[key]
	return value, ok
}

// Close disconnects the client: what waits for it goes out first, then a
// close frame with code and reason (RFC 6455 §7.4). It returns at once; a
// client that has not answered within 5 s is cut off. Messages that it still
// sends are discarded. The error is [ErrClientClosed] where the client is gone
// or leaving already; a code that can't be sent, or a reason that is longer
// than 123 bytes or not UTF-8, is an error that leaves the client connected.
// An event stream ends without either, and its browser comes back; see [Refuse]
// for how to turn it away then.
func (c *Client) Close(code websocket.StatusCode, reason string) error {
	if !validCode(code) {
		return fmt.Errorf("realtime: close code %d can't be sent: use 1000, 1001, 1003, 1007 to 1014, or 3000 to 4999", code)
	}
	if !validReason(reason) {
		return fmt.Errorf("realtime: close reason %q is longer than %d bytes or not UTF-8", reason, maxCloseReason)
	}
	cause := &closedError{websocket.CloseError{Code: code, Reason: reason}, ErrClientClosed}
	if !c.close(cause.status, cause) {
		return ErrClientClosed
	}
	return nil
}

// A closedError is the cause of a client that this side has closed: with
// which status, and why.
type closedError struct {
	status websocket.CloseError
	why    error
}

func (e *closedError) Error() string {
	return fmt.Sprintf("realtime: closed by this side with %d %q: %v", e.status.Code, e.status.Reason, e.why)
}

func (e *closedError) Unwrap() []error { return []error{e.status, e.why} }

// validCode reports whether RFC 6455 §7.4 lets an endpoint send code.
func validCode(code websocket.StatusCode) bool {
	switch {
	case code == 1004 || code == websocket.StatusNoStatusRcvd || code == websocket.StatusAbnormalClosure:
		return false
	case code >= 1000 && code <= 1014, code >= 3000 && code <= 4999:
		return true
	}
	return false
}

// pushed does what a push or a post has left to do.
func (c *Client) pushed(start bool, err error) error {
	switch err {
	case ErrClientClosed:
		return err
	case ErrSlowClient:
		c.cutSlow()
		return err
	}
	if c.sent(start, err); err != nil {
		return ErrClientClosed
	}
	return nil
}

// sent does what a method of the outbox has left to do.
func (c *Client) sent(start bool, err error) {
	if start {
		go c.drain()
	}
	if err != nil {
		// The other direction may still hold messages, and ends by itself.
		c.leave(fmt.Errorf("realtime: write: %w", err))
		c.expire()
	}
}

// cutSlow disconnects a client for its slowness.
func (c *Client) cutSlow() {
	if c.abort(ErrSlowClient) {
		c.hub.shared.slowClients.Add(1)
		c.hub.log.warn(logSlow, "client disconnected: it reads too slowly", "client", c.ID())
	}
}

// drain writes what waits in the outbox. It is the body of a goroutine; the
// reading goroutine waits for it.
func (c *Client) drain() {
	c.sent(false, c.out.drain())
	c.finish()
}

// leave ends the client's membership; the first cause stays. It reports
// whether this call did. The shard is told later, by the reading goroutine,
// as whoever calls leave may not wait: an outbox that is closed takes no more
// anyway.
func (c *Client) leave(cause error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return false
	}
	c.cause = cause
	if c.member {
		c.member = false
		c.hub.count.Add(-1)
	}
	if c.cancel != nil {
		c.cancel(cause)
	}
	return true
}

// left returns why the client left, or nil.
func (c *Client) left() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// join makes the client count, unless it has left already.
func (c *Client) join() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.member = true
		c.hub.count.Add(1)
	}
}

// isMember reports whether the client counts.
func (c *Client) isMember() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.member
}

// close starts the close handshake and reports whether this call did.
func (c *Client) close(status websocket.CloseError, cause error) bool {
	var last *buffer
	switch {
	case !c.stream:
		last = closeFrame(status.Code, status.Reason)
	case errors.Is(cause, ErrHubClosed):
		last = retryNotice()
	default:
		last = new(buffer)
	}
	first, start, err := c.out.close(last)
	if !first {
		return false
	}
	c.leave(cause)
	if c.wire.heard.Load() != 0 { // else there is nobody yet to take it, and accept gives it its time
		c.expire()
	}
	c.sent(start, err)
	c.finish()
	return true
}

// finish ends an event stream once its last bytes are written: nobody answers
// those.
func (c *Client) finish() {
	if c.stream && c.out.isFinished() {
		c.wire.finish()
	}
}

// expire gives the connection closeTimeout to end by itself.
func (c *Client) expire() {
	c.closeBy.CompareAndSwap(0, int64(c.hub.shared.clock.now()+closeTimeout))
}

// abort ends the connection at once and reports whether the client had not
// left before.
func (c *Client) abort(cause error) bool {
	first := c.leave(cause)
	c.out.fail()
	c.wire.abort()
	return first
}

// discard takes a client that never got its connection out of the hub.
func (c *Client) discard() {
	c.abort(ErrClientClosed)
	c.quit()
	c.hub.remove(c)
}

// serve is the reading goroutine: it reads until the connection ends, then
// takes the client out of the hub and closes the connection; or until the
// connection is idle, when it parks it and ends. The parker starts the next.
func (c *Client) serve() {
	c.wire.parked.Store(false)
	parked := false
	defer func() { // deferred because a handler may end the goroutine by runtime.Goexit
		if !parked {
			c.bury()
		}
	}()
	read := c.read
	if c.stream {
		read = c.listen
	}
	err := read()
	for errors.Is(err, errPark) {
		if parked = c.park(); parked {
			return // and leave c alone: another goroutine may be reading already
		}
		err = read()
	}
	c.leave(c.ending(err))
}

// park lets the connection wait for its next message without a goroutine, and
// reports whether it does: then the caller has nothing more to do with c.
func (c *Client) park() bool {
	w := &c.wire
	if !w.parkable || !w.idle() {
		return false
	}
	p := c.hub.parking()
	if p == nil {
		return false
	}
	if !w.placed {
		w.place, w.placed = p.enter(c), true
	}
	known := w.known
	w.known = true
	w.parked.Store(true)
	if !p.arm(w.place, w.Conn, known) {
		w.known = known
		w.parked.Store(false)
		return false
	}
	return true
}

// bury is the end of the reading goroutine of a connection that has ended.
func (c *Client) bury() {
	defer c.hub.remove(c)
	defer c.wire.linger()
	defer c.disconnected() // which may also be a runtime.Goexit
	c.leave(errors.New("realtime: OnMessage has ended its goroutine"))
	c.expire()
	if c.wire.placed {
		c.hub.parking().leave(c.wire.place)
	}
	c.quit()
	if c.conn != nil {
		c.conn.CloseNow()
	}
	c.wire.hangUp(c.out.flushed())
}

// handle runs OnMessage. Its time does not count as the client's silence.
func (c *Client) handle(msg Message) {
	if c.onMessage == nil {
		return
	}
	c.inHandler.Store(true)
	defer func() {
		if v := recover(); v != nil {
			cause := c.hub.panicked("OnMessage", v, c)
			c.close(websocket.CloseError{Code: websocket.StatusInternalError, Reason: "internal error"}, cause)
		}
		c.wire.heard.Store(int64(c.hub.shared.clock.now()))
		c.wire.between()
		c.inHandler.Store(false)
	}()
	c.onMessage(c.hub, msg)
}

// opened ends the time in which what the client gets is held, on the
// connection that it has got.
func (c *Client) opened(conn net.Conn, try func([]byte) (int, error), f format) {
	c.sent(c.out.open(conn, try, f))
	if c.out.isClosed() { // OnConnect has said good-bye already
		c.expire()
		c.finish()
	}
}

// dropped is the end of a client that has joined, but got no connection.
func (c *Client) dropped(cause error) {
	c.leave(cause)
	c.out.fail()
	c.disconnected()
}

// disconnected runs OnDisconnect.
func (c *Client) disconnected() {
	if c.onDisconnect == nil {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			c.hub.panicked("OnDisconnect", v, c)
		}
	}()
	c.onDisconnect(c, c.left())
}
