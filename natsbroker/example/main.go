// Example is a room on several nodes: who is at one hears those at the others.
// NATS runs inside the process, and so do two nodes. Start it and open the two
// addresses that it prints:
//
//	go run ./example
//
// On several machines, or here in two windows, each process is a node:
//
//	go run ./example -addr localhost:8080 -listen 127.0.0.1:6222
//	go run ./example -addr localhost:8081 -listen 127.0.0.1:6223 -routes 127.0.0.1:6222
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

func main() {
	addrs := flag.String("addr", "localhost:8080,localhost:8081", "`host:port` to serve the page at; of several, each is a node")
	var config natsbroker.Config
	flag.StringVar(&config.Listen, "listen", "127.0.0.1:0", "`host:port` at which other processes reach this one")
	routes := flag.String("routes", "", "`host:port,...` at which others listen")
	flag.StringVar(&config.Secret, "secret", "", "`text` that all share; needed where -listen is open to others")
	flag.Parse()
	if *routes != "" {
		config.Routes = strings.Split(*routes, ",")
	}
	if err := run(strings.Split(*addrs, ","), config); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// run serves a node at each address until the process is told to stop.
func run(addrs []string, config natsbroker.Config) (err error) {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var nodes []*node
	defer func() {
		stop() // a second Ctrl-C doesn't wait
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, n := range nodes {
			err = errors.Join(err, n.shutdown(ctx))
		}
	}()
	failed := make(chan error, len(addrs))
	for _, addr := range addrs {
		n, err := start(addr, config, failed)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		fmt.Printf("Node %s is at %s, and for others at %s\n", n.name, n.url, n.broker.ClusterAddr())

		// Further nodes of this process reach the others through the first.
		config.Listen = "127.0.0.1:0"
		config.Routes = append(config.Routes, nodes[0].broker.ClusterAddr())
	}
	select {
	case err := <-failed:
		return err
	case <-interrupted.Done():
		return nil
	}
}

// A node is a hub that others are joined with, and its web server.
type node struct {
	name   string
	url    string
	broker *natsbroker.Broker
	hub    *realtime.Hub
	server *http.Server
}

// start starts a node, whose server's end it sends to failed.
func start(addr string, config natsbroker.Config, failed chan<- error) (*node, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w (-addr chooses another address)", err)
	}
	broker, err := natsbroker.Embedded(config)
	if err != nil {
		listener.Close()
		return nil, err
	}
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // of localhost:0, too
	n := &node{name: port, url: "http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port), broker: broker, hub: realtime.NewHub()}
	n.hub.Broker = broker
	n.hub.CheckOrigin = realtime.SameOrigin
	n.hub.MaxMessageBytes = 4 << 10
	n.hub.OnConnect = n.welcome
	n.hub.OnMessage = n.said

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", servePage)
	mux.Handle("GET /realtime.js", realtime.Script())
	mux.Handle("GET /live", n.hub)
	n.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { failed <- n.server.Serve(listener) }() // until shutdown
	go n.count()                                       // until the hub is shut down
	return n, nil
}

// shutdown ends the hub and the server, which have to begin together: see the
// chat. The hub closes its broker, and that the NATS server in it.
func (n *node) shutdown(ctx context.Context) error {
	n.server.RegisterOnShutdown(func() { n.hub.Shutdown(ctx) })
	return errors.Join(n.server.Shutdown(ctx), n.hub.Shutdown(ctx))
}

// welcome tells a page which node it is at.
func (n *node) welcome(c *realtime.Client, _ *http.Request) error {
	if err := c.Subscribe("room"); err != nil {
		return err
	}
	return c.SendEvent(realtime.Event{Name: "welcome", Data: []byte(n.name)})
}

// said publishes what a page says to those of all nodes.
func (n *node) said(hub *realtime.Hub, msg realtime.Message) {
	text := strings.TrimSpace(string(msg.Data))
	if text == "" || !utf8.ValidString(text) {
		return
	}
	data, _ := json.Marshal(map[string]string{"node": n.name, "text": text}) // always encodes
	err := hub.Publish(context.Background(), "room", realtime.Event{Name: "said", Data: data})
	if errors.Is(err, realtime.ErrBrokerUnavailable) {
		msg.Client.SendEvent(realtime.Event{Name: "alone"}) // those of this node have got it
	}
}

// count tells pages how many there are.
func (n *node) count() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-n.hub.Done():
			return
		}
		counts := fmt.Sprintf(`{"here": %d, "everywhere": %d}`, n.hub.ClientCount(), n.hub.ClusterClientCount())
		for c := range n.hub.Clients() {
			c.SendEvent(realtime.Event{Name: "count", Key: "count", Data: []byte(counts)})
		}
	}
}

//go:embed index.html
var page string

// servePage sends the page. Its policy lets nothing run but the script in it
// and what that imports, and lets them talk to nobody but us.
func servePage(w http.ResponseWriter, r *http.Request) {
	nonce := rand.Text()
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; script-src 'nonce-%[1]s'; style-src 'nonce-%[1]s'; "+
		"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "+
		"require-trusted-types-for 'script'", nonce))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store") // the nonce is for once
	io.WriteString(w, strings.ReplaceAll(page, "NONCE", nonce))
}
