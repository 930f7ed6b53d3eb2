package realtime

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A follower is one client of a history, without a hub: it is the owner of the
// client's outbox, and the loop and the shard at once.
type follower struct {
	endings
	mu      sync.Mutex // guards the fields below, and orders what loop and shard do
	h       *history
	o       *outbox
	topics  []string
	parts   int
	resumed int64         // as counted by the history
	delay   time.Duration // of each part
	ended   bool          // there are no more parts
}

func newFollower(h *history, topics ...string) *follower {
	f := &follower{h: h, o: &outbox{shared: newShared()}, topics: topics}
	f.o.owner = f
	return f
}

func (f *follower) outboxEmpty(r *replay) bool {
	time.Sleep(f.delay)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	r.topics = nil
	for _, topic := range f.topics {
		r.topics = append(r.topics, &subscription{name: topic})
	}
	f.h.fill(r)
	f.resumed += r.resumed
	f.o.replay(r)
	f.parts++
	return true
}

// publish has the history keep an event and the client get it, if it is
// subscribed.
func (f *follower) publish(topic string, e Event) *event {
	f.mu.Lock()
	defer f.mu.Unlock()
	ev := newEvent(topic, e)
	f.h.add(ev, time.Now())
	if slices.Contains(f.topics, topic) && ev.isFor(&clientID{}) {
		var r run
		r.add(ev)
		f.o.push(&r)
	}
	return ev
}

// A slowConn takes some time for each write, and keeps what is written.
type slowConn struct {
	io.Writer
	rate int // bytes a second
	all  []byte
}

func (c *slowConn) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * time.Second / time.Duration(c.rate))
	c.all = append(c.all, b...)
	return len(b), nil
}

// A client whose replay takes several parts gets what it should, while others
// publish: if it resumes, all events of its topics, once and in order. If it is
// new or lost events, the newest of each Key, and all that is published since.
func TestReplayModel(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) { testReplay(t, seed) })
	}
}

func testReplay(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	h := newHistory(History{Events: 20 + random.IntN(300), Age: time.Hour})
	f := newFollower(h, "a", "b")
	f.o.shared.sendBuffer, f.o.shared.writeTimeout = 1<<20, time.Hour // slowness is not the matter here
	if random.IntN(3) == 0 {
		f.topics = f.topics[:1]
	}
	keyed := random.IntN(2) == 0
	var all []*event // of the client's topics
	publish := func() {
		e := Event{Data: fmt.Appendf(nil, "%d %s", len(all), strings.Repeat("x", random.IntN(2000)))}
		if keyed && random.IntN(3) > 0 {
			e.Key = fmt.Sprint(random.IntN(100))
		}
		if random.IntN(10) == 0 {
			e.Except = new(Client).ID()
		}
		topic := string(rune('a' + random.IntN(3)))
		if ev := f.publish(topic, e); slices.Contains(f.topics, topic) && e.Except == "" {
			all = append(all, ev)
		}
	}
	for range 1 + random.IntN(600) {
		publish()
	}
	last, from := "", 0
	if random.IntN(3) > 0 {
		from = random.IntN(len(all))
		last = all[from].ID
		from++
	}
	for range random.IntN(50) { // while the client joins
		publish()
	}
	f.outboxEmpty(&replay{last: last})
	conn := &slowConn{rate: 1 << (15 + random.IntN(6))}
	f.o.open(conn, nil, format{encoding: envelopeFrame})
	sent := 0
	for range random.IntN(600) {
		switch random.IntN(10) {
		case 0:
			time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
		case 1:
			f.o.post(&Event{Name: "private", Data: fmt.Append(nil, sent)})
			sent++
		default:
			publish()
		}
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	f.want(t, 0)

	index := make(map[string]int) // of each event's id in all
	for i, ev := range all {
		index[ev.ID] = i
	}
	next, resumed, private := -1, last != "", 0 // next: the index of the event that has to follow; negative: any
	if resumed {
		next = from
	}
	values := make(map[topicKey]string)
	position := ""
	for got := conn.all; len(got) > 0; {
		_, payload, n := parseFrame(got)
		got = got[n:]
		var e envelope
		if err := json.Unmarshal(payload, &e); err != nil {
			t.Fatal(err)
		}
		i, isEvent := index[e.ID]
		switch {
		case e.Reset:
			next, resumed = -1, false
			continue
		case e.Event == "private":
			if *e.Data != fmt.Sprint(private) {
				t.Fatalf("seed %d: private message %s, want %d", seed, *e.Data, private)
			}
			private++
			continue
		case e.Data == nil:
			position = e.ID
			continue
		case e.ID == "" && resumed:
			t.Fatalf("seed %d: a value for a client that resumes", seed)
		case e.ID != "" && (!isEvent || next >= 0 && i < next):
			t.Fatalf("seed %d: event %d, want %d", seed, i, next)
		case isEvent:
			for ; 0 <= next && next < i; next++ {
				if all[next].Key == "" {
					t.Fatalf("seed %d: event %d, want %d", seed, i, next)
				}
			}
			next = i + 1
			if key := all[i].topicKey(); key.key != "" {
				values[key] = *e.Data
			}
		default:
			for _, ev := range slices.Backward(all) {
				if string(ev.Data) == *e.Data {
					values[ev.topicKey()] = *e.Data
				}
			}
		}
	}
	if f.resumed == 1 != resumed || f.resumed > 1 {
		t.Errorf("seed %d: %d replays are counted as resumed, and the client's is %t", seed, f.resumed, resumed)
	}
	if private != sent {
		t.Errorf("seed %d: %d private messages, want %d", seed, private, sent)
	}
	if next != len(all) && position != h.id(h.seq) {
		t.Errorf("seed %d: the last event is %d of %d, and the position %q", seed, next-1, len(all), position)
	}
	newest := make(map[topicKey]*event)
	for _, topic := range f.topics {
		for _, m := range h.topics[topic].recent {
			if m.event.Key != "" && m.event.Except == "" {
				newest[m.event.topicKey()] = m.event
			}
		}
	}
	for key, ev := range newest {
		if resumed && from > 0 && ev.seq <= all[from-1].seq {
			continue // it has seen it
		}
		if got, want := values[key], string(ev.Data); got != want {
			t.Errorf("seed %d: the newest of %+v is %.5q, want %.5q", seed, key, got, want)
		}
	}
}

// A client that reads 16 Mbit/s gets 20 MB of past events. While it does, only a
// part of them waits in its outbox.
func TestSlowReaderGetsItsReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, id := newFollower(longHistory()), ""
		f.topics = []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}
		id = f.h.id(1)
		f.outboxEmpty(&replay{last: id})
		conn := &slowConn{rate: 2 << 20}
		f.o.open(conn, nil, format{})
		most := 0
		for range 11 {
			time.Sleep(time.Second)
			if err := f.o.overdue(f.o.shared.clock.now()); err != nil {
				t.Fatal(err)
			}
			f.o.mu.Lock()
			size := 0
			for _, q := range f.o.queue[f.o.head:] {
				size += len(q.b)
			}
			most = max(most, size)
			f.o.mu.Unlock()
		}
		synctest.Wait()
		if got := len(conn.all) >> 20; got < 19 {
			t.Errorf("the client got %d MB of 20", got)
		}
		if most == 0 || most > 2*partBytes {
			t.Errorf("%d bytes waited for the client at once, want some, and at most %d", most, 2*partBytes)
		}
	})
}

// longHistory returns a history of 20 MB in 10,000 events.
func longHistory() *history {
	h := newHistory(History{Events: 1000, Age: time.Hour})
	data := []byte(strings.Repeat("x", 2<<10))
	for i := range 10_000 {
		h.add(newEvent(fmt.Sprint(i%10), Event{Data: data}), time.Now())
	}
	return h
}

// A client that reads a byte now and then doesn't keep its replay.
func TestTricklingReaderLosesItsReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(longHistory(), "1")
		f.outboxEmpty(&replay{last: f.h.id(1)})
		f.o.open(&slowConn{rate: 1450}, nil, format{}) // a write of 7 events takes 9.9 s, a part 23 s
		for i := range 60 {
			time.Sleep(time.Second)
			if err := f.o.overdue(f.o.shared.clock.now()); err != nil {
				if err != ErrSlowClient || i < 10 {
					t.Errorf("after %d s: %v", i+1, err)
				}
				f.o.fail()
				time.Sleep(time.Minute) // until the write ends
				return
			}
		}
		t.Error("it was not disconnected within a minute")
	})
}

// valuesFollower returns a follower that lacks values for two parts, and nothing
// else. Its outbox is held.
func valuesFollower() *follower {
	f := newFollower(newHistory(History{Events: 2 * partEvents, Age: time.Hour}), "a", "")
	for i := range 2 * partEvents {
		f.h.add(newEvent("a", Event{Key: fmt.Sprint(i), Data: []byte("v")}), time.Now())
	}
	return f
}

// What came while a client joined counts as lost if the client ends before its
// replay.
func TestReplayEndsEarly(t *testing.T) {
	for name, end := range map[string]func(f *follower){
		"closed": func(f *follower) { f.o.closeWith(new(buffer)) },
		"cut": func(f *follower) {
			f.o.mu.Lock()
			f.o.moved, f.o.progress = true, f.o.shared.clock.now()
			f.o.mu.Unlock()
			f.o.cut(just(new(buffer)), func() {})
		},
		"flushed": func(f *follower) { f.o.flushed() },
		"failed":  func(f *follower) { f.o.fail() },
		"no hub": func(f *follower) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.ended = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := valuesFollower()
				f.publish("", Event{Data: []byte("early")})
				f.outboxEmpty(&replay{})
				f.o.open(&slowConn{rate: 1 << 10}, nil, format{})
				synctest.Wait()
				end(f)
				time.Sleep(time.Minute)
				synctest.Wait()
				s := f.o.shared
				if s.queued.Load() != 0 || f.o.backlog.messages != 0 || s.dropped.Load() == 0 {
					t.Errorf("%d messages are queued, %d of them here, and %d dropped; want 0, 0 and some", s.queued.Load(), f.o.backlog.messages, s.dropped.Load())
				}
			})
		})
	}
}

// A client that gets values in parts, while the engine is away, doesn't lose
// what is published to this node's clients alone. Such events may have the
// position of the event before.
func TestUnsharedEventDuringReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := valuesFollower()
		f.h.move(f.h.seq | wholeRecord)
		unshared := func(topic, data string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			ev := newEvent(topic, Event{Data: []byte(data)})
			f.h.addUnshared(ev, time.Now())
			var r run
			r.add(ev)
			f.o.push(&r)
		}
		unshared("another", "before")
		f.outboxEmpty(&replay{})
		conn := &slowConn{rate: 1 << 10}
		f.o.open(conn, nil, format{encoding: plainStream})
		synctest.Wait()
		unshared("a", "during")
		time.Sleep(time.Minute)
		synctest.Wait()
		if !strings.Contains(string(conn.all), "event: reset\n") && !strings.Contains(string(conn.all), "during") {
			t.Error("the client got neither the event nor a reset")
		}
	})
}

// A client that loses events during its replay gets the newest event of a Key,
// also if an older one was sent to it alone while it joined.
func TestReplayedValueAfterAPrivateOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := valuesFollower()
		f.o.post(&Event{Key: "k", Data: []byte("private")})
		f.outboxEmpty(&replay{})
		conn := &slowConn{rate: 1 << 10}
		f.o.open(conn, nil, format{})
		synctest.Wait()
		f.publish("", Event{Key: "k", Data: []byte("public")})
		for range 3 * partEvents {
			f.publish("a", Event{Data: []byte("x")}) // more than is kept
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if all := string(conn.all); !strings.Contains(all, "private") || !strings.Contains(all, "public") {
			t.Errorf("the client got %.100q, want the private and then the public value", all)
		}
	})
}

// The time for a replay includes that for what waits before it.
func TestReplayBehindLargeEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(keyedHistory("b"), "a")
		conn := &slowConn{rate: 100 << 10}
		f.o.open(conn, nil, format{})
		for range 200 {
			f.publish("a", Event{Data: make([]byte, 100<<10)})
		}
		r := &replay{topics: []*subscription{{name: "b"}}}
		f.h.fill(r)
		f.o.replay(r)
		for i := range 210 {
			time.Sleep(time.Second)
			if err := f.o.overdue(f.o.shared.clock.now()); err != nil {
				t.Fatalf("after %d s: %v", i+1, err)
			}
		}
		if n := f.o.shared.delivered.Load(); n != 300 {
			t.Errorf("%d messages are delivered, want 300", n)
		}
	})
}

// A client isn't at fault if a busy hub makes it wait for the next part.
func TestReplayOfABusyHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(longHistory(), "1")
		f.outboxEmpty(&replay{last: f.h.id(1)})
		f.delay = f.o.shared.writeTimeout + 2*time.Second
		f.o.open(&slowConn{rate: 20 << 10}, nil, format{})
		for range 40 {
			time.Sleep(time.Second)
			if err := f.o.overdue(f.o.shared.clock.now()); err != nil {
				t.Error(err)
				break
			}
		}
		f.o.fail()
		time.Sleep(time.Minute) // until the part or the write ends
		synctest.Wait()
		if f.parts < 4 {
			t.Errorf("%d parts came", f.parts)
		}
	})
}

// A client that gets no more of its replay gets no later event either: it would
// resume behind that, and never get those between.
func TestNothingFollowsHalfAReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(longHistory(), "1")
		f.outboxEmpty(&replay{last: f.h.id(1)})
		conn := &slowConn{rate: 1 << 20}
		f.o.open(conn, nil, format{encoding: plainStream})
		f.mu.Lock()
		f.ended = true
		f.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		ev := f.publish("1", Event{Data: []byte("late")})
		time.Sleep(time.Minute)
		synctest.Wait()
		if strings.Contains(string(conn.all), ev.ID) || f.o.position(f.h.position()) {
			t.Error("the client got an id behind events that it lacks")
		}
	})
}

// What is sent while a client waits for a part that never comes is written before
// the outbox counts as flushed: nothing may use the connection after that.
func TestFlushedWhileAPartIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(longHistory(), "1")
		f.outboxEmpty(&replay{last: f.h.id(1)})
		f.ended, f.delay = true, time.Hour
		f.o.open(&slowConn{rate: 1 << 20}, nil, format{})
		time.Sleep(time.Minute)
		f.o.post(&Event{Data: []byte("sent")})
		<-f.o.flushed()
		if s := f.o.shared; f.o.isWriting() || s.queued.Load() != 0 || s.dropped.Load() != 0 {
			t.Errorf("writing %v, %d queued, %d dropped; want none", f.o.isWriting(), s.queued.Load(), s.dropped.Load())
		}
		time.Sleep(time.Hour)
	})
}

// Events that any topic may have lost are lost for a later topic, too, also when
// the history no longer keeps the gap.
func TestGapBeforeALaterTopic(t *testing.T) {
	for _, later := range []time.Duration{0, time.Hour} {
		h := newHistory(History{Age: time.Minute}.settled())
		now := time.Now()
		h.add(newEvent("a", Event{}), now)
		start := h.seq
		h.add(newGap(""), now)
		h.expire(now.Add(later))
		h.add(newEvent("", Event{}), now.Add(later))
		for topic, want := range map[string]int64{"a": 1, "b": 1} {
			r := &replay{live: true, claims: []claim{{start: start, topics: []*subscription{{name: topic}}}}}
			if h.fill(r); r.resets != want {
				t.Errorf("%v after the gap, %s got %d resets, want %d", later, topic, r.resets, want)
			}
		}
	}
}

// A member that two nodes show is told by the event of the newer one. If that one
// leaves between two parts of a newcomer's replay, the other one's is told, once,
// also if the replay starts anew then.
func TestMemberLeavesItsNewerNodeDuringReplay(t *testing.T) {
	for _, lost := range []bool{false, true} {
		h := newHistory(History{Events: 10, Age: time.Hour, Values: 10})
		h.partEvents = 1
		name, older, newer := topicKey{"a", "ann"}, nodeID{1}, nodeID{2}
		data := []byte(`{"key":"ann"}`)
		now := time.Now()
		h.add(newMember(name, older, data, false), now)
		h.add(newMember(topicKey{"a", "bob"}, older, []byte(`{"key":"bob"}`), false), now)
		h.add(newEvent("a", Event{Key: "k"}), now)
		h.add(newMember(name, newer, data, false), now)
		r := &replay{topics: []*subscription{{name: "a"}}}
		var got []string
		for more := true; more; more = r.more {
			if h.fill(r); r.lost {
				got = append(got, "reset")
			}
			for _, ev := range r.part {
				got = append(got, ev.memberKey())
			}
			if len(got) == 1 {
				h.add(newGoneMember(name, newer), now)
				if lost {
					h.restart(h.epoch)
				}
			}
		}
		want := []string{"bob", "k", "ann"}
		if lost {
			want = []string{"bob", "reset", "ann", "bob", "k"}
		}
		if !slices.Equal(got, want) {
			t.Errorf("lost=%v: got %q, want %q", lost, got, want)
		}
	}
}

// Behind a reset come the latest values of all topics: the page has emptied what
// it had. Some topics may have lost nothing, or may have begun later.
func TestAllValuesComeBehindAReset(t *testing.T) {
	all, a, b := &subscription{}, &subscription{name: "a"}, &subscription{name: "b"}
	for name, test := range map[string]struct {
		r    *replay
		lose func(h *history, part int)
		want []string
	}{
		"the engine lacks an event": {
			&replay{last: Oldest},
			func(h *history, part int) {
				if part == 0 {
					h.addUnshared(newEvent("a", Event{Key: "a1"}), time.Now())
				}
			},
			[]string{"reset", "b1", "b2", "a1"},
		},
		"too many events during the replay": {
			&replay{live: true, claims: []claim{{start: fromNow, topics: []*subscription{b}}}},
			func(h *history, part int) {
				if part == 1 {
					h.add(newEvent("a", Event{Key: "a1"}), time.Now())
					h.add(newEvent("a", Event{Key: "a2"}), time.Now())
				}
			},
			[]string{"b1", "b2", "reset", "b1", "b2", "a1", "a2"},
		},
		"a new log during the replay": {
			&replay{live: true, claims: []claim{{start: fromNow, topics: []*subscription{b}}}},
			func(h *history, part int) {
				if part == 1 {
					h.restart("new")
				}
			},
			[]string{"b1", "reset", "b1", "b2"},
		},
		"a new log behind what comes late": {
			&replay{live: true, claims: []claim{{start: fromNow, topics: []*subscription{b}}}},
			func(h *history, part int) {
				switch part {
				case 1:
					h.add(newEvent("a", Event{Key: "a1"}), time.Now())
				case 2:
					h.restart("new")
				}
			},
			[]string{"b1", "b2", "reset", "b1", "b2", "a1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a.since, b.since = 0, 0
			h := newHistory(History{Events: 1, Age: time.Hour, Values: 10})
			h.partEvents = 1
			h.move(1)
			h.add(newEvent("b", Event{Key: "b1"}), time.Now())
			h.add(newEvent("b", Event{Key: "b2"}), time.Now())
			var got []string
			for part, more := 0, true; more; more = test.r.more {
				test.lose(h, part)
				test.r.topics = []*subscription{b, a, all}
				if h.fill(test.r); test.r.lost {
					got = append(got, "reset")
				}
				for _, ev := range append(test.r.lagging, test.r.part...) {
					if ev.Key != "" {
						got = append(got, ev.Key)
					}
				}
				part++
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A client that reconnects counts as resumed, and so does each claim, also if all
// that is new is of a claim.
func TestResumedIsCounted(t *testing.T) {
	for _, news := range []string{"a", "b"} {
		h := newHistory(History{Events: 10, Age: time.Hour})
		h.move(1)
		h.add(newEvent("a", Event{}), time.Now())
		id, a, b := h.id(h.seq), &subscription{name: "a"}, &subscription{name: "b"}
		h.add(newEvent(news, Event{}), time.Now())
		r := &replay{last: id, claims: []claim{{last: id, topics: []*subscription{b}}}}
		if news == "b" {
			r.last = h.id(h.seq)
		}
		resumed := int64(0)
		for more := true; more; more = r.more {
			r.topics = []*subscription{a, b, &r.all}
			h.fill(r)
			resumed += r.resumed
		}
		if resumed != 2 {
			t.Errorf("with an event of %s: %d resumed, want 2", news, resumed)
		}
	}
}

// A client gets no event of a member that tells it nothing new: none that takes
// away a member that another node shows, and none that shows a member twice, if
// the client resumes. A newcomer may need the latter.
func TestHiddenEventsAreNotReplayed(t *testing.T) {
	h := newHistory(History{Events: 10, Age: time.Hour})
	h.move(1)
	name, older, newer := topicKey{"a", "ann"}, nodeID{1}, nodeID{2}
	data := []byte(`{"key":"ann"}`)
	h.add(newMember(name, older, data, false), time.Now())
	id := h.id(h.seq)
	h.add(newMember(name, newer, data, false), time.Now())
	h.add(newGoneMember(name, older), time.Now())
	for last, want := range map[string]int{id: 0, Oldest: 2} {
		r := &replay{last: last, topics: []*subscription{{name: "a"}}}
		got := 0
		for more := true; more; more = r.more {
			h.fill(r)
			for _, ev := range append(r.lagging, r.part...) {
				if ev.Gone {
					t.Errorf("behind %s: the client is told that the member has left", last)
				}
				got++
			}
		}
		if got != want {
			t.Errorf("behind %s: %d events, want %d", last, got, want)
		}
	}
}

// A topic of which events are forgotten while its client still gets them begins
// anew, with a reset of its own. The client's other topics lose nothing.
func TestTopicLosesEventsDuringItsReplay(t *testing.T) {
	h := newHistory(History{Events: 3, Age: time.Hour, Values: 10})
	h.partEvents = 1
	h.move(1)
	add := func(topic, key string, all ...string) {
		for _, data := range all {
			h.add(newEvent(topic, Event{Key: key, Data: []byte(data)}), time.Now())
		}
	}
	r := &replay{live: true, claims: []claim{{last: h.id(1), topics: []*subscription{{name: "b"}, {name: "c"}}}}}
	topics := append(r.claims[0].topics, &r.all)
	add("b", "", "b1", "b2", "b3")
	add("c", "", "c1")
	var got []string
	var resumed, resets int64
	for more := true; more; more = r.more {
		r.topics = topics
		h.fill(r)
		resumed, resets = resumed+r.resumed, resets+r.resets
		for _, ev := range append(r.lagging, r.part...) {
			switch ev.notice {
			case noNotice:
				got = append(got, string(ev.Data))
			case resetNotice:
				got = append(got, "reset of "+ev.topic)
			}
		}
		if len(got) == 1 {
			add("b", "k", "b4")
			add("b", "", "b5", "b6")
		}
	}
	if want := []string{"b1", "c1", "reset of b", "b4"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if resumed != 0 || resets != 1 {
		t.Errorf("%d replays resumed, and %d resets; want 0 and 1", resumed, resets)
	}
}

// Where a client may begin, in a topic with one event before position 3 and one
// behind it.
func TestBeginning(t *testing.T) {
	for name, test := range map[string]struct {
		set  func(h *history)
		last string // of all, or else, if live, of the topic
		live bool
		want []string
	}{
		"all is known":                  {func(h *history) {}, "2", false, []string{"old", "new"}},
		"a provisional id":              {func(h *history) {}, "2~", false, []string{"old", "new"}},
		"a topic's":                     {func(h *history) {}, "2", true, []string{"old", "new"}},
		"a topic's provisional id":      {func(h *history) {}, "2~", true, []string{"reset"}},
		"from before the beginning":     {func(h *history) { h.begin = 4 }, "2", false, []string{"reset"}},
		"a topic's, from before that":   {func(h *history) { h.begin = 4 }, "2", true, []string{"reset"}},
		"oldest":                        {func(h *history) {}, Oldest, false, []string{"old", "new"}},
		"the oldest behind that":        {func(h *history) { h.begin = 4 }, Oldest, false, []string{"new"}},
		"other nodes' are not known":    {func(h *history) { h.covered = func(string) uint64 { return 4 } }, "2", false, []string{"reset"}},
		"the oldest that is known then": {func(h *history) { h.covered = func(string) uint64 { return 4 } }, Oldest, false, []string{"old", "new"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHistory(History{Events: 10, Age: time.Hour})
			h.move(2)
			h.add(newEvent("a", Event{Data: []byte("old")}), time.Now())
			h.move(4)
			h.add(newEvent("a", Event{Data: []byte("new")}), time.Now())
			test.set(h)
			last := strings.Replace(test.last, "2", h.id(2), 1)
			a := &subscription{name: "a"}
			r := &replay{last: last}
			if test.live {
				r = &replay{live: true, claims: []claim{{last: last, topics: []*subscription{a}}}}
			}
			var got []string
			for more := true; more; more = r.more {
				r.topics = []*subscription{a, &r.all}
				if h.fill(r); r.resets > 0 {
					got = append(got, "reset")
				}
				for _, ev := range append(r.lagging, r.part...) {
					if ev.notice == noNotice {
						got = append(got, string(ev.Data))
					}
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
