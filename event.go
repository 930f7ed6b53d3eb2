package realtime

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"slices"
	"sync"
)

// A buffer is bytes that are ready for the wire, made once and shared by
// every outbox it waits in: nobody changes it afterwards. It ends where a
// message ends.
type buffer struct {
	b []byte

	// ends has the offset behind each message in b, the last one len(b). It is
	// nil in a buffer of control frames and notices, which are no messages:
	// they don't count as waiting for a client.
	ends []int

	// keyed has the events of which b is made, if any of them has a Key: where
	// b has to wait, they do one by one.
	keyed []*event

	private bool // for one client alone, a hub's bound on whose memory is to be kept
}

// A format is what a message looks like on a client's wire. The zero format is
// that of a plain WebSocket.
type format struct {
	encoding encoding
	deflate  bool // compressed where that makes it smaller (RFC 7692); WebSockets only
}

// An encoding is how the bytes of a message are made of an event.
type encoding uint8

const (
	plainFrame     encoding = iota // WebSocket: the data alone, one frame a message
	envelopeFrame                  // WebSocket with the subprotocol realtime.v1: an envelope
	plainStream                    // event stream: name, id and data
	envelopeStream                 // event stream of envelopes
	encodings                      // how many there are
)

// isStream reports whether e is for event streams.
func (e encoding) isStream() bool { return e == plainStream || e == envelopeStream }

// formats is one more than the highest index of a format.
const formats = 2 * int(encodings)

// index returns the place of f in an array of what is made for each format.
func (f format) index() int {
	if f.deflate {
		return 2*int(f.encoding) + 1
	}
	return 2 * int(f.encoding)
}

// An event is an Event on its way to many clients. Its frames are made at
// most once for each format, by whoever asks first.
type event struct {
	Event              // with an ID where the hub keeps a history
	topic    string    // whose subscribers get it; empty: all clients do
	seq      uint64    // its position in the hub's history; zero: none
	notice   notice    // what else it is
	private  bool      // it was sent to one client alone
	unshared uint64    // its position among those that the broker has not brought, whose IDs resume nowhere; zero: it is none
	except   *clientID // the id of the client that is passed over

	mu   sync.Mutex       // guards the fields below
	bufs [formats]*buffer // made at first use
	bare *event           // made at first use
}

// newEvent returns e on its way to a topic's clients.
func newEvent(topic string, e Event) *event {
	ev := &event{Event: e, topic: topic}
	if e.Except != "" {
		if id, err := parseID(e.Except); err == nil { // nobody has an id of another form
			ev.except = &id
		}
	}
	return ev
}

// compare tells which of two events is the first in the history.
func (ev *event) compare(other *event) int {
	return cmp.Or(cmp.Compare(ev.seq, other.seq), cmp.Compare(ev.unshared, other.unshared))
}

// isFor reports whether the client with the given id may get ev.
func (ev *event) isFor(id *clientID) bool { return ev.except == nil || *ev.except != *id }

// isReplaceable reports whether a newer event can take the place of ev while it
// waits: one of its Key, or a position, of which the newest says it all and
// whose Key and topic are empty.
func (ev *event) isReplaceable() bool { return ev.Key != "" || ev.notice == positionNotice }

// A notice is what the hub itself has to say to a client.
type notice uint8

const (
	noNotice       notice = iota
	positionNotice        // the client has seen all up to ID
	resetNotice           // the client may have missed events
	gapNotice             // for the history alone: here, events may be missing
)

// resetEvent tells a client that it may have missed events.
var resetEvent = &event{notice: resetNotice, Event: Event{Name: "reset"}}

// buffer returns the event in the given format.
func (ev *event) buffer(f format) *buffer {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	return ev.bufferLocked(f)
}

func (ev *event) bufferLocked(f format) *buffer {
	buf := &ev.bufs[f.index()]
	if *buf == nil {
		*buf = ev.encodeLocked(f)
	}
	return *buf
}

func (ev *event) encodeLocked(f format) *buffer {
	buf := &buffer{private: ev.private}
	if f.deflate {
		payload, op := ev.payload(f.encoding)
		b, ok := deflate(payload)
		if !ok {
			return ev.bufferLocked(format{encoding: f.encoding})
		}
		buf.b = appendFrame(make([]byte, 0, maxFrameHeader+len(b)), op|rsv1Bit, b)
	} else {
		buf.b = ev.append(make([]byte, 0, 64+len(ev.Data)), f.encoding)
	}
	if ev.notice == noNotice {
		buf.ends = []int{len(buf.b)}
	}
	if ev.isReplaceable() {
		buf.keyed = []*event{ev}
	}
	return buf
}

// append appends ev in an encoding. Notices mean nothing to plain WebSocket
// clients, which know of no ids: they get nothing.
func (ev *event) append(b []byte, enc encoding) []byte {
	switch {
	case enc.isStream():
		return ev.appendStream(b, enc)
	case enc == plainFrame && ev.notice != noNotice:
		return b
	}
	payload, op := ev.payload(enc)
	return appendFrame(b, op, payload)
}

// payload returns the payload of a WebSocket message, and its opcode.
func (ev *event) payload(enc encoding) (payload []byte, op byte) {
	switch {
	case enc == envelopeFrame:
		return ev.envelope(), opText
	case ev.Binary:
		return ev.Data, opBinary
	}
	return ev.Data, opText
}

// appendStream appends ev as an event stream has it. A position alone has no
// data, so that no listener in the browser is called for it.
func (ev *event) appendStream(b []byte, enc encoding) []byte {
	e := &ev.Event
	switch {
	case enc == envelopeStream:
		e = &Event{ID: ev.ID, Data: ev.envelope()}
	case ev.notice == positionNotice:
		return append(appendLines(b, "id: ", ev.ID), '\n')
	}
	b, _ = appendEvent(b, e) // checked when it was published
	return b
}

// An envelope is what a client with the subprotocol realtime.v1 gets, as JSON.
type envelope struct {
	ID       string  `json:"id,omitempty"`
	Topic    string  `json:"topic,omitempty"`
	Event    string  `json:"event,omitempty"`
	Data     *string `json:"data,omitempty"` // nil in a position
	Encoding string  `json:"encoding,omitempty"`
	Reset    bool    `json:"reset,omitempty"` // tells the hub's own "reset" from somebody's event of that name
}

// envelope returns ev in its envelope.
func (ev *event) envelope() []byte {
	e := envelope{ID: ev.ID, Topic: ev.topic, Event: ev.Name, Reset: ev.notice == resetNotice}
	if ev.notice != positionNotice {
		data := string(ev.Data)
		if ev.Binary {
			data, e.Encoding = base64.StdEncoding.EncodeToString(ev.Data), "base64"
		}
		e.Data = &data
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // it goes into no HTML
	enc.Encode(&e)           // strings can always be encoded, and a bytes.Buffer doesn't fail
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// withoutID returns ev as it is to a client for which its id would be a step
// back: it is the same one for all of them.
func (ev *event) withoutID() *event {
	if ev.ID == "" {
		return ev
	}
	ev.mu.Lock()
	defer ev.mu.Unlock()
	if ev.bare == nil {
		ev.bare = &event{Event: ev.Event, topic: ev.topic}
		ev.bare.ID = ""
	}
	return ev.bare
}

// A pooledFrame is a buffer with one message to one client, whose memory is used
// again once it is written.
type pooledFrame struct {
	buffer
	end [1]int
}

var pooledFrames = sync.Pool{New: func() any { return new(pooledFrame) }}

// write makes f the message of e in an encoding.
func (f *pooledFrame) write(e *Event, enc encoding) {
	if enc == plainFrame { // the common case, without an event of its own
		op := byte(opText)
		if e.Binary {
			op = opBinary
		}
		f.b = appendFrame(f.b[:0], op, e.Data)
	} else {
		f.b = (&event{Event: *e}).append(f.b[:0], enc)
	}
	f.end[0] = len(f.b)
	f.ends = f.end[:]
	f.private = true
}

// minDeflate is the size below which compressing isn't tried: a packet is a
// packet, and a small message has little in it that repeats.
const minDeflate = 256

// deflaters have a megabyte each, but one is in use for each event that is
// being compressed, not for each client.
var deflaters = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.DefaultCompression) // fails for unknown levels only
	return w
}}

// deflate compresses data with a fresh window (RFC 7692 §7.2.1), so that one
// result serves all clients, and reports whether that made it smaller.
func deflate(data []byte) (b []byte, ok bool) {
	if len(data) < minDeflate {
		return nil, false
	}
	var out bytes.Buffer
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&out)
	w.Write(data) // a bytes.Buffer doesn't fail
	w.Flush()
	b = bytes.TrimSuffix(out.Bytes(), []byte("\x00\x00\xff\xff"))
	return b, len(b) < len(data)
}

// A joined buffer holds at most this much, so that what one write call takes
// and what a torn frame leaves behind stay small. One message may be larger, and
// is written by itself.
const (
	maxJoin      = 64
	maxJoinBytes = 64 << 10
	maxJoinOne   = 4 << 10 // a larger event is not copied for the few who get the same ones
)

// A run is events in order on their way to clients of one audience. It
// belongs to one goroutine.
type run struct {
	events   []*event
	messages int                // how many of the events are messages
	seq      uint64             // the highest of the events' positions in the history
	bufs     [formats][]*buffer // the events joined, made at first use
}

// add appends events.
func (r *run) add(events ...*event) {
	r.events = append(r.events, events...)
	for _, ev := range events {
		if ev.notice == noNotice {
			r.messages++
		}
		r.seq = max(r.seq, ev.seq)
	}
}

// reset empties r for other events. Outboxes share what r made, so r forgets
// it rather than reusing it.
func (r *run) reset() {
	clear(r.events)
	r.events = r.events[:0]
	r.messages, r.seq = 0, 0
	for f := range r.bufs {
		clear(r.bufs[f])
		r.bufs[f] = r.bufs[f][:0]
	}
}

// buffers returns the events of r in the given format, joined as far as the
// limits of a joined buffer allow. The slice is valid until the next reset.
func (r *run) buffers(f format) []*buffer {
	bufs := &r.bufs[f.index()]
	if len(*bufs) > 0 {
		return *bufs
	}
	for rest := r.events; len(rest) > 0; {
		n, size := 1, len(rest[0].buffer(f).b)
		for n < len(rest) && n < maxJoin {
			next := len(rest[n].buffer(f).b)
			if size+next > maxJoinBytes || next > maxJoinOne || size > n*maxJoinOne {
				break
			}
			n, size = n+1, size+next
		}
		*bufs = append(*bufs, join(rest[:n], f, size))
		rest = rest[n:]
	}
	return *bufs
}

// join returns one buffer of size bytes with all the events.
func join(events []*event, f format, size int) *buffer {
	if len(events) == 1 {
		return events[0].buffer(f)
	}
	buf := &buffer{b: make([]byte, 0, size), ends: make([]int, 0, len(events))}
	for _, ev := range events {
		buf.b = append(buf.b, ev.buffer(f).b...)
		if ev.notice == noNotice {
			buf.ends = append(buf.ends, len(buf.b))
		}
		if ev.isReplaceable() && buf.keyed == nil {
			buf.keyed = slices.Clone(events)
		}
	}
	return buf
}
