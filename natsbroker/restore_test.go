package natsbroker_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A chain is a history whose servers can be stopped, so that their stores can be
// harmed: a NATS server with hubs beside it, or embedded ones.
type chain struct {
	t       *testing.T
	stores  []string
	engine  *servers // nil: the nodes have embedded servers, with:
	configs []natsbroker.Config
	nodes   []*archive // nil: it doesn't run
	brokers []*natsbroker.Broker
}

func newChain(t *testing.T, embedded bool, n int) *chain {
	c := &chain{t: t, nodes: make([]*archive, n)}
	if !embedded {
		c.engine = newStores(t, n)
		for _, o := range c.engine.options {
			c.stores = append(c.stores, o.StoreDir)
		}
		return c
	}
	var routes []string
	for range n {
		config := natsbroker.Config{StoreDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
		if n > 1 {
			config.Listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
			routes = append(routes, config.Listen)
		}
		c.configs = append(c.configs, config)
		c.stores = append(c.stores, config.StoreDir)
	}
	for i := range c.configs {
		c.configs[i].Routes = routes
	}
	return c
}

// start starts what doesn't run.
func (c *chain) start() {
	c.t.Helper()
	if c.engine != nil {
		if err := c.engine.Start(); err != nil {
			c.t.Fatal(err)
		}
	}
	for i, n := range c.nodes {
		switch {
		case n != nil:
		case c.engine != nil:
			b := natsbroker.New("realtime", connect(c.t, c.engine.url(i))).WithHistory()
			b.Logger = slog.New(slog.DiscardHandler)
			b.Replicas = len(c.nodes)
			c.nodes[i] = newArchive(c.t, b)
		default:
			b, err := natsbroker.Embedded("realtime", c.configs[i])
			if err != nil {
				c.t.Fatal(err)
			}
			c.t.Cleanup(func() { b.Close() })
			c.brokers = append(c.brokers, b)
			c.nodes[i] = newArchive(c.t, b.WithHistory())
		}
	}
}

// stop stops the servers, and the hubs as well if they are to die.
func (c *chain) stop(hubs bool) {
	c.t.Helper()
	for i, n := range c.nodes {
		if hubs {
			n.close()
			c.nodes[i] = nil
		}
	}
	for _, b := range c.brokers {
		b.Close() // of a hub that nobody has used
	}
	if c.engine != nil {
		c.engine.Stop()
	}
}

// say publishes events, one after another, and returns their texts.
func (c *chain) say(what string, count int) (said []string) {
	c.t.Helper()
	for i := range count {
		said = append(said, c.nodes[0].say(fmt.Sprint(what, " ", i)))
	}
	return said
}

func (c *chain) copyTo(i int, dir string) {
	c.t.Helper()
	if err := os.CopyFS(dir, os.DirFS(c.stores[i])); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chain) putBack(i int, dir string) {
	c.t.Helper()
	entries, err := os.ReadDir(c.stores[i])
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		os.RemoveAll(filepath.Join(c.stores[i], e.Name()))
	}
	if err := os.CopyFS(c.stores[i], os.DirFS(dir)); err != nil {
		c.t.Fatal(err)
	}
}

// block returns the file with the newest records of a store's stream, and removes
// what the server wrote about it as it was shut down: after a crash there is no
// such file, or an old one.
func (c *chain) block(i int) string {
	c.t.Helper()
	var last string
	filepath.WalkDir(c.stores[i], func(path string, _ os.DirEntry, _ error) error {
		if strings.Contains(path, "/streams/realtime/msgs/") {
			if strings.HasSuffix(path, ".blk") && path > last {
				last = path
			}
			if strings.HasSuffix(path, "index.db") {
				os.Remove(path)
			}
		}
		return nil
	})
	if last == "" {
		c.t.Fatal("the store has no block")
	}
	return last
}

// The store of some servers, or of all, loses its newest records while the servers
// are down, and others are written with their numbers. A client that has the id of
// a lost one gets a reset, or all events behind the one that it had last: on each
// node, whether the hubs died with the servers or not.
func TestStoreIsPutBack(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		embedded     bool
		nodes, back  int
		harm         string
		hubsDie      bool
		wantResetAll bool
	}{
		{false, 1, 1, "put back", true, true},
		{false, 1, 1, "put back", false, false},
		{false, 1, 1, "cut", true, true},
		{false, 1, 1, "cut", false, false},
		{false, 1, 1, "flip", true, false},
		{false, 1, 1, "flip", false, false},
		{false, 3, 2, "put back", true, false},
		{false, 3, 3, "put back", false, false},
		{true, 1, 1, "put back", true, true},
		{true, 1, 1, "cut", true, true},
		{true, 1, 1, "flip", true, false},
	} {
		t.Run(fmt.Sprintf("embedded=%t/%s/%d of %d/hubsDie=%t", test.embedded, test.harm, test.back, test.nodes, test.hubsDie), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			c := newChain(t, test.embedded, test.nodes)
			c.start()
			client := c.nodes[0].listen("")
			for _, text := range c.say("kept", 5) {
				client.until(text)
			}
			backups := make([]string, test.nodes)
			if test.harm == "put back" {
				c.stop(test.hubsDie)
				for i := range backups {
					backups[i] = t.TempDir()
					c.copyTo(i, backups[i])
				}
				c.start()
				client = c.nodes[0].listen("")
			}
			for _, text := range c.say("lost", 5) {
				client.until(text)
			}
			id := client.id
			c.stop(test.hubsDie)
			for i := range test.back {
				switch test.harm {
				case "put back":
					c.putBack(i, backups[i])
				default:
					file := c.block(i)
					b, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					if at := bytes.LastIndex(b, []byte("lost 2")); test.harm == "cut" {
						b = b[:at]
					} else {
						b[at] ^= 0x20
					}
					if err := os.WriteFile(file, b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.start()
			said := c.say("new", 10)
			for i, n := range c.nodes {
				back := n.listen(id)
				got := back.next()
				if got == "reset" {
					continue
				}
				if test.wantResetAll {
					t.Errorf("node %d: the client got %q, want a reset", i, got)
				}
				for next := 0; ; got = back.next() {
					if got == said[next] {
						next++
					} else if slices.Contains(said, got) {
						t.Errorf("node %d: the client got %q without a reset, want %q", i, got, said[next])
						break
					} // or it is a try that failed, of which the clients of the node are told
					if next == len(said) || got == "reset" {
						break
					}
				}
			}
		})
	}
}
