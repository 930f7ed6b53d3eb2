package docs

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A user is let in by a session, and leaves with it, everywhere.
func TestAccess(t *testing.T) {
	hub = realtime.NewHub()
	hub.OnConnect = onConnect
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	for _, id := range []string{"phone", "laptop"} {
		sessions[id] = session{User: "ann", ID: id, Expires: time.Now().Add(time.Hour)}
	}
	dial := func(id string) (*websocket.Conn, *http.Response, error) {
		return websocket.Dial(t.Context(), server.URL, &websocket.DialOptions{HTTPHeader: http.Header{"Cookie": {"session=" + id}}})
	}
	phone, _, err := dial("phone")
	if err != nil {
		t.Fatal(err)
	}
	defer phone.CloseNow()
	laptop, _, err := dial("laptop")
	if err != nil {
		t.Fatal(err)
	}
	defer laptop.CloseNow()
	if _, resp, err := dial("nobody's"); err == nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a session: %v, %v; want 401", resp, err)
	}

	if err := logOut(t.Context(), sessions["phone"]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := phone.Read(t.Context()); websocket.CloseStatus(err) != 4401 {
		t.Errorf("after the log-out the phone got %v, want 4401", err)
	}
	if _, _, err := dial("phone"); err == nil {
		t.Error("the phone was let in after the log-out")
	}
	hub.Broadcast <- []byte("hello")
	if _, got, err := laptop.Read(t.Context()); err != nil || string(got) != "hello" {
		t.Errorf("the laptop got %q, %v; want hello", got, err)
	}
}
