package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// Hub.Client finds a client by its id while ClientCount counts it.
func TestClientByID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var clients []*realtime.Client
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			if _, ok := hub.Client(c.ID()); ok {
				t.Error("found before it counts")
			}
			clients = append(clients, c)
			return nil
		}
		s := newPipeSite(t, hub)
		for range 3 {
			s.connect()
			s.listen("")
		}
		for i, c := range clients {
			if got, ok := hub.Client(c.ID()); got != c || !ok {
				t.Errorf("client %d: got %v, %v", i, got, ok)
			}
			if want := []realtime.Transport{realtime.WebSocket, realtime.EventStream}[i%2]; c.Transport() != want {
				t.Errorf("client %d: transport %q, want %q", i, c.Transport(), want)
			}
		}
		id := clients[2].ID()
		clients[2].Close(1000, "")
		synctest.Wait()
		s.listen("") // it gets the slot of the closed client
		last := "0"
		if strings.HasSuffix(id, "0") {
			last = "1"
		}
		for _, none := range []string{id, "", "x", strings.Repeat("0", 32), strings.Repeat("g", 32), clients[0].ID()[:31] + last, clients[0].ID() + "00"} {
			if c, ok := hub.Client(none); c != nil || ok {
				if none != clients[0].ID() {
					t.Errorf("id %q: got %v, %v", none, c, ok)
				}
			}
		}
		if c, ok := realtime.NewHub().Client(clients[0].ID()); c != nil || ok {
			t.Errorf("another hub: got %v, %v", c, ok)
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

// Send fails once the client's context is done, however the client left.
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
		client.Send([]byte("last words"))
		if err := client.Close(4000, strings.Repeat("é", 62)); err != nil {
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
		if got := c.expectClose(4000); got != strings.Repeat("é", 61) {
			t.Errorf("the reason is %q, want as many characters as a close frame can carry", got)
		}
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

// A client's own close frame doesn't prolong the 5 s that Close gives it.
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

// SendEvent and Send refuse a faulty event. The client stays connected.
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
