package realtime

import "sync"

// A shard owns some of a hub's clients and hands them events. All that
// concerns its clients comes through one inbox and is taken in order by one
// goroutine, which waits for nothing else: neither for a client nor for a
// handler nor for another shard.
type shard struct {
	inbox inbox

	// Owned by the shard's goroutine.
	clients []*Client
	run     run // events not yet handed on
}

// An entry is what a shard's inbox holds.
type entry struct {
	op     op
	event  *event
	client *Client
	note   func() // for opFlush; must not block
}

type op uint8

const (
	opEvent op = iota // event, to all clients
	opJoin            // client
	opLeave           // client
	opFlush           // note is called when all that came before has been handed on
)

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
		s.run.events = append(s.run.events, e.event)
		return
	}
	s.deliver()
	switch e.op {
	case opJoin:
		e.client.index = len(s.clients)
		s.clients = append(s.clients, e.client)
	case opLeave:
		last := len(s.clients) - 1
		i := e.client.index
		s.clients[i] = s.clients[last]
		s.clients[i].index = i
		s.clients[last] = nil
		s.clients = s.clients[:last]
	case opFlush:
		e.note()
	}
}

// deliver hands on what was gathered.
func (s *shard) deliver() {
	if len(s.run.events) == 0 {
		return
	}
	for _, c := range s.clients {
		c.pushed(c.out.push(&s.run)) // a client that has left, or is too slow, costs the others nothing
	}
	s.run.reset()
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
// nobody.
func (in *inbox) put(entries ...entry) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.entries) >= inboxSize {
		in.room.Wait()
	}
	in.entries = append(in.entries, entries...)
	in.ready.Signal()
}

// take returns all entries, waiting for one, or nil once the inbox is closed
// and empty. The slice is valid until the next call.
func (in *inbox) take() []entry {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.entries) == 0 && !in.closed {
		in.ready.Wait()
	}
	if len(in.entries) == 0 {
		return nil
	}
	clear(in.taken)
	in.entries, in.taken = in.taken[:0], in.entries
	in.room.Broadcast()
	return in.taken
}

// close ends the shard once it has taken what is there. Nobody may put
// anything in afterwards.
func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.ready.Signal()
}
