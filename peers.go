package realtime

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	brokerTimeout     = 5 * time.Second // for one call of the broker
	brokerQueue       = 1024            // messages that may wait for the broker
	heartbeatInterval = 2 * time.Second
	nodeTimeout       = 7 * time.Second // without a message, until a node counts as gone
	nodeMemory        = time.Hour       // without a message, until a node is forgotten
)

// peers connects a node to the others through its Broker. It sends heartbeats,
// notes those of other nodes, publishes queued messages, and subscribes to the
// topics of its clients.
type peers struct {
	// Set at construction, never changed.
	shared  *shared
	broker  Broker
	node    nodeID
	queue   chan outgoing   // messages to publish; the loop and tick fill it, and tick closes it
	in      chan arrival    // arrivals; the loop receives them until done is closed
	done    chan struct{}   // closed when the loop has ended
	ctx     context.Context // of calls to the broker; ends brokerTimeout after done at the latest
	cancel  context.CancelFunc
	calling chan struct{}           // holds a token for each call of Subscribe that runs
	trail   func() *trail           // of this node; nil: it has no log
	lost    func(topic, why string) // reports lost events of a topic, or of any if it is empty; nil in a journal
	beat    arrival                 // is called at each heartbeat
	begun   func(topic string)      // reports that all events of a user's topic arrive from now on; nil in a journal

	ledger  ledger
	own     sync.WaitGroup
	down    atomic.Bool // the last call of Start or Publish failed
	waiting atomic.Bool // the loop waits until the queue is shorter

	publishing  outage
	subscribing outage

	mu        sync.Mutex // guards the fields below
	interests map[string]*interest
	byHash    map[uint64]string // the topics in interests, by hash
	nodes     map[nodeID]*node
	hears     time.Time // since when this node hears the others, if they are there; zero: not yet
	ahead     int64     // by how many microseconds another node's clock is ahead of this one's
}

type nodeID [16]byte

// An outgoing is a message on its way to the broker.
type outgoing struct {
	topic  string
	result chan error // gets whether the engine has it; has room for that; nil: nobody waits
	brokered
}

// A node is what this node knows of another.
type node struct {
	heard     time.Time         // when its last message arrived
	clients   int               // as its last heartbeat says
	beat      uint64            // number of that; zero: none has arrived
	left      bool              // it has said good-bye, or counts as gone
	goodbye   bool              // it has said good-bye
	seqs      map[string]uint64 // by topic, the last event that arrived or is known to be lost
	suspects  map[string]uint64 // by topic, an event that should have arrived
	suspected time.Time         // when the oldest suspect was noted
}

func newPeers(s *shared, broker Broker) *peers {
	p := &peers{
		shared:    s,
		broker:    broker,
		queue:     make(chan outgoing, brokerQueue),
		in:        make(chan arrival, 256),
		done:      make(chan struct{}),
		calling:   make(chan struct{}, maxSubscribing),
		interests: make(map[string]*interest),
		byHash:    make(map[uint64]string),
		nodes:     make(map[nodeID]*node),
	}
	rand.Read(p.node[:]) // never fails
	p.publishing = outage{log: &s.log, what: "broker connection"}
	p.subscribing = outage{log: &s.log, what: "broker subscription"}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// start starts the broker with h, and the goroutines that close waits for.
func (p *peers) start(h BrokerHandler) {
	if err := p.broker.Start(h); err != nil {
		p.down.Store(true)
		p.publishing.failed(err)
	}
	p.watch(nodesTopic)
	p.own.Go(p.publish)
	p.own.Go(p.tick)
}

// close publishes the queued messages, for brokerTimeout at most. Then it ends
// the goroutines and the broker. The loop has ended before.
func (p *peers) close() {
	close(p.done)
	patience := time.AfterFunc(brokerTimeout, p.cancel)
	p.own.Wait()
	patience.Stop()
	p.cancel()
	if err := p.broker.Close(); err != nil {
		p.shared.log.error(logBroker, "broker didn't close", "err", err)
	}
}

// publish is the body of the goroutine that hands messages to the broker. It
// ends once the queue is closed and empty.
func (p *peers) publish() {
	var buf []byte
	for out := range p.queue {
		buf = out.append(buf[:0])
		if len(p.queue) <= brokerQueue/4 {
			p.wakeLoop()
		}
		var err error
		if !p.call(out.topic, buf) {
			err = ErrBrokerUnavailable
			if out.kind == brokeredEvent {
				p.shared.brokerLost.Add(1)
			}
		}
		if out.result != nil {
			out.result <- err
		}
	}
	for _, beat := range p.ledger.close(p.node, 0, true, time.Now()) { // good-bye
		p.call(nodesTopic, beat.append(buf[:0]))
	}
}

// send queues a message of this node. It reports whether there is room. Otherwise the
// message is lost, as in an outage.
func (p *peers) send(msg outgoing) bool {
	msg.node = p.node
	select {
	case p.queue <- msg:
		return true
	default:
		return false
	}
}

// call publishes a message. It reports false if an outage lost the message.
func (p *peers) call(topic string, msg []byte) bool {
	ctx, cancel := context.WithTimeout(p.ctx, brokerTimeout)
	defer cancel()
	err := p.broker.Publish(ctx, brokerName(topic), msg)
	if errors.Is(err, ErrEventTooLarge) { // it says nothing about the engine
		p.tooLarge(len(msg), err)
		return true
	}
	p.down.Store(err != nil)
	if err != nil {
		p.publishing.failed(err)
		p.wakeLoop()
	} else {
		p.publishing.over()
	}
	return err == nil
}

// limit returns the most bytes that a message may have; zero: it isn't known.
func (p *peers) limit() int {
	if b, ok := p.broker.(interface{ MaxMessageBytes() int }); ok {
		return b.MaxMessageBytes()
	}
	return 0
}

// maxBytes returns how many bytes of values go into one message or record.
func (p *peers) maxBytes() int {
	if limit := p.limit(); limit > 0 {
		return min(maxRecordBytes, limit-512)
	}
	return maxRecordBytes
}

// tooLarge counts and logs an event that the engine never accepts.
func (p *peers) tooLarge(bytes int, err error) {
	p.shared.brokerLost.Add(1)
	p.shared.log.error(logBroker, "an event is too large for the broker: other nodes don't get it", "bytes", bytes, "err", err)
}

// isBehind reports whether the queue is half full though the broker works. Then
// the loop accepts no more events until wakeLoop wakes it. The other half is
// for events of the same round of the loop, and for heartbeats.
func (p *peers) isBehind() bool {
	behind := func() bool { return len(p.queue) >= brokerQueue/2 && !p.down.Load() }
	if !behind() {
		return false
	}
	p.waiting.Store(true)
	return behind() // publish may have emptied the queue before waiting was set
}

// wakeLoop makes a loop that waits call isFull again.
func (p *peers) wakeLoop() {
	if p.waiting.CompareAndSwap(true, false) {
		p.pass(func(time.Time, *batch) {})
	}
}

// tick is the body of the goroutine that sends heartbeats and calls forget. It
// ends with the hub, and publish after it.
func (p *peers) tick() {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	defer close(p.queue) // the loop has ended before
	for last := time.Now(); ; {
		for _, beat := range p.ledger.close(p.node, p.shared.members.Load(), false, time.Now()) {
			if beat.stamp = p.clock(time.Now()); p.trail != nil {
				beat.trail = *p.trail()
			}
			p.send(outgoing{topic: nodesTopic, brokered: beat}) // other nodes notice a lost one by its number
		}
		select {
		case <-ticker.C:
			p.forget(time.Now())
			now := time.Now()
			if now.Sub(last) > 2*heartbeatInterval { // the process has stood still: heartbeats wait to be read
				p.hearAgain()
			}
			last = now
			select {
			case p.in <- p.beat:
			default: // heartbeats don't wait for a loop that is behind
			}
		case <-p.done:
			return
		}
	}
}

// forget reports nodes that are gone, and drops old nodes and topics without
// clients. Only tick calls it.
func (p *peers) forget(now time.Time) {
	died, idle := p.look(now)
	if died && p.lost != nil {
		p.lost("", "nothing arrives from another node any more")
	}
	for _, topic := range idle {
		p.unsubscribe(topic)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, topic := range idle {
		if in := p.interests[topic]; !p.endLocked(topic, in) { // a client has subscribed since
			p.own.Go(func() { p.subscribe(topic, in) })
		}
	}
}

// look drops old nodes and reports whether one is gone without a good-bye. It
// marks the interests that are to end and returns their topics.
func (p *peers) look(now time.Time) (died bool, idle []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, n := range p.nodes {
		if now.Sub(n.heard) > nodeTimeout && !n.left {
			n.left, died = true, true
		}
		if now.Sub(n.heard) > nodeMemory {
			delete(p.nodes, id)
		}
	}
	linger := topicLinger
	if p.shared.history.keeps() { // clients may resume until then
		linger = max(linger, p.shared.history.Age)
	}
	return died, p.idleLocked(now, linger)
}

// parse decodes a message. It reports false for faulty messages and echoes.
func (p *peers) parse(name string, msg []byte) (topic string, m brokered, ok bool) {
	m, err := parseBrokered(msg)
	if err != nil {
		p.shared.log.warn(logBroker, "broker delivered a message that no hub sent", "err", err, "bytes", len(msg))
		return "", m, false
	}
	topic, ok = brokerTopicOf(name)
	return topic, m, ok && m.node != p.node // not an echo
}

// hearLocked notes a message of a node. It reports whether the node was gone.
func (p *peers) hearLocked(m *brokered) (n *node, back bool) {
	n = p.nodes[m.node]
	if n == nil {
		n = &node{seqs: make(map[string]uint64), suspects: make(map[string]uint64)}
		p.nodes[m.node] = n
	} else if back = time.Since(n.heard) > nodeTimeout; back {
		n.beat, n.left, n.goodbye = 0, false, false
		clear(n.suspects)
	}
	n.heard = time.Now()
	p.ahead = max(p.ahead, int64(m.stamp)-n.heard.UnixMicro())
	if m.kind == brokeredHeartbeat {
		n.clients = m.clients
	}
	return n, back
}

// clock returns the time for stamps, in microseconds, by the clock of the node that is
// the furthest ahead, as far as this one has heard. By this node's own, an event could be
// older than one of long ago that the node doesn't know.
func (p *peers) clock(now time.Time) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(now.UnixMicro() + p.ahead)
}

// pass hands an arrival to the loop. It blocks while the loop is behind.
func (p *peers) pass(a arrival) {
	select {
	case p.in <- a:
	case <-p.done:
	}
}

// hearAgain notes that heartbeats arrive from now on, and perhaps not before.
func (p *peers) hearAgain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if in := p.interests[nodesTopic]; in != nil && !in.since.IsZero() {
		p.hears = time.Now()
	}
}

// isGone reports whether a node, whose members are known since a time, is gone and
// its clients have had LeaveAfter to come to another one. A node that this one has
// never heard may have gone right before. One that it couldn't hear may be there.
func (p *peers) isGone(node nodeID, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[node]
	if n != nil && n.heard.After(since) {
		since = n.heard
	}
	switch {
	case node == p.node:
		return false
	case n != nil && n.goodbye:
		return time.Since(since) > p.shared.leaveAfter
	case p.hears.After(since):
		since = p.hears
	}
	return !p.hears.IsZero() && time.Since(since) > max(nodeTimeout, p.shared.leaveAfter)
}

// later has the loop call an arrival after a time.
func (p *peers) later(d time.Duration, a arrival) {
	time.AfterFunc(d, func() { p.pass(a) })
}

// clients returns the number of clients of other nodes.
func (p *peers) clients() (total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.nodes {
		if time.Since(n.heard) <= nodeTimeout {
			total += n.clients
		}
	}
	return total
}

// hasOthers reports whether another node has been heard lately.
func (p *peers) hasOthers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.nodes {
		if time.Since(n.heard) <= nodeTimeout && !n.left {
			return true
		}
	}
	return false
}
