package realtime

import (
	"slices"
	"sync/atomic"
	"time"
)

// revolution is how often the sweeper looks at each client. So timeouts are
// noticed at most that much late.
const revolution = time.Second

// phases is the number of parts of a revolution. Client slots are spread over
// them, so that clients are pinged at different times.
const phases = 16

// ahead is how long before its time a ping or a heartbeat is sent. At the
// sweeper's next look it could be late, and that look itself may be a phase late.
const ahead = revolution + revolution/phases

// settleLooks is at how many looks a connection's ids become final, see
// lateStart.
const settleLooks = 10

// parkAfter is the silence after which a connection is parked, if it can be. It
// is so long that an active client pays nothing for parking. A client that was
// silent for so long is parked at once when it has said something.
const parkAfter = 3 * time.Second

// A clock is a hub's time. It stands still while the process does (SIGSTOP, a
// suspended laptop, a frozen container), because bytes that clients sent then
// are still unread. The sweeper winds it at least once a revolution, and it
// runs for two. So the first call of now after a stall doesn't count the stall.
type clock struct {
	start time.Time
	lost  atomic.Int64 // how long it stood still
	until atomic.Int64 // when it stops unless it is wound
}

// now returns the hub's time. It is never zero, so zero can mean never.
func (c *clock) now() time.Duration {
	return max(1, min(c.running(), time.Duration(c.until.Load())))
}

// running returns the time without the stop at until.
func (c *clock) running() time.Duration {
	return time.Since(c.start) - time.Duration(c.lost.Load())
}

// wind lets the clock run for two more revolutions. Only the sweeper calls it.
func (c *clock) wind() {
	running := c.running()
	now := max(1, min(running, time.Duration(c.until.Load())))
	c.lost.Add(int64(running - now)) // before until, so that the time never jumps ahead
	c.until.Store(int64(now + 2*revolution))
}

// sweep does all that depends on time, so that no client has a timer. It is a
// goroutine that the first client starts. It ends when there are no clients, or
// the hub stops. It never blocks: an overdue client's goroutines do the rest.
func (h *Hub) sweep() {
	defer h.seats.clear()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	h.shared.clock.wind()
	due := time.Now()
	var clients []*Client
	for phase := 0; ; phase = (phase + 1) % phases {
		slots := h.registry.toSweep()
		if slots == 0 {
			return
		}
		due = due.Add(revolution / phases)
		if phase >= slots {
			continue // it sleeps through empty phases: one client wakes it once a second
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
		clients = h.registry.everyNth(phases, phase, clients[:0])
		sweepAll(clients, h.shared.clock.now())
		clear(clients)
	}
}

// sweepAll does what is due for each of the clients.
func sweepAll(clients []*Client, now time.Duration) {
	for some := range slices.Chunk(clients, fetchTogether) {
		for _, c := range some {
			c.fetch()
		}
		for _, c := range some {
			c.sweep(now)
		}
	}
}

// sweep does what is due for one client.
func (c *Client) sweep(now time.Duration) {
	s := &c.hub.shared
	if by := time.Duration(c.closeBy.Load()); by != 0 && now >= by {
		c.abort(ErrClientClosed)
		return
	}
	if err := c.out.overdue(now); err != nil {
		c.cut(err)
		return
	}
	if at := c.expires.Load(); at != 0 && time.Now().UnixMilli() >= at {
		c.close(expired.status, expired)
	}
	if c.wire.heard.Load() == 0 || c.why() != nil {
		return // not connected yet, or not any more
	}
	if c.looks < settleLooks || c.looks == settleLooks && c.out.settle(c.position()) {
		c.looks++
	}
	if every := s.beatInterval(); every > 0 && now-c.beat >= every-ahead {
		c.beat = now
		// A position comes even if the client's topics are quiet: the history could
		// forget the last event that it saw.
		if !c.out.position(c.position()) && s.heartbeat != nil {
			c.out.beat(s.heartbeat)
		}
	}
	if c.couldPark(now) && c.hub.parker() != nil {
		c.wire.kick()
	}
	c.transport.sweep(c, now)
}

// couldPark reports whether a goroutine reads from a connection that could wait
// without one. That of an event stream does only if its parking has failed.
func (c *Client) couldPark(now time.Duration) bool {
	w := &c.wire
	return w.parkable && !w.isParked() && w.partial.Load() == 0 && !c.inHandler.Load() && now-time.Duration(w.heard.Load()) >= parkAfter
}

// beatInterval returns the time between a client's heartbeats. Zero or less
// means never. The history must not forget a client's last position before the
// next heartbeat, so a third of History.Age is the limit.
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

// position returns the newest position that the client may be told, or nil.
func (c *Client) position() *event {
	h, last := c.hub, c.home.last.Load()
	if last == nil {
		return nil
	}
	if h.lastPosition == nil || h.lastPosition.seq != last.seq || h.lastPosition.ID != last.ID {
		h.lastPosition = newPosition(last.seq, last.ID)
	}
	return h.lastPosition
}
