package realtime_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// The user's document, snippet by snippet and in its order: the hub runs
// before its handler is assigned.

var Chat = realtime.NewHub()

func init() {
	go Chat.Run() // starts the event loop
}

func TestSeedWebSocket(t *testing.T) {
	select {
	case <-Chat.Done(): // an earlier run of this test has shut it down
		Chat = realtime.NewHub()
		go Chat.Run()
	default:
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws/chat", func(w http.ResponseWriter, r *http.Request) {
		realtime.Upgrade(w, r, Chat)
	})

	Chat.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		// Echo back to all clients
		hub.Broadcast <- msg.Data

		// Or respond only to the sender
		msg.Client.Send([]byte(`{"type":"ack"}`))
	}

	realtime.SetCheckOrigin(func(r *http.Request) bool {
		return r.Header.Get("Origin") == "https://myapp.com"
	})
	defer realtime.SetCheckOrigin(nil)

	srv := httptest.NewServer(mux)
	defer srv.Close()
	dial := func(origin string) (*websocket.Conn, error) {
		conn, _, err := websocket.Dial(t.Context(), srv.URL+"/ws/chat", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		return conn, err
	}
	if _, err := dial("https://evil.example"); err == nil {
		t.Error("a foreign origin was accepted")
	}
	a, err := dial("https://myapp.com")
	if err != nil {
		t.Fatal(err)
	}
	b, err := dial("https://myapp.com")
	if err != nil {
		t.Fatal(err)
	}

	count := Chat.ClientCount()
	if count != 2 {
		t.Errorf("ClientCount() = %d, want 2", count)
	}

	write(t, a, `{"type":"message","text":"Hello!"}`)
	got := map[string]bool{read(t, a): true, read(t, a): true}
	if !got[`{"type":"message","text":"Hello!"}`] || !got[`{"type":"ack"}`] {
		t.Errorf("the sender got %v, want its message and the ack", got)
	}
	if got := read(t, b); got != `{"type":"message","text":"Hello!"}` {
		t.Errorf("the other got %q", got)
	}

	Chat.Broadcast <- []byte(`{"type":"update","data":"live score changed"}`)
	for _, c := range []*websocket.Conn{a, b} {
		if got := read(t, c); got != `{"type":"update","data":"live score changed"}` {
			t.Errorf("got %q", got)
		}
	}

	var clients sync.WaitGroup
	for _, c := range []*websocket.Conn{a, b} {
		clients.Go(func() {
			if status := closeStatus(c); status.Code != websocket.StatusGoingAway {
				t.Errorf("closed with %v, want 1001", status)
			}
		})
	}
	if err := Chat.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	clients.Wait()
}

func TestSeedEventStream(t *testing.T) {
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return // client doesn't support SSE
		}

		// Named event with JSON data
		stream.Send("update", map[string]any{"id": 1, "status": "done"})

		// Plain data line
		stream.SendRaw("hello world")

		// Keepalive heartbeat (comment line)
		stream.Comment("heartbeat")

		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()

		for {
			//lint:ignore S1000 the document's code as it stands
			select {
			case t := <-ticker.C:
				stream.Send("tick", map[string]any{
					"time":  t.Format(time.RFC3339),
					"count": Chat.ClientCount(),
				})
			}

			// Check if client disconnected
			if stream.IsClosed() {
				return
			}
		}
	}))
	defer srv.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type = %q", got)
	}
	const fixed = "event: update\ndata: {\"id\":1,\"status\":\"done\"}\n\ndata: hello world\n\n: heartbeat\n"
	buf := make([]byte, 0, 4096)
	for strings.Count(string(buf), "\n\n") < 4 {
		n, err := resp.Body.Read(buf[len(buf):cap(buf)])
		if err != nil {
			t.Fatalf("after %q: %v", buf, err)
		}
		buf = buf[:len(buf)+n]
	}
	rest, ok := strings.CutPrefix(string(buf), fixed)
	if !ok {
		t.Fatalf("got %q, want it to begin with %q", buf, fixed)
	}
	event, _, _ := strings.Cut(rest, "\n\n")
	data, ok := strings.CutPrefix(event, "event: tick\ndata: ")
	var tick struct {
		Time  time.Time
		Count *int
	}
	if err := json.Unmarshal([]byte(data), &tick); !ok || err != nil || tick.Time.IsZero() || tick.Count == nil {
		t.Errorf("got the event %q, %v", event, err)
	}
	cancel() // the client leaves
	<-ended
}
