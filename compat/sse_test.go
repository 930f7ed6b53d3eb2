package compat_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/klauspost/compress/zstd"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A stream does what a browser's EventSource does (WHATWG HTML §9.2), except that
// it doesn't reconnect.
type stream struct {
	t    *testing.T
	resp *http.Response
	br   *bufio.Reader // of the body, decoded
	end  func()        // cuts the connection

	lastID string // of the last complete event; a browser would send it to resume
}

// ask sends a request as a browser's EventSource does and returns the answer. The
// answer is cut off after patience. header is a list of names and values.
func ask(t *testing.T, client *http.Client, method, url string, header ...string) *stream {
	t.Helper()
	s, err := tryAsk(t.Context(), t, client, method, url, header...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tryAsk does what ask does, but returns the error and ends with ctx too.
func tryAsk(ctx context.Context, t *testing.T, client *http.Client, method, url string, header ...string) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Accept-Encoding", "gzip, deflate, br, zstd")
	r.Header.Set("Cache-Control", "no-cache")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &stream{t: t, resp: resp, br: bufio.NewReader(&decoder{resp: resp}), end: func() {
		cancel()
		resp.Body.Close()
	}}, nil
}

// listen connects an event-stream client, or fails the test.
func listen(t *testing.T, client *http.Client, url string, header ...string) *stream {
	t.Helper()
	s := ask(t, client, "GET", url, header...)
	s.check()
	return s
}

// check fails the test if s isn't answered as an event stream.
func (s *stream) check() {
	s.t.Helper()
	if got := s.resp.Header.Get("Content-Type"); s.resp.StatusCode != http.StatusOK || got != "text/event-stream" {
		s.t.Fatalf("answered %s with %v, want 200 and an event stream", s.resp.Status, s.resp.Header)
	}
	for _, name := range []string{"Content-Type", "Content-Encoding", "X-Accel-Buffering", "Date"} {
		if values := s.resp.Header.Values(name); len(values) > 1 {
			s.t.Errorf("%s came %d times: %q", name, len(values), values)
		}
	}
}

// A decoder decodes an answer's body by its Content-Encoding. It begins with the
// first Read, because middleware may delay the header of the encoded data.
type decoder struct {
	resp *http.Response
	from io.Reader
}

func (d *decoder) Read(p []byte) (n int, err error) {
	if d.from == nil {
		switch encoding := d.resp.Header.Get("Content-Encoding"); encoding {
		case "":
			d.from = d.resp.Body
		case "gzip":
			d.from, err = gzip.NewReader(d.resp.Body)
		case "zstd":
			d.from, err = zstd.NewReader(d.resp.Body, zstd.WithDecoderConcurrency(1))
		default:
			err = fmt.Errorf("got Content-Encoding %q, which was not requested", encoding)
		}
		if err != nil {
			return 0, err
		}
	}
	return d.from.Read(p)
}

// A heard is an event as a browser's script gets it, or a retry field alone.
type heard struct {
	name, data string
	retry      bool
}

// event returns the next event, or the error that ended the stream.
func (s *stream) event() (ev heard, err error) {
	var data []string
	id := s.lastID
	for {
		line, err := s.br.ReadString('\n')
		if err != nil {
			if line != "" {
				err = fmt.Errorf("the stream ends within line %q: %w", line, err)
			}
			return ev, err
		}
		line = line[:len(line)-1]
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			s.lastID = id
			if data != nil {
				ev.data = strings.Join(data, "\n")
				return ev, nil
			}
			ev = heard{}
		case field == "": // a comment
		case field == "id":
			id = value
		case field == "event":
			ev.name = value
		case field == "data":
			data = append(data, value)
		case field == "retry": // it counts without an empty line
			return heard{retry: true}, nil
		default:
			return ev, fmt.Errorf("unknown field in line %q", line)
		}
	}
}

// next returns the data of the next event, or fails the test.
func (s *stream) next() string {
	s.t.Helper()
	for {
		ev, err := s.event()
		if err != nil {
			s.t.Fatalf("next event: %v", err)
		}
		if !ev.retry {
			return ev.data
		}
	}
}

// opened reads the retry field that a hub sends at once, before any event.
func (s *stream) opened() {
	s.t.Helper()
	if ev, err := s.event(); err != nil || !ev.retry {
		s.t.Fatalf("the stream opens with %+v, %v, want retry", ev, err)
	}
}

// ended fails the test unless the hub sends a retry field and then ends the
// stream in good order.
func (s *stream) ended() {
	s.t.Helper()
	s.opened()
	if ev, err := s.event(); err != io.EOF {
		s.t.Errorf("got %+v, %v, want EOF", ev, err)
	}
}

// A watch gets the reason for which each client has left.
type watch chan error

// newWatchedHub returns a hub and a watch of it.
func newWatchedHub(t *testing.T) (*realtime.Hub, watch) {
	t.Helper()
	hub := newHub(t)
	left := make(watch, 1000)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { left <- err }
	return hub, left
}

// one waits until a client has left and returns the reason.
func (w watch) one(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w:
		return err
	case <-time.After(patience):
		t.Fatal("no client has left")
		return nil
	}
}

// wait polls until ok, or fails the test.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// both serves the hub's event streams at /sse, and both transports at /.
func both(hub *realtime.Hub) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sse" {
			hub.ServeSSE(w, r)
		} else {
			hub.ServeHTTP(w, r)
		}
	}
}

// eachStack runs test with each combination of a stack and a protocol that passes
// a hub's event streams on.
func eachStack(t *testing.T, test func(t *testing.T, s stack, p protocol)) {
	for _, s := range stacks {
		for _, p := range protocols {
			if s.noFlush && !p.takes {
				continue
			}
			t.Run(s.name+" "+p.name, func(t *testing.T) { test(t, s, p) })
		}
	}
}

func TestServeSSE(t *testing.T) {
	eachStack(t, func(t *testing.T, s stack, p protocol) {
		hub, left := newWatchedHub(t)
		var inside atomic.Int64
		handle := both(hub)
		server := prepare(t, s.handler(func(w http.ResponseWriter, r *http.Request) {
			inside.Add(1)
			defer inside.Add(-1)
			handle(w, r)
		}), false)
		client := p.start(server)
		t.Cleanup(func() { shutdown(t, hub) }) // before the server waits for its handlers

		for _, path := range []string{"/sse", "/"} {
			l := listen(t, client, server.URL+path)
			l.opened()
			for i := range 3 {
				want := fmt.Sprint(path, i)
				hub.Broadcast <- []byte(want)
				if got := l.next(); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
			}
			if p.takes && !s.encodes {
				wait(t, "the handler has returned", func() bool { return inside.Load() == 0 })
			}
			if n := hub.ClientCount(); n != 1 {
				t.Errorf("ClientCount() = %d, want 1", n)
			}
			l.end()
			if err := left.one(t); err != io.EOF {
				t.Errorf("the stream left with %v, want EOF", err)
			}

			head := ask(t, client, "HEAD", server.URL+path)
			head.check()
			if body, err := io.ReadAll(head.resp.Body); err != nil || len(body) > 0 {
				t.Errorf("HEAD got %q, %v, want no body", body, err)
			}
			post := ask(t, client, "POST", server.URL+path)
			body, err := io.ReadAll(post.br)
			if err != nil || post.resp.StatusCode != http.StatusMethodNotAllowed || post.resp.Header.Get("Allow") != "GET, HEAD, OPTIONS" || !strings.Contains(string(body), "POST") {
				t.Errorf("POST got %s with %v and %q, %v, want 405", post.resp.Status, post.resp.Header, body, err)
			}
		}
		if p.takes && !p.tls {
			conn := dial(t, t.Context(), server.URL)
			hub.Broadcast <- []byte("hello")
			if _, data, err := conn.Read(t.Context()); err != nil || string(data) != "hello" {
				t.Errorf("WebSocket: %q, %v, want hello", data, err)
			}
			conn.CloseNow()
			left.one(t)
		}

		last := []*stream{listen(t, client, server.URL+"/sse"), listen(t, client, server.URL)}
		for _, l := range last {
			l.opened()
		}
		var stopping sync.WaitGroup
		stopping.Go(func() { shutdown(t, hub) })
		for _, l := range last {
			l.ended()
			if err := left.one(t); !errors.Is(err, realtime.ErrHubClosed) {
				t.Errorf("the stream left with %v, want ErrHubClosed", err)
			}
		}
		stopping.Wait()
		listen(t, client, server.URL).ended()
		wait(t, "all handlers have returned", func() bool { return inside.Load() == 0 })
	})
}

// Event streams outlive the server's timeouts, even if they are silent. A stream
// whose ResponseWriter hides SetWriteDeadline does not.
func TestServeSSEOutlivesWriteTimeout(t *testing.T) {
	t.Parallel()                    // it sleeps
	const timeout = 5 * time.Second // for TLS handshakes too
	type idle struct {
		name   string
		hub    *realtime.Hub
		stream *stream
	}
	var streams []idle
	for _, p := range protocols {
		for _, s := range stacks {
			if (s.noDeadline || s.noFlush) && (s.encodes || !p.takes) {
				continue
			}
			hub := newHub(t)
			hub.WriteTimeout = timeout // its deadline must be lifted as well
			server := prepare(t, s.handler(hub.ServeHTTP), false)
			server.Config.WriteTimeout = timeout
			server.Config.ReadTimeout = timeout
			server.Config.IdleTimeout = timeout
			client := p.start(server)
			t.Cleanup(func() { shutdown(t, hub) })
			l := listen(t, client, server.URL)
			l.opened()
			streams = append(streams, idle{s.name + " " + p.name, hub, l})
		}
	}
	time.Sleep(timeout + time.Second)
	for _, i := range streams {
		for _, want := range []string{"first", "second"} {
			i.hub.Broadcast <- []byte(want)
			if ev, err := i.stream.event(); err != nil || ev.data != want {
				t.Errorf("%s: %+v, %v, want %s", i.name, ev, err, want)
			}
		}
	}
}

// Sessions are saved. Some middleware adds headers when the answer is written.
// These are lost if the connection is taken over, as with Upgrade.
func TestServeSSEWithSession(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			sessions := scs.New()
			hub := newHub(t)
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
				sessions.Put(r.Context(), "user", sessions.GetString(r.Context(), "user")+" is here")
				return nil
			}
			mux := http.NewServeMux()
			mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
				sessions.Put(r.Context(), "user", "Ada")
			})
			mux.Handle("/sse", hub)
			mux.HandleFunc("/user", func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, sessions.GetString(r.Context(), "user"))
			})
			server := prepare(t, sessions.LoadAndSave(mux), false)
			client := p.start(server)
			t.Cleanup(func() { shutdown(t, hub) })
			client.Jar, _ = cookiejar.New(nil)

			ask(t, client, "GET", server.URL+"/login").end()
			l := listen(t, client, server.URL+"/sse")
			l.opened()
			if got := l.resp.Header.Values("Vary"); !slices.Contains(got, "Cookie") { // LoadAndSave's
				t.Errorf("the answer has Vary %q, want Cookie in it", got)
			}
			if got, want := len(l.resp.Cookies()) > 0, !p.takes; got != want {
				t.Errorf("the answer sets a cookie: %t, want %t", got, want)
			}
			wait(t, "the session is saved", func() bool {
				body, err := io.ReadAll(ask(t, client, "GET", server.URL+"/user").br)
				return err == nil && string(body) == "Ada is here"
			})
		})
	}
}

// If an event stream's connection is taken over, the stream does not end with the
// context of its request. If the answer stays in the handler, it does.
func TestServeSSEWithTimeout(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			hub, left := newWatchedHub(t)
			expired := make(chan struct{}, 1)
			// The middleware answers 504 after the headers are sent. net/http
			// logs an error about it.
			server := prepare(t, chiStack(chimiddleware.Timeout(100*time.Millisecond))(func(w http.ResponseWriter, r *http.Request) {
				hub.ServeSSE(w, r)
				<-r.Context().Done()
				expired <- struct{}{}
			}), true)
			client := p.start(server)
			t.Cleanup(func() { shutdown(t, hub) })
			l := listen(t, client, server.URL)
			l.opened()
			<-expired
			if !p.takes {
				if ev, err := l.event(); err != io.EOF {
					t.Errorf("got %+v, %v, want EOF", ev, err)
				}
				if err := left.one(t); err != io.EOF {
					t.Errorf("the stream left with %v, want EOF", err)
				}
				return
			}
			hub.Broadcast <- []byte("still here")
			if got := l.next(); got != "still here" {
				t.Errorf("got %q, want still here", got)
			}
		})
	}
}

func TestServeSSENamesWhatHidesFlush(t *testing.T) {
	for _, h := range hiders {
		t.Run(h.name, func(t *testing.T) {
			hub := newHub(t)
			var log syncBuffer
			hub.Logger = slog.New(slog.NewTextHandler(&log, nil))
			server := serve(t, h.handler(hub.ServeSSE), false)
			if s := ask(t, plainClient(server), "GET", server.URL); s.resp.StatusCode != http.StatusNotImplemented {
				t.Errorf("answered %s, want 501", s.resp.Status)
			}
			shutdown(t, hub)
			if got := log.String(); !strings.Contains(got, h.culprit) || !strings.Contains(got, "Unwrap") {
				t.Errorf("the log %q should name %s and Unwrap", got, h.culprit)
			}
		})
	}
}
