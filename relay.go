package realtime

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"
)

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
