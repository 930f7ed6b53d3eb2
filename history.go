package realtime

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
)

// History is how much of the past a hub keeps for clients that come back, and
// for those that want the latest values. The zero History keeps nothing. Where
// one of the fields is zero it takes its default; less than zero is zero.
type History struct {
	// Events is how many events are kept of each topic, and of those that are
	// published to all. The default is 100.
	Events int

	// Age is how long an event is kept. The default is 5 minutes.
	Age time.Duration
}

// keeps reports whether h, settled, keeps anything.
func (h History) keeps() bool { return h.Events > 0 }

// settled returns h with its defaults.
func (h History) settled() History {
	h.Events, h.Age = max(h.Events, 0), max(h.Age, 0)
	if h != (History{}) {
		h.Events, h.Age = cmp.Or(h.Events, 100), cmp.Or(h.Age, 5*time.Minute)
	}
	return h
}

// A history is the events that a hub keeps, each with a position in one sequence.
// It is owned by the hub's loop.
type history struct {
	limit History
	epoch string // tells this sequence from others; empty: the engine's is not known yet
	base  uint64 // what a position has more than the number in its id
	seq   uint64 // the position of the newest event
	begin uint64 // of what came up to here nothing is known

	// prints identify the records of a log that other nodes read too. Nil means
	// that this process alone gives positions, in an epoch of its own.
	prints *prints

	// unshared has the topics of which clients of this node have seen what they
	// can't get from the engine: while there is one, no node resumes the ids
	// that they get.
	unshared       map[string]bool
	unsharedEvents uint64 // of theirs so far
	topics         map[string]*topicLog
	oldest         *keptEvent // of all topics, and from there on by age
	newest         *keptEvent

	// floor is the highest position of an event of topics that are forgotten, as
	// nothing of them is left.
	floor uint64

	last *event // the notice of the position seq; nil: to be made
}

// A topicLog is what is kept of one topic. The empty topic is what was published
// to all.
type topicLog struct {
	topic  string
	kept   []*keptEvent // oldest first
	forgot uint64       // the highest position of an event that isn't kept any more
}

// A keptEvent is one of them.
type keptEvent struct {
	event        *event
	log          *topicLog
	at           time.Time
	older, newer *keptEvent
}

func newHistory(limit History) *history {
	var epoch [6]byte
	rand.Read(epoch[:]) // never fails
	return &history{limit: limit, epoch: hex.EncodeToString(epoch[:]), topics: make(map[string]*topicLog)}
}

// id returns the event id of a position: the epoch, the number and, in a log of
// several nodes, the print of the record. An id that resumes nowhere ends in
// "local".
func (h *history) id(seq uint64) string {
	number := seq - h.base
	id := h.epoch + "-" + strconv.FormatUint(number, 10)
	if len(h.unshared) > 0 {
		return id + "-local"
	}
	if print, ok := h.prints.text(number >> recordBits); ok {
		id += "-" + print
	}
	return id
}

// seqOf returns the position that an event id names, and reports whether it is
// one of this history.
func (h *history) seqOf(id string) (seq uint64, ok bool) {
	epoch, number, print, ok := parseEventID(id)
	if !ok || epoch != h.epoch || number > h.seq-h.base {
		return 0, false
	}
	want, ok := h.prints.text(number >> recordBits)
	return h.base + number, print == want && (ok || h.prints == nil)
}

// parseEventID takes an event id apart.
func parseEventID(id string) (epoch string, number uint64, print string, ok bool) {
	epoch, rest, _ := strings.Cut(id, "-")
	digits, print, _ := strings.Cut(rest, "-")
	number, err := strconv.ParseUint(digits, 10, 64)
	return epoch, number, print, err == nil
}

// prints are fingerprints of the newest records of a log. A log that was put back
// gives its numbers a second time, to other records. An id carries the print of
// its record, so that every node notices an id of a record that is no more.
type prints struct {
	first uint64   // the record of the first one
	of    []uint32 // of all from there on
}

// maxPrints is how many records are known. An older id doesn't resume.
const maxPrints = 1 << 20

// add adds the print of a record. Where that isn't the next one, those before it
// are forgotten.
func (p *prints) add(record uint64, print uint32) {
	if record != p.first+uint64(len(p.of)) {
		p.first, p.of = record, nil
	}
	if len(p.of) == maxPrints {
		p.first += maxPrints / 2
		p.of = append(p.of[:0], p.of[maxPrints/2:]...)
	}
	p.of = append(p.of, print)
}

// get returns the print of a record, if it is known.
func (p *prints) get(record uint64) (print uint32, ok bool) {
	if i := record - p.first; record >= p.first && i < uint64(len(p.of)) {
		return p.of[i], true
	}
	return 0, false
}

// text returns the print of a record as an id has it, if there is one. The
// beginning of each log, before its first record, is the same.
func (p *prints) text(record uint64) (print string, ok bool) {
	switch {
	case p == nil:
		return "", false
	case record == 0:
		return "0", true
	}
	n, ok := p.get(record)
	if !ok {
		return "", false
	}
	return strconv.FormatUint(uint64(n), 36), true
}

// add gives ev the next position and keeps it.
func (h *history) add(ev *event, now time.Time) { h.addAt(ev, h.seq+1, now) }

// addAt gives ev a position, which is not before the newest event's, and keeps it.
func (h *history) addAt(ev *event, seq uint64, now time.Time) {
	h.move(seq)
	ev.seq, ev.ID = seq, h.id(seq)
	p := h.topics[ev.topic]
	if p == nil {
		p = &topicLog{topic: ev.topic, forgot: h.floor}
		h.topics[ev.topic] = p
	}
	m := &keptEvent{event: ev, log: p, at: now, older: h.newest}
	if h.newest != nil {
		h.newest.newer = m
	} else {
		h.oldest = m
	}
	h.newest = m
	p.kept = append(p.kept, m)
	if len(p.kept) > h.limit.Events {
		h.forget(p.kept[0])
	}
}

// addUnshared keeps an event of this node's that the engine has not brought, for its
// Key alone. Its position is between two of records.
func (h *history) addUnshared(ev *event, now time.Time) {
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
	h.addAt(ev, at, now)
}

// restart makes positions those of another sequence, whose numbers begin anew. What
// is kept stays, for its Keys.
func (h *history) restart(epoch string) {
	h.epoch = epoch
	h.base = (h.seq>>recordBits + 1) << recordBits
	h.last = nil
	if h.prints != nil {
		h.prints = new(prints)
	}
}

// move makes seq the newest position, whose event may be one that is not kept.
func (h *history) move(seq uint64) { h.seq, h.last = seq, nil }

// forget drops m, the oldest of its topic.
func (h *history) forget(m *keptEvent) {
	p := m.log
	p.forgot = m.event.seq
	p.kept[0] = nil
	p.kept = p.kept[1:]
	if len(p.kept) == 0 {
		h.floor = max(h.floor, p.forgot)
		delete(h.topics, p.topic)
		if len(h.topics) == 0 {
			h.topics = make(map[string]*topicLog) // a map never shrinks
		}
	}
	if m.older != nil {
		m.older.newer = m.newer
	} else {
		h.oldest = m.newer
	}
	if m.newer != nil {
		m.newer.older = m.older
	} else {
		h.newest = m.older
	}
}

// expire drops what is too old, and returns how long to wait for what comes
// next; zero: there is nothing.
func (h *history) expire(now time.Time) time.Duration {
	for h.oldest != nil {
		left := h.limit.Age - now.Sub(h.oldest.at)
		if left > 0 {
			return left
		}
		h.forget(h.oldest)
	}
	return 0
}

// position returns the notice of how far the history has come.
func (h *history) position() *event {
	if h.last == nil {
		h.last = newPosition(h.seq, h.id(h.seq))
	}
	return h.last
}

func newPosition(seq uint64, id string) *event {
	return &event{Event: Event{ID: id}, seq: seq, notice: positionNotice}
}

// A replay is what a client gets of the past.
type replay struct {
	id     clientID      // the client's
	topics []string      // those it has; the empty one among them
	last   string        // the id of the last event it saw; empty: it is new
	given  chan struct{} // closed when the client's outbox has it; nil: nobody waits

	// Filled in by the history.
	lost     bool     // it may have missed events
	seen     uint64   // the position of last; zero: there is none
	missed   []*event // what came after last
	newest   []*event // the newest of each Key, if it is new or has lost the thread
	position *event   // nil: there is no history
}

// fill gives r what its client needs of the past, up to here.
func (h *history) fill(r *replay) {
	if !h.limit.keeps() {
		r.lost = r.last != ""
		return
	}
	r.position = h.position()
	if r.last != "" {
		seq, ok := h.seqOf(r.last)
		if ok && h.complete(r.topics, seq) {
			r.seen, r.missed = seq, h.since(r, seq)
			return
		}
		r.lost = true
	}
	r.newest = h.values(r)
}

// complete reports whether all events of topics behind seq are kept.
func (h *history) complete(topics []string, seq uint64) bool {
	if seq < h.begin {
		return false
	}
	for _, topic := range topics {
		if h.unshared[topic] {
			return false
		}
		forgot := h.floor
		if p := h.topics[topic]; p != nil {
			forgot = p.forgot
		}
		if forgot > seq {
			return false
		}
		for _, m := range h.after(topic, seq) {
			if m.event.notice == gapNotice {
				return false
			}
		}
	}
	return true
}

// since returns the events for r behind seq, in order.
func (h *history) since(r *replay, seq uint64) (events []*event) {
	for _, topic := range r.topics {
		for _, m := range h.after(topic, seq) {
			if m.event.isFor(&r.id) && m.event.unshared == 0 {
				events = append(events, m.event)
			}
		}
	}
	sortEvents(events)
	return events
}

// after returns what is kept of a topic behind seq.
func (h *history) after(topic string, seq uint64) []*keptEvent {
	p := h.topics[topic]
	if p == nil {
		return nil
	}
	i, _ := slices.BinarySearchFunc(p.kept, seq+1, func(m *keptEvent, seq uint64) int { return cmp.Compare(m.event.seq, seq) })
	return p.kept[i:]
}

// values returns the newest event of each Key for r, in order.
func (h *history) values(r *replay) (events []*event) {
	for _, topic := range r.topics {
		p := h.topics[topic]
		if p == nil {
			continue
		}
		seen := make(map[string]bool)
		for _, m := range slices.Backward(p.kept) {
			if ev := m.event; ev.Key != "" && !seen[ev.Key] && ev.isFor(&r.id) {
				seen[ev.Key] = true
				events = append(events, ev)
			}
		}
	}
	sortEvents(events)
	return events
}

func sortEvents(events []*event) {
	slices.SortFunc(events, (*event).compare)
}

// before returns early, which is what came for a client while it joined, with
// what r has of the past. What was sent to the client alone comes first; what
// was published meanwhile may be of the past as well, and has its position in it.
func (r *replay) before(early []*event) []*event {
	var all, live []*event
	if r.lost {
		all = append(all, resetEvent)
	}
	own := make(map[string]bool)
	for _, ev := range early {
		if ev.seq == 0 {
			all = append(all, ev)
			if ev.Key != "" && ev.topic == "" {
				own[ev.Key] = true
			}
		} else if ev.seq > r.seen { // or this node was behind the one where it was seen
			live = append(live, ev)
		}
	}
	past := r.missed
	if past == nil {
		past = r.newest
	}
	for _, ev := range past {
		for len(live) > 0 && live[0].compare(ev) < 0 {
			all, live = append(all, live[0]), live[1:]
		}
		switch {
		case len(live) > 0 && live[0] == ev:
			live = live[1:]
		case ev.topic == "" && own[ev.Key]:
			continue // what was sent to the client since is newer
		case r.missed == nil:
			ev = ev.withoutID() // others that came before it have not been sent
		}
		all = append(all, ev)
	}
	all = append(all, live...)
	if r.position != nil && (len(all) == 0 || all[len(all)-1].seq < r.position.seq) {
		all = append(all, r.position)
	}
	return all
}

func countMessages(events []*event) (n int) {
	for _, ev := range events {
		if ev.notice == noNotice {
			n++
		}
	}
	return n
}
