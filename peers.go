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
	brokerTimeout     = 5 * time.Second        // for one call of the broker
	brokerQueue       = 1024                   // messages that may wait for it
	brokerRetry       = 500 * time.Millisecond // between two tries to subscribe
	maxSubscribing    = 64                     // calls of Subscribe at a time
	topicLinger       = 10 * time.Second       // how long a topic without clients stays subscribed
	heartbeatInterval = 2 * time.Second
	nodeTimeout       = 7 * time.Second // without a heartbeat, after which a node is gone
	nodeMemory        = time.Hour       // and how long it is still known if it comes back
)

// peers is what a node has to do with the others through its Broker: it tells
// them that it is here, knows which of them are, publishes what it is given and
// subscribes to topics for as long as its clients have them.
type peers struct {
	// Set at construction, never changed.
	shared  *shared
	broker  Broker
	node    nodeID
	queue   chan outgoing   // what the broker is to publish; filled by the loop and tick
	in      chan arrival    // what came; taken by the loop, until done is closed
	done    chan struct{}   // closed when the loop has ended
	ctx     context.Context // of calls to the broker: ends with done, or some time later
	cancel  context.CancelFunc
	calling chan struct{}           // has a place for each call of Subscribe that may run
	lost    func(topic, why string) // is told of lost events, of any topic if it is empty; nil: there are none

	ledger  ledger
	own     sync.WaitGroup
	down    atomic.Bool // the last message could not be published
	waiting atomic.Bool // the loop waits until the queue is shorter

	publishing  outage
	subscribing outage

	mu        sync.Mutex // guards the fields below
	interests map[string]*interest
	byHash    map[uint64]string // the topics of interests
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
	since     time.Time     // when the broker had subscribed; zero: it hasn't
	confirmed chan struct{} // closed when the broker has subscribed
}

// A node is what this one knows of another.
type node struct {
	heard   time.Time
	clients int
	tally
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

// start starts the broker, for which h takes what comes, and the goroutines that
// close waits for.
func (p *peers) start(h BrokerHandler) {
	if err := p.broker.Start(h); err != nil {
		p.down.Store(true)
		p.publishing.failed(err)
	}
	p.watch(nodesTopic)
	p.own.Go(p.publish)
	p.own.Go(p.tick)
}

// close ends all that runs. What was queued goes out first, for brokerTimeout at
// the longest. The loop has ended.
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

// publish is the goroutine that hands messages to the broker. It ends with the
// hub, behind what is queued then.
func (p *peers) publish() {
	var buf []byte
	for {
		var out outgoing
		select {
		case out = <-p.queue:
		case <-p.done:
			select {
			case out = <-p.queue:
			default:
				for _, beat := range p.ledger.close(p.node, 0, true, time.Now()) { // good-bye
					p.call(brokerName(nodesTopic), beat.append(buf[:0]))
				}
				return
			}
		}
		buf = out.append(buf[:0])
		if len(p.queue) <= brokerQueue/4 {
			p.wakeLoop()
		}
		if !p.call(out.topic, buf) && out.kind == brokeredEvent {
			p.shared.brokerLost.Add(1)
		}
	}
}

// call publishes one message and reports whether that worked.
func (p *peers) call(topic string, msg []byte) bool {
	ctx, cancel := context.WithTimeout(p.ctx, brokerTimeout)
	defer cancel()
	err := p.broker.Publish(ctx, topic, msg)
	if errors.Is(err, ErrEventTooLarge) { // which says nothing of the engine
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

// limit returns how many bytes a message may have; zero: it isn't known.
func (p *peers) limit() int {
	if b, ok := p.broker.(interface{ MaxMessageBytes() int }); ok {
		return b.MaxMessageBytes()
	}
	return 0
}

// tooLarge counts an event that other nodes don't get for its size.
func (p *peers) tooLarge(bytes int, err error) {
	p.shared.brokerLost.Add(1)
	p.shared.log.error(logBroker, "an event is too large for the broker: other nodes don't get it", "bytes", bytes, "err", err)
}

// isBehind reports whether the loop should accept no more events until wakeLoop
// wakes it: the queue is half full, and the broker works. The other half is for
// what one round of the loop still accepts, and for heartbeats.
func (p *peers) isBehind() bool {
	behind := func() bool { return len(p.queue) >= brokerQueue/2 && !p.down.Load() }
	if !behind() {
		return false
	}
	p.waiting.Store(true)
	return behind() // or the queue was emptied before it could be seen that the loop waits
}

// wakeLoop has the loop look again whether it has to wait.
func (p *peers) wakeLoop() {
	if p.waiting.CompareAndSwap(true, false) {
		p.pass(nil)
	}
}

// tick tells the other nodes of this one, and forgets what has become old. It is
// a goroutine that ends with the hub.
func (p *peers) tick() {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		for _, beat := range p.ledger.close(p.node, p.shared.members.Load(), false, time.Now()) {
			select {
			case p.queue <- outgoing{brokerName(nodesTopic), beat}:
			default: // which others notice by its number
			}
		}
		select {
		case <-ticker.C:
			p.forget(time.Now())
		case <-p.done:
			return
		}
	}
}

// forget notices nodes that have become silent, and drops those that are for long
// and topics that have had no client for a while. The goroutine tick alone calls
// it.
func (p *peers) forget(now time.Time) {
	if p.forgetNodes(now) && p.lost != nil {
		p.lost("", "another node has gone without a good-bye")
	}
	idle := p.endInterests(now)
	for _, topic := range idle {
		if err := p.broker.Unsubscribe(brokerName(topic)); err != nil {
			p.shared.log.warn(logBroker, "broker didn't unsubscribe", "err", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, topic := range idle {
		for _, n := range p.nodes {
			delete(n.seqs, topic)
			delete(n.suspects, topic)
		}
		in := p.interests[topic]
		if in.ending = false; in.clients > 0 { // somebody has come meanwhile
			p.own.Go(func() { p.subscribe(topic, in) })
		} else {
			delete(p.interests, topic)
			delete(p.byHash, hashTopic(topic))
		}
	}
}

// forgetNodes reports whether a node has gone without a good-bye.
func (p *peers) forgetNodes(now time.Time) (died bool) {
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
	return died
}

// endInterests marks the interests that are to end and returns their topics.
func (p *peers) endInterests(now time.Time) (idle []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for topic, in := range p.interests {
		if in.clients == 0 && now.Sub(in.idleSince) > topicLinger && isClosed(in.confirmed) {
			in.ending, in.confirmed, in.since = true, make(chan struct{}), time.Time{}
			idle = append(idle, topic)
		}
	}
	return idle
}

// watch notes that one more client has each of the topics, and returns what is
// closed when their events arrive from every node.
func (p *peers) watch(topics ...string) (confirmed []<-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, topic := range topics {
		in := p.interests[topic]
		if in == nil {
			in = &interest{confirmed: make(chan struct{})}
			p.interests[topic], p.byHash[hashTopic(topic)] = in, topic
			p.own.Go(func() { p.subscribe(topic, in) })
		}
		in.clients++
		confirmed = append(confirmed, in.confirmed)
	}
	return confirmed
}

// unwatch notes that one client less has each of the topics.
func (p *peers) unwatch(topics []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, topic := range topics {
		in := p.interests[topic]
		if in.clients--; in.clients == 0 {
			in.idleSince = time.Now()
		}
	}
}

// subscribe tries until the broker has subscribed to a topic. It is the body of
// a goroutine that ends then, or with the hub.
func (p *peers) subscribe(topic string, in *interest) {
	select {
	case p.calling <- struct{}{}:
		defer func() { <-p.calling }()
	case <-p.done:
		return
	}
	for {
		ctx, cancel := context.WithTimeout(p.ctx, brokerTimeout)
		err := p.broker.Subscribe(ctx, brokerName(topic))
		cancel()
		if err == nil {
			p.subscribing.over()
			p.mu.Lock()
			in.since = time.Now()
			close(in.confirmed)
			p.mu.Unlock()
			return
		}
		p.subscribing.failed(err)
		select {
		case <-time.After(brokerRetry):
		case <-p.done:
			return
		}
	}
}

// parse returns what the broker has brought, unless it is of no use.
func (p *peers) parse(name string, msg []byte) (topic string, m brokered, ok bool) {
	m, err := parseBrokered(msg)
	if err != nil {
		p.shared.log.warn(logBroker, "broker brought what no hub has sent", "err", err, "bytes", len(msg))
		return "", m, false
	}
	topic, ok = brokerTopicOf(name)
	return topic, m, ok && m.node != p.node // which would be an echo
}

// hearLocked notes that a message of another node has come. It reports whether
// that node was cut off before.
func (p *peers) hearLocked(m *brokered) (n *node, back bool) {
	n = p.nodes[m.node]
	if n == nil {
		n = &node{tally: newTally()}
		p.nodes[m.node] = n
	}
	if back = !n.heard.IsZero() && time.Since(n.heard) > nodeTimeout; back {
		seqs := n.seqs
		n.tally = newTally()
		n.seqs = seqs
	}
	n.heard = time.Now()
	if m.kind == brokeredHeartbeat {
		n.clients = m.clients
	}
	return n, back
}

// pass gives the loop what has come.
func (p *peers) pass(a arrival) {
	select {
	case p.in <- a:
	case <-p.done:
	}
}

// clients returns how many clients other nodes have.
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
