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

// What a client says at one node reaches the clients of both nodes. While a node is
// cut off, the others' words don't reach it, and both nodes count a gap.
func TestExample(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	failed := make(chan error, 1)
	names := []string{"A", "B"}
	r, err := room.Start("localhost:0", names, brokers(natsbroker.Config{Listen: "127.0.0.1:0"}), failed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		r.Shutdown(ctx)
		if err := <-failed; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	var conns []*websocket.Conn
	for _, name := range names {
		conn, _, err := websocket.Dial(ctx, r.URL+"/nodes/"+name+"/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		conns = append(conns, conn)
	}
	send := func(node int, text string) {
		t.Helper()
		if err := conns[node].Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(node int, text, not string) {
		t.Helper()
		for got := ""; !strings.Contains(got, text); {
			_, data, err := conns[node].Read(ctx)
			if err != nil {
				t.Fatalf("waiting for %s: %v", text, err)
			}
			if got = string(data); strings.Contains(got, not) {
				t.Errorf("got %s", got)
			}
		}
	}
	send(0, `{"text": "hello"}`)
	for node := range conns {
		expect(node, "hello", "lost")
	}
	send(1, `{"cut": true}`)
	expect(1, `"cut":true`, "lost")
	send(0, `{"text": "this is lost"}`)
	expect(0, "this is lost", "alone")
	for node := range conns {
		expect(node, `"gaps":1`, "alone")
	}
	send(1, `{"cut": false}`)
	expect(1, `"everywhere":2`, "lost")
	send(0, `{"text": "again"}`)
	expect(1, "again", "lost")
}
