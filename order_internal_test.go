package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A testBroker keeps what it gets. The test stands in for its engine.
type testBroker struct {
	handler BrokerHandler
	limit   int

	mu         sync.Mutex
	away       bool
	published  []string
	beats      []brokered
	appended   [][]byte
	subscribed []string
}

var errTestAway = errors.New("away")

func (b *testBroker) Start(h BrokerHandler) error { b.handler = h; return nil }
func (b *testBroker) Unsubscribe(string) error    { return nil }
func (b *testBroker) Close() error                { return nil }

// setAway makes all calls that reach the engine fail.
func (b *testBroker) setAway(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

// do runs f unless the engine is away.
func (b *testBroker) do(f func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return errTestAway
	}
	f()
	return nil
}

func (b *testBroker) Publish(_ context.Context, topic string, msg []byte) error {
	if len(msg) > 1000 && topic != brokerName(nodesTopic) {
		return fmt.Errorf("test: publish: %w", ErrEventTooLarge)
	}
	return b.do(func() {
		if topic == brokerName(nodesTopic) {
			m, _ := parseBrokered(slices.Clone(msg))
			b.beats = append(b.beats, m)
		} else {
			b.published = append(b.published, topic+" "+string(msg))
		}
	})
}

func (b *testBroker) MaxMessageBytes() int { return b.limit }

func (b *testBroker) Subscribe(_ context.Context, topic string) error {
	return b.do(func() { b.subscribed = append(b.subscribed, topic) })
}

// records returns what was appended.
func (b *testBroker) records() [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.appended)
}

// A testLog is a testBroker with a log.
type testLog struct{ testBroker }

func (b *testLog) Follow(HistoryHandler, time.Duration) error { return nil }

func (b *testLog) Append(_ context.Context, record []byte) error {
	return b.do(func() { b.appended = append(b.appended, slices.Clone(record)) })
}

// newOrderShared returns the part of a hub that an order needs.
func newOrderShared(h History) *shared {
	s := newShared()
	s.history = h.settled()
	s.done = make(chan struct{})
	s.log.logger = slog.New(slog.DiscardHandler)
	return s
}

// A driver stands in for the loop of a hub.
type driver struct {
	t   *testing.T
	o   order
	out batch
}

func (d *driver) publish(topic, data string) receipt {
	return d.o.publish(newEvent(topic, Event{Data: []byte(data)}), time.Now(), &d.out)
}

// arrive passes on all arrivals.
func (d *driver) arrive() {
	synctest.Wait()
	for {
		select {
		case a := <-d.o.arrivals():
			d.o.arrive(a, time.Now(), &d.out)
		default:
			return
		}
	}
}

// want checks the events since its last call: their data, or "reset".
func (d *driver) want(want ...string) {
	d.t.Helper()
	var got []string
	for _, e := range d.out {
		switch {
		case e.op != opEvent:
		case e.event.notice == resetNotice:
			got = append(got, "reset")
		default:
			got = append(got, string(e.event.Data))
		}
	}
	d.out = nil
	if !slices.Equal(got, want) {
		d.t.Errorf("clients got %q, want %q", got, want)
	}
}

// since returns the data of the events after an id, or "lost".
func (d *driver) since(id string, topics ...string) string {
	r := &replay{topics: append(topics, ""), last: id}
	d.o.fill(r)
	if r.lost {
		return "lost"
	}
	var got []string
	for _, ev := range r.missed {
		got = append(got, string(ev.Data))
	}
	return strings.Join(got, " ")
}

// id returns the id of a position in a journal.
func (d *driver) id(record, i uint64) string {
	p := d.o.(*journal).past
	return p.id(p.base + record<<recordBits + i)
}

// last returns the id of the newest event that clients got.
func (d *driver) last() string { return d.out[len(d.out)-1].event.ID }

func TestLocalOrder(t *testing.T) {
	l := newLocal(newOrderShared(History{Age: time.Minute}))
	d := &driver{t: t, o: &l}
	if r := d.publish("a", "1"); r.err != nil || r.later != nil {
		t.Errorf("receipt %+v, want an empty one", r)
	}
	first := d.last()
	d.publish("b", "2")
	d.publish("", "3")
	d.want("1", "2", "3")
	if got := d.since(first, "a"); got != "3" {
		t.Errorf("a client of a has missed %q, want 3", got)
	}
	if got := d.since("another-1", "a"); got != "lost" {
		t.Errorf("a client of another process has missed %q, want it lost", got)
	}
	if l.expire(time.Now().Add(2*time.Minute)) != 0 || d.since(first, "a") != "lost" {
		t.Error("what is too old is kept")
	}
	if l.isFull() || l.isPending() || l.arrivals() != nil || l.want([]string{"a"}) != nil || l.shared.published.Load() != 3 {
		t.Error("it waits for somebody")
	}
	none := newLocal(newOrderShared(History{}))
	d = &driver{t: t, o: &none}
	d.publish("", "1")
	if d.last() != "" || none.past.seq != 0 {
		t.Error("an event has an id though there is no history")
	}
}

// newTestRelay returns a relay whose engine is driven by the test.
func newTestRelay(t *testing.T) (*driver, *relay, *testBroker) {
	b := new(testBroker)
	r := newRelay(newOrderShared(History{Age: time.Minute}), b)
	t.Cleanup(r.close)
	synctest.Wait()
	return &driver{t: t, o: r}, r, b
}

// from returns a message of another node.
func from(node byte, seq, before uint64, data string) []byte {
	return brokered{kind: brokeredEvent, node: nodeID{node}, seq: seq, before: before, event: Event{Data: []byte(data)}}.append(nil)
}

func TestRelayOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		r.want([]string{"a"})
		if rc := d.publish("a", "mine"); rc.err != nil || rc.later != nil {
			t.Errorf("receipt %+v, want an empty one", rc)
		}
		d.want("mine") // at once
		synctest.Wait()
		if len(b.published) != 1 || !strings.HasPrefix(b.published[0], "topic/a ") || !slices.Contains(b.subscribed, "topic/a") {
			t.Fatalf("published %q and subscribed %q", b.published, b.subscribed)
		}
		_, msg, _ := strings.Cut(b.published[0], " ")
		r.Deliver("topic/a", []byte(msg)) // an echo
		r.Deliver("topic/a", from(1, 1, 0, "1"))
		r.Deliver("topic/a", from(1, 1, 0, "1"))   // twice
		r.Deliver("topic/b", from(1, 2, 0, "no"))  // no client here has it
		r.Deliver("topic/a", from(2, 7, 0, "2/7")) // another node, whose first seen event is its seventh
		r.Deliver("topic/a", []byte("garbage"))
		d.arrive()
		if first := d.last(); d.since(first, "a") != "" {
			t.Error("there is more behind the newest")
		}
		d.want("1", "2/7")
	})
}

// A lost message is told to clients that reconnect, if they have its topic.
func TestRelayGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.want([]string{"a", "b"})
		r.Deliver("topic/a", from(1, 1, 0, "a1"))
		r.Deliver("topic/b", from(1, 2, 0, "b2"))
		d.arrive()
		before := d.last()
		d.want("a1", "b2")
		r.Deliver("topic/a", from(1, 4, 3, "a4"))
		d.arrive()
		after := d.last()
		d.want("a4")
		for _, tt := range []struct{ id, topic, want string }{
			{before, "a", "lost"}, {before, "b", ""}, {after, "a", ""},
		} {
			if got := d.since(tt.id, tt.topic); got != tt.want {
				t.Errorf("from %s on, a client of %s has missed %q, want %q", tt.id, tt.topic, got, tt.want)
			}
		}
		r.Gap(errors.New("the engine was away"))
		d.arrive()
		d.want()
		if got := d.since(after, "b"); got != "lost" || r.shared.gaps.Load() != 2 {
			t.Errorf("behind a gap of all topics a client has missed %q, %d gaps", got, r.shared.gaps.Load())
		}
	})
}

// An engine that is away or behind costs local clients nothing.
func TestRelayWithoutEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		b.setAway(true)
		d.publish("a", "1") // the outage isn't known yet
		synctest.Wait()
		if rc := d.publish("a", "2"); rc.err != ErrBrokerUnavailable {
			t.Errorf("receipt %+v, want ErrBrokerUnavailable", rc)
		}
		synctest.Wait()
		d.want("1", "2")
		if _, down := r.elsewhere(); !down || r.shared.brokerLost.Load() != 2 || r.isFull() || r.isPending() {
			t.Errorf("down %v, %d lost; want true, 2, and nobody waits", down, r.shared.brokerLost.Load())
		}
		b.setAway(false)
		time.Sleep(2 * heartbeatInterval)
		if _, down := r.elsewhere(); down {
			t.Error("it is down though the engine is back")
		}
	})
}

// An event that is too large for the engine is lost, but is no outage.
func TestRelayEventTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		d.publish("a", strings.Repeat("x", 2000))
		synctest.Wait()
		if _, down := r.elsewhere(); down || r.shared.brokerLost.Load() != 1 {
			t.Errorf("down %v, %d lost; want false and 1", down, r.shared.brokerLost.Load())
		}
		b.limit = 1000 // from now on it is known
		if rc := d.publish("a", strings.Repeat("x", 2000)); rc.err != ErrEventTooLarge {
			t.Errorf("an event over the limit: %v, want ErrEventTooLarge", rc.err)
		}
		if rc := d.publish("a", "y"); rc.err != nil {
			t.Errorf("the next event: %v", rc.err)
		}
		synctest.Wait()
		if r.shared.brokerLost.Load() != 2 || len(b.published) != 1 {
			t.Errorf("published %q, want the second event", b.published)
		}
	})
}

// Publishers wait for an engine that is slow, and nothing is lost; for one that is
// away they don't.
func TestRelayBehindAnEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		b.mu.Lock() // the engine answers nobody
		n := 0
		for ; !r.isFull(); n++ {
			if rc := d.publish("a", fmt.Sprint(n)); rc.err != nil {
				t.Fatalf("event %d: %v", n, rc.err)
			}
		}
		if n < brokerQueue/4 || n > brokerQueue {
			t.Errorf("publishers wait behind %d events", n)
		}
		b.mu.Unlock()
		synctest.Wait()
		if len(r.arrivals()) != 1 {
			t.Error("the loop isn't woken")
		}
		d.arrive()
		if r.isFull() || len(b.published) != n || r.shared.brokerLost.Load() != 0 {
			t.Errorf("full %v, %d of %d events are published, %d lost", r.isFull(), len(b.published), n, r.shared.brokerLost.Load())
		}
		b.mu.Lock()
		for !r.isFull() {
			d.publish("a", "x")
		}
		b.away = true
		b.mu.Unlock()
		synctest.Wait()
		if len(r.arrivals()) != 1 {
			t.Error("the loop isn't woken by an engine that is away")
		}
		d.arrive()
		for range 2 * brokerQueue {
			if d.publish("a", "x"); r.isFull() {
				t.Fatal("publishers wait for an engine that is away")
			}
		}
	})
}

// An event that is lost shows without another one of its topic: the heartbeats of
// its sender tell, within two of them.
func TestRelayHeartbeatsTellOfLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.want([]string{"a", "b", "c", "d"})
		var sender ledger
		seq, last := uint64(0), make(map[string]sentEvent)
		send := func(topic string, lost bool) {
			seq++
			before := last[topic]
			last[topic] = sentEvent{seq, time.Now()}
			sender.note(topic, last[topic])
			if !lost {
				r.Deliver(brokerName(topic), brokered{kind: brokeredEvent, node: nodeID{1}, seq: seq, before: before.seq, age: time.Since(before.at), event: Event{Data: []byte(topic)}}.append(nil))
			}
		}
		beat := func(lost bool) {
			for _, m := range sender.close(nodeID{1}, 5, false, time.Now()) {
				if !lost {
					r.Deliver(brokerName(nodesTopic), m.append(nil))
					r.Deliver(brokerName(nodesTopic), m.append(nil)) // twice
				}
			}
			time.Sleep(heartbeatInterval)
			d.arrive()
		}
		gaps := func(want int64) {
			t.Helper()
			if got := r.shared.gaps.Load(); got != want {
				t.Errorf("%d gaps, want %d", got, want)
			}
		}
		send("a", true) // before the first heartbeat: nobody can tell whether it had to come
		for range 3 {
			beat(false)
		}
		gaps(0)
		send("b", false)
		send("a", false)
		send("b", true)
		send("nobody has it", true)
		before := d.o.(*relay).past.position().ID
		beat(false)
		gaps(0) // it may come by another way
		beat(false)
		gaps(1)
		for topic, want := range map[string]string{"a": "a", "b": "lost", "c": ""} {
			if got := d.since(before, topic); got != want {
				t.Errorf("a client of %s that comes back has missed %q, want %q", topic, got, want)
			}
		}
		send("b", false) // the one before is known to be lost
		for range 3 {
			beat(false)
		}
		gaps(1)
		r.want([]string{"late"})
		synctest.Wait()
		send("late", true) // just when it is subscribed: not to be told from one before
		for range 3 {
			beat(false)
		}
		gaps(1)
		send("late", true)
		beat(false)
		beat(false)
		gaps(2)
		beat(true) // a heartbeat that is lost, and all that it had to tell
		beat(false)
		gaps(3)
		if clients, _ := r.elsewhere(); clients != 5 {
			t.Errorf("%d clients elsewhere, want 5", clients)
		}
		time.Sleep(nodeTimeout + 2*heartbeatInterval)
		d.arrive()
		gaps(4) // it has gone without a good-bye
		time.Sleep(time.Minute)
		gaps(4)
	})
}

// What a node publishes stands in its next heartbeat, by several if need be.
func TestRelayTellsWhatItHasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _, b := newTestRelay(t)
		const topics = maxSentEntries + 1
		for i := range topics {
			if d.o.isFull() {
				synctest.Wait()
				d.arrive()
			}
			d.publish(fmt.Sprint(i), "x")
			d.out = nil
		}
		d.publish("0", "y")
		time.Sleep(2 * heartbeatInterval)
		synctest.Wait()
		sent := make(map[uint64]uint64)
		for i, m := range b.beats {
			if m.seq != uint64(i+1) || len(m.sent) > maxSentEntries {
				t.Errorf("heartbeat %d has number %d and %d entries", i, m.seq, len(m.sent))
			}
			for _, s := range m.sent {
				sent[s.topic] = s.seq
			}
		}
		if len(b.beats) != 4 || len(sent) != topics || sent[hashTopic("0")] != topics+1 || sent[hashTopic("7")] != 8 {
			t.Errorf("%d heartbeats tell of %d topics, the first one's last is %d", len(b.beats), len(sent), sent[hashTopic("0")])
		}
	})
}

// A node that says good-bye has lost nothing.
func TestRelayGoodBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		var sender ledger
		for _, leaving := range []bool{false, true} {
			for _, m := range sender.close(nodeID{1}, 5, leaving, time.Now()) {
				r.Deliver(brokerName(nodesTopic), m.append(nil))
			}
		}
		time.Sleep(time.Minute)
		d.arrive()
		if n := r.shared.gaps.Load(); n != 0 {
			t.Errorf("%d gaps, want none", n)
		}
	})
}

// newTestJournal returns a journal whose log is driven by the test.
func newTestJournal(t *testing.T) (*driver, *journal, *testLog) {
	b := new(testLog)
	j := newJournal(newOrderShared(History{Age: time.Minute}), b)
	t.Cleanup(j.close)
	synctest.Wait()
	return &driver{t: t, o: j}, j, b
}

// recordOf returns a record of another node.
func recordOf(node byte, number uint64, data ...string) []byte {
	var events []*ownEvent
	for _, d := range data {
		events = append(events, &ownEvent{event: newEvent("a", Event{Data: []byte(d)})})
	}
	events[0].number = number
	return encodeRecord(nodeID{node}, events)
}

func TestJournalOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 1, "old"))
		j.Current("e", 1)
		d.arrive()
		d.want() // from before this node was started
		rc := d.publish("a", "mine")
		d.want()
		synctest.Wait()
		if len(b.records()) != 1 || !j.isPending() || <-rc.later != nil {
			t.Fatalf("%d records appended, pending %v", len(b.records()), j.isPending())
		}
		j.Record("e", 2, recordOf(1, 2, "x", "y"))
		j.Record("e", 3, b.records()[0])
		j.Record("e", 4, b.records()[0])        // appended twice
		j.Record("e", 5, recordOf(1, 2, "x"))   // the same
		j.Record("e", 6, []byte("from nobody")) // has its number, too
		j.Record("e", 7, recordOf(2, 1, "z"))
		d.arrive()
		d.want("x", "y", "mine", "z")
		if j.isPending() || j.shared.gaps.Load() != 0 {
			t.Errorf("pending %v, %d gaps", j.isPending(), j.shared.gaps.Load())
		}
		for id, want := range map[string]string{
			d.id(1, wholeRecord): "x y mine z", d.id(2, 1): "y mine z", d.id(7, wholeRecord): "",
			"other" + d.id(7, wholeRecord)[1:]: "lost", // another log
			d.id(7, wholeRecord) + "0":         "lost", // another record of this number
			fmt.Sprint("e-", 7<<recordBits):    "lost", // of which nobody knows
		} {
			if got := d.since(id, "a"); got != want {
				t.Errorf("from %s on a client has missed %q, want %q", id, got, want)
			}
		}
	})
}

// If the engine has lost records, connected clients get a reset, too. A record
// forged in this node's name isn't accepted as its own.
func TestJournalLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 1, "1"))
		j.Current("e", 1)
		d.arrive()
		id := d.id(1, wholeRecord)
		j.Record("e", 3, recordOf(1, 3, "3"))
		d.arrive()
		d.want("reset", "3")
		if got := d.since(id, "a"); got != "lost" || j.shared.gaps.Load() != 1 {
			t.Errorf("a client that comes back has missed %q, %d gaps", got, j.shared.gaps.Load())
		}
		j.Current("another", 1)
		d.arrive()
		d.want("reset")
		forged := recordOf(1, 1, "forged")
		copy(forged[2:], j.peers.node[:])
		j.Record("another", 2, forged)
		d.arrive()
		d.want()
	})
}

// A log that was put back shows when a record comes that isn't the one of its
// number. What comes from there on is new to clients, and ids from before are of
// another log.
func TestJournalPutBackUnderANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		for i := range uint64(4) {
			j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i+1)))
		}
		d.arrive()
		d.want("1", "2", "3", "4")
		before := d.id(2, wholeRecord)
		j.Record("e", 4, recordOf(1, 4, "4")) // the last one again
		d.arrive()
		d.want()
		j.Record("e", 2, recordOf(2, 1, "other"))
		j.Record("e", 3, recordOf(2, 2, "another"))
		d.arrive()
		other := d.id(2, wholeRecord)
		d.want("reset", "other", "another")
		if got := d.since(before, "a"); got != "lost" || j.shared.gaps.Load() != 1 {
			t.Errorf("with an id from before a client has missed %q, %d gaps", got, j.shared.gaps.Load())
		}
		if got := d.since(other, "a"); got != "another" {
			t.Errorf("behind the second record a client has missed %q, want another", got)
		}
		time.Sleep(2 * journalTick) // and nodes that have not read what is lost are told
		synctest.Wait()
		if len(b.records()) != 1 {
			t.Fatalf("%d records appended, want a cut", len(b.records()))
		}
		fresh, f, _ := newTestJournal(t)
		for i, record := range [][]byte{recordOf(1, 1, "1"), recordOf(2, 1, "other"), recordOf(2, 2, "another"), b.records()[0], recordOf(2, 3, "later")} {
			f.Record("e", uint64(i+1), record)
		}
		f.Current("e", 5)
		fresh.arrive()
		fresh.want()
		if got, later := fresh.since(fresh.id(1, wholeRecord), "a"), fresh.since(fresh.id(4, wholeRecord), "a"); got != "lost" || later != "later" {
			t.Errorf("on a node that was started since, a client has missed %q and %q, want it lost, and later", got, later)
		}
		f.Record("e", 6, append(b.records()[0], "again"...)) // by a third node, say
		fresh.arrive()
		fresh.want("reset") // also for who is connected
	})
}

// A log that is shorter than before, after an outage, was put back as well.
func TestJournalIsShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		for i := range uint64(4) {
			j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i+1)))
		}
		j.Current("e", 3) // which was the last one when the broker connected
		d.arrive()
		before := d.id(2, wholeRecord)
		d.want()
		j.Away(errTestAway)
		j.Record("e", 4, recordOf(1, 4, "4"))
		j.Current("e", 4)
		d.arrive()
		d.want()
		j.Away(errTestAway)
		j.Record("e", 2, recordOf(1, 2, "2"))
		j.Current("e", 2)
		j.Record("e", 3, recordOf(1, 5, "5"))
		d.arrive()
		d.want("reset", "5")
		if got := d.since(before, "a"); got != "lost" {
			t.Errorf("behind the record that is the last one now a client has missed %q, want it lost", got)
		}
	})
}

// A node that reads a long log for the first time isn't cut off from it: records
// that come are progress, for its own events and for the clients that wait.
func TestJournalReadsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		start := time.Now()
		awaited := make(chan time.Duration, 1)
		go func() {
			j.await("")
			awaited <- time.Since(start)
		}()
		rc := d.publish("a", "mine")
		const records = 200
		for i := range uint64(records) { // 20 s
			j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i)))
			d.arrive()
			time.Sleep(100 * time.Millisecond)
		}
		d.want()
		if _, down := j.elsewhere(); down || len(b.records()) != 1 || <-rc.later != nil {
			t.Errorf("down %v, %d records appended", down, len(b.records()))
		}
		j.Record("e", records+1, b.records()[0])
		j.Current("e", records+1)
		d.arrive()
		d.want("mine")
		if took := <-awaited; took != 20*time.Second || j.shared.gaps.Load() != 0 {
			t.Errorf("a client waited for %v, %d gaps; want 20 s and none", took, j.shared.gaps.Load())
		}
	})
}

// A log that is never there, or stops in the midst of it, is given up.
func TestJournalNeverStarts(t *testing.T) {
	for name, tt := range map[string]struct {
		records int // one a second
		want    time.Duration
	}{"nothing": {0, brokerTimeout}, "a part": {7, 6*time.Second + brokerTimeout}, "without end": {1000, maxStart}} {
		synctest.Test(t, func(t *testing.T) {
			d, j, _ := newTestJournal(t)
			start := time.Now()
			go func() {
				for i := range uint64(tt.records) {
					j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i)))
					time.Sleep(time.Second)
				}
			}()
			go func() {
				for range tt.records + 1 {
					d.arrive()
					time.Sleep(time.Second)
				}
			}()
			j.await("")
			if took := time.Since(start); took != tt.want {
				t.Errorf("%s: a client waited for %v, want %v", name, took, tt.want)
			}
			time.Sleep(time.Hour)
		})
	}
}

// A quiet log gets a mark, so that its last record is always one that nodes know.
func TestJournalMarksTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 7) // none of which is left
		d.arrive()
		if id := d.id(7, wholeRecord); d.since(id, "a") != "lost" {
			t.Errorf("the id %s resumes, though nobody knows its record", id)
		}
		for i := range uint64(3) {
			time.Sleep(2 * journalTick)
			synctest.Wait()
			if n := len(b.records()); n != int(i)+1 {
				t.Fatalf("%d records appended, want %d marks", n, i+1)
			}
			j.Record("e", 8+i, b.records()[i])
			d.arrive()
			if id := d.id(8+i, wholeRecord); d.since(id, "a") != "" {
				t.Errorf("the id %s doesn't resume", id)
			}
			time.Sleep(j.past.limit.Age/3 - 3*journalTick)
			d.arrive()
			if n := len(b.records()); n != int(i)+1 {
				t.Fatalf("%d records appended, want %d: the log has just had one", n, i+1)
			}
			time.Sleep(j.past.limit.Age/6 + journalTick)
		}
	})
}

// A cut: events bypass a log that accepts none. When it works again, it gets a
// record of that for all nodes.
func TestJournalCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		d.arrive()
		b.setAway(true)
		rc := d.publish("a", "1")
		time.Sleep(journalPatience - time.Millisecond)
		d.arrive()
		d.want()
		time.Sleep(appendRetry)
		d.arrive()
		if id := d.last(); !strings.HasSuffix(id, "-local") || d.since(id, "a") != "lost" {
			t.Errorf("the id %s resumes", id)
		}
		d.want("1")
		if err := <-rc.later; err != ErrBrokerUnavailable || j.isPending() {
			t.Errorf("the publisher got %v, pending %v", err, j.isPending())
		}
		if _, down := j.elsewhere(); !down {
			t.Error("it isn't down")
		}
		late := encodeRecord(j.peers.node, []*ownEvent{{event: newEvent("a", Event{Data: []byte("1")}), number: 1}})
		j.Record("e", 1, late) // the engine had accepted it
		d.arrive()
		d.want()
		b.setAway(false)
		time.Sleep(2 * journalTick) // the goroutine tries again
		synctest.Wait()
		if len(b.records()) != 1 {
			t.Fatalf("%d records appended, want the cut", len(b.records()))
		}
		j.Record("e", 2, b.records()[0])
		d.arrive()
		d.want()
		synctest.Wait()
		if _, down := j.elsewhere(); down {
			t.Error("it is down though the cut has come back")
		}
		rc = d.publish("a", "2")
		synctest.Wait()
		j.Record("e", 3, b.records()[1])
		d.arrive()
		id := d.last()
		d.want("2")
		if err := <-rc.later; err != nil || d.since(id, "a") != "" || j.shared.brokerLost.Load() != 1 {
			t.Errorf("the publisher got %v, behind %s a client has missed %q, %d lost", err, id, d.since(id, "a"), j.shared.brokerLost.Load())
		}
	})
}

// A hub that was shut down before its first use starts no broker.
func TestUnusedHubStartsNoBroker(t *testing.T) {
	hub := NewHub()
	b := new(testBroker)
	hub.Broker = b
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	hub.settle()
	if b.handler != nil {
		t.Error("the broker was started")
	}
}
