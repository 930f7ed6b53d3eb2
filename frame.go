package realtime

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// Frames of RFC 6455 §5.2. A server's are unmasked. Here none is a fragment.
const (
	opText   = 0x1
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xA

	opMask  = 0x0F
	finBit  = 0x80
	maskBit = 0x80 // in the second byte
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

func controlFrame(op byte, payload []byte) *buffer {
	return &buffer{b: appendFrame(nil, op, payload)}
}

// pingFrame is the ping for every client. Any byte from one answers it, so it
// needs no payload.
var pingFrame = controlFrame(opPing, nil)

// closeFrame returns a close frame. reason must pass validReason.
// StatusNoStatusRcvd gives an empty frame (RFC 6455 §7.1.5).
func closeFrame(code websocket.StatusCode, reason string) *buffer {
	if code == websocket.StatusNoStatusRcvd {
		return controlFrame(opClose, nil)
	}
	return controlFrame(opClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...))
}

// parseClose parses a close payload. Its default code is StatusNoStatusRcvd.
func parseClose(payload []byte) websocket.CloseError {
	if len(payload) < 2 {
		return websocket.CloseError{Code: websocket.StatusNoStatusRcvd}
	}
	return websocket.CloseError{
		Code:   websocket.StatusCode(binary.BigEndian.Uint16(payload)),
		Reason: string(payload[2:]),
	}
}

// validReason reports whether a close frame can carry reason.
func validReason(reason string) bool {
	return len(reason) <= maxCloseReason && utf8.ValidString(reason)
}

// Fields of an event stream, WHATWG HTML §9.2.5. An empty line ends an event.
// None is behind a comment or a retry: these count without it. A reader that hands
// on every block, such as @microsoft/fetch-event-source, would make an empty event
// of it.

// validEventID reports whether id survives as a field on the way to a client
// and as a header on the way back. Browsers ignore ids with NUL (WHATWG HTML
// §9.2.6). Servers and proxies lose outer spaces and most of what isn't ASCII.
func validEventID(id string) bool {
	return len(id) <= maxEventIDBytes && !strings.ContainsFunc(id, func(c rune) bool { return c < 0x21 || c > 0x7E })
}

// appendEvent appends e in the form of an event stream, or returns an error and
// appends nothing. A space follows each colon, because readers remove one: data
// may begin with a space of its own. The id is behind the data. Some readers
// store it as they read it, and would lose an event that is cut behind its id.
func appendEvent(b []byte, e *Event) ([]byte, error) {
	if strings.ContainsAny(e.Name, "\r\n") {
		return b, fmt.Errorf("realtime: event name %q has a line break, which would end the field on an event stream", e.Name)
	}
	if !validEventID(e.ID) {
		return b, fmt.Errorf("realtime: event id %.100q is not visible ASCII of at most %d bytes", e.ID, maxEventIDBytes)
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
	if e.ID != "" {
		b = appendLines(b, "id: ", e.ID)
	}
	return append(b, '\n'), nil
}

// maxRetry is the longest retry. JavaScript's timers count milliseconds in 31
// bits. One for a longer time fires at once.
const maxRetry = math.MaxInt32 * time.Millisecond

// appendRetryField appends how long a client waits before it reconnects.
func appendRetryField(b []byte, d time.Duration) []byte {
	return fmt.Appendf(b, "retry: %d\n", min(max(d, 0), maxRetry).Milliseconds())
}

// appendLines appends each line of text after prefix. A line ends at CR, LF or
// CRLF, as it does for readers (WHATWG HTML §9.2.5): otherwise text could forge
// fields. A line break at the end adds an empty line. A run of bytes that
// aren't UTF-8 becomes U+FFFD.
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
