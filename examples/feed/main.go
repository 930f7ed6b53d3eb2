// Feed is a live feed: one HTTP handler writes an event stream, and a page shows
// it.
//
//	go run ./examples/feed -addr localhost:8080
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

//go:embed index.html
var page []byte

var watching atomic.Int64 // open streams

// feed sends the time and the number of open streams once a second.
func feed(w http.ResponseWriter, r *http.Request) {
	stream := realtime.NewStream(w, r)
	if stream == nil {
		return // NewStream has answered the request
	}
	defer stream.Close()
	watching.Add(1)
	defer watching.Add(-1)

	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()

	for {
		select {
		case t := <-ticker.C:
			stream.Send("tick", map[string]any{
				"time":  t.Format(time.RFC3339),
				"count": watching.Load(),
			})
		case <-stream.Done(): // the client disconnected, or the program ends
			return
		}
	}
}

func run(addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /events/feed", feed)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page)
	})
	server := &http.Server{
		Handler: mux,
		// Every stream ends with ctx. Shutdown alone would wait for them for
		// ever: it doesn't end requests.
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      5 * time.Second, // for the page: NewStream lifts it for a stream
	}

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Printf("Feed is at http://%s (Ctrl-C stops it)\n", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		stop() // a second Ctrl-C ends the program at once
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

func main() {
	addr := flag.String("addr", "localhost:8080", "`host:port` to listen on")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal(err)
	}
}
