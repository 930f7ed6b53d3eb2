package realtime

import (
	"context"
	"fmt"
	"iter"
)

// A Heard is an event that [Hub.Listen] yields.
type Heard struct {
	Event        // its Data is shared: don't modify it
	Topic string // that it was published to; empty: all clients

	// Reset tells, instead of an event, that events may have been lost here. All
	// latest values follow. It comes with a [HistoryBroker] alone, as clients get a
	// reset then.
	Reset bool
}

// Listen iterates over what is published to topics and to all clients, by any
// node, in the order in which a client gets it: for a cache that has to be told,
// a bot, or a test. It has all that is published after Listen has returned, even
// before the loop begins. The loop may be run once.
//
// Listen waits for a [Broker] as [Client.Subscribe] does. An error is yielded
// last. It is the error of that Subscribe, ctx's, [ErrHubClosed] behind all that
// was published, or [ErrSlowClient] if more than 64 times [Hub.SendBuffer] events
// wait for the loop. A break or the end of ctx frees all that Listen holds. The
// end of ctx does so without a loop, too.
//
// A listener doesn't count as a client, nor in [Hub.MaxClients], and OnConnect
// isn't called for it. It gets no earlier events, and latest values only behind a Reset.
func (h *Hub) Listen(ctx context.Context, topics ...string) iter.Seq2[Heard, error] {
	if err := h.usable(); err != nil {
		return func(yield func(Heard, error) bool) { yield(Heard{}, fmt.Errorf("realtime: listen: %w", err)) }
	}
	h.start()
	h.settle()
	c := newClient(h, listener{}) // it stays in the state joining, and its outbox is never opened
	came := make(chan struct{}, 1)
	c.out.held = &held{came: came}
	var last []*event // what waited in the end
	ended := make(chan struct{})
	if err := h.add(c); err != nil {
		c.end(err)
		close(ended)
	} else {
		stop := context.AfterFunc(ctx, func() { c.abort(fmt.Errorf("realtime: listen: %w", ctx.Err())) })
		context.AfterFunc(c.Context(), func() { // Shutdown waits for it
			stop()
			last = c.out.takeHeld()
			close(ended)
			c.gone()
		})
		if err := c.Subscribe(topics...); err != nil {
			c.abort(err)
		}
	}
	return func(yield func(Heard, error) bool) {
		defer c.abort(ErrClientClosed)
		for over := false; !over; {
			var events []*event
			select {
			case <-came:
				events = c.out.takeHeld()
			case <-ended:
				events, last, over = last, nil, true
			}
			for _, ev := range events {
				if !yield(Heard{Event: ev.Event, Topic: ev.topic, Reset: ev.notice == resetNotice}, nil) {
					return
				}
			}
		}
		yield(Heard{}, c.why())
	}
}

// A listener is the transport of a client that Listen has.
type listener struct{ eventStream }

func (c *Client) isListener() bool {
	_, is := c.transport.(listener)
	return is
}
