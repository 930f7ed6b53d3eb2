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

// Three nodes have one Redis, and it has a replica. Redis is killed, it is stopped
// for a while, one node is cut off from it, and another loses its connections.
// The replica takes over. With a history, the store is put back to an older state.
func TestNodes(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			var args []string
			suffix := ""
			if history {
				args, suffix = []string{"--appendonly", "yes", "--appendfsync", "always"}, " history"
			}
			p := startPair(t, args...)
			cutOff, killed := startProxy(t, p.way.addr()), startProxy(t, p.master.addr)
			none := func() error { return nil }
			faults := []brokertest.Fault{
				{Name: "a killed Redis",
					Begin: func() error { return p.master.Stop() },
					End:   func() error { return p.master.Start() }, For: 3 * time.Second},
				{Name: "a stopped Redis",
					Begin: func() error { p.master.freeze(); return nil },
					End:   func() error { p.master.thaw(); return nil }, For: 4 * time.Second},
				{Name: "a node that is cut off",
					Begin: func() error { cutOff.set(true, true); return nil },
					End:   func() error { cutOff.set(false, false); return nil }, For: 9 * time.Second},
				{Name: "a node whose connections are killed",
					Begin: func() error {
						for _, addr := range killed.sources() {
							p.master.try("CLIENT", "KILL", "ADDR", addr) // of some the connection has ended
						}
						return nil
					}, End: none, For: time.Second},
				{Name: "a replica that takes over",
					Begin: func() error {
						p.swap()
						killed.lead(p.master.addr)
						return nil
					}, End: none, For: time.Second},
			}
			if history {
				faults = append(faults, brokertest.Fault{Name: "a store that was put back",
					Begin: func() error {
						putBack := p.master.copyDir()
						time.Sleep(time.Second) // records are lost that come meanwhile
						p.master.Stop()
						putBack()
						return nil
					},
					End: func() error { return p.master.Start() }, For: time.Second})
			}
			cluster := brokertest.Cluster{Faults: faults}
			for i, way := range []*proxy{p.way, cutOff, killed} {
				cluster.Config[i] = way.addr() + suffix
			}
			brokertest.RunNodes(t, history, cluster)
		})
	}
}
