// Package redisbroker joins hubs through Redis. The user runs it: a single one,
// one with sentinels, or a cluster.
//
//	hub := realtime.NewHub()
//	hub.Broker = redisbroker.Connect("chat", rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
//
// All nodes of a hub give the same name, and each hub has a name of its own: hubs
// with the same name hear each other.
//
// Redis has to be version 6 or later, and a cluster version 7 or later. In a
// cluster the broker uses sharded pub/sub, so that a message costs the nodes of
// one shard something, and not all nodes.
//
// # Costs
//
// Each node gets the events of its clients' topics alone. Redis has a
// subscription for each topic of each node. An idle node sends two commands in two
// seconds, to notice that Redis is gone or has become a replica.
//
// # Losses
//
// Redis' pub/sub delivers at most once. Events are lost
//   - while a node has no connection,
//   - while a topic moves to another node of a cluster,
//   - when Redis drops them by its client-output-buffer-limit, and
//   - while a hub is too slow for what is published.
//
// A broker tells its hub of a gap once all topics are subscribed again. The hub
// notices other losses by the numbers that events carry.
//
// # History
//
// A [HistoryBroker] keeps all events in one stream of Redis, if its hub has a
// History. The id of an event then resumes on each node, also on a node that has
// just started, and nothing is lost while a node has no connection:
//
//	hub.History = realtime.History{Age: 10 * time.Minute}
//	hub.Broker = redisbroker.Connect("chat", options).WithHistory()
//
// Redis has to be version 6.2 or later. The nodes trim old events from the stream: an
// event leaves it between one and two Ages after it was published. While no node
// runs, the stream stays as it is. All nodes should have the same History and the
// same [HistoryBroker.MaxRecords]. Where they differ the shortest Age rules, and the
// highest number, and each node that has a lower number logs a warning, once. For ten
// minutes after the last node that has a higher number, that one rules.
//
// The keys must be used by nothing else. Where they have the data of another
// program, no record is accepted, the error says so, and the data stays as it is.
//
// Each node reads all topics. So one stream, on one master of a cluster, has to
// carry everything that is published, once to each node. Redis runs a script for
// each record. A node sends its next record when it has the answer to the one
// before, with all events that were published in the meantime. An idle node sends
// three more commands in two seconds.
//
// # What nil from Publish means
//
// Without a history, nil from the hub's Publish means that the event is on its way
// to Redis. With one, it means that Redis has the event. These are the events that
// are lost then, although Publish has returned nil. "Told" means that the event may
// be lost, and that this is told; "-" means that no event is lost.
//
//	                            the node's  Redis is  Redis' machine  all machines  a replica
//	                            process is  killed    loses power     lose power    takes over
//	                            killed
//	no history                  told        told      told            told          told
//	history, no persistence     -           told      told            told          told
//	history, snapshots          -           told      told            told          told
//	history, appendonly with
//	  appendfsync everysec      -           told      told            told          told
//	  appendfsync always        -           -         -               -             told (1)
//
// (1) Redis doesn't wait for its replicas. min-replicas-to-write makes such losses
// rarer, and doesn't rule them out.
//
// Clients learn of a lost history by a reset. Connected clients get it before any
// later event that Redis has, and those that reconnect get it first. Then ids begin
// again, and Stats.Gaps counts a gap. Without a history Stats.Gaps of the other
// nodes counts a gap within seconds. From then on clients that reconnect get a
// reset. Clients that stay connected are not told.
//
// With a history, a node notices the loss of records that it has had, or has
// appended. If a node dies together with Redis, no other node knows what it had
// appended. So each start of Redis counts as a loss, and so does a replica that
// takes over. There is one exception: Redis has appendonly yes, appendfsync always
// and no-appendfsync-on-rewrite no, and a node that has had the history runs on and
// finds it whole. Nodes that start at that moment wait for such a node, for 3 s. So
// Redis can be restarted without resets, but not together with all nodes.
//
// Nodes notice a start by the run_id that INFO tells, and ask for the settings by
// CONFIG GET when they connect. These losses are not told:
//   - Redis doesn't tell its run_id, because the user has no permission for INFO, or
//     a service hides it. Redis, not with always, and the node that has published the
//     event die at the same moment, before another node has the event. Or data is put
//     back while no node runs.
//   - With always, an older copy of the data is put back by hand, or a replica that
//     was behind is started again as a master, while the only nodes that run were
//     cut off from Redis since before the event. They find all that they have had.
//     Delete the key "{NAME:log}:head" in such a case, so that all clients get a
//     reset.
//   - always is taken back by CONFIG SET while nodes are connected.
//
// Redis needs the maxmemory-policy noeviction: with another one it drops the history
// when memory is short. The keys of a history don't expire. Delete those of one that
// is not used any more.
package redisbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	callTimeout  = 3 * time.Second        // for an answer of Redis
	pingInterval = 2 * time.Second        // a dead connection is noticed after that and callTimeout
	minBackoff   = 50 * time.Millisecond  // between the first two tries to connect
	maxBackoff   = time.Second            // between later tries
	retryDelay   = 100 * time.Millisecond // before a command is repeated that Redis has refused
	closeTimeout = 5 * time.Second        // for a Deliver that blocks
	bufferBytes  = 64 << 10               // of a connection of the broker's own client, each way
)

// ErrClosed is returned by the methods of a [Broker] that is closed.
var ErrClosed = errors.New("redisbroker: broker is closed")

var (
	errConnecting = errors.New("not connected yet")
	errNobody     = errors.New("no node of the cluster owns the slot of this topic: see CLUSTER SLOTS")
	errLost       = errors.New("the connection was lost")
	errMissed     = errors.New("redisbroker: the connection to Redis was lost")
)

// A Broker is one hub's connection to the others. It is made by [New] or
// [Connect].
type Broker struct {
	// Set at construction, never changed.
	name      string
	users     rueidis.Client       // the user's; nil where the broker makes its own
	options   rueidis.ClientOption // of the broker's own client
	connects  bool                 // the broker makes its own client
	inbox     *inbox
	out       chan publication
	stop      chan struct{}   // closed when Publish accepts no more messages
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	known     chan struct{} // closed when the first try to find Redis is over
	stale     chan struct{} // has room for one signal that the cluster has changed
	delivered chan struct{} // closed when the goroutine deliver has ended
	written   chan struct{} // closed when the goroutine write has ended
	ended     chan struct{} // closed when the goroutine run has ended, and with it each link

	// Set by Start, never changed.
	handler realtime.BrokerHandler
	prefix  string // with the colon behind it

	started    atomic.Bool
	trusted    atomic.Bool    // Redis has accepted the last messages
	maxMessage atomic.Int64   // the lowest of the links' limits; zero: it isn't known
	maxRecord  atomic.Int64   // the same for a record
	durable    atomic.Bool    // Redis waits for its disk
	own        sync.WaitGroup // the links' goroutines

	mu     sync.Mutex // guards the fields below, and those that say so elsewhere
	closed bool
	client rueidis.Client
	err    error             // why there are no links
	topics map[string]*topic // by channel
	links  map[string]*link  // by address
	owners []string          // the address of the link of each slot; without a cluster there is one slot
}

// A topic is one that this node has subscribed to, or is about to. It is guarded
// by Broker.mu.
type topic struct {
	channel   string
	link      *link          // nil: the node of the cluster that has the topic isn't known yet
	confirmed bool           // it is subscribed there
	lost      bool           // it was subscribed, and the subscription was lost
	waiting   []chan<- error // one of each Subscribe that waits
}

var _ realtime.Broker = (*Broker)(nil)

// New returns a broker on the user's own client, which stays open when the
// broker is closed. The client may be used for other things, and for the brokers
// of hubs with other names. It needs no particular options, because the broker has
// its own time limits. The broker opens connections of its own through the client:
// two, and a third one for a history. In a cluster it opens one to each master, and
// publishes by the connections that the client shares.
//
// Hubs with the same name hear each other, and hubs with different names don't. So
// all nodes of a hub have one name, which no other hub has. The name begins the
// names of all channels and keys, with a colon behind it: whoever may publish to
// "NAME:*" can speak to the hub's clients. It is printable ASCII without blanks and
// without colons, and without the characters {}*?[]\, which Redis reads as hash
// tags and patterns. There is no default.
func New(name string, client rueidis.Client) *Broker {
	b := newBroker(name)
	b.users = client
	return b
}

// Connect returns a broker that makes a client of its own, and closes it when
// the broker is closed. It returns at once: the broker begins to connect when
// its hub is used, and tries until Redis answers. So a program starts without
// its Redis.
//
// options need an InitAddress: one address of a single Redis, some of a cluster
// or, with Sentinel.MasterSet, some of the sentinels. [rueidis.ParseURL] makes
// options from a URL. Zero in Dialer.Timeout and ConnWriteTimeout means 3 s
// here, and in ReadBufferEachConn and WriteBufferEachConn 64 KiB. The name is as
// with [New].
func Connect(name string, options rueidis.ClientOption) *Broker {
	b := newBroker(name)
	b.options, b.connects = options, true
	return b
}

func newBroker(name string) *Broker {
	b := &Broker{
		name:      name,
		inbox:     newInbox(),
		out:       make(chan publication, maxBatch),
		stop:      make(chan struct{}),
		known:     make(chan struct{}),
		stale:     make(chan struct{}, 1),
		delivered: make(chan struct{}),
		written:   make(chan struct{}),
		ended:     make(chan struct{}),
		topics:    make(map[string]*topic),
		links:     make(map[string]*link),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// Start is called by the hub; see [realtime.Broker]. It fails where the name is
// not valid, New got no client, or the broker is another hub's already.
func (b *Broker) Start(h realtime.BrokerHandler) error { return wrap("start", b.start(h)) }

func (b *Broker) start(h realtime.BrokerHandler) error {
	prefix, err := channelPrefix(b.name)
	switch {
	case err != nil:
		return err
	case !b.connects && b.users == nil:
		return errors.New("there is no client: make the broker by New, with a client that isn't nil, or by Connect")
	case b.isStopped():
		return ErrClosed
	case b.started.Swap(true):
		return errors.New("the broker is started already: make one for each hub")
	}
	b.handler, b.prefix = h, prefix
	go b.deliver()
	go b.write()
	go b.run()
	return nil
}

// channelPrefix returns the beginning of all channels of a broker. No name has a
// colon: the topic b:c of the hub a would be the topic c of a hub a:b.
func channelPrefix(name string) (string, error) {
	if name == "" {
		return "", errors.New("the broker has no name: give it one that all nodes of the hub have, and no other hub")
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`:{}*?[]\`, r) }) {
		return "", fmt.Errorf(`name %q: use printable ASCII without blanks and without the characters :{}*?[]\`, name)
	}
	return name + ":", nil
}

// wrap returns what an exported method returns for err: it says which act
// failed. [ErrClosed] stays as it is.
func wrap(act string, err error) error {
	if err == nil || err == ErrClosed {
		return err
	}
	return fmt.Errorf("redisbroker: %s: %w", act, err)
}

// usable returns why the broker can't be used, or nil.
func (b *Broker) usable() error {
	switch {
	case b.isStopped():
		return ErrClosed
	case !b.started.Load():
		return errors.New("the broker is not started")
	}
	return nil
}

// isStopped reports whether Close was called.
func (b *Broker) isStopped() bool {
	select {
	case <-b.stop:
		return true
	default:
		return false
	}
}

// Close is called by the hub; see [realtime.Broker]. A broker that no hub has
// used is closed by the program that made it. Messages that were published are
// sent first, as far as Redis accepts them within 3 s. Close waits for a Deliver
// that is running, and returns an error if that blocks for 5 s.
func (b *Broker) Close() error {
	b.mu.Lock()
	again := b.closed
	b.closed = true
	b.mu.Unlock()
	if !again {
		close(b.stop)
	}
	if !b.started.Load() {
		b.cancel()
		return nil
	}
	select {
	case <-b.written:
	case <-time.After(callTimeout):
	}
	b.cancel()
	b.inbox.close()
	patience := time.After(closeTimeout)
	select {
	case <-b.delivered:
	case <-patience:
		return fmt.Errorf("redisbroker: close: a Deliver has been blocking for %v", closeTimeout)
	}
	select {
	case <-b.ended:
	case <-patience: // a dial can't be interrupted; run ends when it returns
	}
	return nil
}

// deliver is the goroutine that hands messages and gaps to the hub. It ends with
// Close, which waits for it.
func (b *Broker) deliver() {
	defer close(b.delivered)
	for {
		d, ok := b.inbox.take()
		switch {
		case !ok:
			return
		case d.gap != nil:
			b.handler.Gap(d.gap)
		default:
			b.handler.Deliver(d.topic, d.msg)
		}
	}
}

// run is the goroutine that finds Redis and keeps the links. It ends with Close,
// which waits for it.
func (b *Broker) run() {
	defer close(b.ended)
	client := b.users
	if b.connects {
		if client = b.connect(); client == nil {
			return
		}
		defer client.Close()
	}
	b.mu.Lock()
	b.client, b.err = client, errConnecting
	b.mu.Unlock()
	if client.Mode() == rueidis.ClientModeCluster {
		b.followCluster()
	} else {
		b.place([]string{""})
		<-b.ctx.Done()
	}
	<-b.written
	b.own.Wait()
}

// connect makes the broker's own client. It tries until that works, or until
// Close; then it returns nil.
func (b *Broker) connect() rueidis.Client {
	options := b.options
	options.DisableCache = true // the broker doesn't use it, and it needs a permission
	options.DisableRetry = true
	options.Dialer.Timeout = cmp.Or(options.Dialer.Timeout, callTimeout)
	options.ConnWriteTimeout = cmp.Or(options.ConnWriteTimeout, callTimeout)
	if options.Sentinel.MasterSet != "" { // a message of a sentinel about a new master may be lost
		options.Sentinel.TopologyRefreshInterval = cmp.Or(options.Sentinel.TopologyRefreshInterval, 5*time.Second)
	}
	options.ReadBufferEachConn = cmp.Or(options.ReadBufferEachConn, bufferBytes)
	options.WriteBufferEachConn = cmp.Or(options.WriteBufferEachConn, bufferBytes)
	for wait := minBackoff; ; wait = b.backOff(wait) {
		client, err := rueidis.NewClient(options)
		if err == nil {
			return client
		}
		if client != nil { // with ForceSingleClient there may be both
			client.Close()
		}
		b.mu.Lock()
		b.err = fmt.Errorf("no connection to Redis: %w", err)
		b.mu.Unlock()
		b.knows()
		if b.ctx.Err() != nil {
			return nil
		}
	}
}

// backOff waits for about the given time, or until Close. It returns the time to
// wait after the next failure.
func (b *Broker) backOff(wait time.Duration) time.Duration {
	select {
	case <-time.After(wait/2 + rand.N(wait)): // so that not all nodes try at the same moment
	case <-b.ctx.Done():
	}
	return min(2*wait, maxBackoff)
}

// knows notes that the first try to find Redis is over. The goroutine run alone
// calls it.
func (b *Broker) knows() {
	select {
	case <-b.known:
	default:
		close(b.known)
	}
}

// Subscribe is called by the hub; see [realtime.Broker]. While Redis can't be
// reached it waits for Redis, until ctx ends.
func (b *Broker) Subscribe(ctx context.Context, topic string) error {
	return wrap("subscribe", b.subscribe(ctx, topic))
}

func (b *Broker) subscribe(ctx context.Context, name string) error {
	if err := b.usable(); err != nil {
		return err
	}
	confirmed := make(chan error, 1)
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return ErrClosed
	}
	t := b.topics[b.prefix+name]
	if t == nil {
		t = &topic{channel: b.prefix + name}
		b.topics[t.channel] = t
		b.assign(t)
	}
	if t.confirmed {
		b.mu.Unlock()
		return nil
	}
	t.waiting = append(t.waiting, confirmed)
	b.mu.Unlock()
	select {
	case err := <-confirmed:
		return err
	case <-ctx.Done():
	case <-b.ctx.Done():
		return ErrClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case err := <-confirmed: // at the same moment
		return err
	default:
	}
	for i, w := range t.waiting {
		if w == confirmed {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
		}
	}
	if len(t.waiting) == 0 && !t.lost && b.topics[t.channel] == t {
		b.forget(t)
	}
	if t.link != nil && t.link.err != nil {
		return t.link.err
	}
	return cmp.Or(b.err, ctx.Err())
}

// Unsubscribe is called by the hub; see [realtime.Broker]. It returns nil.
func (b *Broker) Unsubscribe(topic string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := b.topics[b.prefix+topic]; t != nil {
		b.forget(t)
	}
	return nil
}

// forget unsubscribes a topic. The caller holds mu.
func (b *Broker) forget(t *topic) {
	delete(b.topics, t.channel)
	if t.link != nil {
		t.link.leave(t.channel)
	}
	t.answer(errors.New("the topic was unsubscribed while it was waiting"))
}

// answer ends every Subscribe that waits for a topic. The caller holds Broker.mu.
func (t *topic) answer(err error) {
	for _, w := range t.waiting {
		w <- err // has room
	}
	t.waiting = nil
}

// assign gives a topic to its link, or takes it from its link while it has none.
// The caller holds mu.
func (b *Broker) assign(t *topic) {
	l := b.linkOf(t.channel)
	if l == t.link {
		return
	}
	if t.link != nil {
		t.link.leave(t.channel)
	}
	t.lost = t.lost || t.confirmed
	t.confirmed = false
	if t.link = l; l != nil {
		l.join(t)
	}
}

// linkOf returns the link of a channel, or nil while it isn't known. The caller
// holds mu.
func (b *Broker) linkOf(channel string) *link {
	switch len(b.owners) {
	case 0:
		return nil
	case 1:
		return b.links[b.owners[0]]
	}
	cmd := b.client.B().Spublish().Channel(channel).Message("").Build()
	return b.links[b.owners[cmd.Slot()]]
}

// place makes one link for each owner of slots, ends the other links, and gives
// each topic to its link. The goroutine run alone calls it.
func (b *Broker) place(owners []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owners, b.err = owners, nil
	unused := make(map[string]bool)
	for addr := range b.links {
		unused[addr] = true
	}
	for i, addr := range owners {
		delete(unused, addr)
		if i > 0 && addr == owners[i-1] || b.links[addr] != nil || addr == "" && len(owners) > 1 {
			continue
		}
		l := newLink(b, addr)
		b.links[addr] = l
		b.own.Go(l.run)
	}
	for addr := range unused {
		b.links[addr].cancel()
		delete(b.links, addr)
	}
	for _, t := range b.topics {
		b.assign(t)
	}
	b.knows()
}
