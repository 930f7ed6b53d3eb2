package realtime_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// The limit is exact: one message more than SendBuffer makes a client slow.
func TestMutantSendBufferIsExact(t *testing.T) {
	for _, tt := range []struct {
		waiting int
		slow    bool
	}{{256, false}, {257, true}} {
		t.Run(strconv.Itoa(tt.waiting), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				s.raw() // never reads
				for range tt.waiting {
					hub.Broadcast <- []byte("x")
				}
				synctest.Wait()
				if got := hub.Stats().Queued; got != int64(tt.waiting) {
					t.Errorf("Queued = %d, want %d", got, tt.waiting)
				}
				time.Sleep(9 * time.Second)
				synctest.Wait()
				if slow := errors.Is(l.err, realtime.ErrSlowClient); slow != tt.slow {
					t.Errorf("OnDisconnect got %v, want ErrSlowClient: %v", l.err, tt.slow)
				}
			})
		})
	}
}

// Settings for which less than zero means the default have it then, too.
func TestMutantNegativeSettings(t *testing.T) {
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

// Nobody reads the error of "go hub.Run()".
func TestMutantRunLogsItsError(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	var lines safeBuffer
	slog.SetDefault(textLogger(&lines))
	new(realtime.Hub).Run()
	if got := lines.String(); !strings.Contains(got, "realtime.NewHub") {
		t.Errorf("logged %q, want a line that names realtime.NewHub", got)
	}
}

// What was sent to Broadcast before Shutdown began is published, also where
// the hub had not looked at it yet.
func TestMutantShutdownPublishesWhatBroadcastHolds(t *testing.T) {
	for range 30 { // the loop may find either first
		hub := realtime.NewHub()
		for range 100 {
			hub.Broadcast <- []byte("x")
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := hub.Stats(); st.Published != 100 || st.Dropped != 0 {
			t.Fatalf("Published = %d, Dropped = %d, want 100 and 0", st.Published, st.Dropped)
		}
	}
}

// Shutdown may begin while CheckOrigin looks at a newcomer.
func TestMutantShutdownDuringCheckOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.CheckOrigin = func(*http.Request) bool {
			go hub.Shutdown(context.Background())
			<-hub.Done()
			return true
		}
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			t.Error("OnConnect was called")
			return nil
		}
		s := newPipeSite(t, hub)
		_, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		if err == nil || resp.StatusCode != 503 {
			t.Errorf("a newcomer got %v, %+v; want 503", err, resp)
		}
	})
}

// A newcomer whose OnConnect returns right after Shutdown has begun gets no
// handshake any more, and an OnDisconnect that says why. Retry-After spreads
// them over a few seconds.
func TestMutantShutdownAtTheEndOfOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			go hub.Shutdown(context.Background())
			<-hub.Done()
			return nil
		}
		s := newPipeSite(t, hub)
		_, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		if err == nil || resp.StatusCode != 503 {
			t.Fatalf("a newcomer got %v, %+v; want 503", err, resp)
		}
		if after, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || after < 1 || after > 5 {
			t.Errorf("Retry-After = %q, want 1 to 5", resp.Header.Get("Retry-After"))
		}
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, realtime.ErrHubClosed) {
			t.Errorf("OnDisconnect: %d times, last with %v; want ErrHubClosed once", l.n, l.err)
		}
	})
}

// A client that is flooded while its OnConnect runs is refused, as what it
// missed would be missing.
func TestMutantFloodedDuringOnConnect(t *testing.T) {
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
		_, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		if err == nil || resp == nil || resp.StatusCode != 503 {
			t.Errorf("the client got %v, %+v; want 503", err, resp)
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

// running returns how many goroutines run a function of the package.
func running(function string) int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "pkg/realtime."+function+"(")
}

// One sweeper looks after all clients. It goes with the last of them, and
// comes again.
func TestMutantOneSweeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		for range 2 {
			var clients []*rawClient
			for range 5 {
				clients = append(clients, s.raw())
			}
			synctest.Wait()
			if n := running("(*Hub).sweep"); n != 1 {
				t.Errorf("%d sweepers for 5 clients, want 1", n)
			}
			start := time.Now()
			if first, _, err := clients[0].readFrame(); first != 0x89 || !within(time.Since(start), 54*time.Second) {
				t.Errorf("got frame %#x, %v after %v; want a ping after 54 s", first, err, time.Since(start))
			}
			for _, c := range clients {
				c.conn.Close()
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if n := running("(*Hub).sweep"); n != 0 {
				t.Errorf("%d sweepers for nobody", n)
			}
		}
	})
}

// When Shutdown returns, nothing of the hub is left running.
func TestMutantShutdownLeavesNothing(t *testing.T) {
	for range 20 {
		hub := realtime.NewHub()
		hub.Logger = quiet
		s := newTCPSite(t, hub)
		go closeStatus(s.connect())
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"(*shard).loop", "(*Hub).sweep", "(*parker).loop", "(*Client).serve", "(*Client).drain"} {
			if n := running(f); n != 0 {
				t.Fatalf("%d %s are running", n, f)
			}
		}
	}
}

// Clients lists who counts: nobody who is in OnConnect still, or leaving.
func TestMutantClientsListsMembers(t *testing.T) {
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
func TestMutantStatsWithoutHandlers(t *testing.T) {
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

// Handlers are read when a client joins.
func TestMutantHandlersAreReadAtJoining(t *testing.T) {
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

// A hijackable is a ResponseWriter that gives conn away.
type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (w hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}

// handshakeRequest returns a request that is a handshake.
func handshakeRequest(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(handshake)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An answer that has no body gets none, nor headers of one.
func TestMutantRefuseWithoutBody(t *testing.T) {
	for _, status := range []int{http.StatusNoContent, http.StatusNotModified} {
		hub := realtime.NewHub()
		hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.Refuse(status, "text") }
		rec := httptest.NewRecorder()
		realtime.Upgrade(hijackable{ResponseRecorder: rec}, handshakeRequest(t), hub)
		if rec.Code != status || rec.Body.Len() != 0 || rec.Header().Get("Content-Type") != "" {
			t.Errorf("answered %d %q, %v; want %d alone", rec.Code, rec.Body, rec.Header(), status)
		}
		hub.Shutdown(t.Context())
	}
}

// An answer with Upgrade says so in Connection (RFC 9110 §7.8).
func TestMutantUpgradeRequired(t *testing.T) {
	hub := realtime.NewHub()
	defer hub.Shutdown(t.Context())
	rec := httptest.NewRecorder()
	realtime.Upgrade(rec, httptest.NewRequest("GET", "/ws", nil), hub)
	if c, u := rec.Header().Get("Connection"), rec.Header().Get("Upgrade"); rec.Code != 426 || c != "Upgrade" || u != "websocket" {
		t.Errorf("answered %d with Connection: %q and Upgrade: %q; want 426, Upgrade and websocket", rec.Code, c, u)
	}
}

// The log names who is in the way, and the client whose handler panics.
func TestMutantLogNamesTheCulprit(t *testing.T) {
	type opaque struct{ http.ResponseWriter }
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	realtime.Upgrade(opaque{httptest.NewRecorder()}, handshakeRequest(t), hub)
	var id string
	hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
		id = c.ID()
		panic("oh no")
	}
	realtime.Upgrade(hijackable{ResponseRecorder: httptest.NewRecorder()}, handshakeRequest(t), hub)
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := lines.String(); !strings.Contains(got, "realtime_test.opaque") || !strings.Contains(got, "client="+id) {
		t.Errorf("logged %q; want realtime_test.opaque and client=%s", got, id)
	}
}

// A refused origin is logged as far as it matters.
func TestMutantOriginInTheLog(t *testing.T) {
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.CheckOrigin = func(*http.Request) bool { return false }
	r := handshakeRequest(t)
	r.Header.Set("Origin", "https://"+strings.Repeat("x", 300))
	realtime.Upgrade(httptest.NewRecorder(), r, hub)
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := lines.String(), "https://"+strings.Repeat("x", 256-len("https://"))+"…"; !strings.Contains(got, want) {
		t.Errorf("logged %q, want the origin's first 256 bytes", got)
	}
}

// A CheckOrigin that panics refuses the client.
func TestMutantCheckOriginPanics(t *testing.T) {
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.CheckOrigin = func(*http.Request) bool { panic("oh no") }
	rec := httptest.NewRecorder()
	if err := realtime.Upgrade(rec, handshakeRequest(t), hub); err == nil || rec.Code != 500 || strings.Contains(rec.Body.String(), "oh no") {
		t.Errorf("answered %d %q, %v; want 500 and an error", rec.Code, rec.Body, err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if st := hub.Stats(); st.Panics != 1 || st.Refused != 1 {
		t.Errorf("Stats() = %+v, want 1 panic, 1 refused", st)
	}
	if got := lines.String(); !strings.Contains(got, "CheckOrigin panicked") || !strings.Contains(got, "mutants_test.go") {
		t.Errorf("logged %q; want the panic with its stack", got)
	}
}

// A client is told what it can't send, and stays.
func TestMutantSendEventChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		c := s.raw()
		for _, bad := range []realtime.Event{{Data: []byte("\xff")}, {Name: "a\nb"}, {Name: "a\rb"}, {ID: "1"}} {
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

// A slow client is logged by name.
func TestMutantSlowClientIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.SendBuffer, hub.SlowAfter = 1, -1
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		s.raw()
		synctest.Wait() // what is sent doesn't wait for the handshake any more
		client.Send([]byte("x"))
		client.Send([]byte("x"))
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "client="+client.ID()) {
			t.Errorf("logged %q, want a line with client=%s", got, client.ID())
		}
	})
}

// Who was closed by Close is not a slow client, however slowly it takes what
// waits.
func TestMutantClosedClientIsNotCountedSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		s.raw() // never reads
		for range 300 {
			client.Send([]byte("x"))
		}
		client.Close(4000, "")
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if websocket.CloseStatus(l.err) != 4000 || hub.Stats().SlowClients != 0 {
			t.Errorf("OnDisconnect got %v, SlowClients = %d; want 4000 and 0", l.err, hub.Stats().SlowClients)
		}
	})
}

// The 5 s of a client that is being closed are not prolonged by its own close
// frame.
func TestMutantCloseTimeoutIsNotProlonged(t *testing.T) {
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

// A client that does not take the handshake's answer is gone after
// WriteTimeout, and its connection closed.
func TestMutantHandshakeIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		conn, err := s.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
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

// Where the connection can't be taken over after all, OnDisconnect learns why.
func TestMutantTakeoverFails(t *testing.T) {
	hub := realtime.NewHub()
	hub.Logger = quiet
	l := recordLeft(hub)
	err := realtime.Upgrade(brokenHijacker{httptest.NewRecorder(), errBroken}, handshakeRequest(t), hub)
	if !errors.Is(err, errBroken) {
		t.Errorf("Upgrade: %v, want the error of Hijack", err)
	}
	if l.n != 1 || !errors.Is(l.err, errBroken) {
		t.Errorf("OnDisconnect: %d times, last with %v; want once, with the error of Hijack", l.n, l.err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A client that answers pings and says nothing else lives on, as one does
// that pings itself: a control frame is no message that has begun.
func TestMutantControlFramesAlone(t *testing.T) {
	for name, alive := range map[string]byte{"pong": 0x8A, "ping": 0x89} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				c := s.raw()
				c.send(frame(0x81, []byte("a message before")))
				go io.Copy(io.Discard, c.br)
				for range 3 {
					c.send(frame(alive, []byte("alive")))
					time.Sleep(110 * time.Second) // an unanswered ping falls into it
				}
				if l.n != 0 {
					t.Errorf("gone after %v: %v", l.at, l.err)
				}
			})
		})
	}
}

// A ping is answered at once where nothing else is to be sent.
func TestMutantPongAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPipeSite(t, realtime.NewHub())
		c := s.raw()
		start := time.Now()
		c.send(frame(0x89, []byte("hello")))
		if first, payload, err := c.readFrame(); first != 0x8A || string(payload) != "hello" || time.Since(start) != 0 {
			t.Errorf("got frame %#x %q, %v after %v; want the pong at once", first, payload, err, time.Since(start))
		}
	})
}

// A client that falls silent after a message is found out as any other.
func TestMutantSilenceAfterAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		hub.OnMessage = func(*realtime.Hub, realtime.Message) {}
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x81, []byte("hi")))
		io.Copy(io.Discard, c.br)
		synctest.Wait()
		if l.at < 114*time.Second || l.at > 116*time.Second || !strings.Contains(l.err.Error(), "ping") {
			t.Errorf("gone after %v with %v, want an unanswered ping, 54 s + 60 s and at most 2 s", l.at, l.err)
		}
	})
}

// WriteTimeout begins with what waits, not with what was written last.
func TestMutantWriteTimeoutBeginsWithTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.PingInterval = -1
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		for range 2 {
			time.Sleep(time.Minute)
			hub.Broadcast <- []byte("x")
			time.Sleep(9 * time.Second)
			if _, payload, err := c.readFrame(); string(payload) != "x" {
				t.Fatalf("got %q, %v (%v)", payload, err, l.err)
			}
		}
	})
}

// An OnDisconnect that ends its goroutine leaves nothing behind either; nor
// does it, or one that blocks, keep the connection open.
func TestMutantOnDisconnectAfterTheEnd(t *testing.T) {
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			gate := make(chan struct{})
			hub.OnDisconnect = func(*realtime.Client, error) {
				<-gate
				runtime.Goexit()
			}
			s := serve(t, hub)
			c := s.raw()
			c.conn.SetReadDeadline(time.Now().Add(4 * time.Second)) // less than the 5 s after which it is cut off
			c.send(frame(0x88, []byte{3, 0xE8}))
			c.expectClose(1000)
			c.expectEOF()
			close(gate)
			c.conn.Close()
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// expectEOF wants an orderly end with nothing more before it.
func (c *rawClient) expectEOF() {
	c.t.Helper()
	if b, err := c.br.ReadByte(); err != io.EOF {
		c.t.Errorf("read %#x, %v; want EOF", b, err)
	}
}

// What came in one packet with the handshake, and all that came, is handled
// at once.
func TestMutantOnlyMessageInThePacketOfTheHandshake(t *testing.T) {
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "pipe": newPipeSite} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
			s := serve(t, hub)
			conn, err := s.dial(t.Context(), "tcp", strings.TrimSuffix(strings.TrimPrefix(s.url, "ws://"), "/ws"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			go conn.Write(append([]byte(handshake), frame(0x81, []byte("early"))...))
			c := rawHandshaken(t, conn)
			if _, payload, err := c.readFrame(); string(payload) != "early" {
				t.Errorf("got %q, %v; want the echo", payload, err)
			}
		})
	}
}

// Once the client's context is done nothing can be sent to it, whichever way
// it left.
func TestMutantSendAfterTheEnd(t *testing.T) {
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

// A frame that has begun in the packet of the handshake is to end in its time.
func TestMutantTornFrameInThePacketOfTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPipeSite(t, realtime.NewHub())
		conn, err := s.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		go conn.Write(append([]byte(handshake), 0x81))
		c := rawHandshaken(t, conn)
		start := time.Now()
		c.expectClose(1008)
		if d := time.Since(start); !within(d, 60*time.Second) {
			t.Errorf("closed after %v, want 60 s and at most one more", d)
		}
		c.expectEnd()
	})
}

// A hijacker takes the connection over, counts, and hides or shows what it
// wraps.
type hijacker struct {
	http.ResponseWriter
	hijack func() (net.Conn, *bufio.ReadWriter, error)
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.hijack() }
func (h hijacker) Unwrap() http.ResponseWriter                  { return h.ResponseWriter }

// The outermost Hijack is called, as it knows what else is to be done; but
// only where the innermost ResponseWriter has one.
func TestMutantWhichHijackIsCalled(t *testing.T) {
	hub := realtime.NewHub()
	hub.Logger = quiet
	connects := 0
	hub.OnConnect = func(*realtime.Client, *http.Request) error { connects++; return nil }
	inner := func() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errors.New("the inner one") }
	outer := func() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errBroken }
	rec := httptest.NewRecorder()

	type hidden struct{ http.ResponseWriter }
	both := hijacker{hijackable{ResponseRecorder: rec}, outer}
	if err := realtime.Upgrade(both, handshakeRequest(t), hub); !errors.Is(err, errBroken) || connects != 1 {
		t.Errorf("two that hijack: %v, want the outer one's error", err)
	}
	none := hijacker{hidden{rec}, inner}
	err := realtime.Upgrade(none, handshakeRequest(t), hub)
	if err == nil || !strings.Contains(err.Error(), "realtime_test.hidden hides http.Hijacker") || connects != 1 {
		t.Errorf("one that hijacks nothing: %v after %d OnConnects, want an error that names realtime_test.hidden", err, connects)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// The answer to the handshake has the headers that middleware has set, but
// for those that speak of a body.
func TestMutantHeadersOfTheHandshake(t *testing.T) {
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

// Who is cut off while its handshake is answered costs Shutdown no
// WriteTimeout.
func TestMutantCutOffBeforeTheHandshake(t *testing.T) {
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

// A client that sends on, as it can't know yet that it was closed, is not
// reset: that could take the close frame from it (RFC 6455 §7.1.1).
func TestMutantInputAfterTheCloseIsDiscarded(t *testing.T) {
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.MaxMessageBytes = 1
			s := serve(t, hub)
			c := s.raw()
			c.conn.SetDeadline(time.Now().Add(4 * time.Second)) // less than it is waited for
			c.send(frame(0x82, make([]byte, 64<<10)))
			c.expectClose(1009)
			c.expectEOF()
			for range 64 {
				if err := c.send(make([]byte, 16<<10)); err != nil {
					t.Fatalf("write after the close: %v", err)
				}
			}
			c.conn.Close()
		})
	}
}

// What a client that has closed its side only is still owed arrives, and
// then the end: closing doesn't reset it.
func TestMutantHalfClosedClientGetsTheRest(t *testing.T) {
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
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for i := range 64 {
		if _, payload, err := c.readFrame(); err != nil || len(payload) != len(big) {
			t.Fatalf("message %d: %d bytes, %v", i, len(payload), err)
		}
	}
	c.expectEOF()
}

// A client that is cut off is so at once, though it reads nothing: its
// connection is reset, and on TLS nobody waits for a goodbye.
func TestMutantCutOffAtOnce(t *testing.T) {
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.SendBuffer, hub.SlowAfter = 4, -1
			var client *realtime.Client
			hub.OnConnect = keep(&client)
			s := serve(t, hub)
			c := s.raw()
			for client.SendEvent(realtime.Event{Data: make([]byte, 1<<20), Binary: true}) == nil {
			}
			start := time.Now()
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("Shutdown took %v after the client was cut off", d)
			}
			if _, err := io.Copy(io.Discard, c.br); err == nil {
				t.Error("the connection has ended in order, want a reset")
			}
		})
	}
}

// A client that is cut off while its handler blocks is told.
func TestMutantCutOffDuringTheHandler(t *testing.T) {
	hub := realtime.NewHub()
	gate, running := make(chan struct{}), make(chan *realtime.Client, 1)
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
		running <- msg.Client
		<-gate
	}
	s := newTCPSite(t, hub)
	c := s.raw()
	c.send(frame(0x81, nil))
	<-running
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	down := make(chan error, 1)
	go func() { down <- hub.Shutdown(ctx) }()
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, c.br); errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the client reads on: %v", err)
	}
	<-down
	close(gate)
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// A Logger that blocks holds up lines, but not without bound, nor is it called
// twice at once; the next line says how many there were.
func TestMutantBlockedLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		entered, gate := make(chan struct{}, 100), make(chan struct{})
		hub.Logger = textLogger(writerFunc(func(p []byte) (int, error) {
			entered <- struct{}{}
			<-gate
			return lines.Write(p)
		}))
		for range 70 { // the first is being written, 64 wait
			hub.Broadcast <- []byte("\xff")
			if hub.Stats().Published == 0 {
				go hub.Run()
			}
			time.Sleep(time.Second)
		}
		// A TextHandler has a lock of its own: its callers are counted.
		if n := running("(*logbook).write"); n != 1 || len(entered) != 1 {
			t.Errorf("%d goroutines write lines, want 1", n)
		}
		close(gate)
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "msg=\"realtime: data sent to Broadcast") != 65 || strings.Contains(got, "skipped") {
			t.Errorf("logged %d lines, want 65", strings.Count(got, "\n"))
		}
		for _, want := range []string{"skipped=5", "bytes=1\n"} {
			lines = safeBuffer{}
			hub.Broadcast <- []byte("\xff")
			time.Sleep(time.Second)
			if got := lines.String(); !strings.Contains(got, want) {
				t.Errorf("logged %q, want %q in it", got, want)
			}
		}
		hub.Shutdown(t.Context())
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A status that can't be an answer is 403.
func TestMutantRefuseWithABadStatus(t *testing.T) {
	for status, want := range map[int]int{0: 403, 199: 403, 200: 200, 599: 599, 600: 403} {
		hub := realtime.NewHub()
		hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.Refuse(status, "text") }
		rec := httptest.NewRecorder()
		realtime.Upgrade(hijackable{ResponseRecorder: rec}, handshakeRequest(t), hub)
		if rec.Code != want {
			t.Errorf("Refuse(%d) answers %d, want %d", status, rec.Code, want)
		}
		hub.Shutdown(t.Context())
	}
}

// What is sent to one client is compressed as what is published.
func TestMutantSendCompresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Compression = true
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		c, _ := rawDeflate(s, "permessage-deflate")
		synctest.Wait()
		for n, want := range map[int]byte{255: 0x81, 256: 0xC1} {
			text := strings.Repeat("x", n)
			client.Send([]byte(text))
			first, payload, err := c.readFrame()
			if err != nil {
				t.Fatal(err)
			}
			if want == 0xC1 {
				payload = []byte(inflate(t, payload))
			}
			if first != want || string(payload) != text {
				t.Errorf("%d bytes came as frame %#x of %d, want %#x", n, first, len(payload), want)
			}
		}
	})
}

// A message to one client costs no allocation where the kernel takes it.
func TestMutantSendAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	hub := realtime.NewHub()
	var client *realtime.Client
	hub.OnConnect = keep(&client)
	s := newTCPSite(t, hub)
	c := s.raw()
	data, buf := make([]byte, 100), make([]byte, 102)
	fewest := 1e9
	for range 5 { // a collection empties pools
		fewest = min(fewest, allocs(200, func() {
			client.Send(data)
			io.ReadFull(c.br, buf)
		}))
	}
	if fewest > 0.1 {
		t.Errorf("Send costs %.2f allocations, want none", fewest)
	}
	c.conn.Close()
}
