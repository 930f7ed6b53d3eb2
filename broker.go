package realtime

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrBrokerUnavailable is returned where the other nodes can't be reached: by a
// Publish whose event the clients of this node get, and those of others don't,
// and by a Subscribe whose topic has, so far, the events of this node alone.
var ErrBrokerUnavailable = errors.New("realtime: broker is unavailable")

// A Broker carries what is published between hubs: the nodes. Each node has one
// of its own, which it alone uses. Topics are the hub's own names, any text, and
// messages any bytes; both may be handed on as they are. Its methods are called
// by several goroutines at a time. Package brokertest is the suite that a Broker
// has to pass.
type Broker interface {
	// Start connects, or begins to, and returns without waiting for it. h gets
	// what comes from then on.
	Start(h BrokerHandler) error

	// Publish hands msg to the engine, for all nodes that have subscribed to
	// topic. This node is one of them or isn't, as the engine likes. It fails
	// at once while the engine can't be reached, and never keeps messages for
	// later. What one goroutine publishes to a topic arrives in that order.
	// msg is the caller's again when Publish returns.
	Publish(ctx context.Context, topic string, msg []byte) error

	// Subscribe returns nil once everything that any node publishes to topic
	// from then on is going to arrive. It fails where the engine can't be
	// reached or ctx ends. What was subscribed stays so when the engine comes
	// back.
	Subscribe(ctx context.Context, topic string) error

	// Unsubscribe ends it. It doesn't wait for the engine.
	Unsubscribe(topic string) error

	// Close ends what Start began. Nothing is delivered once it has returned.
	// A connection that the user made stays open.
	Close() error
}

// A BrokerHandler is a node's side of a [Broker].
type BrokerHandler interface {
	// Deliver takes a message, one after another for each topic. It may block
	// while the hub is behind. msg belongs to the node from then on.
	Deliver(topic string, msg []byte)

	// Gap tells that messages may have been missed, on any topic: the engine
	// was away, or this node too slow for it. It is called when messages flow
	// again, before the first of them.
	Gap(err error)
}

// ErrEventTooLarge is returned by a Publish whose event the broker's engine
// never takes. It is an [ErrBrokerUnavailable] as well.
var ErrEventTooLarge = fmt.Errorf("%w: the event is too large for it", ErrBrokerUnavailable)

// A HistoryBroker is a Broker whose engine keeps what is published, in one order
// that all nodes have. A hub with a [History] uses it as the log of all its
// events: it appends those of its own, and takes everybody's, its own among
// them, from there. So an event's id means the same on every node, and after the
// restart of any. Each node gets all topics. What the Broker's other methods
// carry is then but which nodes there are.
type HistoryBroker interface {
	Broker

	// Follow begins to hand h the records of the log, from the oldest that the
	// engine has, and returns without waiting for it. It is called once, after
	// Start. The engine is to keep a record for the given time, as far as its
	// limits allow; also the newest for longer, if it can. After an outage
	// records go on where they stopped.
	Follow(h HistoryHandler, keep time.Duration) error

	// Append adds a record to the log and returns nil once the engine has it.
	// It is called by one goroutine, and fails at once while the engine can't
	// be reached. After an error the record may be in the log, or get there
	// later, or come twice, as the hub tries again; but not where the error is
	// [ErrEventTooLarge]. record is the caller's again when Append returns.
	Append(ctx context.Context, record []byte) error
}

// A HistoryHandler is a node's side of a [HistoryBroker]. Its methods are called
// one at a time.
type HistoryHandler interface {
	// Record takes a record, in the log's order. It may block while the hub is
	// behind. Records are numbered by seq, from 1 on and without a gap: where
	// one is missing the engine has lost it. The epoch, at most 32 letters and
	// digits, tells this log from any other, also from one that the engine has
	// lost in part so that numbers are given again. record belongs to the node
	// from then on.
	Record(epoch string, seq uint64, record []byte)

	// Current tells that all that the log had when the broker connected has
	// been handed over, last being the number of its last record: zero, if
	// there is none.
	Current(epoch string, last uint64)

	// Away tells that nothing comes until Current is called again.
	Away(err error)
}
