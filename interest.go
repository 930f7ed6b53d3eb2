package realtime

import (
	"context"
	"slices"
	"time"
)

const (
	brokerRetry    = 500 * time.Millisecond // between two tries to subscribe
	maxSubscribing = 64                     // calls of Subscribe at a time
	topicLinger    = 10 * time.Second       // how long a topic without clients stays subscribed
)

// maxLingering is the most topics without clients that stay subscribed: a page may join
// ever new ones, and leave them. A variable for tests.
var maxLingering = 100_000

// An interest is this node's subscription to a topic.
type interest struct {
	clients   int           // of this node, with the topic; one more if it has values
	idleSince time.Time     // when clients became zero
	since     time.Time     // when Subscribe succeeded; zero: it hasn't
	confirmed chan struct{} // closed when Subscribe has succeeded
	from      uint64        // the position behind which this node has all events of the topic; zero: to be set by the loop
}

// watch notes that one more client has each of the topics; see order.want.
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

// unwatch is the reverse of watch.
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

// subscribe is the body of a goroutine that calls Subscribe until it succeeds, or no
// client has the topic any more. It ends then, or with the hub.
func (p *peers) subscribe(topic string, in *interest) {
	for !p.trySubscribe(topic, in) {
	}
}

// trySubscribe calls Subscribe when it is its turn. It reports whether that was the
// last try.
func (p *peers) trySubscribe(topic string, in *interest) (last bool) {
	select {
	case p.calling <- struct{}{}:
		defer func() { <-p.calling }()
	case <-p.done:
		return true
	}
	if p.giveUp(topic, in) {
		return true
	}
	ctx, cancel := context.WithTimeout(p.ctx, brokerTimeout)
	err := p.broker.Subscribe(ctx, brokerName(topic))
	cancel()
	if err != nil {
		p.subscribing.failed(err)
		select {
		case <-time.After(brokerRetry):
			return false
		case <-p.done:
			return true
		}
	}
	p.subscribing.over()
	p.mu.Lock()
	in.since, in.from = time.Now(), 0
	p.mu.Unlock()
	if topic == nodesTopic {
		p.hearAgain()
	}
	if p.begun != nil && topic != nodesTopic {
		p.begun(topic)
	}
	close(in.confirmed)
	return true
}

// giveUp ends an interest that isn't confirmed if no client has it any more. It reports
// whether it did.
func (p *peers) giveUp(topic string, in *interest) bool {
	p.mu.Lock()
	idle := in.clients == 0
	p.mu.Unlock()
	if !idle {
		return false
	}
	p.unsubscribe(topic) // an earlier try may have reached the engine
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.endLocked(topic, in)
}

func (p *peers) unsubscribe(topic string) {
	if err := p.broker.Unsubscribe(brokerName(topic)); err != nil {
		p.shared.log.warn(logBroker, "broker didn't unsubscribe", "err", err)
	}
}

// endLocked ends an interest in a topic that is not subscribed any more, unless a client
// has it. It reports whether it did.
func (p *peers) endLocked(topic string, in *interest) bool {
	for _, n := range p.nodes {
		delete(n.seqs, topic)
		delete(n.suspects, topic)
	}
	if in.clients > 0 {
		return false
	}
	delete(p.interests, topic)
	delete(p.byHash, hashTopic(topic))
	return true
}

// idleLocked marks the confirmed interests that are to end: those that no client has
// had for linger, and the oldest of too many. It returns their topics.
func (p *peers) idleLocked(now time.Time, linger time.Duration) (idle []string) {
	var all []string
	for topic, in := range p.interests {
		if in.clients == 0 && isClosed(in.confirmed) {
			all = append(all, topic)
		}
	}
	surplus := len(all) - maxLingering
	if surplus > 0 {
		slices.SortFunc(all, func(a, b string) int { return p.interests[a].idleSince.Compare(p.interests[b].idleSince) })
	}
	for i, topic := range all {
		if in := p.interests[topic]; i < surplus || now.Sub(in.idleSince) > linger {
			in.confirmed, in.since, in.from = make(chan struct{}), time.Time{}, 0
			idle = append(idle, topic)
		}
	}
	return idle
}

// topics returns the topics that this node is subscribed to, or is about to be.
func (p *peers) topics() (all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for topic := range p.interests {
		if topic != nodesTopic {
			all = append(all, topic)
		}
	}
	return all
}

// has reports whether this node is subscribed to a topic, or is about to be.
func (p *peers) has(topic string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.interests[topic] != nil
}
