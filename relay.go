package realtime

import "time"

// maxSentTopics is of how many topics the number of the last message is known.
const maxSentTopics = 100_000

// A relay is the order of a hub with a Broker that keeps nothing. Events go to
// the clients of this node at once and to other nodes through the broker. What
// arrives from those comes behind what was published here before. Numbers that
// messages carry show what the engine has lost, and drop duplicates.
type relay struct {
	local
	peers *peers

	// Owned by the loop.
	seq  uint64               // of the last event
	sent map[string]sentEvent // the last one to each topic
}

// newRelay returns a relay that is running; close ends it.
func newRelay(s *shared, broker Broker) *relay {
	r := &relay{local: newLocal(s), peers: newPeers(s, broker), sent: make(map[string]sentEvent)}
	r.peers.lost = r.gap
	r.peers.start(r)
	r.peers.watch("") // what is published to all
	return r
}

// publish also queues the event for the other nodes. It never waits for them.
func (r *relay) publish(ev *event, now time.Time, out *batch) receipt {
	r.local.publish(ev, now, out)
	r.seq++
	if len(r.sent) >= maxSentTopics {
		clear(r.sent) // the next event of each topic doesn't say which was before
	}
	msg := outgoing{brokerName(ev.topic), brokered{kind: brokeredEvent, node: r.peers.node, seq: r.seq, event: ev.Event}}
	if before, ok := r.sent[ev.topic]; ok {
		msg.before, msg.age = before.seq, now.Sub(before.at)
	}
	r.sent[ev.topic] = sentEvent{r.seq, now}
	r.peers.ledger.note(ev.topic, sentEvent{r.seq, now})
	if most := r.peers.limit(); most > 0 && msg.size() > most {
		r.peers.tooLarge(msg.size(), ErrEventTooLarge)
		return receipt{err: ErrEventTooLarge}
	}
	select {
	case r.peers.queue <- msg:
	default:
		r.shared.brokerLost.Add(1)
		return receipt{err: ErrBrokerUnavailable}
	}
	if r.peers.down.Load() {
		return receipt{err: ErrBrokerUnavailable}
	}
	return receipt{}
}

// isFull has publishers wait for an engine that works and is behind. One that is
// away costs events, and their publishers are told at once.
func (r *relay) isFull() bool { return r.peers.isBehind() }

func (r *relay) arrivals() <-chan arrival { return r.peers.in }

// arrive takes an event of another node, or the notice of a gap, which is for the
// history alone: the clients that are connected can't get what is lost.
func (r *relay) arrive(a arrival, now time.Time, out *batch) {
	ev, ok := a.(*event)
	if !ok {
		return // it only wakes the loop, see peers.isBehind
	}
	r.keep(ev, now)
	if ev.notice != gapNotice {
		out.add(ev)
	}
}

func (r *relay) want(topics []string) []<-chan struct{} { return r.peers.watch(topics...) }
func (r *relay) unwant(topics []string)                 { r.peers.unwatch(topics) }
func (r *relay) elsewhere() (clients int, down bool)    { return r.peers.clients(), r.peers.down.Load() }
func (r *relay) close()                                 { r.peers.close() }

// Deliver takes what the broker brings; see [BrokerHandler].
func (r *relay) Deliver(name string, msg []byte) {
	topic, m, ok := r.peers.parse(name, msg)
	if !ok {
		return
	}
	fresh, lost, why := r.track(topic, &m)
	for _, topic := range lost {
		r.gap(topic, why)
	}
	if fresh {
		r.peers.pass(newEvent(topic, m.event))
	}
}

// track looks at where a message stands among those of its node. It reports
// whether it is an event that is new, and of which topics events are lost: the
// empty topic stands for any.
func (r *relay) track(topic string, m *brokered) (fresh bool, lost []string, why string) {
	p := r.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	n, back := p.hearLocked(m)
	if back {
		lost, why = []string{""}, "another node is back that was cut off"
	}
	if m.kind == brokeredHeartbeat {
		if topics := p.trackHeartbeat(&n.tally, m, now); !back {
			lost, why = topics, "another node has sent events that have not come"
		}
		return false, lost, why
	}
	if p.interests[topic] == nil || m.seq <= n.seqs[topic] { // nobody wants it, or it is a duplicate
		return false, lost, why
	}
	if p.trackEvent(&n.tally, topic, m, now) && !back {
		lost, why = []string{topic}, "events before one of another node have not come"
	}
	return true, lost, why
}

// Gap takes the broker's word that messages may be lost; see [BrokerHandler].
func (r *relay) Gap(err error) { r.gap("", err.Error()) }

// gap makes clients that reconnect with an id from before get a reset. A gap in
// the empty topic concerns them all.
func (r *relay) gap(topic, why string) {
	r.shared.gaps.Add(1)
	r.shared.log.warn(logBroker, "events of other nodes may be missing", "topic", clip(topic), "why", why)
	r.peers.pass(newGap(topic))
}

func newGap(topic string) *event { return &event{topic: topic, notice: gapNotice} }
