//go:build unix

package realtime

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkGrowth measures what the hub itself costs, and how that grows. The
// kernel is stood in for by a function that accepts everything, because a process
// has no descriptors for so many clients. CPU is that of the whole process. What
// grows although the floor doesn't is the hub's fault.
func BenchmarkGrowth(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			c := newCrowd(b, n)
			defer c.end(b)
			b.Run("broadcast", func(b *testing.B) {
				c.deliveries(b, n, 1, func() { c.Broadcast <- c.payload })
				b.ReportMetric(c.bytes, "B/client")
			})
			b.Run("floor", c.floor)
			b.Run("burst", func(b *testing.B) { c.deliveries(b, n, 64, func() { c.Broadcast <- c.payload }) })
			b.Run("sweep", c.revolution)
			b.Run("list", c.list)
			b.Run("find", c.find)
			c.subscribe(b, func(int) []string { return []string{"everybody"} })
			b.Run("topic", func(b *testing.B) { c.deliveries(b, n, 1, func() { c.publishTo(b, "everybody") }) })
		})
	}
	const each = 4 // topics of a client, and clients of a topic
	for _, n := range []int{100, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("topics=%d", n), func(b *testing.B) {
			c := newCrowd(b, n)
			defer c.end(b)
			names := topicNames(n)
			before := heapSize()
			c.subscribe(b, func(i int) []string {
				topics := make([]string, each)
				for j := range topics {
					topics[j] = names[(i*each+j)%n]
				}
				return topics
			})
			size := float64(heapSize()-before) / float64(n*each)
			b.Run("publish", func(b *testing.B) {
				c.deliveries(b, each, 64, func() { c.publishTo(b, names[rand.IntN(n)]) })
				b.ReportMetric(size, "B/subscription")
			})
			b.Run("floor", func(b *testing.B) { c.topicFloor(b, each, names) })
			b.Run("subscribe", func(b *testing.B) { c.subscribing(b, names) })
		})
	}
}

// BenchmarkGrowthOfOne is about one client with many topics. It gets one more,
// and loses it again.
func BenchmarkGrowthOfOne(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("topics=%d", n), func(b *testing.B) {
			c := newCrowd(b, 1)
			defer c.end(b)
			names := topicNames(n)
			c.subscribe(b, func(int) []string { return names })
			b.Run("subscribe", func(b *testing.B) { c.subscribing(b, names) })
			b.Run("unsubscribe", func(b *testing.B) {
				measure(b, "change", 2*n, func() {
					c.clients[0].Unsubscribe(names...)
					c.clients[0].Subscribe(names...)
				})
			})
		})
	}
}

// BenchmarkGrowthOfHistory keeps an event of each topic. Each new event ends an
// older one.
func BenchmarkGrowthOfHistory(b *testing.B) {
	for _, n := range []int{100, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("topics=%d", n), func(b *testing.B) {
			h, names := newHistory(History{Events: 1, Age: time.Hour}), topicNames(n)
			for _, name := range names {
				h.add(&event{topic: name}, time.Now())
			}
			measure(b, "event", 1, func() { h.add(&event{topic: names[rand.IntN(n)]}, time.Now()) })
		})
	}
}

// BenchmarkGrowthOfShutdown closes all clients. Each one's peer answers at once.
func BenchmarkGrowthOfShutdown(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			var cpu time.Duration
			var most, left float64
			b.ReportAllocs()
			for range b.N {
				b.StopTimer()
				empty := heapSize()
				c := newCrowd(b, n)
				c.clients = nil // the hub alone keeps them
				before := systemMemory()
				b.StartTimer()
				used := cpuTime()
				c.end(b)
				cpu += cpuTime() - used
				b.StopTimer()
				most = max(most, float64(systemMemory()-before))
				left = float64(heapSize()) - float64(empty)
				runtime.KeepAlive(c)
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu)/float64(n*b.N), "cpu-ns/client")
			b.ReportMetric(most/float64(n), "B/client-on-top")
			b.ReportMetric(left/float64(n), "B/client-left")
		})
	}
}

func topicNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("topic ", i)
	}
	return names
}

// A crowd is a hub with clients that have no connections.
type crowd struct {
	*Hub
	clients []*Client
	bytes   float64   // of heap, for each client
	first   []*Client // one of each shard
	payload []byte
}

// newCrowd returns a crowd. A shard's clients are in no order in memory, as they
// are after some have come and gone.
func newCrowd(b *testing.B, n int) *crowd {
	c := &crowd{Hub: NewHub(), clients: make([]*Client, n), payload: make([]byte, 128)}
	c.start()
	c.settle()
	c.registry.sweeping = true // it is measured by itself
	c.shared.clock.until.Store(math.MaxInt64)
	before := heapSize()
	for i := range c.clients {
		c.clients[i] = newClient(c.Hub, webSocket{})
	}
	conn := new(recorder)
	for _, i := range rand.Perm(n) {
		one := c.clients[i]
		if err := c.add(one); err != nil {
			b.Fatal(err)
		}
		one.open()
		one.wire.heard.Store(int64(c.shared.clock.now()))
		one.out.open(conn, func(p []byte) (int, error) {
			if p[0] == finBit|opClose {
				go one.gone() // the peer answers at once
			}
			return len(p), nil
		}, format{})
	}
	c.bytes = float64(heapSize()-before) / float64(n)
	shards := make(map[*shard]bool)
	for _, one := range c.clients {
		if !shards[one.home] {
			shards[one.home] = true
			c.first = append(c.first, one)
		}
	}
	return c
}

// flush waits until all that was published has been delivered.
func (c *crowd) flush() {
	var left sync.WaitGroup
	left.Add(len(c.first))
	for _, one := range c.first {
		c.hand(change{client: one, do: func(*shard) { left.Done() }})
	}
	left.Wait()
}

func (c *crowd) publishTo(b *testing.B, topic string) {
	if err := c.Publish(b.Context(), topic, Event{Data: c.payload}); err != nil {
		b.Fatal(err)
	}
}

// deliveries measures events that reach so many clients, in batches.
func (c *crowd) deliveries(b *testing.B, clients, batch int, publish func()) {
	c.flush()
	before := c.shared.delivered.Load()
	n := measure(b, "delivery", clients*batch, func() {
		for range batch {
			publish()
		}
		c.flush()
	})
	if got := c.shared.delivered.Load() - before; got != n {
		b.Errorf("%d deliveries, want %d", got, n)
	}
}

// touch goes where a delivery to the client goes in memory, and does nothing
// there: a lock, the call for the kernel, and four cache lines.
func (c *crowd) touch(one *Client) {
	o := &one.out
	o.mu.Lock()
	o.try(c.payload)
	o.backlog.privatePeak++
	o.kernel++
	o.seq++
	o.mu.Unlock()
}

// floor touches all clients.
func (c *crowd) floor(b *testing.B) {
	measure(b, "delivery", len(c.clients), func() {
		var walking sync.WaitGroup
		for _, s := range c.registry.allShards() {
			walking.Go(func() {
				for _, one := range s.clients {
					c.touch(one)
				}
			})
		}
		walking.Wait()
	})
}

// topicFloor touches the clients of a topic, which it finds as a shard does.
func (c *crowd) topicFloor(b *testing.B, each int, names []string) {
	measure(b, "delivery", each, func() {
		name := names[rand.IntN(len(names))]
		for _, s := range c.registry.allShards() {
			for _, sub := range s.topics[name] {
				c.touch(sub.client)
			}
		}
	})
}

// list measures an iteration over all clients.
func (c *crowd) list(b *testing.B) {
	measure(b, "client", len(c.clients), func() {
		n := 0
		for range c.Clients() {
			n++
		}
		if n != len(c.clients) {
			b.Errorf("%d clients, want %d", n, len(c.clients))
		}
	})
}

// find measures a look-up by id.
func (c *crowd) find(b *testing.B) {
	ids := make([]string, min(len(c.clients), 1000))
	for i := range ids {
		ids[i] = c.clients[rand.IntN(len(c.clients))].ID()
	}
	measure(b, "client", len(ids), func() {
		for _, id := range ids {
			if _, ok := c.Client(id); !ok {
				b.Error("a client isn't found")
			}
		}
	})
}

// revolution measures one of the sweeper, which an idle hub has each second.
func (c *crowd) revolution(b *testing.B) {
	var members []*Client
	measure(b, "client", len(c.clients), func() {
		for phase := range phases {
			members = c.registry.everyNth(phases, phase, members[:0])
			sweepAll(members, c.shared.clock.now())
		}
	})
}

func (c *crowd) end(b *testing.B) {
	if err := c.Shutdown(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// subscribe gives each client topics.
func (c *crowd) subscribe(b *testing.B, topics func(i int) []string) {
	for _, i := range rand.Perm(len(c.clients)) {
		if err := c.clients[i].Subscribe(topics(i)...); err != nil {
			b.Fatal(err)
		}
	}
}

// subscribing measures a topic more, and its end.
func (c *crowd) subscribing(b *testing.B, names []string) {
	measure(b, "change", 2, func() {
		one, topic := c.clients[rand.IntN(len(c.clients))], names[rand.IntN(len(names))]+" more"
		if err := one.Subscribe(topic); err != nil {
			b.Fatal(err)
		}
		one.Unsubscribe(topic)
	})
}

// measure runs f until the time is up, and reports the CPU time of each of the n
// units that f does. It returns how many units it did.
func measure(b *testing.B, unit string, n int, f func()) (units int64) {
	f() // queues and pools grow to their size
	units = int64(n)
	cpu, rounds := time.Duration(0), 0
	b.ReportAllocs()
	for b.Loop() {
		if rounds == 0 {
			cpu = cpuTime()
		}
		f()
		rounds++
	}
	cpu = cpuTime() - cpu
	b.ReportMetric(float64(cpu)/float64(n*rounds), "cpu-ns/"+unit)
	return units + int64(n*rounds)
}

// cpuTime returns the CPU time that the process has used.
func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func heapSize() uint64 {
	runtime.GC()
	time.Sleep(10 * time.Millisecond)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// systemMemory returns what the runtime has taken from the system so far.
func systemMemory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys
}
