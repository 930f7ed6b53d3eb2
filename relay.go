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
	seq  uint64            // of the last message
	sent map[string]uint64 // the same, for each topic
}

// newRelay returns a relay that is running; close ends it.
func newRelay(s *shared, broker Broker) *relay {
	r := &relay{local: newLocal(s), peers: newPeers(s, broker), sent: make(map[string]uint64)}
	r.peers.start(r)
	r.peers.watch("") // what is published to all
	return r
}

// publish also queues the event for the other nodes. It never waits for them.
func (r *relay) publish(ev *event, now time.Time, out *batch) receipt {
	r.local.publish(ev, now, out)
	r.seq++
	if len(r.sent) >= maxSentTopics {
		clear(r.sent) // the next message of each topic doesn't say which was before
	}
	msg := outgoing{brokerName(ev.topic), brokered{kind: brokeredEvent, node: r.peers.node, seq: r.seq, before: r.sent[ev.topic], event: ev.Event}}
	r.sent[ev.topic] = r.seq
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

func (r *relay) arrivals() <-chan arrival { return r.peers.in }

// arrive takes an event of another node, or the notice of a gap, which is for the
// history alone: the clients that are connected can't get what is lost.
func (r *relay) arrive(a arrival, now time.Time, out *batch) {
	ev := a.(*event)
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
	fresh, lost, back := r.track(topic, &m)
	if back {
		r.gap("", "another node is back that was cut off")
	} else if lost {
		r.gap(topic, "messages of another node to a topic are missing")
	}
	if fresh {
		r.peers.pass(newEvent(topic, m.event))
	}
}

// track looks at where a message stands among those of its node, and reports
// whether it is an event that is new, whether some before it are lost, and
// whether the node was cut off for so long that some of any topic may be.
func (r *relay) track(topic string, m *brokered) (fresh, lost, back bool) {
	r.peers.mu.Lock()
	defer r.peers.mu.Unlock()
	n, back := r.peers.hearLocked(m)
	if m.kind != brokeredEvent || r.peers.interests[topic] == nil {
		return false, false, back
	}
	last := n.seqs[topic]
	if m.seq <= last {
		return false, false, back // a duplicate
	}
	n.seqs[topic] = m.seq
	return true, last != 0 && m.before > last, back
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
