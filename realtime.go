package realtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Errors that callers branch on. They may be wrapped: test with [errors.Is].
var (
	// ErrHubClosed is returned once [Hub.Done] is closed.
	ErrHubClosed = errors.New("realtime: hub is shut down")

	// ErrClientClosed is returned by a send to a client, or to a [Stream], that
	// is gone or closing.
	ErrClientClosed = errors.New("realtime: client is gone")

	// ErrSlowClient is returned by the send that found its client too slow (see
	// [Hub.SendBuffer]), and is the cause for which that client left. A client
	// that still reads is told: a WebSocket gets close code 1013 (try again
	// later) behind what its connection has accepted, an event stream ends with a
	// retry of 5 to 9 s. 1008 would end a page that uses [Script] for good.
	ErrSlowClient = errors.New("realtime: client reads too slowly")
)

// An Event is something published: what a hub or a [Stream] sends.
type Event struct {
	// Name is the event's name on an event stream, where it chooses the
	// listener (WHATWG HTML §9.2.6); empty means "message". It must not contain
	// CR or LF. WebSocket clients get it only with the [Subprotocol]. Hubs have
	// events of their own, named "presence", "reset" and "realtime.position".
	// A browser's EventSource tells its own state by "open" and "error". So
	// choose other names.
	Name string

	// Data is the payload. Nil and empty are the same. It belongs to the hub
	// once it is handed over: don't modify it afterwards.
	Data []byte

	// Binary marks Data as bytes: WebSocket clients get a binary message, event
	// streams base64 (RFC 4648 §4). Other Data must be valid UTF-8.
	Binary bool

	// Key makes this event replace an older one of the same topic and Key that
	// still waits for a client, because only the latest value matters. The
	// older one no longer counts against SendBuffer. With [Hub.History] this
	// event is the latest value of Key. It stays until a newer one replaces it,
	// or one that is Gone takes it away; see History.Values. A client that
	// subscribes first gets the latest values.
	Key string

	// Gone takes the latest value of Key away, and this event is none itself.
	// Clients get it as any other. Those of the [Subprotocol] are told that the
	// value is gone. Gone without a Key is an error.
	Gone bool

	// Except is the ID of a client that doesn't get the event: usually its
	// sender, who has it already. A client that reconnects has a new ID.
	Except string

	// ID is the event's id on a [Stream], visible ASCII or empty. Browsers that
	// reconnect send it as Last-Event-ID. Hubs refuse events that have one.
	ID string

	member bool // Key is a node's key of a member, see presence
}

// JSON returns an event with v as JSON in its Data. An empty name means "message".
// The error is that of [json.Marshal]. Publishing, or sending, checks the name.
func JSON(name string, v any) (Event, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Event{}, fmt.Errorf("realtime: event %q: %w", name, err)
	}
	return Event{Name: name, Data: data}, nil
}

// check reports why a hub can't publish e.
func (e *Event) check() error {
	if strings.ContainsAny(e.Name, "\r\n") {
		return fmt.Errorf("realtime: event name %q has a line break, which would end the field on an event stream", e.Name)
	}
	if e.ID != "" {
		return fmt.Errorf("realtime: event has the id %q: ids are for Stream.SendEvent; a hub assigns its own", e.ID)
	}
	if e.Gone && e.Key == "" {
		return errors.New("realtime: event is Gone but has no Key: which value is gone?")
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
	Binary bool    // it came as a binary message; text is valid UTF-8
}

// Subprotocol is the WebSocket subprotocol of clients that want more of an
// event than its data. They get each event as a text message, a JSON object:
//
//	{"id": "…", "topic": "…", "event": "…", "key": "…", "data": "…"}
//
// data is a string; for Binary events it is base64 and "encoding" is "base64".
// The others are omitted where empty. An event that is Gone has "gone": true. With
// [Hub.History], an object with an id alone tells how far the client has come, and
// one with "reset": true that it may have lost events, of one topic if it names
// one. The newest id of any object is the one to reconnect with, as lastEventId in
// the URL's query.
//
// The first object of all has the client's id as "client". An object with
// "interval" is a heartbeat. The first object is one, unless [Hub.PingInterval] is
// negative. From then on the client gets some object before each interval, in
// milliseconds, is over. Ignore what you don't know. An event stream has such
// objects as data if its URL's query has protocol=realtime.v1.
//
// Over a WebSocket, a text message that begins with {"realtime": is for the hub and
// not for OnMessage. It joins topics, or leaves some that the client has joined:
//
//	{"realtime":{"unsubscribe":["a"],"subscribe":["b","c"]}}
//
// [Hub.OnSubscribe] decides which topics it joins. They begin as for a new client.
// The hub's answer comes behind the last event of a topic that the client has left,
// and behind the events with which a joined topic begins:
//
//	{"unsubscribed": ["a"]}
//	{"subscribed": ["b"]}
//	{"topic": "c", "refused": {"code": 4403, "reason": "…", "final": true}}
//
// From "subscribed" on, the newest id stands for the topic as well, so a client
// that reconnects asks for the topic in the URL. A client that reconnects without
// "subscribed" also names the topic as new=b in the URL's query. Then the topic
// begins as for a new client again, whatever the id, and the same answer follows.
// So an event stream can join topics by reconnecting. "refused" means that the
// client doesn't have the topic, and comes for topics in the URL as well. Its
// fields are those of "close" below.
//
// The last object tells why the hub ends the connection, or refuses the client:
//
//	{"close": {"code": 4401, "reason": "sign in first", "final": true}}
//
// The code and the reason are also those of a WebSocket's close frame. If "final"
// is true, another attempt is pointless. Otherwise "retry" may tell how many
// milliseconds to wait at least. The codes:
//
//	1000, 1008                 final  (RFC 6455 §7.4.1)
//	1001, 1011, 1012, 1013 …          the server stops, fails, or is busy
//	3000 to 3999                      the application's, registered with IANA
//	4200 to 4499               final  refused or closed with the HTTP status 200 to 499
//	4408, 4425, 4429                  the same, but time will help
//	4500 to 4599                      refused or closed with the HTTP status 500 to 599
//	4000 to 4199, 4600 to 4999        the application's
//
// So [Client.Close] with 4403 has the meaning of a [Refuse] with 403. A refusal
// with 429 or 503 always has "retry"; see [RefuseFor]. Refusals before OnConnect
// are answers of HTTP: to a faulty handshake, or to an origin that
// [Hub.CheckOrigin] refuses. A page of that origin should learn nothing, not even
// that there is a hub. A hub that is shutting down answers WebSockets with 503.
const Subprotocol = "realtime.v1"
