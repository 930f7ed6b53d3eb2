package realtime

import "time"

// An order decides which events the clients of a hub get, in which order, and
// which events are kept. There are three: [local] for a hub without a Broker,
// [relay] for a Broker, and [journal] for a HistoryBroker and a History.
type order interface {
	// Only the hub's loop calls these. None of them blocks.

	// publish accepts an event of this node. It appends to out the events that
	// clients get now.
	publish(ev *event, now time.Time, out *batch) receipt

	// arrivals returns the channel of arrivals; nil: nothing ever arrives.
	arrivals() <-chan arrival

	// isFull reports whether publishers have to wait.
	isFull() bool

	// isPending reports whether clients have yet to get a published event.
	isPending() bool

	// delivered notes that the shards have what arrived.
	delivered()

	// fill completes a replay with kept events, up to the last event that was
	// appended to an out.
	fill(r *replay)

	// expire drops events that are too old. It returns the time until it is to
	// be called again, or zero if that is not before something arrives.
	expire(now time.Time) time.Duration

	// These are safe for concurrent use.

	// want notes that one more client has each of the topics. It returns
	// channels, which are closed when the topics' events of all nodes arrive.
	want(topics []string) (confirmed []<-chan struct{})

	// unwant is the reverse of want.
	unwant(topics []string)

	// await blocks until this node has the event with an id from any node. It
	// gives up after maxStart+brokerTimeout at most.
	await(id string)

	// position returns an id that stands for all that clients of this node have
	// got, or may have.
	position() string

	// elsewhere returns the number of clients of other nodes. It reports
	// whether those nodes can't be reached.
	elsewhere() (clients int, down bool)

	// self returns the id of this node. It is zero if there are no others.
	self() nodeID

	// close ends all goroutines of the order. The loop has ended before.
	close()
}

// A batch is a list of entries that go to the shards together.
type batch []entry

// add appends an event, or a disconnect: shards complete all that is before one.
func (b *batch) add(ev *event) {
	if ev.notice == disconnectNotice {
		b.disconnect(ev, false)
		return
	}
	*b = append(*b, entry{event: ev})
}

func (b *batch) disconnect(ev *event, old bool) {
	*b = append(*b, entry{do: func(s *shard) { s.disconnect(ev, old) }})
}

// stamp notes when the events of other nodes have arrived. Own ones are stamped.
func (b batch) stamp(now moment) {
	for _, e := range b {
		if e.event != nil && e.event.accepted == 0 && e.event.notice == noNotice {
			e.event.accepted = now
		}
	}
}

// A receipt tells the publisher of an event whether other nodes get it.
type receipt struct {
	err   error
	later <-chan error // delivers the error; nil: err is the error
}

// An arrival is an event or a report from other nodes or from the engine. The
// loop calls it. It appends to out as order.publish does.
type arrival func(now time.Time, out *batch)

// A local is the order of a hub without a Broker. Clients get events at once.
type local struct {
	shared *shared
	past   *history
}

func newLocal(s *shared) local {
	past := newHistory(s.history)
	past.forgotten, past.heard = s.forgot, s.heard
	past.base = 1 // zero is no position
	past.move(1)
	past.tell()
	return local{shared: s, past: past}
}

func (l *local) publish(ev *event, now time.Time, out *batch) receipt {
	if ev.notice == noNotice {
		l.shared.published.Add(1)
	}
	l.accept(ev, now, out)
	return receipt{}
}

// accept keeps an event, and gives it to the clients.
func (l *local) accept(ev *event, now time.Time, out *batch) {
	if !l.keep(ev, now).hidden {
		out.add(ev)
	}
}

// keep adds an event to the history, if there is one.
func (l *local) keep(ev *event, now time.Time) *keptEvent {
	if l.shared.history.keeps() {
		return l.past.add(ev, now)
	}
	return &keptEvent{hidden: ev.member}
}

func (l *local) fill(r *replay)                     { l.past.fill(r) }
func (l *local) expire(now time.Time) time.Duration { return l.past.expire(now) }

// There are no other nodes.

func (l *local) arrivals() <-chan arrival            { return nil }
func (l *local) delivered()                          {}
func (l *local) isFull() bool                        { return false }
func (l *local) isPending() bool                     { return false }
func (l *local) want([]string) []<-chan struct{}     { return nil }
func (l *local) unwant([]string)                     {}
func (l *local) await(string)                        {}
func (l *local) position() string                    { return l.past.now.Load().ID }
func (l *local) elsewhere() (clients int, down bool) { return 0, false }
func (l *local) self() nodeID                        { return nodeID{} }
func (l *local) close()                              {}
