package realtime

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxOwn          = 1024              // events of this node that may wait for the log; then publishers wait
	maxRecordEvents = 1000              // events in one record
	maxRecordBytes  = 256 << 10         // bytes in one record; a larger event has its own
	recordBits      = 10                // the bits of a position that number a record's events
	wholeRecord     = 1<<recordBits - 1 // in these bits: a record's last event
	maxNodes        = 10_000            // nodes whose last event is known
	maxStart        = time.Minute       // the longest that a client waits while a node first reads the log
)

// A journal is the order of a hub whose engine keeps one log for all nodes.
// Clients get an event of this node when the log delivers it. So all nodes have
// one order, and an id is valid on all of them.
//
//	publish ──▶ appender ──▶ the engine's log ──▶ Record ──▶ take ──▶ clients
//	                │                                                    ▲
//	                └────────── passCut: what the log doesn't take ──────┘
//
// If the log doesn't accept and deliver events in time, a cut begins. Events go
// to this node's clients alone, with ids that resume nowhere. When the log
// works again, a record tells all nodes of the cut. Clients that reconnect with
// an older id get a reset.
type journal struct {
	// Set at construction, never changed.
	shared  *shared
	past    *history // owned by the loop
	peers   *peers
	out     *appender
	started time.Time
	current chan struct{} // closed when this node has first read the whole log

	// Owned by the loop.
	number     uint64            // number of this node's last event
	own        []*ownEvent       // this node's events that clients have yet to get
	passed     uint64            // number of the last event that clients got without the log
	lastRecord uint64            // number of the newest record that arrived
	readAway   uint64            // lastRecord when the engine went away; zero: it is back
	numbers    map[nodeID]uint64 // number of each node's last event
	sure       map[nodeID]bool   // nodes of which this node has taken all records since
	milestones []milestone       // oldest first; those that trimTo has yet to use
	trimAt     time.Time         // when to call trimTo next
	early      bool              // a client joined before the log was current
	held       bool              // in the last beat members of nodes that are gone were left to another node
	carrier    carrier

	reached atomic.Pointer[progress] // replaced by the loop
}

// A progress is how far this node has come in the log.
type progress struct {
	epoch  string
	number uint64        // the last one in this epoch's ids
	over   chan struct{} // closed when there is a newer progress
}

// An ownEvent is an event that was published on this node.
type ownEvent struct {
	*event
	number uint64       // counts this node's events from 1 on
	result chan<- error // gets the publisher's error; has room for it
}

// size returns roughly how many bytes ev has in a record.
func (ev *event) size() int {
	return len(ev.Data) + len(ev.topic) + len(ev.Name) + len(ev.Key) + len(ev.Except) + 24
}

// newJournal returns a journal that is running; close ends it.
func newJournal(s *shared, broker HistoryBroker) *journal {
	j := &journal{
		shared:  s,
		past:    newHistory(s.history),
		peers:   newPeers(s, broker),
		started: time.Now(),
		current: make(chan struct{}),
		numbers: make(map[nodeID]uint64),
		sure:    make(map[nodeID]bool),
	}
	j.reached.Store(&progress{over: make(chan struct{})})
	j.past.forgotten, j.past.heard = s.forgot, s.heard
	j.past.epoch = ""
	j.past.prints = new(prints)
	j.past.move(wholeRecord) // zero is no position
	j.past.tell()
	j.out = newAppender(j, broker)
	j.peers.beat, j.peers.trail = j.beat, j.out.trail.Load
	j.peers.start(j)
	if err := broker.Follow(j); err != nil {
		j.out.appending.failed(err)
	}
	j.peers.own.Go(j.out.run)
	return j
}

// publish hands the event to the appender. The queue has room, because the loop
// calls isFull before.
func (j *journal) publish(ev *event, _ time.Time, _ *batch) receipt {
	if ev.notice == noNotice {
		j.shared.published.Add(1)
	}
	j.number++
	result := make(chan error, 1)
	e := &ownEvent{ev, j.number, result}
	j.own = append(j.own, e)
	j.out.queue <- e
	return receipt{later: result}
}

func (j *journal) arrivals() <-chan arrival { return j.peers.in }
func (j *journal) isFull() bool             { return len(j.own) >= maxOwn }
func (j *journal) isPending() bool          { return len(j.own) > 0 }

// fill also notes whether a client joins before the log is current.
func (j *journal) fill(r *replay) {
	j.past.fill(r)
	j.early = j.early || !isClosed(j.current)
}

// want returns the log's channel: the log has all topics.
func (j *journal) want([]string) []<-chan struct{} { return []<-chan struct{}{j.current} }
func (j *journal) unwant([]string)                 {}

func (j *journal) position() string { return j.past.now.Load().ID }

func (j *journal) elsewhere() (clients int, down bool) { return j.peers.clients(), j.out.down.Load() }
func (j *journal) self() nodeID                        { return j.peers.node }
func (j *journal) close()                              { j.peers.close() }

// beat has members of nodes that are gone taken away, in the log. Any node may do it.
// So that mostly one does, a node may leave it to others, but for one beat only.
func (j *journal) beat(time.Time, *batch) {
	if !j.out.live.Load() {
		return
	}
	gone := j.past.bereaved(j.peers.isGone)
	j.held = len(gone) > 0 && !j.held && rand.N(2) == 0
	if len(gone) > 0 && !j.held {
		j.shared.presence.bury(gone)
	}
}

// Deliver accepts a heartbeat of another node; see [BrokerHandler].
func (j *journal) Deliver(name string, msg []byte) {
	_, m, ok := j.peers.parse(name, msg)
	if !ok {
		return
	}
	j.peers.mu.Lock()
	j.peers.hearLocked(&m)
	j.peers.mu.Unlock()
	if m.trail.record > 0 {
		j.peers.pass(func(_ time.Time, out *batch) { j.compare(m.trail, out) })
	}
}

// Gap does nothing: only heartbeats are lost. See [BrokerHandler].
func (j *journal) Gap(error) {}

// Record accepts a record of the log; see [HistoryHandler].
func (j *journal) Record(epoch string, seq uint64, b []byte) {
	if !j.isEpoch(epoch) {
		return
	}
	r, err := parseRecord(b)
	if err != nil {
		j.shared.log.warn(logBroker, "broker delivered a record that no hub wrote", "err", err, "bytes", len(b))
	}
	j.out.arrived.Store(time.Now().UnixNano())
	r.epoch, r.seq, r.print, r.bytes = epoch, seq, crc32.Checksum(b, castagnoli), len(b)
	// One that is not a hub's uses a position, too.
	j.peers.pass(func(now time.Time, out *batch) { j.take(&r, now, out) })
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Current accepts the report that all records have arrived; see
// [HistoryHandler].
func (j *journal) Current(epoch string, last uint64) {
	if j.isEpoch(epoch) {
		j.peers.pass(func(_ time.Time, out *batch) { j.catchUp(epoch, last, out) })
	}
}

// isEpoch reports whether a text may be an epoch, which is part of event ids.
func (j *journal) isEpoch(epoch string) bool {
	is := epoch != "" && len(epoch) <= 32 && !strings.ContainsFunc(epoch, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if !is {
		j.shared.log.error(logBroker, "broker is faulty: an epoch has 1 to 32 letters and digits", "epoch", clip(epoch))
	}
	return is
}

// Away accepts the report that the engine is away; see [HistoryHandler].
func (j *journal) Away(err error) {
	j.out.live.Store(false)
	j.out.appending.failed(err)
	j.peers.pass(func(time.Time, *batch) { j.readAway = j.lastRecord })
}

// await waits until the log is current; see awaitStart. Then it waits until
// this node has the event with an id, but for brokerTimeout at most.
func (j *journal) await(id string) {
	if !j.awaitStart() {
		return
	}
	patience := time.After(brokerTimeout)
	epoch, number, _, ok := parseEventID(id)
	for ok {
		at := j.reached.Load()
		if at.epoch != epoch || at.number >= number {
			return
		}
		select {
		case <-at.over:
		case <-patience:
			return
		case <-j.shared.done:
			return
		}
	}
}

// awaitStart waits until the log is current, and reports whether it is. It
// gives up when no record has arrived for brokerTimeout, because the engine is
// then away. In any case it gives up maxStart after the start.
func (j *journal) awaitStart() bool {
	for end := j.started.Add(maxStart); ; {
		last := j.out.arrived.Load()
		until := time.Unix(0, max(j.started.UnixNano(), last)).Add(brokerTimeout)
		select {
		case <-j.current:
			return true
		case <-j.shared.done:
			return false
		case <-time.After(min(time.Until(until), time.Until(end))):
			if j.out.arrived.Load() == last || !time.Now().Before(end) {
				return isClosed(j.current)
			}
		}
	}
}

// delivered tells await the history's position. It isn't told before: a client that
// awaits a disconnect would join its shard, and be closed by it.
func (j *journal) delivered() {
	j.past.tell()
	now := &progress{j.past.epoch, j.past.seq - j.past.base, make(chan struct{})}
	close(j.reached.Swap(now).over)
}

// passCut gives this node's events up to number last to clients, without the
// log.
func (j *journal) passCut(last uint64, now time.Time, out *batch) {
	j.passed = last
	for len(j.own) > 0 && j.own[0].number <= last {
		ev := j.own[0].event
		if !j.past.addUnshared(ev, now).hidden {
			out.add(ev)
		}
		j.own = j.own[1:]
	}
}

// catchUp notes that all records up to last have arrived, until the engine is
// away again.
func (j *journal) catchUp(epoch string, last uint64, out *batch) {
	if epoch == j.past.epoch && last < j.readAway {
		j.putBack(last, out)
	}
	j.readAway = 0
	j.reach(epoch, last, out)
	if !j.out.live.Swap(true) {
		j.peers.hearAgain() // no heartbeat came while the engine was away
	}
	if !j.out.down.Load() {
		j.out.appending.over()
	}
	if !isClosed(j.current) {
		close(j.current)
		if j.early {
			j.lost(out, "the broker could not be reached when this node started")
		}
	}
	j.carrySoon(1)
	j.out.look()
}

// reach notes that the records up to last have arrived or are lost.
func (j *journal) reach(epoch string, last uint64, out *batch) {
	p := j.past
	switch {
	case epoch != p.epoch:
		if p.epoch != "" {
			j.lost(out, "the engine has a different history than before")
			j.loseHomes(0)
		}
		p.restart(epoch)
	case last > j.lastRecord:
		j.lost(out, fmt.Sprintf("%d records are no longer in the engine's history", last-j.lastRecord))
	default:
		return
	}
	j.carrier.first = last + 1
	j.beginBehind(last)
}

// putBack notes that the log has lost its records behind last. Their numbers
// stand for other records from now on.
func (j *journal) putBack(last uint64, out *batch) {
	j.lost(out, "the engine's history was put back to an older state")
	j.out.putBack.Store(true)
	j.loseHomes(last)
	j.past.restart(j.past.epoch)
	j.beginBehind(last)
	j.past.begin++ // an id of record last doesn't tell whether its client got the lost ones
}

// beginBehind makes the history begin behind a record: older ids don't resume.
func (j *journal) beginBehind(record uint64) {
	p := j.past
	j.lastRecord = record
	j.milestones = nil // the numbers may stand for other records now
	clear(j.sure)
	j.out.trail.Store(new(trail))
	p.move(p.base + record<<recordBits | wholeRecord)
	p.begin = p.seq
}

// lost counts a gap and sends clients a reset, and all latest values and members behind
// it, as when they reconnect. The ids that they get from now on don't show the gap.
func (j *journal) lost(out *batch, why string) {
	j.gap(why)
	if isClosed(j.current) {
		out.add(resetEvent)
		for _, ev := range j.past.allValues() {
			out.add(ev)
		}
	}
}

func (j *journal) gap(why string) {
	j.shared.gaps.Add(1)
	j.shared.log.warn(logBroker, "events may be missing", "why", why)
}

// take accepts a record.
func (j *journal) take(r *record, now time.Time, out *batch) {
	p := j.past
	if r.epoch == p.epoch && r.seq <= j.lastRecord {
		if print, ok := p.prints.get(r.seq); !ok || print == r.print {
			return
		}
		j.putBack(r.seq-1, out)
	}
	j.reach(r.epoch, r.seq-1, out)
	j.compare(r.trail, out)
	j.lastRecord = r.seq
	p.prints.add(r.seq, r.print)
	j.out.trail.Store(j.past.trail(r.seq))
	start := p.base + r.seq<<recordBits
	end := start | wholeRecord
	if r.node == j.peers.node && !r.fits(j.number) {
		*r = record{} // this node didn't make it
	}
	j.noteRecord(r)
	switch r.kind {
	case brokeredRecord:
		j.takeEvents(r, start, end, now, out)
	case brokeredCut:
		j.takeCut(r, end, now, out)
	case brokeredValues:
		j.takeValues(r, start, now, out)
	case brokeredQuestion:
		j.takeQuestion(r)
	}
	p.move(end)
	if r.kind == brokeredCut && r.node == j.peers.node && r.number > 0 {
		j.endCut(r.number, out)
	} else if n := len(r.events); r.kind != brokeredRecord || n == 0 || r.events[n-1].notice == disconnectNotice {
		j.tellShards(out)
	}
}

// lostAccepted tells that the log lacks events of a node, though no cut tells of them.
// No node got them. Clients of their own node get them all the same, see claim.
const lostAccepted = "the engine has lost events that it had accepted"

// takeEvents accepts the events of a record. The last one has the position end.
func (j *journal) takeEvents(r *record, start, end uint64, now time.Time, out *batch) {
	p := j.past
	if r.node != j.peers.node && j.sure[r.node] && r.number > j.numbers[r.node]+1 {
		p.addAt(newGap(""), start, now)
		j.lost(out, lostAccepted)
	}
	for i, ev := range r.events {
		if !j.isNew(r.node, r.number+uint64(i)) {
			continue
		}
		ev, live := j.claim(r, i, ev, start, now, out)
		at := start + uint64(i) + 1
		if i == len(r.events)-1 {
			at = end
		}
		m := p.addAt(ev, at, now)
		m.home = at - p.base
		switch {
		case live && ev.notice == disconnectNotice && !isClosed(j.current):
			out.disconnect(ev, true)
		case live && !m.hidden:
			out.add(ev)
		}
	}
}

// tellShards tells the shards the history's position when no event tells it.
func (j *journal) tellShards(out *batch) {
	if len(j.past.unshared) == 0 {
		position := j.past.position()
		*out = append(*out, entry{do: func(s *shard) { s.last.Store(position) }})
	}
}

// takeCut accepts a node's cut. It puts gaps into the history, at position at.
func (j *journal) takeCut(r *record, at uint64, now time.Time, out *batch) {
	j.isNew(r.node, r.number) // events of the cut that arrive later aren't new
	for _, gap := range r.events {
		j.past.addAt(gap, at, now)
	}
	switch live := isClosed(j.current); { // before that, clients can't have missed anything
	case r.number == 0: // the log was put back, see tellPutBack
		if !j.out.putBack.Swap(false) && r.node != j.peers.node && live { // otherwise this node knows already
			j.lost(out, "another node reports that the engine's history was put back to an older state")
		}
	case len(r.events) > 0 && live:
		j.gap("a node could not reach the broker")
	}
}

// endCut accepts this node's own cut. Ids resume again, unless events have
// bypassed the log since.
func (j *journal) endCut(number uint64, out *batch) {
	if number >= j.passed && len(j.past.unshared) > 0 {
		j.past.unshared, j.past.stale = nil, true
		j.carrySoon(1) // the values among them
		j.tellShards(out)
	}
	j.out.cutSeen.Store(number)
	j.out.look()
}

// isNew reports whether number is the node's highest so far, and notes it.
func (j *journal) isNew(node nodeID, number uint64) bool {
	if number <= j.numbers[node] {
		return false
	}
	if len(j.numbers) >= maxNodes {
		clear(j.numbers)
		clear(j.sure)
	}
	j.numbers[node], j.sure[node] = number, true
	return true
}
