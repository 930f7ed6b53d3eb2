package realtime

import (
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// A shard gives events to some of a hub's clients: to the same ones as long as
// they live. All that concerns them comes through one inbox. One goroutine
// handles it in order, and waits for nothing else: no client, no handler, no
// other shard.
type shard struct {
	inbox inbox
	last  atomic.Pointer[event] // the last event with a position that the outboxes have; nil: none
	stats *shared

	assigned int // clients that have it as their home; guarded by the registry's mutex

	// Owned by the shard's goroutine.
	clients []*Client
	topics  map[string][]*subscription // of those with clients
	events  []*event                   // gathered, not yet delivered
	run     run                        // memory for events of one audience
	touched []*Client                  // memory for clients that get a list
}

// An entry is one item of a shard's inbox: an event, or a change of the shard.
type entry struct {
	event *event
	do    func(s *shard) // called when all entries before it are done; must not block
}

// A subscription links one client to one topic.
type subscription struct {
	// Set at construction, never changed.
	client *Client
	name   string

	// Owned by the shard's goroutine.
	index int32 // in shard.topics; negative: it has ended
	early bool  // Subscribe returned before events of all nodes arrived

	// Guarded by the client's tmu.
	asked bool // the client has asked for it, in its URL or by a message

	// The client has the topic's events up to this position, unless it is zero: a
	// replay has those behind it. Guarded by the client's tmu; the loop changes it
	// for the caller of hand, who holds that.
	since uint64
}

// loop is the shard's goroutine. The shard's first client starts it. It ends
// when the inbox is closed, and Shutdown waits for it.
func (s *shard) loop() {
	for batch := s.inbox.take(); batch != nil; batch = s.inbox.take() {
		for i := range batch {
			s.apply(&batch[i])
		}
		s.deliver()
	}
}

// apply handles one entry. It gathers events until another entry comes.
func (s *shard) apply(e *entry) {
	if e.event != nil {
		s.events = append(s.events, e.event)
		return
	}
	s.deliver()
	e.do(s)
}

func (s *shard) join(c *Client) {
	c.index = int32(len(s.clients))
	s.clients = append(s.clients, c)
}

// leave takes a client out that has these subscriptions. It gets no others.
func (s *shard) leave(c *Client, subs []*subscription) {
	for _, sub := range subs {
		s.unsubscribe(sub)
	}
	last := len(s.clients) - 1
	s.clients[c.index] = s.clients[last]
	s.clients[c.index].index = c.index
	s.clients[last] = nil
	s.clients = shrunk(s.clients[:last])
}

// shrunk returns list in less memory if three quarters are unused: many have left
// then.
func shrunk[E any](list []E) []E {
	if cap(list) < 64 || len(list) > cap(list)/4 {
		return list
	}
	return append(make([]E, 0, 2*len(list)), list...)
}

func (s *shard) subscribe(sub *subscription) {
	if s.topics == nil {
		s.topics = make(map[string][]*subscription)
	}
	subs := s.topics[sub.name]
	sub.index = int32(len(subs))
	s.topics[sub.name] = append(subs, sub)
}

func (s *shard) unsubscribe(sub *subscription) {
	if sub.index < 0 {
		return // its client has left
	}
	subs := s.topics[sub.name]
	last := len(subs) - 1
	subs[sub.index] = subs[last]
	subs[sub.index].index = sub.index
	subs[last] = nil
	sub.index = -1
	if last > 0 {
		s.topics[sub.name] = shrunk(subs[:last])
	} else if delete(s.topics, sub.name); len(s.topics) == 0 {
		s.topics = nil // a map never shrinks
	}
}

func (s *shard) audience(ev *event) iter.Seq[*Client] {
	return func(yield func(*Client) bool) {
		if ev.topic == "" {
			for some := range slices.Chunk(s.clients, fetchTogether) {
				for _, c := range some {
					c.fetch()
				}
				for _, c := range some {
					if ev.isFor(&c.id) && !yield(c) {
						return
					}
				}
			}
		} else {
			for some := range slices.Chunk(s.topics[ev.topic], fetchTogether) {
				for _, sub := range some {
					sub.client.fetch()
				}
				for _, sub := range some {
					if ev.isFor(&sub.client.id) && !yield(sub.client) {
						return
					}
				}
			}
		}
	}
}

// fetchTogether is how many clients a loop through many of them fetches before it
// needs the first. Their memory is in no cache then, and the processor would wait
// for one client after another. So it waits for all of these together.
const fetchTogether = 16

// fetch reads four places of the client that never change, or are atomic. What a
// delivery or a look of the sweeper needs is around them.
func (c *Client) fetch() {
	runtime.KeepAlive(c.hub) // without that the compiler would leave the reading out
	runtime.KeepAlive(c.out.shared)
	runtime.KeepAlive(c.out.owner)
	c.wire.heard.Load()
}

func (s *shard) size(ev *event) (n int64) {
	for range s.audience(ev) {
		n++
	}
	return n
}

func sameAudience(a, b *event) bool { return a.topic == b.topic && a.Except == b.Except }

func (s *shard) deliver() {
	if len(s.events) == 0 {
		return
	}
	first, last := s.events[0], s.events[len(s.events)-1]
	written := 0 // how many events had clients
	events := conflate(s.events, func(ev *event) { s.stats.replaced.Add(s.size(ev)) })
	if i := slices.IndexFunc(events, func(ev *event) bool { return !sameAudience(ev, events[0]) }); i < 0 {
		s.run.add(events...)
		for c := range s.audience(events[0]) {
			c.out.push(&s.run) // an error concerns that client alone
			written = s.run.messages
		}
		s.run.reset()
	} else {
		written = s.deliverMixed(events)
	}
	if written > 0 && first.accepted != 0 {
		s.stats.latency.count(s.stats.clock.since(first.accepted), written)
	}
	if last.seq > 0 {
		s.last.Store(last)
	}
	clear(s.events)
	s.events = s.events[:0]
}

// A list is what some clients get of a batch: the list before it, then its own
// events. Clients with the same events share one, so joining happens once.
type list struct {
	before *list
	events []*event // after those of before
	after  *list    // this list plus the newest stretch
	run    run      // all events, made at first use
}

// deliverMixed delivers events of several audiences. It divides them into
// stretches of one audience each. Every client of a stretch moves from its list
// to the one that adds the stretch. It returns how many events had clients.
func (s *shard) deliverMixed(events []*event) (written int) {
	root := new(list)
	for len(events) > 0 {
		n := 1
		for n < len(events) && sameAudience(events[n], events[0]) {
			n++
		}
		stretch := events[:n:n]
		has := 0
		for c := range s.audience(events[0]) {
			has = n
			if c.list == nil {
				c.list = root
				s.touched = append(s.touched, c)
			}
			l := c.list
			if l.after == nil || &l.after.events[0] != &stretch[0] {
				l.after = &list{before: l, events: stretch}
			}
			c.list = l.after
		}
		written += has
		events = events[n:]
	}
	for i, c := range s.touched {
		r := c.list.whole()
		c.list, s.touched[i] = nil, nil
		c.out.push(r)
	}
	s.touched = s.touched[:0]
	return written
}

// whole returns all events of l and of the lists before it.
func (l *list) whole() *run {
	if len(l.run.events) == 0 {
		var stretches [][]*event
		for at := l; at != nil; at = at.before {
			stretches = append(stretches, at.events)
		}
		for _, events := range slices.Backward(stretches) {
			l.run.add(events...)
		}
	}
	return &l.run
}

// conflate returns events without those that a later one of the same topic and
// Key replaces for all clients. It calls dropped for each of these. It doesn't
// change events.
func conflate(events []*event, dropped func(ev *event)) []*event {
	if !slices.ContainsFunc(events, func(ev *event) bool { return ev.Key != "" }) {
		return events
	}
	newer := make(map[topicKey]bool)
	kept := make([]*event, 0, len(events))
	for _, ev := range slices.Backward(events) {
		if ev.Key != "" {
			key := ev.topicKey()
			if newer[key] {
				dropped(ev)
				continue
			}
			if ev.Except == "" {
				newer[key] = true
			}
		}
		kept = append(kept, ev)
	}
	slices.Reverse(kept)
	return kept
}

// inboxSize is the number of entries at which put blocks. It makes publishers
// wait when a hub falls behind.
const inboxSize = 1024

// An inbox is a shard's queue. It keeps nothing alive while it is empty.
type inbox struct {
	mu      sync.Mutex // guards the fields below
	ready   sync.Cond  // there are entries, or the inbox is closed
	room    sync.Cond  // there is room
	entries []entry
	taken   []entry // the slice that take returned; filled next
	closed  bool
}

func (in *inbox) init() {
	in.ready.L, in.room.L = &in.mu, &in.mu
}

// put adds entries, in order and together. It blocks until there is room for
// the first; the shard's goroutine makes room without waiting for anybody. It
// reports whether it added them: a closed inbox accepts none.
func (in *inbox) put(entries ...entry) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.entries) >= inboxSize {
		in.room.Wait()
	}
	if in.closed {
		return false
	}
	in.entries = append(in.entries, entries...)
	in.ready.Signal()
	return true
}

// take waits for entries and returns all of them, or nil once the inbox is
// closed and empty. The slice is valid until the next call.
func (in *inbox) take() []entry {
	in.mu.Lock()
	defer in.mu.Unlock()
	clear(in.taken) // before the wait, so that an idle hub keeps nothing alive
	for len(in.entries) == 0 && !in.closed {
		in.ready.Wait()
	}
	if len(in.entries) == 0 {
		return nil
	}
	in.entries, in.taken = in.taken[:0], in.entries
	in.room.Broadcast()
	return in.taken
}

// close ends the shard after the entries that are left.
func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.ready.Signal()
}
