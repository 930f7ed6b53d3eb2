package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
)

// startRedis starts a redis-server that ends with the test, and returns its address.
func startRedis(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		const how = "this test needs redis-server in the PATH: apt-get install redis-server"
		if os.Getenv("CI") != "" {
			t.Fatal(how)
		}
		t.Skip(how)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(path, "--save", "", "--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return addr // the broker tries until it answers
}

// What a client says at one node reaches the clients of both. A node that is cut off
// says so to its clients, and afterwards has what was said at the other meanwhile.
func TestExample(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	failed := make(chan error, 1)
	names := []string{"A", "B"}
	r, err := room.Start("localhost:0", names, brokers([]string{startRedis(t)}), failed)
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
		conn, _, err := websocket.Dial(ctx, r.URL+"/nodes/"+name+"/live", &websocket.DialOptions{Subprotocols: []string{realtime.Subprotocol}})
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
	expect := func(node int, text string) {
		t.Helper()
		for got := ""; !strings.Contains(got, text); {
			_, data, err := conns[node].Read(ctx)
			if err != nil {
				t.Fatalf("waiting for %s: %v", text, err)
			}
			got = string(data)
		}
	}
	for node := range conns {
		expect(node, `\"everywhere\":2`) // they know of each other
	}
	send(0, `{"id": "1", "text": "hello"}`)
	for node := range conns {
		expect(node, "hello")
	}
	send(1, `{"cut": true}`)
	expect(1, `\"cut\":true`)
	send(1, `{"id": "2", "text": "only here"}`)
	expect(1, `"event":"alone"`)
	send(0, `{"id": "3", "text": "meanwhile"}`)
	expect(0, "meanwhile")
	send(1, `{"cut": false}`)
	expect(1, "meanwhile")
	expect(1, `\"gaps\":1`)
}
