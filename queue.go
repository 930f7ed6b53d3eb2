package realtime

import (
	"math"
	"slices"
)

// replacedBuffer marks a queue slot whose event was replaced.
var replacedBuffer = new(buffer)

// A topicKey is equal for events that replace each other.
type topicKey struct{ topic, key string }

func (ev *event) topicKey() topicKey { return topicKey{ev.topic, ev.Key} }

// appendLocked queues bufs, and events with a Key one by one. Such an event
// removes the older one but waits at the end, because its id comes last.
func (o *outbox) appendLocked(bufs ...*buffer) {
	for _, buf := range bufs {
		if len(buf.keyed) <= 1 {
			o.enqueueLocked(buf)
			continue
		}
		for _, ev := range buf.keyed {
			o.enqueueLocked(ev.buffer(o.format))
		}
	}
}

// enqueueLocked queues buf, which has one event if it has one that is replaceable.
func (o *outbox) enqueueLocked(buf *buffer) {
	if len(buf.b) == 0 {
		return // a notice in a format that has none
	}
	o.makeRoomLocked()
	if buf.keyed != nil {
		o.replaceLocked(buf.keyed[0].topicKey())
	}
	if buf.private {
		o.backlog.private += len(buf.b)
	}
	o.queue = append(o.queue, buf)
}

// replaceLocked removes the event that waits under key, unless it is being
// written. It notes the end of the queue as the index of the newer one.
func (o *outbox) replaceLocked(key topicKey) {
	if old, ok := o.latest[key]; ok && old >= int(o.busy) {
		buf := o.queue[old]
		if buf.private {
			o.backlog.private -= len(buf.b)
		}
		o.backlog.discard(len(buf.ends), &o.shared.replaced)
		o.queue[old] = replacedBuffer
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
		buf := o.queue[i]
		if buf == replacedBuffer {
			continue
		}
		if i < int(o.busy) {
			busy = kept + 1
		}
		if buf.keyed != nil {
			key := buf.keyed[0].topicKey()
			if at, is := o.latest[key]; is && at == i {
				o.latest[key] = kept
			}
		}
		o.queue[kept] = buf
		kept++
	}
	clear(o.queue[kept:])
	o.queue, o.head, o.busy, o.replaced = o.queue[:kept], 0, int32(busy), 0
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

func (o *outbox) wroteLocked(n int) {
	delivered := 0
	for n > 0 {
		buf := o.queue[o.head]
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

func (o *outbox) passLocked() {
	buf := o.queue[o.head]
	if buf.keyed != nil {
		if key := buf.keyed[0].topicKey(); o.latest[key] == o.head {
			delete(o.latest, key)
		}
	}
	if buf == replacedBuffer {
		o.replaced--
	}
	o.queue[o.head] = nil
	o.head, o.off, o.done = o.head+1, 0, 0
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
		if len(o.queue) > 0 && o.off == 0 { // nothing of it is written: later pongs must not overtake it
			o.queue, o.pongs = nil, &pongs{pong}
		}
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
