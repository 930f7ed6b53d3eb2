package realtime_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// A flaky broker is a node's that can be harmed.
type flaky struct {
	realtime.HistoryBroker
	doubtful atomic.Bool  // Append does its work and fails
	deaf     atomic.Bool  // nothing is brought; what waits comes later
	hang     atomic.Bool  // Append waits for its context
	refused  atomic.Int64 // calls of Append that failed
	appends  atomic.Int64 // calls of it

	handler realtime.HistoryHandler

	mu     sync.Mutex
	record []byte // the last one that was appended
}

var errFlaky = errors.New("no answer")

func (b *flaky) Append(ctx context.Context, record []byte) error {
	b.appends.Add(1)
	b.mu.Lock()
	b.record = slices.Clone(record)
	b.mu.Unlock()
	if b.hang.Load() {
		<-ctx.Done()
		b.refused.Add(1)
		return ctx.Err()
	}
	err := b.HistoryBroker.Append(ctx, record)
	if b.doubtful.Load() {
		err = errFlaky
	}
	if err != nil {
		b.refused.Add(1)
	}
	return err
}

func (b *flaky) Follow(h realtime.HistoryHandler) error {
	b.handler = h
	return b.HistoryBroker.Follow(flakyHandler{h, b})
}

type flakyHandler struct {
	realtime.HistoryHandler
	b *flaky
}

func (h flakyHandler) Record(epoch string, seq uint64, record []byte) {
	for h.b.deaf.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	h.HistoryHandler.Record(epoch, seq, record)
}

// newNode returns a hub of an engine that keeps the history.
func newNode(t *testing.T, engine *brokertest.Memory) (*site, *flaky) {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 1000, Age: time.Hour}
	b := &flaky{HistoryBroker: engine.HistoryBroker()}
	hub.Broker = b
	return newPipeSite(t, hub), b
}

func newNodes(t *testing.T, engine *brokertest.Memory, n int) (sites []*site) {
	for range n {
		s, _ := newNode(t, engine)
		sites = append(sites, s)
	}
	return sites
}

func stats(t *testing.T, s *site, want func(realtime.Stats) bool) {
	t.Helper()
	if st := s.hub.Stats(); !want(st) {
		t.Errorf("Stats() = %+v", st)
	}
}

// All nodes have one order, and an id holds on each of them, on one too that has
// just been started.
func TestJournal(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		sites := newNodes(t, engine, 3)
		var clients []resumer
		for _, s := range sites {
			clients = append(clients, join(s, "topic=a&topic=b"))
		}
		const each = 200
		var publishing sync.WaitGroup
		for p, s := range sites {
			publishing.Go(func() {
				for i := range each {
					publish(t, s.hub, []string{"a", "b"}[i%2], fmt.Sprint(p, " ", i))
				}
			})
			publishing.Go(func() {
				for i := range each {
					s.hub.Broadcast <- fmt.Append(nil, p+3, " ", i)
				}
			})
		}
		publishing.Wait()
		var seen [3][]heard
		for i, c := range clients {
			next := make([]int, 6)
			for range len(next) * each {
				ev, err := c.event()
				if err != nil {
					t.Fatal(err)
				}
				var p, n int
				fmt.Sscan(ev.data, &p, &n)
				if n != next[p] {
					t.Fatalf("got %d of publisher %d, want %d", n, p, next[p])
				}
				next[p]++
				seen[i] = append(seen[i], ev)
			}
		}
		if !slices.Equal(seen[0], seen[1]) || !slices.Equal(seen[0], seen[2]) {
			t.Error("nodes have different orders or ids")
		}
		fresh, _ := newNode(t, engine)
		for _, s := range append(sites, fresh) {
			at := rand.IntN(len(seen[0]) - 1)
			c := back(s, join, "topic=a&topic=b", seen[0][at].id)
			for i, want := range seen[0][at+1:] {
				if ev, err := c.event(); ev != want {
					t.Fatalf("event %d behind %d is %v, %v; want %v", i, at, ev, err, want)
				}
			}
		}
		publish(t, fresh.hub, "a", "last")
		for _, c := range clients {
			expect(t, c, "last")
		}
		for _, s := range sites {
			stats(t, s, func(st realtime.Stats) bool {
				return st.Gaps == 0 && st.Unsent == 0 && !st.BrokerDown && st.Resets == 0 && st.Resumed == 1 && st.Published == 2*each
			})
		}
		time.Sleep(3 * time.Second)
		if n := fresh.hub.Stats().ClusterClients; n != 7 {
			t.Errorf("%d clients are counted, want 7", n)
		}
	})
}

// A client may know more than the node it comes back to.
func TestJournalNodeIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		here, _ := newNode(t, engine)
		behind, b := newNode(t, engine)
		behind.listen("topic=a")
		l := here.listen("topic=a")
		b.deaf.Store(true)
		publish(t, here.hub, "a", "1")
		expect(t, l, "1")
		time.AfterFunc(3*time.Second, func() {
			publish(t, here.hub, "a", "2")
			b.deaf.Store(false)
		})
		expect(t, back(behind, transports["event stream"], "topic=a", l.lastID), "2")
		stats(t, behind, func(st realtime.Stats) bool { return st.Resets == 0 && st.Resumed == 1 })

		b.deaf.Store(true) // and not for ever
		publish(t, here.hub, "a", "3")
		expect(t, l, "2", "3")
		start := time.Now()
		late := back(behind, transports["event stream"], "topic=a", l.lastID)
		if d := time.Since(start); d < 4*time.Second || d > 6*time.Second {
			t.Errorf("it waited for %v", d)
		}
		b.deaf.Store(false)
		expect(t, late, "reset", "3")
	})
}

// A short outage of the engine delays events and loses none.
func TestJournalShortOutage(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		sites := newNodes(t, engine, 2)
		here, there := join(sites[0], "topic=a"), join(sites[1], "topic=a")
		publish(t, sites[0].hub, "a", "0")
		expect(t, here, "0")
		id := here.last()
		engine.Stop()
		time.AfterFunc(time.Second, func() { engine.Start() })
		publish(t, sites[0].hub, "a", "1")
		publish(t, sites[1].hub, "a", "2")
		expect(t, here, "1", "2")
		expect(t, there, "0", "1", "2")
		expect(t, back(sites[1], join, "topic=a", id), "1", "2")
		synctest.Wait()
		for i, s := range sites { // the first has waited for the engine at its own node, perhaps with one of the other
			var all, late int64
			for most, n := range s.hub.Stats().Latency.Buckets() {
				if all += n; most >= time.Second {
					late += n
				}
			}
			if all != 3 || (late > 0) != (i == 0) {
				t.Errorf("node %d: %d events, %d of them late", i, all, late)
			}
		}
		for _, s := range sites {
			stats(t, s, func(st realtime.Stats) bool {
				return st.Gaps == 0 && st.Unsent == 0 && !st.BrokerDown && st.Resets == 0
			})
		}
	})
}

// In a long outage the clients of a node have its events, in order and once;
// then those who come back are told, on the topics that have lost something.
func TestJournalOutage(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		sites := newNodes(t, engine, 2)
		hub := sites[0].hub
		here, there := join(sites[0], "topic=a&topic=b"), join(sites[1], "topic=a&topic=b")
		publish(t, hub, "a", "0")
		publish(t, hub, "b", "key")
		expect(t, here, "0", "key")
		expect(t, there, "0", "key")
		id := there.last()
		engine.Stop()
		for i := range 5 {
			start := time.Now()
			err := hub.Publish(t.Context(), "a", realtime.Event{Data: fmt.Append(nil, 1+i), Key: "k"})
			if !errors.Is(err, realtime.ErrBrokerUnavailable) {
				t.Errorf("Publish: %v, want ErrBrokerUnavailable", err)
			}
			if d := time.Since(start); d > 0 && i > 0 || d > 3*time.Second {
				t.Errorf("Publish took %v", d)
			}
			expect(t, here, fmt.Sprint(1+i))
		}
		stats(t, sites[0], func(st realtime.Stats) bool { return st.Unsent == 5 && st.BrokerDown })

		// Who comes to this node now may have missed something of a, and not of b.
		expect(t, back(sites[0], join, "topic=a", id), "reset", "5")
		c := back(sites[0], join, "topic=b", id)
		local := here.last()

		engine.Start()
		time.Sleep(5 * time.Second)
		stats(t, sites[0], func(st realtime.Stats) bool { return !st.BrokerDown })
		publish(t, hub, "a", "6")
		publish(t, hub, "b", "7")
		expect(t, c, "7")
		expect(t, here, "6", "7")
		expect(t, there, "5", "6", "7") // the latest value is carried over
		fresh, _ := newNode(t, engine)
		for _, s := range append(sites, fresh) {
			expect(t, back(s, join, "topic=b", id), "7")
			expect(t, back(s, join, "topic=a", id), "reset", "5")
			c := back(s, join, "topic=b", local)
			expect(t, c, "reset")
			if strings.Contains(c.last(), "local") {
				t.Errorf("the last id is %s", c.last())
			}
		}
		here.cut()
		publish(t, hub, "a", "8")
		expect(t, back(sites[1], join, "topic=a&topic=b", here.last()), "8")
	})
}

// Where the engine has taken an event and its answer is lost, nobody gets it
// twice.
func TestJournalDoubtful(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, b := newNode(t, engine)
		second, _ := newNode(t, engine)
		here, there := join(first, "topic=a"), join(second, "topic=a")
		publish(t, first.hub, "a", "0")
		expect(t, here, "0")
		id := here.last()

		b.doubtful.Store(true)
		time.AfterFunc(time.Second, func() { b.doubtful.Store(false) })
		publish(t, first.hub, "a", "1")
		publish(t, first.hub, "a", "2")
		if b.refused.Load() < 10 {
			t.Errorf("it was tried %d times", b.refused.Load())
		}
		b.doubtful.Store(true)
		if err := first.hub.Publish(t.Context(), "a", realtime.Event{Data: []byte("3")}); !errors.Is(err, realtime.ErrBrokerUnavailable) {
			t.Errorf("Publish: %v, want ErrBrokerUnavailable", err)
		}
		b.doubtful.Store(false)
		time.Sleep(2 * time.Second)
		publish(t, first.hub, "a", "4")
		expect(t, here, "1", "2", "3", "4")
		expect(t, there, "0", "1", "2", "3", "4")
		expect(t, back(second, join, "topic=a", id), "reset")
		publish(t, second.hub, "a", "5")
		expect(t, here, "5")
		expect(t, there, "5")
	})
}

// Where the log takes events and doesn't bring them back, clients of their node
// don't wait for it, and nothing is lost.
func TestJournalDeaf(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, b := newNode(t, engine)
		second, _ := newNode(t, engine)
		here, there := join(first, "topic=a"), join(second, "topic=a")
		publish(t, second.hub, "a", "0")
		expect(t, here, "0")
		expect(t, there, "0")
		id := there.last()
		b.deaf.Store(true)
		publish(t, first.hub, "a", "1")
		publish(t, second.hub, "a", "2")
		start := time.Now()
		expect(t, here, "1")
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("it took %v", d)
		}
		expect(t, there, "1", "2")
		first.hub.Publish(t.Context(), "a", realtime.Event{Data: []byte("here alone")})
		expect(t, here, "here alone")
		b.deaf.Store(false)
		time.Sleep(time.Second)
		publish(t, first.hub, "a", "3")
		expect(t, here, "2", "3")
		expect(t, there, "3")
		expect(t, back(second, join, "topic=a", id), "reset") // for what was here alone
		for _, s := range []*site{first, second} {
			stats(t, s, func(st realtime.Stats) bool { return !st.BrokerDown && st.Gaps == 1 })
		}
		expect(t, back(second, join, "topic=b", id))
		stats(t, second, func(st realtime.Stats) bool { return st.Resets == 1 && st.Resumed == 1 })
	})
}

// Events that the engine never takes are told, and are no outage.
func TestJournalEventTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		hub := realtime.NewHub()
		hub.History.Events = 10
		hub.Broker = smallHistory{engine.HistoryBroker()}
		s := newPipeSite(t, hub)
		far, _ := newNode(t, engine)
		here, there := s.listen(""), far.listen("")
		expect(t, there)
		for _, size := range []int{10, 2000, 20, 3000, 30} {
			start := time.Now()
			err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte(strings.Repeat("x", size))})
			if tooLarge := size > 1000; errors.Is(err, realtime.ErrEventTooLarge) != tooLarge || errors.Is(err, realtime.ErrBrokerUnavailable) != tooLarge {
				t.Errorf("%d bytes: %v", size, err)
			}
			if d := time.Since(start); d > 0 {
				t.Errorf("%d bytes took %v", size, d)
			}
			synctest.Wait()
			if got := here.next(); len(got) != size {
				t.Errorf("got %d bytes, want %d", len(got), size)
			}
			if size < 1000 {
				if got := there.next(); len(got) != size {
					t.Errorf("got %d bytes, want %d", len(got), size)
				}
			}
		}
		stats(t, s, func(st realtime.Stats) bool { return st.Unsent == 2 && !st.BrokerDown })
		stats(t, far, func(st realtime.Stats) bool { return st.Gaps == 2 })
	})
}

type smallHistory struct{ realtime.HistoryBroker }

func (b smallHistory) Append(ctx context.Context, record []byte) error {
	if len(record) > 1000 {
		return realtime.ErrEventTooLarge
	}
	return b.HistoryBroker.Append(ctx, record)
}

// What the engine has lost can't be resumed, and is told; what nodes remember
// for new clients stays.
func TestJournalEngineForgets(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, b := newNode(t, engine)
		second, _ := newNode(t, engine)
		c, quiet := join(first, "topic=a"), join(first, "topic=quiet")
		go func() { // takes positions
			for err := error(nil); err == nil; {
				_, err = quiet.event()
			}
		}()
		keyed := func(n int) {
			t.Helper()
			if err := second.hub.Publish(t.Context(), "a", realtime.Event{Key: "k", Data: fmt.Append(nil, n)}); err != nil {
				t.Error(err)
			}
		}
		keyed(1)
		expect(t, c, "1")
		id := c.last()
		synctest.Wait()
		engine.Forget()
		synctest.Wait()
		expect(t, back(first, join, "topic=a", id), "reset", "1")
		keyed(2)
		expect(t, c, "reset", "1", "2")
		synctest.Wait() // until second has it too: else its clients get the 1 before it
		fresh, _ := newNode(t, engine)
		for _, s := range []*site{first, second, fresh} {
			expect(t, back(s, join, "topic=a", id), "reset", "2")
		}
		id = c.last()
		c.cut()
		time.Sleep(2 * time.Minute) // for a heartbeat
		c = back(first, join, "topic=a", id)
		quiet.cut()
		synctest.Wait()
		keyed(3)
		expect(t, c, "3")
		expect(t, back(second, join, "topic=a", quiet.last()), "3")
		for _, s := range []*site{first, second, fresh} {
			expect(t, back(s, join, "topic=a", id), "3")
		}

		// A node is cut off for longer than the engine remembers.
		b.deaf.Store(true)
		keyed(4)
		synctest.Wait()
		engine.Trim(0)
		keyed(5)
		b.deaf.Store(false)
		time.Sleep(time.Second)
		keyed(6)
		synctest.Wait()
		expect(t, back(second, join, "topic=a", id), "6") // the newest of its Key
	})
}

// What the engine has taken and lost before anybody got it reaches the clients
// of its node.
func TestJournalEngineLosesTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		s, b := newNode(t, engine)
		l := s.listen("")
		b.deaf.Store(true)
		lose := func(text string) {
			t.Helper()
			if err := s.hub.PublishAll(t.Context(), realtime.Event{Data: []byte(text)}); err != nil {
				t.Error(err)
			}
			synctest.Wait() // the follower has it, and holds it back
		}
		lose("1")
		lose("2")
		lose("3")
		engine.Forget()
		lose("4")
		b.deaf.Store(false)
		expect(t, l, "1", "reset", "2", "3", "4")
		lose("5")
		expect(t, l, "5")
		b.deaf.Store(true)
		lose("6") // the last one
		lose("7")
		engine.Forget()
		b.deaf.Store(false)
		expect(t, l, "6", "reset", "7")
		stats(t, s, func(st realtime.Stats) bool { return st.Gaps >= 1 })
	})
}

// Records that are lost are a gap, and so are those that a node has not seen
// when it starts.
func TestJournalTrimmed(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, _ := newNode(t, engine)
		c := join(first, "topic=a")
		var ids []string
		for i := range 10 {
			publish(t, first.hub, "a", fmt.Sprint(i))
			expect(t, c, fmt.Sprint(i))
			ids = append(ids, c.last())
		}
		engine.Trim(3)
		fresh, _ := newNode(t, engine)
		expect(t, back(fresh, join, "topic=a", ids[6]), "reset") // whose record nobody can tell from another
		expect(t, back(fresh, join, "topic=a", ids[7]), "8", "9")
		engine.Trim(0)
		fresh, _ = newNode(t, engine)
		last := back(fresh, join, "topic=a", ids[9])
		expect(t, last, "reset")
		publish(t, first.hub, "a", "live")
		expect(t, last, "live")
		stats(t, fresh, func(st realtime.Stats) bool { return st.Gaps == 0 && st.Resets == 1 && st.Resumed == 0 })
	})
}

// Events leave the log one to two Ages after they were published. While no node
// runs, none leaves it.
func TestJournalAge(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, _ := newNode(t, engine)
		age := first.hub.History.Age
		c := join(first, "topic=a")
		var ids []string
		for i := range 2 {
			publish(t, first.hub, "a", fmt.Sprint(i))
			expect(t, c, fmt.Sprint(i))
			ids = append(ids, c.last())
		}
		c.cut()
		if err := first.hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * age)
		second, _ := newNode(t, engine)
		c = back(second, join, "topic=a", ids[0])
		expect(t, c, "1")
		c.cut()
		time.Sleep(age - time.Second)
		third, _ := newNode(t, engine)
		c = back(third, join, "topic=a", ids[0])
		expect(t, c, "1")
		c.cut()
		time.Sleep(age + 5*time.Second) // the second one has run for two Ages
		fourth, _ := newNode(t, engine)
		expect(t, back(fourth, join, "topic=a", ids[0]), "reset")
		c = back(fourth, join, "topic=a", ids[1]) // the newest record stays
		publish(t, fourth.hub, "a", "live")
		expect(t, c, "live")
		stats(t, fourth, func(st realtime.Stats) bool { return st.Gaps == 0 && st.Resets == 1 && st.Resumed == 1 })
	})
}

// An engine that was put back gives the numbers of lost records to others. An id
// of a lost one doesn't resume, whichever node is asked: one that has read what
// was lost, or one that was started since.
func TestJournalPutBack(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, _ := newNode(t, engine)
		c := join(first, "topic=a")
		var ids []string
		for i := range 10 {
			publish(t, first.hub, "a", fmt.Sprint(i))
			expect(t, c, fmt.Sprint(i))
			ids = append(ids, c.last())
		}
		engine.Stop()
		engine.PutBack(5)
		other, _ := newNode(t, engine) // by which the numbers are given again
		engine.Start()
		for i := range 7 {
			publish(t, other.hub, "a", fmt.Sprint("new ", i))
		}
		expect(t, c, "reset") // connected to a node that had read more than there is
		fresh, _ := newNode(t, engine)
		for _, s := range []*site{other, fresh} {
			expect(t, back(s, join, "topic=a", ids[9]), "reset")
			expect(t, back(s, join, "topic=a", ids[5]), "reset")
			expect(t, back(s, join, "topic=a", ids[4]), "new 0", "new 1", "new 2", "new 3", "new 4", "new 5", "new 6")
		}
	})
}

// A node that is shut down right after the log was put back may be the only one
// that knows it. It says so before it ends.
func TestShutdownAfterPutBack(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		first, _ := newNode(t, engine)
		c := join(first, "topic=a")
		publish(t, first.hub, "a", "0")
		expect(t, c, "0")
		id := c.last()
		c.cut()
		for i := range 9 {
			publish(t, first.hub, "a", fmt.Sprint(i+1))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait() // the client is gone, so that Shutdown waits for nothing
		engine.Stop()
		engine.PutBack(5)
		engine.Start()
		synctest.Wait()
		if err := first.hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		second, _ := newNode(t, engine)
		expect(t, back(second, join, "topic=a", id), "reset")
	})
}

// An engine that hangs, or that was never there, holds up clients and Shutdown
// for no longer than it says.
func TestJournalHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		engine.Stop()
		s, b := newNode(t, engine)
		b.hang.Store(true)
		start := time.Now()
		l := s.listen("")
		s.hub.Broadcast <- []byte("1")
		expect(t, l, "1")
		if d := time.Since(start); d > 8*time.Second { // joining takes 5 of them
			t.Errorf("the first event took %v", d)
		}
		start = time.Now()
		s.listen("").cut() // it is known by now
		if d := time.Since(start); d > 0 {
			t.Errorf("another client waited for %v", d)
		}
		for i := range 3000 {
			s.hub.Broadcast <- fmt.Append(nil, i)
			expect(t, l, fmt.Sprint(i))
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("further events took %v", d)
		}
		start = time.Now()
		l.cut()
		if err := s.hub.Shutdown(context.Background()); err != nil || time.Since(start) > 6*time.Second {
			t.Errorf("Shutdown: %v after %v", err, time.Since(start))
		}
		stats(t, s, func(st realtime.Stats) bool { return st.Unsent == 3001 })
	})
}

// A flood through Broadcast is held back rather than lost.
func TestJournalFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		first, b := newNode(t, engine)
		second, _ := newNode(t, engine)
		l := second.listen("")
		own := first.listen("")
		b.hang.Store(true)
		const events = 5000
		go func() {
			for i := range events {
				first.hub.Broadcast <- fmt.Append(nil, i)
			}
			first.hub.Broadcast <- []byte("end")
		}()
		synctest.Wait()
		b.hang.Store(false) // too late for the first, in time for the rest
		var got []string
		for ev := ""; ev != "end"; {
			ev = l.next()
			got = append(got, ev)
		}
		for i := range events {
			expect(t, own, fmt.Sprint(i))
		}
		if st := first.hub.Stats(); int(st.Unsent) != events+1-len(got) {
			t.Errorf("%d of %d events came, Stats() = %+v", len(got), events, st)
		}
	})
}

// Shutdown waits for what was published to be in the log, and to go out.
func TestJournalShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		first, b := newNode(t, engine)
		second, _ := newNode(t, engine)
		here, there := first.listen(""), second.listen("")
		publish(t, first.hub, "warm", "up")
		b.deaf.Store(true)
		for i := range 100 {
			first.hub.Broadcast <- fmt.Append(nil, i)
		}
		time.AfterFunc(time.Second, func() { b.deaf.Store(false) })
		go first.hub.Shutdown(context.Background())
		for i := range 100 {
			expect(t, here, fmt.Sprint(i))
			expect(t, there, fmt.Sprint(i))
		}
	})
}

// Clients go from node to node while the engine comes and goes and nodes hear
// nothing or are told wrong: each gets what was published, once and in order,
// or a reset.
func TestJournalUnderFire(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testJournalUnderFire(t, seed) })
		})
	}
}

func testJournalUnderFire(t *testing.T, seed uint64) {
	const span = time.Minute
	random := func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
	engine := brokertest.NewMemory()
	var sites []*site
	var brokers []*flaky
	for range 3 {
		s, b := newNode(t, engine)
		sites, brokers = append(sites, s), append(brokers, b)
	}
	end := time.Now().Add(span)
	var all sync.WaitGroup
	all.Go(func() {
		rng := random(1)
		for time.Now().Before(end) {
			time.Sleep(upTo(rng, 3*time.Second))
			b, d := brokers[rng.IntN(3)], upTo(rng, 4*time.Second)
			switch rng.IntN(4) {
			case 0:
				engine.Stop()
				time.Sleep(d)
				engine.Start()
			case 1:
				b.deaf.Store(true)
				time.AfterFunc(d, func() { b.deaf.Store(false) })
			case 2:
				b.doubtful.Store(true)
				time.AfterFunc(d, func() { b.doubtful.Store(false) })
			case 3:
				b.hang.Store(true)
				time.AfterFunc(d, func() { b.hang.Store(false) })
			}
		}
	})

	// results has, for each publisher, whether its events are everybody's.
	var mu sync.Mutex
	var results [3][]bool
	failed := 0
	say := func(p int, topic, suffix string) {
		mu.Lock()
		n := len(results[p])
		results[p] = append(results[p], false)
		mu.Unlock()
		err := sites[p].hub.Publish(context.Background(), topic, realtime.Event{Data: fmt.Append(nil, p, " ", n, suffix)})
		if err != nil && !errors.Is(err, realtime.ErrBrokerUnavailable) {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		results[p][n] = err == nil
		if err != nil {
			failed++
		}
	}
	for p := range sites {
		all.Go(func() {
			rng := random(uint64(10 + p))
			for time.Now().Before(end) {
				time.Sleep(upTo(rng, 200*time.Millisecond))
				say(p, []string{"a", "b"}[rng.IntN(2)], "")
			}
			time.Sleep(time.Minute) // until all is well
			say(p, "a", " end")
		})
	}

	for i := range 6 {
		all.Go(func() {
			rng := random(uint64(20 + i))
			join := transports[[]string{"WebSocket", "event stream", "event stream of envelopes"}[i%3]]
			anything := [3]int{-1, -1, -1}
			next := anything // of each publisher
			id := ""
			for ended := 0; ended < 3; {
				c := back(sites[rng.IntN(3)], join, "topic=a&topic=b", id)
				if time.Now().Before(end) {
					time.AfterFunc(upTo(rng, 6*time.Second), c.cut)
				}
				for ended < 3 {
					ev, err := c.event()
					if err != nil {
						id = c.last()
						break
					}
					if ev.name == "reset" {
						next = anything
						continue
					}
					var p, n int
					fmt.Sscan(ev.data, &p, &n)
					mu.Lock()
					switch all := results[p]; {
					case n < next[p]:
						t.Errorf("seed %d: client %d got %d of publisher %d, and before it %d", seed, i, n, p, next[p]-1)
					case next[p] >= 0 && slices.Contains(all[next[p]:n], true):
						t.Errorf("seed %d: client %d got %d of publisher %d, behind %d: it has lost some", seed, i, n, p, next[p]-1)
					}
					mu.Unlock()
					next[p] = n + 1
					if strings.HasSuffix(ev.data, "end") {
						ended++
					}
				}
			}
		})
	}
	all.Wait()
	if failed == 0 {
		t.Errorf("seed %d: nothing failed", seed)
	}
	for i, s := range sites {
		if st := s.hub.Stats(); st.BrokerDown || st.Resumed == 0 {
			t.Errorf("seed %d, node %d: Stats() = %+v", seed, i, st)
		}
	}
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d)))
}

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

// Such clients get the latest values behind the reset: they have had none. So do those
// whose node learns later that the engine has lost events.
func TestJournalValuesBehindAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		here, _ := newNode(t, engine)
		for _, data := range []string{"old", "1"} {
			set(t, here.hub, "a", "k", data)
		}
		set(t, here.hub, "a", "gone", "2")
		set(t, here.hub, "a", "gone", "gone")
		set(t, here.hub, "b", "k", "3")
		publish(t, here.hub, "a", "4")
		set(t, here.hub, "a", "l", "5")
		far, b := newNode(t, engine)
		b.deaf.Store(true)
		c := join(far, "topic=a") // after 5 s
		b.deaf.Store(false)
		time.Sleep(time.Second)
		publish(t, here.hub, "a", "6")
		expect(t, c, "reset", "1", "5", "6")
		engine.Forget()
		time.Sleep(time.Second)
		publish(t, here.hub, "a", "7")
		expect(t, c, "reset", "1", "5", "7")
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

// A node that starts reads in the log that others were cut off before. Its clients
// have lost nothing, so it counts no gap and warns nobody.
func TestJournalCountsNoOldGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		start := func() *realtime.Hub {
			hub := realtime.NewHub()
			hub.History.Events = 100
			hub.Broker = engine.HistoryBroker()
			return hub
		}
		publish := func(hub *realtime.Hub, data string) error {
			return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte(data)})
		}
		old := start()
		defer old.Shutdown(context.Background())
		if err := publish(old, "1"); err != nil {
			t.Fatal(err)
		}
		engine.Stop()
		if err := publish(old, "2"); !errors.Is(err, realtime.ErrBrokerUnavailable) {
			t.Fatal(err)
		}
		engine.Start()
		time.Sleep(time.Minute) // its cut is in the log
		if err := publish(old, "3"); err != nil {
			t.Fatal(err)
		}
		if n := old.Stats().Gaps; n == 0 {
			t.Error("the node that was cut off counts no gap")
		}
		fresh := start()
		defer fresh.Shutdown(context.Background())
		if err := publish(fresh, "4"); err != nil {
			t.Fatal(err)
		}
		if n := fresh.Stats().Gaps; n != 0 {
			t.Errorf("a node that was started after the outage counts %d gaps, want 0", n)
		}
	})
}

// A broker that keeps a history has a hub without one tell that nothing is kept.
func TestHistoryBrokerWithoutHistory(t *testing.T) {
	var lines safeBuffer
	hub := realtime.NewHub()
	hub.Logger = textLogger(&lines)
	hub.Broker = brokertest.NewMemory().HistoryBroker()
	if err := hub.Publish(t.Context(), "a", realtime.Event{}); err != nil {
		t.Fatal(err)
	}
	hub.Shutdown(t.Context())
	if !strings.Contains(lines.String(), "Hub.History is zero: set it") {
		t.Errorf("logged %q", lines.String())
	}
}
