package room

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// What is said at one node reaches the pages of both. Each node tells a page its
// name. A page that reconnects, to either node, gets what it missed.
func TestRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	engine := brokertest.NewMemory()
	failed := make(chan error, 2)
	var conns []*websocket.Conn
	var nodes []*Node
	for range 2 {
		n, err := Start("localhost:0", engine.HistoryBroker(), failed)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
		conn := dial(ctx, t, n, "")
		conns = append(conns, conn)
		expect(ctx, t, conn, "welcome", n.Name)
	}
	say := func(text string) {
		t.Helper()
		if err := conns[0].Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	say(" hello ")
	var id string
	for _, conn := range conns {
		_, after, _ := strings.Cut(expect(ctx, t, conn, "said", nodes[0].Name, "hello"), `"id":"`)
		id, _, _ = strings.Cut(after, `"`)
	}
	say("again")
	for _, n := range nodes {
		conn := dial(ctx, t, n, id)
		expect(ctx, t, conn, "welcome", n.Name)
		expect(ctx, t, conn, "again")
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		go func() {
			for { // reads until it has answered the close
				if _, _, err := conn.Read(ctx); err != nil {
					return
				}
			}
		}()
	}
	for _, n := range nodes {
		if err := n.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
}

func TestStartFails(t *testing.T) {
	if _, err := Start("nowhere:0", brokertest.NewMemory().Broker(), nil); err == nil || !strings.Contains(err.Error(), "-addr") {
		t.Errorf("Start: %v", err)
	}
}

func dial(ctx context.Context, t *testing.T, n *Node, id string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(ctx, n.URL+"/live?lastEventId="+id, &websocket.DialOptions{Subprotocols: []string{"realtime.v1"}})
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
