package realtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// A Hub keeps clients, of both transports, and sends them what is published. It
// is made by
// [NewHub]; a Hub that isn't is reported by every call that can.
//
// The exported fields are settings, but for Broadcast. They may be assigned
// until the hub has its first client or takes its first event, also after
// Run was started: whichever of the two comes first reads them, once. Changing
// one later is a race. OnMessage, OnConnect, OnDisconnect and CheckOrigin are
// read when a client joins.
//
// Handlers run on goroutines of their clients, under no lock, so they may
// call anything, hub.Broadcast <- included. A handler that panics costs its
// client the connection (1011, or 500 before the handshake) and a line in the
// log.
type Hub struct {
	// Broadcast takes text for every client. It is buffered: a send waits
	// only while the hub is behind by 256 of them. Data that is not valid
	// UTF-8 goes out as a binary message, and is counted in Stats.
	//
	// After Shutdown nothing receives from Broadcast. While Shutdown runs,
	// what is sent is dropped and counted; afterwards the buffer fills, and
	// then a send blocks, as on any channel. Code that may outlive the hub
	// calls Publish or selects on Done. What is sent belongs to the hub:
	// don't modify it afterwards.
	Broadcast chan []byte

	// OnMessage is called with each message of a client: one client's in
	// turn, clients in parallel. It may block, which holds back its own
	// client alone, and does not count against PongTimeout. Nil discards
	// messages.
	OnMessage func(hub *Hub, msg Message)

	// OnConnect is called before a client's request is answered, on the
	// goroutine of the HTTP handler. An error refuses the client: one made by
	// [Refuse] chooses the answer, [ErrBrokerUnavailable] asks to come back
	// later, any other is logged and answered by 403 and a fixed text, so that
	// it tells a stranger nothing. OnConnect is
	// where a client gets its values, topics and first messages: Set, Subscribe
	// and Send work in it, and what is sent goes out right after the handshake,
	// in order. Without OnConnect a client has the topics that its URL asks
	// for (?topic=a&topic=b), 100 at most: set one where not everybody may have
	// everything.
	// It may block; what is published meanwhile waits for the client. The
	// client counts once OnConnect has returned nil.
	OnConnect func(c *Client, r *http.Request) error

	// OnDisconnect is called once for each OnConnect that returned nil, after
	// the client's last OnMessage, when the client is gone. err is never nil:
	// a client's own close satisfies [websocket.CloseStatus], and
	// [ErrSlowClient], [ErrHubClosed] and [ErrClientClosed] tell why this
	// side closed. The end of an event stream is [io.EOF]. Get and Topics
	// still work, Send doesn't.
	OnDisconnect func(c *Client, err error)

	// CheckOrigin reports whether a request may become a client, by its
	// Origin header: [SameOrigin], or one made by [AllowOrigins]. Nil means
	// the package's, see [SetCheckOrigin], which by default allows all. A hub
	// whose clients are told apart by a cookie must set one of them.
	CheckOrigin func(r *http.Request) bool

	// SendBuffer is the number of messages that may wait for a client that is
	// slower than its publishers. A client above it for SlowAfter on end, or
	// above 64 times as many for however short, is disconnected with
	// [ErrSlowClient]. A client for which in this time so many less wait, as
	// for one that reads after a burst, has SlowAfter again. Several messages
	// of more than 8 MiB in all that were sent to a client alone are as too
	// many, of more than 32 MiB as 64 times as many, and taking 1 MiB of them
	// is catching up. Zero and less mean 256.
	SendBuffer int

	// SlowAfter is how long a client may have more than SendBuffer messages
	// waiting. Zero means 1 s, less disconnects at once: that hits clients
	// which are merely a scheduling step behind.
	SlowAfter time.Duration

	// MaxMessageBytes bounds a message from a client, as it is after
	// decompression. A larger one closes its sender with 1009. Zero and less
	// mean 512 KiB.
	MaxMessageBytes int64

	// PingInterval is the silence of a client after which it gets a ping. An
	// event stream, whose client can't answer, gets a comment each
	// PingInterval. Zero means 54 s, less never.
	PingInterval time.Duration

	// PongTimeout is how long a ping may stay unanswered, and a message
	// incomplete, before the client is disconnected. Any byte answers a ping.
	// Zero and less mean 60 s.
	PongTimeout time.Duration

	// WriteTimeout is how long a client may take no bytes at all while some
	// wait for it. Zero and less mean 10 s.
	WriteTimeout time.Duration

	// History is what the hub remembers, for clients that come back and for the
	// latest values. Zero keeps nothing.
	//
	// Each event then has an id that is the hub's own, and a client that comes
	// back with the last one it saw gets every event since, on the topics that
	// OnConnect subscribes and among those published to all: each once, in
	// order, and then the live ones; but of those with a Key the newest alone,
	// as of all that waits for a client. Where the hub can't tell what was
	// missed, because it is no longer kept or was another process's, the client
	// gets a reset instead (an event stream an event of that name), the newest
	// event of each Key, and the live ones. A client that is new gets no reset.
	// The id comes from the header Last-Event-ID, which a browser's EventSource
	// sends, or the query's lastEventId. It holds for this hub alone, or on all
	// nodes where Broker is a [HistoryBroker].
	History History

	// Compression compresses what goes to WebSocket clients that can take it
	// (permessage-deflate, RFC 7692): each event once for all of them, from
	// 256 bytes up and where that makes it smaller, and without a window kept
	// from one message to the next, which would cost memory for each client.
	// A compressed message from a client whose data ends early is taken for a
	// complete one.
	Compression bool

	// Broker joins this hub with those of other processes: what is published to
	// one reaches the clients of all. The hub starts it with its first client
	// or event, and closes it. Nil means this process alone.
	//
	// While the engine can't be reached, clients stay, and get what is published
	// on this node. With a History and a [HistoryBroker] all nodes have one
	// history, kept by the engine: events then go through it, a client that
	// joins waits up to 5 s until this node has it, and what the engine doesn't
	// take within 2 s goes to the clients of this node alone. All nodes then have
	// a History, of the same Age.
	Broker Broker

	// Logger gets what goes wrong, on a goroutine of its own: each kind of
	// line at most once a second, the rest counted. Nil means slog.Default().
	Logger *slog.Logger

	// Set at construction, never changed.
	publish   chan handover // of events, taken by the loop until done is closed
	changes   chan handover // of clients, taken by the loop until stop is closed
	done      chan struct{} // closed when Shutdown begins
	clustered chan struct{} // closed when the hub has a cluster
	flushed   chan struct{} // closed when all that was published has reached the outboxes
	stop      chan struct{} // closed when nothing but the hub's own goroutines is left
	looped    chan struct{} // closed when the loop has ended
	finished  chan struct{} // closed when Shutdown is over
	log       logbook

	started atomic.Bool // the loop has been, or must not be any more
	settled sync.Once   // guards shared's settings, and the making of past and cluster
	shared  shared
	cluster atomic.Pointer[cluster] // nil: there is none, or the settings are not settled yet
	past    *history                // owned by the loop, but for what never changes
	here    *event                  // owned by the sweeper: the position it told last
	count   atomic.Int64            // of members

	parkOnce sync.Once // guards parker
	parker   *parker   // nil: there is none

	mu       sync.Mutex     // guards the fields below
	own      sync.WaitGroup // shards, sweeper and parker
	shards   []*shard       // made for the first client
	slots    []*Client      // a client's slot never changes; nil: free
	free     []int          // slots that are free
	clients  int            // slots that aren't
	sweeping bool
	closed   bool
	empty    chan struct{} // closed when the hub is closed and has no clients
}

// shared is what the parts of a hub have in common: its settings, made
// definite, its clock and its counters.
type shared struct {
	clock clock

	// Set once, before the first client or event.
	sendBuffer      int
	slowAfter       time.Duration
	maxMessageBytes int64
	pingInterval    time.Duration // negative: never
	pongTimeout     time.Duration
	writeTimeout    time.Duration
	compression     bool
	history         History
	logger          *slog.Logger

	queued      atomic.Int64
	published   atomic.Int64
	delivered   atomic.Int64
	received    atomic.Int64
	dropped     atomic.Int64
	replaced    atomic.Int64
	gaps        atomic.Int64
	brokerLost  atomic.Int64
	resumed     atomic.Int64
	resets      atomic.Int64
	slowClients atomic.Int64
	refused     atomic.Int64
	invalidText atomic.Int64
	panics      atomic.Int64
}

// Stats is what a hub has been doing. But for the first two, the figures grow
// from NewHub on.
type Stats struct {
	Clients     int   // connected now
	Queued      int64 // messages that wait for a client now
	Published   int64 // events taken from publishers
	Delivered   int64 // messages written to a client's connection
	Received    int64 // messages from clients
	Replaced    int64 // messages that a newer one with their Key took the place of
	Resumed     int64 // clients that came back and got all they had missed
	Resets      int64 // clients that came back and may have missed events
	Dropped     int64 // messages that their client left behind, and events sent to Broadcast after Shutdown had begun
	SlowClients int64 // clients disconnected for ErrSlowClient
	Gaps        int64 // times that events of other nodes may have been lost on their way
	Unsent      int64 // events that could not be handed to the broker
	BrokerDown  bool  // the last event couldn't be
	Refused     int64 // requests that were turned down
	InvalidText int64 // events that Broadcast sent as binary because they were not valid UTF-8
	Panics      int64 // of handlers
}

// NewHub returns a hub. It costs about 7 KB and no goroutine until it is
// used: there may be one for each room.
func NewHub() *Hub {
	h := &Hub{
		Broadcast: make(chan []byte, 256),
		publish:   make(chan handover),
		changes:   make(chan handover),
		done:      make(chan struct{}),
		clustered: make(chan struct{}),
		flushed:   make(chan struct{}),
		stop:      make(chan struct{}),
		looped:    make(chan struct{}),
		finished:  make(chan struct{}),
		empty:     make(chan struct{}),
	}
	h.shared.clock.start = time.Now()
	h.log.shared = &h.shared
	return h
}

// usable reports what is wrong with h itself.
func (h *Hub) usable() error {
	switch {
	case h == nil:
		return errors.New("hub is nil: make one with realtime.NewHub")
	case h.publish == nil:
		return errors.New("hub was not made by realtime.NewHub")
	}
	return nil
}

// settle reads the settings. Each default stands here.
func (h *Hub) settle() {
	h.settled.Do(func() {
		s := &h.shared
		s.sendBuffer = positive(h.SendBuffer, 256)
		s.maxMessageBytes = positive(h.MaxMessageBytes, 512<<10)
		s.pongTimeout = positive(h.PongTimeout, 60*time.Second)
		s.writeTimeout = positive(h.WriteTimeout, 10*time.Second)
		s.slowAfter = cmp.Or(h.SlowAfter, time.Second)
		s.pingInterval = cmp.Or(h.PingInterval, 54*time.Second)
		s.compression = h.Compression
		s.history = h.History.settled()
		h.past = newHistory(s.history)
		s.logger = cmp.Or(h.Logger, slog.Default())
		if h.Broker != nil {
			h.startCluster(h.Broker)
		}
	})
}

// positive returns v, or def where v is not positive.
func positive[T int | int64 | time.Duration](v, def T) T {
	if v > 0 {
		return v
	}
	return def
}

// Run runs the hub and returns nil after Shutdown. It may be called late, or
// not at all: the first client and the first Publish start the hub too, and
// only Broadcast waits for one of the three. A second Run just waits. The
// error is that of a hub which wasn't made by NewHub; it is logged as well,
// as nobody reads it in "go hub.Run()".
func (h *Hub) Run() error {
	if err := h.usable(); err != nil {
		err = fmt.Errorf("realtime: run: %w", err)
		slog.Error(err.Error())
		return err
	}
	if h.started.CompareAndSwap(false, true) {
		h.loop()
	}
	<-h.finished
	return nil
}

// start starts the loop unless it was.
func (h *Hub) start() {
	if h.started.CompareAndSwap(false, true) {
		go h.loop()
	}
}

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

// add gives the client a slot and a shard, and passes it through the loop to
// that shard: from then on events wait for it.
func (h *Hub) add(c *Client) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrHubClosed
	}
	if h.shards == nil {
		for range min(runtime.GOMAXPROCS(0), 16) {
			s := &shard{stats: &h.shared}
			s.inbox.init()
			h.shards = append(h.shards, s)
			h.own.Go(s.loop)
		}
	}
	if !h.sweeping {
		h.sweeping = true
		h.own.Go(h.sweep)
	}
	if n := len(h.free); n > 0 {
		c.slot = h.free[n-1]
		h.free = h.free[:n-1]
	} else {
		c.slot = len(h.slots)
		h.slots = append(h.slots, nil)
	}
	h.slots[c.slot] = c
	h.clients++
	c.home = h.shards[c.slot%len(h.shards)]
	h.mu.Unlock()
	h.hand(handover{client: c, entries: []entry{{op: opJoin, client: c}}}) // the loop lives on while there are clients
	return nil
}

// remove takes the client's slot back. Nothing of the client is left then.
func (h *Hub) remove(c *Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots[c.slot] = nil
	h.clients--
	if h.clients == 0 {
		h.slots, h.free = nil, nil
	} else {
		h.free = append(h.free, c.slot)
	}
	if h.closed && h.clients == 0 {
		close(h.empty)
	}
}

// parking returns the hub's parker, or nil where it can have none. The first
// client that could be parked makes it: hubs of other connections have no use
// for it.
func (h *Hub) parking() *parker {
	h.parkOnce.Do(func() {
		p, err := newParker()
		if err != nil {
			h.log.error(logSetup, "idle clients keep their goroutines", "err", err)
			return
		}
		h.parker = p
		h.own.Go(p.loop) // there is a client, so that Shutdown doesn't wait for own yet
	})
	return h.parker
}

// allShards returns the hub's shards.
func (h *Hub) allShards() []*shard {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.shards
}

// all returns the hub's clients, those not counted included.
func (h *Hub) all() []*Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Client, 0, h.clients)
	for _, c := range h.slots {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

// Clients returns the clients that are connected when the iteration starts.
func (h *Hub) Clients() iter.Seq[*Client] {
	return func(yield func(*Client) bool) {
		if h.usable() != nil {
			return
		}
		for _, c := range h.all() {
			if c.isMember() && !yield(c) {
				return
			}
		}
	}
}

// ClientCount returns the number of clients that are connected.
func (h *Hub) ClientCount() int {
	if h == nil {
		return 0
	}
	return int(h.count.Load())
}

// ClusterClientCount returns the number of clients that are connected to this
// node and to all others. A node that has crashed is counted for 7 s more.
func (h *Hub) ClusterClientCount() int {
	n := h.ClientCount()
	if h.usable() == nil {
		if c := h.cluster.Load(); c != nil {
			n += c.clients()
		}
	}
	return n
}

// Stats returns what the hub has been doing. The figures are each right, but
// not of one moment.
func (h *Hub) Stats() Stats {
	if h == nil {
		return Stats{}
	}
	s := &h.shared
	cluster := h.cluster.Load()
	return Stats{
		Clients:     h.ClientCount(),
		Queued:      s.queued.Load(),
		Published:   s.published.Load(),
		Delivered:   s.delivered.Load(),
		Received:    s.received.Load(),
		Replaced:    s.replaced.Load(),
		Resumed:     s.resumed.Load(),
		Resets:      s.resets.Load(),
		Gaps:        s.gaps.Load(),
		Unsent:      s.brokerLost.Load(),
		BrokerDown:  cluster != nil && cluster.isDown(),
		Dropped:     s.dropped.Load(),
		SlowClients: s.slowClients.Load(),
		Refused:     s.refused.Load(),
		InvalidText: s.invalidText.Load(),
		Panics:      s.panics.Load(),
	}
}

// Done returns a channel that is closed when Shutdown begins.
func (h *Hub) Done() <-chan struct{} {
	if h.usable() != nil {
		return ended // rather than nil, on which everybody would wait for ever
	}
	return h.done
}

// ended is closed.
var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (h *Hub) closing() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// Shutdown ends the hub: newcomers are refused, what was published and sent
// goes out, and each client gets a close frame with 1001 (RFC 6455 §7.4.1)
// and 5 s for it. Shutdown returns nil when nothing of the hub is left
// running, handlers included, but for a CheckOrigin that still looks at a
// newcomer. When ctx ends before, connections are cut off,
// and Shutdown returns ctx's error within a second; what is left then is
// handlers that have not returned.
//
// It may be called twice, and of a hub that never ran; a second call waits for
// the first. A handler must not wait for it, as it waits for the handler.
// Shut down the hub and [http.Server] alike: the server doesn't know of
// connections that were taken over.
func (h *Hub) Shutdown(ctx context.Context) error {
	if err := h.usable(); err != nil {
		return fmt.Errorf("realtime: shutdown: %w", err)
	}
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		if h.clients == 0 {
			close(h.empty)
		}
		close(h.done)
		go h.end()
	}
	h.mu.Unlock()
	select {
	case <-h.finished:
		return nil
	default:
	}
	select {
	case <-h.finished:
		return nil
	case <-ctx.Done():
	}
	for _, c := range h.all() {
		c.abort(ErrHubClosed)
	}
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	select {
	case <-h.finished:
	case <-grace.C:
	}
	return fmt.Errorf("realtime: shutdown: %w", ctx.Err())
}

// end is the goroutine that Shutdown starts; all that a hub has running ends
// in it, at the latest when the last handler returns.
func (h *Hub) end() {
	h.start() // for what Broadcast holds
	<-h.flushed
	cause := &closedError{websocket.CloseError{Code: websocket.StatusGoingAway, Reason: "server is shutting down"}, ErrHubClosed}
	for _, c := range h.all() {
		c.close(cause.status, cause)
	}
	<-h.empty
	close(h.stop)
	<-h.looped
	if c := h.cluster.Load(); c != nil {
		c.close()
	}
	for _, s := range h.shards { // they don't change any more
		s.inbox.close()
	}
	if h.parker != nil { // made by a client, and they are gone
		h.parker.close()
	}
	h.own.Wait()
	<-h.log.written()
	close(h.finished)
}

// sweptEmpty ends the sweeper of a hub without clients: the next client
// starts another.
func (h *Hub) sweptEmpty() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sweeping = h.clients > 0
	return !h.sweeping
}

// hasPhase reports whether the sweeper has anything to look at in a phase.
func (h *Hub) hasPhase(phase int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return phase < len(h.slots)
}

// inPhase appends the clients of a phase to dst.
func (h *Hub) inPhase(phase int, dst []*Client) []*Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := phase; i < len(h.slots); i += phases {
		if c := h.slots[i]; c != nil {
			dst = append(dst, c)
		}
	}
	return dst
}

// ServeHTTP makes the request a client: an event stream where it accepts one
// (see [Hub.ServeSSE]) and doesn't ask for an upgrade, and otherwise a WebSocket
// (see [Upgrade], whose error has been answered).
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !hasToken(r.Header["Upgrade"], "websocket") && (acceptsStream(r) || r.Method == http.MethodOptions) {
		h.ServeSSE(w, r)
		return
	}
	Upgrade(w, r, h)
}

// refuse answers a request that doesn't become a client and returns err as
// Upgrade does.
func (h *Hub) refuse(w http.ResponseWriter, status int, text string, err error) error {
	if status == http.StatusNoContent || status == http.StatusNotModified {
		w.WriteHeader(status) // these have no body
	} else {
		http.Error(w, text, status)
	}
	return h.refused(err)
}

// refused counts a refusal.
func (h *Hub) refused(err error) error {
	h.shared.refused.Add(1)
	return fmt.Errorf("realtime: upgrade: %w", err)
}

// refuseSetup answers a request that can't become a client for what is
// between it and the hub.
func (h *Hub) refuseSetup(w http.ResponseWriter, err error) error {
	h.log.error(logSetup, "client refused: "+err.Error())
	return h.refuse(w, http.StatusNotImplemented, http.StatusText(http.StatusNotImplemented), err)
}

// refuseForNow answers a request that may have better luck within seconds: after
// Shutdown had begun another process may be up then. Not all shall come at once.
// An event stream ends right after it has begun, because an error would stop a
// browser's EventSource for good.
func (h *Hub) refuseForNow(w http.ResponseWriter, stream bool, err error) error {
	if stream {
		streamHeaders(w.Header())
		w.WriteHeader(http.StatusOK)
		w.Write(retryNotice().b)
		return h.refused(err)
	}
	w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
	text := "try again later"
	if errors.Is(err, ErrHubClosed) {
		text = "shutting down"
	}
	return h.refuse(w, http.StatusServiceUnavailable, text, err)
}

// refuseAs answers a request that OnConnect has refused by err.
func (h *Hub) refuseAs(w http.ResponseWriter, r *http.Request, err error) error {
	if answer, ok := errors.AsType[*refusal](err); ok {
		return h.refuse(w, answer.status, answer.reason, err)
	}
	h.log.warn(logRefused, "client refused by OnConnect", "err", err, "remote", r.RemoteAddr)
	return h.refuse(w, http.StatusForbidden, http.StatusText(http.StatusForbidden), err)
}

// admitOrigin asks the origin check, and answers its refusal.
func (h *Hub) admitOrigin(w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = h.panicked("CheckOrigin", v, nil)
			h.refuse(w, http.StatusInternalServerError, http.StatusText(http.StatusInternalServerError), err)
		}
	}()
	check := originCheck(h.CheckOrigin)
	if check == nil || check(r) {
		return nil
	}
	origin, host := clip(r.Header.Get("Origin")), clip(r.Host)
	h.log.warn(logRefused, "origin refused: see Hub.CheckOrigin and realtime.AllowOrigins", "origin", origin, "host", host)
	return h.refuse(w, http.StatusForbidden, "origin not allowed", fmt.Errorf("origin %q is not allowed for host %q", origin, host))
}

// clip bounds what a stranger can put into a log.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// panicked logs and counts a handler's panic and returns it as an error. It
// is to be called by the deferred function that has recovered v.
func (h *Hub) panicked(handler string, v any, c *Client) error {
	h.shared.panics.Add(1)
	args := []any{"panic", fmt.Sprint(v), "stack", string(debug.Stack())}
	if c != nil {
		args = append(args, "client", c.ID())
	}
	h.log.error(logPanic, handler+" panicked", args...)
	return fmt.Errorf("realtime: %s panicked: %v", handler, v)
}
