// Package room is a chat room on several nodes. What is said at one node reaches
// the pages of all. The brokers' examples serve it.
package room

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
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
)

// Run serves a node at each address until the process is told to stop. Each node
// has a broker of its own.
func Run(addrs []string, newBroker func(node int) (realtime.Broker, error)) (err error) {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var nodes []*Node
	defer func() {
		stop() // a second Ctrl-C ends the program at once
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, n := range nodes {
			err = errors.Join(err, n.Shutdown(ctx))
		}
	}()
	failed := make(chan error, len(addrs))
	for i, addr := range addrs {
		broker, err := newBroker(i)
		if err != nil {
			return err
		}
		n, err := Start(addr, broker, failed)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		fmt.Printf("Node %s is at %s\n", n.Name, n.URL)
	}
	select {
	case err := <-failed:
		return err
	case <-interrupted.Done():
		return nil
	}
}

// A Node is a hub that is joined with others, and its web server.
type Node struct {
	Name string // its port
	URL  string

	hub    *realtime.Hub
	server *http.Server
}

// Start starts a node. When the node's server ends, its error is sent to failed.
// If Start fails, it closes the broker.
func Start(addr string, broker realtime.Broker, failed chan<- error) (*Node, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		broker.Close()
		return nil, fmt.Errorf("%w (-addr chooses another address)", err)
	}
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // the real one, also for localhost:0
	n := &Node{Name: port, URL: "http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port), hub: realtime.NewHub()}
	n.hub.Broker = broker
	n.hub.History = realtime.History{Events: 100} // for pages that reconnect
	n.hub.CheckOrigin = realtime.SameOrigin
	n.hub.MaxMessageBytes = 4 << 10
	n.hub.OnConnect = n.welcome
	n.hub.OnMessage = n.said

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", servePage)
	mux.Handle("GET /realtime.js", realtime.Script())
	mux.Handle("GET /live", n.hub)
	n.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { failed <- n.server.Serve(listener) }() // until Shutdown
	go n.count()                                       // until the hub is shut down
	return n, nil
}

// Shutdown shuts down the hub and the server. Both have to begin together:
// examples/chat says why. The hub closes its broker.
func (n *Node) Shutdown(ctx context.Context) error {
	n.server.RegisterOnShutdown(func() { n.hub.Shutdown(ctx) })
	return errors.Join(n.server.Shutdown(ctx), n.hub.Shutdown(ctx))
}

// welcome tells a page which node it is at.
func (n *Node) welcome(c *realtime.Client, _ *http.Request) error {
	if err := c.Subscribe("room"); err != nil && !errors.Is(err, realtime.ErrBrokerUnavailable) {
		return err // with ErrBrokerUnavailable the page still gets this node's events
	}
	return c.SendEvent(realtime.Event{Name: "welcome", Data: []byte(n.Name)})
}

// said publishes a page's message to the pages of all nodes.
func (n *Node) said(hub *realtime.Hub, msg realtime.Message) {
	text := strings.TrimSpace(string(msg.Data))
	if text == "" || !utf8.ValidString(text) {
		return
	}
	said, _ := realtime.JSON("said", map[string]string{"node": n.Name, "text": text}) // always encodes
	err := hub.Publish(context.Background(), "room", said)
	if errors.Is(err, realtime.ErrBrokerUnavailable) {
		msg.Client.SendEvent(realtime.Event{Name: "alone"}) // only this node's pages got it
	}
}

// count sends the number of pages to all pages of this node.
func (n *Node) count() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-n.hub.Done():
			return
		}
		counts := fmt.Sprintf(`{"here": %d, "everywhere": %d}`, n.hub.ClientCount(), n.hub.Stats().ClusterClients)
		for c := range n.hub.Clients() {
			c.SendEvent(realtime.Event{Name: "count", Key: "count", Data: []byte(counts)})
		}
	}
}

//go:embed index.html
var page string

// servePage sends the page. Its policy allows only the script in it, which has
// this answer's nonce, and what that imports. They may connect to this server
// alone.
func servePage(w http.ResponseWriter, r *http.Request) {
	nonce := rand.Text()
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; script-src 'nonce-%[1]s'; style-src 'nonce-%[1]s'; "+
		"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "+
		"require-trusted-types-for 'script'", nonce))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store") // a nonce is used once
	io.WriteString(w, strings.ReplaceAll(page, "NONCE", nonce))
}
