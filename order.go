package realtime

import "time"

// An order decides which events the clients of a hub get, in which order, and
// which of them it keeps for later. There are three: [local] for a hub alone,
// [relay] where a Broker carries events between nodes, and [journal] where the
// engine of a HistoryBroker keeps them. The hub asks nobody else where events
// come from and where they stay.
type order interface {
	// The hub's loop alone calls these. None of them blocks.

	// publish takes an event of this node. It appends to out what clients get
	// now.
	publish(ev *event, now time.Time, out *batch) receipt

	// arrivals returns the channel of what comes from other nodes or from the
	// engine. Nil means that nothing ever comes.
	arrivals() <-chan arrival

	// arrive takes what came from there. It appends to out what clients get now.
	arrive(a arrival, now time.Time, out *batch)

	// isFull reports whether publishers have to wait.
	isFull() bool

	// isPending reports whether there are published events that no client has
	// got yet, but will get.
	isPending() bool

	// fill completes a replay by what is kept, up to the last event that was
	// appended to an out.
	fill(r *replay)

	// expire drops what is too old, and returns how long to wait for what comes
	// next; zero: there is nothing.
	expire(now time.Time) time.Duration

	// These are safe for concurrent use.

	// want notes that one more client has each of the topics. What it returns
	// is closed when events of all nodes arrive.
	want(topics []string) (confirmed []<-chan struct{})

	// unwant is the reverse of want.
	unwant(topics []string)

	// await blocks until what is kept has come as far as an event id that a
	// client may have got on another node, or for some seconds.
	await(id string)

	// elsewhere returns how many clients other nodes have, and reports whether
	// they can't be reached.
	elsewhere() (clients int, down bool)

	// close ends all that the order has running. The loop has ended before.
	close()
}

// A batch is what goes to the shards together.
type batch []entry

// add appends an event.
func (b *batch) add(ev *event) { *b = append(*b, entry{event: ev}) }

// A receipt tells the publisher of an event what became of it.
type receipt struct {
	err   error
	later <-chan error // brings it; nil: err is it
}

// An arrival is what an order gets from elsewhere. Each order has its own.
type arrival any

// A local order is that of a hub without a Broker: events go to its clients as
// they are published.
type local struct {
	shared *shared
	past   *history
}

func newLocal(s *shared) local { return local{shared: s, past: newHistory(s.history)} }

func (l *local) publish(ev *event, now time.Time, out *batch) receipt {
	l.shared.published.Add(1)
	l.keep(ev, now)
	out.add(ev)
	return receipt{}
}

// keep adds an event to the history, if there is one.
func (l *local) keep(ev *event, now time.Time) {
	if l.shared.history.keeps() {
		l.past.add(ev, now)
	}
}

func (l *local) fill(r *replay)                     { l.past.fill(r) }
func (l *local) expire(now time.Time) time.Duration { return l.past.expire(now) }

// There is nothing but this process.

func (l *local) arrivals() <-chan arrival            { return nil }
func (l *local) arrive(arrival, time.Time, *batch)   {}
func (l *local) isFull() bool                        { return false }
func (l *local) isPending() bool                     { return false }
func (l *local) want([]string) []<-chan struct{}     { return nil }
func (l *local) unwant([]string)                     {}
func (l *local) await(string)                        {}
func (l *local) elsewhere() (clients int, down bool) { return 0, false }
func (l *local) close()                              {}
