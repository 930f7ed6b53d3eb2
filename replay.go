package realtime

import (
	"container/heap"
	"math"
	"slices"
	"strings"
)

// A part of a replay has this many events, or as many as have this much Data.
const (
	partEvents = 256
	partBytes  = 32 << 10
)

// Oldest is an id that stands for the beginning. A client that comes with it as
// its last id gets all kept events of its topics, in order and with their ids,
// and no reset. Older events that stay as latest values come first, without
// ids. [Client.SubscribeFrom] gives a client the same, all without ids. That
// can be the last messages of a room, or the beginning of an answer that is
// still being written.
const Oldest = "oldest"

// Where a topic begins, if not behind a position.
const (
	fromNow    = math.MaxUint64 - iota // at the newest of each Key
	fromOldest                         // at all that is kept
	fromLost                           // as fromNow, but behind a reset
)

// A replay gives a client the kept events that it lacks. It comes in parts. Each
// is filled when the one before is written, so the rest waits in the history and
// not in a slow client's outbox. Before the last part the client gets no live
// events with a position. The later parts have them.
//
// First come values, the newest event of each Key, unless the client resumes.
// Then comes all that is behind from.
//
// Topics that lag behind the others come before all that. The others wait, as an
// event must not come before an earlier one of its topic. What these topics lack
// has no ids, because the client may have an id behind it. If the client were cut
// off, it would resume behind that id. So each such part begins with a mark: the
// same position, with a provisional id.
type replay struct {
	id     clientID
	topics []*subscription // the client's and all; for a topic that lags, only it
	all    subscription    // has the empty topic
	last   string          // the id of the last event that the client saw; empty: it is new
	whole  bool            // there is one part, of values, and no client
	live   bool            // the client lacks nothing but what it claims
	waits  bool            // another replay is under way, and gets what this one claims
	claims []claim         // topics that don't begin where last is

	// Filled in by the history.
	from     uint64       // the position of last, or that of the first part
	at       uint64       // the position up to which parts have been filled
	base     uint64       // of the history's sequence then
	unshared uint64       // history.unsharedEvents when from was set
	since    uint64       // where topics begin that the client subscribes later
	resuming bool         // the client gets all events since last, so far
	late     []*replay    // of topics that lag
	lost     bool         // before this part, the client may have lost events
	values   bool         // this part has values
	before   bool         // these are from before each topic begins, and nothing else
	passed   []*keptEvent // members that the client gets by the event of a newer node
	part     []*event
	lagging  []*event // of this part, for topics that lag; they come first
	more     bool     // other parts follow
	position *event   // that of the hub; nil: there is no history, or there was no part
	resumed  int64    // how many replays since an id are complete with this part
	resets   int64    // how many resets this part has

	// Owned by the outbox.
	early   []*event          // came while the client joined, to be sent behind the values
	replies []*event          // to be sent behind the last part
	own     map[string]uint64 // the hub's position when the client joined, by the Key of what was sent to it alone
}

// A claim has topics that begin behind an id, or at a start if that is empty.
type claim struct {
	last   string
	start  uint64
	topics []*subscription
}

// fill completes r with its next part.
func (h *history) fill(r *replay) {
	first := r.position == nil
	r.lost, r.values, r.part, r.lagging, r.resumed, r.resets = false, false, nil, nil, 0, 0
	if !h.limit.keeps() {
		r.fillEmpty()
		return
	}
	r.position = h.position()
	switch {
	case first:
		h.beginReplay(r)
		if r.waits {
			return
		}
	case r.base != h.base:
		h.loseRest(r)
	}
	late := h.fillLate(r)
	if !first && !late && r.at >= r.from && !h.complete(r.topics, r.at) {
		h.loseRest(r)
	}
	r.values = !late && r.at < r.from
	switch {
	case late:
		r.more = len(r.late) > 0 || r.at < h.seq || r.unshared < h.unsharedEvents
	case r.values:
		if r.more = !h.take(r, r.from, func(m *keptEvent) bool { return m.isValue(&r.id) }); !r.more {
			r.at = r.from
			r.more = r.from < h.seq || r.unshared < h.unsharedEvents // newer ones may have the position from
		}
	default:
		r.more = !h.take(r, h.seq, func(m *keptEvent) bool { return m.isNews(&r.id, r.since == fromOldest) })
	}
	if r.resuming && !r.more {
		r.resumed++
	}
}

// fillEmpty fills r for a hub without a history: it has no events, but perhaps resets.
func (r *replay) fillEmpty() {
	if r.last != "" && r.last != Oldest {
		r.lost = true
		r.resets++
	}
	for _, c := range r.claims {
		if c.last != "" && c.last != Oldest {
			r.resetLate(c.topics)
		}
	}
	r.since = fromNow
}

func (r *replay) resetLate(topics []*subscription) {
	for _, t := range topics {
		r.lagging = append(r.lagging, newTopicReset(t.name))
		r.resets++
	}
}

// beginReplay decides where r's topics begin.
func (h *history) beginReplay(r *replay) {
	for _, c := range r.claims {
		h.beginClaim(r, c)
	}
	r.claims, r.base, r.from, r.unshared = nil, h.base, h.seq, h.unsharedEvents
	if r.live {
		r.at = h.seq
		return
	}
	joining := slices.DeleteFunc(slices.Clone(r.topics), func(t *subscription) bool { return t.since > 0 })
	r.since = h.startOf(r.last)
	switch {
	case r.since == fromNow:
	case r.since == fromOldest && h.fromOldest(joining):
		r.from = 0
		r.late = append(r.late, h.earlierValues(joining))
	case r.since <= h.seq && h.complete(joining, r.since):
		r.from, r.at, r.resuming = r.since, r.since, true
		if strings.HasSuffix(r.last, provisionalMark) {
			r.since = fromLost
		}
	default:
		h.loseReplay(r)
	}
}

// startOf returns where a client begins that has seen an event last.
func (h *history) startOf(last string) uint64 {
	switch last {
	case "":
		return fromNow
	case Oldest:
		return fromOldest
	}
	if seq, ok := h.seqOf(last); ok {
		return seq
	}
	return fromLost
}

// fromOldest makes topics begin at the oldest event behind which all are kept,
// as far as this node can know. It reports false if the engine lacks some.
func (h *history) fromOldest(topics []*subscription) bool {
	if slices.ContainsFunc(topics, func(t *subscription) bool { return h.unshared[t.name] }) {
		return false
	}
	for _, t := range topics {
		t.since = 1 // so covered isn't asked: what this node has is all there is
		t.since = max(1, h.missing(t), h.begin)
	}
	return true
}

// loseReplay makes r begin again, with a reset.
func (h *history) loseReplay(r *replay) {
	r.lost, r.resuming, r.since, r.passed = true, false, fromNow, nil
	r.resets++
	r.base, r.from, r.at, r.unshared = h.base, h.seq, 0, h.unsharedEvents
}

// loseRest is loseReplay for a replay under way. Topics that began later begin with
// the others now: the page has emptied what it had of them.
func (h *history) loseRest(r *replay) {
	for _, t := range r.topics {
		t.since = min(t.since, 1)
	}
	r.late = nil
	h.loseReplay(r)
}

// beginClaim divides a claim's topics into those that get all events since, and
// those that get values.
func (h *history) beginClaim(r *replay, c claim) {
	start := c.start
	if c.last != "" {
		start = h.startOf(c.last)
		if strings.HasSuffix(c.last, provisionalMark) {
			start = fromLost
		}
	}
	events := &replay{resuming: start <= h.seq}
	var fresh, lost []*subscription
	for _, t := range c.topics {
		one := []*subscription{t}
		switch {
		case start == fromNow:
			fresh = append(fresh, t)
		case start == fromOldest && h.fromOldest(one):
			events.topics = append(events.topics, t)
		case start <= h.seq && h.complete(one, start):
			t.since = max(1, start)
			events.topics = append(events.topics, t)
		default:
			lost = append(lost, t)
		}
	}
	if len(events.topics) > 0 {
		if c.last == "" || start == fromOldest { // the page may not have had them before
			r.late = append(r.late, h.earlierValues(events.topics))
		}
		r.late = append(r.late, events)
	}
	if len(fresh)+len(lost) > 0 {
		r.late = append(r.late, h.lateValues(fresh, lost))
	}
}

// lateValues returns a replay of the newest of each Key in topics. Those in lost
// get a reset first.
func (h *history) lateValues(fresh, lost []*subscription) *replay {
	l := &replay{values: true, from: h.seq, topics: append(fresh, lost...)}
	for _, t := range l.topics {
		t.since = 1
	}
	l.resetLate(lost)
	return l
}

// earlierValues returns a replay of the newest of each Key in topics, of events
// from before each topic begins. A Key with a newer event isn't there.
func (h *history) earlierValues(topics []*subscription) *replay {
	return &replay{values: true, before: true, from: h.seq, topics: slices.Clone(topics)}
}

// fillLate fills r's part for topics that lag, and reports whether there is any.
func (h *history) fillLate(r *replay) bool {
	for len(r.late) > 0 && len(r.lagging) == 0 {
		l := r.late[0]
		to, wanted := l.from, func(m *keptEvent) bool { return m.isValue(&r.id) }
		if !l.values {
			h.dropLost(r)
			to, wanted = max(r.at, r.from), func(m *keptEvent) bool { return m.isNews(&r.id, true) }
		}
		l.part = nil
		all := h.take(l, to, wanted)
		r.lagging, l.lagging = l.lagging, nil
		r.resets, l.resets = r.resets+l.resets, 0
		for _, ev := range l.part {
			r.lagging = append(r.lagging, ev.withoutID())
		}
		if all {
			for _, t := range l.topics {
				if !l.before {
					t.since = max(t.since, to)
				}
			}
			if l.resuming && len(l.topics) > 0 {
				r.resumed++
			}
			r.late = r.late[1:]
		}
	}
	if len(r.lagging) == 0 {
		return false
	}
	if r.at >= r.from && r.at > 0 { // else the client has no id of this hub yet
		r.lagging = slices.Insert(r.lagging, 0, &event{Event: Event{ID: h.id(r.at)}, seq: r.at, notice: markNotice})
	}
	return true
}

// dropLost begins again with topics of the first late replay that have lost events
// since its last part.
func (h *history) dropLost(r *replay) {
	l := r.late[0]
	var lost []*subscription
	l.topics = slices.DeleteFunc(l.topics, func(t *subscription) bool {
		is := !h.complete([]*subscription{t}, max(l.at, t.since))
		if is {
			lost = append(lost, t)
		}
		return is
	})
	if len(lost) > 0 {
		l.resuming = false
		r.late = slices.Insert(r.late, 1, h.lateValues(nil, lost))
	}
}

// take fills r's part with wanted events behind r.at and up to a position, in
// order. It reports whether the part has all of them.
func (h *history) take(r *replay, to uint64, wanted func(m *keptEvent) bool) bool {
	var due dueEvents
	add := func(list []*keptEvent, since uint64) {
		events := after(list, max(r.at, since))
		if r.before {
			list = after(list, r.at)
			events = list[:len(list)-len(after(list, since))]
		}
		if len(events) > 0 {
			due = append(due, events)
		}
	}
	for _, t := range r.topics {
		p := h.log(t.name)
		add(p.recent, t.since)
		if r.values {
			add(p.stayed, t.since)
		}
	}
	heap.Init(&due)
	for size := 0; len(due) > 0 && due[0][0].event.seq <= to; {
		m := due[0][0]
		if !r.whole && (len(r.part) >= h.partEvents || size >= partBytes) && m.event.seq > r.at { // some share a position
			return false
		}
		r.at = m.event.seq
		if wanted(m) {
			r.part = append(r.part, m.event)
			size += len(m.event.Data)
		} else if r.values && m.event.member && !m.event.Gone {
			r.passed = append(r.passed, m)
		}
		if due[0] = due[0][1:]; len(due[0]) > 0 {
			heap.Fix(&due, 0)
		} else {
			heap.Pop(&due)
		}
	}
	for _, m := range r.passed {
		if wanted(m) { // the member has left the newer node since an earlier part
			r.part = append(r.part, m.event)
		}
	}
	r.passed = nil
	return true
}

// A dueEvents is a heap of lists of events, one for each topic. The earliest
// event is the first of its list, which is the first of the heap.
type dueEvents [][]*keptEvent

func (d dueEvents) Len() int           { return len(d) }
func (d dueEvents) Less(i, j int) bool { return d[i][0].event.compare(d[j][0].event) < 0 }
func (d dueEvents) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *dueEvents) Push(x any)        { *d = append(*d, x.([]*keptEvent)) }
func (d *dueEvents) Pop() any {
	last := len(*d) - 1
	events := (*d)[last]
	*d = (*d)[:last]
	return events
}

// events returns what to send of the part. The hub's position follows the last
// part. early has the events that came while the client joined. Those for this
// client alone come first. The others come behind the values. A client that
// resumes gets these from the history instead.
func (r *replay) events(early []*event, last bool) []*event {
	var all []*event
	if r.lost {
		all = append(all, resetEvent)
	}
	for _, ev := range early {
		switch {
		case ev.seq > 0:
			r.early = append(r.early, ev)
			continue
		case ev.Key != "" && ev.topic == "" && r.position != nil:
			if r.own == nil {
				r.own = make(map[string]uint64)
			}
			r.own[ev.Key] = r.position.seq
		}
		all = append(all, ev)
	}
	before := len(all)
	all = append(all, r.lagging...)
	r.lagging = nil
	replaced := make(map[topicKey]bool)
	for _, ev := range r.part {
		if r.values {
			if _, comes := slices.BinarySearchFunc(r.early, ev, (*event).compare); comes || ev.topic == "" && ev.seq <= r.own[ev.Key] {
				continue // it comes below with its id, or the client was sent a newer one
			}
			if len(r.early) > 0 {
				replaced[ev.topicKey()] = true
			}
			ev = ev.withoutID() // earlier events have not been sent
		}
		all = append(all, ev)
	}
	r.part = nil
	r.early = slices.DeleteFunc(r.early, func(ev *event) bool { return replaced[ev.topicKey()] })
	if r.at >= r.from {
		if r.values {
			all = append(all, r.early...)
		}
		r.early = nil
	}
	switch {
	case !last || r.position == nil || len(all) > 0 && all[len(all)-1].seq >= r.position.seq:
	case r.lost && len(all) == before: // the client misses nothing if it is cut off behind the reset
		all[0] = newReset(r.position.ID)
	default:
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
