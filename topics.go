package realtime

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxTopicBytes bounds a topic's name.
const maxTopicBytes = 1024

// checkTopic reports why topic can't be one.
func checkTopic(topic string) error {
	switch {
	case topic == "":
		return errors.New("realtime: the empty string is no topic: use PublishAll for all clients")
	case len(topic) > maxTopicBytes:
		return fmt.Errorf("realtime: topic %.50q… has %d bytes, more than %d", topic, len(topic), maxTopicBytes)
	case !utf8.ValidString(topic):
		return fmt.Errorf("realtime: topic %q is not UTF-8", topic)
	}
	return nil
}

// Subscribe adds topics to the client's: any text of at most 1024 bytes. What
// is published to them after Subscribe has returned reaches the client, each
// event once. A topic that it has already is passed over. There is nothing to
// be made or removed: a topic exists while it has clients.
//
// Where the hub keeps a [History], the client first gets the newest event of
// each Key in a topic. Within OnConnect that comes when OnConnect has returned
// nil, and a client that comes back with the id of an event it saw then gets
// what it has missed instead.
//
// Subscribe waits only for the hub to take it, and with a [Broker] up to 5 s for
// that: it returns nil when the events of all nodes are going to come, and
// [ErrBrokerUnavailable] where those of others will only come later; the client
// has the topics then. The error is [ErrClientClosed] where the client is gone or
// leaving, or tells what is wrong with a topic: then it has got none of them.
func (c *Client) Subscribe(topics ...string) error {
	for _, topic := range topics {
		if err := checkTopic(topic); err != nil {
			return err
		}
	}
	confirmed, err := c.subscribe(topics)
	if err != nil || len(confirmed) == 0 {
		return err
	}
	patience := time.NewTimer(brokerTimeout)
	defer patience.Stop()
	for _, done := range confirmed {
		select {
		case <-done:
		case <-patience.C:
			return ErrBrokerUnavailable
		case <-c.hub.stop:
			return ErrClientClosed
		}
	}
	return nil
}

// subscribe does what Subscribe does at once, and returns what is closed when
// the broker has done its part.
func (c *Client) subscribe(topics []string) (confirmed []<-chan struct{}, err error) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	if c.why() != nil {
		return nil, ErrClientClosed
	}
	var entries []entry
	var added []string
	for _, topic := range slices.Compact(slices.Sorted(slices.Values(topics))) {
		if _, has := c.findTopic(topic); !has {
			added = append(added, topic)
			entries = append(entries, entry{op: opSubscribe, sub: &subscription{client: c, name: topic}})
		}
	}
	if len(entries) == 0 {
		return nil, nil
	}
	hand := change{client: c, entries: entries}
	if c.replayed && c.hub.shared.history.keeps() {
		hand.replay = &replay{id: c.id, topics: added}
	}
	if !c.hub.hand(hand) {
		return nil, ErrClientClosed
	}
	if len(entries) < len(c.topics)/64 { // sorting would look at all of them
		for _, e := range entries {
			i, _ := c.findTopic(e.sub.name)
			c.topics = slices.Insert(c.topics, i, e.sub)
		}
	} else {
		for _, e := range entries {
			c.topics = append(c.topics, e.sub)
		}
		slices.SortFunc(c.topics, func(a, b *subscription) int { return strings.Compare(a.name, b.name) })
	}
	return c.hub.order.want(added), nil
}

// unlist takes a client that is closing out of its shard, and its topics out of
// the cluster's. It is called once.
func (c *Client) unlist() {
	c.home.inbox.put(entry{op: opLeave, client: c})
	c.tmu.Lock()
	defer c.tmu.Unlock()
	c.unlisted = true
	c.hub.order.unwant(c.topicNames())
}

// findTopic returns where a topic is among the client's, or would be, and
// reports whether it is there. Its caller holds tmu.
func (c *Client) findTopic(topic string) (i int, has bool) {
	return slices.BinarySearchFunc(c.topics, topic, func(sub *subscription, topic string) int { return strings.Compare(sub.name, topic) })
}

// Unsubscribe takes topics from the client's. Nothing that is published to them
// after Unsubscribe has returned reaches the client. It waits only for the hub
// to take it.
func (c *Client) Unsubscribe(topics ...string) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	var entries []entry
	var removed []string
	for _, topic := range topics {
		if i, has := c.findTopic(topic); has {
			entries = append(entries, entry{op: opUnsubscribe, sub: c.topics[i]})
			c.topics = slices.Delete(c.topics, i, i+1)
			removed = append(removed, topic)
		}
	}
	if len(entries) > 0 {
		c.hub.hand(change{client: c, entries: entries}) // behind what was published before
	}
	if !c.unlisted {
		c.hub.order.unwant(removed)
	}
}

// Topics returns the client's topics, sorted; also in OnDisconnect and after
// it.
func (c *Client) Topics() []string {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	return c.topicNames()
}

func (c *Client) topicNames() []string {
	names := make([]string, len(c.topics))
	for i, sub := range c.topics {
		names[i] = sub.name
	}
	return names
}

// catchUp gives a client that joins what it has to get of the past, given the
// id of the last event that it saw.
func (c *Client) catchUp(last string) {
	c.hub.order.await(last)
	c.tmu.Lock()
	defer c.tmu.Unlock()
	c.replayed = true
	if last == "" && !c.hub.shared.history.keeps() {
		return
	}
	topics := append(c.topicNames(), "")
	given := make(chan struct{})
	if c.hub.hand(change{client: c, replay: &replay{id: c.id, topics: topics, last: last, given: given}}) {
		<-given // before the outbox opens, for the past to go out first
	}
}

// Subscribers returns the clients of this node that have topic when the iteration starts.
func (h *Hub) Subscribers(topic string) iter.Seq[*Client] {
	return func(yield func(*Client) bool) {
		if h.usable() != nil {
			return
		}
		var clients []*Client
		for _, s := range h.registry.allShards() {
			noted := make(chan struct{})
			note := func(s *shard) {
				if t := s.topics[topic]; t != nil {
					for _, sub := range t.subs {
						clients = append(clients, sub.client)
					}
				}
				close(noted)
			}
			if s.inbox.put(entry{op: opNote, note: note}) {
				<-noted
			}
		}
		for _, c := range clients {
			if c.isOpen() && !yield(c) {
				return
			}
		}
	}
}
