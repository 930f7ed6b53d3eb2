package realtime

import (
	"sync/atomic"
	"time"
)

// revolution is how often the sweeper looks at each client: what depends on
// time happens at most that much late.
const revolution = time.Second

// phases is how many parts a revolution has. Client slots are spread over
// them, so that not all clients are pinged at once.
const phases = 16

// parkAfter is how long a client's goroutine waits for its next message before
// the connection is parked, where it can be: so long that a client which talks
// pays nothing for it.
const parkAfter = 3 * time.Second

// A clock tells a hub's time: that of the process while it runs. When the
// whole process was stopped (SIGSTOP, a suspended laptop, a frozen container)
// the clock was too, because what clients sent meanwhile is still unread. The
// sweeper winds it at least once a revolution, and it runs for two: whoever is
// first to ask after a stall gets no time from after it.
type clock struct {
	start time.Time
	lost  atomic.Int64 // how long it stood still
	until atomic.Int64 // when it stands still unless it is wound
}

// now returns the hub's time. It is never zero, so that zero can mean never.
func (c *clock) now() time.Duration {
	return max(1, min(c.running(), time.Duration(c.until.Load())))
}

// running returns the time of a clock that is wound.
func (c *clock) running() time.Duration {
	return time.Since(c.start) - time.Duration(c.lost.Load())
}

// wind lets the clock run on. It is for the sweeper.
func (c *clock) wind() {
	running := c.running()
	now := max(1, min(running, time.Duration(c.until.Load())))
	c.lost.Add(int64(running - now)) // before until, so that nobody sees it jump ahead
	c.until.Store(int64(now + 2*revolution))
}

// sweep does all that depends on time, for all clients, so that none of them
// has a timer. It is the body of a goroutine that the first client starts, and
// that ends when there are no clients any more, or the hub stops. It
// never blocks: what it finds overdue, it hands to the client's goroutines.
func (h *Hub) sweep() {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	h.shared.clock.wind()
	due := time.Now()
	var members []*Client
	for phase := 0; ; phase = (phase + 1) % phases {
		if phase == 0 && h.registry.sweptEmpty() {
			return
		}
		// Phases without a slot are slept through: a hub with one client
		// wakes once a second.
		due = due.Add(revolution / phases)
		if !h.registry.hasPhase(phase) {
			continue
		}
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-h.stop:
			return
		}
		if late := time.Since(due); late >= revolution {
			due = due.Add(late)
		}
		h.shared.clock.wind()
		members = h.registry.inPhase(phase, members[:0])
		now := h.shared.clock.now()
		for _, c := range members {
			c.sweep(now)
		}
		clear(members)
	}
}

// sweep does what is due for one client.
func (c *Client) sweep(now time.Duration) {
	s := &c.hub.shared
	if by := time.Duration(c.closeBy.Load()); by != 0 && now >= by {
		c.abort(ErrClientClosed)
		return
	}
	switch err := c.out.overdue(now); err {
	case nil:
	case ErrSlowClient:
		c.cutSlow()
		return
	default:
		c.abort(err)
		return
	}
	if c.wire.heard.Load() == 0 || c.why() != nil {
		return // not connected yet, or not any more
	}
	if every := s.beatInterval(); every > 0 && now-c.beat >= every {
		if c.beat != 0 { // and not just connected
			c.heartbeat()
		}
		c.beat = now
	}
	c.transport.sweep(c, now)
}

// beatInterval returns how often a client gets a heartbeat; not positive: never.
// A position must be told well before the history has forgotten the one that was
// told before.
func (s *shared) beatInterval() time.Duration {
	switch every := s.history.Age / 3; {
	case !s.history.keeps():
		return s.pingInterval
	case s.pingInterval < 0:
		return every
	default:
		return min(s.pingInterval, every)
	}
}

// heartbeat tells a client that knows of ids how far it has come, also where
// nothing was published to its topics: the history would otherwise forget the
// event that it saw last. On an event stream something is written in any case,
// for proxies to see that it is alive.
func (c *Client) heartbeat() {
	h := c.hub
	if last := c.home.last.Load(); last != nil {
		if h.lastPosition == nil || h.lastPosition.seq != last.seq || h.lastPosition.ID != last.ID {
			h.lastPosition = newPosition(last.seq, last.ID)
		}
		if c.out.position(h.lastPosition) {
			return
		}
	}
	c.transport.heartbeat(c)
}
