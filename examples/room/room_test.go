package room

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// What is said at one node reaches the pages of both. A page that reconnects, to
// either node, gets what it missed. A page of a node that is cut off is told that
// others lack what it said.
func TestRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	engine := brokertest.NewMemory()
	failed := make(chan error, 1)
	names := []string{"A", "B"}
	r, err := Start("localhost:0", names, func(int) (realtime.Broker, func(bool) error, error) {
		return engine.HistoryBroker(), func(cut bool) error {
			if cut {
				return engine.Stop()
			}
			return engine.Start()
		}, nil
	}, failed)
	if err != nil {
		t.Fatal(err)
	}
	var conns []*websocket.Conn
	for _, name := range names {
		conns = append(conns, dial(ctx, t, r, name, ""))
	}
	send := func(text string) {
		t.Helper()
		if err := conns[0].Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, ignored := range []string{"hello", `{"text": " "}`, fmt.Sprintf(`{"text": %q}`, strings.Repeat("x", 1001)),
		fmt.Sprintf(`{"text": "x", "id": %q}`, strings.Repeat("x", 65))} {
		send(ignored)
	}
	send(`{"id": "1", "text": " hello ", "node": "B"}`)
	var id string
	for _, conn := range conns {
		said := expect(ctx, t, conn, `"event":"said"`)
		if !strings.Contains(said, `\"node\":\"A\"`) || !strings.Contains(said, `\"text\":\"hello\"`) {
			t.Errorf("got %s, want hello from A", said)
		}
		_, after, _ := strings.Cut(said, `"id":"`)
		id, _, _ = strings.Cut(after, `"`)
	}
	send(`{"id": "2", "text": "again"}`)
	for _, name := range names {
		conn := dial(ctx, t, r, name, id)
		expect(ctx, t, conn, "again")
		conns = append(conns, conn)
	}
	send(`{"cut": true}`)
	expect(ctx, t, conns[0], "status", `\"cut\":true`)
	send(`{"id": "3", "text": "alone"}`)
	expect(ctx, t, conns[0], `"event":"alone"`, `"data":"3"`)
	send(`{"cut": false}`)
	expect(ctx, t, conns[0], "status", `\"cut\":false`)

	for _, conn := range conns {
		go func() {
			for { // reads until it has answered the close
				if _, _, err := conn.Read(ctx); err != nil {
					return
				}
			}
		}()
	}
	if err := r.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestStartFails(t *testing.T) {
	if _, err := Start("nowhere:0", nil, nil, nil); err == nil || !strings.Contains(err.Error(), "-addr") {
		t.Errorf("Start: %v", err)
	}
	fails := errors.New("it doesn't connect")
	if _, err := Start("localhost:0", []string{"A"}, func(int) (realtime.Broker, func(bool) error, error) {
		return nil, nil, fails
	}, nil); !errors.Is(err, fails) {
		t.Errorf("Start: got %v, want %v", err, fails)
	}
}

func dial(ctx context.Context, t *testing.T, r *Room, name, id string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(ctx, r.URL+"/nodes/"+name+"/live?lastEventId="+id, &websocket.DialOptions{Subprotocols: []string{"realtime.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	return conn
}

// expect reads until a message has all those words, and returns it.
func expect(ctx context.Context, t *testing.T, conn *websocket.Conn, words ...string) string {
	t.Helper()
	for {
		_, data, err := conn.Read(ctx)
		if err != nil {
			t.Fatalf("waiting for %q: %v", words, err)
		}
		found := true
		for _, word := range words {
			found = found && strings.Contains(string(data), word)
		}
		if found {
			return string(data)
		}
	}
}
