package natsbroker_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// patience is the time that a test waits for an event that has to come.
const patience = 90 * time.Second

// TestMain fails on goroutines that tests have left running. In a process that a
// test has started it runs a node or a NATS server instead.
func TestMain(m *testing.M) {
	brokertest.Main(newNode)
	serveNATS()
	flag.Parse()
	flag.Set("test.parallel", "6") // the tests wait more than they work
	code := m.Run()
	for deadline := time.Now().Add(patience); code == 0 && runtime.NumGoroutine() > 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "goroutines are left:\n%s\n", stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
	}
	os.Exit(code)
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// Servers are NATS servers as a user would run them: one, or a cluster.
type servers struct {
	t       testing.TB
	options []server.Options

	mu      sync.Mutex // guards the fields below
	running []*server.Server
	brokers int
}

// newServers starts servers. They have the same ports after a restart.
func newServers(t testing.TB, n int) *servers {
	s := &servers{t: t, running: make([]*server.Server, n)}
	for range n {
		o := server.Options{Host: "127.0.0.1", Port: freePort(t), NoSigs: true, NoLog: true}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: freePort(t)}
			o.RoutesStr = fmt.Sprintf("nats://127.0.0.1:%d", o.Cluster.Port)
			if len(s.options) > 0 {
				o.RoutesStr = s.options[0].RoutesStr
			}
			o.Routes = server.RoutesFromStr(o.RoutesStr)
		}
		s.options = append(s.options, o)
	}
	s.begin()
	return s
}

// newStores starts servers with JetStream.
func newStores(t testing.TB, n int) *servers {
	s := &servers{t: t, running: make([]*server.Server, n)}
	var routes []string
	for i := range n {
		o := server.Options{ServerName: fmt.Sprint("s", i), Host: "127.0.0.1", Port: freePort(t), NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: freePort(t)}
			routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", o.Cluster.Port))
		}
		s.options = append(s.options, o)
	}
	for i := range s.options {
		s.options[i].Routes = server.RoutesFromStr(strings.Join(routes, ","))
	}
	s.begin()
	return s
}

func (s *servers) begin() {
	s.t.Cleanup(func() { s.Stop() })
	if err := s.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// freePort returns a free port. It is below 32768, because from there on the
// system chooses ports for connections, and a server needs its port again after a
// restart. For the same reason no two calls return the same port.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + int(lastPort.Add(1)%10000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

var lastPort atomic.Uint32 // begins at random, as other processes test, too

func init() { lastPort.Store(rand.Uint32N(10000)) }

func (s *servers) url(i int) string {
	return fmt.Sprintf("nats://127.0.0.1:%d", s.options[i].Port)
}

// Start starts the servers that don't run, and waits until all of them are
// connected with each other.
func (s *servers) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.options {
		if s.running[i] != nil {
			continue
		}
		o := s.options[i]
		n, err := server.NewServer(&o)
		if err != nil {
			return err
		}
		s.running[i] = n
		n.Start()
		if !n.ReadyForConnections(patience) {
			return errors.New("the server is not ready")
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		routed := true
		for _, n := range s.running {
			routed = routed && n.NumRemotes() == len(s.running)-1
		}
		if routed {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the servers are not connected with each other")
		}
	}
}

func (s *servers) Stop() error {
	for i := range s.options {
		s.kill(i)
	}
	return nil
}

func (s *servers) kill(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.running[i]; n != nil {
		n.Shutdown()
		n.WaitForShutdown()
		s.running[i] = nil
	}
}

// Broker returns a broker on a connection of its own, to one server after
// another.
func (s *servers) Broker() realtime.Broker {
	s.mu.Lock()
	i := s.brokers % len(s.options)
	s.brokers++
	s.mu.Unlock()
	return natsbroker.New("realtime", connect(s.t, s.url(i)))
}

// HistoryBroker is Broker with a history that all servers keep.
func (s *servers) HistoryBroker() realtime.HistoryBroker {
	b := s.Broker().(*natsbroker.Broker).WithHistory()
	b.Replicas = len(s.options)
	return b
}

func connect(t testing.TB, url string, options ...nats.Option) *nats.Conn {
	conn, err := nats.Connect(url, append(natsbroker.Options(), options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func TestServer(t *testing.T) {
	t.Parallel() // the test mostly waits
	brokertest.Run(t, func(t *testing.T) brokertest.Engine { return newServers(t, 1) })
}

func TestCluster(t *testing.T) {
	t.Parallel() // the test mostly waits
	brokertest.Run(t, func(t *testing.T) brokertest.Engine { return newServers(t, 3) })
}

// Embedded is an engine in which each broker has a server of its own.
type embedded struct {
	t   testing.TB
	all []*natsbroker.Broker
}

func (e *embedded) Broker() realtime.Broker {
	config := natsbroker.Config{Listen: "127.0.0.1:0", Secret: "a secret: @/?#"}
	if len(e.all) > 0 {
		config.Routes = []string{e.all[0].ClusterAddr()}
	}
	b, err := natsbroker.Embedded("realtime", config)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { b.Close() })
	e.all = append(e.all, b)
	for _, b := range e.all { // Embedded doesn't wait for all of the routes
		eventually(e.t, "routes of all servers", func() bool { return b.Remotes() == len(e.all)-1 })
	}
	return b
}

func (*embedded) Stop() error  { return errors.New("an embedded server is part of the process") }
func (*embedded) Start() error { return errors.ErrUnsupported }

func TestEmbedded(t *testing.T) {
	t.Parallel() // the test mostly waits
	brokertest.Run(t, func(t *testing.T) brokertest.Engine { return &embedded{t: t} })
}
