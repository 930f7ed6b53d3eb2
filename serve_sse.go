package realtime

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// ServeSSE makes the request an event-stream client of the hub: a [Client] as
// any other, but that nothing comes from it. The browser's EventSource is all
// it takes on the other side, and comes back by itself when the connection is
// lost; with [Hub.History] it then gets what it has missed. Close ends the
// stream, which its browser takes for a loss of the connection.
//
// The answer to GET is taken over from net/http on HTTP/1.1 without TLS:
// ServeSSE returns at once then, and the client takes little memory. Headers
// that were set on w before are sent, those that middleware would add when an
// answer is written are not. On HTTP/2 and TLS, behind middleware that hides
// the connection or has set a Content-Encoding, and to HTTP/1.0, ServeSSE
// answers through w and blocks until the client is gone; it lifts
// Server.WriteTimeout. HEAD is answered by the headers alone, OPTIONS as CORS
// asks, any other method by 405.
//
// Two kinds of middleware spoil what goes through w: one whose ResponseWriter
// hides SetWriteDeadline, where Server.WriteTimeout ends the stream and nothing
// else ends one whose client reads no more; and one that ignores Flush until it
// has seen enough, and so holds events back. Those that compress can be told to
// leave a path alone.
//
// A browser tells its origin only where it is another than the server's, so
// CheckOrigin is asked only about a request that has one. An origin that it
// accepts gets the CORS headers with which the browser hands the events on, and
// may send cookies. Where no check is set, every page may read the stream, but
// no cookies come along.
//
// Requests are refused as [Upgrade] refuses them, but for those that come after
// Shutdown has begun: they get a stream that ends at once, with a delay after
// which to come back, because an error would make a browser give up.
//
// A client that leaves is noticed at once, one that vanishes silently within
// PingInterval and PongTimeout, on Linux where the connection was taken over.
func (h *Hub) ServeSSE(w http.ResponseWriter, r *http.Request) {
	if err := h.usable(); err != nil {
		slog.Error("realtime: event stream: " + err.Error())
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	h.admit(w, r, eventStream{})
}

// eventStream is the transport of WHATWG HTML §9.2.
type eventStream struct{}

func (eventStream) kind() Transport { return EventStream }

// errAnswered is for requests that need no client to be answered.
var errAnswered = errors.New("realtime: answered without a client")

func (eventStream) prepare(h *Hub, w http.ResponseWriter, r *http.Request) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		err := fmt.Errorf("an event stream is a GET, not a %s", r.Method)
		return h.refuse(w, http.StatusMethodNotAllowed, err.Error(), err)
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
		return h.refuseSetup(w, err)
	}
	if r.Method == http.MethodHead {
		streamHeaders(w.Header())
		w.WriteHeader(http.StatusOK)
		return errAnswered
	}
	return nil
}

// refuseForNow ends the stream right after it has begun, because an error would
// stop a browser's EventSource for good.
func (eventStream) refuseForNow(w http.ResponseWriter, _ string) {
	streamHeaders(w.Header())
	w.WriteHeader(http.StatusOK)
	w.Write(retryNotice().b)
}

// connect takes the connection over or, where that can't be, stays in the
// handler.
func (eventStream) connect(c *Client, w http.ResponseWriter, r *http.Request) (stay func(), err error) {
	f := format{encoding: plainStream}
	if r.URL.Query().Get("protocol") == Subprotocol {
		f.encoding = envelopeStream
	}
	streamHeaders(w.Header())
	conn := takeOverStream(w, r)
	if conn == nil {
		return func() { c.stayInHandler(w, r, f) }, nil
	}
	if err := c.acceptStream(w.Header(), conn, f); err != nil {
		return nil, c.hub.refused(err)
	}
	return nil, nil
}

// shareAcross asks CheckOrigin about a request from another site, and answers
// its refusal. One that is accepted gets the CORS headers (Fetch §3.2).
func (h *Hub) shareAcross(w http.ResponseWriter, r *http.Request) error {
	header := w.Header()
	header.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil
	}
	if err := h.admitOrigin(w, r); err != nil {
		return err
	}
	header.Set("Access-Control-Allow-Origin", origin)
	if originCheck(h.CheckOrigin) != nil {
		header.Set("Access-Control-Allow-Credentials", "true")
	}
	if r.Method == http.MethodOptions {
		// These headers and no others: SameOrigin believes what a proxy adds.
		header.Set("Access-Control-Allow-Methods", "GET")
		header.Set("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control")
		header.Set("Access-Control-Max-Age", "600")
	}
	return nil
}

// takeOverStream takes the connection from net/http, or returns nil where the
// answer has to go through w.
func takeOverStream(w http.ResponseWriter, r *http.Request) net.Conn {
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || r.TLS != nil || w.Header().Get("Content-Encoding") != "" {
		return nil
	}
	for {
		hijacker, err := findHijacker(w)
		if err != nil {
			return nil
		}
		if conn, _, err := takeOver(hijacker); err == nil {
			return conn // what came behind the request, nobody will read
		}
		outer, ok := hijacker.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = outer.Unwrap()
	}
}

// acceptStream answers the request on its connection and parks it, or starts
// the client's reading goroutine.
func (c *Client) acceptStream(header http.Header, nc net.Conn, f format) error {
	nc.SetWriteDeadline(time.Now().Add(c.hub.shared.writeTimeout)) // before attach, whose abort it would undo
	c.wire.attach(nc, nil)
	header.Set("Connection", "close") // the stream ends with the connection (RFC 9112 §6.3)
	header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	if err := c.wire.answer(http.StatusOK, header, retryNotice().b); err != nil {
		return err
	}
	nc.SetWriteDeadline(time.Time{})
	limitSilence(nc, c.hub.shared.pongTimeout)
	c.connected(nc, tryWriter(nc), f)
	if !c.park() {
		go c.serve()
	}
	return nil
}

// maxJunk bounds what may come on an event stream, whose client has nothing to
// say.
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
		return fmt.Errorf("realtime: client sent more than %d bytes on an event stream", maxJunk)
	}
	return errPark
}

func (eventStream) ended(c *Client, err error) error {
	switch readErr := c.wire.readErr; readErr {
	case nil:
		return err // it talks too much
	case io.EOF:
		return io.EOF
	default:
		return fmt.Errorf("realtime: connection lost: %w", readErr)
	}
}

// lastBytes returns, where it is the hub that ends, for how long to stay away.
func (eventStream) lastBytes(_ websocket.CloseError, cause error) *buffer {
	if errors.Is(cause, ErrHubClosed) {
		return retryNotice()
	}
	return new(buffer)
}

// finished ends the connection: nobody answers its last bytes.
func (eventStream) finished(c *Client) { c.wire.finish() }

// sweep does nothing: what else goes wrong is for the network to notice.
func (eventStream) sweep(*Client, time.Duration) {}

// heartbeat sends a comment, for proxies to see that the stream is alive.
func (eventStream) heartbeat(c *Client) { c.out.control(heartbeatComment) }

// A response is the connection of an event stream that stays in its HTTP
// handler. The outbox's goroutine writes to it, and nobody reads.
type response struct {
	net.Conn // nil: what isn't defined here is never called
	w        http.ResponseWriter
	rc       *http.ResponseController
	timeout  time.Duration
	gone     chan struct{} // closed when the handler is to return

	mu      sync.Mutex // guards the fields below
	ended   bool       // gone is closed
	aborted bool
	over    bool // the handler returns: w may soon be another request's
}

// stayInHandler is the life of an event stream that is answered through w. It
// runs on the HTTP handler's goroutine.
func (c *Client) stayInHandler(w http.ResponseWriter, r *http.Request, f format) {
	p := &response{w: w, rc: http.NewResponseController(w), timeout: c.hub.shared.writeTimeout, gone: make(chan struct{})}
	defer c.gone() // deferred because a middleware's writer may panic
	p.rc.SetWriteDeadline(time.Now().Add(p.timeout))
	c.wire.attach(p, nil)
	w.WriteHeader(http.StatusOK)
	p.Write(retryNotice().b)           // whose failure the next write finds as well
	p.rc.SetWriteDeadline(time.Time{}) // Server.WriteTimeout is not meant for this
	c.connected(p, nil, f)
	select {
	case <-r.Context().Done():
		c.end(io.EOF)
	case <-p.gone:
	}
}

// Write runs on the outbox's goroutine, where nobody else would recover from a
// panic of a middleware's writer.
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

// SetDeadline ends the write under way, and the handler: only abort calls it.
func (p *response) SetDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked()
	if p.over {
		return nil
	}
	p.aborted = true
	return p.rc.SetWriteDeadline(t)
}

// CloseWrite ends the handler.
func (p *response) CloseWrite() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked()
	return nil
}

func (p *response) endLocked() {
	if !p.ended {
		p.ended = true
		close(p.gone)
	}
}

// Read returns the end: it is asked for by who waits for nothing else.
func (p *response) Read([]byte) (int, error) { return 0, io.EOF }

// SetReadDeadline does nothing: no Read waits.
func (p *response) SetReadDeadline(time.Time) error { return nil }

// Close gives the end of the response its time. Nothing touches w afterwards.
func (p *response) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if !p.aborted {
		p.rc.SetWriteDeadline(time.Now().Add(p.timeout))
	}
	return nil
}

// retryNotice tells a browser's EventSource how long to wait before it comes
// back (WHATWG HTML §9.2.6): 1 to 5 s by chance, for not all to come at once.
func retryNotice() *buffer {
	return &buffer{b: fmt.Appendf(nil, "retry: %d\n\n", 1000+rand.IntN(4000))}
}

// acceptsStream reports whether r asks for an event stream, as every browser's
// EventSource does.
func acceptsStream(r *http.Request) bool {
	for _, accepted := range r.Header["Accept"] {
		for t := range strings.SplitSeq(accepted, ",") {
			t, _, _ = strings.Cut(t, ";")
			if strings.EqualFold(strings.TrimSpace(t), "text/event-stream") {
				return true
			}
		}
	}
	return false
}
