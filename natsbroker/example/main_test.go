package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A text that a client sends at one node reaches the clients of both nodes.
func TestExample(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	next := brokers(natsbroker.Config{Listen: "127.0.0.1:0"})
	failed := make(chan error, 2)
	var conns []*websocket.Conn
	for i := range 2 {
		broker, err := next(i)
		if err != nil {
			t.Fatal(err)
		}
		n, err := room.Start("localhost:0", broker, failed)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
			defer cancel()
			n.Shutdown(ctx)
			if err := <-failed; err != http.ErrServerClosed {
				t.Error(err)
			}
		})
		conn, _, err := websocket.Dial(ctx, n.URL+"/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		conns = append(conns, conn)
	}
	if err := conns[0].Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns {
		for said := ""; !strings.Contains(said, "hello"); {
			_, data, err := conn.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			said = string(data)
		}
	}
}
