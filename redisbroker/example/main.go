// Example is a room on several nodes, which Redis joins. Redis also keeps their
// history. Start it and open the address that it prints:
//
//	redis-server --save '' &
//	go run ./example
//
// On several machines, or in two windows of one, each process is a node. Stop
// one, say something at the other, and start it again: its page gets what was
// said.
//
//	go run ./example -nodes A -addr localhost:8080 -redis localhost:6379
//	go run ./example -nodes B -addr localhost:8081 -redis localhost:6379
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
	addr := flag.String("addr", "localhost:8080", "`host:port` to serve the page at")
	names := flag.String("nodes", "A,B", "`names` of the nodes in this process")
	redis := flag.String("redis", "localhost:6379", "`host:port,...` of Redis, or of some nodes of a cluster")
	flag.Parse()
	if err := room.Run(*addr, strings.Split(*names, ","), brokers(strings.Split(*redis, ","))); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// brokers returns a function that makes the broker of each node. A node can be cut
// off from a single Redis, but not from a cluster, whose nodes it finds by itself.
func brokers(addrs []string) room.Connect {
	return func(int) (broker realtime.Broker, cut func(bool) error, err error) {
		options := rueidis.ClientOption{InitAddress: addrs}
		if len(addrs) == 1 {
			proxy, err := room.NewProxy(addrs[0])
			if err != nil {
				return nil, nil, err
			}
			options.InitAddress, cut = []string{proxy.Addr}, proxy.Cut
		}
		return redisbroker.Connect("room", options).WithHistory(), cut, nil
	}
}
