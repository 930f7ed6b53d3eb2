package realtime

import (
	"context"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// Publish sends e to the clients that have topic; see [Client.Subscribe]. There
// may be none. The empty topic is an error, and so is a topic that Subscribe
// would refuse. All else is as with [Hub.PublishAll].
func (h *Hub) Publish(ctx context.Context, topic string, e Event) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	return h.take(ctx, topic, e)
}

// PublishAll sends e to every client. It blocks until the hub accepts e or ctx
// ends. Events that one goroutine publishes, by Publish, PublishAll and
// Broadcast together, reach each client in that order. An error means that
// nothing was sent: [ErrHubClosed] once [Hub.Done] is closed, ctx's error, or a
// fault of e (a line break in its name, an ID, text that is not UTF-8). One
// error is different: after [ErrBrokerUnavailable] this node's clients get e,
// others may not.
//
// With a [HistoryBroker] and a History it waits until the engine has the event
// or has been away for 2 s. [ErrEventTooLarge] means that the engine will never
// accept it, and only this node's clients get it. If ctx ends while it waits, e
// has been sent, but clients of other nodes may not get it.
func (h *Hub) PublishAll(ctx context.Context, e Event) error {
	return h.take(ctx, "", e)
}

// Position returns an id that stands for now. A handler asks for it, then loads
// the state that a page shows, and gives both to the page. If the page connects
// with the id as its last one (lastEventId), it gets all that has been
// published to its topics since, or a reset. An event that was published while
// the state was loaded may be in both. Ask for the position before you load,
// and store a change before you publish it. Otherwise the page may lose a
// change.
//
// The id stands for all events for which Publish has returned on this node, and
// perhaps later ones. With a Broker without a shared history it is valid on this
// node alone. With a [HistoryBroker] it is valid on all nodes. A client with it
// waits until its node has come that far. Events that other nodes have published,
// or this one a moment ago, may be behind it. The page then gets them too. While
// the engine is away the id may stand for nothing. Its page then gets a reset.
//
// Position is empty without a [History]. It doesn't block without a
// HistoryBroker. With one it waits until this node has read the history. It
// gives up after 5 s if the engine is away, and always a minute after the
// node's start.
func (h *Hub) Position() string {
	if h.usable() != nil {
		return ""
	}
	h.settle()
	if !h.shared.history.keeps() {
		return ""
	}
	h.start()
	h.order.await("")
	return h.order.position()
}

func (h *Hub) take(ctx context.Context, topic string, e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	return h.takeEvent(ctx, newEvent(topic, e))
}

// takeEvent hands an event, or a disconnect, to the loop; see PublishAll.
func (h *Hub) takeEvent(ctx context.Context, ev *event) error {
	if err := h.usable(); err != nil {
		return fmt.Errorf("realtime: publish: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("realtime: publish: %w", err)
	}
	if h.closing() {
		return ErrHubClosed
	}
	h.start()
	h.settle()
	p := publication{ev, make(chan receipt, 1)}
	select {
	case h.publish <- p:
	case <-h.done:
		return ErrHubClosed
	case <-ctx.Done():
		return fmt.Errorf("realtime: publish: %w", ctx.Err())
	}
	what := <-p.taken
	if what.later == nil {
		return what.err
	}
	select {
	case err := <-what.later:
		return err
	case <-ctx.Done():
		return fmt.Errorf("realtime: publish: the event was accepted, but it is not known whether other nodes get it: %w", ctx.Err())
	}
}

// A publication is an event for the loop. Its publisher waits for the receipt: a
// later send to Broadcast could overtake it otherwise.
type publication struct {
	event *event
	taken chan receipt // has room for it
}

// A change of a client's shard needs the loop if a replay comes with it, or if all
// that the hub has accepted is to come before it. All others go to the shard's
// inbox.
type change struct {
	client *Client        // nil: nobody gets the replay
	do     func(s *shard) // in its shard; nil: nothing
	replay *replay        // filled in by the loop; it goes behind do; nil: there is only do
	made   chan struct{}  // closed when the outbox has the replay, and do is done
}

// hand gives c to the loop, waits until it is made, and reports whether the hub
// still ran to accept it.
func (h *Hub) hand(c change) bool {
	c.made = make(chan struct{})
	select {
	case h.changes <- c:
		<-c.made
		return true
	case <-h.stop:
		return false
	}
}

// loop receives events, asks the order which events clients get, and passes
// these to the shards. It also fills replays. It waits only for a shard whose
// inbox is full. Run or start starts it. Shutdown ends it and waits for it.
//
//	Publish ──▶ publish ─┐
//	Broadcast ───────────┤                       ┌─▶ shard ──▶ outboxes
//	other nodes ─────────┼─▶ loop ⇄ the order ───┼─▶ shard ──▶ outboxes
//	clients ──▶ changes ─┘                       └─▶ …
//
// A client joins its shard without the loop. It gets all events that are passed
// on later. So Publish returns when its event has been passed on: a client that
// joins after that doesn't get it.
func (h *Hub) loop() {
	defer close(h.looped)
	var out batch
	expiry := time.NewTimer(time.Hour) // of the oldest event that is kept
	expiry.Stop()
	defer expiry.Stop()
	expiring := false
	h.begin(&out)
	h.pass(&out)
	order := h.order
	all := h.Broadcast // nil once somebody has closed it
	for done := h.done; done != nil || order.isPending(); {
		broadcast, publish := all, h.publish
		if done == nil || order.isFull() {
			broadcast, publish = nil, nil
		}
		select {
		case data, ok := <-broadcast:
			if !ok {
				all = nil // it would always be ready
				continue
			}
			h.publishText(data, &out)
			h.takeBroadcast(&out)
		case p := <-publish:
			h.takeBroadcast(&out) // its publisher may have sent to Broadcast before
			taken := h.accept(p.event, &out)
			h.pass(&out)
			p.taken <- taken
		case c := <-h.changes:
			if c.replay == nil && !order.isFull() {
				h.takeBroadcast(&out) // the client gets what was sent before
				h.pass(&out)
			}
			h.change(&c)
		case a := <-order.arrivals():
			now := time.Now()
			a(now, &out)
			for range len(order.arrivals()) {
				a = <-order.arrivals()
				now = time.Now()
				a(now, &out)
			}
			out.stamp(h.shared.clock.moment(now))
			h.pass(&out)
			order.delivered()
		case <-expiry.C:
			expiring = false
		case <-done:
			h.takeBroadcast(&out)
			done = nil
		}
		h.pass(&out)
		if !expiring {
			if wait := order.expire(time.Now()); wait > 0 {
				expiry.Reset(min(wait, math.MaxInt64-time.Second) + time.Second) // so that a busy hub wakes for it once a second at most
				expiring = true
			}
		}
	}
	h.flush()
	for {
		select {
		case _, ok := <-all:
			if !ok {
				all = nil
				continue
			}
			h.shared.dropped.Add(1)
		case c := <-h.changes: // its client has not left yet
			h.change(&c)
		case <-h.stop:
			for range len(h.Broadcast) {
				<-h.Broadcast
				h.shared.dropped.Add(1)
			}
			return
		}
	}
}

// begin waits until the settings are read: by a client or Publish, or by begin
// itself for Broadcast or Shutdown.
func (h *Hub) begin(out *batch) {
	select {
	case <-h.settled:
	case data, ok := <-h.Broadcast:
		h.settle()
		if ok {
			h.publishText(data, out)
		}
	case <-h.done:
		h.settle()
	}
}

// pass gives out to all shards, and empties it.
func (h *Hub) pass(out *batch) {
	if len(*out) == 0 {
		return
	}
	for _, s := range h.registry.allShards() {
		s.inbox.put(*out...)
	}
	clear(*out)
	*out = (*out)[:0]
}

// change completes a client's replay and passes its change to its shard. All
// that is published from now on reaches the shard behind it.
func (h *Hub) change(c *change) {
	r := c.replay
	if r != nil {
		h.order.fill(r)
		h.shared.resets.Add(r.resets)
		h.shared.resumed.Add(r.resumed)
	}
	if c.client == nil {
		close(c.made)
		return
	}
	c.client.home.inbox.put(entry{do: func(s *shard) {
		if c.do != nil {
			c.do(s)
		}
		if r != nil {
			c.client.out.replay(r)
			if r.position != nil {
				s.last.Store(r.position)
			}
		}
		close(c.made)
	}})
}

func (h *Hub) takeBroadcast(out *batch) {
	for range len(h.Broadcast) {
		h.publishText(<-h.Broadcast, out)
	}
}

func (h *Hub) publishText(data []byte, out *batch) {
	ev := &event{Event: Event{Data: data}}
	if !utf8.Valid(data) {
		ev.Binary = true // as text it would make every browser drop its connection
		h.shared.invalidText.Add(1)
		h.shared.log.warn(logText, "data sent to Broadcast is not valid UTF-8: sent as binary", "bytes", len(data))
	}
	h.accept(ev, out)
}

// accept passes an event of this node to the order.
func (h *Hub) accept(ev *event, out *batch) receipt {
	now := time.Now()
	ev.accepted = h.shared.clock.moment(now)
	return h.order.publish(ev, now, out)
}

// flush ends h.flushing when the shards have handed on all they got.
func (h *Hub) flush() {
	defer h.flushing.Done()
	for _, s := range h.registry.allShards() {
		h.flushing.Add(1)
		s.inbox.put(entry{do: func(*shard) { h.flushing.Done() }})
	}
}
