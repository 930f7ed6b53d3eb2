package natsbroker_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A log is a handler that notes gaps, and messages up to their first blank.
type log struct {
	mu    sync.Mutex // guards the fields below
	lines []string
	gate  chan struct{} // Deliver waits until this is closed; nil: it doesn't wait
}

func (l *log) Deliver(topic string, msg []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, _, _ := bytes.Cut(msg, []byte(" "))
	l.lines = append(l.lines, string(first))
	gate := l.gate
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	l.mu.Lock()
}

func (l *log) Gap(error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, "gap")
}

// all returns the lines, without those of reach.
func (l *log) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.lines), func(line string) bool { return line == "probe" })
}

func (l *log) has(line string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.lines, line)
}

// reach waits until messages of b arrive at the log.
func (l *log) reach(t *testing.T, b *natsbroker.Broker) {
	t.Helper()
	eventually(t, "route", func() bool {
		publish(t, b, "probe")
		return l.has("probe")
	})
}

// start starts a broker and subscribes it to topic "x".
func start(t testing.TB, b *natsbroker.Broker, h realtime.BrokerHandler) {
	t.Helper()
	if err := b.Start(h); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	eventually(t, "subscription", func() bool { return b.Subscribe(t.Context(), "x") == nil })
}

func publish(t *testing.T, b *natsbroker.Broker, msg string) {
	t.Helper()
	if err := b.Publish(t.Context(), "x", []byte(msg)); err != nil {
		t.Fatal(err)
	}
}

// A wire is a TCP proxy that can be dead: its connections stay open, and it
// passes no bytes.
type wire struct {
	listener net.Listener
	to       string

	mu    sync.Mutex // guards the fields below
	dead  bool
	conns []net.Conn
	own   sync.WaitGroup
}

func newWire(t *testing.T, to string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to}
	w.own.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for _, conn := range w.conns {
			conn.Close()
		}
		w.mu.Unlock()
		w.own.Wait()
	})
	return w
}

func (w *wire) accept() {
	for {
		from, err := w.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", w.to)
		if err != nil {
			from.Close()
			continue
		}
		w.mu.Lock()
		dead := w.dead
		w.conns = append(w.conns, from, to)
		w.mu.Unlock()
		if !dead {
			w.own.Go(func() { w.copy(from, to) })
			w.own.Go(func() { w.copy(to, from) })
		}
	}
}

// copy passes bytes until the wire is dead. The connections stay open then.
func (w *wire) copy(dst, src net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		w.mu.Lock()
		dead := w.dead
		w.mu.Unlock()
		switch {
		case dead:
			return
		case err != nil:
			dst.Close()
			return
		}
		if _, err := dst.Write(b[:n]); err != nil {
			return
		}
	}
}

func (w *wire) setDead(dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = dead
}

// A dead connection accepts messages without an error. It is noticed within
// seconds: by pings where little is published, and by a write that blocks where
// much is published. Then Publish fails. Later the broker reconnects.
func TestDeadConnection(t *testing.T) {
	for name, msg := range map[string][]byte{"Quiet": nil, "Busy": make([]byte, 64<<10)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the test mostly waits
			testDeadConnection(t, msg)
		})
	}
}

func testDeadConnection(t *testing.T, msg []byte) {
	engine := newServers(t, 1)
	w := newWire(t, fmt.Sprintf("127.0.0.1:%d", engine.options[0].Port))
	var got log
	a := natsbroker.New("realtime", connect(t, "nats://"+w.listener.Addr().String()))
	b := natsbroker.New("realtime", connect(t, engine.url(0)))
	start(t, a, &got)
	start(t, b, new(log))
	publish(t, b, "1")
	eventually(t, "message", func() bool { return got.has("1") })

	w.setDead(true)
	publish(t, b, "lost")
	publish(t, a, "lost as well")
	eventually(t, "error of Publish", func() bool { return a.Publish(t.Context(), "x", msg) != nil }) // by default 6 minutes
	eventually(t, "error of Subscribe", func() bool { return errors.Is(a.Subscribe(t.Context(), "y"), nats.ErrDisconnected) })
	w.setDead(false)
	eventually(t, "message behind the gap", func() bool {
		publish(t, b, "2")
		return got.has("2")
	})
	if lines := got.all(); lines[0] != "1" || lines[1] != "gap" || lines[2] != "2" {
		t.Errorf("got %q, want a gap between 1 and 2", lines)
	}
	publish(t, a, "3")
}

// A gap is told after a reconnect, also if no message comes. Clients that
// reconnect to the hub may have lost events.
func TestQuietReturn(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newServers(t, 1)
	var got log
	start(t, natsbroker.New("realtime", connect(t, engine.url(0))), &got)
	engine.Stop()
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gap", func() bool { return got.has("gap") })
}

// A handler blocks while more messages come than may wait. It is told of a gap
// twice: before the first message behind the hole, and behind the last message
// before the hole.
func TestSlowConsumer(t *testing.T) {
	engine := newServers(t, 1)
	got := &log{gate: make(chan struct{})}
	conn := connect(t, engine.url(0), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	a := natsbroker.New("realtime", conn)
	b := natsbroker.New("realtime", connect(t, engine.url(0)))
	start(t, a, got)
	start(t, b, new(log))
	filler := strings.Repeat(".", 600<<10)
	const messages = 150 // of which 64 MiB may wait
	for i := range messages {
		publish(t, b, fmt.Sprintf("%d %s", i, filler))
	}
	eventually(t, "message", func() bool { return got.has("0") })
	eventually(t, "rest of the messages", func() bool { return conn.Stats().InMsgs >= messages })
	close(got.gate)
	eventually(t, "message behind the gap", func() bool {
		publish(t, b, "last")
		return got.has("last")
	})
	eventually(t, "second gap", func() bool { return strings.Count(strings.Join(got.all(), " "), "gap") >= 2 })
	lines := got.all()
	first, last := slices.Index(lines, "gap"), 0
	for i, line := range lines {
		if line == "gap" {
			last = i
		}
	}
	if hole := slices.Index(lines, "last"); first > hole || last < hole-1 {
		t.Errorf("gaps are at %d and %d, the hole is before %d", first, last, hole)
	}
	if n := len(lines); n > messages {
		t.Errorf("%d messages came, want fewer: the test needs some that are lost", n)
	}
}

// Subscribe returns the error of a server that doesn't allow it, and doesn't
// wait.
func TestNoPermission(t *testing.T) {
	t.Parallel() // the test mostly waits
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, Users: []*server.User{{
		Username: "u", Password: "p", Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Allow: []string{"realtime.*"}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	conn := connect(t, s.ClientURL(), nats.UserInfo("u", "p"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	start(t, natsbroker.New("realtime", conn), new(log)) // is allowed
	b := natsbroker.New("Other", conn)
	if err := b.Start(new(log)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.Subscribe(t.Context(), "x"); !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("Subscribe: %v, want ErrPermissionViolation", err)
	}
}

// Close waits for the handler. It isn't called after that.
func TestCloseWaits(t *testing.T) {
	engine := newServers(t, 1)
	got := &log{gate: make(chan struct{})}
	a := natsbroker.New("realtime", connect(t, engine.url(0)))
	b := natsbroker.New("realtime", connect(t, engine.url(0)))
	start(t, a, got)
	start(t, b, new(log))
	publish(t, b, "1")
	publish(t, b, "2")
	eventually(t, "message", func() bool { return got.has("1") })
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		a.Close()
	}()
	select {
	case <-closed:
		t.Error("Close has returned while the handler is called")
	case <-time.After(100 * time.Millisecond):
	}
	close(got.gate)
	<-closed
	time.Sleep(50 * time.Millisecond)
	if lines := got.all(); len(lines) != 1 {
		t.Errorf("got %q", lines)
	}
}

// The user's connection stays open after Close.
func TestConnectionStaysOpen(t *testing.T) {
	engine := newServers(t, 1)
	conn := connect(t, engine.url(0))
	b := natsbroker.New("realtime", conn)
	start(t, b, new(log))
	if n := conn.NumSubscriptions(); n != 1 {
		t.Errorf("there are %d subscriptions, want 1", n)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if !conn.IsConnected() || conn.NumSubscriptions() != 0 {
		t.Errorf("the connection is %v and has %d subscriptions", conn.Status(), conn.NumSubscriptions())
	}
	conn.Close()
	if err := natsbroker.New("realtime", conn).Start(new(log)); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Start: %v, want ErrConnectionClosed", err)
	}
}

// A message above the server's max_payload is told from an outage, and the
// largest below it arrives.
func TestTooLarge(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newServers(t, 1)
	var got log
	a := natsbroker.New("realtime", connect(t, engine.url(0)))
	b := natsbroker.New("realtime", connect(t, engine.url(0)))
	start(t, a, &got)
	start(t, b, new(log))
	const most = 1 << 20 // by default
	for _, size := range []int{most + 1, 5 * most} {
		if err := b.Publish(t.Context(), "x", make([]byte, size)); !errors.Is(err, realtime.ErrEventTooLarge) {
			t.Errorf("Publish of %d bytes: %v, want ErrEventTooLarge", size, err)
		}
	}
	if n := b.MaxMessageBytes(); n != most {
		t.Errorf("MaxMessageBytes() = %d, want %d", n, most)
	}
	if n := natsbroker.New("realtime", nil).MaxMessageBytes(); n != 0 {
		t.Errorf("MaxMessageBytes() without a connection = %d, want 0", n)
	}
	publish(t, b, "largest"+strings.Repeat(" ", most-len("largest")))
	publish(t, b, "last")
	eventually(t, "last message", func() bool { return got.has("last") })
	if lines := got.all(); !slices.Equal(lines, []string{"largest", "last"}) {
		t.Errorf("got %q, want the two that fit", lines)
	}
}

// An error says which act of which package failed, and what to do.
func TestMisuse(t *testing.T) {
	conn := connect(t, newServers(t, 1).url(0))
	start := func(b *natsbroker.Broker) error { return b.Start(new(log)) }
	expect := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
	for _, name := range []string{".", "a b", strings.Repeat("a", 201)} { // see TestSubjectPrefix
		b := natsbroker.New(name, conn)
		expect(start(b), "natsbroker: start: name ")
		expect(b.Publish(t.Context(), "x", nil), "natsbroker: publish: the broker is not started")
	}
	expect(start(natsbroker.New("", conn)), "natsbroker: start: the broker has no name: ")
	_, err := natsbroker.Embedded("", natsbroker.Config{})
	expect(err, "natsbroker: embedded server: the broker has no name: ")
	expect(start(natsbroker.New("realtime", nil)), "natsbroker: start: there is no connection: ")

	b := natsbroker.New("realtime", conn).WithHistory()
	expect(b.Publish(t.Context(), "x", nil), "natsbroker: publish: the broker is not started")
	expect(b.Subscribe(t.Context(), "x"), "natsbroker: subscribe: the broker is not started")
	expect(b.Follow(nil), "natsbroker: follow: the broker is not started")
	expect(b.Append(t.Context(), nil), "natsbroker: append: the broker is not started")
	if err := b.Unsubscribe("x"); err != nil {
		t.Error(err)
	}
	if err := start(b.Broker); err != nil {
		t.Error(err)
	}
	expect(start(b.Broker), "natsbroker: start: the broker is started already: ")
	expect(b.Append(t.Context(), nil), "natsbroker: append: the history is not followed")
	expect(start(natsbroker.New("realtime", conn)), `natsbroker: start: the connection has a broker named "realtime": `)

	for _, b := range []*natsbroker.HistoryBroker{b, natsbroker.New("realtime", conn).WithHistory(), natsbroker.New("realtime", nil).WithHistory()} {
		for range 2 {
			if err := b.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		for what, err := range map[string]error{
			"Publish":   b.Publish(t.Context(), "x", nil),
			"Subscribe": b.Subscribe(t.Context(), "x"),
			"Follow":    b.Follow(nil),
			"Append":    b.Append(t.Context(), nil),
		} {
			if err != natsbroker.ErrClosed {
				t.Errorf("%s after Close: %v, want ErrClosed", what, err)
			}
		}
	}
	expect(start(b.Broker), "natsbroker: broker is closed")

	again := natsbroker.New("realtime", conn)
	if err := start(again); err != nil { // the name is free again
		t.Error(err)
	}
	again.Close()
}

// A connection with a buffer must not keep messages for later either. A
// connection that was made before there was a server works once there is one.
func TestNoHoarding(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newServers(t, 1)
	engine.Stop()
	conn := connect(t, engine.url(0), nats.ReconnectBufSize(1<<20))
	b := natsbroker.New("realtime", conn)
	if err := b.Start(new(log)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	for what, err := range map[string]error{
		"Publish":   b.Publish(t.Context(), "x", []byte("1")),
		"Subscribe": b.Subscribe(t.Context(), "x"),
	} {
		if !errors.Is(err, nats.ErrDisconnected) {
			t.Errorf("%s: %v, want ErrDisconnected", what, err)
		}
	}
	if n, _ := conn.Buffered(); n > 0 {
		t.Errorf("%d bytes wait for a connection", n)
	}
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "connection", func() bool { return b.Subscribe(t.Context(), "x") == nil })
}
