package realtime

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

func TestBrokered(t *testing.T) {
	for _, m := range []brokered{
		{kind: brokeredHeartbeat, node: nodeID{1}, clients: 12345, seq: 7},
		{kind: brokeredHeartbeat, seq: 1 << 63, leaving: true, sent: []sentEntry{{1 << 63, 1, time.Second}, {0, 1 << 63, 0}}},
		{kind: brokeredEvent, node: nodeID{15: 9}, seq: 1, event: Event{Data: []byte{}}},
		{kind: brokeredEvent, seq: 1 << 63, before: 1 << 62, age: time.Minute, event: Event{Name: "n", Key: "k\n", Except: "x", Data: []byte("d\xff"), Binary: true}},
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

// What comes from a broker may be anything.
func FuzzBrokered(f *testing.F) {
	f.Add(brokered{kind: brokeredEvent, seq: 300, event: Event{Name: "n", Data: []byte("d")}}.append(nil))
	f.Add(brokered{kind: brokeredHeartbeat, clients: 3, seq: 9, sent: []sentEntry{{1, 2, 3 * time.Millisecond}, {3, 4, time.Hour}}}.append(nil))
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
