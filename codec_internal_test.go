package realtime

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestBrokered(t *testing.T) {
	for _, m := range []brokered{
		{kind: brokeredHeartbeat, node: nodeID{1}, clients: 12345, stamp: math.MaxInt64, seq: 7},
		{kind: brokeredHeartbeat, seq: 1 << 63, leaving: true, sent: []sentEntry{{1 << 63, 1, time.Second}, {0, 1 << 63, 0}}},
		{kind: brokeredEvent, node: nodeID{15: 9}, seq: 1, event: Event{Data: []byte{}}},
		{kind: brokeredEvent, seq: 1 << 63, before: 1 << 62, age: time.Minute, event: Event{Name: "n", Key: "k\n", Except: "x", Data: []byte("d\xff"), Binary: true}},
		{kind: brokeredEvent, seq: 1, event: Event{Key: "k", Data: []byte{}, Gone: true}, stamp: 1 << 62},
		{kind: brokeredQuestion, node: nodeID{1}, digest: 1 << 63},
		{kind: brokeredValues, node: nodeID{1}, asker: nodeID{2}, sure: true, part: 1, parts: 2, values: []agedValue{
			{Event{Key: "k", Data: []byte("d")}, time.Second, 1}, {Event{Key: "l", Data: []byte{}, Gone: true}, 0, math.MaxInt64},
		}},
		{kind: brokeredEvent, seq: 1, event: Event{Key: "k", Data: []byte{}, Gone: true, Binary: true}},
		{kind: brokeredEvent, seq: 2, before: 1, event: testDisconnect.Event, notice: disconnectNotice},
		{kind: brokeredHeartbeat, node: nodeID{1}, trail: trail{log: 1, record: 1 << 63, sum: math.MaxUint32}, seq: 1},
		{kind: brokeredRepeat, node: nodeID{1}, seq: 3, topic: "a", event: testDisconnect.Event, notice: disconnectNotice},
		{kind: brokeredHad, node: nodeID{1}, asker: nodeID{2}, seq: 3},
	} {
		b := m.append(nil)
		got, err := parseBrokered(bytes.Clone(b))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came as %+v, %v", m, got, err)
		}
		for i := range len(b) - len(m.event.Data) {
			if _, err := parseBrokered(b[:i]); err == nil {
				t.Errorf("the first %d bytes of %q are taken for a message", i, b)
			}
		}
	}
	for topic, name := range map[string]string{"": "all", nodesTopic: "nodes", "all": "topic/all", "topic/": "topic/topic/"} {
		if got := brokerName(topic); got != name {
			t.Errorf("brokerName(%q) = %q, want %q", topic, got, name)
		}
		if got, ok := brokerTopicOf(name); got != topic || !ok {
			t.Errorf("brokerTopicOf(%q) = %q, %v", name, got, ok)
		}
	}
}

var testDisconnect = newDisconnect("b", websocket.CloseError{Code: 4001, Reason: "log out"})

// A disconnect whose close frame can't be sent is no hub's.
func TestBadDisconnects(t *testing.T) {
	for _, payload := range []string{"", "\x0f", "\x03\xed", "\x0f\xa1\xff", "\x0f\xa1" + strings.Repeat("x", maxCloseReason+1)} {
		ev := &event{Event: Event{Data: []byte(payload), Binary: true}, topic: "a", notice: disconnectNotice}
		if m, err := parseBrokered(brokered{kind: brokeredEvent, seq: 1, event: ev.Event, notice: ev.notice}.append(nil)); err == nil {
			t.Errorf("%q came as %+v", payload, m)
		}
		if r, err := parseRecord(encodeRecord(nodeID{1}, trail{}, []*ownEvent{{event: ev, number: 1}})); err == nil {
			t.Errorf("%q came as %+v", payload, r)
		}
	}
}

// A broker may deliver any bytes.
func FuzzBrokered(f *testing.F) {
	f.Add(brokered{kind: brokeredEvent, seq: 300, event: Event{Name: "n", Data: []byte("d")}}.append(nil))
	f.Add(brokered{kind: brokeredValues, values: []agedValue{{Event{Key: "k", Data: []byte("d")}, time.Second, 1}}}.append(nil))
	f.Add(brokered{kind: brokeredEvent, seq: 300, event: testDisconnect.Event, notice: disconnectNotice}.append(nil))
	f.Add(brokered{kind: brokeredRepeat, seq: 300, topic: "a", event: testDisconnect.Event}.append(nil))
	f.Add(brokered{kind: brokeredHeartbeat, trail: testTrail, clients: 3, seq: 9, sent: []sentEntry{{1, 2, 3 * time.Millisecond}, {3, 4, time.Hour}}}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseBrokered(b)
		if err != nil {
			return
		}
		again, err := parseBrokered(m.append(nil))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%+v came as %+v, %v", m, again, err)
		}
	})
}

var testTrail = trail{log: 1, record: 2, sum: 3}

// records returns records of a journal: events, the last one a disconnect, and
// cuts.
func records() (all [][]byte) {
	node := nodeID{1, 2, 3}
	var events []*ownEvent
	for i, e := range []Event{{Data: []byte("d")}, {Key: "k", Gone: true}, {Name: "n", Key: "k\n", Except: "x", Data: []byte("d\xff"), Binary: true}} {
		events = append(events, &ownEvent{event: newEvent([]string{"", "a", "b"}[i], e), number: uint64(300 + i)})
		all = append(all, encodeRecord(node, testTrail, events))
	}
	events = append(events, &ownEvent{event: testDisconnect, number: 303})
	all = append(all, encodeRecord(node, testTrail, events))
	a := &appender{peers: &peers{node: node}, passed: 1 << 40, topics: map[string]bool{"a": true}}
	all = append(all, encodeCut(a.peers.node, a.passed, a.topics))
	for range maxLostTopics + 5 {
		a.noteLost(string(rune('a' + len(a.topics))))
	}
	return append(all, encodeCut(a.peers.node, a.passed, a.topics))
}

func TestRecord(t *testing.T) {
	all := records()
	for i, b := range all {
		r, err := parseRecord(bytes.Clone(b))
		if err != nil || r.node != (nodeID{1, 2, 3}) {
			t.Fatalf("record %d: %+v, %v", i, r, err)
		}
		switch {
		case i < 4:
			if r.kind != brokeredRecord || r.number != 300 || len(r.events) != i+1 || r.trail != testTrail {
				t.Errorf("record %d: %+v", i, r)
			}
		case r.kind != brokeredCut || r.number != 1<<40:
			t.Errorf("record %d: %+v", i, r)
		}
		for n := range b {
			if _, err := parseRecord(b[:n]); err == nil {
				t.Errorf("the first %d bytes of %q are taken for a record", n, b)
			}
		}
	}
	r, _ := parseRecord(all[3])
	if e := r.events[2]; e.topic != "b" || !reflect.DeepEqual(e.Event, Event{Name: "n", Key: "k\n", Except: "x", Data: []byte("d\xff"), Binary: true}) {
		t.Errorf("the last event came as %+v", e)
	}
	if !reflect.DeepEqual(r.events[3], testDisconnect) {
		t.Errorf("the disconnect came as %+v", r.events[3])
	}
	if r, _ := parseRecord(all[4]); !reflect.DeepEqual(r.events, []*event{newGap("a")}) {
		t.Errorf("a cut came with %+v", r.events)
	}
	if r, _ := parseRecord(all[5]); !reflect.DeepEqual(r.events, []*event{newGap("")}) {
		t.Errorf("a cut of too many topics came with %d", len(r.events))
	}
}

// A log may have any bytes.
func FuzzRecord(f *testing.F) {
	for _, b := range records() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(bytes.Clone(b))
		if err != nil || r.kind != brokeredRecord || len(r.events) == 0 {
			return
		}
		var events []*ownEvent
		for _, ev := range r.events {
			events = append(events, &ownEvent{event: ev, number: r.number})
		}
		again, err := parseRecord(encodeRecord(r.node, r.trail, events))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v came as %+v, %v", r, again, err)
		}
	})
}
