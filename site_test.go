package realtime_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

var quiet = slog.New(slog.DiscardHandler)

// A rawClient speaks RFC 6455 by hand, so that it can break its rules.
type rawClient struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

const handshake = "GET /ws HTTP/1.1\r\nHost: pipe\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// newRawClient makes the handshake on conn, with early in the same packet.
func newRawClient(t testing.TB, conn net.Conn, early []byte) *rawClient {
	t.Helper()
	go conn.Write(append([]byte(handshake), early...))
	c := &rawClient{t: t, conn: conn}
	c.readHandshake()
	return c
}

// readHandshake reads the server's answer, or fails the test, and returns its
// headers.
func (c *rawClient) readHandshake() http.Header {
	c.t.Helper()
	c.br = bufio.NewReader(c.conn)
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		c.t.Fatalf("handshake: %s", resp.Status)
	}
	if got, want := resp.Header.Get("Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; got != want {
		c.t.Fatalf("Sec-WebSocket-Accept = %q, want %q (RFC 6455 §1.3)", got, want)
	}
	return resp.Header
}

// send writes bytes as they are.
func (c *rawClient) send(b []byte) error {
	_, err := c.conn.Write(b)
	return err
}

// frame returns a masked frame with the given first byte.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n <= 0xFFFF:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0xA5, 0x5A, 0xFF, 0x01}
	b = append(b, mask[:]...)
	for i, p := range payload {
		b = append(b, p^mask[i%4])
	}
	return b
}

// readFrame returns the next frame, checking what RFC 6455 asks of a server.
func (c *rawClient) readFrame() (first byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		return 0, nil, err
	}
	if head[1]&0x80 != 0 {
		return 0, nil, fmt.Errorf("the server masked a frame")
	}
	n := uint64(head[1])
	switch n {
	case 126:
		var ext [2]byte
		if _, err := io.ReadFull(c.br, ext[:]); err != nil {
			return 0, nil, err
		}
		if n = uint64(binary.BigEndian.Uint16(ext[:])); n < 126 {
			return 0, nil, fmt.Errorf("length %d in 16 bits", n)
		}
	case 127:
		var ext [8]byte
		if _, err := io.ReadFull(c.br, ext[:]); err != nil {
			return 0, nil, err
		}
		if n = binary.BigEndian.Uint64(ext[:]); n <= 0xFFFF {
			return 0, nil, fmt.Errorf("length %d in 64 bits", n)
		}
	}
	if head[0]&0x08 != 0 && (n > 125 || head[0]&0x80 == 0) {
		return 0, nil, fmt.Errorf("control frame %#x of %d bytes", head[0], n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c.br, payload)
	return head[0], payload, err
}

// expectClose reads frames until the close frame, wants its code, and returns
// its reason.
func (c *rawClient) expectClose(code int) string {
	c.t.Helper()
	for {
		first, payload, err := c.readFrame()
		if err != nil {
			c.t.Fatalf("waiting for close frame %d: %v", code, err)
		}
		if first != 0x88 {
			continue
		}
		if len(payload) < 2 {
			c.t.Fatalf("close frame without a code, want %d", code)
		}
		if got := int(binary.BigEndian.Uint16(payload)); got != code {
			c.t.Fatalf("close code %d %q, want %d", got, payload[2:], code)
		}
		return string(payload[2:])
	}
}

// expectEOF wants an orderly end with nothing more before it.
func (c *rawClient) expectEOF() {
	c.t.Helper()
	if b, err := c.br.ReadByte(); err != io.EOF {
		c.t.Errorf("read %#x, %v; want EOF", b, err)
	}
}

// expectEnd wants the connection to end, in whatever way, with nothing more on
// it.
func (c *rawClient) expectEnd() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c.br); n != 0 {
		c.t.Fatalf("%d more bytes, then %v; want the end", n, err)
	}
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// A listener is an event-stream client of a hub: what a browser's EventSource
// is (WHATWG HTML §9.2), but that it comes back only when told to. As in Firefox
// and WebKit, an id without data has no effect.
type listener struct {
	t    testing.TB
	conn net.Conn
	resp *http.Response
	br   *bufio.Reader

	lastID   string // as the browser would send it back
	retry    string // the last one
	comments int    // how many came
}

// A heard is an event as a script in the browser gets it.
type heard struct{ id, name, data string }

// listen joins an event-stream client with the given query and header lines,
// or fails the test.
func (s *site) listen(query string, header ...string) *listener {
	s.t.Helper()
	l := s.request("GET", query, append(header, "Accept: text/event-stream")...)
	if l.resp.StatusCode != http.StatusOK || l.resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(l.resp.Body)
		s.t.Fatalf("answered %s with %v: %s", l.resp.Status, l.resp.Header, body)
	}
	return l
}

// request makes a request of the hub's handler and reads the head of its answer.
func (s *site) request(method, query string, header ...string) *listener {
	s.t.Helper()
	conn, err := s.dial(context.Background(), "tcp", s.host())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	lines := append([]string{method + " /ws?" + query + " HTTP/1.1", "Host: pipe"}, header...)
	go io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		s.t.Fatalf("%s: %v", method, err)
	}
	return &listener{t: s.t, conn: conn, resp: resp, br: bufio.NewReader(resp.Body)}
}

func (s *site) host() string { return strings.TrimSuffix(strings.TrimPrefix(s.url, "ws://"), "/ws") }

// event returns the next event, or the error that ended the stream.
func (l *listener) event() (ev heard, err error) {
	var data []string
	id := l.lastID
	for {
		line, err := l.br.ReadString('\n')
		if err != nil {
			if line != "" {
				return ev, fmt.Errorf("the stream ends within line %q: %w", line, err)
			}
			return ev, err
		}
		line = line[:len(line)-1]
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data != nil {
				l.lastID = id
				if ev.name != "realtime.position" {
					ev.id, ev.data = id, strings.Join(data, "\n")
					return ev, nil
				}
			}
			ev, data, id = heard{}, nil, l.lastID
		case field == "":
			l.comments++
		case field == "id":
			id = value
		case field == "event":
			ev.name = value
		case field == "data":
			data = append(data, value)
		case field == "retry":
			l.retry = value
		default:
			return ev, errors.New("strange line " + line)
		}
	}
}

// next returns the data of the next event, or fails the test.
func (l *listener) next() string {
	l.t.Helper()
	ev, err := l.event()
	if err != nil {
		l.t.Fatalf("next event: %v", err)
	}
	return ev.data
}

// cut ends the connection as a pulled plug does.
func (l *listener) cut() { l.conn.Close() }

// A pipeListener hands out connections of net.Pipe, which synctest can see
// through.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func listenPipe() *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.done) })
	return l
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.close(); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (l *pipeListener) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// A site is a real http.Server with one hub at /ws, over TCP or net.Pipe.
type site struct {
	t    testing.TB
	hub  *realtime.Hub
	srv  *http.Server
	url  string // of the handler
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// newPipeSite serves the hub over net.Pipe, for synctest.
func newPipeSite(t testing.TB, hub *realtime.Hub) *site {
	t.Helper()
	l := listenPipe()
	return serveSite(t, hub, l, "ws://pipe/ws", l.dial)
}

// newTCPSite serves the hub on loopback.
func newTCPSite(t testing.TB, hub *realtime.Hub) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveSite(t, hub, l, "ws://"+l.Addr().String()+"/ws", new(net.Dialer).DialContext)
}

func serveSite(t testing.TB, hub *realtime.Hub, l net.Listener, url string, dial func(context.Context, string, string) (net.Conn, error)) *site {
	if hub.Logger == nil {
		hub.Logger = textLogger(io.Discard)
	}
	mux := http.NewServeMux()
	mux.Handle("/ws", hub)
	s := &site{t: t, hub: hub, url: url, dial: dial, srv: &http.Server{Handler: mux}}
	served := make(chan error, 1)
	go func() { served <- s.srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := hub.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		} else if n := realtime.Kept(hub); n != 0 {
			t.Errorf("after Shutdown the shards keep %d clients", n)
		}
		s.srv.Close()
		<-served
		if n := hub.ClientCount(); n != 0 {
			t.Errorf("after Shutdown the hub has %d clients", n)
		}
		if n := hub.Stats().Queued; n != 0 {
			t.Errorf("after Shutdown %d messages are queued", n)
		}
	})
	return s
}

// httpClient makes requests to the site, each on a connection of its own.
func (s *site) httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: s.dial, DisableKeepAlives: true}}
}

// connect joins a client that reads, or fails the test.
func (s *site) connect() *websocket.Conn {
	s.t.Helper()
	conn, _, err := websocket.Dial(context.Background(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
	if err != nil {
		s.t.Fatalf("dial: %v", err)
	}
	conn.SetReadLimit(-1)
	s.t.Cleanup(func() { conn.CloseNow() })
	return conn
}

// raw joins a client that speaks bytes, or fails the test. early comes in one
// packet with its handshake.
func (s *site) raw(early ...byte) *rawClient {
	s.t.Helper()
	return newRawClient(s.t, s.connection(), early)
}

// connection returns one on which nothing has been said, or fails the test.
func (s *site) connection() net.Conn {
	s.t.Helper()
	conn, err := s.dial(context.Background(), "tcp", s.host())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// refused makes a client that must not be let in, and returns the answer.
func (s *site) refused() *http.Response {
	s.t.Helper()
	conn, resp, err := websocket.Dial(context.Background(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
	if err == nil {
		conn.CloseNow()
		s.t.Fatal("the client was let in")
	}
	if resp == nil {
		s.t.Fatalf("the client got no answer: %v", err)
	}
	return resp
}

// running returns how many goroutines of the process run a function of the
// package.
func running(function string) int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "pkg/realtime."+function+"(")
}

// soon wants try to succeed within limit: where it takes longer, something else
// may have brought its result about. On a busy machine it may take longer, so it
// is called again then, up to five times.
func soon(t *testing.T, limit time.Duration, try func() error) {
	t.Helper()
	for range 5 {
		start := time.Now()
		err := try()
		if time.Since(start) < limit {
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Errorf("five times it took %v and longer", limit)
}

// read returns the next message, or fails the test.
func read(t *testing.T, conn *websocket.Conn) string {
	t.Helper()
	_, data, err := conn.Read(context.Background())
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return string(data)
}

// write sends a text message, or fails the test.
func write(t *testing.T, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.Write(context.Background(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// closeStatus reads until the connection ends and returns its close status.
func closeStatus(conn *websocket.Conn) websocket.CloseError {
	for {
		if _, _, err := conn.Read(context.Background()); err != nil {
			status, ok := errors.AsType[websocket.CloseError](err)
			if !ok {
				return websocket.CloseError{Code: -1, Reason: err.Error()}
			}
			return status
		}
	}
}

// safeBuffer is a bytes.Buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
