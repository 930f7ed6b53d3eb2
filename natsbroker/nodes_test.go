package natsbroker_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A nodeConfig is the configuration of a node's process.
type nodeConfig struct {
	History bool
	URL     string // of a server; empty: the node has an embedded server, with:

	Listen   string
	Routes   []string
	StoreDir string
}

func (c nodeConfig) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// newNode makes the broker of a node's process.
func newNode(config string) (realtime.Broker, error) {
	var c nodeConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return nil, err
	}
	var b *natsbroker.Broker
	var err error
	if c.URL == "" {
		b, err = natsbroker.Embedded(natsbroker.Config{
			Listen: c.Listen, Routes: c.Routes, StoreDir: c.StoreDir, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
	} else {
		var conn *nats.Conn
		conn, err = nats.Connect(c.URL, natsbroker.Options()...)
		b = natsbroker.New(conn)
	}
	if err != nil || !c.History {
		return b, err
	}
	return b.WithHistory(), nil
}

// serverVariable is set in the environment of a process that is a NATS server.
// Its value is the port, a blank and the directory.
const serverVariable = "NATSBROKER_TEST_SERVER"

// serveNATS runs the NATS server if the process is one. The process ends with its
// standard input.
func serveNATS() {
	config, is := os.LookupEnv(serverVariable)
	if !is {
		return
	}
	port, dir, _ := strings.Cut(config, " ")
	o := &server.Options{Host: "127.0.0.1", JetStream: true, StoreDir: dir, NoSigs: true}
	o.Port, _ = strconv.Atoi(port)
	s, err := server.NewServer(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.Start()
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// A serverProcess is a NATS server in a process of its own.
type serverProcess struct {
	config string // port and directory
	cmd    *exec.Cmd
	in     io.Closer
}

func newServerProcess(t *testing.T, port int) *serverProcess {
	s := &serverProcess{config: fmt.Sprint(port, " ", t.TempDir())}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.kill() })
	return s
}

func (s *serverProcess) start() (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.cmd = exec.Command(self)
	s.cmd.Env = append(os.Environ(), serverVariable+"="+s.config)
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	return s.cmd.Start()
}

func (s *serverProcess) kill() error {
	err := s.cmd.Process.Kill()
	s.cmd.Wait()
	s.in.Close()
	return err
}

// Three nodes have one server. It is killed, it is stopped for a while, and one
// node is cut off from it.
func TestNodesOnAServer(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			port := freePort(t)
			s := newServerProcess(t, port)
			w := newWire(t, fmt.Sprintf("127.0.0.1:%d", port))
			url := fmt.Sprintf("nats://127.0.0.1:%d", port)
			cluster := brokertest.Cluster{Faults: []brokertest.Fault{
				{Name: "a killed server", Begin: s.kill, End: s.start, For: 3 * time.Second},
				{Name: "a stopped server",
					Begin: func() error { return s.cmd.Process.Signal(syscall.SIGSTOP) },
					End:   func() error { return s.cmd.Process.Signal(syscall.SIGCONT) }, For: 4 * time.Second},
				{Name: "a node that is cut off",
					Begin: func() error { w.setDead(true); return nil },
					End:   func() error { w.setDead(false); return nil }, For: 9 * time.Second},
			}}
			for i := range cluster.Config {
				c := nodeConfig{URL: url, History: history}
				if i == 1 {
					c.URL = "nats://" + w.listener.Addr().String()
				}
				cluster.Config[i] = c.String()
			}
			brokertest.RunNodes(t, history, cluster)
		})
	}
}

// Three nodes have an embedded server each, which is killed with its node. With a
// history the others may have to elect another leader then.
func TestNodesWithServers(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			var cluster brokertest.Cluster
			var routes []string
			for range cluster.Config {
				routes = append(routes, fmt.Sprintf("127.0.0.1:%d", freePort(t)))
			}
			for i, addr := range routes {
				c := nodeConfig{History: history, Listen: addr, Routes: routes}
				if history {
					c.StoreDir = t.TempDir()
				}
				cluster.Config[i] = c.String()
			}
			brokertest.RunNodes(t, history, cluster)
		})
	}
}
