package natsbroker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A site is a hub behind a web server, with one client of topic "x".
type site struct {
	*realtime.Hub
	got chan string
}

// newSite serves a hub until the test ends.
func newSite(t *testing.T, broker realtime.Broker, change ...func(h *realtime.Hub)) *site {
	t.Helper()
	s := &site{realtime.NewHub(), make(chan string, 10_000)}
	s.Broker = broker
	s.Logger = slog.New(slog.DiscardHandler)
	if _, ok := broker.(realtime.HistoryBroker); ok {
		s.History.Events = 10_000
	}
	for _, c := range change {
		c(s.Hub)
	}
	web := httptest.NewServer(s.Hub)
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		web.Close()
	})
	conn, _, err := websocket.Dial(t.Context(), web.URL+"?topic=x", nil)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(-1)
	t.Cleanup(func() { conn.CloseNow() })
	go func() { // until the connection is closed
		defer close(s.got)
		for {
			_, data, err := conn.Read(context.Background())
			if err != nil {
				return
			}
			s.got <- string(data)
		}
	}()
	return s
}

func (s *site) say(t *testing.T, text string) {
	t.Helper()
	if err := s.Publish(t.Context(), "x", realtime.Event{Data: []byte(text)}); err != nil {
		t.Errorf("Publish(%s): %v", text, err)
	}
}

// expect skips the events before text. It fails if text doesn't come.
func (s *site) expect(t *testing.T, text string) {
	t.Helper()
	eventually(t, "event "+text, func() bool {
		select {
		case got := <-s.got:
			return got == text
		default:
			return false
		}
	})
}

// expectAny has from publish until an event comes.
func (s *site) expectAny(t *testing.T, what string, from *site) {
	t.Helper()
	next := time.Now()
	eventually(t, what, func() bool {
		if now := time.Now(); now.After(next) {
			next = now.Add(100 * time.Millisecond)
			from.Publish(t.Context(), "x", realtime.Event{Data: []byte(what)})
		}
		select {
		case got := <-s.got:
			return got == what
		default:
			return false
		}
	})
}

func TestHubs(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := &embedded{t: t}
	var sites []*site
	for range 3 {
		sites = append(sites, newSite(t, engine.Broker()))
	}
	eventually(t, "cluster", func() bool { return sites[0].Stats().ClusterClients == 3 && sites[2].Stats().ClusterClients == 3 })
	for i, s := range sites {
		text := fmt.Sprint("from ", i)
		s.say(t, text)
		for _, other := range sites {
			other.expect(t, text)
		}
	}

	// The hub whose server is the others' route is shut down. Its last event
	// arrives, and the others stay connected with each other.
	sites[0].say(t, "good-bye")
	if err := sites[0].Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for _, s := range sites[1:] {
		s.expect(t, "good-bye")
	}
	sites[1].say(t, "we are fewer")
	sites[2].expect(t, "we are fewer")
	for _, s := range sites[1:] {
		if st := s.Stats(); st.Gaps != 0 || st.BrokerDown {
			t.Errorf("Stats() = %+v", st)
		}
	}
}

// A hub whose server is killed connects to another server.
func TestKilledServer(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newServers(t, 3)
	var sites []*site
	for i := range 3 {
		urls := engine.url(i) + "," + engine.url((i+1)%3) + "," + engine.url((i+2)%3)
		sites = append(sites, newSite(t, natsbroker.New("realtime", connect(t, urls, nats.DontRandomize()))))
	}
	sites[0].say(t, "before")
	for _, s := range sites {
		s.expect(t, "before")
	}
	engine.kill(0)
	eventually(t, "gap", func() bool { return sites[0].Stats().Gaps > 0 })
	sites[1].say(t, "to the survivors")
	for _, s := range sites {
		s.expect(t, "to the survivors")
	}
	sites[0].say(t, "back")
	for _, s := range sites {
		s.expect(t, "back")
	}
	if n := sites[1].Stats().Gaps; n != 0 {
		t.Errorf("a hub whose server still runs has noticed %d gaps, want none", n)
	}
}

// A hub refuses an event above max_payload at once. That is no outage.
func TestHubKnowsLimit(t *testing.T) {
	t.Parallel() // the test mostly waits
	s := newSite(t, natsbroker.New("realtime", connect(t, newServers(t, 1).url(0))))
	if err := s.Publish(t.Context(), "x", realtime.Event{Data: make([]byte, 1<<20)}); !errors.Is(err, realtime.ErrEventTooLarge) {
		t.Errorf("Publish: %v, want ErrEventTooLarge", err)
	}
	if st := s.Stats(); st.BrokerDown || st.Unsent != 1 {
		t.Errorf("Stats() = %+v", st)
	}
}
