package redisbroker_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// startHub serves a hub that keeps a history. It returns the hub and its URL. The
// hub is shut down when the test ends.
func startHub(t *testing.T, b realtime.Broker, change ...func(h *realtime.Hub)) (hub *realtime.Hub, url string) {
	t.Helper()
	hub = realtime.NewHub()
	hub.History.Events = 100
	hub.Broker = b
	for _, c := range change {
		c(hub)
	}
	server := httptest.NewServer(hub)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := hub.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return hub, server.URL
}

// A reader is a client of a hub, over either transport. It returns the next text
// that the hub sends.
type reader func() string

func dial(t *testing.T, url string) reader {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	conn, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	return func() string {
		t.Helper()
		_, data, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
}

// listen returns a reader of the data of an event stream. For a reset it returns
// "reset". id returns the last id of the stream.
func listen(t *testing.T, url, lastID string) (next reader, id func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
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
	t.Cleanup(func() { resp.Body.Close() })
	last := ""
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		t.Helper()
		text := ""
		for lines.Scan() {
			switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
			case "id":
				last = value
			case "event", "data":
				text += value
			case "":
				if text != "" && text != "realtime.position" {
					return text
				}
				text = ""
			}
		}
		t.Fatalf("the stream has ended: %v", lines.Err())
		return ""
	}, func() string { return last }
}

// Events that one hub publishes reach the clients of all hubs, in order, also
// after an outage of Redis. A client that reconnects after the outage gets a
// reset.
func TestHubs(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	var hubs []*realtime.Hub
	var urls []string
	var readers []reader
	var lastID func() string
	for range 3 {
		hub, url := startHub(t, r.Broker())
		hubs, urls = append(hubs, hub), append(urls, url)
		next, id := listen(t, url+"/?topic=a", "")
		lastID = id
		readers = append(readers, dial(t, url+"/?topic=a"), next)
	}
	publish := func(hub *realtime.Hub, topic, text string) error {
		return hub.Publish(t.Context(), topic, realtime.Event{Data: []byte(text)})
	}
	expect := func(want ...string) {
		t.Helper()
		for i, next := range readers {
			for _, want := range want {
				if got := next(); got != want {
					t.Fatalf("client %d got %q, want %q", i, got, want)
				}
			}
		}
	}
	for round := range 3 {
		for i, hub := range hubs {
			var want []string
			for j := range 20 {
				want = append(want, fmt.Sprintf("%d.%d.%d", round, i, j))
				if err := publish(hub, "a", want[j]); err != nil {
					t.Error(err)
				}
				publish(hub, "nobody's", "x")
			}
			expect(want...)
		}
		eventually(t, "a count of all clients", func() bool { return hubs[0].Stats().ClusterClients >= len(readers) })
		if round == 2 {
			break
		}
		id := lastID()
		r.Stop()
		eventually(t, "an error of Publish", func() bool { return publish(hubs[0], "alone", "") != nil })
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		for i, hub := range hubs {
			eventually(t, "a gap", func() bool { return hub.Stats().Gaps >= int64(round+1) })
			eventually(t, "a Publish that succeeds", func() bool { return publish(hub, "nobody's", "") == nil })
			if i == 2 {
				next, _ := listen(t, urls[i]+"/?topic=a", id)
				if got := next(); got != "reset" {
					t.Errorf("a client that may have lost events got %q, want a reset", got)
				}
			}
		}
	}
}
