// Package room is a chat room on several nodes. A message at one node reaches the
// pages of all. The brokers' examples serve it. Its page shows the nodes of the
// process side by side, and can cut one off from the others.
package room

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/internal/look"
)

const maxTextRunes = 1000

// A Connect makes the broker of a node. cut cuts the node off from its engine, or
// joins them again; see [Proxy.Cut]. It is nil where that can't be done.
type Connect func(node int) (broker realtime.Broker, cut func(bool) error, err error)

// Run serves nodes with those names at addr until the process is told to stop.
func Run(addr string, names []string, connect Connect) error {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed := make(chan error, 1)
	room, err := Start(addr, names, connect, failed)
	if err != nil {
		return err
	}
	fmt.Printf("Room is at %s\n", room.URL)
	select {
	case err = <-failed:
	case <-interrupted.Done():
		stop() // a second Ctrl-C ends the program at once
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(err, room.Shutdown(ctx))
}

// A Room is the nodes of a process and their web server.
type Room struct {
	URL string

	nodes  map[string]*node
	server *http.Server
}

// A node is a hub that an engine joins with those of other nodes.
type node struct {
	name string
	hub  *realtime.Hub
	cut  func(bool) error // nil: it can't be
	told chan bool        // whether it is cut off; has room for one
}

// Start starts a room. When its server ends, the error is sent to failed.
func Start(addr string, names []string, connect Connect, failed chan<- error) (*Room, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w (-addr chooses another address)", err)
	}
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // the real one, also for localhost:0
	r := &Room{URL: "http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port), nodes: make(map[string]*node)}
	for i, name := range names {
		broker, cut, err := connect(i)
		if err != nil {
			listener.Close()
			return nil, errors.Join(err, r.shutdownNodes(context.Background()))
		}
		r.nodes[name] = newNode(name, broker, cut)
	}

	mux := http.NewServeMux()
	look.Handle(mux, page)
	mux.Handle("GET /realtime.js", realtime.Script())
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(names)
	})
	mux.HandleFunc("GET /nodes/{name}/live", func(w http.ResponseWriter, req *http.Request) {
		if n := r.nodes[req.PathValue("name")]; n != nil {
			n.hub.ServeHTTP(w, req)
		} else {
			http.NotFound(w, req)
		}
	})
	r.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { failed <- r.server.Serve(listener) }() // until Shutdown
	return r, nil
}

// Shutdown shuts down the hubs and the server. They have to begin together:
// examples/chat says why. The hubs close their brokers.
func (r *Room) Shutdown(ctx context.Context) error {
	r.server.RegisterOnShutdown(func() { r.shutdownNodes(ctx) })
	return errors.Join(r.server.Shutdown(ctx), r.shutdownNodes(ctx))
}

func (r *Room) shutdownNodes(ctx context.Context) (err error) {
	for _, n := range r.nodes {
		err = errors.Join(err, n.hub.Shutdown(ctx))
		if n.cut != nil {
			n.cut(true) // so that nothing is left running
		}
	}
	return err
}

func newNode(name string, broker realtime.Broker, cut func(bool) error) *node {
	n := &node{name: name, hub: realtime.NewHub(), cut: cut, told: make(chan bool, 1)}
	n.hub.Broker = broker
	n.hub.History = realtime.History{Events: 100} // for pages that reconnect
	n.hub.CheckOrigin = realtime.SameOrigin
	n.hub.MaxMessageBytes = 16 << 10
	n.hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
		err := c.Subscribe("room")
		if errors.Is(err, realtime.ErrBrokerUnavailable) {
			return nil // the page still gets this node's events
		}
		return err
	}
	n.hub.OnMessage = n.hear
	go n.report() // until the hub is shut down
	return n
}

// hear publishes what a page says to the pages of all nodes. Or the page asks to cut
// off the node.
func (n *node) hear(hub *realtime.Hub, msg realtime.Message) {
	var in struct {
		ID   string // chosen by the page, which knows its own messages by it
		Text string
		Cut  *bool
	}
	if err := json.Unmarshal(msg.Data, &in); err != nil {
		return
	}
	if in.Cut != nil && n.cut != nil {
		if err := n.cut(*in.Cut); err == nil {
			n.told <- *in.Cut
		}
		return
	}
	in.Text = strings.TrimSpace(in.Text)
	if length := utf8.RuneCountInString(in.Text); length == 0 || length > maxTextRunes || len(in.ID) > 64 {
		return
	}
	said, _ := realtime.JSON("said", map[string]any{"id": in.ID, "node": n.name, "text": in.Text, "time": time.Now().UTC()}) // always encodes
	if err := hub.Publish(context.Background(), "room", said); errors.Is(err, realtime.ErrBrokerUnavailable) {
		// Only this node's pages got it. The one that said it is told.
		msg.Client.SendEvent(realtime.Event{Name: "alone", Data: []byte(in.ID)})
	}
}

// report tells the pages of the node how it is, each second.
func (n *node) report() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	cut := false
	for {
		stats := n.hub.Stats()
		status, _ := realtime.JSON("status", map[string]any{"here": stats.Clients, "everywhere": stats.ClusterClients, "gaps": stats.Gaps,
			"cut": cut, "cuttable": n.cut != nil})
		status.Key = "status" // a newer one replaces one that still waits
		for c := range n.hub.Clients() {
			c.SendEvent(status)
		}
		select {
		case cut = <-n.told:
		case <-ticker.C:
		case <-n.hub.Done():
			return
		}
	}
}

//go:embed index.html
var page string
