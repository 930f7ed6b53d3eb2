package realtime

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A client joins without the loop. It must get what is published from then on,
// and nothing from before.
func TestJoinsBetweenEvents(t *testing.T) {
	hub := NewHub()
	t.Cleanup(func() { hub.Shutdown(context.Background()) })
	for i := range 2000 {
		if err := hub.PublishAll(t.Context(), Event{Data: fmt.Append(nil, "before ", i)}); err != nil {
			t.Fatal(err)
		}
		c := newClient(hub, webSocket{})
		if err := hub.add(c); err != nil {
			t.Fatal(err)
		}
		after := fmt.Sprint("after ", i)
		if err := hub.PublishAll(t.Context(), Event{Data: []byte(after)}); err != nil {
			t.Fatal(err)
		}
		came := make(chan string, 1)
		c.home.inbox.put(entry{do: func(*shard) { came <- fmt.Sprintf("%s", heldData(&c.out)) }})
		if got, want := <-came, fmt.Sprintf("[%s]", after); got != want {
			t.Errorf("client %d has got %s, want %s", i, got, want)
		}
		c.abort(ErrClientClosed)
		c.gone()
	}
}

func heldData(o *outbox) (all [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held != nil {
		for _, ev := range o.held.early {
			all = append(all, ev.Data)
		}
	}
	return all
}

// An expiring counts how often the loop wakes to drop what is too old.
type expiring struct {
	order
	times atomic.Int32
}

func (e *expiring) expire(now time.Time) time.Duration {
	if e.times.Add(1) > 100 {
		return 0 // so that a test of a loop that turns ends
	}
	return e.order.expire(now)
}

// Age is added to, which can be more than a Duration holds. The timer would fire
// at once, again and again.
func TestHistoryForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.History = History{Age: math.MaxInt64}
		hub.settle()
		e := &expiring{order: hub.order}
		hub.order = e
		if err := hub.PublishAll(t.Context(), Event{Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := e.times.Load(); n > 10 {
			t.Errorf("the loop has woken %d times for one event", n)
		}
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}
