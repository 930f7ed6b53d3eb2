package realtime

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// A shard owns some of a hub's clients and hands them events. All that
// concerns its clients comes through one inbox and is taken in order by one
// goroutine, which waits for nothing else: neither for a client nor for a
// handler nor for another shard.
type shard struct {
	inbox inbox
	last  atomic.Pointer[event] // what is published up to here has reached the outboxes; nil: nothing was
	stats *shared

	// Owned by the shard's goroutine.
	clients []*Client
	topics  map[string]*topic // those with clients
	events  []*event          // not yet handed on
	run     run               // memory for those that all go the same way
	touched []*Client         // memory for those that get a list
}

// An entry is what a shard's inbox holds.
type entry struct {
	op     op
	event  *event
	client *Client
	sub    *subscription
	replay *replay
	note   func(s *shard) // must not block
}

type op uint8

const (
	opEvent       op = iota // event, to its topic's clients
	opJoin                  // client
	opLeave                 // client
	opSubscribe             // sub
	opUnsubscribe           // sub
	opReplay                // replay, to client
	opNote                  // note is called when all that came before has been handed on
)

// A topic is one that has clients in a shard. It is owned by the shard's
// goroutine.
type topic struct {
	name string
	subs []*subscription
}

// A subscription is a client's to a topic.
type subscription struct {
	// Set at construction, never changed.
	client *Client
	name   string

	// Owned by the shard's goroutine.
	topic      *topic // nil: it is not in one
	index      int    // in topic.subs
	next, prev *subscription
}

// loop is the shard's goroutine. It is started with the hub's first client
// and ends when the inbox is closed; Shutdown waits for it.
func (s *shard) loop() {
	for {
		batch := s.inbox.take()
		if batch == nil {
			return
		}
		for i := range batch {
			s.apply(&batch[i])
		}
		s.deliver()
	}
}

// apply takes one entry. Events are gathered as long as who gets them stays
// the same.
func (s *shard) apply(e *entry) {
	if e.op == opEvent {
		s.events = append(s.events, e.event)
		return
	}
	s.deliver()
	switch e.op {
	case opJoin:
		e.client.index = int32(len(s.clients))
		s.clients = append(s.clients, e.client)
	case opLeave:
		s.leave(e.client)
	case opSubscribe:
		s.subscribe(e.sub)
	case opUnsubscribe:
		s.unsubscribe(e.sub)
	case opReplay:
		e.client.out.replay(e.replay)
		if e.replay.given != nil {
			close(e.replay.given)
		}
	case opNote:
		e.note(s)
	}
}

func (s *shard) leave(c *Client) {
	for c.subs != nil {
		s.unsubscribe(c.subs)
	}
	last := len(s.clients) - 1
	s.clients[c.index] = s.clients[last]
	s.clients[c.index].index = c.index
	s.clients[last] = nil
	s.clients = s.clients[:last]
	c.index = -1
}

func (s *shard) subscribe(sub *subscription) {
	c := sub.client
	if c.index < 0 {
		return // it has left meanwhile
	}
	t := s.topics[sub.name]
	if t == nil {
		t = &topic{name: sub.name}
		if s.topics == nil {
			s.topics = make(map[string]*topic)
		}
		s.topics[sub.name] = t
	}
	sub.topic, sub.index = t, len(t.subs)
	t.subs = append(t.subs, sub)
	if sub.next = c.subs; sub.next != nil {
		sub.next.prev = sub
	}
	c.subs = sub
}

func (s *shard) unsubscribe(sub *subscription) {
	t := sub.topic
	if t == nil {
		return // its client has left meanwhile
	}
	last := len(t.subs) - 1
	t.subs[sub.index] = t.subs[last]
	t.subs[sub.index].index = sub.index
	t.subs[last] = nil
	t.subs = t.subs[:last]
	if last == 0 {
		delete(s.topics, t.name)
		if len(s.topics) == 0 {
			s.topics = nil // a map never shrinks
		}
	}
	if sub.next != nil {
		sub.next.prev = sub.prev
	}
	if sub.prev != nil {
		sub.prev.next = sub.next
	} else {
		sub.client.subs = sub.next
	}
	sub.topic, sub.next, sub.prev = nil, nil, nil
}

// audience returns the clients that get ev.
func (s *shard) audience(ev *event) iter.Seq[*Client] {
	return func(yield func(*Client) bool) {
		if ev.topic == "" {
			for _, c := range s.clients {
				if ev.isFor(&c.id) && !yield(c) {
					return
				}
			}
		} else if t := s.topics[ev.topic]; t != nil {
			for _, sub := range t.subs {
				if ev.isFor(&sub.client.id) && !yield(sub.client) {
					return
				}
			}
		}
	}
}

// size returns how many clients get ev.
func (s *shard) size(ev *event) (n int64) {
	for range s.audience(ev) {
		n++
	}
	return n
}

// sameAudience reports whether the same clients get both.
func sameAudience(a, b *event) bool { return a.topic == b.topic && a.Except == b.Except }

// deliver hands on what was gathered.
func (s *shard) deliver() {
	if len(s.events) == 0 {
		return
	}
	last := s.events[len(s.events)-1]
	events := conflate(s.events, func(ev *event) { s.stats.replaced.Add(s.size(ev)) })
	if i := slices.IndexFunc(events, func(ev *event) bool { return !sameAudience(ev, events[0]) }); i < 0 {
		s.run.add(events...)
		for c := range s.audience(events[0]) {
			c.out.push(&s.run) // a client that has left, or is too slow, costs the others nothing
		}
		s.run.reset()
	} else {
		s.deliverMixed(events)
	}
	if last.seq > 0 {
		s.last.Store(last)
	}
	clear(s.events)
	s.events = s.events[:0]
}

// A list is the events that some clients get out of a batch: those of another
// list, and then some. As clients with the same events have the same list, what
// they get is joined once for all of them.
type list struct {
	before *list
	events []*event // behind those of before
	after  *list    // the one that this is before, for the events at hand
	run    run      // of all of them, made at first use
}

// deliverMixed hands on events with several audiences. They are taken in
// stretches of one audience; each moves every client of it from its list to
// the one that has the stretch as well.
func (s *shard) deliverMixed(events []*event) {
	root := new(list)
	for len(events) > 0 {
		n := 1
		for n < len(events) && sameAudience(events[n], events[0]) {
			n++
		}
		stretch := events[:n:n]
		for c := range s.audience(events[0]) {
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
		events = events[n:]
	}
	for i, c := range s.touched {
		r := c.list.whole()
		c.list, s.touched[i] = nil, nil
		c.out.push(r)
	}
	s.touched = s.touched[:0]
}

// whole returns all events of l and of those before it.
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
// Key replaces for everybody, and calls dropped for each of those. It leaves
// events as they are.
func conflate(events []*event, dropped func(ev *event)) []*event {
	if !slices.ContainsFunc(events, func(ev *event) bool { return ev.Key != "" }) {
		return events
	}
	newer := make(map[topicKey]bool)
	kept := make([]*event, 0, len(events))
	for _, ev := range slices.Backward(events) {
		if ev.Key != "" {
			key := topicKey{ev.topic, ev.Key}
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

// inboxSize is how many entries may wait for a shard before those who put
// them have to wait as well: this is where publishers feel that a hub falls
// behind.
const inboxSize = 1024

// An inbox is a shard's queue. It costs nothing while it is empty, and hands
// over all that waits at once.
type inbox struct {
	mu      sync.Mutex // guards the fields below
	ready   sync.Cond  // there are entries, or the inbox is closed
	room    sync.Cond  // there is room
	entries []entry
	taken   []entry // the slice to fill next
	closed  bool
}

func (in *inbox) init() {
	in.ready.L, in.room.L = &in.mu, &in.mu
}

// put adds entries, in order and together, and waits until there is room for
// the first. That is until the shard's goroutine has come round: it waits for
// nobody. It reports whether the inbox was open: where not, nothing was added.
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

// take returns all entries, waiting for one, or nil once the inbox is closed
// and empty. The slice is valid until the next call.
func (in *inbox) take() []entry {
	in.mu.Lock()
	defer in.mu.Unlock()
	clear(in.taken) // before the wait: an idle hub holds on to nothing
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

// close ends the shard once it has taken what is there.
func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.ready.Signal()
}
