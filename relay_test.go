package realtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// nodes returns sites of hubs that an engine joins.
func nodes(t *testing.T, engine *brokertest.Memory, n int, settings func(*realtime.Hub)) []*site {
	var sites []*site
	for range n {
		hub := realtime.NewHub()
		hub.Broker = engine.Broker()
		if settings != nil {
			settings(hub)
		}
		sites = append(sites, newPipeSite(t, hub))
	}
	return sites
}

func TestCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sites := nodes(t, brokertest.NewMemory(), 3, nil)
		var readers []*listener
		for _, s := range sites {
			readers = append(readers, s.listen("topic=a"))
		}
		publish(t, sites[0].hub, "a", "1")
		synctest.Wait()
		publish(t, sites[1].hub, "a", "2")
		publish(t, sites[1].hub, "other", "not for them")
		synctest.Wait()
		sites[2].hub.Broadcast <- []byte("3")
		for i, l := range readers {
			for _, want := range []string{"1", "2", "3"} {
				if got := l.next(); got != want {
					t.Errorf("node %d got %q, want %q", i, got, want)
				}
			}
		}
		time.Sleep(3 * time.Second)
		for i, s := range sites {
			if got := s.hub.Stats().ClusterClients; got != 3 {
				t.Errorf("node %d counts %d clients, want 3", i, got)
			}
			if st := s.hub.Stats(); st.Gaps != 0 || st.Unsent != 0 || st.Published != int64(i%2+1) || st.Latency.Counts[0] != 3 {
				t.Errorf("node %d: Stats() = %+v", i, st)
			}
		}
	})
}

// After Subscribe returns, the events of every node arrive; each publisher's in
// order, once.
func TestClusterOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sites := nodes(t, brokertest.NewMemory(), 3, func(hub *realtime.Hub) { hub.History.Events = 1 })
		const events = 1000
		var readers []*listener
		for range 2 {
			for _, s := range sites {
				readers = append(readers, s.listen("topic=a&topic=b"))
			}
		}
		var all sync.WaitGroup
		for p, s := range sites {
			all.Go(func() {
				for i := range events {
					publish(t, s.hub, []string{"a", "b"}[i%2], fmt.Sprint(p*events+i))
				}
			})
		}
		for _, l := range readers {
			all.Go(func() {
				last := make(map[int]int)
				for range len(sites) * events {
					ev, err := l.event()
					if err != nil {
						t.Error(err)
						return
					}
					var n int
					fmt.Sscan(ev.data, &n)
					// Topics may overtake each other on their way.
					key := n/events*2 + n%2
					if prev, ok := last[key]; ok && n != prev+2 || !ok && n%events > 1 {
						t.Errorf("got %d after %d", n, prev)
						return
					}
					last[key] = n
				}
			})
		}
		all.Wait()
	})
}

// While the engine is away, clients stay and local events flow; everything
// comes back by itself, and who comes back is told what may be missing.
func TestEngineAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		sites := nodes(t, engine, 2, func(hub *realtime.Hub) { hub.History.Events = 100 })
		here, there := sites[0].listen("topic=a"), sites[1].listen("topic=a")
		publish(t, sites[0].hub, "a", "1")
		expect(t, here, "1")
		expect(t, there, "1")
		id := there.lastID
		engine.Stop()
		hub := sites[0].hub
		hub.Publish(t.Context(), "a", realtime.Event{Data: []byte("2")}) // may not know yet
		synctest.Wait()
		if err := hub.Publish(t.Context(), "a", realtime.Event{Data: []byte("3")}); !errors.Is(err, realtime.ErrBrokerUnavailable) {
			t.Errorf("Publish: %v, want ErrBrokerUnavailable", err)
		}
		expect(t, here, "2", "3")
		synctest.Wait()
		if st := hub.Stats(); st.Unsent < 2 {
			t.Errorf("Stats() = %+v, want 2 unsent", st)
		}
		start := time.Now()
		late := sites[1].connectAs("topic=late")
		if d := time.Since(start); d > 6*time.Second {
			t.Errorf("a client joined after %v", d)
		}
		engine.Start()
		time.Sleep(5 * time.Second)
		publish(t, hub, "a", "4")
		publish(t, hub, "late", "5")
		expect(t, there, "4")
		if got := read(t, late); got != "5" {
			t.Errorf("got %q", got)
		}
		there.cut()
		expect(t, back(sites[1], transports["event stream"], "topic=a", id), "reset")
		if st := sites[1].hub.Stats(); st.Gaps == 0 {
			t.Errorf("Stats() = %+v, want a gap", st)
		}
	})
}

// Except holds across nodes, and so does Key.
func TestClusterExcept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sites := nodes(t, brokertest.NewMemory(), 2, nil)
		var client *realtime.Client
		sites[1].hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			client = c
			return nil
		}
		l := sites[1].listen("")
		sites[0].listen("")
		synctest.Wait() // until they have subscribed
		hub := sites[0].hub
		hub.PublishAll(t.Context(), realtime.Event{Data: []byte("not for it"), Except: client.ID()})
		hub.PublishAll(t.Context(), realtime.Event{Name: "n", Binary: true, Key: "k", Data: []byte{0xff}})
		if ev, err := l.event(); err != nil || ev.name != "n" || ev.data != "/w==" {
			t.Errorf("got %v, %v", ev, err)
		}
	})
}

// A node that has gone is counted for a few seconds, and a topic that has no
// client is given up.
func TestNodeGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		sites := nodes(t, engine, 2, nil)
		sites[0].listen("topic=a")
		l := sites[1].listen("topic=a")
		time.Sleep(3 * time.Second)
		l.cut()
		if err := sites[1].hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		if got := sites[0].hub.Stats().ClusterClients; got != 1 {
			t.Errorf("%d clients are counted, want 1", got)
		}
	})
}

// A tampered broker does to what it brings as deliver says.
type tampered struct {
	realtime.Broker
	deliver func(h realtime.BrokerHandler, topic string, msg []byte)
}

func (b tampered) Start(h realtime.BrokerHandler) error { return b.Broker.Start(tamperedHandler{h, b}) }

type tamperedHandler struct {
	realtime.BrokerHandler
	broker tampered
}

func (h tamperedHandler) Deliver(topic string, msg []byte) {
	h.broker.deliver(h.BrokerHandler, topic, msg)
}

// What comes twice is delivered once; what is lost is noticed with the next
// message, and told to who comes back, on that topic alone.
func TestDuplicatesAndGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		lose := false
		here, there := realtime.NewHub(), realtime.NewHub()
		here.Broker = engine.Broker()
		there.History.Events = 100
		there.Broker = tampered{engine.Broker(), func(h realtime.BrokerHandler, topic string, msg []byte) {
			if lose {
				return
			}
			h.Deliver(topic, bytes.Clone(msg))
			h.Deliver(topic, bytes.Clone(msg))
			h.Deliver(topic, []byte("garbage"))
			h.Deliver(topic, msg[:len(msg)/2])
		}}
		newPipeSite(t, here)
		s := newPipeSite(t, there)
		l := s.listen("topic=a&topic=b")
		say := func(topic, text string) {
			publish(t, here, topic, text)
			synctest.Wait()
		}
		say("a", "1")
		say("b", "2")
		say("a", "3")
		expect(t, l, "1", "2", "3")
		if st := there.Stats(); st.Gaps != 0 {
			t.Errorf("Stats() = %+v, want no gap", st)
		}
		id := l.lastID
		lose = true
		say("a", "lost")
		lose = false
		say("b", "4")
		expect(t, l, "4")
		if st := there.Stats(); st.Gaps != 0 {
			t.Errorf("Stats() = %+v, want no gap: b has lost nothing", st)
		}
		say("a", "5")
		expect(t, l, "5")
		if st := there.Stats(); st.Gaps != 1 {
			t.Errorf("Stats() = %+v, want one gap", st)
		}
		l.cut()
		expect(t, back(s, transports["event stream"], "topic=b", id), "4")
		expect(t, back(s, transports["event stream"], "topic=a", id), "reset")
	})
}

// Subscribe waits for the broker, but not for ever.
func TestSubscribeWaitsForTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		hub := realtime.NewHub()
		slow := &slowBroker{Broker: engine.Broker()}
		slow.subscribe.Store(int64(2 * time.Second))
		hub.Broker = slow
		var took time.Duration
		var result error
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			start := time.Now()
			result = c.Subscribe(r.URL.Query()["topic"]...)
			took = time.Since(start)
			return nil
		}
		s := newPipeSite(t, hub)
		for _, tt := range []struct {
			topic     string
			subscribe time.Duration
			took      time.Duration
			err       error
		}{
			{"a", 2 * time.Second, 2 * time.Second, nil},
			{"a", time.Hour, 0, nil}, // it has it already
			{"b", 7 * time.Second, 5 * time.Second, realtime.ErrBrokerUnavailable},
		} {
			slow.subscribe.Store(int64(tt.subscribe))
			s.listen("topic=" + tt.topic)
			if took != tt.took || result != tt.err {
				t.Errorf("Subscribe: %v after %v, want %v after %v", result, took, tt.err, tt.took)
			}
		}
	})
}

type slowBroker struct {
	realtime.Broker
	subscribe    atomic.Int64 // a time.Duration
	unsubscribed atomic.Int64
}

func (b *slowBroker) Subscribe(ctx context.Context, topic string) error {
	select {
	case <-time.After(time.Duration(b.subscribe.Load())):
		return b.Broker.Subscribe(ctx, topic)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *slowBroker) Unsubscribe(topic string) error {
	b.unsubscribed.Add(1)
	return b.Broker.Unsubscribe(topic)
}

// A topic without clients is given up after a while, and taken again.
func TestTopicsLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		far, hub := realtime.NewHub(), realtime.NewHub()
		far.Broker = engine.Broker()
		broker := &slowBroker{Broker: engine.Broker()}
		hub.Broker = broker
		newPipeSite(t, far)
		s := newPipeSite(t, hub)
		for round := range 3 {
			for range 5 { // who comes back soon finds it as it was
				l := s.listen("topic=a")
				publish(t, far, "a", "hello")
				if got := l.next(); got != "hello" {
					t.Errorf("got %q", got)
				}
				l.cut()
				time.Sleep(5 * time.Second)
			}
			if n := broker.unsubscribed.Load(); n != int64(round) {
				t.Errorf("round %d: unsubscribed %d times", round, n)
			}
			time.Sleep(15 * time.Second)
		}
	})
}

// A broker that hangs holds up no client, nor Shutdown for long; what it can't
// take is counted.
func TestBrokerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Broker = hangingBroker{brokertest.NewMemory().Broker()}
		s := newPipeSite(t, hub)
		l := s.listen("")
		unavailable := 0
		const events = 3000
		for i := range events {
			switch err := hub.PublishAll(t.Context(), realtime.Event{Data: fmt.Append(nil, i)}); {
			case errors.Is(err, realtime.ErrBrokerUnavailable):
				unavailable++
			case err != nil:
				t.Error(err)
			}
			if got := l.next(); got != fmt.Sprint(i) {
				t.Fatalf("got %q, want %d", got, i)
			}
		}
		if st := hub.Stats(); st.Unsent < events-1100 || unavailable < events-1100 {
			t.Errorf("%d were unavailable, Stats() = %+v; want all but a queue of them", unavailable, st)
		}
		l.cut()
		start := time.Now()
		if err := hub.Shutdown(context.Background()); err != nil || time.Since(start) > 6*time.Second {
			t.Errorf("Shutdown: %v after %v", err, time.Since(start))
		}
		if st := hub.Stats(); st.Unsent != events {
			t.Errorf("Unsent = %d, want %d", st.Unsent, events)
		}
	})
}

type hangingBroker struct{ realtime.Broker }

func (hangingBroker) Publish(ctx context.Context, _ string, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

// A node that is cut off for long is a gap when it falls silent, and another one
// when it is back: nobody can tell what it has sent in between.
func TestNodeIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		far, hub := realtime.NewHub(), realtime.NewHub()
		far.Broker = engine.Broker()
		var cut atomic.Bool
		hub.Broker = tampered{engine.Broker(), func(h realtime.BrokerHandler, topic string, msg []byte) {
			if !cut.Load() {
				h.Deliver(topic, msg)
			}
		}}
		newPipeSite(t, far).listen("")
		s := newPipeSite(t, hub)
		s.listen("")
		time.Sleep(5 * time.Second)
		if got := hub.Stats().ClusterClients; got != 2 {
			t.Errorf("%d clients are counted, want 2", got)
		}
		cut.Store(true)
		time.Sleep(20 * time.Second)
		if got := hub.Stats().ClusterClients; got != 1 {
			t.Errorf("%d clients are counted, want 1", got)
		}
		cut.Store(false)
		time.Sleep(5 * time.Second)
		if st := hub.Stats(); st.Gaps != 2 || st.ClusterClients != 2 {
			t.Errorf("%d gaps, %d clients; want 2 and 2", st.Gaps, st.ClusterClients)
		}
	})
}

// An event that the engine won't have is lost for the other nodes, and no
// outage.
func TestEventTooLargeForTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		hub, far := realtime.NewHub(), realtime.NewHub()
		hub.Broker, far.Broker = smallBroker{engine.Broker()}, engine.Broker()
		newPipeSite(t, hub).listen("")
		l := newPipeSite(t, far).listen("")
		synctest.Wait() // until it has subscribed
		for _, size := range []int{10, 2000, 20} {
			if err := hub.PublishAll(t.Context(), realtime.Event{Data: bytes.Repeat([]byte("x"), size)}); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
			synctest.Wait()
		}
		if a, b := len(l.next()), len(l.next()); a != 10 || b != 20 {
			t.Errorf("events of %d and %d bytes came, want 10 and 20", a, b)
		}
		if st := hub.Stats(); st.Unsent != 1 || st.BrokerDown {
			t.Errorf("Stats() = %+v, want one unsent", st)
		}
		if st := far.Stats(); st.Gaps != 1 {
			t.Errorf("Stats() = %+v, want one gap", st)
		}
	})
}

type smallBroker struct{ realtime.Broker }

func (b smallBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	if len(msg) > 1000 {
		return fmt.Errorf("too large: %w", realtime.ErrEventTooLarge)
	}
	return b.Broker.Publish(ctx, topic, msg)
}

// A topic without clients stays subscribed as long as ids resume. A client that
// has a topic which its node did not hear of when it was away gets a reset.
func TestResumeTopicsOfOtherNodes(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after string // the client's topics
		away          time.Duration
		want          string
	}{
		"a minute later":        {"topic=a", "topic=a", time.Minute, "2"},
		"another topic as well": {"topic=b", "topic=b&topic=a", time.Second, "reset"},
		"long after":            {"topic=a", "topic=a", time.Hour, "reset"},
	} {
		eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
			sites := nodes(t, brokertest.NewMemory(), 2, func(hub *realtime.Hub) { hub.History.Events = 100 })
			near, far := sites[0], sites[1]
			c := join(near, tt.before)
			publish(t, far.hub, "b", "not for all")
			publish(t, near.hub, strings.TrimPrefix(tt.before, "topic="), "1")
			for {
				if ev, err := c.event(); err != nil {
					t.Fatal(err)
				} else if ev.data == "1" {
					break
				}
			}
			id := c.last()
			c.cut()
			time.Sleep(tt.away)
			publish(t, far.hub, "a", "2")
			time.Sleep(time.Second)
			c = back(near, join, tt.after, id)
			if ev, err := c.event(); err != nil || ev.data+ev.name != tt.want {
				t.Errorf("%s: got %+v, %v, want %s", name, ev, err, tt.want)
			}
		})
	}
}
