package realtime

import (
	"iter"
	"runtime"
)

// add gives the client a slot and a shard, and passes it through the loop to
// that shard: from then on events wait for it.
func (h *Hub) add(c *Client) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrHubClosed
	}
	if h.shards == nil {
		for range min(runtime.GOMAXPROCS(0), 16) {
			s := &shard{stats: &h.shared}
			s.inbox.init()
			h.shards = append(h.shards, s)
			h.own.Go(s.loop)
		}
	}
	if !h.sweeping {
		h.sweeping = true
		h.own.Go(h.sweep)
	}
	if n := len(h.free); n > 0 {
		c.slot = int32(h.free[n-1])
		h.free = h.free[:n-1]
	} else {
		c.slot = int32(len(h.slots))
		h.slots = append(h.slots, nil)
	}
	h.slots[c.slot] = c
	h.clients++
	c.home = h.shards[int(c.slot)%len(h.shards)]
	h.mu.Unlock()
	h.hand(handover{client: c, entries: []entry{{op: opJoin, client: c}}}) // the loop lives on while there are clients
	return nil
}

// remove takes the client's slot back. Nothing of the client is left then.
func (h *Hub) remove(c *Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots[c.slot] = nil
	h.clients--
	if h.clients == 0 {
		h.slots, h.free = nil, nil
	} else {
		h.free = append(h.free, int(c.slot))
	}
	if h.closed && h.clients == 0 {
		close(h.empty)
	}
}

// parking returns the hub's parker, or nil where it can have none. The first
// client that could be parked makes it: hubs of other connections have no use
// for it.
func (h *Hub) parking() *parker {
	h.parkOnce.Do(func() {
		p, err := newParker()
		if err != nil {
			h.log.error(logSetup, "idle clients keep their goroutines", "err", err)
			return
		}
		h.parker = p
		h.own.Go(p.loop) // there is a client, so that Shutdown doesn't wait for own yet
	})
	return h.parker
}

// allShards returns the hub's shards.
func (h *Hub) allShards() []*shard {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.shards
}

// all returns the hub's clients, those not counted included.
func (h *Hub) all() []*Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Client, 0, h.clients)
	for _, c := range h.slots {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

// Clients returns the clients that are connected when the iteration starts.
func (h *Hub) Clients() iter.Seq[*Client] {
	return func(yield func(*Client) bool) {
		if h.usable() != nil {
			return
		}
		for _, c := range h.all() {
			if c.isOpen() && !yield(c) {
				return
			}
		}
	}
}

// ClientCount returns the number of clients that are connected.
func (h *Hub) ClientCount() int {
	if h == nil {
		return 0
	}
	return int(h.count.Load())
}

// sweptEmpty ends the sweeper of a hub without clients: the next client
// starts another.
func (h *Hub) sweptEmpty() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sweeping = h.clients > 0
	return !h.sweeping
}

// hasPhase reports whether the sweeper has anything to look at in a phase.
func (h *Hub) hasPhase(phase int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return phase < len(h.slots)
}

// inPhase appends the clients of a phase to dst.
func (h *Hub) inPhase(phase int, dst []*Client) []*Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := phase; i < len(h.slots); i += phases {
		if c := h.slots[i]; c != nil {
			dst = append(dst, c)
		}
	}
	return dst
}
