package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// pull returns a function that returns the next that is heard, as text.
func pull(t *testing.T, events iter.Seq2[realtime.Heard, error]) (next func() string) {
	pulled, stop := iter.Pull2(events)
	t.Cleanup(stop)
	return func() string {
		ev, err, ok := pulled()
		switch {
		case !ok:
			return "the end"
		case err != nil:
			return err.Error()
		case ev.Reset:
			return "reset"
		}
		return fmt.Sprint(ev.Topic, "|", ev.Name, "|", string(ev.Data))
	}
}

// It gets what is published after Listen has returned, in order, and is no
// client.
func TestListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 10}
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			t.Error("OnConnect was called")
			return nil
		}
		left := recordLeft(hub)
		newPipeSite(t, hub)
		ctx := t.Context()
		hub.Publish(ctx, "a", realtime.Event{Key: "k", Data: []byte("before")})
		events := hub.Listen(ctx, "a", "b")
		for i := range 1000 {
			publish(t, hub, "a", fmt.Sprint(i))
			publish(t, hub, "c", "not for it")
		}
		hub.Publish(ctx, "b", realtime.Event{Name: "n", Key: "k", Data: []byte("\xff"), Binary: true})
		hub.Broadcast <- []byte("to all")
		if n := hub.ClientCount(); n != 0 {
			t.Errorf("ClientCount() = %d, want none", n)
		}
		for c := range hub.Subscribers("a") {
			t.Errorf("it is a client: %v", c)
		}
		time.Sleep(time.Minute) // no rule of time ends it
		n := 0
		for ev, err := range events {
			if err != nil {
				t.Fatal(err)
			}
			if n < 1000 && (ev.Topic != "a" || string(ev.Data) != fmt.Sprint(n) || ev.ID == "") {
				t.Fatalf("event %d is %+v", n, ev)
			}
			if n == 1000 && (ev.Topic != "b" || ev.Name != "n" || ev.Key != "k" || !ev.Binary || string(ev.Data) != "\xff") {
				t.Fatalf("event %d is %+v", n, ev)
			}
			if n++; n == 1002 {
				if ev.Topic != "" || string(ev.Data) != "to all" {
					t.Errorf("the last event is %+v", ev)
				}
				break
			}
		}
		synctest.Wait()
		if n := realtime.Joined(hub); n != 0 {
			t.Errorf("after a break %d clients are left", n)
		}
		for _, err := range events {
			if !errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("a second loop gets %v", err)
			}
		}
		if left.n != 0 {
			t.Error("OnDisconnect was called")
		}
	})
}

func TestListenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := func(hub *realtime.Hub, next func() string, want ...string) {
			t.Helper()
			for _, want := range append(want, "the end") {
				if got := next(); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			synctest.Wait()
			if hub != nil {
				if n := realtime.Joined(hub); n != 0 {
					t.Errorf("%d clients are left", n)
				}
			}
		}
		hub := realtime.NewHub()
		hub.SendBuffer, hub.Logger = 2, quiet
		ctx, cancel := context.WithCancel(t.Context())
		next := pull(t, hub.Listen(ctx, "a"))
		time.AfterFunc(time.Second, cancel)
		want(hub, next, "realtime: listen: context canceled")
		want(hub, pull(t, hub.Listen(ctx, "a")), "realtime: listen: context canceled")

		next = pull(t, hub.Listen(t.Context(), "a"))
		for i := range 1000 {
			publish(t, hub, "a", fmt.Sprint(i))
		}
		synctest.Wait()
		want(hub, next, realtime.ErrSlowClient.Error())
		stats(t, &site{hub: hub}, func(st realtime.Stats) bool { return st.SlowClients == 1 && st.Queued == 0 })

		want(hub, pull(t, hub.Listen(t.Context(), "")), "realtime: the empty string is not a topic: PublishAll publishes to all clients")
		want(nil, pull(t, new(realtime.Hub).Listen(t.Context(), "a")), "realtime: listen: hub was not made by realtime.NewHub")

		next = pull(t, hub.Listen(t.Context(), "a"))
		publish(t, hub, "a", "last")
		hub.Listen(t.Context(), "a") // without a loop
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		want(hub, next, "a||last", `realtime: closed by this side with 1001 "server is shutting down": `+realtime.ErrHubClosed.Error())
		want(hub, pull(t, hub.Listen(t.Context(), "a")), realtime.ErrHubClosed.Error())
	})
}

func TestListenOnSeveralNodes(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				engine := brokertest.NewMemory()
				sites := newNodes(t, engine, 2)
				if !history {
					sites = nodes(t, engine, 2, nil)
				}
				next := pull(t, sites[0].hub.Listen(t.Context(), "a"))
				for i := range 10 {
					publish(t, sites[1].hub, "a", fmt.Sprint(i))
				}
				disconnect(t, sites[1].hub, "b")
				for i := range 10 {
					if got, want := next(), fmt.Sprint("a||", i); got != want {
						t.Errorf("got %q, want %q", got, want)
					}
				}
				if history {
					engine.Forget()
					if got := next(); got != "reset" {
						t.Errorf("got %q, want a reset", got)
					}
				} else {
					engine.Stop()
					got := pull(t, sites[0].hub.Listen(t.Context(), "new"))()
					if got != realtime.ErrBrokerUnavailable.Error() {
						t.Errorf("without the engine: %q", got)
					}
				}
				// A listener has topics as a client has.
				sites[0].hub.Disconnect(t.Context(), "a", codeOut, "")
				if got := next(); got == "the end" {
					t.Errorf("disconnected: %q", got)
				}
			})
		})
	}
}

// Listeners don't take the places of clients, and a full hub doesn't refuse them.
func TestListenWithMaxClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.MaxClients, hub.Logger = 1, quiet
		s := newPipeSite(t, hub)
		before := pull(t, hub.Listen(t.Context(), "a"))
		s.connect()
		full := pull(t, hub.Listen(t.Context(), "a"))
		if resp := s.refused(); resp.StatusCode != 503 {
			t.Errorf("a client above MaxClients is answered with %s", resp.Status)
		}
		publish(t, hub, "a", "x")
		for _, next := range []func() string{before, full} {
			if got := next(); got != "a||x" {
				t.Errorf("a listener got %q", got)
			}
		}
	})
}

// A listener hears all that is published in a drain, which ends with the last
// client.
func TestListenInDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.DrainOver = time.Minute
		s := newPipeSite(t, hub)
		next := pull(t, hub.Listen(t.Context(), "a"))
		for range 2 {
			conn := s.connect()
			go closeStatus(conn)
		}
		synctest.Wait()
		time.AfterFunc(29*time.Second, func() { publish(t, hub, "a", "late") })
		start := time.Now()
		if err := hub.Shutdown(t.Context()); err != nil || time.Since(start) != 30*time.Second {
			t.Errorf("Shutdown: %v after %v, want none after 30s", err, time.Since(start))
		}
		if got := next(); got != "a||late" {
			t.Errorf("the listener got %q", got)
		}
	})
}
