// Package brokertest has the tests that a realtime.Broker has to pass: [Run] and
// [RunHistory] call its methods, and [RunNodes] runs hubs in processes that fail.
// It also has an engine inside the process, [Memory], for tests of programs.
package brokertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// An Engine is the engine that the brokers of a test share.
type Engine interface {
	// Broker returns a broker for one more node.
	Broker() realtime.Broker

	// Stop makes the engine unreachable until Start is called. Both return an
	// error if the engine can't be stopped.
	Stop() error
	Start() error
}

const (
	// patience is the time that a test waits for an event that has to come.
	patience = 90 * time.Second

	// Calls that have to fail at once take less than atOnce together, also on a
	// busy machine. If each of them waited for an answer they took more.
	failures = 10
	atOnce   = 20 * time.Second
)

// Run tests the brokers of an engine, in subtests. It calls start for each of
// them; start ends the engine by t.Cleanup.
func Run(t *testing.T, start func(t *testing.T) Engine) {
	runEach(t, start, []subtest[Engine]{
		{"Delivers", delivers},
		{"Order", order},
		{"Sizes", sizes},
		{"TooLarge", tooLarge},
		{"StrangeTopics", strangeTopics},
		{"ManyTopics", manyTopics},
		{"SubscribeIsConfirmed", subscribeIsConfirmed},
		{"Unsubscribe", unsubscribe},
		{"SlowHandler", slowHandler},
		{"EngineAway", engineAway},
		{"Close", closes},
	})
}

// A subtest is a part of Run or RunHistory.
type subtest[E any] struct {
	name string
	run  func(t *testing.T, engine E)
}

// runEach runs each subtest with an engine of its own.
func runEach[E any](t *testing.T, start func(t *testing.T) E, all []subtest[E]) {
	for _, test := range all {
		t.Run(test.name, func(t *testing.T) { test.run(t, start(t)) })
	}
}

// A node is a broker with a handler that keeps the messages.
type node struct {
	t *testing.T
	realtime.Broker

	mu   sync.Mutex // guards the fields below
	got  map[string][]string
	gaps int
	slow time.Duration
	busy map[string]bool // topics of which a message is being delivered
}

// newNode starts a broker. It is closed when the test ends.
func newNode(t *testing.T, engine Engine) *node {
	t.Helper()
	n := &node{t: t, Broker: engine.Broker(), got: make(map[string][]string), busy: make(map[string]bool)}
	if err := n.Start(n.handler()); err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// A handler is a node's side of its broker.
type handler struct{ *node }

func (n *node) handler() realtime.BrokerHandler { return handler{n} }

func (h handler) Deliver(topic string, msg []byte) {
	h.mu.Lock()
	if h.busy[topic] {
		h.t.Errorf("two messages of topic %q are delivered at a time", topic)
	}
	h.busy[topic] = true
	slow := h.slow
	h.mu.Unlock()
	time.Sleep(slow)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busy[topic] = false
	h.got[topic] = append(h.got[topic], string(msg))
	clear(msg) // it is the handler's
}

func (h handler) Gap(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.t.Error("Gap(nil), want an error that says what happened")
	}
	h.gaps++
}

// slowDown makes each delivery take the given time.
func (n *node) slowDown(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = d
}

// received returns the messages of a topic, without those that begin with
// "probe".
func (n *node) received(topic string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(n.got[topic]), func(msg string) bool { return strings.HasPrefix(msg, "probe ") })
}

// has reports whether a message of a topic has come.
func (n *node) has(topic, msg string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.got[topic], msg)
}

func (n *node) countGaps() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gaps
}

// wait waits until the given number of messages of a topic have come, and returns
// them. It waits a little longer, to find messages that must not come.
func (n *node) wait(topic string, count int) []string {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%d messages of topic %.50q", count, topic), func() bool { return len(n.received(topic)) >= count })
	time.Sleep(50 * time.Millisecond)
	got := n.received(topic)
	if len(got) != count {
		n.t.Errorf("%d messages came to topic %.50q, want %d", len(got), topic, count)
	}
	return got
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// join subscribes. It tries again for a while, because the broker may still be
// connecting.
func (n *node) join(topics ...string) {
	n.t.Helper()
	for _, topic := range topics {
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err = n.Subscribe(ctx, topic)
			cancel()
			if err == nil {
				break
			}
		}
		if err != nil {
			n.t.Fatalf("Subscribe(%.50q): %v", topic, err)
		}
	}
}

// say publishes. It tries again for a while, as join does. Then it overwrites the
// message, which is its own again.
func (n *node) say(topic, msg string) {
	n.t.Helper()
	b := []byte(msg)
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = n.Publish(ctx, topic, b)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		n.t.Fatalf("Publish(%.50q): %v", topic, err)
	}
	for i := range b {
		b[i] = 'X'
	}
}

// delivers tests that a message reaches each node that has subscribed, once.
func delivers(t *testing.T, engine Engine) {
	a, b, c := newNode(t, engine), newNode(t, engine), newNode(t, engine)
	a.join("x")
	b.join("x", "y")
	c.join("y")
	c.say("x", "1")
	c.say("nobody's", "2")
	if got := a.wait("x", 1); got[0] != "1" {
		t.Errorf("got %q", got)
	}
	if got := b.wait("x", 1); got[0] != "1" {
		t.Errorf("got %q", got)
	}
	if got := c.received("x"); len(got) != 0 {
		t.Errorf("a node that has not subscribed got %q", got)
	}
	if a.countGaps()+b.countGaps()+c.countGaps() > 0 {
		t.Error("there was a gap")
	}
}

// order tests that the messages of one goroutine to a topic arrive in order, each
// once, while other goroutines publish too.
func order(t *testing.T, engine Engine) {
	const publishers, messages = 3, 2000
	reader := newNode(t, engine)
	reader.join("x", "y")
	var publishing sync.WaitGroup
	for p := range publishers {
		n := newNode(t, engine)
		n.say("warm", "up")
		publishing.Go(func() {
			for i := range messages {
				n.say([]string{"x", "y"}[i%2], fmt.Sprintf("%d %d", p, i))
			}
		})
	}
	publishing.Wait()
	for parity, topic := range []string{"x", "y"} {
		next := [publishers]int{parity, parity, parity}
		for _, msg := range reader.wait(topic, publishers*messages/2) {
			var p, i int
			fmt.Sscan(msg, &p, &i)
			if i != next[p] {
				t.Fatalf("topic %s: got %d of publisher %d, want %d", topic, i, p, next[p])
			}
			next[p] += 2
		}
	}
}

// sizes tests that messages of any size arrive as they were.
func sizes(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	a.join("x")
	var want []string
	for _, size := range []int{0, 1, 100, 4096, 64 << 10, 600 << 10} {
		msg := make([]byte, size)
		for i := range msg {
			msg[i] = byte(rand.IntN(256))
		}
		want = append(want, string(msg))
		b.say("x", string(msg))
	}
	for i, msg := range a.wait("x", len(want)) {
		if msg != want[i] {
			t.Errorf("a message of %d bytes came as one of %d", len(want[i]), len(msg))
		}
	}
}

// tooLarge tests that a large message arrives or Publish returns
// ErrEventTooLarge, and that the broker works after that.
func tooLarge(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	a.join("x")
	b.say("x", "before")
	want := []int{len("before")}
	for _, size := range []int{2 << 20, 16 << 20} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := b.Publish(ctx, "x", make([]byte, size))
		cancel()
		switch {
		case err == nil:
			want = append(want, size)
		case !errors.Is(err, realtime.ErrEventTooLarge):
			t.Fatalf("Publish of %d bytes: %v, want nil or ErrEventTooLarge", size, err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), patience)
		err = b.Publish(ctx, "x", []byte("small"))
		cancel()
		if err != nil {
			t.Fatalf("Publish after %d bytes: %v", size, err)
		}
		want = append(want, len("small"))
	}
	for i, msg := range a.wait("x", len(want)) {
		if len(msg) != want[i] {
			t.Errorf("message %d has %d bytes, want %d", i, len(msg), want[i])
		}
	}
}

// strangeTopics tests that any text can be a topic's name, and that no topic is
// taken for another.
func strangeTopics(t *testing.T, engine Engine) {
	topics := []string{
		"a", "A", "a.b", "a.b.c", "a/b", "a:b", "a b", " a", "a ", "*", ">", "a.*", "a.>", "?", "[a]", "{a}", "a{b}c", "#", "%", "%2E", "\\",
		"ä", "日本語", "🙂", "\x00", "\n", "\r\n", "\t", "\"", "'", "$SYS", "_", "-", "=", "==", ".", "..", "+", "~", "|",
		strings.Repeat("long", 250), strings.Repeat("ü", 500),
	}
	a, b := newNode(t, engine), newNode(t, engine)
	a.join(topics...)
	for i, topic := range topics {
		b.say(topic, fmt.Sprint(i))
	}
	for i, topic := range topics {
		if got := a.wait(topic, 1); got[0] != fmt.Sprint(i) {
			t.Errorf("topic %q got %q, want %d", topic, got, i)
		}
	}
}

// manyTopics tests many topics, which many goroutines subscribe to at a time.
func manyTopics(t *testing.T, engine Engine) {
	const topics = 2000
	a, b := newNode(t, engine), newNode(t, engine)
	var joining sync.WaitGroup
	next := make(chan string)
	for range 32 {
		joining.Go(func() {
			for topic := range next {
				a.join(topic)
			}
		})
	}
	for i := range topics {
		next <- fmt.Sprint("topic ", i)
	}
	close(next)
	joining.Wait()
	for i := range topics {
		b.say(fmt.Sprint("topic ", i), fmt.Sprint(i))
	}
	for i := range topics {
		topic := fmt.Sprint("topic ", i)
		eventually(t, "messages of "+topic, func() bool { return len(a.received(topic)) == 1 })
		if got := a.received(topic); got[0] != fmt.Sprint(i) {
			t.Errorf("%s got %q", topic, got)
		}
	}
}

// subscribeIsConfirmed tests that no message is lost that any node publishes
// after Subscribe has returned.
func subscribeIsConfirmed(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	b.say("warm", "up")
	for i := range 300 {
		topic := fmt.Sprint("topic ", i%10)
		a.join(topic)
		before := len(a.received(topic))
		msg := fmt.Sprint(i)
		b.say(topic, msg)
		eventually(t, "the message behind Subscribe", func() bool {
			got := a.received(topic)
			return len(got) > before && got[len(got)-1] == msg
		})
		if err := a.Unsubscribe(topic); err != nil {
			t.Errorf("Unsubscribe: %v", err)
		}
	}
}

// unsubscribe tests that Unsubscribe ends a topic and no other.
func unsubscribe(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	a.join("x", "y")
	b.say("x", "1")
	a.wait("x", 1)
	if err := a.Unsubscribe("x"); err != nil {
		t.Errorf("Unsubscribe: %v", err)
	}
	if err := a.Unsubscribe("never had"); err != nil {
		t.Errorf("Unsubscribe of a topic without Subscribe: %v", err)
	}
	round := 0
	next := func() (came bool) {
		round++
		msg := fmt.Sprint("probe ", round)
		b.say("x", msg)
		b.say("y", msg)
		eventually(t, "message of y", func() bool { return a.has("y", msg) })
		time.Sleep(50 * time.Millisecond)
		return a.has("x", msg)
	}
	eventually(t, "end of topic x", func() bool { return !next() }) // Unsubscribe doesn't wait for the engine
	for range 5 {
		if next() {
			t.Error("a message came after the end of its topic")
		}
	}
}

// slowHandler tests that messages wait while Deliver blocks, or a gap is told.
func slowHandler(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	a.slowDown(time.Millisecond)
	a.join("x")
	const messages = 500
	payload := string(bytes.Repeat([]byte("."), 1000))
	for i := range messages {
		b.say("x", fmt.Sprintf("%d %s", i, payload))
	}
	b.say("x", "last")
	eventually(t, "messages down to the last", func() bool {
		got := a.received("x")
		return len(got) > 0 && got[len(got)-1] == "last"
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.got["x"]); n != messages+1 && a.gaps == 0 {
		t.Errorf("%d of %d messages came, and no gap was told", n, messages+1)
	}
}

// engineAway tests that Publish fails at once while the engine is unreachable.
// After that the topics are subscribed as before, and a gap is told before the
// first message.
func engineAway(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	a.join("x", "y")
	b.say("x", "before")
	a.wait("x", 1)
	for round := range 2 {
		if err := engine.Stop(); err != nil {
			t.Skipf("the engine can't be stopped: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var err error
		for err == nil && ctx.Err() == nil { // the broker may need a moment to notice
			err = b.Publish(ctx, "x", []byte("probe nobody gets it"))
			time.Sleep(20 * time.Millisecond)
		}
		if err == nil {
			t.Error("Publish succeeds without an engine")
		}
		start := time.Now()
		for range failures {
			if err := b.Publish(ctx, "x", []byte("probe nobody gets it")); err == nil {
				t.Error("Publish succeeds without an engine")
			}
		}
		if d := time.Since(start); d > atOnce {
			t.Errorf("%d calls of Publish failed after %v, want each to fail at once", failures, d)
		}
		short, cancelShort := context.WithTimeout(ctx, time.Second)
		if err := a.Subscribe(short, fmt.Sprint("new ", round)); err == nil {
			t.Error("Subscribe succeeds without an engine")
		}
		cancelShort()
		cancel()
		if err := engine.Start(); err != nil {
			t.Fatal(err)
		}
		i := 0
		eventually(t, "message after both brokers have reconnected", func() bool {
			i++
			msg := fmt.Sprint("probe ", round, " ", i)
			b.say("y", msg)
			time.Sleep(50 * time.Millisecond)
			return a.has("y", msg)
		})
		if a.countGaps() <= round {
			t.Error("a message came before a gap was told")
		}
		b.say(fmt.Sprint("new ", round), "before") // must not come, because Subscribe has failed
		b.say("y", fmt.Sprint("behind ", round))
		eventually(t, "message behind it", func() bool { return a.has("y", fmt.Sprint("behind ", round)) })
		a.join(fmt.Sprint("new ", round))
		b.say(fmt.Sprint("new ", round), "hello")
		a.wait(fmt.Sprint("new ", round), 1)
		b.say("x", fmt.Sprint("after ", round))
		a.wait("x", round+2)
	}
}

// closes tests that Close returns while messages come, and that no message is
// delivered after it.
func closes(t *testing.T, engine Engine) {
	a, b := newNode(t, engine), newNode(t, engine)
	a.slowDown(10 * time.Millisecond)
	a.join("x")
	for i := range 100 {
		b.say("x", fmt.Sprint(i))
	}
	eventually(t, "messages", func() bool { return len(a.received("x")) > 0 })
	closed := make(chan struct{})
	go func() {
		a.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close hangs")
	}
	n := len(a.received("x"))
	time.Sleep(100 * time.Millisecond)
	if got := len(a.received("x")); got != n {
		t.Errorf("%d messages came after Close", got-n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.Publish(ctx, "x", nil); err == nil {
		t.Error("Publish succeeds after Close")
	}
	if err := a.Subscribe(ctx, "x"); err == nil {
		t.Error("Subscribe succeeds after Close")
	}
	b.say("x", "other brokers still work")
}
