package realtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

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
	publish  chan publication // taken by the loop until done is closed
	changes  chan change      // taken by the loop until stop is closed
	done     chan struct{}    // closed when Shutdown begins
	flushed  chan struct{}    // closed when all that was published has reached the outboxes
	stop     chan struct{}    // closed when nothing but the hub's own goroutines is left
	looped   chan struct{}    // closed when the loop has ended
	finished chan struct{}    // closed when Shutdown is over

	started  atomic.Bool   // the loop has been, or must not be any more
	settling sync.Once     // guards shared's settings and order
	settled  chan struct{} // closed when they are set
	shared   shared
	order    order

	registry     registry
	own          sync.WaitGroup // shards, sweeper and parker
	parkOnce     sync.Once      // guards parker
	parker       *parker        // nil: there is none
	lastPosition *event         // owned by the sweeper: the position it told last
}

// NewHub returns a hub. It costs about 7 KB and no goroutine until it is
// used: there may be one for each room.
func NewHub() *Hub {
	h := &Hub{
		Broadcast: make(chan []byte, 256),
		publish:   make(chan publication),
		changes:   make(chan change),
		done:      make(chan struct{}),
		flushed:   make(chan struct{}),
		stop:      make(chan struct{}),
		looped:    make(chan struct{}),
		finished:  make(chan struct{}),
		settled:   make(chan struct{}),
		registry:  registry{empty: make(chan struct{}), seed: maphash.MakeSeed()},
	}
	h.shared.clock.start = time.Now()
	h.shared.done = h.done
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
	h.settling.Do(func() {
		defer close(h.settled)
		s := &h.shared
		s.sendBuffer = positive(h.SendBuffer, 256)
		s.maxMessageBytes = positive(h.MaxMessageBytes, 512<<10)
		s.pongTimeout = positive(h.PongTimeout, 60*time.Second)
		s.writeTimeout = positive(h.WriteTimeout, 10*time.Second)
		s.slowAfter = cmp.Or(h.SlowAfter, time.Second)
		s.pingInterval = cmp.Or(h.PingInterval, 54*time.Second)
		s.compression = h.Compression
		s.history = h.History.settled()
		s.log.logger = cmp.Or(h.Logger, slog.Default())
		h.order = h.newOrder()
	})
}

// newOrder returns the order that the settings ask for.
func (h *Hub) newOrder() order {
	s := &h.shared
	if h.Broker == nil || h.closing() && len(h.Broadcast) == 0 { // a hub that ends unused needs no broker
		return &local{s, newHistory(s.history)}
	}
	if broker, ok := h.Broker.(HistoryBroker); ok && s.history.keeps() {
		return newJournal(s, broker)
	}
	return newRelay(s, h.Broker)
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

// Done returns a channel that is closed when Shutdown begins.
func (h *Hub) Done() <-chan struct{} {
	if h.usable() != nil {
		return ended // rather than nil, on which everybody would wait for ever
	}
	return h.done
}

// ended is closed.
var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

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
	if h.registry.close() {
		close(h.done)
		go h.end()
	}
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
	for _, c := range h.registry.all() {
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
	if h.parker != nil { // made by a client, and they are gone
		h.parker.close()
	}
	h.own.Wait()
	<-h.shared.log.written()
	close(h.finished)
}
