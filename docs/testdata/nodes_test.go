package docs

import (
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A program that is told to stop tells its clients, and ends.
func TestRunUntilTold(t *testing.T) {
	hub = realtime.NewHub()
	l, err := net.Listen("tcp", "127.0.0.1:0") // another process may take the port, but hardly does
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ended := make(chan error, 1)
	go func() { ended <- runUntilTold(&http.Server{Addr: addr, Handler: hub}) }()
	var conn *websocket.Conn
	for deadline := time.Now().Add(time.Minute); conn == nil; time.Sleep(time.Millisecond) {
		if conn, _, err = websocket.Dial(t.Context(), "http://"+addr, nil); err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer conn.CloseNow()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Skip(err) // on Windows
	}
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the client got %v, want 1001", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
