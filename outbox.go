package realtime

import (
	"io"
	"slices"
	"sync"
	"time"
)

// An outbox sends a client's messages on its connection, in order. If nothing
// waits, it writes at once, under the lock, as much as it can without blocking.
// A goroutine drains the rest. While that runs, it alone writes. It ends when
// nothing waits: an idle client has none.
//
// It is held, and all waits, until open gives it conn. Its states, held or not:
//
//	open ──close──▶ closed ──all is written──▶ finished
//	  │                │
//	  └────────────────┴──fail, or an error──▶ failed
//
// cut does what close does, but drops most of what waits. If the peer is stuck,
// it does what fail does.
//
// An open outbox accepts messages. A closed one accepts none, but still sends
// those that wait. A finished or failed one has nothing left to do.
type outbox struct {
	// Set at construction, never changed.
	shared *shared

	mu       sync.Mutex                        // guards the fields below; never held during a write that can block
	conn     io.Writer                         // nil while held
	try      func(b []byte) (n int, err error) // writes without blocking; nil: conn can't
	held     *held                             // what came while held; nil: nothing
	past     *replay                           // whose next parts follow; nil: none
	queue    []*buffer                         // queue[head:] waits; its first may be partly written
	off      int                               // bytes of queue[head] that are written
	head     int                               // index into queue
	latest   map[topicKey]int                  // the index in queue of the newest event of each Key; nil: none waits
	backlog  backlog
	owner    outboxOwner   // set at construction, never changed; see fetch for its place
	seq      uint64        // the highest history position of the events sent
	pongs    *pongs        // to be sent between two buffers; nil: none
	progress time.Duration // when a write last ended, or the peer last acknowledged bytes
	failure  error         // not yet told to the owner
	drained  chan struct{} // closed when the drain goroutine ends; nil: nobody waits
	busy     int32         // queue[:busy] is being written, so nothing in it may be replaced
	replaced int32         // how many in queue are replacedBuffer
	kernel   int32         // the last result of unsent
	done     int32         // messages of queue[head] that are written
	format   format
	state    outboxState
	closed   bool // this side has closed o; stays when o fails
	probed   bool // blind is known: not before o needs a drain goroutine
	blind    bool // unsent doesn't work on conn
	writing  bool // the drain goroutine is running
	fetching bool // it waits for the hub, not for the peer
	moved    bool // the peer has accepted bytes since that goroutine's start, or just before
}

type outboxState uint8

const (
	outboxOpen outboxState = iota
	outboxClosed
	outboxFinished
	outboxFailed
)

// A held has what came for an outbox before it was opened. Listen's is never
// opened, and takes the events from here.
type held struct {
	early []*event
	came  chan<- struct{} // signals early, for Listen; has room for one; nil: nobody waits
	last  lastBytes       // nil: it isn't closed
}

// lastBytes are what ends a client's connection, in its encoding.
type lastBytes func(encoding) *buffer

// An outboxOwner is told what becomes of its outbox. The methods run without the
// outbox's lock.
type outboxOwner interface {
	// outboxFailed and outboxFinished are called at the end, on the drain
	// goroutine or a caller's. They must not block.
	outboxFailed(err error) // the error of a write; or ErrSlowClient, and cut must follow
	outboxFinished()

	// outboxEmpty waits until the outbox has the next part of a replay, and
	// reports whether it has. If not, the outbox closes. The drain goroutine
	// calls it.
	outboxEmpty(r *replay) bool
}

// push sends the events of r. It returns ErrClientClosed if o isn't open or a
// write fails, and ErrSlowClient if this push was one too many.
func (o *outbox) push(r *run) error {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return ErrClientClosed
	}
	if o.past != nil {
		for _, ev := range r.events {
			if ev.seq == 0 { // all else is in the history, and the next parts of the replay have it
				o.addLocked(ev)
			}
		}
		return nil
	}
	o.backlog.add(r.messages)
	o.seq = max(o.seq, r.seq)
	if o.conn == nil {
		o.holdLocked(r.events...)
	} else {
		o.sendLocked(r.buffers(o.format)...)
	}
	return o.checkLocked()
}

func (o *outbox) addLocked(ev *event) {
	if o.conn == nil {
		o.holdLocked(ev)
	} else {
		o.sendLocked(ev.buffer(o.format))
	}
}

func (o *outbox) holdLocked(events ...*event) {
	if o.held == nil {
		o.held = new(held)
	}
	o.held.early = append(o.held.early, events...)
	signal(o.held.came)
}

func (o *outbox) takeHeld() (events []*event) {
	o.mu.Lock()
	defer o.releaseLocked()
	if o.held != nil {
		events, o.held.early = o.held.early, nil
		o.backlog.delivered(o.shared, countMessages(events))
	}
	return events
}

// post sends e to this client alone; its errors are those of push. If the
// kernel accepts the whole frame, a later frame reuses its memory.
func (o *outbox) post(e *Event) error {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return ErrClientClosed
	}
	o.backlog.add(1)
	switch {
	case o.conn == nil:
		o.holdLocked(&event{Event: *e, private: true})
		o.backlog.private += len(e.Data)
	case e.Key != "" || o.format.deflate && len(e.Data) >= minDeflate:
		o.sendLocked((&event{Event: *e, private: true}).buffer(o.format))
	default:
		f := pooledFrames.Get().(*pooledFrame)
		f.write(e, o.format.encoding)
		o.sendLocked(&f.buffer)
		if o.head == len(o.queue) && cap(f.b) <= maxWrite {
			pooledFrames.Put(f)
		}
	}
	return o.checkLocked()
}

// reply sends an object to this client, which is of the Subprotocol, behind the
// replay that is under way.
func (o *outbox) reply(object []byte) error {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return ErrClientClosed
	}
	ev := &event{Event: Event{Data: object}, private: true, reply: true}
	o.backlog.add(1)
	if o.past != nil {
		o.past.replies = append(o.past.replies, ev)
	} else {
		o.addLocked(ev)
	}
	return o.checkLocked()
}

// checkLocked returns the error of a push or a post. If the client has become
// too slow, unlock tells the owner, which calls cut.
func (o *outbox) checkLocked() error {
	if o.state == outboxFailed {
		return ErrClientClosed
	}
	tooMany := false
	if o.conn == nil && o.backlog.isOverLimit(o.shared) {
		o.conflateEarlyLocked()
		most := hardLimit * o.shared.sendBuffer
		tooMany = o.backlog.owed() > most-most/16 // with less gain, every push would search all of it again
	}
	if tooMany || o.isTooSlowLocked() {
		o.failure = ErrSlowClient
		return ErrSlowClient
	}
	return nil
}

// isTooSlowLocked reports whether the client is too slow to stay. closeTimeout
// bounds a closing client instead, and only the hard limit a held one.
func (o *outbox) isTooSlowLocked() bool {
	return o.state == outboxOpen &&
		(o.backlog.isOverLimit(o.shared) || o.conn != nil && o.backlog.isTooSlow(o.shared))
}

// unlock unlocks o. Before that, it starts the drain goroutine if something
// waits. After that, it tells the owner if o has ended.
func (o *outbox) unlock() {
	if !o.writing && (o.head < len(o.queue) || o.pongs != nil || o.lacksPartLocked()) {
		o.writing = true
		now := o.shared.clock.now()
		o.progress, o.moved = now, o.moved && now-o.progress < revolution
		go o.drain()
	}
	failure := o.failure
	o.failure = nil
	finished := o.state == outboxClosed && o.conn != nil && !o.writing
	if finished {
		o.state = outboxFinished
	}
	o.releaseLocked()
	if failure != nil {
		o.owner.outboxFailed(failure)
	} else if finished {
		o.owner.outboxFinished()
	}
}

// releaseLocked unlocks o and does nothing else that unlock does. Where o.backlog
// may have changed, it takes the place of mu.Unlock.
func (o *outbox) releaseLocked() {
	o.backlog.report(o.shared)
	o.mu.Unlock()
}

// conflateEarlyLocked drops held events that a newer one replaces.
func (o *outbox) conflateEarlyLocked() {
	o.held.early = conflate(o.held.early, func(*event) { o.backlog.discard(1, &o.shared.replaced) })
}

// replay sends a part of the past. If o is held, the part is merged with the
// events that came before, some of which may be the same.
func (o *outbox) replay(r *replay) {
	o.mu.Lock()
	defer o.unlock()
	closed := o.state == outboxClosed && o.conn == nil && !r.live
	switch {
	case closed: // while held: what it holds still goes out, behind the past up to there
		r.part = slices.DeleteFunc(r.part, func(ev *event) bool { return ev.seq > o.seq })
	case o.state != outboxOpen || r.waits:
		return
	}
	counted := countMessages(r.early)
	var early []*event
	if !r.live && o.held != nil {
		early, o.held.early = o.held.early, nil
		counted += countMessages(early)
	}
	past := countMessages(r.part) + countMessages(r.lagging)
	events := r.events(early, !r.more && !closed)
	o.backlog.add(countMessages(events) + countMessages(r.early) - counted)
	o.backlog.exemptReplay(past)
	if !r.more {
		events = append(events, r.replies...)
	}
	o.past = nil
	if r.more {
		o.past = r
	}
	switch {
	case closed:
		o.endPastLocked()
	case !r.more && r.position != nil:
		o.seq = max(o.seq, r.position.seq)
	}
	if o.conn == nil {
		o.holdLocked(events...)
	} else {
		o.sendEachLocked(events)
	}
}

// replaying returns the replay whose next parts follow, or nil.
func (o *outbox) replaying() *replay {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.past
}

// lacksPartLocked reports whether the next part of a replay has to be fetched.
func (o *outbox) lacksPartLocked() bool {
	return o.past != nil && o.conn != nil && o.state == outboxOpen
}

// nextPartLocked waits until o has the next part of a replay. If there is none, o
// closes.
func (o *outbox) nextPartLocked() {
	r := o.past
	o.fetching = true
	o.releaseLocked()
	has := o.owner.outboxEmpty(r)
	o.mu.Lock()
	o.fetching, o.progress = false, o.shared.clock.now()
	if !has && o.state == outboxOpen { // later events must not follow
		o.state, o.closed = outboxClosed, true
		o.endPastLocked()
	}
}

// endPastLocked gives up the next parts of a replay. Events that came while the
// client joined, and wait for them, are lost.
func (o *outbox) endPastLocked() {
	if o.past != nil {
		o.backlog.discard(countMessages(o.past.early)+len(o.past.replies), &o.shared.dropped)
		o.past = nil
	}
}

// position sends ev, a position, unless the client has been sent later events,
// or has yet to get earlier ones. A nil ev is none. It reports whether it did.
func (o *outbox) position(ev *event) bool {
	o.mu.Lock()
	defer o.unlock()
	if ev == nil || o.state != outboxOpen || o.conn == nil || o.past != nil || ev.seq <= o.seq || len(ev.buffer(o.format).b) == 0 {
		return false
	}
	o.seq = ev.seq
	o.sendLocked(ev.buffer(o.format))
	return true
}

// settle tells ev, the newest position, and makes the ids from here on final. A
// nil ev is none: nothing has an id yet. It reports false if that has to wait.
func (o *outbox) settle(ev *event) bool {
	o.mu.Lock()
	defer o.unlock()
	if ev == nil || o.state != outboxOpen || !o.format.provisional {
		return true
	}
	if o.past != nil || ev.seq < o.seq {
		return false
	}
	o.format.provisional = false
	o.seq = ev.seq
	o.sendLocked(ev.buffer(o.format))
	return true
}

// beat sends ev, a heartbeat, if nothing waits: what waits shows as well that
// the hub is there, and more must not pile up behind it.
func (o *outbox) beat(ev *event) {
	o.mu.Lock()
	defer o.unlock()
	if o.state == outboxOpen && o.conn != nil && !o.writing {
		o.sendLocked(ev.buffer(o.format))
	}
}

// control sends a control frame, if o is open and not held.
func (o *outbox) control(frame *buffer) {
	o.mu.Lock()
	defer o.unlock()
	if o.state == outboxOpen && o.conn != nil {
		o.sendLocked(frame)
	}
}

// close sends last after all that waits. From then on o accepts nothing. close
// reports whether this call closed o. If so, it has called closed under the lock,
// before the last bytes can have an effect.
func (o *outbox) close(last lastBytes, closed func()) bool {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return false
	}
	o.state, o.closed = outboxClosed, true
	o.endPastLocked()
	closed()
	if o.conn == nil {
		o.holdLocked()
		o.held.last = last
	} else {
		o.sendLocked(last(o.format.encoding))
	}
	return true
}

// cut ends o for a client that is too slow. Bytes that are being written still go
// out, and then last, as with close. All else that waits is dropped. But o fails if
// the peer has accepted nothing for a while, or SlowAfter is negative. A peer that
// is stuck would not read last either, and must not hold memory. cut reports
// whether o ends by itself. It then sends last, unless it was closed before.
func (o *outbox) cut(last lastBytes, closed func()) bool {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return o.state != outboxFailed
	}
	now := o.shared.clock.now()
	o.movesLocked(now)
	if o.conn == nil || o.writing && (!o.moved || now-o.progress >= min(o.shared.slowAfter, revolution)) {
		o.failLocked(nil)
		return false
	}
	kept := max(o.head, int(o.busy)) // whole buffers, so that no frame is torn
	lost := 0
	for _, buf := range o.queue[kept:] {
		lost += len(buf.ends)
		if buf == replacedBuffer {
			o.replaced--
		}
		if buf.private {
			o.backlog.private -= len(buf.b)
		}
	}
	clear(o.queue[kept:])
	o.queue, o.latest, o.pongs = o.queue[:kept], nil, nil
	o.backlog.discard(lost, &o.shared.dropped)
	o.endPastLocked()
	o.state, o.closed = outboxClosed, true
	closed()
	o.sendLocked(last(o.format.encoding))
	return true
}

// fail drops all that waits. o accepts and writes no more, but a write under
// way goes on. The owner isn't told, because it calls fail.
func (o *outbox) fail() {
	o.mu.Lock()
	defer o.releaseLocked()
	o.failLocked(nil)
}

// failLocked fails o, and has unlock tell the owner of err unless it is nil.
func (o *outbox) failLocked(err error) {
	o.state, o.failure = outboxFailed, err
	o.backlog.drop(o.shared)
	o.queue, o.head, o.off, o.done, o.latest = nil, 0, 0, 0, nil
	o.held, o.past, o.pongs = nil, nil, nil
}

// open ends the held state. try writes to conn without blocking, or is nil. first
// goes out before what was held.
func (o *outbox) open(conn io.Writer, try func([]byte) (int, error), f format, first ...*event) {
	o.mu.Lock()
	defer o.unlock()
	if o.state == outboxFailed {
		return
	}
	f.provisional = o.shared.history.keeps() && f.encoding != plainFrame
	o.conn, o.try, o.format = conn, try, f
	events := first
	var last lastBytes
	if o.held != nil {
		o.conflateEarlyLocked()
		events, last = append(events, o.held.early...), o.held.last
		o.held, o.backlog.private = nil, 0
	}
	o.sendEachLocked(events)
	if last != nil {
		o.sendLocked(last(f.encoding))
	}
	o.backlog.connected(o.shared)
}

// isClosed reports whether this side has closed o. o may have failed since.
func (o *outbox) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

func (o *outbox) hasFailed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state == outboxFailed
}
