package realtime

import (
	"fmt"
	"testing"
	"time"
)

// A member of many topics leaves them in a time that grows as their number does: the
// hub's loop may wait for it.
func TestPresenceLeavesManyTopics(t *testing.T) {
	h := NewHub()
	p := &presence{hub: h, wake: make(chan struct{}, 1)} // nobody publishes what it is told
	c := newClient(h, webSocket{})
	var topics []string
	for i := range 30_000 {
		topics = append(topics, fmt.Sprintf("topic/%05d", i))
		p.show(c, topicKey{topics[i], "ann"}, []byte("{}"))
	}
	began := time.Now()
	p.left(c, topics)
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	if len(p.leaving) != len(topics) || len(p.of) != 0 {
		t.Errorf("%d of %d topics are left, and %d clients stay", len(p.leaving), len(topics), len(p.of))
	}
}
