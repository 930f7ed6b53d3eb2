package realtime

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

const (
	maxOwn          = 1024              // events of this node that the log hasn't brought back
	maxRecordEvents = 1000              // in one record
	maxRecordBytes  = 256 << 10         // the same in bytes, and one event more
	recordBits      = 10                // of a position for those within a record
	wholeRecord     = 1<<recordBits - 1 // the position in it of its last event
	maxNodes        = 10_000            // of which the last event is known
	maxStart        = time.Minute       // for which a client waits while a node reads the log for the first time
)

// A journal is the order of a hub whose engine keeps one log for all nodes. An
// event of this node goes to the log first, and to clients when the log brings
// it back. So all nodes have one order, and an id holds everywhere.
//
//	publish ──▶ appender ──▶ the engine's log ──▶ Record ──▶ arrive ──▶ clients
//	                │                                           ▲
//	                └───── passCut: what the log doesn't take ──┘
//
// What the log doesn't take in time is a cut: events go to the clients of this
// node alone, in their order and with ids that resume nowhere. When the log
// works again the cut is told in it, to all nodes. Clients that reconnect with
// an id from before it get a reset.
type journal struct {
	// Set at construction, never changed.
	shared  *shared
	past    *history // owned by the loop, but for what never changes
	peers   *peers
	out     *appender
	started time.Time
	current chan struct{} // closed when this node had the whole log for the first time

	// Owned by the loop.
	number     uint64            // of this node's last event
	own        []*ownEvent       // that have not reached clients yet
	passed     uint64            // the last event of this node that clients got without the log
	lastRecord uint64            // that has come
	readAway   uint64            // lastRecord when the engine was last away; zero: it is back
	numbers    map[nodeID]uint64 // of the last event of each node
	early      bool              // there are clients that didn't wait until the log was current

	mu      sync.Mutex // guards the fields below, which are the history's
	epoch   string
	base    uint64
	seq     uint64
	waiters int
	changed chan struct{} // closed, and made again, when seq grows while there are waiters
}

// An ownEvent is one that was published on this node.
type ownEvent struct {
	*event
	number uint64       // its position among all of the node's
	result chan<- error // has room for what its publisher waits for
}

// size returns about how many bytes e has in a record.
func (e *ownEvent) size() int {
	return len(e.Data) + len(e.topic) + len(e.Name) + len(e.Key) + len(e.Except) + 16
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
		changed: make(chan struct{}),
	}
	j.past.epoch = ""
	j.past.prints = new(prints)
	j.past.seq = wholeRecord // zero is no position
	j.out = newAppender(j, broker)
	j.peers.start(j)
	if err := broker.Follow(j, s.history.Age); err != nil {
		j.out.appending.failed(err)
	}
	j.peers.own.Go(j.out.run)
	return j
}

// publish hands the event to the appender, for which it never waits. The loop
// sees to it by isFull.
func (j *journal) publish(ev *event, _ time.Time, _ *batch) receipt {
	j.shared.published.Add(1)
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

// fill notes whether there is a client that couldn't wait for the log.
func (j *journal) fill(r *replay) {
	j.past.fill(r)
	j.early = j.early || !isClosed(j.current)
}

func (j *journal) expire(now time.Time) time.Duration { return j.past.expire(now) }

// want waits for the log, which has all topics.
func (j *journal) want([]string) []<-chan struct{} { return []<-chan struct{}{j.current} }
func (j *journal) unwant([]string)                 {}

func (j *journal) elsewhere() (clients int, down bool) { return j.peers.clients(), j.out.down.Load() }
func (j *journal) close()                              { j.peers.close() }

// Deliver takes what the broker brings beside the log: heartbeats. See
// [BrokerHandler].
func (j *journal) Deliver(name string, msg []byte) {
	if _, m, ok := j.peers.parse(name, msg); ok {
		j.peers.mu.Lock()
		defer j.peers.mu.Unlock()
		j.peers.hearLocked(&m)
	}
}

// Gap does nothing: no event comes that way. See [BrokerHandler].
func (j *journal) Gap(error) {}

// Record takes a record of the log; see [HistoryHandler].
func (j *journal) Record(epoch string, seq uint64, b []byte) {
	if !j.isEpoch(epoch) {
		return
	}
	r, err := parseRecord(b)
	if err != nil {
		j.shared.log.warn(logBroker, "broker brought what no hub has sent", "err", err, "bytes", len(b))
	}
	j.out.arrived.Store(time.Now().UnixNano())
	r.epoch, r.seq, r.print = epoch, seq, crc32.Checksum(b, castagnoli)
	j.peers.pass(&r) // also of one that says nothing: it has its position
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Current takes the broker's word that all records have come; see
// [HistoryHandler].
func (j *journal) Current(epoch string, last uint64) {
	if j.isEpoch(epoch) {
		j.peers.pass(caughtUp{epoch, last})
	}
}

// isEpoch reports whether a text is one, as it gets into what clients see.
func (j *journal) isEpoch(epoch string) bool {
	is := epoch != "" && len(epoch) <= 32 && !strings.ContainsFunc(epoch, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if !is {
		j.shared.log.error(logBroker, "broker is faulty: an epoch is at most 32 letters and digits", "epoch", clip(epoch))
	}
	return is
}

// Away takes the broker's word that none will come; see [HistoryHandler].
func (j *journal) Away(err error) {
	j.out.live.Store(false)
	j.out.appending.failed(err)
	j.peers.pass(wentAway{})
}

// await waits until this node has the log, and until the log has come as far as
// an event id that a client may have got on another node. For the latter it waits
// brokerTimeout at most.
func (j *journal) await(id string) {
	if !j.awaitStart() {
		return
	}
	patience := time.NewTimer(brokerTimeout)
	defer patience.Stop()
	j.mu.Lock()
	defer j.mu.Unlock()
	epoch, number, _, ok := parseEventID(id)
	j.waiters++
	defer func() { j.waiters-- }()
	for ok && j.epoch == epoch && number > j.seq-j.base {
		changed := j.changed
		j.mu.Unlock()
		select {
		case <-changed:
			j.mu.Lock()
		case <-patience.C:
			j.mu.Lock()
			return
		case <-j.shared.done:
			j.mu.Lock()
			return
		}
	}
}

// awaitStart waits until this node has the log, and reports whether it has. It
// gives up brokerTimeout after the start or the last record that came, as an
// engine is away that hands over nothing, and after maxStart in any case.
func (j *journal) awaitStart() bool {
	for {
		last := max(j.started.UnixNano(), j.out.arrived.Load())
		until := min(last+int64(brokerTimeout), j.started.Add(maxStart).UnixNano())
		patience := time.NewTimer(time.Duration(until - time.Now().UnixNano()))
		select {
		case <-j.current:
			patience.Stop()
			return true
		case <-j.shared.done:
			patience.Stop()
			return false
		case <-patience.C:
			if j.out.arrived.Load() <= last || time.Now().UnixNano() >= j.started.Add(maxStart).UnixNano() {
				return isClosed(j.current)
			}
		}
	}
}

// tellPosition lets those go on who wait for the history's position. The loop
// calls it.
func (j *journal) tellPosition() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch, j.base, j.seq = j.past.epoch, j.past.base, j.past.seq
	if j.waiters > 0 {
		close(j.changed)
		j.changed = make(chan struct{})
	}
}

// What arrives at a journal.
type (
	// A passCut lets clients have the events of this node up to its number that
	// have not come back.
	passCut uint64

	// A caughtUp is the word that the log has been handed over up to a record.
	caughtUp struct {
		epoch string
		last  uint64
	}

	// A wentAway is the word that nothing comes until the next caughtUp.
	wentAway struct{}

	// The fourth is a *record.
)

func (j *journal) arrive(a arrival, now time.Time, out *batch) {
	switch a := a.(type) {
	case *record:
		j.take(a, now, out)
	case passCut:
		j.passCut(uint64(a), now, out)
	case caughtUp:
		j.catchUp(a, out)
	case wentAway:
		j.readAway = j.lastRecord
	}
}

func (j *journal) passCut(last uint64, now time.Time, out *batch) {
	j.passed = last
	for len(j.own) > 0 && j.own[0].number <= last {
		ev := j.own[0].event
		j.past.addUnshared(ev, now)
		out.add(ev)
		j.own = j.own[1:]
	}
}

func (j *journal) catchUp(c caughtUp, out *batch) {
	if c.epoch == j.past.epoch && c.last < j.readAway {
		j.putBack(c.last, out)
	}
	j.readAway = 0
	j.reach(c.epoch, c.last, out)
	j.tellPosition()
	if _, known := j.past.prints.text(j.lastRecord); !known {
		j.markIn(0)
	}
	j.out.live.Store(true)
	if !j.out.down.Load() {
		j.out.appending.over()
	}
	if !isClosed(j.current) {
		close(j.current)
		if j.early {
			j.lost(out, "the broker was not there when this node was started")
		}
	}
	j.out.look()
}

// reach notes that all records up to last have come: those that haven't are lost.
func (j *journal) reach(epoch string, last uint64, out *batch) {
	p := j.past
	switch {
	case epoch != p.epoch:
		if p.epoch != "" {
			j.lost(out, "the engine has another history than before")
		}
		p.restart(epoch)
	case last > j.lastRecord:
		j.lost(out, fmt.Sprintf("%d records are no longer in the engine's history", last-j.lastRecord))
	default:
		return
	}
	j.beginBehind(last)
}

// putBack notes that the log has lost the records behind the last one. Its numbers
// stand for other records from now on.
func (j *journal) putBack(last uint64, out *batch) {
	j.lost(out, "the engine's history was put back to an older state")
	j.out.putBack.Store(true)
	j.past.restart(j.past.epoch)
	j.beginBehind(last)
	j.past.begin++ // a client that has seen the last record may have missed the lost ones
}

// beginBehind makes a record the last one of which nothing is known.
func (j *journal) beginBehind(record uint64) {
	p := j.past
	j.lastRecord = record
	p.move(p.base + record<<recordBits | wholeRecord)
	p.begin = p.seq
}

// lost counts a gap, and tells clients of it: ids that they get from now on will
// not show it.
func (j *journal) lost(out *batch, why string) {
	j.gap(why)
	if isClosed(j.current) {
		out.add(resetEvent)
	}
}

func (j *journal) gap(why string) {
	j.shared.gaps.Add(1)
	j.shared.log.warn(logBroker, "events may be missing", "why", why)
}

// take takes the next record.
func (j *journal) take(r *record, now time.Time, out *batch) {
	p := j.past
	if r.epoch == p.epoch && r.seq <= j.lastRecord {
		if print, ok := p.prints.get(r.seq); !ok || print == r.print {
			return
		}
		j.putBack(r.seq-1, out)
	}
	j.reach(r.epoch, r.seq-1, out)
	j.lastRecord = r.seq
	p.prints.add(r.seq, r.print)
	start := p.base + r.seq<<recordBits
	end := start | wholeRecord
	if r.node == j.peers.node && !r.fits(j.number) {
		*r = record{} // somebody else has made it
	}
	for i, ev := range r.events {
		if !j.isNew(r.node, r.number+uint64(i)) {
			continue
		}
		ev, live := j.claim(r, i, ev, now, out)
		at := start + uint64(i) + 1
		if i == len(r.events)-1 {
			at = end
		}
		p.addAt(ev, at, now)
		if live {
			out.add(ev)
		}
	}
	if r.kind == brokeredCut {
		j.takeCut(r, end, now, out)
	}
	p.move(end)
	if r.kind == brokeredCut && r.node == j.peers.node && r.number > 0 {
		j.endCut(r.number, out)
	} else if len(r.events) == 0 {
		j.tellShards(out)
	}
	j.tellPosition()
	j.markIn(j.past.limit.Age/3 + rand.N(j.past.limit.Age/6+1)) // one node does it for all
}

// markIn has the appender mark the end of the log if no record comes before.
func (j *journal) markIn(d time.Duration) { j.out.markAt.Store(time.Now().Add(d).UnixNano()) }

// tellShards lets clients know how far the history has come though there is no
// event for them.
func (j *journal) tellShards(out *batch) {
	if len(j.past.unshared) == 0 {
		position := j.past.position()
		*out = append(*out, entry{op: opNote, note: func(s *shard) { s.last.Store(position) }})
	}
}

// claim returns the event at index i of a record, or the one of this node that it
// is, and reports whether clients get it: it isn't from before this node was
// started, and they don't have it yet.
func (j *journal) claim(r *record, i int, ev *event, now time.Time, out *batch) (_ *event, live bool) {
	live = isClosed(j.current)
	if r.node != j.peers.node {
		return ev, live
	}
	number := r.number + uint64(i)
	live = live && number > j.passed
	for len(j.own) > 0 && j.own[0].number < number { // which the engine had, and has lost
		lost := j.own[0].event
		j.past.addAt(lost, j.past.seq, now)
		out.add(lost)
		j.own = j.own[1:]
	}
	if len(j.own) > 0 && j.own[0].number == number {
		ev, live = j.own[0].event, true
		j.own = j.own[1:]
	}
	j.out.seen.Store(number)
	return ev, live
}

// takeCut notes what a node has not got into the log.
func (j *journal) takeCut(r *record, at uint64, now time.Time, out *batch) {
	j.isNew(r.node, r.number) // and what comes late isn't
	for _, topic := range r.topics {
		j.past.addAt(newGap(topic), at, now)
	}
	switch {
	case r.number == 0: // the log was put back, see tellPutBack
		if !j.out.putBack.Swap(false) && r.node != j.peers.node { // else this node knows
			j.lost(out, "the engine's history was put back to an older state, as another node says")
		}
	case len(r.topics) > 0:
		j.gap("a node could not reach the broker")
	}
}

// endCut ends the cut of this node that the log has brought back: ids resume
// again.
func (j *journal) endCut(number uint64, out *batch) {
	if number >= j.passed && len(j.past.unshared) > 0 {
		j.past.unshared = nil
		j.tellShards(out)
	}
	j.out.cutSeen.Store(number)
	j.out.look()
}

// isNew reports whether no event of the node with this number or a higher one
// has come, and notes that now one has.
func (j *journal) isNew(node nodeID, number uint64) bool {
	if number <= j.numbers[node] {
		return false
	}
	if len(j.numbers) >= maxNodes {
		clear(j.numbers)
	}
	j.numbers[node] = number
	return true
}
