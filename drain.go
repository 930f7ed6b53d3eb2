package realtime

import (
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

// sendEachLocked sends events. Unlike a run, it doesn't join them in memory that
// only this client would have.
func (o *outbox) sendEachLocked(events []*event) {
	size := 0
	for _, ev := range events {
		size += len(ev.buffer(o.format).b)
	}
	before := 0
	for _, buf := range o.queue[o.head:] {
		before += len(buf.b)
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

// freeLocked reports whether bytes may be written at once. Then nothing waits,
// because unlock has all that waits drained.
func (o *outbox) freeLocked() bool { return o.try != nil && !o.writing }

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

func (o *outbox) isWriting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.writing
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
