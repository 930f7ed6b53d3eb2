package realtime_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// sockets are the connections of which one direction can be closed.
var sockets = map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite}

// handshakeRequest returns a request that is a handshake.
func handshakeRequest(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(handshake)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A hijackable is a ResponseWriter that gives conn away.
type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (w hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}

// A hijacker has a Hijack in front of the one that it wraps, which panics where
// there is no function.
type hijacker struct {
	http.ResponseWriter
	hijack func() (net.Conn, *bufio.ReadWriter, error)
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.hijack() }
func (h hijacker) Unwrap() http.ResponseWriter                  { return h.ResponseWriter }

var errBroken = errors.New("broken")

func brokenHijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errBroken }

type unwrapper struct{ http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// A middleware that wraps the ResponseWriter and says so is no obstacle; the
// error of one that can't hijack names it.
func TestWrappedResponseWriter(t *testing.T) {
	type opaque struct{ http.ResponseWriter }
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	errs := make(chan error, 1)
	mux := http.NewServeMux()
	for path, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"/wrapped": func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{w} },
		"/opaque":  func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{opaque{w}} },
		"/broken":  func(w http.ResponseWriter) http.ResponseWriter { return hijacker{w, brokenHijack} },
		"/panics":  func(w http.ResponseWriter) http.ResponseWriter { return hijacker{w, nil} },
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { errs <- realtime.Upgrade(wrap(w), r, hub) })
	}
	srv := httptest.NewServer(mux)
	defer srv.Close()

	conn, _, err := websocket.Dial(t.Context(), srv.URL+"/wrapped", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Errorf("behind a wrapper with Unwrap: %v", err)
	}
	conn.Close(websocket.StatusNormalClosure, "")
	if _, resp, err := websocket.Dial(t.Context(), srv.URL+"/opaque", nil); err == nil || resp.StatusCode != 501 {
		t.Errorf("behind an opaque wrapper: %v, want 501", err)
	}
	if err := <-errs; err == nil || !strings.Contains(err.Error(), "realtime_test.opaque hides http.Hijacker") {
		t.Errorf("error %q should name realtime_test.opaque", err)
	}
	for _, path := range []string{"/broken", "/panics"} {
		if _, resp, err := websocket.Dial(t.Context(), srv.URL+path, nil); err == nil || resp == nil || resp.StatusCode != 501 {
			t.Errorf("%s: %v, want 501", path, err)
		}
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "realtime_test.hijacker") {
			t.Errorf("error %q should name realtime_test.hijacker", err)
		}
	}
	// The first client's answer to its close frame may come before it is gone.
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := lines.String(); !strings.Contains(got, "realtime_test.opaque hides http.Hijacker") {
		t.Errorf("logged %q, want a line that names realtime_test.opaque", got)
	}
	if st := hub.Stats(); st.Refused != 3 || st.Clients != 0 {
		t.Errorf("Stats() = %+v, want 3 refused, no clients", st)
	}
}

// The outermost Hijack is called, as it knows what else is to be done; but only
// where the innermost ResponseWriter has one. Where it fails after all,
// OnDisconnect learns why.
func TestWhichHijackIsCalled(t *testing.T) {
	hub := realtime.NewHub()
	hub.Logger = quiet
	l := recordLeft(hub)
	connects := 0
	hub.OnConnect = func(*realtime.Client, *http.Request) error { connects++; return nil }
	rec := httptest.NewRecorder()

	inner := hijacker{hijackable{ResponseRecorder: rec}, func() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errors.New("the inner one") }}
	if err := realtime.Upgrade(hijacker{inner, brokenHijack}, handshakeRequest(t), hub); !errors.Is(err, errBroken) || connects != 1 {
		t.Errorf("two that hijack: %v, want the outer one's error", err)
	}
	if l.n != 1 || !errors.Is(l.err, errBroken) {
		t.Errorf("OnDisconnect: %d times, last with %v; want once, with the error of Hijack", l.n, l.err)
	}
	type hidden struct{ http.ResponseWriter }
	err := realtime.Upgrade(hijacker{hidden{rec}, brokenHijack}, handshakeRequest(t), hub)
	if err == nil || !strings.Contains(err.Error(), "realtime_test.hidden hides http.Hijacker") || connects != 1 {
		t.Errorf("one that hijacks nothing: %v after %d OnConnects, want an error that names realtime_test.hidden", err, connects)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A timeless connection has no deadlines, as one that x/crypto/ssh forwards.
type timeless struct{ net.Conn }

var errTimeless = errors.New("deadline not supported")

func (timeless) SetDeadline(time.Time) error      { return errTimeless }
func (timeless) SetReadDeadline(time.Time) error  { return errTimeless }
func (timeless) SetWriteDeadline(time.Time) error { return errTimeless }

// A timelessListener accepts timeless connections.
type timelessListener struct{ *pipeListener }

func (l timelessListener) Accept() (net.Conn, error) {
	conn, err := l.pipeListener.Accept()
	return timeless{conn}, err
}

// net/http never lets go of a connection without deadlines: its Hijack waits for
// ever. A WebSocket is refused then, and an event stream goes through w.
func TestConnectionWithoutDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		connects := 0
		hub.OnConnect = func(*realtime.Client, *http.Request) error { connects++; return nil }
		l := listenPipe()
		s := serveSite(t, hub, timelessListener{l}, "ws://pipe/ws", l.dial)
		answer := s.request("GET", "", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==")
		if answer.resp.StatusCode != 501 || connects != 0 {
			t.Errorf("a WebSocket: answered %s after %d OnConnects, want 501 before", answer.resp.Status, connects)
		}
		answer.conn.Close()
		synctest.Wait()
		if got := lines.String(); !strings.Contains(got, "has no deadlines") || !strings.Contains(got, errTimeless.Error()) {
			t.Errorf("logged %q, want the connection's error", got)
		}
		stream := s.listen("")
		synctest.Wait()
		hub.Broadcast <- []byte("hello")
		if got := stream.next(); got != "hello" {
			t.Errorf("an event stream got %q", got)
		}
		stream.cut()
		synctest.Wait()
		if n := hub.ClientCount(); n != 0 {
			t.Errorf("%d clients after the stream's end", n)
		}
	})
}

// A Hijack that gives no usable connection is named. What it gave is answered
// and closed. If it gave nothing, a client that OnConnect refuses has that answer.
func TestHijackGivesTooLittle(t *testing.T) {
	rw := func(conn net.Conn) *bufio.ReadWriter {
		return bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	}
	tests := map[string]struct {
		hijack func(conn net.Conn) (net.Conn, *bufio.ReadWriter, error)
		taken  bool // the connection is, so w can't answer
		named  string
	}{
		"nothing":      {func(net.Conn) (net.Conn, *bufio.ReadWriter, error) { return nil, nil, nil }, false, "realtime_test.hijacker returned no connection"},
		"no conn":      {func(c net.Conn) (net.Conn, *bufio.ReadWriter, error) { return nil, rw(c), nil }, false, "realtime_test.hijacker returned no connection"},
		"no buffers":   {func(c net.Conn) (net.Conn, *bufio.ReadWriter, error) { return c, nil, nil }, true, "realtime_test.hijacker returned no reader"},
		"no reader":    {func(c net.Conn) (net.Conn, *bufio.ReadWriter, error) { return c, &bufio.ReadWriter{}, nil }, true, "realtime_test.hijacker returned no reader"},
		"no deadlines": {func(c net.Conn) (net.Conn, *bufio.ReadWriter, error) { return timeless{c}, rw(c), nil }, true, "realtime_test.timeless has no deadlines"},
	}
	for name, tt := range tests {
		for transport, accept := range map[string]string{"WebSocket": "", "refused WebSocket": "", "event stream": "text/event-stream"} {
			if accept != "" && !tt.taken {
				continue // the stream goes through w
			}
			t.Run(name+" "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					var lines safeBuffer
					hub.Logger = textLogger(&lines)
					l := recordLeft(hub)
					server, client := net.Pipe()
					defer client.Close()
					rec := httptest.NewRecorder()
					w := hijacker{hijackable{ResponseRecorder: rec}, func() (net.Conn, *bufio.ReadWriter, error) { return tt.hijack(server) }}
					r := handshakeRequest(t)
					if accept != "" {
						r.Header = http.Header{"Accept": {accept}}
					}
					named, code, left := true, 501, 1
					if transport == "refused WebSocket" {
						hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.Refuse(402, "pay") }
						r.Header.Set("Sec-Websocket-Protocol", realtime.Subprotocol)
						named, code, left = tt.taken, 402, 0
					}
					go hub.ServeHTTP(w, r)
					if tt.taken {
						code = 200 // nothing was written
						resp, err := http.ReadResponse(bufio.NewReader(client), nil)
						if err != nil || resp.StatusCode != 501 {
							t.Errorf("answered %v, %v; want 501", resp, err)
						}
						if n, err := client.Read(make([]byte, 1)); err != io.EOF {
							t.Errorf("read %d bytes, %v; want the end", n, err)
						}
					}
					synctest.Wait()
					if rec.Code != code {
						t.Errorf("answered %d through w, want %d", rec.Code, code)
					}
					if got := lines.String(); strings.Contains(got, tt.named) != named {
						t.Errorf("logged %q, want %q: %t", got, tt.named, named)
					}
					if l.n != left || l.n == 1 && l.err == nil {
						t.Errorf("OnDisconnect: %d times, last with %v; want %d, and why", l.n, l.err, left)
					}
					if err := hub.Shutdown(t.Context()); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// An Unwrap that returns nil is named.
func TestUnwrapReturnsNil(t *testing.T) {
	hub := realtime.NewHub()
	hub.Logger = quiet
	defer hub.Shutdown(t.Context())
	for name, w := range map[string]http.ResponseWriter{
		"outermost": unwrapsNil{httptest.NewRecorder()}, "within": unwrapper{unwrapsNil{httptest.NewRecorder()}},
	} {
		err := realtime.Upgrade(w, handshakeRequest(t), hub)
		if err == nil || !strings.Contains(err.Error(), "realtime_test.unwrapsNil hides http.Hijacker: its Unwrap returns nil") {
			t.Errorf("%s: %v, want an error that names realtime_test.unwrapsNil", name, err)
		}
	}
	rec := httptest.NewRecorder()
	if stream := realtime.NewStream(unwrapper{unwrapsNil{rec}}, httptest.NewRequest("GET", "/", nil)); stream != nil {
		t.Error("NewStream returned a Stream that can't flush")
	}
	if got := rec.Body.String(); rec.Code != 500 || !strings.Contains(got, "realtime_test.unwrapsNil can't flush") || !strings.Contains(got, "its Unwrap returns nil") {
		t.Errorf("NewStream answered %d %q, want a 500 that names realtime_test.unwrapsNil", rec.Code, got)
	}
}

// An unwrapsNil has an Unwrap with nothing behind it.
type unwrapsNil struct{ http.ResponseWriter }

func (unwrapsNil) Unwrap() http.ResponseWriter { return nil }

// A flushOnly hides all of a ResponseWriter but its Flush.
type flushOnly struct{ http.ResponseWriter }

func (f flushOnly) Flush() { f.ResponseWriter.(http.Flusher).Flush() }

// Where Server.WriteTimeout ends event streams, because a middleware hides how
// to lift it, the log says so, once.
func TestWriteTimeoutThatCantBeLifted(t *testing.T) {
	for name, tt := range map[string]struct {
		wrap    func(http.ResponseWriter) http.ResponseWriter
		timeout time.Duration
		lines   int
	}{
		"hidden":           {func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{flushOnly{w}} }, time.Minute, 1},
		"no timeout":       {func(w http.ResponseWriter) http.ResponseWriter { return flushOnly{w} }, 0, 0},
		"not hidden":       {func(w http.ResponseWriter) http.ResponseWriter { return w }, time.Minute, 0},
		"behind an Unwrap": {func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{w} }, time.Minute, 0},
		"through w, lifted": {func(w http.ResponseWriter) http.ResponseWriter {
			w.Header().Set("Content-Encoding", "identity")
			return w
		}, time.Minute, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				var lines safeBuffer
				hub.Logger = textLogger(&lines)
				s := newPipeSite(t, hub)
				s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hub.ServeHTTP(tt.wrap(w), r) })
				s.srv.WriteTimeout = tt.timeout
				for range 3 {
					s.listen("")
					time.Sleep(2 * time.Second) // more than the pause of a kind of lines
				}
				got := lines.String()
				if n := strings.Count(got, "Server.WriteTimeout ends each event stream after 1m0s, because realtime_test.flushOnly hides"); n != tt.lines || n == 0 && got != "" {
					t.Errorf("logged %q, want %d lines that name realtime_test.flushOnly", got, tt.lines)
				}
			})
		})
	}
}

// The answer to the handshake has the headers that middleware has set, but
// for those that speak of a body.
func TestHeadersOfTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Logger = quiet
		server, client := net.Pipe()
		defer client.Close()
		w := hijackable{httptest.NewRecorder(), server}
		for _, h := range []string{"Content-Encoding", "Content-Length", "Content-Type", "Trailer", "Transfer-Encoding", "X-Request-Id"} {
			w.Header().Set(h, "1")
		}
		go realtime.Upgrade(w, handshakeRequest(t), hub)
		c := &rawClient{t: t, conn: client}
		header := c.readHandshake()
		if len(header) != 4 || header.Get("X-Request-Id") != "1" { // Connection, Upgrade and Sec-WebSocket-Accept besides
			t.Errorf("the answer has %v", header)
		}
		client.Close()
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A client that does not take the handshake's answer is gone after
// WriteTimeout, and its connection closed.
func TestHandshakeIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		conn := s.connection()
		io.WriteString(conn, handshake)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if l.n != 1 || l.at != 10*time.Second || l.err == nil {
			t.Errorf("OnDisconnect: %d times, last with %v after %v; want once, and why, after 10 s", l.n, l.err, l.at)
		}
		if st := hub.Stats(); st.Refused != 1 || st.Clients != 0 {
			t.Errorf("Stats() = %+v, want 1 refused, no clients", st)
		}
		if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d bytes, %v; want the end", n, err)
		}
	})
}

// Who is cut off while its handshake is answered costs Shutdown no
// WriteTimeout.
func TestCutOffBeforeTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Logger = quiet
		l := recordLeft(hub)
		server, client := net.Pipe() // nobody reads the answer
		defer client.Close()
		w := hijacker{hijackable{ResponseRecorder: httptest.NewRecorder()}, func() (net.Conn, *bufio.ReadWriter, error) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			hub.Shutdown(ctx)
			return server, bufio.NewReadWriter(bufio.NewReader(server), bufio.NewWriter(server)), nil
		}}
		start := time.Now()
		if err := realtime.Upgrade(w, handshakeRequest(t), hub); err == nil {
			t.Error("Upgrade succeeded")
		}
		if d := time.Since(start); d != time.Second { // Shutdown's grace
			t.Errorf("Upgrade returned after %v, want at once", d-time.Second)
		}
		if l.n != 1 || !errors.Is(l.err, realtime.ErrHubClosed) {
			t.Errorf("OnDisconnect: %d times, last with %v; want ErrHubClosed once", l.n, l.err)
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// An OnDisconnect that ends its goroutine leaves nothing behind either; nor
// does it, or one that blocks, keep the connection open.
func TestEndIsSeenDuringOnDisconnect(t *testing.T) {
	for name, serve := range sockets {
		t.Run(name, func(t *testing.T) {
			soon(t, 4*time.Second, func() error { // less than the 5 s after which it is cut off
				hub := realtime.NewHub()
				gate := make(chan struct{})
				hub.OnDisconnect = func(*realtime.Client, error) {
					<-gate
					runtime.Goexit()
				}
				s := serve(t, hub)
				c := s.raw()
				c.conn.SetReadDeadline(time.Now().Add(time.Minute))
				c.send(frame(0x88, []byte{3, 0xE8}))
				first, payload, err := c.readFrame()
				if err == nil && (first != 0x88 || !bytes.Equal(payload, []byte{3, 0xE8})) {
					err = fmt.Errorf("got frame %#x %q, want the close frame", first, payload)
				}
				if err == nil {
					var n int64
					if n, err = io.Copy(io.Discard, c.br); n != 0 {
						err = fmt.Errorf("%d more bytes, then %v; want the end", n, err)
					}
				}
				close(gate)
				c.conn.Close()
				if err := hub.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				return err
			})
		})
	}
}

// A client that sends on, as it can't know yet that it was closed, is not
// reset: that could take the close frame from it (RFC 6455 §7.1.1).
func TestInputAfterTheCloseIsDiscarded(t *testing.T) {
	for name, serve := range sockets {
		t.Run(name, func(t *testing.T) {
			soon(t, 4*time.Second, func() error { // less than it is waited for
				hub := realtime.NewHub()
				hub.MaxMessageBytes = 1
				s := serve(t, hub)
				c := s.raw()
				defer c.conn.Close()
				c.conn.SetDeadline(time.Now().Add(time.Minute))
				c.send(frame(0x82, make([]byte, 64<<10)))
				if first, payload, err := c.readFrame(); first != 0x88 || !bytes.HasPrefix(payload, []byte{3, 0xF1}) { // 1009
					return fmt.Errorf("got frame %#x %q, %v; want close frame 1009", first, payload, err)
				}
				if n, err := io.Copy(io.Discard, c.br); n != 0 || err != nil {
					return fmt.Errorf("got %d more bytes, then %v; want the end", n, err)
				}
				for range 64 {
					if err := c.send(make([]byte, 16<<10)); err != nil {
						return fmt.Errorf("write after the close: %v", err)
					}
				}
				return nil
			})
		})
	}
}

// What a client that has closed its side only is still owed arrives, and
// then the end: closing doesn't reset it.
func TestHalfClosedClientGetsTheRest(t *testing.T) {
	hub := realtime.NewHub()
	gone := make(chan error, 1)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
	s := newTCPSite(t, hub)
	c := s.raw()
	conn := c.conn.(*net.TCPConn)
	big := make([]byte, 16<<10)
	for range 64 {
		hub.Broadcast <- big
	}
	for hub.Stats().Delivered != 64 { // all of it is the kernel's
		runtime.Gosched()
	}
	conn.CloseWrite()
	if err := <-gone; !errors.Is(err, io.EOF) {
		t.Errorf("OnDisconnect got %v, want EOF", err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	for i := range 64 {
		if _, payload, err := c.readFrame(); err != nil || len(payload) != len(big) {
			t.Fatalf("message %d: %d bytes, %v", i, len(payload), err)
		}
	}
	c.expectEOF()
}

// A client that is cut off is so at once, though it reads nothing: its
// connection is reset, and on TLS nobody waits for a goodbye.
func TestCutOffAtOnce(t *testing.T) {
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite} {
		t.Run(name, func(t *testing.T) {
			soon(t, 4*time.Second, func() error { // less than a goodbye, or an answer to a close frame, is waited for
				hub := realtime.NewHub()
				hub.SendBuffer, hub.SlowAfter = 4, -1
				var client *realtime.Client
				hub.OnConnect = keep(&client)
				s := serve(t, hub)
				c := s.raw()
				client.Send([]byte("it is connected"))
				if _, payload, err := c.readFrame(); string(payload) != "it is connected" || err != nil {
					t.Fatalf("got %q, %v", payload, err)
				}
				for client.SendEvent(realtime.Event{Data: make([]byte, 1<<20), Binary: true}) == nil {
				}
				if err := hub.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				// TLS that ends between two records looks like an end in order, also
				// where none was written.
				n, err := io.Copy(io.Discard, c.br)
				if torn := n%(1<<20+10) != 0; err == nil && !torn && (n > 0 || name == "tcp") {
					return errors.New("the connection has ended in order, want it cut")
				}
				return nil
			})
		})
	}
}

// A client that is cut off while its handler blocks is told.
func TestCutOffDuringTheHandler(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testCutOffDuringTheHandler(t, serve)
		})
	}
}

func testCutOffDuringTheHandler(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
	hub := realtime.NewHub()
	gate, running := make(chan struct{}), make(chan *realtime.Client, 1)
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
		running <- msg.Client
		<-gate
	}
	s := serve(t, hub)
	c := s.raw()
	c.send(frame(0x81, nil))
	<-running
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	down := make(chan error, 1)
	go func() { down <- hub.Shutdown(ctx) }()
	c.conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, c.br); errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the client reads on: %v", err)
	}
	<-down
	close(gate)
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
