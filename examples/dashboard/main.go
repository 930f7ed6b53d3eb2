// Dashboard is a page of live numbers and charts over an event stream. Its user
// chooses the topics. A new page has the latest values at once. A page that lost
// its connection gets what it missed. After a restart the server doesn't know
// that any more, and the page loads everything again. Start it and open the
// address that it prints:
//
//	go run ./examples/dashboard
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "`host:port` to listen on")
	every := flag.Duration("every", time.Second, "time between two samples")
	flag.Parse()
	if err := run(*addr, *every); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

// run serves the dashboard until the process is told to stop.
func run(addr string, every time.Duration) error {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if every <= 0 {
		return errors.New("-every must be more than 0")
	}

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w (-addr chooses another address)", err)
	}
	board := newBoard(every)
	hub := newHub(board)
	simulated := make(chan struct{})
	go func() {
		defer close(simulated)
		board.simulate(hub) // until the hub is shut down
	}()
	server := &http.Server{Handler: newHandler(board, hub), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // the real one, also for -addr localhost:0
	fmt.Println("Dashboard is at http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port))

	select {
	case err := <-served:
		return err
	case <-interrupted.Done():
		stop() // a second Ctrl-C ends the program at once
	}

	// Both have to begin together. The server's Shutdown waits for the event
	// streams that it still has, and they end when the hub's begins.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server.RegisterOnShutdown(func() { hub.Shutdown(ctx) })
	err = errors.Join(server.Shutdown(ctx), hub.Shutdown(ctx))
	<-simulated
	return err
}

// newHub returns a hub whose clients get the topics of board that they ask for.
func newHub(board *board) *realtime.Hub {
	hub := realtime.NewHub()
	hub.CheckOrigin = realtime.SameOrigin
	// A page that reconnects gets what it missed, and a new one the latest value
	// of each Key.
	hub.History = realtime.History{Events: 2000, Age: 5 * time.Minute}
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		for _, name := range r.URL.Query()["topic"] {
			if !slices.ContainsFunc(board.Topics, func(t *topic) bool { return t.Name == name }) {
				return realtime.Refuse(http.StatusNotFound, "there is no such topic")
			}
			if err := c.Subscribe(name); err != nil {
				return err
			}
		}
		return nil
	}
	return hub
}

func newHandler(board *board, hub *realtime.Hub) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", servePage)
	mux.Handle("GET /realtime.js", realtime.Script())
	mux.HandleFunc("GET /live", hub.ServeSSE)
	mux.HandleFunc("GET /board", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(board.encode())
	})
	return mux
}

//go:embed index.html
var page string

// servePage sends the page. Its policy allows only the script in it, which has
// this answer's nonce, and what that imports. They may connect to this server
// alone.
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

// A sample is one value of one metric. Pages get it as an event.
type sample struct {
	Metric string  `json:"metric"`
	Time   int64   `json:"time"` // Unix milliseconds
	Value  float64 `json:"value"`
}

// event returns the event that publishes the sample. It has a Key, so that a
// newer value replaces one that still waits for a slow page. A new page gets the
// latest event of each Key.
func (s sample) event() realtime.Event {
	e, _ := realtime.JSON("sample", s) // always encodes
	e.Key = s.Metric
	return e
}
