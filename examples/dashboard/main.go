// Dashboard is a page of live numbers and charts over an event stream. Whoever
// opens it chooses the topics, has the latest values at once, and misses
// nothing when the connection is lost; a page that can't be told what it missed,
// because the server was restarted, loads everything anew. Start it and open
// the address that it prints:
//
//	go run ./examples/dashboard
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
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // of -addr localhost:0, too
	fmt.Println("Dashboard is at http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port))

	select {
	case err := <-served:
		return err
	case <-interrupted.Done():
		stop() // a second Ctrl-C doesn't wait
	}

	// Both have to begin together: the server waits for event streams that it
	// still knows of, and they end when the hub begins to.
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
	// What a page misses while its connection is lost, and the latest value of
	// each Key for one that is new.
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

// servePage sends the page. Its policy lets nothing run but the script in it
// and what that imports, and lets them talk to nobody but us.
func servePage(w http.ResponseWriter, r *http.Request) {
	nonce := rand.Text()
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; script-src 'nonce-%[1]s'; style-src 'nonce-%[1]s'; "+
		"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "+
		"require-trusted-types-for 'script'", nonce))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store") // the nonce is for once
	io.WriteString(w, strings.ReplaceAll(page, "NONCE", nonce))
}

// A sample is what pages get as an event: one value of one metric.
type sample struct {
	Metric string  `json:"metric"`
	Time   int64   `json:"time"` // Unix milliseconds
	Value  float64 `json:"value"`
}

// event returns the sample as it is published. Its Key makes a newer value
// replace one that still waits for a slow page, and is what a new page gets
// the latest event of.
func (s sample) event() realtime.Event {
	data, _ := json.Marshal(s) // always encodes
	return realtime.Event{Name: "sample", Key: s.Metric, Data: data}
}
