package compat_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

func TestNewStream(t *testing.T) {
	for _, s := range stacks {
		if s.noFlush {
			continue // its stream arrives in one piece at the end
		}
		t.Run(s.name, func(t *testing.T) {
			released := make(chan struct{})
			release := sync.OnceFunc(func() { close(released) })
			server := serve(t, s.handler(func(w http.ResponseWriter, r *http.Request) {
				stream := realtime.NewStream(w, r)
				if stream == nil {
					t.Error("NewStream() = nil")
					return
				}
				defer stream.Close()
				if err := stream.Send("first", map[string]int{"n": 1}); err != nil {
					t.Errorf("Send: %v", err)
				}
				<-released
				if err := stream.SendRaw("second"); err != nil {
					t.Errorf("SendRaw: %v", err)
				}
			}), false)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			defer release()

			// The client asks for gzip and decodes it, as a browser does.
			r, err := http.NewRequestWithContext(ctx, "GET", server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(got, "text/event-stream") {
				t.Errorf("answered %d, Content-Type %q, want 200, text/event-stream", resp.StatusCode, got)
			}
			body := bufio.NewReader(resp.Body)
			if got, want := readEvent(t, body), "event: first\ndata: {\"n\":1}\n"; got != want {
				t.Errorf("got %q while the handler runs, want %q", got, want)
			}
			release()
			if got, want := readEvent(t, body), "data: second\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if _, err := body.ReadByte(); err != io.EOF {
				t.Errorf("after the handler has returned: %v, want EOF", err)
			}
		})
	}
}

// readEvent returns the lines up to the next empty one.
func readEvent(t *testing.T, body *bufio.Reader) string {
	t.Helper()
	var event strings.Builder
	for {
		line, err := body.ReadString('\n')
		if err != nil {
			t.Fatalf("read: %v after %q", err, event.String())
		}
		if line == "\n" {
			return event.String()
		}
		event.WriteString(line)
	}
}

// The headers are sent with the first event at the latest. They go through the
// middleware, so the session is saved and its cookie is set.
func TestStreamSavesSession(t *testing.T) {
	sessions := scs.New()
	server := serve(t, sessions.LoadAndSave(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sessions.Put(r.Context(), "watches", true)
		stream := realtime.NewStream(w, r)
		defer stream.Close()
		stream.SendRaw("hello")
	})), false)
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if len(resp.Cookies()) == 0 {
		t.Errorf("the answer sets no cookie: %v", resp.Header)
	}
}

// A stream ends with the context of its request.
func TestStreamEndsWithTimeout(t *testing.T) {
	closed := make(chan bool, 1)
	// The middleware answers 504 after the headers are sent. net/http logs an
	// error about it.
	server := serve(t, chiStack(chimiddleware.Timeout(50*time.Millisecond))(func(w http.ResponseWriter, r *http.Request) {
		stream := realtime.NewStream(w, r)
		defer stream.Close()
		stream.SendRaw("hello")
		select {
		case <-stream.Done():
			closed <- stream.IsClosed()
		case <-time.After(patience):
			closed <- false
		}
	}), true)
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "data: hello\n\n" {
		t.Errorf("got %q, %v, want the one event and EOF", body, err)
	}
	if !<-closed {
		t.Error("the stream has not ended, or IsClosed() = false")
	}
}

func TestNewStreamNamesWhatHidesFlush(t *testing.T) {
	for _, h := range hiders {
		t.Run(h.name, func(t *testing.T) {
			server := serve(t, h.handler(func(w http.ResponseWriter, r *http.Request) {
				if stream := realtime.NewStream(w, r); stream != nil {
					defer stream.Close()
					t.Error("NewStream() != nil")
				}
			}), false)
			resp, err := server.Client().Get(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if s := string(body); resp.StatusCode != http.StatusInternalServerError || !strings.Contains(s, h.culprit) || !strings.Contains(s, "Unwrap") {
				t.Errorf("answered %d %q, want 500 and a text that names %s and Unwrap", resp.StatusCode, s, h.culprit)
			}
		})
	}
}
