package realtime

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
	"weak"
)

// A buffer holds bytes for the wire, up to the end of a message. All outboxes
// that it waits in share it, so nobody changes it. It doesn't know its topic: a
// run joins events of several.
type buffer struct {
	b []byte

	// ends has the offset after each message in b; the last is len(b). It is
	// nil for control frames and notices: these don't count as messages.
	ends []int

	// keyed has the events in b if one is replaceable: they wait one by one, each in
	// a buffer of its own.
	keyed []*event

	private bool // for one client alone: its bytes count against maxPrivate
}

// A format is how an event looks on a client's wire. The zero format is that of
// a plain WebSocket.
type format struct {
	encoding    encoding
	deflate     bool // compressed where that makes it smaller (RFC 7692); WebSockets only
	provisional bool // with provisional ids; in encodings with ids only
}

// An encoding is how an event becomes bytes. shakeHands and streamEncoding choose
// it. event.append and goodbye.in tell encodings apart.
type encoding uint8

const (
	plainFrame     encoding = iota // WebSocket: the data alone, one frame a message
	envelopeFrame                  // WebSocket with the subprotocol realtime.v1: an envelope
	plainStream                    // event stream: name, id and data
	envelopeStream                 // event stream of envelopes
	encodings                      // how many there are
)

func (e encoding) isStream() bool   { return e == plainStream || e == envelopeStream }
func (e encoding) isEnvelope() bool { return e == envelopeFrame || e == envelopeStream }

// formats is the length of an array with an entry for each format. An encoding has
// two, but envelopeFrame four: it alone may be compressed and provisional.
const formats = 2*int(encodings) + 2

// index returns the index of f in such an array.
func (f format) index() int {
	i := 2 * int(f.encoding)
	if f.provisional && f.encoding == envelopeFrame {
		i = 2 * int(encodings)
	}
	if f.deflate || f.provisional && f.encoding.isStream() {
		i++
	}
	return i
}

// An event is an Event on its way to clients. It is encoded once for each format,
// at first use. The outboxes in which it waits keep the encoding. Later clients,
// which get the event from the history, may need another.
type event struct {
	Event              // with an ID where the hub keeps a history
	topic    string    // whose subscribers get it; empty: all clients do
	seq      uint64    // its position in the hub's history; zero: none
	notice   notice    // noNotice unless the hub itself says it
	private  bool      // it was sent to one client alone
	reply    bool      // the same, and Data is the envelope
	accepted moment    // when this node accepted it, from its publisher or another node; set by the loop
	stamp    uint64    // decides which event of a Key is the newest if a Broker gives no order; see relay.isNewest
	unshared uint64    // its position among events that the engine lacks, whose IDs resume nowhere; zero: it isn't one
	except   *clientID // the client that doesn't get it; nil: all get it

	mu   sync.Mutex                    // guards the fields below
	bufs [formats]weak.Pointer[buffer] // kept by the outboxes in which they wait
	bare *event                        // made at first use
}

func newEvent(topic string, e Event) *event {
	ev := &event{Event: e, topic: topic}
	ev.findExcept()
	return ev
}

func (ev *event) findExcept() {
	if ev.Except != "" {
		if id, err := parseID(ev.Except); err == nil { // no client has any other id
			ev.except = &id
		}
	}
}

// compare orders two events by their positions in the history.
func (ev *event) compare(other *event) int {
	return cmp.Or(cmp.Compare(ev.seq, other.seq), cmp.Compare(ev.unshared, other.unshared))
}

func (ev *event) isFor(id *clientID) bool { return ev.except == nil || *ev.except != *id }

// isReplaceable reports whether a newer event of the same topic and Key
// replaces ev while ev waits. All positions share the empty topic and Key.
func (ev *event) isReplaceable() bool { return ev.Key != "" || ev.notice == positionNotice }

// A notice is what the hub itself tells a client.
type notice uint8

const (
	noNotice         notice = iota
	positionNotice          // the client has seen all up to ID
	markNotice              // the same, with an id that is provisional in each format
	resetNotice             // the client may have lost events
	gapNotice               // in the history alone: events may be missing here
	beatNotice              // the hub is there; Data is the envelope
	disconnectNotice        // for shards alone: the topic's clients are closed; Data is the payload of their close frames
)

// provisionalMark ends an id that tells nothing about topics that its client
// subscribed late: it may have all of their events up to the id, or not. The
// client has all events of the other topics. See lateStart.
const provisionalMark = "~"

// idIn returns ev's id as a format has it.
func (ev *event) idIn(f format) string {
	if ev.ID != "" && (f.provisional || ev.notice == markNotice) {
		return ev.ID + provisionalMark
	}
	return ev.ID
}

// resetEvent tells a client that it may have lost events.
var resetEvent = newReset("")

// newReset returns a reset. Its client resumes after id from now on. An empty id
// means that a later event or position tells one.
func newReset(id string) *event {
	return &event{Event: Event{Name: "reset", ID: id}, notice: resetNotice}
}

func newTopicReset(topic string) *event {
	return &event{Event: Event{Name: "reset", Data: []byte(topic)}, topic: topic, notice: resetNotice}
}

// newHeartbeat returns the heartbeat of a hub that sends one each interval.
func newHeartbeat(interval time.Duration) *event {
	return &event{notice: beatNotice, Event: Event{Data: fmt.Appendf(nil, `{"interval":%d}`, interval.Milliseconds())}}
}

// newHello returns a client's first heartbeat, which tells its id. A hub that
// sends no heartbeats says hello all the same.
func (s *shared) newHello(id string) *event {
	hello := []byte(`{"client":"` + id + `"}`)
	if s.heartbeat != nil {
		hello = append(append(hello[:len(hello)-1], ','), s.heartbeat.Data[1:]...)
	}
	return &event{notice: beatNotice, Event: Event{Data: hello}}
}

func (ev *event) buffer(f format) *buffer {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	return ev.bufferLocked(f)
}

func (ev *event) bufferLocked(f format) *buffer {
	buf := ev.bufs[f.index()].Value()
	if buf == nil {
		buf = ev.encodeLocked(f)
		ev.bufs[f.index()] = weak.Make(buf)
	}
	return buf
}

func (ev *event) encodeLocked(f format) *buffer {
	buf := &buffer{private: ev.private}
	if f.deflate {
		payload, op := ev.payload(f)
		b, ok := deflate(payload)
		if !ok {
			f.deflate = false
			return ev.bufferLocked(f)
		}
		buf.b = appendFrame(make([]byte, 0, maxFrameHeader+len(b)), op|rsv1Bit, b)
	} else {
		buf.b = ev.append(make([]byte, 0, 64+len(ev.Data)), f)
	}
	if ev.notice == noNotice {
		buf.ends = []int{len(buf.b)}
	}
	if ev.isReplaceable() {
		buf.keyed = []*event{ev}
	}
	return buf
}

// append appends ev in a format, but for its compression. Plain WebSocket
// clients know no ids, so notices are empty for them.
func (ev *event) append(b []byte, f format) []byte {
	switch {
	case f.encoding.isStream():
		return ev.appendStream(b, f)
	case f.encoding == plainFrame && ev.notice != noNotice:
		return b
	}
	payload, op := ev.payload(f)
	return appendFrame(b, op, payload)
}

func (ev *event) payload(f format) (payload []byte, op byte) {
	if f.encoding == envelopeFrame {
		return ev.envelope(f), opText
	}
	return ev.Data, ev.opcode()
}

func (e *Event) opcode() byte {
	if e.Binary {
		return opBinary
	}
	return opText
}

// appendStream appends ev as an event of an event stream. A position has a line
// of data, though an empty one: Firefox and WebKit drop the id of an event that
// has none (unlike WHATWG HTML §9.2.6). It has a name for which no page listens.
// A heartbeat is a comment, for proxies that end what is silent.
func (ev *event) appendStream(b []byte, f format) []byte {
	e := Event{ID: ev.idIn(f), Name: ev.Name, Data: ev.Data, Binary: ev.Binary}
	switch {
	case f.encoding == envelopeStream:
		e = Event{ID: e.ID, Data: ev.envelope(f)}
	case ev.notice == positionNotice, ev.notice == markNotice:
		e.Name = "realtime.position"
	case ev.notice == beatNotice:
		return append(b, ":\n"...)
	}
	b, _ = appendEvent(b, &e) // it was checked when published
	return b
}

// An envelope is the JSON form of an event (subprotocol realtime.v1).
type envelope struct {
	ID       string  `json:"id,omitempty"`
	Topic    string  `json:"topic,omitempty"`
	Event    string  `json:"event,omitempty"`
	Key      string  `json:"key,omitempty"`
	Gone     bool    `json:"gone,omitempty"`
	Data     *string `json:"data,omitempty"` // nil in a position
	Encoding string  `json:"encoding,omitempty"`
	Reset    bool    `json:"reset,omitempty"` // this is the hub's reset, not a user's event of that name
}

func (ev *event) envelope(f format) []byte {
	if ev.notice == beatNotice || ev.reply {
		return ev.Data
	}
	e := envelope{ID: ev.idIn(f), Topic: ev.topic, Event: ev.Name, Key: ev.memberKey(), Gone: ev.Gone, Reset: ev.notice == resetNotice}
	if ev.notice != positionNotice && ev.notice != markNotice {
		data := string(ev.Data)
		if ev.Binary {
			data, e.Encoding = base64.StdEncoding.EncodeToString(ev.Data), "base64"
		}
		e.Data = &data
	}
	return encodeJSON(&e)
}

// encodeJSON encodes what the hub itself says, which can be encoded.
func encodeJSON(v any) []byte {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // it isn't HTML
	enc.Encode(v)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// withoutID returns ev without its id, for clients that must not resume after
// ev. All of them share the result.
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

// A pooledFrame is a buffer of one message to one client. Its memory is reused
// if the kernel accepts it at once.
type pooledFrame struct {
	buffer
	end [1]int
}

var pooledFrames = sync.Pool{New: func() any { return new(pooledFrame) }}

func (f *pooledFrame) write(e *Event, enc encoding) {
	if enc == plainFrame { // the common case, which needs no event
		f.b = appendFrame(f.b[:0], e.opcode(), e.Data)
	} else {
		f.b = (&event{Event: *e}).append(f.b[:0], format{encoding: enc})
	}
	f.end[0] = len(f.b)
	f.ends = f.end[:]
	f.private = true
}

// minDeflate is the least size in bytes that is compressed. A smaller message
// repeats little, and is one packet anyway.
const minDeflate = 256

// deflaters have a megabyte each. One is in use for each event that is being
// compressed, not for each client.
var deflaters = sync.Pool{New: func() any {
	w, _ := flate.NewWriter(nil, flate.DefaultCompression) // fails for unknown levels only
	return w
}}

// deflate compresses data with a fresh window (RFC 7692 §7.2.1), so that all
// clients share the result. It reports whether that is smaller.
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

// A joined buffer is within these limits, so that a write, and the rest of a
// torn one, stay small. A larger event has a buffer of its own.
const (
	maxJoin      = 64
	maxJoinBytes = 64 << 10
	maxJoinOne   = 4 << 10 // a larger event is not copied: few clients would share the copy
)

// A run has events in order for clients of one audience. One goroutine owns it.
type run struct {
	events   []*event
	messages int                // how many of the events aren't notices
	seq      uint64             // the events' highest history position
	bufs     [formats][]*buffer // the events joined, made at first use
}

func (r *run) add(events ...*event) {
	r.events = append(r.events, events...)
	for _, ev := range events {
		if ev.notice == noNotice {
			r.messages++
		}
		r.seq = max(r.seq, ev.seq)
	}
}

// reset empties r. It gives up the joined buffers, because outboxes share them.
func (r *run) reset() {
	clear(r.events)
	r.events = r.events[:0]
	r.messages, r.seq = 0, 0
	for f := range r.bufs {
		clear(r.bufs[f])
		r.bufs[f] = r.bufs[f][:0]
	}
}

// buffers returns the events of r in a format, joined within the limits above.
// The slice is valid until the next reset.
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
