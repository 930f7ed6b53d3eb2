package realtime

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// webSocket is the transport of RFC 6455.
type webSocket struct {
	orStream bool // the URL serves event streams as well
}

func (webSocket) kind() Transport { return WebSocket }

func (t webSocket) prepare(h *Hub, w http.ResponseWriter, r *http.Request) error {
	if status, err := checkHandshake(w.Header(), r); err != nil {
		if t.orStream && status == http.StatusUpgradeRequired && r.Header["Sec-Websocket-Key"] == nil { // no browser, or one's address bar
			err = errAskHow
		}
		if status == http.StatusUpgradeRequired && r.ProtoMajor == 1 { // later versions have no such fields (RFC 9113 §8.2.2)
			w.Header().Set("Connection", "Upgrade") // RFC 9110 §15.5.22
			w.Header().Set("Upgrade", "websocket")
		}
		return openly(status, err)
	}
	if err := h.admitOrigin(r); err != nil {
		return err
	}
	if err := canHijack(w); err != nil {
		return h.wrongSetup(err)
	}
	return nil
}

// errAskHow answers a request that asks for neither transport, as curl's.
var errAskHow = errors.New(`this URL serves WebSockets and event streams: a request for a stream has the header "Accept: text/event-stream", as in curl -N -H "Accept: text/event-stream" URL`)

func (webSocket) refuseForNow(w http.ResponseWriter, _ *http.Request, answer *refusal) {
	w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5))) // random, so that clients don't all reconnect together
	http.Error(w, answer.reason, http.StatusServiceUnavailable)
}

// dismiss makes the handshake, because a page sees nothing of one that fails. The
// client never counts and gets no seat. gone discards what comes from it, and
// closeTimeout bounds that.
func (webSocket) dismiss(c *Client, w http.ResponseWriter, r *http.Request, answer *refusal) bool {
	if !offersSubprotocol(r.Header["Sec-Websocket-Protocol"]) || c.wire.isAborted() {
		return false // w can still have the answer
	}
	c.out.fail() // what waits for it, and what still comes
	hijacker, _ := findHijacker(w)
	conn, _, err := takeOver(hijacker)
	switch {
	case err != nil && conn != nil:
		c.hub.giveUp(conn, err)
		return true
	case err != nil:
		return false
	}
	conn.SetWriteDeadline(time.Now().Add(c.hub.shared.writeTimeout)) // before attach, whose abort it would undo
	c.wire.attach(conn, nil)
	if f, err := c.shakeHands(w.Header(), r); err == nil {
		conn.Write(answer.goodbye().in(f.encoding).b)
	}
	return true
}

// connect takes the connection over and answers the handshake on it.
func (webSocket) connect(c *Client, w http.ResponseWriter, r *http.Request) (stay func(), err error) {
	hijacker, _ := findHijacker(w) // prepare has checked that there is one
	conn, rest, err := takeOver(hijacker)
	switch {
	case err != nil && conn != nil:
		return nil, c.hub.giveUp(conn, err)
	case err != nil:
		return nil, c.hub.wrongSetup(err)
	}
	return nil, c.accept(conn, rest, func() (format, error) { return c.shakeHands(w.Header(), r) })
}

// read waits for messages without a seat. It takes one for bytes that are no whole
// plain messages. So a hub needs few seats, however many of its clients are
// active.
//
// A client that has said something after a long silence parks at once. It may be
// silent again, and the sweeper would have to wake it for that.
func (webSocket) read(c *Client) error {
	var came [seatReadBytes]byte
	seldom := false
	for {
		if c.seat == nil {
			if seldom {
				return errPark
			}
			before := c.wire.heard.Load()
			n, err := c.wire.Read(came[:])
			if err != nil {
				return err
			}
			seldom = time.Duration(c.wire.heard.Load()-before) >= parkAfter
			rest := c.readPlain(came[:n])
			if len(rest) == 0 {
				continue
			}
			c.wire.took() // the rest came, too: the messages before it are complete
			if err := c.takeSeat(rest); err != nil {
				return err
			}
		}
		// A context that can be canceled would cost an allocation for each
		// frame, and its cancellation would cost the close frame.
		typ, r, err := c.seat.conn.Reader(context.Background())
		if errors.Is(err, errNothingCame) {
			c.leaveSeat()
			continue
		}
		if err != nil {
			return err
		}
		c.inMessage = true
		data, err := c.readMessage(r, typ == websocket.MessageText)
		if err != nil {
			return err
		}
		c.inMessage = false
		if c.seat.in.Buffered() == 0 {
			c.leaveSeat() // a handler may block
		}
		c.receive(data, typ == websocket.MessageText)
	}
}

// receive handles a message. All messages come through here, on the reading
// goroutine, so a handler that blocks holds back the client's next message.
func (c *Client) receive(data []byte, text bool) {
	if !c.out.isClosed() { // else only the peer's close frame matters
		c.hub.shared.received.Add(1)
		switch {
		case c.envelopes && text && bytes.HasPrefix(data, []byte(controlPrefix)):
			c.run("OnSubscribe", func() { c.control(data) })
		case c.onMessage != nil:
			c.run("OnMessage", func() { c.onMessage(c.hub, Message{Client: c, Data: data, Binary: !text}) })
		}
	}
	c.between()
}

// readPlain handles the plain messages at the beginning of b, which begins between
// two messages, and returns the rest. A plain message is one whole frame without
// fault. It needs no state, and most messages are plain and short. So the library
// would do nothing for them but cost time. It gets all else, faults included. A
// pong counts as such a message: idle clients send nothing else.
func (c *Client) readPlain(b []byte) (rest []byte) {
	for {
		data, op, n := plainMessage(b, c.hub.shared.maxMessageBytes)
		if n == 0 {
			return b
		}
		b = b[n:]
		if op == opPong {
			c.between()
		} else {
			c.receive(data, op == opText)
		}
	}
}

// plainMessage returns a copy of the data of the plain message at the beginning of
// b, its opcode, and the number of its bytes in b, or zero if there is none (RFC
// 6455 §5.2).
func plainMessage(b []byte, limit int64) (data []byte, op byte, n int) {
	if len(b) < 2 || b[0]&^opMask != finBit || b[1] < maskBit {
		return nil, 0, 0
	}
	op = b[0] & opMask
	size, begin := int(b[1]-maskBit), 2
	switch {
	case op != opText && op != opBinary && op != opPong:
		return nil, 0, 0
	case size <= maxControlPayload:
	case size == 126 && op != opPong && len(b) >= 4:
		size, begin = int(binary.BigEndian.Uint16(b[2:])), 4
	default:
		return nil, 0, 0
	}
	n = begin + 4 + size
	if len(b) < n || int64(size) > limit {
		return nil, 0, 0
	}
	data = make([]byte, size)
	unmask(data, b[begin+4:n], b[begin:begin+4])
	if op == opText && !utf8.Valid(data) {
		return nil, 0, 0
	}
	return data, op, n
}

// unmask sets data to masked without its mask (RFC 6455 §5.3).
func unmask(data, masked, mask []byte) {
	i, wide := 0, uint64(binary.LittleEndian.Uint32(mask))
	for wide |= wide << 32; i+8 <= len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], binary.LittleEndian.Uint64(masked[i:])^wide)
	}
	for ; i < len(data); i++ {
		data[i] = masked[i] ^ mask[i%4]
	}
}

// ended also tells a peer that it broke the protocol, if the library hasn't.
func (webSocket) ended(c *Client, err error) error {
	if status, ok := errors.AsType[websocket.CloseError](err); ok {
		return fmt.Errorf("realtime: closed by the client: %w", status)
	}
	if readErr := c.wire.readErr(); errors.Is(readErr, os.ErrDeadlineExceeded) {
		return errControlIncomplete
	} else if readErr != nil {
		return fmt.Errorf("realtime: connection lost: %w", readErr)
	}
	cause := fmt.Errorf("%w: %w", errProtocol, err)
	status := websocket.CloseError{Code: websocket.StatusProtocolError, Reason: "protocol error"}
	if _, ok := errors.AsType[flate.CorruptInputError](err); ok {
		status = websocket.CloseError{Code: websocket.StatusInvalidFramePayloadData, Reason: "compressed message is corrupt"}
	} else if errors.Is(err, errNotUTF8) {
		status = websocket.CloseError{Code: websocket.StatusInvalidFramePayloadData, Reason: "text message is not UTF-8"}
	} else if errors.Is(err, errTooLarge) {
		status = websocket.CloseError{Code: websocket.StatusMessageTooBig, Reason: "message is too large"}
	}
	c.close(status, cause)
	return cause
}

func (webSocket) finished(*Client) {} // the peer answers the close frame

// libraryCloses accepts a close frame from the library: an answer to the peer's
// or a complaint. The reading goroutine calls it, and gets the cause next.
func (c *Client) libraryCloses(frame []byte) {
	status := parseClose(frame[2:])
	if !validReason(status.Reason) {
		// The library echoes the peer's reason without a look at it.
		status = websocket.CloseError{Code: websocket.StatusInvalidFramePayloadData, Reason: "close reason is not UTF-8"}
	}
	c.out.close(func(encoding) *buffer { return closeFrame(status.Code, status.Reason) }, func() {})
	c.limitClosing()
}

// sweep pings a client from which nothing comes, and ends one that leaves a
// ping unanswered or a message incomplete.
func (webSocket) sweep(c *Client, now time.Duration) {
	s := &c.hub.shared
	heard := time.Duration(c.wire.heard.Load())
	busy := c.inHandler.Load()
	if since := time.Duration(c.wire.partial.Load()); since != 0 && !busy && now-since >= s.pongTimeout {
		c.close(websocket.CloseError{Code: websocket.StatusPolicyViolation, Reason: "message takes too long"}, errIncomplete)
		return
	}
	switch pinged := time.Duration(c.pinged.Load()); {
	case pinged <= heard:
		if s.pingInterval > 0 && now-heard >= s.pingInterval-ahead {
			c.pinged.Store(int64(now))
			c.out.control(pingFrame)
		}
	case c.out.isWriting(): // the ping, or what is before it, may still wait
		c.pinged.Store(int64(now))
	case !busy && now-pinged >= s.pongTimeout:
		c.abort(errPongTimeout)
	}
}

// messages holds memory to read messages into. Only a message's end shows its
// size, so the handler gets a copy that fits.
var messages = sync.Pool{New: func() any { return new(make([]byte, 0, 4<<10)) }}

// readMessage reads a message to its end, or returns what is wrong with it. Text
// that is not UTF-8 is refused as soon as it has come. A large frame is read in
// large steps, so there it may be refused some kilobytes later.
func (c *Client) readMessage(r io.Reader, text bool) ([]byte, error) {
	inSteps := text
	if c.wire.inflates && c.seat.marks.next() {
		z := newInflater(r)
		defer z.free()
		r, inSteps = z, false
	}
	mem := messages.Get().(*[]byte)
	defer messages.Put(mem)
	b := (*mem)[:0]
	valid := 0 // how many bytes of a text have been checked
	for {
		most := cap(b)
		if inSteps {
			most = len(b) + min(most-len(b), c.seat.ready())
		}
		n, err := r.Read(b[len(b):most])
		b = b[:len(b)+n]
		if int64(len(b)) > c.hub.shared.maxMessageBytes {
			return nil, errTooLarge
		}
		if text {
			whole := len(b) - cutRune(b[valid:])
			if !utf8.Valid(b[valid:whole]) || err == io.EOF && whole != len(b) {
				return nil, errNotUTF8
			}
			valid = whole
		}
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

// cutRune returns how many bytes at the end of b are the beginning of a
// character.
func cutRune(b []byte) int {
	for n := 1; n <= min(len(b), utf8.UTFMax-1); n++ {
		if end := b[len(b)-n:]; utf8.RuneStart(end[0]) {
			if utf8.FullRune(end) {
				return 0
			}
			return n
		}
	}
	return 0
}

var errNotUTF8 = errors.New("text message is not UTF-8")

// errTooLarge ends a client. The limit is for what a compressed message
// contains, so it is not the library's.
var errTooLarge = fmt.Errorf("message is larger than Hub.MaxMessageBytes: %w", websocket.ErrMessageTooBig)

// Upgrade turns the request into a WebSocket client of hub. It returns when
// OnConnect has; the client lives on without the HTTP handler. It returns no
// Client, because [Hub.OnMessage] may already run for it. [Hub.OnConnect] is
// the place for values, topics and first messages.
//
// The connection is taken over before the handshake is answered. The answer has
// the headers that were set on w before, such as middleware's cookies. It lacks
// those that middleware adds to an answer, and access logs don't see the 101.
//
// A page that offers subprotocols of its own gets one if the handler sets it as
// Sec-WebSocket-Protocol on w. A browser gives up if it gets none. A client that
// offers the [Subprotocol] as well gets that.
//
// Upgrade has answered the request when it returns an error, so most callers
// ignore it: 426 if the request is no WebSocket handshake (RFC 6455 §4.2.1),
// 405 or 400 for its method, key or body, 403 for a refused origin, what
// OnConnect chose with [Refuse], 503 to try again later, 501 if a middleware's
// ResponseWriter hides the connection (the error names its type) or the
// connection has no deadlines, 500 if a handler panics or hub was not made by
// [NewHub]. Refusals by OnConnect reach a client of the [Subprotocol] over its
// WebSocket instead. The hub counts refusals. It logs those for somebody's
// setup or a plain error of OnConnect.
func Upgrade(w http.ResponseWriter, r *http.Request, hub *Hub) error {
	return hub.admit(w, r, webSocket{})
}
