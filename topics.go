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

const maxTopicBytes = 1024 // of a topic's name

// checkTopic reports why topic can't be one.
func checkTopic(topic string) error {
	switch {
	case topic == "":
		return errors.New("realtime: the empty string is not a topic: PublishAll publishes to all clients")
	case len(topic) > maxTopicBytes:
		return fmt.Errorf("realtime: topic %.50q… has %d bytes, more than %d", topic, len(topic), maxTopicBytes)
	case !utf8.ValidString(topic):
		return fmt.Errorf("realtime: topic %q is not UTF-8", topic)
	}
	return nil
}

// distinct returns the topics sorted, each once.
func distinct(topics []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(topics)))
}

// Subscribe adds topics to the client's. A topic is UTF-8 text of 1 to 1024
// bytes, and exists while it has clients. Each event that is published to it
// after Subscribe has returned reaches the client, once. Topics that the client
// has already are ignored.
//
// With a [History] the client first gets the topic's latest values: the newest
// event of each Key, however old, unless it is Gone. If it reconnects with an
// id, it gets instead the events since that one. In OnConnect it gets them when
// that has returned nil, and with their ids. Later it gets them without ids,
// and the events of its other topics behind them. Such a topic may be new to
// it, so the latest values from before the id come first. If some events are no
// longer kept, it gets a reset for the topic and the latest values. A topic
// that it has had since it reconnected, and has left, begins as for a new
// client. So does one with SubscribeFrom and an empty id.
//
// Subscribe waits until the hub accepts it, with a [Broker] up to 5 s longer.
// Nil means that events of all nodes will arrive. [ErrBrokerUnavailable] means
// that it is subscribed, but other nodes' events start later. Any other error
// means that no topic was added. It is [ErrClientClosed] if the client is gone
// or closing, or tells what is wrong with a topic.
func (c *Client) Subscribe(topics ...string) error { return c.subscribeWith(nil, topics) }

// SubscribeFrom is Subscribe for a client that lacks the topics' events since
// an id: an event's, one that [Hub.Position] has returned, or [Oldest]. It gets
// them, without ids, or a reset for each topic of which some are no longer
// kept. An empty id gives it the newest event of each Key, also if it has
// reconnected. With a [HistoryBroker] SubscribeFrom first waits until this node
// has the event with the id, up to 5 s.
func (c *Client) SubscribeFrom(id string, topics ...string) error {
	return c.subscribeWith(&id, topics)
}

// subscribeWith is SubscribeFrom, or Subscribe if from is nil.
func (c *Client) subscribeWith(from *string, topics []string) error {
	for _, topic := range topics {
		if err := checkTopic(topic); err != nil {
			return err
		}
	}
	if from != nil {
		c.hub.order.await(*from)
	}
	subs, confirmed, err := c.subscribe(from, topics)
	if err != nil || len(confirmed) == 0 {
		return err
	}
	patience := time.After(brokerTimeout)
	for _, done := range confirmed {
		select {
		case <-done:
		case <-patience:
			c.home.inbox.put(entry{do: func(*shard) {
				for _, sub := range subs {
					sub.early = true
				}
			}})
			return ErrBrokerUnavailable
		case <-c.hub.stop:
			return ErrClientClosed
		}
	}
	return nil
}

// subscribe is subscribeWith but for the wait: that is until confirmed is closed.
func (c *Client) subscribe(from *string, topics []string) (subs []*subscription, confirmed []<-chan struct{}, err error) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	if c.why() != nil {
		return nil, nil, ErrClientClosed
	}
	var added []string
	for _, topic := range distinct(topics) {
		if _, has := c.findTopic(topic); !has {
			added, subs = append(added, topic), append(subs, &subscription{client: c, name: topic})
		}
	}
	if len(added) == 0 {
		return nil, nil, nil
	}
	do := func(s *shard) {
		for _, sub := range subs {
			s.subscribe(sub)
		}
	}
	var r *replay
	if claims := c.claim(from, subs); c.replayed {
		if c.hub.shared.history.keeps() || from != nil {
			r = &replay{id: c.id, live: true, claims: claims}
		}
	} else if from != nil || c.late != nil {
		if c.late == nil {
			c.late = new(lateStart)
		}
		c.late.claims = append(c.late.claims, claims[len(claims)-1]) // those before it begin where the client does
	}
	confirmed = c.hub.order.want(added) // before the replay: an order may drop a topic that nobody wants
	if r != nil && !c.handReplay(do, r) || r == nil && !c.home.inbox.put(entry{do: do}) {
		c.hub.order.unwant(added)
		return nil, nil, ErrClientClosed
	}
	if len(added) < len(c.topics)/64 { // sorting would look at all of them
		for _, sub := range subs {
			i, _ := c.findTopic(sub.name)
			c.topics = slices.Insert(c.topics, i, sub)
		}
	} else {
		c.topics = append(c.topics, subs...)
		slices.SortFunc(c.topics, func(a, b *subscription) int { return strings.Compare(a.name, b.name) })
	}
	return subs, confirmed, nil
}

// A lateStart says where the topics of a client begin that it subscribes later.
// A client that came with an id lacks their events since: it may have had them
// before. The ids that it gets don't cover these events until they have been
// replayed. So the ids of a client are provisional until the sweeper has looked at
// it settleLooks times, in which it is to subscribe its topics, and during the
// replay. If it comes back with such an id, its late topics begin with a reset.
type lateStart struct {
	start  uint64              // as in a claim
	left   map[uint64]struct{} // hashes of topics that begin as for a new client: it has had them since and left, or its page says so
	claims []claim             // of SubscribeFrom in OnConnect, and of such topics
}

const maxLeft = 1000 // topics in lateStart.left

// claim returns claims for topics, behind an id if there is one. Its caller
// holds tmu.
func (c *Client) claim(from *string, subs []*subscription) []claim {
	switch {
	case from != nil:
		return []claim{{last: *from, start: fromNow, topics: subs}}
	case c.late == nil:
		return []claim{{start: fromNow, topics: subs}}
	}
	first, again := claim{start: c.late.start}, claim{start: fromNow}
	for _, sub := range subs {
		if _, had := c.late.left[hashTopic(sub.name)]; had {
			again.topics = append(again.topics, sub)
		} else {
			first.topics = append(first.topics, sub)
		}
	}
	return []claim{first, again}
}

// leave notes topics that the client leaves.
func (l *lateStart) leave(topics []string) {
	if l == nil {
		return
	}
	if len(l.left)+len(topics) > maxLeft {
		l.start, l.left = fromLost, nil
	}
	if l.left == nil {
		l.left = make(map[uint64]struct{})
	}
	for _, topic := range topics {
		l.left[hashTopic(topic)] = struct{}{}
	}
}

// handReplay is hand, for a change with a replay of late topics. If another replay
// is under way, that gets what the new one claims. It doesn't end before, because
// the caller holds tmu.
func (c *Client) handReplay(do func(s *shard), r *replay) bool {
	past := c.out.replaying()
	r.waits = past != nil
	if !c.hub.hand(change{client: c, do: do, replay: r}) {
		return false
	}
	if past != nil {
		past.late = append(past.late, r.late...)
	}
	return true
}

// unlist takes a closing client out of its shard, and takes its topics back
// from the order. It is called once.
func (c *Client) unlist() {
	c.tmu.Lock() // a Subscribe is over then, and the next one fails
	defer c.tmu.Unlock()
	c.unlisted = true
	c.hub.presence.left(c, c.topicNames())
	subs := slices.Clone(c.topics) // Unsubscribe may still change them
	c.home.inbox.put(entry{do: func(s *shard) { s.leave(c, subs) }})
	c.hub.order.unwant(c.topicNames())
}

// findTopic returns where topic is in c.topics, or would be, and reports
// whether it is there. Its caller holds tmu.
func (c *Client) findTopic(topic string) (i int, has bool) {
	return slices.BinarySearchFunc(c.topics, topic, func(sub *subscription, topic string) int { return strings.Compare(sub.name, topic) })
}

// Unsubscribe removes topics. Events that are published to them after it has
// returned don't reach the client. It waits only until the hub accepts it.
func (c *Client) Unsubscribe(topics ...string) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	var removed []string
	var subs []*subscription
	for _, topic := range distinct(topics) {
		if i, has := c.findTopic(topic); has {
			removed, subs = append(removed, topic), append(subs, c.topics[i])
		}
	}
	if len(removed) == 0 {
		return
	}
	if len(removed) < len(c.topics)/64 { // the other way would look at all of them
		for _, topic := range removed {
			i, _ := c.findTopic(topic)
			c.topics = slices.Delete(c.topics, i, i+1)
		}
	} else {
		gone := subs // both are sorted
		c.topics = slices.DeleteFunc(c.topics, func(sub *subscription) bool {
			is := len(gone) > 0 && gone[0] == sub
			if is {
				gone = gone[1:]
			}
			return is
		})
	}
	c.late.leave(removed)
	c.home.inbox.put(entry{do: func(s *shard) { // behind what was published before
		for _, sub := range subs {
			s.unsubscribe(sub)
		}
	}})
	if !c.unlisted {
		c.hub.presence.left(c, removed)
		c.hub.order.unwant(removed)
	}
}

// Topics returns the client's topics, sorted; also in and after OnDisconnect.
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

// catchUp gives a joining client the first part of its replay, given the last
// event id it saw. The replay must be in the outbox before that opens.
func (c *Client) catchUp(last string) {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	c.replayed = true
	r := &replay{id: c.id, last: last}
	if c.late != nil {
		r.claims, c.late = c.late.claims, nil
	}
	if last != "" || len(r.claims) > 0 || c.hub.shared.history.keeps() {
		if c.nextPart(r) && r.since != fromNow {
			c.late = &lateStart{start: r.since}
		}
	}
}

// outboxEmpty gives the client the next part of its replay; see outboxOwner.
func (c *Client) outboxEmpty(r *replay) bool {
	c.tmu.Lock()
	defer c.tmu.Unlock()
	return !c.unlisted && c.nextPart(r)
}

// nextPart has the loop fill the next part of r, waits until the outbox has it,
// and reports whether it has. Its caller holds tmu.
func (c *Client) nextPart(r *replay) bool {
	r.topics = append(slices.Clone(c.topics), &r.all)
	left := func(sub *subscription) bool {
		i, has := c.findTopic(sub.name)
		return sub != &r.all && (!has || c.topics[i] != sub)
	}
	for i := range r.claims {
		topics := &r.claims[i].topics
		*topics = slices.DeleteFunc(slices.Clone(*topics), left) // its shard may be reading them
	}
	for _, l := range r.late {
		l.topics = slices.DeleteFunc(l.topics, left)
	}
	if !c.hub.hand(change{client: c, replay: r}) {
		return false
	}
	r.topics = nil
	if r.lost {
		c.late = nil // the reset is for later topics as well
	}
	return true
}

// Subscribers returns this node's clients that have topic when the iteration
// starts.
func (h *Hub) Subscribers(topic string) iter.Seq[*Client] {
	return h.eachOpen(func() (clients []*Client) {
		for _, s := range h.registry.allShards() {
			noted := make(chan struct{})
			note := func(s *shard) {
				for _, sub := range s.topics[topic] {
					clients = append(clients, sub.client)
				}
				close(noted)
			}
			if s.inbox.put(entry{do: note}) {
				<-noted
			}
		}
		return clients
	})
}
