package realtime

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// leaveHub ends a client that never got a connection.
func (c *Client) leaveHub() {
	c.abort(ErrClientClosed)
	c.gone()
}

// A client that leaves gives its slot back. The last one frees all slots.
func TestRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.start()
		hub.settle()
		add := func() *Client {
			c := newClient(hub, webSocket{})
			if err := hub.add(c); err != nil {
				t.Fatal(err)
			}
			return c
		}
		a, b, c := add(), add(), add()
		b.leaveHub()
		time.Sleep(2 * revolution) // the sweeper passes over the gap
		if got := hub.registry.all(); len(got) != 2 || got[0] != a || got[1] != c {
			t.Errorf("the hub has %d clients, want the first and the third", len(got))
		}
		d, e := add(), add()
		if d.slot != b.slot || e.slot != 3 || len(hub.registry.slots) != 4 {
			t.Errorf("got slots %d and %d of %d, want the free one and the next", d.slot, e.slot, len(hub.registry.slots))
		}
		for _, c := range []*Client{a, c, d, e} {
			c.leaveHub()
		}
		synctest.Wait()
		if hub.registry.slots != nil || hub.registry.free != nil || hub.registry.clients != 0 {
			t.Errorf("an empty hub has %d slots, %d of them free, for %d clients", len(hub.registry.slots), len(hub.registry.free), hub.registry.clients)
		}
		for _, s := range hub.registry.shards {
			if len(s.clients) != 0 {
				t.Errorf("a shard of an empty hub has %d clients", len(s.clients))
			}
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Shutdown waits for a client that was added just before.
func TestJoinDuringShutdown(t *testing.T) {
	for range 20 { // the loop may find either first
		synctest.Test(t, func(t *testing.T) {
			hub := NewHub()
			hub.started.Store(true) // the loop is late
			hub.settle()
			c := newClient(hub, webSocket{})
			added := make(chan error, 1)
			go func() { added <- hub.add(c) }()
			synctest.Wait()
			down := make(chan error, 1)
			go func() { down <- hub.Shutdown(context.Background()) }()
			synctest.Wait()
			go hub.loop()
			if err := <-added; err != nil {
				t.Error(err)
			}
			c.leaveHub()
			if err := <-down; err != nil {
				t.Error(err)
			}
		})
	}
}

// A witness is a client of which every event is checked.
type witness struct {
	*Client
	from  int64        // the first event that counts; see attend
	last  atomic.Int64 // that it got
	wrong atomic.Int64 // an event out of its turn; zero: none
}

// attend adds a client. Events are numbers, of which next tells the newest. All
// that are published from now on must reach the client.
func attend(t *testing.T, hub *Hub, next *atomic.Int64) *witness {
	t.Helper()
	w := &witness{Client: newClient(hub, webSocket{})}
	if err := hub.add(w.Client); err != nil {
		t.Fatal(err)
	}
	if err := w.Subscribe("topic"); err != nil {
		t.Fatal(err)
	}
	w.from = next.Load() + 1
	w.last.Store(w.from - 1)
	w.open()
	w.out.open(new(recorder), func(p []byte) (int, error) {
		for frame := range slices.Chunk(p, 2+8) {
			n, _ := strconv.ParseInt(string(frame[2:]), 10, 64)
			if n >= w.from && w.last.Swap(n) != n-1 {
				w.wrong.Store(n)
			}
		}
		return len(p), nil
	}, format{})
	return w
}

// A hub that began on one processor gets more shards when there are more, and
// keeps them. No client loses an event or its order by that, and Shutdown finds
// all of them.
func TestShardsFollowTheProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	hub := NewHub()
	hub.start()
	hub.settle()
	var next atomic.Int64
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for n := int64(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			next.Store(n)
			e := Event{Data: fmt.Appendf(nil, "%08d", n)}
			publish := hub.PublishAll
			if n%3 == 0 {
				publish = func(ctx context.Context, e Event) error { return hub.Publish(ctx, "topic", e) }
			}
			if err := publish(context.Background(), e); err != nil {
				t.Error(err)
			}
		}
	})
	var all []*witness
	for _, step := range []struct{ procs, clients, shards int }{
		{1, 2 * maxShards * shardClients, 1},
		{maxShards, shardClients, 2},
		{maxShards, (maxShards - 2) * shardClients, maxShards},
		{2 * maxShards, 3 * maxShards * shardClients, maxShards},
		{1, maxShards * shardClients, maxShards},
	} {
		runtime.GOMAXPROCS(step.procs)
		for range step.clients {
			all = append(all, attend(t, hub, &next))
		}
		if got := len(hub.registry.allShards()); got != step.shards {
			t.Errorf("%d clients on %d processors have %d shards, want %d", len(all), step.procs, got, step.shards)
		}
		for i := range all { // some leave, and others come
			if i%5 == 0 {
				all[i].leaveHub()
				all[i] = attend(t, hub, &next)
			}
		}
	}
	n := 0
	for range hub.Subscribers("topic") {
		n++
	}
	if n != len(all) {
		t.Errorf("the topic has %d clients, want %d", n, len(all))
	}
	most, least := 0, len(all)
	for _, s := range hub.registry.shards[1:] { // the first one had most of the clients before
		most, least = max(most, s.assigned), min(least, s.assigned)
	}
	if most > 2*least {
		t.Errorf("shards have %d to %d clients", least, most)
	}

	close(stop)
	publishing.Wait()
	down := make(chan error, 1)
	go func() { down <- hub.Shutdown(context.Background()) }()
	hub.flushing.Wait()
	for i, w := range all {
		if wrong, last := w.wrong.Load(), w.last.Load(); wrong != 0 || last != next.Load() {
			t.Errorf("client %d got events from %d up to %d, and %d out of its turn; want all up to %d", i, w.from, last, wrong, next.Load())
		}
		w.leaveHub()
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	for i, s := range hub.registry.shards {
		if s.assigned != 0 || len(s.clients) != 0 {
			t.Errorf("shard %d keeps %d clients, and counts %d", i, len(s.clients), s.assigned)
		}
	}
}

// A small hub has one shard, however many processors there are.
func TestSmallHubHasOneShard(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(maxShards))
	hub := NewHub()
	hub.start()
	hub.settle()
	var next atomic.Int64
	for range 100 {
		var all []*witness
		for range shardClients {
			all = append(all, attend(t, hub, &next))
		}
		for _, w := range all {
			w.leaveHub()
		}
	}
	if got := len(hub.registry.allShards()); got != 1 {
		t.Errorf("a hub with never more than %d clients has %d shards", shardClients, got)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
