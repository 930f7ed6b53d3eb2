package realtime

import (
	"cmp"
	"math"
	"time"
)

// hardLimit times SendBuffer messages may wait for a client at most, for
// however short a time. It is the bound on memory, where SlowAfter is the one
// on patience.
const hardLimit = 64

// What was sent to one client alone may be large, and nobody else shares its
// memory. More than maxPrivate bytes of it, in several messages, put the
// reader behind. More than maxPrivateAtOnce are beyond the hard limit. A reader
// that gets rid of privateStep more than comes is catching up.
const (
	maxPrivate       = 8 << 20
	maxPrivateAtOnce = 32 << 20
	privateStep      = 1 << 20
)

// A backlog counts what waits for one client, and for how long the client has
// been too slow. It is guarded by the lock of its outbox.
type backlog struct {
	messages int           // that are not completely written
	exempt   int32         // of these, what a replay has brought: the reader can't help it
	heap     int32         // the most private bytes that waited since behind
	private  int           // unwritten bytes in the queue that were sent to this client alone
	behind   time.Duration // since when the reader has been behind, without catching up; zero: it isn't
	peak     int           // the most messages it owed since behind
}

// add counts n messages that wait from now on.
func (b *backlog) add(s *shared, n int) {
	b.messages += n
	s.queued.Add(int64(n))
}

// addExempt counts n messages that wait from now on and that a replay brings.
func (b *backlog) addExempt(s *shared, n int) {
	b.add(s, n)
	b.exempt += int32(max(n, 0))
}

// exemptReplay exempts the n messages of a replay that was added. It exempts one
// replay at most: a client that asks again and again gains nothing.
func (b *backlog) exemptReplay(n int) { b.exempt = max(b.exempt, int32(min(n, b.messages))) }

// replaced counts n messages that don't wait any more because newer ones do.
func (b *backlog) replaced(s *shared, n int) {
	b.messages -= n
	b.exempt = min(b.exempt, int32(b.messages))
	s.queued.Add(-int64(n))
	s.replaced.Add(int64(n))
}

// delivered counts n messages that are written.
func (b *backlog) delivered(s *shared, n int) {
	b.messages -= n
	b.exempt = max(0, b.exempt-int32(n)) // what was replayed is in front
	switch owed := b.owed(); {
	case !b.isBehind(s):
		b.behind, b.peak, b.heap = 0, 0, 0
	case owed <= b.peak-s.sendBuffer || b.private <= int(b.heap)-privateStep:
		// A burst takes its time on a slow link or a busy machine. This
		// reader is catching up with it.
		b.behind, b.peak, b.heap = s.clock.now(), owed, int32(min(b.private, math.MaxInt32))
	}
	s.queued.Add(-int64(n))
	s.delivered.Add(int64(n))
}

// drop counts all that waits as lost.
func (b *backlog) drop(s *shared) {
	s.dropped.Add(int64(b.messages))
	s.queued.Add(-int64(b.messages))
	*b = backlog{}
}

// connected begins the patience with a reader that has just got its connection,
// and finds messages that came before.
func (b *backlog) connected(s *shared) {
	if owed := b.owed(); owed > s.sendBuffer {
		b.behind, b.peak = s.clock.now(), owed
	}
}

// owed returns how many messages wait for which the reader is held to account.
func (b *backlog) owed() int { return b.messages - int(b.exempt) }

// isBehind reports whether more waits than the reader may owe for long. One
// message alone may be as large as it likes.
func (b *backlog) isBehind(s *shared) bool {
	owed := b.owed()
	return owed > s.sendBuffer || b.private > maxPrivate && owed > 1
}

// isOverLimit reports whether more waits than the reader may owe at all.
func (b *backlog) isOverLimit(s *shared) bool {
	return b.isBehind(s) && (b.owed() > hardLimit*s.sendBuffer || b.private > maxPrivateAtOnce)
}

// isTooSlow reports whether the reader has used up its patience. It is to be
// called when more waits, and now and then.
func (b *backlog) isTooSlow(s *shared) bool {
	if !b.isBehind(s) {
		return false
	}
	now := s.clock.now()
	b.behind, b.peak, b.heap = cmp.Or(b.behind, now), max(b.peak, b.owed()), max(b.heap, int32(min(b.private, math.MaxInt32)))
	return now-b.behind >= s.slowAfter
}
