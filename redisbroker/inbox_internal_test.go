package redisbroker

import (
	"fmt"
	"testing"
)

// An inbox above its limit drops messages until it is half empty. It tells one
// gap in the place of all of them.
func TestInbox(t *testing.T) {
	in := newInbox()
	put := func(text string) { in.put(delivery{topic: text, msg: make([]byte, maxInboxBytes/8-overheadBytes)}) }
	take := func() string {
		t.Helper()
		if len(in.queue) == 0 {
			t.Fatal("the inbox is empty")
		}
		d, _ := in.take()
		if d.gap != nil {
			return "gap"
		}
		return d.topic
	}
	for i := range 10 { // with their topics 7 of them fit
		put(fmt.Sprint(i))
	}
	for _, step := range []struct {
		take int
		put  string
	}{{1, "lost"}, {1, "lost"}, {2, "kept"}, {0, "kept too"}} {
		for range step.take {
			take()
		}
		put(step.put)
	}
	for _, want := range []string{"4", "5", "6", "gap", "kept", "kept too"} {
		if got := take(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if in.bytes != 0 || in.full {
		t.Errorf("an empty inbox has %d bytes, full = %v", in.bytes, in.full)
	}
	in.put(delivery{msg: make([]byte, 2*maxInboxBytes)}) // an empty inbox accepts any
	take()
	in.close()
	if _, ok := in.take(); ok {
		t.Error("a closed inbox has a delivery")
	}
}
