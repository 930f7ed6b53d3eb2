package natsbroker_test

import (
	"bufio"
	"context"
	"fmt"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// The hub keeps working while no server can be reached; its events then reach
// its own clients alone.
func ExampleNew() {
	conn, err := nats.Connect("nats://10.0.0.5:4222,nats://10.0.0.6:4222", natsbroker.Options()...)
	if err != nil {
		stdlog.Fatal(err)
	}
	hub := realtime.NewHub()
	hub.Broker = natsbroker.New("chat", conn)

	// …

	hub.Shutdown(context.Background())
	conn.Close() // which is not the hub's
}

// Two hubs, as if each were a process of its own.
func ExampleEmbedded() {
	first, err := natsbroker.Embedded("chat", natsbroker.Config{Listen: "127.0.0.1:0"}) // in production a port of your choice
	if err != nil {
		stdlog.Fatal(err)
	}
	here := realtime.NewHub()
	here.Broker = first
	defer here.Shutdown(context.Background())

	second, err := natsbroker.Embedded("chat", natsbroker.Config{Listen: "127.0.0.1:0", Routes: []string{first.ClusterAddr()}})
	if err != nil {
		stdlog.Fatal(err)
	}
	there := realtime.NewHub()
	there.Broker = second
	defer there.Shutdown(context.Background())

	web := httptest.NewServer(http.HandlerFunc(there.ServeSSE))
	defer web.Close()
	answer, err := http.Get(web.URL + "?topic=news") // returns once the client gets the events of all nodes
	if err != nil {
		stdlog.Fatal(err)
	}
	defer answer.Body.Close()

	here.Publish(context.Background(), "news", realtime.Event{Data: []byte("it works")})
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			fmt.Println(text)
			return
		}
	}
	// Output: it works
}

// A history that all nodes share, kept by three servers of a cluster.
func ExampleBroker_WithHistory() {
	conn, err := nats.Connect("nats://10.0.0.5:4222", natsbroker.Options()...)
	if err != nil {
		stdlog.Fatal(err)
	}
	broker := natsbroker.New("chat", conn).WithHistory()
	broker.Replicas = 3

	hub := realtime.NewHub()
	hub.History.Age = 10 * time.Minute
	hub.Broker = broker
}
