package realtime

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// ServeSSE makes the request an event-stream client of the hub: a [Client] that
// sends no messages. A browser's EventSource is enough. It reconnects by
// itself, also after Close. With [Hub.History] it then gets missed events. An
// event named realtime.position, with empty data, gives it an id when it joins
// and when its topics are quiet. A page doesn't see that event unless it listens
// for the name. A reader that hands on the events of all names must skip it.
// [Hub.PingInterval] says when comments come.
//
// On HTTP/1.1, ServeSSE takes the connection over from net/http and
// returns at once; the client then takes little memory. Headers that are
// already set on w are sent. Those that middleware adds later are not. On
// HTTP/1.0 and HTTP/2, on connections without deadlines, and behind
// middleware that hides the connection or has set a Content-Encoding, ServeSSE
// answers through w, lifts Server.WriteTimeout and blocks until the client is
// gone. HEAD gets the headers alone, OPTIONS the CORS answer, any other method
// but GET 405.
//
// Two kinds of middleware spoil streams through w. If one hides
// SetWriteDeadline, Server.WriteTimeout ends the stream, which is logged once,
// and nothing else ends one whose client stops reading. If one ignores Flush
// until it has enough data, events are late. Compressing middleware can often
// exclude a path.
//
// CheckOrigin is asked only about a request with an Origin, which browsers send
// from other sites. If it accepts, the page may read the events and send
// cookies (CORS). Without a check every page may read, but sends no cookies. If
// middleware has set Access-Control-Allow-Origin then, that stays.
//
// Requests are refused as in [Upgrade]. But a request that may succeed later,
// as after Shutdown has begun, gets a stream that ends at once, and a delay
// after which to reconnect. A browser that gets an error would never reconnect.
// Refusals by OnConnect reach a stream of the [Subprotocol] as its only object.
//
// A client that leaves is noticed at once. On Linux, one that vanishes from a
// connection taken over is noticed within PingInterval plus PongTimeout.
func (h *Hub) ServeSSE(w http.ResponseWriter, r *http.Request) {
	h.admit(w, r, eventStream{})
}

// eventStream is the transport for event streams (WHATWG HTML §9.2).
type eventStream struct{}

func (eventStream) kind() Transport { return EventStream }

// errAnswered means that the request was answered and needs no client.
var errAnswered = errors.New("realtime: answered without a client")

func (eventStream) prepare(h *Hub, w http.ResponseWriter, r *http.Request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		return openly(http.StatusMethodNotAllowed, fmt.Errorf("an event stream is a GET, not a %s", clip(r.Method)))
	}
	if err := h.shareAcross(w, r); err != nil {
		return err
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		w.WriteHeader(http.StatusNoContent)
		return errAnswered
	}
	if err := canFlush(w); err != nil {
		return h.wrongSetup(err)
	}
	if r.Method == http.MethodHead {
		streamHeaders(w.Header())
		w.WriteHeader(http.StatusOK)
		return errAnswered
	}
	return nil
}

// refuseForNow sends a stream that ends: an error ends an EventSource for good.
func (eventStream) refuseForNow(w http.ResponseWriter, r *http.Request, answer *refusal) {
	streamHeaders(w.Header())
	w.WriteHeader(http.StatusOK)
	w.Write(answer.goodbye().in(streamEncoding(r)).b)
}

// dismiss sends the answer in a stream: of any other a page sees nothing.
func (s eventStream) dismiss(_ *Client, w http.ResponseWriter, r *http.Request, answer *refusal) bool {
	if streamEncoding(r) != envelopeStream {
		return false
	}
	s.refuseForNow(w, r, answer)
	return true
}

func streamEncoding(r *http.Request) encoding {
	if r.URL.Query().Get("protocol") == Subprotocol {
		return envelopeStream
	}
	return plainStream
}

// connect takes the connection over or, if it can't, stays in the handler.
func (eventStream) connect(c *Client, w http.ResponseWriter, r *http.Request) (stay func(), err error) {
	f := format{encoding: streamEncoding(r)}
	streamHeaders(w.Header())
	conn, err := takeOverStream(w, r)
	if err != nil {
		return nil, c.hub.giveUp(conn, err)
	}
	if conn == nil {
		c.hub.warnCutShort(w, r)
		return func() { c.stayInHandler(w, r, f) }, nil
	}
	return nil, c.accept(conn, nil, func() (format, error) {
		w.Header().Set("Connection", "close") // the stream ends with the connection (RFC 9112 §6.3)
		w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
		limitSilence(conn, c.hub.shared.pongTimeout)
		return f, c.wire.answer([]byte("HTTP/1.1 200 OK\r\n"), w.Header(), retryNotice())
	})
}

// shareAcross asks CheckOrigin about a request that has an Origin. It returns a
// refusal, or sets the CORS headers (Fetch §3.2).
func (h *Hub) shareAcross(w http.ResponseWriter, r *http.Request) error {
	header := w.Header()
	header.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil
	}
	if err := h.admitOrigin(r); err != nil {
		return err
	}
	if originCheck(h.CheckOrigin) != nil {
		header.Set("Access-Control-Allow-Origin", origin)
		header.Set("Access-Control-Allow-Credentials", "true")
	} else if header.Get("Access-Control-Allow-Origin") == "" {
		header.Set("Access-Control-Allow-Origin", "*") // no cookies, even if middleware allows credentials (Fetch §3.2.5)
	}
	if r.Method == http.MethodOptions {
		// No other headers: SameOrigin trusts those that a proxy adds.
		header.Set("Access-Control-Allow-Methods", "GET")
		header.Set("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control")
		header.Set("Access-Control-Max-Age", "600")
	}
	return nil
}

// takeOverStream takes the connection from net/http, or returns nil if the
// answer has to go through w. With an error, conn can only be given up.
func takeOverStream(w http.ResponseWriter, r *http.Request) (conn net.Conn, err error) {
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || w.Header().Get("Content-Encoding") != "" || canHijack(w) != nil {
		return nil, nil
	}
	for w = range unwrapped(w) {
		if hijacker, ok := w.(http.Hijacker); ok {
			if conn, _, err := takeOver(hijacker); conn != nil {
				return conn, err // bytes after the request are ignored
			}
		}
	}
	return nil, nil
}

// warnCutShort logs once if Server.WriteTimeout will end streams through w.
func (h *Hub) warnCutShort(w http.ResponseWriter, r *http.Request) {
	server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if server == nil || server.WriteTimeout <= 0 {
		return
	}
	err := http.NewResponseController(w).SetWriteDeadline(time.Time{}) // as accept does
	if !errors.Is(err, http.ErrNotSupported) || h.shared.toldCutShort.Swap(true) {
		return
	}
	for w = range unwrapped(w) {
		continue // to the innermost
	}
	h.shared.log.warn(logSetup, fmt.Sprintf("Server.WriteTimeout ends each event stream after %v, because %T hides SetWriteDeadline: %s", server.WriteTimeout, w, cure(w)))
}

// maxJunk is the most bytes that may come in on an event stream.
const maxJunk = 64 << 10

// read waits for the end of the connection.
func (eventStream) read(c *Client) error {
	var junk [512]byte
	n, err := c.wire.Read(junk[:])
	if err != nil {
		return err
	}
	c.wire.partial.Store(0)
	if c.junk += int32(n); c.junk > maxJunk {
		return fmt.Errorf("%w: more than %d bytes came on an event stream", errProtocol, maxJunk)
	}
	return errPark
}

func (eventStream) ended(c *Client, err error) error {
	switch readErr := c.wire.readErr(); readErr {
	case nil:
		return err // it sent more than maxJunk
	case io.EOF:
		return io.EOF
	default:
		return fmt.Errorf("realtime: connection lost: %w", readErr)
	}
}

// finished tells the peer that no more will come: none answers the last bytes.
// If the connection can't tell without blocking, the reading goroutine does.
func (eventStream) finished(c *Client) {
	switch half := c.wire.halfCloser().(type) {
	case nil, *tls.Conn:
		c.wire.Close()
		if c.wire.unpark() {
			go c.serve()
		}
	default:
		half.CloseWrite()
	}
}

func (eventStream) sweep(*Client, time.Duration) {} // the kernel notices dead connections

// A response is the connection of an event stream that stays in its HTTP
// handler. The drain goroutine writes to it. Nothing is read.
type response struct {
	net.Conn // nil: methods that aren't defined here are never called
	w        http.ResponseWriter
	rc       *http.ResponseController
	timeout  time.Duration
	end      func() // makes the handler return

	mu      sync.Mutex // guards the fields below
	aborted bool
	over    bool // the handler returns: w may soon be another request's
}

// stayInHandler runs an event stream through w, on the handler's goroutine.
func (c *Client) stayInHandler(w http.ResponseWriter, r *http.Request, f format) {
	ctx, end := context.WithCancel(r.Context())
	p := &response{w: w, rc: http.NewResponseController(w), timeout: c.hub.shared.writeTimeout, end: end}
	defer c.gone() // deferred because a middleware's writer may panic
	c.accept(p, nil, func() (format, error) {
		w.WriteHeader(http.StatusOK)
		p.Write(retryNotice()) // if it fails, so does the next write
		return f, nil
	})
	<-ctx.Done()
	if r.Context().Err() != nil {
		c.end(io.EOF) // unless this side has ended it
	}
}

// Write recovers from a panic of a middleware's writer: on the drain goroutine
// nothing else would.
func (p *response) Write(b []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("realtime: %T panicked: %v", p.w, v)
		}
	}()
	n, err = p.w.Write(b)
	if err == nil {
		err = p.rc.Flush()
	}
	return n, err
}

// SetDeadline ends a write under way and the handler. Only abort calls it.
func (p *response) SetDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
	if p.over {
		return nil
	}
	p.aborted = true
	return p.rc.SetWriteDeadline(t)
}

// SetWriteDeadline also lifts Server.WriteTimeout, if t is zero.
func (p *response) SetWriteDeadline(t time.Time) error { return p.rc.SetWriteDeadline(t) }

func (p *response) CloseWrite() error {
	p.end()
	return nil
}

// Read returns io.EOF. Only wire.discard calls it, to wait for the end.
func (p *response) Read([]byte) (int, error) { return 0, io.EOF }

// SetReadDeadline does nothing: no Read waits.
func (p *response) SetReadDeadline(time.Time) error { return nil }

// Close sets a deadline for the response's end. Nothing touches w afterwards.
func (p *response) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if !p.aborted {
		p.rc.SetWriteDeadline(time.Now().Add(p.timeout))
	}
	return nil
}

// retryNotice tells EventSource how long to wait before it reconnects (WHATWG
// HTML §9.2.6).
func retryNotice() []byte { return appendRetryField(nil, spread(time.Second)) }

// acceptsStream reports whether r asks for a stream, as every EventSource does.
func acceptsStream(r *http.Request) bool {
	return anyListed(r.Header["Accept"], func(t string) bool {
		t, _, _ = strings.Cut(t, ";")
		return strings.EqualFold(strings.TrimSpace(t), "text/event-stream")
	})
}
