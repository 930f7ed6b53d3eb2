// Example is a room on several nodes, which NATS joins. Two nodes and their NATS
// servers run inside the process. Start it and open the two addresses that it
// prints:
//
//	go run ./example
//
// On several machines, or in several windows of one, each process is a node:
//
//	go run ./example -addr localhost:8080 -listen 127.0.0.1:6222
//	go run ./example -addr localhost:8081 -listen 127.0.0.1:6223 -routes 127.0.0.1:6222
//
// With a directory each, three nodes keep a history that all of them share. Stop
// one, say something at another, and start it again: its page gets what was said.
//
//	all=127.0.0.1:6222,127.0.0.1:6223,127.0.0.1:6224
//	go run ./example -addr localhost:8080 -listen 127.0.0.1:6222 -routes $all -store /tmp/room/0
//	go run ./example -addr localhost:8081 -listen 127.0.0.1:6223 -routes $all -store /tmp/room/1
//	go run ./example -addr localhost:8082 -listen 127.0.0.1:6224 -routes $all -store /tmp/room/2
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

func main() {
	addrs := flag.String("addr", "localhost:8080,localhost:8081", "`host:port,...` to serve the page at; each is a node")
	var config natsbroker.Config
	flag.StringVar(&config.Listen, "listen", "127.0.0.1:0", "`host:port` at which this process accepts the other ones")
	routes := flag.String("routes", "", "`host:port,...` at which the other processes listen")
	flag.StringVar(&config.Secret, "secret", "", "`text` that all processes share; required where other machines can reach -listen")
	flag.StringVar(&config.StoreDir, "store", "", "`directory` of this process alone, for the history")
	flag.Parse()
	if *routes != "" {
		config.Routes = strings.Split(*routes, ",")
	}
	if err := room.Run(strings.Split(*addrs, ","), brokers(config)); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// brokers returns a function that makes the broker of each node. The nodes of
// this process reach those of others through its first node.
func brokers(config natsbroker.Config) func(int) (realtime.Broker, error) {
	return func(int) (realtime.Broker, error) {
		broker, err := natsbroker.Embedded("room", config)
		if err != nil {
			return nil, err
		}
		if addr := broker.ClusterAddr(); config.Listen != "127.0.0.1:0" || len(config.Routes) == 0 {
			config.Listen, config.Routes = "127.0.0.1:0", append(config.Routes, addr)
		}
		if config.StoreDir != "" {
			return broker.WithHistory(), nil
		}
		return broker, nil
	}
}
