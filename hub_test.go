package realtime_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// TestMain fails on goroutines that tests have left behind.
func TestMain(m *testing.M) {
	if role := os.Getenv("REALTIME_TEST_PROCESS"); role != "" {
		os.Exit(childProcess(role))
	}
	// Many tests wait rather than work: more of them run at a time than there
	// are processors.
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue && flag.Lookup("test.fuzz").Value.String() == "" {
		n.Value.Set(strconv.Itoa(max(8, runtime.GOMAXPROCS(0))))
	}
	code := m.Run()
	Chat.Shutdown(context.Background()) // if its test didn't run
	if code == 0 {
		deadline := time.Now().Add(time.Minute)
		for runtime.NumGoroutine() > 2 && time.Now().Before(deadline) {
			http.DefaultClient.CloseIdleConnections()
			time.Sleep(10 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > 2 {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines are left:\n%s\n", n, stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
	}
	os.Exit(code)
}

func TestBroadcastReachesEveryClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		go hub.Run()
		s := newPipeSite(t, hub)
		a, b := s.connect(), s.connect()
		if got := hub.ClientCount(); got != 2 {
			t.Errorf("ClientCount() = %d right after the handshakes, want 2", got)
		}
		hub.Broadcast <- []byte("hello")
		for _, c := range []*websocket.Conn{a, b} {
			if got := read(t, c); got != "hello" {
				t.Errorf("got %q, want %q", got, "hello")
			}
		}
		a.Close(websocket.StatusNormalClosure, "")
		synctest.Wait()
		if got := hub.ClientCount(); got != 1 {
			t.Errorf("ClientCount() = %d after one left, want 1", got)
		}
	})
}

// The settings may be assigned when Run runs already: they are read by the
// first client.
func TestSettingsAfterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		go hub.Run()
		synctest.Wait()
		hub.PingInterval = 3 * time.Second
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x81, []byte("echo")))
		if first, payload, err := c.readFrame(); first != 0x81 || string(payload) != "echo" {
			t.Errorf("got frame %#x %q, %v; want the echo", first, payload, err)
		}
		start := time.Now()
		if first, _, err := c.readFrame(); first != 0x89 || !inTime(time.Since(start), 3*time.Second) {
			t.Errorf("got frame %#x, %v after %v; want a ping after 3 s", first, err, time.Since(start))
		}
	})
}

// The first event reads the settings as well: on the loop, but for the
// publisher's goroutine to see.
func TestSettingsBeforeFirstEvent(t *testing.T) {
	hub := realtime.NewHub()
	go hub.Run()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.Broadcast <- []byte("\xff")
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := lines.String(); !strings.Contains(got, "not valid UTF-8") {
		t.Errorf("the Logger assigned after Run got %q", got)
	}
}

// The most that a setting can be means never.
func TestLargestSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.SendBuffer, hub.MaxClients, hub.MaxMessageBytes = math.MaxInt, math.MaxInt, math.MaxInt64
		hub.SlowAfter, hub.WriteTimeout, hub.LeaveAfter = math.MaxInt64, math.MaxInt64, math.MaxInt64
		hub.PingInterval, hub.PongTimeout = math.MaxInt64, math.MaxInt64
		hub.History = realtime.History{Events: math.MaxInt, Age: math.MaxInt64, Values: math.MaxInt}
		s := newPipeSite(t, hub)
		const events = 300
		for range events {
			hub.PublishAll(t.Context(), realtime.Event{Data: make([]byte, 1<<10)})
		}
		conn := s.connectAs("lastEventId=oldest", realtime.Subprotocol)
		if got := read(t, conn); !strings.HasSuffix(got, `,"interval":2147483647}`) {
			t.Errorf("the first object is %s, want an interval that fits a timer of a script", got)
		}
		for i := range events {
			if got := read(t, conn); !strings.Contains(got, `"data"`) {
				t.Fatalf("object %d is %s, want event %d of the replay", i, got, i)
			}
			if i%10 == 0 {
				time.Sleep(2 * time.Second)
			}
		}
		for c := range hub.Clients() {
			for range 3 {
				if err := c.Send(bytes.Repeat([]byte("x"), 4<<20)); err != nil {
					t.Errorf("Send: %v, though so few wait", err)
				}
			}
		}
	})
}

// Settings for which less than zero means the default have it then, too.
func TestNegativeSettings(t *testing.T) {
	newHub := func() *realtime.Hub {
		hub := realtime.NewHub()
		hub.SendBuffer, hub.MaxMessageBytes, hub.PongTimeout, hub.WriteTimeout = -1, -1, -1, -1
		return hub
	}
	t.Run("MaxMessageBytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newPipeSite(t, newHub()).raw()
			go c.send(frame(0x82, make([]byte, 512<<10+1)))
			c.expectClose(1009)
		})
	})
	t.Run("PongTimeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := newHub()
			l := recordLeft(hub)
			c := newPipeSite(t, hub).raw()
			io.Copy(io.Discard, c.br)
			synctest.Wait()
			if !within(l.at, 113*time.Second) {
				t.Errorf("gone after %v with %v, want 113 s and at most one more", l.at, l.err)
			}
		})
	})
	t.Run("SendBuffer and WriteTimeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := newHub()
			l := recordLeft(hub)
			s := newPipeSite(t, hub)
			s.raw() // never reads
			hub.Broadcast <- []byte("x")
			time.Sleep(15 * time.Second)
			synctest.Wait()
			if !within(l.at, 10*time.Second) || l.err == nil || !strings.Contains(l.err.Error(), "WriteTimeout") {
				t.Errorf("gone after %v with %v, want WriteTimeout after 10 s", l.at, l.err)
			}
		})
	})
}

func TestRunIsOptional(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Broadcast <- []byte("nobody is there")
		s := newPipeSite(t, hub)
		c := s.connect() // starts the hub
		hub.Broadcast <- []byte("hello")
		for {
			if got := read(t, c); got == "hello" {
				break
			}
		}
		// Run late, and twice.
		errs := make(chan error, 2)
		go func() { errs <- hub.Run() }()
		go func() { errs <- hub.Run() }()
		synctest.Wait()
		if len(errs) != 0 {
			t.Fatal("Run returned before Shutdown")
		}
		go closeStatus(c)
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Errorf("Run: %v, want nil after Shutdown", err)
			}
		}
		if err := hub.Run(); err != nil {
			t.Errorf("Run after Shutdown: %v, want nil", err)
		}
	})
}

func TestFirstPublishStartsTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Broadcast <- []byte("before")
		if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := hub.Stats().Published; got != 2 {
			t.Errorf("Published = %d, want 2", got)
		}
		hub.Shutdown(t.Context())
	})
}

func TestHubNotMadeByNewHub(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	for name, hub := range map[string]*realtime.Hub{"nil": nil, "literal": {}} {
		t.Run(name, func(t *testing.T) {
			var lines safeBuffer
			slog.SetDefault(textLogger(&lines))
			rec := httptest.NewRecorder()
			upgradeErr := realtime.Upgrade(rec, httptest.NewRequest("GET", "/", nil), hub)
			if rec.Code != http.StatusInternalServerError {
				t.Errorf("Upgrade answered %d, want 500", rec.Code)
			}
			if got := lines.String(); !strings.Contains(got, "realtime: upgrade: ") || !strings.Contains(got, "realtime.NewHub") {
				t.Errorf("Upgrade logged %q, want a line that names realtime.NewHub", got)
			}
			for call, err := range map[string]error{
				"Upgrade":    upgradeErr,
				"Run":        hub.Run(),
				"PublishAll": hub.PublishAll(t.Context(), realtime.Event{}),
				"Shutdown":   hub.Shutdown(t.Context()),
			} {
				if err == nil || !strings.Contains(err.Error(), "realtime.NewHub") {
					t.Errorf("%s: %v; want an error that names realtime.NewHub", call, err)
				}
			}
			// Nobody reads the error of "go hub.Run()".
			if got := lines.String(); !strings.Contains(got, "realtime: run: ") || !strings.Contains(got, "realtime.NewHub") {
				t.Errorf("Run logged %q, want a line that names realtime.NewHub", got)
			}
			for range hub.Clients() {
				t.Error("it has a client")
			}
			if n := hub.ClientCount() + hub.Stats().Clients; n != 0 {
				t.Errorf("it counts %d clients", n)
			}
			<-hub.Done()
		})
	}
}

// What one goroutine publishes arrives in order, whichever way it took.
func TestOrderOfBroadcastAndPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		conns := []*websocket.Conn{s.connect(), s.connect(), s.connect()}
		const events = 5000
		var clients sync.WaitGroup
		clients.Go(func() {
			for i := range events {
				data := []byte(strconv.Itoa(i))
				if i%7 == 0 {
					if err := hub.PublishAll(context.Background(), realtime.Event{Data: data}); err != nil {
						t.Error(err)
					}
				} else {
					hub.Broadcast <- data
				}
			}
		})
		for _, c := range conns {
			clients.Go(func() {
				for i := range events {
					_, data, err := c.Read(context.Background())
					if err != nil || string(data) != strconv.Itoa(i) {
						t.Errorf("message %d is %q, %v", i, data, err)
						return
					}
				}
			})
		}
		clients.Wait()
	})
}

// An OnMessage that broadcasts far more than any buffer holds neither
// deadlocks nor loses anything.
func TestOnMessageBroadcastsThousands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			for i := range 5000 {
				hub.Broadcast <- fmt.Appendf(nil, "%s %d", msg.Data, i)
			}
		}
		s := newPipeSite(t, hub)
		conns := []*websocket.Conn{s.connect(), s.connect(), s.connect()}
		var clients sync.WaitGroup
		for n, c := range conns {
			clients.Go(func() {
				write(t, c, strconv.Itoa(n))
				var next [3]int
				for range 3 * 5000 {
					_, data, err := c.Read(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					var who, i int
					fmt.Sscanf(string(data), "%d %d", &who, &i)
					if i != next[who] {
						t.Errorf("from %d got %d, want %d", who, i, next[who])
						return
					}
					next[who]++
				}
			})
		}
		clients.Wait()
	})
}

func TestClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		for range 20 {
			go closeStatus(s.connect())
		}
		seen := make(map[string]bool)
		for c := range hub.Clients() {
			seen[c.ID()] = true
			c.Close(1000, "") // calling back is fine
			if len(seen) == 10 {
				break
			}
		}
		synctest.Wait()
		n := 0
		for c := range hub.Clients() {
			n++
			if seen[c.ID()] {
				t.Error("a client that was closed is still listed")
			}
		}
		if len(seen) != 10 || n != 10 {
			t.Errorf("saw %d, then %d clients, want 10 and 10", len(seen), n)
		}
	})
}

// Clients lists who counts: nobody who is in OnConnect still, or leaving.
func TestClientsListsMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		list := func() (n int) {
			for range hub.Clients() {
				n++
			}
			return n
		}
		var client *realtime.Client
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			if n := list(); n != 0 {
				t.Errorf("%d clients are listed within OnConnect", n)
			}
			client = c
			return nil
		}
		s := newPipeSite(t, hub)
		s.raw()
		if n := list(); n != 1 {
			t.Errorf("%d clients are listed, want 1", n)
		}
		client.Close(1000, "")
		if n := list(); n != 0 {
			t.Errorf("%d clients are listed after Close, want none", n)
		}
	})
}

// Stats is exact, also for a hub without handlers.
func TestStatsWithoutHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x81, []byte("one")))
		c.send(frame(0x82, []byte("two")))
		c.send(frame(0x88, nil))
		c.readFrame()
		c.expectEnd()
		synctest.Wait()
		if got, want := hub.Stats(), (realtime.Stats{Received: 2, Left: realtime.Left{Closed: 1}}); got != want {
			t.Errorf("Stats() = %+v, want %+v", got, want)
		}
		if got := lines.String(); got != "" {
			t.Errorf("logged %q", got)
		}
	})
}

// badEvents can't be sent.
var badEvents = []realtime.Event{{Data: []byte("\xff")}, {Name: "a\nb"}, {Name: "a\rb"}, {ID: "1"}}

func TestPublishAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := hub.PublishAll(ctx, realtime.Event{Data: []byte("no")}); !errors.Is(err, context.Canceled) {
			t.Errorf("with a canceled ctx: %v, want context.Canceled", err)
		}
		for _, bad := range badEvents {
			if err := hub.PublishAll(t.Context(), bad); err == nil {
				t.Errorf("PublishAll(%+v) is no error", bad)
			}
		}
		for _, e := range []realtime.Event{
			{Data: []byte("text")},
			{Data: []byte{0xFF, 0}, Binary: true},
			{},
			{Data: []byte(strings.Repeat("x", 125))},
			{Data: []byte(strings.Repeat("x", 126))},
			{Data: []byte(strings.Repeat("x", 65535))},
			{Data: []byte(strings.Repeat("x", 65536))},
		} {
			if err := hub.PublishAll(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			first, payload, err := c.readFrame()
			want := byte(0x81)
			if e.Binary {
				want = 0x82
			}
			if err != nil || first != want || string(payload) != string(e.Data) {
				t.Errorf("got frame %#x of %d bytes, %v; want %#x of %d", first, len(payload), err, want, len(e.Data))
			}
		}
	})
}

// A closed channel is always ready. The hub takes what is in it, and runs on.
func TestBroadcastIsClosed(t *testing.T) {
	for _, begin := range []string{"before a client", "with a client", "while the hub shuts down"} {
		t.Run(begin, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				go hub.Run()
				s := newPipeSite(t, hub)
				if begin == "before a client" {
					close(hub.Broadcast)
				}
				c := s.connect()
				if begin == "with a client" {
					hub.Broadcast <- []byte("last")
					close(hub.Broadcast)
					if got := read(t, c); got != "last" {
						t.Errorf("got %q, want what was sent before the close", got)
					}
				}
				if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("published")}); err != nil {
					t.Error(err)
				}
				if got := read(t, c); got != "published" {
					t.Errorf("got %q, want what was published after the close", got)
				}
				go func() {
					if begin == "while the hub shuts down" {
						<-hub.Done()
						close(hub.Broadcast)
						time.Sleep(time.Second) // which doesn't pass if the hub is busy
					}
					closeStatus(c)
				}()
				if err := hub.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if got := hub.Stats(); got.Published > 2 || got.Dropped != 0 {
					t.Errorf("%d events were published and %d messages dropped, want no others", got.Published, got.Dropped)
				}
			})
		})
	}
}

// Text that is not UTF-8 would make every browser drop its connection.
func TestBroadcastOfInvalidText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		s := newPipeSite(t, hub)
		c := s.raw()
		for range 3 {
			hub.Broadcast <- []byte("\xffbinary")
			if first, payload, err := c.readFrame(); first != 0x82 || string(payload) != "\xffbinary" {
				t.Errorf("got frame %#x %q, %v; want it as binary", first, payload, err)
			}
		}
		if got := hub.Stats().InvalidText; got != 3 {
			t.Errorf("InvalidText = %d, want 3", got)
		}
		time.Sleep(time.Second)
		hub.Broadcast <- []byte("\xff")
		c.readFrame()
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "not valid UTF-8") != 2 || !strings.Contains(got, "skipped=2") {
			t.Errorf("logged %q; want two lines, the second with skipped=2", got)
		}
	})
}

// A handler that blocks, or a Logger, holds back nobody else.
func TestBlockedHandlersHarmNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		gate := make(chan struct{})
		hub.Logger = textLogger(writerFunc(func(p []byte) (int, error) {
			<-gate
			return len(p), nil
		}))
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			if string(msg.Data) == "block" {
				<-gate
			}
			msg.Client.Send(msg.Data)
		}
		hub.OnDisconnect = func(*realtime.Client, error) { <-gate }
		s := newPipeSite(t, hub)
		stuck, gone, healthy := s.connect(), s.raw(), s.connect()
		write(t, stuck, "block")
		gone.conn.Close()
		for range 200 {
			hub.Broadcast <- []byte("\xff") // wants to log
		}
		for range 200 {
			read(t, healthy)
		}
		write(t, healthy, "echo")
		if got := read(t, healthy); got != "echo" {
			t.Errorf("got %q, want the echo", got)
		}
		synctest.Wait() // until it is noticed that one is gone
		if got := hub.ClientCount(); got != 2 {
			t.Errorf("ClientCount() = %d, want 2", got)
		}
		go closeStatus(stuck)
		go closeStatus(healthy)
		close(gate)
	})
}

func TestHandlerPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			if string(msg.Data) == "exit" {
				runtime.Goexit()
			}
			panic("oh no")
		}
		hub.OnDisconnect = func(*realtime.Client, error) { panic("again") }
		s := newPipeSite(t, hub)
		healthy := s.connect()
		c := s.connect()
		write(t, c, "hi")
		if status := closeStatus(c); status.Code != websocket.StatusInternalError {
			t.Errorf("closed with %v, want 1011", status)
		}
		c = s.connect()
		write(t, c, "exit")
		closeStatus(c)
		synctest.Wait()
		if got := hub.ClientCount(); got != 1 {
			t.Errorf("ClientCount() = %d, want 1", got)
		}
		hub.Broadcast <- []byte("still here")
		if got := read(t, healthy); got != "still here" {
			t.Errorf("got %q", got)
		}
		if got := lines.String(); !strings.Contains(got, "OnMessage panicked") || !strings.Contains(got, "oh no") || !strings.Contains(got, "hub_test.go") {
			t.Errorf("logged %q; want the panic with its stack", got)
		}
		if got := hub.Stats().Panics; got != 3 {
			t.Errorf("Panics = %d, want 3", got)
		}
		go closeStatus(healthy)
	})
}
