package redisbroker_test

import (
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
