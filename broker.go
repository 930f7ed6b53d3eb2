package realtime

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
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

const (
	brokerTimeout     = 5 * time.Second        // for one call of the broker
	brokerQueue       = 1024                   // messages that may wait for it
	brokerRetry       = 500 * time.Millisecond // between two tries to subscribe
	maxSubscribing    = 64                     // calls of Subscribe at a time
	maxSentTopics     = 100_000                // topics of which the last message is known
	topicLinger       = 10 * time.Second       // how long a topic without clients stays subscribed
	heartbeatInterval = 2 * time.Second
	nodeTimeout       = 7 * time.Second // without a heartbeat, after which a node is gone
	nodeMemory        = time.Hour       // and how long it is still known if it comes back
)

// nodesTopic is where heartbeats go. No user's topic is not UTF-8.
const nodesTopic = "\xff"

// brokerName returns what the broker gets as the name of a topic: none is empty
// there, and the hub's own can't be mistaken for a user's.
func brokerName(topic string) string {
	switch topic {
	case "":
		return "all"
	case nodesTopic:
		return "nodes"
	}
	return "topic/" + topic
}

// brokerTopicOf is the reverse of brokerName.
func brokerTopicOf(name string) (topic string, ok bool) {
	switch name {
	case "all":
		return "", true
	case "nodes":
		return nodesTopic, true
	}
	return strings.CutPrefix(name, "topic/")
}

// A cluster is a hub's part in several: what it hands to the broker, what it has
// subscribed to there and what it knows of other nodes.
type cluster struct {
	// Set at construction, never changed.
	hub     *Hub
	broker  Broker
	node    nodeID
	queue   chan outgoing   // what the broker is to publish; filled by the loop
	in      chan arrival    // what came; taken by the loop, until done is closed
	done    chan struct{}   // closed when the loop has ended
	ctx     context.Context // of calls to the broker: ends with done, or some time later
	cancel  context.CancelFunc
	calling chan struct{} // has a place for each call of Subscribe that may run
	journal *journal      // nil: the engine keeps no history

	own  sync.WaitGroup
	down atomic.Bool // the last message could not be published

	// Owned by the loop.
	seq  uint64            // of the last message
	sent map[string]uint64 // the same, for each topic

	mu        sync.Mutex // guards the fields below
	interests map[string]*interest
	nodes     map[nodeID]*node
}

type nodeID [16]byte

// An outgoing is a message on its way to the broker.
type outgoing struct {
	topic string
	brokered
}

// An interest is what this node has in a topic.
type interest struct {
	clients   int
	idleSince time.Time     // when clients became zero
	ending    bool          // the broker is being told to unsubscribe
	confirmed chan struct{} // closed when the broker has subscribed
}

// A node is what this one knows of another.
type node struct {
	heard   time.Time
	clients int
	seqs    map[string]uint64 // of its last message to each topic
}

// startCluster begins the hub's part in a cluster; settle calls it.
func (h *Hub) startCluster(broker Broker) {
	c := &cluster{
		hub:       h,
		broker:    broker,
		queue:     make(chan outgoing, brokerQueue),
		in:        make(chan arrival, 256),
		done:      make(chan struct{}),
		calling:   make(chan struct{}, maxSubscribing),
		sent:      make(map[string]uint64),
		interests: make(map[string]*interest),
		nodes:     make(map[nodeID]*node),
	}
	rand.Read(c.node[:]) // never fails
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := broker.Start(c); err != nil {
		c.failed(err)
	}
	if hb, ok := broker.(HistoryBroker); ok && h.shared.history.keeps() {
		c.startJournal(hb)
		c.watch(nodesTopic)
	} else {
		c.want("", nodesTopic)
	}
	c.own.Go(c.publish)
	c.own.Go(c.tick)
	h.cluster.Store(c)
	close(h.clustered)
}

// close ends the hub's part. What was queued goes out first, for brokerTimeout
// at the longest. The loop has ended.
func (c *cluster) close() {
	close(c.done)
	patience := time.AfterFunc(brokerTimeout, c.cancel)
	c.own.Wait()
	patience.Stop()
	c.cancel()
	if err := c.broker.Close(); err != nil {
		c.hub.log.error(logBroker, "broker didn't close", "err", err)
	}
}

// failed notes that a message could not be published.
func (c *cluster) failed(err error) {
	c.down.Store(true)
	c.hub.log.error(logBroker, "broker is unavailable", "err", err)
}

// enqueue hands an event of this node's to the broker. The loop calls it; it
// never waits.
func (c *cluster) enqueue(ev *event) {
	c.seq++
	if c.journal != nil {
		c.journal.enqueue(&ownEvent{ev, c.seq, ev.appended})
		ev.appended = nil
		return
	}
	if len(c.sent) >= maxSentTopics {
		clear(c.sent) // the next message of each topic doesn't say which was before
	}
	out := outgoing{brokerName(ev.topic), brokered{kind: brokeredEvent, node: c.node, seq: c.seq, before: c.sent[ev.topic], event: ev.Event}}
	c.sent[ev.topic] = c.seq
	select {
	case c.queue <- out:
	default:
		c.hub.shared.brokerLost.Add(1)
	}
}

// accept tells what becomes of an event that is to be the last of the next n in
// the queue.
func (c *cluster) accept(ev *event, n int) acceptance {
	switch {
	case c.journal != nil:
		ev.appended = make(chan error, 1)
		return acceptance{appended: ev.appended}
	case c.down.Load() || len(c.queue)+n >= cap(c.queue): // and nobody but the loop fills it
		return acceptance{err: ErrBrokerUnavailable}
	}
	return acceptance{}
}

// isDown reports whether the last event could not be published.
func (c *cluster) isDown() bool {
	if c.journal != nil {
		return c.journal.down.Load()
	}
	return c.down.Load()
}

// publish is the goroutine that hands messages to the broker. It ends with the
// hub, behind what is queued then.
func (c *cluster) publish() {
	var buf []byte
	for {
		var out outgoing
		select {
		case out = <-c.queue:
		case <-c.done:
			select {
			case out = <-c.queue:
			default:
				c.call(brokerName(nodesTopic), c.heartbeat(0).append(buf[:0])) // good-bye
				return
			}
		}
		buf = out.append(buf[:0])
		wasDown := c.down.Load()
		if c.call(out.topic, buf) || out.kind != brokeredEvent {
			continue
		}
		c.hub.shared.brokerLost.Add(1)
		if !wasDown {
			// It may be the message, too large for the engine, and not the engine.
			c.call(brokerName(nodesTopic), c.heartbeat(c.hub.ClientCount()).append(buf[:0]))
		}
	}
}

// call publishes one message and reports whether that worked.
func (c *cluster) call(topic string, msg []byte) bool {
	ctx, cancel := context.WithTimeout(c.ctx, brokerTimeout)
	defer cancel()
	if err := c.broker.Publish(ctx, topic, msg); err != nil {
		c.failed(err)
		return false
	}
	c.down.Store(false)
	return true
}

// tick tells the other nodes of this one, and forgets what has become old. It is
// a goroutine that ends with the hub.
func (c *cluster) tick() {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		out := outgoing{brokerName(nodesTopic), c.heartbeat(c.hub.ClientCount())}
		select {
		case c.queue <- out:
		default: // a later one will do
		}
		select {
		case <-ticker.C:
			c.forget(time.Now())
		case <-c.done:
			return
		}
	}
}

func (c *cluster) heartbeat(clients int) brokered {
	return brokered{kind: brokeredHeartbeat, node: c.node, clients: clients}
}

// forget drops nodes that are silent and topics that have had no client for
// a while. The goroutine tick alone calls it.
func (c *cluster) forget(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, n := range c.nodes {
		if now.Sub(n.heard) > nodeMemory {
			delete(c.nodes, id)
		}
	}
	var idle []string
	for topic, in := range c.interests {
		if in.clients == 0 && now.Sub(in.idleSince) > topicLinger && in.isConfirmed() {
			in.ending, in.confirmed = true, make(chan struct{})
			idle = append(idle, topic)
		}
	}
	if len(idle) == 0 {
		return
	}
	c.mu.Unlock()
	for _, topic := range idle {
		if err := c.broker.Unsubscribe(brokerName(topic)); err != nil {
			c.hub.log.warn(logBroker, "broker didn't unsubscribe", "err", err)
		}
	}
	c.mu.Lock()
	for _, topic := range idle {
		for _, n := range c.nodes {
			delete(n.seqs, topic)
		}
		in := c.interests[topic]
		if in.ending = false; in.clients > 0 { // somebody has come meanwhile
			c.own.Go(func() { c.subscribe(topic, in) })
		} else {
			delete(c.interests, topic)
		}
	}
}

func (in *interest) isConfirmed() bool {
	select {
	case <-in.confirmed:
		return true
	default:
		return false
	}
}

// want notes that one more client has each of the topics, and returns what is
// closed when their events flow from every node.
func (c *cluster) want(topics ...string) (confirmed []<-chan struct{}) {
	if c.journal != nil { // which has all of them
		return []<-chan struct{}{c.journal.current}
	}
	return c.watch(topics...)
}

// watch is want for topics that don't come by a journal.
func (c *cluster) watch(topics ...string) (confirmed []<-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, topic := range topics {
		in := c.interests[topic]
		if in == nil {
			in = &interest{confirmed: make(chan struct{})}
			c.interests[topic] = in
			c.own.Go(func() { c.subscribe(topic, in) })
		}
		in.clients++
		confirmed = append(confirmed, in.confirmed)
	}
	return confirmed
}

// unwant notes that one client less has each of the topics.
func (c *cluster) unwant(topics ...string) {
	if c.journal != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, topic := range topics {
		in := c.interests[topic]
		if in.clients--; in.clients == 0 {
			in.idleSince = time.Now()
		}
	}
}

// subscribe tries until the broker has subscribed to a topic. It is the body of
// a goroutine that ends then, or with the hub.
func (c *cluster) subscribe(topic string, in *interest) {
	select {
	case c.calling <- struct{}{}:
		defer func() { <-c.calling }()
	case <-c.done:
		return
	}
	for {
		ctx, cancel := context.WithTimeout(c.ctx, brokerTimeout)
		err := c.broker.Subscribe(ctx, brokerName(topic))
		cancel()
		if err == nil {
			c.mu.Lock()
			close(in.confirmed)
			c.mu.Unlock()
			return
		}
		c.hub.log.error(logBroker, "broker didn't subscribe", "err", err)
		select {
		case <-time.After(brokerRetry):
		case <-c.done:
			return
		}
	}
}

// Deliver takes what the broker brings; see [BrokerHandler].
func (c *cluster) Deliver(name string, msg []byte) {
	m, err := parseBrokered(msg)
	if err != nil {
		c.hub.log.warn(logBroker, "broker brought what no hub has sent", "err", err, "bytes", len(msg))
		return
	}
	if m.node == c.node {
		return // an echo
	}
	topic, ok := brokerTopicOf(name)
	if !ok {
		return
	}
	fresh, missed, back := c.note(topic, &m)
	if back {
		c.gap("", "another node is back that was cut off")
	} else if missed {
		c.gap(topic, "messages of another node to a topic are missing")
	}
	if !fresh || m.kind != brokeredEvent {
		return
	}
	ev := newEvent(topic, m.event)
	ev.arrived = true
	c.pass(ev)
}

// note looks at where a message stands among its node's, and reports whether it
// is new, whether some before it are missing, and whether the node was cut off
// for so long that some of any topic may be.
func (c *cluster) note(topic string, m *brokered) (fresh, missed, back bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[m.node]
	if n == nil {
		n = &node{seqs: make(map[string]uint64)}
		c.nodes[m.node] = n
	}
	back = !n.heard.IsZero() && time.Since(n.heard) > nodeTimeout
	n.heard = time.Now()
	if m.kind == brokeredHeartbeat {
		n.clients = m.clients
		return true, false, back
	}
	if c.interests[topic] == nil {
		return false, false, back
	}
	last := n.seqs[topic]
	if m.seq <= last {
		return false, false, back // a duplicate
	}
	n.seqs[topic] = m.seq
	return true, last != 0 && m.before > last, back
}

// Gap takes the broker's word that messages may be missing; see
// [BrokerHandler].
func (c *cluster) Gap(err error) { c.gap("", err.Error()) }

// gap makes clients that come back with an id from before get a reset. A gap in
// the empty topic concerns them all.
func (c *cluster) gap(topic, why string) {
	if c.journal != nil { // no event comes this way
		return
	}
	c.hub.shared.gaps.Add(1)
	c.hub.log.warn(logBroker, "events of other nodes may be missing", "topic", clip(topic), "why", why)
	c.pass(newGap(topic))
}

func newGap(topic string) *event { return &event{topic: topic, arrived: true, notice: gapNotice} }

// An arrival is what comes to the loop from a broker. There, arrive notes what
// the hub has to know of it, and appends what is for clients.
type arrival interface {
	arrive(h *Hub, batch []entry) []entry
}

func (ev *event) arrive(_ *Hub, batch []entry) []entry { return append(batch, entry{event: ev}) }

// pass gives the loop what has come.
func (c *cluster) pass(a arrival) {
	select {
	case c.in <- a:
	case <-c.done:
	}
}

// clients returns how many clients other nodes have.
func (c *cluster) clients() (total int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if time.Since(n.heard) <= nodeTimeout {
			total += n.clients
		}
	}
	return total
}

// A brokered is what nodes send each other.
type brokered struct {
	kind    brokeredKind
	node    nodeID
	seq     uint64 // its place among all that its node has sent; not of heartbeats
	before  uint64 // that of the one before to the same topic; zero: there is none, or it is forgotten
	clients int    // of a heartbeat: how many the node has
	event   Event
}

type brokeredKind byte

const (
	brokeredEvent     brokeredKind = 'e'
	brokeredHeartbeat brokeredKind = 'h'
)

// brokeredVersion is the first byte. A node drops what has another.
const brokeredVersion = 1

// append appends m as it goes through the broker: version, kind and node, then
// what the kind has, numbers as varints and each text behind its length.
func (m brokered) append(b []byte) []byte {
	b = append(b, brokeredVersion, byte(m.kind))
	b = append(b, m.node[:]...)
	if m.kind == brokeredHeartbeat {
		return binary.AppendUvarint(b, uint64(m.clients))
	}
	b = binary.AppendUvarint(b, m.seq)
	b = binary.AppendUvarint(b, m.before)
	return append(appendHead(b, &m.event), m.event.Data...)
}

// appendHead appends an event but for its data.
func appendHead(b []byte, e *Event) []byte {
	binaryData := byte(0)
	if e.Binary {
		binaryData = 1
	}
	b = append(b, binaryData)
	for _, text := range []string{e.Name, e.Key, e.Except} {
		b = appendText(b, text)
	}
	return b
}

func appendText[T string | []byte](b []byte, text T) []byte {
	b = binary.AppendUvarint(b, uint64(len(text)))
	return append(b, text...)
}

var errBrokered = errors.New("realtime: not a message between hubs of this version")

// parseBrokered is the reverse of append. The event's data is part of b.
func parseBrokered(b []byte) (m brokered, err error) {
	p := parser{b: b}
	switch m.kind = p.begin(&m.node); m.kind {
	case brokeredHeartbeat:
		m.clients = int(min(p.number(), math.MaxInt32))
		return m, p.err
	case brokeredEvent:
		m.seq, m.before = p.number(), p.number()
		m.event = p.head()
		if m.event.Data = p.b; p.err == nil {
			p.err = m.event.check()
		}
		return m, p.err
	}
	return m, errBrokered
}

// A parser takes apart what a node has sent. After an error it returns zero
// values.
type parser struct {
	b   []byte // what is left
	err error
}

// begin takes what all messages and records begin with.
func (p *parser) begin(node *nodeID) (kind brokeredKind) {
	if len(p.b) < 2+len(node) || p.b[0] != brokeredVersion {
		p.fail()
		return 0
	}
	kind = brokeredKind(p.b[1])
	p.b = p.b[2+copy(node[:], p.b[2:]):]
	return kind
}

func (p *parser) fail() { p.b, p.err = nil, errBrokered }

func (p *parser) number() (n uint64) {
	n, size := binary.Uvarint(p.b)
	if size <= 0 {
		p.fail()
		return 0
	}
	p.b = p.b[size:]
	return n
}

func (p *parser) text() (text []byte) {
	n := p.number()
	if n > uint64(len(p.b)) {
		p.fail()
		return nil
	}
	text, p.b = p.b[:n:n], p.b[n:]
	return text
}

// head takes an event but for its data.
func (p *parser) head() (e Event) {
	if len(p.b) == 0 {
		p.fail()
		return e
	}
	e.Binary = p.b[0] == 1
	p.b = p.b[1:]
	e.Name, e.Key, e.Except = string(p.text()), string(p.text()), string(p.text())
	return e
}
