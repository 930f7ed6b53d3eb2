package realtime

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	streamWriteTimeout = 10 * time.Second // for an event to reach the kernel
	streamCloseTimeout = time.Second      // for the write in progress when its stream ends
	streamBufferBytes  = 64 << 10         // a larger buffer is not kept for the next event
	maxEventIDBytes    = 1024             // far below the header limits of servers and proxies
)

// A Stream is an event stream (WHATWG HTML §9.2) that one HTTP handler writes.
// [NewStream] makes it. The handler ends it with
//
//	defer stream.Close()
//
// because net/http reuses the ResponseWriter once the handler has returned.
// Without Close the request's context ends the stream too, but nothing waits
// for a send in progress on another goroutine.
//
// All methods are safe for concurrent use. A send waits for earlier sends. Then
// it blocks until the kernel has the event, for 10 s at most. Each send is one
// Write and one Flush, so events never mix. A send that fails on the way ends
// the stream, since part of the event may have left. This and all later sends
// return Err, which wraps [ErrClientClosed]. An event that can't be sent, for
// example with a line break in its name, is a different error: nothing is
// written, and the stream stays open.
//
// The time limits have two gaps. Behind a ResponseWriter with Flush but neither
// SetWriteDeadline nor Unwrap there are none, and Server.WriteTimeout ends the
// stream. On HTTP/2 they apply to a client that withholds its window, but only
// http.HTTP2Config.WriteByteTimeout ends a connection that is stuck as a whole.
type Stream struct {
	// Set at construction, never changed.
	w      http.ResponseWriter
	rc     *http.ResponseController
	r      *http.Request
	ctx    context.Context // done when the stream has ended, with the cause
	cancel context.CancelCauseFunc

	// The lock for w and the fields below, held for a whole write. Its holder
	// has put the one element in. A mutex wouldn't release sends that wait for
	// a stuck write when the stream ends, and would stop a synctest clock.
	turn   chan struct{}
	buf    []byte // the next event is encoded here
	closed bool   // by Close

	dmu      sync.Mutex // guards the field below, never held through a write
	deadline time.Time  // of the write in progress; zero if there is none
}

// NewStream sends the headers of an event stream at once and returns the
// Stream. If the client is gone, the Stream has ended. NewStream returns nil if
// r is answered; the handler then returns. A HEAD request gets only headers. If
// w can't flush, a 500 names the ResponseWriter's type and the cure.
//
// NewStream also uses the methods behind Unwrap, as [http.ResponseController]
// does. It lifts Server.WriteTimeout for this response and removes
// Content-Length. It enables full duplex, so that the body of a POST can still
// be read. It keeps Content-Encoding, as the middleware that set it encodes
// the stream. A client that leaves is noticed when the request's body has been
// read to its end, else by a write that fails.
//
// NewStream checks no origin. Set CORS headers before, to allow other sites.
func NewStream(w http.ResponseWriter, r *http.Request) *Stream {
	if err := canFlush(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil
	}
	streamHeaders(w.Header())
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex() // where it is unsupported, it isn't needed or can't be had
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}

	s := &Stream{w: w, rc: rc, r: r, turn: make(chan struct{}, 1)}
	// Not derived from the request's context: when a write fails, net/http
	// first cancels that one without a cause, then returns the error.
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	context.AfterFunc(r.Context(), s.requestEnded) // a goroutine only then, and a short one
	// This sends the headers alone. Err reports a failure.
	s.send(func(b []byte) ([]byte, error) { return b, nil })
	return s
}

// canFlush returns an error that names the innermost ResponseWriter, if that
// can't flush. Outer ones often have a Flush that then does nothing or panics. It
// names the outermost if one of them compresses, and would keep what it has,
// because none has a Flush.
func canFlush(w http.ResponseWriter) error {
	outermost, flushers := w, 0
	for w = range unwrapped(w) {
		if flushes(w) {
			flushers++
		}
	}
	switch {
	case !flushes(w):
		return fmt.Errorf("realtime: %T can't flush, which an event stream needs: %s", w, cure(w))
	case flushers == 1 && outermost != w && compresses(w.Header()):
		return fmt.Errorf("realtime: the answer is compressed (Content-Encoding), and neither %T nor what it wraps has a Flush to bring events to the client: give it one, or keep that middleware off this route", outermost)
	}
	return nil
}

func flushes(w http.ResponseWriter) bool {
	switch w.(type) {
	case interface{ FlushError() error }, http.Flusher:
		return true
	}
	return false
}

// compresses reports whether a middleware has announced to compress the answer.
// Some programs set identity, or none, so that it doesn't.
func compresses(header http.Header) bool {
	encoding := header.Get("Content-Encoding")
	return encoding != "" && encoding != "identity" && encoding != "none"
}

// Send sends an event with data as JSON. An empty name means "message". A name
// with a line break is an error, as is data that [JSON] refuses.
func (s *Stream) Send(event string, data any) error {
	if err := s.Err(); err != nil {
		return err
	}
	e, err := JSON(event, data)
	if err != nil {
		return err
	}
	return s.SendEvent(e)
}

// SendRaw sends data as text without a name. CR, LF and CRLF arrive as LF, also
// at the end. Bytes that aren't UTF-8 arrive as U+FFFD.
func (s *Stream) SendRaw(data string) error {
	return s.send(func(b []byte) ([]byte, error) {
		return append(appendLines(b, "data: ", data), '\n'), nil
	})
}

// SendEvent sends e with its Name and ID. Its Data goes out as in SendRaw or,
// if Binary, in base64 (RFC 4648 §4). A Name with CR or LF is an error: the
// rest would pass for another field or event. So is an ID that isn't visible
// ASCII of at most 1024 bytes: it would not survive in a header. The caller
// owns Data again when SendEvent returns.
func (s *Stream) SendEvent(e Event) error {
	return s.send(func(b []byte) ([]byte, error) { return appendEvent(b, &e) })
}

// Comment sends each line of text as a comment, which no script sees. One every
// 15 s or so keeps proxies from ending a silent stream (WHATWG HTML §9.2.7),
// and shows when the client is gone.
func (s *Stream) Comment(text string) error {
	return s.send(func(b []byte) ([]byte, error) { return appendLines(b, ": ", text), nil })
}

// SetRetry tells the client how long to wait before it reconnects, from now on.
// It sends that at once. Without it a browser has its own time, some seconds. d
// is rounded down to milliseconds. Zero and negative mean not to wait; a browser
// may have a minimum. More than 24 days count as 24 days, because the timers of
// scripts can't be set to more. It blocks and fails as a send does.
func (s *Stream) SetRetry(d time.Duration) error {
	return s.send(func(b []byte) ([]byte, error) { return appendRetryField(b, d), nil })
}

// send writes and flushes what encode appends, unless the stream has ended.
func (s *Stream) send(encode func(b []byte) ([]byte, error)) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-s.Done():
		return s.Err()
	}
	if !s.begin() {
		return s.Err()
	}
	defer s.end()
	b, err := encode(s.buf[:0])
	if err != nil {
		return err
	}
	if cap(b) <= streamBufferBytes {
		s.buf = b
	}
	if len(b) > 0 {
		_, err = s.w.Write(b)
	}
	if err == nil {
		err = s.rc.Flush()
	}
	if err != nil {
		s.cancel(fmt.Errorf("%w: %w", ErrClientClosed, err))
	}
	// A wrapper's Flush may hide an error. net/http then cancels r's context.
	return s.Err()
}

// begin sets the deadline of the next write. It reports false if the stream has
// ended: nothing may be written then. It checks that under dmu, so that hasten,
// which runs after the end, sees every write that begin allows.
func (s *Stream) begin() bool {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if s.IsClosed() {
		return false
	}
	s.deadline = time.Now().Add(streamWriteTimeout)
	s.rc.SetWriteDeadline(s.deadline) // httptest.ResponseRecorder has none, and never blocks
	return true
}

// end removes the deadline, which on HTTP/2 would reset the stream between
// writes. If the stream has ended, it stays for the end of the response.
// net/http clears it after that.
func (s *Stream) end() {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	s.deadline = time.Time{}
	if !s.IsClosed() {
		s.rc.SetWriteDeadline(time.Time{})
	}
}

// hasten gives the write in progress one more second after the stream's end. A
// healthy one finishes in that time.
func (s *Stream) hasten() {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if d := time.Now().Add(streamCloseTimeout); d.Before(s.deadline) {
		s.deadline = d
		s.rc.SetWriteDeadline(d)
	}
}

// requestEnded runs when the request's context has ended. If the reason is a
// write that has just timed out, send has a second to report it first.
func (s *Stream) requestEnded() {
	s.dmu.Lock()
	timedOut := !s.deadline.IsZero() && !time.Now().Before(s.deadline)
	s.dmu.Unlock()
	if timedOut {
		time.AfterFunc(streamCloseTimeout, func() { s.Err() })
		return
	}
	s.Err() // ends the stream
	s.hasten()
}

// errStreamClosed is the cause of a stream that Close has ended.
var errStreamClosed = fmt.Errorf("%w: stream is closed", ErrClientClosed)

// Close ends the stream. When it has returned, no send writes to the
// ResponseWriter any more, so the handler may return. It waits for a write in
// progress, which has a second to end, and gives the end of the response 10 s.
// If the stream has already ended, Close only waits. It returns nil.
func (s *Stream) Close() error {
	if !s.IsClosed() {
		s.cancel(errStreamClosed)
	}
	s.hasten()
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	// If anything else ended the stream, w may be another request's now.
	if !s.closed && s.Err() == errStreamClosed {
		s.rc.SetWriteDeadline(time.Now().Add(streamWriteTimeout))
	}
	s.closed = true
	return nil
}

// Done returns a channel that is closed when the stream has ended: its client
// is gone, a write failed, the request's context ended or Close was called. A
// handler that waits for events should also wait for Done.
func (s *Stream) Done() <-chan struct{} {
	return s.ctx.Done()
}

// Err returns nil while the stream is open, and then the first cause of its
// end. The error wraps [ErrClientClosed] and, unless Close was the cause, the
// error of the failed write or the cause of the request's context.
func (s *Stream) Err() error {
	if ctx := s.r.Context(); ctx.Err() != nil {
		s.cancel(fmt.Errorf("%w: %w", ErrClientClosed, context.Cause(ctx))) // no effect if it has already ended
	}
	return context.Cause(s.ctx)
}

// IsClosed reports whether the stream has ended; see [Stream.Done].
func (s *Stream) IsClosed() bool {
	return s.Err() != nil
}

// LastEventID returns what the function [LastEventID] returns for the stream's
// request.
func (s *Stream) LastEventID() string { return LastEventID(s.r) }

// LastEventID returns the id of the last event that a reconnecting client saw.
// It is in the Last-Event-ID header, which EventSource sends, or else in the
// query's lastEventId. It is "" if there is none, or one that
// [Stream.SendEvent] would refuse. It is only a claim: anyone can send any id.
//
// A handler may call it before [NewStream], which sends the headers. Then it can
// still answer 204, and an EventSource doesn't reconnect. A hub looks for ids in
// the same places.
func LastEventID(r *http.Request) string {
	id := claimedEventID(r)
	if !validEventID(id) {
		return ""
	}
	return id
}

// claimedEventID returns the last event id that the client sent, unchecked.
func claimedEventID(r *http.Request) string {
	id := r.Header.Get("Last-Event-Id")
	if id == "" && r.URL.RawQuery != "" {
		id = r.URL.Query().Get("lastEventId")
	}
	return id
}

// forOneClient is the Cache-Control of an answer that is for its client alone. Some
// CDNs have clients that ask for one URL share an answer, even while it comes, and
// heed only private (Fastly). Others heed the rest (RFC 9111 §5.2.2).
const forOneClient = "private, no-store, no-cache"

func streamHeaders(header http.Header) {
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", forOneClient+", no-transform") // a proxy that compresses would also hold events back
	header.Set("X-Accel-Buffering", "no")                      // nginx
	header.Del("Content-Length")
}
