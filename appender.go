package realtime

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

const (
	journalPatience = 2 * time.Second        // for the log to take an event, and to bring it back
	journalTick     = 500 * time.Millisecond // between two looks at that
	appendTry       = 500 * time.Millisecond // for one try of a record
	appendRetry     = 50 * time.Millisecond  // between two tries of one record
	maxLostTopics   = 100                    // that a cut names
)

// An appender hands the events of a journal to the engine's log, on a goroutine
// of its own. It has two states:
//
//	working ──the log doesn't take an event, or doesn't bring it back──▶ cut
//	   ▲                                                                 │
//	   └─────────the cut has been appended to the log, and come back─────┘
//
// In a cut, events pass by the log: it has the loop give them to the clients of
// this node. Beside it tries to append the cut, which tells the other nodes.
type appender struct {
	// Set at construction, never changed.
	shared  *shared
	peers   *peers
	broker  HistoryBroker
	current <-chan struct{} // the journal's
	started time.Time
	queue   chan *ownEvent // filled by the loop, with room for all of its own
	wake    chan struct{}  // has room for one word that live or cutSeen has changed

	appending outage
	down      atomic.Bool   // there is a cut; stored by the goroutine
	live      atomic.Bool   // the log is current; stored by the loop and the broker
	arrived   atomic.Int64  // when the last record came, in Unix ns; stored by the broker
	seen      atomic.Uint64 // the last event of this node that the log has brought back; stored by the loop
	putBack   atomic.Bool   // the log was put back, which other nodes may not know; stored by the loop
	markAt    atomic.Int64  // when to append a mark, in Unix ns; zero: never; stored by the loop
	cutSeen   atomic.Uint64 // the number of the last cut that it has brought back; stored by the loop

	// Owned by the goroutine.
	next     *ownEvent       // taken from the queue, but not yet for a record
	appended uint64          // the last event that the log has taken
	passed   uint64          // the last one that clients of this node got without it
	topics   map[string]bool // of those that it has not taken, since the last cut; the empty one stands for all
	moved    time.Time       // when the log was last found to move, or to have nothing to wait for
	movedTo  uint64          // seen, then
	movedAt  int64           // arrived, then
}

// newAppender returns an appender that run is to be called for.
func newAppender(j *journal, broker HistoryBroker) *appender {
	return &appender{
		shared:    j.shared,
		appending: outage{log: &j.shared.log, what: "broker history"},
		peers:     j.peers,
		broker:    broker,
		current:   j.current,
		started:   j.started,
		queue:     make(chan *ownEvent, 2*maxOwn), // a round of the loop takes 257 at the most
		wake:      make(chan struct{}, 1),
		topics:    make(map[string]bool),
	}
}

// run is the goroutine. It ends with the hub.
func (a *appender) run() {
	ticker := time.NewTicker(journalTick)
	defer ticker.Stop()
	probed := make(chan error, 1)
	probing := false
	var told uint64 // the last event that the probe's cut tells of
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
			a.tellPutBack()
			a.mark()
			look = true
		case <-a.wake:
			look = true
		case <-a.peers.done:
			if a.down.Load() && !probing {
				a.appendCut(a.peers.ctx)
			}
			return
		}
		switch {
		case !look || !a.down.Load() || probing:
		case told > 0 && a.cutSeen.Load() >= told:
			a.endCut(told)
			told, toldAt = 0, time.Time{}
		case a.live.Load() && time.Since(toldAt) > brokerTimeout:
			// It may take as long as it likes: events go on without it.
			probing, told, toldAt = true, a.passed, time.Now()
			record := a.cut()
			a.peers.own.Go(func() {
				ctx, cancel := context.WithTimeout(a.peers.ctx, brokerTimeout)
				defer cancel()
				probed <- a.broker.Append(ctx, record)
			})
		}
	}
}

// look has the goroutine look at what has changed.
func (a *appender) look() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

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

// handle appends events to the log or, where that fails, lets them pass by it.
func (a *appender) handle(events []*ownEvent) {
	last := events[len(events)-1].number
	err := error(ErrBrokerUnavailable)
	if !a.down.Load() {
		err = a.appendRetrying(encodeRecord(a.peers.node, events))
		switch {
		case err == nil:
			a.appended = last
		case errors.Is(err, ErrEventTooLarge) && len(events) > 1:
			a.handle(events[:len(events)/2])
			a.handle(events[len(events)/2:])
			return
		}
	}
	if err != nil {
		a.shared.brokerLost.Add(int64(len(events)))
		for _, e := range events {
			a.noteLost(e.topic)
		}
		a.passCut(last)
	}
	for _, e := range events {
		e.result <- err
	}
	if errors.Is(err, ErrEventTooLarge) {
		a.shared.log.error(logBroker, "an event is too large for the broker: other nodes don't get it", "bytes", len(events[0].Data), "topic", clip(events[0].topic))
		a.endCut(0) // the log works
	}
}

// appendRetrying appends a record. It tries again for a while: nodes drop one
// that comes twice.
func (a *appender) appendRetrying(record []byte) error {
	until := time.Now().Add(journalPatience)
	if start := a.started.Add(brokerTimeout); until.Before(start) && !isClosed(a.current) {
		until = start // the engine isn't away, but not yet found
	}
	ctx, cancel := context.WithDeadline(a.peers.ctx, until)
	defer cancel()
	for {
		// An answer that is lost must not cost all of the time.
		try, end := context.WithTimeout(ctx, appendTry)
		err := a.broker.Append(try, record)
		end()
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

// tellPutBack appends a cut of all topics if this node knows that the log has lost
// records: a node that was started since knows nothing of them.
func (a *appender) tellPutBack() {
	if !a.putBack.Load() || a.down.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(a.peers.ctx, appendTry)
	defer cancel()
	if a.broker.Append(ctx, encodeCut(a.peers.node, 0, map[string]bool{"": true})) == nil {
		a.putBack.Store(false)
	}
}

// mark appends a record without events where the log has been quiet for long. So
// the log never loses its last record to age, and a node that starts can tell an
// id of that from one of another record that had its number.
func (a *appender) mark() {
	at := a.markAt.Load()
	if at == 0 || time.Now().UnixNano() < at || a.down.Load() || !a.live.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(a.peers.ctx, appendTry)
	defer cancel()
	if a.broker.Append(ctx, encodeMark(a.peers.node)) == nil {
		a.markAt.CompareAndSwap(at, 0) // until it comes back
	}
}

// passCut has clients get this node's events up to the given one without the
// log, which is a cut.
func (a *appender) passCut(last uint64) {
	a.passed = last
	a.down.Store(true)
	a.peers.pass(passCut(last))
}

// noteLost notes that other nodes don't get an event of a topic.
func (a *appender) noteLost(topic string) {
	if len(a.topics) < maxLostTopics {
		a.topics[topic] = true
	} else {
		a.topics[""] = true // which is all
	}
}

// checkProgress finds out whether the log brings back what it takes: where that
// lasts too long, clients of this node don't wait for it.
func (a *appender) checkProgress() {
	now := time.Now()
	seen, arrived := max(a.seen.Load(), a.passed), a.arrived.Load()
	reading := !a.live.Load() && arrived != a.movedAt // its own events are behind all that the log has
	switch {
	case seen != a.movedTo || seen >= a.appended || reading || a.down.Load():
		a.moved, a.movedTo, a.movedAt = now, seen, arrived
	case now.Sub(a.moved) >= journalPatience:
		a.appending.failed(errNotBack)
		a.passCut(a.appended)
	}
}

var errNotBack = errors.New("it takes events and doesn't deliver them")

// endCut ends a cut that has been told, and come back: so the log works. Events
// that passed by it since have to be told as well, for which those that come now
// wait.
func (a *appender) endCut(told uint64) {
	if a.passed > told {
		ctx, cancel := context.WithTimeout(a.peers.ctx, journalPatience)
		defer cancel()
		if err := a.appendCut(ctx); err != nil {
			a.appending.failed(err)
			return
		}
	}
	clear(a.topics)
	a.moved = time.Now()
	a.down.Store(false)
	a.appending.over()
}

// appendCut appends the record of a cut.
func (a *appender) appendCut(ctx context.Context) error {
	err := a.broker.Append(ctx, a.cut())
	if a.widenCut(err) {
		err = a.broker.Append(ctx, a.cut())
	}
	return err
}

// widenCut makes the next cut one of all topics, if err says that there were too
// many, and reports whether it has.
func (a *appender) widenCut(err error) bool {
	if !errors.Is(err, ErrEventTooLarge) || a.topics[""] {
		return false
	}
	a.topics[""] = true
	return true
}

// cut returns the record that tells of a cut.
func (a *appender) cut() []byte {
	if a.topics[""] {
		a.topics = map[string]bool{"": true}
	}
	return encodeCut(a.peers.node, a.passed, a.topics)
}
