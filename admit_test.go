package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A request that doesn't become a client has the same cause, the same figures
// and an equivalent answer on both transports.
func TestAdmissionIsOne(t *testing.T) {
	flood := func(c *realtime.Client) error {
		for {
			if err := c.Send([]byte("x")); err != nil {
				return err
			}
		}
	}
	published := func(hub *realtime.Hub) {
		for range 65 * 64 {
			hub.PublishAll(context.Background(), realtime.Event{Data: []byte("x")})
		}
		time.Sleep(time.Millisecond) // for the shards to hand the events on
	}
	for name, tt := range map[string]struct {
		onConnect func(hub *realtime.Hub, c *realtime.Client) error
		later     bool  // the answer asks the client to retry later
		status    int   // the answer's, if later is false
		cause     error // the error that OnDisconnect gets; nil: it isn't called
	}{
		"refused":                   {func(*realtime.Hub, *realtime.Client) error { return realtime.Refuse(404, "no such room") }, false, 404, nil},
		"refused by an error":       {func(*realtime.Hub, *realtime.Client) error { return errors.New("database is away") }, false, 403, nil},
		"panic":                     {func(*realtime.Hub, *realtime.Client) error { panic("oops") }, false, 500, nil},
		"broker away":               {func(*realtime.Hub, *realtime.Client) error { return realtime.ErrBrokerUnavailable }, true, 0, nil},
		"flooded by sends":          {func(_ *realtime.Hub, c *realtime.Client) error { flood(c); return nil }, true, 0, realtime.ErrSlowClient},
		"flooded, and says so":      {func(_ *realtime.Hub, c *realtime.Client) error { flood(c); return c.Send(nil) }, true, 0, nil},
		"flooded by what others do": {func(hub *realtime.Hub, _ *realtime.Client) error { published(hub); return nil }, true, 0, realtime.ErrSlowClient},
		"shutdown": {func(hub *realtime.Hub, _ *realtime.Client) error {
			go hub.Shutdown(context.Background())
			time.Sleep(time.Second)
			return nil
		}, true, 0, realtime.ErrHubClosed},
		"shutdown, and says so": {func(hub *realtime.Hub, c *realtime.Client) error {
			go hub.Shutdown(context.Background())
			time.Sleep(time.Second)
			return c.Subscribe("a")
		}, true, 0, nil},
	} {
		for transport, header := range map[string][]string{
			"WebSocket":    {"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="},
			"event stream": {"Accept: text/event-stream"},
		} {
			t.Run(name+" "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					hub.SendBuffer = 64
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return tt.onConnect(hub, c) }
					l := recordLeft(hub)
					s := newPipeSite(t, hub)
					answer := s.request("GET", "", header...)
					got := answer.resp.StatusCode
					switch {
					case !tt.later:
						if got != tt.status {
							t.Errorf("answered %d, want %d", got, tt.status)
						}
					case transport == "WebSocket":
						if got != 503 || answer.resp.Header.Get("Retry-After") == "" {
							t.Errorf("answered %d with %v, want 503 with Retry-After", got, answer.resp.Header)
						}
					default:
						if ev, err := answer.event(); got != 200 || err == nil || answer.retry == "" {
							t.Errorf("answered %d with %v, retry %q; want 200, a retry and the end", got, ev, answer.retry)
						}
					}
					synctest.Wait()
					if want := 1; (tt.cause == nil) != (l.n == 0) || tt.cause != nil && (l.n != want || !errors.Is(l.err, tt.cause)) {
						t.Errorf("OnDisconnect %d times, last with %v; want %v", l.n, l.err, tt.cause)
					}
					if st := hub.Stats(); st.Refused != 1 || st.Clients != 0 || st.Queued != 0 || realtime.Joined(hub) != 0 {
						t.Errorf("Stats() = %+v with %d slots, want one refused and nothing left", st, realtime.Joined(hub))
					}
				})
			})
		}
	}
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
			// OnConnect may block and call the hub. Events of that time are not
			// lost.
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

// Events that wait while OnConnect runs don't make the client slow.
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

// A client that is flooded while OnConnect runs is refused, because it has lost
// messages.
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

// However many come at once, the hub never has more clients than MaxClients. Those
// in OnConnect count. A place is free again when a client is gone.
func TestMaxClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, come = 50, 400
		var lines safeBuffer
		hub := realtime.NewHub()
		hub.Logger = textLogger(&lines)
		hub.MaxClients = most
		var now, peak atomic.Int64
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			if n := now.Add(1); n > most {
				peak.Store(n)
			}
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			return nil
		}
		hub.OnDisconnect = func(*realtime.Client, error) { now.Add(-1) }
		s := newPipeSite(t, hub)
		var admitted, refused atomic.Int64
		asSocket := func() {
			conn, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
			if err == nil {
				admitted.Add(1)
				closeStatus(conn)
				return
			}
			refused.Add(1)
			if resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
				t.Errorf("answered %+v, %v; want 503 with Retry-After", resp, err)
			}
		}
		asStream := func() {
			joined := time.Now()
			l := s.listen("")
			if _, err := l.event(); err != io.EOF || l.retry == "" {
				t.Errorf("the stream ended with %v, retry %q", err, l.retry)
			}
			if l.cut(); time.Since(joined) < time.Second {
				refused.Add(1)
			} else {
				admitted.Add(1)
			}
		}
		var wg sync.WaitGroup
		stampede := func() {
			for range come / 2 {
				wg.Go(asSocket)
				wg.Go(asStream)
			}
			time.Sleep(time.Minute)
			if n := hub.ClientCount(); n != most || peak.Load() > 0 {
				t.Errorf("%d clients, once %d; want %d", n, peak.Load(), most)
			}
		}
		stampede()
		left := 0
		for c := range hub.Clients() {
			if left++; left > 7 {
				break
			}
			c.Close(4000, "")
		}
		stampede()
		if n := hub.Stats().Refused; n != 2*come-most-7 {
			t.Errorf("Stats().Refused = %d, want %d", n, 2*come-most-7)
		}
		if n := strings.Count(lines.String(), "the hub has Hub.MaxClients clients"); n != 2 {
			t.Errorf("%d lines, want one for each stampede: %s", n, lines.String())
		}
		hub.Shutdown(t.Context())
		wg.Wait()
		if admitted.Load() != most+7 || refused.Load() != hub.Stats().Refused {
			t.Errorf("%d clients were admitted, %d refused", admitted.Load(), refused.Load())
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

// A status that can't be an answer becomes 403. An answer without a body has no
// headers of a body.
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
		if got := rec.Header().Get("Cache-Control"); got != "private, no-store, no-cache" {
			t.Errorf("Refuse(%d) answers with Cache-Control %q: another client could get the answer", status, got)
		}
		hub.Shutdown(t.Context())
	}
}

// Close within OnConnect takes effect after the handshake and the sent
// messages.
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

// The hub reads its handlers when a client joins.
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

// OnDisconnect is called once for each OnConnect that returned nil, also where
// OnSubscribe then refuses the client for its URL's topics.
func TestOnDisconnectAfterOnSubscribeRefuses(t *testing.T) {
	var many strings.Builder
	for i := range 101 {
		fmt.Fprint(&many, "&topic=", i)
	}
	fails := errors.New("the database is down")
	for name, test := range map[string]struct {
		query       string
		protocols   []string
		onSubscribe func(c *realtime.Client, topic string) error
	}{
		"refused":             {"?topic=a", nil, func(*realtime.Client, string) error { return realtime.Refuse(403, "not yours") }},
		"error":               {"?topic=a", nil, func(*realtime.Client, string) error { return fails }},
		"panics":              {"?topic=a", nil, func(*realtime.Client, string) error { panic("a fault") }},
		"panics, realtime.v1": {"?topic=a", []string{realtime.Subprotocol}, func(*realtime.Client, string) error { panic("a fault") }},
		"closes":              {"?topic=a", nil, func(c *realtime.Client, _ string) error { return c.Close(4000, "bye") }},
		"closes, and joins":   {"?topic=a", nil, func(c *realtime.Client, _ string) error { c.Close(4000, "bye"); return c.Subscribe("b") }},
		"too many":            {"?" + many.String()[1:], []string{realtime.Subprotocol}, func(*realtime.Client, string) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.Logger = quiet
			var connected, disconnected atomic.Int64
			hub.OnConnect = func(*realtime.Client, *http.Request) error {
				connected.Add(1)
				return nil
			}
			hub.OnDisconnect = func(*realtime.Client, error) { disconnected.Add(1) }
			hub.OnSubscribe = test.onSubscribe
			s := newTCPSite(t, hub)
			conn, _, err := websocket.Dial(t.Context(), s.url+test.query, &websocket.DialOptions{Subprotocols: test.protocols})
			if err == nil {
				conn.Read(t.Context())
				conn.CloseNow()
			}
			hub.Shutdown(t.Context()) // nothing of the hub is running behind it
			if connected.Load() != 1 || disconnected.Load() != 1 {
				t.Errorf("OnConnect returned nil %d times, and OnDisconnect was called %d times; want 1 and 1", connected.Load(), disconnected.Load())
			}
			left := hub.Stats().Left
			if n := hub.Stats().Refused + left.Disconnected; n != 1 {
				t.Errorf("%d clients were refused or have left, want 1", n)
			}
		})
	}
}

// A client that is closed while OnConnect runs hears why, although OnConnect fails
// then because the client is gone.
func TestClosedDuringOnConnect(t *testing.T) {
	for name, test := range map[string]struct {
		code  websocket.StatusCode
		close func(hub *realtime.Hub, c *realtime.Client)
	}{
		"Close":    {4001, func(_ *realtime.Hub, c *realtime.Client) { c.Close(4001, "enough") }},
		"ExpireAt": {3000, func(_ *realtime.Hub, c *realtime.Client) { c.ExpireAt(time.Now()) }},
		"Disconnect": {1012, func(hub *realtime.Hub, _ *realtime.Client) {
			hub.Disconnect(context.Background(), "user", 1012, "changed")
		}},
	} {
		for _, protocols := range [][]string{nil, {realtime.Subprotocol}} {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprint(name, protocols, stream), func(t *testing.T) {
					hub := realtime.NewHub()
					disconnected := make(chan error, 1)
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
						if err := c.Subscribe("user"); err != nil {
							return err
						}
						go test.close(hub, c)
						<-c.Context().Done() // a slow database
						return fmt.Errorf("board: %w", c.Subscribe("board"))
					}
					hub.OnDisconnect = func(_ *realtime.Client, err error) { disconnected <- err }
					s := newTCPSite(t, hub)
					object := fmt.Sprintf(`{"close":{"code":%d,`, test.code)
					switch {
					case stream && protocols == nil:
						l := s.listen("")
						if ev, err := l.event(); err != io.EOF {
							t.Errorf("got %v, %v, want the end", ev, err)
						}
						l.cut()
					case stream:
						l := s.listen("protocol=realtime.v1")
						for {
							ev, err := l.event()
							if err != nil {
								t.Fatalf("ended by %v before %s", err, object)
							}
							if strings.HasPrefix(ev.data, object) {
								break
							}
						}
						l.cut()
					default:
						conn := s.connectAs("", protocols...)
						said := ""
						for {
							_, data, err := conn.Read(t.Context())
							if err != nil {
								if got := websocket.CloseStatus(err); got != test.code {
									t.Errorf("closed with %v, want %d", err, test.code)
								}
								break
							}
							said = string(data)
						}
						if protocols != nil && !strings.HasPrefix(said, object) {
							t.Errorf("told %s, want %s", said, object)
						}
					}
					hub.Shutdown(t.Context())
					select {
					case err := <-disconnected:
						t.Errorf("OnDisconnect was called with %v, though OnConnect failed", err)
					default:
					}
					if st := hub.Stats(); st.Refused != 0 || st.Left.Disconnected+st.Left.Expired != 1 {
						t.Errorf("counted as %+v, %d refused; want one that has left", st.Left, st.Refused)
					}
				})
			}
		}
	}
}
