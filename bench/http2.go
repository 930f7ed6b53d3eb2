//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Types and flags of HTTP/2's frames (RFC 9113 §6).
const (
	http2Data     = 0
	http2Headers  = 1
	http2Reset    = 3
	http2Settings = 4
	http2Ping     = 6
	http2GoAway   = 7
	http2Window   = 8

	http2EndStream = 0x1 // of data and headers
	http2Ack       = 0x1 // of settings and pings
	http2EndHeader = 0x4
)

// appendHTTP2Request appends what a client sends on an HTTP/2 connection: a GET
// on stream 1. The windows are so large that they last for the whole turn.
func appendHTTP2Request(b []byte, path string) []byte {
	b = append(b, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"...)
	const initialWindow = 4
	b = appendHTTP2Frame(b, http2Settings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, initialWindow}, math.MaxInt32))
	b = appendHTTP2Frame(b, http2Window, 0, 0, binary.BigEndian.AppendUint32(nil, math.MaxInt32-65535))
	header := []byte{0x82, 0x87} // :method GET, :scheme https (RFC 7541, appendix A)
	header = appendHeader(header, 1, "localhost")
	header = appendHeader(header, 4, path)
	header = appendHeader(header, 19, "text/event-stream")
	return appendHTTP2Frame(b, http2Headers, http2EndStream|http2EndHeader, 1, header)
}

// appendHeader appends a header whose name is in HPACK's static table.
func appendHeader(b []byte, name byte, value string) []byte {
	b = append(b, 0x40|name, byte(len(value)))
	return append(b, value...)
}

func appendHTTP2Frame(b []byte, typ, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, 0, byte(len(payload)>>8), byte(len(payload)), typ, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// http2Frames decodes whole frames of a connection with one stream.
func (d *decoder) http2Frames(b []byte, to sink) (n int, err error) {
	const header = 9
	for {
		f := b[n:]
		if len(f) < header {
			return n, nil
		}
		size := int(f[0])<<16 | int(f[1])<<8 | int(f[2])
		if len(f) < header+size {
			return n, nil
		}
		n += header + size
		if err := d.http2Frame(f[3], f[4], f[header:header+size], to); err != nil {
			return n, err
		}
	}
}

// http2Frame decodes a frame. The server pads none and sends no priorities.
func (d *decoder) http2Frame(typ, flags byte, payload []byte, to sink) error {
	switch {
	case typ == http2Headers && !d.opened:
		const status200 = 0x88
		if len(payload) == 0 || payload[0] != status200 {
			return fmt.Errorf("the server answered %q", payload)
		}
		d.opened = true
		return to.open()
	case typ == http2Data && flags&http2EndStream != 0, typ == http2Headers, typ == http2Reset, typ == http2GoAway:
		return fmt.Errorf("%w at the end of the stream", errDisconnected)
	case typ == http2Data:
		return d.events(payload, to)
	case typ == http2Settings && flags&http2Ack == 0:
		return to.http2Answer(appendHTTP2Frame(nil, http2Settings, http2Ack, 0, nil))
	case typ == http2Ping && flags&http2Ack == 0:
		return to.http2Answer(appendHTTP2Frame(nil, http2Ping, http2Ack, 0, payload))
	}
	return nil
}
