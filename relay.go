package realtime

import (
	"bytes"
	"cmp"
	"maps"
	"math"
	"time"
)

// maxSentTopics is the most topics whose last event a relay remembers.
const maxSentTopics = 100_000

// A relay is the order of a hub whose Broker keeps no history. This node's
// clients get an event at once; other nodes get it through the broker. So each
// node has its own order. Numbers in the messages show losses and duplicates.
type relay struct {
	local
	peers *peers
	all   <-chan struct{} // closed when events to all clients arrive

	// Owned by the loop.
	seq     uint64               // number of this node's last event
	stamped uint64               // its last stamp
	sent    map[string]sentEvent // the last event to each topic
	survey
	dropped map[topicKey]agedEvent // newest events of a Key that the history has dropped within nodeTimeout
	shows   map[string]bool        // topics in which this node has had members
	lists   map[answer]*memberList // that other nodes are telling
	rolls   []*roll                // oldest first
	had     map[disconnectID]bool  // disconnects of other nodes
}

// newRelay returns a relay that is running; close ends it.
func newRelay(s *shared, broker Broker) *relay {
	r := &relay{local: newLocal(s), peers: newPeers(s, broker), sent: make(map[string]sentEvent)}
	r.questions, r.answers = make(map[string]*question), make(map[answer]bool)
	r.shows, r.lists, r.had = make(map[string]bool), make(map[answer]*memberList), make(map[disconnectID]bool)
	r.dropped = make(map[topicKey]agedEvent)
	r.peers.lost, r.peers.begun = r.gap, r.begun
	r.past.covered, r.past.valued, r.past.dropped = r.covered, r.valued, r.noteDropped
	r.peers.beat = r.beat
	r.peers.start(r)
	r.all = r.peers.watch("")[0] // events to all clients
	return r
}

// publish also queues the event for the other nodes. It never waits for them.
func (r *relay) publish(ev *event, now time.Time, out *batch) receipt {
	if ev.Key != "" && !ev.member {
		r.stamped = max(r.stamped+1, r.peers.clock(now)) // a clock may stand still, or be put back
		ev.stamp = r.stamped
		if newest := r.newestOf(ev); newest != nil {
			ev.stamp = max(ev.stamp, newest.stamp+1)
		}
	}
	r.local.publish(ev, now, out)
	if ev.member {
		if len(r.shows) >= maxSentTopics {
			clear(r.shows)
		}
		r.shows[ev.topic] = true
	}
	msg := r.numbered(brokeredEvent, ev.topic, now)
	msg.event, msg.notice, msg.stamp = ev.Event, ev.notice, ev.stamp
	rc := receipt{}
	if ev.notice == disconnectNotice { // whose caller has to know
		msg.result = make(chan error, 1)
		rc.later = r.callRoll(ev, msg.seq, msg.result, now)
	}
	fail := func(err error) receipt {
		if msg.result != nil {
			msg.result <- err
		}
		return receipt{err: err}
	}
	if most := r.peers.limit(); most > 0 && msg.size() > most {
		r.peers.tooLarge(msg.size(), ErrEventTooLarge)
		return fail(ErrEventTooLarge)
	}
	if !r.peers.send(msg) {
		r.shared.brokerLost.Add(1)
		return fail(ErrBrokerUnavailable)
	}
	if r.peers.down.Load() {
		return receipt{err: ErrBrokerUnavailable}
	}
	return rc
}

// numbered returns the next message to a topic whose loss other nodes notice.
func (r *relay) numbered(kind brokeredKind, topic string, now time.Time) outgoing {
	r.seq++
	if len(r.sent) >= maxSentTopics {
		clear(r.sent) // the next event of each topic names no earlier one
	}
	msg := outgoing{topic: topic, brokered: brokered{kind: kind, seq: r.seq}}
	if before, ok := r.sent[topic]; ok {
		msg.before, msg.age = before.seq, now.Sub(before.at)
	}
	r.sent[topic] = sentEvent{r.seq, now}
	r.peers.ledger.note(topic, sentEvent{r.seq, now})
	return msg
}

// isFull reports whether an engine that works is behind. Publishers don't wait
// for one that is away: they get an error at once.
func (r *relay) isFull() bool { return r.peers.isBehind() }

func (r *relay) arrivals() <-chan arrival { return r.peers.in }

// fill also makes sure that the positions are set from which the topics' events
// are complete.
func (r *relay) fill(p *replay) {
	for _, t := range p.topics {
		r.cover(t.name)
	}
	for _, c := range p.claims {
		for _, t := range c.topics {
			r.cover(t.name)
		}
	}
	r.local.fill(p)
}

// cover sets the position behind which this node has all events of a topic,
// unless it is set. It is a new position, which no client knows yet. Until the
// subscription is confirmed, events may be missing up to now.
func (r *relay) cover(topic string) {
	r.peers.mu.Lock()
	defer r.peers.mu.Unlock()
	if in := r.peers.interests[topic]; in != nil && (in.from == 0 || !isClosed(in.confirmed)) {
		r.past.move(r.past.seq + 1)
		r.past.tell()
		in.from = r.past.seq
	}
}

// covered returns the position behind which this node has all events of a topic.
func (r *relay) covered(topic string) uint64 {
	r.peers.mu.Lock()
	defer r.peers.mu.Unlock()
	if in := r.peers.interests[topic]; in != nil {
		return in.from
	}
	return math.MaxUint64
}

// begun has the loop note that all events of a topic arrive from now on, and ask
// for its values. It waits for that: the id of an event that is published when
// Subscribe has returned is to resume.
func (r *relay) begun(topic string) {
	if !r.shared.history.keeps() {
		return
	}
	noted := make(chan struct{})
	r.peers.pass(func(time.Time, *batch) {
		r.cover(topic)
		r.ask(topic)
		close(noted)
	})
	select {
	case <-noted:
	case <-r.peers.done:
	}
}

func (r *relay) want(topics []string) []<-chan struct{} {
	confirmed := r.peers.watch(topics...)
	for i, topic := range topics {
		if !isClosed(confirmed[i]) && r.shared.history.keeps() {
			r.peers.pass(func(time.Time, *batch) { r.cover(topic) }) // and again when it is confirmed: ids from before must not resume
		}
	}
	return append(confirmed, r.all)
}

func (r *relay) unwant(topics []string)              { r.peers.unwatch(topics) }
func (r *relay) elsewhere() (clients int, down bool) { return r.peers.clients(), r.peers.down.Load() }
func (r *relay) self() nodeID                        { return r.peers.node }
func (r *relay) close()                              { r.peers.close() }

// Deliver accepts a message of another node; see [BrokerHandler].
func (r *relay) Deliver(name string, msg []byte) {
	topic, m, ok := r.peers.parse(name, msg)
	if !ok {
		return
	}
	fresh, lost, why := r.track(topic, &m)
	for _, topic := range lost {
		r.gap(topic, why)
	}
	switch {
	case m.kind == brokeredRepeat:
		r.peers.pass(func(now time.Time, out *batch) { r.repeated(&m, now, out) })
	case m.kind == brokeredHad && m.asker == r.peers.node || m.leaving:
		r.peers.pass(func(time.Time, *batch) { r.answered(&m) })
	case m.kind == brokeredQuestion:
		r.peers.pass(func(time.Time, *batch) { r.asked(topic, &m) })
	case m.kind == brokeredValues:
		r.peers.pass(func(now time.Time, out *batch) { r.told(topic, &m, now, out) })
	case fresh && m.kind == brokeredMembers:
		r.peers.pass(func(now time.Time, out *batch) { r.toldMembers(topic, &m, now, out) })
	case fresh:
		ev := newEvent(topic, m.event)
		ev.notice, ev.stamp = m.notice, m.stamp
		r.peers.pass(func(now time.Time, out *batch) {
			if ev.notice == noNotice && r.isNewest(ev) || ev.notice == disconnectNotice && r.isFirst(disconnectID{m.node, m.seq}) {
				r.accept(ev, now, out)
			}
		})
	}
}

// isNewest reports whether no newer event of ev's Key is known. Two nodes may publish
// such events at one moment, and a Broker gives nodes no common order. So their
// stamps decide everywhere: microseconds, see peers.clock, but more than the stamp of
// the event that the publisher knew. An older event comes too late.
// Clients have the newest already, and don't get it.
func (r *relay) isNewest(ev *event) bool {
	if ev.Key == "" || ev.member {
		return true
	}
	newest := r.newestOf(ev)
	return newest == nil || cmp.Or(cmp.Compare(ev.stamp, newest.stamp), bytes.Compare(ev.content(), newest.content())) > 0
}

// newestOf returns the newest event that is known of ev's Key; nil: none is.
func (r *relay) newestOf(ev *event) *event {
	if newest := r.past.latest(ev); newest != nil {
		return newest.event
	}
	return r.dropped[ev.topicKey()].event
}

// An agedEvent is an event with the time at which it came.
type agedEvent struct {
	event *event
	at    time.Time
}

// maxDropped bounds the memory for events that the history has dropped. Without
// them, an older event that comes late may come back.
const maxDropped = 10_000

// noteDropped notes the newest event of a Key that the history drops, as one that
// is Gone in a busy topic. An older one may still be on its way.
func (r *relay) noteDropped(m *keptEvent) {
	if !m.event.member && time.Since(m.at) <= nodeTimeout && len(r.dropped) < maxDropped {
		r.dropped[m.event.topicKey()] = agedEvent{m.event, m.at} // without m, from which the list goes on
	}
}

// forgetDropped forgets what noteDropped has noted, nodeTimeout after it came.
func (r *relay) forgetDropped(now time.Time) {
	maps.DeleteFunc(r.dropped, func(_ topicKey, e agedEvent) bool { return now.Sub(e.at) > nodeTimeout })
}

// track reports whether a message is a new event. It returns the topics that
// have lost events before. The empty topic stands for any.
func (r *relay) track(topic string, m *brokered) (fresh bool, lost []string, why string) {
	p := r.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	n, back := p.hearLocked(m)
	switch m.kind {
	case brokeredHeartbeat:
		lost, why = p.trackHeartbeatLocked(n, m, now), "another node sent events that did not arrive"
	case brokeredEvent, brokeredMembers: // what has a number, so that a loss is noticed
		if p.interests[topic] == nil || m.seq <= n.seqs[topic] {
			break // no client has the topic, or it is a duplicate
		}
		fresh = true
		if p.trackEventLocked(n, topic, m, now) {
			lost, why = []string{topic}, "an event of another node arrived, but not the one before it"
		}
	}
	if back {
		lost, why = []string{""}, "another node was cut off and is back"
	}
	return fresh, lost, why
}

// Gap accepts the report that messages may be lost; see [BrokerHandler].
func (r *relay) Gap(err error) { r.gap("", err.Error()) }

// gap counts a loss and puts it into the history alone: clients of the topic
// that reconnect with an older id get a reset. All have the empty topic.
func (r *relay) gap(topic, why string) {
	r.shared.gaps.Add(1)
	r.shared.log.warn(logBroker, "events of other nodes may be missing", "topic", clip(topic), "why", why)
	r.peers.pass(func(now time.Time, _ *batch) {
		r.keep(newGap(topic), now)
		r.askAgain(topic)
	})
}

func newGap(topic string) *event { return &event{topic: topic, notice: gapNotice} }
