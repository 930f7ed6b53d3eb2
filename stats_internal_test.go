package realtime

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// An event takes from its acceptance to the end of the last write. Events that are
// written together take the time of the oldest. An event without clients takes none.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.start()
		hub.settle()
		var all []*Client
		for range 2 { // which share a shard
			c := newClient(hub, webSocket{})
			if err := hub.add(c); err != nil {
				t.Fatal(err)
			}
			if err := c.Subscribe("a"); err != nil {
				t.Fatal(err)
			}
			c.open()
			c.out.open(new(recorder), func(p []byte) (int, error) {
				time.Sleep(5 * time.Millisecond)
				return len(p), nil
			}, format{})
			all = append(all, c)
		}
		publish := func(topic string) {
			if err := hub.Publish(t.Context(), topic, Event{Data: []byte("x")}); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second) // the first moment is 1, not 0
		var want Latency
		expect := func(bucket int, n int64, each time.Duration) {
			t.Helper()
			time.Sleep(time.Minute)
			want.Counts[bucket] += n
			want.Sum += time.Duration(n) * each
			if got := hub.Stats().Latency; got != want {
				t.Fatalf("got %+v, want %+v", got, want)
			}
		}
		publish("a")
		expect(4, 1, 10*time.Millisecond)
		publish("nobody has it")
		expect(0, 0, 0)
		hub.Broadcast <- nil
		time.Sleep(2 * time.Millisecond)
		for range 3 {
			publish("a") // the shard has the last one in hand for 8 ms more
		}
		publish("nobody has it")
		want.Counts[4]++
		want.Sum += 10 * time.Millisecond
		expect(5, 3, 18*time.Millisecond)
		all[0].SendEvent(Event{}) // in 5 ms, and it doesn't count
		expect(0, 0, 0)
		time.Sleep(2 * time.Hour) // moments have begun again
		publish("a")
		expect(4, 1, 10*time.Millisecond)
		for _, c := range all {
			c.leaveHub()
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Each time is in the first bucket that is long enough.
func TestLatencyBuckets(t *testing.T) {
	var l latency
	l.count(0, 1)
	finite := latencyBounds[:len(latencyBounds)-1]
	for _, most := range finite {
		l.count(most, 1)
		l.count(most+1, 1)
	}
	before, total := time.Duration(0), int64(0)
	for most, n := range l.all().Buckets() {
		if n != 2 && most != math.MaxInt64 || most <= before {
			t.Errorf("%d of at most %v, after %v, want 2", n, most, before)
		}
		before, total = most, total+n
	}
	if want := 2*int64(len(finite)) + 1; total != want || before != math.MaxInt64 {
		t.Errorf("%d in all, want %d; the last of at most %v", total, want, before)
	}
}
