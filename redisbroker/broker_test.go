package redisbroker_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

func TestMain(m *testing.M) {
	brokertest.Main(newNodeBroker)
	flag.Parse()
	flag.Set("test.parallel", "8") // the tests wait more than they work
	before := runtime.NumGoroutine()
	code := m.Run()
	for deadline := time.Now().Add(patience); code == 0 && runtime.NumGoroutine() > before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "goroutines are left:")
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			code = 1
		}
	}
	os.Exit(code)
}

func TestSuite(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, func(t *testing.T) brokertest.Engine { return startRedis(t) })
}

// A node is a broker whose handler keeps a log of messages and gaps.
type node struct {
	realtime.Broker
	t     testing.TB
	block chan struct{} // Deliver waits until this is closed
	begun atomic.Int64  // calls of Deliver

	probes int // sent by awaitFrom

	mu  sync.Mutex // guards the fields below
	log []string   // "topic: message" or "gap: error"
}

// newNode starts a broker. It is closed when the test ends.
func newNode(t testing.TB, b realtime.Broker) *node {
	t.Helper()
	n := &node{Broker: b, t: t, block: make(chan struct{})}
	close(n.block)
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	if err := n.Start(handler{n}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.Close() })
}

// A handler is a node's side of its broker.
type handler struct{ *node }

func (h handler) Deliver(topic string, msg []byte) {
	h.begun.Add(1)
	<-h.block
	h.note(topic + ": " + string(msg[:min(len(msg), 100)]))
}

func (h handler) Gap(err error) { h.note("gap: " + err.Error()) }

func (n *node) note(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, line)
}

func (n *node) lines() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.log)
}

func (n *node) gaps() (gaps int) {
	for _, line := range n.lines() {
		if strings.HasPrefix(line, "gap: ") {
			gaps++
		}
	}
	return gaps
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// await waits for a line of the log.
func (n *node) await(line string) {
	n.t.Helper()
	eventually(n.t, line, func() bool { return slices.Contains(n.lines(), line) })
}

// awaitFrom waits until a message of a topic comes from another node, which says
// one after another.
func (n *node) awaitFrom(from *node, topic string) {
	n.t.Helper()
	eventually(n.t, "a message of "+topic, func() bool {
		n.probes++
		msg := fmt.Sprint("probe ", n.probes)
		from.say(topic, msg)
		time.Sleep(50 * time.Millisecond)
		return slices.Contains(n.lines(), topic+": "+msg)
	})
}

func (n *node) join(topics ...string) {
	n.t.Helper()
	for _, topic := range topics {
		if err := n.subscribe(topic, patience); err != nil {
			n.t.Fatalf("Subscribe(%q): %v", topic, err)
		}
	}
}

func (n *node) subscribe(topic string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return n.Subscribe(ctx, topic)
}

func (n *node) publish(topic, msg string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return n.Publish(ctx, topic, []byte(msg))
}

// say publishes, and tries again until that succeeds.
func (n *node) say(topic, msg string) {
	n.t.Helper()
	eventually(n.t, "a Publish that succeeds", func() bool { return n.publish(topic, msg) == nil })
}

// Outages of Redis, of any kind, are noticed within seconds. Then Publish fails
// at once. After the outage the broker reconnects by itself, and tells a gap
// before the first message.
func TestOutage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) (addr string, hurt, heal func())
		own   bool // the broker has a client of its own
	}{
		{"frozen", func(t *testing.T) (addr string, hurt, heal func()) {
			r := startRedis(t)
			return r.addr, r.freeze, r.thaw
		}, true},
		{"unplugged", func(t *testing.T) (addr string, hurt, heal func()) {
			p := startProxy(t, startRedis(t).addr)
			return p.addr(), func() { p.set(true, true) }, func() { p.set(false, false) }
		}, false},
		{"silent", func(t *testing.T) (addr string, hurt, heal func()) { // Redis gets our commands, but we don't get its answers
			p := startProxy(t, startRedis(t).addr)
			return p.addr(), func() { p.set(false, true) }, func() { p.set(false, false) }
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr, hurt, heal := tt.start(t)
			broker := func() *redisbroker.Broker {
				if tt.own {
					return newBroker(addr)
				}
				client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(client.Close)
				return redisbroker.New("realtime", client)
			}
			reader, writer := newNode(t, broker()), newNode(t, broker())
			reader.join("x")
			writer.say("x", "before")
			reader.await("x: before")
			hurt()
			eventually(t, "a Publish that fails", func() bool { return writer.publish("x", "lost") != nil })
			away := func(n *node) bool {
				err := n.subscribe("y", 100*time.Millisecond)
				if err == nil {
					t.Error("Subscribe succeeds during an outage")
				}
				return strings.Contains(err.Error(), "no connection")
			}
			eventually(t, "both nodes notice it", func() bool { return away(reader) && away(writer) })
			failsAtOnce(t, "Publish", func() error { return writer.publish("x", "lost") })
			heal()
			eventually(t, "a gap", func() bool { return reader.gaps() > 0 })
			for range 50 { // the first ones may be published twice, by say
				writer.say("x", "after")
			}
			eventually(t, "the messages", func() bool {
				lines := reader.lines()
				return len(lines) >= 52 && lines[51] == "x: after"
			})
			lines := reader.lines()
			if i := slices.Index(lines, "x: before"); !strings.HasPrefix(lines[i+1], "gap: ") {
				t.Errorf("got %q, want a gap after the first message", lines[:i+2])
			}
			if writer.gaps() != 0 {
				t.Error("a node without topics was told of a gap")
			}
		})
	}
}

// Redis closes the connection of a subscriber that is too slow for what is
// published. The broker tells a gap and reconnects.
func TestRedisDropsSlowSubscriber(t *testing.T) {
	t.Parallel()
	r := startRedis(t, "--client-output-buffer-limit", "pubsub 1mb 512kb 1")
	p := startProxy(t, r.addr)
	reader, writer := newNode(t, newBroker(p.addr())), newNode(t, newBroker(r.addr))
	reader.join("x", "y")
	p.set(false, true)
	payload := strings.Repeat(".", 100<<10)
	for range 300 { // more than the network can buffer
		writer.say("x", payload)
	}
	p.set(false, false)
	eventually(t, "a gap", func() bool { return reader.gaps() > 0 })
	writer.say("y", "hello")
	reader.await("y: hello")
}

// After an administrator has closed the connection, the broker reconnects with
// all topics, and tells one gap each time.
func TestClientKill(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	reader, writer := newNode(t, r.Broker()), newNode(t, r.Broker())
	const topics = 3000 // to subscribe them needs several round trips
	for i := range topics {
		reader.join(fmt.Sprint(i))
	}
	for round := range 5 {
		r.do("CLIENT", "KILL", "TYPE", "pubsub")
		eventually(t, "a gap", func() bool { return reader.gaps() == round+1 })
		for i := 0; i < topics; i += 100 {
			writer.say(fmt.Sprint(i), fmt.Sprint(round))
		}
		for i := 0; i < topics; i += 100 {
			reader.await(fmt.Sprintf("%d: %d", i, round))
		}
	}
	if got := reader.gaps(); got != 5 {
		t.Errorf("%d gaps were told, want 5", got)
	}
}

// While one node publishes without a pause, another loses its connection. Each
// hole in a topic has a gap between the messages around it, however many topics
// have to be subscribed again.
func TestGapIsExact(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	reader, writer := newNode(t, r.Broker()), newNode(t, r.Broker())
	const topics, kills = 5000, 5
	for i := range topics {
		reader.join(fmt.Sprint(i))
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	published := 0
	go func() {
		defer close(stopped)
		for ; ; published++ {
			select {
			case <-stop:
				return
			default:
				writer.say(fmt.Sprint(published*7%topics), fmt.Sprint(published/topics))
			}
		}
	}()
	for kill := range kills {
		time.Sleep(300 * time.Millisecond)
		r.do("CLIENT", "KILL", "TYPE", "pubsub")
		eventually(t, "a gap", func() bool { return reader.gaps() == kill+1 })
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	<-stopped
	writer.say("0", "end")
	reader.await("0: end")

	seen := make(map[string]int) // the last message of each topic
	gap := make(map[string]int)  // how many gaps there were before that
	gaps, lost := 0, 0
	for _, line := range reader.lines() {
		if strings.HasPrefix(line, "gap: ") {
			gaps++
			continue
		}
		topic, text, _ := strings.Cut(line, ": ")
		if text == "end" {
			break
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		last, ok := seen[topic]
		if ok && n != last+1 || !ok && n != 0 {
			lost++
			if gap[topic] == gaps {
				t.Fatalf("topic %s has %d after %d, and no gap was told in between", topic, n, last)
			}
		}
		seen[topic], gap[topic] = n, gaps
	}
	t.Logf("%d messages, %d holes, %d gaps", published, lost, gaps)
}

// The messages that wait for a slow hub are bounded. A gap is told in the place
// of the ones that are lost.
func TestSlowNode(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	reader, writer := newNode(t, r.Broker()), newNode(t, r.Broker())
	reader.join("x")
	reader.block = make(chan struct{})
	const messages = 800
	payload := strings.Repeat(".", 100<<10)
	for i := range messages {
		writer.say("x", fmt.Sprintf("%d %s", i, payload))
	}
	time.Sleep(6 * time.Second) // longer than a connection may stay silent
	close(reader.block)
	eventually(t, "a gap", func() bool { return reader.gaps() > 0 })
	lines := reader.lines()
	for i, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, fmt.Sprintf("x: %d ", i)) {
			t.Fatalf("line %d is %.50q", i, line)
		}
	}
	if n := len(lines) - 1; n < 300 || n > messages-100 {
		t.Errorf("%d of %d messages have waited, want 32 MiB", n, messages)
	}
	writer.say("x", "now")
	reader.await("x: now")
	if got := reader.gaps(); got != 1 {
		t.Errorf("%d gaps were told, want 1: the connection was not lost", got)
	}
}

func TestCloseWhileDeliverBlocks(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	for _, forGood := range []bool{false, true} {
		name := fmt.Sprint("forGood=", forGood)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reader, writer := newNode(t, r.Broker()), newNode(t, r.Broker())
			reader.join(name)
			reader.block = make(chan struct{})
			writer.say(name, "1")
			writer.say(name, "2")
			eventually(t, "a Deliver that blocks", func() bool { return reader.begun.Load() == 1 })
			closeWhile(t, reader.Close, reader.block, forGood)
			eventually(t, "the end of Deliver", func() bool { return len(reader.lines()) > 0 })
			time.Sleep(100 * time.Millisecond)
			if got := reader.lines(); len(got) != 1 {
				t.Errorf("got %q, want only the message that was being delivered", got)
			}
		})
	}
}

// closeWhile calls the Close of a broker whose handler waits for block. Close
// returns when that is closed, or with an error if it stays open.
func closeWhile(t *testing.T, closeBroker func() error, block chan struct{}, forGood bool) {
	t.Helper()
	closed := make(chan error)
	go func() { closed <- closeBroker() }()
	if !forGood {
		select {
		case err := <-closed:
			t.Fatalf("Close: %v, want it to wait for the handler", err)
		case <-time.After(100 * time.Millisecond):
		}
		close(block)
	}
	select {
	case err := <-closed:
		if (err != nil) != forGood {
			t.Errorf("Close: %v", err)
		}
	case <-time.After(patience):
		t.Error("Close doesn't return")
	}
	if forGood {
		close(block)
	}
}

// Publish succeeds as soon as a gap was told, although the connection by which
// the node publishes was lost as well, and the node may not have used it since.
func TestPublishAfterGap(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	n := newNode(t, r.Broker())
	n.join("x")
	for round := range 20 {
		n.say("x", fmt.Sprint(round))
		n.await(fmt.Sprint("x: ", round))
		r.Stop()
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a gap", func() bool { return n.gaps() > round })
		if err := n.publish("x", fmt.Sprint("first ", round)); err != nil {
			t.Errorf("Publish after a gap: %v", err)
		}
		n.await(fmt.Sprint("x: first ", round))
	}
}

// Messages that were published before Close arrive.
func TestCloseFlushes(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	reader := newNode(t, r.Broker())
	reader.join("x")
	for range 20 {
		writer := newNode(t, r.Broker())
		for range 100 {
			writer.say("x", ".")
		}
		if err := writer.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "all of the messages", func() bool { return len(reader.lines()) == 2000 })
}

// A program starts without its Redis, and connects once Redis has started.
func TestStartWithoutRedis(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	r.Stop()
	n := newNode(t, r.Broker())
	failsAtOnce(t, "Publish", func() error { return n.publish("x", "lost") })
	if err := n.subscribe("x", 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("Subscribe: %v, want the error of the connection", err)
	}
	if err := n.subscribe("given up", 50*time.Millisecond); err == nil {
		t.Error("Subscribe succeeds without Redis")
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	n.join("x")
	n.say("x", "hello")
	n.await("x: hello")
	if channels, err := r.do("PUBSUB", "CHANNELS").AsStrSlice(); err != nil || len(channels) != 1 {
		t.Errorf("%q, %v are subscribed, want x alone", channels, err)
	}
	if got := n.gaps(); got != 0 {
		t.Errorf("%d gaps were told, want none: nothing was subscribed", got)
	}
	none := newNode(t, newBroker("127.0.0.1:1"))
	if err := none.Close(); err != nil {
		t.Errorf("Close of a broker that never connected: %v", err)
	}
}

// The user's client stays open after Close. It may use a Unix socket.
func TestClient(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	startRedis(t, "--unixsocket", path)
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{path},
		DialCtxFn: func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return d.DialContext(ctx, "unix", addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	a, b := redisbroker.New("realtime", client), redisbroker.New("other", client)
	c := newNode(t, redisbroker.New("realtime", client))
	na, nb := newNode(t, a), newNode(t, b)
	na.join("x")
	nb.join("x")
	c.say("x", "hello")
	na.await("x: hello")
	if err := errors.Join(na.Close(), nb.Close()); err != nil {
		t.Error(err)
	}
	if got := nb.lines(); len(got) != 0 {
		t.Errorf("with another name got %q", got)
	}
	if err := client.Do(t.Context(), client.B().Ping().Build()).Error(); err != nil {
		t.Errorf("the user's client: %v", err)
	}
}

// A message that Redis never accepts is told from an outage.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	n := newNode(t, r.Broker())
	n.join("x")
	n.say("x", "before")
	if err := n.Publish(t.Context(), "x", make([]byte, 512<<20+1)); !errors.Is(err, realtime.ErrEventTooLarge) {
		t.Errorf("Publish: %v, want ErrEventTooLarge", err)
	}
	if err := n.publish("x", "after"); err != nil {
		t.Errorf("Publish after that: %v", err)
	}
	n.await("x: after")
	if got := n.lines(); len(got) != 2 {
		t.Errorf("got %q, want the small messages alone", got)
	}
}

// An error says which act of which package failed, and what to do.
func TestMisuse(t *testing.T) {
	t.Parallel()
	start := func(b *redisbroker.Broker) error { return b.Start(handler{new(node)}) }
	expect := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
	for _, name := range []string{"a:b", "{", "a}b", "a*", "a?", "[a]", `a\b`, "a b", "ü", "a\n"} {
		b := redisbroker.Connect(name, rueidis.ClientOption{InitAddress: []string{"127.0.0.1:1"}})
		expect(start(b), "redisbroker: start: name ")
		expect(b.Publish(t.Context(), "x", nil), "redisbroker: publish: the broker is not started")
	}
	expect(start(redisbroker.Connect("", rueidis.ClientOption{})), "redisbroker: start: the broker has no name: ")
	expect(start(redisbroker.New("realtime", nil)), "redisbroker: start: there is no client: ")

	b := newBroker("127.0.0.1:1").WithHistory()
	expect(b.Publish(t.Context(), "x", nil), "redisbroker: publish: the broker is not started")
	expect(b.Subscribe(t.Context(), "x"), "redisbroker: subscribe: the broker is not started")
	expect(b.Follow(nil), "redisbroker: follow: the broker is not started")
	expect(b.Append(t.Context(), nil), "redisbroker: append: the broker is not started")
	if err := b.Unsubscribe("x"); err != nil {
		t.Error(err)
	}
	if err := start(b.Broker); err != nil {
		t.Error(err)
	}
	expect(start(b.Broker), "redisbroker: start: the broker is started already: ")
	expect(b.Append(t.Context(), nil), "redisbroker: append: the history is not followed")

	for _, b := range []*redisbroker.HistoryBroker{b, newBroker("127.0.0.1:1").WithHistory()} {
		for range 2 {
			if err := b.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		for what, err := range map[string]error{
			"Start":     start(b.Broker),
			"Publish":   b.Publish(t.Context(), "x", nil),
			"Subscribe": b.Subscribe(t.Context(), "x"),
			"Follow":    b.Follow(nil),
			"Append":    b.Append(t.Context(), nil),
		} {
			if err != redisbroker.ErrClosed {
				t.Errorf("%s after Close: %v, want ErrClosed", what, err)
			}
		}
	}
}

// Commands that Redis doesn't allow return its error, and aren't tried for ever.
func TestPermission(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	r.do("ACL", "SETUSER", "app", "on", ">secret", "&realtime:topic/*", "+@all")
	n := newNode(t, redisbroker.Connect("realtime", rueidis.ClientOption{InitAddress: []string{r.addr}, Username: "app", Password: "secret"}))
	n.join("topic/a")
	if err := n.subscribe("b", patience); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("Subscribe: %v, want NOPERM", err)
	}
	if err := n.publish("b", ""); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("Publish: %v, want NOPERM", err)
	}
	n.say("topic/a", "hello")
	n.await("topic/a: hello")
}

// Subscribe and Unsubscribe of one topic at a time have the effect of the last
// call.
func TestSubscribeStress(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	stress(t, r.Broker(), func() []string {
		channels, err := r.do("PUBSUB", "CHANNELS").AsStrSlice()
		if err != nil {
			t.Fatal(err)
		}
		return channels
	})
}

func stress(t *testing.T, b realtime.Broker, channels func() []string) {
	n := newNode(t, b)
	var all sync.WaitGroup
	for i := range 16 {
		topic := fmt.Sprint(i % 8)
		all.Go(func() {
			for j := range 200 {
				n.subscribe(topic, time.Duration(j%7)*time.Millisecond)
				n.Unsubscribe(topic)
			}
		})
	}
	all.Wait()
	for i := range 8 {
		n.join(fmt.Sprint(i))
		n.say(fmt.Sprint(i), "hello")
		n.await(fmt.Sprintf("%d: hello", i))
		n.Unsubscribe(fmt.Sprint(i))
	}
	eventually(t, "the end of all channels", func() bool { return len(channels()) == 0 })
	if got := n.gaps(); got != 0 {
		t.Errorf("%d gaps were told, want none", got)
	}
}
