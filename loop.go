package realtime

import (
	"context"
	"fmt"
	"slices"
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
	var result acceptance
	hand := handover{event: newEvent(topic, e), result: &result, taken: make(chan struct{})}
	select {
	case h.publish <- hand:
		<-hand.taken
	case <-h.done:
		return ErrHubClosed
	case <-ctx.Done():
		return fmt.Errorf("realtime: publish: %w", ctx.Err())
	}
	if result.appended == nil {
		return result.err
	}
	select {
	case err := <-result.appended:
		return err
	case <-ctx.Done():
		return fmt.Errorf("realtime: publish: the event was taken, but its way to other nodes not waited for: %w", ctx.Err())
	}
}

// An acceptance is what becomes of an event for which there is a broker.
type acceptance struct {
	err      error
	appended <-chan error // brings it; nil: err is it
}

// A handover is what a publisher or a client gives to the loop. Its giver
// waits until the loop has closed taken. Without that, a publisher could send to
// Broadcast what is to come later before the loop has looked at what Broadcast
// holds, and a client could leave its shard before it has joined.
type handover struct {
	event  *event      // or a change of a client:
	result *acceptance // of the event

	client  *Client
	entries []entry // for its shard
	replay  *replay // nil, or what the loop fills in, to come behind entries
	taken   chan struct{}
}

// hand gives a client's change to the loop and reports whether it was taken:
// a hub that has ended takes none.
func (h *Hub) hand(hand handover) bool {
	hand.taken = make(chan struct{})
	select {
	case h.changes <- hand:
		<-hand.taken
		return true
	case <-h.stop:
		return false
	}
}

// loop takes events and newcomers from everybody and gives them to the
// shards. It waits for nothing but a shard whose inbox is full. Run, or what
// starts the hub, starts it; Shutdown ends it and waits for it.
func (h *Hub) loop() {
	defer close(h.looped)
	var shards []*shard
	var batch []entry
	expiry := time.NewTimer(time.Hour) // of the history's oldest event
	expiry.Stop()
	defer expiry.Stop()
	expiring := false
	var past *history // nil: nothing has been published, and the settings are not settled yet
	clustered := h.clustered
	for done := h.done; done != nil || h.owes(); {
		var arrivals chan arrival
		if c := h.cluster.Load(); c != nil {
			arrivals = c.in
		}
		broadcast, publish := h.Broadcast, h.publish
		if done == nil || h.isBehind() {
			broadcast, publish = nil, nil
		}
		select {
		case data := <-broadcast:
			batch = h.takeBroadcast(append(batch, h.text(data)))
		case hand := <-h.changes:
			shards, past = h.allShards(), h.past
			h.change(&hand)
		case a := <-arrivals:
			batch = a.arrive(h, batch)
			for range len(arrivals) {
				batch = (<-arrivals).arrive(h, batch)
			}
		case <-clustered: // by another goroutine: there are arrivals now
			clustered = nil
		case <-expiry.C:
			expiring = false
		case hand := <-publish:
			h.settle()
			// What its publisher has put into Broadcast before comes before it.
			batch = append(h.takeBroadcast(batch), entry{event: hand.event})
			if c := h.cluster.Load(); c != nil {
				*hand.result = c.accept(hand.event, len(batch))
			}
			close(hand.taken)
		case <-done:
			batch, done = h.takeBroadcast(batch), nil
		}
		if len(batch) > 0 {
			past = h.past
			batch = h.remember(batch)
			for _, s := range shards {
				s.inbox.put(batch...)
			}
			clear(batch)
			batch = batch[:0]
		}
		if past != nil && !expiring {
			if wait := past.expire(time.Now()); wait > 0 {
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
		case hand := <-h.changes: // it was added just before, or has not left yet
			h.change(&hand)
		case <-h.stop:
			h.shared.dropped.Add(int64(len(h.takeBroadcast(nil))))
			return
		}
	}
}

// change passes a client's change to its shard. What it gets of the past ends
// here: all that is published from now on reaches the shard behind it.
func (h *Hub) change(hand *handover) {
	entries := hand.entries
	if r := hand.replay; r != nil {
		h.past.fill(r)
		if c := h.cluster.Load(); c != nil && c.journal != nil && !c.journal.isCurrent() {
			c.journal.early = true
		}
		switch {
		case r.lost:
			h.shared.resets.Add(1)
		case r.last != "":
			h.shared.resumed.Add(1)
		}
		entries = append(entries, entry{op: opReplay, client: hand.client, replay: r})
	}
	hand.client.home.inbox.put(entries...)
	close(hand.taken)
}

// remember keeps events, and sends those of this node to the others. It returns
// those that are for clients.
func (h *Hub) remember(batch []entry) []entry {
	c := h.cluster.Load()
	if h.shared.history.keeps() && (c == nil || c.journal == nil) {
		now := time.Now()
		for _, e := range batch {
			h.past.add(e.event, now)
		}
	}
	if c == nil {
		h.shared.published.Add(int64(len(batch)))
		return batch
	}
	for _, e := range batch {
		if e.op == opEvent && !e.event.arrived {
			h.shared.published.Add(1)
			c.enqueue(e.event)
		}
	}
	return slices.DeleteFunc(batch, func(e entry) bool {
		return e.op == opEvent && (e.event.notice == gapNotice || c.journal != nil && !e.event.arrived) // which will arrive
	})
}

// owes reports whether events that were published have not arrived yet.
func (h *Hub) owes() bool {
	c := h.cluster.Load()
	return c != nil && c.journal != nil && len(c.journal.own) > 0
}

// isBehind reports whether those are so many that no more can be taken now.
func (h *Hub) isBehind() bool { return h.owes() && len(h.cluster.Load().journal.own) >= maxOwn }

// takeBroadcast appends what Broadcast holds.
func (h *Hub) takeBroadcast(batch []entry) []entry {
	for range len(h.Broadcast) {
		batch = append(batch, h.text(<-h.Broadcast))
	}
	return batch
}

// text makes an event of what came through Broadcast.
func (h *Hub) text(data []byte) entry {
	h.settle()
	ev := &event{Event: Event{Data: data}}
	if !utf8.Valid(data) {
		ev.Binary = true // as text it would make every browser drop its connection
		h.shared.invalidText.Add(1)
		h.log.warn(logText, "data sent to Broadcast is not valid UTF-8: sent as binary", "bytes", len(data))
	}
	return entry{event: ev}
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
