package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// serve starts the chat and returns its hub and its URL.
func serve(t *testing.T) (hub *realtime.Hub, base string) {
	hub = newHub()
	server := httptest.NewServer(newHandler(hub))
	t.Cleanup(func() {
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return hub, server.URL
}

// A guest is a client in the chat.
type guest struct {
	*testing.T
	conn *websocket.Conn
	id   string
}

func join(t *testing.T, base, name string) guest {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), base+"/ws?name="+url.QueryEscape(name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	g := guest{t, conn, ""}
	g.id = g.next("welcome").From
	return g
}

// next returns the next message of that type.
func (g guest) next(kind string) (m message) {
	g.Helper()
	ctx, cancel := context.WithTimeout(g.Context(), 30*time.Second)
	defer cancel()
	for m.Type != kind {
		if err := wsjson.Read(ctx, g.conn, &m); err != nil {
			g.Fatalf("waiting for %q: %v", kind, err)
		}
	}
	return m
}

func (g guest) send(text string) {
	g.Helper()
	if err := g.conn.Write(g.Context(), websocket.MessageText, []byte(text)); err != nil {
		g.Fatal(err)
	}
}

func TestName(t *testing.T) {
	_, base := serve(t)
	for _, tt := range []struct{ ask, want string }{
		{"Ann", "Ann"},
		{"  Ann \n", "Ann"},
		{"Zoë 🦊", "Zoë 🦊"},
		{strings.Repeat("é", 24), strings.Repeat("é", 24)},
		{strings.Repeat("é", 25), ""},
		{"", ""},
		{" ", ""},
		{"A\x00nn", ""},
		{"A\nnn", ""},
		{"A\x9bnn", ""}, // not UTF-8
		{"A\u009bnn", ""},
	} {
		conn, resp, err := websocket.Dial(t.Context(), base+"/ws?name="+url.QueryEscape(tt.ask), nil)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%q was accepted", tt.ask)
			} else if resp == nil || resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%q: got %v, want a 400", tt.ask, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.ask, err)
			continue
		}
		if got := (guest{t, conn, ""}).next("welcome").Name; got != tt.want {
			t.Errorf("%q: got the name %q, want %q", tt.ask, got, tt.want)
		}
		conn.CloseNow()
	}
}

func TestOriginRefused(t *testing.T) {
	_, base := serve(t)
	_, resp, err := websocket.Dial(t.Context(), base+"/ws?name=Eve", &websocket.DialOptions{
		HTTPHeader: http.Header{"Origin": {"https://evil.example"}},
	})
	if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site: got %v, want a 403", err)
	}
}

func TestMessageCannotBeForged(t *testing.T) {
	_, base := serve(t)
	ann, eve := join(t, base, "Ann"), join(t, base, "Eve")
	joined := ann.next("joined")
	if joined.From == ann.id {
		joined = ann.next("joined")
	}
	if joined.Name != "Eve" || joined.From != eve.id {
		t.Errorf("Ann got %+v, want that Eve joined", joined)
	}
	eve.send(`{"type": "left", "from": "` + ann.id + `", "name": "Ann", "text": "I am Ann <b>", "time": "2000-01-01T00:00:00Z"}`)
	for _, g := range []guest{ann, eve} {
		got := g.next("message")
		if got.Name != "Eve" || got.From != eve.id || got.Text != "I am Ann <b>" {
			t.Errorf("got %+v, want it from Eve", got)
		}
		if age := time.Since(got.Time); age < 0 || age > time.Minute {
			t.Errorf("message is %v old", age)
		}
	}
	eve.conn.Close(websocket.StatusNormalClosure, "")
	if got := ann.next("left"); got.Name != "Eve" || got.From != eve.id {
		t.Errorf("Ann got %+v, want that Eve left", got)
	}
}

func TestBadMessage(t *testing.T) {
	_, base := serve(t)
	ann, bob := join(t, base, "Ann"), join(t, base, "Bob")
	for _, bad := range []string{
		`{"text": "` + strings.Repeat(`\ud83e\udd8a`, 1001) + `"}`,
		`{"text": "  "}`,
		`{"text": 1}`,
		`Hello`,
	} {
		ann.send(bad)
		if got := ann.next("error"); got.Text == "" {
			t.Errorf("%.20s…: the error has no text", bad)
		}
	}
	longest := strings.Repeat("🦊", 1000)
	ann.send(`{"text": "` + strings.Repeat(`\ud83e\udd8a`, 1000) + `"}`)
	var m message // the first from Ann that Bob gets
	for m.Type != "message" && m.Type != "error" {
		if err := wsjson.Read(t.Context(), bob.conn, &m); err != nil {
			t.Fatal(err)
		}
	}
	if m.Type != "message" || m.Text != longest {
		t.Errorf("Bob got a %s %.40q, want Ann's valid message", m.Type, m.Text)
	}
}

func TestFeed(t *testing.T) {
	hub, base := serve(t)
	join(t, base, "Ann")
	bob := join(t, base, "Bob")

	resp, err := http.Get(base + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("got Content-Type %q", got)
	}
	scanner := bufio.NewScanner(resp.Body)
	next := func(event string, data any) {
		t.Helper()
		for scanner.Scan() {
			if scanner.Text() != "event: "+event {
				continue
			}
			scanner.Scan()
			if err := json.Unmarshal([]byte(strings.TrimPrefix(scanner.Text(), "data: ")), data); err != nil {
				t.Fatalf("event %q: %v", event, err)
			}
			return
		}
		t.Fatalf("the feed ended before %q: %v", event, scanner.Err())
	}
	var online struct{ Count int }
	if next("online", &online); online.Count != 2 {
		t.Errorf("got %d online, want 2", online.Count)
	}
	var tick struct{ Time time.Time }
	if next("tick", &tick); time.Since(tick.Time) > time.Minute {
		t.Errorf("got a tick of %v, want one of now", tick.Time)
	}
	bob.conn.Close(websocket.StatusNormalClosure, "")
	if next("online", &online); online.Count != 1 {
		t.Errorf("got %d online, want 1", online.Count)
	}

	go hub.Shutdown(context.Background())
	for scanner.Scan() {
	}
	if err := scanner.Err(); err != nil {
		t.Errorf("the feed ended with %v, want a clean end", err)
	}
}

func TestPage(t *testing.T) {
	get := func() (nonce, body string) {
		w := httptest.NewRecorder()
		newHandler(newHub()).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
			t.Errorf("got policy %q", policy)
		}
		_, rest, _ := strings.Cut(policy, "'nonce-")
		nonce, _, _ = strings.Cut(rest, "'")
		return nonce, w.Body.String()
	}
	nonce, body := get()
	if got := strings.Count(body, `nonce="`+nonce+`"`); got != 2 {
		t.Errorf("nonce %q is on %d elements, want 2, the style and the script", nonce, got)
	}
	if again, _ := get(); again == nonce {
		t.Errorf("got nonce %q twice", nonce)
	}
}
