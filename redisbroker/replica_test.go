package redisbroker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// soon is the time in which a broker notices that it has the wrong Redis, and in
// which it works again after that. On an idle machine each takes three seconds.
const soon = 30 * time.Second

// within is eventually with a bound of its own.
func within(t *testing.T, bound time.Duration, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > bound {
			t.Fatalf("%s: not within %v", what, bound)
		}
	}
}

// follows makes r a replica of master, and waits until it has all of it.
func (r *redis) follows(master *redis) {
	r.t.Helper()
	host, port, _ := strings.Cut(master.addr, ":")
	r.do("REPLICAOF", host, port)
	eventually(r.t, "a replica", func() bool { return strings.Contains(r.text("INFO", "replication"), "master_link_status:up") })
}

// A pair is a master and a replica behind an address that leads to the master.
type pair struct {
	master, replica *redis
	way             *proxy
}

func startPair(t *testing.T, args ...string) *pair {
	t.Helper()
	args = append(args, "--repl-diskless-sync-delay", "0")
	p := &pair{master: startRedis(t, args...), replica: startRedis(t, args...)}
	p.replica.follows(p.master)
	p.way = startProxy(t, p.master.addr)
	return p
}

// swap makes the replica the master. Connections to the former one stay open.
func (p *pair) swap() {
	p.master, p.replica = p.replica, p.master
	p.master.do("REPLICAOF", "NO", "ONE")
	p.way.lead(p.master.addr)
	p.replica.follows(p.master)
}

// A Redis becomes a replica, and doesn't close its connections. The broker
// notices it, and connects again. Until then Publish fails, or other nodes are
// told of a gap.
func TestReplica(t *testing.T) {
	t.Parallel()
	for _, old := range []string{"both nodes", "the publisher", "the receiver"} {
		t.Run(old, func(t *testing.T) {
			t.Parallel()
			p := startPair(t)
			ways := map[bool]*proxy{true: p.way, false: startProxy(t, p.master.addr)}
			client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{ways[old != "the receiver"].addr()}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			reader, writer := newNode(t, newBroker(ways[old != "the publisher"].addr())), newNode(t, redisbroker.New("realtime", client))
			reader.join("x")
			writer.say("x", "before")
			reader.await("x: before")
			p.swap()
			ways[false].lead(p.master.addr)
			ways[false].cut() // this one hears of it
			within(t, soon, "an error or a gap", func() bool { return writer.publish("x", "doubtful") != nil || reader.gaps() > 0 })
			within(t, soon, "a Redis that is the new master", func() bool {
				channels, err := p.master.do("PUBSUB", "CHANNELS", "realtime:*").AsStrSlice()
				return err == nil && len(channels) == 1 && writer.publish("x", "after") == nil
			})
			reader.awaitFrom(writer, "x")
			if old != "the publisher" && reader.gaps() == 0 {
				t.Error("no gap was told")
			}
		})
	}
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		p := startPair(t)
		n := newNode(t, newBroker(p.replica.addr))
		failsAtOnce(t, "Publish", func() error { return n.publish("x", "lost") })
		if err := n.publish("x", "lost"); err == nil || !strings.Contains(err.Error(), "replica") {
			t.Errorf("Publish: %v, want an error that says why", err)
		}
		f := newFollower(t, newHistory(p.replica.addr))
		f.expect("away")
	})
}

// With a history, nothing is lost that the new master has.
func TestHistoryReplica(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	var hubs []*realtime.Hub
	var readers []reader
	for range 2 {
		hub, url := startHub(t, newHistory(p.way.addr()))
		next, _ := listen(t, url+"/?topic=a", "")
		hubs, readers = append(hubs, hub), append(readers, next)
	}
	publish := func(i int, text string) error {
		return hubs[i].Publish(t.Context(), "a", realtime.Event{Data: []byte(text)})
	}
	for round := range 2 {
		for i := range hubs {
			within(t, soon, "a Publish that succeeds", func() bool { return publish(i, fmt.Sprint(round, i)) == nil })
			for _, next := range readers {
				for got := ""; got != fmt.Sprint(round, i); {
					got = next()
				}
			}
		}
		p.master.do("WAIT", "1", "5000")
		p.swap()
	}
}

// While Redis refuses commands errors say why. After that all is well again.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want  string
		begin func(r *redis) (end func())
		plain bool // messages that aren't kept are refused too
	}{
		{"OOM", func(r *redis) func() {
			r.do("CONFIG", "SET", "maxmemory", "1")
			return func() { r.do("CONFIG", "SET", "maxmemory", "0") }
		}, false},
		{"MISCONF", func(r *redis) func() {
			r.do("CONFIG", "SET", "save", "3600 1")
			dir := filepath.Join(r.dir, "gone")
			if err := os.Mkdir(dir, 0o700); err != nil {
				r.t.Fatal(err)
			}
			r.do("CONFIG", "SET", "dir", dir)
			os.Remove(dir)
			r.try("BGSAVE")
			eventually(r.t, "a failed save", func() bool { return strings.Contains(r.text("INFO", "persistence"), "rdb_last_bgsave_status:err") })
			return func() { r.do("CONFIG", "SET", "stop-writes-on-bgsave-error", "no") }
		}, false},
		{"NOREPLICAS", func(r *redis) func() {
			r.do("CONFIG", "SET", "min-replicas-to-write", "1")
			return func() { r.do("CONFIG", "SET", "min-replicas-to-write", "0") }
		}, false},
		{"LOADING", func(r *redis) func() {
			r.do("DEBUG", "POPULATE", "20000")
			r.do("CONFIG", "SET", "key-load-delay", "500") // each key takes half a millisecond
			r.do("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
			r.do("SAVE")
			var reload sync.WaitGroup
			reload.Go(func() { r.try("DEBUG", "RELOAD", "NOSAVE") })
			eventually(r.t, "a Redis that is loading", func() bool { return strings.Contains(r.text("INFO", "persistence"), "\nloading:1") })
			return func() {
				r.try("CONFIG", "SET", "key-load-delay", "0")
				reload.Wait()
			}
		}, false},
		{"MASTERDOWN", func(r *redis) func() {
			r.do("CONFIG", "SET", "replica-serve-stale-data", "no")
			r.do("REPLICAOF", "127.0.0.1", "1")
			return func() { r.do("REPLICAOF", "NO", "ONE") }
		}, true},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t, "--enable-debug-command", "yes", "--enable-protected-configs", "yes")
			a := newFollower(t, newHistory(r.addr))
			plain := newNode(t, r.Broker())
			plain.join("x")
			a.expect("current A-0")
			a.add("1")
			a.expect("A-1 1")
			end := tt.begin(r)
			want := tt.want
			if tt.plain {
				want = "replica"
			}
			var err error
			within(t, soon, "an Append that says "+want, func() bool {
				err = a.try("refused", patience)
				return err != nil && strings.Contains(err.Error(), want)
			})
			if errors.Is(err, realtime.ErrEventTooLarge) {
				t.Errorf("Append: %v", err)
			}
			if tt.plain {
				within(t, soon, "a Publish that fails", func() bool { return plain.publish("x", "lost") != nil })
			} else if err := plain.publish("x", "hello"); err != nil {
				t.Errorf("Publish: %v", err)
			}
			time.Sleep(3 * time.Second) // so that followers and links look at it as well
			end()
			within(t, soon, "an Append that succeeds", func() bool { return a.try("taken", patience) == nil })
			within(t, soon, "the record", func() bool { return strings.Contains(strings.Join(a.lines(), "; "), " taken") })
			within(t, soon, "a Publish that succeeds", func() bool { return plain.publish("x", "well") == nil })
			plain.await("x: well")
		})
	}
}
