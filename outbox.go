package realtime

import (
	"cmp"
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

// hardLimit times SendBuffer messages may wait for a client at most, for
// however short a time. It is the bound on memory, where SlowAfter is the one
// on patience.
const hardLimit = 64

// What was sent to one client alone may be large, and nobody else shares its
// memory: where several messages wait, more than maxPrivate bytes of it are as
// too many, and more than maxPrivateAtOnce as hardLimit times too many. Who gets
// rid of privateStep more than comes is catching up.
const (
	maxPrivate       = 8 << 20
	maxPrivateAtOnce = 32 << 20
	privateStep      = 1 << 20
)

// An outbox is one connection's way out: what waits for it, in order. Where
// nothing waits and the connection has a way to write without blocking, what is
// put in goes to the kernel at once, under the lock. What the kernel doesn't
// take waits; whoever left it there is told to start the goroutine that drains
// the outbox. That goroutine alone writes from then on, and ends when nothing
// is left: an idle client has none.
//
// The life of an outbox: held, where events wait until open says in which
// format and to which connection; open; closed, where what waits goes out and
// nothing more is taken; and failed, where nothing is left to be done.
type outbox struct {
	shared *shared // Set at construction, never changed.

	mu       sync.Mutex                        // guards the fields below; held for no write that can block
	conn     io.Writer                         // nil while held
	try      func(b []byte) (n int, err error) // writes without blocking; nil: there is no way
	early    []*event                          // what came while held
	queue    []queued                          // what waits is queue[head:]; the first may be partly written
	head     int                               // index into queue
	off      int                               // bytes of queue[head] that are written
	done     int                               // messages of queue[head] that are written
	latest   *latest                           // where the newest of each Key waits; nil: none does
	waiting  int                               // messages that are not completely written
	exempt   int                               // of these, what a replay has brought: the reader can't help it
	private  int                               // unwritten bytes in the queue that were sent to this client alone
	seq      uint64                            // the highest place in the history of what was sent
	above    time.Duration                     // since when waiting has been above SendBuffer, without the reader's catching up; zero: it isn't
	peak     int                               // the most messages that waited since
	pong     *buffer                           // the newest pong, to be sent between two buffers; nil: none
	last     *buffer                           // the close frame, if it came while held
	progress time.Duration                     // when the drain goroutine last got rid of something, or the kernel did
	kernel   int32                             // what unsent last told
	heap     int32                             // the most private bytes that waited since above
	drained  chan struct{}                     // closed when the drain goroutine ends; nil: nobody waits
	format   format
	blind    bool // unsent can't tell of conn
	closed   bool
	failed   bool
	writing  bool // the drain goroutine is running
}

// push sends the events of r and reports whether the caller must start a
// goroutine that drains o. The error is ErrClientClosed; or ErrSlowClient where
// this push was one too many, or that of the write: o has failed then.
func (o *outbox) push(r *run) (start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed {
		return false, ErrClientClosed
	}
	o.countLocked(r.messages)
	o.seq = max(o.seq, r.seq)
	if o.conn == nil {
		o.early = append(o.early, r.events...)
	} else if err := o.sendLocked(r.buffers(o.format)...); err != nil {
		return false, err
	}
	return o.pushedLocked()
}

// post is push for an event that nobody else gets. Where the kernel takes it,
// its frame's memory serves the next one.
func (o *outbox) post(e *Event) (start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed {
		return false, ErrClientClosed
	}
	o.countLocked(1)
	switch {
	case o.conn == nil:
		o.early = append(o.early, &event{Event: *e, private: true})
		o.private += len(e.Data)
	case e.Key != "" || o.format.deflate && len(e.Data) >= minDeflate:
		err = o.sendLocked((&event{Event: *e, private: true}).buffer(o.format))
	default:
		l := letters.Get().(*letter)
		l.write(e, o.format.encoding)
		err = o.sendLocked(&l.buffer)
		if o.head == len(o.queue) && cap(l.b) <= maxWrite {
			letters.Put(l)
		}
	}
	if err != nil {
		return false, err
	}
	return o.pushedLocked()
}

// conflateEarlyLocked drops what a newer event replaces of what came while o
// was held.
func (o *outbox) conflateEarlyLocked() {
	o.early = conflate(o.early, func(*event) { o.replacedLocked(1) })
}

// replay sends what r has of the past. Where o is held, that comes before what
// was published meanwhile, some of which the past may have as well. start and
// err are as for push.
func (o *outbox) replay(r *replay) (start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed {
		return false, ErrClientClosed
	}
	if o.conn == nil {
		before := countMessages(o.early)
		o.early = r.before(o.early)
		added := countMessages(o.early) - before
		o.countLocked(added)
		o.exempt += max(added, 0)
	} else if past := r.before(nil); len(past) > 0 {
		var rn run
		rn.add(past...)
		o.countLocked(rn.messages)
		if err := o.sendLocked(rn.buffers(o.format)...); err != nil {
			return false, err
		}
		o.exempt = max(o.exempt, min(rn.messages, o.waiting)) // of one replay at most: whoever asks again and again gains nothing
	}
	if r.position != nil {
		o.seq = max(o.seq, r.position.seq)
	}
	return o.startLocked(), nil
}

// position tells the client that it has seen all up to ev, a notice, unless it
// has been sent later events. It reports whether it did; start and err are as
// for push.
func (o *outbox) position(ev *event) (sent, start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed || o.conn == nil || ev.seq <= o.seq || len(ev.buffer(o.format).b) == 0 {
		return false, false, nil
	}
	o.seq = ev.seq
	err = o.sendLocked(ev.buffer(o.format))
	return true, o.startLocked(), err
}

// countLocked notes that n messages more wait.
func (o *outbox) countLocked(n int) {
	o.waiting += n
	o.shared.queued.Add(int64(n))
}

// pushedLocked ends a push or a post.
func (o *outbox) pushedLocked() (start bool, err error) {
	if most := hardLimit * o.shared.sendBuffer; o.conn == nil && o.owedLocked() > most {
		o.conflateEarlyLocked()
		if o.owedLocked() > most-most/16 { // or every push would look through all of it for nothing
			o.failLocked()
			return false, ErrSlowClient
		}
	}
	if o.isBehindLocked() && o.slowLocked(o.shared.clock.now()) {
		o.failLocked()
		return false, ErrSlowClient
	}
	return o.startLocked(), nil
}

// sendLocked writes bufs, as far as nothing waits and the kernel takes them,
// and queues the rest. The error is that of the write: o has failed.
func (o *outbox) sendLocked(bufs ...*buffer) error {
	if !o.freeLocked() {
		o.appendLocked(bufs...)
		return nil
	}
	delivered := 0
	for i, buf := range bufs {
		if len(buf.b) == 0 {
			continue // a notice in a format that has none
		}
		n, err := o.try(buf.b)
		if err != nil {
			o.deliveredLocked(delivered)
			o.failLocked()
			return err
		}
		if n < len(buf.b) {
			o.deliveredLocked(delivered)
			o.latest = &latest{busy: math.MaxInt} // n bytes are gone: nothing may change places with another
			o.appendLocked(bufs[i:]...)
			o.wroteLocked(n)
			o.latest.busy = o.head + o.latest.base
			if o.off > 0 {
				o.latest.busy++
			}
			if o.latest.places == nil {
				o.latest = nil
			}
			return nil
		}
		delivered += len(buf.ends)
	}
	o.deliveredLocked(delivered)
	return nil
}

// freeLocked reports whether what is sent may be written at once: then nothing
// waits, because whoever leaves something waiting has it drained.
func (o *outbox) freeLocked() bool { return o.try != nil && !o.writing }

// slowLocked reports whether the reader has used up its patience. It is to be
// called when waiting has grown, and now and then.
func (o *outbox) slowLocked(now time.Duration) bool {
	if !o.isBehindLocked() || o.closed {
		return false // one that is being closed has its closeTimeout
	}
	owed := o.owedLocked()
	if owed > hardLimit*o.shared.sendBuffer || o.private > maxPrivateAtOnce {
		return true
	}
	if o.conn == nil {
		return false // held by OnConnect, for which the reader can't help
	}
	o.above, o.peak, o.heap = cmp.Or(o.above, now), max(o.peak, owed), max(o.heap, int32(o.private))
	return now-o.above >= o.shared.slowAfter
}

// isBehindLocked reports whether more waits than the reader may owe for long. One
// message alone may be as large as it likes.
func (o *outbox) isBehindLocked() bool {
	owed := o.owedLocked()
	return owed > o.shared.sendBuffer || o.private > maxPrivate && owed > 1
}

// owedLocked returns how many messages wait for which the reader is held to
// account.
func (o *outbox) owedLocked() int { return o.waiting - o.exempt }

// control sends a control frame, unless o takes no more; start and err are as
// for push.
func (o *outbox) control(frame *buffer) (start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed || o.conn == nil {
		return false, nil
	}
	err = o.sendLocked(frame)
	return o.startLocked(), err
}

// answer sends a pong, in the place of one that still waits (RFC 6455 §5.5.3:
// only the newest ping needs an answer), so that a flood of pings costs no
// memory. It goes out before whatever waits; start and err are as for push.
func (o *outbox) answer(pong *buffer) (start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed || o.conn == nil {
		return false, nil
	}
	if o.freeLocked() {
		err = o.sendLocked(pong)
	} else {
		o.pong = pong
	}
	return o.startLocked(), err
}

// close sends a transport's last bytes behind all that waits; nothing more is
// taken. It reports whether this call was the one that closed o; start and err
// are as for push.
func (o *outbox) close(last *buffer) (first, start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.failed {
		return false, false, nil
	}
	o.closed = true
	if o.conn == nil {
		o.last = last
		return true, false, nil
	}
	err = o.sendLocked(last)
	return true, o.startLocked(), err
}

// fail drops what waits; nothing more is taken or written, but for the write
// under way.
func (o *outbox) fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failLocked()
}

func (o *outbox) failLocked() {
	o.failed = true
	o.shared.dropped.Add(int64(o.waiting))
	o.shared.queued.Add(-int64(o.waiting))
	o.waiting, o.exempt, o.private, o.above, o.peak, o.heap = 0, 0, 0, 0, 0, 0
	o.early, o.queue, o.head, o.off, o.done, o.latest = nil, nil, 0, 0, 0, nil
	o.pong, o.last = nil, nil
}

// open ends the held state. try writes to conn without blocking, or is nil;
// start and err are as for push.
func (o *outbox) open(conn io.Writer, try func([]byte) (int, error), f format) (start bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
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
	o.early, o.last, o.private = nil, nil, 0
	err = o.sendLocked(bufs...)
	if owed := o.owedLocked(); owed > o.shared.sendBuffer {
		o.above, o.peak = o.shared.clock.now(), owed // patience with this reader begins now
	}
	return o.startLocked(), err
}

// A queued is what waits in an outbox.
type queued struct {
	*buffer
	event *event // nil, or one with a Key: a newer one may take its place
}

// void is what waits in the place of an event for which a newer one does.
var void = new(buffer)

// A latest tells where the newest event of each Key waits. Places are indexes
// into the queue, plus base, which changes with the queue so that they don't.
type latest struct {
	places map[topicKey]int
	base   int
	busy   int // what waits before this place is being written
	voids  int
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
				o.private += len(buf.b)
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
				o.private += len(q.b)
			}
			o.queue = append(o.queue, q)
		}
	}
}

// replaceLocked takes back what waits under a key. What is being written, in
// part or by the drain goroutine, doesn't wait. The next place is that of the
// newer one.
func (o *outbox) replaceLocked(key topicKey) {
	if o.latest == nil {
		o.latest = new(latest)
	}
	l := o.latest
	if l.places == nil {
		l.places = make(map[topicKey]int)
	}
	if old, ok := l.places[key]; ok && old >= l.busy {
		q := &o.queue[old-l.base]
		if q.private {
			o.private -= len(q.b)
		}
		o.replacedLocked(len(q.ends))
		*q = queued{buffer: void}
		l.voids++
	}
	l.places[key] = l.base + len(o.queue)
}

// replacedLocked notes that n messages don't wait any more because newer ones
// do.
func (o *outbox) replacedLocked(n int) {
	o.waiting -= n
	o.exempt = min(o.exempt, o.waiting)
	o.shared.queued.Add(-int64(n))
	o.shared.replaced.Add(int64(n))
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
	if o.head+l.voids < len(o.queue)/2 {
		return
	}
	kept, busy := 0, 0
	for i := o.head; i < len(o.queue); i++ {
		q := o.queue[i]
		if q.buffer == void {
			continue
		}
		if i+l.base < l.busy {
			busy = kept + 1
		}
		if q.event != nil {
			if key := (topicKey{q.event.topic, q.event.Key}); l.places[key] == i+l.base {
				l.places[key] = kept + l.base
			}
		}
		o.queue[kept] = q
		kept++
	}
	clear(o.queue[kept:])
	o.queue, o.head, l.voids = o.queue[:kept], 0, 0
	if l.busy != math.MaxInt {
		l.busy = busy + l.base
	}
}

// startLocked reports whether there is something to write that nobody does,
// and takes it that the caller sees to it.
func (o *outbox) startLocked() bool {
	if o.writing || o.head == len(o.queue) && o.pong == nil {
		return false
	}
	o.writing = true
	o.progress = o.shared.clock.now()
	return true
}

// scratch holds what the drain goroutines gather into one write.
var scratch = sync.Pool{New: func() any { return new([maxWrite]byte) }}

// drain writes until nothing waits. It is the body of a goroutine that
// somebody starts when o says so; it ends by itself, at the latest when the
// connection fails or is aborted. The error is that of the write, which is
// final: o has failed.
func (o *outbox) drain() error {
	mem := scratch.Get().(*[maxWrite]byte)
	defer scratch.Put(mem)
	o.mu.Lock()
	defer o.mu.Unlock()
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
			return nil
		}
		o.mu.Unlock()
		n, err := o.conn.Write(b)
		o.mu.Lock()
		if o.failed {
			return nil
		}
		o.wroteLocked(n)
		if err != nil {
			o.failLocked()
			return err
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
				o.latest.base-- // for all others to keep their places
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
		if key := (topicKey{q.event.topic, q.event.Key}); o.latest.places[key] == o.head+o.latest.base {
			delete(o.latest.places, key)
		}
	}
	if q.buffer == void {
		o.latest.voids--
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
			o.private -= step
		}
		for o.done < len(buf.ends) && buf.ends[o.done] <= o.off {
			o.done++
			delivered++
		}
		if o.off == len(buf.b) {
			o.passLocked()
		}
	}
	o.skipLocked()
	o.deliveredLocked(delivered)
}

// deliveredLocked notes that messages are written.
func (o *outbox) deliveredLocked(n int) {
	o.waiting -= n
	o.exempt = max(0, o.exempt-n) // what was replayed is in front
	switch owed := o.owedLocked(); {
	case !o.isBehindLocked():
		o.above, o.peak, o.heap = 0, 0, 0
	case owed <= o.peak-o.shared.sendBuffer || o.private <= int(o.heap)-privateStep:
		// A burst takes its time on a slow link or a busy machine. This
		// reader is catching up with it.
		o.above, o.peak, o.heap = o.shared.clock.now(), owed, int32(min(o.private, math.MaxInt32))
	}
	o.shared.queued.Add(-int64(n))
	o.shared.delivered.Add(int64(n))
}

// isWriting reports whether something waits to be written.
func (o *outbox) isWriting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.writing
}

// isClosed reports whether the last bytes are queued.
func (o *outbox) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

// isFinished reports whether all is written, and nothing more will be.
func (o *outbox) isFinished() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed && !o.failed && !o.writing && o.conn != nil
}

// hasFailed reports whether nothing can go out any more.
func (o *outbox) hasFailed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

// flushed takes nothing more, and returns a channel that is closed when all
// that waits is written, or never will be. It is for one caller.
func (o *outbox) flushed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.conn == nil {
		o.failLocked() // it will never be opened
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
	case o.slowLocked(now):
		return ErrSlowClient
	}
	return nil
}
