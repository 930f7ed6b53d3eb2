package natsbroker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// The leader of the stream steps down once a second. Every Publish returns nil, and
// every event reaches the clients of both nodes, once and in order.
func TestLeaderStepsDown(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 3)
	a, b := newSite(t, engine.HistoryBroker()), newSite(t, engine.HistoryBroker())
	a.expectAny(t, "warm up", b)
	b.expectAny(t, "warm up as well", a)
	conn := connect(t, engine.url(2))
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var stepping sync.WaitGroup
	downs := 0
	stepping.Go(func() {
		for ctx.Err() == nil {
			if m, err := conn.Request("$JS.API.STREAM.LEADER.STEPDOWN.realtime", nil, time.Second); err == nil && len(m.Data) > 0 {
				downs++
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
	var said []string
	failed := 0
	for i := 0; ctx.Err() == nil; i++ {
		text := fmt.Sprint("event ", i)
		if err := a.Publish(context.Background(), "x", realtime.Event{Data: []byte(text)}); err != nil {
			failed++
			t.Logf("event %d: %v", i, err)
			continue
		}
		said = append(said, text)
		time.Sleep(20 * time.Millisecond)
	}
	stepping.Wait()
	for i, s := range []*site{a, b} {
		next := 0
		eventually(t, "all events", func() bool {
			for len(s.got) > 0 && next < len(said) {
				switch got := <-s.got; {
				case got == said[next]:
					next++
				case failed == 0 && len(got) > 5 && got[:5] == "event":
					t.Fatalf("node %d: got %q, want %q", i, got, said[next])
				}
			}
			return next == len(said)
		})
	}
	t.Logf("%d events, %d not accepted by the log, while the leader stepped down %d times", len(said), failed, downs)
	if downs < 5 {
		t.Errorf("the leader stepped down %d times, want 5 at least", downs)
	}
	if st := a.Stats(); failed == 0 && st.Gaps+b.Stats().Gaps > 0 {
		t.Errorf("Stats() = %+v", st)
	}
}
