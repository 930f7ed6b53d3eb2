package realtime

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A publisher waits no longer than its ctx, nor than the hub lives.
func TestPublishWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.started.Store(true) // a loop that takes nothing
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := hub.PublishAll(ctx, Event{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("PublishAll: %v after %v, want DeadlineExceeded after 1 s", err, time.Since(start))
		}
		go func() {
			time.Sleep(time.Second)
			close(hub.done)
		}()
		if err := hub.PublishAll(t.Context(), Event{}); err != ErrHubClosed {
			t.Errorf("PublishAll: %v, want ErrHubClosed", err)
		}
		// Nor may anybody who still listens take it.
		go func() {
			for range hub.publish {
				t.Error("an event was taken after Shutdown had begun")
			}
		}()
		for range 50 {
			synctest.Wait()
			if err := hub.PublishAll(t.Context(), Event{}); err != ErrHubClosed {
				t.Errorf("PublishAll: %v, want ErrHubClosed", err)
			}
		}
		close(hub.publish)
	})
}

// An inbox that is full makes whoever puts something in wait, one batch after
// the other; one that is closed still hands over what it has.
func TestInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in inbox
		in.init()
		in.put(make([]entry, inboxSize)...)
		puts := make(chan int, 6)
		for range 3 {
			go func() {
				in.put(make([]entry, inboxSize)...)
				puts <- 1
			}()
		}
		for i := range 3 {
			synctest.Wait()
			if len(puts) != i {
				t.Errorf("%d puts after %d takes", len(puts), i)
			}
			if n := len(in.take()); n != inboxSize {
				t.Errorf("took %d entries, want %d", n, inboxSize)
			}
		}
		synctest.Wait()
		in.close()
		if n := len(in.take()); n != inboxSize || len(puts) != 3 {
			t.Errorf("took %d entries of a closed inbox after %d puts, want %d and 3", n, len(puts), inboxSize)
		}
		if got := in.take(); got != nil {
			t.Errorf("took %d entries, want the end", len(got))
		}

		// Those for whom there is room don't wait for each other.
		in = inbox{}
		in.init()
		in.put(make([]entry, inboxSize)...)
		for range 3 {
			go func() {
				in.put(entry{})
				puts <- 1
			}()
		}
		synctest.Wait()
		in.take()
		synctest.Wait()
		if len(puts) != 6 {
			t.Errorf("%d of 3 puts have found the room", len(puts)-3)
		}
	})
}

// An event reaches who had joined before it and hadn't left, also where all of
// that waits for the shard at once.
func TestShardKeepsOrder(t *testing.T) {
	hub := NewHub()
	hub.settle()
	s, before, after := &shard{stats: &hub.shared}, newClient(hub, false), newClient(hub, false)
	event := func(data string) entry { return entry{event: &event{Event: Event{Data: []byte(data)}}} }
	for _, e := range []entry{
		event("nobody"), {op: opJoin, client: before}, event("first"), {op: opJoin, client: after}, event("both"), {op: opLeave, client: before}, event("last"),
	} {
		s.apply(&e)
	}
	s.deliver()
	for c, want := range map[*Client]string{before: "[first both]", after: "[both last]"} {
		var got []string
		for _, ev := range c.out.early {
			got = append(got, string(ev.Data))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}

// A shard that waits for the next entry holds on to none of the last ones.
func TestIdleInboxHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in inbox
		in.init()
		in.put(entry{event: new(event)}, entry{client: new(Client)})
		taken := in.take()
		go in.take()
		synctest.Wait()
		for i, e := range taken {
			if e.event != nil || e.client != nil {
				t.Errorf("entry %d is still there", i)
			}
		}
		in.close()
	})
}
