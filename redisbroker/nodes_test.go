package redisbroker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// newNodeBroker makes the broker of a node's process. config is an address, and
// for a history a blank and "history".
func newNodeBroker(config string) (realtime.Broker, error) {
	addr, history, _ := strings.Cut(config, " ")
	options := rueidis.ClientOption{InitAddress: []string{addr}}
	if history != "" {
		return redisbroker.Connect(options).WithHistory(), nil
	}
	return redisbroker.Connect(options), nil
}

// Three nodes have one Redis. It is killed, it is stopped for a while, and one
// node is cut off from it.
func TestNodes(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			var args []string
			suffix := ""
			if history {
				args, suffix = []string{"--appendonly", "yes", "--appendfsync", "always"}, " history"
			}
			r := startRedis(t, args...)
			way := startProxy(t, r.addr)
			cluster := brokertest.Cluster{Faults: []brokertest.Fault{
				{Name: "a killed Redis", Begin: r.Stop, End: r.Start, For: 3 * time.Second},
				{Name: "a stopped Redis",
					Begin: func() error { r.freeze(); return nil },
					End:   func() error { r.thaw(); return nil }, For: 4 * time.Second},
				{Name: "a node that is cut off",
					Begin: func() error { way.set(true, true); return nil },
					End:   func() error { way.set(false, false); return nil }, For: 9 * time.Second},
			}}
			for i := range cluster.Config {
				cluster.Config[i] = r.addr + suffix
			}
			cluster.Config[1] = way.addr() + suffix
			brokertest.RunNodes(t, history, cluster)
		})
	}
}
