// Dashboard is a page of live numbers and charts over an event stream. Its user
// chooses the topics. A page loads the board and gets each sample since then,
// once. So does a page that lost its connection. After a restart the server
// doesn't know any more what such a page has, and the page loads the board again.
// All tabs of a browser share one connection. Start it and open the address that
// it prints:
//
//	go run ./examples/dashboard
package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/internal/look"
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
	// A page that reconnects gets what it missed. An alert stays until it ends.
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

//go:embed index.html
var page string

func newHandler(board *board, hub *realtime.Hub) http.Handler {
	mux := http.NewServeMux()
	look.Handle(mux, page)
	mux.Handle("GET /realtime.js", realtime.Script())
	mux.HandleFunc("GET /live", hub.ServeSSE)
	mux.HandleFunc("GET /board", func(w http.ResponseWriter, r *http.Request) {
		// Before the board is read: the page gets all that comes after the
		// position, so nothing is lost in between. It may have some twice.
		position := hub.Position()
		alerts := []json.RawMessage{}
		for _, t := range board.Topics {
			for e := range hub.Latest(t.Name) {
				alerts = append(alerts, e.Data)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(board.encode(position, alerts))
	})
	return mux
}

// A sample has the value of each of a topic's metrics at one time.
type sample struct {
	Time   int64              `json:"time"` // Unix milliseconds
	Values map[string]float64 `json:"values"`
}

// event returns the event that publishes the sample. It has no Key, so that a
// page that reconnects gets each sample that it missed, for the charts.
func (s sample) event() realtime.Event {
	e, _ := realtime.JSON("sample", s) // always encodes
	return e
}

// An alert says that a metric is far above its usual value.
type alert struct {
	Metric string `json:"metric"`
	Since  int64  `json:"since"` // Unix milliseconds
}

// begin returns the event that publishes the alert. Its Key makes it a value that
// stays: a page that comes an hour later still gets it.
func (a alert) begin() realtime.Event {
	e, _ := realtime.JSON("alert", a) // always encodes
	e.Key = a.Metric
	return e
}

// end returns the event that takes the alert away.
func (a alert) end() realtime.Event {
	return realtime.Event{Name: "alert", Key: a.Metric, Gone: true}
}
