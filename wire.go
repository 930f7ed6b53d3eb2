package realtime

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A wire is a client's connection. A Conn of coder/websocket reads from it, while
// it is lent to the client, and does the close handshake. Plain messages need no
// Conn, see readPlain. Outgoing frames are the hub's, and wait in the client's
// outbox. The library writes only close frames, each in one Write of at most 127
// bytes, as Write asserts. They join the outbox, and nothing follows them. This
// holds because no user has the library's Conn.
//
// Only the client's reading goroutine closes the connection. Everyone else
// calls abort, which wakes that goroutine. A parked connection waits for its
// next message without one; abort starts it.
type wire struct {
	net.Conn         // set by attach
	client   *Client // set at construction, never changed

	// Owned by the reading goroutine.
	rare *rareWire // nil for most clients

	// Hub times that the reading goroutine writes and the sweeper reads.
	heard   atomic.Int64 // the last time that bytes came
	partial atomic.Int64 // since when a frame or message has been incomplete; zero: none is

	parking  atomic.Int32 // a parkingState
	parkable bool         // set by attach
	inflates bool         // compressed messages may come; set before the reading

	mu      sync.Mutex // guards the fields below
	closed  bool       // the library is done with it
	aborted bool
}

// A rareWire is apart because most clients have none.
type rareWire struct {
	rest    *bytes.Reader // the rest of what net/http had read; nil: none
	readErr error         // what ended the reading, if it was the connection
}

// attach makes conn the wire's connection. rest has been read from it already.
func (w *wire) attach(conn net.Conn, rest []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Conn, w.parkable = conn, canPark && socketOf(conn) != nil
	if len(rest) > 0 {
		w.rare = &rareWire{rest: bytes.NewReader(rest)}
	}
	w.heard.Store(int64(w.now()))
	if w.aborted {
		w.wakeLocked()
	}
}

// Read serves the library and the reading of event streams.
func (w *wire) Read(p []byte) (int, error) {
	if w.rare != nil && w.rare.rest != nil {
		n, _ := w.rare.rest.Read(p) // it has something
		if w.rare.rest.Len() == 0 {
			w.rare = nil
		}
		w.took()
		return n, nil
	}
	n, err := w.Conn.Read(p)
	for errors.Is(err, os.ErrDeadlineExceeded) && w.kicked() {
		if n > 0 {
			err = nil // crypto/tls has looked for the peer's goodbye behind these bytes
			break
		}
		if w.idle() {
			return 0, errPark
		}
		n, err = w.Conn.Read(p)
	}
	if n > 0 {
		w.took()
	}
	if err != nil {
		w.rare = &rareWire{readErr: err}
	}
	if err == io.EOF {
		// The library mistakes EOF for the end of a message, and would hand on
		// half of one.
		err = errHungUp
	}
	return n, err
}

var errHungUp = errors.New("the peer has closed the connection")

// errPark ends a Read that the sweeper has found idle. It comes between
// messages only, where the library's Conn stays usable after it.
var errPark = errors.New("parked")

// idle reports whether nothing of the next message has been read.
func (w *wire) idle() bool { return w.partial.Load() == 0 && w.rare == nil }

// readErr returns what ended the reading, or nil if it wasn't the connection.
func (w *wire) readErr() error {
	if w.rare == nil {
		return nil
	}
	return w.rare.readErr
}

func (w *wire) now() time.Duration { return w.client.hub.shared.clock.now() }

// kick makes a Read that waits look whether it can park.
func (w *wire) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parkable && !w.closed && !w.aborted {
		w.Conn.SetReadDeadline(longAgo)
	}
}

// kicked takes a kick back, and reports whether a kick can have ended the Read.
func (w *wire) kicked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.aborted {
		return false
	}
	w.Conn.SetReadDeadline(time.Time{})
	return true
}

// startParking marks the wire as parked, and reports whether it could: what has
// come must be in the socket, whose input ends the parking. crypto/tls may have
// read more than it has returned. A Read at a past deadline doesn't touch the
// socket: it returns what crypto/tls has of a whole record, or ends with a
// time-out, after which crypto/tls goes on. The rest of a record that has come
// in part will come to the socket.
func (w *wire) startParking() bool {
	if _, ok := w.Conn.(*tls.Conn); ok {
		w.kick()
		var came [1]byte
		if n, err := w.Read(came[:]); err != errPark {
			if n > 0 {
				w.rare = &rareWire{rest: bytes.NewReader(came[:])}
			}
			return false // an error comes again
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.aborted {
		return false
	}
	w.parking.Store(wireParked)
	return true
}

// A parkingState says whether a goroutine reads. The caller that brings
// wireReading about starts it.
//
//	wireReading ──startParking──▶ wireParked ──hold──▶ wireHeld ──unpark──▶ wireWoken
//	  ▲ ▲                           │    ▲               │                    │
//	  │ └──────────unpark───────────┘    └────letGo──────┘                    │
//	  └────────────────────────────────letGo──────────────────────────────────┘
type parkingState = int32

const (
	wireReading parkingState = iota
	wireParked
	wireHeld  // a writer keeps it parked
	wireWoken // a writer does, but there is something to read
)

func (w *wire) isParked() bool { return w.parking.Load() != wireReading }

// unpark reports whether the caller must start the reading goroutine.
func (w *wire) unpark() bool {
	for {
		switch w.parking.Load() {
		case wireParked:
			if w.parking.CompareAndSwap(wireParked, wireReading) {
				return true
			}
		case wireHeld:
			if w.parking.CompareAndSwap(wireHeld, wireWoken) {
				return false // letGo's caller does it
			}
		default:
			return false
		}
	}
}

// hold keeps the connection parked until letGo. It reports whether it is parked.
func (w *wire) hold() bool { return w.parking.CompareAndSwap(wireParked, wireHeld) }

// letGo ends hold. It reports whether the caller must start the reading goroutine.
func (w *wire) letGo() bool {
	if w.parking.CompareAndSwap(wireHeld, wireParked) {
		return false
	}
	w.parking.Store(wireReading)
	return true
}

// took notes that bytes have come.
func (w *wire) took() {
	now := int64(w.now())
	w.heard.Store(now)
	if w.partial.Load() == 0 {
		w.partial.Store(now)
	}
}

// Write accepts a close frame. The library writes nothing else, because the hub
// answers pings. Anything else would tear a frame, so it aborts the connection.
func (w *wire) Write(p []byte) (int, error) {
	if len(p) < 2 || len(p) > 2+maxControlPayload || p[0] != finBit|opClose || int(p[1]) != len(p)-2 {
		w.abort()
		return 0, fmt.Errorf("realtime: coder/websocket wrote %d bytes that are not a close frame: this version of it is not supported", len(p))
	}
	w.client.libraryCloses(p)
	return len(p), nil
}

// Close is called when the library is done with the connection. Where a control
// frame does not end, this may be while the reading goroutine reads. So Close
// only wakes that goroutine, which then calls hangUp and linger.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return w.Conn.SetReadDeadline(longAgo)
}

var longAgo = time.Unix(1, 0) // as a deadline it ends what waits on a connection

// abort makes the reading goroutine and a write in progress fail at once. It
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
	// Only shutdown(2) wakes a parked connection. It also tells the peer while
	// the reading goroutine is in a handler. TLS would send a last message,
	// which could block.
	if s := socketOf(w.Conn); s != nil {
		s.CloseRead()
		s.CloseWrite()
	}
}

// A socket is a TCP or Unix connection itself. A wrapper may have read ahead,
// and may have a Write of its own.
type socket interface {
	net.Conn
	syscall.Conn
	CloseRead() error
	CloseWrite() error
}

// asSocket returns conn as a socket, or nil.
func asSocket(conn io.Writer) socket {
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return conn.(socket)
	}
	return nil
}

// socketOf returns the socket that conn is or, with TLS, stands on, or nil.
func socketOf(conn net.Conn) socket {
	if c, ok := conn.(*tls.Conn); ok {
		conn = c.NetConn()
	}
	return asSocket(conn)
}

func (w *wire) isAborted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.aborted
}

// hangUp waits until all is written, and then tells the peer that no more will
// come. So the peer sees the end while OnDisconnect runs. abort ends the wait.
func (w *wire) hangUp(flushed <-chan struct{}) {
	<-flushed
	if c := w.halfCloser(); c != nil && !w.isAborted() {
		c.CloseWrite()
	}
}

// halfCloser returns what can close one direction of the connection, or nil.
// The types are exact: a wrapper that embeds one may mean something else.
func (w *wire) halfCloser() interface{ CloseWrite() error } {
	switch c := w.Conn.(type) {
	case *net.TCPConn, *net.UnixConn, *tls.Conn, *response:
		return c.(interface{ CloseWrite() error })
	}
	return nil
}

// linger closes the connection once the peer has closed its side or abort was
// called. It blocks until then and discards input: closing with unread input
// would reset the connection, and the peer could lose the close frame
// (RFC 6455 §7.1.1).
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

func (w *wire) discard() {
	if w.halfCloser() == nil {
		return // the peer can't know that this side is done
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

// findHijacker returns the outermost Hijacker, or an error that names the
// culprit. The innermost ResponseWriter behind Unwrap must have Hijack too:
// where it has none, those around it often have one that fails or panics.
func findHijacker(w http.ResponseWriter) (http.Hijacker, error) {
	var hijacker http.Hijacker
	for w = range unwrapped(w) {
		if h, ok := w.(http.Hijacker); ok && hijacker == nil {
			hijacker = h
		}
	}
	if _, ok := w.(http.Hijacker); !ok {
		return nil, fmt.Errorf("%T hides http.Hijacker: %s", w, cure(w))
	}
	return hijacker, nil
}

// cure returns what to do about a ResponseWriter that hides the one it wraps.
func cure(w http.ResponseWriter) string {
	if _, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
		return "its Unwrap returns nil"
	}
	return "give it a method Unwrap() http.ResponseWriter, or keep that middleware off this route"
}

// unwrapped yields w and those behind its Unwrap, as http.ResponseController
// finds them.
func unwrapped(w http.ResponseWriter) iter.Seq[http.ResponseWriter] {
	return func(yield func(http.ResponseWriter) bool) {
		for w != nil && yield(w) {
			outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
			if !ok {
				return
			}
			w = outer.Unwrap()
		}
	}
}

// haveDeadlines returns an error if set can't set a deadline. The connections of
// x/crypto/ssh have none. A goroutine that waits on such a connection can't be
// woken.
func haveDeadlines(set func(time.Time) error) error {
	err := set(time.Time{})
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil // closed: that shows later
	}
	return err
}

// canHijack returns an error if there is no Hijacker, or Hijack would wait for ever.
// It waits for a Read of net/http's own, which net/http ends by a deadline.
func canHijack(w http.ResponseWriter) error {
	if _, err := findHijacker(w); err != nil {
		return err
	}
	err := haveDeadlines(http.NewResponseController(w).SetReadDeadline) // which Hijack takes off as well
	if err == nil || errors.Is(err, http.ErrNotSupported) {             // it isn't the connection's error
		return nil
	}
	return fmt.Errorf("the connection has no deadlines, so net/http can't let go of it: %w", err)
}

// takeOver takes the connection from net/http. After an error the request can
// still be answered, through w if conn is nil, else by giveUp.
func takeOver(hijacker http.Hijacker) (conn net.Conn, rest []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the Hijack of %T panicked: %v", hijacker, v)
		}
	}()
	conn, rw, err := hijacker.Hijack()
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("the Hijack of %T: %w", hijacker, err)
	case conn == nil:
		return nil, nil, fmt.Errorf("the Hijack of %T returned no connection", hijacker)
	case rw == nil || rw.Reader == nil:
		return conn, nil, fmt.Errorf("the Hijack of %T returned no reader, which may have bytes", hijacker)
	}
	if err := haveDeadlines(conn.SetReadDeadline); err != nil {
		return conn, nil, fmt.Errorf("a connection of type %T has no deadlines: %w", conn, err)
	}
	rest, _ = rw.Reader.Peek(rw.Reader.Buffered())
	return conn, bytes.Clone(rest), nil
}

// giveUp answers and closes a connection that was taken over and can't be used.
func (h *Hub) giveUp(conn net.Conn, cause error) error {
	h.wrongSetup(cause) // for the log; its refusal would go through w
	conn.SetWriteDeadline(time.Now().Add(h.shared.writeTimeout))
	io.WriteString(conn, "HTTP/1.1 501 Not Implemented\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	conn.Close()
	return cause
}

// bodyHeaders speak of a body that net/http would write.
var bodyHeaders = map[string]bool{
	"Content-Encoding": true, "Content-Length": true, "Trailer": true, "Transfer-Encoding": true,
}

// answer writes an HTTP answer, or the beginning of one: head and then more fields
// of the header, and the body. It may append to head.
func (w *wire) answer(head []byte, header http.Header, body []byte) error {
	if len(header) > 0 {
		fields := bytes.NewBuffer(head)
		header.WriteSubset(fields, bodyHeaders)
		head = fields.Bytes()
	}
	head = append(append(head, "\r\n"...), body...)
	_, err := w.Conn.Write(head)
	return err
}
