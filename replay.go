package realtime

import (
	"container/heap"
	"slices"
)

// A part of a replay has this many events, or as many as have this much Data.
const (
	partEvents = 256
	partBytes  = 32 << 10
)

// A replay gives a client the kept events that it lacks. It comes in parts. Each
// is filled when the one before is written, so the rest waits in the history and
// not in a slow client's outbox. Before the last part the client gets no live
// events with a position. The later parts have them.
//
// First come values, the newest event of each Key, unless the client resumes.
// Then comes all that is behind from.
type replay struct {
	id     clientID
	topics []pastTopic   // the client's, and the empty one
	last   string        // the id of the last event that the client saw; empty: it is new
	whole  bool          // there is one part, of values
	given  chan struct{} // closed when the client's outbox has the part; nil: nobody waits

	// Filled in by the history.
	begun    bool   // there was a part
	from     uint64 // the position of last, or that of the first part
	at       uint64 // the position up to which parts have been filled
	base     uint64 // of the history's sequence then
	unshared uint64 // history.unsharedEvents when from was set
	lost     bool   // before this part, the client may have lost events
	resumed  bool   // in the first part: the client gets all events since last
	values   bool   // this part has values
	part     []*event
	more     bool   // other parts follow
	position *event // that of the hub; nil: there is no history

	// Owned by the outbox.
	early []*event          // came while the client joined, to be sent behind the values
	own   map[string]uint64 // the hub's position when the client joined, by the Key of what was sent to it alone
}

// A pastTopic is a topic of a replay. Only events behind since are replayed,
// unless it is zero.
type pastTopic struct {
	name  string
	since uint64
}

// fill completes r with its next part.
func (h *history) fill(r *replay) {
	first := !r.begun
	r.begun, r.resumed, r.lost, r.part = true, false, false, nil
	if !h.limit.keeps() {
		r.lost = r.last != ""
		return
	}
	r.position = h.position()
	switch seq, ok := h.seqOf(r.last); {
	case !first:
		r.lost = r.base != h.base || r.at >= r.from && !h.complete(r.topics, r.at)
	case r.last == "":
		r.from, r.unshared = h.seq, h.unsharedEvents
	case ok && h.complete(r.topics, seq):
		r.from, r.at, r.resumed = seq, seq, true
	default:
		r.lost = true
	}
	if r.lost {
		r.from, r.at, r.unshared = h.seq, 0, h.unsharedEvents
	}
	r.base = h.base
	r.values = r.at < r.from
	if r.values {
		if r.more = !h.take(r, r.from, func(m *keptEvent) bool { return m.isValue(&r.id) }); !r.more {
			r.at = r.from
			r.more = r.from < h.seq || r.unshared < h.unsharedEvents // newer ones may have the position from
		}
	} else {
		r.more = !h.take(r, h.seq, func(m *keptEvent) bool { return m.event.isFor(&r.id) && m.event.unshared == 0 && !m.hidden })
	}
}

// take fills r's part with wanted events behind r.at and up to a position, in
// order. It reports whether the part has all of them.
func (h *history) take(r *replay, to uint64, wanted func(m *keptEvent) bool) bool {
	var due dueEvents
	add := func(list []*keptEvent, since uint64) {
		if events := after(list, max(r.at, since)); len(events) > 0 {
			due = append(due, events)
		}
	}
	for _, t := range r.topics {
		if p := h.topics[t.name]; p != nil {
			add(p.recent, t.since)
			if r.values {
				add(p.stayed, t.since)
			}
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
		}
		if due[0] = due[0][1:]; len(due[0]) > 0 {
			heap.Fix(&due, 0)
		} else {
			heap.Pop(&due)
		}
	}
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
