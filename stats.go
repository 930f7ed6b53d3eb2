package realtime

import (
	"sync/atomic"
	"time"
)

// Stats is what a hub has been doing. But for the first two, the figures grow
// from NewHub on.
type Stats struct {
	Clients        int   // of this node, connected now
	ClusterClients int   // of all nodes, connected now; one that has crashed is counted for 7 s more
	Queued         int64 // messages that wait for a client now
	Published      int64 // events taken from publishers
	Delivered      int64 // messages written to a client's connection
	Received       int64 // messages from clients
	Replaced       int64 // messages that a newer one with their Key took the place of
	Resumed        int64 // clients that came back and got all they had missed
	Resets         int64 // clients that came back and may have missed events
	Dropped        int64 // messages that their client left behind, and events sent to Broadcast after Shutdown had begun
	SlowClients    int64 // clients disconnected for ErrSlowClient
	Gaps           int64 // times that events of other nodes may have been lost on their way
	Unsent         int64 // events that could not be handed to the broker
	BrokerDown     bool  // the last event couldn't be
	Refused        int64 // requests that were turned down
	InvalidText    int64 // events that Broadcast sent as binary because they were not valid UTF-8
	Panics         int64 // of handlers
}

// Stats returns what the hub has been doing. The figures are each right, but
// not of one moment.
func (h *Hub) Stats() Stats {
	if h == nil {
		return Stats{}
	}
	s := &h.shared
	elsewhere, down := 0, false
	if h.usable() == nil && isClosed(h.settled) {
		elsewhere, down = h.order.elsewhere()
	}
	here := h.ClientCount()
	return Stats{
		Clients:        here,
		ClusterClients: here + elsewhere,
		Queued:         s.queued.Load(),
		Published:      s.published.Load(),
		Delivered:      s.delivered.Load(),
		Received:       s.received.Load(),
		Replaced:       s.replaced.Load(),
		Resumed:        s.resumed.Load(),
		Resets:         s.resets.Load(),
		Gaps:           s.gaps.Load(),
		Unsent:         s.brokerLost.Load(),
		BrokerDown:     down,
		Dropped:        s.dropped.Load(),
		SlowClients:    s.slowClients.Load(),
		Refused:        s.refused.Load(),
		InvalidText:    s.invalidText.Load(),
		Panics:         s.panics.Load(),
	}
}

// shared is what the parts of a hub have in common: its settings, made
// definite, its clock and its counters.
type shared struct {
	clock   clock
	log     logbook
	done    <-chan struct{} // closed when Shutdown begins
	members atomic.Int64    // clients that are open

	// Set once, before the first client or event.
	sendBuffer      int
	slowAfter       time.Duration
	maxMessageBytes int64
	pingInterval    time.Duration // negative: never
	pongTimeout     time.Duration
	writeTimeout    time.Duration
	compression     bool
	history         History

	queued      atomic.Int64
	published   atomic.Int64
	delivered   atomic.Int64
	received    atomic.Int64
	dropped     atomic.Int64
	replaced    atomic.Int64
	gaps        atomic.Int64
	brokerLost  atomic.Int64
	resumed     atomic.Int64
	resets      atomic.Int64
	slowClients atomic.Int64
	refused     atomic.Int64
	invalidText atomic.Int64
	panics      atomic.Int64
}
