package realtime

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"
)

// Errors that callers branch on. The package returns them as they are or
// wrapped; test with [errors.Is].
var (
	// ErrHubClosed is returned once Shutdown of the hub has begun.
	ErrHubClosed = errors.New("realtime: hub is shut down")

	// ErrClientClosed is returned by a send to a client, or to a stream,
	// that is gone or leaving.
	ErrClientClosed = errors.New("realtime: client is gone")

	// ErrSlowClient is returned by the send that found its client too slow
	// (see [Hub.SendBuffer]) and is the cause for which that client left.
	ErrSlowClient = errors.New("realtime: client reads too slowly")
)

// An Event is something published: what a hub or a [Stream] sends.
type Event struct {
	// Name is the event's name on an event stream, where it chooses the
	// listener in the browser (WHATWG HTML §9.2.6); empty means "message".
	// It must not contain CR or LF. A WebSocket client gets Data alone, unless
	// it speaks the [Subprotocol].
	Name string

	// Data is the payload; nil and empty are the same empty payload. It
	// belongs to the hub once it is handed over: don't modify it afterwards.
	Data []byte

	// Binary marks Data as bytes that are not text. WebSocket clients get a
	// binary message, event streams get base64 (RFC 4648 §4). Data that is
	// not Binary must be valid UTF-8.
	Binary bool

	// Key makes this event replace an older one of the same topic and Key that
	// still waits for a client, because the client wants the latest value and
	// not each of them. What was replaced doesn't count against SendBuffer.
	// With [Hub.History], who subscribes gets the newest event of each Key
	// first.
	Key string

	// Except is the ID of a client that the event passes over, as its sender
	// knows already. A client that comes back is another one.
	Except string

	// ID is the event's id on a [Stream], which a reconnecting browser sends
	// back as Last-Event-ID: visible ASCII, or empty for none. It is for
	// [Stream.SendEvent] alone: a hub refuses an event that has one.
	ID string
}

// check reports why a hub can't publish e.
func (e *Event) check() error {
	if strings.ContainsAny(e.Name, "\r\n") {
		return fmt.Errorf("realtime: event name %q has a line break, which would end the field on an event stream", e.Name)
	}
	if e.ID != "" {
		return fmt.Errorf("realtime: event has the id %q: ids are for Stream.SendEvent, a hub gives its own", e.ID)
	}
	if !e.Binary && !utf8.Valid(e.Data) {
		return errors.New("realtime: event data is not valid UTF-8, which no browser accepts as text: set Binary")
	}
	return nil
}

// A Message is what a client sent over its WebSocket.
type Message struct {
	Client *Client // who sent it
	Data   []byte  // the handler's to keep and to change
	Binary bool    // reports whether it came as a binary message; text is valid UTF-8
}

// Subprotocol is the WebSocket subprotocol of clients that want to know more of
// an event than its data. They get each as a text message, a JSON object
//
//	{"id": "…", "topic": "…", "event": "…", "data": "…"}
//
// where data is always a string, in base64 if the event is Binary, which
// "encoding": "base64" then says, and the others are left out where they are
// empty. With [Hub.History], an object that has an id alone tells how far the
// client has come, and one with "reset": true that it may have missed events.
// An event stream gets the same objects as its data where the request's query
// has protocol=realtime.v1.
const Subprotocol = "realtime.v1"

func (e *refusal) Error() string {
	return fmt.Sprintf("refused with %d %s: %s", e.status, http.StatusText(e.status), e.reason)
}
