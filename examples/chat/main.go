// Chat is a chat room with a live feed. The messages go over a WebSocket, the
// number of people over an event stream. Start it and open the address that it
// prints in two windows:
//
//	go run ./examples/chat
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	maxNameRunes = 24
	maxTextRunes = 1000
)

func main() {
	addr := flag.String("addr", "localhost:8080", "`host:port` to listen on")
	flag.Parse()
	if err := run(*addr); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

// run serves the chat until the process is told to stop.
func run(addr string) error {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w (-addr chooses another address)", err)
	}
	hub := newHub()
	server := &http.Server{Handler: newHandler(hub), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // the real one, also for -addr localhost:0
	fmt.Println("Chat is at http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port))

	select {
	case err := <-served:
		return err
	case <-interrupted.Done():
		stop() // a second Ctrl-C ends the program at once
	}

	// Neither Shutdown is enough. The server's knows no WebSockets, and it waits
	// for event streams, which end when the hub's begins. So both have to begin
	// together. Then the program waits for each.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server.RegisterOnShutdown(func() { hub.Shutdown(ctx) })
	return errors.Join(server.Shutdown(ctx), hub.Shutdown(ctx))
}

func newHandler(hub *realtime.Hub) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", servePage)
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		realtime.Upgrade(w, r, hub) // if it fails, it has answered the request
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		serveFeed(w, r, hub)
	})
	return mux
}

// A message is what browsers get over the WebSocket, as JSON. The server sets
// all of it but Text, so that no client can send in another's name.
type message struct {
	Type string    `json:"type"`           // welcome, joined, message, left or error
	From string    `json:"from,omitempty"` // the client's ID, as two people may have the same name
	Name string    `json:"name,omitempty"`
	Text string    `json:"text,omitempty"`
	Time time.Time `json:"time"`
}

// newMessage returns a message from the client, encoded.
func newMessage(c *realtime.Client, kind, text string) []byte {
	name, _ := c.Get("name")
	data, _ := json.Marshal(message{kind, c.ID(), name.(string), text, time.Now().UTC()}) // always encodes
	return data
}

// newHub returns the hub of the chat room.
func newHub() *realtime.Hub {
	hub := realtime.NewHub()

	// Without a check, a page of any site could join the chat from a visitor's
	// browser, even if only that browser can reach this server.
	hub.CheckOrigin = realtime.SameOrigin
	hub.MaxMessageBytes = 16 << 10 // enough for maxTextRunes, however they are escaped

	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		name, err := parseName(r.URL.Query().Get("name"))
		if err != nil {
			return realtime.Refuse(http.StatusBadRequest, err.Error())
		}
		c.Set("name", name)
		c.Send(newMessage(c, "welcome", ""))
		hub.Broadcast <- newMessage(c, "joined", "")
		return nil
	}
	hub.OnDisconnect = func(c *realtime.Client, err error) {
		hub.Broadcast <- newMessage(c, "left", "")
	}
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		text, err := parseText(msg.Data)
		if err != nil {
			msg.Client.Send(newMessage(msg.Client, "error", err.Error()))
			return
		}
		hub.Broadcast <- newMessage(msg.Client, "message", text)
	}
	return hub
}

// parseName returns the requested name as it will be shown.
func parseName(s string) (string, error) {
	name := strings.TrimSpace(s)
	switch n := utf8.RuneCountInString(name); {
	case n == 0 || n > maxNameRunes:
		return "", fmt.Errorf("a name must have 1 to %d characters", maxNameRunes)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return "", errors.New("a name must not have control characters")
	}
	return name, nil
}

// parseText returns the text of a message. It ignores everything else in the
// JSON, such as a sender.
func parseText(data []byte) (string, error) {
	var in struct{ Text string }
	if err := json.Unmarshal(data, &in); err != nil {
		return "", errors.New(`a message must be JSON, {"text": "…"}`)
	}
	text := strings.TrimSpace(in.Text)
	if n := utf8.RuneCountInString(text); n == 0 || n > maxTextRunes {
		return "", fmt.Errorf("a message must have 1 to %d characters", maxTextRunes)
	}
	return text, nil
}

// serveFeed sends two kinds of events until the browser leaves. "online" is the
// number of people, sent when it has changed. "tick" comes each second: it shows
// the browser that the feed is alive.
func serveFeed(w http.ResponseWriter, r *http.Request, hub *realtime.Hub) {
	stream := realtime.NewStream(w, r)
	if stream == nil {
		return // NewStream has answered the request
	}
	defer stream.Close()

	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	shown := -1
	for {
		if online := hub.ClientCount(); online != shown {
			stream.Send("online", map[string]any{"count": online})
			shown = online
		}
		select {
		case now := <-ticker.C:
			stream.Send("tick", map[string]any{"time": now.UTC().Format(time.RFC3339)})
		case <-stream.Done(): // the browser has left
			return
		case <-hub.Done(): // the server is being shut down
			return
		}
	}
}

//go:embed index.html
var page string

// servePage sends the page. Its policy allows only the script in it, which has
// this answer's nonce. The script may connect to this server alone.
func servePage(w http.ResponseWriter, r *http.Request) {
	nonce := rand.Text()
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; script-src 'nonce-%[1]s'; style-src 'nonce-%[1]s'; "+
		"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "+
		"require-trusted-types-for 'script'", nonce))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store") // a nonce is used once
	io.WriteString(w, strings.ReplaceAll(page, "NONCE", nonce))
}
