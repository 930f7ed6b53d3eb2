package realtime

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/coder/websocket"
)

// A seat is a Conn of coder/websocket, with the buffers that it reads and writes
// through. The Conn reaches its client through the seat alone. Between two
// messages it has no state but the bytes in its buffer, compressed messages or
// not: see deflate.go. So a client has one only while it has bytes to read that are
// no plain messages, see readPlain. After an error or a close frame a seat is of no
// more use.
type seat struct {
	conn *websocket.Conn
	in   *bufio.Reader // the Conn's

	mu     sync.Mutex // guards changes of the fields below, and closed
	closed bool       // by the Conn
	*wire             // of the client that sits here; nil: nobody does

	// Owned by the client's reading goroutine.
	came    []byte // was read before the client sat down
	marks   marks  // of the frames that the Conn or its buffer got
	drained bool   // the last Read got all that had come
	waited  bool   // a Read went to the connection
	worn    bool   // a timer of the Conn may be running
}

// errNothingCame ends a Read between two frames. The client waits elsewhere. The
// Conn stays usable: it has begun nothing.
var errNothingCame = errors.New("nothing came")

// Read is the Conn's.
func (s *seat) Read(p []byte) (n int, err error) {
	switch {
	case len(s.came) > 0:
		n = copy(p, s.came)
		s.came = s.came[n:]
	case s.partial.Load() == 0:
		return 0, errNothingCame
	default:
		s.waited = true
		n, err = s.wire.Read(p)
	}
	s.drained = n < len(p)
	s.marks.scan(p[:n], s.inflates)
	return n, err
}

// Close is called when the Conn is done with the connection, also by its timer
// for a control frame.
func (s *seat) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.wire == nil {
		return nil
	}
	return s.wire.Close()
}

// sit puts a client here, or nobody if w is nil. Nothing of the one before stays.
// It reports whether the seat is of use.
func (s *seat) sit(w *wire, came []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wire = w
	s.came, s.marks, s.drained, s.waited = came, marks{}, false, false
	return !s.closed && !s.worn
}

// seats are the seats of a hub on which nobody sits.
type seats struct {
	mu   sync.Mutex // guards the field below
	free []*seat
}

// maxFreeSeats is the most seats that are kept. A few serve many clients, because
// most clients have nothing to read most of the time. A seat has 2.5 KB, and a
// sync.Pool would keep all of them through a collection.
const maxFreeSeats = 64

func (p *seats) take() (*seat, error) {
	p.mu.Lock()
	n := len(p.free)
	if n == 0 {
		p.mu.Unlock()
		return newSeat() // which takes microseconds
	}
	defer p.mu.Unlock()
	s := p.free[n-1]
	p.free = slices.Delete(p.free, n-1, n)
	return s, nil
}

// give takes back a seat between two frames.
func (p *seats) give(s *seat) {
	usable := s.sit(nil, nil)
	p.mu.Lock()
	kept := usable && len(p.free) < maxFreeSeats
	if kept {
		p.free = append(p.free, s)
	}
	p.mu.Unlock()
	if !kept {
		s.conn.CloseNow() // its finalizer would keep it until the collection after the next
	}
}

// clear drops all seats. They serve again if there are clients again.
func (p *seats) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.free {
		s.conn.CloseNow()
	}
	p.free = nil
}

// takeSeat gives the client a seat, where it reads what came and then more.
func (c *Client) takeSeat(came []byte) error {
	s, err := c.hub.seats.take()
	if err == nil {
		s.sit(&c.wire, came)
		c.seat = s
	}
	return err
}

func (c *Client) leaveSeat() {
	c.hub.seats.give(c.seat)
	c.seat = nil
}

// between notes that a message, or a control frame outside of one, is complete.
// The next one may have begun in the bytes that were read.
func (c *Client) between() {
	if c.seat == nil || c.seat.in.Buffered() == 0 {
		c.wire.partial.Store(0)
	} else {
		c.wire.partial.Store(int64(c.wire.now()))
	}
}

// Small buffers: they hold frame headers and short messages in, a close frame
// out.
const (
	seatReadBytes  = 256
	seatWriteBytes = 2 + maxControlPayload
)

// newSeat returns a seat on which nobody sits. The handshake is the hub's own, so
// the library gets one that is always the same.
func newSeat() (*seat, error) {
	s := new(seat)
	s.in = bufio.NewReaderSize(s, seatReadBytes)
	u := ushers.Get().(*usher)
	defer ushers.Put(u)
	u.seat = s
	conn, err := websocket.Accept(u, sameHandshake, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the hub has asked CheckOrigin
		OnPingReceived:     s.gotPing,
		OnPongReceived:     s.gotPong,
	})
	u.seat = nil
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(-1) // readMessage has one
	s.in.Reset(s)         // without the library's reader of bytes that it thinks were read already
	s.conn = conn
	return s, nil
}

// sameHandshake is a request that websocket.Accept accepts. It only reads it.
var sameHandshake = &http.Request{
	Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	},
}

// An usher is the ResponseWriter that websocket.Accept gets. What the library
// answers is lost.
type usher struct {
	seat   *seat
	header http.Header
}

// ushers saves the map of headers that nobody reads.
var ushers = sync.Pool{New: func() any { return &usher{header: make(http.Header)} }}

func (u *usher) Header() http.Header         { return u.header }
func (u *usher) WriteHeader(int)             {}
func (u *usher) Write(p []byte) (int, error) { return len(p), nil }

func (u *usher) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return u.seat, bufio.NewReadWriter(u.seat.in, bufio.NewWriterSize(u.seat, seatWriteBytes)), nil
}

// gotPing answers a ping; the library's own answer would wait for the
// connection. The library calls it while it reads.
func (s *seat) gotPing(_ context.Context, payload []byte) bool {
	s.gotControl()
	s.client.out.answer(controlFrame(opPong, payload))
	return false
}

func (s *seat) gotPong(context.Context, []byte) { s.gotControl() }

// gotControl notes a control frame. Within a fragmented message it changes
// nothing: that message has to end in its time. The Conn has a timer for the
// frame. If the frame didn't come at once, the timer may still fire and close the
// Conn, while the next client sits here. So such a seat is not lent again.
func (s *seat) gotControl() {
	s.worn = s.worn || s.waited
	if !s.client.inMessage {
		s.client.between()
	}
}

// ready returns how many bytes a Read of a message should ask for. The Conn waits
// until it has all that it was asked for, or the frame's end. Bytes that have come
// should not wait for others.
func (s *seat) ready() int {
	switch n := s.in.Buffered(); {
	case n > 0 && n < s.marks.since:
		return n
	case n > 0:
		return 1 // a frame begins in the buffer: some bytes may be its header
	case s.drained:
		return 1 // what comes with it is buffered
	}
	return math.MaxInt // more is there, and buffering it would cost a Read for each 256 bytes
}
