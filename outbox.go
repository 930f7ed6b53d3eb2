package realtime

import (
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// maxWrite bounds one write, in bytes. blindWrite is the bound where unsent
// doesn't work: there only the end of a write shows progress, and a slow but
// steady reader must show some within WriteTimeout.
const (
	maxWrite   = 64 << 10
	blindWrite = 16 << 10
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
	owner  outboxOwner

	mu       sync.Mutex                        // guards the fields below; never held during a write that can block
	conn     io.Writer                         // nil while held
	try      func(b []byte) (n int, err error) // writes without blocking; nil: conn can't
	held     *held                             // what came while held; nil: nothing
	past     *replay                           // whose next parts follow; nil: none
	queue    []queued                          // queue[head:] waits; its first may be partly written
	off      int                               // bytes of queue[head] that are written
	head     int                               // index into queue
	latest   map[topicKey]int                  // the index in queue of the newest event of each Key; nil: none waits
	backlog  backlog
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
		o.pushNoticesLocked(r)
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

// pushNoticesLocked sends what r has without a position. All else is in the
// history, and the next parts of the replay have it.
func (o *outbox) pushNoticesLocked(r *run) {
	for _, ev := range r.events {
		switch {
		case ev.seq > 0:
		case o.conn == nil:
			o.holdLocked(ev)
		default:
			o.sendLocked(ev.buffer(o.format))
		}
	}
}

func (o *outbox) holdLocked(events ...*event) {
	if o.held == nil {
		o.held = new(held)
	}
	o.held.early = append(o.held.early, events...)
	select {
	case o.held.came <- struct{}{}:
	default:
	}
}

// takeHeld takes the events that o holds.
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
	o.held.early = conflate(o.held.early, func(*event) { o.backlog.replaced(o.shared, 1) })
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

// endPastLocked gives up the next parts of a replay. What came while the client
// joined, and waits for them, is lost.
func (o *outbox) endPastLocked() {
	if o.past != nil {
		o.backlog.lost(o.shared, countMessages(o.past.early))
		o.past = nil
	}
}

// position sends ev, a position, unless the client has been sent later events,
// or has yet to get earlier ones. It reports whether it did.
func (o *outbox) position(ev *event) bool {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen || o.conn == nil || o.past != nil || ev.seq <= o.seq || len(ev.buffer(o.format).b) == 0 {
		return false
	}
	o.seq = ev.seq
	o.sendLocked(ev.buffer(o.format))
	return true
}

// settle tells ev, the newest position, and makes the ids from here on final. It
// reports false if that has to wait.
func (o *outbox) settle(ev *event) bool {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen || !o.format.provisional {
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

// sendEachLocked sends events. Unlike a run, it doesn't join them in memory that
// only this client would have.
func (o *outbox) sendEachLocked(events []*event) {
	size := 0
	for _, ev := range events {
		size += len(ev.buffer(o.format).b)
	}
	before := 0
	for _, q := range o.queue[o.head:] {
		before += len(q.b)
	}
	o.backlog.limitReplay(o.shared, before, size)
	if len(events) == 1 {
		o.sendLocked(events[0].buffer(o.format))
		return
	}
	for _, ev := range events {
		o.appendLocked(ev.buffer(o.format))
	}
	if !o.freeLocked() {
		return
	}
	mem := scratch.Get().(*[maxWrite]byte)
	defer scratch.Put(mem)
	for b := o.nextLocked(mem); len(b) > 0; b = o.nextLocked(mem) {
		n, err := o.try(b)
		o.wroteLocked(n)
		o.busyHeadLocked()
		if err != nil {
			o.failLocked(err)
			return
		}
		if n < len(b) {
			return // drain does the rest
		}
	}
	o.queue = nil // which may have room for some events
}

// sendLocked writes bufs while nothing waits and the kernel accepts them. It
// queues the rest. If a write fails, so does o.
func (o *outbox) sendLocked(bufs ...*buffer) {
	if !o.freeLocked() {
		o.appendLocked(bufs...)
		return
	}
	delivered, n := 0, 0
	var err error
	for len(bufs) > 0 {
		buf := bufs[0]
		if len(buf.b) > 0 { // else it is a notice in a format that has none
			if n, err = o.try(buf.b); err != nil || n < len(buf.b) {
				break
			}
		}
		delivered += len(buf.ends)
		bufs = bufs[1:]
	}
	o.backlog.delivered(o.shared, delivered)
	if err != nil {
		o.failLocked(err)
	} else if len(bufs) > 0 {
		o.queueRestLocked(bufs, n)
	}
}

// queueRestLocked queues bufs, n bytes of which are written.
func (o *outbox) queueRestLocked(bufs []*buffer, n int) {
	o.busy = math.MaxInt32 // nothing may be replaced until the n bytes are counted
	o.appendLocked(bufs...)
	o.wroteLocked(n)
	o.busyHeadLocked()
}

// busyHeadLocked notes that nothing is being written but a torn first buffer.
func (o *outbox) busyHeadLocked() {
	o.busy = int32(o.head)
	if o.off > 0 {
		o.busy++
	}
}

// freeLocked reports whether bytes may be written at once. Then nothing waits,
// because unlock has all that waits drained.
func (o *outbox) freeLocked() bool { return o.try != nil && !o.writing }

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

// maxPongs is the most pongs that wait. Some clients have several pings under
// way and expect an answer to each. RFC 6455 §5.5.3 demands only the last, so a
// flood of pings costs no memory.
const maxPongs = 16

type pongs []*buffer // oldest first

// answer sends a pong before the buffers that wait.
func (o *outbox) answer(pong *buffer) {
	o.mu.Lock()
	defer o.unlock()
	switch {
	case o.state != outboxOpen || o.conn == nil:
	case o.freeLocked():
		o.sendLocked(pong)
	case o.pongs == nil:
		o.pongs = &pongs{pong}
	default:
		if len(*o.pongs) == maxPongs {
			*o.pongs = slices.Delete(*o.pongs, 0, 1)
		}
		*o.pongs = append(*o.pongs, pong)
	}
}

// takePongsLocked returns the pongs that wait, as bytes.
func (o *outbox) takePongsLocked() (b []byte) {
	for _, pong := range *o.pongs {
		b = append(b, pong.b...)
	}
	o.pongs = nil
	return b
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

// cut ends o for a client that is too slow. What is being written still goes
// out, and then last, as with close. All else that waits is dropped. But o fails
// if the peer has accepted nothing for a while, or SlowAfter is negative. A peer
// that is stuck would not read last either, and must not hold memory. cut reports
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
	for _, q := range o.queue[kept:] {
		lost += len(q.ends)
		if q.buffer == replacedBuffer {
			o.replaced--
		}
		if q.private {
			o.backlog.private -= len(q.b)
		}
	}
	clear(o.queue[kept:])
	o.queue, o.latest, o.pongs = o.queue[:kept], nil, nil
	o.backlog.lost(o.shared, lost)
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

// A queued is one buffer that waits.
type queued struct {
	*buffer
	event *event // nil, or one that a newer event may replace
}

// replacedBuffer marks a queue slot whose event was replaced.
var replacedBuffer = new(buffer)

// A topicKey is equal for events that replace each other.
type topicKey struct{ topic, key string }

func (ev *event) topicKey() topicKey { return topicKey{ev.topic, ev.Key} }

// appendLocked queues bufs, and events with a Key one by one. Such an event
// removes the older one but waits at the end, because its id comes last.
func (o *outbox) appendLocked(bufs ...*buffer) {
	for _, buf := range bufs {
		if buf.keyed == nil {
			o.enqueueLocked(buf, nil)
		}
		for _, ev := range buf.keyed {
			o.enqueueLocked(ev.buffer(o.format), ev)
		}
	}
}

// enqueueLocked queues buf, which is that of ev alone unless ev is nil.
func (o *outbox) enqueueLocked(buf *buffer, ev *event) {
	if len(buf.b) == 0 {
		return // a notice in a format that has none
	}
	o.makeRoomLocked()
	q := queued{buffer: buf}
	if ev != nil && ev.isReplaceable() {
		q.event = ev
		o.replaceLocked(ev.topicKey())
	}
	if buf.private {
		o.backlog.private += len(buf.b)
	}
	o.queue = append(o.queue, q)
}

// replaceLocked removes the event that waits under key, unless it is being
// written. It notes the end of the queue as the index of the newer one.
func (o *outbox) replaceLocked(key topicKey) {
	if old, ok := o.latest[key]; ok && old >= int(o.busy) {
		q := &o.queue[old]
		if q.private {
			o.backlog.private -= len(q.b)
		}
		o.backlog.replaced(o.shared, len(q.ends))
		*q = queued{buffer: replacedBuffer}
		o.replaced++
	}
	if o.latest == nil {
		o.latest = make(map[topicKey]int)
	}
	o.latest[key] = len(o.queue)
}

// makeRoomLocked compacts a full queue if over half of it is written or
// replaced.
func (o *outbox) makeRoomLocked() {
	if len(o.queue) < cap(o.queue) || o.head+int(o.replaced) <= len(o.queue)/2 {
		return
	}
	kept, busy := 0, 0
	for i := o.head; i < len(o.queue); i++ {
		q := o.queue[i]
		if q.buffer == replacedBuffer {
			continue
		}
		if i < int(o.busy) {
			busy = kept + 1
		}
		if q.event != nil {
			key := q.event.topicKey()
			if at, is := o.latest[key]; is && at == i {
				o.latest[key] = kept
			}
		}
		o.queue[kept] = q
		kept++
	}
	clear(o.queue[kept:])
	o.queue, o.head, o.busy, o.replaced = o.queue[:kept], 0, int32(busy), 0
}

// scratch holds memory in which buffers are joined for a write. A drain
// goroutine that waits for a socket has none.
var scratch = sync.Pool{New: func() any { return new([maxWrite]byte) }}

// drain is the goroutine that unlock starts. It writes until nothing waits, or
// the connection fails or is aborted. flushed waits for its end.
func (o *outbox) drain() {
	o.mu.Lock()
	defer o.unlock()
	defer func() {
		o.writing = false
		if o.drained != nil {
			o.backlog.report(o.shared) // before somebody looks who waits
			close(o.drained)
			o.drained = nil
		}
	}()
	write := patientWriter(o.conn)
	if !o.probed {
		_, ok := unsent(o.conn)
		o.probed, o.blind = true, !ok
	}
	for {
		mem := scratch.Get().(*[maxWrite]byte)
		release := func() {
			if mem != nil {
				scratch.Put(mem)
				mem = nil
			}
		}
		var b []byte
		pongs := o.pongs != nil && o.off == 0 // between two buffers
		if pongs {
			b = o.takePongsLocked()
			release()
		} else {
			b = o.nextLocked(mem)
		}
		if len(b) == 0 {
			release()
			if !o.lacksPartLocked() {
				return
			}
			o.nextPartLocked()
			continue // also without a part: something may have come in the meantime
		}
		o.releaseLocked()
		var n int
		var err error
		if pongs {
			n, err = o.conn.Write(b)
		} else {
			n, err = write(b, release)
		}
		release()
		o.mu.Lock()
		if o.state == outboxFailed {
			return
		}
		if !pongs {
			o.wroteLocked(n)
		}
		if err != nil {
			o.failLocked(err)
			return
		}
		o.progress, o.moved = o.shared.clock.now(), true
	}
}

// nextLocked returns the next bytes of the queue to write: whole buffers within
// the bound, joined in mem, or a part of a larger one. If a pong waits for the
// end of the first buffer, it joins none: the pong must not follow a close
// frame.
func (o *outbox) nextLocked(mem *[maxWrite]byte) []byte {
	o.skipLocked()
	if o.head == len(o.queue) {
		return nil
	}
	most := maxWrite
	if o.blind {
		most = blindWrite
	}
	b := o.queue[o.head].b[o.off:]
	next := o.head + 1
	if next == len(o.queue) || o.pongs != nil || len(b)+len(o.queue[next].b) > most {
		b = b[:min(len(b), most)]
	} else {
		b = append(mem[:0], b...)
		for ; next < len(o.queue) && len(b)+len(o.queue[next].b) <= most; next++ {
			b = append(b, o.queue[next].b...)
		}
	}
	o.busy = int32(next)
	return b
}

// movesLocked reports whether the peer has acknowledged bytes since the last
// call. A blocked write may not show that: it goes on only when a third of the
// kernel's buffer is free, which may take megabytes.
func (o *outbox) movesLocked(now time.Duration) bool {
	n, ok := unsent(o.conn)
	moves := ok && n < int(o.kernel)
	o.kernel = int32(n)
	if moves {
		o.progress, o.moved = now, true
	}
	return moves
}

// skipLocked removes empty buffers from the front of the queue.
func (o *outbox) skipLocked() {
	for o.head < len(o.queue) && len(o.queue[o.head].b) == 0 {
		o.passLocked()
	}
	if o.head == len(o.queue) {
		o.head, o.queue = 0, o.queue[:0]
		if cap(o.queue) > 8 {
			o.queue = nil // an idle client keeps no memory of a burst
		}
		o.latest, o.busy = nil, 0
	}
}

// passLocked removes the first buffer of the queue.
func (o *outbox) passLocked() {
	q := o.queue[o.head]
	if q.event != nil {
		if key := q.event.topicKey(); o.latest[key] == o.head {
			delete(o.latest, key)
		}
	}
	if q.buffer == replacedBuffer {
		o.replaced--
	}
	o.queue[o.head] = queued{}
	o.head, o.off, o.done = o.head+1, 0, 0
}

// wroteLocked counts n bytes as written.
func (o *outbox) wroteLocked(n int) {
	delivered := 0
	for n > 0 {
		buf := o.queue[o.head].buffer
		step := min(n, len(buf.b)-o.off)
		n -= step
		o.off += step
		if buf.private {
			o.backlog.private -= step
		}
		for int(o.done) < len(buf.ends) && buf.ends[o.done] <= o.off {
			o.done++
			delivered++
		}
		if o.off == len(buf.b) {
			o.passLocked()
		}
	}
	o.skipLocked()
	o.backlog.delivered(o.shared, delivered)
}

func (o *outbox) isWriting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.writing
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

// flushed ends o: it accepts no more, and fails if it is held. The channel is
// closed when no drain goroutine is left. It is for one caller.
func (o *outbox) flushed() <-chan struct{} {
	o.mu.Lock()
	defer o.releaseLocked()
	switch {
	case o.conn == nil:
		o.failLocked(nil) // it will never be opened
	case o.state == outboxOpen:
		o.state, o.closed = outboxClosed, true
		o.endPastLocked()
	}
	if !o.writing {
		return ended
	}
	o.drained = make(chan struct{})
	return o.drained
}

// overdue returns why the sweeper must cut the connection, or nil.
func (o *outbox) overdue(now time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.writing && !o.fetching && !o.movesLocked(now) && now-o.progress >= o.shared.writeTimeout:
		return errWriteTimeout
	case o.isTooSlowLocked():
		return ErrSlowClient
	}
	return nil
}
