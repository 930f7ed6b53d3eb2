package redisbroker_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// newNodeBroker makes the broker of a node's process. config is a URL, and for a
// history a blank and "history".
func newNodeBroker(config string) (realtime.Broker, error) {
	url, history, _ := strings.Cut(config, " ")
	options, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	if history != "" {
		return redisbroker.Connect("realtime", options).WithHistory(), nil
	}
	return redisbroker.Connect("realtime", options), nil
}

// Three nodes have one Redis, which is harmed in one way after another.
func TestNodes(t *testing.T) {
	t.Parallel()
	for name, scene := range map[string]func(t *testing.T, history bool) brokertest.Cluster{"outages": outages, "refusals": refusals} {
		for _, history := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/history=%v", name, history), func(t *testing.T) {
				t.Parallel() // the test mostly waits
				cluster := scene(t, history)
				if history {
					for i := range cluster.Config {
						cluster.Config[i] += " history"
					}
				}
				brokertest.RunNodes(t, history, cluster)
			})
		}
	}
}

// outages has a Redis with a replica. It is killed, it is stopped for a while, one
// node is cut off from it, and another loses its connections. The replica takes
// over. With a history, the store is put back to an older state.
func outages(t *testing.T, history bool) (cluster brokertest.Cluster) {
	var args []string
	if history {
		args = []string{"--appendonly", "yes", "--appendfsync", "always"}
	}
	p := startPair(t, args...)
	cutOff, killed := startProxy(t, p.way.addr()), startProxy(t, p.master.addr)
	for i, way := range []*proxy{p.way, cutOff, killed} {
		cluster.Config[i] = "redis://" + way.addr()
	}
	none := func() error { return nil }
	cluster.Faults = []brokertest.Fault{
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
		cluster.Faults = append(cluster.Faults, brokertest.Fault{Name: "a store that was put back",
			Begin: func() error {
				putBack := p.master.copyDir()
				time.Sleep(time.Second) // records are lost that come meanwhile
				p.master.Stop()
				putBack()
				return nil
			},
			End: func() error { return p.master.Start() }, For: time.Second})
	}
	return cluster
}

// refusals has a Redis that refuses commands: the user loses its permissions, and
// then its password. With a history the memory is full, then the disk, and another
// program overwrites the keys.
func refusals(t *testing.T, history bool) (cluster brokertest.Cluster) {
	dir, mounted := smallDisk(t)
	r := startRedis(t, "--appendonly", "yes", "--appendfsync", "everysec", "--dir", dir)
	for i := range cluster.Config {
		cluster.Config[i] = "redis://app:secret@" + r.addr
	}
	allow := aclUser("{realtime:log}*", "realtime:*")
	r.do(allow...)
	fault := func(name string, end []string, begin ...[]string) {
		cluster.Faults = append(cluster.Faults, brokertest.Fault{Name: name,
			Begin: func() error {
				for _, cmd := range begin {
					if err := r.try(cmd...); err != nil {
						return err
					}
				}
				return nil
			},
			End: func() error { return r.try(end...) }, For: 4 * time.Second})
	}
	fault("permissions that are taken", allow, []string{"ACL", "SETUSER", "app", "-@all"})
	fault("a password that is refused", allow, []string{"ACL", "SETUSER", "app", "resetpass"}, []string{"CLIENT", "KILL", "USER", "app"})
	if !history {
		return cluster
	}
	fault("a full memory", []string{"CONFIG", "SET", "maxmemory", "0"}, []string{"CONFIG", "SET", "maxmemory", "1"})
	const log, head = "{realtime:log}", "{realtime:log}:head"
	const overwrite = "redis.call('DEL', unpack(KEYS)) return redis.call('MSET', KEYS[1], 'x', KEYS[2], 'x')"
	fault("another program's data", []string{"DEL", log, head}, []string{"EVAL", overwrite, "2", log, head})
	if mounted {
		ballast := filepath.Join(dir, "ballast")
		cluster.Faults = append(cluster.Faults, brokertest.Fault{Name: "a full disk",
			Begin: func() error {
				if os.WriteFile(ballast, make([]byte, diskBytes), 0o600) == nil {
					return errors.New("the disk isn't full")
				}
				return nil
			},
			End: func() error { return os.Remove(ballast) }, For: 4 * time.Second})
	}
	return cluster
}

const diskBytes = 64 << 20

// smallDisk returns the directory of a disk of its own that has diskBytes. Where
// the user may not mount one, it is an ordinary directory.
func smallDisk(t *testing.T) (dir string, mounted bool) {
	dir = t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprint("size=", diskBytes), "tmpfs", dir).Run(); err != nil {
		t.Logf("without a full disk, because none can be mounted: %v", err)
		return dir, false
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", dir).Run(); err != nil {
			t.Errorf("umount: %v", err)
		}
	})
	return dir, true
}
