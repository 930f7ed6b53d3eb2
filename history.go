package realtime

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// History sets how many events a hub keeps, and for how long. Clients that
// reconnect get them, and new clients get the latest values. The zero History
// keeps nothing. If one field is set, the others have their defaults. Negative
// values count as zero, but see Values.
type History struct {
	// Events is how many recent events are kept of each topic, and of the events
	// to all clients. The default is 100.
	Events int

	// Age is how long an event is recent. The default is 5 minutes.
	Age time.Duration

	// Values is how many latest values the whole hub keeps beyond Events and
	// Age. The newest event of each Key stays until a newer one replaces it, or
	// one that is [Event.Gone] takes it away. If there are more, those that have
	// stayed longest are dropped: Stats.Forgotten counts them, and the log says
	// so. The default is 100,000. A negative number keeps none.
	Values int
}

// keeps reports whether h, which is settled, keeps events.
func (h History) keeps() bool { return h.Events > 0 }

// settled returns h with its defaults.
func (h History) settled() History {
	h.Events, h.Age = max(h.Events, 0), max(h.Age, 0)
	if h.Events == 0 && h.Age == 0 && h.Values <= 0 {
		return History{}
	}
	h.Events, h.Age = cmp.Or(h.Events, 100), cmp.Or(h.Age, 5*time.Minute)
	h.Values = max(cmp.Or(h.Values, 100_000), 0)
	return h
}

// A history holds the events that a hub keeps. Each has a position in one
// sequence. The hub's loop owns it.
type history struct {
	limit History
	name  string // differs from that of any other history
	epoch string // names the sequence in ids; empty: the engine's isn't known yet
	base  uint64 // a position minus the number in its id
	seq   uint64 // the position of the newest event
	begin uint64 // ids of positions before it don't resume

	// prints identify the records of a log. Nil means that there is no log:
	// only this process gives positions, in its own epoch.
	prints *prints

	// unshared has the topics of events that this node's clients got and the
	// engine lacks. While there is one, ids resume nowhere.
	unshared       map[string]bool
	unsharedEvents uint64 // the number of such events so far
	divided        bool   // others follow at the position of the next event, so its id resumes nowhere either
	topics         map[string]*topicLog
	recent         eventList // of all topics
	stayed         eventList // the values that are no longer recent, in the order in which they became so
	forgotten      func()    // called when a value is dropped because there are too many

	// valued is called when a topic gets its first event with a Key, and when it
	// has lost the last one.
	valued func(topic string, has bool)

	dropped func(m *keptEvent) // called when the newest event of a Key is dropped

	nodes map[nodeID]time.Time                        // that have members, since when
	heard func(node nodeID, name topicKey, gone bool) // called for each event of a node's member

	// none stands for each topic that isn't in topics. It has no events. Its forgot
	// and buried are the highest that such a topic had. Its gap is the newest one in
	// the empty topic, which stands for all.
	none topicLog

	last *event // the notice of position seq; nil: not made yet

	now   atomic.Pointer[event] // has the id of position seq, for Hub.Position
	stale bool                  // now has the id of an earlier position

	// covered returns the position behind which a topic's events of other nodes
	// are known. Nil means that all are.
	covered func(topic string) uint64

	partEvents int // the most events in a part of a replay; tests have less
}

// A topicLog holds the kept events of a topic. The empty topic has the events
// to all clients.
type topicLog struct {
	topic  string
	recent []*keptEvent          // oldest first
	stayed []*keptEvent          // values that are no longer recent, oldest first; some are stale
	stale  int                   // how many of them
	keys   map[string]*keptEvent // the newest of each Key

	// members has by a member's key the newest event of each node that shows it,
	// the newest last.
	members map[string][]*keptEvent
	shown   map[string]*event // what clients were told last of each of them
	forgot  uint64            // the highest position of an event that is no longer recent
	buried  uint64            // the highest position of one of them that was Gone
	gap     uint64            // the position of the newest gap; zero: there is none
}

// A keptEvent is a recent event, or a value that stays when it is no longer one.
type keptEvent struct {
	event        *event
	log          *topicLog
	at           time.Time
	stays        bool       // it is in history.stayed
	stale        bool       // it was, until it was replaced or dropped
	hidden       bool       // it tells clients nothing new, see history.note
	home         uint64     // in a journal, where the log has it, see carrier
	older, newer *keptEvent // in an eventList
	replacement  *keptEvent // the next one of the same topic and Key; nil: there is none
}

// An eventList is a list of kept events. Each is in one list at most. It is a ring,
// in which root is before the oldest and behind the newest.
type eventList struct {
	root keptEvent
	len  int
}

func (l *eventList) push(m *keptEvent) {
	if l.len == 0 {
		l.root.older, l.root.newer = &l.root, &l.root
	}
	m.older, m.newer = l.root.older, &l.root
	m.older.newer, m.newer.older = m, m
	l.len++
}

func (l *eventList) remove(m *keptEvent) {
	m.older.newer, m.newer.older = m.newer, m.older
	l.len--
}

// isValue reports whether m is the newest event of its Key for a client.
func (m *keptEvent) isValue(id *clientID) bool {
	if m.event.Key == "" || m.event.Gone || m.stale || !m.event.isFor(id) {
		return false
	}
	if m.event.member {
		nodes := m.log.members[m.event.memberKey()]
		return len(nodes) > 0 && nodes[len(nodes)-1] == m
	}
	for m = m.replacement; m != nil; m = m.replacement {
		if m.event.isFor(id) {
			return false
		}
	}
	return true
}

// isNews reports whether a client that resumes gets m. A newcomer also gets what
// tells others nothing new: it may not have what told them.
func (m *keptEvent) isNews(id *clientID, newcomer bool) bool {
	hidden := m.hidden && (m.event.Gone || !newcomer)
	return m.event.isFor(id) && m.event.unshared == 0 && !hidden
}

func newHistory(limit History) *history {
	var random [6]byte
	rand.Read(random[:]) // never fails
	name := hex.EncodeToString(random[:])
	return &history{
		limit:      limit,
		name:       name,
		epoch:      name,
		topics:     make(map[string]*topicLog),
		forgotten:  func() {},
		valued:     func(string, bool) {},
		dropped:    func(*keptEvent) {},
		nodes:      make(map[nodeID]time.Time),
		heard:      func(nodeID, topicKey, bool) {},
		partEvents: partEvents,
	}
}

// maxPrints is the most records whose prints are kept. Older ids don't resume.
const maxPrints = 1 << 20

// add gives ev the next position and keeps it.
func (h *history) add(ev *event, now time.Time) *keptEvent { return h.addAt(ev, h.seq+1, now) }

// addAt gives ev a position, at h.seq or behind it, and keeps it. A disconnect
// uses a position, but is not kept: it is for the clients of its time.
func (h *history) addAt(ev *event, seq uint64, now time.Time) *keptEvent {
	if h.move(seq); ev.notice == disconnectNotice {
		return &keptEvent{event: ev}
	}
	h.stale = false
	ev.seq, ev.ID = seq, h.id(seq)
	h.now.Store(ev)
	p := h.open(ev.topic)
	m := &keptEvent{event: ev, log: p, at: now}
	h.recent.push(m)
	p.recent = append(p.recent, m)
	if ev.Key != "" {
		h.replace(m)
	}
	if ev.notice == gapNotice {
		p.gap = seq
		if ev.topic == "" {
			h.none.gap = seq
		}
	}
	if len(p.recent) > h.limit.Events {
		h.forget(p.recent[0])
	}
	return m
}

// log returns a topic's log, for reading: if the topic has none, it is h.none.
func (h *history) log(topic string) *topicLog { return cmp.Or(h.topics[topic], &h.none) }

// open returns a topic's log, a new one if there is none.
func (h *history) open(topic string) *topicLog {
	p := h.topics[topic]
	if p == nil {
		p = &topicLog{topic: topic, forgot: h.none.forgot, buried: h.none.buried}
		h.topics[topic] = p
	}
	return p
}

// addValue keeps a value that was published before this node's time.
func (h *history) addValue(ev *event, seq uint64, now time.Time) *keptEvent {
	ev.seq = seq
	m := &keptEvent{event: ev, log: h.open(ev.topic), at: now}
	h.replace(m)
	h.stay(m)
	return m
}

// replace makes m the newest event of its Key.
func (h *history) replace(m *keptEvent) {
	p := m.log
	if m.event.member {
		h.note(m)
	}
	if older := p.keys[m.event.Key]; older != nil {
		older.replacement = m
		if older.stays {
			h.unstay(older)
		}
	} else if len(p.keys) == 0 {
		p.keys = make(map[string]*keptEvent)
		h.valued(p.topic, true)
	}
	p.keys[m.event.Key] = m
}

// dropKey drops the newest event of m's Key, which is m.
func (h *history) dropKey(m *keptEvent) {
	p := m.log
	if m.event.member {
		p.unlist(m.event)
	}
	h.dropped(m)
	if delete(p.keys, m.event.Key); len(p.keys) == 0 {
		h.valued(p.topic, false)
	}
}

// addUnshared keeps an event that the engine lacks, for its Key alone. Its
// position is between two records.
func (h *history) addUnshared(ev *event, now time.Time) *keptEvent {
	at := h.seq
	if at&wholeRecord != 0 {
		at = h.seq | wholeRecord + 1
	}
	if h.unshared == nil {
		h.unshared = make(map[string]bool)
	}
	h.unshared[ev.topic] = true
	h.unsharedEvents++
	ev.unshared = h.unsharedEvents
	return h.addAt(ev, at, now)
}

// restart begins another log at number zero. Events stay, for their Keys.
func (h *history) restart(epoch string) {
	h.epoch = epoch
	h.base = (h.seq>>recordBits + 1) << recordBits
	h.last, h.prints = nil, new(prints)
}

// move makes seq the newest position. Its event need not be kept.
func (h *history) move(seq uint64) {
	h.stale = h.stale || seq != h.seq
	h.seq, h.last = seq, nil
}

// tell tells Hub.Position of a move.
func (h *history) tell() {
	if h.stale {
		h.now.Store(h.position())
		h.stale = false
	}
}

// forget makes m, the oldest of its topic's recent events, no longer recent. If
// it is a value, it stays.
func (h *history) forget(m *keptEvent) {
	p := m.log
	p.forgot = m.event.seq
	p.recent[0] = nil
	p.recent = p.recent[1:]
	h.recent.remove(m)
	if m.event.Gone {
		p.buried = p.forgot
	}
	if p.keys[m.event.Key] == m {
		if m.event.Gone && !m.isUntold() || h.limit.Values == 0 {
			h.dropKey(m)
		} else {
			h.stay(m)
		}
	}
	h.clean(p)
}

// isUntold reports whether other nodes don't know m, because it bypassed the log
// and has not been carried.
func (m *keptEvent) isUntold() bool { return m.event.unshared > 0 && m.home == 0 }

// stay keeps a value that is no longer recent.
func (h *history) stay(m *keptEvent) {
	p := m.log
	m.stays = true
	h.stayed.push(m)
	i, _ := slices.BinarySearchFunc(p.stayed, m, (*keptEvent).compare) // most often at the end
	p.stayed = slices.Insert(p.stayed, i, m)
	if h.stayed.len > h.limit.Values {
		h.drop(h.stayed.root.newer)
		h.forgotten()
	}
}

// drop ends what stay began, and forgets m.
func (h *history) drop(m *keptEvent) {
	h.dropKey(m)
	h.unstay(m)
	h.clean(m.log)
}

// unstay ends what stay began, for a value that was replaced or dropped.
func (h *history) unstay(m *keptEvent) {
	p := m.log
	m.stays, m.stale = false, true
	h.stayed.remove(m)
	if p.stale++; p.stale > len(p.stayed)/2 {
		p.stayed = slices.DeleteFunc(p.stayed, func(m *keptEvent) bool { return m.stale })
		p.stale = 0
	}
}

// clean drops p if it has no events.
func (h *history) clean(p *topicLog) {
	if len(p.recent) > 0 || len(p.stayed) > p.stale {
		return
	}
	h.none.forgot, h.none.buried = max(h.none.forgot, p.forgot), max(h.none.buried, p.buried)
	delete(h.topics, p.topic)
	if len(h.topics) == 0 {
		h.topics = make(map[string]*topicLog) // a map never shrinks
	}
}

func (m *keptEvent) compare(other *keptEvent) int { return m.event.compare(other.event) }

// expire drops events that are too old; see order.expire.
func (h *history) expire(now time.Time) time.Duration {
	for h.recent.len > 0 {
		oldest := h.recent.root.newer
		if left := h.limit.Age - now.Sub(oldest.at); left > 0 {
			return left
		}
		h.forget(oldest)
	}
	return 0
}

// position returns the notice of the newest position.
func (h *history) position() *event {
	if h.last == nil {
		h.last = newPosition(h.seq, h.id(h.seq))
	}
	return h.last
}

func newPosition(seq uint64, id string) *event {
	return &event{Event: Event{ID: id}, seq: seq, notice: positionNotice}
}

// complete reports whether all events of topics behind seq are recent.
func (h *history) complete(topics []*subscription, seq uint64) bool {
	return seq >= h.begin && !slices.ContainsFunc(topics, func(t *subscription) bool { return h.missing(t) > max(seq, t.since) })
}

// missing returns the position up to which events of a topic may be missing.
func (h *history) missing(t *subscription) uint64 {
	if h.unshared[t.name] {
		return math.MaxUint64
	}
	p := h.log(t.name)
	missing := max(p.forgot, p.gap, h.none.gap)
	if h.covered != nil && t.since == 0 {
		missing = max(missing, h.covered(t.name))
	}
	return missing
}

// after returns the events of a list behind seq.
func after(list []*keptEvent, seq uint64) []*keptEvent {
	i, _ := slices.BinarySearchFunc(list, seq+1, func(m *keptEvent, seq uint64) int { return cmp.Compare(m.event.seq, seq) })
	return list[i:]
}
