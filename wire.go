package realtime

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A wire is the net.Conn under coder/websocket, which does the handshake, the
// reading and the close handshake on it. The frames that go out are the
// hub's: they wait in the client's outbox, and the library's few writes join
// them there. This holds because nobody else has the library's Conn:
//
//   - the library writes nothing but a close frame, in one Write of at most
//     127 bytes, which Write asserts;
//   - after a close frame, whoever sent it, nothing follows.
//
// Only the client's reading goroutine closes the connection. Everyone else
// calls abort, which wakes that goroutine, or starts it where the connection
// is parked: where it waits for the next message without one.
type wire struct {
	net.Conn                // set by attach
	closeFrame func([]byte) // takes a close frame of the library's; called on the reading goroutine

	// Owned by the reading goroutine.
	in      *bufio.Reader // the library's
	rest    *bytes.Reader // what net/http had read already; nil: nothing is left of it
	readErr error         // what ended the reading: the connection's fault, not the peer's grammar
	slot    int32         // with the parker
	slotted bool          // it has one
	known   bool          // the connection has been in the parker's set

	// Times of the hub's clock. Written by the reading goroutine, read by the
	// sweeper.
	clock   *clock
	heard   atomic.Int64 // the last time that bytes came
	partial atomic.Int64 // since when a frame or message has been incomplete; zero: none is

	parked   atomic.Bool // no goroutine reads
	parkable bool        // set by attach

	mu      sync.Mutex // guards the fields below
	closed  bool       // the library has done with it
	aborted bool
}

// attach makes conn the wire's connection, of which rest has been read
// already.
func (w *wire) attach(conn net.Conn, rest []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Conn, w.parkable = conn, canPark(conn)
	if len(rest) > 0 {
		w.rest = bytes.NewReader(rest)
	}
	w.heard.Store(int64(w.clock.now()))
	if w.aborted {
		w.wakeLocked()
	}
}

// Read reads for the library.
func (w *wire) Read(p []byte) (int, error) {
	if w.rest != nil {
		n, _ := w.rest.Read(p) // it has something
		if w.rest.Len() == 0 {
			w.rest = nil
		}
		w.took()
		return n, nil
	}
	n, err := w.Conn.Read(p)
	for n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && w.kicked() {
		if w.idle() {
			return 0, errPark
		}
		n, err = w.Conn.Read(p)
	}
	if n > 0 {
		w.took()
	}
	if err != nil {
		w.readErr = err
	}
	if err == io.EOF {
		// The library takes EOF for the end of the message it is in, and
		// would hand on half of one.
		err = errHungUp
	}
	return n, err
}

var errHungUp = errors.New("the peer has closed the connection")

// errPark ends a Read that the sweeper has found idle. It comes between
// messages only, where the library's Conn stays usable after it.
var errPark = errors.New("parked")

// idle reports whether the connection is between messages, with nothing read
// of the next one.
func (w *wire) idle() bool { return w.partial.Load() == 0 && w.rest == nil }

// kick makes a Read that waits look whether it can park.
func (w *wire) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parkable && !w.closed && !w.aborted {
		w.Conn.SetReadDeadline(longAgo)
	}
}

// kicked takes a kick back, and reports whether it was one that ended a Read.
func (w *wire) kicked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.aborted {
		return false
	}
	w.Conn.SetReadDeadline(time.Time{})
	return true
}

// took notes that bytes have come.
func (w *wire) took() {
	now := int64(w.clock.now())
	w.heard.Store(now)
	if w.partial.Load() == 0 {
		w.partial.Store(now)
	}
}

// between notes that a message, or a control frame outside of one, is
// complete. The next one may have begun in the bytes that were read.
func (w *wire) between() {
	if w.in.Buffered() == 0 {
		w.partial.Store(0)
	} else {
		w.partial.Store(int64(w.clock.now()))
	}
}

// Write takes a close frame of the library's: all that it writes where pings
// are answered for it. On anything else the connection would be torn, so it is
// given up.
func (w *wire) Write(p []byte) (int, error) {
	if len(p) < 2 || len(p) > 2+maxControlPayload || p[0] != finBit|opClose || int(p[1]) != len(p)-2 {
		w.abort()
		return 0, fmt.Errorf("realtime: coder/websocket wrote %d bytes that are no close frame; this version of it does not fit", len(p))
	}
	w.closeFrame(p)
	return len(p), nil
}

// Close is called by the library when it has done with the connection. That
// may be on another goroutine while the reading one reads, if a control frame
// does not end: so it only wakes that one, which then calls hangUp and linger.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return w.Conn.SetReadDeadline(longAgo)
}

// longAgo as a deadline ends what waits on a connection.
var longAgo = time.Unix(1, 0)

// abort makes the reading goroutine and a write under way fail at once. It
// doesn't block.
func (w *wire) abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.aborted {
		return
	}
	w.aborted = true
	if w.Conn != nil {
		w.wakeLocked()
	}
}

func (w *wire) wakeLocked() {
	w.Conn.SetDeadline(longAgo)
	// A parked connection is woken by shutdown(2) alone. And where the reading
	// goroutine is in a handler, it tells the peer. What TLS has to say could
	// block.
	conn := w.Conn
	if c, ok := conn.(*tls.Conn); ok {
		conn = c.NetConn()
	}
	switch c := conn.(type) {
	case *net.TCPConn:
		c.CloseRead()
		c.CloseWrite()
	case *net.UnixConn:
		c.CloseRead()
		c.CloseWrite()
	}
}

// isAborted reports whether abort was called.
func (w *wire) isAborted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.aborted
}

// hangUp tells the peer that no more will come, once all that waited is
// written, so that it sees the end while the client's OnDisconnect runs. It
// blocks until then, at the longest until abort.
func (w *wire) hangUp(flushed <-chan struct{}) {
	<-flushed
	if c := w.halfCloser(); c != nil && !w.isAborted() {
		c.CloseWrite()
	}
}

// finish tells the peer of an event stream that no more will come, and wakes
// the reading goroutine where the peer couldn't know.
func (w *wire) finish() {
	if c := w.halfCloser(); c != nil {
		c.CloseWrite()
	} else {
		w.Close()
	}
}

// halfCloser returns what can close one direction of the connection, or nil.
// The types are exact: a wrapper that embeds one may mean something else.
func (w *wire) halfCloser() interface{ CloseWrite() error } {
	switch c := w.Conn.(type) {
	case *net.TCPConn:
		return c
	case *net.UnixConn:
		return c
	case *tls.Conn:
		return c
	case *response:
		return c
	}
	return nil
}

// linger closes the connection. It first discards what the peer still sends,
// until it has done so too: closing with input unread would reset the
// connection and could take the close frame away from the peer (RFC 6455
// §7.1.1). It blocks until then, at the longest until abort.
func (w *wire) linger() {
	if w.Conn == nil {
		return // there was none
	}
	w.discard()
	conn := w.Conn
	if w.isAborted() {
		if c, ok := conn.(*tls.Conn); ok {
			conn = c.NetConn() // Close of a tls.Conn may wait 5 s to say goodbye
		}
		if c, ok := conn.(*net.TCPConn); ok {
			c.SetLinger(0)
		}
	}
	conn.Close()
}

// discard reads until the peer has closed its side.
func (w *wire) discard() {
	if w.halfCloser() == nil {
		return // the peer can't know that we have done
	}
	w.mu.Lock()
	if !w.aborted {
		w.Conn.SetReadDeadline(time.Time{})
	}
	w.mu.Unlock()
	var waste [512]byte
	for {
		if _, err := w.Conn.Read(waste[:]); err != nil {
			return
		}
	}
}

// findHijacker returns what can take the connection over, or an error that
// names the culprit. It looks at the innermost ResponseWriter behind Unwrap,
// because those around it often have a Hijack that fails, or panics, where
// that one has none; but the outermost Hijack is to be called, which knows.
func findHijacker(w http.ResponseWriter) (http.Hijacker, error) {
	var hijacker http.Hijacker
	for {
		if h, ok := w.(http.Hijacker); ok && hijacker == nil {
			hijacker = h
		}
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = outer.Unwrap()
	}
	if _, ok := w.(http.Hijacker); !ok {
		return nil, fmt.Errorf("%T hides http.Hijacker: give it a method Unwrap() http.ResponseWriter, or keep that middleware off this route", w)
	}
	return hijacker, nil
}

// takeOver takes the connection from net/http. After an error the request can
// still be answered.
func takeOver(hijacker http.Hijacker) (conn net.Conn, rest []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the Hijack of %T panicked: %v", hijacker, v)
		}
	}()
	conn, rw, err := hijacker.Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("the Hijack of %T: %w", hijacker, err)
	}
	rest, _ = rw.Reader.Peek(rw.Reader.Buffered())
	return conn, bytes.Clone(rest), nil
}

// A handshaker is the ResponseWriter that websocket.Accept gets for a
// connection that has been taken over. It writes the answer to the connection
// itself: through net/http the answer would have to come before the takeover,
// which might then fail, and a middleware that holds headers back, as one that
// compresses may, would never let it out.
type handshaker struct {
	header http.Header // the ResponseWriter's, with what middleware has put in
	status int
	wire   *wire
	format format // what was negotiated; set by Hijack
}

func (h *handshaker) Header() http.Header         { return h.header }
func (h *handshaker) WriteHeader(status int)      { h.status = status }
func (h *handshaker) Write(p []byte) (int, error) { return len(p), nil } // of an error that Upgrade has ruled out

// bodyHeaders speak of a body that net/http would write.
var bodyHeaders = map[string]bool{
	"Content-Encoding": true, "Content-Length": true, "Trailer": true, "Transfer-Encoding": true,
}

// answer writes an HTTP answer, or the beginning of one.
func (w *wire) answer(status int, header http.Header, body []byte) error {
	var answer bytes.Buffer
	fmt.Fprintf(&answer, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	header.WriteSubset(&answer, bodyHeaders)
	answer.WriteString("\r\n")
	answer.Write(body)
	_, err := w.Conn.Write(answer.Bytes())
	return err
}

// Hijack sends the answer and puts the wire under the library, with small
// buffers: one that reads frame headers and short messages, and one that holds
// a control frame.
func (h *handshaker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h.header.Del("Content-Type") // there is no content
	if err := h.wire.answer(h.status, h.header, nil); err != nil {
		return nil, nil, err
	}
	if h.header.Get("Sec-WebSocket-Protocol") == Subprotocol {
		h.format.encoding = envelopeFrame
	}
	h.format.deflate = h.header.Get("Sec-WebSocket-Extensions") != "" // the library knows one
	h.wire.in = bufio.NewReaderSize(h.wire, 256)
	return h.wire, bufio.NewReadWriter(h.wire.in, bufio.NewWriterSize(h.wire, 2+maxControlPayload)), nil
}
