package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
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
		if err := hub.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v, want DeadlineExceeded", err)
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
		_, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		if err == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("a newcomer got %v, %+v; want 503 with Retry-After", err, resp)
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

// Newcomers that are in OnConnect when Shutdown begins are turned away, with
// their OnDisconnect.
func TestShutdownDuringOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			<-hub.Done()
			time.Sleep(time.Minute)
			return nil
		}
		s := newPipeSite(t, hub)
		go func() {
			time.Sleep(time.Second)
			hub.Shutdown(context.Background())
		}()
		_, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		if err == nil || resp.StatusCode != 503 {
			t.Errorf("a newcomer got %v, %+v; want 503", err, resp)
		}
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, realtime.ErrHubClosed) {
			t.Errorf("OnDisconnect: %d times, last with %v; want ErrHubClosed once", l.n, l.err)
		}
	})
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

func TestRefusedOriginIsLogged(t *testing.T) {
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.CheckOrigin = func(*http.Request) bool { return false }
	srv := httptest.NewServer(hub)
	defer srv.Close()
	long := "https://" + strings.Repeat("x", 4000) + "\u2028 level=ERROR"
	_, resp, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {long}}})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %v, want 403", err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	got := lines.String()
	if !strings.Contains(got, "origin refused") || !strings.Contains(got, "host=127.0.0.1:") || len(got) > 1000 || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q", got)
	}
}
