package realtime

import (
	"context"
	"errors"
	"fmt"
)

// ErrBrokerUnavailable is returned where other nodes can't be reached. Publish
// returns it for an event that only the clients of this node get. Subscribe
// returns it for a topic that has, so far, the events of this node alone.
var ErrBrokerUnavailable = errors.New("realtime: broker is unavailable")

// ErrEventTooLarge is returned by a Publish whose event the broker's engine
// never accepts. It is an [ErrBrokerUnavailable] as well.
var ErrEventTooLarge = fmt.Errorf("%w: the event is too large for it", ErrBrokerUnavailable)

// A Broker carries events between hubs, which are then called nodes. Each node
// has a Broker of its own. Topics are any text and messages any bytes; a Broker
// may hand both on as they are. Several goroutines call its methods at a time.
// Package brokertest is the suite that a Broker has to pass.
//
// A Broker may have a method MaxMessageBytes() int, which returns the size of the
// largest message that the engine accepts, or zero where it isn't known. The hub
// then refuses a larger event at once, and its publisher gets [ErrEventTooLarge].
type Broker interface {
	// Start connects, or begins to, and returns without waiting for it. From
	// then on it calls h.
	Start(h BrokerHandler) error

	// Publish hands msg to the engine, for all nodes that have subscribed to
	// topic. The engine may deliver it to this node too; the hub drops echoes.
	// While the engine can't be reached Publish fails at once, and never keeps
	// the message for later. For a message that the engine never accepts it
	// returns [ErrEventTooLarge], before anything is sent. Messages that one
	// goroutine publishes to a topic arrive in that order. msg is the caller's
	// again when Publish returns.
	Publish(ctx context.Context, topic string, msg []byte) error

	// Subscribe returns nil once everything arrives that any node publishes to
	// topic from then on. It fails where the engine can't be reached, or ctx
	// ends. The subscription outlasts an outage of the engine.
	Subscribe(ctx context.Context, topic string) error

	// Unsubscribe ends a subscription. It doesn't wait for the engine. For a topic
	// without one it returns nil: the hub calls it also if Subscribe has failed.
	Unsubscribe(topic string) error

	// Close ends what Start began. It calls the handler no more once it has
	// returned. A connection that the user made stays open.
	Close() error
}

// A BrokerHandler is a node's side of a [Broker].
type BrokerHandler interface {
	// Deliver accepts a message; for each topic one after another. It may block
	// while the hub is behind. msg belongs to the node from then on.
	Deliver(topic string, msg []byte)

	// Gap tells that messages of any topic may be lost: the engine was away,
	// or this node was too slow for it. A Broker calls it when messages arrive
	// again, before the first of them.
	Gap(err error)
}

// A HistoryBroker is a Broker whose engine keeps all events in a log, in one
// order for all nodes. A hub with a [History] appends its events to the log and
// follows it, its own events among the others. So an event's id means the same
// on every node, and after the restart of any. Each node gets all topics. The
// methods of Broker then carry heartbeats only.
type HistoryBroker interface {
	Broker

	// Follow begins to hand the records of the log to h, from the oldest one
	// that the engine has, and returns without waiting for them. It is called
	// once, after Start. No record expires: the engine keeps each until Trim,
	// as far as its limits allow, also while no node runs. After an outage the
	// records go on where they stopped, and the last one comes again: so the
	// hub notices a log that was put back and written again.
	Follow(h HistoryHandler) error

	// Append adds a record to the log and returns nil once the engine has it.
	// One goroutine calls it. While the engine can't be reached it fails at
	// once. After an error the record may be in the log, or get there later;
	// it may come twice, as the hub tries again. After [ErrEventTooLarge] it
	// never comes. record is the caller's again when Append returns.
	Append(ctx context.Context, record []byte) error

	// Trim makes the engine forget the records of an epoch with numbers below
	// before, and those of earlier epochs. It returns nil once no node that
	// starts gets them. The newest record stays, whatever before is: a node
	// that starts needs it to tell its id from the id of a lost record with the
	// same number. If the log has another epoch, Trim does nothing and returns
	// nil. While the engine can't be reached it fails at once. Each node calls
	// it two or three times in a [History] Age, also while it calls Append.
	Trim(ctx context.Context, epoch string, before uint64) error
}

// A HistoryHandler is a node's side of a [HistoryBroker]. Its methods are called
// one at a time.
type HistoryHandler interface {
	// Record accepts a record, in the log's order. It may block while the hub
	// is behind. seq numbers records from 1 on and without a gap: a number that
	// is missing tells of a record that the engine has lost. The epoch is 1 to
	// 32 letters and digits and tells this log from any other. An engine that
	// has lost records begins a new epoch before it gives their numbers again.
	// record belongs to the node from then on.
	Record(epoch string, seq uint64, record []byte)

	// Current tells that every record has been handed over that the log had
	// when the Broker connected. last is the number of the last one, or zero.
	Current(epoch string, last uint64)

	// Away tells that no record comes until Current is called again.
	Away(err error)
}
