package realtime

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newTestRelay returns a relay. The test stands in for its engine.
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
		d.arrive()
		if rc := d.publish("a", "mine"); rc.err != nil || rc.later != nil {
			t.Errorf("receipt %+v, want an empty one", rc)
		}
		d.want("mine") // at once
		synctest.Wait()
		last := b.published[len(b.published)-1] // behind the questions for values
		if !strings.HasPrefix(last, "topic/a ") || !slices.Contains(b.subscribed, "topic/a") {
			t.Fatalf("published %q and subscribed %q", b.published, b.subscribed)
		}
		_, msg, _ := strings.Cut(last, " ")
		r.Deliver("topic/a", []byte(msg)) // an echo
		r.Deliver("topic/a", from(1, 1, 0, "1"))
		r.Deliver("topic/a", from(1, 1, 0, "1"))   // twice
		r.Deliver("topic/b", from(1, 2, 0, "no"))  // no client has the topic
		r.Deliver("topic/a", from(2, 7, 0, "2/7")) // the first that arrives from another node
		r.Deliver("topic/a", []byte("garbage"))
		d.arrive()
		if first := d.last(); d.since(first, "a") != "" {
			t.Error("there is more behind the newest")
		}
		d.want("1", "2/7")
	})
}

// Nodes that set one Key at one moment agree: an event that comes behind a newer one
// is too late. A node that knows an event sets a newer one, whatever the clocks say.
func TestRelayNewestOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		r.want([]string{"a"})
		d.arrive()
		now := uint64(time.Now().UnixMicro())
		seq := uint64(0)
		hear := func(stamp uint64, e Event) {
			seq++
			r.Deliver("topic/a", brokered{kind: brokeredEvent, node: nodeID{1}, seq: seq, before: seq - 1, event: e, stamp: stamp}.append(nil))
			d.arrive()
		}
		set := func(e Event) { d.o.publish(newEvent("a", e), time.Now(), &d.out) }
		set(Event{Key: "k", Data: []byte("m")})
		d.want("m")
		hear(now-1, Event{Key: "k", Data: []byte("older")})
		hear(now-1, Event{Key: "k", Data: []byte("older gone"), Gone: true})
		hear(now, Event{Key: "k", Data: []byte("l, at the same time")})
		d.want()
		hear(now-1, Event{Key: "other", Data: []byte("other")})
		hear(now-1, Event{Data: []byte("no key")})
		d.want("other", "no key")
		hear(now, Event{Key: "k", Data: []byte("n, at the same time")})
		hear(now+3_600_000_000, Event{Key: "k", Data: []byte("gone in an hour"), Gone: true})
		d.want("n, at the same time", "gone in an hour")
		hear(now+1, Event{Key: "k", Data: []byte("before it was gone")})
		d.want()
		set(Event{Key: "k", Data: []byte("again")})
		d.want("again")
		synctest.Wait()
		m, err := parseBrokered([]byte(strings.TrimPrefix(b.published[len(b.published)-1], "topic/a ")))
		if want := now + 3_600_000_001; err != nil || m.stamp != want {
			t.Errorf("its stamp is %d, want %d", m.stamp, want)
		}
		if got := r.past.newest("a"); len(got) != 2 || string(got[1].event.Data) != "again" {
			t.Errorf("the values are %v", got)
		}
	})
}

// A node that doesn't know a Key sets it behind what others have set before, also if its
// clock is behind: it hears in their heartbeats how far theirs are.
func TestRelayClockIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		const ahead = 3_600_000_000
		beat := brokered{kind: brokeredHeartbeat, node: nodeID{1}, seq: 1, stamp: uint64(time.Now().UnixMicro()) + ahead}
		r.Deliver("nodes", beat.append(nil))
		time.Sleep(time.Second)
		ev := newEvent("a", Event{Key: "k"})
		if d.o.publish(ev, time.Now(), &d.out); ev.stamp != beat.stamp+1_000_000 {
			t.Errorf("a second later the stamp is %d, want %d", ev.stamp, beat.stamp+1_000_000)
		}
		time.Sleep(heartbeatInterval)
		d.arrive()
		if m := b.beats[len(b.beats)-1]; m.stamp < ev.stamp {
			t.Errorf("the node's heartbeat has the stamp %d, want more than %d", m.stamp, ev.stamp)
		}
	})
}

// What a node publishes later is newer to others, also if its clock stands still or is
// put back, and it keeps nothing itself.
func TestRelayStampsGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelay(newOrderShared(History{}), new(testBroker))
		defer r.close()
		d := &driver{t: t, o: r}
		d.arrive()
		last := uint64(0)
		for _, passed := range []time.Duration{0, 0, -time.Hour, 0, time.Hour} {
			ev := newEvent("a", Event{Key: "k"})
			if r.publish(ev, time.Now().Add(passed), &d.out); ev.stamp <= last {
				t.Errorf("after %v the stamp is %d, want more than %d", passed, ev.stamp, last)
			}
			last = ev.stamp
		}
	})
}

// An older event of a Key comes too late as well if the history has dropped the
// newer one, because its topic is busy.
func TestRelayDropsTheNewestOfAKey(t *testing.T) {
	for _, limit := range []History{{Events: 1}, {Events: 1, Values: -1}} {
		for _, gone := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				r := newRelay(newOrderShared(limit.settled()), new(testBroker))
				defer r.close()
				d := &driver{t: t, o: r}
				r.want([]string{"a"})
				d.arrive()
				now := uint64(time.Now().UnixMicro())
				hear := func(node byte, seq, stamp uint64, e Event) {
					r.Deliver("topic/a", brokered{kind: brokeredEvent, node: nodeID{node}, seq: seq, before: seq - 1, event: e, stamp: stamp}.append(nil))
					d.arrive()
				}
				hear(1, 1, now+10, Event{Key: "k", Data: []byte("newer"), Gone: gone})
				hear(1, 2, 0, Event{Data: []byte("other")})
				hear(2, 1, now, Event{Key: "k", Data: []byte("older")})
				d.want("newer", "other")
				set := newEvent("a", Event{Key: "k", Data: []byte("mine")})
				if r.publish(set, time.Now(), &d.out); set.stamp != now+11 {
					t.Errorf("%+v, gone %v: its stamp is %d, want %d", limit, gone, set.stamp, now+11)
				}
				time.Sleep(10 * time.Second)
				d.arrive()
				if len(r.dropped) > 0 {
					t.Errorf("%+v, gone %v: %d dropped events are not forgotten", limit, gone, len(r.dropped))
				}
			})
		}
	}
}

// A node that has lost an event that says the same as the one before learns its stamp:
// otherwise its next one could be older to others, if its clock is behind.
func TestRelayLosesTheSameAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		r.want([]string{"a"})
		d.arrive()
		now := uint64(time.Now().UnixMicro())
		value := Event{Key: "k", Data: []byte("1")}
		hear := func(m brokered) {
			m.node = nodeID{1}
			r.Deliver("topic/a", m.append(nil))
			d.arrive()
		}
		answer := func() (m brokered) {
			time.Sleep(time.Second)
			d.arrive()
			synctest.Wait()
			for _, msg := range b.published {
				if n, err := parseBrokered([]byte(strings.TrimPrefix(msg, "topic/a "))); err == nil && n.kind == brokeredValues {
					m = n
				}
			}
			return m
		}
		hear(brokered{kind: brokeredEvent, seq: 1, event: value, stamp: now})
		before := r.past.digest("a")
		hear(brokered{kind: brokeredEvent, seq: 2, before: 1, event: value, stamp: now + 2_000_000})
		hear(brokered{kind: brokeredQuestion, digest: before})
		if m := answer(); m.kind != brokeredValues || len(m.values) != 1 || m.values[0].stamp != now+2_000_000 {
			t.Errorf("the node that has lost the second got %+v", m)
		}
		hear(brokered{kind: brokeredQuestion, digest: r.past.digest("a")})
		if m := answer(); m.kind != brokeredValues || len(m.values) != 0 {
			t.Errorf("a node with both got %+v", m)
		}
	})
}

// If a message of a node's members is lost, those in it haven't left.
func TestRelayLosesSomeMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.shared.presence = &presence{hub: &Hub{order: r}}
		r.want([]string{"a"})
		d.arrive()
		seq := uint64(0)
		tell := func(lost int, names ...string) {
			for i, name := range names {
				seq++
				member := newMember(topicKey{"a", name}, nodeID{1}, []byte(name), false)
				m := brokered{kind: brokeredMembers, node: nodeID{1}, seq: seq, before: seq - 1, part: uint64(i), parts: uint64(len(names))}
				m.values = []agedValue{{event: member.Event}}
				if i != lost {
					r.Deliver("topic/a", m.append(nil))
					d.arrive()
				}
			}
		}
		tell(-1, "Ann", "Bob", "Cid")
		d.want("Ann", "Bob", "Cid")
		for lost := range 3 {
			tell(lost, "Ann", "Bob", "Cid")
			d.want()
		}
		tell(-1, "Ann", "Cid")
		d.want(`{"key":"Bob","gone":true}`)
	})
}

// A list of members that its node doesn't finish is forgotten: the node has died.
func TestRelayForgetsUnfinishedMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.want([]string{"a"})
		d.arrive()
		for node := range byte(3) {
			r.Deliver("topic/a", brokered{kind: brokeredMembers, node: nodeID{1 + node}, seq: 1, parts: 2}.append(nil))
		}
		d.arrive()
		if len(r.lists) != 3 {
			t.Fatalf("%d lists are unfinished, want 3", len(r.lists))
		}
		time.Sleep(10 * time.Second)
		d.arrive()
		if len(r.lists) > 0 {
			t.Errorf("%d lists of members are not forgotten", len(r.lists))
		}
	})
}

// A stallingBroker stops the goroutine of its node's heartbeats for a time, as SIGSTOP
// stops all.
type stallingBroker struct {
	testBroker
	stall time.Duration
}

func (b *stallingBroker) Unsubscribe(string) error {
	time.Sleep(b.stall)
	return nil
}

// A node that has stood still gives the others time to be heard.
func TestRelayStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &stallingBroker{stall: 30 * time.Second}
		r := newRelay(newOrderShared(History{Age: time.Second}), b)
		defer r.close()
		r.shared.presence = &presence{hub: &Hub{order: r}}
		d := &driver{t: t, o: r}
		r.want([]string{"a", "b"})
		d.arrive()
		hear := func(seq uint64) {
			r.Deliver("nodes", brokered{kind: brokeredHeartbeat, node: nodeID{1}, seq: seq}.append(nil))
			d.arrive()
		}
		member := newMember(topicKey{"a", "Ann"}, nodeID{1}, []byte("Ann"), false)
		r.Deliver("topic/a", brokered{kind: brokeredEvent, node: nodeID{1}, seq: 1, event: member.Event}.append(nil))
		hear(1)
		d.want("Ann")
		for i := range uint64(5) {
			time.Sleep(2 * time.Second)
			hear(2 + i)
		}
		r.unwant([]string{"b"})
		for i := range uint64(5) {
			time.Sleep(2 * time.Second)
			hear(7 + i)
		}
		time.Sleep(b.stall + 3*time.Second) // it stands still, and runs on
		d.arrive()
		hear(12)
		time.Sleep(5 * time.Second)
		d.arrive()
		d.want()
		time.Sleep(5 * time.Second)
		d.arrive()
		d.want(`{"key":"Ann","gone":true}`)
	})
}

// A node takes no members away because of an outage, however long that lasts, and gives
// the other nodes time to be heard behind it.
func TestRelayMembersInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		r.shared.presence = &presence{hub: &Hub{order: r}}
		r.want([]string{"a"})
		d.arrive()
		beat := func(seq uint64) {
			r.Deliver("nodes", brokered{kind: brokeredHeartbeat, node: nodeID{1}, seq: seq}.append(nil))
			d.arrive()
		}
		member := newMember(topicKey{"a", "Ann"}, nodeID{1}, []byte("Ann"), false)
		r.Deliver("topic/a", brokered{kind: brokeredEvent, node: nodeID{1}, seq: 1, event: member.Event}.append(nil))
		beat(1)
		d.want("Ann")
		b.setAway(true)
		for range 15 {
			time.Sleep(heartbeatInterval)
			d.arrive()
		}
		b.setAway(false)
		d.publish("a", "the node notices that the engine is back")
		for range 2 {
			time.Sleep(heartbeatInterval)
			d.arrive()
		}
		d.want("the node notices that the engine is back")
		beat(2)
		for range 4 {
			time.Sleep(heartbeatInterval)
			d.arrive()
		}
		d.want(`{"key":"Ann","gone":true}`)
	})
}

// While the subscription to a topic is not confirmed, events of other nodes may
// be missing. No id resumes over that time.
func TestRelayUnconfirmedTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		b.setAway(true)
		r.want([]string{"a"})
		newest := func() string {
			d.arrive()
			client := &replay{topics: []*subscription{{name: "a"}, {}}}
			r.fill(client)
			return client.position.ID
		}
		unconfirmed := newest()
		if got := d.since(unconfirmed, "a"); got != "lost" {
			t.Errorf("before the subscription, a client that comes back has missed %q", got)
		}
		b.setAway(false)
		time.Sleep(time.Minute)
		d.arrive()
		synctest.Wait()
		confirmed := newest()
		if got := d.since(unconfirmed, "a"); got != "lost" {
			t.Errorf("behind the subscription, a client from before it has missed %q", got)
		}
		if got := d.since(confirmed, "a"); got != "" {
			t.Errorf("behind the subscription, a client that comes back has missed %q", got)
		}
	})
}

// After a loss, clients of the topic that reconnect get a reset.
func TestRelayGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.want([]string{"a", "b"})
		d.arrive()
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

// This node's clients get all events while the engine is away.
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

// An event that the engine never accepts is lost. It is no outage.
func TestRelayEventTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		d.publish("a", strings.Repeat("x", 2000))
		synctest.Wait()
		if _, down := r.elsewhere(); down || r.shared.brokerLost.Load() != 1 {
			t.Errorf("down %v, %d lost; want false and 1", down, r.shared.brokerLost.Load())
		}
		b.limit = 1000 // from now on the limit is known
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

// Publishers wait for a slow engine, and nothing is lost. They don't wait for
// one that is away.
func TestRelayBehindAnEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, b := newTestRelay(t)
		synctest.Wait()
		d.arrive() // that it is subscribed to events to all clients
		synctest.Wait()
		b.mu.Lock() // the engine doesn't answer
		b.published = nil
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

// Two heartbeats of the sender show a lost event, though no other event of its
// topic follows.
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
		send("a", true) // too soon after the subscription to count as lost
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
		gaps(0) // it may still arrive
		beat(false)
		gaps(1)
		for topic, want := range map[string]string{"a": "a", "b": "lost", "c": ""} {
			if got := d.since(before, topic); got != want {
				t.Errorf("a client of %s that comes back has missed %q, want %q", topic, got, want)
			}
		}
		send("b", false) // the loss before it is known already
		for range 3 {
			beat(false)
		}
		gaps(1)
		r.want([]string{"late"})
		synctest.Wait()
		send("late", true) // again too soon after the subscription
		for range 3 {
			beat(false)
		}
		gaps(1)
		send("late", true)
		beat(false)
		beat(false)
		gaps(2)
		beat(true) // a lost heartbeat, and all that it listed
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

// A node's next heartbeat lists its last events, or several heartbeats do.
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

// A node that ends sends what is queued, and then a good-bye, whose number
// follows that of its last heartbeat.
func TestRelaySaysGoodBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(testBroker)
		r := newRelay(newOrderShared(History{}), b)
		d := &driver{t: t, o: r}
		time.Sleep(heartbeatInterval)
		for range 10 {
			d.publish("a", "x")
		}
		r.close()
		for i, m := range b.beats {
			if m.seq != uint64(i+1) || m.leaving != (i == len(b.beats)-1) {
				t.Errorf("heartbeat %d of %d has number %d, leaving %v", i+1, len(b.beats), m.seq, m.leaving)
			}
		}
		if len(b.published) != 10 || len(b.beats) < 2 {
			t.Errorf("%d events and %d heartbeats were sent, want 10 and several", len(b.published), len(b.beats))
		}
	})
}

// A node that was cut off counts as gone each time, and its return as one loss:
// the heartbeats that did not arrive are no second one.
func TestRelayNodeReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, r, _ := newTestRelay(t)
		r.want([]string{"a"})
		want := func(gaps int64) {
			t.Helper()
			d.arrive()
			if got := r.shared.gaps.Load(); got != gaps {
				t.Errorf("%d gaps, want %d", got, gaps)
			}
		}
		beat := func(seq uint64) {
			r.Deliver(brokerName(nodesTopic), brokered{kind: brokeredHeartbeat, node: nodeID{1}, seq: seq}.append(nil))
		}
		beat(1)
		want(0)
		time.Sleep(nodeTimeout + 2*heartbeatInterval)
		want(1) // it is gone
		r.Deliver("topic/a", from(1, 1, 0, "1"))
		want(2) // it is back
		time.Sleep(nodeTimeout + 2*heartbeatInterval)
		want(3)
		r.Deliver("topic/a", from(1, 2, 1, "2"))
		want(4)
		beat(9)
		want(4)
		time.Sleep(nodeTimeout + 2*heartbeatInterval)
		want(5)
		beat(20)
		want(6)
	})
}

// The first event of a node to a topic is missed too, by the next one, if it was
// sent while this node was subscribed; and not if it was sent before.
func TestRelayMissesAFirstEvent(t *testing.T) {
	for _, tt := range []struct {
		age  time.Duration // of the first event, when the second arrives
		gaps int64
	}{{time.Second, 1}, {time.Minute, 0}} {
		synctest.Test(t, func(t *testing.T) {
			d, r, _ := newTestRelay(t)
			r.want([]string{"a"})
			time.Sleep(5 * time.Second)
			second := brokered{kind: brokeredEvent, node: nodeID{1}, seq: 2, before: 1, age: tt.age, event: Event{Data: []byte("2")}}
			r.Deliver(brokerName("a"), second.append(nil))
			d.arrive()
			d.want("2")
			if got := r.shared.gaps.Load(); got != tt.gaps {
				t.Errorf("the first event is %v old: %d gaps, want %d", tt.age, got, tt.gaps)
			}
		})
	}
}
