// Example is a room on several nodes: who is at one hears those at the others.
// NATS runs inside the process, and so do two nodes. Start it and open the two
// addresses that it prints:
//
//	go run ./example
//
// On several machines, or here in several windows, each process is a node:
//
//	go run ./example -addr localhost:8080 -listen 127.0.0.1:6222
//	go run ./example -addr localhost:8081 -listen 127.0.0.1:6223 -routes 127.0.0.1:6222
//
// With a directory three nodes keep a history that all of them share: stop one
// and its page, which comes back with it, has missed nothing.
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
	addrs := flag.String("addr", "localhost:8080,localhost:8081", "`host:port` to serve the page at; of several, each is a node")
	var config natsbroker.Config
	flag.StringVar(&config.Listen, "listen", "127.0.0.1:0", "`host:port` at which other processes reach this one")
	routes := flag.String("routes", "", "`host:port,...` at which others listen")
	flag.StringVar(&config.Secret, "secret", "", "`text` that all share; needed where -listen is open to others")
	flag.StringVar(&config.StoreDir, "store", "", "`directory` of this node's for the history")
	flag.Parse()
	if *routes != "" {
		config.Routes = strings.Split(*routes, ",")
	}
	if err := room.Run(strings.Split(*addrs, ","), brokers(config)); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// brokers makes the nodes of this process, of which all reach the others through
// the first.
func brokers(config natsbroker.Config) func(int) (realtime.Broker, error) {
	return func(int) (realtime.Broker, error) {
		broker, err := natsbroker.Embedded(config)
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
