package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

func TestShutdownDeliversWhatIsQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		ran := make(chan error, 1)
		go func() { ran <- hub.Run() }()
		var causes []error
		hub.OnDisconnect = func(_ *realtime.Client, err error) { causes = append(causes, err) }
		s := newPipeSite(t, hub)
		c := s.raw()
		const events = 200
		for i := range events {
			hub.Broadcast <- fmt.Append(nil, i)
		}
		down := make(chan error, 1)
		go func() { down <- hub.Shutdown(context.Background()) }()
		for i := range events {
			if _, payload, err := c.readFrame(); err != nil || string(payload) != fmt.Sprint(i) {
				t.Fatalf("message %d is %q, %v", i, payload, err)
			}
		}
		c.expectClose(1001)
		c.send(frame(0x88, []byte{3, 0xE9}))
		start := time.Now()
		c.expectEnd()
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("Shutdown took %v more after the client's answer", d)
		}
		if err := <-ran; err != nil {
			t.Errorf("Run: %v, want nil after Shutdown", err)
		}
		if len(causes) != 1 || !errors.Is(causes[0], realtime.ErrHubClosed) {
			t.Errorf("OnDisconnect got %v, want ErrHubClosed once", causes)
		}
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Errorf("second Shutdown: %v", err)
		}
	})
}

// What was sent to Broadcast before Shutdown began is published, also where
// the hub had not looked at it yet.
func TestShutdownPublishesWhatBroadcastHolds(t *testing.T) {
	for range 30 { // the loop may find either first
		hub := realtime.NewHub()
		for range 100 {
			hub.Broadcast <- []byte("x")
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := hub.Stats(); st.Published != 100 || st.Dropped != 0 {
			t.Fatalf("Published = %d, Dropped = %d, want 100 and 0", st.Published, st.Dropped)
		}
	}
}

// When Shutdown returns, nothing of the hub is left running.
func TestShutdownLeavesNothing(t *testing.T) {
	for range 20 {
		hub := realtime.NewHub()
		hub.Logger = quiet
		s := newTCPSite(t, hub)
		go closeStatus(s.connect())
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"(*shard).loop", "(*Hub).sweep", "(*parker).loop", "(*Client).serve", "(*Client).drain"} {
			if n := running(f); n != 0 {
				t.Fatalf("%d %s are running", n, f)
			}
		}
	}
}

func TestShutdownOfAHubThatNeverRan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		select {
		case <-hub.Done():
			t.Error("Done is closed before Shutdown")
		default:
		}
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-hub.Done()
		if err := hub.Run(); err != nil {
			t.Errorf("Run after Shutdown: %v, want nil", err)
		}
	})
}

// A second caller waits for the first.
func TestShutdownTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw() // doesn't answer: 5 s
		go io.Copy(io.Discard, c.br)
		start := time.Now()
		var calls sync.WaitGroup
		for range 3 {
			calls.Go(func() {
				if err := hub.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
				if d := time.Since(start); !within(d, 5*time.Second) {
					t.Errorf("returned after %v, want 5 s and at most one more", d)
				}
			})
		}
		calls.Wait()
	})
}

func TestShutdownContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		s.raw() // neither reads nor answers
		hub.Broadcast <- []byte("stuck")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := hub.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v, want DeadlineExceeded", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("Shutdown returned after %v, want 1 s", d)
		}
		if l.n != 1 || !errors.Is(l.err, realtime.ErrHubClosed) {
			t.Errorf("OnDisconnect: %d times, last with %v; want ErrHubClosed once", l.n, l.err)
		}
		if got := hub.Stats().Dropped; got != 1 {
			t.Errorf("Dropped = %d, want 1", got)
		}
	})
}

// With a DrainOver the clients are closed evenly over that time. Until its turn each
// gets all that is published. Nobody else is let in.
func TestDrainOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, every = 20, 500 * time.Millisecond
		hub := realtime.NewHub()
		hub.DrainOver = clients * every
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) { hub.Broadcast <- msg.Data }
		s := newPipeSite(t, hub)
		start := time.Now()
		var left [clients]int // how many were closed so far, by turn
		var mu sync.Mutex
		note := func(got []string) {
			mu.Lock()
			defer mu.Unlock()
			turn := int(time.Since(start) / every)
			if at := time.Since(start); at != time.Duration(turn)*every || turn >= clients {
				t.Errorf("a client was closed at %v", at)
				return
			}
			left[turn]++
			if len(got) != 10*turn {
				t.Errorf("turn %d: got %d events, want %d", turn, len(got), 10*turn)
			}
			for i, text := range got {
				if text != fmt.Sprint(i) {
					t.Errorf("turn %d: event %d is %q", turn, i, text)
				}
			}
		}
		var wg sync.WaitGroup
		for range clients / 2 {
			conn, stream := s.connect(), s.listen("")
			wg.Go(func() {
				var got []string
				for {
					_, data, err := conn.Read(t.Context())
					if err != nil {
						if websocket.CloseStatus(err) != 1001 {
							t.Errorf("closed with %v, want 1001", err)
						}
						note(got)
						return
					}
					got = append(got, string(data))
				}
			})
			wg.Go(func() {
				defer stream.cut()
				stream.retry = ""
				var got []string
				for {
					ev, err := stream.event()
					if err != nil {
						if err != io.EOF || stream.retry == "" {
							t.Errorf("the stream ended with %v, retry %q", err, stream.retry)
						}
						note(got)
						return
					}
					got = append(got, ev.data)
				}
			})
		}
		synctest.Wait()
		start = time.Now()
		wg.Go(func() {
			time.Sleep(every / 20)
			for i := 0; hub.PublishAll(t.Context(), realtime.Event{Data: fmt.Append(nil, i)}) == nil; i++ {
				time.Sleep(every / 10)
			}
			if !isDone(hub) {
				t.Error("an event was refused while Done was open")
			}
		})
		wg.Go(func() {
			for time.Since(start) < (clients-2)*every {
				time.Sleep(every)
				if resp := s.refused(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
					t.Errorf("a newcomer was answered with %s", resp.Status)
				}
				if isDone(hub) {
					t.Errorf("Done is closed after %v", time.Since(start))
				}
			}
		})
		if err := hub.Shutdown(t.Context()); err != nil || time.Since(start) != (clients-1)*every {
			t.Errorf("Shutdown: %v after %v, want none after %v", err, time.Since(start), (clients-1)*every)
		}
		wg.Wait()
		for turn, n := range left {
			if n != 1 {
				t.Errorf("%d clients were closed in turn %d, want one", n, turn)
			}
		}
	})
}

func isDone(hub *realtime.Hub) bool {
	select {
	case <-hub.Done():
		return true
	default:
		return false
	}
}

// The time ends early if no client is left. With Shutdown's ctx it ends too, and
// those that are left are cut off.
func TestDrainOverEndsEarly(t *testing.T) {
	for name, tt := range map[string]struct {
		leave   bool          // all clients do, after 10 s
		patient time.Duration // ctx ends after that
		want    error
		at      time.Duration
	}{
		"nobody is left": {true, time.Hour, nil, 10 * time.Second},
		"ctx ends":       {false, 10 * time.Second, context.DeadlineExceeded, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.DrainOver = time.Minute
				var left atomic.Int32
				hub.OnDisconnect = func(*realtime.Client, error) { left.Add(1) }
				s := newPipeSite(t, hub)
				for range 6 {
					conn := s.connect()
					go closeStatus(conn)
					if tt.leave {
						time.AfterFunc(10*time.Second, func() { conn.CloseNow() })
					}
				}
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), tt.patient)
				defer cancel()
				if err := hub.Shutdown(ctx); !errors.Is(err, tt.want) || time.Since(start) != tt.at {
					t.Errorf("Shutdown: %v after %v, want %v after %v", err, time.Since(start), tt.want, tt.at)
				}
				if err := hub.PublishAll(t.Context(), realtime.Event{}); err != realtime.ErrHubClosed {
					t.Errorf("PublishAll: %v, want ErrHubClosed", err)
				}
				if n := left.Load(); n != 6 {
					t.Errorf("%d clients left, want 6", n)
				}
			})
		})
	}
}

// A client in OnConnect has its turn as well. If it hasn't joined by then, it is
// refused.
func TestDrainOverDuringOnConnect(t *testing.T) {
	for long, want := range map[time.Duration]int{10 * time.Second: 1001, 30 * time.Second: 503} { // its turn comes after 20 s
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.DrainOver = time.Minute
			hub.OnConnect = func(_ *realtime.Client, r *http.Request) error {
				if r.URL.RawQuery != "" {
					time.Sleep(long)
				}
				return nil
			}
			s := newPipeSite(t, hub)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { closeStatus(s.connect()) })
			synctest.Wait()
			start := time.Now()
			wg.Go(func() {
				got := 0
				conn, resp, err := websocket.Dial(context.Background(), s.url+"?long", &websocket.DialOptions{HTTPClient: s.httpClient()})
				if err == nil {
					got = int(closeStatus(conn).Code)
				} else if resp != nil {
					got = resp.StatusCode
				}
				if got != want || time.Since(start) != max(long, 20*time.Second) {
					t.Errorf("OnConnect took %v: got %d after %v, want %d", long, got, time.Since(start), want)
				}
			})
			synctest.Wait()
			wg.Go(func() { closeStatus(s.connect()) }) // whose turn is last
			synctest.Wait()
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A handler that doesn't return is all that Shutdown leaves behind.
func TestShutdownWithABlockedHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		gate := make(chan struct{})
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
			<-msg.Client.Context().Done() // tells it at once
			<-gate
		}
		s := newPipeSite(t, hub)
		c := s.connect()
		write(t, c, "x")
		go closeStatus(c)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		if err := hub.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "clients whose handlers have not returned: 1") {
			t.Errorf("Shutdown: %v, want DeadlineExceeded because of a client", err)
		}
		if d := time.Since(start); d != 11*time.Second {
			t.Errorf("Shutdown returned after %v, want its ctx and a second", d)
		}
		close(gate)
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown after the handler returned: %v", err)
		}
	})
}

// Many connections take a while to cut. That counts in the second that Shutdown
// has after its ctx, and can't make it longer.
func TestShutdownOfManyIsInTime(t *testing.T) {
	for _, clients := range []int{50, 200} { // it takes 0.5 s, or 2 s
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			gate := make(chan struct{})
			hub.OnMessage = func(*realtime.Hub, realtime.Message) { <-gate }
			l := listenPipe()
			s := serveSite(t, hub, tardyListener{l}, "ws://pipe/ws", l.dial)
			s.raw(frame(0x81, []byte("x"))...)
			for range clients {
				s.raw()
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			<-ctx.Done()
			start := time.Now()
			if err := hub.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown: %v, want DeadlineExceeded", err)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("with %d clients Shutdown returned %v after its ctx ended, want 1 s", clients, d)
			}
			close(gate)
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Errorf("Shutdown after the handler returned: %v", err)
			}
		})
	}
}

// A tardyListener's connections take 10 ms to be cut.
type tardyListener struct{ net.Listener }

func (l tardyListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return tardyConn{conn}, err
}

type tardyConn struct{ net.Conn }

func (c tardyConn) SetDeadline(t time.Time) error {
	if !t.IsZero() {
		time.Sleep(10 * time.Millisecond)
	}
	return c.Conn.SetDeadline(t)
}

func TestAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		gate := make(chan struct{})
		hub.OnDisconnect = func(*realtime.Client, error) { <-gate }
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		go closeStatus(s.connect())
		down := make(chan error, 1)
		go func() { down <- hub.Shutdown(context.Background()) }()
		<-hub.Done()

		// While it runs, a send to Broadcast doesn't block, and is counted.
		for range 1000 {
			hub.Broadcast <- []byte("too late")
		}
		synctest.Wait()
		// The loop may have taken the first of them for events that came before.
		if st := hub.Stats(); st.Dropped+st.Published != 1000 || st.Dropped < 1000-int64(cap(hub.Broadcast)) {
			t.Errorf("Dropped = %d, Published = %d, want 1000 in all", st.Dropped, st.Published)
		}
		if err := hub.PublishAll(t.Context(), realtime.Event{}); !errors.Is(err, realtime.ErrHubClosed) {
			t.Errorf("PublishAll: %v, want ErrHubClosed", err)
		}
		if err := client.Send([]byte("x")); !errors.Is(err, realtime.ErrClientClosed) {
			t.Errorf("Send: %v, want ErrClientClosed", err)
		}
		if resp := s.refused(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("answered %s, %v; want 503 with Retry-After", resp.Status, resp.Header)
		}
		close(gate)
		if err := <-down; err != nil {
			t.Error(err)
		}

		// Afterwards nobody receives.
		for range cap(hub.Broadcast) {
			hub.Broadcast <- []byte("never")
		}
		select {
		case hub.Broadcast <- []byte("never"):
			t.Error("Broadcast takes more than its buffer after Shutdown")
		case <-hub.Done():
		}
	})
}

// Shutdown may begin while CheckOrigin looks at a newcomer.
func TestShutdownDuringCheckOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.CheckOrigin = func(*http.Request) bool {
			go hub.Shutdown(context.Background())
			<-hub.Done()
			return true
		}
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			t.Error("OnConnect was called")
			return nil
		}
		s := newPipeSite(t, hub)
		if resp := s.refused(); resp.StatusCode != 503 {
			t.Errorf("answered %s, want 503", resp.Status)
		}
	})
}

// Newcomers that are in OnConnect when Shutdown begins are turned away, with
// their OnDisconnect, however soon they are through. Retry-After spreads those
// that weren't cut off meanwhile over a few seconds.
func TestShutdownDuringOnConnect(t *testing.T) {
	for _, rest := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			l := recordLeft(hub)
			hub.OnConnect = func(*realtime.Client, *http.Request) error {
				go hub.Shutdown(context.Background())
				<-hub.Done()
				time.Sleep(rest)
				return nil
			}
			s := newPipeSite(t, hub)
			resp := s.refused()
			if resp.StatusCode != 503 {
				t.Errorf("answered %s, want 503", resp.Status)
			}
			after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			if rest == 0 && (err != nil || after < 1 || after > 5) {
				t.Errorf("Retry-After is %q, want 1 to 5", resp.Header.Get("Retry-After"))
			}
			synctest.Wait()
			if l.n != 1 || !errors.Is(l.err, realtime.ErrHubClosed) {
				t.Errorf("OnDisconnect: %d times, last with %v; want ErrHubClosed once", l.n, l.err)
			}
		})
	}
}

// Publishers that run on while the hub is shut down are told, or delivered.
func TestShutdownUnderPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		conn := s.connect()
		var published, got int
		var all sync.WaitGroup
		all.Go(func() {
			for {
				if err := hub.PublishAll(context.Background(), realtime.Event{Data: []byte("x")}); err != nil {
					if !errors.Is(err, realtime.ErrHubClosed) {
						t.Errorf("PublishAll: %v", err)
					}
					return
				}
				published++
			}
		})
		all.Go(func() {
			for {
				_, _, err := conn.Read(context.Background())
				if err != nil {
					if websocket.CloseStatus(err) != websocket.StatusGoingAway {
						t.Errorf("Read: %v, want 1001", err)
					}
					return
				}
				if got++; got == 1000 {
					all.Go(func() {
						if err := hub.Shutdown(context.Background()); err != nil {
							t.Error(err)
						}
					})
				}
			}
		})
		all.Wait()
		if got != published {
			t.Errorf("delivered %d of %d that were published without an error", got, published)
		}
	})
}

// The recipe: the server's Shutdown starts the hub's, and waits for it.
func TestShutdownTogetherWithTheServer(t *testing.T) {
	hub := realtime.NewHub()
	hub.Logger = quiet
	srv := httptest.NewServer(hub)
	conn, _, err := websocket.Dial(t.Context(), srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	status := make(chan websocket.CloseError, 1)
	go func() { status <- closeStatus(conn) }()
	srv.Config.RegisterOnShutdown(func() { hub.Shutdown(context.Background()) })
	if err := srv.Config.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := <-status; got.Code != websocket.StatusGoingAway {
		t.Errorf("closed with %v, want 1001", got)
	}
	srv.Close()
}

// What is sent to Broadcast while Shutdown runs is dropped and counted, down to
// the last of it.
func TestShutdownCountsWhatItDrops(t *testing.T) {
	for range 20 { // it takes a race
		hub := realtime.NewHub()
		const sends = 100
		hub.OnDisconnect = func(*realtime.Client, error) {
			for range sends {
				hub.Broadcast <- []byte("somebody left")
			}
		}
		s := newTCPSite(t, hub)
		go closeStatus(s.connect())
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := hub.Stats(); st.Dropped+st.Published != sends {
			t.Errorf("Dropped %d + Published %d, want %d", st.Dropped, st.Published, sends)
		}
	}
}

// A hub that is down is, whatever ctx asks.
func TestShutdownOfAFinishedHub(t *testing.T) {
	hub := realtime.NewHub()
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 {
		if err := hub.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// An OnConnect that outlasts the time of the close handshake: its newcomer gets
// the answer of a hub that is shutting down.
func TestShutdownDuringALongOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			<-hub.Done()
			time.Sleep(7 * time.Second)
			return nil
		}
		hub.OnDisconnect = func(c *realtime.Client, err error) {
			if !errors.Is(err, realtime.ErrHubClosed) {
				t.Errorf("OnDisconnect: %v, want ErrHubClosed", err)
			}
			if err := c.Send(nil); !errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("Send in OnDisconnect: %v, want ErrClientClosed", err)
			}
		}
		s := newPipeSite(t, hub)
		go func() {
			time.Sleep(time.Second)
			hub.Shutdown(context.Background())
		}()
		_, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		if err == nil || resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%+v, %v; want 503 with Retry-After", resp, err)
		}
	})
}

// What OnConnect says before it closes a client arrives, however long it
// takes.
func TestCloseInALongOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			c.Send([]byte("bye"))
			c.Close(4000, "not now")
			time.Sleep(7 * time.Second)
			return nil
		}
		s := newPipeSite(t, hub)
		conn := s.connect()
		if got := read(t, conn); got != "bye" {
			t.Errorf("got %q", got)
		}
		if got := closeStatus(conn); got.Code != 4000 {
			t.Errorf("closed with %v, want 4000", got)
		}
	})
}

// A busyBroker stops the hub's loop until busy is closed.
type busyBroker struct {
	realtime.Broker
	busy chan struct{}
}

func (b busyBroker) MaxMessageBytes() int {
	<-b.busy
	return 0
}

// With a DrainOver, the client whose turn is first gets what was sent to Broadcast
// before Shutdown.
func TestDrainOverBehindBroadcast(t *testing.T) {
	for range 10 { // chance would have it in every second one
		synctest.Test(t, func(t *testing.T) {
			busy := make(chan struct{})
			hub := realtime.NewHub()
			hub.DrainOver = time.Minute
			hub.Broker = busyBroker{brokertest.NewMemory().Broker(), busy}
			conn := newPipeSite(t, hub).connect()
			go hub.PublishAll(t.Context(), realtime.Event{})
			synctest.Wait()
			const events = 100
			for range events {
				hub.Broadcast <- []byte("x")
			}
			got := make(chan int)
			go func() {
				n := 0
				for _, _, err := conn.Read(context.Background()); err == nil; _, _, err = conn.Read(context.Background()) {
					n++
				}
				got <- n
			}()
			time.AfterFunc(time.Second, func() { close(busy) })
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if n := <-got; n != 1+events {
				t.Errorf("got %d events, want %d", n, 1+events)
			}
		})
	}
}
