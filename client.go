package realtime

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

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

// A Client is one connection of a hub. All its methods are safe for
// concurrent use and none of them waits for the connection.
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
	index int

	out  outbox
	wire wire

	// Owned by the reading goroutine.
	conn      *websocket.Conn
	inMessage bool // between the first frame of a message and its end

	inHandler atomic.Bool  // OnMessage is running: nothing is read
	pinged    atomic.Int64 // when the last ping was queued, on the hub's clock
	closeBy   atomic.Int64 // when to abort a connection that is being closed; zero: it isn't

	mu     sync.Mutex // guards the fields below
	member bool       // it counts: OnConnect has returned nil and it hasn't left
	cause  error      // why it left; nil: it hasn't
	ctx    context.Context
	cancel context.CancelCauseFunc
	values map[string]any
}

func newClient(h *Hub) *Client {
	c := &Client{hub: h, onMessage: h.OnMessage, onDisconnect: h.OnDisconnect}
	rand.Read(c.id[:]) // never fails
	c.out.shared = &h.shared
	c.wire.clock = &h.shared.clock
	c.wire.reply = c.closing
	return c
}

// ID returns the client's id: 32 hexadecimal digits, random, so that knowing
// one tells nothing of another.
func (c *Client) ID() string { return hex.EncodeToString(c.id[:]) }

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

// Send sends data to this client alone, as a text message. It queues and
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

// SendEvent sends e to this client alone; see [Client.Send].
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
func (c *Client) drain() { c.sent(false, c.out.drain()) }

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
	first, start, err := c.out.close(closeFrame(status.Code, status.Reason))
	if !first {
		return false
	}
	c.leave(cause)
	c.expire()
	c.sent(start, err)
	return true
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

// closing takes a close frame that the library wants to write: the answer to
// the peer's, or a complaint. The reading goroutine calls it.
func (c *Client) closing(frame []byte) {
	status := parseClose(frame[2:])
	if !validReason(status.Reason) {
		// The library echoes what the peer sent, and doesn't look at it.
		status = websocket.CloseError{Code: websocket.StatusInvalidFramePayloadData, Reason: "close reason is not UTF-8"}
	}
	_, start, err := c.out.close(closeFrame(status.Code, status.Reason))
	c.expire()
	c.sent(start, err)
}

// upgrade makes the request a client of h; see [Upgrade]. It runs on the HTTP
// handler's goroutine.
func (h *Hub) upgrade(w http.ResponseWriter, r *http.Request) error {
	h.start()
	h.settle()
	if h.closing() {
		return h.refuseClosed(w)
	}
	if status, err := checkHandshake(w.Header(), r); err != nil {
		return h.refuse(w, status, err.Error(), err)
	}
	if err := h.admitOrigin(w, r); err != nil {
		return err
	}
	hijacker, err := findHijacker(w)
	if err != nil {
		return h.refuseSetup(w, err)
	}

	c := newClient(h)
	if err := h.add(c); err != nil {
		return h.refuseClosed(w)
	}
	accepted := false
	defer func() {
		if !accepted {
			c.discard()
		}
	}()
	if err := c.connect(w, r); err != nil {
		return err
	}
	if c.out.hasFailed() { // flooded while OnConnect took its time
		c.disconnected()
		return h.refuse(w, http.StatusServiceUnavailable, "too many messages while connecting", c.left())
	}
	if h.closing() {
		c.leave(ErrHubClosed)
		c.disconnected()
		return h.refuseClosed(w)
	}
	conn, rest, err := takeOver(hijacker)
	if err != nil {
		c.leave(fmt.Errorf("realtime: upgrade: %w", err))
		c.disconnected()
		return h.refuseSetup(w, err)
	}
	if err := c.accept(w.Header(), r, conn, rest); err != nil {
		conn.Close()
		c.leave(fmt.Errorf("realtime: upgrade: %w", err))
		c.disconnected()
		return h.refused(err)
	}
	accepted = true
	return nil
}

// connect asks OnConnect, and answers its refusal.
func (c *Client) connect(w http.ResponseWriter, r *http.Request) (err error) {
	if c.hub.OnConnect != nil {
		defer func() {
			if v := recover(); v != nil {
				err = c.hub.panicked("OnConnect", v, c)
				c.hub.refuse(w, http.StatusInternalServerError, http.StatusText(http.StatusInternalServerError), err)
			}
		}()
		if err := c.hub.OnConnect(c, r); err != nil {
			return c.hub.refuseAs(w, r, err)
		}
	}
	c.join()
	return nil
}

// discard takes a client that never got its connection out of the hub.
func (c *Client) discard() {
	c.abort(ErrClientClosed)
	c.home.inbox.put(entry{op: opLeave, client: c})
	c.hub.remove(c)
}

// checkHandshake reports why r is no opening handshake (RFC 6455 §4.2.1), and
// the HTTP status that says so. It comes before OnConnect, so that no client
// is made of a request which websocket.Accept would turn down.
func checkHandshake(answer http.Header, r *http.Request) (status int, err error) {
	switch {
	case r.Method != http.MethodGet:
		answer.Set("Allow", http.MethodGet)
		return http.StatusMethodNotAllowed, fmt.Errorf("a WebSocket handshake is a GET, not a %s", r.Method)
	case !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1:
		if r.ProtoMajor == 1 { // later versions have no such fields (RFC 9113 §8.2.2)
			askForUpgrade(answer)
		}
		return http.StatusUpgradeRequired, fmt.Errorf("a WebSocket handshake needs HTTP/1.1, not %s", r.Proto)
	case !hasToken(r.Header["Connection"], "upgrade") || !hasToken(r.Header["Upgrade"], "websocket"):
		askForUpgrade(answer)
		return http.StatusUpgradeRequired, errors.New("not a WebSocket handshake: it lacks Connection: Upgrade and Upgrade: websocket; a proxy in front may drop them")
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		askForUpgrade(answer)
		answer.Set("Sec-WebSocket-Version", "13")
		return http.StatusUpgradeRequired, fmt.Errorf("WebSocket version %q is not 13", r.Header.Get("Sec-WebSocket-Version"))
	}
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) == 1 {
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0]))
		if err == nil && len(key) == 16 {
			return 0, nil
		}
	}
	return http.StatusBadRequest, errors.New("the handshake needs one Sec-WebSocket-Key, 16 bytes in base64")
}

// askForUpgrade makes answer one of 426 (RFC 9110 §15.5.22).
func askForUpgrade(answer http.Header) {
	answer.Set("Connection", "Upgrade")
	answer.Set("Upgrade", "websocket")
}

// hasToken reports whether a header has token, which is in lower case, in one
// of its comma-separated lists.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// accept answers the handshake and parks the connection, or starts the client's
// reading goroutine. Shutdown waits for its end.
func (c *Client) accept(header http.Header, r *http.Request, nc net.Conn, rest []byte) error {
	nc.SetWriteDeadline(time.Now().Add(c.hub.shared.writeTimeout)) // before attach, whose abort it would undo
	c.wire.attach(nc, rest)
	mode := websocket.CompressionDisabled
	if c.hub.shared.compression {
		mode = websocket.CompressionNoContextTakeover
	}
	h := &handshaker{header: header, wire: &c.wire}
	conn, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the hub has asked CheckOrigin
		CompressionMode:    mode,
		OnPingReceived:     c.gotPing,
		OnPongReceived:     func(context.Context, []byte) { c.gotControl() },
	})
	if err != nil {
		return err
	}
	conn.SetReadLimit(c.hub.shared.maxMessageBytes)
	c.conn = conn
	nc.SetWriteDeadline(time.Time{})
	c.sent(c.out.open(nc, tryWriter(nc), h.format))
	if !c.park() {
		go c.serve()
	}
	return nil
}

// gotPing answers a ping in the library's place, whose answer would wait for
// the connection. The library calls it while it reads.
func (c *Client) gotPing(_ context.Context, payload []byte) bool {
	c.gotControl()
	c.sent(c.out.answer(controlFrame(opPong, payload)))
	return false
}

// gotControl notes a control frame. Inside of a fragmented message it changes
// nothing: that message is to end in its time all the same.
func (c *Client) gotControl() {
	if !c.inMessage {
		c.wire.between()
	}
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
	err := c.read()
	for errors.Is(err, errPark) {
		if parked = c.park(); parked {
			return // and leave c alone: another goroutine may be reading already
		}
		err = c.read()
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
	c.home.inbox.put(entry{op: opLeave, client: c})
	c.conn.CloseNow()
	c.wire.hangUp(c.out.flushed())
}

// read hands each message to OnMessage until the connection ends.
func (c *Client) read() error {
	for {
		// A context that can be canceled would cost an allocation for each
		// frame, and its cancellation the close frame.
		typ, r, err := c.conn.Reader(context.Background())
		if err != nil {
			return err
		}
		c.inMessage = true
		data, err := readMessage(r)
		if err != nil {
			return err
		}
		c.inMessage = false
		switch binary := typ == websocket.MessageBinary; {
		case c.out.isClosed():
			// Nothing but the peer's close frame matters any more.
		case !binary && !utf8.Valid(data):
			c.close(websocket.CloseError{
				Code:   websocket.StatusInvalidFramePayloadData,
				Reason: "text message is not UTF-8",
			}, errors.New("realtime: client sent a text message that is not UTF-8"))
		default:
			c.hub.shared.received.Add(1)
			c.handle(Message{Client: c, Data: data, Binary: binary})
		}
		c.wire.between()
	}
}

// ending returns why the client left, given what ended the reading. Where the
// peer broke the protocol and the library has not told it, this does.
func (c *Client) ending(err error) error {
	if status, ok := errors.AsType[websocket.CloseError](err); ok {
		return fmt.Errorf("realtime: closed by the client: %w", status)
	}
	if readErr := c.wire.readErr; errors.Is(readErr, os.ErrDeadlineExceeded) {
		return errors.New("realtime: client left a control frame incomplete for 5 s")
	} else if readErr != nil {
		return fmt.Errorf("realtime: connection lost: %w", readErr)
	}
	cause := fmt.Errorf("realtime: client broke the protocol: %w", err)
	status := websocket.CloseError{Code: websocket.StatusProtocolError, Reason: "protocol error"}
	if _, ok := errors.AsType[flate.CorruptInputError](err); ok {
		status = websocket.CloseError{Code: websocket.StatusInvalidFramePayloadData, Reason: "compressed message is corrupt"}
	}
	c.close(status, cause)
	return cause
}

// messages holds memory to read messages into: how long one is shows at its
// end, so the handler gets a copy that fits.
var messages = sync.Pool{New: func() any { return new(make([]byte, 0, 4<<10)) }}

// readMessage returns all of a message.
func readMessage(r io.Reader) ([]byte, error) {
	mem := messages.Get().(*[]byte)
	defer messages.Put(mem)
	b := (*mem)[:0]
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			if cap(b) > 64<<10 {
				return b, nil // too large to keep: the handler's
			}
			*mem = b
			return bytes.Clone(b), nil
		}
		if err != nil {
			return nil, err
		}
		if len(b) == cap(b) {
			b = slices.Grow(b, 1)
		}
	}
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
