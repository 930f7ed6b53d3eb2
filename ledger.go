package realtime

import (
	"hash/crc64"
	"sync"
	"time"
)

// Each event has a number, so that a receiver notices a lost one by the next of
// the same topic. Where none follows, the sender's heartbeats tell: each has the
// number of the last event to each topic since the heartbeat before. A receiver
// that has a topic and not this event waits for one more heartbeat, as events may
// come by another connection. Then the event is lost.

const (
	maxSentEntries = 2000                   // in one heartbeat, which has 30 KB then; a busy node sends several
	maxLostNamed   = 100                    // topics that are reported by name; more are reported as all
	heartbeatDelay = 250 * time.Millisecond // for which a heartbeat may be on its way when a topic is subscribed
)

// A sentEntry tells of the last event to a topic in a period. The topic stands as
// a hash, as most receivers have no use for its name.
type sentEntry struct{ topic, seq uint64 }

var topicTable = crc64.MakeTable(crc64.ECMA)

func hashTopic(topic string) uint64 { return crc64.Checksum([]byte(topic), topicTable) }

// A ledger has what this node has sent since its last heartbeat.
type ledger struct {
	mu     sync.Mutex        // guards the fields below
	last   map[uint64]uint64 // by hash of the topic, the number of its last event
	period uint64            // of the next heartbeat: heartbeats that are sent together have the same
	beat   uint64            // number of the last heartbeat
}

// note notes an event that is being sent.
func (l *ledger) note(topic string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = make(map[uint64]uint64)
	}
	l.last[hashTopic(topic)] = seq
}

// close ends a period and returns its heartbeats, one at least.
func (l *ledger) close(node nodeID, clients int64, leaving bool) (beats []brokered) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.period++
	var entries []sentEntry
	add := func() {
		l.beat++
		beats = append(beats, brokered{kind: brokeredHeartbeat, node: node, clients: int(clients), period: l.period, seq: l.beat, leaving: leaving, sent: entries})
		entries = nil
	}
	for topic, seq := range l.last {
		if entries = append(entries, sentEntry{topic, seq}); len(entries) == maxSentEntries {
			add()
		}
	}
	if add(); len(l.last) > 0 {
		l.last = nil // a map never shrinks
	}
	return beats
}

// A tally is what has come of what another node says that it has sent.
type tally struct {
	seqs     map[string]uint64 // by topic, the number of the last event that has come or is known to be lost
	suspects map[string]uint64 // by topic, the number of one that should have come
	beat     uint64            // number of the last heartbeat; zero: none has come yet
	period   uint64            // the last one that has ended
	began    time.Time         // when the period under way had begun, at the latest
	before   time.Time         // the same of the one before; zero: it isn't known
	left     bool              // the node has said good-bye, or its end has been noticed
}

// trackHeartbeat compares a heartbeat with what has come, and returns the topics
// of which events are lost; the empty one, if that may be any.
func (p *peers) trackHeartbeat(t *tally, m *brokered, now time.Time) (lost []string) {
	if m.seq <= t.beat {
		return nil // a duplicate
	}
	skipped := t.beat != 0 && m.seq != t.beat+1
	t.beat, t.left = m.seq, m.leaving
	if m.period != t.period {
		lost = p.takeSuspects(t)
		t.before = t.began
		if m.period != t.period+1 {
			t.before = time.Time{}
		}
		t.period, t.began = m.period, now
	}
	for _, s := range m.sent {
		topic, has := p.byHash[s.topic]
		if has && t.seqs[topic] < s.seq && p.interests[topic].covers(t.before) {
			t.suspects[topic] = s.seq
		}
	}
	if skipped || len(lost) > maxLostNamed {
		clear(t.suspects)
		return []string{""}
	}
	return lost
}

// takeSuspects returns the topics whose events have still not come.
func (p *peers) takeSuspects(t *tally) (lost []string) {
	for topic, seq := range t.suspects {
		if t.seqs[topic] < seq && p.interests[topic] != nil {
			t.seqs[topic] = seq
			lost = append(lost, topic)
		}
	}
	clear(t.suspects)
	return lost
}

// covers reports whether all events since then should have come to this node.
func (in *interest) covers(since time.Time) bool {
	return !since.IsZero() && !in.since.IsZero() && in.since.Before(since.Add(-heartbeatDelay))
}
