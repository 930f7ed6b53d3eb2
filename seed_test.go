package realtime_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

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
