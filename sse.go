package realtime

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	streamWriteTimeout = 10 * time.Second // for an event to reach the kernel
	streamCloseTimeout = time.Second      // for the write in progress when its stream ends
	streamBufferBytes  = 64 << 10         // a larger buffer is not kept for the next event
	maxEventIDBytes    = 1024             // far below what servers and proxies take for a header
)

// A Stream is an event stream (WHATWG HTML §9.2) that one HTTP handler writes
// by hand. [NewStream] makes it; the handler ends it with
//
//	defer stream.Close()
//
// because net/http gives the ResponseWriter to another request once the
// handler has returned. A handler that returns without Close ends the stream
// too, by its request's context, but doesn't wait for a send that another
// goroutine has in progress.
//
// All methods are safe for concurrent use. Each send is one Write and one
// Flush, so that events never mix. It waits for the sends before it and then
// blocks until the kernel has the event, for 10 s at most. A send that fails
// on the way ends the stream, since part of the event may have left: it and
// every later one return what Err does, an error that wraps [ErrClientClosed].
// An event that can't be sent (for a line break in its name, say) is another
// error; nothing of it is written, and the stream stays open.
//
// The limits of time have two holes. Behind a middleware's ResponseWriter with
// Flush but neither SetWriteDeadline nor Unwrap there are none, and
// Server.WriteTimeout ends the stream. On HTTP/2 they hold for a reader that
// withholds its window, but it takes http.HTTP2Config.WriteByteTimeout to end
// a connection that is stuck as a whole.
type Stream struct {
	// Set at construction, never changed.
	w      http.ResponseWriter
	rc     *http.ResponseController
	r      *http.Request
	ctx    context.Context // done when the stream has ended, with the cause
	cancel context.CancelCauseFunc

	// The lock for w and the fields below, held through a whole write: who
	// puts the one element in has it. A mutex would not let go of the sends
	// that wait for a stuck write when the stream ends, and would stop the
	// clock of a synctest bubble.
	turn   chan struct{}
	buf    []byte // the next event is encoded here
	closed bool   // by Close

	dmu      sync.Mutex // guards the field below, never held through a write
	deadline time.Time  // of the write in progress; zero if there is none
}

// NewStream answers r with the headers of an event stream, which are sent at
// once, and returns the Stream. It returns nil where the request is already
// answered and the handler has nothing left to do but return: with 500 where
// w can't flush, with a text that names the ResponseWriter's type and the
// cure, and with the headers alone to a HEAD request. If the client is gone
// already, it returns a Stream that has ended.
//
// Whatever else w offers is found through its Unwrap methods, as
// [http.ResponseController] does. NewStream lifts Server.WriteTimeout for this
// response, enables full duplex, so that the body of a POST can still be
// read, and removes a Content-Length; a Content-Encoding stays, because the
// middleware that set it encodes what the stream writes. A client's leaving is
// noticed once the request's body, if there is one, has been read to its end,
// and otherwise by the write that fails.
//
// NewStream checks no origin and allows none: reading from another site takes
// the CORS headers that the handler sets before.
func NewStream(w http.ResponseWriter, r *http.Request) *Stream {
	if err := canFlush(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil
	}
	streamHeaders(w.Header())
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex() // where it is unsupported there is no need of it, or no way
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}

	s := &Stream{w: w, rc: rc, r: r, turn: make(chan struct{}, 1)}
	// Not a child of the request's context: net/http cancels that one without a
	// cause when a write fails, before it returns the error that is the cause.
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	context.AfterFunc(r.Context(), s.requestEnded) // no goroutine before that, and then a short one
	// The headers alone; a failure is for Err to tell.
	s.send(func(b []byte) ([]byte, error) { return b, nil })
	return s
}

// canFlush returns an error about the ResponseWriter that hides Flush, if one
// does. It looks at the innermost that Unwrap leads to, because those around
// it often have a Flush that does nothing, or panics, if that one has none.
func canFlush(w http.ResponseWriter) error {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = outer.Unwrap()
	}
	switch w.(type) {
	case interface{ FlushError() error }, http.Flusher:
		return nil
	}
	return fmt.Errorf("realtime: %T can't flush, which an event stream needs: give it an Unwrap method that returns the ResponseWriter it wraps, or keep it away from this route", w)
}

// Send sends a named event with data as JSON (encoding/json). An empty event
// sends no name, which a browser takes for "message". A name with a line break
// in it, and what [json.Marshal] refuses, is an error.
func (s *Stream) Send(event string, data any) error {
	if err := s.Err(); err != nil {
		return err
	}
	b, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("realtime: send: %w", err)
	}
	return s.SendEvent(Event{Name: event, Data: b})
}

// SendRaw sends data as it is, without an event name. Line breaks may be CR,
// LF or CRLF and arrive as LF, one at the end included; what isn't UTF-8
// arrives as U+FFFD.
func (s *Stream) SendRaw(data string) error {
	return s.send(func(b []byte) ([]byte, error) {
		return append(appendLines(b, "data: ", data), '\n'), nil
	})
}

// SendEvent sends e: its Data as SendRaw does or, if it is Binary, in base64
// (RFC 4648 §4), under its Name and with its ID. A Name with CR or LF in it is
// an error, for what follows them would pass for another field or event; so is
// an ID that isn't visible ASCII or has more than 1024 bytes, for it would not
// come back in a header. Data is the caller's again when SendEvent returns.
func (s *Stream) SendEvent(e Event) error {
	return s.send(func(b []byte) ([]byte, error) { return appendEvent(b, &e) })
}

// Comment sends text where no script sees it, each of its lines as a comment
// line. Sent every 15 s or so it keeps proxies from ending a silent stream
// (WHATWG HTML §9.2.7), and finds out when the client is gone.
func (s *Stream) Comment(text string) error {
	return s.send(func(b []byte) ([]byte, error) { return appendComment(b, text), nil })
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
	// A wrapper whose Flush returns no error swallows it, but net/http cancels
	// the request's context when a write fails.
	return s.Err()
}

// begin gives the write that follows its deadline. It reports false, and there
// must be no write, if the stream has ended. It looks under dmu, so that
// hasten, which runs after the end, finds this write if it isn't prevented.
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

// end lifts the deadline: on HTTP/2 one that passes resets the stream, though
// nobody writes. When the stream has ended it stays, for the end of the
// response, after which net/http clears it.
func (s *Stream) end() {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	s.deadline = time.Time{}
	if !s.IsClosed() {
		s.rc.SetWriteDeadline(time.Time{})
	}
}

// hasten leaves a write in progress one more second when the stream has
// ended: enough for a healthy one to end in one piece.
func (s *Stream) hasten() {
	s.dmu.Lock()
	defer s.dmu.Unlock()
	if d := time.Now().Add(streamCloseTimeout); d.Before(s.deadline) {
		s.deadline = d
		s.rc.SetWriteDeadline(d)
	}
}

// requestEnded runs when the request's context has ended. Where a write has
// just timed out, that is why net/http ended it, and send, which is about to
// learn of it, may say so first.
func (s *Stream) requestEnded() {
	s.dmu.Lock()
	timedOut := !s.deadline.IsZero() && !time.Now().Before(s.deadline)
	s.dmu.Unlock()
	if timedOut {
		time.AfterFunc(streamCloseTimeout, func() { s.IsClosed() })
		return
	}
	s.IsClosed() // ends the stream
	s.hasten()
}

// errStreamClosed is the cause for which a stream that is closed has ended.
var errStreamClosed = fmt.Errorf("%w: stream is closed", ErrClientClosed)

// Close ends the stream. Once it has returned nothing is written to the
// ResponseWriter any more, whatever other goroutines still try to send, so
// that the handler may return. It waits for the write in progress, which has a
// second to end, and gives the end of the response 10 s. Close returns nil;
// called again, or after the stream has ended otherwise, it only waits.
func (s *Stream) Close() error {
	if !s.IsClosed() {
		s.cancel(errStreamClosed)
	}
	s.hasten()
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	// Where Close isn't what ended the stream, the handler may have returned
	// and w be another request's.
	if !s.closed && s.Err() == errStreamClosed {
		s.rc.SetWriteDeadline(time.Now().Add(streamWriteTimeout))
	}
	s.closed = true
	return nil
}

// Done returns a channel that is closed when the stream has ended: its client
// is gone, a write failed, the request's context ended or Close was called.
// A handler that waits for something to send should wait for Done beside it.
func (s *Stream) Done() <-chan struct{} {
	return s.ctx.Done()
}

// Err returns nil while the stream is open and then why it ended, the first
// cause: an error that wraps [ErrClientClosed] and, unless it was Close, the
// error of the write that failed or the cause of the request's context.
func (s *Stream) Err() error {
	if ctx := s.r.Context(); ctx.Err() != nil {
		s.cancel(fmt.Errorf("%w: %w", ErrClientClosed, context.Cause(ctx))) // in vain if it has ended before
	}
	return context.Cause(s.ctx)
}

// IsClosed reports whether the stream has ended; see [Stream.Done].
func (s *Stream) IsClosed() bool {
	return s.Err() != nil
}

// LastEventID returns the id of the last event that the client saw before it
// lost an earlier connection: the Last-Event-ID header that a browser's
// EventSource sends or, without it, the query's lastEventId, for clients that
// can't set a header. It returns "" if there is none, or one that SendEvent
// would refuse. It is the client's claim: anyone can send any id.
func (s *Stream) LastEventID() string {
	return lastEventID(s.r)
}

func lastEventID(r *http.Request) string {
	id := claimedEventID(r)
	if !validEventID(id) {
		return ""
	}
	return id
}

// claimedEventID returns what a client gives for the id of the last event that
// it saw.
func claimedEventID(r *http.Request) string {
	return cmp.Or(r.Header.Get("Last-Event-ID"), r.URL.Query().Get("lastEventId"))
}

// streamHeaders sets the headers that an event stream's answer has.
func streamHeaders(header http.Header) {
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-cache, no-transform") // a proxy that compresses would also hold events back
	header.Set("X-Accel-Buffering", "no")                 // nginx
	header.Del("Content-Length")
}
