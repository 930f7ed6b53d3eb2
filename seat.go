package realtime

import (
	"bufio"
	"context"
	"math"
	"net"
	"net/http"
	"sync"

	"github.com/coder/websocket"
)

// A seat is a Conn of coder/websocket, with the buffers that it reads and writes
// through. The Conn reaches its client through the seat alone. Between two
// messages it has no state but the bytes in its buffer, compressed messages or
// not: see deflate.go. After an error or a close frame it is of no more use.
type seat struct {
	*wire           // the client's
	client  *Client // whose it is
	conn    *websocket.Conn
	in      *bufio.Reader // the Conn's
	deflate *marks        // of compressed messages; nil: none may come
	drained bool          // the last Read got all that had come
}

// Read is the Conn's.
func (s *seat) Read(p []byte) (int, error) {
	n, err := s.wire.Read(p)
	s.drained = n < len(p)
	if s.deflate != nil {
		s.deflate.scan(p[:n])
	}
	return n, err
}

// Small buffers: they hold frame headers and short messages in, a close frame
// out.
const (
	seatReadBytes  = 256
	seatWriteBytes = 2 + maxControlPayload
)

// takeSeat puts a Conn on the client's wire. deflate: compressed messages may
// come. The handshake is the hub's own, so the library gets one that is always
// the same.
func (c *Client) takeSeat(deflate bool) error {
	s := &seat{wire: &c.wire, client: c}
	s.in = bufio.NewReaderSize(s, seatReadBytes)
	if deflate {
		s.deflate = new(marks)
	}
	u := ushers.Get().(*usher)
	defer ushers.Put(u)
	u.seat = s
	conn, err := websocket.Accept(u, sameHandshake, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the hub has asked CheckOrigin
		OnPingReceived:     s.gotPing,
		OnPongReceived:     s.gotPong,
	})
	if err != nil {
		return err
	}
	conn.SetReadLimit(-1) // readMessage has one
	u.seat = nil
	s.in.Reset(s) // without the library's reader of bytes that it thinks were read already
	s.conn = conn
	c.seat = s
	return nil
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
// nothing: that message has to end in its time.
func (s *seat) gotControl() {
	if !s.client.inMessage {
		s.between()
	}
}

// between notes that a message, or a control frame outside of one, is complete.
// The next one may have begun in the bytes that were read.
func (s *seat) between() {
	if s.in.Buffered() == 0 {
		s.partial.Store(0)
	} else {
		s.partial.Store(int64(s.clock.now()))
	}
}

// ready returns how many bytes a Read of a message should ask for in order to
// wait as little as it can. The Conn waits until it has all it was asked for, or
// the frame's end.
func (s *seat) ready() int {
	switch n := s.in.Buffered(); {
	case n > 0:
		return n
	case s.drained:
		return 1 // what comes with it is buffered
	}
	return math.MaxInt // more is there, and buffering it would cost a Read for each 256 bytes
}
