// Package natsbroker joins hubs through NATS. The user runs the servers, or each
// process has one inside, so that nothing has to be installed.
//
//	conn, err := nats.Connect("nats://10.0.0.5:4222", natsbroker.Options()...)
//	…
//	hub.Broker = natsbroker.New("chat", conn)
//
// or, on each machine, with the addresses of the others:
//
//	broker, err := natsbroker.Embedded("chat", natsbroker.Config{
//		Listen: "10.0.0.1:6222",
//		Routes: []string{"10.0.0.2:6222", "10.0.0.3:6222"},
//		Secret: secret,
//	})
//	…
//	hub.Broker = broker
//
// All nodes of a hub give the same name, and each hub has a name of its own: hubs
// with the same name hear each other.
//
// # Costs
//
// Each node gets everything that any node publishes. A broker has one
// subscription, to the subjects of all topics, and drops the messages of topics
// that its hub has not subscribed to. So NATS knows nothing of topics, and
// 100,000 topics cost as much as one.
//
// A subscription for each topic would be worse in two ways. 100,000 of them took
// 230 MB in three servers and their client, and more than a second to repeat
// after each reconnect. And Subscribe could not be confirmed: a server answers
// that it knows of a subscription, but it doesn't answer when the other servers
// of its cluster know of it. Until then they drop what is published there.
//
// The price is that more nodes serve more clients, but not more events, because
// each node has to read all events. To drop an event takes about a microsecond,
// the server's share included. If that is too much, or the traffic, divide the
// hubs into groups, each with a name of its own.
//
// # Losses
//
// NATS delivers at most once. Events are lost
//   - while a node has no connection,
//   - while a connection is dead and nobody has noticed it,
//   - while a server doesn't allow a node to publish or to subscribe,
//   - while a hub is too slow for what is published, and
//   - while the servers of a cluster are cut off from each other.
//
// A broker tells its hub of the losses that it notices. The hub notices the
// others by the numbers that events carry.
//
// # History
//
// With JetStream all nodes have one history. The id of an event resumes on each
// node, also on a node that has just started:
//
//	hub.History = realtime.History{Age: 10 * time.Minute}
//	hub.Broker = natsbroker.New("chat", conn).WithHistory()
//
// One stream has all events of all topics. It is kept in a file, and has the
// broker's name. The user of the connection needs the permission to create it, and
// those to publish to "NAME.>" and "$JS.>" and to subscribe to "NAME.*" and
// "_INBOX.>". A stream of that name that no history has made is left alone. Each
// node reads it from the beginning when it starts. An event needs a round trip to
// the stream's leader, and one to the replicas, before it is delivered.
//
// The nodes purge old events from the stream: an event leaves it between one and two
// Ages after it was published. Where nodes have different Ages the shortest one
// rules. While no node runs, the stream stays as it is. A node without the permission
// to publish to "$JS.API.STREAM.PURGE.>" logs an error. If no node has it, the stream
// grows up to [HistoryBroker.MaxBytes].
//
// A cluster that has lost its leader needs 4 to 10 s to elect another. For that
// time events reach the clients of their own node alone, and Publish returns
// [realtime.ErrBrokerUnavailable].
//
// # What nil from Publish means
//
// Without a history it means that the clients of the node get the event, and that
// it waits to be sent to the others. With one it means that the stream has the
// event. This is what is lost of such events, by what goes wrong:
//
//	                        no history     R1, flushed  R1             R3, flushed  R3
//	the process is killed   lost and told  nothing      nothing        nothing      nothing
//	one loses power         lost and told  nothing      lost and told  nothing      lost and told (1)
//	all lose power          lost and told  nothing      lost and told  nothing      lost and told
//	the engine fails over   lost and told  nothing (2)  nothing (2)    nothing      nothing
//
// R1 and R3 are streams with one replica and three. Flushed means that each record
// is on the disk before it is acknowledged: [Config.Sync] says so for embedded
// servers, where it is the default for a node alone, and sync_interval: always for
// others. By default a NATS server flushes every two minutes.
//
// (1) Only if a second server was behind at that time. The two may elect each
// other then.
//
// (2) There is nothing to fail over to: Publish fails until the server is back.
//
// Told means that connected nodes count a gap in [realtime.Stats], and that clients
// that reconnect get a reset, where they could resume behind a lost event. A stream
// that has fewer records than a node has read is deleted and created again. One
// that was also written again is found out by its records.
//
// Servers of a cluster may disagree without knowing it: one whose peers' stores were
// put back keeps its own records, and drops those that get the same numbers. Nodes
// tell each other which records they have read. One that has read others tells its
// clients with the next event, or within a heartbeat (2 s).
//
// A server whose disk is full accepts no record. Publish fails unless more than half
// of the servers that have the stream still do. When there is room again, an embedded
// server is started again by the broker, and other servers have to be started again
// by the user. Three embedded servers whose disks were full elect a leader then.
package natsbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	pingInterval  = 2 * time.Second // of connections and routes
	maxPings      = 2               // pings that may stay unanswered
	writeTimeout  = 5 * time.Second
	flushTimeout  = 5 * time.Second
	reconnectWait = 500 * time.Millisecond

	// These bound the messages that wait for a hub that is behind.
	maxPendingMessages = 500_000
	maxPendingBytes    = 64 << 20

	// spread is the time in which servers tell each other of a subscription.
	// They don't say when they have done it. On one machine it took 2 ms at
	// most, and 220 ms while their routes were flooded.
	spread = 250 * time.Millisecond
)

// ErrClosed is returned by the methods of a [Broker] that is closed.
var ErrClosed = errors.New("natsbroker: broker is closed")

// These are the reasons of gaps that the hub gets.
var (
	errAway    = errors.New("natsbroker: the connection to NATS was lost")
	errAllowed = errors.New("natsbroker: the server had refused the subscription, and allows it again")
)

// Options returns the options that a connection for [New] should have. Such a
// connection
//   - does not receive the messages that it has sent,
//   - tries to connect until it is closed, also when there is no server at first,
//     or the server refuses its credentials for a while,
//   - keeps no messages for later while it is disconnected, and
//   - notices within six seconds that the other side is dead.
//
// Append your own options to them.
//
// A broker also works on a connection with other options. These matter:
//   - MaxReconnects and RetryOnFailedConnect decide whether it reconnects at all.
//     Without IgnoreAuthErrorAbort it gives up when it is refused twice.
//   - Without NoEcho the hub gets its own events and drops them.
//   - With a ReconnectBufSize an event may be sent late that Publish accepted
//     just when the connection was lost.
//   - PingInterval, MaxPingsOutstanding and FlusherTimeout decide for how long a
//     dead connection accepts events that nobody gets. By default it is 6 minutes.
func Options() []nats.Option {
	return []nats.Option{
		nats.NoEcho(),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
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
	// Logger gets warnings about settings that can't be had as they are, each
	// once. It may be assigned until the hub is used. Nil means slog.Default(),
	// or the Logger of an embedded server's [Config].
	Logger *slog.Logger

	// Set at construction, never changed.
	name     string
	user     *nats.Conn         // the connection of New, or to the embedded server
	host     *host              // has the embedded server; nil: the servers are elsewhere
	replicas int                // of a stream, unless the user says otherwise; zero: 1
	ctx      context.Context    // ends with Close
	cancel   context.CancelFunc // called by Close

	// Set by Start, never changed.
	prefix  string // with the dot behind it
	handler realtime.BrokerHandler

	conn       atomic.Pointer[nats.Conn] // user, or the broker's own after a server has closed that
	watching   sync.WaitGroup
	settled    atomic.Uint64           // one more than the connection's epoch in which settle succeeded
	muted      atomic.Pointer[refusal] // the last one of a publish
	deaf       atomic.Pointer[refusal] // of the subscription; nil: it is allowed
	unanswered atomic.Pointer[refusal] // of the subscription to answers; nil: it is allowed
	refused    atomic.Pointer[refusal] // the last one of all
	asks       atomic.Bool             // the broker makes requests, which need answers
	heard      chan struct{}           // has room for one word that there is a refusal

	// Owned by Start, then by the goroutine watch, then by Close.
	status chan nats.Status
	theirs nats.ErrHandler // that the connection had

	delivering sync.Mutex // held while handler is called; guards the fields below
	sub        *nats.Subscription
	epoch      uint64 // how often the connection had reconnected at the last look
	dropped    int    // how many messages sub had dropped at the last look
	behind     int    // messages that are delivered before again is told
	again      error  // a gap

	mu     sync.RWMutex      // guards the fields below
	topics map[string]string // those that the hub has subscribed to, by subject
	before error             // the connection's last error before sub was made
	closed bool
}

var _ realtime.Broker = (*Broker)(nil)

// New returns a broker on the user's own connection, which stays open when the
// broker is closed. The connection should have [Options]. It may be used for
// other things, and for the brokers of hubs with other names.
//
// Hubs with the same name hear each other, and hubs with different names don't. So
// all nodes of a hub have one name, which no other hub has. The name begins the
// names of all subjects, with a dot behind it: whoever may publish to "NAME.*" can
// speak to the hub's clients. It is one or more words with dots between them, of
// printable ASCII without blanks and without the characters *>=, in 200 bytes at
// most. There is no default.
//
// Until it is closed the broker is called for the connection's errors, before the
// ErrorHandler that the connection has: a server says there what it doesn't allow.
// A server also may close the connection for good, because its max_payload was
// lowered. Then the broker makes another with the same options for itself.
func New(name string, conn *nats.Conn) *Broker {
	b := &Broker{name: name, user: conn, topics: make(map[string]string), heard: make(chan struct{}, 1)}
	b.conn.Store(conn)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// claims has a claim of each broker that is started and not closed.
var claims sync.Map

// A claim is a name on a connection. Two brokers that have the same one are those
// of two hubs by mistake: with NoEcho nodes would not hear each other.
type claim struct {
	name string
	conn *nats.Conn
}

// Start is called by the hub; see [realtime.Broker]. It fails where the name is
// not valid, the connection that New got is nil or closed, another broker has the
// same name and connection, or the broker is another hub's already.
func (b *Broker) Start(h realtime.BrokerHandler) error { return wrap("start", b.start(h)) }

func (b *Broker) start(h realtime.BrokerHandler) error {
	prefix, err := subjectPrefix(b.name)
	switch {
	case err != nil:
		return err
	case b.user == nil:
		return errors.New("there is no connection: make the broker by New, with a connection that isn't nil, or by Embedded")
	case b.ctx.Err() != nil:
		return ErrClosed
	case b.prefix != "":
		return errors.New("the broker is started already: make one for each hub")
	}
	if _, taken := claims.LoadOrStore(claim{b.name, b.user}, b); taken {
		return fmt.Errorf("the connection has a broker named %q: give each hub a name of its own, or each node of one hub a connection of its own", b.name)
	}
	b.delivering.Lock() // until sub is set
	defer b.delivering.Unlock()
	b.handler, b.prefix = h, prefix
	if err := b.attachLocked(b.user); err != nil {
		claims.Delete(claim{b.name, b.user})
		b.prefix = ""
		return err
	}
	b.watching.Go(b.watch)
	return nil
}

// attachLocked makes a connection the one that the broker uses. The caller holds
// delivering.
func (b *Broker) attachLocked(conn *nats.Conn) error {
	if err := b.subscribeLocked(conn); err != nil {
		return err
	}
	b.epoch = conn.Stats().Reconnects
	b.status = conn.StatusChanged(nats.CONNECTED, nats.CLOSED) // their handlers are the user's
	b.settled.Store(0)
	b.conn.Store(conn)
	b.listen(conn)
	return nil
}

// subscribeLocked makes sub. The caller holds delivering.
func (b *Broker) subscribeLocked(conn *nats.Conn) error {
	b.mu.Lock()
	b.before = conn.LastError()
	b.mu.Unlock()
	sub, err := conn.Subscribe(b.prefix+"*", b.deliver)
	if err != nil {
		return err
	}
	b.sub, b.dropped, b.behind = sub, 0, 0
	return sub.SetPendingLimits(maxPendingMessages, maxPendingBytes)
}

// Publish is called by the hub; see [realtime.Broker]. It may block while the
// connection accepts no bytes; see [nats.FlusherTimeout]. It returns
// [realtime.ErrEventTooLarge] for more bytes than the server's max_payload, and
// sends nothing then. Until the broker notices that the other side of its
// connection is dead, or that the server doesn't allow what it does, messages are
// accepted that nobody gets. While the server doesn't allow the subscription of
// the broker, Publish fails as well: the broker is away.
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
	if r := b.deaf.Load(); r != nil {
		return r.err
	}
	conn, sure := b.conn.Load(), b.isMuted()
	before := conn.LastError()
	err = conn.Publish(subject, msg)
	switch {
	case errors.Is(err, nats.ErrMaxPayload): // which is found out before anything is sent
		return tooLarge(msg, "the server's max_payload", conn.MaxPayload())
	case err == nil && sure:
		return b.confirm(ctx, conn, subject, before)
	}
	return err
}

// tooLarge returns the error for a message, or record, that is above a limit.
func tooLarge(msg []byte, limit string, most int64) error {
	return fmt.Errorf("%w: it has %d bytes, and %s is %d: raise that, or publish less at a time", realtime.ErrEventTooLarge, len(msg), limit, most)
}

// MaxMessageBytes is called by the hub; see [realtime.Broker]. It is the server's
// max_payload, as it was when the connection was made. It is zero before the first
// connection.
func (b *Broker) MaxMessageBytes() int {
	if b.user == nil {
		return 0
	}
	return int(b.conn.Load().MaxPayload())
}

// Subscribe is called by the hub; see [realtime.Broker]. It returns at once,
// unless the connection is new: then it waits until the servers know of it.
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
// used is closed by the program that made it. Messages that were published are
// sent first, as far as the connection accepts them. Then an embedded server is
// shut down. Close waits for a Deliver that is running.
func (b *Broker) Close() error {
	b.mu.Lock()
	closed := b.closed
	b.closed = true
	b.mu.Unlock()
	if closed {
		return nil
	}
	b.cancel()
	b.delivering.Lock() // waits for the handler; it isn't called again
	started := b.sub != nil
	b.delivering.Unlock()
	if started {
		b.watching.Wait()
		b.detach()
		claims.Delete(claim{b.name, b.user})
	}
	conn := b.conn.Load()
	if b.host == nil && conn == b.user {
		return nil
	}
	err := conn.FlushTimeout(flushTimeout)
	conn.Close()
	if b.host != nil {
		b.host.shutdown()
	}
	return wrap("close", err)
}

// detach is the reverse of attachLocked. It leaves the connection as it was.
func (b *Broker) detach() {
	conn := b.conn.Load()
	b.sub.Unsubscribe() // fails only where the connection is closed, which ends sub as well
	conn.RemoveStatusListener(b.status)
	b.unlisten(conn)
}

func (b *Broker) logger() *slog.Logger { return cmp.Or(b.Logger, slog.Default()) }

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
	if !b.conn.Load().IsConnected() {
		return nats.ErrDisconnected
	}
	return nil
}

// deliver hands a message to the hub. The subscription's goroutine calls it.
func (b *Broker) deliver(m *nats.Msg) {
	b.delivering.Lock()
	defer b.delivering.Unlock()
	if m.Sub != b.sub {
		return // it waited before a gap that has been told
	}
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

// lookLocked tells the handler of a gap before the message that deliver has, if
// there is one. The caller holds delivering.
func (b *Broker) lookLocked() {
	if epoch := b.conn.Load().Stats().Reconnects; epoch != b.epoch {
		b.epoch = epoch
		b.handler.Gap(errAway) // watch tells it again
	}
	if dropped, err := b.sub.Dropped(); err == nil && dropped != b.dropped {
		b.dropped = dropped
		b.gapLocked(fmt.Errorf("natsbroker: %w: %d messages in all", nats.ErrSlowConsumer, dropped))
	}
}

// gapLocked tells of a gap now, and again behind the messages that wait, because
// some of them may be from before the gap. The caller holds delivering.
func (b *Broker) gapLocked(err error) {
	b.handler.Gap(err)
	b.behind, _, _ = b.sub.Pending() // the message that deliver has is one of them
	b.again = err
}

// watch is the goroutine that tells of a gap when the connection was lost and
// has settled again, and that has everything made again that a server has ended.
// It ends with Close, which waits for it.
func (b *Broker) watch() {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	told := b.conn.Load().Stats().Reconnects // of which the handler knows
	var muted bool
	var forced time.Time
	for status := b.status; ; {
		select {
		case _, ok := <-status:
			if !ok {
				status = nil // the connection is closed
			}
		case <-b.heard:
		case <-ticker.C:
		case <-b.ctx.Done():
			return
		}
		conn := b.conn.Load()
		if isClosedByServer(conn) {
			if b.replace() {
				status = b.status
				told = b.conn.Load().Stats().Reconnects
			}
			continue
		}
		if !conn.IsConnected() {
			continue
		}
		b.listen(conn) // if somebody has set another handler
		if is := b.isMuted(); is != muted {
			if muted = is; is {
				b.gap(b.muted.Load().err)
			}
		}
		if r := b.unanswered.Load(); r != nil && time.Since(forced) > forceWait {
			// The subscription to answers is nats.go's. Nothing else has it made again.
			forced = time.Now()
			b.unanswered.CompareAndSwap(r, nil)
			conn.ForceReconnect()
			continue
		}
		if b.deaf.Load() != nil {
			b.hearAgain(conn)
			continue
		}
		epoch := conn.Stats().Reconnects
		if epoch == told {
			continue
		}
		ctx, cancel := context.WithTimeout(b.ctx, flushTimeout)
		err := b.settle(ctx)
		cancel()
		if err == nil {
			told = epoch
			b.gap(errAway)
		}
	}
}

// gap tells of a gap, unless the broker is closed.
func (b *Broker) gap(err error) {
	b.delivering.Lock()
	defer b.delivering.Unlock()
	if b.ctx.Err() == nil {
		b.epoch = b.conn.Load().Stats().Reconnects
		b.gapLocked(err)
	}
}

// hearAgain subscribes again until that is allowed. The gap is told when it begins
// and when it ends. The goroutine watch alone calls it.
func (b *Broker) hearAgain(conn *nats.Conn) {
	b.gap(b.deaf.Load().err)
	for conn.IsConnected() {
		select {
		case <-time.After(lookEvery):
		case <-b.ctx.Done():
			return
		}
		b.delivering.Lock()
		b.sub.Unsubscribe()
		err := b.subscribeLocked(conn)
		b.delivering.Unlock()
		if err != nil {
			return // the connection is closed
		}
		b.settled.Store(0)
		r := b.deaf.Swap(nil)
		ctx, cancel := context.WithTimeout(b.ctx, flushTimeout)
		err = b.settle(ctx)
		cancel()
		if err == nil && b.deaf.Load() == nil {
			b.gap(errAllowed)
			return
		}
		b.deaf.CompareAndSwap(nil, r)
	}
}

// replace makes another connection in the place of one that a server has closed
// for good, and reports whether there is one. The goroutine watch alone calls it.
func (b *Broker) replace() bool {
	old := b.conn.Load()
	b.detach()
	options := old.Opts
	conn, err := options.Connect()
	if err != nil {
		b.status = nil
		return false
	}
	b.delivering.Lock()
	err = b.attachLocked(conn)
	b.delivering.Unlock()
	if err != nil {
		conn.Close()
		return false
	}
	b.gap(fmt.Errorf("natsbroker: the server has closed the connection, and the broker has made another: %w", old.LastError()))
	return true
}

// settle returns nil once everything that any node publishes arrives here: the
// server has the subscription, and has told the other servers of it. After a
// reconnect all of that begins again, as it may be another server.
func (b *Broker) settle(ctx context.Context) error {
	if r := b.deaf.Load(); r != nil {
		return r.err
	}
	conn := b.conn.Load()
	epoch := conn.Stats().Reconnects
	if b.settled.Load() == epoch+1 {
		return nil
	}
	flushing, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := conn.FlushWithContext(flushing); err != nil {
		return err
	}
	// A server that refuses the subscription says so before it answers the flush.
	b.mu.RLock()
	before := b.before
	b.mu.RUnlock()
	if err := conn.LastError(); err != before && refuses(err, "subscription", b.prefix+"*") {
		return b.hear(conn, err)
	}
	select {
	case <-time.After(spread):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if conn.Stats().Reconnects != epoch || !conn.IsConnected() {
		return nats.ErrDisconnected
	}
	b.settled.Store(epoch + 1)
	return nil
}
