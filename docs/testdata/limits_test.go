package docs

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A user may have so many connections, and others after these are closed.
func TestLimitConnections(t *testing.T) {
	hub := realtime.NewHub()
	limitConnections(hub, 2)
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	dial := func(user string) (*websocket.Conn, *http.Response, error) {
		return websocket.Dial(t.Context(), server.URL, &websocket.DialOptions{HTTPHeader: http.Header{"Cookie": {"user=" + user}}})
	}
	first, _, err := dial("ann")
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"ann", "bob"} {
		conn, _, err := dial(user)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
	}
	if _, resp, err := dial("ann"); err == nil || resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "60" {
		t.Errorf("one too many got %v, %v; want 429", resp, err)
	}
	first.Close(websocket.StatusNormalClosure, "")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if conn, _, err := dial("ann"); err == nil {
			conn.CloseNow()
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("a minute after another was closed: %v", err)
		}
	}
}

// A client that sends too much waits, and no message is lost.
func TestLimitMessages(t *testing.T) {
	hub := realtime.NewHub()
	limitMessages(hub, rate.Every(50*time.Millisecond), 1, func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) })
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	conn, _, err := websocket.Dial(t.Context(), server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	const messages = 5
	began := time.Now()
	for range messages {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	for range messages {
		if _, _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < (messages-1)*50*time.Millisecond {
		t.Errorf("%d messages were handled in %v", messages, took)
	}
}

// A client that sends too much is told to reconnect later.
func TestStrict(t *testing.T) {
	hub := realtime.NewHub()
	limiter := rate.NewLimiter(rate.Every(time.Hour), 1)
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { strict(limiter, msg) }
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	conn, _, err := websocket.Dial(t.Context(), server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for range 2 {
		conn.Write(t.Context(), websocket.MessageText, []byte("hello"))
	}
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != 4429 {
		t.Errorf("got %v, want 4429", err)
	}
}

// A client has at most 50 rooms.
func TestJoin(t *testing.T) {
	hub := realtime.NewHub()
	hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
		for i := range 51 {
			if err := join(c, string(rune('A'+i))); (err == nil) != (i < 50) {
				t.Errorf("room %d: %v", i, err)
			}
		}
		return nil
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	conn, _, err := websocket.Dial(t.Context(), server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn.CloseNow()
}
