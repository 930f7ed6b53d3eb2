package realtime

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Publish sends e to the clients that have topic; see [Client.Subscribe]. A
// topic that no client has is as good as any other. The empty topic is an error,
// and so is one that Subscribe would refuse. For all else see [Hub.PublishAll].
func (h *Hub) Publish(ctx context.Context, topic string, e Event) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	return h.take(ctx, topic, e)
}

// PublishAll sends e to every client. It waits only for the hub to take the
// event, which ctx can cut short: an error means that nothing was sent. It is
// [ErrHubClosed] after Shutdown has begun, ctx's, or says what is wrong with
// e: a line break in its name, an ID, or text that is not UTF-8. One error is
// another: [ErrBrokerUnavailable] tells that the clients of this node get e and
// those of others may not. What one goroutine publishes, by Publish, PublishAll
// and Broadcast together, reaches each client in that order.
//
// Where the engine of a [HistoryBroker] keeps the history, it waits until that
// has the event, or can't be reached for 2 s; [ErrEventTooLarge] is another
// reason for others not to get it. If ctx ends meanwhile, e has been sent, and
// whether clients of other nodes get it isn't known.
func (h *Hub) PublishAll(ctx context.Context, e Event) error {
	return h.take(ctx, "", e)
}

// take hands an event to the loop.
func (h *Hub) take(ctx context.Context, topic string, e Event) error {
	if err := h.usable(); err != nil {
		return fmt.Errorf("realtime: publish: %w", err)
	}
	if err := e.check(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("realtime: publish: %w", err)
	}
	if h.closing() {
		return ErrHubClosed
	}
	h.start()
	h.settle()
	var what receipt
	p := publication{event: newEvent(topic, e), receipt: &what, taken: make(chan struct{})}
	select {
	case h.publish <- p:
		<-p.taken
	case <-h.done:
		return ErrHubClosed
	case <-ctx.Done():
		return fmt.Errorf("realtime: publish: %w", ctx.Err())
	}
	if what.later == nil {
		return what.err
	}
	select {
	case err := <-what.later:
		return err
	case <-ctx.Done():
		return fmt.Errorf("realtime: publish: the event was taken, but its way to other nodes not waited for: %w", ctx.Err())
	}
}

// A publication is what a publisher gives to the loop. It waits until the loop
// has closed taken. Without that it could send to Broadcast what is to come
// later before the loop has looked at what Broadcast holds.
type publication struct {
	event   *event
	receipt *receipt // filled in by the loop
	taken   chan struct{}
}

// A change is what a client gives to the loop. It waits until the loop has
// closed taken. Without that it could leave its shard before it has joined.
type change struct {
	client  *Client
	entries []entry // for its shard
	replay  *replay // nil, or what the loop fills in, to come behind entries
	taken   chan struct{}
}

// hand gives a client's change to the loop and reports whether it was taken:
// a hub that has ended takes none.
func (h *Hub) hand(c change) bool {
	c.taken = make(chan struct{})
	select {
	case h.changes <- c:
		<-c.taken
		return true
	case <-h.stop:
		return false
	}
}

// loop takes events and newcomers from everybody, has the order say which events
// clients get, and gives all to the shards. It waits for nothing but a shard
// whose inbox is full. Run, or what starts the hub, starts it; Shutdown ends it
// and waits for it.
//
//	Publish ──▶ publish ─┐
//	Broadcast ───────────┤                       ┌─▶ shard ──▶ outboxes
//	other nodes ─────────┼─▶ loop ⇄ the order ───┼─▶ shard ──▶ outboxes
//	clients ──▶ changes ─┘                       └─▶ …
func (h *Hub) loop() {
	defer close(h.looped)
	var shards []*shard
	var out batch
	expiry := time.NewTimer(time.Hour) // of the oldest event that is kept
	expiry.Stop()
	defer expiry.Stop()
	expiring := false
	h.begin()
	order := h.order
	for done := h.done; done != nil || order.isPending(); {
		broadcast, publish := h.Broadcast, h.publish
		if done == nil || order.isFull() {
			broadcast, publish = nil, nil
		}
		select {
		case data := <-broadcast:
			h.publishText(data, &out)
			h.takeBroadcast(&out)
		case p := <-publish:
			h.takeBroadcast(&out) // what its publisher has put in before comes before it
			*p.receipt = order.publish(p.event, time.Now(), &out)
			close(p.taken)
		case c := <-h.changes:
			shards = h.registry.allShards()
			h.change(&c)
		case a := <-order.arrivals():
			order.arrive(a, time.Now(), &out)
			for range len(order.arrivals()) {
				order.arrive(<-order.arrivals(), time.Now(), &out)
			}
		case <-expiry.C:
			expiring = false
		case <-done:
			h.takeBroadcast(&out)
			done = nil
		}
		if len(out) > 0 {
			for _, s := range shards {
				s.inbox.put(out...)
			}
			clear(out)
			out = out[:0]
		}
		if !expiring {
			if wait := order.expire(time.Now()); wait > 0 {
				expiry.Reset(wait + time.Second) // so that a busy hub wakes once a second for it
				expiring = true
			}
		}
	}
	h.flush(shards)
	for {
		select {
		case <-h.Broadcast:
			h.shared.dropped.Add(1)
		case c := <-h.changes: // it was added just before, or has not left yet
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

// begin waits until the settings are read: by the first client or the first
// Publish, or here for what Broadcast brings, or for Shutdown.
func (h *Hub) begin() {
	select {
	case <-h.settled:
	case data := <-h.Broadcast:
		h.settle()
		h.publishText(data, new(batch)) // there is no client yet to get it
	case <-h.done:
		h.settle()
	}
}

// change passes a client's change to its shard. What it gets of the past ends
// here: all that is published from now on reaches the shard behind it.
func (h *Hub) change(c *change) {
	entries := c.entries
	if r := c.replay; r != nil {
		h.order.fill(r)
		switch {
		case r.lost:
			h.shared.resets.Add(1)
		case r.last != "":
			h.shared.resumed.Add(1)
		}
		entries = append(entries, entry{op: opReplay, client: c.client, replay: r})
	}
	c.client.home.inbox.put(entries...)
	close(c.taken)
}

// takeBroadcast publishes what Broadcast holds.
func (h *Hub) takeBroadcast(out *batch) {
	for range len(h.Broadcast) {
		h.publishText(<-h.Broadcast, out)
	}
}

// publishText publishes what came through Broadcast.
func (h *Hub) publishText(data []byte, out *batch) {
	ev := &event{Event: Event{Data: data}}
	if !utf8.Valid(data) {
		ev.Binary = true // as text it would make every browser drop its connection
		h.shared.invalidText.Add(1)
		h.shared.log.warn(logText, "data sent to Broadcast is not valid UTF-8: sent as binary", "bytes", len(data))
	}
	h.order.publish(ev, time.Now(), out)
}

// flush closes h.flushed when the shards have handed on all they got.
func (h *Hub) flush(shards []*shard) {
	var left atomic.Int64
	left.Store(int64(len(shards)) + 1)
	note := func(*shard) {
		if left.Add(-1) == 0 {
			close(h.flushed)
		}
	}
	for _, s := range shards {
		s.inbox.put(entry{op: opNote, note: note})
	}
	note(nil)
}
