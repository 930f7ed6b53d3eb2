package realtime

import (
	"iter"
	"slices"
)

// Latest iterates over the latest values of a topic, as of the iteration's start
// and oldest first: the newest event of each Key, unless it is Gone. A client that
// subscribes then gets the same, and the members that [Hub.Members] has. The empty
// topic has the values of the events to all clients. Without a [History] there are
// none, and after Shutdown neither. Don't modify their Data. With a [Broker] that
// keeps no history, a node knows the values of the topics that its own clients
// have.
func (h *Hub) Latest(topic string) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for _, ev := range h.values(topic) {
			if !ev.member && !yield(ev.withoutID().Event) {
				return
			}
		}
	}
}

// values returns the newest event of each Key of a topic.
func (h *Hub) values(topic string) []*event {
	if h.usable() != nil || h.closing() {
		return nil
	}
	h.start()
	h.settle()
	r := &replay{topics: []*subscription{{name: topic}}, whole: true}
	if !h.hand(change{replay: r}) {
		return nil
	}
	return r.part
}

// allValues returns events that give the latest values and the members of all topics
// again. They are out of their turn, so they have no ids.
func (h *history) allValues() (events []*event) {
	var all []*keptEvent
	for _, p := range h.topics {
		for _, m := range p.keys {
			if m.isValue(new(clientID)) {
				all = append(all, m)
			}
		}
	}
	slices.SortFunc(all, (*keptEvent).compare)
	for _, m := range all {
		e := m.event.Event
		e.ID = ""
		events = append(events, newEvent(m.log.topic, e))
	}
	return events
}
