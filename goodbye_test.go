package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A told is all that a client of realtime.v1 has got.
type told struct {
	objects []string
	status  websocket.CloseError // of a WebSocket
	retry   string               // of an event stream
}

// listeners are the ways to be a client of realtime.v1. Each reads to the end.
var listeners = map[string]func(s *site, header ...string) (got told){
	"WebSocket": func(s *site, header ...string) (got told) {
		conn := s.connectAs("", realtime.Subprotocol)
		for {
			_, data, err := conn.Read(context.Background())
			if err != nil {
				got.status, _ = errors.AsType[websocket.CloseError](err)
				return got
			}
			got.objects = append(got.objects, string(data))
		}
	},
	"event stream": func(s *site, header ...string) (got told) {
		l := s.listen("protocol="+realtime.Subprotocol, header...)
		for {
			ev, err := l.event()
			if err != nil {
				got.retry = l.retry
				return got
			}
			if ev.id != "" || ev.name != "" {
				s.t.Errorf("got an event %q with the id %q", ev.name, ev.id)
			}
			got.objects = append(got.objects, ev.data)
		}
	},
}

var retryField = regexp.MustCompile(`,"retry":(\d+)`)

// A refusal reaches a page over its own transport, as a page sees no HTTP status.
func TestRefusalReachesPages(t *testing.T) {
	for name, tt := range map[string]struct {
		refuse error
		code   int
		reason string
		object string // without retry
		retry  int    // the least, in milliseconds; zero: none
	}{
		"401":          {realtime.Refuse(401, "sign in first"), 4401, "sign in first", `{"close":{"code":4401,"reason":"sign in first","final":true}}`, 0},
		"wrapped":      {fmt.Errorf("secret: %w", realtime.Refuse(410, "")), 4410, "", `{"close":{"code":4410,"final":true}}`, 0},
		"204":          {realtime.Refuse(204, "stay away"), 4204, "stay away", `{"close":{"code":4204,"reason":"stay away","final":true}}`, 0},
		"plain error":  {errors.New("secret"), 4403, "Forbidden", `{"close":{"code":4403,"reason":"Forbidden","final":true}}`, 0},
		"panic":        {nil, 4500, "Internal Server Error", `{"close":{"code":4500,"reason":"Internal Server Error"}}`, 0},
		"408":          {realtime.Refuse(408, ""), 4408, "", `{"close":{"code":4408}}`, 0},
		"429":          {realtime.Refuse(429, ""), 4429, "", `{"close":{"code":4429}}`, 5000},
		"429 for long": {realtime.RefuseFor(time.Minute, 429, "slowly"), 4429, "slowly", `{"close":{"code":4429,"reason":"slowly"}}`, 60_000},
		"for ever":     {realtime.RefuseFor(1<<62, 503, ""), 4503, "", `{"close":{"code":4503}}`, 1<<31 - 1 - 60_000},
		"503":          {realtime.Refuse(503, ""), 4503, "", `{"close":{"code":4503}}`, 5000},
		"502":          {realtime.Refuse(502, ""), 4502, "", `{"close":{"code":4502}}`, 0},
		"broker away":  {realtime.ErrBrokerUnavailable, 4503, "try again later", `{"close":{"code":4503,"reason":"try again later"}}`, 1000},
		"a reason that is too long": {realtime.Refuse(403, strings.Repeat("é", 100)), 4403, strings.Repeat("é", 61),
			`{"close":{"code":4403,"reason":"` + strings.Repeat("é", 61) + `","final":true}}`, 0},
		"a reason that isn't UTF-8": {realtime.Refuse(403, "a\xff\xfe\"\n\ndata: b"), 4403, "a\uFFFD\"\n\ndata: b",
			`{"close":{"code":4403,"reason":"a` + "\uFFFD" + `\"\n\ndata: b","final":true}}`, 0},
	} {
		for transport, listen := range listeners {
			t.Run(name+", "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					l := recordLeft(hub)
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
						c.Subscribe("news")
						c.Send([]byte("never sent"))
						if tt.refuse == nil {
							panic("oops")
						}
						return tt.refuse
					}
					got := listen(newPipeSite(t, hub))
					if len(got.objects) != 1 {
						t.Fatalf("got the objects %q, want one", got.objects)
					}
					var retry int
					if m := retryField.FindStringSubmatch(got.objects[0]); m != nil {
						fmt.Sscan(m[1], &retry)
					}
					if object := retryField.ReplaceAllString(got.objects[0], ""); object != tt.object {
						t.Errorf("got %s, want %s", object, tt.object)
					}
					if retry < tt.retry || retry > tt.retry+4000 || tt.retry == 0 && retry > 0 {
						t.Errorf("got a retry of %d ms, want %d and up to 4 s more", retry, tt.retry)
					}
					if transport == "WebSocket" {
						if int(got.status.Code) != tt.code || got.status.Reason != tt.reason {
							t.Errorf("closed with %d %q, want %d %q", got.status.Code, got.status.Reason, tt.code, tt.reason)
						}
					} else if retry > 0 && got.retry != fmt.Sprint(retry) {
						t.Errorf("the stream's retry is %q, want %d", got.retry, retry)
					}
					synctest.Wait()
					if st := hub.Stats(); st.Refused != 1 || st.Clients != 0 || st.Queued != 0 || realtime.Joined(hub) != 0 {
						t.Errorf("Stats() = %+v with %d slots, want one refused and nothing left", st, realtime.Joined(hub))
					}
					if l.n != 0 {
						t.Error("OnDisconnect was called for a client that OnConnect refused")
					}
				})
			})
		}
	}
}

// A page whose origin is refused learns no more than any other client.
func TestRefusedOriginIsToldNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.CheckOrigin = realtime.SameOrigin
		hub.OnConnect = func(*realtime.Client, *http.Request) error { t.Error("OnConnect was asked"); return nil }
		s := newPipeSite(t, hub)
		for _, header := range [][]string{
			{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol: realtime.v1"},
			{"Accept: text/event-stream", "Connection: close"},
		} {
			l := s.request("GET", "protocol=realtime.v1", append(header, "Origin: https://evil.example")...)
			if body, _ := io.ReadAll(l.resp.Body); l.resp.StatusCode != 403 || string(body) != "origin not allowed\n" {
				t.Errorf("answered %s %q, want 403", l.resp.Status, body)
			}
		}
	})
}

// RefuseFor tells plain clients when to come back, and how isn't changed by
// realtime.v1.
func TestRefuseFor(t *testing.T) {
	for wait, want := range map[time.Duration]string{time.Minute: "60", 1500 * time.Millisecond: "2", 0: "", -1: "", math.MaxInt64: "9223372037"} {
		hub := realtime.NewHub()
		hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.RefuseFor(wait, 429, "slowly") }
		for name, serve := range map[string]func(http.ResponseWriter){
			"WebSocket":    func(w http.ResponseWriter) { realtime.Upgrade(w, handshakeRequest(t), hub) },
			"event stream": func(w http.ResponseWriter) { hub.ServeSSE(w, httptest.NewRequest("GET", "/", nil)) },
		} {
			rec := httptest.NewRecorder()
			serve(hijackable{ResponseRecorder: rec})
			if got := rec.Header().Get("Retry-After"); rec.Code != 429 || rec.Body.String() != "slowly\n" || got != want {
				t.Errorf("%s, %v: answered %d %q with Retry-After %q, want %q", name, wait, rec.Code, rec.Body, got, want)
			}
		}
		hub.Shutdown(t.Context())
	}
}

// A WebSocket that is refused and stays is cut off like any that is closed. It
// takes a slot until then, but is no client, and Shutdown waits for it.
func TestRefusedWebSocketStays(t *testing.T) {
	hub := realtime.NewHub()
	hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.Refuse(401, "") }
	s := newTCPSite(t, hub)
	start := time.Now()
	join := func() *rawClient {
		c := &rawClient{t: t, conn: s.connection()}
		c.send([]byte(strings.Replace(handshake, "\r\n", "\r\nSec-WebSocket-Protocol: realtime.v1\r\n", 1)))
		c.readHandshake()
		return c
	}
	c := join()
	c.expectClose(4401)
	c.expectEOF() // this side has said all
	if hub.ClientCount() != 0 {
		t.Errorf("ClientCount() = %d, want 0", hub.ClientCount())
	}
	for realtime.Joined(hub) > 0 { // within go test's time
		c.send(frame(0x81, []byte("I stay")))
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(start); d < 4*time.Second {
		t.Errorf("cut off after %v, want 5 s", d)
	}

	join()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := hub.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown while a refused client stays: %v, want its context's error", err)
	}
	if err := hub.Shutdown(context.Background()); err != nil || realtime.Joined(hub) != 0 {
		t.Errorf("Shutdown: %v with %d slots left", err, realtime.Joined(hub))
	}
}

// Client.Close reaches a page with code and reason, and whether it is final.
func TestCloseReachesPages(t *testing.T) {
	for _, tt := range []struct {
		close  func(hub *realtime.Hub, c *realtime.Client)
		object string // without retry
		retry  int
	}{
		{func(_ *realtime.Hub, c *realtime.Client) { c.Close(4000, "moved") }, `{"close":{"code":4000,"reason":"moved"}}`, 0},
		{func(_ *realtime.Hub, c *realtime.Client) { c.Close(4403, "banned") }, `{"close":{"code":4403,"reason":"banned","final":true}}`, 0},
		{func(_ *realtime.Hub, c *realtime.Client) { c.Close(1000, "") }, `{"close":{"code":1000,"final":true}}`, 0},
		{func(_ *realtime.Hub, c *realtime.Client) { c.Close(3000, "credentials have expired") }, `{"close":{"code":3000,"reason":"credentials have expired"}}`, 0},
		{func(_ *realtime.Hub, c *realtime.Client) { c.Close(1008, strings.Repeat("\x01", 200)) },
			`{"close":{"code":1008,"reason":"` + strings.Repeat(`\u0001`, 123) + `","final":true}}`, 0},
		{func(hub *realtime.Hub, _ *realtime.Client) { go hub.Shutdown(context.Background()) }, `{"close":{"code":1001,"reason":"server is shutting down"}}`, 1000},
	} {
		for transport, listen := range listeners {
			for _, when := range []string{"connected", "in OnConnect"} {
				if when == "in OnConnect" && tt.retry > 0 {
					continue // a hub that shuts down refuses
				}
				t.Run(tt.object+transport+when, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						hub := realtime.NewHub()
						hub.Compression = true
						hub.PingInterval = -1
						l := recordLeft(hub)
						var id string
						hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
							id = c.ID()
							c.Send([]byte("hello"))
							if when == "connected" {
								time.AfterFunc(time.Second, func() { tt.close(hub, c) })
							} else {
								tt.close(hub, c)
							}
							return nil
						}
						got := listen(newPipeSite(t, hub))
						if len(got.objects) != 3 || got.objects[0] != `{"client":"`+id+`"}` || got.objects[1] != `{"data":"hello"}` {
							t.Fatalf("got the objects %q, want the id, hello and the end", got.objects)
						}
						last := got.objects[2]
						if object := retryField.ReplaceAllString(last, ""); object != tt.object || (object != last) != (tt.retry > 0) {
							t.Errorf("got %s, want %s", last, tt.object)
						}
						if transport == "WebSocket" && !strings.Contains(last, fmt.Sprintf(`"code":%d`, got.status.Code)) {
							t.Errorf("closed with %d, and %s", got.status.Code, last)
						}
						synctest.Wait()
						if l.n != 1 || hub.Stats().Delivered != 1 {
							t.Errorf("OnDisconnect %d times, %d delivered; want both once", l.n, hub.Stats().Delivered)
						}
					})
				})
			}
		}
	}
}

// A page doesn't see why a plain client is closed, and a plain client no object.
func TestPlainClientsGetNoObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			time.AfterFunc(time.Second, func() { c.Close(4403, "banned") })
			return nil
		}
		s := newPipeSite(t, hub)
		if ev, err := s.listen("").event(); err == nil {
			t.Errorf("a plain event stream got %v", ev)
		}
		c := s.connect()
		if _, data, err := c.Read(t.Context()); websocket.CloseStatus(err) != 4403 {
			t.Errorf("a plain WebSocket got %q, %v", data, err)
		}
	})
}

// A page that comes while the hub shuts down, or that is flooded while OnConnect
// runs, is asked to come back. Shutdown waits until it is told.
func TestNotNowReachesPages(t *testing.T) {
	for name, tt := range map[string]struct {
		onConnect func(hub *realtime.Hub, c *realtime.Client)
		reason    string
		cause     error
	}{
		"shutdown": {func(hub *realtime.Hub, _ *realtime.Client) {
			go hub.Shutdown(context.Background())
			time.Sleep(time.Second)
		}, "shutting down", realtime.ErrHubClosed},
		"flood": {func(_ *realtime.Hub, c *realtime.Client) {
			for c.Send([]byte("x")) == nil {
			}
		}, "too many messages while connecting", realtime.ErrSlowClient},
	} {
		for transport, listen := range listeners {
			t.Run(name+", "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					l := recordLeft(hub)
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { tt.onConnect(hub, c); return nil }
					s := newPipeSite(t, hub)
					if transport == "WebSocket" && name == "flood" { // it is cut off at once
						_, resp, _ := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient(), Subprotocols: []string{realtime.Subprotocol}})
						if resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
							t.Errorf("answered %v, want 503 with Retry-After", resp)
						}
						return
					}
					got := listen(s)
					want := `{"close":{"code":4503,"reason":"` + tt.reason + `"}}`
					if len(got.objects) != 1 || !retryField.MatchString(got.objects[0]) || retryField.ReplaceAllString(got.objects[0], "") != want {
						t.Errorf("got the objects %q, want %s with retry", got.objects, want)
					}
					synctest.Wait()
					if l.n != 1 || !errors.Is(l.err, tt.cause) || realtime.Joined(hub) != 0 {
						t.Errorf("OnDisconnect %d times, last with %v, and %d slots left; want once with %v", l.n, l.err, realtime.Joined(hub), tt.cause)
					}
				})
			})
		}
	}
}

// What is final has no next attempt, whatever RefuseFor says.
func TestFinalRefusalHasNoRetry(t *testing.T) {
	hub := realtime.NewHub()
	hub.OnConnect = func(*realtime.Client, *http.Request) error {
		return realtime.RefuseFor(time.Minute, http.StatusUnauthorized, "later")
	}
	s := newTCPSite(t, hub)
	conn := s.connectAs("", realtime.Subprotocol)
	if got, want := read(t, conn), `{"close":{"code":4401,"reason":"later","final":true}}`; got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}
