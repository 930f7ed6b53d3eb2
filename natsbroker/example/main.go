// Example is a room on several nodes, which NATS joins. Two nodes and their NATS
// servers run inside the process. Start it and open the address that it prints:
//
//	go run ./example
//
// On several machines, or in several windows of one, each process is a node:
//
//	go run ./example -nodes A -addr localhost:8080 -listen 127.0.0.1:6222
//	go run ./example -nodes B -addr localhost:8081 -listen 127.0.0.1:6223 -routes 127.0.0.1:6222
//
// With a directory each, three nodes keep a history that all of them share. Stop
// one, say something at another, and start it again: its page gets what was said.
//
//	all=127.0.0.1:6222,127.0.0.1:6223,127.0.0.1:6224
//	go run ./example -nodes A -addr localhost:8080 -listen 127.0.0.1:6222 -routes $all -store /tmp/room/0
//	go run ./example -nodes B -addr localhost:8081 -listen 127.0.0.1:6223 -routes $all -store /tmp/room/1
//	go run ./example -nodes C -addr localhost:8082 -listen 127.0.0.1:6224 -routes $all -store /tmp/room/2
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "`host:port` to serve the page at")
	names := flag.String("nodes", "A,B", "`names` of the nodes in this process")
	var config natsbroker.Config
	flag.StringVar(&config.Listen, "listen", "127.0.0.1:0", "`host:port` at which this process accepts the other ones")
	routes := flag.String("routes", "", "`host:port,...` at which the other processes listen")
	flag.StringVar(&config.Secret, "secret", "", "`text` that all processes share; required where other machines can reach -listen")
	flag.StringVar(&config.StoreDir, "store", "", "`directory` of this process alone, for the history")
	flag.Parse()
	if *routes != "" {
		config.Routes = strings.Split(*routes, ",")
	}
	if err := room.Run(*addr, strings.Split(*names, ","), brokers(config)); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// brokers returns a function that makes the broker of each node. The nodes of this
// process reach the others through the first one.
//
// If there is no other process, they can be cut off from the first one. Publish
// still returns nil then: each node has a NATS server of its own, which accepts
// everything. That events were lost the hubs notice when the route is back.
func brokers(config natsbroker.Config) room.Connect {
	var first string // where it accepts others
	return func(node int) (realtime.Broker, func(bool) error, error) {
		config := config
		var cut func(bool) error
		if node > 0 {
			route := first
			if len(config.Routes) == 0 {
				proxy, err := room.NewProxy(first)
				if err != nil {
					return nil, nil, err
				}
				route, cut = proxy.Addr, proxy.Cut
			}
			config.Listen, config.Routes = "127.0.0.1:0", append(slices.Clone(config.Routes), route)
		}
		broker, err := natsbroker.Embedded("room", config)
		if err != nil {
			return nil, nil, err
		}
		if node == 0 {
			first = broker.ClusterAddr()
		}
		if config.StoreDir != "" {
			return broker.WithHistory(), cut, nil
		}
		return broker, cut, nil
	}
}
