package realtime

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"sync"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// A buffer is bytes that are ready for the wire, made once and shared by
// every outbox it waits in: nobody changes it afterwards. It ends where a
// message ends.
type buffer struct {
	b []byte

	// ends has the offset behind each message in b, the last one len(b). It is
	// nil in a buffer of control frames, which are no messages: they don't
	// count as waiting for a client.
	ends []int
}

// A format is what a message looks like on a client's wire.
type format uint8

const (
	plainFormat   format = iota // WebSocket: the data alone, one frame a message
	deflateFormat               // the same, compressed where that makes it smaller (RFC 7692)
	formats                     // how many there are
)

// An event is an Event on its way to many clients. Its frames are made at
// most once for each format, by whoever asks first.
type event struct {
	Event
	wire [formats]struct {
		once sync.Once
		buf  *buffer
	}
}

// buffer returns the event in the given format.
func (ev *event) buffer(f format) *buffer {
	w := &ev.wire[f]
	w.once.Do(func() {
		switch f {
		case plainFormat:
			w.buf = messageBuffer(ev.opcode(), ev.Data)
		case deflateFormat:
			if b, ok := deflate(ev.Data); ok {
				w.buf = messageBuffer(ev.opcode()|rsv1Bit, b)
			} else {
				w.buf = ev.buffer(plainFormat)
			}
		}
	})
	return w.buf
}

// opcode returns that of e as a message.
func (e *Event) opcode() byte {
	if e.Binary {
		return opBinary
	}
	return opText
}

// A letter is a buffer with one message to one client, whose memory is used
// again once it is written.
type letter struct {
	buffer
	end [1]int
}

var letters = sync.Pool{New: func() any { return new(letter) }}

// write makes l the frame of e.
func (l *letter) write(e *Event) {
	l.b = appendFrame(l.b[:0], e.opcode(), e.Data)
	l.end[0] = len(l.b)
	l.ends = l.end[:]
}

// messageBuffer returns a buffer with one message.
func messageBuffer(op byte, payload []byte) *buffer {
	b := appendFrame(make([]byte, 0, maxFrameHeader+len(payload)), op, payload)
	return &buffer{b: b, ends: []int{len(b)}}
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
// and what a torn frame leaves behind stay small. One message may be larger.
const (
	maxJoin      = 64
	maxJoinBytes = 64 << 10
)

// A run is events in order on their way to clients of one audience. It
// belongs to one goroutine.
type run struct {
	events []*event
	bufs   [formats][]*buffer // the events joined, made at first use
}

// reset empties r for other events. Outboxes share what r made, so r forgets
// it rather than reusing it.
func (r *run) reset() {
	clear(r.events)
	r.events = r.events[:0]
	for f := range r.bufs {
		clear(r.bufs[f])
		r.bufs[f] = r.bufs[f][:0]
	}
}

// buffers returns the events of r in the given format, joined as far as the
// limits of a joined buffer allow. The slice is valid until the next reset.
func (r *run) buffers(f format) []*buffer {
	if len(r.bufs[f]) > 0 {
		return r.bufs[f]
	}
	for rest := r.events; len(rest) > 0; {
		n, size := 1, len(rest[0].buffer(f).b)
		for n < len(rest) && n < maxJoin {
			next := len(rest[n].buffer(f).b)
			if size+next > maxJoinBytes {
				break
			}
			n, size = n+1, size+next
		}
		r.bufs[f] = append(r.bufs[f], join(rest[:n], f, size))
		rest = rest[n:]
	}
	return r.bufs[f]
}

// join returns one buffer of size bytes with all the events.
func join(events []*event, f format, size int) *buffer {
	if len(events) == 1 {
		return events[0].buffer(f)
	}
	buf := &buffer{b: make([]byte, 0, size), ends: make([]int, 0, len(events))}
	for _, ev := range events {
		buf.b = append(buf.b, ev.buffer(f).b...)
		buf.ends = append(buf.ends, len(buf.b))
	}
	return buf
}

// Frames of RFC 6455 §5.2. All of a server's are unmasked and, here, whole
// messages.
const (
	opText   = 0x1
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xA

	finBit  = 0x80
	rsv1Bit = 0x40 // the message is compressed

	maxFrameHeader    = 10  // without a mask
	maxControlPayload = 125 // RFC 6455 §5.5
	maxCloseReason    = maxControlPayload - 2
)

// appendFrame appends a frame that is a whole message.
func appendFrame(b []byte, op byte, payload []byte) []byte {
	b = append(b, finBit|op)
	switch n := len(payload); {
	case n <= 125:
		b = append(b, byte(n))
	case n <= 0xFFFF:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

// controlFrame returns a buffer with one control frame.
func controlFrame(op byte, payload []byte) *buffer {
	return &buffer{b: appendFrame(nil, op, payload)}
}

// pingFrame is the one ping that every client gets. Any byte from the client
// answers it, so it needs no payload to be told from another.
var pingFrame = controlFrame(opPing, nil)

// closeFrame returns the close frame for code and reason, which must have
// passed checkClose. StatusNoStatusRcvd gives the empty one (RFC 6455 §7.1.5).
func closeFrame(code websocket.StatusCode, reason string) *buffer {
	if code == websocket.StatusNoStatusRcvd {
		return controlFrame(opClose, nil)
	}
	return controlFrame(opClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...))
}

// parseClose returns what a close frame's payload says; one without a code
// says StatusNoStatusRcvd.
func parseClose(payload []byte) websocket.CloseError {
	if len(payload) < 2 {
		return websocket.CloseError{Code: websocket.StatusNoStatusRcvd}
	}
	return websocket.CloseError{
		Code:   websocket.StatusCode(binary.BigEndian.Uint16(payload)),
		Reason: string(payload[2:]),
	}
}

// validReason reports whether reason can stand in a close frame.
func validReason(reason string) bool {
	return len(reason) <= maxCloseReason && utf8.ValidString(reason)
}
