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
// An open outbox accepts messages. A closed one accepts none, but still sends
// those that wait. A finished or failed one has nothing left to do.
type outbox struct {
	// Set at construction, never changed.
	shared *shared
	owner  outboxOwner

	mu       sync.Mutex                        // guards the fields below; never held during a write that can block
	conn     io.Writer                         // nil while held
	try      func(b []byte) (n int, err error) // writes without blocking; nil: conn can't
	early    []*event                          // came while held
	queue    []queued                          // queue[head:] waits; its first may be partly written
	off      int                               // bytes of queue[head] that are written
	head     int                               // index into queue
	latest   *latest                           // where the newest of each Key waits; nil: none does
	backlog  backlog
	seq      uint64        // the highest history position of the events sent
	pong     *buffer       // the newest pong, to be sent between two buffers; nil: none
	last     *buffer       // the transport's last bytes, if closed while held
	progress time.Duration // when a write last ended, or the peer last acknowledged bytes
	failure  error         // not yet told to the owner
	drained  chan struct{} // closed when the drain goroutine ends; nil: nobody waits
	kernel   int32         // the last result of unsent
	done     int32         // messages of queue[head] that are written
	format   format
	state    outboxState
	closed   bool // this side has closed o; stays when o fails
	blind    bool // unsent doesn't work on conn
	writing  bool // the drain goroutine is running
}

type outboxState uint8

const (
	outboxOpen outboxState = iota
	outboxClosed
	outboxFinished
	outboxFailed
)

// An outboxOwner is told how its outbox ends. The methods run without the
// outbox's lock, on the drain goroutine or a caller's. They must not block.
type outboxOwner interface {
	outboxFailed(err error) // ErrSlowClient, or the error of a write
	outboxFinished()
}

// push sends the events of r. It returns ErrClientClosed if o isn't open or a
// write fails, and ErrSlowClient if this push was one too many.
func (o *outbox) push(r *run) error {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return ErrClientClosed
	}
	o.backlog.add(o.shared, r.messages)
	o.seq = max(o.seq, r.seq)
	if o.conn == nil {
		o.early = append(o.early, r.events...)
	} else {
		o.sendLocked(r.buffers(o.format)...)
	}
	return o.checkLocked()
}

// post sends e to this client alone; its errors are those of push. If the
// kernel accepts the whole frame, a later frame reuses its memory.
func (o *outbox) post(e *Event) error {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return ErrClientClosed
	}
	o.backlog.add(o.shared, 1)
	switch {
	case o.conn == nil:
		o.early = append(o.early, &event{Event: *e, private: true})
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
// too slow, it fails o first.
func (o *outbox) checkLocked() error {
	if o.state == outboxFailed {
		return ErrClientClosed
	}
	if o.conn == nil && o.backlog.isOverLimit(o.shared) {
		o.conflateEarlyLocked()
		if most := hardLimit * o.shared.sendBuffer; o.backlog.owed() > most-most/16 { // with less gain, every push would search all of it again
			o.failLocked(ErrSlowClient)
			return ErrSlowClient
		}
	}
	if o.isTooSlowLocked() {
		o.failLocked(ErrSlowClient)
		return ErrSlowClient
	}
	return nil
}

// isTooSlowLocked reports whether the client is too slow to stay. closeTimeout
// bounds a closing client instead, and only the hard limit a held one.
func (o *outbox) isTooSlowLocked() bool {
	switch {
	case o.state != outboxOpen:
		return false
	case o.backlog.isOverLimit(o.shared):
		return true
	case o.conn == nil:
		return false
	}
	return o.backlog.isTooSlow(o.shared)
}

// unlock unlocks o. Before that, it starts the drain goroutine if something
// waits. After that, it tells the owner if o has ended.
func (o *outbox) unlock() {
	if !o.writing && (o.head < len(o.queue) || o.pong != nil) {
		o.writing = true
		o.progress = o.shared.clock.now()
		go o.drain()
	}
	failure := o.failure
	o.failure = nil
	finished := o.state == outboxClosed && o.conn != nil && !o.writing
	if finished {
		o.state = outboxFinished
	}
	o.mu.Unlock()
	if failure != nil {
		o.owner.outboxFailed(failure)
	} else if finished {
		o.owner.outboxFinished()
	}
}

// conflateEarlyLocked drops held events that a newer one replaces.
func (o *outbox) conflateEarlyLocked() {
	o.early = conflate(o.early, func(*event) { o.backlog.replaced(o.shared, 1) })
}

// replay sends the past events of r. If o is held, it merges them with the
// events that have come since, some of which may be the same.
func (o *outbox) replay(r *replay) {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return
	}
	if o.conn == nil {
		before := countMessages(o.early)
		o.early = r.before(o.early)
		o.backlog.addExempt(o.shared, countMessages(o.early)-before)
	} else if past := r.before(nil); len(past) > 0 {
		var rn run
		rn.add(past...)
		o.backlog.add(o.shared, rn.messages)
		o.sendLocked(rn.buffers(o.format)...)
		o.backlog.exemptReplay(rn.messages)
	}
	if r.position != nil {
		o.seq = max(o.seq, r.position.seq)
	}
}

// position sends ev, a position, unless the client has been sent later events.
// It reports whether it did.
func (o *outbox) position(ev *event) bool {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen || o.conn == nil || ev.seq <= o.seq || len(ev.buffer(o.format).b) == 0 {
		return false
	}
	o.seq = ev.seq
	o.sendLocked(ev.buffer(o.format))
	return true
}

// sendLocked writes bufs while nothing waits and the kernel accepts them. It
// queues the rest. If a write fails, so does o.
func (o *outbox) sendLocked(bufs ...*buffer) {
	if !o.freeLocked() {
		o.appendLocked(bufs...)
		return
	}
	delivered := 0
	for i, buf := range bufs {
		if len(buf.b) == 0 {
			continue // a notice in a format that has none
		}
		n, err := o.try(buf.b)
		if err != nil {
			o.backlog.delivered(o.shared, delivered)
			o.failLocked(err)
			return
		}
		if n < len(buf.b) {
			o.backlog.delivered(o.shared, delivered)
			o.queueRestLocked(bufs[i:], n)
			return
		}
		delivered += len(buf.ends)
	}
	o.backlog.delivered(o.shared, delivered)
}

// queueRestLocked queues bufs, n bytes of which are written.
func (o *outbox) queueRestLocked(bufs []*buffer, n int) {
	o.latest = &latest{busy: math.MaxInt} // nothing may be replaced until the n bytes are counted
	o.appendLocked(bufs...)
	o.wroteLocked(n)
	o.latest.busy = o.head + o.latest.base
	if o.off > 0 {
		o.latest.busy++
	}
	if o.latest.indexes == nil {
		o.latest = nil
	}
}

// freeLocked reports whether bytes may be written at once. Then nothing waits,
// because unlock has all that waits drained.
func (o *outbox) freeLocked() bool { return o.try != nil && !o.writing }

// control sends a control frame or a comment, if o is open and not held.
func (o *outbox) control(frame *buffer) {
	o.mu.Lock()
	defer o.unlock()
	if o.state == outboxOpen && o.conn != nil {
		o.sendLocked(frame)
	}
}

// answer sends a pong before the buffers that wait. It replaces a pong that
// still waits, so a flood of pings costs no memory: only the newest ping needs
// an answer (RFC 6455 §5.5.3).
func (o *outbox) answer(pong *buffer) {
	o.mu.Lock()
	defer o.unlock()
	switch {
	case o.state != outboxOpen || o.conn == nil:
	case o.freeLocked():
		o.sendLocked(pong)
	default:
		o.pong = pong
	}
}

// close sends a transport's last bytes after all that waits. From then on o
// accepts nothing. close reports whether this call closed o. If so, it has
// called closed under the lock, before the last bytes can have an effect.
func (o *outbox) close(last *buffer, closed func()) bool {
	o.mu.Lock()
	defer o.unlock()
	if o.state != outboxOpen {
		return false
	}
	o.state, o.closed = outboxClosed, true
	closed()
	if o.conn == nil {
		o.last = last
	} else {
		o.sendLocked(last)
	}
	return true
}

// fail drops all that waits. o accepts and writes no more, but a write under
// way goes on. The owner isn't told, because it calls fail.
func (o *outbox) fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failLocked(nil)
}

// failLocked fails o, and has unlock tell the owner of err unless it is nil.
func (o *outbox) failLocked(err error) {
	o.state, o.failure = outboxFailed, err
	o.backlog.drop(o.shared)
	o.early, o.queue, o.head, o.off, o.done, o.latest = nil, nil, 0, 0, 0, nil
	o.pong, o.last = nil, nil
}

// open ends the held state. try writes to conn without blocking, or is nil.
func (o *outbox) open(conn io.Writer, try func([]byte) (int, error), f format) {
	o.mu.Lock()
	defer o.unlock()
	o.conn, o.try, o.format = conn, try, f
	_, ok := unsent(conn)
	o.blind = !ok
	o.conflateEarlyLocked()
	var r run
	r.add(o.early...)
	bufs := r.buffers(f)
	if o.last != nil {
		bufs = append(bufs, o.last)
	}
	o.early, o.last, o.backlog.private = nil, nil, 0
	o.sendLocked(bufs...)
	o.backlog.connected(o.shared)
}

// A queued is one buffer that waits.
type queued struct {
	*buffer
	event *event // nil, or one that a newer event may replace
}

// replacedBuffer marks a queue slot whose event was replaced.
var replacedBuffer = new(buffer)

// A latest holds where the newest event of each Key waits: its index in the
// queue plus base. Inserting at the front changes base, not the indexes.
type latest struct {
	indexes  map[topicKey]int
	base     int
	busy     int // slots before this index are being written
	replaced int // how many in the queue are replacedBuffer
}

// A topicKey is equal for events that replace each other.
type topicKey struct{ topic, key string }

// appendLocked queues bufs, and events with a Key one by one. Such an event
// removes the older one but waits at the end, because its id comes last.
func (o *outbox) appendLocked(bufs ...*buffer) {
	for _, buf := range bufs {
		if len(buf.b) == 0 {
			continue // a notice in a format that has none
		}
		if buf.keyed == nil {
			o.makeRoomLocked()
			o.queue = append(o.queue, queued{buffer: buf})
			if buf.private {
				o.backlog.private += len(buf.b)
			}
			continue
		}
		for _, ev := range buf.keyed {
			o.makeRoomLocked()
			q := queued{buffer: ev.buffer(o.format)}
			if len(q.b) == 0 {
				continue
			}
			if ev.isReplaceable() {
				q.event = ev
				o.replaceLocked(topicKey{ev.topic, ev.Key})
			}
			if q.private {
				o.backlog.private += len(q.b)
			}
			o.queue = append(o.queue, q)
		}
	}
}

// replaceLocked removes the event that waits under key, unless it is being
// written. It notes the end of the queue as the index of the newer one.
func (o *outbox) replaceLocked(key topicKey) {
	if o.latest == nil {
		o.latest = new(latest)
	}
	l := o.latest
	if l.indexes == nil {
		l.indexes = make(map[topicKey]int)
	}
	if old, ok := l.indexes[key]; ok && old >= l.busy {
		q := &o.queue[old-l.base]
		if q.private {
			o.backlog.private -= len(q.b)
		}
		o.backlog.replaced(o.shared, len(q.ends))
		*q = queued{buffer: replacedBuffer}
		l.replaced++
	}
	l.indexes[key] = l.base + len(o.queue)
}

// makeRoomLocked compacts a full queue if half of it is written or replaced.
func (o *outbox) makeRoomLocked() {
	if len(o.queue) < cap(o.queue) {
		return
	}
	l := o.latest
	if l == nil {
		l = new(latest) // for this call alone: no event has a Key
	}
	if o.head+l.replaced < len(o.queue)/2 {
		return
	}
	kept, busy := 0, 0
	for i := o.head; i < len(o.queue); i++ {
		q := o.queue[i]
		if q.buffer == replacedBuffer {
			continue
		}
		if i+l.base < l.busy {
			busy = kept + 1
		}
		if q.event != nil {
			if key := (topicKey{q.event.topic, q.event.Key}); l.indexes[key] == i+l.base {
				l.indexes[key] = kept + l.base
			}
		}
		o.queue[kept] = q
		kept++
	}
	clear(o.queue[kept:])
	o.queue, o.head, l.replaced = o.queue[:kept], 0, 0
	if l.busy != math.MaxInt {
		l.busy = busy + l.base
	}
}

// scratch holds memory in which drain goroutines join buffers for a write.
var scratch = sync.Pool{New: func() any { return new([maxWrite]byte) }}

// drain is the goroutine that unlock starts. It writes until nothing waits, or
// the connection fails or is aborted. flushed waits for its end.
func (o *outbox) drain() {
	mem := scratch.Get().(*[maxWrite]byte)
	defer scratch.Put(mem)
	o.mu.Lock()
	defer o.unlock()
	defer func() {
		o.writing = false
		if o.drained != nil {
			close(o.drained)
			o.drained = nil
		}
	}()
	for {
		b := o.nextLocked(mem)
		if len(b) == 0 {
			return
		}
		o.mu.Unlock()
		n, err := o.conn.Write(b)
		o.mu.Lock()
		if o.state == outboxFailed {
			return
		}
		o.wroteLocked(n)
		if err != nil {
			o.failLocked(err)
			return
		}
		o.progress = o.shared.clock.now()
	}
}

// nextLocked returns the next bytes to write: whole buffers within the bound,
// joined in mem, or a part of a larger one. If a pong waits for the end of the
// first buffer, it joins none: the pong must not follow a close frame.
func (o *outbox) nextLocked(mem *[maxWrite]byte) []byte {
	if o.pong != nil && o.off == 0 {
		if o.head > 0 {
			o.head--
			o.queue[o.head] = queued{buffer: o.pong}
		} else {
			o.queue = slices.Insert(o.queue, 0, queued{buffer: o.pong})
			if o.latest != nil {
				o.latest.base-- // so that all others keep their indexes
			}
		}
		o.pong = nil
	}
	o.skipLocked()
	if o.head == len(o.queue) {
		return nil
	}
	first := o.queue[o.head].b[o.off:]
	next := o.head + 1
	defer func() {
		if o.latest != nil {
			o.latest.busy = next + o.latest.base
		}
	}()
	most := maxWrite
	if o.blind {
		most = blindWrite
	}
	if next == len(o.queue) || o.pong != nil || len(first)+len(o.queue[next].b) > most {
		return first[:min(len(first), most)]
	}
	b := append(mem[:0], first...)
	for ; next < len(o.queue) && len(b)+len(o.queue[next].b) <= most; next++ {
		b = append(b, o.queue[next].b...)
	}
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
		o.progress = now
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
		o.latest = nil
	}
}

// passLocked removes the first buffer of the queue.
func (o *outbox) passLocked() {
	q := o.queue[o.head]
	if q.event != nil {
		if key := (topicKey{q.event.topic, q.event.Key}); o.latest.indexes[key] == o.head+o.latest.base {
			delete(o.latest.indexes, key)
		}
	}
	if q.buffer == replacedBuffer {
		o.latest.replaced--
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
	defer o.mu.Unlock()
	switch {
	case o.conn == nil:
		o.failLocked(nil) // it will never be opened
	case o.state == outboxOpen:
		o.state, o.closed = outboxClosed, true
	}
	done := make(chan struct{})
	if o.writing {
		o.drained = done
	} else {
		close(done)
	}
	return done
}

// overdue returns why the sweeper must cut the connection, or nil.
func (o *outbox) overdue(now time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.writing && !o.movesLocked(now) && now-o.progress >= o.shared.writeTimeout:
		return errWriteTimeout
	case o.isTooSlowLocked():
		return ErrSlowClient
	}
	return nil
}
