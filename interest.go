package realtime

import (
	"context"
	"time"
)

const (
	brokerRetry    = 500 * time.Millisecond // between two tries to subscribe
	maxSubscribing = 64                     // calls of Subscribe at a time
	topicLinger    = 10 * time.Second       // how long a topic without clients stays subscribed
)

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

// subscribe is the body of a goroutine that calls Subscribe until it succeeds.
// It ends then, or with the hub.
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
			in.since, in.from = time.Now(), 0
			p.mu.Unlock()
			if topic == nodesTopic {
				p.hearAgain()
			}
			if p.begun != nil && topic != nodesTopic {
				p.begun(topic)
			}
			close(in.confirmed)
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
