package realtime_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// What goes over the wire.

func TestStreamWire(t *testing.T) {
	tests := []struct {
		name string
		send func(*realtime.Stream) error
		want string
	}{
		{"json", sseSend("update", map[string]any{"id": 1, "status": "done"}), "event: update\ndata: {\"id\":1,\"status\":\"done\"}\n\n"},
		{"json null", sseSend("update", nil), "event: update\ndata: null\n\n"},
		{"json without a name", sseSend("", 1), "data: 1\n\n"},
		{"name that begins with a space", sseSend(" a", 1), "event:  a\ndata: 1\n\n"},
		{"name that isn't UTF-8", sseSend("a\xffb", 1), "event: a\uFFFDb\ndata: 1\n\n"},

		{"raw", sseRaw("hello world"), "data: hello world\n\n"},
		{"raw empty", sseRaw(""), "data: \n\n"},
		{"raw begins with a space", sseRaw(" token"), "data:  token\n\n"},
		{"raw LF", sseRaw("a\nb"), "data: a\ndata: b\n\n"},
		{"raw CR", sseRaw("a\rb"), "data: a\ndata: b\n\n"},
		{"raw CRLF", sseRaw("a\r\nb"), "data: a\ndata: b\n\n"},
		{"raw LF CR", sseRaw("a\n\rb"), "data: a\ndata: \ndata: b\n\n"},
		{"raw ends with a line break", sseRaw("a\n"), "data: a\ndata: \n\n"},
		{"raw ends with two", sseRaw("a\n\n"), "data: a\ndata: \ndata: \n\n"},
		{"raw ends with CR", sseRaw("a\r"), "data: a\ndata: \n\n"},
		{"raw ends with CRLF", sseRaw("a\r\n"), "data: a\ndata: \n\n"},
		{"raw begins with a line break", sseRaw("\na"), "data: \ndata: a\n\n"},
		{"raw that looks like fields", sseRaw("a\n\nevent: b\rid: 1"), "data: a\ndata: \ndata: event: b\ndata: id: 1\n\n"},
		{"raw that isn't UTF-8", sseRaw("a\xff\xfe\nb\xe2\x82"), "data: a\uFFFD\ndata: b\uFFFD\n\n"},

		{"event", sseEvent(realtime.Event{Name: "n", ID: "7~!", Data: []byte("d\ne")}), "event: n\ndata: d\ndata: e\nid: 7~!\n\n"},
		{"event without anything", sseEvent(realtime.Event{}), "data: \n\n"},
		{"event with the longest id", sseEvent(realtime.Event{ID: strings.Repeat("x", 1024)}), "data: \nid: " + strings.Repeat("x", 1024) + "\n\n"},
		{"event that is binary", sseEvent(realtime.Event{Binary: true, Data: []byte("\xff\xfe\n\xfb?")}), "data: //4K+z8=\n\n"},
		{"event that is binary and empty", sseEvent(realtime.Event{Binary: true}), "data: \n\n"},

		{"comment", sseComment("heartbeat"), ": heartbeat\n"},
		{"comment empty", sseComment(""), ": \n"},
		{"comment of lines", sseComment("a\rb\r\nc\n\ndata: d"), ": a\n: b\n: c\n: \n: data: d\n"},
		{"comment that isn't UTF-8", sseComment("\x80"), ": \uFFFD\n"},

		{"retry", sseRetry(1500 * time.Millisecond), "retry: 1500\n"},
		{"retry at once", sseRetry(0), "retry: 0\n"},
		{"retry in the past", sseRetry(-time.Second), "retry: 0\n"},
		{"retry of less than a millisecond", sseRetry(time.Millisecond - 1), "retry: 0\n"},
		{"retry longer than a timer", sseRetry(math.MaxInt64), "retry: 2147483647\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := new(sseWriter)
			s := realtime.NewStream(w, httptest.NewRequest("GET", "/", nil))
			w.calls = nil
			if err := tt.send(s); err != nil {
				t.Fatalf("got error %v", err)
			}
			// One Write and one Flush, with a deadline of their own.
			want := []string{"deadline 10s", "write " + tt.want, "flush", "deadline none"}
			if !slices.Equal(w.calls, want) {
				t.Errorf("got  %q\nwant %q", w.calls, want)
			}
		})
	}
}

func sseSend(name string, data any) func(*realtime.Stream) error {
	return func(s *realtime.Stream) error { return s.Send(name, data) }
}

func sseRaw(data string) func(*realtime.Stream) error {
	return func(s *realtime.Stream) error { return s.SendRaw(data) }
}

func sseEvent(e realtime.Event) func(*realtime.Stream) error {
	return func(s *realtime.Stream) error { return s.SendEvent(e) }
}

func sseComment(text string) func(*realtime.Stream) error {
	return func(s *realtime.Stream) error { return s.Comment(text) }
}

func sseRetry(d time.Duration) func(*realtime.Stream) error {
	return func(s *realtime.Stream) error { return s.SetRetry(d) }
}

// An event that can't be sent writes nothing and leaves the stream open.
func TestStreamRefuses(t *testing.T) {
	tests := []struct {
		name string
		send func(*realtime.Stream) error
	}{
		{"name with LF", sseSend("a\nb", 1)},
		{"name with CR", sseSend("a\rdata: x", 1)},
		{"name of an event", sseEvent(realtime.Event{Name: "\n"})},
		{"id with LF", sseEvent(realtime.Event{ID: "1\n"})},
		{"id with NUL", sseEvent(realtime.Event{ID: "1\x00"})},
		{"id with space", sseEvent(realtime.Event{ID: "1 2"})},
		{"id with DEL", sseEvent(realtime.Event{ID: "\x7f"})},
		{"id beyond ASCII", sseEvent(realtime.Event{ID: "é"})},
		{"id too long", sseEvent(realtime.Event{ID: strings.Repeat("x", 1025)})},
		{"data that is no JSON", sseSend("a", math.Inf(1))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			s := realtime.NewStream(rec, httptest.NewRequest("GET", "/", nil))
			err := tt.send(s)
			if err == nil || errors.Is(err, realtime.ErrClientClosed) || !strings.HasPrefix(err.Error(), "realtime: ") {
				t.Errorf("got error %v, want one about the event", err)
			}
			if got := rec.Body.String(); got != "" {
				t.Errorf("got %q written, want nothing", got)
			}
			if s.IsClosed() || s.Err() != nil {
				t.Errorf("stream has ended: %v", s.Err())
			}
			if err := s.SendRaw("next"); err != nil || rec.Body.String() != "data: next\n\n" {
				t.Errorf("then got %q, %v", rec.Body.String(), err)
			}
			s.Close()
			if err := tt.send(s); !errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("once closed, got error %v, want ErrClientClosed", err)
			}
		})
	}
}

func TestStreamHeaders(t *testing.T) {
	for _, method := range []string{"GET", "POST", "HEAD"} {
		t.Run(method, func(t *testing.T) {
			rec := httptest.NewRecorder()
			rec.Header().Set("Content-Length", "5")
			rec.Header().Set("Content-Encoding", "gzip")
			rec.Header().Set("Content-Type", "text/html")
			rec.Header().Set("Access-Control-Allow-Origin", "*")
			s := realtime.NewStream(rec, httptest.NewRequest(method, "/", nil))
			if (s == nil) != (method == "HEAD") {
				t.Errorf("got stream %v", s)
			}
			if rec.Code != 200 || rec.Flushed == (method == "HEAD") || rec.Body.Len() > 0 {
				t.Errorf("got status %d, flushed %v, body %q", rec.Code, rec.Flushed, rec.Body)
			}
			want := http.Header{
				"Content-Type":                {"text/event-stream"},
				"Cache-Control":               {"private, no-store, no-cache, no-transform"},
				"X-Accel-Buffering":           {"no"},
				"Content-Encoding":            {"gzip"},
				"Access-Control-Allow-Origin": {"*"},
			}
			if got := rec.Result().Header; !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

// What a middleware sees of NewStream, in this order: the headers must have no
// WriteTimeout left of the server's, and a middleware that counts on
// WriteHeader (for its log, or to decide about compression) must see it.
func TestNewStreamCalls(t *testing.T) {
	w := new(sseWriter)
	realtime.NewStream(w, httptest.NewRequest("GET", "/", nil))
	if want := []string{"status 200", "deadline 10s", "flush", "deadline none"}; !slices.Equal(w.calls, want) {
		t.Errorf("got  %q\nwant %q", w.calls, want)
	}
}

// The browser's open event fires before there is anything to send.
func TestStreamHeadersAtOnce(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		release := make(chan struct{})
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "3")
			s := realtime.NewStream(w, r)
			defer s.Close()
			<-release
			s.SendRaw("first")
		})
		resp := srv.get() // returns with the headers
		if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Connection") != "" || resp.ContentLength != -1 {
			t.Errorf("got headers %v", resp.Header)
		}
		close(release)
		if got := sseBody(t, resp); got != "data: first\n\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestStreamHEAD(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			if s := realtime.NewStream(w, r); s != nil {
				t.Error("got a stream, want nil")
			}
		})
		for range 2 {
			resp := srv.do("HEAD", nil)
			if got := sseBody(t, resp); got != "" || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
				t.Errorf("got %d, %v, %q", resp.StatusCode, resp.Header, got)
			}
		}
		srv.checkOneConnection()
	})
}

// Which ResponseWriters can be used, and what is said about one that can't.
func TestNewStreamFlush(t *testing.T) {
	for _, tt := range []struct {
		name  string
		wrap  func(http.ResponseWriter) http.ResponseWriter
		blame string
	}{
		{"bare", func(w http.ResponseWriter) http.ResponseWriter { return w }, ""},
		{"Unwrap", func(w http.ResponseWriter) http.ResponseWriter { return sseUnwrap{w} }, ""},
		{"Unwrap twice", func(w http.ResponseWriter) http.ResponseWriter { return sseUnwrap{sseUnwrap{w}} }, ""},
		{"Flush alone", func(w http.ResponseWriter) http.ResponseWriter { return sseFlush{w} }, ""},
		{"hidden", func(w http.ResponseWriter) http.ResponseWriter { return sseHide{w} }, "realtime_test.sseHide"},
		{"hidden from a Flush", func(w http.ResponseWriter) http.ResponseWriter { return sseFlushUnwrap{sseHide{w}} }, "realtime_test.sseHide"},
		{"hidden within", func(w http.ResponseWriter) http.ResponseWriter { return sseUnwrap{sseHide{sseUnwrap{w}}} }, "realtime_test.sseHide"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			s := realtime.NewStream(tt.wrap(rec), httptest.NewRequest("GET", "/", nil))
			if tt.blame == "" {
				if s == nil || s.SendRaw("x") != nil || rec.Body.String() != "data: x\n\n" || !rec.Flushed {
					t.Errorf("got stream %v, body %q, flushed %v", s, rec.Body, rec.Flushed)
				}
				return
			}
			if s != nil || rec.Code != 500 || rec.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("got stream %v, status %d, headers %v", s, rec.Code, rec.Header())
			}
			if body := rec.Body.String(); !strings.Contains(body, tt.blame+" ") || !strings.Contains(body, "Unwrap") {
				t.Errorf("got %q, want the culprit %s and the cure", body, tt.blame)
			}
		})
	}
}

func TestNewStreamTimeoutHandler(t *testing.T) {
	h := http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s := realtime.NewStream(w, r); s != nil {
			t.Errorf("got a stream through %T", w)
		}
	}), time.Minute, "")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 || !strings.Contains(rec.Body.String(), "*http.timeoutWriter") {
		t.Errorf("got %d %q", rec.Code, rec.Body)
	}
}

func TestLastEventID(t *testing.T) {
	for _, tt := range []struct{ header, query, want string }{
		{"", "", ""},
		{"42", "", "42"},
		{"", "?lastEventId=42", "42"},
		{"43", "?lastEventId=42", "43"}, // a browser comes back to the URL it began with
		{"!~", "", "!~"},
		{"", "?lastEventId=a%20b", ""},
		{"", "?lastEventId=a%0A", ""},
		{"", "?lastEventId=a%00", ""},
		{"é", "", ""},
		{"a b", "?lastEventId=42", ""},
		{strings.Repeat("x", 1024), "", strings.Repeat("x", 1024)},
		{strings.Repeat("x", 1025), "", ""},
	} {
		r := httptest.NewRequest("GET", "/feed"+tt.query, nil)
		if tt.header != "" {
			r.Header.Set("Last-Event-ID", tt.header)
		}
		if got := realtime.LastEventID(r); got != tt.want {
			t.Errorf("header %q, query %q: got %q, want %q", tt.header, tt.query, got, tt.want)
		}
		if got := realtime.NewStream(httptest.NewRecorder(), r).LastEventID(); got != tt.want {
			t.Errorf("header %q, query %q: the stream got %q, want %q", tt.header, tt.query, got, tt.want)
		}
	}
}

// How a stream ends.

// sseCheckEnded checks that s tells in all its ways that it has ended by cause.
func sseCheckEnded(t *testing.T, s *realtime.Stream, cause error) {
	t.Helper()
	<-s.Done()
	if !s.IsClosed() {
		t.Error("IsClosed: got false")
	}
	err := s.Err()
	if !errors.Is(err, realtime.ErrClientClosed) || !errors.Is(err, cause) {
		t.Errorf("Err: got %v, want ErrClientClosed and %v", err, cause)
	}
	for name, got := range map[string]error{
		"Send":      s.Send("a", 1),
		"SendRaw":   s.SendRaw("a"),
		"SendEvent": s.SendEvent(realtime.Event{}),
		"Comment":   s.Comment("a"),
		"SetRetry":  s.SetRetry(0),
	} {
		if got == nil || got.Error() != err.Error() || !errors.Is(got, realtime.ErrClientClosed) {
			t.Errorf("%s: got %v, want %v", name, got, err)
		}
	}
}

func TestStreamOpen(t *testing.T) {
	s := realtime.NewStream(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	select {
	case <-s.Done():
		t.Error("Done is closed")
	default:
	}
	if s.IsClosed() || s.Err() != nil {
		t.Errorf("got IsClosed %v, Err %v", s.IsClosed(), s.Err())
	}
}

func TestStreamClientLeaves(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		opened, ended := make(chan struct{}), make(chan struct{})
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			s := realtime.NewStream(w, r)
			defer s.Close()
			close(opened)
			sseCheckEnded(t, s, context.Canceled)
		})
		resp := srv.get()
		<-opened
		resp.Body.Close()
		<-ended
	})
}

// The end of the request's context ends the stream with its cause, at once,
// and whatever happens later changes nothing.
func TestStreamContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("server goes down")
		ctx, cancel := context.WithCancelCause(t.Context())
		w := new(sseWriter)
		s := realtime.NewStream(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		w.calls = nil
		cancel(cause)
		if err := s.SendRaw("late"); !errors.Is(err, cause) { // before any goroutine could run
			t.Errorf("got %v, want %v", err, cause)
		}
		sseCheckEnded(t, s, cause)
		s.Close()
		sseCheckEnded(t, s, cause)
		if len(w.calls) > 0 {
			t.Errorf("the ended stream still did %q", w.calls)
		}
	})
}

// A request that has ended is the cause, even if Close is the first to see it.
func TestStreamCloseAfterContextEnds(t *testing.T) {
	cause := errors.New("server goes down")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := realtime.NewStream(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	cancel(cause)
	s.Close()
	sseCheckEnded(t, s, cause)
}

// A write that is in progress when the stream ends keeps its deadline, for
// the end of the response.
func TestStreamEndsDuringWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := new(sseWriter)
		s := realtime.NewStream(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		w.calls = nil
		w.onWrite = func() {
			cancel()
			synctest.Wait()
		}
		if err := s.SendRaw("x"); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		if want := []string{"deadline 10s", "deadline 1s", "write data: x\n\n", "flush"}; !slices.Equal(w.calls, want) {
			t.Errorf("got  %q\nwant %q", w.calls, want)
		}
	})
}

// Where a write has no deadline, a stream ends even so when its request does,
// however long the write takes.
func TestStreamWithoutDeadlineEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w := new(sseWriter)
		s := realtime.NewStream(sseFlush{w}, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		release := make(chan struct{})
		w.onWrite = func() { <-release }
		sent := make(chan error)
		go func() { sent <- s.SendRaw("x") }()
		sseCheckEnded(t, s, context.DeadlineExceeded)
		close(release)
		if err := <-sent; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// A write that doesn't heed its deadline, as on an HTTP/2 connection that is
// stuck as a whole, keeps nobody in the dark about the end of the request.
func TestStreamEndsDuringOverdueWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w := new(sseWriter)
		s := realtime.NewStream(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		release := make(chan struct{})
		w.onWrite = func() { <-release }
		start := time.Now()
		go s.SendRaw("x")
		<-s.Done()
		if took := time.Since(start); took != time.Minute+time.Second {
			t.Errorf("ended after %v, want a second after the request", took)
		}
		sseCheckEnded(t, s, context.DeadlineExceeded)
		close(release)
	})
}

func TestNewStreamContextEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := httptest.NewRecorder()
	s := realtime.NewStream(rec, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	sseCheckEnded(t, s, context.Canceled)
	if rec.Flushed || rec.Body.Len() > 0 {
		t.Errorf("got flushed %v, body %q", rec.Flushed, rec.Body)
	}
}

func TestStreamClose(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := new(sseWriter)
	s := realtime.NewStream(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	w.calls = nil
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("got %v", err)
		}
	}
	sseCheckEnded(t, s, realtime.ErrClientClosed)
	cancel()
	sseCheckEnded(t, s, realtime.ErrClientClosed)
	if errors.Is(s.Err(), context.Canceled) {
		t.Errorf("got %v, want the first cause", s.Err())
	}
	// The end of the response has a deadline, set once.
	if want := []string{"deadline 10s"}; !slices.Equal(w.calls, want) {
		t.Errorf("got %q, want %q", w.calls, want)
	}
}

// No goroutine waits for a stream that nobody ends: the bubble would not end.
func TestStreamWithoutGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		_ = cancel // never
		r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
		realtime.NewStream(httptest.NewRecorder(), r).SendRaw("x")
	})
}

func TestStreamWriteFails(t *testing.T) {
	broken := errors.New("broken pipe")
	for _, tt := range []struct {
		name string
		fail func(w *sseWriter)
	}{
		{"write", func(w *sseWriter) { w.writeErr = broken }},
		{"flush", func(w *sseWriter) { w.flushErr = broken }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := new(sseWriter)
			s := realtime.NewStream(w, httptest.NewRequest("GET", "/", nil))
			tt.fail(w)
			if err := s.SendRaw("x"); !errors.Is(err, broken) || !errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("got %v", err)
			}
			w.writeErr, w.flushErr, w.calls = nil, nil, nil
			sseCheckEnded(t, s, broken)
			s.Close()
			sseCheckEnded(t, s, broken)
			if len(w.calls) > 0 {
				t.Errorf("the ended stream still did %q", w.calls)
			}
		})
	}

	t.Run("headers", func(t *testing.T) {
		s := realtime.NewStream(&sseWriter{flushErr: broken}, httptest.NewRequest("GET", "/", nil))
		sseCheckEnded(t, s, broken)
	})
}

// A write that panics (http.ErrAbortHandler, a wrapper's bug) leaves no lock behind.
func TestStreamWritePanics(t *testing.T) {
	w := new(sseWriter)
	s := realtime.NewStream(w, httptest.NewRequest("GET", "/", nil))
	w.onWrite = func() { panic(http.ErrAbortHandler) }
	func() {
		defer func() { recover() }()
		s.SendRaw("x")
	}()
	s.Close()
	sseCheckEnded(t, s, realtime.ErrClientClosed)
}

// Time.

// The server's timeouts don't end a stream, nor does a deadline of its own
// while there is nothing to send.
func TestStreamOutlivesTimeouts(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		srv.http.WriteTimeout = 5 * time.Second
		srv.http.ReadTimeout = 7 * time.Second
		var want strings.Builder
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			s := realtime.NewStream(w, r)
			defer s.Close()
			for i := range 60 {
				time.Sleep(time.Minute)
				if err := s.Send("tick", i); err != nil {
					t.Errorf("tick %d: %v", i, err)
				}
				fmt.Fprintf(&want, "event: tick\ndata: %d\n\n", i)
			}
		})
		if got := sseBody(t, srv.get()); got != want.String() || got == "" {
			t.Errorf("got %q", got)
		}
	})
}

// A write has 10 seconds.
func TestStreamStuckReader(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		ended := make(chan struct{})
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			s := realtime.NewStream(w, r)
			defer s.Close()
			time.Sleep(time.Hour)
			start := time.Now()
			err := s.SendRaw(srv.stuck)
			if took := time.Since(start); took != 10*time.Second {
				t.Errorf("Send: took %v, want 10s", took)
			}
			if err == nil || s.Err() == nil || err.Error() != s.Err().Error() {
				t.Errorf("Send: got %v, Err is %v", err, s.Err())
			}
			timeout := os.ErrDeadlineExceeded
			if r.ProtoMajor == 2 { // whose error only mentions it
				timeout = realtime.ErrClientClosed
				if !strings.Contains(err.Error(), os.ErrDeadlineExceeded.Error()) {
					t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
				}
			}
			sseCheckEnded(t, s, timeout)
		})
		resp := srv.get() // and never reads on
		<-ended
		resp.Body.Close()
	})
}

// A stuck write outlives Close, or the end of the request's context, by a
// second at most.
func TestStreamStuckWriteIsHastened(t *testing.T) {
	shutdown := errors.New("server goes down")
	for _, tt := range []struct {
		name  string
		after time.Duration // into the write
		end   func(s *realtime.Stream, cancel context.CancelCauseFunc)
		took  time.Duration
		cause error
	}{
		{"close", 2 * time.Second, func(s *realtime.Stream, _ context.CancelCauseFunc) { s.Close() }, 3 * time.Second, realtime.ErrClientClosed},
		{"close late", 9500 * time.Millisecond, func(s *realtime.Stream, _ context.CancelCauseFunc) { s.Close() }, 10 * time.Second, realtime.ErrClientClosed},
		{"context", 2 * time.Second, func(_ *realtime.Stream, cancel context.CancelCauseFunc) { cancel(shutdown) }, 3 * time.Second, shutdown},
		{"context late", 9500 * time.Millisecond, func(_ *realtime.Stream, cancel context.CancelCauseFunc) { cancel(shutdown) }, 10 * time.Second, shutdown},
		{"context, then close", 2 * time.Second, func(s *realtime.Stream, cancel context.CancelCauseFunc) {
			cancel(shutdown)
			time.Sleep(time.Second / 2)
			s.Close()
		}, 3 * time.Second, shutdown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sseProtocols(t, func(t *testing.T, srv *sseServer) {
				ended := make(chan struct{})
				srv.start(func(w http.ResponseWriter, r *http.Request) {
					defer close(ended)
					ctx, cancel := context.WithCancelCause(r.Context())
					s := realtime.NewStream(w, r.WithContext(ctx))
					start := time.Now()
					time.AfterFunc(tt.after, func() {
						tt.end(s, cancel)
						if tt.cause == realtime.ErrClientClosed && time.Since(start) != tt.took {
							t.Errorf("Close returned after %v, want %v", time.Since(start), tt.took)
						}
					})
					s.SendRaw(srv.stuck)
					if took := time.Since(start); took != tt.took {
						t.Errorf("Send returned after %v, want %v", took, tt.took)
					}
					sseCheckEnded(t, s, tt.cause)
					s.Close()
				})
				resp := srv.get()
				<-ended
				resp.Body.Close()
			})
		})
	}
}

// net/http cancels the request when a write fails: a wrapper whose Flush
// returns nothing can't hide it.
func TestStreamFlushWithoutError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := sseNewServer(t, 1)
		ended := make(chan struct{})
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			s := realtime.NewStream(sseFlushUnwrap{w}, r)
			defer s.Close()
			if err := s.SendRaw("x"); err == nil || !s.IsClosed() {
				t.Errorf("got %v, IsClosed %v", err, s.IsClosed())
			}
		})
		resp := srv.get()
		<-ended
		resp.Body.Close()
	})
}

// Close waits for a healthy write, so that the response ends in one piece,
// and the connection serves its next request without a deadline of ours.
func TestStreamCloseEndsCleanly(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" { // the next request: slow, and no stream
				for range 30 {
					time.Sleep(time.Second)
					io.WriteString(w, ".")
					http.NewResponseController(w).Flush()
				}
				return
			}
			s := realtime.NewStream(w, r)
			go s.SendRaw("last")
			time.Sleep(100 * time.Millisecond) // the client reads after 500 ms
			s.Close()
		})
		for range 2 {
			resp := srv.get()
			time.Sleep(500 * time.Millisecond)
			if got := sseBody(t, resp); got != "data: last\n\n" {
				t.Errorf("got %q", got)
			}
			if got := sseBody(t, srv.do("POST", nil)); got != strings.Repeat(".", 30) {
				t.Errorf("got %q", got)
			}
		}
		srv.checkOneConnection()
	})
}

// The end of the response must not wait for ever for a reader that is stuck:
// it is NewStream that lifted the server's limit.
func TestStreamCloseBoundsTheResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := sseNewServer(t, 1)
		gone := make(chan time.Time, 1)
		srv.http.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				gone <- time.Now()
			}
		}
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			realtime.NewStream(w, r).Close() // and net/http has the last chunk to write
		})
		start := time.Now()
		resp := srv.get()
		if took := (<-gone).Sub(start); took != 10*time.Second {
			t.Errorf("connection closed after %v, want 10s", took)
		}
		resp.Body.Close()
	})
}

// The loop that users begin with, as it stands in their document: it ends one
// tick after the client has left.
func TestStreamSeedLoop(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		ended := make(chan time.Time)
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			defer func() { ended <- time.Now() }()

			stream := realtime.NewStream(w, r)
			if stream == nil {
				return // client doesn't support SSE
			}

			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()

			for {
				//lint:ignore S1000 as it stands
				select {
				case t := <-ticker.C:
					stream.Send("tick", map[string]any{
						"time":  t.Format(time.RFC3339),
						"count": 1,
					})
				}

				if stream.IsClosed() {
					break // client disconnected
				}
			}
		})
		start := time.Now()
		resp := srv.get()
		lines := bufio.NewScanner(resp.Body)
		for i := range 3 {
			at := start.Add(time.Duration(i+1) * time.Second).Format(time.RFC3339)
			for _, want := range []string{"event: tick", `data: {"count":1,"time":"` + at + `"}`, ""} {
				if lines.Scan(); lines.Text() != want {
					t.Errorf("got %q, %v, want %q", lines.Text(), lines.Err(), want)
				}
			}
		}
		synctest.Wait() // the handler waits for its next tick
		resp.Body.Close()
		if took := (<-ended).Sub(start); took != 4*time.Second {
			t.Errorf("handler returned after %v, want 4s", took)
		}
	})
}

// A heartbeat beside a slow producer: two goroutines, one stream.
func TestStreamHeartbeat(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			s := realtime.NewStream(w, r)
			defer s.Close()
			go func() {
				for range 100 {
					select {
					case <-time.After(15 * time.Second):
						s.Comment("heartbeat")
					case <-s.Done():
						return
					}
				}
				t.Error("the heart beats on")
			}()
			time.Sleep(40 * time.Second)
			s.SendRaw("done")
		})
		if got, want := sseBody(t, srv.get()), ": heartbeat\n: heartbeat\ndata: done\n\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// The fence.

// Close returns after the write in progress and before any other.
func TestStreamCloseWaitsForTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(sseWriter)
		s := realtime.NewStream(w, httptest.NewRequest("GET", "/", nil))
		release := make(chan struct{})
		w.onWrite = func() { <-release }
		go s.SendRaw("first")
		synctest.Wait()
		var refused, closed atomic.Int32
		for range 10 {
			go func() {
				if err := s.SendRaw("later"); errors.Is(err, realtime.ErrClientClosed) {
					refused.Add(1)
				}
			}()
		}
		synctest.Wait()
		for range 2 { // each of them
			go func() {
				s.Close()
				closed.Add(1)
			}()
		}
		synctest.Wait()
		if closed.Load() > 0 {
			t.Error("Close returned during a write")
		}
		if n := refused.Load(); n != 10 {
			t.Errorf("got %d of 10 waiting sends refused at the end of the stream", n)
		}
		close(release)
		synctest.Wait()
		if closed.Load() != 2 {
			t.Error("Close didn't return after the write")
		}
		var writes []string
		for _, c := range w.calls {
			if strings.HasPrefix(c, "write") {
				writes = append(writes, c)
			}
		}
		if want := []string{"write data: first\n\n"}; !slices.Equal(writes, want) {
			t.Errorf("got %q, want %q", writes, want)
		}
	})
}

// Goroutines that send on while the handler closes and returns never touch
// the ResponseWriter again. Under -race this checks net/http's as well.
func TestStreamFence(t *testing.T) {
	for _, proto := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP/%d", proto), func(t *testing.T) {
			var senders sync.WaitGroup
			var touched atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fence := &sseFence{ResponseWriter: w, touched: &touched}
				defer fence.returned.Store(true)
				s := realtime.NewStream(fence, r)
				defer s.Close()
				var started sync.WaitGroup
				for range 4 {
					started.Add(1)
					senders.Go(func() {
						s.SendRaw("first")
						started.Done()
						for s.SendRaw("more") == nil {
						}
						s.Close()
						s.SendRaw("after the end")
					})
				}
				started.Wait()
			}))
			srv.EnableHTTP2 = proto == 2
			srv.StartTLS()
			defer srv.Close()
			for range 100 {
				resp, err := srv.Client().Get(srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				body := sseBody(t, resp)
				if rest := strings.NewReplacer("data: first\n\n", "", "data: more\n\n", "").Replace(body); rest != "" {
					t.Fatalf("got torn events: %q", rest)
				}
			}
			senders.Wait()
			if n := touched.Load(); n > 0 {
				t.Errorf("the ResponseWriter was used %d times after its handler had returned", n)
			}
		})
	}
}

// A handler that returns without Close: the request's context is the fence.
func TestStreamHandlerReturnsWithoutClose(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		var touched atomic.Int64
		var s *realtime.Stream
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			fence := &sseFence{ResponseWriter: w, touched: &touched}
			defer fence.returned.Store(true)
			s = realtime.NewStream(fence, r)
			s.SendRaw("x")
		})
		if got := sseBody(t, srv.get()); got != "data: x\n\n" {
			t.Errorf("got %q", got)
		}
		sseCheckEnded(t, s, context.Canceled)
		s.Close()
		sseCheckEnded(t, s, context.Canceled)
		if n := touched.Load(); n > 0 {
			t.Errorf("the ResponseWriter was used %d times after its handler had returned", n)
		}
	})
}

// Events of concurrent senders arrive whole, each one's in order.
func TestStreamConcurrentSends(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		const senders, events = 8, 50
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			s := realtime.NewStream(w, r)
			defer s.Close()
			var wg sync.WaitGroup
			for i := range senders {
				wg.Go(func() {
					for n := range events {
						if err := s.SendEvent(realtime.Event{Name: fmt.Sprint(i), Data: fmt.Appendf(nil, "%d\n%d", n, i)}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
		next := make(map[string]int)
		for _, e := range sseParse(sseBody(t, srv.get())).events {
			if want := fmt.Sprintf("%d\n%s", next[e.name], e.name); e.data != want {
				t.Fatalf("got %+v, want data %q", e, want)
			}
			next[e.name]++
		}
		for i := range senders {
			if n := next[fmt.Sprint(i)]; n != events {
				t.Errorf("sender %d: got %d events, want %d", i, n, events)
			}
		}
	})
}

// Cost.

func TestStreamAllocs(t *testing.T) {
	w := &sseDiscard{header: make(http.Header)}
	s := realtime.NewStream(w, httptest.NewRequest("GET", "/", nil))
	data := []byte("line\nline \u20ac")
	small, large := string(data), strings.Repeat("x", 100<<10)
	for _, tt := range []struct {
		name string
		send func()
		want float64
	}{
		{"SendRaw", func() { s.SendRaw(small) }, 0},
		{"SendEvent", func() { s.SendEvent(realtime.Event{Name: "n", ID: "1", Data: data}) }, 0},
		{"SendEvent binary", func() { s.SendEvent(realtime.Event{Data: data, Binary: true}) }, 0},
		{"Comment", func() { s.Comment("heartbeat") }, 0},
		{"SendRaw large, whose buffer is not kept", func() { s.SendRaw(large) }, 1},
	} {
		if got := testing.AllocsPerRun(100, tt.send); got < tt.want || tt.want == 0 && got > 0 {
			t.Errorf("%s: got %v allocations, want %v", tt.name, got, tt.want)
		}
	}
}

// Over real connections.

func TestStreamTCP(t *testing.T) {
	for _, proto := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP/%d", proto), func(t *testing.T) {
			cause := make(chan error, 1)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				s := realtime.NewStream(w, r)
				defer s.Close()
				if r.ProtoMajor != proto {
					t.Errorf("got %s", r.Proto)
				}
				s.Send("hello", r.ProtoMajor)
				<-s.Done()
				cause <- s.Err()
			}))
			srv.EnableHTTP2 = proto == 2
			srv.StartTLS()
			defer srv.Close()
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("event: hello\ndata: %d\n\n", proto)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
			resp.Body.Close()
			if err := <-cause; !errors.Is(err, context.Canceled) || !errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("the client left: got %v", err)
			}
		})
	}
}

// The body of a POST can be read beside the stream, and having read it to its
// end tells when the client leaves.
func TestStreamPOST(t *testing.T) {
	left := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := realtime.NewStream(w, r)
		defer s.Close()
		s.SendRaw("ready")
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("body: %v", err)
			return
		}
		s.SendRaw(string(body))
		<-s.Done()
		left <- s.Err()
	}))
	defer srv.Close()
	question, ask := io.Pipe()
	// Without full duplex the headers wait for the body's end, so that this
	// end is what lets the test fail.
	defer time.AfterFunc(time.Minute, func() { ask.Close() }).Stop()
	resp, err := srv.Client().Post(srv.URL, "text/plain", question)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer ask.Close()
	lines := bufio.NewScanner(resp.Body)
	expect := func(want string) {
		t.Helper()
		if lines.Scan(); lines.Text() != want {
			t.Fatalf("got %q, %v, want %q", lines.Text(), lines.Err(), want)
		}
	}
	expect("data: ready")
	expect("")
	io.WriteString(ask, "how are you?")
	ask.Close()
	expect("data: how are you?")
	resp.Body.Close()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the client left: got %v", err)
	}
}

// A TCP connection that nobody reads ends its stream 10 s after its buffers
// are full, by the write's error.
func TestStreamStuckReaderTCP(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	type result struct {
		took time.Duration
		err  error
	}
	results := make(chan result, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := realtime.NewStream(w, r)
		defer s.Close()
		data := strings.Repeat("x", 1<<20)
		start := time.Now()
		for s.SendRaw(data) == nil {
			start = time.Now()
		}
		results <- result{time.Since(start), s.Err()}
	}))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got result
	select {
	case got = <-results:
	case <-time.After(time.Minute):
		t.Fatal("the stream goes on after a minute")
	}
	if got.took < 10*time.Second || !errors.Is(got.err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v after %v, want a time-out after 10s", got.err, got.took)
	}
}

// ResponseWriters.

// An sseWriter records what a stream does with it.
type sseWriter struct {
	header             http.Header
	calls              []string
	onWrite            func()
	writeErr, flushErr error
}

func (w *sseWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

func (w *sseWriter) WriteHeader(status int) {
	w.calls = append(w.calls, fmt.Sprint("status ", status))
}

func (w *sseWriter) Write(b []byte) (int, error) {
	if w.onWrite != nil {
		w.onWrite()
	}
	w.calls = append(w.calls, "write "+string(b))
	return len(b), w.writeErr
}

func (w *sseWriter) FlushError() error {
	w.calls = append(w.calls, "flush")
	return w.flushErr
}

func (w *sseWriter) SetWriteDeadline(d time.Time) error {
	call := "deadline none"
	if !d.IsZero() {
		call = "deadline " + time.Until(d).Round(time.Second).String()
	}
	w.calls = append(w.calls, call)
	return nil
}

// An sseDiscard costs nothing.
type sseDiscard struct{ header http.Header }

func (w *sseDiscard) Header() http.Header                { return w.header }
func (w *sseDiscard) WriteHeader(int)                    {}
func (w *sseDiscard) Write(b []byte) (int, error)        { return len(b), nil }
func (w *sseDiscard) FlushError() error                  { return nil }
func (w *sseDiscard) SetWriteDeadline(_ time.Time) error { return nil }

// Middlewares' ResponseWriters: one that hides everything, one that doesn't,
// one that offers Flush alone, one that swallows its error.
type (
	sseHide        struct{ http.ResponseWriter }
	sseUnwrap      struct{ http.ResponseWriter }
	sseFlush       struct{ http.ResponseWriter }
	sseFlushUnwrap struct{ http.ResponseWriter }
)

func (w sseUnwrap) Unwrap() http.ResponseWriter      { return w.ResponseWriter }
func (w sseFlush) Flush()                            { http.NewResponseController(w.ResponseWriter).Flush() }
func (w sseFlushUnwrap) Flush()                      { http.NewResponseController(w.ResponseWriter).Flush() }
func (w sseFlushUnwrap) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// An sseFence counts what a stream does after its handler has returned, and
// doesn't let it through.
type sseFence struct {
	http.ResponseWriter
	returned atomic.Bool
	touched  *atomic.Int64
}

func (w *sseFence) late() bool {
	if !w.returned.Load() {
		return false
	}
	w.touched.Add(1)
	return true
}

func (w *sseFence) Write(b []byte) (int, error) {
	if w.late() {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

func (w *sseFence) FlushError() error {
	if w.late() {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *sseFence) SetWriteDeadline(d time.Time) error {
	if w.late() {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(d)
}

// Servers in bubbles.

// sseProtocols runs test for HTTP/1.1 and HTTP/2, each in a bubble with a
// server of its own.
func sseProtocols(t *testing.T, test func(t *testing.T, srv *sseServer)) {
	for _, proto := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP/%d", proto), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, sseNewServer(t, proto)) })
		})
	}
}

// An sseServer is a real http.Server and a client of it over net.Pipe: a
// write blocks until the client reads (on HTTP/2, until its window is full).
type sseServer struct {
	t     *testing.T
	proto int
	http  http.Server
	dials atomic.Int32
	stuck string // data that can't be sent to a client that doesn't read
	pipes *pipeListener
	tr    *http.Transport
}

func sseNewServer(t *testing.T, proto int) *sseServer {
	var p http.Protocols
	stuck := "x"
	if proto == 1 {
		p.SetHTTP1(true)
	} else {
		p.SetUnencryptedHTTP2(true)
		stuck = strings.Repeat("x", 128<<10)
	}
	s := &sseServer{t: t, proto: proto, stuck: stuck, pipes: listenPipe()}
	s.http.Protocols = &p
	s.tr = &http.Transport{
		Protocols: &p,
		HTTP2:     &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			s.dials.Add(1)
			return s.pipes.dial(ctx, network, addr)
		},
	}
	return s
}

func (s *sseServer) start(h http.HandlerFunc) {
	s.http.Handler = h
	go s.http.Serve(s.pipes)
	s.t.Cleanup(func() {
		s.tr.CloseIdleConnections()
		s.http.Close()
		synctest.Wait()
	})
}

// checkOneConnection checks that all requests shared one, so that each
// response ended where HTTP says. net/http's HTTP/2 client may dial twice.
func (s *sseServer) checkOneConnection() {
	s.t.Helper()
	if n := s.dials.Load(); n != 1 && s.proto == 1 {
		s.t.Errorf("got %d connections, want 1", n)
	}
}

func (s *sseServer) get() *http.Response { return s.do("GET", nil) }

func (s *sseServer) do(method string, body io.Reader) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://stream.test/", body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.tr.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}

// sseBody reads a response to its end, which has to be a clean one.
func sseBody(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Errorf("response ended with %v", err)
	}
	return b.String()
}

// A deaf ResponseWriter is that of a middleware that compresses. It has Unwrap but
// no Flush, so it keeps what it gets.
type deaf struct{ http.ResponseWriter }

func (w deaf) Write(p []byte) (int, error) { return len(p), nil }
func (w deaf) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A plainWrapper changes nothing.
type plainWrapper struct{ http.ResponseWriter }

func (w plainWrapper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A stream that a middleware would keep is an error that names it, with a hub and
// without.
func TestStreamInCompressingWriter(t *testing.T) {
	for name, test := range map[string]struct {
		encoding string
		wrap     func(w http.ResponseWriter) http.ResponseWriter
		status   int // of the hub's answer
	}{
		"compresses":       {"gzip", func(w http.ResponseWriter) http.ResponseWriter { return deaf{w} }, 501},
		"behind another":   {"br", func(w http.ResponseWriter) http.ResponseWriter { return plainWrapper{deaf{w}} }, 501},
		"doesn't compress": {"", func(w http.ResponseWriter) http.ResponseWriter { return plainWrapper{w} }, 200},
		"identity":         {"identity", func(w http.ResponseWriter) http.ResponseWriter { return plainWrapper{w} }, 200},
		"by itself":        {"gzip", func(w http.ResponseWriter) http.ResponseWriter { return w }, 200},
		"has a Flush": {"gzip", func(w http.ResponseWriter) http.ResponseWriter {
			return struct {
				http.ResponseWriter
				http.Flusher
			}{w, w.(http.Flusher)}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			var logged safeBuffer
			hub.Logger = textLogger(&logged)
			handlers := map[string]http.Handler{
				"hub": hub,
				"stream": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if s := realtime.NewStream(w, r); s != nil {
						s.Close()
					}
				}),
			}
			for what, handler := range handlers {
				if test.status == 0 && what == "hub" {
					continue // its writer has no Unwrap
				}
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if test.encoding != "" {
						w.Header().Set("Content-Encoding", test.encoding)
					}
					handler.ServeHTTP(test.wrap(w), r)
				}))
				r, _ := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
				r.Header.Set("Accept", "text/event-stream")
				resp, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if refused := test.status == 501; refused != (resp.StatusCode >= 500) {
					t.Errorf("%s: answered %s", what, resp.Status)
				}
				if refused := strings.Contains(logged.String(), "Content-Encoding"); what == "hub" && refused != (test.status == 501) {
					t.Errorf("logged %q", logged.String())
				}
				server.Close()
			}
			hub.Shutdown(t.Context())
		})
	}
}
