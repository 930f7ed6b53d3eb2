package realtime

import (
	"bytes"
	"encoding/binary"
	"hash/crc64"
	"math/rand/v2"
	"slices"
	"time"
)

// A survey is how a relay learns the latest values that other nodes have. It asks
// for those of a topic when its own subscription begins, and after a loss. A node
// that is sure of its values, because it has no question about the topic, answers
// for all. The others hear it, and keep quiet. Where no node is sure, as after an
// outage, each that has other values than the asker answers. If values differ,
// their stamps decide; see relay.isNewest.
//
//	question ──▶ nodes with the topic ──wait, as others may answer──▶ values
//
// A node with values of a topic stays subscribed to it, so that it has the
// newest and can answer. The loop owns a survey.
type survey struct {
	questions map[string]*question // of this node, by topic
	answers   map[answer]bool      // this node is about to give them
}

// A question is one of this node that nobody who is sure has answered yet.
type question struct {
	tries int
	from  nodeID // who answers, and is sure
	next  uint64 // the message of the answer to come
}

// An answer is to a node, about a topic.
type answer struct {
	topic string
	asker nodeID
}

const (
	maxQuestions   = 3                      // tries
	questionTime   = time.Second            // for an answer, until the next try
	questionPause  = 100 * time.Millisecond // until the next try if the broker has too much to do
	maxAnswerDelay = 200 * time.Millisecond // more than maxOnItsWay, at random
)

// valued keeps this node subscribed to a topic with values.
func (r *relay) valued(topic string, has bool) {
	if has {
		r.peers.watch(topic)
	} else {
		r.peers.unwatch([]string{topic})
	}
}

// ask asks the other nodes for the values of a topic.
func (r *relay) ask(topic string) {
	q := new(question)
	r.questions[topic] = q
	r.try(topic, q)
}

// askAgain asks for the values of a topic, or of all this node's topics if it is
// the empty one: events of any may be lost.
func (r *relay) askAgain(topic string) {
	if !r.shared.history.keeps() {
		return
	}
	topics := []string{topic}
	if topic == "" {
		topics = r.peers.topics()
	}
	for _, topic := range topics {
		r.ask(topic)
	}
}

// try sends a question, and tries again until the answer is there. It gives up
// when no node answers, or none is known.
func (r *relay) try(topic string, q *question) {
	if r.questions[topic] != q {
		return
	}
	if q.tries == maxQuestions || q.tries > 0 && !r.peers.hasOthers() {
		delete(r.questions, topic)
		return
	}
	pause := questionPause
	if len(r.peers.queue) < brokerQueue/4 { // events go first
		r.peers.send(outgoing{topic: topic, brokered: brokered{kind: brokeredQuestion, digest: r.past.digest(topic)}})
		q.tries++
		q.next = 0
		pause = questionTime
	}
	r.peers.later(pause+rand.N(pause), func(time.Time, *batch) { r.try(topic, q) })
}

// asked accepts the question of a node. The answer waits until what was
// published before the question has arrived.
func (r *relay) asked(topic string, m *brokered) {
	if !r.shared.history.keeps() {
		return // it knows no values, and that isn't sure
	}
	a := answer{topic, m.node}
	r.answers[a] = true
	r.peers.later(maxOnItsWay+rand.N(maxAnswerDelay), func(now time.Time, _ *batch) {
		r.tellMembers(topic, now)
		if !r.answers[a] { // another node has answered
			return
		}
		delete(r.answers, a)
		kept, sure := r.past.newest(topic), r.questions[topic] == nil
		if m.digest == r.past.digest(topic) {
			kept = nil // the asker has them
		} else if !sure && len(kept) == 0 {
			return
		}
		messages := r.pack(kept, now)
		for i, values := range messages {
			r.peers.send(outgoing{topic: topic, brokered: brokered{
				kind: brokeredValues, asker: m.node, sure: sure, part: uint64(i), parts: uint64(len(messages)), values: values,
			}})
		}
	})
}

// pack distributes events to messages, at least one.
func (r *relay) pack(kept []*keptEvent, now time.Time) (messages [][]agedValue) {
	var values []agedValue
	most, bytes := r.peers.maxBytes(), 0
	for _, m := range kept {
		e := m.event.Event
		e.ID = ""
		size := brokered{event: e}.size()
		if bytes += size; bytes > most && len(values) > 0 {
			messages, values, bytes = append(messages, values), nil, size
		}
		values = append(values, agedValue{e, max(now.Sub(m.at), 0), m.event.stamp})
	}
	return append(messages, values)
}

// told accepts the answer of a node. If it is to this node, values that are
// newer here stay. Clients get the others as events.
func (r *relay) told(topic string, m *brokered, now time.Time, out *batch) {
	if m.asker != r.peers.node {
		if m.sure {
			delete(r.answers, answer{topic, m.asker})
		}
		return
	}
	if q := r.questions[topic]; q != nil && m.sure {
		if m.part == 0 && q.next == 0 {
			q.from = m.node
		}
		if m.node == q.from && m.part == q.next {
			q.next++
		}
		if m.node == q.from && q.next == m.parts {
			delete(r.questions, topic)
		}
	}
	for _, v := range m.values {
		ev := newEvent(topic, v.event)
		ev.stamp = v.stamp
		switch here := r.past.latest(ev); {
		case here == nil && ev.Gone:
		case here != nil && here.event.isLike(&ev.Event): // clients have it
			here.event.stamp = max(here.event.stamp, ev.stamp)
		case r.isNewest(ev):
			ev.Data = bytes.Clone(ev.Data) // it would keep the whole message
			r.accept(ev, now.Add(-v.age), out)
		}
	}
}

// latest returns the newest event of ev's topic and Key; nil: there is none.
func (h *history) latest(ev *event) *keptEvent { return h.log(ev.topic).keys[ev.Key] }

// isLike reports whether e and other, of the same Key, say the same.
func (e *Event) isLike(other *Event) bool {
	return e.Name == other.Name && e.Binary == other.Binary && e.Gone == other.Gone && bytes.Equal(e.Data, other.Data)
}

// content returns what ev says, as bytes. The ID is not in it.
func (ev *event) content() []byte {
	var c codec
	c.head(&ev.Event, new(notice))
	c.rest(&ev.Data)
	return c.b
}

// newest returns the newest event of each Key of a topic, oldest first, also
// those that are Gone.
func (h *history) newest(topic string) (kept []*keptEvent) {
	for _, m := range h.log(topic).keys {
		if !m.event.member { // each node tells its own
			kept = append(kept, m)
		}
	}
	slices.SortFunc(kept, (*keptEvent).compare)
	return kept
}

// digest returns a checksum of a topic's values and their stamps. It is zero if there
// are none.
func (h *history) digest(topic string) (sum uint64) {
	for _, m := range h.log(topic).keys {
		if !m.event.Gone && !m.event.member {
			sum += crc64.Checksum(binary.BigEndian.AppendUint64(m.event.content(), m.event.stamp), topicTable)
		}
	}
	return sum
}
