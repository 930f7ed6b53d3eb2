package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// serve starts the dashboard, with samples once an hour, and returns its URL.
func serve(t *testing.T) (base string) {
	board := newBoard(time.Hour)
	hub := newHub(board)
	simulated := make(chan struct{})
	go func() {
		defer close(simulated)
		board.simulate(hub)
	}()
	server := httptest.NewServer(newHandler(board, hub))
	t.Cleanup(func() {
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		server.Close()
		<-simulated
	})
	return server.URL
}

func get(t *testing.T, url string) *http.Response {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// A loaded is what a page has loaded.
type loaded struct {
	Every    int64
	Topics   []struct{ Past []sample }
	Position string
	Alerts   []alert
}

func load(t *testing.T, base string) (b loaded) {
	t.Helper()
	if err := json.NewDecoder(get(t, base+"/board").Body).Decode(&b); err != nil {
		t.Fatal(err)
	}
	return b
}

// next returns the next event's name and data.
func next(t *testing.T, lines *bufio.Scanner) (name, data string) {
	t.Helper()
	for lines.Scan() {
		switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
		case "event":
			name = value
		case "data":
			data = value
		case "":
			if name == "sample" || name == "alert" {
				return name, data
			}
		}
	}
	t.Fatalf("the stream ended: %v", lines.Err())
	return "", ""
}

// TestPosition has a page load the board while samples are published, and connect
// later. It has each sample of its topics, and no other.
func TestPosition(t *testing.T) {
	board := newBoard(time.Hour)
	hub := newHub(board)
	server := httptest.NewServer(newHandler(board, hub))
	t.Cleanup(func() {
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	publish := func(now int64) {
		t.Helper()
		for _, topic := range board.Topics {
			for _, e := range board.sample(topic, now) {
				if err := hub.Publish(t.Context(), topic.Name, e); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	publish(1)
	publish(2)
	b := load(t, server.URL)
	publish(3)
	resp := get(t, server.URL+"/live?topic=traffic&lastEventId="+b.Position)
	publish(4)
	var got []int64
	for _, s := range b.Topics[0].Past {
		got = append(got, s.Time)
	}
	for lines := bufio.NewScanner(resp.Body); len(got) < 4; {
		name, data := next(t, lines)
		if name != "sample" {
			continue
		}
		var s sample
		if err := json.Unmarshal([]byte(data), &s); err != nil {
			t.Fatal(err)
		}
		if len(s.Values) != 2 || s.Values["requests"] <= 0 || s.Values["latency"] <= 0 {
			t.Errorf("got %+v, want the values of the topic's metrics", s)
		}
		got = append(got, s.Time)
	}
	if want := []int64{1, 2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("got the samples of %d, want %d", got, want)
	}
}

// TestAlert checks that an alert stays for pages that come later, until it ends.
func TestAlert(t *testing.T) {
	board := newBoard(time.Hour)
	hub := newHub(board)
	hub.History.Age = time.Nanosecond // nothing but what stays
	server := httptest.NewServer(newHandler(board, hub))
	t.Cleanup(func() {
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	shop := board.Topics[2]
	shop.Metrics = shop.Metrics[:1] // others have alerts by chance
	orders := shop.Metrics[0]
	sample := func(now int64, value float64) {
		t.Helper()
		orders.value = value
		for _, e := range board.sample(shop, now) {
			if err := hub.Publish(t.Context(), shop.Name, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	live := bufio.NewScanner(get(t, server.URL+"/live?topic=shop").Body)
	sample(1, 10*orders.usual)
	sample(2, 10*orders.usual) // it has begun already
	want := alert{"orders", 1}
	if got := load(t, server.URL).Alerts; !slices.Equal(got, []alert{want}) {
		t.Errorf("the board has the alerts %v, want %v", got, want)
	}
	late := bufio.NewScanner(get(t, server.URL+"/live?topic=shop").Body)
	for _, lines := range []*bufio.Scanner{live, late} {
		name, data := next(t, lines)
		for name != "alert" {
			name, data = next(t, lines)
		}
		var got alert
		if err := json.Unmarshal([]byte(data), &got); err != nil || got != want {
			t.Errorf("got %v and %v, want %v", got, err, want)
		}
	}

	sample(3, -10*orders.usual) // whatever chance adds
	if got := load(t, server.URL).Alerts; len(got) > 0 {
		t.Errorf("the board still has the alerts %v", got)
	}
	for _, lines := range []*bufio.Scanner{live, late} {
		name, data := next(t, lines)
		for name != "alert" {
			name, data = next(t, lines)
		}
		if data != "" {
			t.Errorf("got the alert %q, want its end", data)
		}
	}
}

func TestRefused(t *testing.T) {
	base := serve(t)
	if got := get(t, base+"/live?topic=shop&topic=secret").StatusCode; got != http.StatusNotFound {
		t.Errorf("an unknown topic: got status %d, want 404", got)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", base+"/live?topic=shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://evil.example")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site: got status %d, want 403", resp.StatusCode)
	}
}

// TestBoard checks that the board has the newest samples of each topic.
func TestBoard(t *testing.T) {
	board := newBoard(time.Second)
	for now := range int64(3 * maxPast) {
		board.sample(board.Topics[0], now)
	}
	var got loaded
	if err := json.Unmarshal(board.encode("", nil), &got); err != nil {
		t.Fatal(err)
	}
	past := got.Topics[0].Past
	if got.Every != 1000 || len(past) != maxPast || past[0].Time != 2*maxPast || past[maxPast-1].Time != 3*maxPast-1 {
		t.Errorf("got a sample every %d ms and %d samples from %v on, want %d from %d on", got.Every, len(past), past[0], maxPast, 2*maxPast)
	}
	for _, s := range past {
		for _, m := range board.Topics[0].Metrics {
			if v, ok := s.Values[m.Name]; !ok || v < m.low || v > m.high {
				t.Errorf("got %+v, want a value of %s", s, m.Name)
			}
		}
	}
}

func TestPage(t *testing.T) {
	base := serve(t)
	resp := get(t, base)
	policy := resp.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
		t.Errorf("got policy %q", policy)
	}
	if got := get(t, base+"/realtime.js").Header.Get("Content-Type"); !strings.HasPrefix(got, "text/javascript") {
		t.Errorf("the script has Content-Type %q", got)
	}
}
