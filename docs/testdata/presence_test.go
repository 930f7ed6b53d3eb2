package docs

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A user with two tabs is one member, whom the clients of the room see.
func TestPresence(t *testing.T) {
	hub = realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	hub.OnConnect = enter
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	var conns []*websocket.Conn
	for _, user := range []string{"ann", "ann", "bob"} {
		conn, _, err := websocket.Dial(t.Context(), server.URL+"?room=7", &websocket.DialOptions{
			HTTPHeader: http.Header{"Cookie": {"user=" + user}}, Subprotocols: []string{realtime.Subprotocol}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		conns = append(conns, conn)
	}
	for members := ""; members != "annbob"; {
		_, data, err := conns[0].Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ev struct{ Event, Key string }
		if err := json.Unmarshal(data, &ev); err != nil {
			t.Fatal(err)
		}
		if ev.Event == "presence" {
			members += ev.Key
		}
	}
	if n := count("7"); n != 2 {
		t.Errorf("%d members, want 2", n)
	}
}
