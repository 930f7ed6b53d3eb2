package realtime

import (
	"bufio"
	"compress/flate"
	"io"
	"slices"
	"strings"
	"sync"
)

// Compressed messages that come in (RFC 7692), and the agreement on both ways.
// The library has no part in it. Its inflater may read beyond the end of a
// message's data, and its Conn begins the next message with those bytes. That
// message could be another client's. So the Conn reads messages as they are on the
// wire, and an inflater of the hub reads what the Conn returns.

// agreeOnDeflate returns what answers the first offer of permessage-deflate that
// the hub can keep, or "" if there is none. Each side compresses each message
// by itself, with the whole window.
func agreeOnDeflate(header []string) (agreed string) {
	for offer := range listed(header) {
		if agreed := acceptDeflate(offer); agreed != "" {
			return agreed
		}
	}
	return ""
}

// acceptDeflate returns the answer to one offer, or "" to decline it (RFC 7692
// §7.1).
func acceptDeflate(offer string) string {
	name, params, more := cutUnquoted(offer, ";")
	if strings.TrimSpace(name) != "permessage-deflate" {
		return ""
	}
	window := ""
	seen := make([]string, 0, 4)
	for more {
		var param string
		param, params, more = cutUnquoted(params, ";")
		name, value, hasValue := strings.Cut(param, "=")
		name, value = strings.TrimSpace(name), unquoted(strings.TrimSpace(value))
		if slices.Contains(seen, name) {
			return ""
		}
		seen = append(seen, name)
		switch name {
		case "client_no_context_takeover", "server_no_context_takeover":
			if hasValue {
				return ""
			}
		case "client_max_window_bits":
			if hasValue && !isWindowBits(value) {
				return ""
			}
		case "server_max_window_bits":
			if value != "15" { // compress/flate has no smaller window
				return ""
			}
			window = "; server_max_window_bits=15" // without it, the client would have to give up (§7.1.2.1)
		default:
			return ""
		}
	}
	return "permessage-deflate; client_no_context_takeover; server_no_context_takeover" + window
}

// isWindowBits reports whether s is a window's size as RFC 7692 §7.1.2 writes it.
func isWindowBits(s string) bool {
	return len(s) == 1 && (s == "8" || s == "9") || len(s) == 2 && "10" <= s && s <= "15"
}

// unquoted returns the content of a quoted string, or s if it is none. Escapes
// stay: no value that is known here needs one.
func unquoted(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// marks follows the frames that come. If messages may be compressed, it removes the
// bit RSV1, which says that one is, and keeps it until that message is read. Frames
// in which the bit has no place keep it, so that the library refuses them.
type marks struct {
	field  field
	extra  uint8  // bytes of the frame's length that are still to come
	length uint64 // the frame's, as far as it has come; in payload, what is still to come
	since  int    // how many bytes have come since the last frame began, its first included

	// The bits of messages that have begun to come and were not asked for by next,
	// the oldest lowest. The library reads at most seatReadBytes ahead, and in so
	// many bytes fewer than 64 masked frames begin.
	set uint64
	n   uint8
}

// A field is a part of a frame (RFC 6455 §5.2).
type field uint8

const (
	fieldFirst   field = iota // FIN, RSV and the opcode
	fieldSecond               // MASK and the length, or its kind
	fieldLength               // a longer length
	fieldPayload              // and the mask before it
)

const maskBytes = 4

func (m *marks) scan(b []byte, inflates bool) {
	m.since += len(b)
	for len(b) > 0 {
		switch m.field {
		case fieldFirst:
			m.since = len(b)
			if op := b[0] & opMask; inflates && (op == opText || op == opBinary) {
				m.set |= uint64(b[0]&rsv1Bit) / rsv1Bit << m.n
				m.n++
				b[0] &^= rsv1Bit
			}
			m.field = fieldSecond
		case fieldSecond:
			m.field, m.extra, m.length = fieldLength, 0, 0
			switch n := b[0] & 0x7F; n {
			case 126:
				m.extra = 2
			case 127:
				m.extra = 8
			default:
				m.field, m.length = fieldPayload, maskBytes+uint64(n)
			}
		case fieldLength:
			m.length = m.length<<8 | uint64(b[0])
			if m.extra--; m.extra == 0 {
				m.field = fieldPayload
				m.length += maskBytes
			}
		case fieldPayload:
			n := min(m.length, uint64(len(b)))
			b = b[n:]
			if m.length -= n; m.length == 0 {
				m.field = fieldFirst
			}
			continue
		}
		b = b[1:]
	}
}

// next reports whether the next message is compressed.
func (m *marks) next() bool {
	compressed := m.set&1 != 0
	m.set >>= 1
	m.n--
	return compressed
}

// inflaters holds some 50 KB for each message that is being read.
var inflaters = sync.Pool{New: func() any {
	z := new(inflater)
	z.in = bufio.NewReaderSize(&z.from, 4<<10)
	z.out = flate.NewReader(z.in)
	return z
}}

// An inflater reads what a compressed message contains (RFC 7692 §7.2.2).
type inflater struct {
	from messageAndTail
	in   *bufio.Reader
	out  io.Reader // a flate.Resetter
}

// newInflater returns an inflater of message. free takes it back.
func newInflater(message io.Reader) *inflater {
	z := inflaters.Get().(*inflater)
	z.from.Reader = message
	z.from.tail.Reset("\x00\x00\xFF\xFF") // which its sender has left out
	z.in.Reset(&z.from)
	z.out.(flate.Resetter).Reset(z.in, nil)
	return z
}

func (z *inflater) free() {
	z.from.Reader = nil
	inflaters.Put(z)
}

// Read reads to the message's end. A block with BFINAL ends a stream, but the
// message may go on with another one (§7.2.1). Each of websocket-sharp's does
// (§7.2.3.4). The new stream has a new window, as zlib has after its end.
func (z *inflater) Read(p []byte) (int, error) {
	n, err := z.out.Read(p)
	switch err {
	case io.EOF:
		if _, err := z.in.Peek(1); err != nil {
			return n, err
		}
		return n, z.out.(flate.Resetter).Reset(z.in, nil)
	case io.ErrUnexpectedEOF:
		if z.from.Reader == &z.from.tail { // the tail ended, not the connection
			return n, io.EOF
		}
	}
	return n, err
}

type messageAndTail struct {
	io.Reader // the one that is being read
	tail      strings.Reader
}

func (m *messageAndTail) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if err == io.EOF && m.Reader != &m.tail {
		m.Reader, err = &m.tail, nil
	}
	return n, err
}
