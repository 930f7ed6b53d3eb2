package realtime

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	journalPatience = 2 * time.Second        // for the log to accept an event, and to deliver it
	journalTick     = 500 * time.Millisecond // between two checks of that
	maxReading      = 30 * time.Second       // for other nodes' records to arrive before its own, when the log is current
	appendTry       = 500 * time.Millisecond // for one try to append a record
	appendRetry     = 50 * time.Millisecond  // between two such tries
	maxLostTopics   = 100                    // topics that a cut names; more become all
)

// An appender hands the events of a journal to the engine's log, on a goroutine
// of its own. It has two states:
//
//	working ──the log doesn't take an event, or doesn't bring it back──▶ cut
//	   ▲                                                                 │
//	   └─────────the cut has been appended to the log, and come back─────┘
//
// In a cut, events bypass the log: the loop gives them to this node's clients.
// The appender tries to append the cut, which tells the other nodes.
type appender struct {
	// Set at construction, never changed.
	journal *journal
	peers   *peers
	broker  HistoryBroker
	queue   chan *ownEvent // filled by the loop, which never blocks on it
	wake    chan struct{}  // signals that live or cutSeen has changed; has room for one

	appending outage
	trimming  outage
	trims     chan trim             // filled by the loop; has room for one
	carried   chan []byte           // records of values, or questions for them; filled by the loop; has room for one
	down      atomic.Bool           // there is a cut; stored by the goroutine
	live      atomic.Bool           // the log is current; stored by the loop and the broker
	arrived   atomic.Int64          // when the last record arrived, in Unix ns; stored by the broker
	seen      atomic.Uint64         // number of this node's last event that the log delivered; stored by the loop
	putBack   atomic.Bool           // the log was put back, and nodes may not know; set by the loop, cleared by both
	trail     atomic.Pointer[trail] // of this node; replaced by the loop
	cutSeen   atomic.Uint64         // number of the last cut that the log delivered; stored by the loop

	// Owned by the goroutine.
	next     *ownEvent       // first event of the next record; nil: it is still in the queue
	appended uint64          // number of the last event that the log accepted
	passed   uint64          // number of the last event that bypassed the log
	topics   map[string]bool // of events that the log hasn't accepted since the last cut; the empty one stands for all
	waited   time.Time       // since when this node's events have been waited for
	moved    time.Time       // when checkProgress last found progress or nothing to wait for
	movedTo  uint64          // seen at moved
	movedAt  int64           // arrived at moved
}

// newAppender returns an appender. Its caller starts run.
func newAppender(j *journal, broker HistoryBroker) *appender {
	a := &appender{
		journal:   j,
		peers:     j.peers,
		broker:    broker,
		appending: outage{log: &j.shared.log, what: "broker history"},
		trimming:  outage{log: &j.shared.log, what: "bound of the broker history"},
		trims:     make(chan trim, 1),
		carried:   make(chan []byte, 1),
		queue:     make(chan *ownEvent, 2*maxOwn), // a round of the loop accepts 257 at most
		wake:      make(chan struct{}, 1),
		topics:    make(map[string]bool),
		moved:     time.Now(),
		waited:    time.Now(),
	}
	a.trail.Store(new(trail))
	return a
}

// run is the body of the appender's goroutine. It ends with the hub.
func (a *appender) run() {
	ticker := time.NewTicker(journalTick)
	defer ticker.Stop()
	probed := make(chan error, 1)
	probing := false
	trimmed := make(chan struct{}, 1)
	trims := a.trims // nil while a trim runs
	var told uint64  // number of the cut that the last probe appended
	var toldAt time.Time
	for {
		look := false
		select {
		case e := <-a.queue:
			for a.next = e; a.next != nil; {
				a.handle(a.collect())
			}
		case err := <-probed:
			probing = false
			if err != nil {
				toldAt = time.Time{}
			}
			look = err == nil || a.widenCut(err)
		case <-ticker.C:
			a.checkProgress()
			if !a.down.Load() {
				a.tellPutBack()
			}
			look = true
		case t := <-trims:
			trims = nil
			a.peers.own.Go(func() { // it may be slow: events don't wait for it
				a.trim(t)
				trimmed <- struct{}{}
			})
		case <-trimmed:
			trims = a.trims
		case record := <-a.carried:
			if a.down.Load() || a.append(a.peers.ctx, record, journalPatience) != nil {
				a.peers.pass(func(time.Time, *batch) { a.journal.carryFailed() })
			}
		case <-a.wake:
			look = true
		case <-a.peers.done:
			if a.down.Load() && !probing {
				a.appendCut(brokerTimeout)
			}
			a.tellPutBack() // this node may be the only one that knows
			return
		}
		switch {
		case !look || !a.down.Load() || probing:
		case told > 0 && a.cutSeen.Load() >= told:
			a.endCut(told)
			told, toldAt = 0, time.Time{}
		case a.live.Load() && time.Since(toldAt) > brokerTimeout:
			// A probe may be slow: events don't wait for it.
			probing, told, toldAt = true, a.passed, time.Now()
			record := encodeCut(a.peers.node, a.passed, a.topics)
			a.peers.own.Go(func() { probed <- a.append(a.peers.ctx, record, brokerTimeout) })
		}
	}
}

// look makes the goroutine check whether the cut can end.
func (a *appender) look() { signal(a.wake) }

// collect returns the events of the next record, a.next first.
func (a *appender) collect() []*ownEvent {
	events, bytes := []*ownEvent{a.next}, a.next.size()
	for a.next = nil; len(events) < maxRecordEvents; {
		select {
		case e := <-a.queue:
			if bytes += e.size(); bytes > maxRecordBytes {
				a.next = e
				return events
			}
			events = append(events, e)
		default:
			return events
		}
	}
	return events
}

// handle appends events to the log. Where that fails, they bypass it.
func (a *appender) handle(events []*ownEvent) {
	last := events[len(events)-1].number
	err := error(ErrBrokerUnavailable)
	if !a.down.Load() {
		err = a.appendRetrying(encodeRecord(a.peers.node, *a.trail.Load(), events))
	}
	tooLarge := errors.Is(err, ErrEventTooLarge)
	switch {
	case err == nil:
		a.appended = last
	case tooLarge && len(events) > 1:
		a.handle(events[:len(events)/2])
		a.handle(events[len(events)/2:])
		return
	default:
		a.journal.shared.brokerLost.Add(int64(len(events)))
		for _, e := range events {
			a.noteLost(e.topic)
		}
		a.passCut(last)
	}
	for _, e := range events {
		e.result <- err
	}
	if tooLarge {
		a.journal.shared.log.error(logBroker, "an event is too large for the broker: other nodes don't get it", "bytes", len(events[0].Data), "topic", clip(events[0].topic))
		a.endCut(0) // this was no outage
	}
}

// appendRetrying appends a record, in several tries. Nodes drop duplicates.
func (a *appender) appendRetrying(record []byte) error {
	until := time.Now().Add(journalPatience)
	if start := a.journal.started.Add(brokerTimeout); until.Before(start) && !isClosed(a.journal.current) {
		until = start // the broker may still be connecting
	}
	ctx, cancel := context.WithDeadline(a.peers.ctx, until)
	defer cancel()
	for {
		err := a.append(ctx, record, appendTry) // one lost answer must not use up all the time
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
			a.appending.failed(err)
			return ErrBrokerUnavailable
		}
	}
}

// append appends a record, in d at most.
func (a *appender) append(ctx context.Context, record []byte, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return a.broker.Append(ctx, record)
}

// tellPutBack appends a cut of all topics if this node saw that the log was put
// back. Nodes that were started since don't know it.
func (a *appender) tellPutBack() {
	if a.putBack.Load() && a.append(a.peers.ctx, encodeCut(a.peers.node, 0, map[string]bool{"": true}), appendTry) == nil {
		a.putBack.Store(false)
	}
}

// A trim says which records the engine is to forget.
type trim struct {
	epoch  string
	before uint64 // the number of the first one that stays
}

// trim makes the engine forget old records. If it doesn't, the log grows, and
// all else works.
func (a *appender) trim(t trim) {
	ctx, cancel := context.WithTimeout(a.peers.ctx, brokerTimeout)
	defer cancel()
	err := a.broker.Trim(ctx, t.epoch, t.before)
	switch {
	case err == nil:
		a.trimming.over()
		return
	case a.live.Load(): // otherwise the log tells of an outage already
		a.trimming.failed(fmt.Errorf("the engine keeps events that are older than History.Age: %w", err))
	}
	a.peers.later(a.journal.shared.history.Age/3, func(time.Time, *batch) { a.journal.trim(t) })
}

// passCut begins or extends a cut: the events up to last bypass the log.
func (a *appender) passCut(last uint64) {
	a.passed = last
	a.down.Store(true)
	a.peers.pass(func(now time.Time, out *batch) { a.journal.passCut(last, now, out) })
}

// noteLost notes that other nodes don't get an event of a topic.
func (a *appender) noteLost(topic string) {
	switch {
	case a.topics[""]: // which stands for all
	case len(a.topics) < maxLostTopics:
		a.topics[topic] = true
	default:
		a.topics = map[string]bool{"": true}
	}
}

// checkProgress begins a cut if the log accepts this node's events but delivers
// none for journalPatience.
func (a *appender) checkProgress() {
	now := time.Now()
	seen, arrived := max(a.seen.Load(), a.passed), a.arrived.Load()
	if seen != a.movedTo || seen >= a.appended || a.down.Load() {
		a.waited = now
	}
	// While records arrive, this node's events may be behind them.
	reading := arrived != a.movedAt && (!a.live.Load() || now.Sub(a.waited) < maxReading)
	switch {
	case a.waited == now || reading:
		a.moved, a.movedTo, a.movedAt = now, seen, arrived
	case now.Sub(a.moved) >= journalPatience:
		a.appending.failed(errNotBack)
		a.passCut(a.appended)
	}
}

var errNotBack = errors.New("the engine accepts events and doesn't deliver them")

// endCut ends a cut when the log works. told is the number of the cut that the
// log delivered. Events that bypassed the log since need another cut first, and
// new events wait for that.
func (a *appender) endCut(told uint64) {
	if a.passed > told {
		if err := a.appendCut(journalPatience); err != nil {
			a.appending.failed(err)
			return
		}
	}
	clear(a.topics)
	a.moved = time.Now()
	a.down.Store(false)
	a.appending.over()
}

// appendCut appends a cut, in d at most; if it is too large, one of all topics.
func (a *appender) appendCut(d time.Duration) error {
	err := a.append(a.peers.ctx, encodeCut(a.peers.node, a.passed, a.topics), d)
	if a.widenCut(err) {
		return a.appendCut(d)
	}
	return err
}

// widenCut makes the next cut one of all topics if err says that the last one
// was too large. It reports whether it did.
func (a *appender) widenCut(err error) bool {
	if !errors.Is(err, ErrEventTooLarge) || a.topics[""] {
		return false
	}
	a.topics = map[string]bool{"": true}
	return true
}

// claim returns event i of a record, or the pending own event that it encodes.
// It reports whether clients get the event now. They don't if it is older than
// this node's start, or if they have it already. A disconnect is never too old: a
// client that has joined before it was read didn't wait for the log. Own events
// that the log lacks get the position start, between two records.
func (j *journal) claim(r *record, i int, ev *event, start uint64, now time.Time, out *batch) (_ *event, live bool) {
	live = isClosed(j.current) || ev.notice == disconnectNotice
	if r.node != j.peers.node {
		return ev, live
	}
	number := r.number + uint64(i)
	live = live && number > j.passed
	if len(j.own) > 0 && j.own[0].number < number {
		j.gap(lostAccepted)
	}
	for len(j.own) > 0 && j.own[0].number < number {
		lost := j.own[0].event
		p := j.past
		p.unsharedEvents++                                     // so no two of them have one id
		p.divided = len(j.own) > 1 && j.own[1].number < number // its client would lack the next one
		if !p.addAt(lost, start, now).hidden {
			out.add(lost)
		}
		p.divided = false
		j.own = j.own[1:]
	}
	if len(j.own) > 0 && j.own[0].number == number {
		ev, live = j.own[0].event, true
		j.own = j.own[1:]
	}
	j.out.seen.Store(number)
	return ev, live
}
