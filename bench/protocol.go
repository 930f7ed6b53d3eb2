//go:build linux

package main

import "fmt"

// A protocol describes how the clients of a contender talk to it.
type protocol struct {
	path   string
	stream bool // an event stream rather than a WebSocket
	tls    bool
	http2  bool // needs tls; else HTTP/1.1

	// join is sent when the WebSocket is open. The answer that accepts the client
	// has joined in it. If join is empty, a client has joined when its WebSocket
	// is open.
	join, joined string

	// A text message with ping in it must be answered with ping.
	ping string

	// An echo is sent as before + message + after. The server's answer has the
	// message in it.
	echoes        bool
	before, after string
}

var (
	plain       = protocol{path: "/", echoes: true}
	noEcho      = protocol{path: "/"}
	eventStream = protocol{path: "/?stream=messages", stream: true}

	// See github.com/centrifugal/protocol, definitions/client.proto.
	centrifugeJSON = protocol{
		path:   "/",
		join:   `{"id":1,"connect":{}}` + "\n" + `{"id":2,"subscribe":{"channel":"chat"}}`,
		joined: `"subscribe":{`,
		ping:   "{}",
		echoes: true,
		before: `{"id":3,"rpc":{"data":`,
		after:  `}}`,
	}
)

// request returns the HTTP request with which client number n connects.
func (p *protocol) request(n int) []byte {
	switch {
	case p.http2:
		return appendHTTP2Request(nil, p.path)
	case p.stream:
		return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n", p.path)
	}
	// The key is 16 bytes in base64. Each client has another one, because gws's
	// example distinguishes clients by it.
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %020dAA==\r\n\r\n", p.path, n)
}

// mask is the same for all frames. Servers can't know that, so they must unmask
// each.
var mask = [4]byte{0x37, 0xFA, 0x21, 0x3D}

// appendFrame appends a client's frame to b: FIN set and masked (RFC 6455
// §5.2). The payload must be shorter than 64 KiB.
func appendFrame(b []byte, op byte, payload []byte) []byte {
	b = append(b, 0x80|op)
	if len(payload) < 126 {
		b = append(b, 0x80|byte(len(payload)))
	} else {
		b = append(b, 0x80|126, byte(len(payload)>>8), byte(len(payload)))
	}
	b = append(b, mask[:]...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}
