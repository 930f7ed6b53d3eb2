// Example is a chat room on several nodes: start it twice, with the Redis that
// joins them, and open the addresses that they print:
//
//	redis-server --save '' &
//	go run ./example -addr localhost:8081 -redis localhost:6379
//	go run ./example -addr localhost:8082 -redis localhost:6379
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

func main() {
	addr := flag.String("addr", "localhost:8081", "`host:port` to listen on")
	redis := flag.String("redis", "localhost:6379", "`host:port` of Redis, or several of a cluster, with commas")
	flag.Parse()
	if err := run(*addr, strings.Split(*redis, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// run serves a node until the process is told to stop.
func run(addr string, redis []string) error {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w (-addr chooses another address)", err)
	}
	hub := newHub(listener.Addr().String(), redis)
	server := &http.Server{Handler: newHandler(hub, listener.Addr().String()), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Printf("This node is at http://%s\n", listener.Addr())
	select {
	case err := <-served:
		return err
	case <-interrupted.Done():
		stop() // a second Ctrl-C doesn't wait
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server.RegisterOnShutdown(func() { hub.Shutdown(ctx) })
	return errors.Join(server.Shutdown(ctx), hub.Shutdown(ctx))
}

// A message is what everybody gets, as JSON.
type message struct {
	Node string // whose client says it
	Text string
}

// newHub returns the hub of a node.
func newHub(node string, redis []string) *realtime.Hub {
	hub := realtime.NewHub()
	hub.CheckOrigin = realtime.SameOrigin
	hub.History.Events = 100
	hub.Broker = &redisbroker.Broker{Options: rueidis.ClientOption{InitAddress: redis}}
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		data, err := json.Marshal(message{node, string(msg.Data)})
		if err != nil {
			return
		}
		// An error would be that Redis is away: this node's clients still get it.
		hub.PublishAll(context.Background(), realtime.Event{Data: data})
	}
	return hub
}

//go:embed index.html
var page string

// newHandler returns what a node serves: the page and the hub.
func newHandler(hub *realtime.Hub, node string) http.Handler {
	tmpl := template.Must(template.New("page").Parse(page))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		tmpl.Execute(w, node) // an error is the browser's that has left
	})
	mux.Handle("GET /hub", hub)
	mux.HandleFunc("GET /clients", func(w http.ResponseWriter, r *http.Request) {
		stats := hub.Stats()
		fmt.Fprintf(w, "%d here, %d in all, %d gaps", hub.ClientCount(), hub.ClusterClientCount(), stats.Gaps)
	})
	return mux
}
