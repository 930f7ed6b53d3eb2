// Example is a room on several nodes, which Redis joins. Redis also keeps their
// history. Start it and open the two addresses that it prints:
//
//	redis-server --save '' &
//	go run ./example
//
// On several machines, or in two windows of one, each process is a node. Stop
// one, say something at the other, and start it again: its page gets what was
// said.
//
//	go run ./example -addr localhost:8080 -redis localhost:6379
//	go run ./example -addr localhost:8081 -redis localhost:6379
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

func main() {
	addrs := flag.String("addr", "localhost:8080,localhost:8081", "`host:port,...` to serve the page at; each is a node")
	redis := flag.String("redis", "localhost:6379", "`host:port,...` of Redis, or of some nodes of a cluster")
	flag.Parse()
	options := rueidis.ClientOption{InitAddress: strings.Split(*redis, ",")}
	if err := room.Run(strings.Split(*addrs, ","), brokers(options)); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// brokers returns a function that makes the broker of each node.
func brokers(options rueidis.ClientOption) func(int) (realtime.Broker, error) {
	return func(int) (realtime.Broker, error) {
		return redisbroker.Connect("room", options).WithHistory(), nil
	}
}
