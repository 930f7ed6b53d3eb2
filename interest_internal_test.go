package realtime

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// visit has a client join n topics one after another, and leave each.
func visit(d *driver, n int) {
	for i := range n {
		topic := []string{fmt.Sprintf("t%02d", i)}
		d.o.want(topic)
		d.arrive()
		time.Sleep(time.Millisecond)
		d.o.unwant(topic)
	}
}

// A page that joins ever new topics doesn't make the engine keep all. The newest stay.
func TestTooManyTopicsLinger(t *testing.T) {
	defer func(most int) { maxLingering = most }(maxLingering)
	maxLingering = 3
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.want([]string{"a"})
		visit(d, 10)
		time.Sleep(heartbeatInterval)
		d.arrive()
		got := r.peers.topics()
		slices.Sort(got)
		if want := []string{"", "a", "t07", "t08", "t09"}; !slices.Equal(got, want) {
			t.Errorf("the node is subscribed to %q, want %q", got, want)
		}
		confirmed := r.want([]string{"t00"})
		d.arrive()
		synctest.Wait()
		if !isClosed(confirmed[0]) {
			t.Error("a topic that was given up isn't subscribed again")
		}
	})
}

// While the engine is away, topics that no client has any more aren't tried for ever.
func TestTopicsOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		b.setAway(true)
		confirmed := r.want([]string{"a"})
		visit(d, 2*maxSubscribing)
		time.Sleep(5 * time.Second)
		d.arrive()
		got := r.peers.topics()
		slices.Sort(got)
		if want := []string{"", "a"}; !slices.Equal(got, want) {
			t.Errorf("the node tries to subscribe to %q, want %q", got, want)
		}
		b.setAway(false)
		time.Sleep(2 * brokerRetry)
		d.arrive()
		synctest.Wait()
		if !isClosed(confirmed[0]) {
			t.Error("the topic that a client has isn't subscribed")
		}
	})
}
