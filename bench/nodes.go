//go:build linux

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// With these flags this program is another process.
const (
	nodeFlag = "-serve-node" // followed by a contender's name and an engineConfig
	natsFlag = "-serve-nats" // followed by a port and a folder
)

const (
	nodeClients = 10  // of each node
	nodeBurst   = 128 // messages that each node publishes at a time
)

// serveAsNode is a node's process. It prints its port. On "publish N" it publishes
// N messages at a time, each by a goroutine of its own. Then it prints how many
// it could not publish.
func serveAsNode(name, config string, in io.Reader, out io.Writer) error {
	i := slices.IndexFunc(nodeContenders, func(c nodeContender) bool { return c.name == name })
	var e engineConfig
	if err := json.Unmarshal([]byte(config), &e); err != nil || i < 0 {
		return errors.Join(fmt.Errorf("no contender is called %q", name), err)
	}
	clients, publish, err := nodeContenders[i].serve(e)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(l, clients) // until the process ends
	fmt.Fprintln(out, l.Addr().(*net.TCPAddr).Port)
	published := int64(0)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		n, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "publish "))
		if err != nil {
			return err
		}
		var failed atomic.Int64
		var publishing sync.WaitGroup
		for range n {
			published++
			seq := published
			publishing.Go(func() {
				msg := message{seq, time.Now().UnixNano()}.appendTo(make([]byte, 0, messageBytes))
				if publish(msg) != nil {
					failed.Add(1)
				}
			})
		}
		publishing.Wait()
		fmt.Fprintln(out, failed.Load())
	}
	return nil
}

// serveNATS is the process of a NATS server.
func serveNATS(port, folder string, in io.Reader) error {
	o := &natsserver.Options{Host: "127.0.0.1", JetStream: true, StoreDir: folder, NoLog: true, NoSigs: true}
	o.Port, _ = strconv.Atoi(port)
	s, err := natsserver.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	_, err = io.Copy(io.Discard, in)
	s.Shutdown()
	return err
}

// An engine is the process of a server that nodes use.
type engine struct {
	addr string
	cmd  *exec.Cmd
	in   io.Closer
	dir  string
}

// startEngine starts a server, or nothing where kind is empty.
func startEngine(ctx context.Context, kind string) (*engine, error) {
	port, err := freePort()
	if err != nil || kind == "" {
		return &engine{}, err
	}
	e := &engine{addr: net.JoinHostPort("127.0.0.1", port)}
	if e.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, err
	}
	switch kind {
	case "redis":
		e.cmd = exec.CommandContext(ctx, "redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", e.dir, "--save", "", "--appendonly", "no", "--loglevel", "warning")
	case "nats":
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		e.cmd = exec.CommandContext(ctx, self, natsFlag, port, e.dir)
	}
	if e.in, err = e.cmd.StdinPipe(); err == nil {
		err = e.cmd.Start()
	}
	for deadline := time.Now().Add(10 * time.Second); err == nil; time.Sleep(10 * time.Millisecond) {
		conn, dialErr := net.Dial("tcp", e.addr)
		if dialErr == nil {
			conn.Close()
			return e, nil
		}
		if time.Now().After(deadline) {
			err = dialErr
		}
	}
	e.stop()
	return nil, fmt.Errorf("%s: %w", kind, err)
}

func freePort() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func (e *engine) cpu() time.Duration {
	if e.cmd == nil {
		return 0
	}
	return processCPU(e.cmd.Process.Pid)
}

func (e *engine) stop() {
	if e.cmd == nil {
		return
	}
	if e.cmd.Process != nil {
		e.cmd.Process.Kill()
		e.cmd.Wait()
	}
	e.in.Close()
	os.RemoveAll(e.dir)
}

// nodeFigures are the figures of one contender in one round on several nodes.
type nodeFigures struct {
	near, far latency // of messages one at a time: to clients of the same node, and of others
	single    float64 // microseconds of CPU a message, for all nodes and the engine
	burst     float64 // the same in bursts
	second    float64 // messages a second in bursts; each reaches all clients
	lost      int64   // deliveries
	refused   int     // messages
}

// measureNodes measures a contender once on that number of nodes.
func measureNodes(ctx context.Context, c *nodeContender, nodes int, duration time.Duration) (f nodeFigures, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	e, err := startEngine(ctx, c.engine)
	if err != nil {
		return f, err
	}
	defer e.stop()
	configs := make([]engineConfig, nodes)
	var routes []string
	for i := range configs {
		configs[i] = engineConfig{Addr: e.addr, Keep: c.keeps}
		if c.engine == "" {
			port, err := freePort()
			if err != nil {
				return f, err
			}
			routes = append(routes, net.JoinHostPort("127.0.0.1", port))
		}
	}
	s := &nodeStage{done: make(chan struct{}, 1)}
	var servers []*server
	for i := range configs {
		if c.engine == "" {
			configs[i].Listen, configs[i].Routes = routes[i], routes
		}
		config, err := json.Marshal(configs[i])
		if err != nil {
			return f, err
		}
		srv, err := startProcess(ctx, nodeFlag, c.name, string(config))
		if err != nil {
			return f, err
		}
		defer srv.stop()
		servers = append(servers, srv)
	}
	for i, srv := range servers {
		l, err := newLoad(ctx, c.clients, srv.port, nodeClients, 1)
		if err != nil {
			return f, err
		}
		defer l.close()
		l.enter(nodeClient{s, i})
		if err := l.connect(5 * time.Second); err != nil {
			return f, err
		}
	}
	s.clients = int64(nodes * nodeClients)
	if err := s.greet(servers); err != nil {
		return f, err
	}
	cpu := func() (total time.Duration) {
		for _, srv := range servers {
			total += srv.cpu()
		}
		return total + e.cpu()
	}
	for _, warm := range []bool{true, false} {
		d := duration
		if warm {
			d /= 4
		}
		before, n := cpu(), 0
		s.forget()
		for end := time.Now().Add(d); time.Now().Before(end); n++ {
			if err := s.round(servers[:1], 1, &f); err != nil {
				return f, err
			}
		}
		f.single = (cpu() - before).Seconds() * 1e6 / float64(n)
		f.near, f.far = s.latencies()
		began := time.Now()
		before, n = cpu(), 0
		for time.Since(began) < d {
			if err := s.round(servers, nodeBurst, &f); err != nil {
				return f, err
			}
			n += nodes * nodeBurst
		}
		f.second = float64(n) / time.Since(began).Seconds()
		f.burst = (cpu() - before).Seconds() * 1e6 / float64(n)
	}
	return f, nil
}

// A nodeStage is the stage of all clients of all nodes.
type nodeStage struct {
	clients int64
	waiting atomic.Int64  // deliveries that have not come
	done    chan struct{} // gets a value when waiting is 0; has room for one

	mu        sync.Mutex // guards the fields below
	publisher int        // the node that publishes messages one at a time
	near, far histogram
}

// forget clears the latencies.
func (s *nodeStage) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.near, s.far = histogram{}, histogram{}
}

func (s *nodeStage) latencies() (near, far latency) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.near.latency(), s.far.latency()
}

// A nodeClient is the stage for the clients of one node.
type nodeClient struct {
	*nodeStage
	node int
}

func (s nodeClient) got(_ *client, m message, now int64) error {
	s.mu.Lock()
	if s.node == s.publisher {
		s.near.add(now - m.at)
	} else {
		s.far.add(now - m.at)
	}
	s.mu.Unlock()
	if s.waiting.Add(-1) == 0 {
		s.done <- struct{}{}
	}
	return nil
}

func (nodeClient) gone(*client) {}

// greet publishes until every client gets the messages of every node.
func (s *nodeStage) greet(servers []*server) error {
	for try := 0; ; try++ {
		var f nodeFigures
		err := s.round(servers, 1, &f)
		if err == nil && f.lost == 0 && f.refused == 0 {
			return nil
		}
		if err != nil || try == 10 {
			return cmp.Or(err, errors.New("nodes don't get each other's messages"))
		}
	}
}

// round lets each node publish n messages and waits until all clients have all of
// them. Those that have not come after 5 s count as lost.
func (s *nodeStage) round(servers []*server, n int, f *nodeFigures) error {
	s.waiting.Store(s.clients * int64(n*len(servers)))
	for _, srv := range servers {
		if err := srv.publish(n); err != nil {
			return err
		}
	}
	for _, srv := range servers {
		line, err := srv.answers.ReadString('\n')
		if err != nil {
			return err
		}
		refused, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return err
		}
		f.refused += refused
	}
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		f.lost += s.waiting.Swap(1 << 40)
	}
	return nil
}
