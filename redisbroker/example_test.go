package redisbroker_test

import (
	"context"
	"log"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// Each process has a hub with a broker of its own. The hub keeps working while
// Redis can't be reached; its events then reach its own clients alone.
func ExampleConnect() {
	hub := realtime.NewHub()
	hub.Broker = redisbroker.Connect("chat", rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
}

// A URL has all of the options, as "rediss://user:password@redis.example:6380"
// for TLS.
func ExampleConnect_url() {
	options, err := rueidis.ParseURL("redis://localhost:6379")
	if err != nil {
		return
	}
	hub := realtime.NewHub()
	hub.Broker = redisbroker.Connect("chat", options)
}

// A client that the program also uses for other things.
func ExampleNew() {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
	if err != nil {
		log.Fatal(err)
	}
	hub := realtime.NewHub()
	hub.Broker = redisbroker.New("chat", client)

	// …

	hub.Shutdown(context.Background())
	client.Close() // which is not the hub's
}

// A history that all nodes share, kept by Redis.
func ExampleBroker_WithHistory() {
	options := rueidis.ClientOption{InitAddress: []string{"localhost:6379"}}
	broker := redisbroker.Connect("chat", options).WithHistory()
	broker.MaxRecords = 100_000

	hub := realtime.NewHub()
	hub.History.Age = 10 * time.Minute
	hub.Broker = broker
}
