package realtime_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// TestMain fails on goroutines that tests have left behind.
func TestMain(m *testing.M) {
	if role := os.Getenv("REALTIME_TEST_PROCESS"); role != "" {
		os.Exit(childProcess(role))
	}
	// Many tests wait rather than work: more of them run at a time than there
	// are processors.
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue && flag.Lookup("test.fuzz").Value.String() == "" {
		n.Value.Set(strconv.Itoa(max(8, runtime.GOMAXPROCS(0))))
	}
	code := m.Run()
	Chat.Shutdown(context.Background()) // if its test didn't run
	if code == 0 {
		deadline := time.Now().Add(time.Minute)
		for runtime.NumGoroutine() > 2 && time.Now().Before(deadline) {
			http.DefaultClient.CloseIdleConnections()
			time.Sleep(10 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > 2 {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines are left:\n%s\n", n, stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
	}
	os.Exit(code)
}

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

func TestBroadcastReachesEveryClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		go hub.Run()
		s := newPipeSite(t, hub)
		a, b := s.connect(), s.connect()
		if got := hub.ClientCount(); got != 2 {
			t.Errorf("ClientCount() = %d right after the handshakes, want 2", got)
		}
		hub.Broadcast <- []byte("hello")
		for _, c := range []*websocket.Conn{a, b} {
			if got := read(t, c); got != "hello" {
				t.Errorf("got %q, want %q", got, "hello")
			}
		}
		a.Close(websocket.StatusNormalClosure, "")
		synctest.Wait()
		if got := hub.ClientCount(); got != 1 {
			t.Errorf("ClientCount() = %d after one left, want 1", got)
		}
	})
}

// The settings may be assigned when Run runs already: they are read by the
// first client.
func TestSettingsAfterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		go hub.Run()
		synctest.Wait()
		hub.PingInterval = 3 * time.Second
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x81, []byte("echo")))
		if first, payload, err := c.readFrame(); first != 0x81 || string(payload) != "echo" {
			t.Errorf("got frame %#x %q, %v; want the echo", first, payload, err)
		}
		start := time.Now()
		if first, _, err := c.readFrame(); first != 0x89 || !within(time.Since(start), 3*time.Second) {
			t.Errorf("got frame %#x, %v after %v; want a ping after 3 s", first, err, time.Since(start))
		}
	})
}

// The first event reads the settings as well: on the loop, but for the
// publisher's goroutine to see.
func TestSettingsBeforeFirstEvent(t *testing.T) {
	hub := realtime.NewHub()
	go hub.Run()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.Broadcast <- []byte("\xff")
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := lines.String(); !strings.Contains(got, "not valid UTF-8") {
		t.Errorf("the Logger assigned after Run got %q", got)
	}
}

// Settings for which less than zero means the default have it then, too.
func TestNegativeSettings(t *testing.T) {
	newHub := func() *realtime.Hub {
		hub := realtime.NewHub()
		hub.SendBuffer, hub.MaxMessageBytes, hub.PongTimeout, hub.WriteTimeout = -1, -1, -1, -1
		return hub
	}
	t.Run("MaxMessageBytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeSite(t, newHub()).raw()
			go c.send(frame(0x82, make([]byte, 512<<10+1)))
			c.expectClose(1009)
		})
	})
	t.Run("PongTimeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := newHub()
			l := recordLeft(hub)
			c := newPipeSite(t, hub).raw()
			io.Copy(io.Discard, c.br)
			synctest.Wait()
			if l.at < 114*time.Second || l.at > 116*time.Second {
				t.Errorf("gone after %v with %v, want 54 s + 60 s and at most 2 s", l.at, l.err)
			}
		})
	})
	t.Run("SendBuffer and WriteTimeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := newHub()
			l := recordLeft(hub)
			s := newPipeSite(t, hub)
			s.raw() // never reads
			hub.Broadcast <- []byte("x")
			time.Sleep(15 * time.Second)
			synctest.Wait()
			if !within(l.at, 10*time.Second) || l.err == nil || !strings.Contains(l.err.Error(), "WriteTimeout") {
				t.Errorf("gone after %v with %v, want WriteTimeout after 10 s", l.at, l.err)
			}
		})
	})
}

func TestRunIsOptional(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Broadcast <- []byte("nobody is there")
		s := newPipeSite(t, hub)
		c := s.connect() // starts the hub
		hub.Broadcast <- []byte("hello")
		for {
			if got := read(t, c); got == "hello" {
				break
			}
		}
		// Run late, and twice.
		errs := make(chan error, 2)
		go func() { errs <- hub.Run() }()
		go func() { errs <- hub.Run() }()
		synctest.Wait()
		if len(errs) != 0 {
			t.Fatal("Run returned before Shutdown")
		}
		go closeStatus(c)
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Errorf("Run: %v, want nil after Shutdown", err)
			}
		}
		if err := hub.Run(); err != nil {
			t.Errorf("Run after Shutdown: %v, want nil", err)
		}
	})
}

func TestFirstPublishStartsTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Broadcast <- []byte("before")
		if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := hub.Stats().Published; got != 2 {
			t.Errorf("Published = %d, want 2", got)
		}
		hub.Shutdown(t.Context())
	})
}

func TestHubNotMadeByNewHub(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	for name, hub := range map[string]*realtime.Hub{"nil": nil, "literal": {}} {
		t.Run(name, func(t *testing.T) {
			var lines safeBuffer
			slog.SetDefault(textLogger(&lines))
			rec := httptest.NewRecorder()
			upgradeErr := realtime.Upgrade(rec, httptest.NewRequest("GET", "/", nil), hub)
			if rec.Code != http.StatusInternalServerError {
				t.Errorf("Upgrade answered %d, want 500", rec.Code)
			}
			for call, err := range map[string]error{
				"Upgrade":    upgradeErr,
				"Run":        hub.Run(),
				"PublishAll": hub.PublishAll(t.Context(), realtime.Event{}),
				"Shutdown":   hub.Shutdown(t.Context()),
			} {
				if err == nil || !strings.Contains(err.Error(), "realtime.NewHub") {
					t.Errorf("%s: %v; want an error that names realtime.NewHub", call, err)
				}
			}
			// Nobody reads the error of "go hub.Run()".
			if got := lines.String(); !strings.Contains(got, "realtime: run: ") || !strings.Contains(got, "realtime.NewHub") {
				t.Errorf("Run logged %q, want a line that names realtime.NewHub", got)
			}
			for range hub.Clients() {
				t.Error("it has a client")
			}
			if n := hub.ClientCount() + hub.Stats().Clients; n != 0 {
				t.Errorf("it counts %d clients", n)
			}
			<-hub.Done()
		})
	}
}

// What one goroutine publishes arrives in order, whichever way it took.
func TestOrderOfBroadcastAndPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		conns := []*websocket.Conn{s.connect(), s.connect(), s.connect()}
		const events = 5000
		var clients sync.WaitGroup
		clients.Go(func() {
			for i := range events {
				data := []byte(strconv.Itoa(i))
				if i%7 == 0 {
					if err := hub.PublishAll(context.Background(), realtime.Event{Data: data}); err != nil {
						t.Error(err)
					}
				} else {
					hub.Broadcast <- data
				}
			}
		})
		for _, c := range conns {
			clients.Go(func() {
				for i := range events {
					_, data, err := c.Read(context.Background())
					if err != nil || string(data) != strconv.Itoa(i) {
						t.Errorf("message %d is %q, %v", i, data, err)
						return
					}
				}
			})
		}
		clients.Wait()
	})
}

// An OnMessage that broadcasts far more than any buffer holds neither
// deadlocks nor loses anything.
func TestOnMessageBroadcastsThousands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			for i := range 5000 {
				hub.Broadcast <- fmt.Appendf(nil, "%s %d", msg.Data, i)
			}
		}
		s := newPipeSite(t, hub)
		conns := []*websocket.Conn{s.connect(), s.connect(), s.connect()}
		var clients sync.WaitGroup
		for n, c := range conns {
			clients.Go(func() {
				write(t, c, strconv.Itoa(n))
				var next [3]int
				for range 3 * 5000 {
					_, data, err := c.Read(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					var who, i int
					fmt.Sscanf(string(data), "%d %d", &who, &i)
					if i != next[who] {
						t.Errorf("from %d got %d, want %d", who, i, next[who])
						return
					}
					next[who]++
				}
			})
		}
		clients.Wait()
	})
}

func TestOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		go hub.Run()
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			c.Set("name", r.URL.Query().Get("name"))
			if err := c.Send([]byte("first")); err != nil {
				t.Error(err)
			}
			if got := hub.ClientCount(); got != 0 {
				t.Errorf("ClientCount() = %d within OnConnect, want 0", got)
			}
			// It may block, call the hub, and what is published meanwhile is not missed.
			hub.Broadcast <- []byte("second")
			hub.PublishAll(context.Background(), realtime.Event{Data: []byte("third")})
			synctest.Wait()
			c.Send([]byte("fourth"))
			time.Sleep(time.Hour)
			return nil
		}
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
			name, _ := msg.Client.Get("name")
			msg.Client.Send(fmt.Append(nil, "you are ", name))
		}
		s := newPipeSite(t, hub)
		s.url += "?name=Ada"
		c := s.connect()
		if got := hub.ClientCount(); got != 1 {
			t.Errorf("ClientCount() = %d after the handshake, want 1", got)
		}
		write(t, c, "who am I?")
		for _, want := range []string{"first", "second", "third", "fourth", "you are Ada"} {
			if got := read(t, c); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
}

// Events that pile up while OnConnect takes its time are not the client's
// slowness.
func TestEventsDuringOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			for i := range 1000 {
				hub.Broadcast <- []byte(strconv.Itoa(i))
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		}
		s := newPipeSite(t, hub)
		c := s.connect()
		for i := range 1000 {
			if got := read(t, c); got != strconv.Itoa(i) {
				t.Fatalf("message %d is %q", i, got)
			}
		}
	})
}

// A client that is flooded while its OnConnect runs is refused, as what it
// missed would be missing.
func TestFloodedDuringOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.SendBuffer = 2
		l := recordLeft(hub)
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			for range 2 * 64 {
				if err := c.Send([]byte("x")); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
			if err := c.Send([]byte("x")); !errors.Is(err, realtime.ErrSlowClient) {
				t.Errorf("Send above 64 × SendBuffer: %v, want ErrSlowClient", err)
			}
			return nil
		}
		s := newPipeSite(t, hub)
		if resp := s.refused(); resp.StatusCode != 503 {
			t.Errorf("answered %s, want 503", resp.Status)
		}
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, realtime.ErrSlowClient) {
			t.Errorf("OnDisconnect: %d times, last with %v; want ErrSlowClient once", l.n, l.err)
		}
		if st := hub.Stats(); st.SlowClients != 1 || st.Dropped != 2*64+1 || st.Queued != 0 {
			t.Errorf("Stats() = %+v, want one slow client, 129 dropped", st)
		}
	})
}

func TestOnConnectRefuses(t *testing.T) {
	tests := map[string]struct {
		refuse func() error
		status int
		body   string
	}{
		"plain error": {func() error { return errors.New("secret") }, 403, "Forbidden\n"},
		"Refuse":      {func() error { return realtime.Refuse(401, "sign in first") }, 401, "sign in first\n"},
		"wrapped":     {func() error { return fmt.Errorf("secret: %w", realtime.Refuse(429, "later")) }, 429, "later\n"},
		"no content":  {func() error { return realtime.Refuse(204, "") }, 204, ""},
		"panic":       {func() error { panic("secret") }, 500, "Internal Server Error\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				var lines safeBuffer
				hub.Logger = textLogger(&lines)
				l := recordLeft(hub)
				var id string
				hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
					id = c.ID()
					c.Send([]byte("never sent"))
					return tt.refuse()
				}
				s := newPipeSite(t, hub)
				resp := s.refused()
				body, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != tt.status || string(body) != tt.body {
					t.Errorf("answered %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
				}
				if st := hub.Stats(); st.Refused != 1 || st.Clients != 0 {
					t.Errorf("Stats() = %+v, want 1 refused, no clients", st)
				}
				if l.n != 0 {
					t.Error("OnDisconnect was called for a client that OnConnect refused")
				}
				synctest.Wait()
				if want := name == "plain error" || name == "panic"; strings.Contains(lines.String(), "secret") != want {
					t.Errorf("logged %q", lines.String())
				}
				if name == "panic" && !strings.Contains(lines.String(), "client="+id) {
					t.Errorf("logged %q, want client=%s in it", lines.String(), id)
				}
			})
		})
	}
}

// A status that can't be an answer is 403; an answer that has no body gets none,
// nor headers of one.
func TestRefuseStatus(t *testing.T) {
	for status, want := range map[int]int{
		0: 403, 101: 403, 199: 403, 200: 200, 204: 204, 304: 304, 401: 401, 599: 599, 600: 403,
	} {
		hub := realtime.NewHub()
		hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.Refuse(status, "text") }
		rec := httptest.NewRecorder()
		realtime.Upgrade(hijackable{ResponseRecorder: rec}, handshakeRequest(t), hub)
		text, typ := "text\n", "text/plain; charset=utf-8"
		if want == 204 || want == 304 {
			text, typ = "", ""
		}
		if rec.Code != want || rec.Body.String() != text || rec.Header().Get("Content-Type") != typ {
			t.Errorf("Refuse(%d) answers %d %q, %v; want %d", status, rec.Code, rec.Body, rec.Header(), want)
		}
		hub.Shutdown(t.Context())
	}
}

// Close within OnConnect takes effect after the handshake, behind what was
// sent.
func TestCloseWithinOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			c.Send([]byte("your session has expired"))
			return c.Close(4001, "expired")
		}
		s := newPipeSite(t, hub)
		c := s.connect()
		if got := read(t, c); got != "your session has expired" {
			t.Errorf("got %q", got)
		}
		if status := closeStatus(c); status.Code != 4001 || status.Reason != "expired" {
			t.Errorf("closed with %v, want 4001", status)
		}
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, realtime.ErrClientClosed) || websocket.CloseStatus(l.err) != 4001 {
			t.Errorf("OnDisconnect: %d times, last with %v; want once, ErrClientClosed with 4001", l.n, l.err)
		}
	})
}

func TestOnDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var events []string
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			c.Set("name", "Ada")
			return nil
		}
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
			time.Sleep(time.Second)
			events = append(events, string(msg.Data))
		}
		hub.OnDisconnect = func(c *realtime.Client, err error) {
			name, _ := c.Get("name")
			events = append(events, fmt.Sprintf("%v left with %d", name, websocket.CloseStatus(err)))
			if got := c.Send([]byte("x")); !errors.Is(got, realtime.ErrClientClosed) {
				t.Errorf("Send in OnDisconnect: %v, want ErrClientClosed", got)
			}
			if got := context.Cause(c.Context()); got != err {
				t.Errorf("Cause = %v, want OnDisconnect's %v", got, err)
			}
			if hub.ClientCount() != 0 {
				t.Errorf("ClientCount() = %d in OnDisconnect, want 0", hub.ClientCount())
			}
		}
		s := newPipeSite(t, hub)
		c := s.connect()
		write(t, c, "one")
		go func() {
			write(t, c, "two")
			c.Close(websocket.StatusNormalClosure, "bye")
		}()
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if got, want := strings.Join(events, ", "), "one, two, Ada left with 1000"; got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	})
}

// Once the client's context is done nothing can be sent to it, whichever way
// it left.
func TestSendAfterTheEnd(t *testing.T) {
	ends := map[string]func(c *rawClient){
		"close frame": func(c *rawClient) { c.send(frame(0x88, nil)); c.readFrame() },
		"EOF":         func(c *rawClient) { c.conn.Close() },
		"bad frame":   func(c *rawClient) { c.send([]byte{0x81, 1, 'x'}); c.readFrame() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				var got error
				hub.OnDisconnect = func(c *realtime.Client, _ error) { got = c.Send([]byte("x")) }
				s := newPipeSite(t, hub)
				end(s.raw())
				synctest.Wait()
				if !errors.Is(got, realtime.ErrClientClosed) {
					t.Errorf("Send in OnDisconnect: %v, want ErrClientClosed", got)
				}
			})
		})
	}
}

// Handlers are read when a client joins.
func TestHandlersAreReadAtJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send([]byte("old")) }
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		hub.OnMessage, hub.OnDisconnect = nil, func(*realtime.Client, error) { t.Error("a later OnDisconnect was called") }
		c.send(frame(0x81, nil))
		if _, payload, err := c.readFrame(); string(payload) != "old" {
			t.Errorf("got %q, %v", payload, err)
		}
		c.conn.Close()
		synctest.Wait()
		if l.n != 1 {
			t.Errorf("OnDisconnect was called %d times, want 1", l.n)
		}
	})
}

func TestClientVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		c.conn.Close()
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, io.EOF) || websocket.CloseStatus(l.err) != -1 {
			t.Errorf("OnDisconnect: %d times, last with %v; want once, EOF without a close status", l.n, l.err)
		}
	})
}

func TestClientContextIsLateAndLasting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		c := s.connect()
		early := client.Context()
		if err := early.Err(); err != nil {
			t.Errorf("Context is done while the client is there: %v", err)
		}
		c.CloseNow()
		<-early.Done()
		if late := client.Context(); context.Cause(late) == nil || context.Cause(late) != context.Cause(early) {
			t.Errorf("causes: %v, then %v", context.Cause(early), context.Cause(late))
		}
		if id := client.ID(); len(id) != 32 || id == strings.Repeat("0", 32) {
			t.Errorf("ID() = %q", id)
		}
	})
}

func TestClientClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		var got []string
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = append(got, string(msg.Data)) }
		s := newPipeSite(t, hub)
		c := s.raw()
		for _, bad := range []websocket.StatusCode{0, 999, 1004, 1005, 1006, 1015, 2999, 5000} {
			if err := client.Close(bad, ""); err == nil || errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("Close(%d): %v, want an error about the code", bad, err)
			}
		}
		for _, bad := range []string{strings.Repeat("x", 124), "\xff"} {
			if err := client.Close(1000, bad); err == nil || errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("Close with reason %q: %v, want an error about it", bad, err)
			}
		}
		client.Send([]byte("last words"))
		if err := client.Close(4000, strings.Repeat("x", 123)); err != nil {
			t.Fatal(err)
		}
		if err := client.Close(4000, ""); !errors.Is(err, realtime.ErrClientClosed) {
			t.Errorf("second Close: %v, want ErrClientClosed", err)
		}
		if err := client.Send([]byte("too late")); !errors.Is(err, realtime.ErrClientClosed) {
			t.Errorf("Send after Close: %v, want ErrClientClosed", err)
		}
		if hub.ClientCount() != 0 {
			t.Errorf("ClientCount() = %d after Close, want 0", hub.ClientCount())
		}
		if _, payload, _ := c.readFrame(); string(payload) != "last words" {
			t.Errorf("got %q before the close frame", payload)
		}
		c.expectClose(4000)
		c.send(frame(0x81, []byte("discarded")))
		start := time.Now()
		c.expectEnd() // without an answer to the close frame
		if d := time.Since(start); !within(d, 5*time.Second) {
			t.Errorf("cut off %v after the close frame, want 5 s and at most one more", d)
		}
		synctest.Wait()
		if len(got) != 0 {
			t.Errorf("OnMessage got %q after Close", got)
		}
	})
}

// The 5 s of a client that is being closed are not prolonged by its own close
// frame.
func TestCloseTimeoutIsNotProlonged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		c := s.raw() // never reads
		client.Send([]byte("stuck"))
		client.Close(4000, "")
		time.Sleep(4 * time.Second)
		c.send(frame(0x88, nil))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if l.n != 1 || !within(l.at, 5*time.Second) {
			t.Errorf("OnDisconnect: %d times, after %v; want once, after 5 s", l.n, l.at)
		}
	})
}

func TestClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		for range 20 {
			go closeStatus(s.connect())
		}
		seen := make(map[string]bool)
		for c := range hub.Clients() {
			seen[c.ID()] = true
			c.Close(1000, "") // calling back is fine
			if len(seen) == 10 {
				break
			}
		}
		synctest.Wait()
		n := 0
		for c := range hub.Clients() {
			n++
			if seen[c.ID()] {
				t.Error("a client that was closed is still listed")
			}
		}
		if len(seen) != 10 || n != 10 {
			t.Errorf("saw %d, then %d clients, want 10 and 10", len(seen), n)
		}
	})
}

// Clients lists who counts: nobody who is in OnConnect still, or leaving.
func TestClientsListsMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		list := func() (n int) {
			for range hub.Clients() {
				n++
			}
			return n
		}
		var client *realtime.Client
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			if n := list(); n != 0 {
				t.Errorf("%d clients are listed within OnConnect", n)
			}
			client = c
			return nil
		}
		s := newPipeSite(t, hub)
		s.raw()
		if n := list(); n != 1 {
			t.Errorf("%d clients are listed, want 1", n)
		}
		client.Close(1000, "")
		if n := list(); n != 0 {
			t.Errorf("%d clients are listed after Close, want none", n)
		}
	})
}

// Stats is exact, also for a hub without handlers.
func TestStatsWithoutHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x81, []byte("one")))
		c.send(frame(0x82, []byte("two")))
		c.send(frame(0x88, nil))
		c.readFrame()
		c.expectEnd()
		synctest.Wait()
		if got, want := hub.Stats(), (realtime.Stats{Received: 2}); got != want {
			t.Errorf("Stats() = %+v, want %+v", got, want)
		}
		if got := lines.String(); got != "" {
			t.Errorf("logged %q", got)
		}
	})
}

// badEvents can't be sent.
var badEvents = []realtime.Event{{Data: []byte("\xff")}, {Name: "a\nb"}, {Name: "a\rb"}, {ID: "1"}}

func TestPublishAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := hub.PublishAll(ctx, realtime.Event{Data: []byte("no")}); !errors.Is(err, context.Canceled) {
			t.Errorf("with a canceled ctx: %v, want context.Canceled", err)
		}
		for _, bad := range badEvents {
			if err := hub.PublishAll(t.Context(), bad); err == nil {
				t.Errorf("PublishAll(%+v) is no error", bad)
			}
		}
		for _, e := range []realtime.Event{
			{Data: []byte("text")},
			{Data: []byte{0xFF, 0}, Binary: true},
			{},
			{Data: []byte(strings.Repeat("x", 125))},
			{Data: []byte(strings.Repeat("x", 126))},
			{Data: []byte(strings.Repeat("x", 65535))},
			{Data: []byte(strings.Repeat("x", 65536))},
		} {
			if err := hub.PublishAll(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			first, payload, err := c.readFrame()
			want := byte(0x81)
			if e.Binary {
				want = 0x82
			}
			if err != nil || first != want || string(payload) != string(e.Data) {
				t.Errorf("got frame %#x of %d bytes, %v; want %#x of %d", first, len(payload), err, want, len(e.Data))
			}
		}
	})
}

// A client is told what it can't send, and stays.
func TestSendEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		c := s.raw()
		for _, bad := range badEvents {
			if err := client.SendEvent(bad); err == nil || errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("SendEvent(%+v): %v, want an error about it", bad, err)
			}
		}
		if err := client.Send([]byte("\xff")); err == nil {
			t.Error("Send takes text that is not UTF-8")
		}
		client.Send([]byte("ok"))
		if _, payload, err := c.readFrame(); string(payload) != "ok" {
			t.Errorf("got %q, %v; want ok", payload, err)
		}
	})
}

// Text that is not UTF-8 would make every browser drop its connection.
func TestBroadcastOfInvalidText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		s := newPipeSite(t, hub)
		c := s.raw()
		for range 3 {
			hub.Broadcast <- []byte("\xffbinary")
			if first, payload, err := c.readFrame(); first != 0x82 || string(payload) != "\xffbinary" {
				t.Errorf("got frame %#x %q, %v; want it as binary", first, payload, err)
			}
		}
		if got := hub.Stats().InvalidText; got != 3 {
			t.Errorf("InvalidText = %d, want 3", got)
		}
		time.Sleep(time.Second)
		hub.Broadcast <- []byte("\xff")
		c.readFrame()
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "not valid UTF-8") != 2 || !strings.Contains(got, "skipped=2") {
			t.Errorf("logged %q; want two lines, the second with skipped=2", got)
		}
	})
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

// A handler that blocks, or a Logger, holds back nobody else.
func TestBlockedHandlersHarmNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		gate := make(chan struct{})
		hub.Logger = textLogger(writerFunc(func(p []byte) (int, error) {
			<-gate
			return len(p), nil
		}))
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			if string(msg.Data) == "block" {
				<-gate
			}
			msg.Client.Send(msg.Data)
		}
		hub.OnDisconnect = func(*realtime.Client, error) { <-gate }
		s := newPipeSite(t, hub)
		stuck, gone, healthy := s.connect(), s.raw(), s.connect()
		write(t, stuck, "block")
		gone.conn.Close()
		for range 200 {
			hub.Broadcast <- []byte("\xff") // wants to log
		}
		for range 200 {
			read(t, healthy)
		}
		write(t, healthy, "echo")
		if got := read(t, healthy); got != "echo" {
			t.Errorf("got %q, want the echo", got)
		}
		if got := hub.ClientCount(); got != 2 {
			t.Errorf("ClientCount() = %d, want 2", got)
		}
		go closeStatus(stuck)
		go closeStatus(healthy)
		close(gate)
	})
}

func TestHandlerPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			if string(msg.Data) == "exit" {
				runtime.Goexit()
			}
			panic("oh no")
		}
		hub.OnDisconnect = func(*realtime.Client, error) { panic("again") }
		s := newPipeSite(t, hub)
		healthy := s.connect()
		c := s.connect()
		write(t, c, "hi")
		if status := closeStatus(c); status.Code != websocket.StatusInternalError {
			t.Errorf("closed with %v, want 1011", status)
		}
		c = s.connect()
		write(t, c, "exit")
		closeStatus(c)
		synctest.Wait()
		if got := hub.ClientCount(); got != 1 {
			t.Errorf("ClientCount() = %d, want 1", got)
		}
		hub.Broadcast <- []byte("still here")
		if got := read(t, healthy); got != "still here" {
			t.Errorf("got %q", got)
		}
		if got := lines.String(); !strings.Contains(got, "OnMessage panicked") || !strings.Contains(got, "oh no") || !strings.Contains(got, "hub_test.go") {
			t.Errorf("logged %q; want the panic with its stack", got)
		}
		if got := hub.Stats().Panics; got != 3 {
			t.Errorf("Panics = %d, want 3", got)
		}
		go closeStatus(healthy)
	})
}
