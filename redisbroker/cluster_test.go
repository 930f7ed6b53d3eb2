package redisbroker_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// A cluster is a Redis cluster of the test's own: three masters, and a replica of
// the first one.
type cluster struct {
	nodes []*redis
	name  string // of the brokers that Broker returns
}

const masters = 3

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := new(cluster)
	for i := range masters + 1 {
		r := startRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-config-file", "nodes.conf")
		c.nodes = append(c.nodes, r)
		if i < masters {
			r.do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*16384/masters), strconv.Itoa((i+1)*16384/masters-1))
			r.do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		}
		host, port, _ := strings.Cut(c.nodes[0].addr, ":")
		r.do("CLUSTER", "MEET", host, port)
	}
	c.settle()
	c.nodes[masters].do("CLUSTER", "REPLICATE", c.nodes[0].id())
	eventually(t, "a replica", func() bool {
		return strings.Contains(c.nodes[masters].text("INFO", "replication"), "master_link_status:up")
	})
	return c
}

func (r *redis) text(args ...string) string {
	r.t.Helper()
	s, err := r.do(args...).ToString()
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *redis) id() string { return r.text("CLUSTER", "MYID") }

// settle waits until all nodes know each other.
func (c *cluster) settle() {
	for _, r := range c.nodes {
		eventually(r.t, "a cluster", func() bool {
			info := r.text("CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprint("cluster_known_nodes:", len(c.nodes)))
		})
	}
}

func (c *cluster) Broker() realtime.Broker {
	return redisbroker.Connect(c.name, rueidis.ClientOption{InitAddress: []string{c.nodes[0].addr, c.nodes[1].addr}})
}

func (c *cluster) Stop() error {
	for _, r := range c.nodes {
		r.Stop()
	}
	return nil
}

func (c *cluster) Start() error {
	for _, r := range c.nodes {
		if err := r.Start(); err != nil {
			return err
		}
	}
	return nil
}

func TestClusterSuite(t *testing.T) {
	t.Parallel()
	c := startCluster(t) // one for all subtests, because it is slow to start
	brokertest.Run(t, func(t *testing.T) brokertest.Engine {
		c.name = t.Name()
		return c
	})
	c.name = "stress"
	t.Run("Stress", func(t *testing.T) {
		stress(t, c.Broker(), func() (channels []string) {
			for _, r := range c.nodes {
				more, err := r.do("PUBSUB", "SHARDCHANNELS", "stress:*").AsStrSlice()
				if err != nil {
					t.Fatal(err)
				}
				channels = append(channels, more...)
			}
			return channels
		})
	})
}

// slotOf returns the slot of a topic.
func (c *cluster) slotOf(topic string) int {
	n, err := c.nodes[0].do("CLUSTER", "KEYSLOT", "realtime:"+topic).AsInt64()
	if err != nil {
		c.nodes[0].t.Fatal(err)
	}
	return int(n)
}

// Topics follow their slots: to another node that gets the slot, and to the
// replica that takes a lost master's place. Topics of other slots aren't
// disturbed.
func TestClusterChanges(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	topics := make([]string, masters) // one on each master
	for i := 0; topics[0] == "" || topics[1] == "" || topics[2] == ""; i++ {
		topic := fmt.Sprint("topic ", i)
		topics[c.slotOf(topic)*masters/16384] = topic
	}
	reader, writer := newNode(t, newBroker(c.nodes[1].addr)), newNode(t, newBroker(c.nodes[1].addr))
	reader.join(topics...)
	for _, topic := range topics {
		writer.say(topic, "1")
		reader.await(topic + ": 1")
	}

	if channels, err := c.nodes[0].do("PUBSUB", "SHARDCHANNELS").AsStrSlice(); err != nil || len(channels) != 1 || channels[0] != "realtime:"+topics[0] {
		t.Errorf("the first shard has %q, %v, want its topic alone", channels, err)
	}

	// A slot moves.
	slot, to := strconv.Itoa(c.slotOf(topics[1])), c.nodes[2].id()
	for _, i := range []int{2, 1, 0} {
		c.nodes[i].do("CLUSTER", "SETSLOT", slot, "NODE", to)
	}
	eventually(t, "a gap", func() bool { return reader.gaps() == 1 })
	for _, topic := range topics {
		writer.say(topic, "2")
		reader.await(topic + ": 2")
	}
	if got := reader.gaps(); got != 1 {
		t.Errorf("%d gaps were told, want 1", got)
	}

	// A slot moves that nobody has subscribed to.
	fresh := ""
	for i := 0; fresh == "" || c.slotOf(fresh)*masters/16384 != 1; i++ {
		fresh = fmt.Sprint("fresh ", i)
	}
	for _, i := range []int{2, 1, 0} {
		c.nodes[i].do("CLUSTER", "SETSLOT", strconv.Itoa(c.slotOf(fresh)), "NODE", to)
	}
	reader.join(fresh)
	writer.say(fresh, "1")
	reader.await(fresh + ": 1")
	if got := reader.gaps(); got != 1 {
		t.Errorf("%d gaps were told, want 1", got)
	}

	// A master is lost for good.
	c.nodes[0].Stop()
	for i := range 20 {
		writer.say(topics[2], fmt.Sprint("other ", i))
		reader.await(fmt.Sprint(topics[2], ": other ", i))
	}
	eventually(t, "a gap", func() bool { return reader.gaps() >= 2 })
	reader.awaitFrom(writer, topics[0]) // the writer may notice it later
	for _, topic := range topics {
		writer.say(topic, "4")
		reader.await(topic + ": 4")
	}

	// A new master joins, and gets a slot.
	late := startRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-config-file", "nodes.conf", "--cluster-allow-replica-migration", "no")
	host, port, _ := strings.Cut(c.nodes[1].addr, ":")
	late.do("CLUSTER", "MEET", host, port)
	eventually(t, "a cluster", func() bool { return strings.Contains(late.text("CLUSTER", "INFO"), "cluster_state:ok") })
	for _, r := range []*redis{c.nodes[1], c.nodes[2], c.nodes[3]} {
		eventually(t, "a node that knows the new one", func() bool { return strings.Contains(r.text("CLUSTER", "NODES"), late.id()) })
	}
	gaps := reader.gaps()
	for _, r := range []*redis{late, c.nodes[2], c.nodes[1], c.nodes[3]} {
		r.do("CLUSTER", "SETSLOT", slot, "NODE", late.id())
	}
	eventually(t, "a gap", func() bool { return reader.gaps() > gaps })
	for _, topic := range topics {
		writer.say(topic, "5")
		reader.await(topic + ": 5")
	}
}

// A watched Redis has a replica and a sentinel.
type watched struct {
	nodes    []*redis
	sentinel *redis
}

func startWatched(t *testing.T) *watched {
	t.Helper()
	nodes := []*redis{startRedis(t, "--repl-diskless-sync-delay", "0")}
	host, port, _ := strings.Cut(nodes[0].addr, ":")
	nodes = append(nodes, startRedis(t, "--replicaof", host+" "+port))
	eventually(t, "a replica", func() bool { return strings.Contains(nodes[1].text("INFO", "replication"), "master_link_status:up") })
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `sentinel monitor m %s %s 1
sentinel down-after-milliseconds m 2000
sentinel failover-timeout m 6000
`, host, port), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := startRedis(t, config, "--sentinel")
	eventually(t, "a sentinel that knows both", func() bool {
		replicas, err := sentinel.do("SENTINEL", "REPLICAS", "m").ToArray()
		return err == nil && len(replicas) == 1
	})
	return &watched{nodes, sentinel}
}

// options returns the options of a client that asks the sentinel.
func (w *watched) options() rueidis.ClientOption {
	return rueidis.ClientOption{InitAddress: []string{w.sentinel.addr}, Sentinel: rueidis.SentinelOption{MasterSet: "m"}}
}

func (w *watched) master() string {
	addr, err := w.sentinel.do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "m").AsStrSlice()
	if err != nil {
		w.sentinel.t.Fatal(err)
	}
	return net.JoinHostPort(addr[0], addr[1])
}

// changes returns functions that each make the other one the master. They are to
// be called in turn.
func (w *watched) changes() []func() {
	return []func(){
		func() {
			eventually(w.sentinel.t, "a failover", func() bool { return w.sentinel.try("SENTINEL", "FAILOVER", "m") == nil })
		},
		func() { w.nodes[1].Stop() },
		func() { // the former master doesn't hear of it, as if it were cut off
			w.sentinel.do("SENTINEL", "REMOVE", "m")
			if err := w.nodes[1].Start(); err != nil {
				w.sentinel.t.Fatal(err)
			}
			w.nodes[1].do("REPLICAOF", "NO", "ONE")
			host, port, _ := strings.Cut(w.nodes[1].addr, ":")
			w.sentinel.do("SENTINEL", "MONITOR", "m", host, port, "1")
		},
	}
}

// Topics follow when the sentinels choose another master: by hand, after a loss,
// and when the former master is cut off.
func TestSentinel(t *testing.T) {
	t.Parallel()
	w := startWatched(t)
	broker := func() *redisbroker.Broker { return redisbroker.Connect("realtime", w.options()) }
	reader, writer := newNode(t, broker()), newNode(t, broker())
	reader.join("x")
	writer.say("x", "hello")
	reader.await("x: hello")
	for round, change := range w.changes() {
		old := w.master()
		change()
		eventually(t, "another master", func() bool { return w.master() != old })
		eventually(t, "a gap", func() bool { return reader.gaps() > round })
		reader.awaitFrom(writer, "x")
		if channels, err := w.nodes[(round+1)%2].do("PUBSUB", "CHANNELS", "realtime:*").AsStrSlice(); err != nil || len(channels) != 1 {
			t.Errorf("the new master has %q, %v, want the topic", channels, err)
		}
	}
}
