package realtime

import (
	"hash/crc64"
	"sync"
	"time"
)

// Each event says which one its node has sent to the same topic before, so that a
// receiver notices a lost one by the next. Where none follows, heartbeats tell:
// each has the last event to each topic since the heartbeat before. A receiver
// that should have got such an event, and hasn't, waits for one more heartbeat, as
// events may come by another connection. Then the event is lost.
//
// A receiver should have got what was sent while it was subscribed. So each
// message that names an earlier event says how long ago that was sent.

const (
	maxSentEntries = 2000                   // in one heartbeat, which has 30 KB then; a busy node sends several
	maxLostNamed   = 100                    // topics that are reported by name; more are reported as all
	maxOnItsWay    = 250 * time.Millisecond // for which a message is on its way, as far as we know
)

// A sentEvent is the last event to a topic.
type sentEvent struct {
	seq uint64
	at  time.Time
}

// A sentEntry tells of it in a heartbeat. The topic stands as a hash, as most
// receivers have no use for its name.
type sentEntry struct {
	topic, seq uint64
	age        time.Duration // in whole ms
}

var topicTable = crc64.MakeTable(crc64.ECMA)

func hashTopic(topic string) uint64 { return crc64.Checksum([]byte(topic), topicTable) }

// A ledger has what this node has sent since its last heartbeat.
type ledger struct {
	mu   sync.Mutex           // guards the fields below
	last map[uint64]sentEvent // by hash of the topic
	beat uint64               // number of the last heartbeat
}

// note notes an event that is being sent.
func (l *ledger) note(topic string, ev sentEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = make(map[uint64]sentEvent)
	}
	l.last[hashTopic(topic)] = ev
}

// close returns the heartbeats that tell of what was noted, one at least.
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

// A tally is what has come of what another node says that it has sent.
type tally struct {
	seqs      map[string]uint64 // by topic, the last event that has come or is known to be lost
	suspects  map[string]uint64 // by topic, an event that should have come
	suspected time.Time         // when the oldest of them was noted
	beat      uint64            // number of the last heartbeat; zero: none has come yet
	left      bool              // the node has said good-bye, or its end has been noticed
}

func newTally() tally {
	return tally{seqs: make(map[string]uint64), suspects: make(map[string]uint64)}
}

// trackEvent notes an event, and reports whether the one before it is lost. The
// caller holds mu.
func (p *peers) trackEvent(t *tally, topic string, m *brokered, now time.Time) (lost bool) {
	last := t.seqs[topic]
	t.seqs[topic] = m.seq
	return m.before > last && (last > 0 || p.interests[topic].covers(now, m.age))
}

// trackHeartbeat compares a heartbeat with what has come, and returns the topics
// of which events are lost; the empty one, if that may be any. The caller holds mu.
func (p *peers) trackHeartbeat(t *tally, m *brokered, now time.Time) (lost []string) {
	if m.seq <= t.beat {
		return nil // a duplicate
	}
	skipped := t.beat != 0 && m.seq != t.beat+1
	t.beat, t.left = m.seq, m.leaving
	if now.Sub(t.suspected) >= heartbeatInterval/2 {
		for topic, seq := range t.suspects {
			if t.seqs[topic] < seq && p.interests[topic] != nil {
				t.seqs[topic] = seq
				lost = append(lost, topic)
			}
		}
		clear(t.suspects)
	}
	for _, s := range m.sent {
		if topic, has := p.byHash[s.topic]; has && t.seqs[topic] < s.seq && p.interests[topic].covers(now, s.age) {
			if len(t.suspects) == 0 {
				t.suspected = now
			}
			t.suspects[topic] = s.seq
		}
	}
	if skipped || len(lost) > maxLostNamed {
		clear(t.suspects)
		return []string{""}
	}
	return lost
}

// covers reports whether an event should have come to this node that was sent so
// long ago, as a message says that has come now.
func (in *interest) covers(now time.Time, age time.Duration) bool {
	return !in.since.IsZero() && in.since.Before(now.Add(-age-maxOnItsWay))
}
