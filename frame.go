package realtime

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/coder/websocket"
)

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

// heartbeatComment is what keeps an event stream awake.
var heartbeatComment = &buffer{b: appendComment(nil, "")}

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

// Fields of an event stream, WHATWG HTML §9.2.5.

// validEventID reports whether id survives the way to a client and back: as a
// field's value, then as a header's. Of what WHATWG HTML §9.2.6 lets pass,
// NUL would be ignored, and spaces at the ends and most of what isn't ASCII
// don't outlive servers and proxies.
func validEventID(id string) bool {
	for i := range len(id) {
		if id[i] < 0x21 || id[i] > 0x7E {
			return false
		}
	}
	return len(id) <= maxEventIDBytes
}

// appendEvent appends e as an event stream has it, or nothing if e can't be
// sent. Every field gets a space after its colon, for readers strip one: data
// that begins with a space must not lose it.
func appendEvent(b []byte, e *Event) ([]byte, error) {
	if strings.ContainsAny(e.Name, "\r\n") {
		return b, fmt.Errorf("realtime: event name %q has a line break, which would end the field on an event stream", e.Name)
	}
	if !validEventID(e.ID) {
		return b, fmt.Errorf("realtime: event id %.100q is not visible ASCII of at most %d bytes", e.ID, maxEventIDBytes)
	}
	if e.ID != "" {
		b = appendLines(b, "id: ", e.ID)
	}
	if e.Name != "" {
		b = appendLines(b, "event: ", e.Name)
	}
	if e.Binary {
		b = append(b, "data: "...)
		b = base64.StdEncoding.AppendEncode(b, e.Data)
		b = append(b, '\n')
	} else {
		b = appendLines(b, "data: ", e.Data)
	}
	return append(b, '\n'), nil
}

// appendComment appends text as comment lines.
func appendComment(b []byte, text string) []byte {
	return append(appendLines(b, ": ", text), '\n')
}

// appendLines appends each line of text after prefix. A line ends at CR, LF or
// CRLF, because a reader takes each of them for its end (WHATWG HTML §9.2.5):
// one that went out as it is would let text forge fields. A line break at the
// end is followed by one more, empty line. A run of bytes that aren't UTF-8
// becomes U+FFFD.
func appendLines[T string | []byte](b []byte, prefix string, text T) []byte {
	for start := 0; ; {
		end := start
		for end < len(text) && text[end] != '\n' && text[end] != '\r' {
			end++
		}
		b = append(b, prefix...)
		n := len(b)
		b = append(b, text[start:end]...)
		if !utf8.Valid(b[n:]) {
			b = append(b[:n], bytes.ToValidUTF8(b[n:], []byte("\uFFFD"))...)
		}
		b = append(b, '\n')
		if end == len(text) {
			return b
		}
		if text[end] == '\r' && end+1 < len(text) && text[end+1] == '\n' {
			end++
		}
		start = end + 1
	}
}
