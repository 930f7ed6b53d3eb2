package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// The JavaScript of the documentation, except for the address. It must not be
// changed to make a test pass: users have it in their pages.
const (
	webSocketSnippet = `
const socket = new WebSocket("ws://HOST/ws/chat");

socket.onmessage = (event) => {
    const data = JSON.parse(event.data);
    console.log("received:", data);
};
`
	sendSnippet = `
socket.send(JSON.stringify({ type: "message", text: "Hello!" }));
`
	eventSourceSnippet = `
const es = new EventSource("/events/feed");

es.addEventListener("tick", (event) => {
    const data = JSON.parse(event.data);
    console.log("tick:", data.time);
});

es.addEventListener("update", (event) => {
    const data = JSON.parse(event.data);
    console.log("update:", data);
});
`
)

// TestSnippets runs the snippets in a page, against the server that the
// documentation shows.
func TestSnippets(t *testing.T) {
	hub := realtime.NewHub()
	go hub.Run()
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		hub.Broadcast <- msg.Data
		msg.Client.Send([]byte(`{"type":"ack"}`))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/ws/chat", func(w http.ResponseWriter, r *http.Request) {
		realtime.Upgrade(w, r, hub)
	})
	mux.HandleFunc("/events/feed", func(w http.ResponseWriter, r *http.Request) {
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return
		}
		defer stream.Close()
		stream.Send("update", map[string]any{"id": 1, "status": "done"})
		stream.SendRaw("hello\nworld")
		stream.Comment("heartbeat")

		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for t := range ticker.C {
			stream.Send("tick", map[string]any{
				"time":  t.Format(time.RFC3339),
				"count": hub.ClientCount(),
			})
			if stream.IsClosed() {
				return
			}
		}
	})
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<!doctype html><link rel="icon" href="data:,"><title>Snippets</title>`)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		server.CloseClientConnections() // ends the stream, whose handler doesn't end with the hub
		server.Close()
	})

	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(server.URL)
	run := func(js string) {
		t.Helper()
		eval[chromedp.Void](tab, strings.ReplaceAll(js, "HOST", strings.TrimPrefix(server.URL, "http://"))+"; undefined")
	}
	logged := func(line string) {
		t.Helper()
		tab.until(fmt.Sprintf("logged.some((line) => %s.test(line))", line))
	}
	run(`const logged = []; console.log = (...args) => logged.push(JSON.stringify(args))`)

	run(webSocketSnippet)
	tab.until(`socket.readyState === WebSocket.OPEN`)
	run(sendSnippet)
	logged(`/^\["received:",\{"type":"message","text":"Hello!"\}\]$/`)
	logged(`/^\["received:",\{"type":"ack"\}\]$/`)
	hub.Broadcast <- []byte(`{"type":"update","data":"live score changed"}`)
	logged(`/^\["received:",\{"type":"update","data":"live score changed"\}\]$/`)
	if got := hub.ClientCount(); got != 1 {
		t.Errorf("got %d clients, want 1", got)
	}

	run(eventSourceSnippet + `es.onmessage = (event) => console.log("raw:", event.data)`)
	logged(`/^\["update:",\{"id":1,"status":"done"\}\]$/`)
	logged(`/^\["raw:","hello\\nworld"\]$/`)
	logged(`/^\["tick:","20\d\d-.*"\]$/`)

	run(`socket.onclose = (event) => console.log("closed:", event.code, event.wasClean)`)
	go hub.Shutdown(context.Background())
	logged(`/^\["closed:",1001,true\]$/`)
	run(`es.close()`)
}
