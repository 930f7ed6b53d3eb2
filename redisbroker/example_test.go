package redisbroker_test

import (
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// Each process has a hub with a Broker of its own.
func Example() {
	hub := realtime.NewHub()
	hub.Broker = &redisbroker.Broker{
		Options: rueidis.ClientOption{InitAddress: []string{"localhost:6379"}},
	}
}

// A URL says it all, as "rediss://user:password@redis.example:6380" for TLS.
func Example_url() {
	options, err := rueidis.ParseURL("redis://localhost:6379")
	if err != nil {
		return
	}
	hub := realtime.NewHub()
	hub.Broker = &redisbroker.Broker{Options: options, Prefix: "chat:"}
}

// A hub that has a History keeps it in Redis, for all nodes.
func ExampleHistoryBroker() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 100, Age: 10 * time.Minute}
	hub.Broker = &redisbroker.HistoryBroker{Broker: redisbroker.Broker{
		Options: rueidis.ClientOption{InitAddress: []string{"localhost:6379"}},
	}}
}
