package realtime

import (
	"fmt"
	"hash/crc32"
	"testing"
	"testing/synctest"
)

// trailOf returns the trail of a node that has read records from a number on.
func trailOf(epoch string, first uint64, records ...[]byte) trail {
	h := &history{epoch: epoch, prints: new(prints)}
	last := first
	for i, b := range records {
		last = first + uint64(i)
		h.prints.add(last, crc32.Checksum(b, castagnoli))
	}
	return *h.trail(last)
}

// A node notices, by a record or a heartbeat of another node, that it has read
// other records. It tells its clients once.
func TestNodesReadDifferentRecords(t *testing.T) {
	var mine, theirs [][]byte
	for i := range 5 {
		mine = append(mine, recordOf(1, uint64(i+1), fmt.Sprint("lost ", i)))
		theirs = append(theirs, recordOf(1, uint64(i+1), fmt.Sprint("lost ", i)))
	}
	theirs[2] = recordOf(2, 1, "new")
	for name, test := range map[string]struct {
		trail trail
		want  bool
	}{
		"the same":             {trailOf("e", 1, mine...), false},
		"the same, before":     {trailOf("e", 1, mine[:3]...), false},
		"before they differ":   {trailOf("e", 1, theirs[:2]...), false},
		"others":               {trailOf("e", 1, theirs...), true},
		"others, before":       {trailOf("e", 1, theirs[:3]...), true},
		"another log":          {trailOf("f", 1, theirs...), false},
		"later records":        {trailOf("e", 1, append(theirs, theirs...)...), false},
		"too little is known":  {trailOf("e", 2, theirs[1:]...), false},
		"nothing":              {trail{}, false},
		"a number of nobody's": {trail{record: 1 << 60, sum: 1}, false},
	} {
		for _, heartbeat := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", heartbeat=", heartbeat), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d, j, _ := newTestJournal(t)
					j.Current("e", 0)
					for i, b := range mine {
						j.Record("e", uint64(i+1), b)
					}
					d.arrive()
					d.want("lost 0", "lost 1", "lost 2", "lost 3", "lost 4")
					id := d.id(5, wholeRecord)
					next := func(record uint64) {
						ev := &event{Event: Event{Data: fmt.Append(nil, record)}, topic: "a"}
						if heartbeat {
							beat := brokered{kind: brokeredHeartbeat, node: nodeID{3}, seq: record, trail: test.trail}
							j.Deliver(brokerName(nodesTopic), beat.append(nil))
							j.Record("e", record, encodeRecord(nodeID{3}, trail{}, []*ownEvent{{event: ev, number: record}}))
							return
						}
						j.Record("e", record, encodeRecord(nodeID{3}, test.trail, []*ownEvent{{event: ev, number: record}}))
					}
					next(6)
					next(7)
					d.arrive()
					gaps, told := int64(0), "6 7"
					if test.want {
						gaps, told = 1, "lost"
						d.want("reset", "6", "7")
					} else {
						d.want("6", "7")
					}
					if got := d.since(id, "a"); got != told {
						t.Errorf("a client with an id from before gets %q, want %q", got, told)
					}
					if got := j.shared.gaps.Load(); got != gaps {
						t.Errorf("%d gaps, want %d", got, gaps)
					}
				})
			})
		}
	}
}

// A trail covers the newest records alone, so a node that started late has one,
// too. The memory of records is bounded.
func TestTrailOfManyRecords(t *testing.T) {
	early, late := &history{prints: new(prints)}, &history{prints: new(prints)}
	const start = 100
	for record := uint64(1); record <= maxPrints+start; record++ {
		early.prints.add(record, uint32(record))
		if record >= start {
			late.prints.add(record, uint32(record))
		}
		if record > 3*start && record < maxPrints-start {
			continue // it takes long under the race detector
		}
		switch a, b := *early.trail(record), *late.trail(record); {
		case a.record == 0, record >= start+trailRecords-1 && a != b:
			t.Fatalf("of record %d: %v and %v", record, a, b)
		case record < start+trailRecords-1 && b.record > 0:
			t.Fatalf("of record %d: %v, want none", record, b)
		}
	}
}

// Two nodes may have different values at one place in the log. When a node notices
// that it has read other records, it accepts what others carry.
func TestValuesOfDifferentRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		value := func(data string) []*ownEvent {
			return []*ownEvent{{event: newEvent("a", Event{Key: "k", Data: []byte(data)}), number: 1}}
		}
		mine, theirs := encodeRecord(nodeID{1}, trail{}, value("mine")), encodeRecord(nodeID{2}, trail{}, value("theirs"))
		j.Current("e", 0)
		j.Record("e", 1, mine)
		j.Record("e", 2, encodeRecord(nodeID{3}, trailOf("e", 1, theirs), []*ownEvent{{event: newEvent("a", Event{Data: []byte("1")}), number: 1}}))
		d.arrive()
		d.want("mine", "reset", "mine", "1")
		due := dueValue{&keptEvent{event: value("theirs")[0].event}, 1<<recordBits | wholeRecord}
		due.keptEvent.home = due.home
		carried, _ := encodeCarried(nodeID{3}, 2, 0, []dueValue{due}, maxRecordBytes)
		j.Record("e", 3, carried)
		d.arrive()
		d.want("theirs")
	})
}
