package realtime

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// stuck returns an outbox whose connection accepts nothing.
func stuck(f format) *outbox {
	o := newOutbox()
	o.writing = true // for ever
	o.open(new(recorder), nil, f)
	return o
}

// keyedHistory returns a history with values of 100 Keys in a topic.
func keyedHistory(topic string) *history {
	h := newHistory(History{Events: 100, Age: time.Minute})
	for i := range 100 {
		h.add(&event{Event: Event{Key: fmt.Sprint(i), Data: []byte("v")}, topic: topic}, time.Now())
	}
	return h
}

// Replays don't excuse a client that doesn't read, however many it asks for.
func TestReplaysDoNotExcuse(t *testing.T) {
	o, h := stuck(format{}), keyedHistory("a")
	for n := range 2 * hardLimit * 256 {
		if err := o.push(runOf("x")); err == ErrSlowClient {
			return
		}
		if n%50 == 0 {
			r := &replay{topics: []*subscription{{name: "a"}}}
			h.fill(r)
			o.replay(r)
		}
	}
	t.Errorf("%d messages wait, %d of them exempt", o.backlog.messages, o.backlog.exempt)
}

// Only the newest position waits, and none in a format without positions.
func TestPositionsDoNotPileUp(t *testing.T) {
	for _, f := range []format{{}, {encoding: envelopeFrame}, {encoding: plainStream}} {
		o, h := stuck(f), newHistory(History{Events: 100, Age: time.Minute})
		o.push(runOf("x"))
		for range 10_000 {
			h.add(&event{topic: "other"}, time.Now())
			r := &replay{topics: []*subscription{{name: "a"}}}
			h.fill(r)
			o.replay(r)
		}
		if len(o.queue) > 100 || o.backlog.messages != 1 {
			t.Errorf("%+v: %d buffers wait, %d messages", f, len(o.queue), o.backlog.messages)
		}
	}
}

// Messages to one client alone count by size, whether held or queued.
func TestPrivateBytesAreBounded(t *testing.T) {
	large := make([]byte, 1<<20)
	for name, tt := range map[string]struct {
		o   *outbox
		key string
	}{"queued": {stuck(format{}), ""}, "with keys": {stuck(format{}), "key"}, "held": {newOutbox(), ""}} {
		var err error
		n := 0
		for ; err == nil && n < 100; n++ {
			key := ""
			if tt.key != "" {
				key = fmt.Sprint(n)
			}
			err = tt.o.post(&Event{Key: key, Data: large, Binary: true})
		}
		if err != ErrSlowClient || n > 34 {
			t.Errorf("%s: %v after %d MiB, want ErrSlowClient after 32", name, err, n)
		}
	}
	o := newOutbox()
	o.post(&Event{Data: large})
	conn := &recorder{room: func() int { return 2 << 20 }}
	o.open(conn, conn.try, format{})
	if o.backlog.private != 0 {
		t.Errorf("%d private bytes are left behind what was held", o.backlog.private)
	}
}

// Messages that went out before a write failed were delivered.
func TestDeliveredBeforeAFailure(t *testing.T) {
	o, reset := newOutbox(), errors.New("reset")
	s := o.shared
	calls := 0
	o.open(new(recorder), func(b []byte) (int, error) {
		if calls++; calls == 2 {
			return 0, reset
		}
		return len(b), nil
	}, format{})
	o.push(runOf(strings.Split(strings.Repeat("x", maxJoin+1), "")...))
	if s.delivered.Load() != maxJoin || s.dropped.Load() != 1 {
		t.Errorf("%d delivered, %d dropped; want %d and 1", s.delivered.Load(), s.dropped.Load(), maxJoin)
	}
	o.ends().want(t, 0, reset)
}

// A value of the history doesn't follow a newer one, which OnConnect has sent
// or which was published since.
func TestReplayedValueIsNotOlder(t *testing.T) {
	for name, tt := range map[string]struct {
		topic string
		early func(o *outbox, h *history)
		want  string
	}{
		"than what was sent": {"", func(o *outbox, h *history) {
			h.add(&event{Event: Event{Key: "k", Data: []byte("old")}}, time.Now())
			o.post(&Event{Key: "k", Data: []byte("new")})
		}, "new"},
		"than what came while it was subscribed for a moment": {"a", func(o *outbox, h *history) {
			ev := &event{Event: Event{Key: "k", Data: []byte("old")}, topic: "a"}
			h.add(ev, time.Now())
			r := new(run)
			r.add(ev)
			o.push(r)
			h.add(&event{Event: Event{Key: "k", Data: []byte("new")}, topic: "a"}, time.Now())
		}, "new"},
	} {
		o, h := newOutbox(), newHistory(History{Events: 100, Age: time.Minute})
		tt.early(o, h)
		r := &replay{topics: []*subscription{{name: tt.topic}}}
		h.fill(r)
		o.replay(r)
		conn := &recorder{room: func() int { return 1 << 20 }}
		o.open(conn, conn.try, format{})
		if _, payload, n := parseFrame(conn.got); string(payload) != tt.want || n != len(conn.got) {
			t.Errorf("%s: got %q, want %q alone", name, conn.got, tt.want)
		}
	}
}

// Replays of different clients share the memory of large events.
func TestReplaysShareLargeEvents(t *testing.T) {
	h := newHistory(History{Events: 100, Age: time.Minute})
	large := []byte(strings.Repeat("x", 2*maxJoinOne))
	const events = partBytes / (2 * maxJoinOne) // a part
	for range events {
		h.add(&event{Event: Event{Data: large}, topic: "a"}, time.Now())
	}
	for first := range events {
		o := newOutbox()
		r := &replay{topics: []*subscription{{name: "a"}}, last: h.id(uint64(first))}
		h.fill(r)
		o.replay(r)
		o.writing = true // for ever
		o.open(&recorder{}, nil, format{})
		if len(o.queue) != events-first {
			t.Fatalf("%d buffers wait, want %d", len(o.queue), events-first)
		}
		for i, q := range o.queue {
			if want := h.topics["a"].recent[first+i].event.buffer(format{}); q != want {
				t.Errorf("event %d is copied", first+i)
			}
		}
	}
}

// An outbox that was never opened leaves nothing queued.
func TestFlushedWhileHeld(t *testing.T) {
	o := newOutbox()
	o.push(runOf("x"))
	<-o.flushed()
	if s := o.shared; s.queued.Load() != 0 || s.dropped.Load() != 1 {
		t.Errorf("%d queued, %d dropped; want 0 and 1", s.queued.Load(), s.dropped.Load())
	}
}

// What is written at once doesn't touch the count that all shards share.
func TestWrittenAtOnceIsNotQueued(t *testing.T) {
	o := newOutbox()
	o.open(new(recorder), func(b []byte) (int, error) {
		if n := o.shared.queued.Load(); n != 0 {
			t.Errorf("%d messages are queued while they are written", n)
		}
		return len(b), nil
	}, format{})
	o.push(runOf("a", "b"))
	o.post(&Event{Data: []byte("c")})
	if s := o.shared; s.queued.Load() != 0 || s.delivered.Load() != 3 {
		t.Errorf("%d queued, %d delivered; want 0 and 3", s.queued.Load(), s.delivered.Load())
	}
	o.mu.Lock()
	o.writing = true // for ever
	o.mu.Unlock()
	o.push(runOf("d"))
	if n := o.shared.queued.Load(); n != 1 {
		t.Errorf("%d queued, want the one that waits", n)
	}
}
