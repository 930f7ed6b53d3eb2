package realtime

import "time"

// A hub of few clients has several shards in tests.
func init() { shardClients = 2 }

// Kick does to all clients what the sweeper does to those that have been idle.
func Kick(h *Hub) {
	for _, c := range h.registry.all() {
		if !c.wire.isParked() {
			c.wire.kick()
		}
	}
}

// Silent makes all clients look as if nothing had come from them for d.
func Silent(h *Hub, d time.Duration) {
	for _, c := range h.registry.all() {
		c.wire.heard.Add(-int64(d))
	}
}

// Stall does to the hub's clock what it does to a process to be stopped for d.
func Stall(h *Hub, d time.Duration) { h.shared.clock.lost.Add(-int64(d)) }

// Joined returns how many clients have a slot: all of whom something is left.
func Joined(h *Hub) int { return len(h.registry.all()) }

// Kept returns how many clients the shards have of a hub that is shut down.
func Kept(h *Hub) (n int) {
	for _, s := range h.registry.allShards() {
		n += len(s.clients)
	}
	return n
}

// StartWithParts starts a hub whose replays come in parts of n events.
func StartWithParts(h *Hub, n int) {
	h.settle()
	switch o := h.order.(type) {
	case *local:
		o.past.partEvents = n
	case *relay:
		o.past.partEvents = n
	case *journal:
		o.past.partEvents = n
	}
	h.start()
}

// HoldShards makes what is published wait in the shards until release is
// called, so that each shard gets all of it in one batch.
func HoldShards(h *Hub) (release func()) {
	released := make(chan struct{})
	for _, s := range h.registry.allShards() {
		held := make(chan struct{})
		s.inbox.put(entry{do: func(*shard) { close(held); <-released }})
		<-held
	}
	return func() { close(released) }
}
