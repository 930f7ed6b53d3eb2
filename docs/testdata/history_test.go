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

// next returns the data of the next event that has some.
func next(t *testing.T, conn *websocket.Conn) string {
	t.Helper()
	for {
		_, data, err := conn.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ev struct {
			Data  string
			Reset bool
		}
		if err := json.Unmarshal(data, &ev); err != nil || ev.Reset {
			t.Fatalf("got %s, %v", data, err)
		}
		if ev.Data != "" {
			return ev.Data
		}
	}
}

// A room begins with its last messages, prices with the latest of each, and a page
// with what was published since its position.
func TestHistory(t *testing.T) {
	hub = realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	mux := http.NewServeMux()
	mux.Handle("/rooms/{room}", hub)
	mux.HandleFunc("/matches/{match}", serveMatch)
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		if r.PathValue("room") == "prices" {
			return c.Subscribe("prices")
		}
		return enterRoom(c, r)
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	dial := func(path string) *websocket.Conn {
		conn, _, err := websocket.Dial(t.Context(), server.URL+path, &websocket.DialOptions{Subprotocols: []string{realtime.Subprotocol}})
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ctx := t.Context()
	hub.Publish(ctx, "room/go", realtime.Event{Data: []byte("one")})
	resp, err := http.Get(server.URL + "/matches/42")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ State, Position string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.State != "42" || answer.Position == "" {
		t.Fatalf("got %+v, %v", answer, err)
	}
	hub.Publish(ctx, "room/go", realtime.Event{Data: []byte("two")})
	for _, price := range []float64{1, 2} {
		if err := publishPrice(ctx, "ACME", price); err != nil {
			t.Fatal(err)
		}
	}
	publishPrice(ctx, "XYZ", 3)
	if err := delist(ctx, "XYZ"); err != nil {
		t.Fatal(err)
	}

	for e := range hub.Latest("prices") {
		if e.Key != "ACME" {
			t.Errorf("the latest values have %q, which was taken away", e.Key)
		}
	}

	room := dial("/rooms/go")
	defer room.CloseNow()
	if got := next(t, room) + next(t, room); got != "onetwo" {
		t.Errorf("a new client got %q, want onetwo", got)
	}
	page := dial("/rooms/go?lastEventId=" + answer.Position)
	defer page.CloseNow()
	if got := next(t, page); got != "two" {
		t.Errorf("the page got %q, want two", got)
	}
	prices := dial("/rooms/prices")
	defer prices.CloseNow()
	if got := next(t, prices); got != `{"ACME":2}` {
		t.Errorf("got %q, want the latest price", got)
	}
	publishPrice(ctx, "XYZ", 4)
	if got := next(t, prices); got != `{"XYZ":4}` {
		t.Errorf("got %q, want the new price", got)
	}
}
