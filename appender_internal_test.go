package realtime

import (
	"slices"
	"testing"
)

// A record has the events that wait, in order, as many as have its size. A larger
// event has a record of its own.
func TestCollect(t *testing.T) {
	a := &appender{queue: make(chan *ownEvent, 10)}
	for i, size := range []int{1, maxRecordBytes / 2, maxRecordBytes / 2, 1, 2 * maxRecordBytes, 1} {
		a.queue <- &ownEvent{event: newEvent("a", Event{Data: make([]byte, size)}), number: uint64(i)}
	}
	var records []int
	next := uint64(0)
	for a.next = <-a.queue; a.next != nil; {
		events := a.collect()
		records = append(records, len(events))
		for _, e := range events {
			if e.number != next {
				t.Errorf("event %d comes, want %d", e.number, next)
			}
			next++
		}
	}
	if want := []int{2, 2, 1, 1}; !slices.Equal(records, want) || len(a.queue) > 0 {
		t.Errorf("records of %d events, and %d left; want %d and none", records, len(a.queue), want)
	}
}
