// Package redisbroker joins the hubs of several processes by Redis' pub/sub:
//
//	hub := realtime.NewHub()
//	hub.Broker = redisbroker.Connect(rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
//
// It takes Redis 6 or later, and Redis 7 or later for a cluster, where it uses
// sharded pub/sub: a message then costs the nodes of one shard something and not
// all of them.
//
// Redis keeps nothing of what it is given to publish. What goes by while the
// connection is lost is lost for this node, and told as a gap once everything is
// subscribed again; so is what Redis drops by its client-output-buffer-limit.
//
// # History
//
// A [HistoryBroker] keeps it, in one stream for all topics, if its hub has a
// History:
//
//	hub.History.Events = 100
//	hub.Broker = redisbroker.Connect(options).WithHistory()
//
// So an event's id means the same on each node, a client that comes back gets
// what it missed from any of them, and nothing is missed while the connection to
// Redis is lost. It takes Redis 6.2 or later. The nodes have the same History:
// the shortest Age rules.
//
// It promises what Redis does. With appendonly and "appendfsync always" a crash
// loses nothing that Publish has returned nil for; with "everysec", the default,
// or where a replica takes over, perhaps the last second, and without any
// persistence all. Nodes that had what is lost notice, each when it is connected
// again or appends: then ids begin anew, it's counted as a gap, and a client that
// comes back gets a reset. Until the first of them has noticed, though, nodes
// that didn't have it may give an id a second time. Who can't have that lets
// Redis wait for the disk, and its replicas with min-replicas-to-write lose less.
// With another maxmemory-policy than noeviction the history is lost when memory
// is short, as its keys expire, a day or more after the last node has gone.
//
// What it costs: each node reads all topics, so one stream, on one master of a
// cluster, has to carry all that is published, once to each node. Redis runs a
// script for each record; a node sends its next one when it has the answer, with
// all that was published meanwhile. One that is idle asks twice in two seconds.
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
	callTimeout  = 3 * time.Second        // for Redis to answer
	pingInterval = 2 * time.Second        // a dead connection is noticed after that and callTimeout
	minBackoff   = 50 * time.Millisecond  // between two tries to connect
	maxBackoff   = time.Second            // the same, after some
	retryDelay   = 100 * time.Millisecond // before Redis is asked again for what it has refused
	closeTimeout = 5 * time.Second        // for a Deliver that blocks
	bufferBytes  = 64 << 10               // of a connection of our own, each way
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
	// Prefix begins the names of all channels and keys, with a colon behind it.
	// Hubs with the same Prefix hear each other, and whoever may publish to
	// "PREFIX:*" can speak to their clients. It is printable ASCII without
	// blanks and without the characters {}*?[]\, which Redis reads as hash tags
	// and patterns. It may be assigned until the hub is used. Empty means
	// "realtime".
	Prefix string

	// Set at construction, never changed.
	users     rueidis.Client       // the user's; nil where the broker makes its own
	options   rueidis.ClientOption // of the broker's own client
	connects  bool                 // the broker makes its own client
	inbox     *inbox
	out       chan publication
	stop      chan struct{}   // closed when nothing more is accepted to be published
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	known     chan struct{} // closed when the first try to find Redis is over
	stale     chan struct{} // has room for one word that the cluster has changed
	delivered chan struct{} // closed when the goroutine deliver has ended
	written   chan struct{} // closed when the goroutine write has ended
	ended     chan struct{} // closed when the goroutine run has ended, and with it each link

	// Set by Start, never changed.
	handler realtime.BrokerHandler
	prefix  string // with the colon behind it

	started atomic.Bool
	trusted atomic.Bool    // the last messages have been published
	own     sync.WaitGroup // the links' goroutines

	mu     sync.Mutex // guards the fields below, and what is said to be guarded by it
	closed bool
	client rueidis.Client
	err    error             // why there are no links
	topics map[string]*topic // by channel
	links  map[string]*link  // by address
	owners []string          // the address of the link that has a slot; one that isn't a cluster has one slot
}

// A topic is what this node has subscribed to, or is about to. It is guarded by
// Broker.mu.
type topic struct {
	channel   string
	link      *link // nil: nobody knows yet which node of the cluster has it
	confirmed bool  // it is subscribed there
	lost      bool  // it was, before something was missed
	waiting   []chan<- error
}

var _ realtime.Broker = (*Broker)(nil)

// New returns a broker on the user's own client, which stays open when the
// broker is closed. The client may be used for other things, and for other
// brokers. It needs no particular options: the broker has its own limits for
// what has to be timely. The broker takes a connection of its own from the
// client, to each master of a cluster, and publishes by the connections that the
// client shares.
func New(client rueidis.Client) *Broker {
	b := newBroker()
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
// here, and in ReadBufferEachConn and WriteBufferEachConn 64 KiB.
func Connect(options rueidis.ClientOption) *Broker {
	b := newBroker()
	b.options, b.connects = options, true
	return b
}

func newBroker() *Broker {
	b := &Broker{
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

// Start is called by the hub; see [realtime.Broker]. It fails where Prefix is
// not valid, New got no client, or the broker is another hub's already.
func (b *Broker) Start(h realtime.BrokerHandler) error { return wrap("start", b.start(h)) }

func (b *Broker) start(h realtime.BrokerHandler) error {
	prefix, err := channelPrefix(b.Prefix)
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

// channelPrefix returns what goes before each topic.
func channelPrefix(prefix string) (string, error) {
	prefix = cmp.Or(prefix, "realtime")
	if strings.ContainsFunc(prefix, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`{}*?[]\`, r) }) {
		return "", fmt.Errorf(`prefix %q: use printable ASCII without blanks and without the characters {}*?[]\`, prefix)
	}
	return prefix + ":", nil
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
// used is closed by the program that made it. What was published goes out
// first, as far as Redis accepts it within 3 s. Close waits for a Deliver that
// is running, and returns an error if that blocks for 5 s.
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
	case <-patience: // a dial can't be cut short; run ends with it
	}
	return nil
}

// deliver is the goroutine that hands the node what has come. It ends with
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

// run is the goroutine that finds Redis and keeps the links. It ends with Close.
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

// connect makes a client of our own. It tries until that works, or Close.
func (b *Broker) connect() rueidis.Client {
	options := b.options
	options.DisableCache = true // we have no use for it, and it takes a permission
	options.DisableRetry = true
	options.Dialer.Timeout = cmp.Or(options.Dialer.Timeout, callTimeout)
	options.ConnWriteTimeout = cmp.Or(options.ConnWriteTimeout, callTimeout)
	if options.Sentinel.MasterSet != "" { // or a switch that it misses is for good
		options.Sentinel.TopologyRefreshInterval = cmp.Or(options.Sentinel.TopologyRefreshInterval, 5*time.Second)
	}
	options.ReadBufferEachConn = cmp.Or(options.ReadBufferEachConn, bufferBytes)
	options.WriteBufferEachConn = cmp.Or(options.WriteBufferEachConn, bufferBytes)
	for wait := minBackoff; ; wait = b.backOff(wait) {
		client, err := rueidis.NewClient(options)
		if err == nil {
			return client
		}
		if client != nil { // ForceSingleClient has both
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

// backOff waits for about as long as it is told, or until Close, and returns
// how long to wait the next time.
func (b *Broker) backOff(wait time.Duration) time.Duration {
	select {
	case <-time.After(wait/2 + rand.N(wait)): // not all nodes in the same moment
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
	case err := <-confirmed: // in the same moment
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

// forget drops a topic. Its caller holds mu.
func (b *Broker) forget(t *topic) {
	delete(b.topics, t.channel)
	if t.link != nil {
		t.link.leave(t.channel)
	}
	t.answer(errors.New("the topic was unsubscribed while it was waiting"))
}

// answer tells those who wait for a topic. Its caller holds Broker.mu.
func (t *topic) answer(err error) {
	for _, w := range t.waiting {
		w <- err // has room
	}
	t.waiting = nil
}

// assign gives a topic to the link that is to have it, which may be none yet.
// Its caller holds mu.
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

// linkOf returns the link of a channel, or nil while it isn't known. Its caller
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

// place makes the links what the owners of the slots say, and moves the topics.
// The goroutine run alone calls it.
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
