package realtime

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// carriedRecord returns the record of another node that carries k=1 of topic a,
// which record 1 had.
func carriedRecord(view, trim uint64) []byte {
	m := &keptEvent{event: newEvent("a", Event{Key: "k", Data: []byte("1")}), home: 1<<recordBits | wholeRecord}
	b, _ := encodeCarried(nodeID{9}, view, trim, []dueValue{{m, m.home}}, maxRecordBytes)
	return b
}

// A record of values changes nothing that is newer than its view, and counts
// where nodes know all that came behind that.
func TestCarriedValues(t *testing.T) {
	event := func(number uint64, e Event) []byte {
		return encodeRecord(nodeID{1}, trail{}, []*ownEvent{{event: newEvent("a", e), number: number}})
	}
	k1, k2 := event(1, Event{Key: "k", Data: []byte("1")}), event(2, Event{Key: "k", Data: []byte("2")})
	gone, chat := event(2, Event{Key: "k", Gone: true}), event(3, Event{Data: []byte("chat")})
	var many []*ownEvent
	for i := range uint64(200) {
		many = append(many, &ownEvent{event: newEvent("a", Event{}), number: 10 + i})
	}
	cut := func(view uint64) []byte {
		m := &keptEvent{event: newEvent("a", Event{Key: "k", Data: []byte("cut")})}
		b, _ := encodeCarried(nodeID{9}, view, 0, []dueValue{{m, 0}}, maxRecordBytes)
		return b
	}
	crowd := encodeRecord(nodeID{1}, trail{}, many)
	for name, tt := range map[string]struct {
		first   uint64   // number of the first record that the node reads
		records [][]byte // from that on
		want    string   // the data of k then
	}{
		"known":                        {1, [][]byte{k1, chat, carriedRecord(2, 0)}, "1"},
		"from before":                  {2, [][]byte{chat, carriedRecord(2, 0)}, "1"},
		"carried twice":                {2, [][]byte{chat, carriedRecord(2, 0), carriedRecord(2, 0)}, "1"},
		"changed":                      {1, [][]byte{k1, k2, carriedRecord(2, 0)}, "2"},
		"changed behind the view":      {1, [][]byte{k1, k2, carriedRecord(1, 0)}, "2"},
		"changed, from before":         {2, [][]byte{k2, carriedRecord(1, 0)}, "2"},
		"gone":                         {1, [][]byte{k1, gone, carriedRecord(1, 0)}, ""},
		"gone, from before":            {2, [][]byte{gone, carriedRecord(1, 0)}, ""},
		"gone long ago":                {1, [][]byte{k1, gone, crowd, carriedRecord(1, 0)}, ""},
		"gone long ago, from before":   {2, [][]byte{gone, crowd, carriedRecord(1, 0)}, ""},
		"a view before what is known":  {3, [][]byte{chat, carriedRecord(1, 0), carriedRecord(3, 3), carriedRecord(1, 0)}, "1"},
		"a view before a trim":         {3, [][]byte{encodeValuesTrim(2, 3), carriedRecord(1, 0)}, ""},
		"a view that is just possible": {3, [][]byte{encodeValuesTrim(2, 3), carriedRecord(2, 0)}, "1"},
		"from a cut":                   {1, [][]byte{chat, cut(1)}, "cut"},
		"from a cut, changed before":   {1, [][]byte{k1, cut(1)}, "cut"},
		"from a cut, changed since":    {1, [][]byte{event(1, Event{}), k2, cut(1)}, "2"},
		"from a cut, gone since":       {1, [][]byte{k1, gone, cut(1)}, ""},
		"a view from the future":       {2, [][]byte{chat, carriedRecord(3, 0)}, ""},
	} {
		for _, current := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				d, j, _ := newTestJournal(t)
				if current {
					j.Current("e", tt.first-1)
				}
				for i, r := range tt.records {
					j.Record("e", tt.first+uint64(i), r)
				}
				d.arrive()
				var got strings.Builder
				for _, m := range j.past.newest("a") {
					if !m.event.Gone {
						got.WriteString(string(m.event.Data))
					}
				}
				if got.String() != tt.want {
					t.Errorf("%s, current %v: k is %q, want %q", name, current, got.String(), tt.want)
				}
			})
		}
	}
}

// encodeValuesTrim returns a record of no values that tells of a trim.
func encodeValuesTrim(view, trim uint64) []byte {
	b, _ := encodeCarried(nodeID{9}, view, trim, nil, maxRecordBytes)
	return b
}

// Values that don't fit into one record come in several, and the last one tells
// of the trim.
func TestCarriedRecordsAreBounded(t *testing.T) {
	var values []dueValue
	for i := range 2500 {
		m := &keptEvent{event: newEvent("a", Event{Key: fmt.Sprint(i), Data: make([]byte, 300)}), home: uint64(i)}
		values = append(values, dueValue{m, m.home})
	}
	values[7].event.Data = make([]byte, 2*maxRecordBytes)
	for most, records := range map[int]int{maxRecordBytes: 7, 1 << 30: 3, 1: 2500} {
		n := 0
		for rest := values; len(rest) > 0; n++ {
			b, took := encodeCarried(nodeID{1}, 7, 5, rest, most)
			r, err := parseRecord(b)
			if err != nil || len(r.events) != took || took == 0 || r.number != 7 || took > 1 && len(b) > most {
				t.Fatalf("%d bytes at most: a record of %d bytes has %d events, %d were taken, view %d, %v", most, len(b), len(r.events), took, r.number, err)
			}
			if r.homes[took-1] != rest[took-1].home || (r.trim == 5) != (took == len(rest)) {
				t.Errorf("the record has the homes %d, trim %d", r.homes, r.trim)
			}
			rest = rest[took:]
		}
		if n < records-1 || n > records+1 {
			t.Errorf("%d bytes at most: %d records, want some %d", most, n, records)
		}
	}
}

// A value that a node has dropped for want of room is not taken back when it is
// carried.
func TestCarriedValueWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		j.past.limit = History{Events: 1, Age: time.Minute, Values: 1}
		j.Record("e", 1, encodeRecord(nodeID{1}, trail{}, []*ownEvent{{event: newEvent("a", Event{Key: "k", Data: []byte("1")}), number: 1}}))
		for i, key := range []string{"l", "m"} {
			j.Record("e", uint64(2+i), encodeRecord(nodeID{1}, trail{}, []*ownEvent{{event: newEvent("a", Event{Key: key}), number: uint64(2 + i)}}))
		}
		j.Current("e", 3)
		j.Record("e", 4, carriedRecord(3, 0))
		d.arrive()
		for _, m := range j.past.newest("a") {
			if m.event.Key == "k" {
				t.Error("the value is back")
			}
		}
	})
}

// Where the log doesn't take a record of values, it isn't trimmed: nodes that
// start would lack them.
func TestCarriedRecordFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		next := uint64(0)
		take := func(r []byte) {
			next++
			j.Record("e", next, r)
			d.arrive()
		}
		value := &ownEvent{event: newEvent("a", Event{Key: "k", Data: []byte("1")}), number: 1}
		take(encodeRecord(nodeID{1}, trail{}, []*ownEvent{value}))
		take(recordOf(1, 2, "x"))
		j.Current("e", next)
		d.arrive()
		j.tidy(milestone{record: 1, bytes: 1 << 20}, time.Now())
		b.setAway(true)
		time.Sleep(3 * time.Second)
		d.arrive()
		b.setAway(false)
		for range 10 {
			time.Sleep(time.Second)
			for _, r := range d.appended(b) {
				take(r)
			}
		}
		synctest.Wait()
		if trims := b.trimmed(); len(trims) > 0 && j.past.topics["a"].keys["k"].home < trims[0].before<<recordBits {
			t.Errorf("the log was trimmed up to record %d, which has a value", trims[0].before)
		}
		j.tidy(milestone{record: 1, bytes: 1 << 20}, time.Now())
		for range 10 {
			time.Sleep(time.Second)
			for _, r := range d.appended(b) {
				take(r)
			}
		}
		synctest.Wait()
		if len(b.trimmed()) == 0 {
			t.Error("the log is not trimmed later")
		}
	})
}

// The engine may have a record of values that it has not acknowledged. The log is
// trimmed when that comes back: nothing else would trim a log at rest.
func TestCarriedRecordInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		for i := range uint64(3) {
			j.Record("e", i+1, recordOf(1, i+1, "x"))
		}
		j.Current("e", 3)
		d.arrive()
		b.setAway(true)
		j.tidy(milestone{record: 2, bytes: 1 << 20}, time.Now())
		time.Sleep(3 * time.Second)
		d.arrive()
		b.setAway(false)
		inDoubt, _ := encodeCarried(j.peers.node, 3, 3, nil, maxRecordBytes)
		j.Record("e", 4, inDoubt)
		d.arrive()
		j.tidy(milestone{record: 2, bytes: 1 << 20}, time.Now())
		time.Sleep(3 * time.Second)
		d.arrive()
		if trims := b.trimmed(); len(trims) != 1 || trims[0].before != 3 {
			t.Errorf("the log was trimmed by %v, want up to record 3, once", trims)
		}
	})
}
