//go:build linux

package main

import "fmt"

// A protocol is what the clients of a contender have to say.
type protocol struct {
	path   string
	stream bool // an event stream rather than a WebSocket

	// join is sent once the WebSocket is open, and joined is in the answer that
	// lets the client in. Empty: whose WebSocket is open has joined.
	join, joined string

	// ping, in a text message, is to be answered by itself.
	ping string

	// The server answers before + message + after with that message in it.
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

// request returns the HTTP request by which client number n connects.
func (p *protocol) request(n int) []byte {
	if p.stream {
		return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n", p.path)
	}
	// The key is 16 bytes in base64, another for each client: gws's example
	// tells them apart by it.
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %020dAA==\r\n\r\n", p.path, n)
}

// mask is the same for all frames. Servers can't know, and have to unmask.
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
