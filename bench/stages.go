//go:build linux

package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// A publisher lets the server publish and counts the messages.
type publisher struct {
	load      *load
	command   func(n int) error
	stall     time.Duration // after so long without a message the missing ones are lost
	published atomic.Int64
}

// publish publishes n messages.
func (p *publisher) publish(n int) {
	p.published.Add(int64(n))
	if err := p.command(n); err != nil {
		p.load.fail(fmt.Errorf("publish: %w", err))
	}
}

// greet publishes until every client has got the last message. A server may
// answer a handshake shortly before it has registered the client.
func (p *publisher) greet() error {
	for range 20 {
		p.publish(1)
		for range 100 {
			if p.missed() == 0 {
				return nil
			}
			select {
			case <-p.load.failed:
				return p.load.err
			case <-p.load.ctx.Done():
				return fmt.Errorf("%d clients get no messages", p.missed())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return fmt.Errorf("%d clients get no messages", p.missed())
}

// missed returns the number of connected clients that don't have the last
// message.
func (p *publisher) missed() (n int) {
	p.load.each(func(t *thread) {
		for _, c := range t.clients {
			if c.fd >= 0 && c.last != p.published.Load() {
				n++
			}
		}
	})
	return n
}

// A broadcast is the stage in which every client gets the published messages.
// They are published in batches. The next batch follows when all clients have all
// messages of this one, or when the missing ones count as lost after a stall.
type broadcast struct {
	*publisher
	batch    int
	duration time.Duration
	waiting  atomic.Int64  // clients that don't have all of this batch
	stamp    atomic.Int64  // the time of this batch's first message
	done     chan struct{} // closed after the last batch

	// Owned by the threads.
	toAny []histogram // latencies to a client, by thread

	// Guarded by load.mu.
	until  int64     // when publishing ends
	due    int64     // deliveries of all batches, with those that have not come
	toLast histogram // latencies of whole batches to the last client
}

// broadcast runs such a stage.
func (p *publisher) broadcast(batch int, duration time.Duration) (*broadcast, error) {
	s := &broadcast{
		publisher: p,
		batch:     batch,
		duration:  duration,
		done:      make(chan struct{}),
		toAny:     make([]histogram, len(p.load.threads)),
	}
	p.load.enter(s)
	defer p.load.leave()
	s.load.mu.Lock()
	s.until = time.Now().Add(duration).UnixNano()
	s.begin()
	s.load.mu.Unlock()
	for {
		err := p.load.wait(s.done, s.stall, func(t *thread) int64 { return s.toAny[t.index].count })
		if err != errStalled {
			return s, err
		}
		s.load.mu.Lock()
		s.next()
		s.load.mu.Unlock()
	}
}

// begin publishes a batch. The load is locked.
func (s *broadcast) begin() {
	s.due += int64(s.batch) * int64(s.load.open)
	s.waiting.Store(int64(s.load.open))
	s.publish(s.batch)
}

// next begins another batch, or ends the stage. The load is locked.
func (s *broadcast) next() {
	select {
	case <-s.done: // has ended because a client was disconnected
		return
	default:
	}
	if s.load.open > 0 && time.Now().UnixNano() < s.until {
		s.begin()
	} else {
		close(s.done)
	}
}

// got counts a delivery. After the last one of a batch it begins the next batch.
func (s *broadcast) got(c *client, m message, now int64) error {
	if err := c.inOrder(m); err != nil {
		return err
	}
	s.toAny[c.thread.index].add(now - m.at)
	last := s.published.Load()
	if m.seq == last-int64(s.batch)+1 && s.stamp.Load() != m.at {
		s.stamp.Store(m.at)
	}
	if m.seq == last && s.waiting.Add(-1) == 0 {
		s.load.mu.Lock()
		defer s.load.mu.Unlock()
		s.toLast.add(now - s.stamp.Load())
		s.next()
	}
	return nil
}

func (s *broadcast) gone(c *client) {
	if c.last < s.published.Load() && s.waiting.Add(-1) == 0 {
		s.next()
	}
}

// deliveries returns the number of deliveries, once the stage is over.
func (s *broadcast) deliveries() int { return int(s.latencies().count) }

// lost returns the number of deliveries that did not come.
func (s *broadcast) lost() int {
	return max(0, int(s.due)-s.deliveries())
}

// latencies returns the latencies to a client, of all threads.
func (s *broadcast) latencies() *histogram {
	all := new(histogram)
	for i := range s.toAny {
		all.merge(&s.toAny[i])
	}
	return all
}

// An echo is the stage in which every client sends a message, waits until it
// comes back and sends the next.
type echo struct {
	until int64         // when sending ends
	left  atomic.Int64  // clients that wait for an echo
	trips []int64       // messages that have come back, by thread; each thread owns its own
	done  chan struct{} // closed when all clients have stopped
}

// echo runs such a stage. It returns the number of round trips and the number of
// clients whose message did not come back.
func (l *load) echo(duration, stall time.Duration) (trips, lost int, err error) {
	s := &echo{
		until: time.Now().Add(duration).UnixNano(),
		trips: make([]int64, len(l.threads)),
		done:  make(chan struct{}),
	}
	l.mu.Lock() // no client is lost between the count and the stage
	s.left.Store(int64(l.open))
	l.enter(s)
	l.mu.Unlock()
	l.each(func(t *thread) {
		for _, c := range t.clients {
			if c.echoing = c.fd >= 0; c.echoing {
				c.check(c.echo())
			}
		}
	})
	err = l.wait(s.done, stall, func(t *thread) int64 { return s.trips[t.index] })
	l.leave()
	if lost = int(s.left.Load()); err == errStalled {
		err = nil
	}
	for _, n := range s.trips {
		trips += int(n)
	}
	if err == nil && trips == 0 {
		err = errors.New("nothing comes back")
	}
	return trips, lost, err
}

func (s *echo) got(c *client, m message, now int64) error {
	if m.seq < firstEcho {
		return c.inOrder(m) // a late one that already counts as lost
	}
	if m.seq != firstEcho+c.echoes {
		return fmt.Errorf("message %d came back, but %d was sent", m.seq, firstEcho+c.echoes)
	}
	s.trips[c.thread.index]++
	if now < s.until {
		return c.echo()
	}
	s.gone(c)
	return nil
}

// gone counts a client that doesn't send any more.
func (s *echo) gone(c *client) {
	if !c.echoing {
		return
	}
	c.echoing = false
	if s.left.Add(-1) == 0 {
		close(s.done)
	}
}
