package realtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A publisher waits at most until its ctx ends or the hub shuts down.
func TestPublishWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.started.Store(true) // a loop that accepts nothing
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
		// No event is accepted then, even if something still receives.
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

// A full inbox makes put wait. A closed one still returns its entries.
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

		// Puts for which there is room don't wait for each other.
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

// An event reaches the clients that joined before it and haven't left.
func TestShardKeepsOrder(t *testing.T) {
	hub := NewHub()
	hub.settle()
	s, before, after := &shard{stats: &hub.shared}, newClient(hub, webSocket{}), newClient(hub, webSocket{})
	event := func(data string) entry { return entry{event: &event{Event: Event{Data: []byte(data)}}} }
	for _, e := range []entry{
		event("nobody"), {do: func(s *shard) { s.join(before) }}, event("first"), {do: func(s *shard) { s.join(after) }}, event("both"), {do: func(s *shard) { s.leave(before, nil) }}, event("last"),
	} {
		s.apply(&e)
	}
	s.deliver()
	for c, want := range map[*Client]string{before: "[first both]", after: "[both last]"} {
		var got []string
		for _, ev := range c.out.held.early {
			got = append(got, string(ev.Data))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}

// A shard that waits for an entry keeps no earlier ones alive.
func TestIdleInboxHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var in inbox
		in.init()
		in.put(entry{event: new(event)}, entry{do: func(*shard) {}})
		taken := in.take()
		go in.take()
		synctest.Wait()
		for i, e := range taken {
			if e.event != nil || e.do != nil {
				t.Errorf("entry %d is still there", i)
			}
		}
		in.close()
	})
}

// Topics without clients are forgotten, and all of a client that leaves.
func TestTopicsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.start()
		hub.settle()
		var all []*Client
		for i := range 10 {
			c := newClient(hub, webSocket{})
			if err := hub.add(c); err != nil {
				t.Fatal(err)
			}
			for j := range 100 {
				if err := c.Subscribe(fmt.Sprint(i*j%70), "all"); err != nil {
					t.Fatal(err)
				}
			}
			all = append(all, c)
		}
		for i, c := range all {
			if i%2 == 0 {
				c.Unsubscribe(c.Topics()...)
			}
			c.leaveHub()
		}
		synctest.Wait()
		for _, s := range hub.registry.allShards() {
			if len(s.topics) != 0 || len(s.clients) != 0 {
				t.Errorf("a shard keeps %d topics and %d clients", len(s.topics), len(s.clients))
			}
		}
		for _, c := range all {
			for _, sub := range c.topics {
				if sub.index >= 0 {
					t.Error("a client that has left keeps a subscription")
				}
			}
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// queued returns the buffers that wait for c.
func (c *Client) queued() []*buffer {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return slices.Clone(c.out.queue)
}

// allFormats returns the formats that a client can have.
func allFormats() (all []format) {
	for enc := range encodings {
		all = append(all, format{encoding: enc})
		if !enc.isStream() {
			all = append(all, format{encoding: enc, deflate: true})
		}
	}
	return all
}

// An event is encoded once for each format. Clients with the same events share
// joined buffers, also if audiences are mixed.
func TestClientsShareBuffers(t *testing.T) {
	hub := NewHub()
	hub.settle()
	s := &shard{stats: &hub.shared}
	gate := make(chan error) // all writes wait for it
	defer close(gate)
	var clients [formats][2]*Client
	for _, f := range allFormats() {
		for i := range 2 {
			c := newClient(hub, webSocket{})
			s.join(c)
			s.subscribe(&subscription{client: c, name: "a"})
			s.subscribe(&subscription{client: c, name: fmt.Sprint(f.index())})
			c.out.open(&recorder{gate: gate}, nil, f)
			clients[f.index()][i] = c
		}
	}
	large := []byte(strings.Repeat("much of this repeats itself ", 100))
	for i := range 40 {
		ev := &event{Event: Event{Data: large}, topic: []string{"a", "", "nobody's"}[i%3]}
		if i%7 == 0 {
			ev.topic = fmt.Sprint(i % formats)
		}
		s.apply(&entry{event: ev})
	}
	s.deliver()
	for _, f := range allFormats() {
		pair := clients[f.index()]
		a, b := pair[0].queued(), pair[1].queued()
		if len(a) == 0 || len(a) != len(b) {
			t.Fatalf("%+v: %d and %d buffers", f, len(a), len(b))
		}
		for i := range a {
			if a[i] != b[i] {
				t.Errorf("%+v: clients have buffers of their own", f)
			}
		}
	}
	ev := &event{Event: Event{Data: large}}
	for _, f := range allFormats() {
		if first := ev.buffer(f); first != ev.buffer(f) {
			t.Errorf("%+v: encoded twice", f)
		}
	}
}

// A shard and a topic that have lost most of their clients give back the memory,
// and the rest still get every event.
func TestShardShrinks(t *testing.T) {
	s := &shard{stats: newShared()}
	var all []*Client
	var subs []*subscription
	for range 1000 {
		c := &Client{}
		c.out.shared, c.out.owner = s.stats, new(endings)
		sub := &subscription{client: c, name: "topic"}
		s.join(c)
		s.subscribe(sub)
		all, subs = append(all, c), append(subs, sub)
	}
	for i, c := range all {
		if i%100 != 7 {
			s.leave(c, subs[i:i+1])
		}
	}
	if n := max(cap(s.clients), cap(s.topics["topic"])); n > 64 {
		t.Errorf("10 clients of 1000 are left in memory for %d", n)
	}
	for _, topic := range []string{"", "topic"} {
		if n := s.size(&event{topic: topic}); n != 10 {
			t.Errorf("%d clients get an event to %q, want 10", n, topic)
		}
	}
	for i, c := range all {
		if i%100 == 7 {
			s.leave(c, subs[i:i+1])
		}
	}
	if cap(s.clients) > 64 || s.topics != nil {
		t.Errorf("an empty shard has memory for %d clients, and %d topics", cap(s.clients), len(s.topics))
	}
}
