package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
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

// TestLatest checks that a page gets the latest values of its topics at once,
// even if it connects before the first samples.
func TestLatest(t *testing.T) {
	base := serve(t)
	resp := get(t, base+"/live?topic=shop&topic=traffic")
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != "text/event-stream" {
		t.Fatalf("got status %d and Content-Type %q", resp.StatusCode, got)
	}
	got := make(map[string]bool)
	for lines := bufio.NewScanner(resp.Body); len(got) < 4; {
		if !lines.Scan() {
			t.Fatalf("the stream ended after %v: %v", got, lines.Err())
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "" { // a position has no data
			continue
		}
		var s sample
		if err := json.Unmarshal([]byte(data), &s); err != nil {
			t.Fatal(err)
		}
		if s.Value <= 0 || time.Since(time.UnixMilli(s.Time)) > time.Minute {
			t.Errorf("got %+v, want a value of now", s)
		}
		got[s.Metric] = true
	}
	for _, metric := range []string{"requests", "latency", "orders", "basket"} {
		if !got[metric] {
			t.Errorf("got values of %v, want one of %s", got, metric)
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

// TestBoard checks that the board has the newest samples of each metric.
func TestBoard(t *testing.T) {
	b := newBoard(time.Second)
	m := b.Topics[0].Metrics[0]
	for now := range int64(3 * maxPast) {
		b.sample(m, now)
	}
	var got board
	if err := json.Unmarshal(b.encode(), &got); err != nil {
		t.Fatal(err)
	}
	past := got.Topics[0].Metrics[0].Past
	if got.Every != 1000 || len(past) != maxPast || past[0].Time != 2*maxPast || past[maxPast-1].Time != 3*maxPast-1 {
		t.Errorf("got a sample every %d ms and %d samples from %v on, want %d from %d on", got.Every, len(past), past[0], maxPast, 2*maxPast)
	}
	for _, s := range past {
		if s.Metric != "requests" || s.Value < m.low || s.Value > m.high {
			t.Errorf("got %+v", s)
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
