//lint:file-ignore S1000 ExampleNewStream is the loop that users begin with, as it stands.

package realtime_test

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A handler that sends an event at every tick until the client is gone. A
// browser reads it with
//
//	const events = new EventSource("/events/feed");
//	events.addEventListener("tick", (e) => console.log(JSON.parse(e.data).count));
func ExampleNewStream() {
	feed := func(w http.ResponseWriter, r *http.Request) {
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return // already answered
		}
		defer stream.Close()

		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()

		count := 0
		for {
			select {
			case <-ticker.C:
				count++
				stream.Send("tick", map[string]any{
					"count": count,
				})
			}

			if stream.IsClosed() {
				break // client disconnected
			}
		}
	}

	server := httptest.NewServer(http.HandlerFunc(feed))
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(resp.Body)
	for range 6 {
		lines.Scan()
		fmt.Println(lines.Text())
	}

	// Output:
	// text/event-stream
	// event: tick
	// data: {"count":1}
	//
	// event: tick
	// data: {"count":2}
}

// A heartbeat beside a slow producer: proxies end a connection that is silent
// for long. Both goroutines use the stream, and the deferred Close stops them.
func ExampleStream_Comment() {
	answers := make(chan string) // what takes long
	ask := func(w http.ResponseWriter, r *http.Request) {
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return
		}
		defer stream.Close()

		go func() {
			heartbeat := time.NewTicker(time.Millisecond) // every 15 s is usual
			defer heartbeat.Stop()
			for {
				select {
				case <-heartbeat.C:
					stream.Comment("heartbeat")
				case <-stream.Done():
					return
				}
			}
		}()

		select {
		case answer := <-answers:
			stream.SendRaw(answer)
		case <-stream.Done():
		}
	}

	server := httptest.NewServer(http.HandlerFunc(ask))
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Scan()
	fmt.Println(lines.Text())
	answers <- "forty-two"
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data:") {
			fmt.Println(lines.Text())
		}
	}

	// Output:
	// : heartbeat
	// data: forty-two
}

// A handler that has nothing more to send. It answers 204 before there is a
// stream: an EventSource then doesn't reconnect.
func ExampleLastEventID() {
	const lines = 3 // an event's id is its number here
	follow := func(w http.ResponseWriter, r *http.Request) {
		var seen int
		fmt.Sscan(realtime.LastEventID(r), &seen)
		if seen >= lines {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return
		}
		defer stream.Close()
		for i := seen; i < lines; i++ {
			stream.SendEvent(realtime.Event{ID: fmt.Sprint(i + 1), Data: []byte("a line")})
		}
	}

	for _, id := range []string{"", "3"} {
		req := httptest.NewRequest("GET", "/follow", nil)
		req.Header.Set("Last-Event-ID", id) // as a browser does when it comes back
		resp := httptest.NewRecorder()
		follow(resp, req)
		fmt.Println(resp.Code, strings.Count(resp.Body.String(), "data:"), "events")
	}

	// Output:
	// 200 3 events
	// 204 0 events
}

// A handler for a page that needs a value once a minute. The browser asks again
// by itself.
func ExampleStream_SetRetry() {
	weather := func(w http.ResponseWriter, r *http.Request) {
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return
		}
		defer stream.Close()
		stream.SetRetry(time.Minute)
		stream.SendRaw("21 °C")
	}

	resp := httptest.NewRecorder()
	weather(resp, httptest.NewRequest("GET", "/weather", nil))
	fmt.Print(resp.Body)

	// Output:
	// retry: 60000
	// data: 21 °C
}

// A handler that lets a client that was away resume where it was: a browser
// sends the last id it saw by itself.
func ExampleStream_SendEvent() {
	log := []string{"one", "two", "three"} // an event's id is its number here
	follow := func(w http.ResponseWriter, r *http.Request) {
		stream := realtime.NewStream(w, r)
		if stream == nil {
			return
		}
		defer stream.Close()

		var seen int
		fmt.Sscan(stream.LastEventID(), &seen)
		for i, line := range log {
			if i < seen {
				continue
			}
			err := stream.SendEvent(realtime.Event{ID: fmt.Sprint(i + 1), Data: []byte(line)})
			if err != nil {
				return
			}
		}
	}

	req := httptest.NewRequest("GET", "/follow", nil)
	req.Header.Set("Last-Event-ID", "2") // as a browser does when it comes back
	resp := httptest.NewRecorder()
	follow(resp, req)
	fmt.Print(resp.Body)

	// Output:
	// data: three
	// id: 3
}
