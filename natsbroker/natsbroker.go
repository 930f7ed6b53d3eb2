// Package natsbroker joins hubs through NATS: servers that the user runs, or
// one inside each process, so that nothing has to be installed.
//
//	conn, err := nats.Connect("nats://10.0.0.5:4222", natsbroker.Options()...)
//	…
//	hub.Broker = natsbroker.New(conn)
//
// or, on each machine, with the addresses of the others:
//
//	broker, err := natsbroker.Embedded(natsbroker.Config{
//		Listen: "10.0.0.1:6222",
//		Routes: []string{"10.0.0.2:6222", "10.0.0.3:6222"},
//		Secret: secret,
//	})
//	…
//	hub.Broker = broker
//
// # What it costs
//
// A broker has one subscription, to the subjects of all topics, and drops what
// its hub has not subscribed to: each node gets all that any node publishes. So
// NATS knows nothing of topics, and 100,000 of them cost what one does. As
// subscriptions they took 230 MB in three servers and their client, and more
// than a second to repeat after each reconnect. And Subscribe is confirmed where a subscription for each topic could not be: a
// server answers that it knows of a subscription, but not that the others of
// its cluster do, and until then they drop what is published there.
//
// The price is that more nodes serve more clients, but not more events: each
// has to read them all. To drop one takes about a microsecond, the server's
// share included. If that, or the traffic, is too much, divide the hubs by
// [Broker.Prefix].
//
// # What may be lost
//
// NATS delivers at most once. Events are lost while a node has no connection,
// where one has died and nobody has noticed yet, when a hub is too slow for
// them, and where the servers of a cluster have lost each other. A broker tells
// its hub of what it notices, and the hub notices the rest by the numbers that
// events carry.
//
// # History
//
// With JetStream nothing is lost that Publish has returned nil for, and the id of
// an event resumes on each node, also on one that was just started:
//
//	hub.History = realtime.History{Age: 10 * time.Minute}
//	hub.Broker = natsbroker.New(conn).WithHistory()
//
// All events of all topics are one stream in a file, named as the Prefix is; the
// user of the connection has to be allowed to make it. Each node reads it from
// the beginning when it starts. An event takes a round trip to the stream's
// leader, and one to the replicas, before it is delivered. Where a cluster has
// lost its leader it takes 4 to 10 s to choose another: for that time events reach
// the clients of their own node alone, and Publish says so. A stream without
// replicas may lose its newest records when a machine crashes, and not the server
// alone; then it begins anew, and clients that come back get a reset.
package natsbroker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	pingInterval  = 2 * time.Second // of connections and routes
	maxPings      = 2               // that may stay unanswered
	writeTimeout  = 5 * time.Second
	flushTimeout  = 5 * time.Second
	reconnectWait = 500 * time.Millisecond

	// maxPending bounds what waits for a hub that is behind.
	maxPendingMessages = 500_000
	maxPendingBytes    = 64 << 20

	// spread is how long servers have to tell each other of a subscription.
	// They don't say when they have. On one machine it took 2 ms at most, and
	// 220 ms while their routes were flooded.
	spread = 250 * time.Millisecond
)

// ErrClosed is returned by the methods of a [Broker] that is closed.
var ErrClosed = errors.New("natsbroker: broker is closed")

// errAway is told to the hub.
var errAway = errors.New("natsbroker: the connection to NATS was lost")

// Options returns what a connection should be made with. It does not receive
// what it has sent, tries to connect for ever and from the start, keeps nothing
// for when it has, and notices within six seconds that the other side is dead.
// Options of the user's own go behind them.
//
// A broker works on a connection with others, but: MaxReconnects and
// RetryOnFailedConnect decide whether it comes back at all; without NoEcho the
// hub gets its own events to drop; with a ReconnectBufSize an event may go out
// late that Publish took just when the connection was lost; and PingInterval,
// MaxPingsOutstanding and FlusherTimeout decide how long one that is dead takes
// events which nobody gets: 6 minutes by default.
func Options() []nats.Option {
	return []nats.Option{
		nats.NoEcho(),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1),
		nats.ReconnectWait(reconnectWait),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPings),
		nats.FlusherTimeout(writeTimeout),
	}
}

// A Broker is one hub's connection to the others. It is made by [New] or
// [Embedded].
type Broker struct {
	// Prefix begins the names of all subjects, with a dot behind it. Hubs with
	// the same Prefix hear each other, and whoever may publish to "PREFIX.*" can
	// speak to their clients. It is one or more words with dots between them, of
	// printable ASCII without blanks and without the characters *>=, in 200
	// bytes at most. It may be assigned until the hub is used. Empty means
	// "realtime".
	Prefix string

	// Set at construction, never changed.
	conn     *nats.Conn
	server   *server.Server     // nil: the user's, elsewhere
	replicas int                // of a stream; zero: as the user says
	ctx      context.Context    // ends with Close
	cancel   context.CancelFunc // called by Close

	// Set by Start, never changed.
	prefix  string // with the dot behind it
	handler realtime.BrokerHandler
	sub     *nats.Subscription
	status  chan nats.Status

	watching sync.WaitGroup
	settled  atomic.Uint64 // one more than the connection's epoch in which settle succeeded

	delivering sync.Mutex // held while handler is called; guards the fields below
	epoch      uint64     // the connection's, when it was last looked at
	dropped    int        // the same, of messages that sub has dropped
	behind     int        // messages to come before again is told
	again      error

	mu     sync.RWMutex      // guards the fields below
	topics map[string]string // those subscribed to, by subject
	closed bool
}

var _ realtime.Broker = (*Broker)(nil)

// New returns a broker on the user's own connection, which stays open when the
// broker is closed. The connection should have [Options]. It may be used for
// other things, but not for another broker: with NoEcho the hubs would not hear
// each other.
func New(conn *nats.Conn) *Broker {
	b := &Broker{conn: conn, topics: make(map[string]string)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// Start is called by the hub; see [realtime.Broker]. It fails where Prefix is
// not valid, the connection that New got is nil or closed, or the broker is
// another hub's already.
func (b *Broker) Start(h realtime.BrokerHandler) error { return wrap("start", b.start(h)) }

func (b *Broker) start(h realtime.BrokerHandler) error {
	prefix, err := subjectPrefix(b.Prefix)
	switch {
	case err != nil:
		return err
	case b.conn == nil:
		return errors.New("there is no connection: make the broker by New, with a connection that isn't nil, or by Embedded")
	case b.ctx.Err() != nil:
		return ErrClosed
	case b.prefix != "":
		return errors.New("the broker is started already: make one for each hub")
	}
	b.delivering.Lock() // until sub is set
	defer b.delivering.Unlock()
	b.handler = h
	b.epoch = b.conn.Stats().Reconnects
	status := b.conn.StatusChanged(nats.CONNECTED) // and not its ReconnectHandler, which is the user's
	sub, err := b.conn.Subscribe(prefix+"*", b.deliver)
	if err == nil {
		err = sub.SetPendingLimits(maxPendingMessages, maxPendingBytes)
	}
	if err != nil {
		b.conn.RemoveStatusListener(status)
		return err
	}
	b.prefix, b.sub, b.status = prefix, sub, status
	b.watching.Go(b.watch)
	return nil
}

// Publish is called by the hub; see [realtime.Broker]. It may block while the
// connection accepts no bytes; see [nats.FlusherTimeout]. It returns
// [realtime.ErrEventTooLarge] for more bytes than the server's max_payload, and
// sends nothing then. Until the broker notices that the other side of its
// connection is dead, messages are accepted that nobody gets.
func (b *Broker) Publish(ctx context.Context, topic string, msg []byte) error {
	return wrap("publish", b.publish(ctx, topic, msg))
}

func (b *Broker) publish(ctx context.Context, topic string, msg []byte) error {
	if err := b.reachable(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	subject, err := subject(b.prefix, topic)
	if err != nil {
		return err
	}
	err = b.conn.Publish(subject, msg)
	if errors.Is(err, nats.ErrMaxPayload) { // which is found out before anything is sent
		return tooLarge(msg, "the server's max_payload", b.conn.MaxPayload())
	}
	return err
}

// tooLarge returns the error for a message, or record, that is above a limit.
func tooLarge(msg []byte, limit string, most int64) error {
	return fmt.Errorf("%w: it has %d bytes, and %s is %d: raise that, or publish less at a time", realtime.ErrEventTooLarge, len(msg), limit, most)
}

// Subscribe is called by the hub; see [realtime.Broker]. It waits for nothing
// but a connection that is new.
func (b *Broker) Subscribe(ctx context.Context, topic string) error {
	return wrap("subscribe", b.subscribe(ctx, topic))
}

func (b *Broker) subscribe(ctx context.Context, topic string) error {
	if err := b.reachable(); err != nil {
		return err
	}
	subject, err := subject(b.prefix, topic)
	if err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	b.topics[subject] = topic
	return nil
}

// Unsubscribe is called by the hub; see [realtime.Broker].
func (b *Broker) Unsubscribe(topic string) error {
	subject, err := subject(b.prefix, topic)
	if err != nil {
		return wrap("unsubscribe", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.topics, subject)
	return nil
}

// Close is called by the hub; see [realtime.Broker]. A broker that no hub has
// used is closed by the program that made it. What was published goes out
// first, as far as the connection accepts it; then an embedded server is shut
// down. Close waits for a Deliver that is running.
func (b *Broker) Close() error {
	b.mu.Lock()
	closed := b.closed
	b.closed = true
	b.mu.Unlock()
	if closed {
		return nil
	}
	b.cancel()
	b.delivering.Lock() // waits for the handler, which is called no more
	sub := b.sub
	b.delivering.Unlock()
	if sub != nil {
		sub.Unsubscribe() // fails where the connection is closed, and then there is no need
		b.conn.RemoveStatusListener(b.status)
		b.watching.Wait()
	}
	if b.server == nil {
		return nil
	}
	err := b.conn.FlushTimeout(flushTimeout)
	b.conn.Close()
	b.server.Shutdown()
	b.server.WaitForShutdown()
	return wrap("close", err)
}

// wrap returns what an exported method returns for err: it says which act
// failed. [ErrClosed] stays as it is.
func wrap(act string, err error) error {
	if err == nil || err == ErrClosed {
		return err
	}
	return fmt.Errorf("natsbroker: %s: %w", act, err)
}

// usable returns why the broker can't be used, or nil.
func (b *Broker) usable() error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	switch {
	case b.closed:
		return ErrClosed
	case b.prefix == "":
		return errors.New("the broker is not started")
	}
	return nil
}

// reachable returns why nothing can be sent now, or nil. The connection is asked
// before each message, as it may have a buffer to keep messages in for later.
func (b *Broker) reachable() error {
	if err := b.usable(); err != nil {
		return err
	}
	if !b.conn.IsConnected() {
		return nats.ErrDisconnected
	}
	return nil
}

// deliver takes a message. The subscription's goroutine calls it.
func (b *Broker) deliver(m *nats.Msg) {
	b.delivering.Lock()
	defer b.delivering.Unlock()
	b.mu.RLock()
	topic, wanted := b.topics[m.Subject]
	wanted = wanted && !b.closed
	b.mu.RUnlock()
	if wanted {
		b.lookLocked()
		b.handler.Deliver(topic, m.Data)
	}
	if b.behind > 0 {
		if b.behind--; b.behind == 0 && b.ctx.Err() == nil {
			b.handler.Gap(b.again)
		}
	}
}

// lookLocked tells the handler of a gap if there is one before the message that
// is to be delivered. The caller holds delivering.
func (b *Broker) lookLocked() {
	if epoch := b.conn.Stats().Reconnects; epoch != b.epoch {
		b.epoch = epoch
		b.handler.Gap(errAway) // again by watch
	}
	if dropped, err := b.sub.Dropped(); err == nil && dropped != b.dropped {
		b.dropped = dropped
		b.gapLocked(fmt.Errorf("natsbroker: %w: %d messages in all", nats.ErrSlowConsumer, dropped))
	}
}

// gapLocked tells of a gap now, and again behind the messages that wait: some
// of them may be from before it. The caller holds delivering.
func (b *Broker) gapLocked(err error) {
	b.handler.Gap(err)
	b.behind, _, _ = b.sub.Pending() // with the one that deliver is at
	b.again = err
}

// watch is the goroutine that tells of a gap when the connection is back and
// has settled. Until Close.
func (b *Broker) watch() {
	for {
		select {
		case _, ok := <-b.status:
			if !ok {
				return
			}
		case <-b.ctx.Done():
			return
		}
		for b.conn.IsConnected() && b.ctx.Err() == nil {
			ctx, cancel := context.WithTimeout(b.ctx, flushTimeout)
			err := b.settle(ctx)
			cancel()
			if err != nil {
				continue
			}
			b.delivering.Lock()
			if b.ctx.Err() == nil {
				b.epoch = b.conn.Stats().Reconnects
				b.gapLocked(errAway)
			}
			b.delivering.Unlock()
			break
		}
	}
}

// settle returns nil once all that is published anywhere arrives here: the
// server has the subscription, and has told the others. After a reconnect it
// may be another server.
func (b *Broker) settle(ctx context.Context) error {
	epoch := b.conn.Stats().Reconnects
	if b.settled.Load() == epoch+1 {
		return nil
	}
	flushing, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := b.conn.FlushWithContext(flushing); err != nil {
		return err
	}
	// It answers that it doesn't let us before it answers the flush.
	if err := b.conn.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), strconv.Quote(b.prefix+"*")) {
		return err
	}
	select {
	case <-time.After(spread):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if b.conn.Stats().Reconnects != epoch || !b.conn.IsConnected() {
		return nats.ErrDisconnected
	}
	b.settled.Store(epoch + 1)
	return nil
}
