package realtime

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"iter"
	"runtime"
	"slices"
	"sync"
)

// A registry has the clients of a hub, each in a slot that never changes, and
// the shards that divide them.
type registry struct {
	mu        sync.Mutex // guards the fields below
	shards    []*shard   // they only become more
	slots     []*Client  // nil: free
	free      []int32    // slots that are free
	clients   int        // slots that aren't
	listeners int        // those of them that Listen has
	seed      maphash.Seed
	sweeping  bool // the sweeper is running
	closed    bool
	quiet     chan struct{} // closed when the registry is closed and has no clients but Listen's
	empty     chan struct{} // the same without these
}

// add gives the client a slot and a shard, and joins it to the shard. From then
// on events wait for it.
func (h *Hub) add(c *Client) error {
	if err := h.enter(c); err != nil {
		return err
	}
	c.home.inbox.put(entry{do: func(s *shard) { s.join(c) }}) // the shard lives on while there are clients
	return nil
}

var errFull = errors.New("the hub has Hub.MaxClients clients")

// enter gives the client a slot and a shard, unless the registry is closed or
// full. It starts what the first client needs.
func (h *Hub) enter(c *Client) error {
	g := &h.registry
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrHubClosed
	}
	if c.isListener() {
		g.listeners++
	} else if g.clients-g.listeners >= h.shared.maxClients {
		h.shared.log.warn(logFull, "client refused: "+errFull.Error(), "clients", g.clients-g.listeners)
		return errFull
	}
	if !g.sweeping {
		g.sweeping = true
		h.own.Go(h.sweep)
	}
	if n := len(g.free); n > 0 {
		c.slot = g.free[n-1]
		g.free = g.free[:n-1]
	} else {
		c.slot = int32(len(g.slots))
		g.slots = append(g.slots, nil)
	}
	g.slots[c.slot] = c
	rand.Read(c.id[:12]) // never fails
	binary.BigEndian.PutUint32(c.id[12:], g.mask(&c.id)^uint32(c.slot))
	g.clients++
	c.home = h.emptiestLocked()
	c.home.assigned++
	return nil
}

// shardClients is how many clients each shard of a hub has before there is
// another shard. It would save these clients little time, but costs some 3 KB
// and 0.4 µs an event. A variable for tests.
var shardClients = 64

const maxShards = 16

// emptiestLocked returns the shard for a new client. It makes one if all have
// enough clients and the process has more processors, whose number can change.
// Clients that are there stay where they are: a move would need an order with
// the events of both shards.
func (h *Hub) emptiestLocked() *shard {
	g := &h.registry
	var least *shard
	if len(g.shards) > 0 {
		least = slices.MinFunc(g.shards, func(a, b *shard) int { return a.assigned - b.assigned })
	}
	if least == nil || least.assigned >= shardClients && len(g.shards) < min(runtime.GOMAXPROCS(0), maxShards) {
		least = &shard{stats: &h.shared}
		least.inbox.init()
		g.shards = append(g.shards, least)
		h.own.Go(least.loop)
	}
	return least
}

// mask returns what hides the slot in an id, given the rest of the id, which is
// random. So [Hub.Client] needs no index of ids.
func (g *registry) mask(id *clientID) uint32 { return uint32(maphash.Bytes(g.seed, id[:12])) }

func (g *registry) at(slot uint32) *Client {
	g.mu.Lock()
	defer g.mu.Unlock()
	if int64(slot) < int64(len(g.slots)) {
		return g.slots[slot]
	}
	return nil
}

// remove frees the client's slot. Nothing of the client is left then.
func (g *registry) remove(c *Client) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slots[c.slot] = nil
	c.home.assigned--
	g.clients--
	if c.isListener() {
		g.listeners--
	}
	g.free = append(g.free, c.slot)
	if g.clients == 0 {
		g.slots, g.free = nil, nil
	}
	g.endLocked()
}

// endLocked closes quiet and empty when their time has come.
func (g *registry) endLocked() {
	if g.closed && g.clients == g.listeners && !isClosed(g.quiet) {
		close(g.quiet)
	}
	if g.closed && g.clients == 0 {
		close(g.empty)
	}
}

// close lets no more clients in, and reports whether this call was the first.
func (g *registry) close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.closed = true
	g.endLocked()
	return true
}

// allShards returns the shards: none before the first client.
func (g *registry) allShards() []*shard {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shards
}

// all returns all clients, those that don't count yet or any more included.
func (g *registry) all() []*Client { return g.everyNth(1, 0, nil) }

// everyNth appends to dst the clients of every nth slot, from the given one on.
func (g *registry) everyNth(n, from int, dst []*Client) []*Client {
	g.mu.Lock()
	defer g.mu.Unlock()
	dst = slices.Grow(dst, g.clients/n)
	for i := from; i < len(g.slots); i += n {
		if c := g.slots[i]; c != nil {
			dst = append(dst, c)
		}
	}
	return dst
}

// Clients returns this node's connected clients, as of the iteration's start.
func (h *Hub) Clients() iter.Seq[*Client] {
	return h.eachOpen(func() []*Client { return h.registry.all() })
}

func (h *Hub) eachOpen(list func() []*Client) iter.Seq[*Client] {
	return func(yield func(*Client) bool) {
		if h.usable() != nil {
			return
		}
		for _, c := range list() {
			if c.isOpen() && !yield(c) {
				return
			}
		}
	}
}

// Client returns the client of this node that has the given [Client.ID], and
// reports whether there is one. More clients don't make it slower.
func (h *Hub) Client(id string) (c *Client, ok bool) {
	parsed, err := parseID(id)
	if err != nil || h.usable() != nil {
		return nil, false
	}
	g := &h.registry
	c = g.at(g.mask(&parsed) ^ binary.BigEndian.Uint32(parsed[12:]))
	if c == nil || c.id != parsed || !c.isOpen() {
		return nil, false
	}
	return c, true
}

// ClientCount returns how many clients of this node are connected; see [Stats].
func (h *Hub) ClientCount() int {
	if h == nil {
		return 0
	}
	return int(h.shared.members.Load())
}

// toSweep returns how many slots the sweeper has to look at. None ends it; the
// next client starts another.
func (g *registry) toSweep() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweeping = g.clients > 0
	return len(g.slots)
}
