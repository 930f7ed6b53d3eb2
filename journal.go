package realtime

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxOwn          = 1024                   // events of this node that the log hasn't brought back
	maxRecordEvents = 1000                   // in one record
	maxRecordBytes  = 256 << 10              // the same in bytes, and one event more
	recordBits      = 10                     // of a place for those within a record
	wholeRecord     = 1<<recordBits - 1      // the place in it of its last event
	journalPatience = 2 * time.Second        // for the log to take an event, and to bring it back
	journalTick     = 500 * time.Millisecond // between two looks at that
	appendRetry     = 50 * time.Millisecond  // between two tries of one record
	maxLostTopics   = 100                    // that a cut names
	maxNodes        = 10_000                 // of which the last event is known
)

// A journal is a hub's part in a log that all nodes have in common. An event of
// this node's is handed to the goroutine append, and goes to clients when the log
// brings it back, so that all nodes have one order and its id holds everywhere.
//
// What the log doesn't take in time is a cut: events go to the clients of this
// node alone, in their order and with ids that nobody resumes. When the log works
// again the cut is told in it, to all nodes: who comes back with an id from before
// gets a reset.
type journal struct {
	// Set at construction, never changed.
	cluster *cluster
	broker  HistoryBroker
	started time.Time
	queue   chan *ownEvent // filled by the loop, with room for all of own
	wake    chan struct{}  // has room for one word that live or cutSeen has changed
	current chan struct{}  // closed when it was for the first time

	down    atomic.Bool   // there is a cut
	live    atomic.Bool   // the log is current
	seen    atomic.Uint64 // the last event of this node that the log has brought back
	cutSeen atomic.Uint64 // the number of the last cut of this node that it has brought back

	// Owned by the loop.
	own     []*ownEvent       // that have not reached clients yet
	local   uint64            // the last event of this node that clients got without the log
	last    uint64            // the last record that has come
	numbers map[nodeID]uint64 // of the last event of each node
	early   bool              // there are clients that didn't wait until the log was current

	// Owned by the goroutine append.
	next     *ownEvent       // taken from the queue, but not yet for a record
	appended uint64          // the last event of this node that the log has taken
	gone     uint64          // the last one that clients of this node got without it
	topics   map[string]bool // of those that it has not taken, since the last cut; the empty one stands for all
	moved    time.Time       // when seen was last found to move, or to have nothing to wait for
	movedTo  uint64          // seen, then

	mu      sync.Mutex // guards the fields below
	epoch   string     // the history's
	base    uint64     // the same
	place   uint64     // the same
	waiters int
	changed chan struct{} // closed, and made anew, when place grows while there are waiters
}

// An ownEvent is one that was published on this node.
type ownEvent struct {
	*event
	number uint64       // its place among all of the node's
	result chan<- error // has room for one; nil: nobody waits
}

// size returns about how many bytes e has in a record.
func (e *ownEvent) size() int {
	return len(e.Data) + len(e.topic) + len(e.Name) + len(e.Key) + len(e.Except) + 16
}

// startJournal begins it; startCluster calls it, on the loop.
func (c *cluster) startJournal(broker HistoryBroker) {
	j := &journal{
		cluster: c,
		broker:  broker,
		started: time.Now(),
		queue:   make(chan *ownEvent, 2*maxOwn), // a round of the loop takes 257 at the most
		wake:    make(chan struct{}, 1),
		current: make(chan struct{}),
		topics:  make(map[string]bool),
		numbers: make(map[nodeID]uint64),
		changed: make(chan struct{}),
	}
	c.journal = j
	c.hub.past.epoch = ""
	c.hub.past.seq = wholeRecord // zero is no place
	if err := broker.Follow(j, c.hub.shared.history.Age); err != nil {
		c.failed(err)
	}
	c.own.Go(j.append)
}

// enqueue takes an event of this node's. The loop calls it; it never waits.
func (j *journal) enqueue(e *ownEvent) {
	j.own = append(j.own, e)
	j.queue <- e
}

// append is the goroutine that appends events to the log. It ends with the hub.
func (j *journal) append() {
	ticker := time.NewTicker(journalTick)
	defer ticker.Stop()
	probed := make(chan error, 1)
	probing := false
	var told uint64 // the last event that was told of
	var toldAt time.Time
	for {
		look := false
		select {
		case e := <-j.queue:
			for j.next = e; j.next != nil; {
				j.handle(j.collect())
			}
		case err := <-probed:
			probing = false
			if err != nil {
				toldAt = time.Time{}
			}
			look = err == nil || j.generalize(err)
		case <-ticker.C:
			j.checkProgress()
			look = true
		case <-j.wake:
			look = true
		case <-j.cluster.done:
			if j.down.Load() && !probing {
				j.tell(j.cluster.ctx)
			}
			return
		}
		switch {
		case !look || !j.down.Load() || probing:
		case told > 0 && j.cutSeen.Load() >= told:
			j.heal(told)
			told, toldAt = 0, time.Time{}
		case j.live.Load() && time.Since(toldAt) > brokerTimeout:
			// It may take as long as it likes: events go on without it.
			probing, told, toldAt = true, j.gone, time.Now()
			record := j.cut()
			j.cluster.own.Go(func() {
				ctx, cancel := context.WithTimeout(j.cluster.ctx, brokerTimeout)
				defer cancel()
				probed <- j.broker.Append(ctx, record)
			})
		}
	}
}

// collect returns the events of the next record, j.next first.
func (j *journal) collect() []*ownEvent {
	events, bytes := []*ownEvent{j.next}, j.next.size()
	for j.next = nil; len(events) < maxRecordEvents; {
		select {
		case e := <-j.queue:
			if bytes += e.size(); bytes > maxRecordBytes {
				j.next = e
				return events
			}
			events = append(events, e)
		default:
			return events
		}
	}
	return events
}

// handle appends events to the log or, where that fails, lets them go without
// it.
func (j *journal) handle(events []*ownEvent) {
	last := events[len(events)-1].number
	err := error(ErrBrokerUnavailable)
	if !j.down.Load() {
		err = j.record(j.encode(events))
		switch {
		case err == nil:
			j.appended = last
		case errors.Is(err, ErrEventTooLarge) && len(events) > 1:
			j.handle(events[:len(events)/2])
			j.handle(events[len(events)/2:])
			return
		}
	}
	if err != nil {
		j.cluster.hub.shared.brokerLost.Add(int64(len(events)))
		for _, e := range events {
			j.miss(e.topic)
		}
		j.let(last)
	}
	for _, e := range events {
		if e.result != nil {
			e.result <- err
		}
	}
	if errors.Is(err, ErrEventTooLarge) {
		j.cluster.hub.log.error(logBroker, "an event is too large for the broker: other nodes don't get it", "bytes", len(events[0].Data), "topic", clip(events[0].topic))
		j.heal(0) // the log works
	}
}

// record appends a record. It tries again for a while: nodes drop one that comes
// twice.
func (j *journal) record(record []byte) error {
	until := time.Now().Add(journalPatience)
	if start := j.started.Add(brokerTimeout); until.Before(start) && !j.isCurrent() {
		until = start // the engine isn't away, but not yet found
	}
	ctx, cancel := context.WithDeadline(j.cluster.ctx, until)
	defer cancel()
	for {
		err := j.broker.Append(ctx, record)
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrEventTooLarge) {
			return ErrEventTooLarge
		}
		select {
		case <-time.After(appendRetry):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			j.cluster.hub.log.error(logBroker, "broker is unavailable", "err", err)
			return ErrBrokerUnavailable
		}
	}
}

// let has clients get this node's events up to the given one without the log,
// which is a cut.
func (j *journal) let(last uint64) {
	j.gone = last
	j.down.Store(true)
	j.cluster.pass(letGo(last))
}

// miss notes that other nodes have missed an event of a topic.
func (j *journal) miss(topic string) {
	if len(j.topics) < maxLostTopics {
		j.topics[topic] = true
	} else {
		j.topics[""] = true // which is all
	}
}

// checkProgress finds out whether the log brings back what it takes: where that
// lasts too long, clients of this node don't wait for it.
func (j *journal) checkProgress() {
	now := time.Now()
	seen := max(j.seen.Load(), j.gone)
	switch {
	case seen != j.movedTo || seen >= j.appended || j.down.Load():
		j.moved, j.movedTo = now, seen
	case now.Sub(j.moved) >= journalPatience:
		j.cluster.hub.log.error(logBroker, "broker is unavailable", "err", errNotBack)
		j.let(j.appended)
	}
}

var errNotBack = errors.New("it takes events and doesn't deliver them")

// heal ends a cut that has been told, and come back: so the log works. Events
// that went by it since have to be told as well, for which those that come now
// wait.
func (j *journal) heal(told uint64) {
	if j.gone > told {
		ctx, cancel := context.WithTimeout(j.cluster.ctx, journalPatience)
		defer cancel()
		if err := j.tell(ctx); err != nil {
			j.cluster.hub.log.error(logBroker, "broker is unavailable", "err", err)
			return
		}
	}
	clear(j.topics)
	j.moved = time.Now()
	j.down.Store(false)
}

// tell appends a cut.
func (j *journal) tell(ctx context.Context) error {
	err := j.broker.Append(ctx, j.cut())
	if j.generalize(err) {
		err = j.broker.Append(ctx, j.cut())
	}
	return err
}

// generalize makes the next cut one of all topics, if err says that there were
// too many, and reports whether it has.
func (j *journal) generalize(err error) bool {
	if !errors.Is(err, ErrEventTooLarge) || j.topics[""] {
		return false
	}
	j.topics[""] = true
	return true
}

// Record takes a record of the log; see [HistoryHandler].
func (j *journal) Record(epoch string, seq uint64, b []byte) {
	if !j.isEpoch(epoch) {
		return
	}
	r, err := parseRecord(b)
	if err != nil {
		j.cluster.hub.log.warn(logBroker, "broker brought what no hub has sent", "err", err, "bytes", len(b))
	}
	r.epoch, r.seq = epoch, seq
	j.cluster.pass(&r) // also of one that says nothing: it has its place
}

// Current takes the broker's word that all records have come; see
// [HistoryHandler].
func (j *journal) Current(epoch string, last uint64) {
	if j.isEpoch(epoch) {
		j.cluster.pass(currency{epoch, last})
	}
}

// isEpoch reports whether a text is one, as it gets into what clients see.
func (j *journal) isEpoch(epoch string) bool {
	is := epoch != "" && len(epoch) <= 32 && !strings.ContainsFunc(epoch, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if !is {
		j.cluster.hub.log.error(logBroker, "broker is faulty: an epoch is at most 32 letters and digits", "epoch", clip(epoch))
	}
	return is
}

// Away takes the broker's word that none will come; see [HistoryHandler].
func (j *journal) Away(err error) {
	j.live.Store(false)
	j.cluster.hub.log.warn(logBroker, "broker brings nothing", "err", err)
}

// await waits until the history is there, which it is soon after the start or the
// engine is away, and has come as far as an event id that a client may have got on
// another node; each for no longer than brokerTimeout.
func (j *journal) await(id string) {
	if !j.isCurrent() {
		starting := time.NewTimer(time.Until(j.started.Add(brokerTimeout)))
		defer starting.Stop()
		select {
		case <-j.current:
		case <-starting.C:
			return
		case <-j.cluster.hub.done:
			return
		}
	}
	patience := time.NewTimer(brokerTimeout)
	defer patience.Stop()
	j.mu.Lock()
	defer j.mu.Unlock()
	epoch, number, ok := parseEventID(id)
	j.waiters++
	defer func() { j.waiters-- }()
	for ok && j.epoch == epoch && number > j.place-j.base {
		changed := j.changed
		j.mu.Unlock()
		select {
		case <-changed:
			j.mu.Lock()
		case <-patience.C:
			j.mu.Lock()
			return
		case <-j.cluster.hub.done:
			j.mu.Lock()
			return
		}
	}
}

// tellPlace lets those go on who wait for the history's place. The loop calls it.
func (j *journal) tellPlace(p *history) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch, j.base, j.place = p.epoch, p.base, p.seq
	if j.waiters > 0 {
		close(j.changed)
		j.changed = make(chan struct{})
	}
}

// A letGo lets clients have the events of this node up to its number that have
// not come back.
type letGo uint64

func (l letGo) arrive(h *Hub, batch []entry) []entry {
	j, p := h.cluster.Load().journal, h.past
	now := time.Now()
	j.local = uint64(l)
	for len(j.own) > 0 && j.own[0].number <= j.local {
		ev := j.own[0].event
		ev.arrived = true
		p.addLocal(ev, now)
		batch = append(batch, entry{event: ev})
		j.own = j.own[1:]
	}
	return batch
}

// A currency is the word that the log has been handed over up to a record.
type currency struct {
	epoch string
	last  uint64
}

func (c currency) arrive(h *Hub, batch []entry) []entry {
	j, p := h.cluster.Load().journal, h.past
	batch = j.reach(p, c.epoch, c.last, batch)
	j.tellPlace(p)
	j.live.Store(true)
	if !j.isCurrent() {
		close(j.current)
		if j.early {
			batch = j.lost(batch, "the broker was not there when this node was started")
		}
	}
	j.poke()
	return batch
}

// poke has the goroutine append look at what has changed.
func (j *journal) poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// isCurrent reports whether the log was current at some time.
func (j *journal) isCurrent() bool {
	select {
	case <-j.current:
		return true
	default:
		return false
	}
}

// reach notes that all records up to last have come: those that haven't are lost.
func (j *journal) reach(p *history, epoch string, last uint64, batch []entry) []entry {
	switch {
	case epoch != p.epoch:
		if p.epoch != "" {
			batch = j.lost(batch, "the engine has another history than before")
		}
		p.restart(epoch)
	case last > j.last:
		batch = j.lost(batch, fmt.Sprintf("%d records are no longer in the engine's history", last-j.last))
	default:
		return batch
	}
	j.last = last
	p.move(p.base + last<<recordBits | wholeRecord)
	p.begin = p.seq
	return batch
}

// lost counts a gap, and tells clients of it: ids that they get from now on will
// not show it.
func (j *journal) lost(batch []entry, why string) []entry {
	j.gap(why)
	if !j.isCurrent() {
		return batch
	}
	return append(batch, entry{event: resetEvent})
}

func (j *journal) gap(why string) {
	j.cluster.hub.shared.gaps.Add(1)
	j.cluster.hub.log.warn(logBroker, "events may be missing", "why", why)
}

func (r *record) arrive(h *Hub, batch []entry) []entry {
	j, p := h.cluster.Load().journal, h.past
	if r.epoch == p.epoch && r.seq <= j.last {
		return batch
	}
	batch = j.reach(p, r.epoch, r.seq-1, batch)
	j.last = r.seq
	now := time.Now()
	start := p.base + r.seq<<recordBits
	end := start | wholeRecord
	if last := r.number + uint64(max(len(r.events), 1)) - 1; r.node == j.cluster.node && (last < r.number || last > j.cluster.seq) {
		*r = record{} // somebody else has made it
	}
	for i, ev := range r.events {
		number := r.number + uint64(i)
		if !j.isNew(r.node, number) {
			continue
		}
		live := j.isCurrent() // or it is from before this node was started
		if r.node == j.cluster.node {
			live = number > j.local && live
			for len(j.own) > 0 && j.own[0].number < number { // which the engine had, and has lost
				lost := j.own[0].event
				lost.arrived = true
				p.addAt(lost, p.seq, now)
				batch = append(batch, entry{event: lost})
				j.own = j.own[1:]
			}
			if len(j.own) > 0 && j.own[0].number == number {
				ev = j.own[0].event
				j.own = j.own[1:]
				live = true
			}
			j.seen.Store(number)
		}
		at := start + uint64(i) + 1
		if i == len(r.events)-1 {
			at = end
		}
		ev.arrived = true
		p.addAt(ev, at, now)
		if live {
			batch = append(batch, entry{event: ev})
		}
	}
	if r.kind == brokeredCut {
		j.isNew(r.node, r.number) // and what comes late isn't
		for _, topic := range r.topics {
			p.addAt(newGap(topic), end, now)
		}
		if len(r.topics) > 0 {
			j.gap("a node could not reach the broker")
		}
	}
	p.move(end)
	if r.kind == brokeredCut && r.node == j.cluster.node {
		if r.number >= j.local && len(p.local) > 0 {
			p.local = nil
			here := p.position()
			batch = append(batch, entry{op: opNote, note: func(s *shard) { s.last.Store(here) }})
		}
		j.cutSeen.Store(r.number)
		j.poke()
	}
	j.tellPlace(p)
	return batch
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
