package realtime

import (
	"errors"
	"io"
	"iter"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// Stats is what a hub has done. Figures that say "now" may also fall.
type Stats struct {
	Clients        int   // of this node, connected now
	ClusterClients int   // of all nodes, connected now; those of a crashed node count for 7 s more
	Queued         int64 // messages that wait for a client now
	Published      int64 // events accepted from publishers
	Delivered      int64 // messages written to a client's connection
	Received       int64 // messages from clients
	Replaced       int64 // messages that a newer one of their Key replaced
	Forgotten      int64 // latest values dropped because there were more than History.Values
	Resumed        int64 // replays since an id that gave a client every event since: one when it reconnects, others when it subscribes later
	Resets         int64 // resets that tell a client that came with an id, or subscribed from one, that it may have lost events
	Dropped        int64 // messages still queued when their client went, and events sent to Broadcast after Shutdown had begun
	SlowClients    int64 // clients disconnected with ErrSlowClient
	Gaps           int64 // times that events of other nodes may have been lost
	Unsent         int64 // events that could not be handed to the broker
	BrokerDown     bool  // the broker can't be reached now
	Refused        int64 // requests that were refused
	InvalidText    int64 // events that Broadcast sent as binary because they were not valid UTF-8
	Panics         int64 // of handlers
	Left           Left  // clients that have left
	Latency        Latency
}

// Left counts the clients that have left, by the reason. Each counts once, just
// before its OnDisconnect. A client that OnConnect has refused doesn't count.
type Left struct {
	Closed       int64 // the client has closed: by a close frame, or by ending its event stream
	Lost         int64 // the connection broke without that
	Silent       int64 // it left a ping unanswered, a frame or message incomplete, or accepted no byte, for too long
	Slow         int64 // ErrSlowClient
	Protocol     int64 // it broke RFC 6455 or the Subprotocol, sent text that is not UTF-8, or sent more than 64 KB on an event stream
	TooLarge     int64 // a message was larger than MaxMessageBytes
	Disconnected int64 // by Client.Close or Hub.Disconnect
	Expired      int64 // by Client.ExpireAt
	Shutdown     int64 // ErrHubClosed
	Panicked     int64 // one of its handlers panicked, or ended its goroutine
}

// A Latency says how long published events took, from the moment at which this node
// accepted them until they were written. An event counts once for each part of the
// hub that has clients for it: parts are as many as processors, and 16 at most. Its
// time is up to the end of the last write to one of these clients, of all events
// that were written together. So it shows whether the hub keeps up.
//
// Writes that wait are not in it: to a client that reads too slowly, and where a
// goroutine writes (TLS, Windows). The time ends there when the event waits for that.
// It begins when Publish or Broadcast hand the event over, with a [HistoryBroker] as
// well, or when an event of another node arrives. Replays and events that are sent
// to one client don't count.
type Latency struct {
	Counts [11]int64     // of events, for each of the Buckets
	Sum    time.Duration // of all events
}

var latencyBounds = [...]time.Duration{
	100 * time.Microsecond, 300 * time.Microsecond, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond,
	30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, math.MaxInt64,
}

// Buckets iterates over the figures from short to long: n events took at most the
// time most, and longer than the most before. The last one is the highest Duration.
func (l Latency) Buckets() iter.Seq2[time.Duration, int64] {
	return func(yield func(most time.Duration, n int64) bool) {
		for i, n := range l.Counts {
			if !yield(latencyBounds[i], n) {
				return
			}
		}
	}
}

// A latency is a Latency that is being counted.
type latency struct {
	counts [len(latencyBounds)]atomic.Int64
	sum    atomic.Int64
}

func (l *latency) count(d time.Duration, n int) {
	i, _ := slices.BinarySearch(latencyBounds[:], d)
	l.counts[i].Add(int64(n))
	l.sum.Add(int64(d) * int64(n))
}

func (l *latency) all() (all Latency) {
	for i := range l.counts {
		all.Counts[i] = l.counts[i].Load()
	}
	all.Sum = time.Duration(l.sum.Load())
	return all
}

// A moment is a time in microseconds since the hub was made, modulo 2^32. More
// bits would cost each event that is kept 16 bytes. Zero is no time.
type moment uint32

func (c *clock) moment(t time.Time) moment {
	return max(1, moment(t.Sub(c.start).Microseconds()))
}

// since returns the time since m, which is less than an hour.
func (c *clock) since(m moment) time.Duration {
	return time.Duration(c.moment(time.Now())-m) * time.Microsecond
}

// departures counts the clients that leave. It is safe for concurrent use.
type departures struct {
	mu sync.Mutex // guards the field below
	by Left
}

// count counts a client that left because of err. Each reason is told here, from
// the error that OnDisconnect gets.
func (l *departures) count(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(ErrHubClosed):
		l.by.Shutdown++
	case is(ErrSlowClient):
		l.by.Slow++
	case is(expired):
		l.by.Expired++
	case is(ErrClientClosed):
		l.by.Disconnected++
	case is(errPanicked), is(errEnded):
		l.by.Panicked++
	case is(errTooLarge): // which is an errProtocol as well
		l.by.TooLarge++
	case is(errProtocol):
		l.by.Protocol++
	case is(errPongTimeout), is(errIncomplete), is(errControlIncomplete), is(errWriteTimeout):
		l.by.Silent++
	case err == io.EOF, websocket.CloseStatus(err) != -1:
		l.by.Closed++
	default:
		l.by.Lost++
	}
}

func (l *departures) all() Left {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by
}

// Stats returns the figures. Each is exact; together they are not a snapshot.
func (h *Hub) Stats() Stats {
	if h == nil {
		return Stats{}
	}
	s := &h.shared
	elsewhere, down := 0, false
	if h.usable() == nil && isClosed(h.settled) {
		elsewhere, down = h.order.elsewhere()
	}
	here := h.ClientCount()
	return Stats{
		Clients:        here,
		ClusterClients: here + elsewhere,
		Queued:         s.queued.Load(),
		Published:      s.published.Load(),
		Delivered:      s.delivered.Load(),
		Received:       s.received.Load(),
		Replaced:       s.replaced.Load(),
		Forgotten:      s.forgotten.Load(),
		Resumed:        s.resumed.Load(),
		Resets:         s.resets.Load(),
		Gaps:           s.gaps.Load(),
		Unsent:         s.brokerLost.Load(),
		BrokerDown:     down,
		Dropped:        s.dropped.Load(),
		SlowClients:    s.slowClients.Load(),
		Refused:        s.refused.Load(),
		InvalidText:    s.invalidText.Load(),
		Panics:         s.panics.Load(),
		Left:           s.left.all(),
		Latency:        s.latency.all(),
	}
}

// shared is what the parts of a hub have in common: its settings with their
// defaults, its clock, its log and its counters.
type shared struct {
	clock clock
	log   logbook
	done  <-chan struct{} // the hub's

	presence *presence
	members  atomic.Int64 // clients that are open
	left     departures
	latency  latency

	toldCutShort atomic.Bool // see warnCutShort

	// Set once, before the first client or event.
	maxClients      int
	sendBuffer      int
	slowAfter       time.Duration
	maxMessageBytes int64
	drainOver       time.Duration // zero and less: at once
	pingInterval    time.Duration // negative: never
	pongTimeout     time.Duration
	writeTimeout    time.Duration
	compression     bool
	onSubscribe     func(c *Client, topic string) error
	history         History
	leaveAfter      time.Duration
	heartbeat       *event // nil: never

	queued      atomic.Int64
	published   atomic.Int64
	delivered   atomic.Int64
	received    atomic.Int64
	dropped     atomic.Int64
	replaced    atomic.Int64
	forgotten   atomic.Int64
	gaps        atomic.Int64
	brokerLost  atomic.Int64
	resumed     atomic.Int64
	resets      atomic.Int64
	slowClients atomic.Int64
	refused     atomic.Int64
	invalidText atomic.Int64
	panics      atomic.Int64
}

// forgot counts and logs a latest value for which there is no room.
func (s *shared) forgot() {
	s.forgotten.Add(1)
	s.log.warn(logHistory, "latest value dropped: there are more than History.Values", "values", s.history.Values)
}

// heard tells the hub's presence of an event of a node's member.
func (s *shared) heard(node nodeID, name topicKey, gone bool) { s.presence.heard(node, name, gone) }
