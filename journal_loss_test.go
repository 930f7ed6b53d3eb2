package realtime_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// Clients that a node has let in before it had the history are told, when it has
// it, that they may have missed something.
func TestJournalLateStart(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		here, _ := newNode(t, engine)
		far, b := newNode(t, engine)
		b.deaf.Store(true)
		l := join(here, "topic=a")
		publish(t, here.hub, "a", "0")
		expect(t, l, "0")
		c := join(far, "topic=a") // after 5 s
		publish(t, here.hub, "a", "1")
		publish(t, here.hub, "a", "2")
		b.deaf.Store(false)
		time.Sleep(time.Second)
		publish(t, here.hub, "a", "3")
		expect(t, c, "reset", "3")
		id := c.last()
		publish(t, here.hub, "a", "4")
		expect(t, back(far, join, "topic=a", id), "4")
		stats(t, far, func(st realtime.Stats) bool { return st.Gaps == 1 })
	})
}

// What the engine forgets before a node has had it is told to its clients at
// once: the ids that they get from then on don't show it.
func TestJournalConnectedLoss(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		here, _ := newNode(t, engine)
		far, b := newNode(t, engine)
		c := join(far, "topic=a")
		publish(t, here.hub, "a", "0")
		expect(t, c, "0")
		b.deaf.Store(true)
		publish(t, here.hub, "a", "1")
		synctest.Wait()
		publish(t, here.hub, "a", "2")
		publish(t, here.hub, "a", "3")
		engine.Trim(1)
		publish(t, here.hub, "a", "4")
		b.deaf.Store(false)
		expect(t, c, "1", "reset", "3", "4")
	})
}

// Events that each fit into the engine reach it, though together they don't.
func TestJournalBatchTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		hub := realtime.NewHub()
		hub.History.Events = 1000
		hub.Broker = smallHistory{engine.HistoryBroker()}
		s := newPipeSite(t, hub)
		far, _ := newNode(t, engine)
		there, here := far.listen(""), s.listen("")
		var want []string
		for i := range 200 {
			text := fmt.Sprint("event ", i)
			hub.Broadcast <- []byte(text)
			want = append(want, text)
		}
		expect(t, there, want...)
		expect(t, here, want...)
		stats(t, s, func(st realtime.Stats) bool { return st.Unsent == 0 && st.Gaps == 0 })
	})
}

// A cut that is too large for the engine doesn't keep a node down.
func TestJournalCutTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		hub := realtime.NewHub()
		hub.History.Events = 1000
		hub.Broker = smallHistory{engine.HistoryBroker()}
		s := newPipeSite(t, hub)
		l := s.listen("topic=other")
		publish(t, hub, "other", "up")
		expect(t, l, "up")
		engine.Stop()
		for i := range 80 {
			hub.Publish(t.Context(), fmt.Sprint("a topic with a name ", i), realtime.Event{Data: []byte("x")})
		}
		engine.Start()
		time.Sleep(3 * time.Second)
		stats(t, s, func(st realtime.Stats) bool { return !st.BrokerDown && st.Unsent == 80 })
		expect(t, back(s, transports["event stream"], "topic=other", l.lastID), "reset") // it was told for all
	})
}

// A record that somebody has made up in a node's name doesn't stop it.
func TestJournalForgedRecord(t *testing.T) {
	for i, kind := range []byte{'r', 'c', 'r'} {
		synctest.Test(t, func(t *testing.T) {
			engine := brokertest.NewMemory()
			s, b := newNode(t, engine)
			l := s.listen("")
			publish(t, s.hub, "warm", "up")
			forged := slices.Clone(b.record[:18])
			forged[1] = kind
			if i < 2 {
				forged = append(binary.AppendUvarint(forged, 1<<60), 1, 0, 0, 0, 0, 0, 0)
			} else { // the second of its events has number zero
				forged = append(binary.AppendUvarint(forged, math.MaxUint64), 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
			}
			if err := b.HistoryBroker.Append(t.Context(), forged); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if err := s.hub.PublishAll(t.Context(), realtime.Event{Data: []byte("1")}); err != nil {
				t.Error(err)
			}
			expect(t, l, "1")
		})
	}
}

// Half a record is none.
func TestJournalTruncatedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		here, b := newNode(t, engine)
		far, _ := newNode(t, engine)
		l := far.listen("topic=a")
		publish(t, here.hub, "a", "1")
		expect(t, l, "1")
		cut := slices.Clone(b.record[:18])
		cut[1] = 'c'
		cut = binary.AppendUvarint(binary.AppendUvarint(cut, 1000), 5) // topics that don't follow
		if err := b.HistoryBroker.Append(t.Context(), cut); err != nil {
			t.Fatal(err)
		}
		id := l.lastID
		publish(t, here.hub, "a", "2")
		expect(t, l, "2")
		expect(t, back(far, transports["event stream"], "topic=a", id), "2")
	})
}

// A node whose event the engine has lost isn't down for that, again and again.
func TestJournalSettlesAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		s, b := newNode(t, engine)
		l := s.listen("topic=a")
		publish(t, s.hub, "a", "1")
		expect(t, l, "1")
		b.deaf.Store(true)
		publish(t, s.hub, "a", "2")
		synctest.Wait()
		publish(t, s.hub, "a", "3")
		synctest.Wait()
		engine.Forget()
		b.deaf.Store(false)
		for got := ""; got != "3"; { // and a reset
			got = l.next()
		}
		time.Sleep(10 * time.Second)
		b.appends.Store(0)
		time.Sleep(time.Minute)
		if n := b.appends.Load(); n > 0 {
			t.Errorf("%d records were appended in a minute without an event", n)
		}
	})
}

// A hub whose first request becomes no client follows the log all the same.
func TestJournalRefusedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		here, _ := newNode(t, engine)
		l := here.listen("")
		const events = 2000 // more than wait before a hub
		for i := range events {
			here.hub.PublishAll(t.Context(), realtime.Event{Data: fmt.Append(nil, i)})
		}
		id := ""
		for range events - 2 {
			l.next()
			id = l.lastID
		}
		far, b := newNode(t, engine)
		go far.hub.Run()
		synctest.Wait() // the hub waits for something to do
		far.request("GET", "", "Upgrade: websocket")
		if b.appends.Load() != 0 {
			t.Error("it has appended something")
		}
		time.Sleep(5500 * time.Millisecond) // for longer than a client would wait
		expect(t, back(far, transports["event stream"], "", id), fmt.Sprint(events-2), fmt.Sprint(events-1))
	})
}

// In an outage newcomers get the latest values, in order, and so they do when the
// engine has lost one.
func TestJournalLatestValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		engine.Stop()
		s, b := newNode(t, engine)
		key := func(key, text string) {
			t.Helper()
			err := s.hub.Publish(context.Background(), "a", realtime.Event{Key: key, Data: []byte(text)})
			if err != nil && !errors.Is(err, realtime.ErrBrokerUnavailable) {
				t.Error(err)
			}
			synctest.Wait()
		}
		var want []string
		for i := range 20 {
			key(fmt.Sprint(i), fmt.Sprint(i))
			want = append(want, fmt.Sprint(i))
		}
		expect(t, s.listen("topic=a"), want...)
		engine.Start()
		time.Sleep(3 * time.Second)
		key("0", "new")
		b.deaf.Store(true)
		publish(t, s.hub, "a", "held")
		synctest.Wait()
		key("0", "lost")
		engine.Forget()
		publish(t, s.hub, "a", "next")
		b.deaf.Store(false)
		time.Sleep(time.Second)
		expect(t, s.listen("topic=a"), append(want[1:], "lost")...)
	})
}

// An epoch gets into ids, so it has to be what it should.
func TestJournalStrangeEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		s, b := newNode(t, engine)
		l := s.listen("topic=a")
		publish(t, s.hub, "a", "1")
		expect(t, l, "1")
		for _, epoch := range []string{"", "x\ndata: forged\n", "a-b", string(make([]byte, 33)), "ä"} {
			b.handler.Record(epoch, 1, b.record)
			b.handler.Current(epoch, 1)
		}
		publish(t, s.hub, "a", "2")
		expect(t, l, "2")
		stats(t, s, func(st realtime.Stats) bool { return st.Gaps == 0 })
	})
}
