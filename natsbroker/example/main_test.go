package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// What is said at one node is heard at both, and each says which it is.
func TestExample(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	config := natsbroker.Config{Listen: "127.0.0.1:0"}
	failed := make(chan error, 2)
	var conns []*websocket.Conn
	var nodes []*node
	for range 2 {
		n, err := start("localhost:0", config, failed)
		if err != nil {
			t.Fatal(err)
		}
		config.Routes = []string{n.broker.ClusterAddr()}
		nodes = append(nodes, n)
		conn, _, err := websocket.Dial(ctx, n.url+"/live", &websocket.DialOptions{Subprotocols: []string{"realtime.v1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		conns = append(conns, conn)
		expect(ctx, t, conn, "welcome", n.name)
	}
	if err := conns[0].Write(ctx, websocket.MessageText, []byte(" hello ")); err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns {
		expect(ctx, t, conn, "said", nodes[0].name, "hello")
		go conn.Read(ctx) // for its answer to the close
	}
	for _, n := range nodes {
		if err := n.shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
}

// expect reads up to a message with all those words.
func expect(ctx context.Context, t *testing.T, conn *websocket.Conn, words ...string) {
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
			return
		}
	}
}
