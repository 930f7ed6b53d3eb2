package realtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// A Hub sends what is published to its clients. Make it with [NewHub]; other
// Hubs report an error where they can.
//
// The exported fields are settings, except Broadcast. The hub reads them once:
// at its first client or first event, which may come after Run was started. A
// later change is a race. OnMessage, OnConnect, OnDisconnect and CheckOrigin
// are read when a client joins.
//
// Handlers run on goroutines of their clients, under no lock, so they may call
// anything, hub.Broadcast <- included. A panic in a handler is logged and
// disconnects its client (1011, or 500 before the handshake).
type Hub struct {
	// Broadcast accepts text for every client. Its buffer holds 256 events, so
	// a send blocks only while the hub is that far behind, or doesn't run yet.
	// A send starts no hub: call Run if events may come before the first
	// client. Data that is not valid UTF-8 goes out as a binary message and is
	// counted in Stats. Data belongs to the hub once it is sent: don't modify it
	// afterwards.
	//
	// Once Done is closed, what is sent is dropped and counted. After Shutdown
	// nothing receives: the buffer fills, and then a send blocks. Code that may
	// outlive the hub calls Publish or selects on Done. Don't close Broadcast: a
	// later send would panic. The hub runs on if somebody does. Shutdown ends it.
	Broadcast chan []byte

	// OnMessage is called with each message of a client: in turn for one
	// client, in parallel for several. It may block. That holds back its own
	// client alone, and doesn't count against PongTimeout. Nil discards
	// messages.
	OnMessage func(hub *Hub, msg Message)

	// OnConnect is called before a client's request is answered, on the
	// goroutine of the HTTP handler. It is the place for Set, Subscribe and
	// Send: what is sent goes out right after the handshake. It may block;
	// events wait for the client until then. The client counts once OnConnect
	// has returned nil. An error refuses the client. One made by [Refuse]
	// chooses the answer, for plain clients and for pages: see [Subprotocol].
	// [ErrBrokerUnavailable] asks the client to try again later. Any other is
	// logged and answered by 403 and a fixed text, which tells a stranger
	// nothing. If OnConnect returns [ErrClientClosed] because the client was
	// closed in the meantime, the client hears why. Without OnConnect a client
	// has the topics that its URL asks for (?topic=a&topic=b), 100 at most. Set
	// OnConnect or OnSubscribe unless every client may read every topic.
	OnConnect func(c *Client, r *http.Request) error

	// OnSubscribe decides which topics a page may join by itself: those that its URL
	// asks for (?topic=a&topic=b) and OnConnect hasn't subscribed, and those that a
	// page with [Script] subscribes later. It is asked about each topic, again when
	// the page reconnects. For topics in a URL it runs behind OnConnect, on the same
	// goroutine. For topics that come over an open WebSocket it is called as
	// OnMessage is, in turn with that. It may block. Nil gives the client the topic.
	// OnSubscribe may also call Subscribe itself, and then Appear.
	//
	// An error refuses the topic. The page is told, with the codes of a refusal by
	// OnConnect. A client that isn't of the [Subprotocol] can't be told about a
	// topic, and is refused as a whole. A client may have 100 topics by asking.
	//
	// Without OnSubscribe a page may join any topic if there is no OnConnect either.
	// Otherwise it has only those that OnConnect subscribes.
	OnSubscribe func(c *Client, topic string) error

	// OnDisconnect is called once for each OnConnect that returned nil, also if
	// OnSubscribe then refuses the client. Without OnConnect it is called for
	// each client that isn't refused. It is called when the client is gone and
	// its last OnMessage has returned. err is never nil. A close by the client
	// satisfies [websocket.CloseStatus]. [ErrSlowClient], [ErrHubClosed] and
	// [ErrClientClosed] tell why this side closed. The end of an event stream
	// is [io.EOF]. Get and Topics still work, Send doesn't.
	OnDisconnect func(c *Client, err error)

	// CheckOrigin reports whether the Origin header of a request lets it become
	// a client: [SameOrigin], or one made by [AllowOrigins]. Nil means the
	// check of the package, see [SetCheckOrigin], which by default allows all.
	// A hub that tells clients apart by a cookie must set one of them.
	CheckOrigin func(r *http.Request) bool

	// MaxClients bounds the clients of this hub on this node. Those in OnConnect
	// count, and so do those that are being closed. A request above it is asked to
	// try again later: a WebSocket by 503 with Retry-After, an event stream by a
	// delay before it reconnects. The hub counts and logs that. Zero and negative
	// mean no bound.
	MaxClients int

	// SendBuffer is the number of messages that may wait for a client that is
	// slower than its publishers. A client above it for SlowAfter, or ever
	// above 64 times as many, is disconnected with [ErrSlowClient]. SlowAfter
	// starts over when the backlog has shrunk by SendBuffer messages. Messages
	// sent to one client alone are also bounded in bytes. More than 8 MiB in
	// several messages mean the same as too many messages, and more than 32 MiB
	// disconnect at once. SlowAfter starts over when they have shrunk by 1 MiB.
	// Messages that wait for a disconnected client are dropped. A client that
	// has accepted bytes within SlowAfter, or within the last second if that is
	// shorter, is told why and has 5 s to read that. Any other is cut off. A
	// replay doesn't count, see History. Zero and negative mean 256.
	SendBuffer int

	// SlowAfter is how long a client may have more than SendBuffer messages
	// waiting. Zero means 1 s. A negative value disconnects at once and untold,
	// even clients that are one scheduling step behind.
	SlowAfter time.Duration

	// MaxMessageBytes bounds a message from a client, after decompression. A
	// larger one closes its client with 1009. Zero and negative mean 512 KiB.
	MaxMessageBytes int64

	// PingInterval is the longest silence of a WebSocket client before it gets a
	// ping, and the longest time between two comments on an event stream. The
	// hub looks at each client once a second, so both come up to 1.1 s early.
	// A PingInterval below 2.1 s means once a second. Clients of the
	// [Subprotocol] get a heartbeat that a page can see, on both transports. If
	// two are missing, a page that uses [Script] reconnects. A third of
	// History.Age is the limit for comments and heartbeats. If the client lacks
	// the newest position, it gets that instead. Zero means 54 s. Negative means
	// never, but positions still come. More than 24 days count as 24 days, because
	// the timers of scripts can't be set to more.
	PingInterval time.Duration

	// PongTimeout is how long a ping may stay unanswered, or a message
	// incomplete, before the client is disconnected. Any byte answers a ping.
	// Zero and negative mean 60 s.
	PongTimeout time.Duration

	// WriteTimeout is how long a client may accept no bytes while some wait for
	// it. Then it is disconnected. Zero and negative mean 10 s.
	WriteTimeout time.Duration

	// DrainOver is the time over which Shutdown closes the clients, evenly, so
	// that they don't all reconnect at once. It refuses new clients from the
	// beginning. But the clients that are left are still served: they get what is
	// published before they are closed, their messages are handled, and Done stays
	// open until the time is over, or no client is left. Shutdown needs a ctx that
	// lasts longer: at its end all that are left are cut off. Zero and negative
	// close all at once.
	DrainOver time.Duration

	// History is what the hub keeps for clients that reconnect and for the
	// latest values. Zero keeps nothing.
	//
	// With it, each event has an id of the hub's own. A client that reconnects
	// with the last id it saw gets every event since, each once and in order,
	// and then the live ones. Those are the events on the topics that OnConnect
	// subscribes and the events for all; of those with a Key only the newest.
	// If the hub can't tell what the client lost, because that is no longer
	// recent or was another process's, the client gets instead a reset (on an
	// event stream an event of that name), the latest value of each Key, and
	// the live ones. A new client gets the same without the reset.
	//
	// A client that reconnects may subscribe further topics later, for example
	// when its page asks for them. It gets what it lacks of these since the same
	// id, in order but without ids, or a reset for the topic. On an event stream
	// that is a reset whose data is the topic. It should do so within 10 s: the ids
	// that it gets until then, and during such a replay, end in "~". If it is cut
	// off and reconnects with one of them, the topics of OnConnect resume. Those
	// that it subscribes later begin with a reset, because nobody knows which of
	// their events it got. A topic must be subscribed in OnConnect each time, or
	// later each time.
	//
	// Kept events come in parts of some 32 KB, each when the one before is
	// written. The rest waits in the history. If the history forgets an event
	// before its turn, the client gets a reset, a new client as well. A client
	// that needs longer than WriteTimeout for a part, and as much again for
	// each full 32 KB of it, is disconnected with [ErrSlowClient].
	//
	// The id comes from the header Last-Event-ID, which a browser's EventSource
	// sends, or from the query's lastEventId. It may be an event's, one of
	// [Hub.Position], or [Oldest]. It is valid for this hub alone, or
	// on all nodes if Broker is a [HistoryBroker].
	History History

	// LeaveAfter is how long a member stays in a topic when its last client has
	// left, or its node has, so that somebody who reloads doesn't leave; see
	// [Client.Appear]. Zero means 10 s. Negative means that it leaves at once. A
	// node that dies is noticed after 7 s.
	LeaveAfter time.Duration

	// Compression compresses what goes to WebSocket clients that support it
	// (permessage-deflate, RFC 7692): each event of 256 bytes or more, once for
	// all clients, where that makes it smaller. No window is kept between
	// messages; it would cost memory for each client. A compressed message from
	// a client counts as complete even if its data ends early.
	Compression bool

	// Broker joins this hub with those of other processes: what is published to
	// one reaches the clients of all. The hub starts it with its first client
	// or event, and closes it. Nil means this process alone. While the engine
	// can't be reached, clients stay, and get what is published on this node.
	// If two nodes publish events of one Key at the same moment, the nodes' clocks
	// decide which of them is the latest value everywhere. A HistoryBroker's
	// history has an order instead.
	//
	// With a History and a [HistoryBroker] the engine keeps one history for all
	// nodes, and events go through it. A client that joins waits, before
	// OnConnect, until this node has read the history and has the event of the
	// client's last id. It waits 5 s at most, and on a node that has just
	// started up to a minute more. An event that the engine doesn't accept in
	// 2 s goes to this node's clients alone. The nodes make the engine forget an
	// event between one and two Ages after it was published, but carry the
	// latest values over. While no node runs it forgets none. All nodes need a
	// History of one Age: the shortest one rules.
	Broker Broker

	// Logger gets each kind of line at most once a second, on a goroutine of
	// its own. The rest is counted. Nil means slog.Default().
	Logger *slog.Logger

	// Set at construction, never changed.
	publish  chan publication // received by the loop until done is closed
	changes  chan change      // received by the loop until stop is closed
	done     chan struct{}    // closed by finish
	stop     chan struct{}    // closed when only the hub's own goroutines are left
	looped   chan struct{}    // closed when the loop has ended
	finished chan struct{}    // closed when Shutdown is over

	started  atomic.Bool    // the loop was started
	ending   sync.Once      // closes done
	flushing sync.WaitGroup // until all that was published has reached the outboxes
	settling sync.Once      // guards shared's settings and order
	settled  chan struct{}  // closed when they are set
	shared   shared
	order    order

	registry     registry
	presence     presence
	own          sync.WaitGroup // shards, sweeper, parker and announcer
	seats        seats          // that nobody uses
	park         parking
	lastPosition *event // owned by the sweeper: the position that it sent last
}

// NewHub returns a hub. Until it is used it costs about 7 KB and no goroutine,
// so there may be one for each room.
func NewHub() *Hub {
	h := &Hub{
		Broadcast: make(chan []byte, 256),
		publish:   make(chan publication),
		changes:   make(chan change),
		done:      make(chan struct{}),
		stop:      make(chan struct{}),
		looped:    make(chan struct{}),
		finished:  make(chan struct{}),
		settled:   make(chan struct{}),
		registry:  registry{quiet: make(chan struct{}), empty: make(chan struct{}), seed: maphash.MakeSeed()},
	}
	h.flushing.Add(1) // for flush
	h.shared.clock.start = time.Now()
	h.shared.done = h.done
	h.presence.hub, h.shared.presence = h, &h.presence
	h.park.outage = outage{log: &h.shared.log, what: "parking of idle clients"}
	return h
}

func (h *Hub) usable() error {
	switch {
	case h == nil:
		return errors.New("hub is nil: make one with realtime.NewHub")
	case h.publish == nil:
		return errors.New("hub was not made by realtime.NewHub")
	}
	return nil
}

// settle reads the settings, once. Each default is here or in History.settled.
func (h *Hub) settle() {
	h.settling.Do(func() {
		defer close(h.settled)
		s := &h.shared
		s.maxClients = cmp.Or(max(h.MaxClients, 0), math.MaxInt)
		s.sendBuffer = min(cmp.Or(max(h.SendBuffer, 0), 256), math.MaxInt32/hardLimit)
		s.maxMessageBytes = cmp.Or(max(h.MaxMessageBytes, 0), 512<<10)
		s.drainOver = h.DrainOver
		s.pongTimeout = cmp.Or(max(h.PongTimeout, 0), 60*time.Second)
		s.writeTimeout = cmp.Or(max(h.WriteTimeout, 0), 10*time.Second)
		s.slowAfter = cmp.Or(h.SlowAfter, time.Second)
		s.pingInterval = min(cmp.Or(h.PingInterval, 54*time.Second), maxRetry)
		s.compression = h.Compression
		s.onSubscribe = h.OnSubscribe
		s.history = h.History.settled()
		s.leaveAfter = max(cmp.Or(h.LeaveAfter, 10*time.Second), 0)
		if s.pingInterval > 0 {
			s.heartbeat = newHeartbeat(max(s.beatInterval(), revolution))
		}
		s.log.logger = cmp.Or(h.Logger, slog.Default())
		h.order = h.newOrder()
	})
}

func (h *Hub) newOrder() order {
	s := &h.shared
	if h.Broker == nil || h.closing() && len(h.Broadcast) == 0 { // a hub that ends unused needs no broker
		l := newLocal(s)
		return &l
	}
	if broker, ok := h.Broker.(HistoryBroker); ok {
		if s.history.keeps() {
			return newJournal(s, broker)
		}
		s.log.warn(logSetup, "the broker keeps a history, but Hub.History is zero: set it, or there is none")
	}
	return newRelay(s, h.Broker)
}

// Run runs the hub and returns nil after Shutdown. It may be called late or not
// at all: the first client and the first Publish start the hub too. A send to
// Broadcast doesn't. A second Run just waits. The error is that NewHub didn't
// make the hub. It is also logged, because nobody reads it in "go hub.Run()".
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

func (h *Hub) start() {
	if h.started.CompareAndSwap(false, true) {
		go h.loop()
	}
}

// Done returns a channel that is closed when Shutdown begins, or with a DrainOver
// when that is over. From then on nothing can be published.
func (h *Hub) Done() <-chan struct{} {
	if h.usable() != nil {
		return ended // a nil channel would block for ever
	}
	return h.done
}

var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }() // closed

func (h *Hub) closing() bool { return isClosed(h.done) }

// isClosed reports whether c, on which nobody sends, is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// signal wakes the receiver of c, which has room for one. A nil c has none.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Shutdown ends the hub. It refuses new clients, sends all that waits, and
// closes each client with 1001 (RFC 6455 §7.4.1), for which the client has 5 s.
// With a [Hub.DrainOver] it closes them one after another. It returns nil when
// nothing of the hub is running, handlers included; only a CheckOrigin may still
// look at a new request. If ctx ends first, Shutdown cuts the connections and
// returns ctx's error within a second of that. Then only handlers that have not
// returned are running. Where a second is too short to cut all connections, the
// rest end by themselves within 5 s.
//
// It may be called twice, and on a hub that never ran. A second call waits for
// the first. A handler must not wait for it, because it waits for the handler.
// Shut down the [http.Server] too: it doesn't know of taken-over connections.
func (h *Hub) Shutdown(ctx context.Context) error {
	if err := h.usable(); err != nil {
		return fmt.Errorf("realtime: shutdown: %w", err)
	}
	if h.registry.close() {
		go h.end()
	}
	select {
	case <-h.finished:
	case <-ctx.Done():
	}
	if isClosed(h.finished) { // perhaps both
		return nil
	}
	h.finish()                           // it may still drain
	late := time.NewTimer(time.Second).C // counts while the connections are cut, too
	err := fmt.Errorf("realtime: shutdown: %w", ctx.Err())
	for _, c := range h.registry.all() {
		select {
		case <-late:
			return err
		default:
			c.abort(ErrHubClosed)
		}
	}
	select {
	case <-h.finished:
	case <-late:
		if n := len(h.registry.all()); n > 0 {
			err = fmt.Errorf("%w: clients whose handlers have not returned: %d", err, n)
		}
	}
	return err
}

// end is the goroutine that Shutdown starts. It ends when all else of h has.
func (h *Hub) end() {
	cause := &closedError{websocket.CloseError{Code: websocket.StatusGoingAway, Reason: "server is shutting down"}, ErrHubClosed}
	h.drain(cause)
	h.finish()
	h.start() // for what Broadcast holds
	h.flushing.Wait()
	for _, c := range h.registry.all() {
		c.close(cause.status, cause)
	}
	<-h.registry.empty
	close(h.stop)
	<-h.looped
	h.order.close()
	for _, s := range h.registry.allShards() {
		s.inbox.close()
	}
	h.park.close()
	h.own.Wait()
	<-h.shared.log.written()
	close(h.finished)
}

// drain closes the clients one after another, over DrainOver. It ends early when
// none is left, and when the ctx of a Shutdown has ended.
func (h *Hub) drain(cause *closedError) {
	clients := slices.DeleteFunc(h.registry.all(), (*Client).isListener) // no others come; listeners hear all until the end
	if len(clients) == 0 || h.shared.drainOver <= 0 {
		return
	}
	begin, step := time.Now(), float64(h.shared.drainOver)/float64(len(clients))
	turn := time.NewTimer(0)
	defer turn.Stop()
	for i, c := range clients {
		turn.Reset(time.Until(begin.Add(time.Duration(float64(i) * step))))
		select {
		case <-turn.C:
			// Through the loop and the shard, so that the client gets before all
			// that was published before.
			h.hand(change{client: c, do: func(*shard) { c.close(cause.status, cause) }})
		case <-h.registry.quiet:
			return
		case <-h.done:
			return
		}
	}
}

// finish has the loop accept no more. It may be called twice.
func (h *Hub) finish() { h.ending.Do(func() { close(h.done) }) }
