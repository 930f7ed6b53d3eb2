package realtime

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const closeTimeout = 5 * time.Second // for a client to read what waits and to answer a close frame

// tooSlow asks pages to reconnect, but later. realtime.js would not after 1008.
var tooSlow = websocket.CloseError{Code: websocket.StatusTryAgainLater, Reason: "client reads too slowly"}

// These are causes of clients, which departures.count tells apart.
var (
	errWriteTimeout      = errors.New("realtime: client accepted no bytes for Hub.WriteTimeout")
	errPongTimeout       = errors.New("realtime: client left a ping unanswered for Hub.PongTimeout")
	errIncomplete        = errors.New("realtime: client left a message incomplete for Hub.PongTimeout")
	errControlIncomplete = errors.New("realtime: client left a control frame incomplete for 5 s")
	errProtocol          = errors.New("realtime: client broke the protocol")
	errPanicked          = errors.New("panicked") // a handler
	errEnded             = errors.New("realtime: a handler has ended its client's goroutine")
)

// A Client is one connection of a hub, a WebSocket or an event stream. All its
// methods are safe for concurrent use, and none waits for the connection.
//
// Its life:
//
//	joining ──OnConnect returned nil──▶ open ──close, abort, or the peer──▶ closing ──▶ gone
//	   │                                                                       ▲
//	   └──────────────────────refused, close, abort────────────────────────────┘
//
// Its states:
//
//   - joining: it has a slot and a shard, and events wait in its outbox. It
//     doesn't count yet.
//   - open: it counts. Its connection follows, when the request is answered.
//   - closing: it has a cause, the first one, and accepts no more events. Those
//     that wait still go out, but not after abort.
//   - gone: OnDisconnect has returned, and its slot becomes free.
type Client struct {
	// Set at construction, never changed.
	hub          *Hub
	transport    transport
	id           clientID // set by the registry
	onMessage    func(hub *Hub, msg Message)
	onDisconnect func(c *Client, err error)

	// Owned by the registry, and guarded by its mutex.
	slot int32
	// Owned by the shard's goroutine.
	index int32  // in shard.clients
	home  *shard // set by the registry, never changed
	list  *list  // the events that it gets of this batch; nil: none yet

	out  outbox
	wire wire

	// Owned by the goroutine that answers the request, then by the reading one.
	seat      *seat // nil: there is nothing to read
	admitted  bool  // OnDisconnect is to follow: OnConnect has returned nil
	opened    bool  // it counts in Left when it is gone
	inMessage bool  // between the first frame of a message and its end
	wasParked bool  // the parker's set has the descriptor
	junk      int32 // bytes that came on an event stream

	// Owned by accept, then by the sweeper.
	beat  time.Duration // when the connection opened or the last heartbeat was due, on the hub's clock
	looks uint8         // at the open connection, until its ids are final

	// Set by the goroutine that answers the request, before the reading.
	screened  bool // OnConnect was asked about it
	envelopes bool // it is of the Subprotocol

	pinged    atomic.Int64 // when the last ping was queued, on the hub's clock
	closeBy   atomic.Int64 // when to abort a connection that is being closed; zero: it isn't
	expires   atomic.Int64 // when ExpireAt closes it, in Unix milliseconds; zero: never
	inHandler atomic.Bool  // OnMessage is running: nothing is read

	mu     sync.Mutex // guards the fields below
	state  clientState
	cause  error          // why it is closing; nil: it isn't
	ctx    *clientContext // nil: nobody has asked for it
	values map[string]any

	// tmu orders changes of topics until the shard has them. The shard's
	// goroutine must never wait for it.
	tmu      sync.Mutex      // guards the fields below
	topics   []*subscription // sorted by name
	unlisted bool            // it is out of its shard
	replayed bool            // its replay at joining is done or under way
	late     *lateStart      // nil: topics that it subscribes later begin as for a new client
}

type clientState uint8

const (
	clientJoining clientState = iota
	clientOpen
	clientClosing // also when it is gone
)

// A transport is the part of a client's life in which WebSockets and event
// streams differ. No method is called under a lock. prepare, refuseForNow,
// dismiss and connect run on the HTTP handler's goroutine, read and ended on the
// reading goroutine, sweep on the sweeper's, finished on any. These last two must
// not block.
type transport interface {
	kind() Transport

	// prepare returns a refusal of a request that can't be a client, or has
	// answered one that needs none and returns errAnswered.
	prepare(h *Hub, w http.ResponseWriter, r *http.Request) error

	// refuseForNow answers a request that should be tried again later.
	refuseForNow(w http.ResponseWriter, r *http.Request, answer *refusal)

	// dismiss tells a client of realtime.v1 that OnConnect has refused it. It
	// reports whether the request is answered by that. The client's connection,
	// if it has one then, is left to gone.
	dismiss(c *Client, w http.ResponseWriter, r *http.Request, answer *refusal) bool

	// connect answers the request and gives the client its connection. The
	// error is a refusal as long as the request can be answered. If the answer
	// goes through w, the handler's goroutine then runs stay, for the rest of
	// the client's life.
	connect(c *Client, w http.ResponseWriter, r *http.Request) (stay func(), err error)

	// read hands on messages until the connection ends, or returns errPark.
	read(c *Client) error

	// ended returns why a client left, given what ended the reading.
	ended(c *Client, err error) error

	// finished is called when all is written and nothing more will be.
	finished(c *Client)

	// sweep does what is due for a connected client, but for heartbeats and
	// parking.
	sweep(c *Client, now time.Duration)
}

func newClient(h *Hub, t transport) *Client {
	c := &Client{hub: h, transport: t, onMessage: h.OnMessage, onDisconnect: h.OnDisconnect}
	c.out.shared, c.out.owner = &h.shared, c
	c.wire.client = c
	return c
}

// Transport returns how the client is connected.
func (c *Client) Transport() Transport { return c.transport.kind() }

// A Transport is how a client is connected. Its text can be a label in metrics.
type Transport string

const (
	WebSocket   Transport = "websocket"   // RFC 6455; messages come from it, too
	EventStream Transport = "eventstream" // WHATWG HTML §9.2; nothing comes from it
)

// ID returns the client's id: 32 hexadecimal digits that nobody can guess.
func (c *Client) ID() string { return hex.EncodeToString(c.id[:]) }

// A clientID is random but for its hidden slot, see registry.mask.
type clientID [16]byte

func parseID(s string) (id clientID, err error) {
	if len(s) != 2*len(id) {
		return id, errors.New("realtime: not a client's id")
	}
	_, err = hex.Decode(id[:], []byte(s))
	return id, err
}

// Context returns a context that is done when the client is gone or closing.
// From then on nothing can be sent to it. Its [context.Cause] is the error that
// OnDisconnect gets. It is not derived from the request's context, which ends
// with the HTTP handler.
func (c *Client) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx = new(clientContext)
		c.ctx.Context, c.ctx.cancel = context.WithCancelCause(context.Background())
		if c.cause != nil {
			c.ctx.cancel(c.cause)
		}
	}
	return c.ctx.Context
}

type clientContext struct { // apart because most clients have none
	context.Context
	cancel context.CancelCauseFunc
}

// Send sends data to this client alone, as a text message or as an event
// without a name. It queues data and returns at once. Messages that one
// goroutine sends arrive in that order. Published events and events sent to one
// client have no order between them. data must be valid UTF-8 and belongs to
// the hub from then on. In OnConnect, it goes out right after the handshake.
//
// The error is [ErrClientClosed] if the client is gone or closing, and
// [ErrSlowClient] if data was one message too many: the client is disconnected.
func (c *Client) Send(data []byte) error {
	return c.SendEvent(Event{Data: data})
}

// SendEvent sends e to this client alone; see [Client.Send]. An e with a Key
// replaces an older event of that Key that still waits for this client, if it
// was sent to it or published to all. Except means nothing here.
func (c *Client) SendEvent(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	return c.out.post(&e)
}

// Set keeps value under key for Get, in OnDisconnect and after it as well.
func (c *Client) Set(key string, value any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.values == nil {
		c.values = make(map[string]any)
	}
	c.values[key] = value
}

// Get returns the value that Set keeps under key, and reports whether it does.
func (c *Client) Get(key string) (value any, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value, ok = c.values[key]
	return value, ok
}

// Close disconnects the client and returns at once. Messages that wait for the
// client go out first, then a close frame with code and reason (RFC 6455 §7.4).
// A client that has not answered within 5 s is cut off. Messages from it are
// discarded. A reason is cut to 123 bytes, at a character, and what isn't UTF-8
// in it becomes U+FFFD.
//
// A client of the [Subprotocol] is told code and reason on both transports, and
// whether the code is final. If it is, realtime.js doesn't reconnect. Any other
// event stream gets no code and no reason, and its browser reconnects. [Refuse]
// can then turn it away.
//
// The error is [ErrClientClosed] if the client is gone or closing already. A code
// that can't be sent is an error that leaves it connected.
func (c *Client) Close(code websocket.StatusCode, reason string) error {
	status, err := checkClose(code, reason)
	if err != nil {
		return err
	}
	cause := &closedError{status, ErrClientClosed}
	if !c.close(cause.status, cause) {
		return ErrClientClosed
	}
	return nil
}

// ExpireAt closes the client at t, or up to a second later: as a rule when the
// credentials expire by which OnConnect let it in. It is [Client.Close] with 3000
// (unauthorized, in IANA's registry of close codes) and "credentials have
// expired". A later call replaces t, and the zero time takes it back. A t that
// has passed closes the client within a second. The time is the wall clock's, in
// milliseconds. In OnConnect it counts as well. A client that is gone or closing
// stays so.
func (c *Client) ExpireAt(t time.Time) {
	at := int64(0)
	if !t.IsZero() {
		at = max(1, t.UnixMilli()) // some clocks begin in 1970
	}
	c.expires.Store(at)
}

// expired is the cause of a client that ExpireAt has closed.
var expired = &closedError{websocket.CloseError{Code: 3000, Reason: "credentials have expired"}, ErrClientClosed}

// A closedError is the cause of a client that this side has closed.
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
	return code >= 1000 && code <= 1014 && (code < 1004 || code > 1006) || code >= 3000 && code <= 4999
}

// outboxFailed ends a client whose outbox has failed or must; see outboxOwner.
func (c *Client) outboxFailed(err error) {
	if err == ErrSlowClient {
		c.cut(err)
		return
	}
	// The other direction may still hold messages, and ends by itself.
	c.end(fmt.Errorf("realtime: write: %w", err))
}

func (c *Client) outboxFinished() { c.transport.finished(c) }

// cut ends a client that is at fault. One that reads, but too slowly, is told:
// else its page would take the end for a broken network, and reconnect at once.
// After errWriteTimeout no byte fits.
func (c *Client) cut(err error) {
	first := false
	if err != ErrSlowClient || !c.out.cut(newGoodbye(tooSlow, err).in, func() { first = c.end(err) }) {
		first = c.abort(err)
	}
	if first && err == ErrSlowClient {
		c.hub.shared.slowClients.Add(1)
		c.hub.shared.log.warn(logSlow, "client disconnected: it reads too slowly", "client", c.ID())
	}
}

// open moves the client on when OnConnect has returned nil. The client counts
// then, unless it is closing already.
func (c *Client) open() {
	c.admitted, c.opened = true, true
	c.mu.Lock()
	if c.state == clientJoining {
		c.state = clientOpen
		c.hub.shared.members.Add(1)
	}
	c.mu.Unlock()
	c.hub.presence.opened(c)
}

// end moves the client to closing and reports whether this call did. The
// connection then has closeTimeout to end by itself. end must not wait, so the
// shard learns it from gone; a closed outbox accepts nothing.
func (c *Client) end(cause error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == clientClosing {
		return false
	}
	if c.state == clientOpen {
		c.hub.shared.members.Add(-1)
	}
	c.state, c.cause = clientClosing, cause
	if c.ctx != nil {
		c.ctx.cancel(cause)
	}
	if c.wire.heard.Load() != 0 { // zero: it has no connection yet, and accept will do it
		c.limitClosing()
	}
	return true
}

// why returns why the client is closing or gone, or nil.
func (c *Client) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

func (c *Client) isOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == clientOpen
}

// close ends the client behind all that waits for it, by a goodbye, and reports
// whether this call did.
func (c *Client) close(status websocket.CloseError, cause error) bool {
	return c.out.close(newGoodbye(status, cause).in, func() { c.end(cause) })
}

// abort ends the client and its connection at once. It reports what end does.
func (c *Client) abort(cause error) bool {
	c.out.fail()
	first := c.end(cause)
	c.wire.abort()
	return first
}

// limitClosing gives the connection closeTimeout to end by itself.
func (c *Client) limitClosing() {
	c.closeBy.CompareAndSwap(0, int64(c.hub.shared.clock.now()+closeTimeout))
}

// gone ends what is left of the client. The goroutine that reads the connection
// calls it at the end. If there is no connection, the one that answers the
// request does. It blocks until what waits is written and the peer has closed
// its side, which abort cuts short, and until OnDisconnect has returned.
func (c *Client) gone() {
	defer c.hub.registry.remove(c)
	defer c.wire.linger()
	defer c.disconnected() // which may also be a runtime.Goexit
	c.end(errEnded)
	c.limitClosing() // which end hasn't done if it was called before there was a connection
	c.unlist()
	if c.seat != nil {
		c.seat.conn.CloseNow()
	} else if c.wire.Conn != nil {
		c.wire.Close() // as a Conn does: the sweeper must not kick linger
	}
	c.wire.hangUp(c.out.flushed())
}

// disconnected counts the client and runs OnDisconnect, if OnConnect has returned
// nil.
func (c *Client) disconnected() {
	why := c.why()
	if c.opened {
		c.hub.shared.left.count(why)
	}
	defer c.hub.catch("OnDisconnect", c, func(error) {})
	if c.admitted && c.onDisconnect != nil {
		c.onDisconnect(c, why)
	}
}
