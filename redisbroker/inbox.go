package redisbroker

import (
	"errors"
	"sync"
)

const (
	maxInboxBytes = 32 << 20 // as Redis keeps for a subscriber, by default
	overheadBytes = 100      // of a delivery that waits, about
)

var errFull = errors.New("redisbroker: this node is too slow for what is published, and has lost messages")

// A delivery is a message for the hub, or a gap.
type delivery struct {
	topic string
	msg   []byte
	gap   error
}

func (d delivery) size() int { return len(d.topic) + len(d.msg) + overheadBytes }

// An inbox is the queue of messages for a hub that is behind. Above its limit it
// drops messages until half of the limit is free, and tells a gap in their place.
//
// It never makes the connection wait. A connection that waits doesn't answer
// pings, and Redis closes it when its backlog is too large. With 100,000 topics
// to subscribe again that costs more than a gap.
type inbox struct {
	mu     sync.Mutex // guards the fields below
	ready  *sync.Cond
	queue  []delivery
	bytes  int
	full   bool
	closed bool
}

func newInbox() *inbox {
	in := new(inbox)
	in.ready = sync.NewCond(&in.mu)
	return in
}

func (in *inbox) put(all ...delivery) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, d := range all {
		switch {
		case d.gap != nil:
			in.append(d)
		case in.full:
		case in.bytes+d.size() > maxInboxBytes && in.bytes > 0:
			in.full = true
			in.append(delivery{gap: errFull})
		default:
			in.append(d)
		}
	}
	in.ready.Signal()
}

func (in *inbox) append(d delivery) {
	in.queue = append(in.queue, d)
	in.bytes += d.size()
}

// take waits for the next delivery and returns it. It returns false after close.
func (in *inbox) take() (delivery, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.queue) == 0 && !in.closed {
		in.ready.Wait()
	}
	if in.closed {
		return delivery{}, false
	}
	d := in.queue[0]
	in.queue[0] = delivery{}
	in.queue = in.queue[1:]
	in.bytes -= d.size()
	if in.bytes <= maxInboxBytes/2 {
		in.full = false
	}
	return d, true
}

func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.ready.Signal()
}
