package realtime

import (
	"hash/crc64"
	"sync"
	"time"
)

// Each event names its node's previous event to the same topic. So the next
// event shows a loss. Heartbeats show the loss of a last event: they list the
// last events since the previous heartbeat. A receiver that lacks one waits for
// one more heartbeat before it reports a loss: events may use another
// connection.
//
// Only events that were sent while a receiver was subscribed count. So a
// message that names an earlier event gives that event's age.

const (
	maxSentEntries = 2000                   // in one heartbeat, about 30 KB; a busy node sends several
	maxLostNamed   = 100                    // lost topics that are reported by name; more are reported as all
	maxOnItsWay    = 250 * time.Millisecond // a message is assumed to arrive in this time
)

// A sentEvent is its node's last event to a topic.
type sentEvent struct {
	seq uint64
	at  time.Time
}

// A sentEntry is a sentEvent in a heartbeat. It has the topic's hash, because
// most receivers don't need the name.
type sentEntry struct {
	topic, seq uint64
	age        time.Duration // in whole ms
}

var topicTable = crc64.MakeTable(crc64.ECMA)

func hashTopic(topic string) uint64 { return crc64.Checksum([]byte(topic), topicTable) }

// A ledger lists the events that this node sent since its last heartbeat.
type ledger struct {
	mu   sync.Mutex           // guards the fields below
	last map[uint64]sentEvent // by hash of the topic
	beat uint64               // number of the last heartbeat
}

// note adds an event that is being sent.
func (l *ledger) note(topic string, ev sentEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = make(map[uint64]sentEvent)
	}
	l.last[hashTopic(topic)] = ev
}

// close returns heartbeats, at least one, with the noted events. It empties l.
func (l *ledger) close(node nodeID, clients int64, leaving bool, now time.Time) (beats []brokered) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var entries []sentEntry
	add := func() {
		l.beat++
		beats = append(beats, brokered{kind: brokeredHeartbeat, node: node, clients: int(clients), seq: l.beat, leaving: leaving, sent: entries})
		entries = nil
	}
	for topic, ev := range l.last {
		if entries = append(entries, sentEntry{topic, ev.seq, now.Sub(ev.at)}); len(entries) == maxSentEntries {
			add()
		}
	}
	l.last = nil // a map never shrinks
	add()
	return beats
}

// trackEventLocked notes an event of a node. It reports whether the node's
// previous one to the topic is lost.
func (p *peers) trackEventLocked(n *node, topic string, m *brokered, now time.Time) (lost bool) {
	last := n.seqs[topic]
	n.seqs[topic] = m.seq
	return m.before > last && (last > 0 || p.interests[topic].covers(now, m.age))
}

// trackHeartbeatLocked compares a node's heartbeat with the events that arrived.
// It returns the topics that lost events; the empty one stands for any.
func (p *peers) trackHeartbeatLocked(n *node, m *brokered, now time.Time) (lost []string) {
	if m.seq <= n.beat {
		return nil // a duplicate
	}
	skipped := n.beat != 0 && m.seq != n.beat+1
	n.beat, n.left, n.goodbye = m.seq, m.leaving, m.leaving
	if now.Sub(n.suspected) >= heartbeatInterval/2 {
		for topic, seq := range n.suspects {
			if n.seqs[topic] < seq && p.interests[topic] != nil {
				n.seqs[topic] = seq
				lost = append(lost, topic)
			}
		}
		clear(n.suspects)
	}
	for _, s := range m.sent {
		if topic, has := p.byHash[s.topic]; has && n.seqs[topic] < s.seq && p.interests[topic].covers(now, s.age) {
			if len(n.suspects) == 0 {
				n.suspected = now
			}
			n.suspects[topic] = s.seq
		}
	}
	if skipped || len(lost) > maxLostNamed {
		clear(n.suspects)
		return []string{""}
	}
	return lost
}

// covers reports whether in was subscribed when an event of this age was sent.
func (in *interest) covers(now time.Time, age time.Duration) bool {
	return !in.since.IsZero() && in.since.Before(now.Add(-age-maxOnItsWay))
}
