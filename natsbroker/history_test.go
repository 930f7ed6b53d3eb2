package natsbroker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

func TestServerHistory(t *testing.T) {
	t.Parallel() // the test mostly waits
	brokertest.RunHistory(t, func(t *testing.T) brokertest.HistoryEngine { return newStores(t, 1) })
}

func TestClusterHistory(t *testing.T) {
	t.Parallel() // the test mostly waits
	brokertest.RunHistory(t, func(t *testing.T) brokertest.HistoryEngine { return newStores(t, 3) })
}

// An archive is a hub with a history, behind a web server.
type archive struct {
	*realtime.Hub
	t   *testing.T
	web *httptest.Server
}

func newArchive(t *testing.T, broker realtime.Broker) *archive {
	a := &archive{Hub: realtime.NewHub(), t: t}
	a.Broker = broker
	a.History.Events = 10_000
	a.Logger = slog.New(slog.DiscardHandler)
	a.web = httptest.NewServer(a.Hub)
	t.Cleanup(a.close)
	return a
}

func (a *archive) close() {
	if err := a.Shutdown(context.Background()); err != nil {
		a.t.Error(err)
	}
	a.web.Close()
}

// say publishes to topic "x". It tries again, with another text, until the engine
// accepts it, and returns the last text.
func (a *archive) say(text string) string {
	a.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := a.Publish(a.t.Context(), "x", realtime.Event{Data: []byte(text)})
		if err == nil {
			return text
		}
		if !errors.Is(err, realtime.ErrBrokerUnavailable) || time.Now().After(deadline) {
			a.t.Fatal(err)
		}
		text += "'"
	}
}

// A stream is an event-stream client of topic "x".
type stream struct {
	t     *testing.T
	close func()
	lines *bufio.Scanner
	id    string
}

func (a *archive) listen(id string) *stream {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	req, err := http.NewRequestWithContext(ctx, "GET", a.web.URL+"?topic=x", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", id)
	resp, err := new(http.Transport).RoundTrip(req)
	if err != nil {
		a.t.Fatal(err)
	}
	s := &stream{t: a.t, close: cancel, lines: bufio.NewScanner(resp.Body)}
	a.t.Cleanup(cancel)
	return s
}

// next returns the data of the next event, or "reset" for a reset.
func (s *stream) next() string {
	s.t.Helper()
	text := ""
	for s.lines.Scan() {
		switch field, value, _ := strings.Cut(s.lines.Text(), ": "); field {
		case "id":
			s.id = value
		case "event", "data":
			text += value
		case "":
			if text != "" && text != "realtime.position" {
				return text
			}
			text = ""
		}
	}
	s.t.Fatalf("the stream has ended: %v", s.lines.Err())
	return ""
}

func (s *stream) expect(want ...string) {
	s.t.Helper()
	for _, w := range want {
		if got := s.next(); got != w {
			s.t.Fatalf("got %q, want %q", got, w)
		}
	}
}

// until skips the events before the given one, and that one.
func (s *stream) until(text string) {
	s.t.Helper()
	for s.next() != text {
	}
}

// Embedded nodes keep the history also while one of them doesn't run. Its clients
// resume at the other nodes, and at it when it runs again.
func TestEmbeddedHistory(t *testing.T) {
	t.Parallel() // the test mostly waits
	var configs []natsbroker.Config
	var routes []string
	for range 3 {
		addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
		routes = append(routes, addr)
		configs = append(configs, natsbroker.Config{Listen: addr, StoreDir: t.TempDir() + "/made/by it", Logger: slog.New(slog.DiscardHandler)})
	}
	start := func(i int) *archive {
		t.Helper()
		configs[i].Routes = routes
		b, err := natsbroker.Embedded("realtime", configs[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return newArchive(t, b.WithHistory())
	}
	var nodes []*archive
	for i := range configs {
		nodes = append(nodes, start(i))
	}
	nodes[0].say("warm up")
	var clients []*stream
	for i, n := range nodes {
		clients = append(clients, n.listen(""))
		n.say(fmt.Sprint("also ", i))
	}
	first := nodes[0].say("first")
	for _, c := range clients {
		c.until(first)
	}
	id := clients[2].id
	nodes[2].close()
	var said []string
	for i := range 50 {
		said = append(said, nodes[i%2].say(fmt.Sprint(i)))
	}
	last := said[len(said)-1]
	for _, c := range clients[:2] {
		c.until(last)
	}
	nodes[2] = start(2)
	for _, n := range nodes {
		c := n.listen(id)
		if got := c.next(); got == "reset" {
			// Publish had to be tried again while the others chose a leader.
			c.until(nodes[2].say("behind the reset"))
		} else if got != said[0] {
			t.Errorf("got %q, want %q", got, said[0])
		}
	}
	c := nodes[2].listen(clients[0].id)
	c.until(nodes[1].say("to the node that runs again"))
	if st := nodes[2].Stats(); st.Resumed == 0 {
		t.Errorf("Stats() = %+v", st)
	}
}

func TestHistoryConfig(t *testing.T) {
	for _, routes := range [][]string{nil, {"127.0.0.1:1", "127.0.0.1:2"}} {
		_, err := natsbroker.Embedded("realtime", natsbroker.Config{Listen: "127.0.0.1:0", Routes: routes, StoreDir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "three nodes") {
			t.Errorf("Embedded: %v", err)
		}
	}
	if _, err := natsbroker.Embedded("realtime", natsbroker.Config{StoreDir: "/dev/null/x"}); err == nil || !strings.Contains(err.Error(), "StoreDir") {
		t.Errorf("Embedded: %v", err)
	}
	b, err := natsbroker.Embedded("realtime", natsbroker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h := b.WithHistory()
	defer h.Close()
	if err := h.Start(new(log)); err != nil {
		t.Fatal(err)
	}
	if err := h.Follow(nil); err == nil || !strings.Contains(err.Error(), "StoreDir") {
		t.Errorf("Follow: %v", err)
	}
	if err := h.Append(t.Context(), nil); err == nil {
		t.Error("Append succeeds without Follow")
	}
}

// The history of a single process is there after its restart.
func TestEmbeddedAloneHistory(t *testing.T) {
	t.Parallel() // the test mostly waits
	config := natsbroker.Config{StoreDir: t.TempDir()}
	start := func() *archive {
		b, err := natsbroker.Embedded("realtime", config)
		if err != nil {
			t.Fatal(err)
		}
		return newArchive(t, b.WithHistory())
	}
	a := start()
	for try := 1; ; try++ {
		c := a.listen("")
		c.until(a.say(fmt.Sprint("first ", try)))
		second, third := a.say(fmt.Sprint("second ", try)), a.say(fmt.Sprint("third ", try))
		a.close()
		a = start()
		back := a.listen(c.id)
		got := back.next()
		if got == "reset" && try < 5 { // a busy machine needs more than the hub's 2 s for an event
			continue
		}
		if got != second {
			t.Fatalf("got %q, want %q", got, second)
		}
		back.expect(third)
		back.until(a.say("last"))
		return
	}
}

// After somebody has deleted the stream the nodes make another. Clients that
// reconnect with an id of the former one get a reset.
func TestStreamIsDeleted(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	a, b := newArchive(t, engine.HistoryBroker()), newArchive(t, engine.HistoryBroker())
	c := b.listen("")
	other := a.listen("") // both nodes have the stream before it is deleted
	first := a.say("1")
	c.until(first)
	other.until(first)
	id := c.id
	js, err := jetstream.New(connect(t, engine.url(0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "realtime"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gap", func() bool { return b.Stats().Gaps > 0 && a.Stats().Gaps > 0 })
	c.until(a.say("2"))
	for _, n := range []*archive{a, b} {
		n.listen(id).expect("reset")
		resumed := n.listen(c.id)
		resumed.until(n.say("3"))
		if st := n.Stats(); st.Resumed != 1 {
			t.Errorf("Stats() = %+v", st)
		}
	}
}

// A stream that has lost its newest records gives no number twice. A server that
// is restored from a backup has such a stream.
func TestStreamLosesRecords(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	a := newArchive(t, engine.HistoryBroker())
	c := a.listen("")
	c.until(a.say("1"))
	backup := t.TempDir()
	dir := engine.options[0].StoreDir
	engine.Stop()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	engine.Start()
	lost := a.say("2")
	c.until(lost)
	id := c.id
	engine.Stop()
	os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	engine.Start()
	eventually(t, "gap", func() bool { return a.Stats().Gaps > 0 })
	c.until(a.say("3"))
	a.listen(id).expect("reset")
	if fresh := newArchive(t, engine.HistoryBroker()); fresh.listen(id).next() != "reset" {
		t.Error("the id of a lost event resumes")
	}
}

// An event above the server's max_payload is refused. That is no outage.
func TestRecordTooLarge(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	a := newArchive(t, engine.HistoryBroker())
	c := a.listen("")
	c.until(a.say("1"))
	late := int64(0) // events for which a busy machine took too long
	publish := func(size int) (err error) {
		for range 20 {
			err = a.Publish(t.Context(), "x", realtime.Event{Data: bytes.Repeat([]byte("x"), size)})
			if !errors.Is(err, realtime.ErrBrokerUnavailable) || errors.Is(err, realtime.ErrEventTooLarge) {
				break
			}
			late++
		}
		return err
	}
	for _, size := range []int{1<<20 - 5000, 1 << 20, 5 << 20} {
		err := publish(size)
		if want := size >= 1<<20; errors.Is(err, realtime.ErrEventTooLarge) != want || (err != nil) != want {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	a.say("2")
	eventually(t, "working broker", func() bool { return !a.Stats().BrokerDown })
	if st := a.Stats(); st.Unsent != 2+late || st.Published != 5+late {
		t.Errorf("Stats() = %+v", st)
	}
}

// A tally is a handler that checks whether all records have come when the log is
// said to be current.
type tally struct {
	t *testing.T

	mu      sync.Mutex // guards the fields below
	last    uint64
	current bool
	again   bool // the last record may come again
}

func (c *tally) Record(_ string, seq uint64, _ []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq != c.last+1 && !(c.again && seq == c.last) {
		c.t.Errorf("record %d came after %d", seq, c.last)
	}
	c.last, c.again = seq, false
}

func (c *tally) Current(_ string, last uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last != c.last {
		c.t.Errorf("the log is said to be current with %d records, and %d came", last, c.last)
	}
	c.current = true
}

func (c *tally) Away(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.again = true
}

func (c *tally) isCurrent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// A server serves consumers while it lags behind the others. The log isn't
// current when that server has no more records.
func TestLaggingServer(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 3)
	follow := func(server int) (*natsbroker.HistoryBroker, *tally) {
		b := natsbroker.New("realtime", connect(t, engine.url(server))).WithHistory()
		b.Replicas = 3
		if err := b.Start(new(log)); err != nil {
			t.Fatal(err)
		}
		c := &tally{t: t}
		if err := b.Follow(c); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b, c
	}
	first, c := follow(0)
	eventually(t, "stream", c.isCurrent)
	engine.kill(2)
	record := bytes.Repeat([]byte("x"), 100<<10)
	appended := 0
	eventually(t, "leader", func() bool {
		for ; appended < 400; appended++ {
			if first.Append(t.Context(), record) != nil {
				return false
			}
		}
		return true
	})
	var starting sync.WaitGroup
	starting.Go(func() { engine.Start() })
	time.Sleep(200 * time.Millisecond)
	for i := range 20 {
		_, c := follow(i % 2)
		time.Sleep(50 * time.Millisecond)
		defer eventually(t, "current log", c.isCurrent)
	}
	starting.Wait()
}

// An event above MaxBytes is refused. The stream would accept it, and drop it.
func TestMaxBytes(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	b := engine.HistoryBroker().(*natsbroker.HistoryBroker)
	b.MaxBytes = 100 << 10
	a := newArchive(t, b)
	a.say("1")
	err := a.Publish(t.Context(), "x", realtime.Event{Data: bytes.Repeat([]byte("y"), 200<<10)})
	if !errors.Is(err, realtime.ErrEventTooLarge) {
		t.Errorf("Publish: %v, want ErrEventTooLarge", err)
	}
}

// A diary is a handler that notes what it is told.
type diary struct {
	mu    sync.Mutex // guards the field below
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) all() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, " ")
}

func (d *diary) Record(_ string, seq uint64, record []byte) {
	d.note(fmt.Sprint(seq, "=", string(record)))
}
func (d *diary) Current(_ string, last uint64) { d.note(fmt.Sprint("current:", last)) }
func (d *diary) Away(err error)                { d.note("away") }

// After an outage the last record comes again, before the log is said to be
// current: the hub sees by it whether the log is the one that it has read.
func TestLastRecordComesAgain(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	b := engine.HistoryBroker()
	if err := b.Start(new(log)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	var got diary
	if err := b.Follow(&got); err != nil {
		t.Fatal(err)
	}
	say := func(record string) {
		t.Helper()
		eventually(t, "record "+record, func() bool { return b.Append(t.Context(), []byte(record)) == nil })
	}
	eventually(t, "current log", func() bool { return strings.HasSuffix(got.all(), "current:0") })
	say("a")
	say("b")
	eventually(t, "records", func() bool { return strings.HasSuffix(got.all(), "1=a 2=b") })
	engine.Stop()
	eventually(t, "outage", func() bool { return strings.HasSuffix(got.all(), "away") })
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "current log", func() bool { return strings.HasSuffix(got.all(), "away 2=b current:2") })
	say("c")
	eventually(t, "next record", func() bool { return strings.HasSuffix(got.all(), "current:2 3=c") })
}

// Somebody has deleted the newest records one by one. The log is current all the
// same: what is gone isn't waited for.
func TestLastRecordIsDeleted(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	a := newArchive(t, engine.HistoryBroker())
	for i := range 3 {
		a.say(fmt.Sprint(i))
	}
	js, err := jetstream.New(connect(t, engine.url(0)))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "realtime")
	if err != nil {
		t.Fatal(err)
	}
	last := stream.CachedInfo().State.LastSeq
	for seq := last - 1; seq <= last; seq++ {
		if err := stream.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	b := newArchive(t, engine.HistoryBroker())
	b.say("x")
	eventually(t, "working history", func() bool { return !b.Stats().BrokerDown })
}
