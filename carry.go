package realtime

import (
	"math/rand/v2"
	"slices"
	"time"
)

// A carrier keeps latest values in a journal's log, which is trimmed: before that,
// a node appends again what only the records have that are to go. So a node that
// starts finds all values in the log, also when it is the first one.
//
//	log:  │ k=1 │ … │ l=1 │ …        ──▶        │ l=1 │ … │ k=1 carried │ …
//	      └ to be trimmed ┘
//
// A value's home is where the log has it: the number of its event, or of its place
// in the newest record that carries it, which is how nodes tell whether they mean
// the same. Zero means that the log lacks it: it was published in a cut, or the
// log was lost. Such values are carried, too.
//
// Several nodes may carry a value, and a newer event may be on its way at that
// time. So a record of values tells its view, the newest record that its node had
// taken. It changes nothing that a record behind its view has changed. It also
// tells up to where its node is about to trim the log, and no older view counts
// behind that: nodes that start then don't see what came after such a view.
//
// A node that lacks records asks for the values in them: the others carry these.
//
// The loop owns a carrier.
type carrier struct {
	first   uint64     // the oldest record since which this node has taken all
	asked   uint64     // first when this node asked for older values
	newest  uint64     // the newest record of events or of a cut: it is never trimmed, as ids name it
	trimmed uint64     // up to where nodes may have trimmed the log
	views   []view     // of the records of values behind that
	due     []dueValue // to be carried next
	goal    uint64     // up to where the log is to be trimmed then; zero: not
	told    uint64     // the goal in the last record that this node appended, or tried to; zero: none
	waits   bool       // until a record of this node arrives
	heard   uint64     // the last record of values
	next    uint64     // carry early when the log has this record
	bytes   uint64     // of all records so far
	upTo    uint64     // bytes up to goal
	begun   uint64     // bytes up to where this node trimmed the log last
	tidied  time.Time  // when that was
}

// A view is that of a record of values.
type view struct{ record, view uint64 }

// A dueValue is a value that is to be carried unless its home changes before.
type dueValue struct {
	*keptEvent
	home uint64
}

const (
	carryRecords = 25_000          // engines bound their logs: values that many records old are carried
	carryAges    = 12              // a log that is mostly values is trimmed after so many Ages
	carryDelay   = 2 * time.Second // at most, so that mostly one node does it
)

// valuesBefore returns the values whose homes are before a record, and what is
// gone and the other nodes don't know.
func (h *history) valuesBefore(record uint64) (values []dueValue) {
	for _, p := range h.topics {
		for _, m := range p.keys {
			if m.home < record<<recordBits && (!m.event.Gone || m.isUntold()) {
				values = append(values, dueValue{m, m.home})
			}
		}
	}
	slices.SortFunc(values, func(a, b dueValue) int { return a.compare(b.keptEvent) })
	return values
}

// tidy carries the values in records up to a milestone, and then has the log
// trimmed behind it. If the log would not become much smaller, that waits.
func (j *journal) tidy(upTo milestone, now time.Time) {
	c, bytes := &j.carrier, upTo.bytes
	before := min(upTo.record+1, c.newest)
	c.due, c.goal, c.waits = j.past.valuesBefore(before), before, false
	size := uint64(0)
	for _, m := range c.due {
		size += uint64(m.event.size())
	}
	if before <= max(c.trimmed, 1) || bytes-c.begun < 2*size && now.Sub(c.tidied) < carryAges*j.past.limit.Age {
		c.due, c.goal = j.past.valuesBefore(1), 0 // those that the log lacks don't wait
	}
	c.upTo = bytes
	j.carry()
}

// carrySoon carries the values with homes before a record, unless another node does.
func (j *journal) carrySoon(record uint64) {
	j.peers.later(rand.N(carryDelay), func(time.Time, *batch) {
		j.carrier.due = append(j.carrier.due, j.past.valuesBefore(record)...)
		j.carry()
	})
}

// noteRecord counts a record. It carries values early that are many records old.
func (j *journal) noteRecord(r *record) {
	c := &j.carrier
	c.bytes += uint64(r.bytes)
	if r.kind == brokeredRecord || r.kind == brokeredCut {
		c.newest = r.seq
	}
	if c.next > r.seq && isClosed(j.current) {
		return
	}
	if c.next > 0 && isClosed(j.current) && r.seq > carryRecords {
		j.carrySoon(r.seq - carryRecords)
	}
	c.next = r.seq + carryRecords/2
}

// carry appends the next record of values, unless one is on its way.
func (j *journal) carry() {
	c := &j.carrier
	j.askForValues()
	c.due = slices.DeleteFunc(c.due, func(d dueValue) bool { // another node has carried it, or it is no value any more
		return d.home != d.keptEvent.home || d.stale || d.replacement != nil
	})
	if c.waits || len(c.due) == 0 && c.goal == 0 {
		return
	}
	b, n := encodeCarried(j.peers.node, j.lastRecord, c.goal, c.due, j.peers.maxBytes())
	select {
	case j.out.carried <- b:
		c.due, c.waits = c.due[n:], true
		if len(c.due) == 0 {
			c.told = c.goal
		}
	default:
	}
}

// carryFailed notes that the log doesn't take a record of values. The log isn't
// trimmed then: the next call of tidy carries its values, and the next record those
// that are many records old.
func (j *journal) carryFailed() {
	c := &j.carrier
	c.due, c.goal, c.waits, c.asked = nil, 0, false, 0
	c.next = min(c.next, 1)
	if j.out.live.Load() { // otherwise catchUp does it
		j.carrySoon(1)
	}
}

// takeValues accepts a record of values, which begins behind the position start.
func (j *journal) takeValues(r *record, start uint64, now time.Time, out *batch) {
	c := &j.carrier
	if r.number+1 >= c.trimmed && r.number < r.seq {
		c.views = append(c.views, view{r.seq, r.number})
		for i, ev := range r.events {
			j.takeValue(ev, r.homes[i], r.number, start+uint64(i)+1, now, out)
		}
	}
	c.heard = r.seq
	c.trimmed = max(c.trimmed, min(r.trim, r.seq))
	c.views = slices.DeleteFunc(c.views, func(v view) bool { return v.record < c.trimmed })
	if r.node != j.peers.node {
		if r.trim > 0 {
			j.trimLater(now)
		}
		return
	}
	c.waits = false
	if r.trim > 0 && r.trim == c.told { // also if the engine's answer was lost
		c.goal, c.told, c.begun, c.tidied = 0, 0, c.upTo, now
		if !slices.ContainsFunc(c.views, func(v view) bool { return v.view+1 < r.trim }) { // nodes that start would lack what came after it
			j.trim(trim{r.epoch, r.trim})
		}
	}
	j.carry()
}

// takeValue accepts one value with a home. at is the position of its new one.
func (j *journal) takeValue(ev *event, home, view, at uint64, now time.Time, out *batch) {
	p := j.past
	switch here := p.latest(ev); {
	case here == nil && ev.Gone:
		return
	case here == nil:
		if home>>recordBits >= j.carrier.first || p.log(ev.topic).buried > p.base+view<<recordBits {
			return // it has been taken away
		}
	case here.home>>recordBits > view: // it has changed since
		return
	case here.home == home && (home > 0 || here.event.isLike(&ev.Event)):
		if here.home = at - p.base; here.event.Gone && here.stays { // all know now
			p.drop(here)
		}
		return
	case here.isUntold(), home > 0 && here.home > home: // this node carries it, or knows better
		return
	}
	if live := isClosed(j.current); live || ev.Gone {
		m := p.addAt(ev, at, now)
		m.home = at - p.base
		if live && !m.hidden {
			out.add(ev)
		}
	} else {
		p.addValue(ev, at, now).home = at - p.base
	}
}

// takeQuestion accepts a node's question for the values in records before a
// number. If this node lacks records itself, it answers where no other has.
func (j *journal) takeQuestion(r *record) {
	c := &j.carrier
	switch {
	case r.node == j.peers.node:
	case c.first < r.number:
		j.carrySoon(r.number)
	default:
		j.peers.later(2*carryDelay, func(time.Time, *batch) {
			if c.heard < r.seq {
				j.carrySoon(r.number)
			}
		})
	}
}

// askForValues asks the other nodes for values that this node lacks because the
// log lacks their records.
func (j *journal) askForValues() {
	c := &j.carrier
	if c.first <= max(c.trimmed, 1) || c.asked == c.first {
		return
	}
	select {
	case j.out.carried <- record{kind: brokeredQuestion, node: j.peers.node, number: c.first}.encode():
		c.asked = c.first
		j.shared.log.warn(logHistory, "the engine's history begins later than nodes have trimmed it: latest values that no other node has are lost")
	default:
	}
}

// loseHomes notes that the log has lost its records behind a number, and carries
// their values again.
func (j *journal) loseHomes(record uint64) {
	for _, log := range j.past.topics {
		for _, m := range log.keys {
			if m.home>>recordBits > record {
				m.home = 0
			}
		}
	}
	c := &j.carrier
	c.trimmed, c.newest, c.views = min(c.trimmed, record), min(c.newest, record), nil
	c.due, c.goal, c.told, c.waits = nil, 0, 0, false
	j.carrySoon(1)
}

// A milestone is the number of the newest record that this node had at a time.
type milestone struct {
	at     time.Time
	record uint64
	bytes  uint64 // of all records up to it
}

// expire also trims the log, two or three times in an Age.
func (j *journal) expire(now time.Time) time.Duration {
	if !now.Before(j.trimAt) {
		j.trimLater(now)
		if upTo := j.trimTo(now); j.out.live.Load() {
			j.tidy(upTo, now)
		}
	}
	wait := j.trimAt.Sub(now)
	if next := j.past.expire(now); next > 0 {
		wait = min(wait, next)
	}
	return wait
}

// trimLater sets the time of the next trim, at random, so that mostly one node
// does it.
func (j *journal) trimLater(now time.Time) {
	age := j.past.limit.Age
	j.trimAt = now.Add(age/3 + rand.N(age/6+1))
}

// trim has the engine forget records.
func (j *journal) trim(t trim) {
	select {
	case j.out.trims <- t:
	default: // the engine is slow, and a later trim does the same
	}
}

// trimTo returns the last milestone that is older than Age. The log need not keep
// the records up to there. Zero means that it keeps all. So a record leaves the log
// an Age to two Ages after it was appended, or after this node was started.
func (j *journal) trimTo(now time.Time) (last milestone) {
	j.milestones = append(j.milestones, milestone{now, j.lastRecord, j.carrier.bytes})
	for now.Sub(j.milestones[0].at) >= j.past.limit.Age { // which ends, because the last one is of now
		last = j.milestones[0]
		j.milestones = j.milestones[1:]
	}
	return last
}
