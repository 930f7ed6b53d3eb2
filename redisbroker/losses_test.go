package redisbroker_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// Each user has a topic, and gets one event, so that no later event of the topic
// shows a loss. What Redis loses of that, after Publish has returned nil, the
// other node counts as a gap, and its clients that reconnect get a reset.
func TestLossesShow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		hurt func(r *redis)
		wait bool // until it is hurt, before the next event
	}{
		{"CLIENT KILL", func(r *redis) { r.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }, false},
		{"CLIENT PAUSE", func(r *redis) { r.do("CLIENT", "PAUSE", "4500", "WRITE") }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t)
			near, _ := startHub(t, r.Broker())
			far, base := startHub(t, r.Broker())
			const users = 90 // as many topics as a URL may have
			topics := []string{"all"}
			for i := range users {
				topics = append(topics, fmt.Sprint("u", i))
			}
			c := openStream(t, base+"/?"+url.Values{"topic": topics}.Encode(), "")
			publish := func(topic, text string) error {
				return near.Publish(t.Context(), topic, realtime.Event{Data: []byte(text)})
			}
			settle := func(text string) {
				eventually(t, text, func() bool {
					publish("all", text)
					time.Sleep(20 * time.Millisecond)
					return c.has(text)
				})
			}
			settle("begin")
			for i := range users {
				if err := publish(fmt.Sprint("u", i), fmt.Sprint("calm ", i)); err != nil {
					t.Errorf("Publish: %v", err)
				}
			}
			settle("calm")
			time.Sleep(6 * time.Second) // three heartbeats
			for i := range users {
				if text := fmt.Sprint("calm ", i); !c.has(text) {
					t.Errorf("%s has not come", text)
				}
			}
			if n := far.Stats().Gaps; n != 0 {
				t.Fatalf("%d gaps were counted in calm, want none", n)
			}
			lost, before := "", ""
			for round := 0; lost == "" && round < 20; round++ {
				before = c.lastID()
				var hurting sync.WaitGroup
				var accepted []int
				text := func(i int) string { return fmt.Sprint(round, " ", i) }
				for i := range users {
					if i == users/2 {
						hurting.Go(func() { tt.hurt(r) })
						if tt.wait {
							hurting.Wait()
						}
					}
					if publish(fmt.Sprint("u", i), text(i)) == nil {
						accepted = append(accepted, i)
					}
				}
				hurting.Wait()
				settle(fmt.Sprint("round ", round))
				time.Sleep(100 * time.Millisecond)
				for _, i := range accepted {
					if !c.has(text(i)) {
						lost += fmt.Sprintf("&topic=u%d", i)
					}
				}
			}
			if lost == "" {
				t.Skip("nothing was lost")
			}
			// Nothing follows in these topics.
			again := openStream(t, base+"/?"+lost[1:], before)
			start := time.Now()
			eventually(t, "a reset for a client that reconnects", func() bool {
				if slices.Contains(again.lines(), "reset") {
					return true
				}
				time.Sleep(500 * time.Millisecond)
				again = openStream(t, base+"/?"+lost[1:], before)
				time.Sleep(200 * time.Millisecond)
				return false
			})
			if got := again.lines()[0]; got != "reset" {
				t.Errorf("a client that reconnects gets %q before the reset", got)
			}
			if far.Stats().Gaps == 0 {
				t.Error("no gap was counted")
			}
			t.Logf("%d events were lost, which the other node knew %v later", strings.Count(lost, "&"), time.Since(start))
		})
	}
}

// A burst to a Redis that works loses nothing, by whichever way it is published.
func TestBurst(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	near, _ := startHub(t, r.Broker())
	far, url := startHub(t, r.Broker())
	next := dial(t, url)
	begun, begin := make(chan struct{}), sync.WaitGroup{}
	begin.Go(func() { // until the other hub has subscribed
		for {
			near.PublishAll(t.Context(), realtime.Event{Data: []byte("begin")})
			select {
			case <-time.After(50 * time.Millisecond):
			case <-begun:
				return
			}
		}
	})
	for next() != "begin" {
	}
	close(begun)
	begin.Wait()
	const events = 10_000
	for _, way := range []string{"Publish", "Broadcast"} {
		go func() {
			for i := range events {
				text := fmt.Appendf(nil, "%s %d", way, i)
				if way == "Broadcast" {
					near.Broadcast <- text
				} else if err := near.PublishAll(t.Context(), realtime.Event{Data: text}); err != nil {
					t.Errorf("Publish: %v", err)
				}
			}
		}()
		for i := range events {
			got := next()
			for got == "begin" {
				got = next()
			}
			if want := fmt.Sprint(way, " ", i); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	}
	if st := near.Stats(); st.Unsent != 0 {
		t.Errorf("%d events could not be handed to the broker, want none", st.Unsent)
	}
	if st := far.Stats(); st.Gaps != 0 {
		t.Errorf("%d gaps were counted, want none", st.Gaps)
	}
}

// A stream is a client that keeps what it gets.
type stream struct {
	mu   sync.Mutex // guards the fields below
	got  []string   // the data of events, and "reset"
	seen map[string]bool
	id   string
}

// openStream opens an event stream and reads it until the test ends, or the
// stream does.
func openStream(t *testing.T, url, lastID string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	s := &stream{seen: make(map[string]bool), id: lastID}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer resp.Body.Close()
		s.read(bufio.NewScanner(resp.Body))
	})
	t.Cleanup(func() {
		cancel()
		reading.Wait()
	})
	return s
}

func (s *stream) read(lines *bufio.Scanner) {
	data, id := "", ""
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			id = value
		case "event":
			data = value
		case "data":
			data += value
		case "":
			s.add(data, id)
			data = ""
		}
	}
}

func (s *stream) add(text, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != "" {
		s.id = id
	}
	if text != "" && text != "realtime.position" {
		s.got = append(s.got, text)
		s.seen[text] = true
	}
}

func (s *stream) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[text]
}

func (s *stream) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func (s *stream) lastID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}
