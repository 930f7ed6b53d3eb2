// Chat is a chat room. A newcomer gets the last messages, and sees who is there
// and who is typing. A page that was disconnected gets what it missed. All that goes
// over a WebSocket. The number of people comes in a feed, which is an event stream.
// Start it and open the address that it prints in two windows:
//
//	go run ./examples/chat
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/internal/look"
)

const (
	maxNameRunes = 24
	maxTextRunes = 1000
	maxIDBytes   = 64

	burst    = 20                     // messages that a page may send at once
	interval = 250 * time.Millisecond // at which it may send another one
)

// The topics. Each keeps its own last events, so that people who come and go push
// no messages out.
const (
	chat   = "chat"   // what is said
	people = "people" // who is there
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

//go:embed index.html
var page string

func newHandler(hub *realtime.Hub) http.Handler {
	mux := http.NewServeMux()
	look.Handle(mux, page)
	mux.Handle("GET /realtime.js", realtime.Script())
	mux.Handle("GET /live", hub)
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		serveFeed(w, r, hub)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := r.Cookie("person"); err != nil && r.URL.Path == "/" {
			http.SetCookie(w, &http.Cookie{Name: "person", Value: rand.Text(), MaxAge: 365 * 24 * 3600, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		}
		mux.ServeHTTP(w, r)
	})
}

// keyOf returns the key of the person at a client. All tabs of a browser are one
// person, because they have one cookie. Others see the key. They can't take it for
// themselves, as it is only a hash of the cookie.
func keyOf(c *realtime.Client, r *http.Request) string {
	secret := c.ID() // a program without cookies is a person for as long as it is connected
	if cookie, err := r.Cookie("person"); err == nil {
		secret = cookie.Value
	}
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:8])
}

// A message is what a page gets when somebody has said something. The server sets
// all of it but ID and Text, so that no client can send in another's name.
type message struct {
	ID   string    `json:"id"`   // chosen by the sender's page, which sees by it that the message has arrived
	From string    `json:"from"` // the sender's key, as two people may have the same name
	Name string    `json:"name"`
	Text string    `json:"text"`
	Time time.Time `json:"time"`
}

// A person is the data of a member.
type person struct {
	Name   string `json:"name"`
	Typing bool   `json:"typing,omitempty"`
}

// A guest is what the server knows of a client. OnMessage is called for one message
// of a client at a time, so a guest needs no lock.
type guest struct {
	key, name string
	paid      time.Time // until when its messages have used up the time; each takes an interval
}

// newHub returns the hub of the chat room.
func newHub() *realtime.Hub {
	hub := realtime.NewHub()

	// Without a check, a page of any site could join the chat from a visitor's
	// browser, even if only that browser can reach this server.
	hub.CheckOrigin = realtime.SameOrigin
	hub.MaxMessageBytes = 16 << 10 // enough for maxTextRunes, however they are escaped
	hub.History = realtime.History{Events: 50, Age: 24 * time.Hour}

	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		name, err := parseName(r.URL.Query().Get("name"))
		if err != nil {
			return realtime.Refuse(http.StatusBadRequest, err.Error())
		}
		g := &guest{key: keyOf(c, r), name: name}
		c.Set("guest", g)
		c.SendEvent(realtime.Event{Name: "welcome", Data: []byte(g.key)})
		if err := c.Subscribe(chat, people); err != nil {
			return err
		}
		return c.Appear(people, g.key, person{Name: name})
	}
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		v, _ := msg.Client.Get("guest")
		g := v.(*guest)
		in, err := g.accept(msg.Data)
		if err != nil {
			refused, _ := realtime.JSON("refused", map[string]string{"id": in.ID, "reason": err.Error()}) // always encodes
			msg.Client.SendEvent(refused)
			return
		}
		typing := in.Typing != nil && *in.Typing
		msg.Client.Appear(people, g.key, person{g.name, typing}) // tells nobody anything if nothing has changed
		if in.Typing != nil {
			return
		}
		said, _ := realtime.JSON("said", message{in.ID, g.key, g.name, in.Text, time.Now().UTC()})
		hub.Publish(context.Background(), chat, said)
	}
	return hub
}

// An input is what pages send: a text, or whether somebody is typing. All else in
// the JSON, such as a sender, is ignored.
type input struct {
	ID     string
	Text   string
	Typing *bool
}

// accept returns the input if it is valid and the guest may send it now.
func (g *guest) accept(data []byte) (in input, err error) {
	if err := json.Unmarshal(data, &in); err != nil || len(in.ID) > maxIDBytes {
		return input{}, errors.New(`a message must be JSON, {"id": "…", "text": "…"}`)
	}
	now := time.Now()
	if g.paid.Before(now) {
		g.paid = now
	}
	if g.paid.Sub(now) >= burst*interval {
		return in, errors.New("you are too fast, wait a moment")
	}
	g.paid = g.paid.Add(interval)
	in.Text = strings.TrimSpace(in.Text)
	if n := utf8.RuneCountInString(in.Text); in.Typing == nil && (n == 0 || n > maxTextRunes) {
		return in, fmt.Errorf("a message must have 1 to %d characters", maxTextRunes)
	}
	return in, nil
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

// serveFeed sends the time and the number of people each second until the browser
// leaves.
func serveFeed(w http.ResponseWriter, r *http.Request, hub *realtime.Hub) {
	stream := realtime.NewStream(w, r)
	if stream == nil {
		return // NewStream has answered the request
	}
	defer stream.Close()

	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for now := time.Now(); ; {
		count := 0
		for range hub.Members(people) {
			count++
		}
		stream.Send("tick", map[string]any{"time": now.UTC().Format(time.RFC3339), "count": count})
		select {
		case now = <-ticker.C:
		case <-stream.Done(): // the browser has left
			return
		case <-hub.Done(): // the server is being shut down
			return
		}
	}
}
