package realtime

import (
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// maxWrite bounds one write call, and blindWrite does where only its return
// tells that the reader takes something: so that a slow but steady one is seen
// to make progress within WriteTimeout.
const (
	maxWrite   = 64 << 10
	blindWrite = 16 << 10
)

// An outbox is one connection's way out: what waits for it, in order. Where
// nothing waits and the connection has a way to write without blocking, what is
// put in goes to the kernel at once, under the lock. What the kernel doesn't
// take waits, and the outbox starts a goroutine that drains it. That goroutine
// alone writes from then on, and ends when nothing is left: an idle client has
// none.
//
// An outbox is held until open gives it its connection: what is put in waits
// until then. Its states, held or not:
//
//	open ──close──▶ closed ──all is written──▶ finished
//	  │                │
//	  └────────────────┴──fail, or an error──▶ failed
//
// Open takes what is put in. Closed takes no more, but sends what waits. In
// finished and failed nothing is left to be done.
type outbox struct {
	// Set at construction, never changed.
	shared *shared
	owner  outboxOwner

	mu       sync.Mutex                        // guards the fields below; held for no write that can block
	conn     io.Writer                         // nil while held
	try      func(b []byte) (n int, err error) // writes without blocking; nil: there is no way
	early    []*event                          // what came while held
	queue    []queued                          // what waits is queue[head:]; the first may be partly written
	off      int                               // bytes of queue[head] that are written
	head     int                               // index into queue
	latest   *latest                           // where the newest of each Key waits; nil: none does
	backlog  backlog
	seq      uint64        // the highest position in the history of what was sent
	pong     *buffer       // the newest pong, to be sent between two buffers; nil: none
	last     *buffer       // the close frame, if it came while held
	progress time.Duration // when the drain goroutine last got rid of something, or the kernel did
	failure  error         // what the owner has not been told yet
	drained  chan struct{} // closed when the drain goroutine ends; nil: nobody waits
	kernel   int32         // what unsent last told
	done     int32         // messages of queue[head] that are written
	format   format
	state    outboxState
	closed   bool // close was called; stays when o fails
	blind    bool // unsent can't tell of conn
	writing  bool // the drain goroutine is running
}

type outboxState uint8

const (
	outboxOpen outboxState = iota
	outboxClosed
	outboxFinished
	outboxFailed
)

// An outboxOwner is told how an outbox ends. The methods are called without the
// outbox's lock, by whoever put something in or by the drain goroutine, and must
// not block.
type outboxOwner interface {
	outboxFailed(err error) // ErrSlowClient, or the error of a write
	outboxFinished()
}

// push sends the events of r. The error is ErrClientClosed, or ErrSlowClient
// where this push was one too many.
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

// post is push for an event that nobody else gets. Where the kernel takes it,
// its frame's memory serves the next one.
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

// checkLocked returns the error of a push or a post. A client for which it was
// one too many has failed then.
func (o *outbox) checkLocked() error {
	if o.state == outboxFailed {
		return ErrClientClosed
	}
	if o.conn == nil && o.backlog.isOverLimit(o.shared) {
		o.conflateEarlyLocked()
		if most := hardLimit * o.shared.sendBuffer; o.backlog.owed() > most-most/16 { // or every push would look through all of it for nothing
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

// isTooSlowLocked reports whether the client is to be cut off. One that is being
// closed has its closeTimeout, and one that is held can't help it.
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

// unlock unlocks o. Before, it starts the goroutine that drains o if something
// waits; afterwards it tells the owner if o has ended.
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

// conflateEarlyLocked drops what a newer event replaces of what came while o
// was held.
func (o *outbox) conflateEarlyLocked() {
	o.early = conflate(o.early, func(*event) { o.backlog.replaced(o.shared, 1) })
}

// replay sends what r has of the past. Where o is held, that comes before what
// was published in the meantime, some of which the past may have as well.
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

// position tells the client that it has seen all up to ev, a notice, unless it
// has been sent later events. It reports whether it did.
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

// sendLocked writes bufs, as far as nothing waits and the kernel takes them,
// and queues the rest. Where the write fails, so does o.
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
	o.latest = &latest{busy: math.MaxInt} // n bytes are gone: nothing may change places with another
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

// freeLocked reports whether what is sent may be written at once: then nothing
// waits, because whoever leaves something waiting has it drained.
func (o *outbox) freeLocked() bool { return o.try != nil && !o.writing }

// control sends a control frame, unless o takes no more.
func (o *outbox) control(frame *buffer) {
	o.mu.Lock()
	defer o.unlock()
	if o.state == outboxOpen && o.conn != nil {
		o.sendLocked(frame)
	}
}

// answer sends a pong, in the place of one that still waits (RFC 6455 §5.5.3:
// only the newest ping needs an answer), so that a flood of pings costs no
// memory. It goes out before whatever waits.
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

// close sends a transport's last bytes behind all that waits; nothing more is
// taken. It reports whether this call was the one that closed o. Then it has
// called closed, under the lock: before anybody can see what the last bytes do.
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

// fail drops what waits; nothing more is taken or written, but for the write
// under way. The owner isn't told: it is the one that calls fail.
func (o *outbox) fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failLocked(nil)
}

// failLocked does so and has the owner told of err, unless that is nil.
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

// A queued is what waits in an outbox.
type queued struct {
	*buffer
	event *event // nil, or one with a Key: a newer one may take its place
}

// replacedBuffer stands in the queue where an event was that a newer one has
// replaced.
var replacedBuffer = new(buffer)

// A latest tells where the newest event of each Key waits. Its indexes are those
// of the queue plus base, which changes with the queue so that they don't.
type latest struct {
	indexes  map[topicKey]int
	base     int
	busy     int // what waits before this index is being written
	replaced int // how many in the queue are replacedBuffer
}

// A topicKey tells events apart that a newer one replaces.
type topicKey struct{ topic, key string }

// appendLocked queues bufs. Events with a Key wait one by one, each in the
// place of the older one that it replaces, or rather behind it: its id comes
// after those that wait between.
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

// replaceLocked takes back what waits under a key. What is being written, in
// part or by the drain goroutine, doesn't wait. The next index is that of the
// newer one.
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

// makeRoomLocked makes room for one more, in the place of what has gone.
func (o *outbox) makeRoomLocked() {
	if len(o.queue) < cap(o.queue) {
		return
	}
	l := o.latest
	if l == nil {
		l = new(latest) // forgotten again: there is nothing to keep track of
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

// scratch holds what the drain goroutines gather into one write.
var scratch = sync.Pool{New: func() any { return new([maxWrite]byte) }}

// drain writes until nothing waits. It is the body of a goroutine that unlock
// starts; it ends by itself, at the latest when the connection fails or is
// aborted. flushed tells of its end.
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

// nextLocked returns what to write next: as many whole buffers as fit in
// maxWrite, or what fits of a larger one. It gathers in mem where that saves
// writes, but not while a pong waits for the first buffer's end: it must not
// come behind a close frame.
func (o *outbox) nextLocked(mem *[maxWrite]byte) []byte {
	if o.pong != nil && o.off == 0 {
		if o.head > 0 {
			o.head--
			o.queue[o.head] = queued{buffer: o.pong}
		} else {
			o.queue = slices.Insert(o.queue, 0, queued{buffer: o.pong})
			if o.latest != nil {
				o.latest.base-- // for all others to keep their indexes
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

// movesLocked reports whether the kernel got rid of bytes since it was last
// asked, though perhaps not of so many that it takes more: of a full buffer of
// megabytes, the peer has to take a third before a write goes on.
func (o *outbox) movesLocked(now time.Duration) bool {
	n, ok := unsent(o.conn)
	moves := ok && n < int(o.kernel)
	o.kernel = int32(n)
	if moves {
		o.progress = now
	}
	return moves
}

// skipLocked passes over what has nothing to write.
func (o *outbox) skipLocked() {
	for o.head < len(o.queue) && len(o.queue[o.head].b) == 0 {
		o.passLocked()
	}
	if o.head == len(o.queue) {
		o.head, o.queue = 0, o.queue[:0]
		if cap(o.queue) > 8 {
			o.queue = nil // a burst is over: an idle client keeps none of it
		}
		o.latest = nil
	}
}

// passLocked takes the first out of the queue.
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

// wroteLocked moves on by n bytes.
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

// isWriting reports whether something waits to be written.
func (o *outbox) isWriting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.writing
}

// isClosed reports whether this side has closed o, though it may have failed
// since.
func (o *outbox) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

// hasFailed reports whether nothing can go out any more.
func (o *outbox) hasFailed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state == outboxFailed
}

// flushed takes nothing more, and returns a channel that is closed when all
// that waits is written, or never will be. It is for one caller.
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

// overdue returns the cause for which the sweeper has to cut the connection,
// or nil.
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
