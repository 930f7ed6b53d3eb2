package realtime

import (
	"cmp"
	"math"
	"sync/atomic"
	"time"
)

// hardLimit times SendBuffer is the most messages that may ever wait for a
// client. It bounds memory, as SlowAfter bounds time.
const hardLimit = 64

// Messages to one client alone may be large, and no other client shares their
// memory. A client with several, of more than maxPrivate bytes in all, is
// behind. One above maxPrivateAtOnce is disconnected. A client that reads
// privateStep more than arrives is catching up.
const (
	maxPrivate       = 8 << 20
	maxPrivateAtOnce = 32 << 20
	privateStep      = 1 << 20
)

// A backlog counts what waits for one client. Its outbox's lock guards it.
type backlog struct {
	messages    int32         // not completely written
	reported    int32         // of these, in shared.queued
	exempt      int32         // of messages, brought by a replay: not the client's fault
	peak        int32         // the most messages owed since behind
	private     int           // unwritten bytes in the queue that were sent to this client alone
	behind      time.Duration // since when the client is behind without catching up; zero: it isn't
	privatePeak int           // the most private bytes that waited since behind
	exemptBy    time.Duration // when the exempt messages must be written
}

func (b *backlog) add(n int) { b.messages += int32(n) }

// report brings shared.queued up to date. It is called before the lock is
// released. So messages that are written at once are never in shared.queued: all
// shards share that, and their processors would wait for each other.
func (b *backlog) report(s *shared) {
	if n := b.messages - b.reported; n != 0 {
		s.queued.Add(int64(n))
		b.reported = b.messages
	}
}

// exemptReplay exempts n messages of a replay that add has counted. At most one
// replay is exempt: a client gains nothing by asking again and again.
func (b *backlog) exemptReplay(n int) { b.exempt = max(b.exempt, min(int32(n), b.messages)) }

// limitReplay bounds the time for a replay of size bytes, and for the bytes that
// wait before it: WriteTimeout, and as much again for each partBytes. Otherwise a
// client that reads a byte now and then could keep what waits.
func (b *backlog) limitReplay(s *shared, before, size int) {
	if b.exempt == 0 {
		return
	}
	times := time.Duration(size / partBytes)
	if b.exemptBy == 0 {
		b.exemptBy = s.clock.now()
		times = 1 + time.Duration((before+size)/partBytes) // before: else the limit has that already
	}
	if times > 0 { // and the sum may be more than a Duration can hold
		b.exemptBy += min(s.writeTimeout, (math.MaxInt64-b.exemptBy)/times) * times
	}
}

// delivered counts n messages that have been written.
func (b *backlog) delivered(s *shared, n int) {
	b.messages -= int32(n)
	if b.exempt = max(0, b.exempt-int32(n)); b.exempt == 0 { // replayed messages are in front
		b.exemptBy = 0
	}
	switch owed := b.owed(); {
	case !b.isBehind(s):
		b.behind, b.peak, b.privatePeak = 0, 0, 0
	case owed <= int(b.peak)-s.sendBuffer || b.private <= b.privatePeak-privateStep:
		// The client is catching up after a burst: SlowAfter starts over.
		b.behind, b.peak, b.privatePeak = s.clock.now(), int32(owed), b.private
	}
	s.delivered.Add(int64(n))
}

// discard counts n messages that will not be written, in shared.replaced or
// shared.dropped.
func (b *backlog) discard(n int, count *atomic.Int64) {
	b.messages -= int32(n)
	b.exempt = min(b.exempt, b.messages)
	count.Add(int64(n))
}

// drop counts all messages that wait as lost.
func (b *backlog) drop(s *shared) {
	b.discard(int(b.messages), &s.dropped)
	*b = backlog{reported: b.reported}
}

// connected starts SlowAfter if too many messages wait for a new connection.
func (b *backlog) connected(s *shared) {
	if owed := b.owed(); owed > s.sendBuffer {
		b.behind, b.peak = s.clock.now(), int32(owed)
	}
}

// owed returns how many waiting messages count against the client.
func (b *backlog) owed() int { return int(b.messages - b.exempt) }

// isBehind reports whether more waits than the client may owe for SlowAfter. A
// single message may have any size.
func (b *backlog) isBehind(s *shared) bool {
	owed := b.owed()
	return owed > s.sendBuffer || b.private > maxPrivate && owed > 1
}

// isOverLimit reports whether more waits than the client may ever owe.
func (b *backlog) isOverLimit(s *shared) bool {
	return b.isBehind(s) && (b.owed() > hardLimit*s.sendBuffer || b.private > maxPrivateAtOnce)
}

// isTooSlow reports whether the client has been behind for SlowAfter, or takes
// too long for a replay. Call it when messages are added, and from time to time.
func (b *backlog) isTooSlow(s *shared) bool {
	if b.exemptBy > 0 && s.clock.now() >= b.exemptBy {
		return true
	}
	if !b.isBehind(s) {
		return false
	}
	now := s.clock.now()
	b.behind, b.peak, b.privatePeak = cmp.Or(b.behind, now), max(b.peak, int32(b.owed())), max(b.privatePeak, b.private)
	return now-b.behind >= s.slowAfter
}
