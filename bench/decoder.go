//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// A decoder decodes the bytes that a server sends to one client. They come in
// pieces. It copies only messages and events that are cut by a piece's end.
type decoder struct {
	stream  bool // an event stream rather than a WebSocket
	http2   bool
	opened  bool // the HTTP answer has been read
	chunked bool
	left    int    // bytes of a chunk that have not come
	partial []byte // the beginning of a fragmented message or of an event
}

// A sink gets what a decoder has decoded. An error ends the decoding.
type sink interface {
	open() error                    // the HTTP answer accepts the client
	text(b []byte) error            // a message, text or binary, or an event with its fields
	ping(payload []byte) error      // must be answered with a pong
	http2Answer(frame []byte) error // must be sent
}

const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// decode decodes b and returns how many bytes it used. The next call must begin
// with the others.
func (d *decoder) decode(b []byte, to sink) (n int, err error) {
	if d.http2 {
		return d.http2Frames(b, to)
	}
	if !d.opened {
		if n, err = d.answer(b); n == 0 || err != nil {
			return n, err
		}
		if err := to.open(); err != nil {
			return n, err
		}
	}
	var used int
	if d.stream {
		used, err = d.body(b[n:], to)
	} else {
		used, err = d.frames(b[n:], to)
	}
	return n + used, err
}

// answer decodes the HTTP answer.
func (d *decoder) answer(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, nil
	}
	want := "HTTP/1.1 101 "
	if d.stream {
		want = "HTTP/1.1 200 "
	}
	if !bytes.HasPrefix(b, []byte(want)) {
		return 0, fmt.Errorf("the server answered %q", b)
	}
	d.opened = true
	d.chunked = bytes.Contains(bytes.ToLower(b[:end]), []byte("\r\ntransfer-encoding: chunked"))
	return end + len("\r\n\r\n"), nil
}

// frames decodes whole frames of a WebSocket (RFC 6455 §5.2).
func (d *decoder) frames(b []byte, to sink) (n int, err error) {
	for {
		f := b[n:]
		if len(f) < 2 {
			return n, nil
		}
		header, size := 2, int(f[1])
		switch {
		case size > 127:
			return n, errors.New("the server masks its frames")
		case size == 127 && len(f) >= 10:
			header, size = 10, int(binary.BigEndian.Uint64(f[2:]))
		case size == 126 && len(f) >= 4:
			header, size = 4, int(binary.BigEndian.Uint16(f[2:]))
		case size >= 126:
			return n, nil
		}
		if size < 0 || len(f)-header < size {
			return n, nil
		}
		payload := f[header : header+size]
		n += header + size
		if err := d.frame(f[0], payload, to); err != nil {
			return n, err
		}
	}
}

func (d *decoder) frame(first byte, payload []byte, to sink) error {
	switch op, fin := first&0x0F, first&0x80 != 0; {
	case first&0x70 != 0:
		return fmt.Errorf("frame with reserved bits: %#x", first)
	case op == opClose && len(payload) >= 2:
		return fmt.Errorf("%w with status %d %q", errDisconnected, binary.BigEndian.Uint16(payload), payload[2:])
	case op == opClose:
		return fmt.Errorf("%w with no status", errDisconnected)
	case op == opPing:
		return to.ping(payload)
	case op == opPong:
		return nil
	case op > opBinary:
		return fmt.Errorf("frame with an unknown opcode: %#x", first)
	case fin && op != opContinuation:
		return to.text(payload)
	case fin:
		err := to.text(append(d.partial, payload...))
		d.partial = d.partial[:0]
		return err
	default:
		d.partial = append(d.partial, payload...)
		return nil
	}
}

// body decodes the body of an HTTP answer, chunked or not (RFC 9112 §7.1).
func (d *decoder) body(b []byte, to sink) (n int, err error) {
	for n < len(b) {
		switch {
		case !d.chunked:
			return len(b), d.events(b[n:], to)
		case d.left > 0:
			size := min(d.left, len(b)-n)
			if err := d.events(b[n:n+size], to); err != nil {
				return n, err
			}
			d.left -= size
			n += size
		default:
			end := bytes.IndexByte(b[n:], '\n')
			if end < 0 {
				return n, nil
			}
			line := bytes.TrimSuffix(b[n:n+end], []byte{'\r'})
			n += end + 1
			if len(line) == 0 {
				continue // the end of a chunk
			}
			size, err := strconv.ParseInt(string(line), 16, 32)
			if err != nil {
				return n, fmt.Errorf("invalid chunk size %q", line)
			}
			if size == 0 {
				return n, fmt.Errorf("%w at the end of the stream", errDisconnected)
			}
			d.left = int(size)
		}
	}
	return n, nil
}

// events decodes bytes of an event stream. An event ends with an empty line.
func (d *decoder) events(b []byte, to sink) error {
	if len(d.partial) > 0 {
		d.partial = append(d.partial, b...)
		b = d.partial
	}
	for {
		end := bytes.Index(b, []byte("\n\n"))
		if end < 0 {
			d.partial = append(d.partial[:0], b...)
			return nil
		}
		if err := to.text(b[:end]); err != nil {
			return err
		}
		b = b[end+len("\n\n"):]
	}
}
