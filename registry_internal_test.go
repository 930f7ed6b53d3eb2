package realtime

import (
	"context"
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
