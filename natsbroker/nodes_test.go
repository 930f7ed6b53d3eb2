package natsbroker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A nodeConfig is the configuration of a node's process.
type nodeConfig struct {
	History  bool
	URL      string // of servers; empty: the node has an embedded server, with Listen, Routes and StoreDir
	Replicas int

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
		b, err = natsbroker.Embedded("realtime", natsbroker.Config{
			Listen: c.Listen, Routes: c.Routes, StoreDir: c.StoreDir, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
	} else {
		var conn *nats.Conn
		conn, err = nats.Connect(c.URL, natsbroker.Options()...)
		b = natsbroker.New("realtime", conn)
	}
	if err != nil || !c.History {
		return b, err
	}
	h := b.WithHistory()
	h.Replicas = c.Replicas
	return h, nil
}

// serverVariable is set in the environment of a process that is a NATS server.
// Its value is the server's port and directory as JSON.
const serverVariable = "NATSBROKER_TEST_SERVER"

type serverConfig struct {
	Port    int
	Dir     string
	Guarded bool // it has users, and obeys orders; see guarded
}

// serveNATS runs the NATS server if the process is one. The process ends with its
// standard input.
func serveNATS() {
	config, is := os.LookupEnv(serverVariable)
	if !is {
		return
	}
	var c serverConfig
	err := json.Unmarshal([]byte(config), &c)
	o := server.Options{Host: "127.0.0.1", Port: c.Port, JetStream: true, StoreDir: c.Dir, NoSigs: true, NoLog: true}
	if c.Guarded {
		rules{}.apply(&o)
	}
	copied := o
	var s *server.Server
	if err == nil {
		s, err = server.NewServer(&copied)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.Start()
	s.ReadyForConnections(patience)
	for orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout); ; {
		var what order
		if orders.Decode(&what) != nil {
			os.Exit(0)
		}
		answer := ""
		if err := what.obey(s, o); err != nil {
			answer = err.Error()
		}
		answers.Encode(answer)
	}
}

// A serverProcess is a NATS server in a process of its own.
type serverProcess struct {
	serverConfig
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func newServerProcess(t *testing.T, c serverConfig) *serverProcess {
	s := &serverProcess{serverConfig: c}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.kill() })
	return s
}

func (s *serverProcess) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.Port) }

func (s *serverProcess) start() (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config, err := json.Marshal(s.serverConfig)
	if err != nil {
		return err
	}
	s.cmd = exec.Command(self)
	s.cmd.Env = append(os.Environ(), serverVariable+"="+string(config))
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	s.out = json.NewDecoder(out)
	return s.cmd.Start()
}

func (s *serverProcess) kill() error {
	err := s.cmd.Process.Kill()
	s.cmd.Wait()
	s.in.Close()
	return err
}

// runNodes runs three nodes on servers, with a history and without. start starts
// the servers, and returns the configuration of each node and the faults.
func runNodes(t *testing.T, steady bool, start func(t *testing.T, history bool) ([3]nodeConfig, []brokertest.Fault)) {
	t.Parallel()
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			configs, faults := start(t, history)
			runCluster(t, history, configs, brokertest.Cluster{Faults: faults, Steady: steady})
		})
	}
}

func runCluster(t *testing.T, history bool, configs [3]nodeConfig, cluster brokertest.Cluster) {
	for i, c := range configs {
		c.History = history
		cluster.Config[i] = c.String()
	}
	brokertest.RunNodes(t, history, cluster)
}

// Three nodes have one server. It is killed, it is stopped for a while, and one
// node is cut off from it. With a history its store is put back to an older state,
// also while no node runs that knows what was lost.
func TestNodesOnAServer(t *testing.T) {
	runNodes(t, false, func(t *testing.T, history bool) (configs [3]nodeConfig, faults []brokertest.Fault) {
		s := newServerProcess(t, serverConfig{Port: freePort(t), Dir: t.TempDir()})
		w := newWire(t, fmt.Sprintf("127.0.0.1:%d", s.Port))
		for i := range configs {
			configs[i].URL = s.url()
		}
		configs[1].URL = "nats://" + w.listener.Addr().String()
		faults = []brokertest.Fault{
			{Name: "a killed server", Begin: s.kill, End: s.start, For: 3 * time.Second},
			{Name: "a stopped server",
				Begin: func() error { return s.cmd.Process.Signal(syscall.SIGSTOP) },
				End:   func() error { return s.cmd.Process.Signal(syscall.SIGCONT) }, For: 4 * time.Second},
			{Name: "a node that is cut off",
				Begin: func() error { w.setDead(true); return nil },
				End:   func() error { w.setDead(false); return nil }, For: 9 * time.Second},
		}
		if history {
			putBack := func() error {
				backup := filepath.Join(t.TempDir(), "backup")
				s.kill()
				if err := copyDir(backup, s.Dir); err != nil {
					return err
				}
				if err := s.start(); err != nil {
					return err
				}
				time.Sleep(3 * time.Second) // records are lost that come meanwhile
				s.kill()
				return copyDir(s.Dir, backup)
			}
			faults = append(faults,
				brokertest.Fault{Name: "a store that is put back", Begin: putBack, End: s.start, For: time.Second},
				brokertest.Fault{Name: "the same, under nodes that don't know", Begin: putBack, End: s.start, Kill: true})
		}
		return configs, faults
	})
}

// Three nodes have one server, which refuses something to the second one for a
// while, or to all of them. Another program sends what the hubs don't understand,
// and with a history has a stream in the place of theirs.
func TestNodesThatAreRefused(t *testing.T) {
	runNodes(t, true, func(t *testing.T, history bool) (configs [3]nodeConfig, faults []brokertest.Fault) {
		g := newGuarded(t)
		for i, user := range []string{"b", "a", "b"} {
			configs[i].URL = fmt.Sprintf("nats://%s:p@127.0.0.1:%d", user, g.Port)
		}
		refuses := func(what string, r rules) brokertest.Fault {
			return brokertest.Fault{Name: what,
				Begin: func() error { return g.order(order{Rules: r}) },
				End:   func() error { return g.order(order{}) }, For: 4 * time.Second}
		}
		lowered := refuses("a max_payload that is lowered", rules{MaxPayload: 50_000})
		lowered.Large = 100_000
		faults = []brokertest.Fault{
			{Name: "a connection that the server ends", Begin: func() error { return g.order(order{Disconnect: "a"}) }, For: time.Second},
			refuses("no permission to publish", rules{DenyPublish: []string{"realtime.>"}}),
			refuses("no permission to subscribe", rules{DenySubscribe: []string{"realtime.>"}}),
			refuses("credentials that are refused", rules{NoUser: true}),
			lowered,
		}
		conn := connect(t, g.url(), nats.UserInfo("b", "p"))
		var sub *nats.Subscription
		faults = append(faults, brokertest.Fault{Name: "another program's messages", For: 3 * time.Second,
			Begin: func() (err error) {
				sub, err = conn.Subscribe("realtime.>", func(m *nats.Msg) {
					for _, data := range [][]byte{[]byte("an order"), m.Data[:len(m.Data)/2], m.Data, nil} {
						conn.Publish(m.Subject, data)
					}
				})
				return err
			},
			End: func() error { return sub.Unsubscribe() },
		})
		if !history {
			return configs, faults
		}
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		return configs, append(faults,
			refuses("no permission to ask JetStream", rules{DenyPublish: []string{"$JS.>"}}),
			refuses("no permission to get answers", rules{DenySubscribe: []string{"_INBOX.>"}}),
			brokertest.Fault{Name: "another program's stream", For: 4 * time.Second,
				Begin: func() error {
					if err := js.DeleteStream(t.Context(), "realtime"); err != nil {
						return err
					}
					for { // a node may have made its own again
						_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "realtime", Subjects: []string{"orders"}})
						if err == nil {
							return nil
						}
						js.DeleteStream(t.Context(), "realtime")
					}
				},
				End: func() error { return js.DeleteStream(t.Context(), "realtime") },
			})
	})
}

// Three nodes have three servers. One is killed. With a history the stream's
// leader steps down each second.
func TestNodesOnACluster(t *testing.T) {
	runNodes(t, true, func(t *testing.T, history bool) ([3]nodeConfig, []brokertest.Fault) {
		engine, configs := newCluster(t)
		faults := []brokertest.Fault{{Name: "a killed server",
			Begin: func() error { engine.kill(1); return nil }, End: engine.Start, For: 4 * time.Second}}
		if history {
			faults = append(faults, stepsDown(connect(t, engine.url(0)), 10))
		}
		return configs, faults
	})
}

// Three nodes have three servers, and two stores of three are put back to an older
// state.
func TestNodesOnATornCluster(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine, configs := newCluster(t)
	stores := engine.options[:2]
	putBack := brokertest.Fault{Name: "two stores of three that are put back",
		Begin: func() error {
			engine.Stop()
			backup := t.TempDir()
			for i, o := range stores {
				if err := copyDir(filepath.Join(backup, fmt.Sprint(i)), o.StoreDir); err != nil {
					return err
				}
			}
			if err := engine.Start(); err != nil {
				return err
			}
			time.Sleep(12 * time.Second) // they elect a leader, and records are lost that come then
			engine.Stop()
			for i, o := range stores {
				if err := copyDir(o.StoreDir, filepath.Join(backup, fmt.Sprint(i))); err != nil {
					return err
				}
			}
			return nil
		},
		End: engine.Start, For: time.Second}
	runCluster(t, true, configs, brokertest.Cluster{Faults: []brokertest.Fault{putBack}, Steady: true, Torn: true})
}

// newCluster returns three servers, and nodes that each prefer another one.
func newCluster(t *testing.T) (engine *servers, configs [3]nodeConfig) {
	engine = newStores(t, 3)
	for i := range configs {
		for k := range configs {
			configs[i].URL += engine.url((i+k)%3) + ","
		}
		configs[i].URL = strings.TrimSuffix(configs[i].URL, ",")
		configs[i].Replicas = 3
	}
	return engine, configs
}

// stepsDown is the fault that the leader of the stream steps down each second.
func stepsDown(conn *nats.Conn, times int) brokertest.Fault {
	stop := make(chan struct{})
	var stepping sync.WaitGroup
	downs := 0
	return brokertest.Fault{Name: "a leader that steps down each second", For: time.Duration(times) * time.Second,
		Begin: func() error {
			stepping.Go(func() {
				for {
					if m, err := conn.Request("$JS.API.STREAM.LEADER.STEPDOWN.realtime", nil, time.Second); err == nil && strings.Contains(string(m.Data), `"success":true`) {
						downs++
					}
					select {
					case <-time.After(time.Second):
					case <-stop:
						return
					}
				}
			})
			return nil
		},
		End: func() error {
			close(stop)
			stepping.Wait()
			if downs == 0 {
				return errors.New("the leader has never stepped down")
			}
			return nil
		},
	}
}

// copyDir replaces a directory by a copy of another.
func copyDir(to, from string) error {
	entries, err := os.ReadDir(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries { // the directory itself may be a mount
		if err := os.RemoveAll(filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return os.CopyFS(to, os.DirFS(from))
}

// Three nodes start on a history of 100,000 records, and each starts again on it.
func TestNodesOnALargeHistory(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	writeHistory(t, engine)
	cluster := brokertest.Cluster{Large: true}
	for i := range cluster.Config {
		cluster.Config[i] = nodeConfig{History: true, URL: engine.url(0)}.String()
	}
	brokertest.RunNodes(t, true, cluster)
}

// writeHistory makes a stream, and writes 10,000 records to it, each ten times as if
// its node had tried again. A hub makes them, for an engine in this process.
func writeHistory(t *testing.T, engine *servers) {
	t.Helper()
	b := engine.HistoryBroker()
	defer b.Close()
	var got diary
	if err := b.Start(new(log)); err != nil {
		t.Fatal(err)
	}
	if err := b.Follow(&got); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stream", func() bool { return strings.Contains(got.all(), "current:0") })
	js := streams(t, engine)
	hub := realtime.NewHub()
	hub.History.Events = 1
	hub.Broker = &copier{brokertest.NewMemory().HistoryBroker(), js}
	for i := range 10_000 {
		if err := hub.Publish(t.Context(), "x", realtime.Event{Data: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-js.PublishAsyncComplete()
}

// A copier writes the records that are appended to its broker to a stream too.
type copier struct {
	realtime.HistoryBroker
	js jetstream.JetStream
}

func (c *copier) Append(ctx context.Context, record []byte) error {
	for range 10 {
		if _, err := c.js.PublishAsync("realtime.=log.records", bytes.Clone(record)); err != nil {
			return err
		}
	}
	return c.HistoryBroker.Append(ctx, record)
}

// Three nodes have an embedded server each, which is killed with its node. With a
// history the others may have to elect another leader then.
func TestNodesWithServers(t *testing.T) {
	t.Parallel()
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
