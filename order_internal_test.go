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

// A testBroker records its calls. The test stands in for its engine.
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

// records returns the records that were appended.
func (b *testBroker) records() [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.appended)
}

// A testLog is a testBroker with a log.
type testLog struct {
	testBroker
	trims     []trim // guarded by mu, like the fields below
	trimCalls int
	trimError error         // what Trim returns
	trimHold  chan struct{} // Trim waits until it is closed; nil: it doesn't; set before Trim is called
}

func (b *testLog) Follow(HistoryHandler) error { return nil }

func (b *testLog) Trim(_ context.Context, epoch string, before uint64) error {
	b.mu.Lock()
	b.trimCalls++
	b.mu.Unlock()
	if b.trimHold != nil {
		<-b.trimHold
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.trimError == nil {
		b.trims = append(b.trims, trim{epoch, before})
	}
	return b.trimError
}

func (b *testLog) setTrimError(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trimError = err
}

// trimmed returns what Trim was called with since the last call of trimmed.
func (b *testLog) trimmed() (trims []trim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	trims, b.trims = b.trims, nil
	return trims
}

func (b *testLog) Append(_ context.Context, record []byte) error {
	if err := b.do(func() {}); err == nil && b.limit > 0 && len(record) > b.limit {
		return ErrEventTooLarge
	}
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

	records int // how many appended has returned
}

func (d *driver) publish(topic, data string) receipt {
	return d.o.publish(newEvent(topic, Event{Data: []byte(data)}), time.Now(), &d.out)
}

// appended returns the records that were appended to the log since its last call.
func (d *driver) appended(b *testLog) (records [][]byte) {
	d.arrive()
	records = b.records()[d.records:]
	d.records += len(records)
	return records
}

// arrive gives all arrivals to the order.
func (d *driver) arrive() {
	synctest.Wait()
	for {
		select {
		case a := <-d.o.arrivals():
			a(time.Now(), &d.out)
			d.o.delivered()
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
		case e.event == nil:
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
	r := &replay{topics: []*subscription{{}}, last: id}
	for _, topic := range topics {
		r.topics = append(r.topics, &subscription{name: topic})
	}
	d.o.fill(r)
	if r.lost {
		return "lost"
	}
	var got []string
	for _, ev := range r.part {
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
	if d.last() != "" || none.past.recent.len != 0 {
		t.Error("an event has an id though there is no history")
	}
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
