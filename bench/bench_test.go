//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestMain lets the test program be a server too. startServer starts it as one.
func TestMain(m *testing.M) {
	contenders = slices.Concat(contenders, broken)
	if is, err := beServer(os.Args[1:]); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	contenders = contenders[:len(contenders)-len(broken)]
	if os.Getenv("GORACE") == "" { // by default servers would end a second late
		os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	os.Exit(m.Run())
}

// short is a workload for tests.
var short = workload{
	clients:  20,
	threads:  2,
	duration: 100 * time.Millisecond,
	settle:   20 * time.Millisecond,
	stall:    10 * time.Second,
	limit:    20 * time.Second,
}

// TestContenders measures each contender. The load checks that every client gets
// every message unchanged, once and in order.
func TestContenders(t *testing.T) {
	for _, c := range slices.Concat(contenders, tlsContenders) {
		name := c.name
		if c.tls {
			name += " over TLS"
		}
		t.Run(name, func(t *testing.T) {
			work := short
			work.profiles = t.TempDir()
			f, err := work.measure(t.Context(), &c)
			if err != nil {
				t.Fatal(err)
			}
			if f.lost != 0 || f.disconnected != 0 {
				t.Errorf("lost %d messages and %d clients (%v)", f.lost, f.disconnected, f.reason)
			}
			checkRate(t, "connect", f.connect)
			checkDelivery(t, "single", f.single)
			checkDelivery(t, "burst", f.burst)
			if c.echoes {
				checkRate(t, "echo", f.echo)
			} else if f.echo != (rate{}) {
				t.Errorf("echo: got %+v, want none", f.echo)
			}
			if most := 1e6; max(f.joined, f.idle) > most || min(f.joined, f.idle) < -most {
				t.Errorf("got %.0f bytes a client, and %.0f after a collection", f.joined, f.idle)
			}
			for _, stage := range []string{"single", "burst"} {
				file := filepath.Join(work.profiles, fmt.Sprintf("%s-%d-%s.pprof", c.name, work.clients, stage))
				if info, err := os.Stat(file); err != nil || info.Size() == 0 {
					t.Errorf("profile: %v", err)
				}
			}
		})
	}
}

// checkRate checks that a rate is plausible. The bounds also hold under the race
// detector and beside other tests.
func checkRate(t *testing.T, what string, r rate) {
	t.Helper()
	if r.cpu <= 0 || r.cpu > 1e5 || r.second < 1 || r.second > 1e9 || r.load < 0 || r.load > 64 || r.kernel < 0 || r.kernel > 1 {
		t.Errorf("%s: implausible: %+v", what, r)
	}
}

func checkDelivery(t *testing.T, what string, d delivery) {
	t.Helper()
	checkRate(t, what, d.rate)
	checkLatency(t, what+" to a client", d.toAny)
	checkLatency(t, what+" to the last client", d.toLast)
	if d.toLast.p50 < d.toAny.p50 {
		t.Errorf("%s: got %v µs to the last client, less than %v to any", what, d.toLast.p50, d.toAny.p50)
	}
}

func checkLatency(t *testing.T, what string, l latency) {
	t.Helper()
	if l.p50 <= 0 || l.p50 > l.p99 || l.p99 > 1e7 {
		t.Errorf("%s: implausible: %+v", what, l)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range []string{"-contenders nobody", "-clients 0", "-clients many", "-rounds 0", "-growth wealth", "-duration 0s", "-clients 100000000", "quick", "-tls -contenders melody"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s: got no error", args)
		}
	}
}

// -quick must not change flags that are given.
func TestQuickKeepsOthers(t *testing.T) {
	c, err := parse([]string{"-quick", "-clients", "7,8", "-contenders", "gws,floor"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.clients, []int{7, 8}) || c.rounds != 1 || c.out != "" || len(c.contenders) != 2 {
		t.Errorf("got %+v", c)
	}
}

// TestStampede lets some clients reconnect. The load checks that each gets what it
// missed, once and in order.
func TestStampede(t *testing.T) {
	for i := range stampeders {
		line, err := short.stampede(t.Context(), &stampeders[i], short.clients)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("BenchmarkStampede/clients=%d/%s", short.clients, stampeders[i].name)
		g := parseGrowth(line)
		p50, p99 := g.median(name, "p50-ms"), g.median(name, "p99-ms")
		if cpu := g.median(name, "cpu-ns/client"); cpu <= 0 || p50 > p99 || p99 > 1e4 {
			t.Errorf("implausible: %s", line)
		}
	}
}

// TestTLSFlag checks that -tls has contenders of its own.
func TestTLSFlag(t *testing.T) {
	c, err := parse([]string{"-tls", "-contenders", "go-sse-http2,realtime"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.clients, []int{2000}) || !c.contenders[0].http2 || !c.contenders[1].tls {
		t.Errorf("got %+v", c)
	}
}

// broken are contenders that misbehave.
var broken = []contender{
	{"lossy", "", noEcho, serveLossy},
	{"swapping", "", noEcho, serveSwapping},
	{"crashing", "", noEcho, func() (http.Handler, func(int, func() []byte)) {
		return new(room), func(int, func() []byte) { panic("crashing on purpose") }
	}},
	{"hanging", "", noEcho, func() (http.Handler, func(int, func() []byte)) {
		return new(room), func(int, func() []byte) { select {} }
	}},
	{"silent", "", noEcho, func() (http.Handler, func(int, func() []byte)) { select {} }},
	{"refusing", "", noEcho, func() (http.Handler, func(int, func() []byte)) {
		return http.NotFoundHandler(), func(int, func() []byte) {}
	}},
}

// TestBroken checks that a contender that can't be measured is reported soon.
func TestBroken(t *testing.T) {
	for name, want := range map[string]string{
		"swapping": "came after",
		"crashing": "crashing on purpose",
		"hanging":  "not done after 3s",
		"silent":   "not done after 3s",
		"refusing": "404",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work := short
			if strings.Contains(want, "not done") {
				work.limit = 3 * time.Second
			}
			began := time.Now()
			c := &broken[slices.IndexFunc(broken, func(c contender) bool { return c.name == name })]
			_, err := work.measure(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %q", err, want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("the report came after %v, want less than 10 s", took)
			}
		})
	}
}

// TestLossy checks that losses are counted and don't fail the measurement.
func TestLossy(t *testing.T) {
	work := short
	work.stall = 300 * time.Millisecond
	f, err := work.measure(t.Context(), &broken[0])
	if err != nil {
		t.Fatal(err)
	}
	if f.lost == 0 {
		t.Error("no lost messages were counted")
	}
	if f.disconnected != 1 || f.reason == nil {
		t.Errorf("%d clients were disconnected, want 1; %v", f.disconnected, f.reason)
	}
	checkRate(t, "single", f.single.rate)
	checkRate(t, "burst", f.burst.rate)
}

// serveLossy doesn't send every tenth message to one client, and disconnects
// another one.
func serveLossy() (http.Handler, func(int, func() []byte)) {
	room, published := new(room), 0
	return room, func(n int, next func() []byte) {
		for range n {
			published++
			msg := next()
			room.each(func(i int, conn *websocket.Conn) {
				switch {
				case i == 0 && published%10 == 0:
				case i == 1 && published == 50:
					conn.CloseNow()
				default:
					room.write(conn, msg)
				}
			})
		}
	}
}

// serveSwapping sends the messages of a burst in reverse order. Then it hangs.
func serveSwapping() (http.Handler, func(int, func() []byte)) {
	room := new(room)
	return room, func(n int, next func() []byte) {
		var msgs [][]byte
		for range n {
			msgs = append(msgs, next())
		}
		slices.Reverse(msgs)
		for _, msg := range msgs {
			room.each(func(_ int, conn *websocket.Conn) { room.write(conn, msg) })
		}
		if n > 1 {
			select {}
		}
	}
}

// A room is a minimal server of WebSocket clients.
type room struct {
	mu    sync.Mutex // guards the field below
	conns []*websocket.Conn
}

func (r *room) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	conn, err := websocket.Accept(w, req, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	left := conn.CloseRead(req.Context())
	r.mu.Lock()
	r.conns = append(r.conns, conn)
	r.mu.Unlock()
	<-left.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = slices.DeleteFunc(r.conns, func(c *websocket.Conn) bool { return c == conn })
}

func (r *room) each(do func(i int, conn *websocket.Conn)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, conn := range r.conns {
		do(i, conn)
	}
}

func (r *room) write(conn *websocket.Conn, msg []byte) {
	conn.Write(context.Background(), websocket.MessageText, msg) // the load notices a client that has left
}
